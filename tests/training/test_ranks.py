"""Several ranks: how long they wait for each other, and what they notice."""

import os
import time
from datetime import timedelta

import pytest
import torch

from tests.two_ranks import on_two_ranks
from visiontune.training.ranks import Ranks


def test_ranks_wait_for_the_first_one_as_long_as_data_may_take_to_be_prepared() -> None:
    def work(ranks: Ranks) -> None:
        Ranks("cpu")  # as a verb makes one for its plan, and one for each run
        group = torch.distributed.group.WORLD
        assert group is not None
        assert group._get_backend(ranks.device).options._timeout >= timedelta(hours=12)
        ranks.wait()

    assert on_two_ranks(work) == [0, 0]


def test_a_rank_that_ends_is_noticed_at_once_all_the_same() -> None:
    def work(ranks: Ranks) -> None:
        ranks.wait()
        if not ranks.is_first:
            os._exit(1)
        start = time.monotonic()
        with pytest.raises(RuntimeError):
            ranks.wait()
        assert time.monotonic() - start < 60

    assert on_two_ranks(work) == [0, 1]

"""A run on two ranks, without the seconds in which torchrun and its two processes start."""

import multiprocessing
import os
import socket
from collections.abc import Callable

from accelerate.state import AcceleratorState

from visiontune.run import Run
from visiontune.training.loop import train_run
from visiontune.training.ranks import Ranks


def train_on_two_ranks(run: Run) -> None:
    """Train the planned run in two forked processes that find each other as those of torchrun do."""

    def train(_: Ranks) -> None:
        train_run(run)

    assert on_two_ranks(train) == [0, 0]


def on_two_ranks(work: Callable[[Ranks], None]) -> list[int | None]:
    """Do this in two forked processes; returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def rank(number: int) -> None:
        launched = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in launched.items()})
        AcceleratorState._reset_state(reset_partial_state=True)  # the one process of earlier tests
        ranks = Ranks("cpu")
        assert ranks.count == 2
        work(ranks)

    processes = [multiprocessing.get_context("fork").Process(target=rank, args=(number,)) for number in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]

"""An order in stages: samples drawn by their score at first, all alike in the end, from (seed, k) alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visiontune.data.curriculum import StagedOrder, StagePlan
from visiontune.data.order import Order
from visiontune.errors import DataError

SIZES = (400, 130)
SCORES = [np.random.default_rng(d).random(n) for d, n in enumerate(SIZES)]
STAGES = (StagePlan(960, (0.25, 1.0, 4.0)), StagePlan(1920, (1.0, 2.0)))


def staged(seed: int = 3, weights: list[float] | None = None) -> StagedOrder:
    return StagedOrder(seed, SIZES, weights, SCORES, STAGES)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 400), st.integers(1, 50))
def test_the_order_does_not_depend_on_how_it_is_cut(start: int, length: int, piece: int) -> None:
    order = staged()
    whole = order.draw(start, start + length)
    parts = [order.draw(a, min(a + piece, start + length)) for a in range(start, start + length, piece)]
    for name in ("dataset", "index", "epoch"):
        cut = np.concatenate([getattr(part, name) for part in parts]) if parts else np.array([], np.int64)
        assert np.array_equal(getattr(whole, name), cut)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 4000))
def test_what_is_seen_follows_by_arithmetic(stop: int) -> None:
    order = staged()
    drawn = np.bincount(order.draw(0, stop).dataset, minlength=2)
    assert order.seen(stop).tolist() == drawn.tolist()


def test_a_stage_draws_high_scores_as_much_oftener_as_it_says() -> None:
    drawn = staged().draw(0, 960)
    mine = drawn.dataset == 0
    rank = SCORES[0].argsort().argsort()[drawn.index[mine]]
    counts = np.bincount(np.minimum(rank * 3 // 400, 2), minlength=3) / mine.sum()
    assert counts == pytest.approx(np.array([0.25, 1, 4]) / 5.25, abs=0.03)


def test_scores_are_those_of_the_very_samples_drawn() -> None:
    """The defect that was measured elsewhere: weights of other frames than those drawn (correlation 0.06)."""
    drawn = staged().draw(0, 960)
    scores = np.array([SCORES[d][i] for d, i in zip(drawn.dataset, drawn.index, strict=True)])
    usual = np.array([SCORES[d].mean() for d in drawn.dataset])
    assert (scores - usual).mean() > 0.15
    later = staged().draw(1920, 2880)
    scores = np.array([SCORES[d][i] for d, i in zip(later.dataset, later.index, strict=True)])
    assert abs((scores - np.array([SCORES[d].mean() for d in later.dataset])).mean()) < 0.03


def test_after_the_last_stage_all_are_drawn_alike() -> None:
    plain = Order(3, SIZES).draw(0, 530 * 2)
    after = staged().draw(1920, 1920 + 530 * 2)
    assert np.array_equal(plain.index, after.index) and np.array_equal(plain.dataset, after.dataset)


def test_datasets_keep_their_shares_in_every_stage() -> None:
    for weights, share in ((None, 400 / 530), ([1.0, 3.0], 0.25)):
        for start, stop in ((0, 960), (960, 1920), (1920, 2880)):
            drawn = staged(weights=weights).draw(start, stop)
            assert (drawn.dataset == 0).mean() == pytest.approx(share, abs=0.02)


def test_seeds_give_other_orders() -> None:
    assert not np.array_equal(staged(1).draw(0, 64).index, staged(2).draw(0, 64).index)


def test_more_groups_than_rows_are_refused() -> None:
    with pytest.raises(DataError, match="3 groups"):
        StagedOrder(0, [2], None, [np.zeros(2)], [StagePlan(32, (1, 2, 3))])


def test_more_samples_than_torch_can_draw_from_are_no_limit() -> None:
    """torch.multinomial ends at 2^24 samples."""
    n = (1 << 24) + 1000
    order = StagedOrder(0, [n], None, [np.arange(n, dtype=np.float64)], [StagePlan(64, (1.0, 9.0))])
    drawn = order.draw(0, 64)
    assert (drawn.index >= n // 2).mean() > 0.7

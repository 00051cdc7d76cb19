"""The laws of the order. Each holds for any seed, sizes, weights and position, so hypothesis picks them."""

from itertools import pairwise
from math import lcm

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from visiontune.data.order import BLOCK, Draws, Order, mix, permute
from visiontune.errors import DataError

WINDOW = 10_000

seeds = st.integers(0, 2**64 - 1)
starts = st.integers(0, 10**12) | st.sampled_from([0, 10**9, 10**12])


@st.composite
def orders(draw: st.DrawFn, weighted: bool | None = None) -> Order:
    sizes = draw(st.lists(st.integers(1, 300), min_size=1, max_size=6))
    weight = st.floats(0.05, 50)
    if weighted is None:
        weighted = draw(st.booleans())
    weights = draw(st.lists(weight, min_size=len(sizes), max_size=len(sizes))) if weighted else None
    return Order(draw(seeds), sizes, weights)


def stacked(draws: Draws) -> NDArray[np.int64]:
    return np.stack([draws.dataset, draws.index, draws.epoch])


def worst_share_error(dataset: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    """The largest error of any dataset's share over every window of consecutive samples."""
    worst = 0.0
    for d, share in enumerate(shares):
        drawn = np.concatenate([[0], np.cumsum(dataset == d)])
        worst = max(worst, float(np.abs((drawn[WINDOW:] - drawn[:-WINDOW]) / WINDOW - share).max()))
    return worst


@settings(max_examples=60, deadline=None)
@given(orders(), starts)
def test_no_sample_repeats_inside_its_datasets_epoch(order: Order, start: int) -> None:
    draws = order.draw(start, start + 2000)
    assert len(np.unique(stacked(draws), axis=1).T) == 2000
    assert (draws.index >= 0).all() and (draws.index < order.sizes[draws.dataset].astype(np.int64)).all()


@settings(max_examples=60, deadline=None)
@given(orders())
def test_every_sample_comes_once_in_every_epoch(order: Order) -> None:
    draws = order.draw(0, 4000)
    for d, size in enumerate(order.sizes.tolist()):
        mine = draws.dataset == d
        whole_epochs = int(mine.sum()) // size - 1  # around its end an epoch and the next one mix within a block
        for epoch in range(max(0, whole_epochs)):
            assert sorted(draws.index[mine & (draws.epoch == epoch)].tolist()) == list(range(size))


UNEQUAL = {
    "linear": np.arange(1.0, 31),
    "geometric": 1.3 ** np.arange(30),
    "random": np.random.default_rng(0).uniform(0.01, 1, 30),
    "one of a million": np.array([1e6] + [1.0] * 29),
    # The hardest: what is left is shared by equals, whose places must not fall together.
    "one of a half": np.array([29.0] + [1.0] * 29),
    "one of three quarters": np.array([100.0] + [1.0] * 29),
}


@pytest.mark.parametrize("kind", UNEQUAL)
@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5])
def test_the_shares_of_30_datasets_hold_within_a_thousandth_in_any_10_000_samples(kind: str, seed: int) -> None:
    weights = UNEQUAL[kind]
    order = Order(seed, np.random.default_rng(1).integers(50, 5000, 30).tolist(), weights.tolist())
    for start in (0, 777, 10**9, 10**9 + 4321):
        assert worst_share_error(order.draw(start, start + 60_000).dataset, weights / weights.sum()) <= 1e-3


@settings(max_examples=60, deadline=None)
@given(orders(), starts, st.lists(st.integers(0, 900), max_size=6))
def test_the_order_is_the_same_however_it_is_cut(order: Order, start: int, cuts: list[int]) -> None:
    edges = [start, *sorted(start + cut for cut in cuts), start + 900]
    pieces = [stacked(order.draw(a, b)) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(pieces, axis=1), stacked(order.draw(start, start + 900)))


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(0, 5000))
def test_what_was_seen_by_arithmetic_equals_counting(order: Order, stop: int) -> None:
    counted = np.bincount(order.draw(0, stop).dataset, minlength=len(order.sizes))
    assert order.seen(stop).tolist() == counted.tolist()


@settings(max_examples=60, deadline=None)
@given(orders(), starts, st.integers(0, 3000))
def test_what_was_seen_also_counts_far_out(order: Order, start: int, length: int) -> None:
    counted = np.bincount(order.draw(start, start + length).dataset, minlength=len(order.sizes))
    assert (order.seen(start + length) - order.seen(start)).tolist() == counted.tolist()


@settings(max_examples=40, deadline=None)
@given(orders(weighted=False), st.integers(0, 10**6))
def test_without_weights_one_epoch_of_the_whole_is_one_epoch_of_each(order: Order, epoch: int) -> None:
    """Exactly where an epoch ends with a block of 32; else the block over its end mixes samples of both epochs."""
    sizes = order.sizes.astype(np.int64)
    whole = int(sizes.sum())
    turns = lcm(whole, BLOCK)
    assert order.seen(turns).tolist() == (sizes * (turns // whole)).tolist()
    first = epoch * whole // BLOCK * BLOCK
    last = -(-(epoch + 1) * whole // BLOCK) * BLOCK
    draws = order.draw(first, last)
    now = draws.epoch == epoch
    assert np.bincount(draws.dataset[now], minlength=len(sizes)).tolist() == sizes.tolist()


def test_another_epoch_and_another_seed_give_another_permutation() -> None:
    order, other = Order(0, [1000]), Order(1, [1000])
    epochs = [order.draw(e * 1000, (e + 1) * 1000).index for e in range(20)] + [other.draw(0, 1000).index]
    for i, one in enumerate(epochs):
        for two in epochs[:i]:
            assert (one == two).sum() < 10, "of two random permutations, about one sample keeps its place"


def test_datasets_of_one_size_are_not_shuffled_alike() -> None:
    draws = Order(0, [500, 500]).draw(0, 1000)
    one, two = (draws.index[draws.dataset == d] for d in (0, 1))
    n = min(len(one), len(two))
    assert (one[:n] == two[:n]).sum() < 10


@pytest.mark.parametrize("size", [3, 5, 7, 16, 33])
def test_every_place_is_equally_likely(size: int) -> None:
    """Chi-square of where each position lands over many keys, (size - 1)^2 degrees of freedom, at 1 in 10,000."""
    keys = 20_000
    key = np.repeat(mix(np.arange(keys, dtype=np.uint64)), size)
    position = np.tile(np.arange(size, dtype=np.uint64), keys)
    landed = permute(position, np.full_like(position, size), key)
    counts = np.zeros((size, size))
    np.add.at(counts, (position.astype(int), landed.astype(int)), 1)
    expected = keys / size
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, (size - 1) ** 2)


def test_every_order_of_five_samples_comes_about_as_often() -> None:
    """None of the 120 is off by a quarter. (A Feistel network is an even permutation of its domain: some 8 % stay.)"""
    keys = 60_000
    key = np.repeat(mix(np.arange(keys, dtype=np.uint64)), 5)
    position = np.tile(np.arange(5, dtype=np.uint64), keys)
    landed = permute(position, np.full_like(position, 5), key).reshape(keys, 5).astype(int)
    _, counts = np.unique(landed @ (5 ** np.arange(5)), return_counts=True)
    assert len(counts) == 120
    assert np.abs(counts / (keys / 120) - 1).max() < 0.25


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10**7), seeds, st.integers(0, 10**6))
def test_a_permutation_of_any_size_maps_onto_itself(size: int, key: int, start: int) -> None:
    position = np.arange(min(start, size - 1), min(size, start + 1000), dtype=np.uint64)
    landed = permute(position, np.full_like(position, size), np.full_like(position, key))
    assert (landed < size).all() and len(np.unique(landed)) == len(position)


@pytest.mark.parametrize("start", [10**9, 10**12])
def test_far_positions_are_as_good_as_near_ones(start: int) -> None:
    order = Order(3, [1000] * 30, list(range(1, 31)))
    draws = order.draw(start, start + 256)
    assert (draws.epoch > start // 10**6).all()
    assert len(np.unique(draws.dataset)) > 15 and len(np.unique(draws.index)) > 100


def test_epochs_are_counted_for_each_dataset_by_itself() -> None:
    draws = Order(0, [10, 1000], [1.0, 1.0]).draw(0, 100 * BLOCK)
    assert draws.epoch[draws.dataset == 0].max() == 159
    assert draws.epoch[draws.dataset == 1].max() == 1


@pytest.mark.parametrize("sizes", [[], [0], [10, 0], [-1]])
def test_datasets_without_rows_are_refused(sizes: list[int]) -> None:
    with pytest.raises(DataError, match="needs datasets that have rows"):
        Order(0, sizes)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")], []])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="weights above zero"):
        Order(0, [5, 5], weights)


def test_a_share_too_small_to_be_drawn_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"Dataset 1 has a share of 1\.00e-09, too small"):
        Order(0, [5, 5], [1.0, 1e-9])

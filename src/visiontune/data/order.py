"""Which sample comes k-th: a pure function of (seed, k).

Nothing here draws from a generator that has to be carried along, so a run resumes from two integers, ranks and workers
agree without talking, and anyone can recompute what a run has seen.

Two parts. Inside a dataset, each epoch is a keyed permutation of its rows (a Feistel network with cycle walking, see
Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Between datasets, a fixed table of `period` draws
holds each dataset exactly as often as its weight says, spread evenly; each block of 32 draws is shuffled with a key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import DataError

U64 = NDArray[np.uint64]

BLOCK = 32
FEISTEL_ROUNDS = 8  # with 6, some orders of a handful of rows come 1.6 times as often as they should
GOLDEN_RATIO = 0.6180339887498949
LONGEST_PERIOD = 1 << 22
SHORTEST_PERIOD = 1 << 12
DRAWS_OF_THE_RAREST = 16

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)


def mix(values: U64) -> U64:
    """Scramble 64-bit integers one to one (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = values + _GOLDEN  # array arithmetic wraps around silently, as it should here
    values = (values ^ (values >> _30)) * _MIX_1
    values = (values ^ (values >> _27)) * _MIX_2
    return values ^ (values >> _31)


def key(*parts: int) -> int:
    """One 64-bit key made of several integers; each part, and its place, changes the result."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = mix(state ^ mix(np.array([part & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)))
    return int(state[0])


def permute(position: U64, size: U64, keys: U64) -> U64:
    """Where `position` lands in the permutation of range(size) that its key names; all three of shape (n,).

    For one key and size, the positions 0..size-1 land on 0..size-1, each once.
    """
    half = np.ones_like(size)
    # Half the bits of the smallest even-width binary domain that holds `size`.
    while np.any(too_small := (np.uint64(1) << (half * np.uint64(2))) < size):
        half[too_small] += np.uint64(1)
    result = position.copy()
    walking = np.arange(len(position))
    while len(walking):
        result[walking] = _feistel(result[walking], half[walking], keys[walking])
        walking = walking[result[walking] >= size[walking]]
    return result


def _feistel(value: U64, half: U64, keys: U64) -> U64:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for turn in range(FEISTEL_ROUNDS):
        # `mix` adds a constant first, so a key plus the turn times another odd number gives each round its own.
        left, right = right, left ^ (mix(right ^ (keys + np.uint64(turn * int(_MIX_1) & 0xFFFFFFFFFFFFFFFF))) & mask)
    return (left << half) | right


@dataclass(frozen=True)
class Draws:
    """The samples at some positions of an order; all arrays of shape (n,), int64."""

    dataset: NDArray[np.int64]
    index: NDArray[np.int64]
    epoch: NDArray[np.int64]

    def digest(self) -> int:
        """A 64-bit sum over the draws that does not depend on their order; digests of parts add up modulo 2**64."""
        state = np.zeros(len(self.dataset), dtype=np.uint64)
        for part in (self.dataset, self.index, self.epoch):
            state = mix(state ^ mix(part.astype(np.uint64)))
        return int(state.sum(dtype=np.uint64))


class Order:
    """The endless order of samples of a run over one or several datasets.

    `sizes` are the datasets' numbers of rows. `weights` are the shares of the draws (any positive numbers); without
    them each dataset counts with its size, so that one epoch of the whole is one epoch of each (an epoch may end inside
    a block of 32 draws; beyond four million rows in all, shares are rounded to the table's length). Raises DataError.
    """

    def __init__(self, seed: int, sizes: Sequence[int], weights: Sequence[float] | None = None) -> None:
        if not sizes or min(sizes) < 1:
            raise DataError(f"An order needs datasets that have rows; the sizes are {list(sizes)}.")
        if weights is not None and (len(weights) != len(sizes) or not all(0 < w < float("inf") for w in weights)):
            raise DataError(
                f"{len(sizes)} datasets need as many weights above zero; the weights are {list(weights)}.",
                fix="give each dataset a weight above zero, or leave the dataset out",
            )
        self.seed = seed
        self.sizes = np.array(sizes, dtype=np.uint64)
        self.counts = _draws_per_period(sizes, weights)
        self.period = int(self.counts.sum())
        self._table, self._rank = _even_spread(self.counts)
        self._dataset_keys = np.array([key(seed, 1, d) for d in range(len(sizes))], dtype=np.uint64)
        self._block_key = np.uint64(key(seed, 2))

    def draw(self, start: int, stop: int) -> Draws:
        """The samples at positions start..stop-1."""
        positions = self._shuffled(np.arange(start, stop, dtype=np.uint64))
        turn, place = np.divmod(positions, np.uint64(self.period))
        dataset = self._table[place.astype(np.int64)]
        nth = turn * self.counts[dataset].astype(np.uint64) + self._rank[place.astype(np.int64)].astype(np.uint64)
        size = self.sizes[dataset]
        epoch, position = np.divmod(nth, size)
        index = permute(position, size, mix(self._dataset_keys[dataset] ^ mix(epoch)))
        return Draws(dataset.astype(np.int64), index.astype(np.int64), epoch.astype(np.int64))

    def seen(self, stop: int) -> NDArray[np.int64]:
        """How many of the first `stop` samples come from each dataset, by arithmetic; shape (datasets,), int64."""
        whole = stop // BLOCK * BLOCK
        turns, rest = divmod(whole, self.period)
        counts = turns * self.counts + np.bincount(self._table[:rest], minlength=len(self.sizes))
        if stop > whole:
            counts = counts + np.bincount(self.draw(whole, stop).dataset, minlength=len(self.sizes))
        return counts.astype(np.int64)

    def _shuffled(self, positions: U64) -> U64:
        """Shuffle within blocks: a regular interleaving would put the same datasets side by side forever."""
        if len(self.sizes) == 1:
            return positions
        block, place = np.divmod(positions, np.uint64(BLOCK))
        keys = mix(self._block_key ^ mix(block))
        return block * np.uint64(BLOCK) + permute(place, np.full_like(place, BLOCK), keys)


def _draws_per_period(sizes: Sequence[int], weights: Sequence[float] | None) -> NDArray[np.int64]:
    """How often each dataset stands in the table: sizes themselves where the table stays small, else apportioned."""
    if weights is None:
        common = gcd(*sizes)
        if sum(sizes) // common <= LONGEST_PERIOD:
            return np.array([size // common for size in sizes], dtype=np.int64)
    shares = np.array(weights if weights is not None else sizes, dtype=np.float64)
    shares = shares / shares.sum()
    period = SHORTEST_PERIOD
    while period * shares.min() < DRAWS_OF_THE_RAREST and period < LONGEST_PERIOD:
        period *= 2
    if period * shares.min() < 1:
        rarest = int(shares.argmin())
        raise DataError(
            f"Dataset {rarest} has a share of {shares[rarest]:.2e}, too small to be drawn.",
            fix=f"leave it out, or give weights in which it has a share of at least {1 / LONGEST_PERIOD:.1e}",
        )
    exact = shares * period
    counts = np.floor(exact).astype(np.int64)
    missing = period - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1  # the largest remainders
    return counts


def _even_spread(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A sequence that holds dataset d `counts[d]` times, evenly spread, and which of its draws each place is."""
    dataset = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    # Datasets with the same count would all stand in the same places; steps of the golden ratio keep them apart.
    phase = np.arange(1, len(counts) + 1) * GOLDEN_RATIO % 1
    place = (rank + phase[dataset]) / counts[dataset]
    in_order = np.argsort(place, kind="stable")
    return dataset[in_order], rank[in_order]

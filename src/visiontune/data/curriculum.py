"""An order in stages: at first samples are drawn by a score, in the end all alike.

Each dataset's rows are parted by their score into groups of equal size. A stage is an `Order` over all groups, in which
a group's weight is what the stage says; the last stage is the plain `Order`. So a staged order is a pure function of
(seed, k) too, and is resumed and dealt to ranks like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visiontune.data.order import BLOCK, Draws, Order, key
from visiontune.errors import DataError


@dataclass(frozen=True)
class StagePlan:
    """A stage ends at sample `until`; `weights` are how much likelier a sample is drawn, from low scores to high."""

    until: int
    weights: tuple[float, ...]


class StagedOrder(Order):
    """The order of samples of a run with a curriculum.

    `scores` has one array for each dataset, one score a row. Without `weights` each dataset counts with its size, in
    all stages. Samples of a group come equally often inside a stage; its `epoch` counts how often a sample came before
    in that stage. Raises DataError where a dataset has fewer rows than a stage has groups.
    """

    def __init__(
        self,
        seed: int,
        sizes: Sequence[int],
        weights: Sequence[float] | None,
        scores: Sequence[NDArray[np.float64]],
        stages: Sequence[StagePlan],
    ) -> None:
        super().__init__(seed, sizes, weights)
        self._plain = Order(seed, sizes, weights)
        shares = np.array(weights if weights is not None else sizes, np.float64)
        ends = [-(-stage.until // BLOCK) * BLOCK for stage in stages]
        self._starts = [0, *ends]
        self._stages = [
            _Stage(key(seed, 9, number), sizes, shares / shares.sum(), scores, stage.weights)
            for number, stage in enumerate(stages)
        ]

    def draw(self, start: int, stop: int) -> Draws:
        """The samples at positions start..stop-1."""
        parts = [
            stage.draw(max(start, first) - first, min(stop, last) - first)
            for stage, first, last in zip(self._stages, self._starts[:-1], self._starts[1:], strict=True)
            if max(start, first) < min(stop, last)
        ]
        last = self._starts[-1]
        if stop > last:
            parts.append(self._plain.draw(max(start, last) - last, stop - last))
        if not parts:
            parts = [self._plain.draw(0, 0)]
        return Draws(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("dataset", "index", "epoch")))

    def seen(self, stop: int) -> NDArray[np.int64]:
        """How many of the first `stop` samples come from each dataset, by arithmetic; shape (datasets,), int64."""
        counts = np.zeros(len(self.sizes), np.int64)
        for stage, first, last in zip(self._stages, self._starts[:-1], self._starts[1:], strict=True):
            if stop > first:
                counts += stage.seen(min(stop, last) - first)
        return counts + self._plain.seen(max(0, stop - self._starts[-1]))


class _Stage:
    """One stage: an order over groups of rows."""

    def __init__(
        self,
        seed: int,
        sizes: Sequence[int],
        shares: NDArray[np.float64],
        scores: Sequence[NDArray[np.float64]],
        weights: Sequence[float],
    ) -> None:
        self._datasets: list[int] = []
        self._rows: list[NDArray[np.int64]] = []
        drawn: list[float] = []
        for dataset, (size, score) in enumerate(zip(sizes, scores, strict=True)):
            if size < len(weights) or len(score) < size:
                raise DataError(
                    f"Dataset {dataset} has {size} rows and {len(score)} scores; a stage has {len(weights)} groups.",
                    where="data.curriculum",
                    fix="use fewer groups, or leave the dataset out",
                )
            groups = np.array_split(np.argsort(score[:size], kind="stable"), len(weights))
            pull = np.array([weight * len(group) for weight, group in zip(weights, groups, strict=True)])
            self._datasets += [dataset] * len(groups)
            self._rows += groups
            drawn += (shares[dataset] * pull / pull.sum()).tolist()
        self._count = len(sizes)
        self._order = Order(seed, [len(rows) for rows in self._rows], drawn)

    def draw(self, start: int, stop: int) -> Draws:
        drawn = self._order.draw(start, stop)
        index = np.array([self._rows[g][i] for g, i in zip(drawn.dataset, drawn.index, strict=True)], np.int64)
        return Draws(np.array(self._datasets, np.int64)[drawn.dataset], index, drawn.epoch)

    def seen(self, stop: int) -> NDArray[np.int64]:
        counts = np.zeros(self._count, np.int64)
        np.add.at(counts, self._datasets, self._order.seen(stop))
        return counts

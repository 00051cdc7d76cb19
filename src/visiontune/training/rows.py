"""Which rows of a split an evaluation takes, and how they become batches."""

from collections.abc import Sequence
from typing import TypeVar

from visiontune.data.dataset import Dataset

T = TypeVar("T")


def first_rows(
    datasets: Sequence[Dataset], split: str, *, limit: int | None = None, rows: int | None = None
) -> list[tuple[int, int]]:
    """(dataset, row) of the samples that an evaluation takes: first rows first, from all datasets in turn."""
    counts = [min(dataset.count(split), rows or dataset.count(split)) for dataset in datasets]
    return [(d, i) for i in range(max(counts)) for d, count in enumerate(counts) if i < count][:limit]


def batched(things: Sequence[T], lengths: Sequence[int], room: int, extra: int = 0) -> list[list[T]]:
    """`things` by falling length, as many together as hold `room` tokens when padded to the longest, one at least.

    `extra` tokens come to each. Of equal lengths, the order stays.
    """
    order = sorted(range(len(things)), key=lambda i: -lengths[i])
    batches: list[list[T]] = []
    while order:
        size = max(1, room // max(1, lengths[order[0]] + extra))
        batches.append([things[i] for i in order[:size]])
        order = order[size:]
    return batches

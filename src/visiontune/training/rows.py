"""Which rows of a split an evaluation takes."""

from collections.abc import Sequence

from visiontune.data.dataset import Dataset


def first_rows(
    datasets: Sequence[Dataset], split: str, *, limit: int | None = None, rows: int | None = None
) -> list[tuple[int, int]]:
    """(dataset, row) of the samples that an evaluation takes: first rows first, from all datasets in turn."""
    counts = [min(dataset.count(split), rows or dataset.count(split)) for dataset in datasets]
    return [(d, i) for i in range(max(counts)) for d, count in enumerate(counts) if i < count][:limit]

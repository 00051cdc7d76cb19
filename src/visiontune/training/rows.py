"""Which rows of a split an evaluation takes, and how they become batches."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from visiontune.data.dataset import Dataset, Index
from visiontune.models.adapter import Batch, Encoder
from visiontune.recipe import Recipe
from visiontune.training.batches import MicroBatch, Reading, load_steps
from visiontune.training.ranks import Ranks

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


def split_batches(
    encoder: Encoder[Any],
    datasets: Sequence[Dataset],
    indexes: Sequence[Index],
    split: str,
    recipe: Recipe,
    ranks: Ranks,
    *,
    with_answer: bool,
    limit: int | None = None,
    rows: int | None = None,
    extra: int = 0,
) -> tuple[int, Iterator[Batch]]:
    """How many samples of a split this rank evaluates, and their batches; `Batch.origins` says which those are.

    `indexes` are those of the datasets. `limit` takes so many samples, first rows first, from all datasets in turn;
    `rows` takes the first rows of each. `extra` as in `batched`.
    """
    refs = [(d, i, 0) for d, i in sorted(first_rows(datasets, split, limit=limit, rows=rows))]
    lengths = [encoder.lengths(index) for index in indexes]
    batches = batched(refs, [int(lengths[d][i]) for d, i, _ in refs], recipe.batch.tokens, extra)
    own = [[MicroBatch(0, 0, tuple(batch))] for batch in batches[ranks.rank :: ranks.count]]
    workers = recipe.machine.workers if len(own) > 4 else 0  # a handful of batches is read before workers have started
    steps = load_steps(own, Reading(datasets, encoder, split, with_answer), workers=workers)
    return sum(len(step[0].samples) for step in own), (batch for _, loaded in steps for _, batch in loaded)

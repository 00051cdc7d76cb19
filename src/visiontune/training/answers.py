"""Greedy answers to samples held in memory, several at a time."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from visiontune.data.sample import Sample
from visiontune.errors import DataError
from visiontune.models.text import Encoded, TextAdapter, TextEncoder
from visiontune.progress import Advance
from visiontune.recipe import Recipe
from visiontune.training.precision import autocast


@dataclass(frozen=True)
class Reply:
    """The text of an answer; None where the sample was left out, and then why: what it shows exceeds the context."""

    text: str | None
    left_out: str | None = None


def replies(
    adapter: TextAdapter,
    encoder: TextEncoder,
    samples: Iterable[Sample],
    recipe: Recipe,
    device: torch.device,
    advance: Advance,
) -> list[Reply]:
    """The model's answers to samples as `encoder` shows them, in their order, `batch.tokens` at a time."""
    found: list[Reply] = []
    waiting: list[tuple[int, Encoded]] = []

    def ask() -> None:
        if not waiting:
            return
        batch = encoder.collate([encoded for _, encoded in waiting], pad_left=True)
        with torch.no_grad(), autocast(device, recipe.machine.precision):
            made = adapter.generate(batch.to(device), recipe.evaluation.max_new_tokens)
        for (place, _), (text, _) in zip(waiting, made, strict=True):
            found[place] = Reply(text)
        advance(len(waiting))
        waiting.clear()

    for place, sample in enumerate(samples):
        try:
            encoded = encoder.encode(sample, with_answer=False)
        except DataError as error:
            found.append(Reply(None, error.found))
            advance(1)
            continue
        longest = max(len(one.input_ids) for one in (encoded, *(one for _, one in waiting)))
        if (len(waiting) + 1) * (longest + recipe.evaluation.max_new_tokens) > recipe.batch.tokens:
            ask()
        found.append(Reply(None))  # until it is asked
        waiting.append((place, encoded))
    ask()
    return found

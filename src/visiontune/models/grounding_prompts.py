"""Class names as prompts for Grounding DINO: names to phrases, phrases to chunks of tokens, tokens back to classes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from visiontune.errors import RecipeError

SEPARATORS = re.compile(r"[.?,;\s]+")
"""What would part a phrase in two (the model splits at '.' and '?'), or is read as a list."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """The k classes of one prompt.

    classes: (k,) int64, their numbers. input_ids: (t,) int64, the prompt's tokens. place: (t,) int64, which of the k
    classes a token belongs to; k for tokens of none.
    """

    classes: Tensor
    input_ids: Tensor
    place: Tensor

    def to(self, device: torch.device) -> "Chunk":
        """The same chunk on `device`."""
        return Chunk(self.classes.to(device), self.input_ids.to(device), self.place.to(device))

    def tokens_of(self) -> Tensor:
        """(k, t) float32: 1 where a token belongs to a class."""
        count = len(self.classes)
        return functional.one_hot(self.place, count + 1)[:, :count].T.float()

    def to_tokens(self, values: Tensor) -> Tensor:
        """Values of classes (..., k) at their tokens (..., t); 0, or False, at tokens of no class."""
        return functional.pad(values, (0, 1))[..., self.place]

    def to_classes(self, values: Tensor) -> Tensor:
        """The mean of values of tokens (..., t) over each class's tokens: (..., k)."""
        tokens = self.tokens_of().to(values)
        return values @ (tokens / tokens.sum(dim=1, keepdim=True)).T


@dataclass(frozen=True, eq=False)
class Prompts:
    """A list of classes as the model is asked for them: each class is in one chunk.

    phrases: what stands for each class, one for each and no two alike. chunks: in the order of the classes. chunk_of:
    (classes,) int64, the chunk of each class.
    """

    phrases: tuple[str, ...]
    chunks: tuple[Chunk, ...]
    chunk_of: Tensor


def phrase(name: str) -> str:
    """A class name in lower case, without what would part it: "No. 5, red" becomes "no 5 red"."""
    return SEPARATORS.sub(" ", name.lower()).strip()


def make_prompts(classes: Sequence[str], tokenizer: Any, longest: int) -> Prompts:
    """Classes in chunks of at most `longest` tokens each, as many in one as it holds, in their order.

    A chunk is what the processor makes of its phrases: [CLS] phrase . phrase . [SEP]. Where the tokenizer cannot tell
    two phrases apart (it knows neither capitals nor accents), the later one gets a number behind it. Raises RecipeError
    for a name that no phrase can be made of.
    """
    start, end, stop = (tokenizer.convert_tokens_to_ids(t) for t in (tokenizer.cls_token, tokenizer.sep_token, "."))
    ours: dict[tuple[int, ...], str] = {}
    for name in classes:
        ids, text, number = _tokens(phrase(name), tokenizer), phrase(name), 1
        if not ids or len(ids) + 3 > longest:
            raise RecipeError(
                f"The model cannot be asked for the class '{name}': its name is {len(ids)} tokens; "
                f"1 to {longest - 3} can be asked.",
                where="objects.classes",
                fix="rename the class in words that say what is to be found",
            )
        while ids in ours:
            number += 1
            text = f"{phrase(name)} {number}"
            ids = _tokens(text, tokenizer)
        ours[ids] = text
    groups: list[list[tuple[int, ...]]] = [[]]
    room = longest - 2
    for ids in ours:
        if len(ids) + 1 > room:
            groups.append([])
            room = longest - 2
        groups[-1].append(ids)
        room -= len(ids) + 1
    chunks, first = [], 0
    for group in groups:
        tokens, place = [start], [len(group)]
        for position, ids in enumerate(group):
            tokens += [*ids, stop]
            place += [position] * len(ids) + [len(group)]
        numbers = torch.arange(first, first + len(group))
        chunks.append(Chunk(numbers, torch.tensor([*tokens, end]), torch.tensor([*place, len(group)])))
        first += len(group)
    sizes = torch.tensor([len(group) for group in groups])
    return Prompts(tuple(ours.values()), tuple(chunks), torch.arange(len(groups)).repeat_interleave(sizes))


def _tokens(text: str, tokenizer: Any) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

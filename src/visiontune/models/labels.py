"""A closed set of labels, scored and not parsed: the probability of each label, from one reading of the prompt.

The labels' token sequences form a tree. Where it branches, the model's probabilities of the tokens that continue some
label are divided by their sum; a label's probability is the product of these shares along its path. So the labels'
probabilities sum to one, labels that differ in their first token cost nothing beyond reading the prompt, and each
further branching costs one more step behind the same prompt. PyTorch and the shipped runtime follow this one rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import DataError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class LabelTree:
    """The labels and, for each, its token ids behind the prompt, the end token included."""

    labels: tuple[str, ...]
    tokens: tuple[Tokens, ...]
    branches: dict[Tokens, Tokens] = field(init=False, repr=False)
    """Where the tree branches: the tokens up to there (behind the prompt) and the tokens that may follow, ascending."""

    def __post_init__(self) -> None:
        first: dict[Tokens, str] = {}
        followers: dict[Tokens, set[int]] = {}
        for label, tokens in zip(self.labels, self.tokens, strict=True):
            if tokens in first:
                raise DataError(
                    f"The labels '{first[tokens]}' and '{label}' are the same tokens.", fix="rename one of them"
                )
            first[tokens] = label
            for place, token in enumerate(tokens):
                followers.setdefault(tokens[:place], set()).add(token)
        for tokens, label in first.items():
            if tokens in followers:
                longer = next(other for ids, other in first.items() if ids != tokens and ids[: len(tokens)] == tokens)
                raise DataError(
                    f"The tokens of '{label}' are the beginning of those of '{longer}'.",
                    fix="end the tokens of every label with the end token",
                )
        branches = {prefix: tuple(sorted(next_)) for prefix, next_ in sorted(followers.items()) if len(next_) > 1}
        object.__setattr__(self, "branches", branches)

    @cached_property
    def _paths(self) -> list[list[tuple[Tokens, int]]]:
        """For each label the branchings on its way, each with the place of the label's token among the followers."""
        return [
            [
                (tokens[:place], self.branches[tokens[:place]].index(token))
                for place, token in enumerate(tokens)
                if tokens[:place] in self.branches
            ]
            for tokens in self.tokens
        ]

    def log_probabilities(self, at_branches: Mapping[Tokens, NDArray[np.floating]]) -> NDArray[np.float64]:
        """Log-probability of each label, (..., labels) float64, exponentials sum to one.

        `at_branches` holds for each branching the scores of its followers, (..., followers): logits or
        log-probabilities, it is the same.
        """
        shares = {prefix: log_softmax(np.asarray(scores, np.float64)) for prefix, scores in at_branches.items()}
        batch = next(iter(shares.values())).shape[:-1] if shares else ()
        columns = [sum((shares[prefix][..., place] for prefix, place in path), np.zeros(batch)) for path in self._paths]
        return np.stack(columns, axis=-1)

    def to_json(self) -> list[dict[str, Any]]:
        """[{"label", "tokens"}], in the order of the labels."""
        return [{"label": label, "tokens": list(ids)} for label, ids in zip(self.labels, self.tokens, strict=True)]

    @staticmethod
    def from_json(value: Sequence[Mapping[str, Any]]) -> "LabelTree":
        """Read back what `to_json` wrote."""
        return LabelTree(tuple(v["label"] for v in value), tuple(tuple(v["tokens"]) for v in value))


def log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores minus the logarithm of the sum of their exponentials, along the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

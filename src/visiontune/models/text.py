"""What is asked of models that answer in text, beyond `models/adapter.py`."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from visiontune.data.dataset import Index
from visiontune.data.pages import PageSpec
from visiontune.errors import ModelError
from visiontune.models.adapter import Batch, Encoder, Layout, ModelAdapter
from visiontune.models.labels import LabelTree


@dataclass(frozen=True)
class Encoded:
    """One sample as tensors.

    input_ids: (length,) int64. supervised: (length,) bool, the tokens that are learned. images: what the family makes
    of the images, by the names that the network gives them, `pixel_values` among them: (tiles, 3, height, width) or
    (patches, values), float32; nothing where there are none. image_features: how many features the vision side will
    deliver for these tiles. shortened: tokens of the answer that did not fit. features: (tiles, features a tile,
    width), what the vision encoder made of the tiles earlier, then instead of pixel_values.
    """

    id: str
    input_ids: torch.Tensor
    supervised: torch.Tensor
    images: Mapping[str, torch.Tensor]
    image_features: int
    shortened: int = 0
    features: torch.Tensor | None = None

    @property
    def pixel_values(self) -> torch.Tensor | None:
        """The images as the vision encoder sees them; None where there are none."""
        return self.images.get("pixel_values")

    @property
    def views(self) -> int:
        """How many tiles (or patches) the vision encoder sees or saw."""
        seen = self.pixel_values if self.features is None else self.features
        return 0 if seen is None else len(seen)


@dataclass(frozen=True)
class Trace:
    """A greedy answer and its tokens (the end token included), each with its log-probability over the vocabulary and
    the distance to that of the runner-up. `ended`: the end token was written before the greatest length was reached."""

    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    margins: tuple[float, ...]
    ended: bool

    @property
    def probability(self) -> float:
        """The probability of the whole answer, in [0, 1]."""
        return math.exp(sum(self.log_probabilities))


class TextEncoder(Encoder[Encoded]):
    """Samples whose target is a text as tensors."""

    @abstractmethod
    def cut(self, text: str, tokens: int) -> str:
        """The beginning of a text that takes so many tokens."""

    @abstractmethod
    def count(self, text: str) -> int:
        """How many tokens a text has."""

    @abstractmethod
    def image_tokens(self, layout: Layout) -> int:
        """How many image tokens stand for images with this layout."""

    @abstractmethod
    def asked_lengths(self, index: Index) -> NDArray[np.int64]:
        """How many tokens each row has before its answer, whether they are allowed or not; shape (rows,)."""

    @abstractmethod
    def showing(self, pages: PageSpec) -> "TextEncoder":
        """An encoder beside this one that shows documents as other pages, in the same fonts."""

    @abstractmethod
    def label_tokens(self, label: str) -> tuple[int, ...]:
        """The token ids of a label as an answer, behind the prompt; the end token is the last."""

    @abstractmethod
    def segments(self, encoded: Encoded) -> list[tuple[str, bool]]:
        """The sample's text in runs of (text, supervised), runs of image tokens shortened, for a person to read."""

    @abstractmethod
    def answers_of(self, encoded: Encoded) -> list[str]:
        """The text of each run of supervised tokens, without the end token: the answers that are learned, in order."""


class TextAdapter(ModelAdapter):
    """A model that answers in text."""

    encoder: TextEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # set once

    @abstractmethod
    def trace(self, batch: Batch, max_new_tokens: int) -> list[Trace]:
        """Greedy answers to a left-padded batch of questions, token by token."""

    def generate(self, batch: Batch, max_new_tokens: int) -> list[tuple[str, float]]:
        """Greedy answers to a left-padded batch of questions, each with its probability in [0, 1]."""
        return [(one.text, one.probability) for one in self.trace(batch, max_new_tokens)]

    @abstractmethod
    def score_labels(self, batch: Batch, tree: LabelTree) -> NDArray[np.float64]:
        """Log-probabilities of the labels by LabelTree's rule, of a left-padded batch of questions: (batch, labels)."""


def writes_text(adapter: ModelAdapter) -> TextAdapter:
    """The adapter of a model that answers in text; ModelError for any other."""
    if not isinstance(adapter, TextAdapter):
        raise ModelError("This model finds objects; it writes no text.", fix="use a run that was trained on texts")
    return adapter

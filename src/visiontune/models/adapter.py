"""ModelAdapter: what the training loop may ask of a model, and Encoder: how samples become tensors."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from visiontune.data.dataset import Index
from visiontune.data.pages import Fonts, PageSpec
from visiontune.data.sample import Sample
from visiontune.models.labels import LabelTree
from visiontune.models.parts import Part

if TYPE_CHECKING:
    from peft import PeftModel


Layout = tuple[tuple[int, int], ...]
"""For each image of a sample what decides how many tokens stand for it; the family knows what the two numbers are."""


@dataclass(frozen=True)
class Features:
    """What the vision encoder made of a sample's views, in place of its images.

    values: (views, features a view, width). layout: that of the sample's images.
    """

    values: torch.Tensor
    layout: Layout


@dataclass(frozen=True)
class Encoded:
    """One sample as tensors.

    input_ids: (length,) int64. supervised: (length,) bool, the tokens that are learned. pixel_values: (tiles, 3,
    height, width) float32 or None. pixel_mask: (tiles, height, width) int64 or None. image_features: how many features
    the vision side will deliver for these tiles. shortened: tokens of the answer that did not fit. features: (tiles,
    features a tile, width), what the vision encoder made of the tiles earlier, then instead of pixel_values.
    """

    id: str
    input_ids: torch.Tensor
    supervised: torch.Tensor
    pixel_values: torch.Tensor | None
    pixel_mask: torch.Tensor | None
    image_features: int
    shortened: int = 0
    features: torch.Tensor | None = None

    @property
    def views(self) -> int:
        """How many tiles the vision encoder sees or saw."""
        seen = self.pixel_values if self.features is None else self.features
        return 0 if seen is None else len(seen)


@dataclass
class Batch:
    """A micro-batch. `tensors` is what the model sees, each with the batch as its first dimension.

    `weights` holds, for each loss term, the number of targets that it averages over; it comes from the targets alone.
    """

    ids: list[str]
    tensors: dict[str, torch.Tensor]
    weights: dict[str, int]
    tokens: int
    padded_tokens: int
    image_tokens: int
    image_features: int
    tiles: int
    shortened: int = 0
    origins: list[tuple[int, int, int]] = field(default_factory=list)  # (dataset, index, epoch) of each sample

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from where a GPU copies in the background; called by the loader."""
        return replace(self, tensors={name: tensor.pin_memory() for name, tensor in self.tensors.items()})

    def pieces(self, count: int) -> "list[Batch]":
        """The batch cut into at most `count` pieces along its samples; its counts stay those of the whole."""
        cut = {name: tensor.chunk(count) for name, tensor in self.tensors.items()}
        size = len(next(iter(cut.values()))[0])
        ids = [self.ids[start : start + size] for start in range(0, len(self.ids), size)]
        return [replace(self, ids=ids[i], tensors={n: t[i] for n, t in cut.items()}) for i in range(len(ids))]


@dataclass(frozen=True)
class Trace:
    """A greedy answer and its tokens (the end token included), each with its log-probability over the vocabulary and
    the distance to that of the runner-up."""

    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    margins: tuple[float, ...]


class Encoder(ABC):
    """Turns samples into tensors with the model's own processor. Holds no weights, so that workers can carry it.

    `fonts` are those of the recipe's page spec, where documents are seen.
    """

    fonts: Fonts | None = None

    @abstractmethod
    def encode(
        self,
        sample: Sample,
        *,
        with_answer: bool = True,
        augmentation: int | None = None,
        features: Features | None = None,
    ) -> Encoded:
        """One sample as tensors; without its answer, as the model sees it when it is asked. Raises DataError.

        `augmentation` is the number that decides how the images are augmented (`data.augment`); None: not at all. With
        `features`, what the sample shows is not looked at again.
        """

    @abstractmethod
    def layouts(self, index: Index) -> Iterator[Layout]:
        """The layout of each row of a split, without decoding an image or drawing a page."""

    @abstractmethod
    def views(self, layout: Layout) -> int:
        """How many tiles the vision encoder sees of images with this layout."""

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """How the checkpoint's processor changes images, as plain values: other values, other pixels."""

    @abstractmethod
    def lengths(self, index: Index) -> NDArray[np.int64]:
        """How many tokens each row of a split will have, without decoding its images; shape (rows,)."""

    @abstractmethod
    def cut(self, text: str, tokens: int) -> str:
        """The beginning of a text that takes so many tokens."""

    @abstractmethod
    def count(self, text: str) -> int:
        """How many tokens a text has."""

    @abstractmethod
    def showing(self, pages: PageSpec) -> "Encoder":
        """An encoder beside this one that shows documents as other pages, in the same fonts."""

    @abstractmethod
    def label_tokens(self, label: str) -> tuple[int, ...]:
        """The token ids of a label as an answer, behind the prompt; the end token is the last."""

    @abstractmethod
    def collate(self, encoded: Sequence[Encoded], *, pad_left: bool = False) -> Batch:
        """Samples side by side, padded to the longest."""

    @abstractmethod
    def segments(self, encoded: Encoded) -> list[tuple[str, bool]]:
        """The sample's text in runs of (text, supervised), runs of image tokens shortened, for a person to read."""

    @abstractmethod
    def answer_of(self, encoded: Encoded) -> str:
        """The text of the supervised tokens without the end token."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the processor, tokenizer and chat template as transformers reads them."""


class ModelAdapter(ABC):
    """A model as the training loop sees it.

    `network` is the transformers model (with adapters injected, where there are any); `peft` wraps it when a part is
    trained with LoRA. `parts` names disjoint groups of modules that together hold every weight.
    """

    family: str
    terms: tuple[str, ...]  # the names of the loss terms, the same for every batch
    network: torch.nn.Module
    peft: "PeftModel | None" = None
    encoder: Encoder
    parts: tuple[Part, ...]

    @property
    def trained_module(self) -> torch.nn.Module:
        """The outermost module: parameter names are taken from it."""
        return self.network if self.peft is None else self.peft

    @property
    def expert_layers(self) -> list[torch.nn.Module]:
        """The layers that choose among experts, called as `moe_dropout` says; none in most models."""
        return []

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """For each loss term its sum over each sample's targets: (batch,), float32. Divide by `Batch.weights`."""

    @abstractmethod
    def vision_features(self, batch: Batch) -> list[torch.Tensor]:
        """What the vision encoder makes of each sample's views: (views, features a view, width) for each sample."""

    @abstractmethod
    def trace(self, batch: Batch, max_new_tokens: int) -> list[Trace]:
        """Greedy answers to a left-padded batch of questions, token by token."""

    def generate(self, batch: Batch, max_new_tokens: int) -> list[tuple[str, float]]:
        """Greedy answers to a left-padded batch of questions, each with its probability in [0, 1]."""
        return [(one.text, math.exp(sum(one.log_probabilities))) for one in self.trace(batch, max_new_tokens)]

    @abstractmethod
    def score_labels(self, batch: Batch, tree: LabelTree) -> NDArray[np.float64]:
        """Log-probabilities of the labels by LabelTree's rule, of a left-padded batch of questions: (batch, labels)."""

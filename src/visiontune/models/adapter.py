"""ModelAdapter: what the training loop may ask of a model, and Encoder: how samples become tensors.

What texts need beyond this stands in `models/text.py`, what boxes and masks need in `models/objects.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from visiontune.data.dataset import Index
from visiontune.data.pages import Fonts
from visiontune.data.sample import Sample
from visiontune.errors import ModelError, RecipeError
from visiontune.models.parts import Part

if TYPE_CHECKING:
    from peft import PeftModel


Layout = tuple[tuple[int, int], ...]
"""For each image of a sample what decides how many tokens stand for it; the family knows what the two numbers are."""

E = TypeVar("E")
"""One sample as tensors, in the form of its target: `text.Encoded`, `objects.EncodedObjects`."""


@dataclass(frozen=True)
class Features:
    """What the vision encoder made of a sample's views, in place of its images.

    values: (views, ...), of texts (views, features a view, width). layout: that of the sample's images.
    """

    values: torch.Tensor
    layout: Layout


@dataclass
class Batch:
    """A micro-batch. `tensors` is what the model sees, each with the batch as its first dimension; images are
    `pixel_values` (batch, tiles, 3, height, width), or `features` (batch, tiles, ...) in their place.

    `weights` holds, for each loss term, the number of targets that it averages over; it comes from the targets alone.
    """

    ids: list[str]
    tensors: dict[str, torch.Tensor]
    weights: Mapping[str, float]
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
class Supervision:
    """What a sample teaches, read back from its tensors. `shown` is for a person, in plain values; `wrong` says in a
    sentence how it differs from the sample's target, None where it does not."""

    shown: dict[str, Any]
    wrong: str | None


class Encoder(ABC, Generic[E]):
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
    ) -> E:
        """One sample as tensors; without its answer, as the model sees it when it is asked. Raises DataError.

        `augmentation` is the number that decides how the images are augmented (`data.augment`); None: not at all. With
        `features`, what the sample shows is not looked at again.
        """

    @abstractmethod
    def collate(self, encoded: Sequence[E], *, pad_left: bool = False) -> Batch:
        """Samples side by side, padded to the longest."""

    @abstractmethod
    def supervision(self, sample: Sample) -> Supervision:
        """What is learned from a sample, read back from its tensors and held to its target."""

    @abstractmethod
    def exchanged(self, sample: Sample, other: Sample) -> E:
        """A sample with its own target and the images of another one."""

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
    def save(self, folder: Path) -> None:
        """Write the processor (of texts also tokenizer and chat template) as transformers reads it."""


class ModelAdapter(ABC):
    """A model as the training loop sees it.

    `network` is the transformers model (with adapters injected, where there are any); `peft` wraps it when a part is
    trained with LoRA. `parts` names disjoint groups of modules that together hold every weight.
    """

    family: str
    terms: tuple[str, ...]  # the names of the loss terms, the same for every batch
    network: torch.nn.Module
    peft: "PeftModel | None" = None
    encoder: Encoder[Any]
    parts: tuple[Part, ...]
    feature_parts: tuple[str, ...] = ()  # frozen, they make features that can be kept; () for none
    undecayed: frozenset[str] = frozenset()  # weights that decay would move to a place, not make small; by their names

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
        """For each loss term its sum over each sample's targets: (batch,), float32. Divide by `Batch.weights`, or by 1
        where those add up to less."""

    def pack(self) -> None:
        """From here on learn from samples one behind the other, without padding; RecipeError where that is not proven
        to change nothing."""
        raise RecipeError(
            f"Samples of the family {self.family} are not packed.",
            where="batch.packing",
            fix="set batch.packing to false",
        )

    def penalty(self, step: int, steps: int) -> torch.Tensor | None:
        """What is added to the loss of a step (of so many), once, whatever its samples: a number; None for none."""
        return None

    def vision_features(self, batch: Batch) -> list[torch.Tensor]:
        """What the vision encoder makes of each sample's views: (views, ...) for each sample. ModelError for a model
        without `feature_parts`."""
        raise ModelError(f"The vision encoder's work is not kept for models of the family {self.family}.")

"""Teachers: trained models that label images, a detector alone or with a segmenter for the masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from visiontune.data.annotations.masks import areas_and_boxes
from visiontune.data.images import read_header
from visiontune.data.objects import Objects
from visiontune.data.sample import Images, Sample
from visiontune.errors import ModelError
from visiontune.models.objects import ObjectAdapter
from visiontune.training.precision import Precision, autocast
from visiontune.training.rows import batched
from visiontune.training.teacher_targets import chosen_of

LEAST_OVERLAP = 0.5  # of a drawn mask with the true one, as the model that drew it expects it


@dataclass(frozen=True)
class Finder:
    """A trained model that finds objects, on its device; `tokens` is what a batch of its run may hold."""

    adapter: ObjectAdapter
    tokens: int
    precision: Precision
    device: torch.device

    @property
    def facts(self) -> list[object]:
        """All that its findings depend on beside weights and images."""
        encoder = self.adapter.encoder
        seen = [encoder.preprocessing(), encoder.data.image_longest_edge]
        return [self.adapter.family, self.precision, encoder.choices.most, encoder.choices.masks, *seen]

    def find(self, samples: Sequence[Sample]) -> list[Objects]:
        """What the model finds in each sample, in their order; batches hold images of like size."""
        encoder = self.adapter.encoder
        lengths = []
        for sample in samples:
            assert isinstance(sample.seen, Images)
            header = read_header(sample.seen.files[0].data)
            lengths.append(encoder.tokens(header.height, header.width))
        found: dict[int, Objects] = {}
        self.adapter.trained_module.eval()
        for some in batched(range(len(samples)), lengths, self.tokens):
            batch = encoder.collate([encoder.encode(samples[i], with_answer=self.adapter.prompted) for i in some])
            with torch.no_grad(), autocast(self.device, self.precision):
                found |= zip(some, self.adapter.find(batch.to(self.device)), strict=True)
        return [found[i] for i in range(len(samples))]


@dataclass(frozen=True)
class Teacher:
    """What labels images: a detector, and where there is one a segmenter, which draws the masks of the objects taken.

    Raises ModelError for a model in the other's place, and for other classes.
    """

    detector: Finder
    segmenter: Finder | None = None

    def __post_init__(self) -> None:
        if self.detector.adapter.prompted:
            raise ModelError(
                "This model draws masks in boxes that it is given; it finds none.",
                fix="use a detector as the teacher, and this model beside it for the masks",
            )
        if self.segmenter is None:
            return
        if not self.segmenter.adapter.prompted:
            raise ModelError(
                "This model takes no boxes to draw masks in.", fix="use a segmenter, or the detector alone"
            )
        if self.segmenter.adapter.encoder.classes != self.classes:
            raise ModelError("Detector and segmenter have other classes.", fix="train both on the same data")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that it finds, in the order of their numbers."""
        return self.detector.adapter.encoder.classes

    @property
    def facts(self) -> list[object]:
        """All that its findings depend on beside weights and images."""
        finders = [self.detector] if self.segmenter is None else [self.detector, self.segmenter]
        return [list(self.classes), *(finder.facts for finder in finders)]

    def find(self, samples: Sequence[Sample]) -> list[Objects]:
        """What the detector finds, with scores and `soft`."""
        return self.detector.find(samples)

    def draw(self, samples: Sequence[Sample], objects: Sequence[Objects]) -> list[Objects]:
        """The objects with the segmenter's masks, or where there is none with the detector's own.

        None for crowds, none where the segmenter expects to be wrong itself, and none where a mask is empty: it would
        be learned as the mask of an object that covers nothing.
        """
        if self.segmenter is None:
            return [_without_empty_masks(one) for one in objects]
        drawn = list(objects)
        asked = [(i, np.flatnonzero(~one.crowd).tolist()) for i, one in enumerate(objects) if not one.crowd.all()]
        told = [replace(samples[i], target=replace(chosen_of(objects[i], rows), soft=None)) for i, rows in asked]
        for (i, rows), masked in zip(asked, self.segmenter.find(told), strict=True):
            assert masked.scores is not None
            masks: list[Any] = [None] * len(drawn[i])
            for row, mask, overlap in zip(rows, masked.masks, masked.scores.tolist(), strict=True):
                if mask is not None and overlap >= LEAST_OVERLAP and areas_and_boxes([mask])[0][0]:
                    masks[row] = mask
            drawn[i] = replace(drawn[i], masks=tuple(masks))
        return drawn


def _without_empty_masks(objects: Objects) -> Objects:
    masks = [None if crowd else mask for mask, crowd in zip(objects.masks, objects.crowd.tolist(), strict=True)]
    drawn = [mask is not None and bool(areas_and_boxes([mask])[0][0]) for mask in masks]
    return replace(objects, masks=tuple(mask if some else None for mask, some in zip(masks, drawn, strict=True)))

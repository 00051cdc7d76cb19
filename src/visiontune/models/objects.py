"""What models that find objects share: images, boxes, classes and masks as tensors, and what they find.

A family says how an image becomes pixels and how large its masks are; the rest is here.
"""

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from visiontune.data.annotations import masks as coco_masks
from visiontune.data.dataset import Index
from visiontune.data.images import decode
from visiontune.data.objects import Objects
from visiontune.data.sample import Images, Sample
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.models.adapter import Batch, Encoder, Features, Layout, ModelAdapter, Supervision
from visiontune.models.augment_objects import augmented_objects
from visiontune.recipe import ObjectChoices
from visiontune.recipe_sections import Data

BOXES_AGREE = 1e-3  # pixels, as a share of the image's longer side: float32 and back


@dataclass(frozen=True, eq=False)
class EncodedObjects:
    """One image and its n objects as tensors.

    pixel_values: (3, height, width) float32, the picture at its upper left; None where `features` (1, ...) stand in its
    place. picture: (height, width) of the picture in these pixels; what lies beyond is padding. size: (height, width)
    of the upright image in its own pixels. boxes: (n, 4) float32, centre x, centre y, width and height as shares of the
    picture's sides. classes: (n,) int64. soft: (n, classes) float32 in [0, 1], how likely each class is: 1 and 0 for
    what people drew. crowd: (n,) bool, regions that are neither learned nor counted as missed. masks: (n, height,
    width) uint8, the share of each pixel that is covered, times 255, in the family's mask size; None where the family
    or the recipe has none. has_mask: (n,) bool. looked_for: (classes,) bool, the classes that are asked for: whether
    there is an object of another is neither learned nor said. noised: (queries, 4) float32, boxes near those of
    objects, see `denoising`; None where the family or the recipe has none.
    """

    id: str
    pixel_values: torch.Tensor | None
    picture: tuple[int, int]
    size: tuple[int, int]
    boxes: torch.Tensor
    classes: torch.Tensor
    soft: torch.Tensor
    crowd: torch.Tensor
    masks: torch.Tensor | None
    has_mask: torch.Tensor
    looked_for: torch.Tensor
    features: torch.Tensor | None = None
    noised: torch.Tensor | None = None


class ObjectEncoder(Encoder[EncodedObjects]):
    """Images with objects to tensors, by the checkpoint's own processor.

    `classes` are the names that class numbers stand for.
    """

    def __init__(self, processor: Any, data: Data, objects: ObjectChoices) -> None:
        self.processor = processor
        self.data = data
        self.choices = objects
        self.classes = objects.classes

    @abstractmethod
    def see(self, image: Image) -> tuple[torch.Tensor, tuple[int, int]]:
        """An RGB image as (3, height, width) float32, and (height, width) of the picture at its upper left."""

    @abstractmethod
    def picture(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the picture that `see` makes of an image of this size, worked out without it."""

    @abstractmethod
    def mask_size(self) -> tuple[int, int] | None:
        """(height, width) of the masks that are learned; None for a family that draws none."""

    @abstractmethod
    def tokens(self, height: int, width: int) -> int:
        """How many tokens the vision encoder makes of an image of this size."""

    def unseen(self, height: int, width: int) -> str | None:
        """Why the model cannot see an image of this size, as a sentence; None where it can."""
        return None

    def asking(self, classes: Sequence[str]) -> "ObjectEncoder":
        """The same encoder for other classes, whatever the model was trained on; RecipeError for a model that knows
        its own classes alone."""
        raise RecipeError(
            f"This model knows the classes that it was trained on: {', '.join(self.classes)}.",
            fix="leave other classes out, or use a Grounding DINO run",
        )

    @abstractmethod
    def loss_weights(self, encoded: Sequence[EncodedObjects]) -> dict[str, float]:
        """For each loss term the targets of these images that it averages over."""

    def encode(
        self,
        sample: Sample,
        *,
        with_answer: bool = True,
        augmentation: int | None = None,
        features: Features | None = None,
    ) -> EncodedObjects:
        """One image with its objects; without its answer, without them. Raises DataError for what is no one image."""
        objects = _objects_of(sample)
        if not with_answer:
            objects = replace(nothing(len(self.classes)), looked_for=objects.looked_for)
        looked_for = torch.ones(len(self.classes), dtype=torch.bool)
        if objects.looked_for is not None:
            looked_for = torch.from_numpy(objects.looked_for.copy())
        if features is not None:
            ((height, width),) = features.layout
            pixels, picture, stored = None, self.picture(height, width), features.values
        else:
            image = _image_of(sample)
            if augmentation is not None and (self.data.augment or self.choices.mirror != "none"):
                changed = augmented_objects(image, objects, self.data.augment, self.choices.mirror, augmentation)
                # Windows have whole pixels: one of an image that is only just seen may be narrower than that.
                if self.unseen(changed[0].height, changed[0].width) is None:
                    image, objects = changed
            width, height = image.size
            if (why := self.unseen(height, width)) is not None:
                fix = "raise data.image_longest_edge, or cut off the longer side of such images"
                raise DataError(why, where=sample.id, fix=fix)
            (pixels, picture), stored = self.see(image), None
        boxes, classes, soft, crowd = self._targets(objects, height, width)
        masks, has_mask = self._masks(objects)
        encoded = EncodedObjects(
            id=sample.id,
            pixel_values=pixels,
            picture=picture,
            size=(height, width),
            boxes=boxes,
            classes=classes,
            soft=soft,
            crowd=crowd,
            masks=masks,
            has_mask=has_mask,
            looked_for=looked_for,
            features=stored,
        )
        return encoded if augmentation is None or not with_answer else self.for_training(encoded, augmentation)

    def for_training(self, encoded: EncodedObjects, number: int) -> EncodedObjects:
        """What a family adds to an image that is learned from; the number, that of the augmentation, decides all that
        is drawn."""
        return encoded

    def _targets(self, objects: Objects, height: int, width: int) -> tuple[torch.Tensor, ...]:
        left, top, wide, high = objects.boxes.T if len(objects) else np.zeros((4, 0))
        boxes = np.stack([(left + wide / 2) / width, (top + high / 2) / height, wide / width, high / height], axis=1)
        soft = np.zeros((len(objects), len(self.classes)), np.float32)
        if objects.soft is not None:
            soft[:] = objects.soft
        else:
            soft[np.arange(len(objects)), objects.classes] = 1.0
        return (
            torch.from_numpy(boxes.astype(np.float32)),
            torch.from_numpy(objects.classes.astype(np.int64)),
            torch.from_numpy(soft),
            torch.from_numpy(objects.crowd.copy()),
        )

    def _masks(self, objects: Objects) -> tuple[torch.Tensor | None, torch.Tensor]:
        has_mask = torch.tensor([mask is not None for mask in objects.masks], dtype=torch.bool)
        size = self.mask_size() if self.choices.masks else None
        if size is None:
            return None, torch.zeros(len(objects), dtype=torch.bool)
        masks = torch.zeros(len(objects), *size, dtype=torch.uint8)
        for place, mask in enumerate(objects.masks):
            if mask is not None:
                pixels = torch.from_numpy(coco_masks.to_pixels(mask)).float()[None, None]
                covered = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
                masks[place] = (covered[0, 0] * 255).round().to(torch.uint8)
        return masks, has_mask

    def collate(self, encoded: Sequence[EncodedObjects], *, pad_left: bool = False) -> Batch:
        """Images side by side, padded to the largest; objects padded to the most.

        tensors: pixel_values (batch, 1, 3, height, width) or features (batch, 1, ...); picture and size (batch, 2)
        int64; boxes (batch, n, 4), classes (batch, n), soft (batch, n, classes), crowd, present, has_mask (batch, n)
        bool, looked_for (batch, classes) bool, and masks (batch, n, height, width) and noised (batch, queries, 4) where
        the family has them.
        """
        most = max(1, *(len(one.classes) for one in encoded))
        shapes = [one.pixel_values.shape for one in encoded if one.pixel_values is not None]
        tensors: dict[str, torch.Tensor] = {
            "picture": torch.tensor([one.picture for one in encoded]),
            "size": torch.tensor([one.size for one in encoded]),
            "present": torch.stack([torch.arange(most) < len(one.classes) for one in encoded]),
        }
        tensors["looked_for"] = torch.stack([one.looked_for for one in encoded])
        for name in ("boxes", "classes", "soft", "crowd", "has_mask"):
            tensors[name] = torch.stack([_padded(getattr(one, name), most) for one in encoded])
        if encoded[0].masks is not None:
            tensors["masks"] = torch.stack([_padded(one.masks, most) for one in encoded if one.masks is not None])
        if encoded[0].noised is not None:
            tensors["noised"] = torch.stack([one.noised for one in encoded if one.noised is not None])
        if shapes:
            height, width = max(shape[1] for shape in shapes), max(shape[2] for shape in shapes)
            pixels = torch.zeros(len(encoded), 1, 3, height, width)
            for row, one in enumerate(encoded):
                if one.pixel_values is not None:
                    pixels[row, 0, :, : one.pixel_values.shape[1], : one.pixel_values.shape[2]] = one.pixel_values
            tensors["pixel_values"] = pixels
        else:
            tensors["features"] = torch.stack([one.features for one in encoded if one.features is not None])
        lengths = [self.tokens(*one.size) for one in encoded]
        return Batch(
            ids=[one.id for one in encoded],
            tensors=tensors,
            weights=self.loss_weights(encoded),
            tokens=sum(lengths),
            padded_tokens=max(lengths) * len(lengths),
            image_tokens=0,
            image_features=0,
            tiles=len(encoded),
        )

    def supervision(self, sample: Sample) -> Supervision:
        """The boxes and classes that are learned, in pixels of the image, held to the sample's own."""
        encoded, drawn = self.encode(sample), _objects_of(sample)
        boxes = to_pixels(encoded.boxes.double().numpy(), encoded.size)
        shown = {
            "objects": [
                {"category": self.classes[c], "bbox": [round(v, 2) for v in box], "iscrowd": int(crowd)}
                for c, box, crowd in zip(encoded.classes.tolist(), boxes.tolist(), encoded.crowd.tolist(), strict=True)
            ],
            "masks": int(encoded.has_mask.sum()),
            "looked_for": [
                name for name, asked in zip(self.classes, encoded.looked_for.tolist(), strict=True) if asked
            ],
        }
        wrong = None
        far = BOXES_AGREE * max(encoded.size)
        if boxes.shape != drawn.boxes.shape or (len(boxes) and np.abs(boxes - drawn.boxes).max() > far):
            wrong = f"{sample.id}: learns other boxes than were drawn"
        elif encoded.classes.tolist() != drawn.classes.tolist():
            wrong = f"{sample.id}: learns other classes than were drawn"
        return Supervision(shown, wrong)

    def exchanged(self, sample: Sample, other: Sample) -> EncodedObjects:
        """The objects of a sample at the same shares of another one's picture."""
        mine, seen = self.encode(sample), self.encode(other, with_answer=False)
        # Masks were made for the place of their own picture in the square; boxes are shares of any.
        picture = seen.picture if mine.masks is None else mine.picture
        return replace(mine, pixel_values=seen.pixel_values, picture=picture)

    def layouts(self, index: Index) -> Iterator[Layout]:
        """(height, width) of each image, in its own pixels."""
        for heights, widths in zip(index.heights, index.widths, strict=True):
            yield tuple(zip(heights, widths, strict=True))

    def views(self, layout: Layout) -> int:
        return len(layout)

    def preprocessing(self) -> dict[str, Any]:
        return json.loads(self.processor.to_json_string())

    def lengths(self, index: Index) -> NDArray[np.int64]:
        return np.array([sum(self.tokens(*size) for size in layout) for layout in self.layouts(index)], np.int64)

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)


class ObjectAdapter(ModelAdapter):
    """A model that finds objects. One that is `prompted` is told where they are and draws their masks."""

    encoder: ObjectEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # set once
    prompted: bool = False

    @abstractmethod
    def find(self, batch: Batch) -> list[Objects]:
        """The objects found in each image, at most `objects.most`, best first, with scores: in pixels of the upright
        image, masks at its size. `soft` (n, classes) holds how likely each class is. None is of a class that is not
        `looked_for` in its image, and `soft` has 0 for those.

        A prompted model gives one for each object of the batch, in their order, with its box and class; the score is
        what it expects the overlap of its mask to be.
        """


def finds_objects(adapter: ModelAdapter) -> ObjectAdapter:
    """The adapter of a model that finds objects; ModelError for any other."""
    if not isinstance(adapter, ObjectAdapter):
        raise ModelError("This model writes text; it finds no objects.", fix="use a run trained on boxes or masks")
    return adapter


def nothing(classes: int) -> Objects:
    """No object."""
    none = np.zeros(0, np.int64)
    return Objects(np.zeros((0, 4)), none, (), none.astype(bool), (), np.zeros(0), np.zeros((0, classes)))


def to_pixels(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Boxes (n, 4) from centre x, centre y, width and height as shares to left, top, width and height in pixels."""
    height, width = size
    return np.c_[boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]] * np.array([width, height, width, height])


def clipped(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """What of boxes (n, 4), left, top, width and height in pixels, lies inside an image of `size` (height, width)."""
    edge = np.array(size[::-1], np.float64)
    low, high = boxes[:, :2].clip(0, edge), (boxes[:, :2] + boxes[:, 2:]).clip(0, edge)
    return np.c_[low, high - low]


def _image_of(sample: Sample) -> Image:
    if not isinstance(sample.seen, Images) or len(sample.seen.files) != 1:
        raise DataError("Objects are found in one image at a time.", where=sample.id, fix="give each sample one image")
    return decode(sample.seen.files[0].data)


def _objects_of(sample: Sample) -> Objects:
    if not isinstance(sample.target, Objects):
        raise DataError("The target is a text; this model finds objects.", where=sample.id, fix="use another --model")
    return sample.target


def _padded(values: torch.Tensor, most: int) -> torch.Tensor:
    """`values` (n, ...) with zeros behind, to (most, ...)."""
    full = values.new_zeros((most, *values.shape[1:]))
    full[: len(values)] = values
    return full

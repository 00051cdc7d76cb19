"""Teachers that find what is painted in an image, for tests that need no training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.coco_scenes import objects as drawn
from visiontune.data.annotations.masks import from_pixels
from visiontune.data.objects import Objects
from visiontune.models.adapter import Batch
from visiontune.models.objects import ObjectAdapter, ObjectEncoder
from visiontune.recipe import ObjectChoices
from visiontune.recipe_sections import Data, DatasetUse
from visiontune.training.teacher import Finder, Teacher

CLASSES = ("cat", "dog", "owl")
RED_OF_CLASS = 60


def found(boxes: Sequence[Sequence[float]], classes: Sequence[int], scores: Sequence[float]) -> Objects:
    """A teacher's findings; each other class is a quarter as likely as the one found."""
    one = drawn(boxes, classes, scores=scores)
    soft = np.outer(scores, np.full(len(CLASSES), 0.25))
    soft[np.arange(len(scores)), list(classes)] = scores
    return replace(one, soft=soft)


class _Processor:
    def to_json_string(self) -> str:
        return "{}"


class PaintedEncoder(ObjectEncoder):
    """Pixels as they are; one token for 64 of them."""

    def see(self, image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float(), (image.height, image.width)

    def picture(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def mask_size(self) -> None:
        return None

    def tokens(self, height: int, width: int) -> int:
        return height * width // 64

    def loss_weights(self, encoded: Any) -> dict[str, float]:
        return {}


class Painted(ObjectAdapter):
    """Finds boxes that are painted without blue: red says the class, green the score. As a detector does it says of
    each box how likely the next class is, too. `asked` are the ids it saw, batch by batch."""

    family, terms, parts = "painted", (), ()

    def __init__(self, classes: tuple[str, ...] = CLASSES) -> None:
        self.network = torch.nn.Identity()
        data = Data(datasets=(DatasetUse(path="x", content_hash="x"),), image_longest_edge=64)
        self.encoder = PaintedEncoder(_Processor(), data, ObjectChoices(classes=classes, masks=False, mirror="none"))
        self.asked: list[list[str]] = []

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def find(self, batch: Batch) -> list[Objects]:
        self.asked.append(batch.ids)
        made = []
        for row, (height, width) in enumerate(batch.tensors["picture"].tolist()):
            pixels = batch.tensors["pixel_values"][row, 0, :, :height, :width]
            wanted = batch.tensors["looked_for"][row].numpy()
            one = self._found(pixels.permute(1, 2, 0).numpy().astype(int)).of_classes(wanted)
            assert one.soft is not None
            made.append(replace(one, soft=one.soft * wanted))
        return made

    def _found(self, pixels: np.ndarray) -> Objects:
        boxes, classes, scores = [], [], []
        painted = pixels[pixels[..., 2] == 0]
        for red, green, _ in sorted({tuple(p) for p in painted.tolist()}, key=lambda p: -p[1]):
            rows, columns = np.nonzero((pixels == (red, green, 0)).all(axis=2))
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            boxes += [box, box]
            classes += [red // RED_OF_CLASS, (red // RED_OF_CLASS + 1) % len(CLASSES)]
            scores += [green / 250, green / 1000]
        soft = found(boxes, classes, scores).soft
        assert soft is not None
        soft[1::2] = soft[::2]
        return replace(found(boxes, classes, scores), soft=soft)


class Filler(Painted):
    """Fills the boxes that it is given; of dogs it expects to be wrong."""

    prompted = True

    def find(self, batch: Batch) -> list[Objects]:
        self.asked.append(batch.ids)
        made = []
        for row, size in enumerate(batch.tensors["size"].tolist()):
            present = batch.tensors["present"][row]
            classes = batch.tensors["classes"][row][present].numpy()
            boxes = batch.tensors["boxes"][row][present].double().numpy() * np.tile(size[::-1], 2)
            boxes[:, :2] -= boxes[:, 2:] / 2
            masks = []
            for left, top, width, height in boxes.round().astype(int):
                pixels = np.zeros(size, bool)
                pixels[top : top + height, left : left + width] = True
                masks.append(from_pixels(pixels))
            made.append(drawn(boxes.tolist(), classes.tolist(), masks=masks, scores=np.where(classes == 1, 0.3, 0.9)))
        return made


def teacher(*, segmenter: bool = False, tokens: int = 400) -> Teacher:
    def finder(adapter: ObjectAdapter) -> Finder:
        return Finder(adapter, tokens, "fp32", torch.device("cpu"))

    return Teacher(finder(Painted()), finder(Filler()) if segmenter else None)


def asked(of: Teacher) -> list[str]:
    assert isinstance(of.detector.adapter, Painted)
    return [name for batch in of.detector.adapter.asked for name in batch]


Mark = tuple[int, int, tuple[int, int, int, int]]
"""What is painted: a class, a score in 1/250 and a box."""


def painted(path: Path, seed: int, marks: Sequence[Mark], size: tuple[int, int] = (40, 56)) -> None:
    """A picture of soft blobs that no other seed looks like, and boxes painted on it."""
    coarse = np.random.default_rng(seed).integers(60, 256, (6, 6, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR))
    for number, green, (left, top, width, height) in marks:
        pixels[top : top + height, left : left + width] = (number * RED_OF_CLASS, green, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def marks_of(number: int) -> list[Mark]:
    """A sure cat everywhere, a fainter dog in each second picture, something faint that is no cat in each third."""
    faint = (50 + number % 7) if number % 3 == 0 else 0
    marks: list[Mark] = [(0, 180 + number, (2, 3, 12, 12))]
    marks += [(1, 100 + number, (20, 4, 14, 10))] if number % 2 else []
    return marks + ([(0, faint, (4, 22, 10, 12))] if faint else [])

"""The pictures of a report: a run's images, looked up in its datasets and shrunk to thumbnails."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visiontune.data.dataset import Dataset
from visiontune.data.images import decode
from visiontune.data.pages import pages
from visiontune.data.sample import Document, Images, ObjectPrediction, Prediction, Sample
from visiontune.errors import DataError
from visiontune.recipe import Recipe

SHOWN_PIXELS = 96
STORED_PIXELS = 2 * SHOWN_PIXELS  # sharp on dense screens
PIXEL_ART = 48  # smaller images are shown as the pixels they are
IMAGES_A_SAMPLE = 2

_Found = tuple[Dataset, Sample]


@dataclass(frozen=True)
class Thumbnail:
    """An image as a data URI, and the size in CSS pixels at which it is shown."""

    uri: str
    width: int
    height: int
    pixelated: bool


def thumbnail(data: bytes) -> Thumbnail:
    """Shrink an encoded image; raises DataError where it cannot be decoded."""
    image = decode(data)
    pixelated = max(image.size) <= PIXEL_ART
    scale = SHOWN_PIXELS / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image.thumbnail((STORED_PIXELS, STORED_PIXELS), Image.Resampling.LANCZOS)
    kind = "png" if pixelated else "jpeg"
    return Thumbnail(_uri(image, kind, quality=82), width, height, pixelated)


def drawing(image: Image.Image) -> Thumbnail:
    """An RGB image with lines and letters on it, at its own size."""
    return Thumbnail(_uri(image, "jpeg", quality=82, subsampling=0), *image.size, False)


def field_picture(frame: NDArray[np.float32]) -> Thumbnail:
    """A frame (height, width) of a field, zero as mid grey and its largest absolute value as black or white."""
    largest = float(np.abs(frame).max()) or 1.0
    shades = np.rint(127.5 + 127.5 * frame.astype(np.float64) / largest).astype(np.uint8)
    scale = SHOWN_PIXELS / max(frame.shape)
    height, width = (max(1, round(side * scale)) for side in frame.shape)
    return Thumbnail(_uri(Image.fromarray(shades), "png"), width, height, True)


def _uri(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


class Pictures:
    """The images of a run's datasets, looked up where the recipe says that these stand.

    `missing` says in a sentence why there are none, where that is so.
    """

    def __init__(self, recipe: Recipe | None) -> None:
        self.names: list[tuple[str, dict[str, int] | None]] = []
        self.missing: str | None = None
        self._datasets: list[Dataset | None] = []
        for use in () if recipe is None else recipe.data.datasets:
            dataset = self._opened(Path(use.path), use.content_hash)
            self._datasets.append(dataset)
            self.names.append((Path(use.path).name, None if dataset is None else dataset.info.splits))

    def _opened(self, path: Path, content_hash: str) -> Dataset | None:
        try:
            dataset = Dataset.open(path)
        except DataError as error:
            self.missing = f"Without pictures: the dataset {path} cannot be read ({error.found.rstrip('.')})."
            return None
        if dataset.info.content_hash != content_hash:
            self.missing = f"Without pictures: the dataset {path} has changed since the run."
            return None
        return dataset

    def of_example(self, example: dict[str, Any]) -> list[Thumbnail]:
        """The images of a sample that a receipt names by dataset, split, index and id."""
        return _thumbnails(self._example(example))

    def of_prediction(self, prediction: Prediction, split: str, position: int) -> list[Thumbnail]:
        """The images of the prediction in line `position` of a split: one line a sample, all datasets in turn."""
        return _thumbnails(self._predicted(prediction.id, split, position))

    def image_of_example(self, example: dict[str, Any]) -> Image.Image | None:
        """The first image of a sample that a receipt names, whole."""
        return _image(self._example(example))

    def image_of_prediction(self, prediction: ObjectPrediction, split: str, position: int) -> Image.Image | None:
        """The image of the prediction in line `position` of a split, whole."""
        return _image(self._predicted(prediction.id, split, position))

    def _example(self, example: dict[str, Any]) -> _Found | None:
        dataset = self._datasets[example["dataset"]] if example["dataset"] < len(self._datasets) else None
        return None if dataset is None else _found(dataset, example["split"], example["index"], example["id"])

    def _predicted(self, expected: str, split: str, position: int) -> _Found | None:
        for dataset in self._datasets:
            if dataset is None:
                return None
            if position < dataset.count(split):
                return _found(dataset, split, position, expected)
            position -= dataset.count(split)
        return None


def _found(dataset: Dataset, split: str, index: int, expected: str) -> _Found | None:
    sample = dataset.sample(split, index)
    return (dataset, sample) if sample.id == expected else None  # rather no picture than one of another sample


def _thumbnails(found: _Found | None) -> list[Thumbnail]:
    if found is None:
        return []
    dataset, sample = found
    if isinstance(sample.seen, Images):
        return [thumbnail(file.data) for file in sample.seen.files[:IMAGES_A_SAMPLE]]
    spec = dataset.info.pages
    if spec is None or not isinstance(sample.seen, Document):
        return []
    return [_page(page) for page in pages(sample.seen.text, spec, dataset.fonts())[:IMAGES_A_SAMPLE]]


def _image(found: _Found | None) -> Image.Image | None:
    return decode(found[1].seen.files[0].data) if found and isinstance(found[1].seen, Images) else None


def _page(page: NDArray[np.uint8]) -> Thumbnail:
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, "PNG", compress_level=1)
    return thumbnail(buffer.getvalue())

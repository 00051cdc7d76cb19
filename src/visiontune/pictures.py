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
from visiontune.data.sample import Images, Prediction, Sample
from visiontune.errors import DataError
from visiontune.recipe import Recipe

SHOWN_PIXELS = 96
STORED_PIXELS = 2 * SHOWN_PIXELS  # sharp on dense screens
PIXEL_ART = 48  # smaller images are shown as the pixels they are
IMAGES_A_SAMPLE = 2


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
    buffer = io.BytesIO()
    kind = "png" if pixelated else "jpeg"
    image.save(buffer, kind, quality=82)
    return Thumbnail(
        f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", width, height, pixelated
    )


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
        dataset = self._datasets[example["dataset"]] if example["dataset"] < len(self._datasets) else None
        return (
            []
            if dataset is None
            else _thumbnails(dataset, dataset.sample(example["split"], example["index"]), example["id"])
        )

    def of_prediction(self, prediction: Prediction, split: str, position: int) -> list[Thumbnail]:
        """The images of the prediction in line `position` of a split: one line a sample, all datasets in turn."""
        for dataset in self._datasets:
            if dataset is None:
                return []
            if position < dataset.count(split):
                return _thumbnails(dataset, dataset.sample(split, position), prediction.id)
            position -= dataset.count(split)
        return []


def _thumbnails(dataset: Dataset, sample: Sample, expected: str) -> list[Thumbnail]:
    if sample.id != expected:  # rather no picture than one of another sample
        return []
    if isinstance(sample.seen, Images):
        return [thumbnail(file.data) for file in sample.seen.files[:IMAGES_A_SAMPLE]]
    spec = dataset.info.pages
    return [] if spec is None else [_page(p) for p in pages(sample.seen.text, spec, dataset.fonts())[:IMAGES_A_SAMPLE]]


def _page(page: NDArray[np.uint8]) -> Thumbnail:
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, "PNG", compress_level=1)
    return thumbnail(buffer.getvalue())

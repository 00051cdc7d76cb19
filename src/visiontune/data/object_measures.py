"""What of images with objects decides a recipe, measured: sizes, counts, contrast, sharpness, overlap, symmetry."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.dataset import Dataset
from visiontune.data.images import decode
from visiontune.data.object_symmetry import CELLS, SURROUNDINGS, Evidence, Looks, differences
from visiontune.data.objects import from_text
from visiontune.data.sample import Images
from visiontune.errors import DataError
from visiontune.progress import progress

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
OVERLAP = 0.1
LONGEST_SIDE = 1024  # pixels; larger images are reduced by a whole number before they are looked at
OBJECTS_LOOKED_AT = 50  # of an image


@dataclass(frozen=True)
class ObjectMeasures:
    """Measures of one split. Crowds are counted as `crowds` and nowhere else; images without objects count as images.

    images, empty: images, and those without an object. longest_side: quantiles of the images' longer side in pixels.
    objects, crowds, classes: how many, the last by name. most, median_objects, usual_most: objects an image: the
    maximum, the median and the 95th percentile. images_with: how many images have so many objects, by that number.
    sizes: quantiles of the square root of the share of the image that a box covers, in [0, 1]. masks: share of objects
    with a mask; boxes_alone: the classes of which no object has one. overlapping: share of objects that overlap another
    one by an IoU above OVERLAP.

    From `looked_at` images spread evenly over the split, 1 being black to white: contrast, the standard deviation of
    luminance in an image (median); object_contrast, the RMS difference between an object and the colour around it
    (median); brightness, brightness_spread, mean and standard deviation of the images' mean luminance; sharpness, the
    variance of the Laplacian over the variance of luminance (median; 20 for white noise, near 0 for a blur).

    symmetry: for "left_right", "up_down" and "transposed" the strongest evidence against it, see `object_symmetry`;
    None where too little was seen to judge.
    """

    images: int
    empty: int
    longest_side: dict[str, float]
    objects: int
    crowds: int
    classes: dict[str, int]
    most: int
    median_objects: float
    usual_most: float
    images_with: dict[str, int]
    sizes: dict[str, float]
    masks: float
    boxes_alone: list[str]
    overlapping: float
    looked_at: int
    contrast: float
    object_contrast: float
    brightness: float
    brightness_spread: float
    sharpness: float
    symmetry: dict[str, Evidence | None]

    def to_json(self) -> dict[str, Any]:
        """The measures as plain values."""
        return asdict(self)

    def beyond(self, places: int) -> tuple[int, int]:
        """How many images have more objects than `places`, and how many objects these are beyond that number."""
        more = {objects: images for objects, images in self.images_with.items() if int(objects) > places}
        return sum(more.values()), sum((int(objects) - places) * images for objects, images in more.items())


def measure_objects(
    datasets: Dataset | Sequence[Dataset], split: str = "train", limit: int | None = None, images: int = 200
) -> ObjectMeasures:
    """Measure a split of one or several data sets: the first `limit` rows of each, at most `images` of them decoded.

    Raises DataError where there is nothing to measure or the targets are texts.
    """
    datasets = [datasets] if isinstance(datasets, Dataset) else datasets
    counts, widths, heights, boxes, overlapping = [], [], [], [], []
    classes: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    crowds = 0
    looks, pictures = Looks(), _Pictures()
    rows = sum(min(dataset.count(split), limit or dataset.count(split)) for dataset in datasets)
    if rows == 0:
        raise DataError(f"There is no sample in `{split}`.", where=", ".join(str(one.path) for one in datasets))
    looked_at = set(np.linspace(0, rows - 1, min(images, rows)).round().astype(int).tolist())
    with progress("measuring images and objects", rows, "images") as advance:
        for dataset in datasets:
            names = _names(dataset)
            index = dataset.index(split)
            classes.update(dict.fromkeys(names, 0))
            for i, answer in enumerate(index.answers[:limit]):
                objects = from_text(answer, names)
                real = ~objects.crowd
                own, labels = objects.boxes[real], [names[c] for c in objects.classes[real]]
                if len(counts) in looked_at:
                    _look(dataset, split, i, own, labels, looks, pictures)
                widths.append(index.widths[i][0])
                heights.append(index.heights[i][0])
                counts.append(len(own))
                boxes.append(own)
                overlapping.append(_overlaps(own))
                crowds += int(objects.crowd.sum())
                drawn = [mask is not None for mask, one in zip(objects.masks, real, strict=True) if one]
                masked.update(name for name, has_mask in zip(labels, drawn, strict=True) if has_mask)
                classes.update(labels)
                advance(1)
    every = np.concatenate(boxes)
    area = np.repeat(np.array(widths, np.float64) * heights, counts)
    found = len(every)
    return ObjectMeasures(
        images=rows,
        empty=counts.count(0),
        longest_side=_quantiles(np.maximum(widths, heights)),
        objects=found,
        crowds=crowds,
        classes=dict(classes),
        most=max(counts),
        median_objects=float(np.median(counts)),
        usual_most=float(np.quantile(counts, 0.95)),
        images_with={str(objects): images for objects, images in sorted(Counter(counts).items())},
        sizes=_quantiles(np.sqrt(every[:, 2] * every[:, 3] / area)),
        masks=masked.total() / max(1, found),
        boxes_alone=[name for name, count in classes.items() if count and not masked[name]],
        overlapping=float(np.concatenate(overlapping).sum() / max(1, found)),
        looked_at=len(looked_at),
        contrast=float(np.median(pictures.contrast)),
        object_contrast=float(np.median(pictures.object_contrast)) if pictures.object_contrast else 0.0,
        brightness=float(np.mean(pictures.brightness)),
        brightness_spread=float(np.std(pictures.brightness)),
        sharpness=float(np.median(pictures.sharpness)),
        symmetry=looks.evidence(),
    )


class _Pictures:
    """One number for each image that was looked at; of `object_contrast` one for each object."""

    def __init__(self) -> None:
        self.contrast: list[float] = []
        self.object_contrast: list[float] = []
        self.brightness: list[float] = []
        self.sharpness: list[float] = []


def _names(dataset: Dataset) -> tuple[str, ...]:
    if dataset.info.objects is None:
        raise DataError("The targets of this dataset are texts, not objects.", where=str(dataset.path))
    return dataset.listed


def _look(
    dataset: Dataset,
    split: str,
    i: int,
    boxes: NDArray[np.float64],
    labels: list[str],
    looks: Looks,
    pictures: _Pictures,
) -> None:
    seen = dataset.sample(split, i).seen
    if not isinstance(seen, Images):
        raise DataError("Objects are found in images, not in documents.", where=str(dataset.path))
    image = decode(seen.files[0].data)
    factor = max(1, max(image.size) // LONGEST_SIDE)
    image = image.reduce(factor)
    some = np.unique(np.linspace(0, len(boxes) - 1, min(OBJECTS_LOOKED_AT, len(boxes))).round().astype(int))
    chosen = boxes[some] / factor
    patterns = differences(image, chosen)
    looks.add(image, chosen, [labels[k] for k in some], patterns)
    pictures.object_contrast += [_inside(pattern, box) for pattern, box in zip(patterns, chosen[:, 2:], strict=True)]
    grey = np.asarray(image.convert("L"), np.float64) / 255
    pictures.brightness.append(float(grey.mean()))
    pictures.contrast.append(float(grey.std()))
    if min(grey.shape) > 2:
        around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
        pictures.sharpness.append(float((around - 4 * grey[1:-1, 1:-1]).var() / max(1e-9, grey.var())))


def _inside(pattern: NDArray[np.float64], size: NDArray[np.float64]) -> float:
    """The RMS of what lies inside a box of `size` (width, height) in the square about it."""
    half = size / (SURROUNDINGS * max(size.max(), 1e-9)) * CELLS / 2
    away = np.abs(np.arange(CELLS) + 0.5 - CELLS / 2)
    inside = (away < max(1.0, half[1]))[:, None] & (away < max(1.0, half[0]))
    return float(np.sqrt(np.mean(pattern[inside] ** 2)))


def _overlaps(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) whether each box overlaps another one."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    sides = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    shared = sides.clip(0).prod(axis=2)
    areas = boxes[:, 2:].prod(axis=1)
    united = np.maximum(areas[:, None] + areas[None] - shared, 1e-9)
    return (shared / united > OVERLAP).sum(axis=1) > 1


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    """ "5%", "10%", ... and the value below which so many lie; zeros of nothing."""
    found = np.quantile(values, QUANTILES) if len(values) else np.zeros(len(QUANTILES))
    return {f"{level:.0%}": float(value) for level, value in zip(QUANTILES, found, strict=True)}

"""Average precision and recall of boxes and masks as COCO defines them (Lin et al. 2014; cocodataset.org, "detection").

hotcoco matches and counts. The figures are means over its arrays, taken in pycocotools' order; the tests hold
them equal to the last digit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import hotcoco
import numpy as np
from hotcoco import COCO, COCOeval
from numpy.typing import NDArray

from visiontune.data.objects import Objects, Rle
from visiontune.errors import DataError

Kind = Literal["boxes", "masks"]
Floats = NDArray[np.float64]
Shapes = list[dict[str, Any] | list[list[float]]]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SIZES = ("all", "small", "medium", "large")  # areas up to 32 ** 2, up to 96 ** 2 and above, in pixels
MOST_DETECTIONS = (1, 10, 100)  # the best so many of one class in one image are looked at
FIGURES = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)


@dataclass(frozen=True, eq=False)
class CocoPair:
    """Truths and predictions in hotcoco's form. Image i has the id i + 1, class c the id c + 1.

    asked: (classes, images) bool, the images in which a class was looked for; in others it has neither truths nor
    detections.
    """

    truths: COCO
    predictions: COCO
    kind: Kind
    images: int
    classes: int
    asked: NDArray[np.bool_]

    def evaluator(self) -> COCOeval:
        """A fresh evaluator with COCO's parameters."""
        return COCOeval(self.truths, self.predictions, "bbox" if self.kind == "boxes" else "segm")


@dataclass(frozen=True, eq=False)
class Curves:
    """Precision and recall of each class; NaN where a class has no truth of that size.

    precision: (10 IoU thresholds, 101 recalls, classes, 4 sizes), with the best 100 detections. recall: (10 IoU
    thresholds, classes, 4 sizes, 3 limits of detections). Both float64 in [0, 1].
    """

    precision: Floats
    recall: Floats

    def figures(self, class_index: int | None = None) -> dict[str, float | None]:
        """COCO's twelve figures by the names in FIGURES, over all classes or of one; None where there is no truth."""
        classes = slice(None) if class_index is None else slice(class_index, class_index + 1)
        precision, recall = self.precision[:, :, classes], self.recall[:, classes]
        values = [precision[..., 0], precision[:1, ..., 0], precision[5:6, ..., 0]]
        values += [precision[..., size] for size in (1, 2, 3)]
        values += [recall[..., 0, most] for most in (0, 1, 2)] + [recall[..., size, 2] for size in (1, 2, 3)]
        return dict(zip(FIGURES, map(_mean, values), strict=True))

    def at_half(self) -> Floats:
        """Precision by recall at an IoU of 0.5: (classes, 101)."""
        return self.precision[0, :, :, 0].T

    def over_thresholds(self) -> Floats:
        """Precision by recall, the mean over the ten IoU thresholds: (classes, 101)."""
        return self.precision[..., 0].mean(axis=0).T


def coco_pair(
    truths: Sequence[Objects],
    predictions: Sequence[Objects],
    sizes: Sequence[tuple[int, int]],
    class_names: Sequence[str],
    kind: Kind,
) -> CocoPair:
    """Image i has `truths[i]`, `predictions[i]` and the size (height, width) `sizes[i]`, in pixels.

    The area of a true object is that of its mask, where it has one, as in COCO's files; it decides on its size. For
    masks, a true object without one is its box filled in, to be ignored as a crowd is. Raises DataError for what cannot
    be scored.
    """
    check_objects(truths, predictions, sizes, class_names)
    images = [{"id": i + 1, "height": height, "width": width} for i, (height, width) in enumerate(sizes)]
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(class_names)]
    ids, classes, boxes = _columns(truths)
    crowd = np.concatenate([np.zeros(0, np.bool_), *(one.crowd for one in truths)])
    masks = [mask for one in truths for mask in one.masks]
    areas = boxes[:, 2] * boxes[:, 3]
    masked = [row for row, mask in enumerate(masks) if mask is not None]
    areas[masked] = hotcoco.mask.area([to_hotcoco(mask) for mask in masks if mask is not None]) if masked else 0
    if kind == "boxes":
        truth = COCO.from_arrays(images, categories, ids, classes, boxes, area=areas, iscrowd=crowd)
    else:
        ignored = crowd | np.array([mask is None for mask in masks], np.bool_)
        shapes: Shapes = [
            hotcoco.mask.fr_bbox(box.tolist(), *sizes[image - 1]) if mask is None else to_hotcoco(mask)
            for mask, box, image in zip(masks, boxes, ids, strict=True)
        ]
        truth = COCO.from_arrays(
            images, categories, ids, classes, boxes, area=areas, iscrowd=ignored, segmentation=shapes
        )
    asked = np.ones((len(class_names), len(truths)), np.bool_)
    for image, one in enumerate(truths):
        if one.looked_for is not None:
            asked[:, image] = one.looked_for
    return CocoPair(truth, _predictions(truth, predictions, kind), kind, len(truths), len(class_names), asked)


def curves(pair: CocoPair) -> Curves:
    """Match and count all detections. Takes about 0.1 s for 1,000 images with 60,000 detections on one core."""
    evaluator = pair.evaluator()
    evaluator.evaluate()
    evaluator.accumulate()
    counted = evaluator.eval
    assert counted is not None
    precision, recall = counted["precision"][..., -1], counted["recall"]
    return Curves(np.where(precision > -1, precision, np.nan), np.where(recall > -1, recall, np.nan))


def to_hotcoco(mask: Rle) -> dict[str, Any]:
    """A mask as hotcoco and pycocotools take it."""
    return {"size": [mask.height, mask.width], "counts": mask.counts}


def check_objects(
    truths: Sequence[Objects],
    predictions: Sequence[Objects],
    sizes: Sequence[tuple[int, int]],
    class_names: Sequence[str],
) -> None:
    """Raise DataError for what cannot be scored: other lengths, classes that are not there, no scores, masks that are
    not of the image's size."""
    if not len(truths) == len(predictions) == len(sizes):
        raise DataError(
            f"There are {len(truths)} images with truths, {len(predictions)} with predictions and {len(sizes)} sizes.",
            fix="give one of each for every image",
        )
    places = set(range(len(class_names)))
    for image, size in enumerate(sizes):
        for what, objects in (("true", truths[image]), ("predicted", predictions[image])):
            where = f"image {image}, {what} objects"
            if len(objects) and not set(objects.classes.tolist()) <= places:
                raise DataError(
                    f"A class is not among the {len(class_names)} names.",
                    where=where,
                    fix="score with the data's names",
                )
            if not np.isfinite(objects.boxes).all():
                raise DataError("A box holds a number that is not finite.", where=where, fix="repair the boxes")
            for mask in objects.masks:
                if mask is not None and (mask.height, mask.width) != tuple(size):
                    raise DataError(
                        f"A mask is {mask.height} x {mask.width}, the image {size[0]} x {size[1]} pixels.",
                        where=where,
                        fix="make masks at the size of the image",
                    )
        found = predictions[image]
        if len(found) and (found.scores is None or not np.isfinite(found.scores).all()):
            raise DataError(
                "A prediction has no score.", where=f"image {image}", fix="give each predicted object a score in [0, 1]"
            )


def _columns(objects: Sequence[Objects]) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Image ids, class ids and boxes of all objects."""
    ids = np.repeat(np.arange(1, len(objects) + 1), [len(one) for one in objects])
    classes = np.concatenate([np.zeros(0, np.int64), *(one.classes for one in objects)]) + 1
    return ids, classes, np.concatenate([np.zeros((0, 4)), *(one.boxes for one in objects)])


def _predictions(truth: COCO, predictions: Sequence[Objects], kind: Kind) -> COCO:
    ids, classes, boxes = _columns(predictions)
    scores = np.concatenate([np.zeros(0), *(one.scores for one in predictions if one.scores is not None)])
    columns = np.column_stack([ids, boxes, scores, classes])
    if kind == "boxes":
        return truth.load_res(columns)
    shapes = [to_hotcoco(mask) for one in predictions for mask in one.masks if mask is not None]
    if len(shapes) < len(columns):
        raise DataError(
            f"{len(columns) - len(shapes)} of {len(columns)} predictions have no mask.",
            fix="score a model that predicts boxes alone by its boxes",
        )
    found = truth.load_res(columns, segmentation=[*shapes])
    if shapes:  # of a result with a box hotcoco takes the box's area, and sizes of masks are those of masks
        found.update_anns(ids=np.arange(1, len(shapes) + 1), area=hotcoco.mask.area(shapes).astype(np.float64))
    return found


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if len(known) else None

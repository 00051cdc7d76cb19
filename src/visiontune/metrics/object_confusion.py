"""Which classes are taken for which: detections of any class held against truths of any class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from visiontune.data.objects import Objects
from visiontune.metrics.average_precision import Kind, to_hotcoco

BACKGROUND = "(background)"


@dataclass(frozen=True, eq=False)
class ObjectConfusion:
    """Counts of shape (classes + 1, classes + 1), int64: rows truth, columns predictions.

    The last column holds truths that nothing was found for, the last row predictions where nothing is. The diagonal are
    COCO's true positives at this score and IoU threshold. `ignored` predictions lie in a crowd of their class or on a
    true object of it that has no mask, and are not in the counts.
    """

    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    ignored: int
    score: float
    iou: float

    def to_json(self) -> dict[str, Any]:
        """{"labels", "counts", "ignored", "score", "iou"}; the last row and column are not among the labels."""
        return {
            "labels": list(self.labels),
            "counts": self.counts.tolist(),
            "ignored": self.ignored,
            "score": self.score,
            "iou": self.iou,
        }


def object_confusion(
    truths: Sequence[Objects],
    predictions: Sequence[Objects],
    class_names: Sequence[str],
    kind: Kind,
    *,
    score: float = 0.5,
    iou: float = 0.5,
) -> ObjectConfusion:
    """Confusion of the predictions with at least `score`, where boxes or masks overlap by at least `iou`.

    In each image, best prediction first: each takes the free truth of its own class that it overlaps most. What is left
    may lie in a crowd of its class and is ignored, or takes the free truth of another class that it overlaps most, or
    is a prediction where nothing is. A truth of its own class goes first even where another overlaps more, so that a
    bicycle found under its rider is no confusion.
    """
    background = len(class_names)
    counts = np.zeros((background + 1, background + 1), np.int64)
    ignored = 0
    for truth, found in zip(truths, predictions, strict=True):
        scores = np.zeros(0) if found.scores is None else found.scores
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= score]
        ignore = truth.crowd.copy()
        if kind == "masks":
            ignore |= np.array([mask is None for mask in truth.masks], np.bool_)
        free = ~ignore
        overlaps = _overlaps(truth, found, order, ignore, kind)
        same = found.classes[order][:, None] == truth.classes[None]
        left = []
        for place in range(len(order)):
            taken = _best(np.where(same[place] & free, overlaps[place], -1), iou)
            if taken is None:
                left.append(place)
            else:
                free[taken] = False
                counts[truth.classes[taken], truth.classes[taken]] += 1
        for place in left:
            if (overlaps[place][same[place] & ignore] >= iou).any():
                ignored += 1
                continue
            taken = _best(np.where(free, overlaps[place], -1), iou)
            if taken is not None:
                free[taken] = False
            row = background if taken is None else truth.classes[taken]
            counts[row, found.classes[order[place]]] += 1
        counts[:, background] += np.bincount(truth.classes[free], minlength=background + 1)
    return ObjectConfusion(tuple(class_names), counts, ignored, score, iou)


def _overlaps(
    truth: Objects, found: Objects, order: NDArray[np.int64], ignore: NDArray[np.bool_], kind: Kind
) -> NDArray[np.float64]:
    """IoU of each prediction with each truth, with an ignored one the share of the prediction inside it."""
    if len(truth) == 0 or len(order) == 0:
        return np.zeros((len(order), len(truth)))
    if kind == "boxes":
        return hotcoco.mask.bbox_iou(found.boxes[order], truth.boxes, ignore)
    shapes = []
    for place in order:
        mask = found.masks[place]
        assert mask is not None
        shapes.append(to_hotcoco(mask))
    height, width = shapes[0]["size"]
    regions = [
        hotcoco.mask.fr_bbox(box.tolist(), height, width) if mask is None else to_hotcoco(mask)
        for box, mask in zip(truth.boxes, truth.masks, strict=True)
    ]
    return hotcoco.mask.iou(shapes, regions, ignore)


def _best(overlaps: NDArray[np.float64], iou: float) -> int | None:
    """The place of the largest overlap, the last of equal ones as COCO has it; None below `iou` (1 allows rounding)."""
    if len(overlaps) == 0 or overlaps.max() < min(iou, 1 - 1e-10):
        return None
    return len(overlaps) - 1 - int(overlaps[::-1].argmax())

"""Scores of predicted objects: COCO's figures of boxes and masks with intervals, by class, curves, confusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from visiontune.data.objects import Objects
from visiontune.errors import DataError, RecipeError
from visiontune.metrics.ap_intervals import HALVES, ap_intervals
from visiontune.metrics.average_precision import MOST_DETECTIONS, Kind, coco_pair, curves
from visiontune.metrics.intervals import NOTHING_COUNTED, Metric
from visiontune.metrics.object_confusion import ObjectConfusion, object_confusion

Prompts = Literal["none", "detector boxes", "ground-truth boxes"]


@dataclass(frozen=True, eq=False)
class ClassFigures:
    """How one class came out. `truths` and `predictions` are counts without crowds; `figures` are COCO's twelve,
    over the images in which the class was looked for.

    precision_at_half and precision: (101,) float64, the precision by recall 0, 0.01, ..., 1 at an IoU of 0.5 and as the
    mean over the ten IoU thresholds; NaN without truths.
    """

    label: str
    truths: int
    predictions: int
    figures: dict[str, Metric]
    precision_at_half: NDArray[np.float64]
    precision: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """{"label", "truths", "predictions", "figures", "precision_at_half", "precision"}; curves have four digits."""
        return {
            "label": self.label,
            "truths": self.truths,
            "predictions": self.predictions,
            "figures": {name: metric.to_json() for name, metric in self.figures.items()},
            "precision_at_half": _rounded(self.precision_at_half),
            "precision": _rounded(self.precision),
        }


@dataclass(frozen=True, eq=False)
class KindScores:
    """The scores of boxes, or of masks: COCO's twelve figures by the names in FIGURES, and what lies under them.

    `counts`: truths, crowd, without_mask (true objects that are ignored, since masks are scored and they have none),
    predictions, and over_limit (predictions beyond the best 100 of a class in an image, which COCO does not look at).
    precision_at_half: (101,) float64, the mean over the classes that have truths; NaN where none has.
    """

    figures: dict[str, Metric]
    classes: tuple[ClassFigures, ...]
    confusion: ObjectConfusion
    counts: dict[str, int]
    precision_at_half: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """{"figures", "classes", "confusion", "counts", "precision_at_half"}; the classes as a table, worst first."""
        return {
            "figures": {name: metric.to_json() for name, metric in self.figures.items()},
            "classes": [one.to_json() for one in self.worst_first()],
            "confusion": self.confusion.to_json(),
            "counts": self.counts,
            "precision_at_half": _rounded(self.precision_at_half),
        }

    def worst_first(self) -> list[ClassFigures]:
        """The classes by rising AP, of equal ones the one with more truths first; classes without truths come last."""

        def place(one: ClassFigures) -> tuple[bool, float, int]:
            ap = one.figures["ap"].value
            return (ap is None, ap or 0.0, -one.truths)

        return sorted(self.classes, key=place)


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """The scores of `n` images. `prompts` says where the boxes came from that the masks were drawn from.

    "none": the model needs no boxes. "detector boxes": the whole pipeline. "ground-truth boxes": the boxes were given,
    so that boxes are not scored, and the masks' metrics are named `prompted_mask_ap` in place of `mask_ap`: no
    requirement can take the one for the other.
    """

    n: int
    prompts: Prompts
    boxes: KindScores | None
    masks: KindScores | None

    @property
    def metrics(self) -> dict[str, Metric]:
        """All figures by name: box_ap, box_ap50, ..., mask_ap, ..."""
        return {
            f"{prefix}_{name}": metric
            for prefix, scores in self._by_prefix()
            for name, metric in scores.figures.items()
        }

    def metric(self, name: str) -> Metric:
        """A metric by its name, of a class as `box_ap50.cat`; raises RecipeError for a name that is not there."""
        kind, _, label = name.partition(".")
        for prefix, scores in self._by_prefix():
            if name in (own := {f"{prefix}_{figure}": metric for figure, metric in scores.figures.items()}):
                return own[name]
            for one in scores.classes:
                if one.label == label and kind in own:
                    return one.figures[kind.removeprefix(f"{prefix}_")]
        labels = [one.label for _, scores in self._by_prefix()[:1] for one in scores.classes]
        shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
        raise RecipeError(
            f"There is no metric '{name}'.",
            fix=f"metrics: {', '.join(self.metrics)}, and each of a class as METRIC.LABEL with LABEL one of {shown}",
        )

    def to_json(self) -> dict[str, Any]:
        """{"n", "prompts", "metrics", "boxes", "masks"}, one of the last two null where it is not scored."""
        return {
            "n": self.n,
            "prompts": self.prompts,
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
            "boxes": None if self.boxes is None else self.boxes.to_json(),
            "masks": None if self.masks is None else self.masks.to_json(),
        }

    def _by_prefix(self) -> list[tuple[str, KindScores]]:
        of_masks = "prompted_mask" if self.prompts == "ground-truth boxes" else "mask"
        both = (("box", self.boxes), (of_masks, self.masks))
        return [(prefix, scores) for prefix, scores in both if scores is not None]


def score_objects(
    truths: Sequence[Objects],
    predictions: Sequence[Objects],
    sizes: Sequence[tuple[int, int]],
    class_names: Sequence[str],
    *,
    prompts: Prompts = "none",
    confusion_score: float = 0.5,
    confusion_iou: float = 0.5,
    halves: int = HALVES,
    seed: int = 0,
) -> ObjectScores:
    """Score the predictions of n images of `sizes` (height, width) in pixels.

    Masks are scored where the predictions have them, or where there is no prediction and a true object has one; a true
    object without a mask counts for boxes, and for masks is a region to be ignored. Where none has a mask, the figures
    of masks have no value. Crowds are ignored as COCO ignores them. AP and AP50, overall and of
    each class, get 95 % intervals from so many random `halves` of the images (`ap_intervals`); with 0 there are none.
    Raises DataError for what cannot be scored, such as predictions of which only some have masks.
    """
    options = (class_names, confusion_score, confusion_iou, halves, seed)
    if not truths:
        raise DataError("There are no images to score.", fix="score a split that is not empty")
    given = prompts == "ground-truth boxes"
    boxes = None if given else _score(truths, predictions, sizes, "boxes", *options)
    drawn = draw_masks(truths, predictions)
    if given and not drawn and any(map(len, predictions)):
        raise DataError(
            "The boxes were given, and there are no masks to score.", fix="score masks, or boxes that were predicted"
        )
    masks = _score(truths, predictions, sizes, "masks", *options) if drawn or given else None
    return ObjectScores(len(truths), prompts, boxes, masks)


def draw_masks(truths: Sequence[Objects], predictions: Sequence[Objects]) -> bool:
    """Whether the predictions are those of a model that draws masks. Without a single object they may be, where the
    truths have masks."""
    masks = [mask is not None for one in predictions for mask in one.masks]
    return any(masks) or (not masks and have_masks(truths))


def have_masks(truths: Sequence[Objects]) -> bool:
    """Whether an object has a mask."""
    return any(mask is not None for one in truths for mask in one.masks)


def _score(
    truths: Sequence[Objects],
    predictions: Sequence[Objects],
    sizes: Sequence[tuple[int, int]],
    kind: Kind,
    class_names: Sequence[str],
    confusion_score: float,
    confusion_iou: float,
    halves: int,
    seed: int,
) -> KindScores:
    pair = coco_pair(truths, predictions, sizes, class_names, kind)
    counted = curves(pair)
    figures = [counted.figures(), *(counted.figures(c) for c in range(len(class_names)))]
    images = [len(truths), *pair.asked.sum(axis=1).tolist()]
    metrics = [
        {name: NOTHING_COUNTED if value is None else Metric(value, None, None, n) for name, value in one.items()}
        for one, n in zip(figures, images, strict=True)
    ]
    if halves:
        values = [(one["ap"], one["ap50"]) for one in figures]
        for own, (ap, ap50) in zip(metrics, ap_intervals(pair, values, halves, seed), strict=True):
            own |= {"ap": ap, "ap50": ap50}
    confusion = object_confusion(truths, predictions, class_names, kind, score=confusion_score, iou=confusion_iou)
    counts, true_counts, predicted = _counts(truths, predictions, kind, len(class_names))
    half, mean = counted.at_half(), counted.over_thresholds()
    classes = zip(class_names, true_counts, predicted, metrics[1:], half, mean, strict=True)
    known = half[~np.isnan(half[:, 0])]
    mean_at_half = known.mean(axis=0) if len(known) else np.full(half.shape[1], np.nan)
    return KindScores(metrics[0], tuple(ClassFigures(*row) for row in classes), confusion, counts, mean_at_half)


def _counts(
    truths: Sequence[Objects], predictions: Sequence[Objects], kind: Kind, classes: int
) -> tuple[dict[str, int], list[int], list[int]]:
    """What was counted; then the true objects and the predictions of each class."""
    true, predicted, over_limit = np.zeros(classes, np.int64), np.zeros(classes, np.int64), 0
    crowd = without_mask = 0
    for truth, found in zip(truths, predictions, strict=True):
        maskless = np.array([mask is None and kind == "masks" for mask in truth.masks], np.bool_) & ~truth.crowd
        crowd += int(truth.crowd.sum())
        without_mask += int(maskless.sum())
        true += np.bincount(truth.classes[~truth.crowd & ~maskless], minlength=classes)
        of_class = np.bincount(found.classes, minlength=classes)
        predicted += of_class
        over_limit += int(np.maximum(of_class - MOST_DETECTIONS[-1], 0).sum())
    counts = {
        "truths": int(true.sum()),
        "crowd": crowd,
        "without_mask": without_mask,
        "predictions": int(predicted.sum()),
        "over_limit": over_limit,
    }
    return counts, true.tolist(), predicted.tolist()


def _rounded(values: NDArray[np.float64]) -> list[float] | None:
    return None if np.isnan(values).any() else [round(value, 4) for value in values.tolist()]

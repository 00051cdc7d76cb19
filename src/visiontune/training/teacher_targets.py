"""What of a teacher's findings is learned: thresholds from held-out human labels, and targets made with them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from visiontune.data.objects import Objects
from visiontune.data.sample import ObjectPrediction
from visiontune.errors import DataError

IOU = 0.5
FEW = 5  # true objects of a class, below which its threshold is that of all classes together
DOUBTFUL = 0.5  # from this share of the threshold on, a finding is doubtful
SAME_PLACE = 0.8  # IoU from which on two boxes stand for one object, whatever their classes
LEAST_LIMIT = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClassThreshold:
    """From which score on findings of a class are taken, and how good those were on held-out images at an IoU of 0.5.

    `threshold` is None where no finding was right: none is taken. `from_all_classes`: there were fewer than FEW true
    objects, and the threshold is that of all classes together. Of the `found` findings from the threshold on (those in
    crowds do not count), `right` are right, of `drawn` true objects.
    """

    threshold: float | None
    from_all_classes: bool
    drawn: int
    found: int
    right: int

    @property
    def precision(self) -> float | None:
        """The share of the findings that is right; None where there is none."""
        return self.right / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        """The share of the true objects that is found; None where there is none."""
        return self.right / self.drawn if self.drawn else None

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where there is neither an object nor a finding."""
        return 2 * self.right / max(1, self.found + self.drawn)

    def to_json(self) -> dict[str, Any]:
        """All of the above; shares rounded to six places."""
        shares = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {**asdict(self), **{k: None if v is None else round(v, 6) for k, v in shares.items()}}


def overall_threshold(predictions: Sequence[ObjectPrediction]) -> float | None:
    """The threshold on scores with the best F1 at an IoU of 0.5, of all classes together; None where nothing is right.
    Predictions without a truth do not count."""
    drawn, scores, right, _ = _all_judged([one for one in predictions if one.truth is not None])
    return _best_threshold(scores, right, int(drawn.sum()))


def choose_thresholds(predictions: Sequence[ObjectPrediction]) -> dict[str, ClassThreshold]:
    """For each class the threshold on scores with the best F1 at an IoU of 0.5; of equal ones the highest.

    Findings are matched as COCO has it: in each image, best first, each takes the free true object of its class that it
    overlaps most. Raises DataError where the truths hold no object, or no finding is right.
    """
    classes = predictions[0].classes if predictions else ()
    drawn, scores, right, of_class = _all_judged(predictions)
    if not drawn.any():
        raise DataError(
            "There is no object in the held-out images, so that no threshold can be chosen.",
            where="the validation split",
            fix="use a dataset with objects in its validation split",
        )
    overall = _best_threshold(scores, right, int(drawn.sum()))
    if overall is None:
        raise DataError(
            f"Of {len(scores)} findings in the held-out images none is right: there is nothing to learn from this "
            "teacher.",
            where="the validation split",
            fix="train the teacher longer, or use another one",
        )
    chosen = {}
    for number, name in enumerate(classes):
        mine, count = of_class == number, int(drawn[number])
        limit = overall if count < FEW else _best_threshold(scores[mine], right[mine], count)
        taken = mine & (scores >= (np.inf if limit is None else limit))
        chosen[name] = ClassThreshold(limit, count < FEW, count, int(taken.sum()), int(right[taken].sum()))
    return chosen


def label(
    found: Objects, thresholds: dict[str, ClassThreshold], classes: Sequence[str], size: tuple[int, int]
) -> Objects:
    """What is learned from a teacher's findings in an image of `size` (height, width), the surest first.

    From its class's threshold on, a finding is an object, with the teacher's probabilities as `soft`. From DOUBTFUL
    times the threshold on it is a crowd, so that doubtful places are neither learned nor taught as background. The rest
    is left out, and so is a finding where a surer one stands: a detector may give one box several classes (`soft` says
    how likely each is), and a doubtful second box on an object is no group. So are classes without a threshold. Boxes
    are cut at the image's edges; one with less than a pixel a side is left out.
    """
    known = [thresholds[name].threshold if name in thresholds else None for name in classes]
    limits = np.array([np.inf if limit is None else limit for limit in known])[found.classes]
    scores = np.zeros(len(found)) if found.scores is None else found.scores
    sure = scores >= limits
    edge = np.array(size[::-1], np.float64)
    low = found.boxes[:, :2].clip(0, edge)
    boxes = np.c_[low, (found.boxes[:, :2] + found.boxes[:, 2:]).clip(0, edge) - low]
    usable = (scores >= DOUBTFUL * limits) & (boxes[:, 2:] >= 1).all(axis=1)
    overlaps = _overlaps(boxes, boxes, np.zeros(len(boxes), bool))
    kept: list[int] = []
    for place in np.argsort(-scores / np.maximum(limits, LEAST_LIMIT), kind="stable").tolist():
        over, same = overlaps[place, kept], found.classes[kept] == found.classes[place]
        stands = bool((over >= SAME_PLACE).any() or (not sure[place] and (over[same] >= IOU).any()))
        if usable[place] and not stands:
            kept.append(place)
    soft = np.zeros((len(found), len(classes)))
    if found.soft is not None:
        soft[:] = found.soft
    return chosen_of(replace(found, boxes=boxes, crowd=~sure, scores=None, soft=soft), kept)


def chosen_of(objects: Objects, rows: Sequence[int]) -> Objects:
    """Some of the objects, without scores, numbered anew from 1."""
    return replace(objects.some(rows), ids=tuple(range(1, len(rows) + 1)), scores=None)


def blend(truth: Objects, found: Objects, share: float) -> Objects:
    """What people drew, with `soft` = (1 - share) times their class + `share` times the teacher's probabilities.

    `found` is what `label` makes of the teacher's findings. The surest first, each takes the free object that it
    overlaps most, whatever the classes, where the IoU is at least 0.5. Doubtful ones take none: a person's label is not
    less sure where the teacher is not sure itself. An object that none takes, and a crowd, keeps its class for certain.
    Nothing else is changed, added or taken away.
    """
    assert found.soft is not None
    soft = np.zeros((len(truth), found.soft.shape[1]))
    soft[np.arange(len(truth)), truth.classes] = 1.0
    matched = matches(truth, found)
    agreed = matched >= 0
    soft[agreed] = (1 - share) * soft[agreed] + share * found.soft[matched[agreed]]
    return replace(truth, soft=soft)


def matches(truth: Objects, found: Objects) -> NDArray[np.int64]:
    """For each true object the place of the finding that takes it in `blend`, -1 where none does: (n,)."""
    sure = np.flatnonzero(~found.crowd)
    overlaps = _overlaps(found.boxes[sure], truth.boxes, truth.crowd)
    taken = _taken(np.where(truth.crowd, 0, overlaps))
    matched = np.full(len(truth), -1)
    matched[taken[taken >= 0]] = sure[taken >= 0]
    return matched


def _all_judged(predictions: Sequence[ObjectPrediction]) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
    """How many true objects each class has, and `_judged` of all predictions, column by column."""
    count = len(predictions[0].classes) if predictions else 0
    drawn, judged = np.zeros(count, np.int64), [np.zeros((0, 3))]
    for prediction in predictions:
        truth = prediction.truth
        assert truth is not None
        drawn += np.bincount(truth.classes[~truth.crowd], minlength=count)
        judged.append(_judged(truth, prediction.target))
    scores, right, of_class = np.concatenate(judged).T
    return drawn, scores, right, of_class


def _judged(truth: Objects, found: Objects) -> Floats:
    """(n, 3): score, whether it is right (1 or 0) and class of each finding in an image but those in a crowd."""
    scores = np.zeros(0) if found.scores is None else found.scores
    order = np.argsort(-scores, kind="stable")
    overlaps = _overlaps(found.boxes[order], truth.boxes, truth.crowd)
    overlaps = np.where(found.classes[order][:, None] == truth.classes, overlaps, 0)
    right = _taken(np.where(truth.crowd, 0, overlaps)) >= 0
    counted = right | ~(overlaps[:, truth.crowd] >= IOU).any(axis=1)
    return np.c_[scores[order], right, found.classes[order]][counted]


def _best_threshold(scores: Floats, right: Floats, drawn: int) -> float | None:
    """The score from which on F1 is best, the highest of equal ones; None where nothing is right."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_equal = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], len(ordered) > 0))
    f1 = 2 * np.cumsum(right[order])[last_of_equal] / (last_of_equal + 1 + drawn)
    return float(ordered[last_of_equal[f1.argmax()]]) if len(f1) and f1.max() > 0 else None


def _overlaps(boxes: Floats, others: Floats, crowd: NDArray[np.bool_]) -> Floats:
    """IoU of boxes (n, 4) with others (m, 4): (n, m); with a crowd the share of the box inside it."""
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    return hotcoco.mask.bbox_iou(boxes, others, crowd)


def _taken(overlaps: Floats) -> NDArray[np.int64]:
    """For each of n findings in order the free one of m objects that it overlaps most, by IOU at least; -1: none."""
    free = np.ones(overlaps.shape[1], bool)
    taken = np.full(len(overlaps), -1)
    for place, mine in enumerate(overlaps):
        open_to_it = np.where(free, mine, 0)
        if len(mine) and open_to_it.max() >= IOU:
            taken[place] = open_to_it.argmax()
            free[taken[place]] = False
    return taken

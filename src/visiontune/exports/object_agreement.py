"""Whether two models find the same objects: of the same class, at the same place, equally sure. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import hotcoco
import numpy as np

from visiontune.data.objects import Objects
from visiontune.exports.certificate import Check
from visiontune.metrics.average_precision import to_hotcoco


@dataclass(frozen=True)
class ObjectLimits:
    """When an object is the same: where its score is no further away than `score` and its IoU no less than `overlap`.
    disagreement: share of the objects that may be others."""

    score: float
    overlap: float
    disagreement: float


def check_objects(pairs: Sequence[tuple[Objects, Objects]], least_score: float, limits: ObjectLimits) -> Check:
    """Whether both find the same objects: each of the trained model's objects of at least this score has a partner of
    its class, score and place among the shipped ones, and the other way round. Where none has this score, all count."""
    if not any((_scores(mine) >= least_score).any() for mine, _ in pairs):
        least_score = 0.0
    alone = counted = 0
    for trained, shipped in pairs:
        for mine, its in ((trained, shipped), (shipped, trained)):
            own = np.flatnonzero(_scores(mine) >= least_score)
            counted += len(own)
            alone += len(own) - _partners(mine, its, own, limits)
    allowed = floor(limits.disagreement * counted)
    found = f"{counted - alone} of {counted} objects in {len(pairs)} images have a partner ({allowed} may have none)"
    numbers = {"objects": counted, "alone": alone, "allowed": allowed, "least_score": least_score}
    return Check("objects", "failed" if alone > allowed else "passed" if counted else "not checked", found, numbers)


def _partners(mine: Objects, its: Objects, own: Any, limits: ObjectLimits) -> int:
    """How many of these objects find a partner of their own, best score first."""
    if not len(own) or not len(its):
        return 0
    overlaps = hotcoco.mask.bbox_iou(mine.boxes[own], its.boxes, np.zeros(len(its), bool))
    drawn = [objects.masks for objects in (mine, its)]
    if all(mask is not None for masks in drawn for mask in masks):
        shapes = [[to_hotcoco(mask) for mask in masks if mask is not None] for masks in drawn]
        shapes[0] = [shapes[0][i] for i in own]
        empty = [np.array([hotcoco.mask.area([one])[0] == 0 for one in some]) for some in shapes]
        of_masks = np.asarray(hotcoco.mask.iou(shapes[0], shapes[1], [False] * len(its)))
        # Two empty masks are the same mask, and their boxes tell where they would be.
        overlaps = np.where(empty[0][:, None] & empty[1], overlaps, of_masks)
    fits = mine.classes[own][:, None] == its.classes[None]
    fits &= np.abs(_scores(mine)[own][:, None] - _scores(its)[None]) <= limits.score
    overlaps = np.where(fits, overlaps, -1.0)
    found = 0
    for row in overlaps:
        best = int(row.argmax())
        if row[best] >= limits.overlap:
            overlaps[:, best] = -1.0
            found += 1
    return found


def _scores(objects: Objects) -> Any:
    return np.zeros(len(objects)) if objects.scores is None else objects.scores

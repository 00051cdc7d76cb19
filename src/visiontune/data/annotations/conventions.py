"""In what way a file writes its boxes: COCO's left, top, width and height in pixels, or another one.

Another convention is told from the whole file. It is certain where nearly all boxes agree with it and many contradict
COCO's.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.findings import Finding, on_file
from visiontune.data.annotations.table import Table

Convention = Literal["pixels", "corners", "shares", "centred shares"]

# So many boxes at least must speak for corners: one box with x < w and y < h is nothing rare, ten in a row are.
MANY = 10
# This share of them must leave the image if read as COCO has it, and no more than that may be no corners.
_LEAVING = 0.2
_NO_CORNERS = 0.05
# Shares that stand for fewer pixels than this, in most boxes, are shares of something else.
_LEAST_PIXELS = 2.0
_ROUNDING = 1.0
_SHARE_ROUNDING = 1e-3


@dataclass(frozen=True)
class Told:
    """How a file's boxes are written, and whether that is certain."""

    convention: Convention
    certain: bool
    boxes: int


def told(table: Table) -> Told:
    """How the boxes of a file are written."""
    rows = np.flatnonzero(np.isfinite(table.annotations.boxes).all(axis=1) & table.sized)
    boxes, sizes = table.annotations.boxes[rows], table.sizes[rows]
    if not len(rows):
        return Told("pixels", True, 0)
    if boxes.max() <= 1 + _SHARE_ROUNDING and boxes.min() >= -_SHARE_ROUNDING and sizes.min() > 2:
        return _told_of_shares(boxes, sizes)
    low, high = boxes[:, :2], boxes[:, 2:]
    corners = ((high > low) & (low >= -_ROUNDING) & (high <= sizes + _ROUNDING)).all(axis=1)
    leaving = ((low + high) > sizes + _ROUNDING).any(axis=1)
    if (~corners).mean() <= _NO_CORNERS and leaving.mean() >= _LEAVING:
        return Told("corners", len(rows) >= MANY, len(rows))
    return Told("pixels", True, len(rows))


def convention_faults(table: Table) -> list[Finding]:
    """Boxes in another convention than COCO's."""
    found = told(table)
    if found.convention == "pixels":
        return []
    if found.convention == "corners":
        what = f"the {found.boxes} boxes read as left, top, right, bottom; as COCO has them many would leave the image"
        fix = "they are written as left, top, width, height"
        code = "boxes-as-corners"
    else:
        what = f"all numbers of the {found.boxes} boxes lie between 0 and 1: shares of the image, not pixels"
        fix = "they are written in pixels"
        code = "boxes-as-shares"
    if found.certain:
        return [on_file(table, code, "repair", what, fix)]
    doubt = "there are too few boxes to be sure" if code == "boxes-as-corners" else "from a corner or from the centre?"
    return [on_file(table, code, "error", f"{what}; {doubt}", "write left, top, width, height in pixels")]


def in_pixels(table: Table) -> NDArray[np.float64]:
    """(n, 4) float64: the boxes as COCO has them, where another convention is certain; else as they are."""
    found = told(table)
    boxes = table.annotations.boxes
    if found.convention == "pixels" or not found.certain:
        return boxes
    if found.convention == "corners":
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    if found.convention == "centred shares":
        boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
    return boxes * np.tile(table.sizes, 2)


def _told_of_shares(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> Told:
    low, size = boxes[:, :2], boxes[:, 2:]
    from_corner = bool((low + size <= 1 + _SHARE_ROUNDING).all())
    from_centre = bool((low - size / 2 >= -_SHARE_ROUNDING).all() and (low + size / 2 <= 1 + _SHARE_ROUNDING).all())
    large = bool((size * sizes >= _LEAST_PIXELS).all(axis=1).mean() > 0.5)
    certain = len(boxes) >= MANY and from_corner != from_centre and large
    return Told("centred shares" if from_centre and not from_corner else "shares", certain, len(boxes))

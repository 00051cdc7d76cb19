"""Faults of boxes: missing, not numbers, without area, outside the image, not where their masks are."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.conventions import told
from visiontune.data.annotations.findings import Finding, on_annotations, pixels, shown
from visiontune.data.annotations.measures import Measures
from visiontune.data.annotations.table import Table

# Boxes that went through text with a few digits leave the image by less than this many pixels.
EDGE = 0.01
# A box is off its mask where they share less than this of their union and some edge is so many pixels away.
OVERLAP = 0.7
FAR = 2.0
# A box of nearly the whole image, in this share of its area, is an image's label and no object's.
WHOLE = 0.99


def box_faults(table: Table, measures: Measures) -> list[Finding]:
    """All faults of boxes."""
    return [
        *missing_boxes(table, measures),
        *bad_boxes(table, measures),
        *boxes_without_area(table, measures),
        *boxes_as_shares(table, measures),
        *boxes_outside(table, measures),
        *boxes_past_edge(table),
        *boxes_off_masks(table, measures),
        *boxes_of_whole_images(table),
    ]


def known(table: Table) -> NDArray[np.bool_]:
    """(n,) bool: there is a box of four finite numbers."""
    return np.asarray(~np.isnan(table.annotations.boxes).any(axis=1))


def without_area(table: Table) -> NDArray[np.bool_]:
    """(n,) bool: the box has no width or no height, or less than none."""
    return known(table) & (table.annotations.boxes[:, 2:] <= 0).any(axis=1)


def as_shares(table: Table) -> NDArray[np.bool_]:
    """(n,) bool: all four numbers lie between 0 and 1, so that the box is smaller than a pixel of its image."""
    boxes = table.annotations.boxes
    if told(table).convention in ("shares", "centred shares"):
        return np.zeros(len(boxes), bool)  # a fault of the whole file
    smaller = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & (boxes[:, 2:] < 1).any(axis=1)
    return smaller & ~without_area(table) & (table.sizes > 2).all(axis=1)


def outside(table: Table) -> NDArray[np.bool_]:
    """(n,) bool: the box leaves the image, and less than a pixel of its width or height lies inside."""
    boxes = table.annotations.boxes
    visible = np.minimum(_ends(boxes), table.sizes) - np.maximum(boxes[:, :2], 0)
    return _leaves(table) & np.asarray((visible < 1).any(axis=1))


def past_edge(table: Table) -> NDArray[np.bool_]:
    """(n,) bool: a part of the box lies outside the image, and enough inside."""
    return _leaves(table) & ~outside(table)


def unusable(table: Table) -> NDArray[np.bool_]:
    """(n,) bool: there is no box to learn from; only a mask can give one."""
    return ~known(table) | without_area(table) | as_shares(table) | outside(table)


def missing_boxes(table: Table, measures: Measures) -> list[Finding]:
    """Annotations without a box: their masks have one."""
    odd = table.annotations.odd
    rows = ~known(table)
    rows[[row for (row, name), value in odd.items() if name == "bbox" and value not in (None, [])]] = False
    return _from_mask(
        table, measures, rows & measures.full, "missing-box", lambda _: "there is a mask and no box"
    ) + _from_mask(
        table, measures, rows & ~measures.full, "no-box-and-no-mask", lambda _: "there is no box and no mask"
    )


def bad_boxes(table: Table, measures: Measures) -> list[Finding]:
    """Boxes that are no four finite numbers."""
    odd = {row: value for (row, name), value in table.annotations.odd.items() if name == "bbox"}
    bad = np.zeros(len(table.annotations), bool)
    bad[[row for row, value in odd.items() if value not in (None, [])]] = True
    return _from_mask(table, measures, bad, "bad-box", lambda row: f"bbox is {shown(odd[row])}")


def boxes_without_area(table: Table, measures: Measures) -> list[Finding]:
    """Boxes of width or height zero or less."""
    rows = without_area(table)
    return _from_mask(table, measures, rows, "box-without-area", lambda row: f"the box {_box(table, row)} has no area")


def boxes_as_shares(table: Table, measures: Measures) -> list[Finding]:
    """Boxes smaller than a pixel, which may be shares of the image."""
    return _from_mask(
        table,
        measures,
        as_shares(table),
        "box-as-shares",
        lambda row: f"the box {_box(table, row)} is smaller than a pixel; is it a share of the image?",
    )


def boxes_outside(table: Table, measures: Measures) -> list[Finding]:
    """Boxes of which next to nothing lies in the image."""
    return _from_mask(
        table,
        measures,
        outside(table),
        "box-outside-image",
        lambda row: f"the box {_box(table, row)} lies outside the {_image(table, row)}",
    )


def boxes_past_edge(table: Table) -> list[Finding]:
    """Boxes with a part outside the image."""
    return on_annotations(
        table,
        past_edge(table),
        "box-past-edge",
        "repair",
        lambda row: f"the box {_box(table, row)} goes past the edge of the {_image(table, row)}",
        "it is clipped to the image",
    )


def boxes_off_masks(table: Table, measures: Measures) -> list[Finding]:
    """Boxes that are not where their masks are."""
    return on_annotations(
        table,
        off_mask(table, measures),
        "box-off-mask",
        "warning",
        lambda row: f"the box is {_box(table, row)}, the mask's own is {pixels(measures.boxes[row])}",
        "look at it: one of them is wrong",
    )


def off_mask(table: Table, measures: Measures) -> NDArray[np.bool_]:
    """(n,) bool: box and mask agree too little to be of one object."""
    boxes, tight = table.annotations.boxes, measures.boxes
    overlap = overlaps(boxes, tight)
    apart = np.abs(np.concatenate([boxes[:, :2] - tight[:, :2], _ends(boxes) - _ends(tight)], axis=1)).max(axis=1)
    compared = known(table) & ~unusable(table) & ~np.isnan(tight).any(axis=1)
    return compared & (overlap < OVERLAP) & (apart > FAR)


def overlaps(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) float64 in [0, 1]: intersection over union of (n, 4) boxes, pair by pair; NaN where one is."""
    shared = np.clip(np.minimum(_ends(first), _ends(second)) - np.maximum(first[:, :2], second[:, :2]), 0, None)
    both = shared.prod(axis=1)
    union = first[:, 2:].prod(axis=1) + second[:, 2:].prod(axis=1) - both
    return both / np.where(union > 0, union, 1)


def boxes_of_whole_images(table: Table) -> list[Finding]:
    """Boxes of the whole image."""
    area = table.annotations.boxes[:, 2:].prod(axis=1)
    rows = known(table) & ~past_edge(table) & table.sized
    rows &= ~outside(table) & (area >= WHOLE * table.sizes.prod(axis=1))
    fix = "look at it: is it one object?"
    return on_annotations(table, rows, "box-of-whole-image", "warning", "the box is the whole image", fix)


def _leaves(table: Table) -> NDArray[np.bool_]:
    boxes = table.annotations.boxes
    beyond = (boxes[:, :2] < -EDGE) | (_ends(boxes) > table.sizes + EDGE)
    return known(table) & ~without_area(table) & table.sized & np.asarray(beyond.any(axis=1))


def _ends(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return boxes[:, :2] + boxes[:, 2:]


def _from_mask(
    table: Table, measures: Measures, rows: NDArray[np.bool_], code: str, found: Callable[[int], str]
) -> list[Finding]:
    """A finding that the mask mends; without a mask the annotation is taken out."""
    return on_annotations(
        table,
        rows,
        code,
        lambda row: "repair" if measures.full[row] else "drop",
        found,
        lambda row: "its mask gives the box" if measures.full[row] else "draw the box again, or take it out",
    )


def _box(table: Table, row: int) -> str:
    return pixels(table.annotations.boxes[row].tolist())


def _image(table: Table, row: int) -> str:
    width, height = table.sizes[row].tolist()
    return f"image of {width} x {height}"

"""Faults of masks: polygons that cannot be drawn, run lengths that do not fill their image.

A mask that cannot be mended is taken away: the object keeps its box, and where it has none it goes (see faults_boxes).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.crossings import crossing
from visiontune.data.annotations.faults_boxes import known, unusable
from visiontune.data.annotations.findings import Finding, on_annotations, shown
from visiontune.data.annotations.masks import areas_and_boxes, from_pixels, packed, to_pixels
from visiontune.data.annotations.measures import Measures
from visiontune.data.annotations.table import Kind, Table
from visiontune.data.objects import Rle

# A polygon's points may lie so many pixels outside: annotation tools draw along the edge.
EDGE = 1.0
# Two boxes are the same where no edge is further apart, in pixels.
SAME_BOX = 1.5


def mask_faults(table: Table, measures: Measures) -> list[Finding]:
    """All faults of masks and areas."""
    return [
        *unknown_forms(table),
        *broken_polygons(table),
        *polygons_outside(table, measures),
        *polygons_past_edge(table, measures),
        *self_crossing_polygons(table, measures),
        *broken_run_lengths(table, measures),
        *transposed_masks(table, measures),
        *empty_masks(table, measures),
    ]


def broken_segmentations(table: Table) -> list[tuple[str, int]]:
    """(code, row) of segmentations of no form that COCO knows."""
    rows = np.flatnonzero(table.annotations.kinds == Kind.BROKEN).tolist()
    return [(_form(table.annotations.segmentations[row]), row) for row in rows]


def unknown_forms(table: Table) -> list[Finding]:
    """Segmentations of no form that COCO knows."""
    values = table.annotations.segmentations
    return [
        finding
        for code, row in broken_segmentations(table)
        for finding in _removed(table, np.array([row]), code, lambda row: f"segmentation is {shown(values[row])}")
    ]


def flat_polygon(value: Any) -> bool:
    """Whether this is one polygon without the list around it."""
    return isinstance(value, list) and len(value) >= 6 and all(type(number) in (int, float) for number in value)


def broken_parts(table: Table) -> dict[str, NDArray[np.int64]]:
    """The rows of polygons with a part that cannot be drawn, by what is wrong with it."""
    rows = np.flatnonzero(table.annotations.kinds == Kind.POLYGONS).tolist()
    parts = [table.annotations.segmentations[row] for row in rows]
    of_row = np.repeat(np.array(rows, np.int64), [len(value) for value in parts])
    lengths = np.array([len(part) for value in parts for part in value], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    numbers = np.fromiter((number for value in parts for part in value for number in part), np.float64, starts[-1])
    bad = np.concatenate([[0], np.cumsum(~np.isfinite(numbers))])
    tests = {
        "polygon-too-short": lengths < 6,
        "polygon-with-half-a-point": lengths % 2 == 1,
        "polygon-not-finite": bad[starts[1:]] > bad[starts[:-1]],
    }
    return {code: np.unique(of_row[test]) for code, test in tests.items()}


def broken_polygons(table: Table) -> list[Finding]:
    """Parts of polygons with fewer than three points, half a point, or numbers that are not finite."""
    values = table.annotations.segmentations

    def found(row: int) -> str:
        lengths = ", ".join(str(len(part)) for part in values[row])
        return f"the parts of the polygon have {lengths} numbers: each needs three points or more, all finite"

    return [
        finding for code, rows in broken_parts(table).items() for finding in _part_removed(table, rows, code, found)
    ]


def polygons_outside(table: Table, measures: Measures) -> list[Finding]:
    """Polygons with a part that lies wholly outside the image."""
    rows = np.unique(measures.rings.annotation[ring_outside(table, measures)])
    return _part_removed(table, rows, "polygon-outside-image", lambda _: "a part lies outside the image")


def polygons_past_edge(table: Table, measures: Measures) -> list[Finding]:
    """Polygons that leave the image."""
    rows = np.unique(measures.rings.annotation[ring_past_edge(table, measures)])
    found = "points of the polygon lie outside the image"
    return on_annotations(table, rows, "polygon-past-edge", "repair", found, "it is clipped to the image")


def ring_outside(table: Table, measures: Measures) -> NDArray[np.bool_]:
    """(rings,) bool: no part of the ring lies in the image."""
    rows = measures.rings.annotation
    boxes, sizes = measures.rings.boxes(), table.sizes[rows]
    return table.sized[rows] & ((boxes[:, :2] >= sizes) | (boxes[:, 2:] <= 0)).any(axis=1)


def ring_past_edge(table: Table, measures: Measures) -> NDArray[np.bool_]:
    """(rings,) bool: points lie outside the image, by more than `EDGE` pixels."""
    rows = measures.rings.annotation
    boxes, sizes = measures.rings.boxes(), table.sizes[rows]
    beyond = ((boxes[:, :2] < -EDGE) | (boxes[:, 2:] > sizes + EDGE)).any(axis=1)
    return beyond & table.sized[rows] & ~ring_outside(table, measures)


def self_crossing_polygons(table: Table, measures: Measures) -> list[Finding]:
    """Polygons whose outline crosses itself: what is inside depends on the program."""
    rows = np.unique(measures.rings.annotation[crossing(measures.rings)])
    found = "the outline crosses itself"
    return on_annotations(table, rows, "polygon-crosses-itself", "warning", found, "draw it again")


def unusable_run_lengths(table: Table, measures: Measures) -> dict[str, NDArray[np.int64]]:
    """The rows of run lengths that are no mask of their image, by what is wrong; those that are transposed are not."""
    rows, sizes = measures.rle_rows, measures.rle_sizes
    image, sound = table.sizes[rows], measures.runs.sound
    filled = measures.runs.pixels() == sizes.prod(axis=1)
    mendable = np.isin(rows, [row for row, _ in transposed_rows(table, measures)])
    other_size = (sizes[:, ::-1] != image).any(axis=1) & (image > 0).all(axis=1)
    return {
        "rle-broken": rows[~sound],
        "rle-of-wrong-length": rows[sound & ~filled],
        "rle-of-wrong-size": rows[sound & filled & other_size & ~mendable],
    }


def broken_run_lengths(table: Table, measures: Measures) -> list[Finding]:
    """Run lengths that cannot be decoded, do not fill their size, or are of another size than the image."""
    place = {row: k for k, row in enumerate(measures.rle_rows.tolist())}
    pixels = measures.runs.pixels()

    def found(row: int) -> str:
        if not measures.runs.sound[place[row]]:
            return "the run lengths cannot be decoded"
        (height, width), (image_width, image_height) = measures.rle_sizes[place[row]], table.sizes[row]
        runs = f"the runs cover {pixels[place[row]]} pixels"
        return f"{runs}, the mask is {width} x {height}, the image {image_width} x {image_height}"

    return [
        finding
        for code, rows in unusable_run_lengths(table, measures).items()
        for finding in _removed(table, rows, code, found)
    ]


def transposed_masks(table: Table, measures: Measures) -> list[Finding]:
    """Run lengths that go row by row, or have width and height exchanged, as their box proves."""
    rows = np.array([row for row, _ in transposed_rows(table, measures)], np.int64)
    found = "the mask agrees with its box if rows and columns are exchanged"
    return on_annotations(table, rows, "rle-transposed", "repair", found, "rows and columns are exchanged")


def transposed_rows(table: Table, measures: Measures) -> list[tuple[int, Rle]]:
    """(row, the mask as it was meant) of run lengths of which exactly one other reading has the annotation's box."""
    rows = measures.rle_rows
    image, sizes = table.sizes[rows], measures.rle_sizes
    fills = measures.runs.sound & (measures.runs.pixels() == sizes.prod(axis=1))
    exchanged = (sizes == image).all(axis=1) & (sizes[:, 0] != sizes[:, 1])
    own = measures.boxes[rows]
    compared = known(table)[rows] & ~unusable(table)[rows]
    far = ~np.isnan(own).any(axis=1) & (np.abs(own - table.annotations.boxes[rows]).max(axis=1) > SAME_BOX)
    suspect = fills & compared & (measures.runs.areas() > 0) & (exchanged | far)
    found = []
    for row in rows[suspect].tolist():
        readings = [mask for mask in _other_readings(table, row) if _has_box(mask, table.annotations.boxes[row])]
        if len(readings) == 1:
            found.append((row, readings[0]))
    return found


def empty_masks(table: Table, measures: Measures) -> list[Finding]:
    """Masks without a pixel."""
    rows = np.flatnonzero(measures.sound & ~measures.full)
    return _removed(table, rows, "empty-mask", lambda _: "the mask has no pixel")


def _form(value: Any) -> str:
    if flat_polygon(value):
        return "flat-polygon"
    if isinstance(value, dict) and "counts" not in value:
        return "rle-without-counts"
    if isinstance(value, dict) and "size" not in value:
        return "rle-without-size"
    return "segmentation-of-unknown-form"


def _removed(table: Table, rows: NDArray[np.int64], code: str, found: Callable[[int], str]) -> list[Finding]:
    fix = "the list is put around it" if code == "flat-polygon" else "the mask is taken away"
    return on_annotations(table, rows, code, "repair", found, fix)


def _part_removed(table: Table, rows: NDArray[np.int64], code: str, found: Callable[[int], str]) -> list[Finding]:
    return on_annotations(table, rows, code, "repair", found, "the part is taken out; the other parts and the box stay")


def _other_readings(table: Table, row: int) -> list[Rle]:
    """The same runs column by column in the image's size, and row by row."""
    width, height = table.sizes[row].tolist()
    value = table.annotations.segmentations[row]
    kind = int(table.annotations.kinds[row])
    readings = []
    if list(value["size"]) != [height, width]:
        readings.append(packed(kind, {**value, "size": [height, width]}, height, width))
    by_rows = to_pixels(packed(kind, {**value, "size": [width, height]}, width, height)).T
    return [*readings, from_pixels(by_rows)]


def _has_box(mask: Rle, box: NDArray[np.float64]) -> bool:
    own = areas_and_boxes([mask])[1][0]
    return bool(np.abs(own - box).max() <= SAME_BOX)

"""Repairs of masks, boxes, areas and doubles. Each is a table in, a table and its changes out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.changes import (
    Change,
    annotations_dropped,
    boxes_changed,
    on_annotation,
    segmentations_changed,
    written,
)
from visiontune.data.annotations.faults_areas import area_is_wrong, true_areas
from visiontune.data.annotations.faults_boxes import as_shares, outside, past_edge, unusable, without_area
from visiontune.data.annotations.faults_duplicates import duplicate_rows
from visiontune.data.annotations.faults_masks import (
    broken_parts,
    broken_segmentations,
    flat_polygon,
    ring_outside,
    ring_past_edge,
    transposed_rows,
    unusable_run_lengths,
)
from visiontune.data.annotations.masks import is_ring
from visiontune.data.annotations.measures import Measures
from visiontune.data.annotations.table import Kind, Table

Mended = tuple[Table, list[Change]]
_New = dict[int, tuple[Kind, Any]]


def mend_masks(table: Table, measures: Measures) -> Mended:
    """Masks are mended where that is certain and taken away where they are none; polygons are clipped to the image."""
    values: _New = {}
    why: dict[int, str] = {}
    for finding, row in broken_segmentations(table):
        value = table.annotations.segmentations[row]
        values[row] = (Kind.POLYGONS, [value]) if flat_polygon(value) else (Kind.NONE, None)
        why[row] = finding
    for code, rows in unusable_run_lengths(table, measures).items():
        values |= dict.fromkeys(rows.tolist(), (Kind.NONE, None))
        why |= dict.fromkeys(rows.tolist(), code)
    for row, mask in transposed_rows(table, measures):
        values[row], why[row] = (Kind.COMPRESSED, mask.to_coco()), "rle-transposed"
    for code, rows in broken_parts(table).items():
        for row in rows.tolist():
            values[row] = _polygons([part for part in table.annotations.segmentations[row] if is_ring(part)])
            why[row] = code
    table, changes = segmentations_changed(table, values, why)
    table, more = _clipped_polygons(table, Measures(table) if values else measures)
    changes += more
    emptied = Measures(table) if changes else measures
    empty = np.flatnonzero(emptied.sound & ~emptied.full).tolist()
    table, more = segmentations_changed(
        table, dict.fromkeys(empty, (Kind.NONE, None)), dict.fromkeys(empty, "empty-mask")
    )
    return table, changes + more


def mend_boxes(table: Table, measures: Measures) -> Mended:
    """Boxes that cannot be used are made from masks; without one the object goes. Others are clipped to the image."""
    bad = unusable(table)
    codes = _box_codes(table)
    from_mask = np.flatnonzero(bad & measures.full)
    gone = np.flatnonzero(bad & ~measures.full).tolist()
    boxes = dict(zip(from_mask.tolist(), measures.drawn(from_mask)[1], strict=True))
    why = {row: codes.get(row, "missing-box") for row in boxes}
    for row in np.flatnonzero(past_edge(table)).tolist():
        boxes[row], why[row] = clipped(table.annotations.boxes[row], table.sizes[row]), "box-past-edge"
    table, changes = boxes_changed(table, boxes, why)
    table, more = annotations_dropped(table, {row: codes.get(row, "no-box-and-no-mask") for row in gone})
    return table, changes + more


def mend_areas(table: Table, measures: Measures) -> Mended:
    """Areas that are missing or wrong are measured: the mask's pixels, else width times height."""
    columns = table.annotations
    true = true_areas(table, measures)
    wrong = area_is_wrong(table, measures, true)
    rows = np.flatnonzero((np.isnan(columns.areas) | wrong) & ~np.isnan(true))
    if not len(rows):
        return table, []
    areas = columns.areas.copy()
    areas[rows] = true[rows]
    masked = rows[measures.full[rows]]
    areas[masked] = measures.drawn(masked)[0]
    odd = {row: value for (row, name), value in columns.odd.items() if name == "area"}
    changes = []
    for row in rows.tolist():
        code = "wrong-area" if wrong[row] else "bad-area" if odd.get(row) is not None else "missing-area"
        before = odd.get(row, None if np.isnan(columns.areas[row]) else float(columns.areas[row]))
        changes.append(on_annotation(table, row, code, "area", written(before), float(areas[row])))
    keep = {key: value for key, value in columns.odd.items() if key[1] != "area" or np.isnan(areas[key[0]])}
    return table.with_annotations(areas=areas, odd=keep), changes


def mend_duplicates(table: Table) -> Mended:
    """Of annotations that say the same, the first is kept."""
    return annotations_dropped(table, dict.fromkeys(duplicate_rows(table), "duplicate-annotation"))


def clipped(box: NDArray[np.float64], size: NDArray[np.int64]) -> NDArray[np.float64]:
    """The part of a box (left, top, width, height) inside an image of `size` (width, height)."""
    low = np.clip(box[:2], 0, size)
    return np.concatenate([low, np.clip(box[:2] + box[2:], 0, size) - low])


def clipped_ring(points: NDArray[np.float64], width: float, height: float) -> NDArray[np.float64]:
    """The part of a polygon (p, 2) inside the image, one edge of the image after the other.

    Sutherland and Hodgman, "Reentrant polygon clipping", 1974. Parts that fall asunder stay joined along the edge.
    """
    for axis, limit, sign in ((0, 0.0, 1), (0, width, -1), (1, 0.0, 1), (1, height, -1)):
        if not len(points):
            break
        inside = sign * (points[:, axis] - limit) >= 0
        kept = []
        for k in range(len(points)):
            before, point = points[k - 1], points[k]
            if inside[k] != inside[k - 1]:
                share = (limit - before[axis]) / (point[axis] - before[axis])
                crossing = before + share * (point - before)
                crossing[axis] = limit
                kept.append(crossing)
            if inside[k]:
                kept.append(point)
        points = np.array(kept).reshape(-1, 2)
    return points


def _clipped_polygons(table: Table, measures: Measures) -> Mended:
    rings = measures.rings
    out, past = ring_outside(table, measures), ring_past_edge(table, measures)
    values: _New = {}
    why: dict[int, str] = {}
    for row in np.unique(rings.annotation[out | past]).tolist():
        parts = []
        width, height = table.sizes[row].tolist()
        for k in np.flatnonzero(rings.annotation == row).tolist():
            points = rings.points[rings.starts[k] : rings.starts[k + 1]]
            if past[k]:
                points = clipped_ring(points, width, height)
            if not out[k] and len(points) >= 3:
                parts.append(points.ravel().tolist())
        values[row] = _polygons(parts)
        leaves = past[rings.annotation == row].any()
        why[row] = "polygon-past-edge" if leaves else "polygon-outside-image"
    return segmentations_changed(table, values, why)


def _polygons(parts: list[list[float]]) -> tuple[Kind, Any]:
    return (Kind.POLYGONS, parts) if parts else (Kind.NONE, None)


def _box_codes(table: Table) -> dict[int, str]:
    """The code of the fault of each box that cannot be used; boxes that are merely missing have none."""
    codes: dict[int, str] = {}
    tests = ((without_area, "box-without-area"), (as_shares, "box-as-shares"), (outside, "box-outside-image"))
    for test, code in tests:
        codes |= dict.fromkeys(np.flatnonzero(test(table)).tolist(), code)
    odd = table.annotations.odd
    return codes | {row: "bad-box" for (row, name), value in odd.items() if name == "bbox" and value not in (None, [])}

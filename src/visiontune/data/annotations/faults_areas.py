"""Faults of areas: missing, not a number, not that of the mask."""

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.faults_boxes import unusable
from visiontune.data.annotations.findings import Finding, on_annotations, shown
from visiontune.data.annotations.measures import Measures
from visiontune.data.annotations.table import Table

# Pixels are counted in different ways: an area may differ by this share and half the outline's length.
AREA_SHARE = 0.05


def area_faults(table: Table, measures: Measures) -> list[Finding]:
    """All faults of areas."""
    true = true_areas(table, measures)
    return [*bad_areas(table), *missing_areas(table, true), *wrong_areas(table, measures, true)]


def bad_areas(table: Table) -> list[Finding]:
    """Areas that are no finite numbers."""
    odd = table.annotations.odd
    rows = np.array([row for (row, name), value in odd.items() if name == "area" and value is not None], np.int64)
    return on_annotations(
        table, rows, "bad-area", "repair", lambda row: f"area is {shown(odd[row, 'area'])}", "it is measured"
    )


def missing_areas(table: Table, true: NDArray[np.float64]) -> list[Finding]:
    """Annotations without an area."""
    rows = np.isnan(table.annotations.areas) & ~np.isnan(true)
    rows[[row for (row, name), value in table.annotations.odd.items() if name == "area" and value is not None]] = False
    return on_annotations(table, rows, "missing-area", "repair", "there is no area", "it is measured")


def wrong_areas(table: Table, measures: Measures, true: NDArray[np.float64]) -> list[Finding]:
    """Areas that are not those of the masks; without a mask, areas larger than the box, or zero and less."""
    return on_annotations(
        table,
        area_is_wrong(table, measures, true),
        "wrong-area",
        "repair",
        lambda row: f"the area is {table.annotations.areas[row]:.6g}, measured it is {true[row]:.6g}",
        "it is measured",
    )


def true_areas(table: Table, measures: Measures) -> NDArray[np.float64]:
    """(n,) float64: the area of the mask, else of the box; NaN where there is neither.

    The shoelace area of a polygon counts twice what its parts share or its outline encloses twice. So where it
    disagrees with what is written, the pixels are counted.
    """
    boxed = np.where(unusable(table), np.nan, table.annotations.boxes[:, 2:].prod(axis=1))
    areas = np.where(measures.full, measures.areas, boxed)
    drawn = np.flatnonzero(_differs(table, measures, areas) & measures.full & (measures.ring_count > 0))
    areas[drawn] = measures.drawn(drawn)[0]
    return areas


def area_is_wrong(table: Table, measures: Measures, true: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) bool: the area that is written is not the `true_areas`, by more than ways of counting differ.

    Without a mask a smaller area than the box's may be that of a mask that was left out.
    """
    areas = table.annotations.areas
    return _differs(table, measures, true) & (measures.full | (areas > true) | (areas <= 0))


def _differs(table: Table, measures: Measures, true: NDArray[np.float64]) -> NDArray[np.bool_]:
    areas = table.annotations.areas
    outline = np.bincount(measures.rings.annotation, measures.rings.lengths(), minlength=len(areas))
    slack = AREA_SHARE * true + np.where(measures.full, outline / 2, 0) + 1
    return ~np.isnan(areas) & ~np.isnan(true) & (np.abs(areas - true) > slack)

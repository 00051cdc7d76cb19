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
    return [*bad_areas(table), *missing_areas(table, measures), *wrong_areas(table, measures)]


def bad_areas(table: Table) -> list[Finding]:
    """Areas that are no finite numbers."""
    odd = table.annotations.odd
    rows = np.array([row for (row, name), value in odd.items() if name == "area" and value is not None], np.int64)
    return on_annotations(
        table, rows, "bad-area", "repair", lambda row: f"area is {shown(odd[row, 'area'])}", "it is measured"
    )


def missing_areas(table: Table, measures: Measures) -> list[Finding]:
    """Annotations without an area."""
    rows = np.isnan(table.annotations.areas) & ~np.isnan(true_areas(table, measures))
    rows[[row for (row, name), value in table.annotations.odd.items() if name == "area" and value is not None]] = False
    return on_annotations(table, rows, "missing-area", "repair", "there is no area", "it is measured")


def wrong_areas(table: Table, measures: Measures) -> list[Finding]:
    """Areas that are not those of the masks; without a mask, areas larger than the box, or zero and less."""
    true = true_areas(table, measures)
    return on_annotations(
        table,
        area_is_wrong(table, measures),
        "wrong-area",
        "repair",
        lambda row: f"the area is {table.annotations.areas[row]:.6g}, measured it is {true[row]:.6g}",
        "it is measured",
    )


def true_areas(table: Table, measures: Measures) -> NDArray[np.float64]:
    """(n,) float64: the area of the mask, else of the box; NaN where there is neither."""
    boxed = np.where(unusable(table), np.nan, table.annotations.boxes[:, 2:].prod(axis=1))
    return np.where(measures.full, measures.areas, boxed)


def area_is_wrong(table: Table, measures: Measures) -> NDArray[np.bool_]:
    """(n,) bool: the area that is written is not that of the mask, by more than ways of counting differ.

    Without a mask a smaller area than the box's may be that of a mask that was left out.
    """
    areas, true = table.annotations.areas, true_areas(table, measures)
    outline = np.bincount(measures.rings.annotation, measures.rings.lengths(), minlength=len(areas))
    slack = np.where(measures.full, AREA_SHARE * true + outline / 2 + 1, AREA_SHARE * true + 1)
    wrong = ~np.isnan(areas) & ~np.isnan(true) & (np.abs(areas - true) > slack)
    wrong &= measures.full | (areas > true) | (areas <= 0)
    # Parts that overlap count twice in the sum of their outlines: what the pixels say decides.
    several = np.flatnonzero(wrong & (measures.ring_count > 1) & measures.full)
    wrong[several] = np.abs(areas[several] - measures.drawn(several)[0]) > slack[several]
    return wrong

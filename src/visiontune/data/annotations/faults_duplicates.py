"""Objects annotated twice."""

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.findings import Finding, on_annotations, pixels
from visiontune.data.annotations.table import Table


def duplicate_faults(table: Table) -> list[Finding]:
    """All objects that stand twice."""
    return [*duplicate_annotations(table), *boxes_of_two_classes(table)]


def duplicate_rows(table: Table) -> dict[int, int]:
    """row -> the earlier row of the same image and class, with the same box, mask and crowd flag."""
    columns = table.annotations
    found = {}
    for rows in _same_box(table, [columns.image_ids, columns.category_ids, columns.crowd]):
        kept: list[int] = []
        for row in rows:
            mask = columns.segmentations[row]
            earlier = next((other for other in kept if columns.segmentations[other] == mask), None)
            if earlier is None:
                kept.append(row)
            else:
                found[row] = earlier
    return found


def duplicate_annotations(table: Table) -> list[Finding]:
    """The same object in the same words."""
    found = duplicate_rows(table)
    return on_annotations(
        table,
        np.array(sorted(found), np.int64),
        "duplicate-annotation",
        "repair",
        lambda row: f"it says what {table.annotation_name(found[row])} says",
        "the first is kept",
    )


def boxes_of_two_classes(table: Table) -> list[Finding]:
    """One box with two classes."""
    columns = table.annotations
    found: dict[int, int] = {}
    for first, *others in _same_box(table, [columns.image_ids]):
        if not np.isnan(columns.boxes[first]).any():
            found |= {row: first for row in others if columns.category_ids[row] != columns.category_ids[first]}
    names = (*table.categories.names, "an unknown class")
    return on_annotations(
        table,
        np.array(sorted(found), np.int64),
        "box-of-two-classes",
        "warning",
        lambda row: (
            f"the box {pixels(columns.boxes[row])} is {names[table.category_rows[row]]!r} here and "
            f"{names[table.category_rows[found[row]]]!r} in {table.annotation_name(found[row])}"
        ),
        "decide which class it is",
    )


def _same_box(table: Table, columns: list[NDArray[np.int64] | NDArray[np.int8]]) -> list[list[int]]:
    """Groups of at least two rows with the same box and the same values in these columns, in the order of the file."""
    # Adding zero makes -0.0 and 0.0 one bit pattern; a box that is missing is like another one.
    bits = (np.nan_to_num(table.annotations.boxes, nan=-1e300) + 0.0).view(np.uint64)
    parts = np.stack([*bits.T, *(column.astype(np.int64).view(np.uint64) for column in columns)])
    key = np.zeros(len(bits), np.uint64)
    for part in parts:
        # FNV-1a's prime over whole words; rows with equal keys are compared in full below.
        key = (key ^ part) * np.uint64(1099511628211)
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], key[order][1:] != key[order][:-1]]))
    sizes = np.diff(np.append(starts, len(order)))
    groups: list[list[int]] = []
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        same: dict[bytes, list[int]] = {}
        for row in order[start : start + size].tolist():
            same.setdefault(parts[:, row].tobytes(), []).append(row)
        groups += [rows for rows in same.values() if len(rows) > 1]
    return groups

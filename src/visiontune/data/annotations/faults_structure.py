"""Faults of form: lists, entries and fields that are not there or not of the kind that COCO asks for."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.coco import ENTRY, SECTIONS
from visiontune.data.annotations.findings import Finding, Severity, on_annotations, on_file, on_image, shown
from visiontune.data.annotations.table import ABSENT, Table
from visiontune.data.annotations.text_ids import TextIds

# What people write for 0 and 1.
CROWD_VALUES: tuple[tuple[Any, int], ...] = ((False, 0), (True, 1), (0.0, 0), (1.0, 1), ("0", 0), ("1", 1), (None, 0))
_IMAGE_FIELDS = {
    "id": ("bad-image-id", "give each image a whole number from 0 as its id"),
    "file_name": ("bad-file-name", "write the path of the image's file"),
    "width": ("bad-image-size", "write width and height in pixels; they can be read from the image file"),
    "height": ("bad-image-size", "write width and height in pixels; they can be read from the image file"),
}
_CATEGORY_FIELDS = {
    "id": ("bad-category-id", "give each class a whole number from 0 as its id"),
    "name": ("bad-class-name", "write the name of the class"),
    "supercategory": ("bad-supercategory", "write a text, or leave it out"),
}


def structure_faults(table: Table) -> list[Finding]:
    """All faults of form."""
    return [
        *missing_sections(table),
        *broken_entries(table),
        *bad_image_fields(table),
        *bad_category_fields(table),
        *bad_references(table),
        *bad_crowd(table),
        *unread_lines(table),
    ]


def missing_sections(table: Table) -> Iterator[Finding]:
    """A COCO file without one of its three lists."""
    for section in SECTIONS:
        if section not in table.sections:
            found = f"{section} is {shown(table.top[section])}" if section in table.top else f"there is no {section}"
            yield on_file(table, "missing-section", "error", found, f"add the list {section!r}")


def broken_entries(table: Table) -> Iterator[Finding]:
    """Entries of the lists that are no JSON objects."""
    for section, part in (
        ("images", table.images),
        ("categories", table.categories),
        ("annotations", table.annotations),
    ):
        for (row, name), value in part.odd.items():
            if name == ENTRY:
                found = f"this is {shown(value)}, not an object"
                yield on_file(table, "not-an-object", "drop", found, "take the entry out", f"entry {row} of {section}")


def bad_image_fields(table: Table) -> Iterator[Finding]:
    """Images whose id, file name, width or height is missing or of the wrong kind. Ids that are texts are mended."""
    numbers = TextIds(table).images
    for (row, name), value in table.images.odd.items():
        if name in _IMAGE_FIELDS:
            code, fix = _IMAGE_FIELDS[name]
            mended = name == "id" and row in numbers
            fix = f"its number becomes {numbers[row]}" if mended else fix
            found = f"{written_as(name, value)} ({_image_name(table, row)})"
            yield on_image(table, row, code, "repair" if mended else "error", found, fix)


def bad_category_fields(table: Table) -> Iterator[Finding]:
    """Classes whose id or name is missing or of the wrong kind. Ids that are texts are mended."""
    numbers = TextIds(table).categories
    for (row, name), value in table.categories.odd.items():
        if name in _CATEGORY_FIELDS:
            code, fix = _CATEGORY_FIELDS[name]
            severity: Severity = "warning" if name == "supercategory" else "error"
            if name == "id" and row in numbers:
                severity, fix = "repair", f"its number becomes {numbers[row]}"
            called = f" ({table.categories.names[row]})" if table.categories.names[row] else ""
            yield on_file(table, code, severity, written_as(name, value), fix, f"class {row + 1} of the list{called}")


def bad_references(table: Table) -> list[Finding]:
    """Annotations whose image_id or category_id is missing or no whole number. Texts that are an id are mended."""
    odd, known = table.annotations.odd, TextIds(table)
    kinds = (
        ("image_id", "bad-image-reference", "an image", known.image_references),
        ("category_id", "bad-category-reference", "a class", known.category_references),
    )
    return [
        finding
        for name, code, what, meant in kinds
        for finding in on_annotations(
            table,
            odd_rows(table, name),
            code,
            lambda row, meant=meant: "repair" if row in meant else "drop",
            lambda row, name=name: written_as(name, odd[row, name]),
            lambda row, what=what, meant=meant: (
                f"it becomes {meant[row]}"
                if row in meant
                else f"write the id of {what} as a whole number, or take it out"
            ),
        )
    ]


def bad_crowd(table: Table) -> list[Finding]:
    """Values of iscrowd other than 0 and 1. True, "1" and their like are mended, others are for a person to decide."""
    odd = table.annotations.odd
    return on_annotations(
        table,
        odd_rows(table, "iscrowd"),
        "bad-crowd",
        lambda row: "error" if crowd_of(odd[row, "iscrowd"]) is None else "repair",
        lambda row: written_as("iscrowd", odd[row, "iscrowd"]),
        lambda row: f"write {'0 or 1' if crowd_of(odd[row, 'iscrowd']) is None else crowd_of(odd[row, 'iscrowd'])}",
    )


def crowd_of(value: Any) -> int | None:
    """What iscrowd was meant to be, None where nobody can tell."""
    return next((crowd for known, crowd in CROWD_VALUES if type(value) is type(known) and value == known), None)


def unread_lines(table: Table) -> Iterator[Finding]:
    """Lines of YOLO labels and objects of VOC files that say no object."""
    for unread in table.unread:
        fix = "correct it, or take it out"
        yield Finding(unread.code, "drop", table.name, None, None, unread.found, fix, unread.where)


def odd_rows(table: Table, name: str) -> NDArray[np.int64]:
    """The rows of annotations whose field `name` is missing or of the wrong kind."""
    return np.array([row for row, field in table.annotations.odd if field == name], np.int64)


def written_as(name: str, value: Any) -> str:
    """What a field says that cannot be used."""
    return f"there is no {name}" if value is ABSENT else f"{name} is {shown(value)}"


def _image_name(table: Table, row: int) -> str:
    return table.images.file_names[row] or f"entry {row} of images"

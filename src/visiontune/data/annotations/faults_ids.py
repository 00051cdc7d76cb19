"""Faults of ids and references: used twice, or leading nowhere."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.faults_structure import odd_rows, written_as
from visiontune.data.annotations.findings import Finding, on_annotations, on_file, on_image
from visiontune.data.annotations.table import Table
from visiontune.data.annotations.text_ids import whole_number


def id_faults(table: Table) -> list[Finding]:
    """All faults of ids and references."""
    return [
        *duplicate_image_ids(table),
        *duplicate_file_names(table),
        *duplicate_category_ids(table),
        *bad_annotation_ids(table),
        *duplicate_annotation_ids(table),
        *unknown_images(table),
        *unknown_categories(table),
    ]


def repeated(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows whose id an earlier row has."""
    _, first = np.unique(ids, return_index=True)
    again = np.ones(len(ids), bool)
    again[first] = False
    return np.flatnonzero(again & (ids >= 0))


def same_image(table: Table, row: int, earlier: int) -> bool:
    """Whether two rows say the same file and size."""
    images = table.images
    return (images.file_names[row], images.widths[row], images.heights[row]) == (
        images.file_names[earlier],
        images.widths[earlier],
        images.heights[earlier],
    )


def twins(names: Sequence[str]) -> list[tuple[int, int]]:
    """(row, first row) of each name that an earlier row has; empty names are nobody's."""
    first: dict[str, int] = {}
    pairs = [(row, first.setdefault(name, row)) for row, name in enumerate(names) if name]
    return [(row, earlier) for row, earlier in pairs if row != earlier]


def duplicate_image_ids(table: Table) -> Iterator[Finding]:
    """Two images with one id. The same image listed twice is one; two images cannot be told apart by their objects."""
    first = {number: row for row, number in reversed(list(enumerate(table.images.ids.tolist())))}
    for row in repeated(table.images.ids).tolist():
        name, number = table.images.file_names[row], int(table.images.ids[row])
        if same_image(table, row, first[number]):
            fix = "the second entry is taken out"
            yield on_image(table, row, "duplicate-image-id", "repair", f"{name} is listed twice with id {number}", fix)
        else:
            found = f"{table.images.file_names[first[number]]} and {name} have the id {number}"
            fix = "give each image an id of its own, and its annotations too"
            yield on_image(table, row, "duplicate-image-id", "error", found, fix)


def duplicate_file_names(table: Table) -> Iterator[Finding]:
    """One file under two ids: each entry has a part of the objects only."""
    images = table.images
    for row, earlier in twins(images.file_names):
        if images.ids[row] == images.ids[earlier] or min(images.ids[row], images.ids[earlier]) < 0:
            continue  # faults of their own
        first = images.places[earlier] if images.places else f"image {images.ids[earlier]}"
        again = images.places[row] if images.places else f"image {images.ids[row]}"
        found = f"{images.file_names[row]} is listed as {first} and as {again}"
        if same_image(table, row, earlier):
            fix = f"its annotations go to {first}"
            yield on_image(table, row, "duplicate-file-name", "repair", found, fix)
        else:
            fix = "keep the entry with the right size"
            yield on_image(table, row, "duplicate-file-name", "error", found + ", with different sizes", fix)


def duplicate_category_ids(table: Table) -> Iterator[Finding]:
    """Two classes with one id."""
    names_of: dict[int, list[str]] = defaultdict(list)
    for number, name in zip(table.categories.ids.tolist(), table.categories.names, strict=True):
        if number >= 0:
            names_of[number].append(name)
    for number, names in names_of.items():
        if len(names) > 1 and len(set(names)) == 1:
            found = f"the class {names[0]!r} is listed {len(names)} times with id {number}"
            yield on_file(table, "duplicate-category-id", "repair", found, "the later entries are taken out")
        elif len(names) > 1:
            found = f"the id {number} is given to {', '.join(map(repr, names))}"
            fix = "give each class an id of its own, and its annotations too"
            yield on_file(table, "duplicate-category-id", "error", found, fix)


def bad_annotation_ids(table: Table) -> list[Finding]:
    """Annotation ids that are missing or no whole number from 0: nothing refers to them, so they get a new one."""
    odd = table.annotations.odd
    return on_annotations(
        table,
        odd_rows(table, "id"),
        "bad-annotation-id",
        "repair",
        lambda row: f"{written_as('id', odd[row, 'id'])} (entry {row} of annotations)",
        lambda row: "it gets an id of its own" if whole_number(odd[row, "id"]) is None else "it becomes a number",
    )


def duplicate_annotation_ids(table: Table) -> list[Finding]:
    """Two annotations with one id."""
    ids = table.annotations.ids
    return on_annotations(
        table,
        repeated(ids),
        "duplicate-annotation-id",
        "repair",
        lambda row: f"the id {ids[row]} was given to an earlier annotation",
        "it gets an id of its own",
    )


def unknown_images(table: Table) -> list[Finding]:
    """Annotations of an image that is not listed."""
    ids = table.annotations.image_ids
    rows = (table.image_rows < 0) & (ids >= 0)
    fix = "list the image, or take the annotation out"
    return on_annotations(table, rows, "unknown-image", "drop", lambda row: f"no image has the id {ids[row]}", fix)


def unknown_categories(table: Table) -> list[Finding]:
    """Annotations of a class that is not listed."""
    ids = table.annotations.category_ids
    rows = (table.category_rows < 0) & (ids >= 0)
    fix = "list the class, or take the annotation out"
    return on_annotations(table, rows, "unknown-category", "drop", lambda row: f"no class has the id {ids[row]}", fix)

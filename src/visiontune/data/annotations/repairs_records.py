"""Repairs of form, ids, references, class names and conventions. Each is a table in, a table and its changes out."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.changes import (
    Change,
    annotations_dropped,
    boxes_changed,
    images_taken,
    on_annotation,
    on_image,
    written,
)
from visiontune.data.annotations.coco import ENTRY
from visiontune.data.annotations.conventions import in_pixels, told
from visiontune.data.annotations.faults_classes import alike_classes
from visiontune.data.annotations.faults_ids import repeated, same_image, twins
from visiontune.data.annotations.faults_structure import crowd_of
from visiontune.data.annotations.table import Table, without
from visiontune.data.annotations.text_ids import TextIds, whole_number

Mended = tuple[Table, list[Change]]


def mend_structure(table: Table) -> Mended:
    """Ids that are texts become numbers; entries that are no objects go, and references that say nothing; crowd flags
    are written anew."""
    changes = [
        Change(unread.code, table.name, None, None, "line", unread.found, None, unread.where) for unread in table.unread
    ]
    table = replace(table, unread=()) if table.unread else table
    for step in (_with_whole_ids, _without_broken_entries, _without_bad_references, _with_known_crowd):
        table, more = step(table)
        changes += more
    return table, changes


def mend_ids(table: Table) -> Mended:
    """Images and classes listed twice become one, annotations of nothing go; others get ids of their own."""
    changes: list[Change] = []
    for step in (_with_images_once, _with_files_once, _with_categories_once, _without_unknown, _with_annotation_ids):
        table, more = step(table)
        changes += more
    return table, changes


def mend_classes(table: Table) -> Mended:
    """Classes whose names differ in case or blanks alone become the first of them."""
    categories, columns = table.categories, table.annotations
    changes: list[Change] = []
    category_ids = columns.category_ids.copy()
    keep = np.ones(len(categories), bool)
    for kept, *others in alike_classes(table):
        new = int(categories.ids[kept])
        alike = len({categories.names[row] for row in (kept, *others)}) > 1
        code = "similar-class-names" if alike else "duplicate-class-name"
        for row in others:
            old = int(categories.ids[row])
            before, after = f"{categories.names[row]} (id {old})", f"{categories.names[kept]} (id {new})"
            changes.append(Change(code, table.name, None, None, "class", before, after))
            of_class = np.flatnonzero(columns.category_ids == old)
            changes += [on_annotation(table, place, code, "category_id", old, new) for place in of_class.tolist()]
            category_ids[of_class] = new
            keep[row] = False
    if not changes:
        return table, []
    table = replace(table, categories=categories.take(np.flatnonzero(keep)))
    return table.with_annotations(category_ids=category_ids), changes


def mend_convention(table: Table) -> Mended:
    """Boxes in another convention are written as COCO has them, where the whole file proves which one it is."""
    found = told(table)
    if found.convention == "pixels" or not found.certain:
        return table, []
    rows = np.flatnonzero(~np.isnan(table.annotations.boxes).any(axis=1)).tolist()
    boxes = in_pixels(table)
    code = "boxes-as-corners" if found.convention == "corners" else "boxes-as-shares"
    return boxes_changed(table, {row: boxes[row] for row in rows}, dict.fromkeys(rows, code))


def _with_whole_ids(table: Table) -> Mended:
    known = TextIds(table)
    images, classes, columns = table.images, table.categories, table.annotations
    changes = [
        on_image(table, row, "bad-image-id", "id", images.odd[row, "id"], number)
        for row, number in known.images.items()
    ]
    changes += [
        Change("bad-category-id", table.name, None, None, "id", classes.odd[row, "id"], number, classes.names[row])
        for row, number in known.categories.items()
    ]
    for name, code, meant in (
        ("image_id", "bad-image-reference", known.image_references),
        ("category_id", "bad-category-reference", known.category_references),
    ):
        changes += [on_annotation(table, row, code, name, columns.odd[row, name], meant[row]) for row in meant]
    if not changes:
        return table, []
    # What is said later of an image names the id that its author knows.
    places = [*images.places] or [None] * len(images)
    for row, number in known.images.items():
        if number != whole_number(images.odd[row, "id"]):
            places[row] = table.image_place(row)
    odd = without(
        without(columns.odd, list(known.image_references), "image_id"), [*known.category_references], "category_id"
    )
    return replace(
        table,
        images=replace(
            images,
            ids=_renumbered(images.ids, known.images),
            odd=without(images.odd, list(known.images), "id"),
            places=tuple(places),
        ),
        categories=replace(
            classes,
            ids=_renumbered(classes.ids, known.categories),
            odd=without(classes.odd, list(known.categories), "id"),
        ),
        annotations=replace(
            columns,
            image_ids=_renumbered(columns.image_ids, known.image_references),
            category_ids=_renumbered(columns.category_ids, known.category_references),
            odd=odd,
        ),
    ), changes


def _renumbered(ids: NDArray[np.int64], numbers: Mapping[int, int]) -> NDArray[np.int64]:
    ids = ids.copy()
    ids[list(numbers)] = list(numbers.values())
    return ids


def _without_broken_entries(table: Table) -> Mended:
    parts = {"image": table.images, "class": table.categories, "annotation": table.annotations}
    changes: list[Change] = []
    for field, part in parts.items():
        broken = {row: value for (row, name), value in part.odd.items() if name == ENTRY}
        if not broken:
            continue
        section = "categories" if field == "class" else f"{field}s"
        changes += [
            Change("not-an-object", table.name, None, None, field, value, None, f"entry {row} of {section}")
            for row, value in broken.items()
        ]
        rows = np.array([row for row in range(len(part)) if row not in broken], np.int64)
        if field == "image":
            table = replace(table, images=table.images.take(rows))
        elif field == "class":
            table = replace(table, categories=table.categories.take(rows))
        else:
            table = replace(table, annotations=table.annotations.take(rows))
    return table, changes


def _without_bad_references(table: Table) -> Mended:
    codes = {"image_id": "bad-image-reference", "category_id": "bad-category-reference"}
    odd = table.annotations.odd
    return annotations_dropped(table, {row: codes[name] for row, name in odd if name in codes})


def _with_known_crowd(table: Table) -> Mended:
    columns = table.annotations
    known: dict[int, int] = {}
    for (row, name), value in columns.odd.items():
        meant = crowd_of(value) if name == "iscrowd" else None
        if meant is not None:
            known[row] = meant
    if not known:
        return table, []
    crowd = columns.crowd.copy()
    crowd[list(known)] = list(known.values())
    changes = [
        on_annotation(table, row, "bad-crowd", "iscrowd", columns.odd[row, "iscrowd"], meant)
        for row, meant in known.items()
    ]
    return table.with_annotations(crowd=crowd, odd=without(columns.odd, list(known), "iscrowd")), changes


def _with_annotation_ids(table: Table) -> Mended:
    columns = table.annotations
    bad = [row for row, name in columns.odd if name == "id"]
    again = repeated(columns.ids).tolist()
    if not bad and not again:
        return table, []
    ids = columns.ids.copy()
    taken = set(ids.tolist())
    said = {row: number for row in bad if (number := whole_number(columns.odd[row, "id"])) is not None}
    free = max(int(ids.max(initial=0)), *said.values(), 0) + 1
    places = [*columns.places] or [None] * len(ids)
    changes = []
    for row in sorted({*bad, *again}):
        code = "bad-annotation-id" if (row, "id") in columns.odd else "duplicate-annotation-id"
        before = written(columns.odd.get((row, "id"), int(ids[row])))
        number = said.get(row, -1)
        if number < 0 or number in taken:
            number, free = free, free + 1
            places[row] = table.annotation_place(row)
        changes.append(on_annotation(table, row, code, "id", before, number))
        ids[row] = number
        taken.add(number)
    return table.with_annotations(ids=ids, odd=without(columns.odd, bad, "id"), places=tuple(places)), changes


def _with_images_once(table: Table) -> Mended:
    first = {number: row for row, number in reversed(list(enumerate(table.images.ids.tolist())))}
    again = [
        row for row in repeated(table.images.ids).tolist() if same_image(table, row, first[int(table.images.ids[row])])
    ]
    return _images_out(table, again, "duplicate-image-id")


def _with_files_once(table: Table) -> Mended:
    images = table.images
    becomes = {
        int(images.ids[row]): int(images.ids[earlier])
        for row, earlier in twins(images.file_names)
        if images.ids[row] != images.ids[earlier]
        and same_image(table, row, earlier)
        and min(images.ids[[row, earlier]]) >= 0
    }
    if not becomes:
        return table, []
    image_ids = table.annotations.image_ids.copy()
    changes = []
    for row in np.flatnonzero(np.isin(image_ids, list(becomes))).tolist():
        before = int(image_ids[row])
        changes.append(on_annotation(table, row, "duplicate-file-name", "image_id", before, becomes[before]))
        image_ids[row] = becomes[before]
    out = [row for row, number in enumerate(images.ids.tolist()) if number in becomes]
    table, more = _images_out(table, out, "duplicate-file-name")
    return table.with_annotations(image_ids=image_ids), changes + more


def _images_out(table: Table, rows: list[int], code: str) -> Mended:
    if not rows:
        return table, []
    changes = [on_image(table, row, code, "image", table.images.file_names[row], None) for row in rows]
    keep = np.ones(len(table.images), bool)
    keep[rows] = False
    return images_taken(table, np.flatnonzero(keep)), changes


def _with_categories_once(table: Table) -> Mended:
    names: dict[int, set[str]] = {}
    for number, name in zip(table.categories.ids.tolist(), table.categories.names, strict=True):
        names.setdefault(number, set()).add(name)
    out = [row for row in repeated(table.categories.ids).tolist() if len(names[int(table.categories.ids[row])]) == 1]
    if not out:
        return table, []
    changes = [
        Change("duplicate-category-id", table.name, None, None, "class", table.categories.names[row], None)
        for row in out
    ]
    keep = np.ones(len(table.categories), bool)
    keep[out] = False
    return replace(table, categories=table.categories.take(np.flatnonzero(keep))), changes


def _without_unknown(table: Table) -> Mended:
    columns = table.annotations
    no_class = np.flatnonzero((table.category_rows < 0) & (columns.category_ids >= 0)).tolist()
    no_image = np.flatnonzero((table.image_rows < 0) & (columns.image_ids >= 0)).tolist()
    return annotations_dropped(
        table, dict.fromkeys(no_class, "unknown-category") | dict.fromkeys(no_image, "unknown-image")
    )

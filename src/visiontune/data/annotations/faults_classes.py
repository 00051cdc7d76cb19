"""Faults of class names."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from visiontune.data.annotations.faults_ids import repeated
from visiontune.data.annotations.findings import Finding, on_file
from visiontune.data.annotations.table import Table

# Detectors that are prompted with text take these as the end of a class's name.
_SEPARATORS = ".?"


def class_faults(table: Table) -> list[Finding]:
    """All faults of class names."""
    return [*alike_class_names(table), *separators_in_class_names(table), *unused_classes(table)]


def name_key(name: str) -> str:
    """A class name without what nobody means by it: case, and blanks but for one between words."""
    return " ".join(name.casefold().split())


def alike_classes(table: Table) -> list[list[int]]:
    """Groups of rows whose names differ in case or blanks at most. Classes that share an id are in none."""
    ids = table.categories.ids
    shared = set(ids[repeated(ids)].tolist())
    alike: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(table.categories.names):
        if name.strip() and ids[row] >= 0 and int(ids[row]) not in shared:
            alike[name_key(name)].append(row)
    return [rows for rows in alike.values() if len(rows) > 1]


def alike_class_names(table: Table) -> Iterator[Finding]:
    """Classes of one name, or of names that differ in case or blanks alone."""
    for rows in alike_classes(table):
        names = [table.categories.names[row] for row in rows]
        code = "duplicate-class-name" if len(set(names)) == 1 else "similar-class-names"
        found = ", ".join(f"{name!r} (id {table.categories.ids[row]})" for name, row in zip(names, rows, strict=True))
        yield on_file(table, code, "repair", found, f"they become one class, {names[0]!r}")


def separators_in_class_names(table: Table) -> Iterator[Finding]:
    """Names with a full stop or a question mark."""
    for name in table.categories.names:
        if set(name) & set(_SEPARATORS):
            found = f"the class name {name!r} has a full stop or a question mark in it"
            fix = "nothing, or a name without; where a model is prompted with names, it gets another spelling"
            yield on_file(table, "separator-in-class-name", "warning", found, fix)


def unused_classes(table: Table) -> Iterator[Finding]:
    """Classes without an annotation, where there are annotations."""
    used = np.bincount(table.category_rows[table.category_rows >= 0], minlength=len(table.categories))
    if not len(table.annotations):
        return
    classes = list(zip(table.categories.ids.tolist(), table.categories.names, strict=True))
    # Of several entries with one id the first has all annotations; alike names are a fault of their own.
    ids = {number for (number, _), count in zip(classes, used.tolist(), strict=True) if count}
    names = {name_key(name) for number, name in classes if number in ids}
    for number, name in classes:
        if number not in ids and name_key(name) not in names:
            found = f"no annotation is of the class {name!r} (id {number})"
            yield on_file(table, "unused-class", "warning", found, "add examples, or take the class out")

"""What all tables share: which files of a source they are, the splits that their names say, ids of their own."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from visiontune.data import faults
from visiontune.data.faults import Fault
from visiontune.data.formats.lines import plain
from visiontune.data.formats.rows import RowError, SourceRow
from visiontune.data.split import SPLIT_NAMES, SPLITS

Columns = Mapping[str, str]
"""The names that a user gave to columns, by what they are for."""


def columns_called(names: Sequence[str], there: Sequence[str]) -> list[str]:
    """The columns that have one of these names, in the order of the names, whatever their case and blanks around.

    A column that is written as the name is goes before others that only read so.
    """
    found: list[str] = []
    for name in names:
        found += [name] if name in there else [column for column in there if plain(column) == plain(name)]
    return list(dict.fromkeys(found))


def naming(**columns: str) -> str:
    """How columns are named by their roles, as it is typed."""
    typed = ",".join(f"{role}={column}" for role, column in columns.items())
    written = ", ".join(f'"{role}": "{column}"' for role, column in columns.items())
    return f"--columns {typed} (in Python: columns={{{written}}})"


def tables_of(source: Path, suffixes: Sequence[str]) -> list[tuple[Path, str]]:
    """The tables of a source and their names relative to it, sorted: the file itself, or those in the folder."""
    if source.is_file():
        return [(source, source.name)] if source.suffix.lower() in suffixes else []
    found = []
    for path in source.rglob("*"):
        parts = path.relative_to(source).parts
        hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            found.append((path, "/".join(parts)))
    return sorted(found, key=lambda table: table[1])


def tables_inside(source: Path, suffixes: Sequence[str], found: list[Fault]) -> Iterator[tuple[Path, str, str | None]]:
    """The tables of a source that lie in it, their names, and in a folder the splits that these say; links that lead
    elsewhere go to `found`."""
    root = source.resolve()
    for path, name in tables_of(source, suffixes):
        if source.is_dir() and not path.resolve().is_relative_to(root):
            found.append(faults.outside_folder(name, name))
        else:
            yield path, name, split_of(name) if source.is_dir() else None


def split_of(name: str) -> str | None:
    """The split that a table's path says: a part of the file's name (train-00000-of-00004.parquet,
    _annotations.valid.jsonl), or else a folder that it lies in, the innermost first."""
    *folders, file = name.split("/")
    stem = file.partition(".")[0]
    for part in (stem, stem.partition("-")[0], stem.partition("_")[0], *file.split(".")[1:-1], *reversed(folders)):
        if part.casefold() in SPLIT_NAMES:
            return SPLIT_NAMES[part.casefold()]
    return None


def split_written(value: Any) -> str | None:
    """The split that a row says itself, None where it says nothing; RowError for another word."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or value.strip().casefold() not in SPLIT_NAMES:
        raise RowError("broken-line", f"{value!r} is no split ({', '.join(SPLITS)})")
    return SPLIT_NAMES[value.strip().casefold()]


def with_own_ids(rows: Sequence[tuple[str, SourceRow]]) -> Iterator[SourceRow]:
    """Rows with the names of their files: ids that are used in several files (each split counts from 0) get the file's
    name in front."""
    files: dict[str, set[str]] = defaultdict(set)
    for name, row in rows:
        files[row.id].add(name)
    for name, row in rows:
        yield replace(row, id=f"{name}:{row.id}") if len(files[row.id]) > 1 else row

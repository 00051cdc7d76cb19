"""Tables of long texts with a text to be written about each: JSON Lines, CSV and Parquet, one file or a folder of them.

The texts are taken as they are, character for character. Which column holds what follows from its name, or is said with
`columns={"document": "body", "answer": "tldr"}`.
"""

import csv
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data import faults
from visiontune.data.faults import Fault
from visiontune.data.formats.rows import Listing, SourceRow
from visiontune.data.split import SPLIT_NAMES, SPLITS
from visiontune.errors import DataError

NAME = "text_table"
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")

# What a column is for, and the names by which it is known. The names after the bar hold something else in many tables:
# they count only where no other is there.
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "document": (("text", "article", "document", "content", "input"), ("source",)),
    "answer": (("summary", "abstract", "highlights", "target", "output", "answer"), ()),
    "prompt": (("question", "instruction", "prompt"), ()),
    "id": (("id",), ()),
    "split": (("split",), ()),
}
LAYOUTS = (
    "give a .jsonl, .csv or .parquet file (or a folder of them) with a column for the text "
    f"({', '.join(chain(*ROLES['document']))}) and one for what is to be written "
    f"({', '.join(chain(*ROLES['answer']))}), "
    'or name them: columns={"document": "body", "answer": "tldr"}'
)
LOOKED_AT = 100
BATCH_ROWS = 256

Columns = Mapping[str, str]
# The number of the line or row, and its values, or what is wrong with it.
Line = tuple[int, dict[str, Any] | str]


def detect(source: Path) -> bool:
    """Whether this is a table of a known kind, or a folder with one in it."""
    if source.is_file():
        return source.suffix.lower() in SUFFIXES
    return any(True for _ in _tables(source))


def read(source: Path, columns: Columns | None = None) -> Listing:
    """List the rows of a file or of a folder of files; DataError where a table has no column for text or target.

    In a folder, a file or a folder called train, validation or test (train-00000-of-00004.parquet) gives its rows their
    split. Rows without an id are called by file and line.
    """
    _check_names(columns or {})
    real_source = source.resolve()
    if source.is_file():
        tables = [(source, source.name)]
    else:
        tables = sorted(
            ((path, path.relative_to(source).as_posix()) for path in _tables(source)), key=lambda table: table[1]
        )
    found: list[Fault] = []
    rows: list[tuple[str, SourceRow]] = []
    for path, name in tables:
        if source.is_dir() and not path.resolve().is_relative_to(real_source):
            found.append(faults.outside_folder(name, name))
            continue
        split = _split_of(name) if source.is_dir() else None
        rows += [(name, row) for row in _Table(path, name, columns or {}, split, found).rows()]
    return Listing(NAME, sorted(_with_own_ids(rows), key=lambda row: row.id), found, seen="documents")


def _tables(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def _check_names(columns: Columns) -> None:
    if unknown := [role for role in columns if role not in ROLES]:
        raise DataError(
            f"there is nothing called {', '.join(map(repr, unknown))} to name a column for",
            where="columns",
            fix=f"use {', '.join(ROLES)}",
        )


def _split_of(name: str) -> str | None:
    """The split that a path says: the first part of the file's name, or else the first folder."""
    stem = name.rpartition("/")[2].partition(".")[0]
    for part in (stem, stem.partition("-")[0], stem.partition("_")[0], name.partition("/")[0] if "/" in name else ""):
        if part.casefold() in SPLIT_NAMES:
            return SPLIT_NAMES[part.casefold()]
    return None


def _with_own_ids(rows: Sequence[tuple[str, SourceRow]]) -> Iterator[SourceRow]:
    """Ids that are used in several files (each split counts from 0) get the file's name in front."""
    files: dict[str, set[str]] = defaultdict(set)
    for name, row in rows:
        files[row.id].add(name)
    for name, row in rows:
        yield replace(row, id=f"{name}:{row.id}") if len(files[row.id]) > 1 else row


def _first(lines: Iterator[Line]) -> Iterator[Line]:
    """The first lines, until there are enough good ones among them to know the columns."""
    good = 0
    while good < LOOKED_AT and (line := next(lines, None)) is not None:
        good += isinstance(line[1], dict)
        yield line


class _RowError(Exception):
    """Why a row cannot be taken: the code of a fault and what was found."""

    def __init__(self, code: str, found: str) -> None:
        self.code = code
        self.found = found


@dataclass
class _Table:
    """One file's rows. What is wrong goes to `faults`."""

    path: Path
    name: str
    named: Columns
    split: str | None
    faults: list[Fault]

    def rows(self) -> Iterator[SourceRow]:
        suffix = self.path.suffix.lower()
        with _readable(self.path):
            if suffix == ".parquet":
                file = pq.ParquetFile(self.path)
                chosen = self._chosen(file.schema_arrow.names)
                lines: Iterable[Line] = _parquet(file, list(chosen.values()))
                if file.metadata.num_rows == 0:
                    self.faults.append(faults.empty_table(self.name))
            else:
                lines = _csv(self.path) if suffix == ".csv" else _jsonl(self.path)
                first = list(_first(lines))
                there = dict.fromkeys(key for _, values in first if isinstance(values, dict) for key in values)
                chosen = self._chosen(list(there)) if there else {}
                if not first:
                    self.faults.append(faults.empty_table(self.name))
                lines = chain(first, lines)
            for number, values in lines:
                try:
                    yield self._row(number, values, chosen)
                except _RowError as error:
                    self.faults.append(faults.left_out(error.code, f"{self.name}, line {number}", error.found))

    def _chosen(self, there: Sequence[str]) -> dict[str, str]:
        """The column of each role that has one; unknown columns are a fault, a missing or a second one an error."""
        chosen: dict[str, str] = {}
        for role, (names, last_resort) in ROLES.items():
            if role in self.named:
                candidates = [column for column in there if column == self.named[role]]
            else:
                free = [column for column in there if column not in self.named.values()]
                candidates = [name for name in names if name in free] or [name for name in last_resort if name in free]
            if len(candidates) > 1:
                raise DataError(
                    f"several columns could be the {role}: {', '.join(candidates)}",
                    where=str(self.path),
                    fix=f'say which one it is: columns={{"{role}": "{candidates[0]}"}}',
                )
            if candidates:
                chosen[role] = candidates[0]
            elif role in self.named or role in ("document", "answer"):
                wanted = f"called {self.named[role]!r}" if role in self.named else f"for the {role}"
                shown = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
                raise DataError(
                    f"there is no column {wanted}; the columns are {shown}", where=str(self.path), fix=LAYOUTS
                )
        if unread := [column for column in there if column not in chosen.values()]:
            self.faults += faults.unknown_columns(self.name, unread, list(chosen.values()))
        return chosen

    def _row(self, number: int, values: dict[str, Any] | str, chosen: Mapping[str, str]) -> SourceRow:
        if isinstance(values, str):
            raise _RowError("broken-line", values)
        if not chosen:
            raise _RowError("broken-line", "the object is empty")
        document = _text(values, chosen["document"], "empty-document")
        answer = _text(values, chosen["answer"], "empty-answer")
        prompt = None
        if (column := chosen.get("prompt")) and values.get(column) not in (None, "", []):
            prompt = _text(values, column, "broken-line")
        row_id = values.get(chosen["id"]) if "id" in chosen else None
        if isinstance(row_id, bool) or not isinstance(row_id, str | int | None):
            raise _RowError("broken-line", f"{chosen['id']} is {row_id!r}, not a text or a whole number")
        split = self.split
        if (column := chosen.get("split")) and (written := values.get(column)) not in (None, ""):
            if not isinstance(written, str) or written.strip().casefold() not in SPLIT_NAMES:
                raise _RowError("broken-line", f"{written!r} is no split ({', '.join(SPLITS)})")
            split = SPLIT_NAMES[written.strip().casefold()]
        named = f"{self.name}:{number}" if row_id in (None, "") else str(row_id)
        return SourceRow(named, (), (), prompt, answer, False, split, document)


def _text(values: Mapping[str, Any], column: str, code: str) -> str:
    """A column's text as it is; a list of texts is joined by a blank line."""
    value = values.get(column)
    if value is None:
        raise _RowError(code, f"there is no {column}")
    if isinstance(value, list):
        if odd := [part for part in value if not isinstance(part, str)]:
            raise _RowError("not-a-text", f"{column} is a list with {_kind(odd[0])} in it")
        value = "\n\n".join(value)
    if not isinstance(value, str):
        raise _RowError("not-a-text", f"{column} is {_kind(value)}, not a text")
    if not value.strip():
        raise _RowError(code, f"{column} is {'blank' if value else 'empty'}")
    return value


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
        list: "a list",
        bytes: "bytes",
    }
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error
    except pa.ArrowInvalid as error:
        raise DataError(
            f"this is no whole Parquet file: {error}", where=str(path), fix="copy or download it again"
        ) from error


def _parquet(file: pq.ParquetFile, columns: list[str]) -> Iterator[Line]:
    number = 0
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False):
        try:
            rows: list[dict[str, Any]] = batch.to_pylist()
        except UnicodeDecodeError:  # text that a careless writer never checked: find the rows
            for i in range(batch.num_rows):
                number += 1
                try:
                    yield number, batch.slice(i, 1).to_pylist()[0]
                except UnicodeDecodeError:
                    yield number, "the text is not UTF-8"
            continue
        for row in rows:
            number += 1
            yield number, row


def _jsonl(path: Path) -> Iterator[Line]:
    """The number and the object of each line, or what is wrong with it; empty lines are nothing."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if b"\\ud" in line or b"\\uD" in line:  # an escape may hold half a character
                    json.dumps(value, ensure_ascii=False).encode()
            except UnicodeError:
                yield number, "the text is not UTF-8"
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON: {error}"
            else:
                yield number, value if isinstance(value, dict) else "not a JSON object"


def _csv(path: Path) -> Iterator[Line]:
    """The first line and the columns of each row, or what is wrong with it; DataError where a quote is never closed."""
    csv.field_size_limit(sys.maxsize)  # or else a cell may have no more than 131,072 characters
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = _cells(reader, path, 1)
        if header is None:
            return
        found = header if isinstance(header, str) else None
        if found is None and (twice := [name for name, count in Counter(header).items() if count > 1]):
            found = f"several columns are called {', '.join(map(repr, twice))}"
        if isinstance(header, str) or found is not None:
            raise DataError(found or "", where=f"{path}, line 1", fix="write a first line such as: id,text,summary")
        while True:
            number = reader.line_num + 1
            cells = _cells(reader, path, number)
            if cells is None:
                return
            if isinstance(cells, str):
                yield number, cells
            elif not _is_utf8(cells):
                yield number, "the text is not UTF-8"
            elif cells and len(cells) != len(header):
                yield number, f"{len(cells)} cells instead of {len(header)}"
            elif cells:
                yield number, dict(zip(header, cells, strict=True))


def _cells(reader: Any, path: Path, number: int) -> list[str] | str | None:
    """The next row, None at the end, or what is wrong with it."""
    try:
        return next(reader, None)
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise DataError(
                "a quote opens here and is never closed: nothing after it can be read",
                where=f"{path}, line {number}",
                fix="close the quote, and write a quote inside a cell twice",
            ) from error
        return f"not CSV: {error}"


def _is_utf8(cells: Sequence[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True

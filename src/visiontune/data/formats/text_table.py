"""Tables of long texts with a text to be written about each: JSON Lines, CSV and Parquet, one file or a folder of them.

The texts are taken as they are, character for character. Which column holds what follows from its name, or is said with
`columns={"document": "body", "answer": "tldr"}`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from visiontune.data import faults
from visiontune.data.faults import Fault
from visiontune.data.formats import image_text
from visiontune.data.formats.lines import Line, columns_of, kind_of, parquet, readable, rows_of
from visiontune.data.formats.rows import Listing, RowError, SourceRow
from visiontune.data.formats.tables import (
    Columns,
    columns_called,
    naming,
    split_written,
    tables_inside,
    tables_of,
    with_own_ids,
)
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
    f"or name them: {naming(document='body', answer='tldr')}"
)
_OF_IMAGES = f"for images with texts, {image_text.FIX}"


def detect(source: Path) -> bool:
    """Whether this is a table of a known kind, or a folder with one in it."""
    return bool(tables_of(source, SUFFIXES))


def read(source: Path, columns: Columns | None = None) -> Listing:
    """List the rows of a file or of a folder of files; DataError where a table has no column for text or target.

    In a folder, a file or a folder called train, validation or test (train-00000-of-00004.parquet) gives its rows their
    split. Rows without an id are called by file and line.
    """
    _check_names(columns or {})
    found: list[Fault] = []
    rows: list[tuple[str, SourceRow]] = []
    for path, name, split in tables_inside(source, SUFFIXES, found):
        rows += [(name, row) for row in _Table(path, name, columns or {}, split, found).rows()]
    return Listing(NAME, sorted(with_own_ids(rows), key=lambda row: row.id), found, seen="documents")


def _check_names(columns: Columns) -> None:
    if unknown := [role for role in columns if role not in ROLES]:
        raise DataError(
            f"there is nothing called {', '.join(map(repr, unknown))} to name a column for",
            where="columns",
            fix=f"of long texts: {', '.join(ROLES)}; of images with texts: {', '.join(image_text.ROLES)}",
        )


@dataclass
class _Table:
    """One file's rows. What is wrong goes to `faults`."""

    path: Path
    name: str
    named: Columns
    split: str | None
    faults: list[Fault]

    def rows(self) -> Iterator[SourceRow]:
        with readable(self.path):
            if self.path.suffix.lower() == ".parquet":
                file = pq.ParquetFile(self.path)
                chosen = self._chosen(file.schema_arrow.names)
                lines: Iterable[Line] = parquet(file, list(chosen.values()))
                if file.metadata.num_rows == 0:
                    self.faults.append(faults.empty_table(self.name))
            else:
                there, lines = columns_of(self.path), rows_of(self.path)
                chosen = self._chosen(there) if there else {}
                if there is None:
                    self.faults.append(faults.empty_table(self.name))
            for number, values in lines:
                try:
                    yield self._row(number, values, chosen)
                except RowError as error:
                    self.faults.append(faults.row_left_out(error.code, self.name, number, error.found))

    def _chosen(self, there: Sequence[str]) -> dict[str, str]:
        """The column of each role that has one; unknown columns are a fault, a missing or a second one an error."""
        chosen: dict[str, str] = {}
        for role, (names, last_resort) in ROLES.items():
            if role in self.named:
                candidates = columns_called([self.named[role]], there)
            else:
                taken = columns_called(list(self.named.values()), there)
                free = [column for column in there if column not in taken]
                candidates = columns_called(names, free) or columns_called(last_resort, free)
            if len(candidates) > 1:
                raise DataError(
                    f"several columns could be the {role}: {', '.join(candidates)}",
                    where=str(self.path),
                    fix=f"say which one it is: {naming(**{role: candidates[0]})}",
                )
            if candidates:
                chosen[role] = candidates[0]
            elif role in self.named or role in ("document", "answer"):
                wanted = f"called {self.named[role]!r}" if role in self.named else f"for the {role}"
                shown = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
                # Whoever meant images with questions sees here what their columns should be called.
                fix = LAYOUTS if "document" in self.named else f"for long texts, {LAYOUTS}; {_OF_IMAGES}"
                raise DataError(f"there is no column {wanted}; the columns are {shown}", where=str(self.path), fix=fix)
        if unread := [column for column in there if column not in chosen.values()]:
            self.faults += faults.unknown_columns(self.name, unread, list(chosen.values()))
        return chosen

    def _row(self, number: int, values: dict[str, Any] | str, chosen: Mapping[str, str]) -> SourceRow:
        if isinstance(values, str):
            raise RowError("broken-line", values)
        if not chosen:
            raise RowError("broken-line", "the object is empty")
        document = _text(values, chosen["document"], "empty-document")
        answer = _text(values, chosen["answer"], "empty-answer")
        prompt, column = None, chosen.get("prompt")
        written = None if column is None else values.get(column)
        blank = written in (None, []) or (isinstance(written, str) and not written.strip())
        if column is not None and not blank:
            prompt = _text(values, column, "broken-line")
        row_id = values.get(chosen["id"]) if "id" in chosen else None
        if isinstance(row_id, bool) or not isinstance(row_id, str | int | None):
            raise RowError("broken-line", f"{chosen['id']} is {row_id!r}, not a text or a whole number")
        split = split_written(values.get(chosen["split"])) if "split" in chosen else None
        named = f"{self.name}:{number}" if row_id in (None, "") else str(row_id)
        return SourceRow(named, (), (), prompt, answer, False, split or self.split, document)


def _text(values: Mapping[str, Any], column: str, code: str) -> str:
    """A column's text as it is; a list of texts is joined by a blank line."""
    value = values.get(column)
    if value is None:
        raise RowError(code, f"there is no {column}")
    if isinstance(value, list):
        if odd := [part for part in value if not isinstance(part, str)]:
            raise RowError("not-a-text", f"{column} is a list with {kind_of(odd[0])} in it")
        value = "\n\n".join(value)
    if not isinstance(value, str):
        raise RowError("not-a-text", f"{column} is {kind_of(value)}, not a text")
    if not value.strip():
        raise RowError(code, f"{column} is {'blank' if value else 'empty'}")
    return value

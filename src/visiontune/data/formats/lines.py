"""The rows of a table as they stand in a file: JSON Lines, a JSON array, CSV, Parquet; of one at a time, with numbers.

What is wrong with a row comes in its place, as a text; what is wrong with the whole file is a DataError.
"""

import codecs
import csv
import json
import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.errors import DataError
from visiontune.words import counted

BATCH_ROWS = 256

# The number of the line or row, from 1, and its values, or what is wrong with it.
Line = tuple[int, dict[str, Any] | str]


def rows_of(path: Path) -> Iterator[Line]:
    """The rows of a table that is no Parquet file, by its suffix: CSV, a JSON array, or else JSON Lines."""
    suffix = path.suffix.lower()
    return csv_rows(path) if suffix == ".csv" else json_array(path) if suffix == ".json" else jsonl(path)


def columns_of(path: Path) -> list[str] | None:
    """The columns of the rows of `rows_of`, in the order in which they first stand; None where there is no row.

    Any row of JSON may bring a column, so all are read; the rows of a CSV file all have the same.
    """
    there: dict[str, None] = {}
    is_empty = True
    for _, values in rows_of(path):
        is_empty = False
        if isinstance(values, dict):
            there.update(dict.fromkeys(values))
            if path.suffix.lower() == ".csv":
                break
    return None if is_empty else list(there)


def kind_of(value: Any) -> str:
    """What a value is, for people."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
        list: "a list",
        bytes: "bytes",
        str: "a text",
    }
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say a file that cannot be read as DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error
    except pa.ArrowInvalid as error:
        raise DataError(
            f"this is no whole Parquet file: {error}", where=str(path), fix="copy or download it again"
        ) from error


def plain(column: str) -> str:
    """A column's name as it is compared: spreadsheets write capitals, and blanks behind the comma."""
    return column.strip().casefold()


def parquet(file: pq.ParquetFile, columns: list[str]) -> Iterator[Line]:
    """The rows of a Parquet file, some of its columns."""
    number = 0
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False):
        try:
            rows: list[dict[str, Any]] = batch.to_pylist()
        except UnicodeDecodeError:  # text that a careless writer never checked: find the rows
            for i in range(batch.num_rows):
                number += 1
                try:
                    (row,) = batch.slice(i, 1).to_pylist()
                    yield number, _values(row)
                except UnicodeDecodeError:
                    yield number, "the text is not UTF-8"
            continue
        for row in rows:
            number += 1
            yield number, _values(row)


def _values(row: dict[str, Any]) -> dict[str, Any]:
    return {column: _without_nan(value) for column, value in row.items()}


def _without_nan(value: Any) -> Any:
    """A cell, None where it is NaN: so data frames write down that there is no value."""
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _json_number(name: str) -> float | None:
    """What JSON lacks and Python reads: NaN is no value, an infinity is one."""
    return None if name == "NaN" else float(name)


def _refuse_other_encoding(path: Path) -> None:
    """Raise DataError for a file that was saved in another encoding: it would be one fault for each line with an
    accent. Where some line has such letters in UTF-8, the others are broken, and told one by one."""
    broken = 0
    with path.open("rb") as file:
        is_wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        file.seek(0)
        for line in () if is_wide else file:
            if line.isascii():
                continue
            try:
                line.decode()
            except UnicodeDecodeError:
                broken += 1
            else:
                return
    if is_wide or broken > 1:
        found = (
            "UTF-16" if is_wide else f"{counted(broken, 'line')} are not, as where Latin-1 or Windows-1252 was saved"
        )
        encoding, new = ("UTF-16" if is_wide else "WINDOWS-1252"), f"{path.stem}-utf8{path.suffix}"
        typed = shlex.join(["iconv", "-f", encoding, "-t", "UTF-8", path.name])
        raise DataError(
            f"the file is not UTF-8: {found}",
            where=str(path),
            fix=f"save it as UTF-8 (of a spreadsheet as `CSV UTF-8`), or: {typed} > {shlex.quote(new)}",
        )


def jsonl(path: Path) -> Iterator[Line]:
    """The number and the object of each line, or what is wrong with it; empty lines are nothing.

    DataError where the whole file is in another encoding than UTF-8.
    """
    _refuse_other_encoding(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_json_number)
                if _has_escaped_halves(line):
                    _refuse_halves(value)
            except UnicodeError:
                yield number, "the text is not UTF-8"
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON: {error}"
            else:
                yield number, value if isinstance(value, dict) else "not a JSON object"


def _has_escaped_halves(text: bytes) -> bool:
    """Whether JSON has escapes of surrogates: two make a character, one alone is none."""
    return b"\\ud" in text or b"\\uD" in text


def _refuse_halves(value: Any) -> None:
    """Raise UnicodeEncodeError where a value of JSON holds half a character."""
    json.dumps(value, ensure_ascii=False).encode()


def json_array(path: Path) -> Iterator[Line]:
    """The entries of a JSON array, or what is wrong with each; DataError where the file holds none."""
    text = path.read_bytes()
    values, has_halves = _parsed(text, path), _has_escaped_halves(text)
    if not isinstance(values, list):
        raise DataError(f"the file holds {kind_of(values)}, not a list of rows", where=str(path), fix="write a list")
    for number, value in enumerate(values, start=1):
        if has_halves:
            try:
                _refuse_halves(value)
            except UnicodeError:
                yield number, "the text is not UTF-8"
                continue
        yield number, value if isinstance(value, dict) else "not a JSON object"


def read_json(path: Path) -> Any:
    """What a JSON file holds, None where it says NaN; DataError, with line and column, where it is broken."""
    return _parsed(path.read_bytes(), path)


def _parsed(text: bytes, path: Path) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=_json_number)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"this is not JSON: {error}", where=str(path), fix="mend the file, or write one object a line (.jsonl)"
        ) from error


def csv_rows(path: Path, needed: str | None = None) -> Iterator[Line]:
    """The first line and the columns of each row, or what is wrong with it; DataError where a quote is never closed, or
    the column `needed` is not there. Commas part the cells, or what `_separator` finds. Columns without a name are one,
    called ""; at the end of the lines they must be empty, for a value there is often a comma that nobody quoted.

    DataError too where the whole file is in another encoding than UTF-8.
    """
    _refuse_other_encoding(path)
    csv.field_size_limit(sys.maxsize)  # or else a cell may have no more than 131,072 characters
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        separator = _separator(file.readline())
        file.seek(0)
        reader = csv.reader(file, delimiter=separator, strict=True)
        header = _cells(reader, path, 1)
        if needed is not None and needed not in map(plain, header or []):
            raise DataError(
                f"there is no column {needed}; the first line reads {', '.join(header or [])!r}",
                where=str(path),
                fix=f"write a first line such as: {needed},label",
            )
        if header is None:
            return
        found = header if isinstance(header, str) else None
        if found is None and (twice := [name for name, count in Counter(header).items() if name and count > 1]):
            found = f"several columns are called {', '.join(map(repr, twice))}"
        if isinstance(header, str) or found is not None:
            raise DataError(found or "", where=f"{path}, line 1", fix="write a first line such as: id,text,summary")
        named = max((i for i, name in enumerate(header, start=1) if name.strip()), default=len(header))
        header = [name.strip() and name for name in header]
        while True:
            number = reader.line_num + 1
            cells = _cells(reader, path, number)
            if cells is None:
                return
            if isinstance(cells, str):
                yield number, cells
            elif not _is_utf8(cells):
                yield number, "the text is not UTF-8"
            elif cells and not named <= len(cells) <= len(header):
                yield number, f"{counted(len(cells), 'cell')} instead of {len(header)}"
            elif any(cell.strip() for cell in cells[named:]):
                yield number, "a value stands behind the last column that has a name"
            elif cells:
                yield number, dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True))


def _separator(header: str) -> str:
    """What parts the cells: a comma, or where the first line holds none the semicolon or the tab, if only one is there.

    Spreadsheets write semicolons where a comma stands in numbers.
    """
    found = [mark for mark in (";", "\t") if mark in header]
    return found[0] if "," not in header and len(found) == 1 else ","


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

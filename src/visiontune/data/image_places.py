"""Where an image lies: in a file of its own, or inside a row of a table."""

import base64
import binascii
import json
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.errors import DataError

_NOT_THERE = "a row of the table does not hold this image any more"
_OPEN_GROUPS = 2


@dataclass(frozen=True, slots=True)
class Inside:
    """An image inside a table. `row` counts from 0 in a Parquet file; in JSON Lines it is the number of the line, from
    1. `keys` lead from the row's values to the image: names of columns and numbers of entries."""

    table: Path
    row: int
    keys: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """An image among others in one file: `size` bytes from `start` on."""

    file: Path
    start: int
    size: int


ImagePlace = Path | Inside | Packed


def file_of(place: ImagePlace) -> Path:
    """The file that holds the image."""
    if isinstance(place, Path):
        return place
    return place.table if isinstance(place, Inside) else place.file


def reading_order(place: ImagePlace) -> tuple[str, int]:
    """A key: in its order every table is read from its beginning to its end, once."""
    return str(file_of(place)), place.row if isinstance(place, Inside) else 0


def read_image(place: ImagePlace) -> bytes:
    """The encoded image. Raises OSError where the file cannot be read, DataError where no image stands there."""
    if isinstance(place, Path):
        return place.read_bytes()
    if isinstance(place, Packed):
        with place.file.open("rb") as file:
            file.seek(place.start)
            return file.read(place.size)
    status = place.table.stat()
    if place.table.suffix.lower() == ".parquet":
        value = _parquet_value(place, status.st_mtime_ns)
    else:
        value = _line_value(place, status.st_mtime_ns)
    if isinstance(value, dict):
        if value.get("bytes") is None:
            raise DataError(
                "the table holds the path of an image and not its bytes",
                where=str(place.table),
                fix="write the table with the images inside, or a column with paths beside the image files",
            )
        value = value["bytes"]
    if isinstance(value, str):
        return from_base64(value)
    if not isinstance(value, bytes):
        raise DataError(_NOT_THERE, where=f"{place.table}, row {place.row}", fix="run the same command again")
    return value


def from_base64(text: str) -> bytes:
    """The bytes of a data URI (data:image/png;base64,...) or of plain base64; DataError where it is neither."""
    head, comma, body = text.partition(",") if text.startswith("data:") else ("", "", text)
    if head and (not comma or not head.endswith(";base64")):
        raise DataError("a data URI that is not base64", fix="write data:image/png;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"the image's base64 is broken: {error}", fix="encode the image again") from error


def _parquet_value(place: Inside, changed: int) -> Any:
    column, *rest = place.keys
    starts = _group_starts(place.table, changed)
    if not 0 <= place.row < starts[-1]:
        raise DataError(_NOT_THERE, where=f"{place.table}, row {place.row}", fix="run the same command again")
    group = bisect_right(starts, place.row) - 1
    value: Any = _group(place.table, changed, group, str(column))[place.row - starts[group]].as_py()
    return _follow(value, rest, place)


@lru_cache(maxsize=16)
def _group_starts(table: Path, changed: int) -> tuple[int, ...]:
    metadata = pq.read_metadata(table)
    return (0, *accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))


@lru_cache(maxsize=_OPEN_GROUPS)
def _group(table: Path, changed: int, group: int, column: str) -> pa.ChunkedArray:
    with pq.ParquetFile(table) as file:
        return file.read_row_group(group, columns=[column], use_threads=False).column(column)


def _line_value(place: Inside, changed: int) -> Any:
    starts = _line_starts(place.table, changed)
    with place.table.open("rb") as file:
        file.seek(starts[place.row - 1])
        line = file.readline()
    return _follow(json.loads(line.decode("utf-8-sig")), place.keys, place)


@lru_cache(maxsize=4)
def _line_starts(table: Path, changed: int) -> tuple[int, ...]:
    """Where each line begins, in bytes."""
    with table.open("rb") as file:
        return (0, *accumulate(map(len, file)))


def _follow(value: Any, keys: Any, place: Inside) -> Any:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            where = f"{place.table}, row {place.row}"
            raise DataError(_NOT_THERE, where=where, fix="run the same command again") from error
    return value


def size_and_time(place: ImagePlace) -> tuple[int, int]:
    """The bytes of the file that holds the image and its time of change in ns; -1 and -1 where it is not there."""
    try:
        status = file_of(place).stat()
    except OSError:  # whoever reads it says what is wrong
        return -1, -1
    return status.st_size, status.st_mtime_ns

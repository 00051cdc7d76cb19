"""What the images of all rows are, measured once, in parallel: readable or not, sizes, hashes, thumbnails.

A chunk of rows is a pure function of its files. With a store, each chunk's facts are kept there under a name made of
the files' names, sizes and times, so that a killed preparation goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data.formats.rows import SourceRow
from visiontune.data.images import decode_with_facts
from visiontune.data.near_duplicates import perceptual_hash
from visiontune.data.workers import Engine, parallel
from visiontune.errors import DataError
from visiontune.files import written_whole
from visiontune.machine import cores
from visiontune.progress import progress

SCAN_VERSION = 1
CHUNK_ROWS = 256
BYTES_FOR_WORKERS = 64 * 2**20
MAX_FILE_BYTES = 2**30

# One entry a row; the lists have one entry an image, and are empty where `error` says why the row cannot be read.
SCHEMA = pa.schema(
    [
        ("error", pa.string()),
        ("path", pa.string()),
        ("width", pa.list_(pa.int32())),
        ("height", pa.list_(pa.int32())),
        ("bytes", pa.list_(pa.int64())),
        ("format", pa.list_(pa.string())),
        ("sha256", pa.list_(pa.string())),
        ("hash", pa.list_(pa.uint64())),
        ("thumbnail", pa.list_(pa.binary(256))),
    ]
)

# (name, bytes, time of change in ns) of each file of a row.
Mark = tuple[tuple[str, int, int], ...]
Files = list[tuple[tuple[Path, ...], tuple[str, ...]]]


def fingerprints(rows: Sequence[SourceRow]) -> list[Mark]:
    """The names, sizes in bytes and times of change of each row's files; a file that is not there has size -1."""
    return [
        tuple((name, *_size_and_time(path)) for path, name in zip(row.paths, row.names, strict=True)) for row in rows
    ]


def workers_for(marks: Sequence[Mark]) -> int:
    """How many processes to use: all cores, or one where the work is done sooner than they have started."""
    return cores() if sum(size for mark in marks for _, size, _ in mark) >= BYTES_FOR_WORKERS else 1


def scan(
    rows: Sequence[SourceRow],
    marks: Sequence[Mark],
    workers: int,
    store: Path | None = None,
    engine: Engine = "processes",
) -> pa.Table:
    """The facts of all rows, in their order, as a table of SCHEMA. `marks` are the rows' fingerprints."""
    tasks: list[tuple[Files, Path | None]] = []
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        text = json.dumps([SCAN_VERSION, *marks[start : start + CHUNK_ROWS]])
        name = f"scan-{start // CHUNK_ROWS:05d}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.parquet"
        tasks.append(([(row.paths, row.names) for row in chunk], store / name if store else None))
    tables = []
    with progress("looking at the images", len(rows), "rows") as advance:
        for table in parallel(_scan_chunk, tasks, workers, engine):
            tables.append(table)
            advance(table.num_rows)
    return pa.concat_tables(tables).combine_chunks() if tables else SCHEMA.empty_table()


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # the scan says what is wrong with it
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _scan_chunk(task: tuple[Files, Path | None]) -> pa.Table:
    files, kept = task
    if kept is not None and kept.is_file():
        return pq.read_table(kept, use_threads=False)
    table = pa.Table.from_pylist([_facts(paths, names) for paths, names in files], schema=SCHEMA)
    if kept is not None:
        with written_whole(kept) as aside:
            pq.write_table(table, aside)
    return table


def _facts(paths: tuple[Path, ...], names: tuple[str, ...]) -> dict[str, object]:
    facts: dict[str, list[object]] = {field.name: [] for field in SCHEMA if field.name not in ("error", "path")}
    for path, name in zip(paths, names, strict=True):
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                return {"error": f"the file is larger than {MAX_FILE_BYTES:,} bytes", "path": name}
            seen = look(path.read_bytes())
        except OSError as error:
            return {"error": f"the file cannot be read: {error.strerror}", "path": name}
        except DataError as error:
            return {"error": error.found, "path": name}
        for column, value in seen.items():
            facts[column].append(value)
    return dict(facts)


def look(data: bytes) -> dict[str, object]:
    """What is kept of one image, by the columns of SCHEMA; DataError where it cannot be read."""
    header, image = decode_with_facts(data)
    hash_, thumbnail = perceptual_hash(image)
    return {
        "width": header.width,
        "height": header.height,
        "bytes": len(data),
        "format": header.format,
        "sha256": hashlib.sha256(data).hexdigest(),
        "hash": int(hash_),
        "thumbnail": np.ascontiguousarray(thumbnail).tobytes(),
    }

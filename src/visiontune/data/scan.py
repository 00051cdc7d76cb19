"""What the images of all rows are, measured once, in parallel: readable or not, sizes, hashes, thumbnails.

A chunk of rows is a pure function of its files. With a store, each chunk's facts are kept there under a name made of
the files' names, sizes and times, so that a killed preparation goes on where it stopped; and so are images that lie
inside tables, one behind the other, because a table is read once, from its beginning to its end.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data.formats.rows import SourceRow
from visiontune.data.image_places import ImagePlace, Inside, read_image, reading_order, size_and_time
from visiontune.data.images import ImageError, decode_with_facts
from visiontune.data.near_duplicates import perceptual_hash
from visiontune.data.workers import Engine, parallel
from visiontune.errors import DataError
from visiontune.files import written_whole
from visiontune.machine import cores
from visiontune.progress import progress

SCAN_VERSION = 4
CHUNK_ROWS = 256
BYTES_FOR_WORKERS = 64 * 2**20
MAX_FILE_BYTES = 2**30

# One entry a row; the lists have one entry an image, and are empty where `error` says why the row cannot be read.
# `lowest` and `highest` are the ends of the grey values of an image of more than 8 bits, else None. `pack` is the file
# in the store that holds the images of the row which lie inside a table, each from `start` on.
SCHEMA = pa.schema(
    [
        ("error", pa.string()),
        ("code", pa.string()),
        ("path", pa.string()),
        ("width", pa.list_(pa.int32())),
        ("height", pa.list_(pa.int32())),
        ("bytes", pa.list_(pa.int64())),
        ("format", pa.list_(pa.string())),
        ("mode", pa.list_(pa.string())),
        ("orientation", pa.list_(pa.int32())),
        ("frames", pa.list_(pa.int32())),
        ("lowest", pa.list_(pa.float64())),
        ("highest", pa.list_(pa.float64())),
        ("sha256", pa.list_(pa.string())),
        ("hash", pa.list_(pa.uint64())),
        ("thumbnail", pa.list_(pa.binary(256))),
        ("pack", pa.string()),
        ("start", pa.list_(pa.int64())),
    ]
)

# (name, bytes, time of change in ns) of each file of a row.
Mark = tuple[tuple[str, int, int], ...]
Files = list[tuple[tuple[ImagePlace, ...], tuple[str, ...]]]


def fingerprints(rows: Sequence[SourceRow]) -> list[Mark]:
    """The names, sizes in bytes and times of change of each row's files; a file that is not there has size -1."""
    return [
        tuple((name, *size_and_time(place)) for place, name in zip(row.images, row.names, strict=True)) for row in rows
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
    order = list(range(len(rows)))
    if any(isinstance(place, Inside) for row in rows for place in row.images):
        order.sort(key=lambda i: [reading_order(place) for place in rows[i].images])
    tasks: list[tuple[Files, Path | None]] = []
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = order[start : start + CHUNK_ROWS]
        text = json.dumps([SCAN_VERSION, *(marks[i] for i in chunk)])
        name = f"scan-{start // CHUNK_ROWS:05d}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.parquet"
        tasks.append(([(rows[i].images, rows[i].names) for i in chunk], store / name if store else None))
    tables = []
    with progress("looking at the images", len(rows), "rows") as advance:
        for table in parallel(_scan_chunk, tasks, workers, engine):
            tables.append(table)
            advance(table.num_rows)
    if not tables:
        return SCHEMA.empty_table()
    return pa.concat_tables(tables).take(pa.array(np.argsort(order))).combine_chunks()


def _scan_chunk(task: tuple[Files, Path | None]) -> pa.Table:
    files, kept = task
    if kept is not None and kept.is_file():
        return pq.read_table(kept, use_threads=False)
    if kept is None or not any(isinstance(place, Inside) for places, _ in files for place in places):
        table = pa.Table.from_pylist([_facts(places, names) for places, names in files], schema=SCHEMA)
    else:
        pack = kept.with_suffix(".images")
        with written_whole(pack) as aside, aside.open("wb") as file:
            facts = [_facts(places, names, file) | {"pack": pack.name} for places, names in files]
        table = pa.Table.from_pylist(facts, schema=SCHEMA)
    if kept is not None:
        with written_whole(kept) as aside:
            pq.write_table(table, aside)
    return table


def _facts(places: tuple[ImagePlace, ...], names: tuple[str, ...], pack: BinaryIO | None = None) -> dict[str, object]:
    facts: dict[str, list[object]] = {field.name: [] for field in SCHEMA if pa.types.is_list(field.type)}
    for place, name in zip(places, names, strict=True):
        try:
            if isinstance(place, Path) and place.stat().st_size > MAX_FILE_BYTES:
                found = f"the file is larger than {MAX_FILE_BYTES:,} bytes"
                return {"error": found, "code": "image-too-large", "path": name}
            data = read_image(place)
            seen = look(data)
            facts["start"].append(pack.tell() if pack is not None else 0)
            if pack is not None and isinstance(place, Inside):
                pack.write(data)
        except OSError as error:
            return {"error": f"the file cannot be read: {error.strerror}", "code": "unreadable-image", "path": name}
        except ImageError as error:
            return {"error": error.found, "code": error.code, "path": name}
        except DataError as error:
            return {"error": error.found, "code": "unreadable-image", "path": name}
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
        "mode": header.mode,
        "orientation": header.orientation,
        "frames": header.frames,
        "lowest": None if header.values is None else header.values[0],
        "highest": None if header.values is None else header.values[1],
        "sha256": hashlib.sha256(data).hexdigest(),
        "hash": int(hash_),
        "thumbnail": np.ascontiguousarray(thumbnail).tobytes(),
    }

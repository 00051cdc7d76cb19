"""The rows of a survey as Parquet files: cut to size, each named by a hash of what is in it, written in parallel."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data.dataset_info import SCHEMA_VERSION, ShardInfo
from visiontune.data.folder import WORK_NAME
from visiontune.data.formats.rows import SourceRow
from visiontune.data.image_places import ImagePlace, Inside, Packed, file_of, read_image
from visiontune.data.pages import PageSpec
from visiontune.data.split import SPLITS, keyed
from visiontune.data.stored_rows import StoredRow, write_shard
from visiontune.data.survey import Survey
from visiontune.data.workers import Engine, parallel
from visiontune.errors import DataError
from visiontune.files import file_sha256
from visiontune.progress import progress


@dataclass(frozen=True)
class _Shard:
    """One file to write: its path and, row by row, what goes in and the hashes that the images must have."""

    path: Path
    rows: list[tuple[StoredRow, list[ImagePlace], list[str]]]


def write_shards(
    found: Survey,
    spec: PageSpec | None,
    out: Path,
    seed: int,
    shard_bytes: int,
    workers: int,
    engine: Engine = "processes",
) -> dict[str, ShardInfo]:
    """Write the rows into the folder `out`, files of about `shard_bytes` of what is seen; what stands is kept."""
    cuts = {split: _cuts(found, split, seed, shard_bytes) for split in SPLITS}
    shards = (
        _shard(found, spec, out, f"{split}-{number:05d}-of-{len(cuts[split]):05d}", cut)
        for split in SPLITS
        for number, cut in enumerate(cuts[split])
    )
    files: dict[str, ShardInfo] = {}
    with progress("writing the dataset", len(found.rows), "rows") as advance:
        for name, info in parallel(_write, shards, workers, engine):
            files[name] = info
            advance(info.rows)
    return files


def _cuts(found: Survey, split: str, seed: int, shard_bytes: int) -> list[list[int]]:
    """The rows of a split in the order of a keyed hash of their ids, cut where images or documents fill a shard."""
    sizes = found.facts["bytes"].to_pylist()
    members = [i for i, name in enumerate(found.splits) if name == split]
    members.sort(key=lambda i: (keyed(seed, found.rows[i].id), found.rows[i].id))
    cuts: list[list[int]] = []
    room = 0
    for i in members:
        size = sizes[i] if isinstance(sizes[i], int) else sum(sizes[i])
        if not cuts or size > room:
            cuts.append([])
            room = shard_bytes
        cuts[-1].append(i)
        room -= size
    return cuts


def _shard(found: Survey, spec: PageSpec | None, out: Path, name: str, members: list[int]) -> _Shard:
    digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, None if spec is None else spec.hash]).encode())
    rows = []
    for i, facts in zip(members, found.facts.take(pa.array(members)).to_pylist(), strict=True):
        row, content = found.rows[i], found.contents[i]
        digest.update(json.dumps([row.id, row.names, content], ensure_ascii=False).encode("utf-8"))
        no_images_yet = [(b"", shown) for shown in row.names]
        if row.document is None:
            sizes = facts["width"], facts["height"]
            stored = StoredRow(row.id, no_images_yet, row.prompt, row.answer, *sizes, content, turns=row.turns)
            rows.append((replace(stored, seen=facts["sha256"]), _places(row, facts, out), facts["sha256"]))
        else:
            document, pages = row.document, facts["pages"]
            stored = StoredRow(row.id, [], row.prompt, row.answer, [], [], content, document=document, pages=pages)
            rows.append((replace(stored, seen=[facts["whole"]]), [], []))
    return _Shard(out / f"{name}-{digest.hexdigest()[:8]}.parquet", rows)


def _places(row: SourceRow, facts: dict[str, Any], out: Path) -> list[ImagePlace]:
    """Where the images of a row are read from; those inside tables were kept by the scan."""
    return [
        Packed(out / WORK_NAME / facts["pack"], start, size) if isinstance(place, Inside) else place
        for place, start, size in zip(row.images, facts["start"], facts["bytes"], strict=True)
    ]


def _write(shard: _Shard) -> tuple[str, ShardInfo]:
    """Write one shard, or take the one that an interrupted preparation wrote: its name says that it is the same."""
    if shard.path.is_file():
        try:
            rows = pq.read_metadata(shard.path).num_rows
        except (pa.ArrowInvalid, OSError):  # damaged since: write it again
            rows = -1
        if rows == len(shard.rows):
            size = shard.path.stat().st_size
            return shard.path.name, ShardInfo(rows=rows, bytes=size, sha256=file_sha256(shard.path))
    return shard.path.name, write_shard(shard.path, (_loaded(*row) for row in shard.rows))


def _loaded(row: StoredRow, places: list[ImagePlace], sha256s: list[str]) -> StoredRow:
    images = []
    for place, (_, name), sha256 in zip(places, row.images, sha256s, strict=True):
        data = read_image(place)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(
                "a file changed while it was prepared", where=str(file_of(place)), fix="run the same command again"
            )
        images.append((data, name))
    return replace(row, images=images)

"""From a source to a Dataset: list, look at every image or document, split, write.

Killed anywhere and run again, it ends the same.

The order of writing keeps `dataset.json` true at every moment: shards carry the hash of their rows in their names, so
new ones never overwrite those of an earlier dataset; `dataset.json` is replaced last; only then what is stale goes.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data import faults, formats
from visiontune.data.dataset import (
    Dataset,
    StoredRow,
    content_hash,
    font_path,
    write_shard,
)
from visiontune.data.dataset_info import INFO_NAME, SCHEMA_VERSION, DatasetInfo, LeftOut, Provenance, ShardInfo
from visiontune.data.documents import FontFile, Rendering, text_sha256, workers_for_documents
from visiontune.data.faults import Fault
from visiontune.data.formats.rows import Listing
from visiontune.data.pages import PageSpec
from visiontune.data.scan import SCAN_VERSION, Mark, fingerprints, workers_for
from visiontune.data.split import SPLITS, keyed
from visiontune.data.survey import Earlier, Survey, survey, usable
from visiontune.data.workers import parallel
from visiontune.errors import DataError, MachineError
from visiontune.files import file_sha256, write_text, written_whole
from visiontune.progress import note, progress, warn

WORK_NAME = ".prepare"
SHARD_BYTES = 256 * 2**20

# What a preparation writes, whole or (hidden, ending in .part) half.
_SHARD_FILE = re.compile(
    rf"\.?({'|'.join(SPLITS)})-\d+-of-\d+-[0-9a-f]{{8}}\.parquet(\.\d+\.part)?|\.dataset\.json\.\d+\.part|font-[0-9a-f]{{16}}\.font|\.font-[0-9a-f]{{16}}\.font\.\d+\.part"
)


def prepare(
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    strict: bool = False,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_fault: Callable[[Fault], None] | None = None,
    columns: Mapping[str, str] | None = None,
    pages: PageSpec | None = None,
    fonts: Sequence[Path | FontFile] | None = None,
) -> Dataset:
    """Make `source` into the dataset `out`; an earlier one there is extended, its rows keep their split.

    `source` is a folder of images, or a table of texts or a folder of such tables, whose `columns` may be named
    ({"document": "body", "answer": "tldr"}). Texts are shown as `pages` says, in the `fonts` given in order of
    fallback; by default as the earlier dataset there does, or on pages of 1024 x 1024 pixels in this package's font.

    `limit` takes that many rows, spread over the classes; `strict` refuses any row that would be left out; `workers`
    processes share the work (None: as many as are worth it); `on_fault` is called with each fault found. Raises
    DataError, and MachineError when the disk is full or a worker dies.
    """
    source, out = Path(source), Path(out)
    if workers is not None and workers < 1:
        raise DataError(f"{workers} workers can do nothing", where="--workers", fix="use 1 or more")
    _refuse_overlap(source, out)
    listing = usable(formats.read(source, columns), limit, seed)
    marks = fingerprints(listing.rows)
    _refuse_pages_of_images(listing, source, pages, fonts)
    with _owned(out), _full_disk_said(out):
        earlier = Dataset.open(out) if (out / INFO_NAME).is_file() else None
        rendering = None
        if listing.seen == "documents":
            rendering = Rendering.chosen([row.document or "" for row in listing.rows], pages, fonts, earlier)
        fingerprint = _fingerprint(listing, marks, rendering, seed, limit, shard_bytes)
        if earlier is None or earlier.info.provenance.fingerprint != fingerprint:
            workers = workers or (workers_for_documents(listing.rows) if rendering else workers_for(marks))
            (out / WORK_NAME).mkdir(exist_ok=True)
            known = Earlier() if earlier is None else _earlier(earlier, source, seed)
            found = survey(
                listing, marks, seed=seed, earlier=known, workers=workers, store=out / WORK_NAME, rendering=rendering
            )
            _refuse_unusable(found, source, strict, earlier)
            spec = None if rendering is None else rendering.spec
            _keep_fonts(rendering, out)
            files = _write_shards(found, spec, out, seed, shard_bytes, workers)
            provenance = Provenance(
                source=source.resolve().name,
                format=listing.format,
                created_by=f"visiontune {version('visiontune')}",
                fingerprint=fingerprint,
            )
            info = _info(found, files, spec, provenance=provenance, seed=seed, limit=limit)
            write_text(out / INFO_NAME, json.dumps(info.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
        dataset = Dataset.open(out)
        _tidy(dataset)
    _say(dataset, strict, on_fault)
    return dataset


def _refuse_overlap(source: Path, out: Path) -> None:
    real_source, real_out = source.resolve(), out.resolve()
    if real_out.is_relative_to(real_source):
        raise DataError(
            "the dataset would lie inside the folder it is made from", where=str(out), fix="write it to another place"
        )
    if (source / INFO_NAME).is_file():
        raise DataError("this folder is a prepared dataset already", where=str(source), fix="use it as it is")


def _refuse_pages_of_images(
    listing: Listing, source: Path, pages: PageSpec | None, fonts: Sequence[Path | FontFile] | None
) -> None:
    if listing.seen == "images" and (pages is not None or fonts is not None):
        raise DataError(
            "these are images, and a page spec or fonts are for texts", where=str(source), fix="leave them out"
        )


def _keep_fonts(rendering: Rendering | None, out: Path) -> None:
    """Copy the fonts into the dataset, so that it can be rendered wherever it is copied to."""
    if rendering is not None:
        for (file, _), font in zip(rendering.files, rendering.spec.fonts, strict=True):
            kept = font_path(out, font)
            if not kept.is_file():
                with written_whole(kept) as aside:
                    shutil.copyfile(file, aside)


def _fingerprint(
    listing: Listing,
    marks: Sequence[Mark],
    rendering: Rendering | None,
    seed: int,
    limit: int | None,
    shard_bytes: int,
) -> str:
    """What a preparation depends on, in one hash: the same again means that there is nothing to do."""
    digest = hashlib.sha256()
    if rendering is not None:
        digest.update(rendering.spec.hash.encode())
    digest.update(json.dumps([SCAN_VERSION, SCHEMA_VERSION, seed, limit, shard_bytes, listing.format]).encode())
    for row, mark in zip(listing.rows, marks, strict=True):
        seen = mark if row.document is None else text_sha256(row.document)
        values = [row.id, seen, row.prompt, row.answer, row.is_label, row.split]
        digest.update(json.dumps(values, ensure_ascii=False).encode("utf-8"))
    for fault in listing.faults:
        digest.update(json.dumps(fault.to_json(), ensure_ascii=False).encode("utf-8"))
    return digest.hexdigest()


@contextmanager
def _owned(out: Path) -> Iterator[None]:
    """Make the folder `out` where there is none and keep others out; DataError when it holds something else."""
    if out.exists() and not out.is_dir():
        raise DataError("there is a file where the dataset should go", where=str(out), fix="use another --out")
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                "another preparation is writing this dataset", where=str(out), fix="wait for it, or stop it first"
            ) from error
        ours = {INFO_NAME, WORK_NAME}
        if (others := sorted(path.name for path in out.iterdir())) and not ours & set(others):
            raise DataError(
                f"the folder is neither empty nor a dataset: it holds {', '.join(others[:5])}",
                where=str(out),
                fix="use another --out",
            )
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _full_disk_said(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MachineError(
            "the disk is full; nothing that stood was damaged",
            where=str(out),
            fix="make room and run the same command again: it goes on where it stopped",
        ) from error


def _earlier(dataset: Dataset, source: Path, seed: int) -> Earlier:
    if dataset.info.split_seed != seed:
        raise DataError(
            f"the dataset there was split with seed {dataset.info.split_seed}, and its rows keep their split",
            where=str(dataset.path),
            fix=f"use --seed {dataset.info.split_seed}, or another --out",
        )
    return Earlier({split: dataset.index(split) for split in SPLITS})


def _refuse_unusable(found: Survey, source: Path, strict: bool, earlier: Dataset | None) -> None:
    dropped = _dropped(found)
    if not found.rows:
        raise DataError(
            f"nothing is left to prepare: {_names(dropped)}"
            if dropped
            else "the metadata or the tables list no samples",
            where=str(source),
            fix=dropped[0].fix if dropped else "add lines",
        )
    if strict:
        _refuse_left_out([(fault.where, fault.found) for fault in dropped], source)
    if earlier is not None and not found.stood:
        raise DataError(
            f"the dataset there was made from {earlier.info.provenance.source!r} and shares no sample with this folder",
            where=str(earlier.path),
            fix="use another --out, or delete that folder first",
        )


def _refuse_left_out(rows: Sequence[tuple[str, str]], where: Path) -> None:
    if rows:
        shown = "".join(f"\n    {name}: {found}" for name, found in rows[:20])
        more = f"\n    and {len(rows) - 20} more" if len(rows) > 20 else ""
        raise DataError(
            f"{len(rows)} rows cannot be used:{shown}{more}",
            where=str(where),
            fix="repair or remove them, or leave --strict out: then they are left out and counted",
        )


def _dropped(found: Survey) -> list[Fault]:
    return [fault for fault in found.faults if fault.code in faults.LEFT_OUT]


def _names(dropped: Sequence[Fault]) -> str:
    more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
    return "; ".join(f"{fault.where}: {fault.found}" for fault in dropped[:3]) + more


@dataclass(frozen=True)
class _Shard:
    """One file to write: its path and, row by row, what goes in and the hashes that the images must have."""

    path: Path
    rows: list[tuple[StoredRow, tuple[Path, ...], list[str]]]


def _write_shards(
    found: Survey, spec: PageSpec | None, out: Path, seed: int, shard_bytes: int, workers: int
) -> dict[str, ShardInfo]:
    cuts = {split: _cuts(found, split, seed, shard_bytes) for split in SPLITS}
    shards = (
        _shard(found, spec, out, f"{split}-{number:05d}-of-{len(cuts[split]):05d}", cut)
        for split in SPLITS
        for number, cut in enumerate(cuts[split])
    )
    files: dict[str, ShardInfo] = {}
    with progress("writing the dataset", len(found.rows), "rows") as advance:
        for name, info in parallel(_write, shards, workers):
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
            stored = StoredRow(row.id, no_images_yet, row.prompt, row.answer, facts["width"], facts["height"], content)
            rows.append((stored, row.paths, facts["sha256"]))
        else:
            document, pages = row.document, facts["pages"]
            stored = StoredRow(row.id, [], row.prompt, row.answer, [], [], content, document=document, pages=pages)
            rows.append((stored, (), []))
    return _Shard(out / f"{name}-{digest.hexdigest()[:8]}.parquet", rows)


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


def _loaded(row: StoredRow, paths: tuple[Path, ...], sha256s: list[str]) -> StoredRow:
    images = []
    for path, (_, name), sha256 in zip(paths, row.images, sha256s, strict=True):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError("a file changed while it was prepared", where=str(path), fix="run the same command again")
        images.append((data, name))
    return replace(row, images=images)


def _info(
    found: Survey,
    files: dict[str, ShardInfo],
    spec: PageSpec | None,
    *,
    provenance: Provenance,
    seed: int,
    limit: int | None,
) -> DatasetInfo:
    kept = [fault for fault in found.faults if fault.severity != "drop"]
    rows = zip(found.splits, (row.id for row in found.rows), found.contents, strict=True)
    return DatasetInfo(
        content_hash=content_hash(rows, spec),
        seen="images" if spec is None else "documents",
        labels=found.labels,
        splits={split: found.splits.count(split) for split in SPLITS},
        split_seed=seed,
        limit=limit,
        provenance=provenance,
        images=found.images,
        documents=found.documents,
        pages=spec,
        files=files,
        left_out=[
            LeftOut(id=fault.where, code=fault.code, found=fault.found, fix=fault.fix) for fault in _dropped(found)
        ],
        faults=kept,
    )


def _tidy(dataset: Dataset) -> None:
    """Remove what an earlier or an interrupted preparation left beside the files that dataset.json names."""
    spec = dataset.info.pages
    ours = {*dataset.info.files, *(font_path(dataset.path, font).name for font in (spec.fonts if spec else ()))}
    for path in dataset.path.iterdir():
        if path.name not in ours and _SHARD_FILE.fullmatch(path.name):
            path.unlink()
    shutil.rmtree(dataset.path / WORK_NAME, ignore_errors=True)


def _say(dataset: Dataset, strict: bool, on_fault: Callable[[Fault], None] | None) -> None:
    left_out = dataset.info.left_out
    if strict:
        _refuse_left_out([(row.id, row.found) for row in left_out], dataset.path)
    if left_out:
        more = f", and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        names = ", ".join(f"{row.id} ({row.found})" for row in left_out[:3])
        warn(f"{len(left_out)} rows were left out: {names}{more}")
    for split, count in dataset.info.splits.items():
        if count == 0:
            note(f"the {split} split is empty")
    if on_fault is not None:
        for fault in dataset_faults(dataset.info):
            on_fault(fault)


def dataset_faults(info: DatasetInfo) -> list[Fault]:
    """All faults that a preparation found, left-out rows among them."""
    dropped = [faults.left_out(row.code, row.id, row.found, row.fix) for row in info.left_out]
    return faults.ordered([*info.faults, *(fault for fault in dropped if fault.severity == "drop")])

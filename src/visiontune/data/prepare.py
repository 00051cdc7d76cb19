"""From a source to a Dataset: list, look at every image or document, split, write.

Killed anywhere and run again, it ends the same.

The order of writing keeps `dataset.json` true at every moment: shards carry the hash of their rows in their names, so
new ones never overwrite those of an earlier dataset; `dataset.json` is replaced last; only then what is stale goes.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from visiontune.data import faults
from visiontune.data.dataset import Dataset, font_path
from visiontune.data.dataset_info import INFO_NAME, SCHEMA_VERSION, DatasetInfo, LeftOut, Provenance, ShardInfo
from visiontune.data.documents import Fit, FontFile, Pages, Rendering, text_sha256, workers_for_documents
from visiontune.data.faults import Fault
from visiontune.data.folder import REPAIRS_NAME, WORK_NAME, hashes, is_written
from visiontune.data.format_names import Format
from visiontune.data.formats.rows import Listing
from visiontune.data.materialise import ImageFormat, check_format, remove_stale_pages, write_pages
from visiontune.data.messages import MessagesFormat, check_messages, remove_messages, write_messages
from visiontune.data.scan import SCAN_VERSION, Mark, fingerprints, workers_for
from visiontune.data.shards import write_shards
from visiontune.data.sources import Source, names, read
from visiontune.data.split import SPLITS
from visiontune.data.stored_rows import content_hash
from visiontune.data.survey import Earlier, Survey, object_summary, survey, usable
from visiontune.data.turns import to_text
from visiontune.data.workers import Engine, check_engine, started
from visiontune.errors import DataError
from visiontune.files import full_disk_said, make_folder, write_text, written_whole
from visiontune.progress import note, warn
from visiontune.words import counted

SHARD_BYTES = 256 * 2**20


def prepare(
    source: Path | Source | Sequence[Path | Source],
    out: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    strict: bool = False,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_fault: Callable[[Fault], None] | None = None,
    columns: Mapping[str, str] | None = None,
    repair: bool = False,
    format: Format | None = None,
    pages: Pages | None = None,
    fonts: Sequence[Path | FontFile] | None = None,
    max_pages: int | None = None,
    fit: Fit | None = None,
    engine: Engine = "processes",
    materialise: ImageFormat | None = None,
    messages: MessagesFormat | None = None,
) -> Dataset:
    """Make `source` into the dataset `out`; an earlier one there is extended, its rows keep their split.

    `source` is a folder of images, or a table of texts or of images and texts or a folder of such tables, whose
    `columns` may be named ({"document": "body", "answer": "tldr"}); or several of one kind, whose rows are then
    told apart by the source's name before their ids. `format` says what it is, where it looks like something else.
    Texts are shown as `pages` says (a spec, or some of its fields), in the `fonts` given in order of fallback; by
    default as the earlier dataset there does, or on pages of 1024 x 1024 pixels in this package's font. `fit` makes
    of that spec another, having seen some of the texts. A document of more than `max_pages` is left out; where it
    is asked about and the answer stands in it, a window of it is shown.

    Annotations of objects (COCO, YOLO, Pascal VOC) with faults are refused, or mended with `repair`; each change is
    then written to repairs.jsonl.

    `limit` takes that many rows, spread over the classes; `strict` refuses any row that would be left out; `workers`
    processes of the `engine` share the work (None: as many as are worth it); `on_fault` is called with each fault
    found. `materialise` writes the pages as image files beside the shards, `messages` images with
    texts in the form that other trainers read. Raises DataError, and MachineError when the
    disk is full or a worker dies.
    """
    sources = [
        one if isinstance(one, Source) else Source(Path(one), columns, repair=repair, format=format)
        for one in ([source] if isinstance(source, str | Path | Source) else source)
    ]
    out = Path(out)
    if workers is not None and workers < 1:
        raise DataError(f"{workers} workers can do nothing", where="--workers", fix="use 1 or more")
    check_engine(engine)
    if materialise is not None:
        check_format(materialise)
    for one in sources:
        _refuse_overlap(one.path, out)
    listing = usable(read(sources), limit, seed)
    _refuse_unmended(listing, sources)
    if messages is not None:
        check_messages(messages, listing.seen == "images" and listing.classes is None)
    marks = fingerprints(listing.rows)
    if max_pages is not None and max_pages < 1:
        raise DataError(f"a document of {max_pages} pages is nothing", where="--max-pages", fix="use 1 or more")
    if listing.seen == "images" and not (pages is fonts is max_pages is fit is materialise is None):
        raise DataError(
            "these are images; a page spec, fonts, a number of pages and pages as files are for texts",
            where=_places(sources),
            fix="leave these options out",
        )
    with started(engine), owned(out, {INFO_NAME, WORK_NAME}), full_disk_said(out):
        earlier = Dataset.open(out) if (out / INFO_NAME).is_file() else None
        rendering = None
        if listing.seen == "documents":
            rendering = Rendering.chosen(
                [row.document or "" for row in listing.rows], pages, fonts, earlier, max_pages, fit
            )
        fingerprint = _fingerprint(listing, marks, rendering, seed, limit, shard_bytes)
        workers = workers or (workers_for_documents(listing.rows) if rendering else workers_for(marks))
        if earlier is None or earlier.info.provenance.fingerprint != fingerprint:
            (out / WORK_NAME).mkdir(exist_ok=True)
            known = Earlier() if earlier is None else _earlier(earlier, seed)
            found = survey(
                listing,
                marks,
                seed=seed,
                earlier=known,
                workers=workers,
                store=out / WORK_NAME,
                rendering=rendering,
                engine=engine,
            )
            _refuse_unusable(found, sources, strict, earlier)
            spec = None if rendering is None else rendering.spec
            _keep_fonts(rendering, out)
            files = write_shards(found, spec, out, seed, shard_bytes, workers, engine)
            provenance = Provenance(
                source=", ".join(sorted(names(sources))),
                sources=_rows_of_each(found, names(sources)),
                corpora=tuple(sorted(one.called for one in sources if one.called is not None and one.hub is None)),
                hub=tuple(sorted(one.hub for one in sources if one.hub is not None)),
                format=listing.format,
                created_by=f"visiontune {version('visiontune')}",
                fingerprint=fingerprint,
            )
            info = _info(found, files, rendering, listing, provenance=provenance, seed=seed, limit=limit)
            if listing.changes:
                lines = (json.dumps(change.to_json(), ensure_ascii=False) for change in listing.changes)
                write_text(out / REPAIRS_NAME, "\n".join(lines) + "\n")
            write_text(out / INFO_NAME, json.dumps(info.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
        dataset = Dataset.open(out)
        if materialise is None:
            remove_stale_pages(dataset)
        else:
            write_pages(dataset, materialise, workers, engine)
        if messages is None:
            remove_messages(dataset)
        else:
            write_messages(dataset, messages)
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


def _refuse_unmended(listing: Listing, sources: Sequence[Source]) -> None:
    if listing.unmended:
        counts = ", ".join(f"{code} {count}" for code, count in sorted(listing.unmended.items()))
        raise DataError(
            f"{counted(sum(listing.unmended.values()), 'fault')} of the annotations can be mended: {counts}",
            where=_places(sources),
            fix="see them with `visiontune inspect`, then prepare with --repair: repairs.jsonl lists every change",
        )


def _places(sources: Sequence[Source]) -> str:
    return ", ".join(str(source.path) for source in sources)


def _rows_of_each(found: Survey, sources: Sequence[str]) -> dict[str, int]:
    """How many rows of the dataset each source gave; rows of a single source do not name it."""
    counts = Counter(row.source or sources[0] for row in found.rows)
    return {name: counts[name] for name in sorted(sources)}


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
        digest.update(json.dumps([rendering.spec.hash, rendering.most_pages]).encode())
    digest.update(json.dumps([SCAN_VERSION, SCHEMA_VERSION, seed, limit, shard_bytes, listing.format]).encode())
    digest.update(json.dumps([listing.classes, [change.to_json() for change in listing.changes]]).encode())
    for row, mark in zip(listing.rows, marks, strict=True):
        seen = mark if row.document is None else text_sha256(row.document)
        values = [row.id, seen, row.prompt, row.answer, row.is_label, row.split, to_text(row.turns)]
        digest.update(json.dumps(values, ensure_ascii=False).encode("utf-8"))
    for fault in listing.faults:
        digest.update(json.dumps(fault.to_json(), ensure_ascii=False).encode("utf-8"))
    return digest.hexdigest()


@contextmanager
def owned(out: Path, ours: set[str]) -> Iterator[None]:
    """Make the folder `out` where there is none and keep others out; DataError when it holds things, and none of
    `ours`."""
    if out.exists() and not out.is_dir():
        raise DataError("there is a file where the dataset should go", where=str(out), fix="use another --out")
    make_folder(out)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                "another preparation is writing this dataset", where=str(out), fix="wait for it, or stop it first"
            ) from error
        if (others := sorted(path.name for path in out.iterdir())) and not ours & set(others):
            raise DataError(
                f"the folder is neither empty nor a dataset: it holds {', '.join(others[:5])}",
                where=str(out),
                fix="use another --out",
            )
        yield
    finally:
        os.close(descriptor)


def _earlier(dataset: Dataset, seed: int) -> Earlier:
    if dataset.info.split_seed != seed:
        raise DataError(
            f"the dataset there was split with seed {dataset.info.split_seed}, and its rows keep their split",
            where=str(dataset.path),
            fix=f"use --seed {dataset.info.split_seed}, or another --out",
        )
    return Earlier({split: dataset.index(split) for split in SPLITS})


def _refuse_unusable(found: Survey, sources: Sequence[Source], strict: bool, earlier: Dataset | None) -> None:
    dropped = _dropped(found)
    if not found.rows:
        raise DataError(
            f"nothing is left to prepare: {_names(dropped)}"
            if dropped
            else "the metadata or the tables list no samples",
            where=_places(sources),
            fix=dropped[0].fix if dropped else "add lines",
        )
    if strict:
        _refuse_left_out([(fault.where, fault.found) for fault in dropped], _places(sources))
    if earlier is not None and not found.stood:
        raise DataError(
            f"the dataset there was made from {earlier.info.provenance.source!r} and shares no sample with this folder",
            where=str(earlier.path),
            fix="use another --out, or delete that folder first",
        )


def _refuse_left_out(rows: Sequence[tuple[str, str]], where: str) -> None:
    if rows:
        shown = "".join(f"\n    {name}: {found}" for name, found in rows[:20])
        more = f"\n    and {len(rows) - 20} more" if len(rows) > 20 else ""
        raise DataError(
            f"{counted(len(rows), 'row')} cannot be used:{shown}{more}",
            where=where,
            fix="repair or remove them, or leave --strict out: then they are left out and counted",
        )


def _dropped(found: Survey) -> list[Fault]:
    return [fault for fault in found.faults if fault.severity == "drop" or fault.code in faults.LEFT_OUT]


def _names(dropped: Sequence[Fault]) -> str:
    more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
    return "; ".join(f"{fault.where}: {fault.found}" for fault in dropped[:3]) + more


def _info(
    found: Survey,
    files: dict[str, ShardInfo],
    rendering: Rendering | None,
    listing: Listing,
    *,
    provenance: Provenance,
    seed: int,
    limit: int | None,
) -> DatasetInfo:
    kept = [fault for fault in found.faults if fault.severity != "drop"]
    rows = zip(found.splits, (row.id for row in found.rows), found.contents, strict=True)
    spec = None if rendering is None else rendering.spec
    objects = object_summary((row.answer for row in found.rows), listing.classes)
    return DatasetInfo(
        content_hash=content_hash(rows, spec, objects),
        seen="images" if spec is None else "documents",
        labels=found.labels,
        splits={split: found.splits.count(split) for split in SPLITS},
        split_seed=seed,
        limit=limit,
        provenance=provenance,
        images=found.images,
        documents=found.documents,
        target="text" if listing.classes is None else "objects",
        objects=objects,
        mended=len(listing.changes),
        pages=spec,
        max_pages=None if rendering is None else rendering.most_pages,
        windows=0 if rendering is None else len(found.rows) - found.facts["start"].null_count,
        files=files,
        left_out=[
            LeftOut(id=fault.where, code=fault.code, found=fault.found, fix=fault.fix) for fault in _dropped(found)
        ],
        faults=kept,
    )


def _tidy(dataset: Dataset) -> None:
    """Remove what an earlier or an interrupted preparation left beside the files that dataset.json names."""
    ours = {INFO_NAME, *hashes(dataset.info), *([REPAIRS_NAME] if dataset.info.mended else [])}
    for path in dataset.path.iterdir():
        if path.name not in ours and is_written(path.name):
            path.unlink()
    shutil.rmtree(dataset.path / WORK_NAME, ignore_errors=True)


def _say(dataset: Dataset, strict: bool, on_fault: Callable[[Fault], None] | None) -> None:
    left_out = sorted(dataset.info.left_out, key=lambda row: row.code not in faults.OF_IMAGES)
    if strict:
        _refuse_left_out([(row.id, row.found) for row in left_out], str(dataset.path))
    if left_out:
        more = f", and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        names = ", ".join(f"{row.id} ({row.found})" for row in left_out[:3])
        warn(f"left out: {left_out_of(dataset.info)}: {names}{more}")
    errors = [fault for fault in dataset.info.faults if fault.severity == "error"]
    if errors and not strict:
        more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
        warn("training refuses these data: " + "; ".join(f"{one.found} ({one.where})" for one in errors[:3]) + more)
    for split, count in dataset.info.splits.items():
        if count == 0:
            note(f"the {split} split is empty")
    if on_fault is not None:
        for fault in dataset_faults(dataset.info):
            on_fault(fault)


def left_out_of(info: DatasetInfo) -> str:
    """How many rows were left out: of data with objects, how many images and how many objects."""
    count = len(info.left_out)
    if info.target != "objects":
        return counted(count, "row")
    images = sum(row.code in faults.OF_IMAGES for row in info.left_out)
    parts = [(images, "image"), (count - images, "object")]
    return " and ".join(counted(number, name) for number, name in parts if number) or "nothing"


def dataset_faults(info: DatasetInfo) -> list[Fault]:
    """All faults that a preparation found, left-out rows among them."""
    dropped = [faults.left_out(row.code, row.id, row.found, row.fix) for row in info.left_out]
    return faults.ordered([*info.faults, *(fault for fault in dropped if fault.severity == "drop")])

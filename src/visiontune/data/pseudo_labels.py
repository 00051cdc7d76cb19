"""Images for a teacher to label: where they lie, which to leave out; and labelled images written as a dataset."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data.dataset import Dataset
from visiontune.data.dataset_info import INFO_NAME, DatasetInfo, LeftOut, ObjectSummary, Provenance, ShardInfo
from visiontune.data.faults import Fault
from visiontune.data.images import image_files, read_header
from visiontune.data.near_duplicates import clusters
from visiontune.data.objects import Objects, to_text
from visiontune.data.prepare import SHARD_BYTES
from visiontune.data.sample import ImageFile, Images
from visiontune.data.scan import CHUNK_ROWS, SCAN_VERSION, SCHEMA, look
from visiontune.data.sources import Source, names
from visiontune.data.split import SPLITS
from visiontune.data.stored_rows import StoredRow, content_hash, content_of, write_shard
from visiontune.data.survey import image_summary
from visiontune.data.workers import parallel
from visiontune.errors import DataError
from visiontune.files import folder_written_whole, write_text, written_whole
from visiontune.progress import progress

NOT_ONE_IMAGE = "not-one-image"


@dataclass(frozen=True, eq=False)
class Place:
    """Where an image lies: in a file, or in row `row` of a split of a prepared dataset. `id` is unique among others,
    `source` the name of the folder or dataset."""

    id: str
    source: str
    file: Path | None = None
    dataset: Dataset | None = None
    split: str = ""
    row: int = 0

    def read(self) -> ImageFile:
        """The image as it is stored; OSError or DataError where it cannot be had."""
        if self.dataset is None:
            assert self.file is not None
            return ImageFile(self.file.read_bytes(), self.id)
        seen = self.dataset.sample(self.split, self.row).seen
        if not isinstance(seen, Images) or len(seen.files) != 1:
            raise DataError("A teacher looks at one image at a time.", where=self.id, fix="use samples of one image")
        return seen.files[0]

    def mark(self) -> tuple[str, str, int, int]:
        """What changes when the image does: of a file its size and time."""
        if self.dataset is None:
            assert self.file is not None
            status = self.file.stat()
            return self.id, "", status.st_size, status.st_mtime_ns
        return self.id, self.dataset.info.content_hash, SPLITS.index(self.split), self.row


def places_in(dataset: Dataset, split: str) -> list[Place]:
    """The images of a split of a prepared dataset, in the order of its rows."""
    return [
        Place(name, dataset.path.name, dataset=dataset, split=split, row=i)
        for i, name in enumerate(dataset.index(split).ids)
    ]


def places_of(paths: Sequence[Path]) -> tuple[list[Place], list[LeftOut]]:
    """The images in folders (and the folders in them) and in all splits of prepared datasets; rows that show no image
    or several are left out. Ids are relative to the folder; of several, they start with its name.

    Raises DataError where a path holds no image or is given twice.
    """
    found: list[Place] = []
    left_out = []
    called = names([Source(path) for path in paths]) if paths else []
    for path, name in zip(paths, called, strict=True):
        before = f"{name}/" if len(paths) > 1 else ""
        if not (path / INFO_NAME).is_file():
            if not path.exists():
                raise DataError("there is no such folder or file", where=str(path), fix="check the path")
            base = path if path.is_dir() else path.parent
            found += [Place(before + file.relative_to(base).as_posix(), name, file) for file in image_files(path)]
            continue
        dataset = Dataset.open(path)
        for split in SPLITS:
            index = dataset.index(split)
            for row, (own_id, widths) in enumerate(zip(index.ids, index.widths, strict=True)):
                if len(widths) == 1:
                    found.append(Place(before + own_id, name, dataset=dataset, split=split, row=row))
                else:
                    what = f"this row shows {len(widths)} images"
                    left_out.append(
                        LeftOut(id=before + own_id, code=NOT_ONE_IMAGE, found=what, fix="give each row one image")
                    )
    return found, left_out


def looked_at(places: Sequence[Place], store: Path, workers: int) -> pa.Table:
    """What `scan.look` says of each image, in order: a table of `scan.SCHEMA`, kept chunk by chunk in `store`."""
    tasks = []
    for start in range(0, len(places), CHUNK_ROWS):
        chunk = places[start : start + CHUNK_ROWS]
        text = json.dumps([SCAN_VERSION, [place.mark() for place in chunk]])
        tasks.append((chunk, store / f"look-{hashlib.sha256(text.encode()).hexdigest()[:32]}.parquet"))
    tables = [SCHEMA.empty_table()]
    with progress("looking at the images", len(places), "images") as advance:
        for table in parallel(_look_at_chunk, tasks, workers):
            tables.append(table)
            advance(table.num_rows)
    return pa.concat_tables(tables).combine_chunks()


def _look_at_chunk(task: tuple[Sequence[Place], Path]) -> pa.Table:
    places, kept = task
    if kept.is_file():
        return pq.read_table(kept, use_threads=False)
    table = pa.Table.from_pylist([_look_at(place) for place in places], schema=SCHEMA)
    with written_whole(kept) as aside:
        pq.write_table(table, aside)
    return table


def _look_at(place: Place) -> dict[str, object]:
    try:
        return {column: [value] for column, value in look(place.read().data).items()}
    except OSError as error:
        return {"error": f"the file cannot be read: {error.strerror}", "path": place.id}
    except DataError as error:
        return {"error": error.found, "path": place.id}


def to_leave_out(
    places: Sequence[Place],
    seen: pa.Table,
    *,
    held_out: tuple[Sequence[Place], pa.Table],
    trained: tuple[Sequence[Place], pa.Table],
) -> dict[int, LeftOut]:
    """Which of the unlabelled images may not be labelled, and why; `seen` is what `looked_at` says of them.

    Those that cannot be read; (near-)duplicates of images that the student will be judged by (`held_out`), also by way
    of others that are alike; files that people labelled (`trained`); second copies of a file.
    """
    errors = seen["error"].to_pylist()
    readable = [i for i, error in enumerate(errors) if error is None]
    found = {
        i: LeftOut(id=places[i].id, code="unreadable-image", found=error, fix="repair the file, or take it out")
        for i, error in enumerate(errors)
        if error is not None
    }
    judged, facts = held_out
    table = pa.concat_tables([facts, seen.take(pa.array(readable, pa.int64()))]).combine_chunks()
    sha256s = _flat(table, "sha256").to_pylist()
    thumbnails = np.frombuffer(b"".join(_flat(table, "thumbnail").to_pylist()), np.uint8).reshape(-1, 256)
    # A cluster is named by its first image, and those that are held out stand first.
    first = clusters(sha256s, _flat(table, "hash").to_numpy(), thumbnails)[len(judged) :].tolist()
    labelled = dict(zip(_flat(trained[1], "sha256").to_pylist(), trained[0], strict=True))
    earlier: dict[str, str] = {}
    for i, cluster, sha256 in zip(readable, first, sha256s[len(judged) :], strict=True):
        name = places[i].id
        if cluster < len(judged):
            like = judged[cluster]
            what = f"the same as, or nearly like, {like.id}, which is held out for {like.split}"
            found[i] = LeftOut(
                id=name, code="leak-across-splits", found=what, fix="leave it out: scores would be too good"
            )
        elif sha256 in labelled:
            what = f"people labelled this file: {labelled[sha256].id}"
            found[i] = LeftOut(
                id=name, code="labelled-already", found=what, fix="nothing: it is learned with their labels"
            )
        elif sha256 in earlier:
            what = f"a copy of {earlier[sha256]}"
            found[i] = LeftOut(id=name, code="duplicate-images", found=what, fix="nothing: it is learned once")
        else:
            earlier[sha256] = name
    return found


def _flat(table: pa.Table, column: str) -> pa.Array:
    """One entry for each image that could be read."""
    return table[column].combine_chunks().flatten()


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """A row of a dataset to be written."""

    id: str
    split: str
    image: ImageFile
    objects: Objects


def write_dataset(
    folder: Path,
    rows: Iterable[LabelledImage],
    classes: Sequence[str],
    *,
    provenance: Provenance,
    looked_for: Sequence[str] | None = None,
    split_seed: int = 0,
    limit: int | None = None,
    left_out: Sequence[LeftOut] = (),
    faults: Sequence[Fault] = (),
    shard_bytes: int = SHARD_BYTES,
) -> Dataset:
    """Write rows as a prepared dataset, whole or not at all; one in its place is replaced.

    The rows come split by split, in the order of SPLITS, and are written in theirs; few are in memory at a time, so an
    iterator may read each image when it is asked for. `looked_for` are those of the `classes` that the dataset lists,
    in its order; None: all. Raises DataError for rows in another order, for an image that cannot be read, and where
    there is no row.
    """
    stored: list[tuple[str, str, str]] = []
    objects, headers, sizes = [], [], []

    def row_of(row: LabelledImage) -> StoredRow:
        header, answer = read_header(row.image.data), to_text(row.objects, classes)
        seen = [hashlib.sha256(row.image.data).hexdigest()]
        content = content_of(seen, None, answer)
        stored.append((row.split, row.id, content))
        objects.append(row.objects)
        headers.append(header)
        sizes.append(len(row.image.data))
        image = (row.image.data, row.image.path)
        return StoredRow(row.id, [image], None, answer, [header.width], [header.height], content, seen=seen)

    with folder_written_whole(folder) as aside:
        files: dict[str, ShardInfo] = {}
        before = -1
        for split, own in groupby(rows, key=lambda row: row.split):
            if SPLITS.index(split) <= before:
                raise DataError("The rows do not come split by split.", where=split, fix="sort them by their split")
            before = SPLITS.index(split)
            files |= _shards(aside, split, map(row_of, own), shard_bytes)
        if not stored:
            raise DataError("There is no image to write.", where=str(folder), fix="give images")
        widths, heights = (np.array([getattr(h, side) for h in headers]) for side in ("width", "height"))
        summary, listed = ObjectSummary.of(objects, classes), classes if looked_for is None else looked_for
        summary = summary.model_copy(update={"classes": {name: summary.classes[name] for name in listed}})
        info = DatasetInfo(
            content_hash=content_hash(stored, objects=summary),
            labels=None,
            splits={split: sum(row[0] == split for row in stored) for split in SPLITS},
            split_seed=split_seed,
            limit=limit,
            provenance=provenance,
            images=image_summary(widths, heights, np.array(sizes), [header.format for header in headers]),
            target="objects",
            objects=summary,
            files=files,
            left_out=list(left_out),
            faults=list(faults),
        )
        write_text(aside / INFO_NAME, json.dumps(info.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    return Dataset.open(folder)


def _shards(folder: Path, split: str, rows: Iterator[StoredRow], shard_bytes: int) -> dict[str, ShardInfo]:
    """Write the rows of a split into files of about `shard_bytes` of images, named as a preparation names them."""
    made = []
    for first in rows:
        path = folder / f"{split}-{len(made):05d}"
        made.append((path, write_shard(path, _filled(first, rows, shard_bytes))))
    files = {}
    for number, (path, info) in enumerate(made):
        name = f"{split}-{number:05d}-of-{len(made):05d}-{info.sha256[:8]}.parquet"
        path.rename(folder / name)
        files[name] = info
    return files


def _filled(first: StoredRow, rest: Iterator[StoredRow], room: int) -> Iterator[StoredRow]:
    """A row and those after it, until the room is taken."""
    row: StoredRow | None = first
    while row is not None:
        yield row
        room -= row.size
        row = next(rest, None) if room > 0 else None

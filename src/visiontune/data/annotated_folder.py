"""A prepared dataset of boxes and masks as COCO, YOLO or Pascal VOC: its images and annotations in the folders that
other tools read, split as the dataset is.

The folder is whole or absent. `export.json` in it says of which dataset it was made and what the format cannot hold.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from visiontune.data.annotations import coco, voc, yolo
from visiontune.data.annotations.masks import areas_and_boxes
from visiontune.data.annotations.table import Annotations, Categories, Images, Kind, Table
from visiontune.data.dataset import Dataset
from visiontune.data.dataset_info import INFO_NAME
from visiontune.data.format_names import ANNOTATIONS
from visiontune.data.format_names import Annotations as Form
from visiontune.data.images import SUFFIXES, read_header
from visiontune.data.objects import Objects, to_entries
from visiontune.data.sample import ImageFile, Sample
from visiontune.data.sample import Images as SeenImages
from visiontune.data.split import SPLITS
from visiontune.errors import DataError
from visiontune.files import folder_written_whole, full_disk_said, write_json
from visiontune.progress import note, progress, warn

EXPORT_NAME = "export.json"
_FOLDERS: dict[Form, dict[str, str]] = {
    "coco": {"train": "train", "validation": "valid", "test": "test"},
    "yolo": {"train": "images/train", "validation": "images/val", "test": "images/test"},
    "voc": dict.fromkeys(SPLITS, "JPEGImages"),
}
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}
# Nothing that means something to a file system or parts the lists of names that VOC has.
_PLAIN = re.compile(r"\w[\w.+=@-]{0,99}")
RENUMBERED = "ids of objects: numbered anew, several had the same"


@dataclass(frozen=True)
class _Written:
    """An image as it was written: its name in the folder, its id in the dataset, size in pixels, split and objects."""

    name: str
    id: str
    width: int
    height: int
    split: str
    objects: Objects
    turned: bool


def write_annotated(dataset: Dataset, form: Form, out: Path) -> Path:
    """Write the folder, in place of an earlier one of these; few images are in memory at a time.

    Says what the format cannot hold. Raises DataError for a dataset of anything but images with objects, and where
    `out` holds something else; MachineError when the disk is full.
    """
    check_annotated(dataset, out)
    splits = [split for split in SPLITS if dataset.count(split)]
    with full_disk_said(out, "make room and run the same command again"), folder_written_whole(out) as aside:
        written: list[_Written] = []
        with progress(f"writing {form}", len(dataset), "images") as advance:
            for one in _images(dataset, form, splits, aside):
                written.append(one)
                advance(1)
        table, lost = _table(dataset, written)
        lost += _WRITERS[form](table, aside)
        record = _record(dataset, form, table, lost, written)
        record["entries"] = sorted({*_files(aside), EXPORT_NAME})
        write_json(aside / EXPORT_NAME, record)
    _say(dataset, form, record)
    return out


def check_annotated(dataset: Dataset, out: Path) -> None:
    """Raise DataError where the dataset is not of objects, or `out` is no place for its files."""
    if dataset.info.target != "objects" or dataset.info.objects is None:
        raise DataError(
            f"This dataset holds no boxes or masks, but {'responses' if dataset.info.recording else 'texts'}",
            where=str(dataset.path / INFO_NAME),
            fix=f"export datasets of COCO, YOLO or VOC annotations to {', '.join(ANNOTATIONS)}; images with texts "
            "become `messages` by `visiontune prepare --messages`",
        )
    if out.resolve().is_relative_to(dataset.path.resolve()):
        raise DataError(
            "This folder lies in the dataset that it is made from.", where=str(out), fix="use another --out"
        )
    if not out.exists():
        return
    names = _files(out) if out.is_dir() else {out.name}
    if others := sorted(names - _entries(out)):
        raise DataError(
            f"This folder holds something else: {', '.join(others[:5])}",
            where=str(out),
            fix="choose another --out; only what an earlier export wrote is replaced",
        )


def _files(folder: Path) -> set[str]:
    """What stands in a folder and in those below it, by its place: files, links, and folders that hold nothing."""
    ends = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir() or not any(p.iterdir()))
    return {p.relative_to(folder).as_posix() for p in ends}


def _entries(folder: Path) -> set[str]:
    """The files that an earlier export wrote into a folder; none where there is none."""
    file = folder / EXPORT_NAME
    try:
        return set(json.loads(file.read_text(encoding="utf-8"))["entries"]) if file.is_file() else set()
    except (ValueError, KeyError, TypeError):  # a file of that name by somebody else
        return set()


def _images(dataset: Dataset, form: Form, splits: Sequence[str], folder: Path) -> Iterator[_Written]:
    """Write the images, one after the other, with their own bytes."""
    stems = iter(_stems([name for split in splits for name in dataset.index(split).ids]))
    for split in splits:
        place = _FOLDERS[form][split]
        (folder / place).mkdir(parents=True, exist_ok=True)
        for i in range(dataset.count(split)):
            sample = dataset.sample(split, i)
            image = _image(sample)
            header = read_header(image.data)
            suffix = next((s for s in map(_suffix, (sample.id, image.path)) if s), _SUFFIX[header.format])
            name = f"{place}/{next(stems)}{suffix}"
            (folder / name).write_bytes(image.data)
            assert isinstance(sample.target, Objects)
            turned = header.orientation != 1
            yield _Written(name, sample.id, header.width, header.height, split, sample.target, turned)


def _image(sample: Sample) -> ImageFile:
    if not isinstance(sample.seen, SeenImages) or len(sample.seen.files) != 1:
        raise DataError("Boxes are of one image.", where=sample.id, fix="use samples of one image")
    return sample.seen.files[0]


def _suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return suffix if suffix.lower() in SUFFIXES else ""


def _stems(ids: Sequence[str]) -> list[str]:
    """A file name without suffix for each id: that of the id where it is plain and no other's, capitals or not; else
    with 16 digits of the id's hash."""
    names = [PurePosixPath(id).name for id in ids]
    stems = [name.removesuffix(_suffix(name)) for name in names]
    keys = [unicodedata.normalize("NFC", stem).casefold() for stem in stems]
    counts = Counter(keys)
    return [
        stem if counts[key] == 1 and _PLAIN.fullmatch(stem) else _hashed(stem, id)
        for id, stem, key in zip(ids, stems, keys, strict=True)
    ]


def _hashed(stem: str, id: str) -> str:
    readable = re.sub(r"[^\w.-]+", "_", stem).lstrip("._-")[:60]
    return f"{readable}~{hashlib.sha256(id.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _table(dataset: Dataset, written: Sequence[_Written]) -> tuple[Table, Counter[str]]:
    """The annotations in columns; images and classes are numbered from 1."""
    assert dataset.info.objects is not None
    classes = dataset.listed
    counts = [len(one.objects) for one in written]
    ids = np.array([number for one in written for number in one.objects.ids], np.int64)
    lost: Counter[str] = Counter()
    if len(np.unique(ids)) < len(ids) or (ids < 0).any():
        lost[RENUMBERED] = len(ids)
        ids = np.arange(1, len(ids) + 1)
    boxes = np.concatenate([np.zeros((0, 4)), *(one.objects.boxes for one in written)])
    masks = [mask for one in written for mask in one.objects.masks]
    drawn = [row for row, mask in enumerate(masks) if mask is not None]
    areas = boxes[:, 2:].prod(axis=1)
    areas[drawn] = areas_and_boxes([mask for mask in masks if mask is not None])[0]
    kinds = np.full(len(ids), Kind.NONE, np.int8)
    kinds[drawn] = Kind.COMPRESSED
    entries = [entry for one in written for entry in to_entries(one.objects, classes)]
    others = ({key: entry[key] for key in ("score", "likely") if key in entry} for entry in entries)
    table = Table(
        dataset.path.name,
        Images(
            np.arange(1, len(written) + 1),
            tuple(one.name for one in written),
            np.array([one.width for one in written], np.int64),
            np.array([one.height for one in written], np.int64),
            tuple(one.split for one in written),
        ),
        # Readers of Roboflow's layout ask each class for what is above it.
        Categories(np.arange(1, len(classes) + 1), classes, ("objects",) * len(classes)),
        Annotations(
            ids,
            np.repeat(np.arange(1, len(written) + 1), counts),
            np.concatenate([np.zeros(0, np.int64), *(one.objects.classes + 1 for one in written)]),
            boxes,
            areas,
            np.concatenate([np.zeros(0, np.int8), *(one.objects.crowd.astype(np.int8) for one in written)]),
            kinds,
            tuple(None if mask is None else mask.to_coco() for mask in masks),
            {row: fields for row, fields in enumerate(others) if fields},
        ),
        {"info": {"description": dataset.path.resolve().name, "version": dataset.info.content_hash}, "licenses": []},
    )
    return table, lost


def _write_coco(table: Table, folder: Path) -> Counter[str]:
    coco.write_splits(table, folder)
    return Counter()


def _write_voc(table: Table, folder: Path) -> Counter[str]:
    return voc.write(table, folder) + Counter({"ids of objects": len(table.annotations)})


def _write_yolo(table: Table, folder: Path) -> Counter[str]:
    lost = yolo.write(table, folder) + Counter({"ids of objects": len(table.annotations)})
    kinds = table.annotations.kinds != Kind.NONE
    single = table.annotations.crowd != 1
    of_masks = set(table.image_rows[kinds & single].tolist())
    lost["images with boxes beside masks, which some tools misread"] = len(
        of_masks & set(table.image_rows[~kinds & single].tolist())
    )
    return +lost


_WRITERS: dict[Form, Callable[[Table, Path], Counter[str]]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "voc": _write_voc,
}


def _record(
    dataset: Dataset, form: Form, table: Table, lost: Counter[str], written: Sequence[_Written]
) -> dict[str, Any]:
    return {
        "form": form,
        "dataset": dataset.path.resolve().name,
        "content_hash": dataset.info.content_hash,
        "splits": dataset.info.splits,
        "objects": len(table.annotations),
        "lost": dict(lost),
        "likely": len(table.annotations.other),
        "turned": sum(one.turned for one in written),
        "left_out": dict(Counter(row.code for row in dataset.info.left_out)),
        "renamed": {one.name: one.id for one in written if PurePosixPath(one.name).name != PurePosixPath(one.id).name},
    }


def _say(dataset: Dataset, form: Form, record: dict[str, Any]) -> None:
    told = {what: count for what, count in record["lost"].items() if what != "ids of objects"}
    if told:
        warn(f"{form} does not hold: {', '.join(f'{what} ({count})' for what, count in told.items())}")
    if record["turned"]:
        warn(
            f"images that EXIF turns: {record['turned']}; the annotations are of the upright images, and tools that do "
            "not read EXIF show others"
        )
    if form == "coco" and record["likely"]:
        note(f"objects of a teacher: {record['likely']}; `likely` stands in the files, `visiontune prepare` leaves it")
    if record["left_out"]:
        note(
            "images and objects that the preparation left out are not here either; "
            f"{dataset.path / INFO_NAME} lists them"
        )
    if form == "yolo" and not record["splits"]["validation"]:
        warn("no image is for validation; tools that train on YOLO data ask for `val`")

"""COCO annotation files: read into columns and written back with nothing lost.

A Roboflow export has one `_annotations.coco.json` in each of train/, valid/ and test/: each file is one table, and its
images have the folder's split. Of several files beside each other (instances_train.json, instances_val.json), the
name says the split.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from visiontune.data.annotations.table import ABSENT, Annotations, Categories, Images, Kind, Odd, Other, Table
from visiontune.data.split import SPLIT_NAMES
from visiontune.errors import DataError
from visiontune.files import written_whole

ROBOFLOW = "_annotations.coco.json"
SECTIONS = ("images", "annotations", "categories")
LAYOUTS = (
    "give a COCO file (a JSON object with images, annotations and categories), or a folder with "
    f"{ROBOFLOW} in train/, valid/ and test/"
)

Entries = list[dict[str, Any]]
_NUMBERS = frozenset({int, float})
_IMAGE = ("id", "file_name", "width", "height")
_CATEGORY = ("id", "name", "supercategory")
_ANNOTATION = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
EXACT = 2**53  # whole numbers up to here are themselves as float64
# What an entry that is no JSON object leaves in `odd`.
ENTRY = "entry"


def files(source: Path) -> list[Path]:
    """The COCO files of a source, by name: the file itself, or those of a Roboflow export."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" and _has_sections(source) else []
    found = [source / ROBOFLOW, *(child / ROBOFLOW for child in sorted(source.iterdir()) if child.is_dir())]
    found = [path for path in found if path.is_file()]
    return found or [path for path in sorted(source.glob("*.json")) if _has_sections(path)]


def read(source: Path) -> tuple[Table, ...]:
    """One table for each COCO file of a source (see `files`); DataError where there is none or one is not JSON."""
    found = files(source) if source.is_dir() else [source]
    if not found:
        raise DataError("there is no COCO file here", where=str(source), fix=LAYOUTS)
    base = source if source.is_dir() else source.parent
    return tuple(_read_file(path, path.relative_to(base).as_posix(), len(found) > 1) for path in found)


def to_table(value: Any, name: str, split: str | None = None) -> Table:
    """A parsed COCO file as columns. Bytes in compressed counts become text. DataError where it is no JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"this is {_json_name(value)}, not a JSON object", where=name, fix=LAYOUTS)
    sections = frozenset(section for section in SECTIONS if isinstance(value.get(section), list))
    lists = {section: value[section] if section in sections else [] for section in SECTIONS}
    return Table(
        name,
        _images(lists["images"], split),
        _categories(lists["categories"]),
        _annotations(lists["annotations"]),
        {key: field for key, field in value.items() if key not in sections},
        sections,
    )


def to_json(table: Table) -> dict[str, Any]:
    """The table as COCO has it; what could not be used stands as it was written.

    The splits of images are not in it: COCO says them by file. See `write_splits`.
    """
    lists: dict[str, Callable[[Table], list[Any]]] = {
        "images": _image_entries,
        "annotations": _annotation_entries,
        "categories": _category_entries,
    }
    return {**table.top, **{name: lists[name](table) for name in SECTIONS if name in table.sections}}


def write(table: Table, path: Path) -> None:
    """Write a COCO file whole. Numbers that are not finite are written as null: JSON has no other."""
    with written_whole(path) as aside:
        aside.write_bytes(orjson.dumps(to_json(table)))


def write_splits(table: Table, folder: Path) -> None:
    """Write one COCO file a split, FOLDER/train|valid|test/_annotations.coco.json, as Roboflow lays them out.

    Images without a split go to train, and annotations of unknown images too. A file name that begins with its split's
    folder is written without it: such names are relative to the COCO file.
    """
    splits = np.array([split or "train" for split in table.images.splits], object)
    of_annotation = np.append(splits, "train")[table.image_rows]
    for split in sorted({"train", *splits.tolist()}):
        name = "valid" if split == "validation" else split
        images = table.images.take(np.flatnonzero(splits == split))
        inside = tuple(file_name.removeprefix(f"{name}/") for file_name in images.file_names)
        part = Table(
            name,
            replace(images, file_names=inside),
            table.categories,
            table.annotations.take(np.flatnonzero(of_annotation == split)),
            table.top,
            table.sections,
        )
        write(part, folder / name / ROBOFLOW)


def _has_sections(path: Path) -> bool:
    """Whether a JSON file has the names of COCO's lists in it, without parsing it."""
    data = path.read_bytes()
    return b'"images"' in data and (b'"annotations"' in data or b'"categories"' in data)


def _split_of(path: Path) -> str | None:
    """The split that a file's folder or name says."""
    said = path.parent.name if path.name == ROBOFLOW else path.stem
    words = re.findall("[a-z]+", said.casefold())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _read_file(path: Path, name: str, one_of_several: bool) -> Table:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
    split = _split_of(path) if one_of_several or path.name == ROBOFLOW else None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        # Python's reader takes the NaN and Infinity that careless writers leave; those are faults with a name.
        try:
            value = json.loads(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", where=str(path), fix="export the annotations again") from error
    return to_table(value, name, split)


def _images(entries: list[Any], split: str | None) -> Images:
    odd: dict[tuple[int, str], Any] = {}
    rows = _objects(entries, odd)
    return Images(
        _whole(rows, "id", odd, -1),
        _texts(rows, "file_name", odd),
        _whole(rows, "width", odd, 0, least=1),
        _whole(rows, "height", odd, 0, least=1),
        (split,) * len(rows),
        _others(rows, _IMAGE),
        odd,
    )


def _categories(entries: list[Any]) -> Categories:
    odd: dict[tuple[int, str], Any] = {}
    rows = _objects(entries, odd)
    names = _texts(rows, "name", odd)
    for row, name in enumerate(names):
        if (row, "name") not in odd and not name.strip():
            odd[row, "name"] = name
    supers = [entry.get("supercategory") for entry in rows]
    for row, (entry, value) in enumerate(zip(rows, supers, strict=True)):
        if "supercategory" in entry and not isinstance(value, str):
            odd[row, "supercategory"] = value
    return Categories(
        _whole(rows, "id", odd, -1),
        names,
        tuple(value if isinstance(value, str) else None for value in supers),
        _others(rows, _CATEGORY),
        odd,
    )


def _annotations(entries: list[Any]) -> Annotations:
    odd: dict[tuple[int, str], Any] = {}
    rows = _objects(entries, odd)
    values = [_as_text(entry.get("segmentation", ABSENT)) for entry in rows]
    kinds = np.fromiter(map(_kind, values), np.int8, len(values))
    return Annotations(
        _whole(rows, "id", odd, -1),
        _whole(rows, "image_id", odd, -1),
        _whole(rows, "category_id", odd, -1),
        _boxes(rows, odd),
        _areas(rows, odd),
        _crowd(rows, odd),
        kinds,
        tuple(None if value is ABSENT else value for value in values),
        _others(rows, _ANNOTATION),
        odd | {(row, "segmentation"): None for row, value in enumerate(values) if value is None},
    )


def _objects(entries: list[Any], odd: dict[tuple[int, str], Any]) -> Entries:
    if set(map(type, entries)) <= {dict}:
        return entries
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict):
            odd[row, ENTRY] = entry
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def _whole(
    rows: Entries, name: str, odd: dict[tuple[int, str], Any], unusable: int, least: int = 0
) -> NDArray[np.int64]:
    """A column of whole numbers of at least `least`; what is none goes to `odd`, and its row has `unusable`."""
    values = [entry.get(name, ABSENT) for entry in rows]
    if set(map(type, values)) <= {int} and all(least <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    column = np.full(len(values), unusable, np.int64)
    for row, value in enumerate(values):
        if type(value) is int and least <= value < 2**63:
            column[row] = value
        elif (row, ENTRY) not in odd:
            odd[row, name] = value
    return column


def _texts(rows: Entries, name: str, odd: dict[tuple[int, str], Any]) -> tuple[str, ...]:
    values = [entry.get(name, ABSENT) for entry in rows]
    for row, value in enumerate(values):
        if (not isinstance(value, str) or not value) and (row, ENTRY) not in odd:
            odd[row, name] = value
    return tuple(value if isinstance(value, str) else "" for value in values)


def _boxes(rows: Entries, odd: dict[tuple[int, str], Any]) -> NDArray[np.float64]:
    values = [entry.get("bbox", ABSENT) for entry in rows]
    if set(map(type, values)) <= {list} and set(map(len, values)) <= {4}:
        flat = list(chain.from_iterable(values))
        if set(map(type, flat)) <= _NUMBERS:
            column = np.array(flat, np.float64).reshape(-1, 4)
            for row in np.flatnonzero(~(np.abs(column) < EXACT).all(axis=1)).tolist():
                if not _is_box(values[row]):
                    odd[row, "bbox"] = values[row]
                    column[row] = np.nan
            return column
    column = np.full((len(values), 4), np.nan)
    for row, value in enumerate(values):
        if _is_box(value):
            column[row] = value
        elif value is not ABSENT:
            odd[row, "bbox"] = value
    return column


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value))


def _is_finite(value: Any) -> bool:
    if type(value) is int:
        return abs(value) <= EXACT
    return type(value) is float and math.isfinite(value)


def _areas(rows: Entries, odd: dict[tuple[int, str], Any]) -> NDArray[np.float64]:
    values = [entry.get("area", ABSENT) for entry in rows]
    if set(map(type, values)) <= _NUMBERS:
        column = np.array(values, np.float64)
        if (np.abs(column) < EXACT).all():
            return column
    column = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if _is_finite(value):
            column[row] = value
        elif value is not ABSENT:
            odd[row, "area"] = value
    return column


def _crowd(rows: Entries, odd: dict[tuple[int, str], Any]) -> NDArray[np.int8]:
    values = [entry.get("iscrowd", ABSENT) for entry in rows]
    if set(map(type, values)) <= {int} and set(values) <= {0, 1}:
        return np.array(values, np.int8)
    column = np.full(len(values), -1, np.int8)
    for row, value in enumerate(values):
        if type(value) is int and value in (0, 1):
            column[row] = value
        elif value is not ABSENT:
            odd[row, "iscrowd"] = value
    return column


def _as_text(value: Any) -> Any:
    """A compressed mask with its counts as text; pycocotools makes bytes."""
    if isinstance(value, dict) and isinstance(value.get("counts"), bytes):
        return {**value, "counts": value["counts"].decode("latin-1")}
    return value


def _kind(value: Any) -> int:
    if value is ABSENT or value is None or value == []:
        return Kind.NONE
    if type(value) is list:
        good = set(map(type, value)) == {list} and all(set(map(type, part)) <= _NUMBERS for part in value)
        return Kind.POLYGONS if good else Kind.BROKEN
    if type(value) is not dict or "counts" not in value or not _is_size(value.get("size")):
        return Kind.BROKEN
    counts = value["counts"]
    if type(counts) is str:
        return Kind.COMPRESSED
    whole = type(counts) is list and all(type(run) is int and abs(run) < 2**62 for run in counts)
    return Kind.UNCOMPRESSED if whole else Kind.BROKEN


def _is_size(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and all(type(side) is int and 0 < side < 2**31 for side in value)


def _others(rows: Entries, known: Sequence[str]) -> Other:
    names = frozenset(known)
    return {
        row: {key: value for key, value in entry.items() if key not in names}
        for row, entry in enumerate(rows)
        if not names.issuperset(entry)
    }


def _image_entries(table: Table) -> list[Any]:
    images = table.images
    columns = zip(images.ids.tolist(), images.file_names, images.widths.tolist(), images.heights.tolist(), strict=True)
    entries = [dict(zip(_IMAGE, values, strict=True)) for values in columns]
    return _completed(entries, images.other, images.odd)


def _category_entries(table: Table) -> list[Any]:
    categories = table.categories
    entries: Entries = []
    for number, name, above in zip(categories.ids.tolist(), categories.names, categories.supercategories, strict=True):
        entries.append({"id": number, "name": name} | ({} if above is None else {"supercategory": above}))
    return _completed(entries, categories.other, categories.odd)


def _annotation_entries(table: Table) -> list[Any]:
    columns = table.annotations
    entries: Entries = [
        {"id": i, "image_id": image, "category_id": category}
        for i, image, category in zip(
            columns.ids.tolist(), columns.image_ids.tolist(), columns.category_ids.tolist(), strict=True
        )
    ]
    written = zip(
        entries,
        columns.boxes.tolist(),
        np.all(np.isfinite(columns.boxes), axis=1).tolist(),
        columns.areas.tolist(),
        columns.crowd.tolist(),
        columns.segmentations,
        strict=True,
    )
    for entry, box, has_box, area, crowd, segmentation in written:
        if has_box:
            entry["bbox"] = box
        if area == area:  # not NaN
            entry["area"] = area
        if crowd >= 0:
            entry["iscrowd"] = crowd
        if segmentation is not None:
            entry["segmentation"] = segmentation
    return _completed(entries, columns.other, columns.odd)


def _completed(entries: list[Any], other: Other, odd: Odd) -> list[Any]:
    """The entries with their other fields, and with what could not be used as it was written."""
    for row, fields in other.items():
        entries[row] |= fields
    for (row, name), value in odd.items():
        if value is ABSENT:
            entries[row].pop(name, None)
        elif name != ENTRY:
            entries[row][name] = value
    for (row, name), value in odd.items():
        if name == ENTRY:
            entries[row] = value
    return entries


def _json_name(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"

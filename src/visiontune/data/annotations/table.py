"""Annotations in columns: the one form in memory of COCO, YOLO and Pascal VOC data, a million boxes as well as ten.

A column holds what can be used. What a file says instead of a usable value stands in `odd`, as it was written, so that
faults can be named and a file is written back as it was read.
"""

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Absent(Enum):
    """What stands in `odd` for a field that a file does not have, though it must."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT

# (row, field) -> the value as it was written.
Odd = Mapping[tuple[int, str], Any]
# row -> the fields that have no column of their own.
Other = Mapping[int, Mapping[str, Any]]
Places = tuple[str | None, ...]


class Kind(IntEnum):
    """How a segmentation is written. BROKEN: none of the forms that COCO knows, or one with parts missing."""

    NONE = 0
    POLYGONS = 1
    COMPRESSED = 2
    UNCOMPRESSED = 3
    BROKEN = 4


@dataclass(frozen=True, eq=False)
class Images:
    """n images.

    ids: (n,) int64, -1 where there is no usable id. widths, heights: (n,) int64 in pixels, 0 where unknown. file_names:
    "" where there is none. splits: the split that the author gave, or None. places: where an image stands in its
    author's files, None or no places at all where its id says so.
    """

    ids: NDArray[np.int64]
    file_names: tuple[str, ...]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    splits: tuple[str | None, ...]
    other: Other = field(default_factory=dict)
    odd: Odd = field(default_factory=dict)
    places: Places = ()

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> "Images":
        """These rows, in this order."""
        return Images(
            self.ids[rows],
            tuple(self.file_names[row] for row in rows.tolist()),
            self.widths[rows],
            self.heights[rows],
            tuple(self.splits[row] for row in rows.tolist()),
            _taken_other(self.other, rows),
            _taken_odd(self.odd, rows),
            tuple(self.places[row] for row in rows.tolist()) if self.places else (),
        )


@dataclass(frozen=True, eq=False)
class Categories:
    """n classes. ids: (n,) int64, -1 where there is no usable id. names: "" where there is none."""

    ids: NDArray[np.int64]
    names: tuple[str, ...]
    supercategories: tuple[str | None, ...]
    other: Other = field(default_factory=dict)
    odd: Odd = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> "Categories":
        """These rows, in this order."""
        return Categories(
            self.ids[rows],
            tuple(self.names[row] for row in rows.tolist()),
            tuple(self.supercategories[row] for row in rows.tolist()),
            _taken_other(self.other, rows),
            _taken_odd(self.odd, rows),
        )


@dataclass(frozen=True, eq=False)
class Annotations:
    """n annotated objects.

    ids, image_ids, category_ids: (n,) int64 as written, -1 where there is no usable one. boxes: (n, 4) float64, left,
    top, width, height in pixels, NaN where there is no usable box. areas: (n,) float64 in square pixels, NaN where
    there is none. crowd: (n,) int8, 0 or 1, -1 where the file does not say. kinds: (n,) int8, a `Kind`. segmentations:
    as COCO has them: a list of polygons [x0, y0, x1, y1, ...], or {"size": [height, width], "counts": str or list}.
    places: as those of images.
    """

    ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.int8]
    kinds: NDArray[np.int8]
    segmentations: tuple[Any, ...]
    other: Other = field(default_factory=dict)
    odd: Odd = field(default_factory=dict)
    places: Places = ()

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> "Annotations":
        """These rows, in this order."""
        return Annotations(
            self.ids[rows],
            self.image_ids[rows],
            self.category_ids[rows],
            self.boxes[rows],
            self.areas[rows],
            self.crowd[rows],
            self.kinds[rows],
            tuple(self.segmentations[row] for row in rows.tolist()),
            _taken_other(self.other, rows),
            _taken_odd(self.odd, rows),
            tuple(self.places[row] for row in rows.tolist()) if self.places else (),
        )


@dataclass(frozen=True)
class Unread:
    """A line or an element of a file that gave no row, and why. `image` is the name of its image, where it has one."""

    where: str
    image: str | None
    found: str

    @property
    def code(self) -> str:
        """The name of the fault: of a line, or of a whole file that has nothing to say of its image."""
        return "broken-file" if self.image is None else "broken-line"


@dataclass(frozen=True, eq=False)
class Table:
    """The annotations of one source. `name` is the file or folder they are from, as people see it.

    `top`: the other fields at the top of a COCO file. `sections` of images, annotations and categories that the file
    has as lists. `unread` and `ignored`: what gave no row, and what was left out by design (kind -> how many).
    `measured`: the format has no sizes of images; those here were read from the upright files.
    """

    name: str
    images: Images
    categories: Categories
    annotations: Annotations
    top: Mapping[str, Any] = field(default_factory=dict)
    sections: frozenset[str] = frozenset({"images", "annotations", "categories"})
    unread: tuple[Unread, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    measured: bool = False

    @cached_property
    def image_rows(self) -> NDArray[np.int64]:
        """(annotations,) int64: the row of each annotation's image, -1 where no image has the id."""
        return rows_of(self.annotations.image_ids, self.images.ids)

    @cached_property
    def category_rows(self) -> NDArray[np.int64]:
        """(annotations,) int64: the row of each annotation's class, -1 where no class has the id."""
        return rows_of(self.annotations.category_ids, self.categories.ids)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(annotations, 2) int64: width and height in pixels of each annotation's image, 0 where unknown."""
        known = np.stack([np.append(self.images.widths, 0), np.append(self.images.heights, 0)], axis=1)
        sizes = known[self.image_rows]
        sizes[(sizes <= 0).any(axis=1)] = 0
        return sizes

    @cached_property
    def sized(self) -> NDArray[np.bool_]:
        """(annotations,) bool: the size of the annotation's image is known."""
        return np.asarray((self.sizes > 0).all(axis=1))

    @cached_property
    def _by_image(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.image_rows, kind="stable")
        return order, np.searchsorted(self.image_rows[order], np.arange(len(self.images) + 1))

    def annotation_rows(self, image_row: int) -> NDArray[np.int64]:
        """The rows of one image's annotations, in the order of the file."""
        order, starts = self._by_image
        return order[starts[image_row] : starts[image_row + 1]]

    def image_place(self, row: int) -> str:
        """Where people find an image in their files."""
        images = self.images
        if images.places and (place := images.places[row]) is not None:
            return place
        name = images.file_names[row]
        return f"{_numbered('image', images, row)}{f' ({name})' if name else ''}"

    def annotation_name(self, row: int) -> str:
        """What people call an annotation, among those of its image."""
        places = self.annotations.places
        place = places[row] if places else None
        return _numbered("annotation", self.annotations, row) if place is None else place

    def annotation_place(self, row: int) -> str:
        """Where people find an annotation in their files."""
        columns, image_row = self.annotations, int(self.image_rows[row])
        if columns.places and columns.places[row] is not None:
            return self.annotation_name(row)
        if image_row >= 0:
            return f"{self.image_place(image_row)}, {self.annotation_name(row)}"
        written = columns.odd.get((row, "image_id"), int(columns.image_ids[row]))
        image = "" if written is ABSENT or written == -1 else f"image {written}, "
        return image + self.annotation_name(row)

    def with_annotations(self, **columns: Any) -> "Table":
        """The table with some columns of its annotations replaced."""
        return replace(self, annotations=replace(self.annotations, **columns))


def _numbered(kind: str, part: Images | Annotations, row: int) -> str:
    """An image or annotation by its id, as it was written; by its entry in the file where it has none."""
    number = int(part.ids[row])
    written = number if number >= 0 else part.odd.get((row, "id"), ABSENT)
    return f"entry {row} of {kind}s" if written is ABSENT else f"{kind} {written}"


def rows_of(wanted: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first row with each wanted id, -1 where there is none; -1 is no id."""
    if not len(ids):
        return np.full(len(wanted), -1, np.int64)
    unique, first = np.unique(ids, return_index=True)
    place = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
    return np.where((unique[place] == wanted) & (wanted != -1), first[place], -1)


def without(odd: Odd, rows: Sequence[int], name: str) -> Odd:
    """`odd` less one field of some rows, which have a usable value now."""
    gone = {(row, name) for row in rows}
    return {key: value for key, value in odd.items() if key not in gone}


def merged(tables: Sequence[Table], name: str) -> Table:
    """Several tables as one: images and annotations numbered anew, from 1, where two tables use the same id.

    Classes are one where their names are equal. File names begin with the folder of their table, where it has one: each
    split of a Roboflow export has its own 1.jpg. ValueError without a table.
    """
    if len(tables) == 1:
        return replace(tables[0], name=name)
    names = [class_name for table in tables for class_name in table.categories.names]
    first = {class_name: row for row, class_name in reversed(list(enumerate(names)))}
    class_ids = {class_name: number for number, class_name in enumerate(dict.fromkeys(names))}
    categories = _concatenated_categories(tables).take(np.array([first[one] for one in class_ids], np.int64))
    image_ids = _renumbered([table.images.ids for table in tables])
    annotation_ids = _renumbered([table.annotations.ids for table in tables])
    offsets = np.cumsum([0, *(len(table.images) for table in tables)])
    annotations = _concatenated_annotations(tables)
    all_images = np.append(image_ids, -1)
    all_classes = np.arange(len(class_ids) + 1)
    all_classes[-1] = -1
    rows = np.concatenate(
        [
            np.where(t.image_rows < 0, len(image_ids), t.image_rows + start)
            for t, start in zip(tables, offsets, strict=False)
        ]
    )
    classes = np.concatenate(
        [
            np.array([*(class_ids[n] for n in t.categories.names), len(class_ids)], np.int64)[t.category_rows]
            for t in tables
        ]
    )
    top: dict[str, Any] = {}
    ignored: dict[str, int] = {}
    for table in tables:
        for key, value in table.top.items():
            top.setdefault(key, value)
        for key, count in table.ignored.items():
            ignored[key] = ignored.get(key, 0) + count
    return Table(
        name,
        replace(_concatenated_images(tables), ids=image_ids, places=_places(tables, Table.image_place)),
        replace(categories, ids=np.arange(len(class_ids))),
        replace(
            annotations,
            ids=annotation_ids,
            image_ids=all_images[rows],
            category_ids=all_classes[classes],
            places=_places(tables, Table.annotation_place),
        ),
        top,
        frozenset().union(*(table.sections for table in tables)),
        tuple(unread for table in tables for unread in table.unread),
        ignored,
    )


def _renumbered(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    ids = np.concatenate(columns)
    usable = ids[ids >= 0]
    return ids if len(np.unique(usable)) == len(usable) == len(ids) else np.arange(1, len(ids) + 1)


def _concatenated_images(tables: Sequence[Table]) -> Images:
    parts = [table.images for table in tables]
    return Images(
        np.concatenate([part.ids for part in parts]),
        tuple(_with_folder(name, table) for table in tables for name in table.images.file_names),
        np.concatenate([part.widths for part in parts]),
        np.concatenate([part.heights for part in parts]),
        tuple(split for part in parts for split in part.splits),
        *_shifted(parts),
    )


def _places(tables: Sequence[Table], place: Callable[[Table, int], str]) -> Places:
    """All places with the names of their tables: ids alone do not tell these apart."""
    counts = [len(t.images if place is Table.image_place else t.annotations) for t in tables]
    return tuple(f"{t.name}, {place(t, row)}" for t, count in zip(tables, counts, strict=True) for row in range(count))


def _with_folder(file_name: str, table: Table) -> str:
    folder = posixpath.dirname(table.name)
    return posixpath.join(folder, file_name) if folder and file_name else file_name


def _concatenated_categories(tables: Sequence[Table]) -> Categories:
    parts = [table.categories for table in tables]
    return Categories(
        np.concatenate([part.ids for part in parts]),
        tuple(name for part in parts for name in part.names),
        tuple(name for part in parts for name in part.supercategories),
        *_shifted(parts),
    )


def _concatenated_annotations(tables: Sequence[Table]) -> Annotations:
    parts = [table.annotations for table in tables]
    return Annotations(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.category_ids for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.areas for part in parts]),
        np.concatenate([part.crowd for part in parts]),
        np.concatenate([part.kinds for part in parts]),
        tuple(value for part in parts for value in part.segmentations),
        *_shifted(parts),
    )


def _shifted(parts: Sequence[Images] | Sequence[Categories] | Sequence[Annotations]) -> tuple[Other, Odd]:
    other: dict[int, Mapping[str, Any]] = {}
    odd: dict[tuple[int, str], Any] = {}
    start = 0
    for part in parts:
        other |= {row + start: fields for row, fields in part.other.items()}
        odd |= {(row + start, name): value for (row, name), value in part.odd.items()}
        start += len(part)
    return other, odd


def _taken_other(other: Other, rows: NDArray[np.int64]) -> Other:
    if not other:
        return other
    return {new: other[old] for new, old in enumerate(rows.tolist()) if old in other}


def _taken_odd(odd: Odd, rows: NDArray[np.int64]) -> Odd:
    if not odd:
        return odd
    places = {old: new for new, old in enumerate(rows.tolist())}
    return {(places[row], name): value for (row, name), value in odd.items() if row in places}

"""YOLO: one text file an image, a line an object: class and box (centre, width, height) or polygon, as shares of the
image.

`data.yaml` names the classes and where each split's images are; without one, `classes.txt` names the classes. The
labels of images/a/b.jpg stand in labels/a/b.txt, or beside the image; folders above the data set say nothing of that.
An image without a label file has no objects.
YOLO has no areas: they are those of the boxes and polygons.
"""

import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from visiontune.data.annotations.masks import is_ring, to_rle
from visiontune.data.annotations.outlines import outline
from visiontune.data.annotations.table import Annotations, Categories, Images, Kind, Table, Unread
from visiontune.data.images import SUFFIXES, read_header
from visiontune.data.split import SPLIT_NAMES
from visiontune.errors import DataError

LAYOUTS = (
    "give a data.yaml with names and train, val and test, "
    "or a folder with it (or with classes.txt), images/ and labels/"
)
_YAMLS = ("data.yaml", "data.yml", "dataset.yaml")
_NAMES = ("classes.txt", "labels/classes.txt")
_SPLITS = ("train", "val", "test")
SAME_BOX = 1.0  # pixels by which a box and the bounds of its mask may differ: both are drawn to pixels
_KNOWN = frozenset({*_SPLITS, "path", "names", "nc"})


@dataclass
class _Lines:
    """The lines of all label files."""

    classes: list[int] = field(default_factory=list)
    image_of: list[int] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    polygons: list[list[list[float]] | None] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)


def detect(source: Path) -> bool:
    """Whether this is a data.yaml, or a folder with one or with classes.txt."""
    if source.is_file():
        return source.suffix.lower() in (".yaml", ".yml")
    return any((source / name).is_file() for name in (*_YAMLS, *_NAMES))


def root(source: Path) -> Path:
    """The folder that paths of images start from: what data.yaml calls `path`, else its own."""
    return _description(source)[0]


def read(source: Path) -> Table:
    """The objects of a YOLO data set; DataError where nothing names the classes or there are no images.

    Images are read for their sizes; one that cannot be read has the size 0, which is a fault with a name.
    """
    base, description = _description(source)
    names = _class_names(base, description, source)
    lines = _Lines()
    files = _images(base, description)
    if not files:
        raise DataError("there are no images here", where=str(source), fix=LAYOUTS)
    sizes = np.zeros((len(files), 2), np.int64)
    odd: dict[tuple[int, str], Any] = {}
    for row, (path, _) in enumerate(files):
        size = _size(path)
        if size is None:
            odd |= {(row, "width"): None, (row, "height"): None}
        else:
            sizes[row] = size
        _read_labels(label_file(path, base), base, row, size, _name(path, base), lines)
    count = len(lines.classes)
    names_of_files = tuple(_name(path, base) for path, _ in files)
    kinds = [Kind.NONE if parts is None else Kind.POLYGONS for parts in lines.polygons]
    return Table(
        source.name if source.is_dir() else source.parent.name,
        Images(
            np.arange(1, len(files) + 1),
            names_of_files,
            sizes[:, 0],
            sizes[:, 1],
            tuple(split for _, split in files),
            odd=odd,
            places=names_of_files,
        ),
        Categories(np.array(list(names), np.int64), tuple(names.values()), (None,) * len(names)),
        Annotations(
            np.arange(1, count + 1),
            np.array(lines.image_of, np.int64) + 1,
            np.array(lines.classes, np.int64),
            np.array(lines.boxes, np.float64).reshape(-1, 4),
            np.array(lines.areas, np.float64),
            np.full(count, -1, np.int8),
            np.array(kinds, np.int8),
            tuple(lines.polygons),
            places=tuple(lines.places),
        ),
        {key: value for key, value in description.items() if key not in _KNOWN},
        unread=tuple(lines.unread),
        measured=True,
    )


def write(table: Table, folder: Path) -> Counter[str]:
    """Write data.yaml, a list of images for each split, and the label files. Returns what YOLO cannot hold, counted.

    The images themselves are the caller's to put into the folder, under the names that the table has; nothing is
    synced. Crowds are left out: read back they would be objects. A mask that is not one polygon becomes one (see
    `outlines`); where a mask is written, the box is the polygon's.
    """
    lost: Counter[str] = Counter()
    columns, images = table.annotations, table.images
    numbers = {row: number for number, row in enumerate(np.argsort(table.categories.ids, kind="stable").tolist())}
    for image_row, name in enumerate(images.file_names):
        size = (int(images.widths[image_row]), int(images.heights[image_row]))
        lines: list[str] = []
        for row in table.annotation_rows(image_row).tolist():
            if columns.crowd[row] == 1:
                lost["crowds"] += 1
            elif table.category_rows[row] < 0 or np.isnan(columns.boxes[row]).any() or min(size) < 1:
                lost["objects without box, class or image size"] += 1
            else:
                lines.append(f"{numbers[int(table.category_rows[row])]} {_shares(table, row, size, lost)}")
        label = folder / _label_name(Path(name))
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    lost["objects of unknown images"] = int((table.image_rows < 0).sum())
    lost["fields of objects"] = len(columns.other)
    lost["fields of images"] = len(images.other)
    # Without `path`: tools that know it as one of the working folder's take the folder of data.yaml then.
    description: dict[str, Any] = {}
    for short, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        listed = [name for name, of in zip(images.file_names, images.splits, strict=True) if (of or "train") == split]
        if listed or short == "train":
            text = "".join(f"./{name}\n" for name in listed)
            (folder / f"{short}.txt").write_text(text, encoding="utf-8")
            description[short] = f"{short}.txt"
    description["names"] = {number: table.categories.names[row] for row, number in numbers.items()}
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return +lost


def _description(source: Path) -> tuple[Path, dict[str, Any]]:
    """The root of the data set and what data.yaml says, {} without one."""
    path = source if source.is_file() else next((source / n for n in _YAMLS if (source / n).is_file()), None)
    if path is None:
        return source, {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeError) as error:
        raise DataError(f"not YAML: {error}", where=str(path), fix="correct the file") from error
    if not isinstance(value, dict):
        raise DataError("this is no description of a data set", where=str(path), fix=LAYOUTS)
    # A path that was right on another machine leads nowhere here; the folder of the file is the next best.
    root = path.parent / str(value.get("path") or ".")
    return (root if root.is_dir() else path.parent), value


def _class_names(root: Path, description: Mapping[str, Any], source: Path) -> dict[int, str]:
    names = description.get("names")
    if names is None:
        path = next((root / name for name in _NAMES if (root / name).is_file()), None)
        if path is None:
            raise DataError("nothing names the classes", where=str(source), fix=LAYOUTS)
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    try:
        found = {int(number): str(name) for number, name in pairs}
    except ValueError as error:
        raise DataError(f"a class number is no whole number: {error}", where=str(source), fix=LAYOUTS) from error
    if not found:
        raise DataError("names is no list of classes", where=str(source), fix=LAYOUTS)
    return dict(sorted(found.items()))


def _images(root: Path, description: Mapping[str, Any]) -> list[tuple[Path, str | None]]:
    """(image, split), in the order of the paths, each image once."""
    listed: dict[Path, str | None] = {}
    for short in _SPLITS:
        places = description.get(short)
        for place in [places] if isinstance(places, str) else places if isinstance(places, list) else []:
            for path in _listed(_place(root, str(place))):
                listed.setdefault(path, SPLIT_NAMES[short])
    if not any(description.get(short) for short in _SPLITS):
        folder = root / "images" if (root / "images").is_dir() else root
        for path in _listed(folder):
            listed[path] = SPLIT_NAMES.get(path.relative_to(folder).parts[0].casefold())
    return sorted(listed.items())


def _place(root: Path, written: str) -> Path:
    """A place of images. Roboflow writes ../train/images for what is train/images beside data.yaml."""
    place = root / written
    inside = root / written.removeprefix("../")
    return inside if not place.exists() and inside.exists() else place


def _listed(place: Path) -> list[Path]:
    """The images in a folder and below, or those that a text file lists."""
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not place.is_file():
        raise DataError("data.yaml names a place that is not there", where=str(place), fix="correct the path")
    lines = place.read_text(encoding="utf-8-sig").splitlines()
    return [place.parent / line.strip() for line in lines if line.strip()]


def label_file(image: Path, root: Path) -> Path:
    """Where the labels of an image of the data set at `root` stand, or would stand.

    The rule is for the path from the root on: a data set may lie below a folder called `images`. A root that is itself
    such a folder, or lies in one, may have its labels beside it; that is looked for last.
    """
    inside = root / _label_name(image.relative_to(root)) if image.is_relative_to(root) else _label_name(image)
    places = (inside, image.with_suffix(".txt"), _label_name(image))
    return next((place for place in places if place.is_file()), inside)


def _label_name(image: Path) -> Path:
    """The path of an image as that of its labels: its last folder `images` becomes `labels`; else beside the image."""
    parts = list(image.parts)
    folders = [k for k, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _name(path: Path, root: Path) -> str:
    return posixpath.normpath(path.relative_to(root).as_posix()) if path.is_relative_to(root) else path.as_posix()


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height of the upright image; None where it cannot be read."""
    try:
        header = read_header(path.read_bytes())
    except (OSError, DataError):  # the examination of images says what is wrong with it
        return None
    return header.width, header.height


def _read_labels(path: Path, root: Path, row: int, size: tuple[int, int] | None, image: str, lines: _Lines) -> None:
    if not path.is_file():
        return
    where = _name(path, root)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeError:
        lines.unread.append(Unread(where, image, "the text is not UTF-8"))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        found = problem(words, size)
        if found is not None:
            lines.unread.append(Unread(f"{where}, line {number}", image, found))
            continue
        width, height = size or (0, 0)
        values = np.array(words[1:], np.float64)
        if len(values) == 4:
            x, y, w, h = values.tolist()
            box, polygon = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height], None
            area = w * width * h * height
        else:
            points = values.reshape(-1, 2) * (width, height)
            low, high = points.min(axis=0), points.max(axis=0)
            box, polygon = [*low.tolist(), *(high - low).tolist()], [points.ravel().tolist()]
            following = np.roll(points, -1, axis=0)
            area = float(abs((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum()) / 2)
        lines.classes.append(int(float(words[0])))
        lines.image_of.append(row)
        lines.boxes.append(box)
        lines.areas.append(area)
        lines.polygons.append(polygon)
        lines.places.append(f"{where}, line {number}")


def problem(words: list[str], size: tuple[int, int] | None) -> str | None:
    """What is wrong with a line, None if nothing is."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return "there is a word that is no number"
    if not np.isfinite(numbers).all():
        return "a number is not finite"
    if numbers[0] < 0 or numbers[0] != int(numbers[0]):
        return f"the class {words[0]} is no whole number from 0"
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        return f"{len(words)} numbers: a box has 5, a polygon 7 or more, an odd number"
    return "the size of the image is not known" if size is None else None


def _shares(table: Table, row: int, size: tuple[int, int], lost: Counter[str]) -> str:
    polygon, box = _polygon(table, row, size), table.annotations.boxes[row]
    if polygon is not None:
        points = np.array(polygon, np.float64).reshape(-1, 2)
        corners = np.concatenate([points.min(axis=0), points.max(axis=0)])
        lost["boxes that are not those of their masks"] += bool(
            (np.abs(corners - np.concatenate([box[:2], box[:2] + box[2:]])) > SAME_BOX).any()
        )
        shares = (points / size).ravel()
    else:
        lost["masks that cannot be drawn"] += bool(table.annotations.kinds[row] != Kind.NONE)
        left, top, width, height = box.tolist()
        shares = np.array([left + width / 2, top + height / 2, width, height]) / np.tile(size, 2)
    return " ".join(f"{share:.10g}" for share in shares.tolist())


def _polygon(table: Table, row: int, size: tuple[int, int]) -> list[float] | None:
    """The mask of an annotation as one polygon in pixels; None without one, or where it is not sound."""
    kind, value = int(table.annotations.kinds[row]), table.annotations.segmentations[row]
    if kind == Kind.POLYGONS and len(value) == 1 and is_ring(value[0]):
        return value[0]
    try:
        mask = to_rle(kind, value, size[1], size[0])
    except DataError:
        return None
    return None if mask is None else outline(mask)

"""Pascal VOC: one XML file an image, boxes as xmin, ymin, xmax, ymax.

The original VOC counts pixels from 1 and includes the last one: a box from 1 to 1 is one pixel wide. Most tools that
write its XML today write edges instead: a box from 1 to 1 is nothing, and a coordinate may be 0. Nothing in the XML
says which. `pixels_from` decides by what stands in all files of a source, and the reader's caller may say it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.table import ABSENT, Annotations, Categories, Images, Kind, Table, Unread
from visiontune.data.split import SPLIT_NAMES
from visiontune.errors import DataError

Pixels = Literal["counted from 1", "edges"]

LAYOUTS = "give a folder of VOC's XML files, or one with Annotations/ and JPEGImages/ in it"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_FOLDERS = ("JPEGImages", "images")
_PIXELS = "voc_pixels"


@dataclass
class _Listed:
    """What the XML files of a source say, object by object."""

    names: list[str] = field(default_factory=list)
    sizes: list[tuple[str | None, str | None]] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    image_fields: list[dict[str, Any]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    corners: list[list[float]] = field(default_factory=list)
    image_of: list[int] = field(default_factory=list)
    fields: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def files(source: Path) -> list[Path]:
    """The XML files of a VOC source, sorted: the file itself, or those in Annotations/ or in the folder."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".xml" else []
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    return sorted(path for path in folder.rglob("*.xml") if path.is_file())


def read(source: Path, pixels: Pixels | None = None) -> Table:
    """The objects of all XML files as one table; DataError where there are none.

    `pixels` says how coordinates are meant; None leaves it to `pixels_from`. `difficult`, `truncated` and other fields
    of objects are kept. Segmentation images and parts of objects are not read, and counted in `ignored`.
    """
    found = files(source)
    if not found:
        raise DataError("there are no XML files here", where=str(source), fix=LAYOUTS)
    splits = _splits(source)
    listed = _Listed()
    for path in found:
        _read_file(path, source if source.is_dir() else source.parent, splits, listed)
    meant = pixels or pixels_from(listed.corners)
    return _table(listed, str(source.name), meant)


def pixels_from(corners: Sequence[Sequence[float]]) -> Pixels:
    """How coordinates are meant: "edges" if one is below 1 or no whole number, or if a box is a point.

    Counted from 1, none of these can be: there is no pixel 0, and nobody draws a box around one pixel.
    """
    array = np.array(corners, np.float64).reshape(-1, 4)
    points = (array[:, :2] == array[:, 2:]).all(axis=1)
    edges = array.size > 0 and (array.min() < 1 or (array % 1 != 0).any() or points.any())
    return "edges" if edges else "counted from 1"


def write(table: Table, folder: Path, pixels: Pixels = "counted from 1") -> Counter[str]:
    """Write FOLDER/Annotations/NAME.xml for each image, and the splits that are known into ImageSets/Main. Returns what
    VOC cannot hold, counted.

    Coordinates become whole pixels, and a box has at least two in one direction: a box of one pixel would say that
    edges are meant (see `pixels_from`). Crowds become objects that are marked as difficult, which VOC's scores do not
    count. An image's folders become a part of its XML file's path. Nothing is synced.
    """
    lost: Counter[str] = Counter()
    columns = table.annotations
    lost["masks"] = int((columns.kinds != Kind.NONE).sum())
    lost["crowd flags"] = int((columns.crowd == 1).sum())
    first = 1 if pixels == "counted from 1" else 0
    for image_row, name in enumerate(table.images.file_names):
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = Path(name).name
        size = ElementTree.SubElement(root, "size")
        sides = (int(table.images.widths[image_row]), int(table.images.heights[image_row]))
        for side, value in zip(("width", "height"), sides, strict=True):
            ElementTree.SubElement(size, side).text = str(value)
        for row in table.annotation_rows(image_row).tolist():
            box = columns.boxes[row]
            if np.isnan(box).any() or table.category_rows[row] < 0:
                lost["objects without box or class"] += 1
                continue
            whole = _whole_pixels(box, sides, lost)
            element = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(element, "name").text = table.categories.names[table.category_rows[row]]
            fields = {"difficult": 1} if columns.crowd[row] == 1 else {}
            for key, value in {**columns.other.get(row, {}), **fields}.items():
                if isinstance(value, str | int | float):
                    ElementTree.SubElement(element, key).text = str(value)
                else:
                    lost[f"values of {key}"] += 1
            bounds = ElementTree.SubElement(element, "bndbox")
            for corner, value, shift in zip(_CORNERS, whole, (first, first, 0, 0), strict=True):
                ElementTree.SubElement(bounds, corner).text = str(value + shift)
        ElementTree.indent(root, "\t")
        path = (folder / "Annotations" / _below(name)).with_suffix(".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")
    _write_splits(table, folder)
    lost["objects of unknown images"] = int((table.image_rows < 0).sum())
    lost["classes without objects"] = len(set(range(len(table.categories))) - set(table.category_rows.tolist()))
    return +lost


def _whole_pixels(box: NDArray[np.float64], sides: tuple[int, int], lost: Counter[str]) -> list[int]:
    """Left, top, right and bottom edge of a box in whole pixels, at least one each way and two one way."""
    corners = np.concatenate([box[:2], box[:2] + box[2:]])
    whole = np.rint(corners).astype(np.int64)
    lost["fractions of pixels"] += bool((whole != corners).any())
    flat = whole[2:] <= whole[:2]
    whole[:2][flat] = np.minimum(np.floor(corners[:2][flat]), np.array(sides)[flat] - 1)
    whole[2:][flat] = whole[:2][flat] + 1
    if (whole[2:] - whole[:2] == 1).all():
        lost["boxes of one pixel, now two wide"] += 1
        axis = 0 if sides[0] > 1 else 1
        whole[axis + 2 if whole[axis + 2] < sides[axis] else axis] += 1 if whole[axis + 2] < sides[axis] else -1
    return whole.tolist()


def _write_splits(table: Table, folder: Path) -> None:
    """The names of each split's images, without suffix; nothing where no image has a split."""
    for short, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        names = zip(table.images.file_names, table.images.splits, strict=True)
        if stems := [Path(name).stem for name, of in names if of == split]:
            path = folder / "ImageSets" / "Main" / f"{short}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _below(name: str) -> Path:
    """An image's path without the folder that VOC keeps images in."""
    path = Path(name)
    return Path(*path.parts[1:]) if len(path.parts) > 1 and path.parts[0] in _IMAGE_FOLDERS else path


def _splits(source: Path) -> dict[str, str]:
    """XML file's stem -> split, from ImageSets/Main/train.txt, val.txt and test.txt."""
    found: dict[str, str] = {}
    for path in sorted((source / "ImageSets" / "Main").glob("*.txt")):
        split = SPLIT_NAMES.get(path.stem.casefold())
        if split:
            found |= {line.split()[0]: split for line in path.read_text(encoding="utf-8").splitlines() if line.split()}
    return found


def _read_file(path: Path, root: Path, splits: dict[str, str], listed: _Listed) -> None:
    where = path.relative_to(root).as_posix()
    try:
        annotation = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeError) as error:
        listed.unread.append(Unread(where, None, f"not XML: {error}"))
        return
    image = len(listed.names)
    listed.names.append(_image_name(path, root, annotation.findtext("filename")))
    listed.files.append(where)
    listed.sizes.append((annotation.findtext("size/width"), annotation.findtext("size/height")))
    listed.splits.append(splits.get(path.stem))
    listed.image_fields.append(_texts(annotation, ("filename", "size", "object", "path")))
    listed.ignored["segmentation images"] += (annotation.findtext("segmented") or "0").strip() == "1"
    for number, element in enumerate(annotation.iterfind("object"), start=1):
        name = (element.findtext("name") or "").strip()
        corners = [_number(element.findtext(f"bndbox/{corner}")) for corner in _CORNERS]
        if not name or None in corners:
            what = "no class name" if not name else "no box of four numbers"
            listed.unread.append(Unread(f"{where}, object {number}", listed.names[image], f"there is {what}"))
            continue
        listed.classes.append(name)
        listed.corners.append([corner for corner in corners if corner is not None])
        listed.image_of.append(image)
        listed.places.append(f"{where}, object {number}")
        listed.fields.append(_texts(element, ("name", "bndbox", "part", "polygon")))
        listed.ignored["parts of objects"] += len(element.findall("part"))
        listed.ignored["polygons"] += len(element.findall("polygon"))


def _image_name(path: Path, root: Path, written: str | None) -> str:
    """The image's path in the source: the file of the written name, else of the XML file's name, if one is there."""
    inner = path.relative_to(root).parent
    inner = inner.relative_to("Annotations") if inner.parts[:1] == ("Annotations",) else inner
    name = Path(written.strip()).name if written and written.strip() else path.stem + ".jpg"
    for candidate in dict.fromkeys((name, path.stem + Path(name).suffix)):
        for folder in (*_IMAGE_FOLDERS, ""):
            place = Path(folder) / inner / candidate
            if (root / place).is_file():
                return place.as_posix()
    return (inner / name).as_posix()


def _table(listed: _Listed, name: str, pixels: Pixels) -> Table:
    names = sorted(set(listed.classes))
    id_of = {class_name: number for number, class_name in enumerate(names, start=1)}
    # VOC has no areas: they are those of the boxes.
    corners = np.array(listed.corners, np.float64).reshape(-1, 4)
    if pixels == "counted from 1":
        corners = corners - (1, 1, 0, 0)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    odd: dict[tuple[int, str], Any] = {}
    sides = np.zeros((len(listed.sizes), 2), np.int64)
    for row, texts in enumerate(listed.sizes):
        for axis, (side, text) in enumerate(zip(("width", "height"), texts, strict=True)):
            number = _number(text)
            if number is not None and number >= 1 and number == int(number):
                sides[row, axis] = int(number)
            else:
                odd[row, side] = ABSENT if text is None else text
    count = len(listed.classes)
    return Table(
        name,
        Images(
            np.arange(1, len(listed.names) + 1),
            tuple(listed.names),
            sides[:, 0],
            sides[:, 1],
            tuple(listed.splits),
            {row: fields for row, fields in enumerate(listed.image_fields) if fields},
            odd,
            tuple(listed.files),
        ),
        Categories(np.arange(1, len(names) + 1), tuple(names), (None,) * len(names)),
        Annotations(
            np.arange(1, count + 1),
            np.array(listed.image_of, np.int64) + 1,
            np.array([id_of[class_name] for class_name in listed.classes], np.int64),
            boxes,
            boxes[:, 2:].prod(axis=1),
            np.full(count, -1, np.int8),
            np.zeros(count, np.int8),
            (None,) * count,
            {row: fields for row, fields in enumerate(listed.fields) if fields},
            places=tuple(listed.places),
        ),
        top={_PIXELS: pixels},
        unread=tuple(listed.unread),
        ignored=+listed.ignored,
    )


def _texts(element: ElementTree.Element, known: tuple[str, ...]) -> dict[str, Any]:
    """The fields of an element that have no children; whole numbers as such."""
    found: dict[str, Any] = {}
    for child in element:
        if child.tag not in known and not len(child):
            text = (child.text or "").strip()
            found[child.tag] = int(text) if text.isdecimal() and text.isascii() else text
    return found


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) else None

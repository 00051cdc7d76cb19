"""The format of annotations found from a path, and read."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from visiontune.data.annotations import coco, voc, yolo
from visiontune.data.annotations.image_files import Places
from visiontune.data.annotations.table import Table
from visiontune.data.format_names import Annotations as Format
from visiontune.errors import DataError

FOUND_BY: dict[Format, Callable[[Path], object]] = {"coco": coco.files, "yolo": yolo.detect, "voc": voc.files}
_SHOWN = 6


def detect(source: Path) -> Format:
    """The format of a file or folder; DataError that says what was found there instead.

    A folder with files of several formats is the first of COCO, YOLO and VOC that it holds.
    """
    if not source.exists():
        raise DataError("there is no such file or folder", where=str(source), fix="check the path")
    for kind, is_one in FOUND_BY.items():
        if is_one(source):
            return kind
    fix = f"COCO: {coco.LAYOUTS}. YOLO: {yolo.LAYOUTS}. Pascal VOC: {voc.LAYOUTS}"
    raise DataError(f"this is no annotation of a known format: {_contents(source)}", where=str(source), fix=fix)


def read(source: Path, kind: Format | None = None) -> tuple[Table, ...]:
    """The tables of a source: one a file of COCO, one in all for YOLO and VOC. See `table.merged` for one of many.

    `kind`: read it as that.
    """
    if kind is not None and not FOUND_BY[kind](source):
        layouts = {"coco": coco.LAYOUTS, "yolo": yolo.LAYOUTS, "voc": voc.LAYOUTS}[kind]
        raise DataError(f"this is no {kind}: {_contents(source)}", where=str(source), fix=layouts)
    found = kind or detect(source)
    if found == "coco":
        return coco.read(source)
    return (yolo.read(source) if found == "yolo" else voc.read(source),)


def places(source: Path, kind: Format) -> Places:
    """Where the images of a source lie: of YOLO in the folder that data.yaml names, where its reader looks too."""
    return Places(yolo.root(source) if kind == "yolo" else source)


def _contents(source: Path) -> str:
    if source.is_file():
        return f"a file {source.suffix or 'without a suffix'} of {source.stat().st_size:,} bytes"
    kinds = Counter(path.suffix.lower() or "no suffix" for path in source.rglob("*") if path.is_file())
    if not kinds:
        return "an empty folder"
    listed = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common(_SHOWN))
    return f"files by suffix: {listed}{', ...' if len(kinds) > _SHOWN else ''}"

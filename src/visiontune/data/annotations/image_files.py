"""The image files that a table names: found, decoded once, and measured."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.table import Table
from visiontune.data.images import decode_with_facts
from visiontune.data.split import SPLIT_NAMES
from visiontune.data.workers import parallel
from visiontune.errors import DataError
from visiontune.progress import progress

CHUNK = 256
_SIDEWAYS = (5, 6, 7, 8)


class _Facts(NamedTuple):
    """What a file is: why it cannot be used, its upright size in pixels, EXIF's orientation, its hash."""

    error: str | None
    width: int = 0
    height: int = 0
    orientation: int = 1
    sha256: str = ""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The files of a table's n images, row by row.

    paths: None where there is no file, or several. errors: why a file cannot be used, None where it can. missing: (n,)
    bool, there is no file. sizes: (n, 2) int64, width and height in pixels of the upright image, 0 where unknown.
    orientations: (n,) int64, EXIF's 1 to 8. sha256: of the bytes, "" without a file.
    """

    paths: tuple[Path | None, ...]
    errors: tuple[str | None, ...]
    missing: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    orientations: NDArray[np.int64]
    sha256: tuple[str, ...]

    @property
    def sideways(self) -> NDArray[np.bool_]:
        """(n,) bool: the stored pixels lie on their side."""
        return np.isin(self.orientations, _SIDEWAYS)


class Places:
    """The folders in which the images of a source (an annotation file or a folder) may be: its own folder, those in it,
    and for a file in a folder called annotations those beside that one, as COCO is published."""

    def __init__(self, source: Path) -> None:
        base = source if source.is_dir() else source.parent
        outer = base.parent if base.name.casefold() == "annotations" else base
        self.outer = outer.resolve()
        self.folders = tuple(dict.fromkeys([base, *_children(base), outer, *_children(outer)]))

    def find(self, name: str, split: str | None = None) -> list[Path]:
        """The files of that name, never one outside of the source; where a split is known, that of its folder."""
        found = [folder for folder in self.folders if name and self._holds(folder / name)]
        of_split = [folder for folder in found if SPLIT_NAMES.get(folder.name.casefold()) == split]
        chosen = of_split if len(found) > 1 and split is not None and len(of_split) == 1 else found
        return [folder / name for folder in chosen]

    def _holds(self, path: Path) -> bool:
        return path.is_file() and path.resolve().is_relative_to(self.outer)

    def __str__(self) -> str:
        return ", ".join(map(str, self.folders))


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def measure(table: Table, places: Places, workers: int = 1) -> ImageFiles:
    """Find and decode each image of a table, in so many processes. A name that several files have is an error."""
    found = [places.find(name, split) for name, split in zip(table.images.file_names, table.images.splits, strict=True)]
    chunks = [found[start : start + CHUNK] for start in range(0, len(found), CHUNK)]
    facts: list[_Facts] = []
    with progress("looking at the annotated images", len(found), "images") as advance:
        for some in parallel(_measured, chunks, workers):
            facts += some
            advance(len(some))
    for row, (paths, one) in enumerate(zip(found, facts, strict=True)):
        if not paths:
            facts[row] = one._replace(error=f"there is no file {table.images.file_names[row]!r} in {places}")
    return ImageFiles(
        paths=tuple(paths[0] if len(paths) == 1 else None for paths in found),
        errors=tuple(one.error for one in facts),
        missing=np.array([not paths for paths in found], bool),
        sizes=np.array([(one.width, one.height) for one in facts], np.int64).reshape(-1, 2),
        orientations=np.array([one.orientation for one in facts], np.int64),
        sha256=tuple(one.sha256 for one in facts),
    )


def _measured(chunk: list[list[Path]]) -> list[_Facts]:
    return [_facts(paths) for paths in chunk]


def _facts(paths: list[Path]) -> _Facts:
    if len(paths) > 1:
        folders = ", ".join(path.parent.name for path in paths)
        return _Facts(f"files in several folders have this name: {folders}")
    sha256 = ""
    try:
        data = paths[0].read_bytes() if paths else b""
        sha256 = hashlib.sha256(data).hexdigest() if paths else ""
        header = decode_with_facts(data)[0] if paths else None
    except OSError as error:
        return _Facts(f"the file cannot be read: {error.strerror}")
    except DataError as error:
        return _Facts(error.found, sha256=sha256)
    return _Facts(None) if header is None else _Facts(None, header.width, header.height, header.orientation, sha256)

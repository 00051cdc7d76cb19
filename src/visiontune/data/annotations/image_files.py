"""The image files that a table names: found, decoded once, and measured."""

import hashlib
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.table import Table
from visiontune.data.images import SUFFIXES, decode_with_facts
from visiontune.data.split import SPLIT_NAMES
from visiontune.data.workers import parallel
from visiontune.errors import DataError
from visiontune.progress import progress

CHUNK = 256
_SIDEWAYS = (5, 6, 7, 8)
_SHOWN = 6


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
    bool, there is no file. outside: (n,) bool, the name leads out of the source. sizes: (n, 2) int64, width and height
    in pixels of the upright image, 0 where unknown. orientations: (n,) int64, EXIF's 1 to 8. sha256: of the bytes, ""
    without a file.
    """

    paths: tuple[Path | None, ...]
    errors: tuple[str | None, ...]
    missing: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    orientations: NDArray[np.int64]
    sha256: tuple[str, ...]

    @property
    def sideways(self) -> NDArray[np.bool_]:
        """(n,) bool: the stored pixels lie on their side."""
        return np.isin(self.orientations, _SIDEWAYS)


class Places:
    """The folders in which the images of a source (an annotation file or a folder) may be: its own folder, those in it,
    and for a file in a folder called annotations those beside that one, as COCO is published; then all folders below.

    `outer` is the folder that names may not lead out of. For a folder that holds annotations and no image it is the one
    above, whatever it is called: names may lead there, as ../pics/1.jpg does. A link inside is followed wherever it
    leads: whoever made it chose so.
    """

    def __init__(self, source: Path) -> None:
        base = source if source.is_dir() else source.parent
        self._of_annotations = base.absolute().name.casefold() == "annotations"
        outer = base.absolute().parent if self._of_annotations or not _has_images(base) else base
        self.base = base
        self.outer = _plain(outer.absolute())
        self._within = tuple({posixpath.join(self.outer, ""), posixpath.join(self.outer.resolve(), "")})
        beside = [base.parent, *_children(base.parent)] if self._of_annotations else []
        self.folders = tuple(dict.fromkeys([base, *_children(base), *beside]))
        self._starts = [str(folder.absolute()) for folder in self.folders]

    def find(self, name: str, split: str | None = None) -> list[Path]:
        """The files of that name, never one outside of the source; where a split is known, that of its folder."""
        if not name:
            return []
        places = dict.fromkeys(posixpath.normpath(posixpath.join(start, name)) for start in self._starts)
        found = [path for path in places if path.startswith(self._within) and posixpath.isfile(path)]
        found = found or self._deeper(name)
        if len(found) > 1 and split is not None:
            of_split = [path for path in found if split in self._splits(path, name)]
            found = of_split if len(of_split) == 1 else found
        return [Path(path) for path in found]

    def leads_outside(self, name: str) -> bool:
        """Whether a name leads out of the source."""
        return bool(name) and not posixpath.normpath(posixpath.join(self._starts[0], name)).startswith(self._within)

    def shown(self, name: str, path: Path) -> str:
        """The name of an image for people and for other machines: the path in the source where it was absolute."""
        if not Path(name).is_absolute():
            return name
        outer = self.outer if path.is_relative_to(self.outer) else self.outer.resolve()
        return path.relative_to(outer).as_posix()

    def _splits(self, path: str, name: str) -> set[str | None]:
        """The splits that the folders of a file say, as far as its name does not."""
        folders = Path(path).parts[len(self.outer.parts) : -len(Path(name).parts)]
        return {SPLIT_NAMES.get(folder.casefold()) for folder in folders}

    def _deeper(self, name: str) -> list[str]:
        plain = posixpath.normpath(name)
        return [path for path in self._all.get(posixpath.basename(plain), []) if path.endswith("/" + plain)]

    @cached_property
    def _all(self) -> dict[str, list[str]]:
        """All files below by their name. Walked once, and only where a file lies in none of the folders."""
        top = self.base.parent if self._of_annotations else self.base
        named: dict[str, list[str]] = defaultdict(list)
        for folder, names in _walk(top.absolute()):
            for name in names:
                named[name].append(posixpath.join(folder, name))
        return named

    def __str__(self) -> str:
        listed = ", ".join(map(str, self.folders[:_SHOWN]))
        return f"{listed}{', ...' if len(self.folders) > _SHOWN else ''} or below"


def _plain(path: Path) -> Path:
    """The path without .. in it, so that it leads where it seems to."""
    return Path(posixpath.normpath(path))


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `top` on with the names of its files, links followed, none twice; hidden folders are not."""
    seen: set[str] = set()
    for folder, children, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        children[:] = sorted(child for child in children if not child.startswith("."))
        yield folder, names


def _has_images(folder: Path) -> bool:
    return any(Path(name).suffix.lower() in SUFFIXES for _, names in _walk(folder) for name in names)


def measure(table: Table, places: Places, workers: int = 1) -> ImageFiles:
    """Find and decode each image of a table, in so many processes. A name that several files have is an error."""
    found = [places.find(name, split) for name, split in zip(table.images.file_names, table.images.splits, strict=True)]
    chunks = [found[start : start + CHUNK] for start in range(0, len(found), CHUNK)]
    facts: list[_Facts] = []
    with progress("looking at the annotated images", len(found), "images") as advance:
        for some in parallel(_measured, chunks, workers):
            facts += some
            advance(len(some))
    outside = [not paths and places.leads_outside(table.images.file_names[row]) for row, paths in enumerate(found)]
    for row, (paths, one) in enumerate(zip(found, facts, strict=True)):
        name = table.images.file_names[row]
        if outside[row]:
            facts[row] = one._replace(error=f"{name!r} is outside the source's folder, {places.outer}")
        elif not paths:
            facts[row] = one._replace(error=f"there is no file {name!r} in {places}")
    return ImageFiles(
        paths=tuple(paths[0] if len(paths) == 1 else None for paths in found),
        errors=tuple(one.error for one in facts),
        missing=np.array([not paths for paths in found], bool),
        outside=np.array(outside, bool),
        sizes=np.array([(one.width, one.height) for one in facts], np.int64).reshape(-1, 2),
        orientations=np.array([one.orientation for one in facts], np.int64),
        sha256=tuple(one.sha256 for one in facts),
    )


def _measured(chunk: list[list[Path]]) -> list[_Facts]:
    return [_facts(paths) for paths in chunk]


def _facts(paths: list[Path]) -> _Facts:
    if len(paths) > 1:
        above = posixpath.commonpath([path.parent for path in paths])
        folders = ", ".join(path.parent.relative_to(above).as_posix() for path in paths)
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

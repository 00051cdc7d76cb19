"""The image files that a table names: found, decoded once, and measured."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.table import Table
from visiontune.data.images import decode_with_facts
from visiontune.errors import DataError

# Where data sets keep their images, beside or above the annotation file.
_FOLDERS = ("", "images", "JPEGImages", "..", "../images")
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The files of a table's n images, row by row.

    errors: why a file cannot be used, None where it can. missing: (n,) bool, there is no file. sizes: (n, 2) int64,
    width and height in pixels of the upright image, 0 where unknown. orientations: (n,) int64, EXIF's 1 to 8. sha256:
    of the bytes, "" without a file.
    """

    errors: tuple[str | None, ...]
    missing: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    orientations: NDArray[np.int64]
    sha256: tuple[str, ...]

    @property
    def sideways(self) -> NDArray[np.bool_]:
        """(n,) bool: the stored pixels lie on their side."""
        return np.isin(self.orientations, _SIDEWAYS)


def folders(source: Path) -> list[Path]:
    """The folders in which the images of a source (an annotation file or a folder) may be."""
    base = source if source.is_dir() else source.parent
    return [folder for name in _FOLDERS if (folder := (base / name).resolve()).is_dir()]


def find(file_name: str, places: Sequence[Path]) -> Path | None:
    """The file of that name in the first of these folders that has it; never one outside of the folder."""
    for place in places:
        path = place / file_name
        if file_name and path.is_file() and path.resolve().is_relative_to(place.resolve()):
            return path
    return None


def measure(table: Table, places: Sequence[Path]) -> ImageFiles:
    """Find and decode each image of a table."""
    count = len(table.images)
    errors: list[str | None] = [None] * count
    missing = np.zeros(count, bool)
    sizes = np.zeros((count, 2), np.int64)
    orientations = np.ones(count, np.int64)
    hashes = [""] * count
    for row, name in enumerate(table.images.file_names):
        path = find(name, places)
        if path is None:
            missing[row], errors[row] = True, f"there is no file {name!r} in {', '.join(map(str, places))}"
            continue
        try:
            data = path.read_bytes()
            hashes[row] = hashlib.sha256(data).hexdigest()
            facts, _ = decode_with_facts(data)
        except OSError as error:
            errors[row] = f"the file cannot be read: {error.strerror}"
        except DataError as error:
            errors[row] = error.found
        else:
            sizes[row] = facts.width, facts.height
            orientations[row] = facts.orientation
    return ImageFiles(tuple(errors), missing, sizes, orientations, tuple(hashes))

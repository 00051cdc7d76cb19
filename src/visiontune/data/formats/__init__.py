"""The formats that visiontune reads. Another format is one file here and one line in FORMATS."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from visiontune.data.formats import image_folder
from visiontune.data.formats.rows import Listing
from visiontune.errors import DataError


@dataclass(frozen=True)
class Format:
    """A reader: `detect` says whether a folder is its own, `read` lists the rows (DataError where it cannot)."""

    name: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], Listing]


FORMATS = (Format(image_folder.NAME, image_folder.detect, image_folder.read),)


def read(source: Path) -> Listing:
    """List the rows of a folder, by the first format that knows it; DataError when none does."""
    if not source.is_dir():
        found = "this is a file, not a folder" if source.exists() else "there is no such folder"
        raise DataError(found, where=str(source), fix="give the folder that holds the images")
    for candidate in FORMATS:
        if candidate.detect(source):
            return candidate.read(source)
    raise DataError("there are no images in this folder", where=str(source), fix=image_folder.LAYOUTS)

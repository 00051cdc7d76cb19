"""The formats that visiontune reads. Another format is one file here and one line in FORMATS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from visiontune.data.formats import annotated_images, image_folder, text_table
from visiontune.data.formats.rows import Listing
from visiontune.errors import DataError


@dataclass(frozen=True)
class Format:
    """A reader: `detect` says whether a source is its own, `read` lists the rows (DataError where it cannot).

    `read` takes the names that the user gave to columns, or None.
    """

    name: str
    detect: Callable[[Path], bool]
    read: Callable[[Path, Mapping[str, str] | None], Listing]


FORMATS = (
    Format(image_folder.NAME, image_folder.detect, lambda source, _columns: image_folder.read(source)),
    Format(text_table.NAME, text_table.detect, text_table.read),
)


def read(source: Path, columns: Mapping[str, str] | None = None, repair: bool = False) -> Listing:
    """List the rows of a folder or a file, by the first format that knows it; DataError when none does.

    `repair` agrees to mend annotations of objects. `columns` names the columns of a table of texts: {"document":
    "body", "answer": "tldr"}; roles are document, answer, prompt, id and split.
    """
    if not source.exists():
        raise DataError(
            "there is no such folder or file",
            where=str(source),
            fix="check the path; `visiontune prepare --list` names the known corpora",
        )
    if columns is None and annotated_images.detect(source):
        return annotated_images.read(source, repair)
    if repair:
        raise DataError("boxes and masks are repaired, and here are none", where=str(source), fix="leave --repair out")
    if not source.is_dir() and not text_table.detect(source):
        raise DataError(
            "this is a file, not a folder, and no table of texts and no annotations",
            where=str(source),
            fix=_both("give the folder of images"),
        )
    if columns is not None and text_table.detect(source):
        return text_table.read(source, columns)
    for candidate in FORMATS:
        if (source.is_dir() or candidate.name == text_table.NAME) and candidate.detect(source):
            return candidate.read(source, columns)
    raise DataError(
        "there are no images and no texts in this folder", where=str(source), fix=_both(image_folder.LAYOUTS)
    )


def _both(images: str) -> str:
    return f"{images}; for texts, {text_table.LAYOUTS}"

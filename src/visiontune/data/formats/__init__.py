"""The formats that visiontune reads. Another format is one file here and one name in format_names.py."""

from pathlib import Path

from visiontune.data.annotations.unclear import refuse_unclear
from visiontune.data.format_names import ANNOTATIONS, FORMATS, LAYOUTS, Format
from visiontune.data.formats import annotated_images, image_folder, image_text, text_table
from visiontune.data.formats.lines import read_json
from visiontune.data.formats.rows import Listing
from visiontune.data.formats.tables import Columns
from visiontune.errors import DataError


def read(source: Path, columns: Columns | None = None, repair: bool = False, called: Format | None = None) -> Listing:
    """List the rows of a folder or a file, by the first format that knows it; DataError when none does.

    `called` is the format to read it as, one of FORMATS, whatever it looks like. `repair` agrees to mend annotations of
    objects. `columns` names the columns of a table: {"document": "body", "answer": "tldr"}; roles are document, answer,
    prompt, id and split for long texts, image, answer, prompt, id and split for images.
    """
    if called is not None and called not in FORMATS:
        raise DataError(f"there is no format {called!r}", where="--format", fix=f"formats: {', '.join(FORMATS)}")
    if not source.exists():
        raise DataError(
            "there is no such folder or file",
            where=str(source),
            fix="check the path; known corpora: `visiontune prepare --list`; datasets of the hub: hub:OWNER/NAME",
        )
    annotations = called in ANNOTATIONS
    if annotations or (called is None and columns is None and annotated_images.detect(source)):
        if columns is not None:
            raise DataError("annotations have no columns to name", where="columns", fix="leave them out")
        return annotated_images.read(source, repair, called if annotations else None)  # pyright: ignore[reportArgumentType]
    if repair:
        raise DataError("boxes and masks are repaired, and here are none", where=str(source), fix="leave --repair out")
    if called in LAYOUTS:
        return image_text.read(source, columns, called)  # pyright: ignore[reportArgumentType]
    if called == text_table.NAME:
        return text_table.read(source, columns)
    folder = source.is_dir()
    if called == image_folder.NAME or (folder and columns is None and image_folder.has_metadata(source)):
        if not folder or columns is not None:
            found = "columns are those of tables" if folder else "this is a file, not a folder of images"
            raise DataError(found, where=str(source), fix="read it as another format, or leave --columns out")
        return image_folder.read(source)
    if image_text.detect(source, columns):
        return image_text.read(source, columns)
    if columns is None and not (source.is_file() and text_table.detect(source)):
        refuse_unclear(source)
    if not folder and not text_table.detect(source):
        if source.suffix.lower() == ".json":
            read_json(source)  # one that is broken says where
        raise DataError(
            "this is a file, not a folder, and no table of texts and no annotations",
            where=str(source),
            fix=_fix("give the folder of images"),
        )
    if folder and columns is None and image_folder.detect(source):
        return image_folder.read(source)
    if text_table.detect(source):
        return text_table.read(source, columns)
    raise DataError(
        "there are no images and no texts in this folder", where=str(source), fix=_fix(image_folder.LAYOUTS)
    )


def _fix(images: str) -> str:
    return f"{images}; for tables of images and texts, {image_text.FIX}; for long texts, {text_table.LAYOUTS}"

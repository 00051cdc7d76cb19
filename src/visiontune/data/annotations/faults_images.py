"""Faults of image files: not there, broken, of another size than the annotations say, turned, there twice."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.faults_boxes import known
from visiontune.data.annotations.findings import Finding, on_image
from visiontune.data.annotations.image_files import ImageFiles
from visiontune.data.annotations.table import Table

# EXIF orientation -> how an image is shown, beside its stored pixels.
_SHOWN = {2: "mirrored left to right", 3: "upside down", 4: "mirrored top to bottom"}
# A box may pass the edge by so many pixels and still speak for a size.
_EDGE = 1.0


def image_faults(table: Table, files: ImageFiles) -> list[Finding]:
    """All faults of a table's image files."""
    return [
        *missing_files(table, files),
        *unreadable_images(table, files),
        *missing_sizes(table, files),
        *turned_images(table, files),
        *undecided_orientations(table, files),
        *other_sizes(table, files),
        *duplicate_images([table], [files]),
    ]


def missing_files(table: Table, files: ImageFiles) -> Iterator[Finding]:
    """Images without a file, or with one outside of the source, which is not looked at."""
    for row in np.flatnonzero(files.missing).tolist():
        fix = "add the file, or take the image out"
        if files.outside[row]:
            fix = "put the image, or a link to its folder, into that folder, and write its path from there"
        yield on_image(table, row, "missing-image-file", "drop", files.errors[row] or "", fix)


def unreadable_images(table: Table, files: ImageFiles) -> Iterator[Finding]:
    """Files that cannot be decoded to their end."""
    for row, error in enumerate(files.errors):
        if error is not None and not files.missing[row]:
            found = f"{table.images.file_names[row]}: {error}"
            yield on_image(table, row, "unreadable-image", "drop", found, "repair the file, or take the image out")


def missing_sizes(table: Table, files: ImageFiles) -> Iterator[Finding]:
    """Images whose width or height is not written, or is no number."""
    for row in without_size(table, files).tolist():
        found = f"{table.images.file_names[row]} has no usable width and height"
        yield on_image(table, row, "missing-image-size", "repair", found, "they are read from the file")


def turned_images(table: Table, files: ImageFiles) -> Iterator[Finding]:
    """Images that are shown turned by EXIF, annotated with the size of the pixels as they are stored."""
    frame = frame_of_turned(table, files)
    fixes = {
        "stored": "boxes and masks are turned with the image",
        "upright": "boxes and masks are upright; the size is corrected",
        "unknown": "look whether boxes fit the upright image; then write its width and height",
    }
    for row in np.flatnonzero(turned(table, files)).tolist():
        width, height = files.sizes[row].tolist()
        found = (
            f"{table.images.file_names[row]} is shown as {width} x {height} (EXIF orientation "
            f"{files.orientations[row]}), but annotated as {height} x {width}"
        )
        severity = "error" if frame == "unknown" else "repair"
        yield on_image(table, row, "exif-rotation", severity, found, fixes[frame])


def undecided_orientations(table: Table, files: ImageFiles) -> Iterator[Finding]:
    """Annotated images that EXIF turns or mirrors, of which no size says what was annotated: stored pixels, or what is
    shown. Boxes that were drawn upon the stored pixels would land in other places."""
    sized = (table.images.widths > 0) & (table.images.heights > 0) & (not table.measured)
    told = files.sideways & sized & (files.sizes[:, 0] != files.sizes[:, 1])
    annotated = np.bincount(table.image_rows[table.image_rows >= 0], minlength=len(table.images)) > 0
    fix = (
        "look whether boxes fit the image as it is shown; where they do not, take the EXIF orientation out of the file"
    )
    for row in np.flatnonzero((files.orientations > 1) & annotated & ~told).tolist():
        orientation = int(files.orientations[row])
        shown = _SHOWN.get(orientation, "turned to its side")
        found = (
            f"{table.images.file_names[row]} is shown {shown} (EXIF orientation {orientation}), and its size does not "
            "say whether it was annotated so"
        )
        yield on_image(table, row, "exif-orientation", "warning", found, fix)


def other_sizes(table: Table, files: ImageFiles) -> Iterator[Finding]:
    """Files of another size than the annotations say."""
    written = np.stack([table.images.widths, table.images.heights], axis=1)
    differ = (files.sizes > 0).all(axis=1) & (written > 0).all(axis=1) & (written != files.sizes).any(axis=1)
    for row in np.flatnonzero(differ & ~turned(table, files)).tolist():
        (width, height), (file_width, file_height) = written[row].tolist(), files.sizes[row].tolist()
        found = f"{table.images.file_names[row]} is {file_width} x {file_height}, annotated as {width} x {height}"
        fix = "give the images that were annotated, or scale the annotations"
        yield on_image(table, row, "image-size-differs", "error", found, fix)


def duplicate_images(tables: Sequence[Table], files: Sequence[ImageFiles]) -> Iterator[Finding]:
    """Files with the same bytes, in one table or several; worse where their given splits differ."""
    places: dict[str, list[tuple[Table, int]]] = defaultdict(list)
    for table, of_table in zip(tables, files, strict=True):
        for row, digest in enumerate(of_table.sha256):
            if digest:
                places[digest].append((table, row))
    for (first, first_row), *others in places.values():
        split, name = first.images.splits[first_row], first.images.file_names[first_row]
        for table, row in others:
            other = table.images.splits[row]
            if other == split and table is first and table.images.file_names[row] == name:
                continue  # one file listed twice is a fault of its own
            what = f"{table.images.file_names[row]} has the same bytes as {name}"
            if other != split:
                found = f"{what}, one in {split or 'no split'}, one in {other or 'no split'}"
                fix = "keep both in one split: scores on the held-out splits are too good otherwise"
                yield on_image(table, row, "image-in-several-splits", "warning", found, fix)
            else:
                yield on_image(table, row, "duplicate-image", "warning", what, "take out the copy")


def without_size(table: Table, files: ImageFiles) -> NDArray[np.int64]:
    """The rows of images whose size only their file knows."""
    unknown = (table.images.widths < 1) | (table.images.heights < 1)
    return np.flatnonzero(unknown & (files.sizes > 0).all(axis=1))


def turned(table: Table, files: ImageFiles) -> NDArray[np.bool_]:
    """(n,) bool: the written size is that of the stored pixels, and the upright image is wide where it is high."""
    written = np.stack([table.images.heights, table.images.widths], axis=1)
    square = files.sizes[:, 0] == files.sizes[:, 1]
    return files.sideways & np.asarray((written == files.sizes).all(axis=1)) & ~square


def frame_of_turned(table: Table, files: ImageFiles) -> Literal["stored", "upright", "unknown"]:
    """What the boxes of turned images fit: the pixels as they are stored, or the image as it is shown.

    One box that fits the one and not the other speaks for all images of the table; "unknown" without such a box, or
    where boxes contradict each other.
    """
    rows = turned(table, files)
    of_image = np.append(rows, False)[table.image_rows] & known(table)
    ends = (table.annotations.boxes[:, :2] + table.annotations.boxes[:, 2:])[of_image]
    upright = files.sizes[table.image_rows[of_image]]
    fits_upright = np.asarray((ends <= upright + _EDGE).all(axis=1))
    fits_stored = np.asarray((ends <= upright[:, ::-1] + _EDGE).all(axis=1))
    for_stored, for_upright = (fits_stored & ~fits_upright).any(), (fits_upright & ~fits_stored).any()
    if for_stored == for_upright:
        return "unknown"
    return "stored" if for_stored else "upright"

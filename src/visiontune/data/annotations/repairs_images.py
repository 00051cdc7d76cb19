"""Repairs that need the image files: images without a usable file go, sizes are read, annotations turned with EXIF."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.changes import (
    Change,
    annotations_dropped,
    boxes_changed,
    images_taken,
    on_image,
    segmentations_changed,
)
from visiontune.data.annotations.faults_images import frame_of_turned, turned, without_size
from visiontune.data.annotations.image_files import ImageFiles
from visiontune.data.annotations.masks import from_pixels, to_pixels, to_rle
from visiontune.data.annotations.measures import Measures
from visiontune.data.annotations.table import Kind, Table, without

Mended = tuple[Table, list[Change]]

# EXIF orientation -> how the pixels are turned to stand upright: x and y exchanged first, then each mirrored or not.
_TURNS = {5: (False, False), 6: (True, False), 7: (True, True), 8: (False, True)}


def mend_images(table: Table, files: ImageFiles) -> Mended:
    """Sizes that are missing or those of turned pixels are corrected; images without a usable file go."""
    table, changes = _with_sizes(table, files)
    table, more = _upright(table, files)
    changes += more
    table, more = _without_broken_images(table, files)
    return table, changes + more


def turned_points(points: NDArray[np.float64], orientation: int, width: int, height: int) -> NDArray[np.float64]:
    """Points (p, 2) of stored pixels in the upright image of width x height, for the orientations 5 to 8."""
    mirror_x, mirror_y = _TURNS[orientation]
    x, y = points[:, 1], points[:, 0]
    return np.stack([width - x if mirror_x else x, height - y if mirror_y else y], axis=1)


def turned_pixels(pixels: NDArray[np.bool_], orientation: int) -> NDArray[np.bool_]:
    """A mask of stored pixels as (height, width) of the upright image, for the orientations 5 to 8."""
    mirror_x, mirror_y = _TURNS[orientation]
    upright = pixels.T
    upright = upright[:, ::-1] if mirror_x else upright
    return upright[::-1] if mirror_y else upright


def _with_sizes(table: Table, files: ImageFiles) -> Mended:
    rows = without_size(table, files)
    return _resized(table, files, rows, "missing-image-size")


def _resized(table: Table, files: ImageFiles, rows: NDArray[np.int64], why: str) -> Mended:
    if not len(rows):
        return table, []
    images = table.images
    before = np.stack([images.widths, images.heights], axis=1)[rows].tolist()
    after = files.sizes[rows].tolist()
    changes = [
        on_image(table, row, why, "width, height", old, new)
        for row, old, new in zip(rows.tolist(), before, after, strict=True)
    ]
    widths, heights = images.widths.copy(), images.heights.copy()
    widths[rows], heights[rows] = files.sizes[rows].T
    odd = without(without(images.odd, rows.tolist(), "width"), rows.tolist(), "height")
    return replace(table, images=replace(images, widths=widths, heights=heights, odd=odd)), changes


def _upright(table: Table, files: ImageFiles) -> Mended:
    rows = np.flatnonzero(turned(table, files))
    frame = frame_of_turned(table, files)
    if not len(rows) or frame == "unknown":
        return table, []
    boxes: dict[int, NDArray[np.float64]] = {}
    masks: dict[int, tuple[Kind, Any]] = {}
    if frame == "stored":
        sound = Measures(table).sound
        for image_row in rows.tolist():
            orientation = int(files.orientations[image_row])
            width, height = files.sizes[image_row].tolist()
            for row in table.annotation_rows(image_row).tolist():
                boxes[row] = _turned_box(table.annotations.boxes[row], orientation, width, height)
                # A broken mask cannot be turned, and may not stay behind for a repair that would place it wrongly.
                if table.annotations.kinds[row] != Kind.NONE:
                    masks[row] = (
                        _turned_mask(table, row, orientation, width, height) if sound[row] else (Kind.NONE, None)
                    )
    why = dict.fromkeys(boxes, "exif-rotation")
    boxes = {row: box for row, box in boxes.items() if not np.isnan(box).any()}
    table, changes = boxes_changed(table, boxes, why)
    table, more = segmentations_changed(table, masks, why)
    changes += more
    table, more = _resized(table, files, rows, "exif-rotation")
    return table, changes + more


def _turned_box(box: NDArray[np.float64], orientation: int, width: int, height: int) -> NDArray[np.float64]:
    corners = turned_points(np.stack([box[:2], box[:2] + box[2:]]), orientation, width, height)
    low = corners.min(axis=0)
    return np.concatenate([low, corners.max(axis=0) - low])


def _turned_mask(table: Table, row: int, orientation: int, width: int, height: int) -> tuple[Kind, Any]:
    kind, value = int(table.annotations.kinds[row]), table.annotations.segmentations[row]
    if kind == Kind.POLYGONS:
        points = [np.array(part, np.float64).reshape(-1, 2) for part in value]
        return Kind.POLYGONS, [turned_points(part, orientation, width, height).ravel().tolist() for part in points]
    mask = to_rle(kind, value, width, height)
    if mask is None:
        return Kind.NONE, None
    return Kind.COMPRESSED, from_pixels(turned_pixels(to_pixels(mask), orientation)).to_coco()


def _without_broken_images(table: Table, files: ImageFiles) -> Mended:
    codes = {
        row: "missing-image-file" if files.missing[row] else "unreadable-image"
        for row, error in enumerate(files.errors)
        if error is not None
    }
    if not codes:
        return table, []
    of_image = {row: codes[image] for row, image in enumerate(table.image_rows.tolist()) if image in codes}
    changes = [on_image(table, row, code, "image", table.images.file_names[row], None) for row, code in codes.items()]
    table, more = annotations_dropped(table, of_image)
    keep = np.array([row for row in range(len(table.images)) if row not in codes], np.int64)
    return images_taken(table, keep), changes + more

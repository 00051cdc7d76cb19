"""Segmentations in bulk: run lengths decoded and checked, polygons in columns, boxes and areas, COCO's compressed form.

Run lengths come from files that anybody may have written, and pycocotools reads past the end of a string that breaks
off. So strings are decoded and checked here, and only sound ones go on to pycocotools.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from visiontune.data.annotations.table import Kind, Table
from visiontune.data.objects import Objects, Rle
from visiontune.errors import DataError

# `area` of pycocotools overflows on some thousands of masks in one call.
BATCH = 200
# pycocotools counts pixels in 32 bits.
MOST_PIXELS = 2**31


@dataclass(frozen=True, eq=False)
class Runs:
    """The run lengths of n masks, background first. values: int64, all masks' in one row; starts: (n + 1,) int64.

    sound: (n,) bool, the string could be decoded and no run is negative or longer than any image.
    """

    values: NDArray[np.int64]
    starts: NDArray[np.int64]
    sound: NDArray[np.bool_]

    def pixels(self) -> NDArray[np.int64]:
        """(n,) int64: the pixels that the runs of each mask cover, background included."""
        return _sums(self.values, self.starts)

    def areas(self) -> NDArray[np.int64]:
        """(n,) int64: the pixels of each mask."""
        place = np.arange(len(self.values)) - np.repeat(self.starts[:-1], np.diff(self.starts))
        return _sums(np.where(place % 2 == 1, self.values, 0), self.starts)


def runs_of_strings(strings: Sequence[str]) -> Runs:
    """Decode COCO's compressed counts: base 64 from character 48, five bits a character, the sixth says that more
    follow; from the fourth run on, the difference from the run two places before.
    """
    lengths = np.array([len(text) for text in strings], np.int64)
    try:
        codes = np.frombuffer("".join(strings).encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        strings = [text if text.isascii() else "\x00" * len(text) for text in strings]
        codes = np.frombuffer("".join(strings).encode("ascii"), np.uint8).astype(np.int64) - 48
    mask_of_code = np.repeat(np.arange(len(strings)), lengths)
    sound = np.bincount(mask_of_code[(codes < 0) | (codes > 63)], minlength=len(strings)) == 0
    last = (codes & 0x20) == 0
    ends = np.cumsum(lengths) - 1
    sound &= (lengths > 0) & np.where(lengths > 0, last[np.minimum(ends, max(0, len(last) - 1))], False)
    if not sound.all():
        # A string that breaks off would run into the next one: the unsound ones are decoded as no runs at all.
        inner = runs_of_strings([text if ok else "0" for text, ok in zip(strings, sound, strict=True)])
        return Runs(inner.values, inner.starts, inner.sound & sound)
    if not len(codes):
        return Runs(np.zeros(0, np.int64), np.zeros(len(strings) + 1, np.int64), sound)
    number = np.concatenate([[0], np.cumsum(last)[:-1]])
    first_code = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(codes)) - first_code[number]
    too_long = np.bincount(mask_of_code[place > 9], minlength=len(strings)) > 0
    shifts = np.minimum(place, 10) * 5
    steps = np.add.reduceat((codes & 0x1F) << shifts, first_code)
    final = np.flatnonzero(last)
    steps -= np.where((codes[final] & 0x10) != 0, np.int64(1) << (shifts[final] + 5), 0)
    counts = np.bincount(mask_of_code[final], minlength=len(strings))
    starts = np.concatenate([[0], np.cumsum(counts)])
    values = _undone_differences(steps, starts)
    return Runs(values, starts, sound & ~_out_of_range(values, starts) & ~too_long)


def runs_of_lists(lists: Sequence[Sequence[int]]) -> Runs:
    """Run lengths that stand in a file as they are. Every entry must be a whole number."""
    counts = np.array([len(runs) for runs in lists], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    values = np.fromiter(chain.from_iterable(lists), np.int64, int(starts[-1]))
    return Runs(values, starts, ~_out_of_range(values, starts))


@dataclass(frozen=True, eq=False)
class Rings:
    """The outlines of all polygons. points: (p, 2) float64, x and y in pixels; starts: (rings + 1,) int64;
    annotation: (rings,) int64, the row that each belongs to; part: (rings,) int64, its place among that row's parts.
    """

    points: NDArray[np.float64]
    starts: NDArray[np.int64]
    annotation: NDArray[np.int64]
    part: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.annotation)

    @property
    def next(self) -> NDArray[np.int64]:
        """(p,) int64: the point after each in its ring, the first after the last."""
        following = np.arange(1, len(self.points) + 1)
        following[self.starts[1:] - 1] = self.starts[:-1]
        return following

    def boxes(self) -> NDArray[np.float64]:
        """(rings, 4) float64: the smallest and the largest x and y: left, top, right, bottom."""
        if not len(self):
            return np.zeros((0, 4))
        low = np.minimum.reduceat(self.points, self.starts[:-1])
        return np.concatenate([low, np.maximum.reduceat(self.points, self.starts[:-1])], axis=1)

    def areas(self) -> NDArray[np.float64]:
        """(rings,) float64: the signed area in square pixels, by the shoelace formula."""
        if not len(self):
            return np.zeros(0)
        x, y = self.points.T
        following = self.next
        return np.add.reduceat(x * y[following] - x[following] * y, self.starts[:-1]) / 2

    def lengths(self) -> NDArray[np.float64]:
        """(rings,) float64: the length of the outline in pixels."""
        if not len(self):
            return np.zeros(0)
        steps = np.linalg.norm(self.points[self.next] - self.points, axis=1)
        return np.add.reduceat(steps, self.starts[:-1])


def is_ring(part: Any) -> bool:
    """Whether a part of a polygon can be drawn: at least three points, two finite numbers each."""
    return len(part) >= 6 and len(part) % 2 == 0 and bool(np.isfinite(np.array(part, np.float64)).all())


def rings(table: Table) -> Rings:
    """All sound parts of all polygons. Parts that are no ring (see `is_ring`) are left out here; a fault names them."""
    rows = np.flatnonzero(table.annotations.kinds == Kind.POLYGONS)
    values = [table.annotations.segmentations[row] for row in rows.tolist()]
    parts_of = np.array([len(parts) for parts in values], np.int64)
    flat = list(chain.from_iterable(values))
    lengths = np.array([len(part) for part in flat], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    numbers = np.fromiter(chain.from_iterable(flat), np.float64, int(starts[-1]))
    annotation = np.repeat(rows, parts_of)
    part = np.arange(len(flat)) - np.repeat(np.cumsum(parts_of) - parts_of, parts_of)
    finite = _sums((~np.isfinite(numbers)).astype(np.int64), starts) == 0
    good = (lengths >= 6) & (lengths % 2 == 0) & finite
    if not good.all():
        numbers = numbers[np.repeat(good, lengths)]
        lengths, annotation, part = lengths[good], annotation[good], part[good]
        starts = np.concatenate([[0], np.cumsum(lengths)])
    return Rings(numbers.reshape(-1, 2), starts // 2, annotation, part)


def sound_rle(value: Mapping[str, Any], height: int, width: int) -> bool:
    """Whether run lengths in either form cover exactly height x width pixels."""
    if list(value["size"]) != [height, width] or height * width >= MOST_PIXELS:
        return False
    counts = value["counts"]
    runs = runs_of_strings([counts]) if isinstance(counts, str) else runs_of_lists([counts])
    return bool(runs.sound[0]) and int(runs.pixels()[0]) == height * width


def to_rle(kind: int, value: Any, height: int, width: int) -> Rle | None:
    """A segmentation as one compressed mask of height x width pixels, None where there is none.

    Parts of polygons are united. DataError where the value is not sound.
    """
    if kind == Kind.NONE:
        return None
    if kind == Kind.POLYGONS:
        sound = min(height, width) > 0 and len(value) > 0 and all(is_ring(part) for part in value)
    else:
        sound = kind != Kind.BROKEN and sound_rle(value, height, width)
    if not sound:
        raise DataError(
            f"a segmentation is no mask of {width} x {height} pixels",
            fix="`visiontune inspect` names the faults, `visiontune prepare --repair` mends what can be mended",
        )
    return packed(kind, value, height, width)


def packed(kind: int, value: Any, height: int, width: int) -> Rle:
    """`to_rle` of a segmentation that is there and known to be sound: nothing is checked."""
    if kind == Kind.COMPRESSED:
        return Rle(height, width, value["counts"].encode("ascii"))
    written = value if kind == Kind.POLYGONS else {"size": [height, width], "counts": value["counts"]}
    found = cast(Any, coco_mask).frPyObjects(written, height, width)
    if kind == Kind.POLYGONS:
        found = cast(Any, coco_mask).merge(found) if len(found) > 1 else found[0]
    return Rle(height, width, found["counts"])


def areas_and_boxes(masks: Sequence[Rle]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) areas in pixels and (n, 4) tight boxes (left, top, width, height), float64, as pycocotools has them."""
    areas, boxes = [np.zeros(0)], [np.zeros((0, 4))]
    for start in range(0, len(masks), BATCH):
        batch = [{"size": [m.height, m.width], "counts": m.counts} for m in masks[start : start + BATCH]]
        areas.append(np.asarray(coco_mask.area(cast(Any, batch)), np.float64))
        boxes.append(np.asarray(coco_mask.toBbox(cast(Any, batch)), np.float64))
    return np.concatenate(areas), np.concatenate(boxes)


def from_pixels(pixels: NDArray[np.bool_]) -> Rle:
    """A mask of (height, width) bool as run lengths."""
    packed = cast(Any, coco_mask.encode(np.asfortranarray(pixels, np.uint8)))
    return Rle(pixels.shape[0], pixels.shape[1], packed["counts"])


def to_pixels(mask: Rle) -> NDArray[np.bool_]:
    """(height, width) bool."""
    return coco_mask.decode(cast(Any, {"size": [mask.height, mask.width], "counts": mask.counts})).astype(bool)


def objects(table: Table, image_row: int) -> Objects:
    """The objects of one image. A box that is missing comes from its mask.

    DataError where a class is unknown, a mask is not sound, or an annotation has neither box nor mask.
    """
    rows = table.annotation_rows(image_row)
    columns = table.annotations
    width, height = int(table.images.widths[image_row]), int(table.images.heights[image_row])
    where = f"{table.name}, image {table.images.ids[image_row]}"
    if (table.category_rows[rows] < 0).any():
        raise DataError("an annotation has no known class", where=where, fix="`visiontune inspect` names it")
    masks = tuple(to_rle(int(columns.kinds[row]), columns.segmentations[row], height, width) for row in rows.tolist())
    boxes = columns.boxes[rows].copy()
    for place in np.flatnonzero(np.isnan(boxes).any(axis=1)).tolist():
        mask = masks[place]
        if mask is None:
            raise DataError(
                f"annotation {columns.ids[rows[place]]} has neither box nor mask", where=where, fix="take it out"
            )
        boxes[place] = areas_and_boxes([mask])[1][0]
    crowd = columns.crowd[rows] == 1
    return Objects(boxes, table.category_rows[rows], masks, crowd, tuple(columns.ids[rows].tolist()))


def _undone_differences(steps: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Runs from their differences: run 0 as it is; from run 3 on, what is written is added to the run two before."""
    counts = np.diff(starts)
    mask = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(steps)) - starts[:-1][mask]
    # Two chains a mask: runs 1, 3, 5, ... and 2, 4, 6, ...; run 0 stands alone.
    chain_of = np.where(place == 0, 0, 1 + (place + 1) % 2) + 3 * mask
    order = np.argsort(chain_of, kind="stable")
    sums = np.cumsum(steps[order])
    firsts = np.concatenate([[True], np.diff(chain_of[order]) > 0])
    before = np.concatenate([[0], sums[:-1]])[firsts]
    values = np.empty_like(steps)
    values[order] = sums - before[np.cumsum(firsts) - 1]
    return values


def _out_of_range(values: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    return _sums(((values < 0) | (values >= MOST_PIXELS)).astype(np.int64), starts) > 0


def _sums(values: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of each stretch from starts[k] to starts[k + 1], which may be empty."""
    sums = np.concatenate([[0], np.cumsum(values)])
    return sums[starts[1:]] - sums[starts[:-1]]

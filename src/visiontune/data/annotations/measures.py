"""What the faults and repairs of boxes and masks need to know of a table, measured once in whole columns."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.masks import (
    Rings,
    Runs,
    areas_and_boxes,
    packed,
    rings,
    runs_of_lists,
    runs_of_strings,
)
from visiontune.data.annotations.table import Kind, Table

# Polygons that enclose less than this many square pixels may cover no pixel: they are drawn to find out.
_SLIVER = 4.0


@dataclass(frozen=True, eq=False)
class Measures:
    """Facts about each annotation of `table`, computed when first asked for."""

    table: Table

    @cached_property
    def rings(self) -> Rings:
        """All sound parts of all polygons."""
        return rings(self.table)

    @cached_property
    def rle_rows(self) -> NDArray[np.int64]:
        """The rows whose segmentation is run lengths, compressed ones first."""
        kinds = self.table.annotations.kinds
        return np.concatenate([np.flatnonzero(kinds == Kind.COMPRESSED), np.flatnonzero(kinds == Kind.UNCOMPRESSED)])

    @cached_property
    def runs(self) -> Runs:
        """The runs of `rle_rows`."""
        values = [self.table.annotations.segmentations[row]["counts"] for row in self.rle_rows.tolist()]
        strings = int((self.table.annotations.kinds == Kind.COMPRESSED).sum())
        packed, plain = runs_of_strings(values[:strings]), runs_of_lists(values[strings:])
        return Runs(
            np.concatenate([packed.values, plain.values]),
            np.concatenate([packed.starts, plain.starts[1:] + packed.starts[-1]]),
            np.concatenate([packed.sound, plain.sound]),
        )

    @cached_property
    def rle_sizes(self) -> NDArray[np.int64]:
        """(rle rows, 2) int64: height and width as the run lengths say them."""
        values = [self.table.annotations.segmentations[row]["size"] for row in self.rle_rows.tolist()]
        return np.array(values, np.int64).reshape(-1, 2)

    @cached_property
    def ring_count(self) -> NDArray[np.int64]:
        """(n,) int64: the sound parts of each annotation's polygons."""
        return np.bincount(self.rings.annotation, minlength=len(self.table.annotations))

    @cached_property
    def part_count(self) -> NDArray[np.int64]:
        """(n,) int64: the parts of each annotation's polygons, sound or not."""
        counts = np.zeros(len(self.table.annotations), np.int64)
        for row in np.flatnonzero(self.table.annotations.kinds == Kind.POLYGONS).tolist():
            counts[row] = len(self.table.annotations.segmentations[row])
        return counts

    @cached_property
    def sound(self) -> NDArray[np.bool_]:
        """(n,) bool: there is a mask, it can be drawn, and it is as large as its image; it may still be empty."""
        sound = (self.ring_count > 0) & (self.ring_count == self.part_count) & self.table.sized
        as_image = (self.rle_sizes[:, ::-1] == self.table.sizes[self.rle_rows]).all(axis=1)
        fills = self.runs.pixels() == self.rle_sizes.prod(axis=1)
        sound[self.rle_rows] = as_image & fills & self.runs.sound & self.table.sized[self.rle_rows]
        return sound

    @cached_property
    def ring_areas(self) -> NDArray[np.float64]:
        """(rings,) float64, square pixels, by the shoelace formula."""
        return np.abs(self.rings.areas())

    @cached_property
    def areas(self) -> NDArray[np.float64]:
        """(n,) float64: the area of each sound mask, NaN for others.

        Run lengths are counted, and so are polygons that nearly enclose nothing; other polygons have the shoelace area.
        """
        areas = np.full(len(self.table.annotations), np.nan)
        areas[self.rle_rows] = self.runs.areas()
        outlined = np.bincount(self.rings.annotation, self.ring_areas, minlength=len(areas))
        polygons = (self.ring_count > 0) & self.sound
        areas[polygons] = outlined[polygons]
        drawn = np.flatnonzero(polygons & (outlined < _SLIVER))
        areas[drawn] = self.drawn(drawn)[0]
        areas[~self.sound] = np.nan
        return areas

    @cached_property
    def full(self) -> NDArray[np.bool_]:
        """(n,) bool: there is a sound mask with at least one pixel."""
        return self.sound & (np.nan_to_num(self.areas) > 0)

    @cached_property
    def boxes(self) -> NDArray[np.float64]:
        """(n, 4) float64: left, top, width and height of each full mask, NaN for others.

        A polygon's box is that of its points, inside the image: within a pixel of that of the pixels it covers.
        """
        boxes = np.full((len(self.table.annotations), 4), np.nan)
        rle = self.rle_rows[self.full[self.rle_rows]]
        boxes[rle] = self.drawn(rle)[1]
        ring_boxes = self.rings.boxes()
        low = np.full((len(boxes), 2), np.inf)
        high = np.full((len(boxes), 2), -np.inf)
        np.minimum.at(low, self.rings.annotation, ring_boxes[:, :2])
        np.maximum.at(high, self.rings.annotation, ring_boxes[:, 2:])
        polygons = (self.ring_count > 0) & self.full
        sizes = self.table.sizes[polygons]
        left_top = np.clip(low[polygons], 0, sizes)
        boxes[polygons] = np.concatenate([left_top, np.clip(high[polygons], 0, sizes) - left_top], axis=1)
        return boxes

    def drawn(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The areas (k,) and tight boxes (k, 4) of the pixels of these rows' masks, which must be sound."""
        columns, sizes = self.table.annotations, self.table.sizes
        return areas_and_boxes(
            [
                packed(kind, columns.segmentations[row], height, width)
                for row, kind, (width, height) in zip(
                    rows.tolist(), columns.kinds[rows].tolist(), sizes[rows].tolist(), strict=True
                )
            ]
        )

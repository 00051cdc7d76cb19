"""The outline of a mask as one polygon, for formats that hold nothing else.

The polygon runs along the edges of pixels, so that filling it gives the mask back, pixel for pixel. Pieces and holes
are joined by bridges that are gone over there and back, as converters from COCO to YOLO join pieces: by the even-odd
rule, which COCO fills by, a bridge encloses nothing. Programs that also draw the line show bridges a pixel wide.
"""

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.masks import to_pixels
from visiontune.data.objects import Rle

Points = NDArray[np.int64]

# Steps of (x, y) around a pixel, clockwise: along its upper, right, lower and left edge.
_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])


def outline(mask: Rle) -> list[float] | None:
    """The corners [x0, y0, x1, y1, ...] of one polygon in pixels that encloses the mask; None where it is empty."""
    loops = loops_of(to_pixels(mask))
    return None if not loops else _corners(_joined(loops)).ravel().astype(float).tolist()


def loops_of(pixels: NDArray[np.bool_]) -> list[Points]:
    """The closed lines between inside and outside, point by point with a distance of 1: around each piece clockwise,
    around each hole counter-clockwise. Pixels that touch at a corner are different pieces. pixels: (height, width).
    """
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    inside = np.pad(pixels[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    width = inside.shape[1]
    here = inside[1:-1, 1:-1]
    beside = (inside[:-2, 1:-1], inside[1:-1, 2:], inside[2:, 1:-1], inside[1:-1, :-2])
    # An edge is a number: its direction, and the lattice point at which it starts.
    size = inside.shape[0] * width
    exists = np.zeros((4, size), bool)
    for direction, ((y, x), other) in enumerate(zip(((0, 0), (0, 1), (1, 1), (1, 0)), beside, strict=True)):
        r, c = np.nonzero(here & ~other)
        exists[direction, (r + y) * width + c + x] = True
    directions, starts = np.nonzero(exists)
    ends = starts + _STEPS[directions, 1] * width + _STEPS[directions, 0]
    following = np.zeros((4, size), np.int64)
    # The sharpest turn to the right stays at the same pixel; it is written last.
    for turn in (3, 0, 1):
        onward = (directions + turn) % 4
        there = exists[onward, ends]
        following[directions[there], starts[there]] = (onward * size + ends)[there]
    after, left_over = following.ravel().tolist(), dict.fromkeys((directions * size + starts).tolist())
    loops = []
    while left_over:
        loop = [next(iter(left_over))]
        while (edge := after[loop[-1]]) != loop[0]:
            loop.append(edge)
        for edge in loop:
            del left_over[edge]
        points = np.array(loop) % size
        loops.append(np.stack([points % width + left, points // width + top], axis=1))
    return loops


def _joined(loops: list[Points]) -> Points:
    """One closed line through all loops: again and again the nearest loop is joined, there and back.

    No line crosses the shortest way between two sets of lattice points: one of its ends would be nearer.
    """
    from scipy.spatial import KDTree

    ring, latest = loops[0], loops[0]
    rest = np.concatenate([np.zeros((0, 2), np.int64), *loops[1:]])
    owner = np.repeat(np.arange(1, len(loops)), [len(loop) for loop in loops[1:]])
    distances, nearest = np.full(len(rest), np.inf), np.zeros((len(rest), 2), np.int64)
    while len(rest):
        found, index = map(np.asarray, KDTree(latest).query(rest))
        nearer = found < distances
        distances[nearer], nearest[nearer] = found[nearer], latest[index[nearer]]
        best = int(np.argmin(distances))
        latest = loops[owner[best]]
        place = int(np.flatnonzero((ring == nearest[best]).all(axis=1))[0])
        turned = np.roll(latest, -int(np.flatnonzero((latest == rest[best]).all(axis=1))[0]), axis=0)
        ring = np.concatenate([ring[: place + 1], turned, turned[:1], ring[place:]])
        kept = owner != owner[best]
        rest, owner, distances, nearest = rest[kept], owner[kept], distances[kept], nearest[kept]
    return ring


def _corners(ring: Points) -> Points:
    """The ring without points in which it goes straight on, and without points that repeat the one before.

    Points that it comes through again stay: of two lines that only meet there, longer ones would cross.
    """
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    come, go = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    straight = (come[:, 0] * go[:, 1] == come[:, 1] * go[:, 0]) & ((come * go).sum(axis=1) > 0)
    _, place, counts = np.unique(ring, axis=0, return_inverse=True, return_counts=True)
    return ring[~straight | (counts[place.ravel()] > 1)]

"""Which polygons cross themselves, for hundreds of thousands at once.

Most outlines that people and programs draw are seen whole from their centre: their points turn around it in one sense,
and such a polygon does not cross itself. Only the others are tested edge against edge.
"""

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.masks import Rings

# So many pairs of edges are tested at a time.
_PAIRS = 2_000_000


def crossing(rings: Rings) -> NDArray[np.bool_]:
    """(rings,) bool: two edges of the ring cross in a point inside both. Edges that touch do not cross."""
    found = np.zeros(len(rings), bool)
    counts = np.diff(rings.starts)
    candidates = np.flatnonzero(~_seen_from_centre(rings) & (counts > 3))
    for count in np.unique(counts[candidates]).tolist():
        rows = candidates[counts[candidates] == count]
        step = max(1, _PAIRS // count**2)
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            points = rings.points[rings.starts[chosen][:, None] + np.arange(count)]
            found[chosen] = _crossing(points)
    return found


def _seen_from_centre(rings: Rings) -> NDArray[np.bool_]:
    """(rings,) bool: seen from their mean, the points never turn back, and go once around."""
    if not len(rings):
        return np.zeros(0, bool)
    starts, counts = rings.starts[:-1], np.diff(rings.starts)
    centre = np.add.reduceat(rings.points, starts) / counts[:, None]
    away = rings.points - np.repeat(centre, counts, axis=0)
    following = away[rings.next]
    cross = away[:, 0] * following[:, 1] - away[:, 1] * following[:, 0]
    turns = np.arctan2(cross, (away * following).sum(axis=1))
    once = np.asarray(np.abs(np.abs(np.add.reduceat(turns, starts)) - 2 * np.pi) < 1e-3)
    positive = np.minimum.reduceat(turns, starts) > -1e-9
    negative = np.maximum.reduceat(turns, starts) < 1e-9
    return once & (positive | negative)


def _crossing(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(k,) bool for k rings of n points each: (k, n, 2)."""
    ends = np.roll(points, -1, axis=1)
    step = ends - points
    # side[k, i, j]: on which side of edge i the start of edge j lies; its end is the start of edge j + 1.
    apart = points[:, None, :, :] - points[:, :, None, :]
    side = np.sign(step[:, :, None, 0] * apart[..., 1] - step[:, :, None, 1] * apart[..., 0]).astype(np.int8)
    parts = side * np.roll(side, -1, axis=2) < 0
    return np.asarray((parts & parts.transpose(0, 2, 1)).any(axis=(1, 2)))

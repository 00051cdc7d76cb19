"""A recording read in chunks, so that one of any size fits in memory, in the form in which it is stored: in few types,
and with what cannot be used marked."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.recordings.recording import Recording

CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, eq=False)
class Chunk:
    """The bins start..stop-1 of a recording.

    frames: (bins, height, width), uint8 where they were so, else float32; pixels that are no finite number took the
    mean of their frame's others. counts: (bins, units), whole numbers or float32, 0 where they were no finite number.
    behaviour: (bins, channels) float32, NaN where it was no finite number; None where none was recorded. valid: (bins,
    units) or (bins, 1): as given, and false where a count, the frame or the behaviour is broken.
    broken_frames, broken_behaviour: (bins,); broken_counts: (bins, units), or None for nowhere.
    """

    start: int
    stop: int
    frames: NDArray[Any]
    counts: NDArray[Any]
    behaviour: NDArray[np.float32] | None
    valid: NDArray[np.bool_]
    broken_frames: NDArray[np.bool_]
    broken_counts: NDArray[np.bool_] | None
    broken_behaviour: NDArray[np.bool_]


def spans(recording: Recording, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The bins start..stop-1 in spans whose frames and counts take about `CHUNK_BYTES` each, in order."""
    a_bin = max(4 * int(np.prod(recording.stimulus.shape[1:])), 8 * recording.counts.shape[1], 1)
    step = max(1, CHUNK_BYTES // a_bin)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def read(recording: Recording, start: int, stop: int) -> Chunk:
    """The bins start..stop-1 of a recording, in memory."""
    frames, broken_frames = _frames(recording.stimulus[start:stop])
    counts, broken_counts = _counts(recording.counts[start:stop])
    behaviour = None
    broken_behaviour = np.zeros(stop - start, bool)
    if recording.behaviour is not None:
        behaviour = np.array(recording.behaviour[start:stop], np.float32)
        behaviour[~np.isfinite(behaviour)] = np.nan
        broken_behaviour = np.array(np.isnan(behaviour).any(axis=1))
    valid = np.asarray(recording.valid[start:stop], bool) & ~(broken_frames | broken_behaviour)[:, None]
    if broken_counts is not None:
        valid = valid & ~broken_counts
    return Chunk(start, stop, frames, counts, behaviour, valid, broken_frames, broken_counts, broken_behaviour)


def _frames(stored: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    raw = np.asarray(stored)
    if raw.dtype == np.uint8:
        return raw, np.zeros(len(raw), bool)
    found = raw.astype(np.float32)
    finite = np.isfinite(found)
    broken = np.array(~finite.all(axis=(1, 2)))
    for i in np.flatnonzero(broken):
        good = found[i][finite[i]]
        found[i][~finite[i]] = good.mean() if len(good) else 0
    return found, broken


def _counts(stored: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    raw = np.asarray(stored)
    if raw.dtype.kind in "biu":
        return raw, None
    broken = ~np.isfinite(raw)
    return np.where(broken, 0, raw).astype(np.float32), broken if broken.any() else None

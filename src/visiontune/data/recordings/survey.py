"""One pass over a recording, chunk by chunk: all that faults, the split, the statistics and the store ask of it."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.order import mix
from visiontune.data.recordings.chunks import Chunk, read, spans
from visiontune.data.recordings.recording import Recording, Trial

# What is kept of a trial's look: its mean frame, and some of its frames, evenly spread, smaller.
MEAN_SIDE = 16
INSTANT_SIDE = 8
INSTANTS = 32


@dataclass
class Moments:
    """Number, mean and sum of squared deviations, of each channel: (channels,) float64. Joined by Chan's formula (Chan,
    Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979)."""

    n: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @staticmethod
    def of(values: NDArray[Any], channels: int = 1) -> "Moments":
        """The moments of (values, channels); NaN are left out. Every value counts once."""
        table = values.reshape(-1, channels).astype(np.float64)
        there = ~np.isnan(table)
        n = there.sum(axis=0).astype(np.float64)
        filled = np.where(there, table, 0)
        mean = filled.sum(axis=0) / np.maximum(n, 1)
        return Moments(n, mean, (np.where(there, table - mean, 0) ** 2).sum(axis=0))

    @staticmethod
    def of_bytes(values: NDArray[np.uint8]) -> "Moments":
        """The moments of all values as one channel, exactly, by how often each value occurs."""
        often = np.bincount(values.reshape(-1), minlength=256).astype(np.float64)
        n, levels = often.sum(), np.arange(256.0)
        mean = (often @ levels) / max(n, 1)
        return Moments(np.array([n]), np.array([mean]), np.array([often @ (levels - mean) ** 2]))

    @staticmethod
    def joined(parts: "Sequence[Moments]", channels: int = 1) -> "Moments":
        """The moments of everything that the parts are of."""
        if not parts:
            return Moments(np.zeros(channels), np.zeros(channels), np.zeros(channels))
        n = np.stack([part.n for part in parts])
        means = np.stack([part.mean for part in parts])
        total = n.sum(axis=0)
        mean = (n * means).sum(axis=0) / np.maximum(total, 1)
        squares = sum(part.squares for part in parts) + (n * (means - mean) ** 2).sum(axis=0)
        return Moments(total, mean, np.asarray(squares))

    @property
    def std(self) -> NDArray[np.float64]:
        """The standard deviation of each channel, 0 where there is nothing."""
        return np.sqrt(self.squares / np.maximum(self.n, 1))


@dataclass
class TrialSurvey:
    """What one trial holds. `content` is the SHA-256 of its frames. `look`: (MEAN_SIDE squared or less,) and
    `instants`: (INSTANTS * INSTANT_SIDE squared or less,) float32. `spikes` and `valid_bins` are sums over the valid
    counts of each unit: (units,)."""

    content: str
    look: NDArray[np.float32]
    instants: NDArray[np.float32]
    stimulus: Moments
    behaviour: Moments | None
    spikes: NDArray[np.float64]
    valid_bins: NDArray[np.int64]


@dataclass
class Survey:
    """What a recording holds. `trials` has one entry a trial; `fingerprint` is the SHA-256 of all arrays, trials and
    names. Numbers of broken bins and counts, of negative counts and of those that are not whole are of all bins, those
    between trials included. `unit_marks` are equal for units with equal counts in all trials: (units,) uint64.
    `frame_range` is the least and the greatest value of a pixel.
    """

    trials: list[TrialSurvey] = field(default_factory=list)
    fingerprint: str = ""
    unit_marks: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    valid_a_unit: bool = False
    largest_count: float = 0
    frame_range: tuple[float, float] = (np.inf, -np.inf)
    broken_frames: int = 0
    broken_counts: int = 0
    broken_behaviour: int = 0
    negative_counts: int = 0
    fractional_counts: int = 0

    def moments(self, which: Sequence[bool], channels: int) -> tuple[Moments, Moments]:
        """The moments of the pixels and of the behaviour's channels over the chosen trials."""
        chosen = [trial for trial, there in zip(self.trials, which, strict=True) if there]
        seen = [trial.behaviour for trial in chosen if trial.behaviour is not None]
        return Moments.joined([trial.stimulus for trial in chosen]), Moments.joined(seen, channels)


def survey(recording: Recording) -> Survey:
    """Read a recording once."""
    units = recording.counts.shape[1]
    found = Survey(unit_marks=np.zeros(units, np.uint64), valid_a_unit=recording.valid.shape[1] > 1 or units == 1)
    # One digest an array: joined at the end, they do not depend on where chunks were cut.
    digests = {name: hashlib.sha256() for name in ("frames", "counts", "valid", "behaviour")}
    for trial, start, stop in _segments(recording):
        chunks = _read(found, recording, start, stop, digests)
        if trial is None:
            for chunk in chunks:
                digests["frames"].update(chunk.frames.tobytes())
        else:
            found.trials.append(_trial(found, recording, start, stop, chunks))
            digests["frames"].update(found.trials[-1].content.encode())
    whole = hashlib.sha256(repr(_names(recording)).encode())
    for digest in digests.values():
        whole.update(digest.digest())
    if recording.eye is not None:
        whole.update(np.asarray(recording.eye, np.float32).tobytes())
    found.fingerprint = whole.hexdigest()
    return found


def _names(recording: Recording) -> list[Any]:
    own = [recording.name, recording.rate, recording.subject, recording.units, recording.behaviour_names]
    trials = [
        (t.id, t.start, t.stop, t.kind, t.condition, t.split, *([t.offset] if t.offset else []))
        for t in recording.trials
    ]
    return [*own, recording.stimulus.shape, recording.eye is not None, recording.behaviour is not None, trials]


def _segments(recording: Recording) -> Iterator[tuple[Trial | None, int, int]]:
    """The trials and the gaps between them, in order, without empty ones."""
    last = 0
    for trial in recording.trials:
        if last < trial.start:
            yield None, last, trial.start
        yield trial, trial.start, trial.stop
        last = trial.stop
    if last < len(recording.stimulus):
        yield None, last, len(recording.stimulus)


def _read(found: Survey, recording: Recording, start: int, stop: int, digests: Mapping[str, Any]) -> Iterator[Chunk]:
    """Chunks of the bins start..stop-1; counts what is asked of all bins, those between trials included."""
    for first, last in spans(recording, start, stop):
        chunk = read(recording, first, last)
        found.broken_frames += int(chunk.broken_frames.sum())
        found.broken_behaviour += int(chunk.broken_behaviour.sum())
        if chunk.broken_counts is not None:
            found.broken_counts += int(chunk.broken_counts.sum())
            found.valid_a_unit = True
        counts = chunk.counts
        found.largest_count = max(found.largest_count, float(counts.max(initial=0)))
        if counts.dtype.kind in "fi":
            found.negative_counts += int((counts < 0).sum())
        if counts.dtype.kind == "f":
            found.fractional_counts += int((counts != np.rint(counts)).sum())
        low, high = found.frame_range
        found.frame_range = (min(low, float(chunk.frames.min())), max(high, float(chunk.frames.max())))
        digests["counts"].update(np.ascontiguousarray(recording.counts[first:last], np.float32).tobytes())
        digests["valid"].update(np.ascontiguousarray(recording.valid[first:last], bool).tobytes())
        if chunk.behaviour is not None:
            digests["behaviour"].update(chunk.behaviour.tobytes())
        yield chunk


def _trial(found: Survey, recording: Recording, start: int, stop: int, chunks: Iterator[Chunk]) -> TrialSurvey:
    length = stop - start
    instants = start + (np.arange(INSTANTS) * length + length // 2) // INSTANTS
    content = hashlib.sha256(repr(recording.stimulus.shape[1:]).encode())
    total = np.zeros(recording.stimulus.shape[1:])
    looks, stimulus, behaviour = [], [], []
    units = recording.counts.shape[1]
    spikes, valid_bins = np.zeros(units), np.zeros(units, np.int64)
    for chunk in chunks:
        content.update(f"{chunk.frames.dtype}".encode() if chunk.start == start else b"")
        content.update(chunk.frames.tobytes())
        total += chunk.frames.sum(axis=0, dtype=np.float64)
        here = instants[(instants >= chunk.start) & (instants < chunk.stop)] - chunk.start
        looks.append(_small(chunk.frames[here], INSTANT_SIDE))
        whole = chunk.frames.dtype == np.uint8
        stimulus.append(Moments.of_bytes(chunk.frames) if whole else Moments.of(chunk.frames))
        if chunk.behaviour is not None:
            behaviour.append(Moments.of(chunk.behaviour, chunk.behaviour.shape[1]))
        spikes += np.where(chunk.valid, chunk.counts, 0).sum(axis=0, dtype=np.float64)
        valid_bins += np.broadcast_to(chunk.valid, chunk.counts.shape).sum(axis=0)
        # Sums of products modulo 2^64, exact, so that equal columns give equal ones.
        counts = chunk.counts if chunk.counts.dtype.kind in "biu" else chunk.counts.view(np.uint32)
        weights = mix(np.arange(chunk.start, chunk.stop, dtype=np.uint64))
        found.unit_marks += (counts.astype(np.uint64) * weights[:, None]).sum(axis=0, dtype=np.uint64)
    return TrialSurvey(
        content=content.hexdigest(),
        look=_small((total / length)[None].astype(np.float32), MEAN_SIDE)[0].ravel(),
        instants=np.concatenate(looks).ravel(),
        stimulus=Moments.joined(stimulus),
        behaviour=Moments.joined(behaviour, behaviour[0].mean.size) if behaviour else None,
        spikes=spikes,
        valid_bins=valid_bins,
    )


def _small(frames: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Frames (n, height, width) averaged over blocks, at most `side` of them along each axis."""
    found = frames.astype(np.float32)
    for axis in (1, 2):
        size = frames.shape[axis]
        edges = np.linspace(0, size, min(side, size) + 1).astype(int)
        shape = [1, 1, 1]
        shape[axis] = -1
        found = np.add.reduceat(found, edges[:-1], axis=axis) / np.diff(edges).astype(np.float32).reshape(shape)
    return found

"""A recording at a lower rate: what is done to each array, said array by array."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.recordings.chunks import CHUNK_BYTES
from visiontune.data.recordings.recording import Recording, Trial
from visiontune.data.recordings.scratch import assembled
from visiontune.errors import DataError

NEARLY = 0.01  # of the asked rate: so far may the one that whole bins make be from it


@dataclass(frozen=True)
class Conversion:
    """A recording at another rate; `report` has a line for each array and one for what was cut."""

    recording: Recording
    report: tuple[str, ...]


def at_rate(recording: Recording, rate: float) -> Conversion:
    """The recording with bins of several old ones each: `rate` bins a second.

    Counts are summed, a bin is valid where all of its old ones are, of the frames the first is taken, behaviour and eye
    position are averaged. Trials keep their ids, conditions and splits, which are never averaged; bins at the end of a
    trial that fill no new bin are cut, and so are those between trials; the later parts of an interrupted trial keep to
    the new bins of the whole one. The old rate is a whole multiple of the new one, or nearly: measured rates are, and
    the rate that is asked for is taken for what they make, within 1 %. Raises DataError for others.
    """
    factor = round(recording.rate / rate) if rate > 0 else 0
    if factor < 1 or abs(recording.rate / rate / factor - 1) > NEARLY:
        fits = ", ".join(f"{recording.rate / k:g}" for k in (1, 2, 3, 4))
        raise DataError(
            f"{recording.rate:g} bins a second cannot become {rate:g}: only whole bins are put together",
            where=recording.name,
            fix=f"use one of {fits}, ...",
        )
    made = recording.rate / factor
    rounded = () if math.isclose(made, rate, rel_tol=1e-6) else (f"{made:.6g} bins a second are taken for {rate:g}",)
    if factor == 1:
        return Conversion(replace(recording, rate=float(rate)), rounded)
    spans: list[tuple[int, int]] = []
    trials: list[Trial] = []
    for trial in recording.trials:
        first = trial.start + -trial.offset % factor
        groups = (trial.stop - first) // factor
        if groups > 0:
            start = trials[-1].stop if trials else 0
            offset = (trial.offset + first - trial.start) // factor
            spans.append((first, groups))
            trials.append(replace(trial, start=start, stop=start + groups, offset=offset))

    def taken(array: NDArray[Any], kind: Any, how: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
        return assembled((how(group) for group in _groups(array, spans, factor)), kind, array.shape[1:])

    byte = recording.stimulus.dtype == np.uint8
    whole = recording.counts.dtype.kind in "biu"
    summed = np.int64 if whole else np.float64
    behaviour, eye = recording.behaviour, recording.eye
    converted = replace(
        recording,
        rate=float(rate),
        stimulus=taken(recording.stimulus, np.uint8 if byte else np.float32, lambda group: group[:, 0]),
        counts=taken(recording.counts, np.int32 if whole else np.float32, lambda g: g.sum(axis=1, dtype=summed)),
        valid=taken(recording.valid, bool, lambda group: np.asarray(group.all(axis=1))),
        behaviour=None if behaviour is None else taken(behaviour, np.float32, lambda group: group.mean(axis=1)),
        eye=None if eye is None else taken(eye, np.float32, lambda group: group.mean(axis=1)),
        trials=tuple(trials),
    )
    return Conversion(converted, (*rounded, *_report(recording, converted, factor)))


def _groups(array: NDArray[Any], spans: list[tuple[int, int]], factor: int) -> Iterator[NDArray[Any]]:
    """(groups, factor, ...) of each trial, in pieces of a bounded size."""
    step = max(1, CHUNK_BYTES // max(1, factor * array[:1].nbytes))
    for start, groups in spans:
        for first in range(0, groups, step):
            number = min(step, groups - first)
            piece = np.asarray(array[start + first * factor : start + (first + number) * factor])
            yield piece.reshape(number, factor, *array.shape[1:])


def _report(old: Recording, new: Recording, factor: int) -> tuple[str, ...]:
    inside = sum(trial.stop - trial.start for trial in old.trials)
    rest = inside - factor * len(new.stimulus)
    lines = [
        f"{old.rate:g} to {new.rate:g} bins a second: each bin is {factor} old ones",
        f"counts: summed ({_total(old)} spikes in trials before, {_total(new)} after)",
        "valid: where all of them are",
        "stimulus: the first frame of each",
        "trials, conditions, kinds, splits: kept",
        f"cut: {rest} bins at the ends of trials, {len(old.stimulus) - inside} between trials, "
        f"{len(old.trials) - len(new.trials)} trials shorter than {factor} bins",
    ]
    if old.behaviour is not None:
        lines.insert(4, "behaviour: averaged")
    if old.eye is not None:
        lines.insert(4, "eye: averaged")
    return tuple(lines)


def _total(recording: Recording) -> str:
    total = sum(np.nansum(recording.counts[trial.start : trial.stop], dtype=np.float64) for trial in recording.trials)
    return f"{total:,.10g}"

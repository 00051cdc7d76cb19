"""Sessions in NWB 2 files: spike times of the units table, counted in the frames of the stimuli presented.

NWB files are HDF5, so that h5py alone reads them; names follow the NWB schema.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.faults import Fault
from visiontune.data.recordings.arrays import Session, condition_named, split_named
from visiontune.data.recordings.hdf5 import Item, array_of, fact, is_dataset, opened
from visiontune.data.recordings.recording import Recording, Trial
from visiontune.data.recordings.scratch import assembled
from visiontune.errors import DataError

PRESENTED = "stimulus/presentation"
# A frame that stays longer than so many frames ends a stretch: what follows is another trial.
LONGEST_FRAME = 1.5
CHUNK = 256  # frames of an index series that are copied at once


@dataclass(frozen=True)
class _Series:
    """A stimulus: its frames (bins, height, width), when each begins (bins,), in seconds, and how long one lasts.
    places: the number of each frame in the series, (bins,), of `listed`; times of an index series without an image are
    left out."""

    name: str
    frames: NDArray[Any]
    times: NDArray[np.float64]
    period: float
    places: NDArray[np.int64]
    listed: int


def read(path: Path) -> Session:
    """One session. All image series of `stimulus/presentation` become one stimulus, in the order of their times; each
    is a kind. Raises DataError where there is none, or no units table."""
    with opened(path) as file:
        series = _stimuli(file, path)
        period = series[0].period
        times = np.concatenate([one.times for one in series])
        kind_of = np.repeat(np.arange(len(series)), [len(one.times) for one in series])
        order = np.argsort(times, kind="stable")
        times, kind_of = times[order], kind_of[order]
        if len(times) > 1 and np.diff(times).min() < period / 2:
            at = times[int(np.diff(times).argmin())]
            fix = "keep one stimulus where two overlap"
            raise DataError(f"two frames are shown at {at:g} s", where=f"{path}: {PRESENTED}", fix=fix)
        following = np.r_[times[1:], np.inf]
        stops = np.where(following - times <= LONGEST_FRAME * period, following, times + period)
        names, counts, valid = _units(file, path, times, stops)
        kinds = [one.name for one in series]
        places = np.concatenate([one.places for one in series])[order]
        # How many frames of the stimuli, blank ones too, lie before each bin.
        shown = np.r_[0, np.cumsum(np.where(np.diff(kind_of) == 0, np.diff(places), 1))]
        trials, outside, untimed = _trials(file, times, stops, kind_of, kinds, shown, period)
        subject = file.get("general/subject/subject_id")
        recording = Recording(
            name=path.resolve().stem,
            rate=1 / period,
            stimulus=series[0].frames if len(series) == 1 else _interleaved(series, kind_of),
            counts=counts,
            valid=valid,
            units=names,
            trials=trials,
            subject=None if subject is None else str(array_of(subject, path)),
        )
    faults = []
    if outside:
        found = f"{outside} rows of the trials table hold no frame of a stimulus"
        faults.append(Fault("empty-trials", "warning", "intervals/trials", found, "nothing, where nothing was shown"))
    if untimed:
        found = f"{untimed} rows of the trials table have no start and no later stop: they are no trials"
        fix = "give each its start_time and stop_time in seconds, or nothing, where these were broken off"
        faults.append(Fault("untimed-trials", "warning", "intervals/trials", found, fix))
    for one in series:
        if blank := one.listed - len(one.times):
            found = f"{blank} of its {one.listed} numbers are below zero: no image, left out"
            fix = "nothing, where the screen was blank"
            faults.append(Fault("blank-frames", "warning", f"{PRESENTED}/{one.name}", found, fix))
    return Session(recording, faults)


def _stimuli(file: Item, path: Path) -> list[_Series]:
    group = file.get(PRESENTED)
    found, others = [], []
    for name in sorted(group or ()):
        item = group[name]
        data = item.get("data") if not is_dataset(item) else None
        kind = fact(item.attrs.get("neurodata_type", "group"))
        grey = 1 if kind == "IndexSeries" else 3  # dimensions
        if data is not None and is_dataset(data) and data.size and data.ndim == grey:
            found.append(_series(name, item, path))
        else:
            others.append(f"{name} ({kind})")
    if not found:
        raise DataError(
            f"there is no image series of grey frames; found: {', '.join(others[:8]) or 'nothing'}",
            where=f"{path}: {PRESENTED}",
            fix="store the frames as OpticalSeries or ImageSeries, data of (frames, height, width), or as IndexSeries",
        )
    found.sort(key=lambda one: one.times[0])
    sizes = {one.frames.shape[1:] for one in found}
    if len(sizes) > 1:
        shown = ", ".join(f"{one.name} {one.frames.shape[1:]}" for one in found)
        raise DataError(
            f"stimuli differ in their frames' size: {shown}", where=f"{path}: {PRESENTED}", fix="scale them to one"
        )
    slow = [one.name for one in found if abs(one.period / found[0].period - 1) > 1e-2]
    if slow:
        raise DataError(
            f"stimuli have several rates: {found[0].name} and {slow[0]}",
            where=f"{path}: {PRESENTED}",
            fix="keep those of one rate, and export the others to another file",
        )
    return found


def _interleaved(series: list[_Series], kind_of: NDArray[np.int64]) -> NDArray[Any]:
    """The frames of several stimuli in the order of time. kind_of: the number of the series of each bin, (bins,)."""
    edges = [0, *(np.flatnonzero(np.diff(kind_of)) + 1).tolist(), len(kind_of)]
    taken = [0] * len(series)

    def pieces() -> Iterator[NDArray[Any]]:
        for start, stop in pairwise(edges):
            kind = int(kind_of[start])
            yield series[kind].frames[taken[kind] : taken[kind] + stop - start]
            taken[kind] += stop - start

    byte = all(one.frames.dtype == np.uint8 for one in series)
    return assembled(pieces(), np.uint8 if byte else np.float32, series[0].frames.shape[1:])


def _series(name: str, group: Item, path: Path) -> _Series:
    data, where = group["data"], f"{path}: {PRESENTED}/{name}"
    if data.ndim > 1:
        frames = array_of(data, path)
        times, period = _times(group, len(frames), where)
        return _Series(name, frames, times, period, np.arange(len(frames)), len(frames))
    numbers = np.asarray(data[()]).astype(np.int64)
    times, period = _times(group, len(numbers), where)
    shown = numbers >= 0
    if not shown.any():
        raise DataError("no number of the series is one of an image", where=where, fix="export the series again")
    frames = _indexed(group, numbers[shown], path, where)
    return _Series(name, frames, times[shown], period, np.flatnonzero(shown), len(numbers))


def _times(group: Item, frames: int, where: str) -> tuple[NDArray[np.float64], float]:
    """When each frame begins, (frames,), and how long one lasts, in seconds."""
    if "timestamps" in group:
        times = np.asarray(group["timestamps"][()], np.float64)
        steps = np.diff(times)
        fix = "timestamps hold the second at which each frame begins, ascending"
        if len(times) != frames or not len(steps):
            raise DataError(f"{len(times)} timestamps for {frames} frames", where=where, fix=fix)
        if not (steps > 0).all():
            found = f"the timestamps do not go forward after frame {int((~(steps > 0)).argmax())}"
            raise DataError(found, where=where, fix=fix)
        return times, float(np.median(steps))
    start = group.get("starting_time")
    rate = 0.0 if start is None else float(start.attrs.get("rate", 0))
    if start is None or not rate > 0:
        fix = "give timestamps, or a starting_time with its rate"
        raise DataError("nothing says when the frames were shown", where=where, fix=fix)
    return float(start[()]) + np.arange(frames) / rate, 1 / rate


def _indexed(group: Item, numbers: NDArray[np.int64], path: Path, where: str) -> NDArray[Any]:
    """The frames that an index series shows, (bins, height, width). numbers: of its images, from 0 on."""
    images = _images(group, path, where)
    if numbers.max() >= len(images):
        wrong = int((numbers >= len(images)).sum())
        raise DataError(
            f"{wrong} of {len(numbers)} numbers are {len(images)} or more; there are {len(images)} images, from 0 on",
            where=where,
            fix="number the images from 0 on, or link the series to all of them",
        )
    kind = np.uint8 if images.dtype == np.uint8 else np.float32
    pieces = (images[numbers[start : start + CHUNK]] for start in range(0, len(numbers), CHUNK))
    return assembled(pieces, kind, images.shape[1:])


def _images(group: Item, path: Path, where: str) -> NDArray[Any]:
    """What an index series numbers, (images, height, width): an image series (`indexed_timeseries`), or a collection of
    images in the order that it names (`indexed_images`)."""
    series, images = group.get("indexed_timeseries"), group.get("indexed_images")
    if series is not None and "data" in series and series["data"].ndim == 3:
        return array_of(series["data"], path)
    if images is not None and "order_of_images" in images:
        found = [np.asarray(images.file[place][()]) for place in images["order_of_images"][()].reshape(-1)]
        shapes = {image.shape for image in found}
        if len(shapes) == 1 and len(next(iter(shapes))) == 2:
            return np.stack(found)
        shown = ", ".join(str(shape) for shape in sorted(shapes)[:4])
        raise DataError(
            f"its images are not grey and of one size: {shown or 'there are none'}",
            where=where,
            fix="store them as GrayscaleImage, scaled to one size",
        )
    raise DataError(
        "the series numbers images, and names none that are grey and in order",
        where=where,
        fix="link indexed_images to Images with order_of_images, or indexed_timeseries to an ImageSeries",
    )


def _units(
    file: Item, path: Path, starts: NDArray[np.float64], stops: NDArray[np.float64]
) -> tuple[tuple[str, ...], NDArray[np.uint16], NDArray[np.bool_]]:
    """The units' names, their spikes in each bin (bins, units), and where each was observed (bins, units or 1)."""
    units = file.get("units")
    if units is None or "spike_times" not in units or "spike_times_index" not in units:
        raise DataError(
            "there are no spike times", where=f"{path}: units", fix="store them as units/spike_times, with its index"
        )
    spikes = np.asarray(units["spike_times"][()], np.float64)
    ends = np.asarray(units["spike_times_index"][()], np.int64)
    numbers = units["id"][()].tolist() if "id" in units else list(range(len(ends)))
    counts = np.zeros((len(starts), len(ends)), np.uint16)
    for unit, (first, last) in enumerate(zip(np.r_[0, ends[:-1]].tolist(), ends.tolist(), strict=True)):
        own = np.sort(spikes[first:last])
        counts[:, unit] = np.searchsorted(own, stops) - np.searchsorted(own, starts)
    valid = np.ones((len(starts), 1), bool)
    if "obs_intervals" in units and "obs_intervals_index" in units:
        spans = np.asarray(units["obs_intervals"][()], np.float64).reshape(-1, 2)
        limits = np.asarray(units["obs_intervals_index"][()], np.int64)
        valid = np.zeros(counts.shape, bool)
        for unit, (first, last) in enumerate(zip(np.r_[0, limits[:-1]].tolist(), limits.tolist(), strict=True)):
            for begin, end in spans[first:last]:
                valid[:, unit] |= (starts >= begin) & (stops <= end)
        if (valid == valid[:, :1]).all():
            valid = valid[:, :1].copy()
    return tuple(str(number) for number in numbers), counts, valid


def _trials(
    file: Item,
    starts: NDArray[np.float64],
    stops: NDArray[np.float64],
    kind_of: NDArray[np.int64],
    kinds: list[str],
    shown: NDArray[np.int64],
    period: float,
) -> tuple[tuple[Trial, ...], int, int]:
    """Trials from the table, or one for each stretch without a break; and the numbers of rows of the table without a
    frame, and without a start and a later stop.

    shown: how many frames were shown, or blank, before each bin, (bins,): a frame that comes late is not one that is
    left out, those after it are at their places in the stimulus.
    """
    breaks = np.flatnonzero((np.diff(starts) > LONGEST_FRAME * period) | (np.diff(kind_of) != 0)) + 1
    table = file.get("intervals/trials")
    if table is None or "start_time" not in table or "stop_time" not in table:
        runs = pairwise([0, *breaks.tolist(), len(starts)])
        return tuple(Trial(f"trial-{i}", a, b, kinds[int(kind_of[a])]) for i, (a, b) in enumerate(runs)), 0, 0
    begin, end = (np.asarray(table[name][()], np.float64) for name in ("start_time", "stop_time"))
    ids = table["id"][()].tolist() if "id" in table else list(range(len(begin)))
    conditions, splits = (table[name][()].tolist() if name in table else None for name in ("condition", "split"))
    trials: list[Trial] = []
    empty = last = 0
    middle = (starts + stops) / 2
    timed = np.isfinite(begin) & np.isfinite(end) & (end > begin)
    for row in np.argsort(begin, kind="stable").tolist():
        if not timed[row]:
            continue
        # A frame belongs to the trial in which most of it was shown; no bin to two.
        first = max(last, int(np.searchsorted(middle, begin[row])))
        stop = int(np.searchsorted(middle, end[row]))
        edges = [first, *(a for a in breaks.tolist() if first < a < stop), stop]
        if stop <= first:
            empty += 1
            continue
        for part, (a, b) in enumerate(pairwise(edges)):
            trials.append(
                Trial(
                    id=f"trial-{ids[row]}" + (f"+{part}" if part else ""),
                    start=a,
                    stop=b,
                    kind=kinds[int(kind_of[a])],
                    condition=condition_named(conditions[row]) if conditions else None,
                    split=split_named(splits[row], "intervals/trials") if splits else None,
                    offset=int(shown[a] - shown[first]),
                )
            )
        last = stop
    return tuple(trials), empty, int((~timed).sum())

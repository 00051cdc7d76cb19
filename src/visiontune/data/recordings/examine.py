"""What is wrong with a recording: one small function a fault, each with its place and its fix."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from visiontune.data.faults import Fault, leak_across_splits, ordered, some
from visiontune.data.recordings.recording import Recording, Trial
from visiontune.data.recordings.split import Clusters
from visiontune.data.recordings.survey import Survey
from visiontune.data.split import SPLITS
from visiontune.words import counted

LEAST_VALID = 0.2
# Clocks may part by so much of a bin before frames and spikes are no longer the same moment.
CLOCK_BINS = 0.5


def examine(recording: Recording, found: Survey, together: Clusters) -> list[Fault]:
    """All faults of a recording, the worst first."""
    faults = [
        *_no_trials(recording.trials),
        *_twice_named(recording.trials),
        *_negative_counts(found.negative_counts),
        *_fractional_counts(found.fractional_counts),
        *_broken_numbers("stimulus", found.broken_frames, "frames"),
        *_broken_numbers("counts", found.broken_counts, "counts"),
        *_broken_numbers("behaviour", found.broken_behaviour, "bins"),
        *_constant_stimulus(found.frame_range),
    ]
    if found.trials:
        spikes = np.stack([trial.spikes for trial in found.trials]).sum(axis=0)
        valid = np.stack([trial.valid_bins for trial in found.trials]).sum(axis=0)
        bins = sum(trial.stop - trial.start for trial in recording.trials)
        empty = _empty_behaviour(recording, found)
        faults += [
            *_silent_units(recording.units, spikes, valid),
            *(empty or _seldom_valid_units(recording.units, valid / bins)),
            *_duplicate_units(recording.units, found.unit_marks, spikes),
            *_constant_behaviour(recording, found),
            *_conditions_that_differ(recording.trials, found),
            *_leaking_stimuli(recording.trials, together.of),
            *_alike_everywhere(together),
        ]
    return ordered(faults)


def empty_splits(bins: Mapping[str, int]) -> list[Fault]:
    """Splits without a trial, where others have some; `bins` by split."""
    empty = [split for split in SPLITS if not bins[split]]
    if not empty or len(empty) == len(SPLITS):
        return []
    found = f"no trial is in the {' and the '.join(empty)} split: " + (
        "nothing can be learned" if "train" in empty else "there is nothing to choose or to score by"
    )
    fix = "record more stimuli (repeats of one stay together), or give trials their splits"
    return [Fault("empty-split", "warning", "trials", found, fix)]


def trials_again(trial_of: NDArray[np.int64]) -> list[Fault]:
    """Numbers of trials that come again after another trial. trial_of: the number of each bin's trial, (bins,), -1
    between trials."""
    inside = trial_of[trial_of >= 0]
    numbers, often = np.unique(inside[np.flatnonzero(np.diff(inside, prepend=-1))], return_counts=True)
    again = [f"trial-{number}" for number in numbers[often > 1].tolist()]
    if not again:
        return []
    found = (
        f"{counted(len(again), 'number')} of trials come again after another trial: the stimulus is taken to begin anew"
    )
    fix = "give each showing a number of its own; where a trial goes on, give the bins between its parts the number -1"
    return [Fault("trial-again", "warning", some(again), found, fix)]


def clock_faults(times: Mapping[str, NDArray[np.float64]], trial_of: NDArray[np.int64], rate: float) -> list[Fault]:
    """Clocks that do not run as the rate says, or not together.

    times: by the name of an array, the seconds at which each bin begins, (bins,). trial_of: the number of the trial of
    each bin, -1 between trials: breaks between trials are no fault.
    """
    faults = []
    within = (trial_of[1:] == trial_of[:-1]) & (trial_of[1:] >= 0)
    for name, clock in sorted(times.items()):
        steps = np.diff(clock)
        if back := int((~(steps > 0)).sum()):
            found = f"the clock of the {name} does not go forward at {back} bins, the first after bin"
            found = f"{found} {int(np.flatnonzero(~(steps > 0))[0])}"
            faults.append(Fault("clock-not-forward", "error", f"{name}_times", found, "sort or mend the timestamps"))
            continue
        late = _drift(steps * rate - 1, within)
        if abs(late) > CLOCK_BINS:
            found = f"inside a trial, the clock of the {name} parts from {rate:g} bins a second by {late:.1f} bins"
            fix = "resample the array to one rate, or correct the rate"
            faults.append(Fault("drifting-clock", "error", f"{name}_times", found, fix))
    names = sorted(times)
    for other in names[1:]:
        apart = np.abs(times[names[0]] - times[other]) * rate
        if not np.nanmax(apart, initial=0) <= CLOCK_BINS:
            found = f"{names[0]} and {other} are up to {np.nanmax(apart):.1f} bins apart, first at bin"
            found = f"{found} {int(np.flatnonzero(~(apart <= CLOCK_BINS))[0])}"
            fix = "shift or resample them to one clock: bin t of each must be the same moment"
            faults.append(Fault("misaligned-clocks", "error", f"{names[0]}_times, {other}_times", found, fix))
    return ordered(faults)


def _drift(late: NDArray[np.float64], within: NDArray[np.bool_]) -> float:
    """The most that a clock is late (or, negative, early) against the rate since a trial began, in bins.

    late, within: of each step to the next bin, (bins - 1,), how much it is too long and whether it lies in a trial.
    """
    gathered = np.r_[0.0, np.cumsum(np.where(within, late, 0))]
    began = np.maximum.accumulate(np.where(np.r_[False, within], 0, np.arange(len(gathered))))
    since = gathered - gathered[began]
    return float(since[np.abs(since).argmax()])


def _no_trials(trials: Sequence[Trial]) -> list[Fault]:
    """Nothing was shown."""
    if trials:
        return []
    return [Fault("no-trials", "error", "trials", "the recording has no trial", "number the bins of trials from 0")]


def _twice_named(trials: Sequence[Trial]) -> list[Fault]:
    """Two trials with one id."""
    names = [trial.id for trial in trials]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not twice:
        return []
    return [Fault("duplicate-trial", "error", some(twice), "several trials have one id", "give each its own")]


def _negative_counts(number: int) -> list[Fault]:
    """Less than no spikes."""
    if not number:
        return []
    fix = "give counts or rates that are not negative; fluorescence must be deconvolved, or its least value taken off"
    return [Fault("negative-counts", "error", "counts", f"{number} counts are negative", fix)]


def _fractional_counts(number: int) -> list[Fault]:
    """Responses that are no counts: trained all the same, stored as float32."""
    if not number:
        return []
    found = f"{number} counts are not whole: they are taken as they are, and bits per spike mean little"
    return [Fault("fractional-counts", "warning", "counts", found, "nothing, where these are calcium responses")]


def _broken_numbers(array: str, number: int, what: str) -> list[Fault]:
    """NaN or infinite values; they are not valid."""
    if not number:
        return []
    found = f"{number} {what} hold values that are no finite number: these are neither learned nor scored"
    return [Fault("not-a-number", "warning", array, found, "mend them where they are known")]


def _constant_stimulus(span: tuple[float, float]) -> list[Fault]:
    """Nothing to see. `span` is the least and the greatest value of a pixel, the other way round without frames."""
    if span[0] != span[1]:
        return []
    found = f"every pixel of every frame is {span[0]:g}"
    return [Fault("constant-stimulus", "error", "stimulus", found, "check how the frames were written")]


def _silent_units(units: Sequence[str], spikes: NDArray[np.float64], valid: NDArray[np.int64]) -> list[Fault]:
    """Units without a valid spike in any trial; those that are never valid are another fault's."""
    silent = [unit for unit, n, bins in zip(units, spikes, valid, strict=True) if n == 0 and bins]
    if not silent:
        return []
    found = f"no spike in any valid bin of {counted(len(silent), 'unit')}"
    return [Fault("silent-unit", "warning", some(silent), found, "leave them out: nothing can be learned of them")]


def _seldom_valid_units(units: Sequence[str], share: NDArray[np.float64]) -> list[Fault]:
    """Units whose counts are mostly not valid."""
    if not share.any():
        fix = "check `valid`, which is true where a count is to be learned, and where frames or behaviour are NaN"
        return [Fault("seldom-valid", "error", "valid", "no count of any unit is valid", fix)]
    seldom = [f"{unit} ({part:.0%})" for unit, part in zip(units, share, strict=True) if part < LEAST_VALID]
    if not seldom:
        return []
    found = f"{counted(len(seldom), 'unit')} valid in less than {LEAST_VALID:.0%} of the bins"
    return [Fault("seldom-valid", "warning", some(seldom), found, "check `valid`, or leave these units out")]


def _duplicate_units(units: Sequence[str], marks: NDArray[np.uint64], spikes: NDArray[np.float64]) -> list[Fault]:
    """Units with the same counts in every bin of every trial, silent ones aside."""
    same: dict[int, list[str]] = defaultdict(list)
    for unit, mark, number in zip(units, marks.tolist(), spikes, strict=True):
        if number:
            same[mark].append(unit)
    groups = [" = ".join(names) for names in same.values() if len(names) > 1]
    if not groups:
        return []
    found = f"{len(groups)} groups of units have the same counts in every bin"
    return [Fault("duplicate-units", "warning", some(groups), found, "keep one unit of each group")]


def _empty_behaviour(recording: Recording, found: Survey) -> list[Fault]:
    """Channels of behaviour that hold nothing: a bin without its behaviour is not valid, so none is."""
    empty = [name for name, n, _ in _channels(recording, found) if n == 0]
    if not empty:
        return []
    many = len(empty) > 1
    text = f"{counted(len(empty), 'channel')} of behaviour {'hold' if many else 'holds'} no finite number in any trial"
    fix = f"take {'these channels' if many else 'this channel'} out of the behaviour, or fill in what was recorded"
    return [Fault("empty-behaviour", "error", some(empty), f"{text}: no bin would be learned or scored", fix)]


def _constant_behaviour(recording: Recording, found: Survey) -> list[Fault]:
    """Channels of behaviour that never change."""
    still = [name for name, n, std in _channels(recording, found) if n and std == 0]
    if not still:
        return []
    found_text = f"{len(still)} channels of behaviour never change"
    return [Fault("constant-behaviour", "warning", some(still), found_text, "leave them out, or check the device")]


def _channels(recording: Recording, found: Survey) -> list[tuple[str, float, float]]:
    """Of each channel of behaviour its name, how many finite values the trials hold, and their standard deviation."""
    if recording.behaviour is None:
        return []
    channels = recording.behaviour.shape[1]
    moments = found.moments([True] * len(found.trials), channels)[1]
    names = recording.behaviour_names or tuple(f"channel {i}" for i in range(channels))
    return list(zip(names, moments.n.tolist(), moments.std.tolist(), strict=True))


def _conditions_that_differ(trials: Sequence[Trial], found: Survey) -> list[Fault]:
    """Trials of one condition that do not show the same frames over the bins that they share."""
    contents: dict[str, set[tuple[tuple[int, int], str]]] = defaultdict(set)
    for trial, of in zip(trials, found.trials, strict=True):
        if trial.condition is not None:
            contents[trial.condition].add(((trial.offset, trial.stop - trial.start), of.content))
    differ = [name for name, seen in contents.items() if len(seen) > len({place for place, _ in seen})]
    if not differ:
        return []
    text = f"{len(differ)} conditions show different frames in trials of one length; averages over repeats mix them"
    fix = "nothing, where the eye moved over the same picture; else give each stimulus its own condition"
    return [Fault("condition-differs", "warning", some(differ), text, fix)]


def _leaking_stimuli(trials: Sequence[Trial], groups: NDArray[np.int64]) -> list[Fault]:
    """Repeated or near-identical stimuli in several of the given splits."""
    members: dict[int, list[Trial]] = defaultdict(list)
    for trial, group in zip(trials, groups.tolist(), strict=True):
        if trial.split is not None:
            members[group].append(trial)
    leaks = [[f"{t.id} ({t.split})" for t in some] for some in members.values() if len({t.split for t in some}) > 1]
    return leak_across_splits(leaks, "stimuli")


def _alike_everywhere(together: Clusters) -> list[Fault]:
    """Stimuli so alike that their look tells nothing."""
    if not together.alike_everywhere:
        return []
    found = "most trials look nearly the same, small parts of the frames aside: only exact repeats are kept together"
    return [Fault("alike-everywhere", "warning", "stimulus", found, "cut the frames to what changes, or give splits")]

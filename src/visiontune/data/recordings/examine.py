"""What is wrong with a recording: one small function a fault, each with its place and its fix."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from visiontune.data.faults import Fault, leak_across_splits, ordered
from visiontune.data.recordings.recording import Recording, Trial
from visiontune.data.recordings.split import clusters, looks_alike_everywhere, near_pairs
from visiontune.data.recordings.survey import Survey

LEAST_VALID = 0.2
# Clocks may part by so much of a bin before frames and spikes are no longer the same moment.
CLOCK_BINS = 0.5
_SHOWN = 5


def examine(recording: Recording, found: Survey, burn_in: int | None = None) -> list[Fault]:
    """All faults of a recording, the worst first. `burn_in`: the number of bins that a model only sees."""
    faults = [
        *no_trials(recording.trials),
        *twice_named(recording.trials),
        *negative_counts(found.negative_counts),
        *fractional_counts(found.fractional_counts),
        *broken_numbers("stimulus", found.broken_frames, "frames"),
        *broken_numbers("counts", found.broken_counts, "counts"),
        *broken_numbers("behaviour", found.broken_behaviour, "bins"),
        *constant_stimulus(found.frame_range),
    ]
    if found.trials:
        spikes = np.stack([trial.spikes for trial in found.trials]).sum(axis=0)
        valid = np.stack([trial.valid_bins for trial in found.trials]).sum(axis=0)
        bins = sum(trial.stop - trial.start for trial in recording.trials)
        near = near_pairs(found)
        groups = clusters(recording.trials, found)
        faults += [
            *silent_units(recording.units, spikes, valid),
            *seldom_valid_units(recording.units, valid / bins),
            *duplicate_units(recording.units, found.unit_marks, spikes),
            *constant_behaviour(recording, found),
            *conditions_that_differ(recording.trials, found),
            *leaking_stimuli(recording.trials, groups),
            *alike_everywhere(near, len(recording.trials)),
        ]
    if burn_in is not None:
        faults += short_trials(recording.trials, burn_in)
    return ordered(faults)


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
        late = _drift(steps * rate - 1, within, trial_of)
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


def _drift(late: NDArray[np.float64], within: NDArray[np.bool_], trial_of: NDArray[np.int64]) -> float:
    """The most that a clock is late (or, negative, early) against the rate since a trial began, in bins."""
    worst = 0.0
    for trial in np.unique(trial_of[trial_of >= 0]):
        run = np.cumsum(late[within & (trial_of[1:] == trial)])
        if len(run) and np.abs(run).max() > abs(worst):
            worst = float(run[np.abs(run).argmax()])
    return worst


def no_trials(trials: Sequence[Trial]) -> list[Fault]:
    """Nothing was shown."""
    if trials:
        return []
    return [Fault("no-trials", "error", "trials", "the recording has no trial", "number the bins of trials from 0")]


def twice_named(trials: Sequence[Trial]) -> list[Fault]:
    """Two trials with one id."""
    names = [trial.id for trial in trials]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not twice:
        return []
    return [Fault("duplicate-trial", "error", _some(twice), "several trials have one id", "give each its own")]


def negative_counts(number: int) -> list[Fault]:
    """Less than no spikes."""
    if not number:
        return []
    fix = "give counts or rates that are not negative; fluorescence must be deconvolved, or its least value taken off"
    return [Fault("negative-counts", "error", "counts", f"{number} counts are negative", fix)]


def fractional_counts(number: int) -> list[Fault]:
    """Responses that are no counts: trained all the same, stored as float32."""
    if not number:
        return []
    found = f"{number} counts are not whole: they are taken as they are, and bits per spike mean little"
    return [Fault("fractional-counts", "warning", "counts", found, "nothing, where these are calcium responses")]


def broken_numbers(array: str, number: int, what: str) -> list[Fault]:
    """NaN or infinite values; they are not valid."""
    if not number:
        return []
    found = f"{number} {what} hold values that are no finite number: these are neither learned nor scored"
    return [Fault("not-a-number", "warning", array, found, "mend them where they are known")]


def constant_stimulus(span: tuple[float, float]) -> list[Fault]:
    """Nothing to see."""
    if span[0] < span[1]:
        return []
    found = f"every pixel of every frame is {span[0]:g}"
    return [Fault("constant-stimulus", "error", "stimulus", found, "check how the frames were written")]


def silent_units(units: Sequence[str], spikes: NDArray[np.float64], valid: NDArray[np.int64]) -> list[Fault]:
    """Units without a valid spike in any trial; those that are never valid are another fault's."""
    silent = [unit for unit, n, bins in zip(units, spikes, valid, strict=True) if n == 0 and bins]
    if not silent:
        return []
    found = f"{len(silent)} units have no spike in any valid bin"
    return [Fault("silent-unit", "warning", _some(silent), found, "leave them out: nothing can be learned of them")]


def seldom_valid_units(units: Sequence[str], share: NDArray[np.float64]) -> list[Fault]:
    """Units whose counts are mostly not valid."""
    seldom = [f"{unit} ({part:.0%})" for unit, part in zip(units, share, strict=True) if part < LEAST_VALID]
    if not seldom:
        return []
    found = f"{len(seldom)} units are valid in less than {LEAST_VALID:.0%} of the bins"
    return [Fault("seldom-valid", "warning", _some(seldom), found, "check `valid`, or leave these units out")]


def duplicate_units(units: Sequence[str], marks: NDArray[np.uint64], spikes: NDArray[np.float64]) -> list[Fault]:
    """Units with the same counts in every bin of every trial, silent ones aside."""
    same: dict[int, list[str]] = defaultdict(list)
    for unit, mark, number in zip(units, marks.tolist(), spikes, strict=True):
        if number:
            same[mark].append(unit)
    groups = [" = ".join(names) for names in same.values() if len(names) > 1]
    if not groups:
        return []
    found = f"{len(groups)} groups of units have the same counts in every bin"
    return [Fault("duplicate-units", "warning", _some(groups), found, "keep one unit of each group")]


def constant_behaviour(recording: Recording, found: Survey) -> list[Fault]:
    """Channels of behaviour that never change."""
    if recording.behaviour is None:
        return []
    channels = recording.behaviour.shape[1]
    std = found.moments([True] * len(found.trials), channels)[1].std
    names = recording.behaviour_names or tuple(f"channel {i}" for i in range(channels))
    still = [name for name, one in zip(names, std, strict=True) if one == 0]
    if not still:
        return []
    found_text = f"{len(still)} channels of behaviour never change"
    return [Fault("constant-behaviour", "warning", _some(still), found_text, "leave them out, or check the device")]


def short_trials(trials: Sequence[Trial], burn_in: int) -> list[Fault]:
    """Trials of which a model sees frames and predicts no bin."""
    short = [trial.id for trial in trials if trial.stop - trial.start <= burn_in]
    if not short:
        return []
    found = f"{len(short)} trials have no more than the {burn_in} bins of the burn-in: none of theirs is predicted"
    return [Fault("short-trial", "warning", _some(short), found, "use a model that looks back less far")]


def conditions_that_differ(trials: Sequence[Trial], found: Survey) -> list[Fault]:
    """Trials of one condition that do not show the same frames over the bins that they share."""
    contents: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for trial, of in zip(trials, found.trials, strict=True):
        if trial.condition is not None:
            contents[trial.condition].add((trial.stop - trial.start, of.content))
    differ = [name for name, seen in contents.items() if len(seen) > len({length for length, _ in seen})]
    if not differ:
        return []
    text = f"{len(differ)} conditions show different frames in trials of one length; averages over repeats mix them"
    fix = "nothing, where the eye moved over the same picture; else give each stimulus its own condition"
    return [Fault("condition-differs", "warning", _some(differ), text, fix)]


def leaking_stimuli(trials: Sequence[Trial], groups: NDArray[np.int64]) -> list[Fault]:
    """Repeated or near-identical stimuli in several of the given splits."""
    members: dict[int, list[Trial]] = defaultdict(list)
    for trial, group in zip(trials, groups.tolist(), strict=True):
        if trial.split is not None:
            members[group].append(trial)
    leaks = [[f"{t.id} ({t.split})" for t in some] for some in members.values() if len({t.split for t in some}) > 1]
    return leak_across_splits(leaks, "stimuli")


def alike_everywhere(near: NDArray[np.int64], trials: int) -> list[Fault]:
    """Stimuli so alike that their look tells nothing."""
    if not looks_alike_everywhere(near, trials):
        return []
    found = "most trials look nearly the same, small parts of the frames aside: only exact repeats are kept together"
    return [Fault("alike-everywhere", "warning", "stimulus", found, "cut the frames to what changes, or give splits")]


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

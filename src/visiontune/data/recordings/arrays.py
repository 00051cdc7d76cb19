"""From named arrays to a Recording: what each name means, whatever file the arrays lie in."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.faults import Fault
from visiontune.data.recordings.examine import clock_faults, trials_again
from visiontune.data.recordings.recording import Recording, Trial
from visiontune.data.split import SPLIT_NAMES
from visiontune.errors import DataError

LEAST_SIDE = 2  # pixels of a frame
_CLOCKS = ("stimulus_times", "counts_times")
# All that is read, whatever else lies beside it: arrays, clocks, facts.
NAMES = ("stimulus", "counts", "valid", "eye", "behaviour", "trials", "conditions", "kinds", "splits", *_CLOCKS)
NAMES += ("rate", "units", "subject", "behaviour_names", "kind_names")
# What others call these arrays.
_ALSO_CALLED = {
    "stim": "stimulus",
    "video": "stimulus",
    "frames": "stimulus",
    "movie": "stimulus",
    "spikes": "counts",
    "robs": "counts",
    "responses": "counts",
    "spike_counts": "counts",
    "dfs": "valid",
    "mask": "valid",
    "dpi_valid": "valid",
    "eyepos": "eye",
    "eye_position": "eye",
    "gaze": "eye",
    "behavior": "behaviour",
    "trial_inds": "trials",
    "trial": "trials",
    "psth_inds": "conditions",
    "repeats": "conditions",
    "fps": "rate",
    "sampling_rate": "rate",
    "frame_rate": "rate",
    "cids": "units",
    "unit_ids": "units",
    "behavior_names": "behaviour_names",
    "stim_type": "kinds",
}


@dataclass(frozen=True)
class Session:
    """A recording and what its reader found wrong."""

    recording: Recording
    faults: list[Fault] = field(default_factory=list)


def session_from(values: Mapping[str, Any], name: str, where: str, others: Iterable[str] = ()) -> Session:
    """A session from arrays and facts by `NAMES`; `others` are the names that were found beside them, not read.

    stimulus (bins, height, width), counts (bins, units); valid (bins,) or (bins, units); eye (bins, 2); behaviour
    (bins, channels); trials (bins,), -1 between trials; conditions (bins,) or (trials,), -1 or "" for shown once;
    kinds and splits (trials,); stimulus_times, counts_times (bins,) in seconds. rate: bins a second. Raises DataError
    where a name is missing or an array does not fit.
    """
    for needed in ("stimulus", "counts", "rate"):
        if needed not in values:
            raise _missing(needed, [*values, *others], where)
    stimulus = _ranked(values["stimulus"], "stimulus", 3, where)
    counts = _ranked(values["counts"], "counts", 2, where)
    rate = _rate(values["rate"], where)
    bins = len(stimulus)
    behaviour = None
    if "behaviour" in values:
        behaviour = np.asarray(values["behaviour"])
        behaviour = _ranked(behaviour[:, None] if behaviour.ndim == 1 else behaviour, "behaviour", 2, where)
    eye = _ranked(values["eye"], "eye", 2, where).astype(np.float32) if "eye" in values else None
    names = _texts(values.get("behaviour_names", ()))
    if behaviour is not None and names and len(names) != behaviour.shape[1]:
        raise DataError(
            f"behaviour has {behaviour.shape[1]} channels, and {len(names)} are named",
            where=where,
            fix="name each once",
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"several channels of behaviour are called {twice[0]}", where=where, fix="name each once")
    trial_of = _numbers(values["trials"], where) if "trials" in values else np.zeros(bins, np.int64)
    _one_length({"stimulus": stimulus, "counts": counts, "behaviour": behaviour, "eye": eye, "trials": trial_of}, where)
    recording = Recording(
        name=name,
        rate=rate,
        stimulus=stimulus,
        counts=counts,
        valid=_valid(values.get("valid"), counts, where),
        units=_texts(values["units"]) if "units" in values else tuple(f"unit-{i}" for i in range(counts.shape[1])),
        trials=_trials(
            trial_of,
            conditions=values.get("conditions"),
            kinds=values.get("kinds"),
            splits=values.get("splits"),
            kind_names=values.get("kind_names"),
            where=where,
        ),
        behaviour=behaviour,
        behaviour_names=names,
        eye=eye,
        subject=None if values.get("subject") is None else str(values["subject"]),
    )
    clocks = {c.removesuffix("_times"): _clock(values[c], c, where) for c in _CLOCKS if c in values}
    _one_length({"stimulus": stimulus} | {f"{c}_times": clock for c, clock in clocks.items()}, where)
    return Session(recording, [*clock_faults(clocks, trial_of, rate), *trials_again(trial_of)])


def _numbers(values: Any, where: str) -> NDArray[np.int64]:
    """The number of each bin's trial, -1 where there is none (NaN); DataError for others, such as averages."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise DataError(f"trials is {_form(array)}", where=where, fix="trials holds one whole number a bin")
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), -1, array)
        if (np.isinf(array) | (array != np.rint(array))).any():
            fix = "take the number of the bin's first sample: numbers of trials may not be averaged"
            raise DataError("trials holds numbers that are not whole", where=where, fix=fix)
    return array.astype(np.int64)


def _clock(values: Any, name: str, where: str) -> NDArray[np.float64]:
    """The second at which each bin begins, (bins,)."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise DataError(f"{name} is {_form(array)}", where=where, fix=f"{name} holds one second a bin, (bins,)")
    return array.astype(np.float64)


def _trials(
    trial_of: NDArray[np.int64],
    *,
    conditions: Any = None,
    kinds: Any = None,
    splits: Any = None,
    kind_names: Any = None,
    where: str = "",
) -> tuple[Trial, ...]:
    """Trials from the number of each bin's trial, -1 for none.

    `conditions` has one entry a bin or a trial, `kinds` and `splits` one a trial; trials count in the order in which
    they begin. A trial that is interrupted becomes several, "trial-3" and "trial-3+1": after bins of no trial the
    second goes on where they end, after another trial the stimulus begins anew. `kind_names`: the names that kinds
    given as numbers stand for.
    """
    edges = np.flatnonzero(np.diff(trial_of)) + 1
    starts, stops = np.r_[0, edges], np.r_[edges, len(trial_of)]
    runs = [(a, b, int(trial_of[a])) for a, b in zip(starts.tolist(), stops.tolist(), strict=True) if trial_of[a] >= 0]
    order = {number: i for i, number in enumerate(dict.fromkeys(number for _, _, number in runs))}
    named = _texts(kind_names) if kind_names is not None else None
    of_kind = _each(kinds, "kinds", len(order), where)
    of_split = _each(splits, "splits", len(order), where)
    of_condition = _conditions(conditions, trial_of, runs, order, where)
    parts: dict[int, int] = {}
    found: list[Trial] = []
    began, before = 0, -1
    for start, stop, number in runs:
        i, part = order[number], parts.get(number, 0)
        parts[number] = part + 1
        if number != before:
            began, before = start, number
        found.append(
            Trial(
                id=f"trial-{number}" + (f"+{part}" if part else ""),
                start=start,
                stop=stop,
                kind="stimulus" if of_kind is None else _kind(of_kind[i], named, where),
                condition=None if of_condition is None else of_condition[number],
                split=None if of_split is None else split_named(of_split[i], where),
                offset=start - began,
            )
        )
    return tuple(found)


def _conditions(
    values: Any, trial_of: NDArray[np.int64], runs: Sequence[tuple[int, int, int]], order: Mapping[int, int], where: str
) -> dict[int, str | None] | None:
    """The condition of each trial by its number."""
    if values is None:
        return None
    # A list keeps what stands in it: numpy would make one kind of names, numbers and None.
    array = np.array(values, dtype=object) if isinstance(values, list) else np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"conditions is {_form(array)}", where=where, fix="conditions is (bins,) or (trials,)")
    if len(array) == len(order) != len(trial_of):
        return {number: condition_named(array[i]) for number, i in order.items()}
    if array.shape != trial_of.shape:
        found = f"conditions has {len(array)} entries for {len(trial_of)} bins and {len(order)} trials"
        raise DataError(found, where=where, fix="give one a bin, or one a trial")
    result: dict[int, str | None] = {}
    for start, stop, number in runs:
        seen = {condition_named(one) for one in set(array[start:stop].tolist())} | {result.get(number)} - {None}
        if len(seen) > 1:
            found = f"trial {number} has several conditions: {', '.join(sorted(map(str, seen))[:5])}"
            fix = "a condition is one stimulus, bin by bin: give each of these its own trial"
            raise DataError(found, where=where, fix=fix)
        result[number] = seen.pop()
    return result


def condition_named(value: Any) -> str | None:
    """The condition that a number or a text names; None for None, NaN, numbers below 0 and the empty text."""
    if value is None:
        return None
    if isinstance(value, float | np.floating):
        if np.isnan(value) or value < 0:
            return None
        return str(int(value)) if float(value).is_integer() else str(float(value))
    if isinstance(value, int | np.integer):
        return None if value < 0 else str(int(value))
    return _text(value) or None


def _each(values: Any, name: str, trials: int, where: str) -> list[Any] | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{name} is {_form(array)}", where=where, fix=f"{name} is (trials,)")
    if len(array) != trials:
        raise DataError(f"{name} has {len(array)} entries for {trials} trials", where=where, fix="give one a trial")
    return array.tolist()


def _kind(value: Any, named: Sequence[str] | None, where: str) -> str:
    # MATLAB writes whole numbers as floats.
    if named is None or not isinstance(value, int | float) or not float(value).is_integer():
        return _text(value)
    number = int(value)
    if not 0 <= number < len(named):
        fix = "kind_names lists the name of each number, from 0"
        raise DataError(f"kind {number} has no name among {', '.join(named)}", where=where, fix=fix)
    return named[number]


def split_named(value: Any, where: str) -> str | None:
    """The split that people call `value`, None for an empty name; DataError for any other."""
    text = "" if value is None else _text(value).strip().lower()
    if not text:
        return None
    if text not in SPLIT_NAMES:
        fix = f"use one of {', '.join(SPLIT_NAMES)}, or leave it empty"
        raise DataError(f"there is no split {text!r}", where=where, fix=fix)
    return SPLIT_NAMES[text]


def _missing(needed: str, found: Sequence[str], where: str) -> DataError:
    likely = [name for name in found if _ALSO_CALLED.get(name.lower()) == needed]
    likely += [name for name in difflib.get_close_matches(needed, found, 2, 0.7) if name not in likely]
    listed = ", ".join(sorted(found)[:12]) or "nothing"
    what = {"rate": "the number of bins a second (in meta.json, an attribute, or a scalar)"}.get(needed, "an array")
    hint = f"rename {likely[0]} to {needed}" if likely else f"add {needed}, {what}; docs/recordings.md lists all names"
    return DataError(f"there is no {needed}; found: {listed}", where=where, fix=hint)


def _ranked(values: Any, name: str, rank: int, where: str) -> NDArray[Any]:
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    forms = {
        "stimulus": "(bins, height, width), of one channel",
        "counts": "(bins, units)",
        "behaviour": "(bins, channels)",
        "eye": "(bins, 2)",
    }
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} is of {array.dtype}", where=where, fix=f"{name} holds numbers: whole ones or floats")
    if array.ndim != rank or (name == "eye" and array.shape[1] != 2) or 0 in array.shape:
        raise DataError(f"{name} is {_form(array)}", where=where, fix=f"{name} is {forms[name]}, time first")
    if name == "stimulus" and min(array.shape[1:]) < LEAST_SIDE:
        raise DataError(
            f"frames have {array.shape[1]} x {array.shape[2]} pixels",
            where=where,
            fix=f"record frames of at least {LEAST_SIDE} x {LEAST_SIDE}; full-field light may be repeated over them",
        )
    return array


def _form(array: NDArray[Any]) -> str:
    return f"of the shape {array.shape}, {array.dtype}"


def _valid(values: Any, counts: NDArray[Any], where: str) -> NDArray[np.bool_]:
    if values is None:
        return np.ones((len(counts), 1), bool)
    array = np.asarray(values)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or len(array) != len(counts) or array.shape[1] not in (1, counts.shape[1]):
        fix = f"valid is (bins,) or (bins, units), here ({len(counts)},) or {counts.shape}"
        raise DataError(f"valid is {_form(np.asarray(values))}", where=where, fix=fix)
    if array.dtype != bool:
        array = (array > 0) & (array == array)
    return array


def _one_length(arrays: Mapping[str, NDArray[Any] | None], where: str) -> None:
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"the arrays differ in their number of bins: {', '.join(f'{n} {k}' for n, k in lengths.items())}",
            where=where,
            fix="cut or align them to one clock: bin t of each must be the same moment",
        )


def _rate(value: Any, where: str) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array).all() or not array.item() > 0:
        raise DataError(f"the rate is {value!r}", where=where, fix="rate is the number of bins a second, above 0")
    return float(array.item())


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_text(value) for value in np.asarray(values).reshape(-1).tolist())


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)

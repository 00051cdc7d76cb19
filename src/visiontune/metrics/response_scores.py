"""Scores of predicted responses: each unit's, and their means over units with intervals.

Sessions may come in pieces (clips, batches, ranks) and in any order: they are put together and sorted before anything
is computed (`assemble`), so the scores do not depend on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from visiontune.errors import DataError, RecipeError
from visiontune.metrics import responses
from visiontune.metrics.intervals import NOTHING_COUNTED, TAIL, Metric
from visiontune.metrics.predicted_session import PredictedSession, assemble
from visiontune.metrics.responses import BinSums, RepeatSums

RESAMPLES = 1000
UNITS_AT_ONCE = 256  # bounds the memory of sums and draws
REPEATED = ("average_correlation", "feve", "ccnorm")

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class UnitScores:
    """How one unit came out.

    bits_per_spike has its interval and as `n` the unit's valid bins. None: not defined for this unit, such as a figure
    of repeats where nothing was repeated (see `metrics.responses`). explainable_variance is that of single trials.
    """

    unit: str
    spikes: float
    bits_per_spike: Metric
    correlation: float | None
    average_correlation: float | None
    explainable_variance: float | None
    feve: float | None
    ccnorm: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, numbers with six digits."""
        figures = ("spikes", "correlation", "average_correlation", "explainable_variance", "feve", "ccnorm")
        values = {name: getattr(self, name) for name in figures}
        rounded = {name: None if value is None else round(value, 6) for name, value in values.items()}
        return {"unit": self.unit, "bits_per_spike": self.bits_per_spike.to_json()} | rounded


@dataclass(frozen=True, eq=False)
class SessionScores:
    """The metrics of one session's units, by the names of ResponseScores, and what they rest on.

    `stimuli` are the independent pieces of the data: stimuli with a valid bin, however often shown.
    `repeated` of them have bins that are valid in two trials or more.
    """

    name: str
    units: int
    bins: int
    trials: int
    stimuli: int
    repeated: int
    metrics: dict[str, Metric]
    reasons: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """{"name", "units", "bins", "trials", "stimuli", "repeated", "metrics", "reasons"}."""
        counts = {"units": self.units, "bins": self.bins, "trials": self.trials}
        counts |= {"stimuli": self.stimuli, "repeated": self.repeated}
        metrics = {name: metric.to_json() for name, metric in self.metrics.items()}
        return {"name": self.name} | counts | {"metrics": metrics, "reasons": self.reasons}


@dataclass(frozen=True, eq=False)
class ResponseScores:
    """The scores of the units of all sessions; `n` of a metric is how many units it is the mean of.

    `metrics`: bits_per_spike (mean over units, never clipped), bits_per_spike_median, above_zero (the share of units
    with bits per spike above zero), correlation (single trials), and of repeated stimuli average_correlation, feve and
    ccnorm, as means over the units that have the figure. `reasons` says why a metric has no value or no interval.
    `silent` units have no spike in a valid bin: they count in no metric. `excluded` are numbers of units whose repeats
    are too noisy for `feve`, and for `ccnorm`.

    Intervals are 95 % percentile bootstraps over stimuli: all trials of one stimulus are drawn together. They tell
    about other stimuli of the same kind, for these units and this model. Resampling trials instead would count repeats
    of one stimulus as independent data, and make the noise that is estimated from them too small. With fewer than about
    20 stimuli, or rates with rare large peaks, read them as too narrow; so too where many units stand at the edge of
    those that are excluded.
    """

    n: int
    metrics: dict[str, Metric]
    reasons: dict[str, str]
    sessions: tuple[SessionScores, ...]
    per_unit: tuple[UnitScores, ...]
    silent: tuple[str, ...]
    excluded: dict[str, int]

    def metric(self, name: str) -> Metric:
        """A metric by its name, of one session as `bits_per_spike.SESSION`; raises RecipeError for an unknown name."""
        if name in self.metrics:
            return self.metrics[name]
        kind, _, session = name.partition(".")
        for one in self.sessions:
            if one.name == session and kind in one.metrics:
                return one.metrics[kind]
        shown = ", ".join(one.name for one in self.sessions[:20]) + (", ..." if len(self.sessions) > 20 else "")
        raise RecipeError(
            f"There is no metric '{name}'.",
            fix=f"metrics: {', '.join(self.metrics)}, and of one session METRIC.SESSION with SESSION one of {shown}",
        )

    def to_json(self) -> dict[str, Any]:
        """{"n", "metrics", "reasons", "silent", "excluded", "sessions", "per_unit"}."""
        return {
            "n": self.n,
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
            "reasons": self.reasons,
            "silent": list(self.silent),
            "excluded": self.excluded,
            "sessions": [one.to_json() for one in self.sessions],
            "per_unit": [one.to_json() for one in self.per_unit],
        }


@dataclass(frozen=True, eq=False)
class _Scored:
    """A session's figures, each (units,), and of each resample: bits per spike, and sums and numbers of the others."""

    session: PredictedSession
    figures: dict[str, Floats]
    stimuli: int
    repeated: int
    bits_drawn: Floats | None  # (resamples, units)
    others_drawn: dict[str, Floats]  # (2, resamples)


def score_responses(
    sessions: Sequence[PredictedSession],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ResponseScores:
    """Score predicted rates against counts; `sessions` may be pieces of sessions in any order (see `assemble`).

    With resamples=0 there are no intervals. A session's intervals are the same
    whether it is scored alone or among others. Raises DataError for what cannot be scored.
    """
    whole = assemble(sessions)
    if not whole:
        raise DataError("There are no responses to score.", fix="score a split that is not empty")
    scored = [_score(session, resamples, seed) for session in whole]
    metrics, reasons = _metrics(scored, resamples)
    tables = [_unit_table(one) for one in scored]
    per_unit = tuple(unit for table in tables for unit in table)
    too_noisy = {name: 0 for name in ("feve", "ccnorm")}
    for one in scored:
        for name in too_noisy:
            has_repeats = ~np.isnan(one.figures["average_correlation"])
            too_noisy[name] += int((has_repeats & np.isnan(one.figures[name])).sum())
    return ResponseScores(
        n=len(per_unit),
        metrics=metrics,
        reasons=reasons,
        sessions=tuple(_session_scores(one, resamples) for one in scored),
        per_unit=per_unit,
        silent=tuple(unit.unit for unit in per_unit if unit.bits_per_spike.value is None),
        excluded=too_noisy,
    )


def response_differences(
    first: Sequence[PredictedSession], second: Sequence[PredictedSession], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[Metric, Metric, Metric]]:
    """Each metric of two models' rates, and the second's minus the first's with its interval over the same stimuli.

    Both hold the same units in the same bins; the same counts give the same draws of stimuli to both.
    """
    both = [[_score(session, resamples, seed) for session in assemble(sessions)] for sessions in (first, second)]
    (one, reasons), (other, others) = (_metrics(scored, resamples) for scored in both)
    drawn = [_drawn(scored) for scored in both]
    found = {}
    for name in one:
        values = one[name].value, other[name].value
        difference = NOTHING_COUNTED
        if values[0] is not None and values[1] is not None:
            value, ends = values[1] - values[0], (None, None)
            if name not in reasons and name not in others:
                pieces = [count for _, count in _pieces(name, both[0])]
                ends = _interval(value, drawn[1][name] - drawn[0][name], _tail(sum(pieces), len(pieces)))
            difference = Metric(value, *ends, min(one[name].n, other[name].n))
        found[name] = (one[name], other[name], difference)
    return found


def _score(session: PredictedSession, resamples: int, seed: int) -> _Scored:
    """All figures of a session, some units at a time."""
    stimuli = _stimuli(session)
    columns = [slice(start, start + UNITS_AT_ONCE) for start in range(0, len(session.units), UNITS_AT_ONCE)]
    at = [(session.rates[:, c], session.counts[:, c], session.valid[:, c]) for c in columns]
    of_bins = [responses.bin_sums(*arrays, stimuli) for arrays in at]
    of_repeats = [responses.repeat_sums(*arrays, session.trials, session.conditions, session.places) for arrays in at]
    # What has no valid bin in any unit is no data: it must not be drawn in place of what has.
    seen = np.any([sums.table[0].any(axis=1) for sums in of_bins], axis=0)
    of_bins = [sums.kept(seen) for sums in of_bins]
    seen_again = np.any([sums.table[0].any(axis=1) for sums in of_repeats], axis=0)
    of_repeats = [sums.kept(seen_again) for sums in of_repeats]
    count, repeated = int(seen.sum()), int(seen_again.sum())
    blocks = list(zip(of_bins, of_repeats, strict=True))
    parts = [_figures(bins.total(), repeats.total()) for bins, repeats in blocks]
    figures = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if resamples == 0:
        return _Scored(session, figures, count, repeated, None, {})
    # The name keeps the draws of sessions apart, and those of a session the same whatever it is scored with.
    generator = np.random.default_rng([seed, crc32(session.name.encode())])
    of_stimuli, of_repeated = _weights(generator, count, resamples), _weights(generator, repeated, resamples)
    bits, others = [], {name: np.zeros((2, resamples)) for name in ("correlation", *REPEATED)}
    for bins, repeats in blocks:
        drawn = _figures(bins.drawn(of_stimuli), repeats.drawn(of_repeated))
        several = (bins.table[0] > 0).sum(axis=0) >= 2  # resamples of one stimulus would never vary
        bits.append(np.where(several, drawn["bits_per_spike"], np.nan))
        for name, sums in others.items():
            sums += np.nansum(drawn[name], axis=1), (~np.isnan(drawn[name])).sum(axis=1)
    return _Scored(session, figures, count, repeated, np.concatenate(bits, axis=1), others)


def _figures(bins: BinSums, repeats: RepeatSums) -> dict[str, Floats]:
    return {
        "bits_per_spike": responses.bits_per_spike(bins),
        "correlation": responses.correlation(bins),
        "average_correlation": responses.average_correlation(repeats),
        "explainable_variance": responses.explainable_variance(repeats),
        "feve": responses.feve(repeats),
        "ccnorm": responses.ccnorm(repeats),
    }


def _stimuli(session: PredictedSession) -> NDArray[np.int64]:
    """The number of each bin's stimulus, from 0 on: its condition, or its trial where it was shown once; (bins,)."""
    once = session.conditions < 0
    keys = np.stack([once, np.where(once, session.trials, session.conditions)], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _weights(generator: np.random.Generator, groups: int, resamples: int) -> Floats:
    """How often each group is drawn when as many are drawn with replacement: (resamples, groups)."""
    if groups == 0:
        return np.zeros((resamples, 0))
    return generator.multinomial(groups, np.full(groups, 1 / groups), resamples).astype(np.float64)


def _metrics(scored: Sequence[_Scored], resamples: int) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics over the units of some sessions, and why some have no value or no interval."""
    bits = np.concatenate([one.figures["bits_per_spike"] for one in scored])
    known = bits[~np.isnan(bits)]
    values = {"bits_per_spike": _mean(known), "bits_per_spike_median": np.nan, "above_zero": _mean(known > 0)}
    if len(known):
        values["bits_per_spike_median"] = float(np.median(known))
    numbers = dict.fromkeys(values, len(known))
    for name in ("correlation", *REPEATED):
        figure = np.concatenate([one.figures[name] for one in scored])
        values[name], numbers[name] = _mean(figure[~np.isnan(figure)]), int((~np.isnan(figure)).sum())

    metrics, reasons, drawn = {}, {}, _drawn(scored) if resamples else {}
    for name, value in values.items():
        if numbers[name] == 0:
            metrics[name], reasons[name] = NOTHING_COUNTED, _why_no_value(name, scored)
            continue
        counting = _pieces(name, scored)
        pieces = [count for _, count in counting]
        if resamples and min(pieces) < 2:
            alone = counting[pieces.index(min(pieces))][0]
            reasons[name] = f"no interval: of {alone} there is one such stimulus, and one says nothing about others"
        if not resamples or min(pieces) < 2:
            metrics[name] = Metric(value, None, None, numbers[name])
        else:
            low, high = _interval(value, drawn[name], _tail(sum(pieces), len(pieces)))
            if name == "above_zero" and low is not None and high is not None:
                low, high = max(low, 0.0), min(high, 1.0)
            metrics[name] = Metric(value, low, high, numbers[name])
    return metrics, reasons


def _pieces(name: str, scored: Sequence[_Scored]) -> list[tuple[str, int]]:
    """Of each session that has a metric its name, and how many stimuli the metric is made from there."""
    of = name if name in ("correlation", *REPEATED) else "bits_per_spike"
    return [
        (one.session.name, one.repeated if name in REPEATED else one.stimuli)
        for one in scored
        if not np.isnan(one.figures[of]).all()
    ]


def _drawn(scored: Sequence[_Scored]) -> dict[str, Floats]:
    """Each metric of each resample, (resamples,); sessions are resampled independently of each other."""
    bits = np.concatenate([one.bits_drawn for one in scored if one.bits_drawn is not None], axis=1)
    known = ~np.isnan(bits)
    number = known.sum(axis=1)
    drawn = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn["bits_per_spike"] = np.nansum(bits, axis=1) / number
        drawn["above_zero"] = (known & (bits > 0)).sum(axis=1) / number
        for name in ("correlation", *REPEATED):
            sums = np.sum([one.others_drawn[name] for one in scored], axis=0)
            drawn[name] = sums[0] / sums[1]
    # Sorting puts NaN last.
    bits = np.sort(bits, axis=1)
    rows, last = np.arange(len(bits)), np.maximum(number - 1, 0)
    drawn["bits_per_spike_median"] = (bits[rows, last // 2] + bits[rows, (last + 1) // 2]) / 2
    return drawn


def _tail(pieces: int, sessions: int) -> float:
    """The share of resamples to leave out at either end, for so many independent pieces of data in so many sessions.

    With few pieces the bootstrap's spread is too narrow by sqrt((n - 1) / n) and its tails are normal ones; the
    expanded percentile interval (Hesterberg 2015, The American Statistician 69:371) reaches as far as Student's t does.
    """
    degrees = pieces - sessions
    return float(ndtr(-np.sqrt(pieces / degrees) * stdtrit(degrees, 1 - TAIL)))


def _interval(value: float, drawn: Floats, tail: float) -> tuple[float | None, float | None]:
    """The ends of the interval; resamples without the figure are left out.

    The percentiles are moved by twice the bias. Over many units the spread of a mean becomes small and its bias does
    not: a null rate fitted to the scored bins takes about 1 / (2 N ln 2) bits from a unit of N spikes. Resamples lie
    below the value by what the value lies below the truth. The interval holds the value in any case.
    """
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) == 0:
        return None, None
    low, middle, high = np.quantile(drawn, [tail, 0.5, 1 - tail])
    moved = 2 * (middle - value)
    return float(min(low - moved, value)), float(max(high - moved, value))


def _why_no_value(name: str, scored: Sequence[_Scored]) -> str:
    if name in REPEATED and not any(one.repeated for one in scored):
        return "no stimulus has bins that are valid in two trials"
    return {
        "correlation": "in no unit do both the counts and the predicted rates vary",
        "average_correlation": "in no unit do both the average counts and the average predicted rates vary",
        "feve": "in no unit is 15 % of the variance of single trials explained by the stimulus",
        "ccnorm": "in no unit is 15 % of the variance of the average explained by the stimulus, or no rates vary",
    }.get(name, "no unit has a spike in a valid bin")


def _unit_table(one: _Scored) -> list[UnitScores]:
    valid, counts = one.session.valid, one.session.counts
    bins, spikes = valid.sum(axis=0), np.where(valid, counts, 0).sum(axis=0)
    tail = _tail(one.stimuli, 1) if one.stimuli >= 2 else TAIL
    rows = []
    for u, unit in enumerate(one.session.units):
        of_unit = {name: _value(figure[u]) for name, figure in one.figures.items()}
        bits = of_unit.pop("bits_per_spike")
        low, high = None, None
        if bits is not None and one.bits_drawn is not None:
            low, high = _interval(bits, one.bits_drawn[:, u], tail)
        rows.append(UnitScores(unit, float(spikes[u]), Metric(bits, low, high, int(bins[u])), **of_unit))
    return rows


def _session_scores(one: _Scored, resamples: int) -> SessionScores:
    trials = len(np.unique(one.session.trials))
    metrics, reasons = _metrics([one], resamples)
    bins = len(one.session.trials)
    return SessionScores(
        one.session.name, len(one.session.units), bins, trials, one.stimuli, one.repeated, metrics, reasons
    )


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _value(figure: np.float64) -> float | None:
    return None if np.isnan(figure) else float(figure)

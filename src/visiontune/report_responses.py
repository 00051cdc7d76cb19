"""What the report of a run says of responses: scores by split, session and unit, PSTHs, and what makes units fire."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from visiontune.charts import Line, histogram, line_chart
from visiontune.data.responses import session_of
from visiontune.page import fact
from visiontune.pictures import Thumbnail, field_picture
from visiontune.recipe import Recipe
from visiontune.run import Run

BEST_SHOWN, MIDDLE_SHOWN = 6, 3
WORST_SHOWN = 10
SILENT_NAMED = 10
SESSION_METRICS = ("bits_per_spike", "correlation", "average_correlation", "feve", "ccnorm")
FIELDS = {
    "average": "spike-triggered average",
    "gradient": "gradient of the rate",
    "exciting": "most exciting input",
}
STYLES = {"average": "beside-0", "gradient": "main", "exciting": "beside-1"}

Entry = dict[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Repeats:
    """What one unit did in the trials of one stimulus, bin by bin, beside what was predicted: (bins,) each.

    places: of the bins inside the trial. recorded, error: mean and standard error over the trials in which a bin is
    valid, NaN where there is none, or for the error fewer than two. predicted: mean of the predictions for these
    trials. Counts and rates are spikes a bin. trials: how often the stimulus was shown.
    """

    places: NDArray[np.int64]
    recorded: Floats
    error: Floats
    predicted: Floats
    trials: int


def found_responses(run: Run, recipe: Recipe | None, evaluations: dict[str, Entry]) -> Entry | None:
    """What the evaluations of a run that predicts responses say; None for other runs, and while there is none.

    The table of metrics is of all splits, what lies under it is of the first one alone. Time is in seconds, without a
    recipe in bins.
    """
    values = {split: value for split, value in evaluations.items() if "per_unit" in value}
    rate = None if recipe is None or recipe.responses is None else recipe.responses.rate
    fields = _fields(run, rate)
    if not values:
        return {"splits": {}, "fields": fields} if fields else None
    split, value = next(iter(values.items()))
    scored = [one for one in value["per_unit"] if one["bits_per_spike"]["value"] is not None]
    bits = [one["bits_per_spike"]["value"] for one in scored]
    worst = sorted(scored, key=lambda one: (one["bits_per_spike"]["value"], one["unit"]))[:WORST_SHOWN]
    said = _bits_said(bits)
    return {
        "split": split,
        "splits": values,
        "metric_names": list(dict.fromkeys(name for one in values.values() for name in one["metrics"])),
        "reasons": _reasons(values),
        "silent": value["silent"],
        "silent_named": value["silent"][:SILENT_NAMED],
        "sessions": value["sessions"],
        "session_metrics": SESSION_METRICS,
        "session_reasons": _reasons({one["name"]: one for one in value["sessions"]}),
        "histogram": Markup(histogram(bits, name=said, x_label="bits per spike")),
        "histogram_said": said,
        "psths": _psths(run, split, value, rate),
        "worst": worst,
        "fields": fields,
    }


def repeats_of(session: Mapping[str, NDArray[Any]], column: int) -> Repeats | None:
    """The stimulus of a session that was shown most often, for one unit; None where none was shown twice.

    session: the arrays of a SESSION.npz: rates, counts, valid (bins, units), trials, conditions, places (bins,). Of
    several stimuli shown as often, the one with the most bins is taken, then the first. Repeats count trials in which
    the unit has a valid bin.
    """
    counted = session["valid"][:, column] & (session["conditions"] >= 0)
    shown = []
    for condition in np.unique(session["conditions"][counted]).tolist():
        bins = counted & (session["conditions"] == condition)
        shown.append((len(np.unique(session["trials"][bins])), int(bins.sum()), -condition))
    if not shown or max(shown)[0] < 2:
        return None
    trials, _, condition = max(shown)
    bins = np.flatnonzero(counted & (session["conditions"] == -condition))
    at = session["places"][bins]
    places = np.arange(at.min(), at.max() + 1)
    counts, rates = (session[name][bins, column].astype(np.float64) for name in ("counts", "rates"))
    n, total, squares, expected = (
        np.bincount(at - places[0], weights, len(places)) for weights in (None, counts, counts**2, rates)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        error = np.sqrt(np.maximum(squares - n * mean**2, 0) / (n - 1) / n)
        predicted = expected / n
    return Repeats(places, mean, np.where(n >= 2, error, np.nan), predicted, trials)


def _reasons(values: Mapping[str, Entry]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """(reason, [(whose, metrics)]) for all that has no value or no interval, each reason once."""
    found: dict[str, dict[str, list[str]]] = {}
    for whose, value in values.items():
        for name, reason in value["reasons"].items():
            found.setdefault(reason, {}).setdefault(whose, []).append(name)
    return [(reason, list(of.items())) for reason, of in found.items()]


def _bits_said(bits: Sequence[float]) -> str:
    above = sum(value > 0 for value in bits)
    middle = f", half of them above {fact(float(np.median(bits)))}" if bits else ""
    return f"Bits per spike of {len(bits)} units: {above} above zero{middle}"


# PSTHs


def _psths(run: Run, split: str, value: Entry, rate: float | None) -> Entry | None:
    """The best units by the figure of repeats that there is, and some about the median; None without repeats."""
    by = next((name for name in ("ccnorm", "average_correlation") if value["metrics"][name]["value"] is not None), None)
    if by is None:
        return None
    ranked = sorted((one for one in value["per_unit"] if one[by] is not None), key=lambda one: (-one[by], one["unit"]))
    best = ranked[:BEST_SHOWN]
    first = max(len(best), len(ranked) // 2 - MIDDLE_SHOWN // 2)
    sessions: dict[str, dict[str, NDArray[Any]] | None] = {}

    def drawn(units: Sequence[Entry]) -> list[Entry]:
        made = (_psth(run, split, one, by, rate, sessions) for one in units)
        return [one for one in made if one is not None]

    return {"by": by, "best": drawn(best), "middle": drawn(ranked[first : first + MIDDLE_SHOWN]), "ranked": len(ranked)}


def _psth(
    run: Run,
    split: str,
    unit: Entry,
    by: str,
    rate: float | None,
    sessions: dict[str, dict[str, NDArray[Any]] | None],
) -> Entry | None:
    """The chart of one unit; None where its session's predictions are not there or hold no repeats of it."""
    name = session_of(unit["unit"])
    if name not in sessions:
        sessions[name] = _arrays(run.path / "evaluations" / split / f"{name}.npz")
    session = sessions[name]
    columns = [] if session is None else np.flatnonzero(session["units"] == unit["unit"]).tolist()
    if session is None or not columns or (found := repeats_of(session, columns[0])) is None:
        return None
    scale = rate or 1.0
    x = (found.places / scale).tolist()
    recorded, error, predicted = found.recorded * scale, found.error * scale, found.predicted * scale
    shown = {"unit": unit["unit"], "figure": unit[by], "trials": found.trials, "per": "s" if rate else "bin"}
    chart = line_chart(
        [
            Line(x, _known(recorded), "main", _known(recorded - error), _known(recorded + error)),
            Line(x, _known(predicted), "beside-0"),
        ],
        name=f"Spikes of {unit['unit']} over {found.trials} repeats, recorded and predicted",
        x_label="seconds" if rate else "bins",
        from_zero=True,
    )
    return {**shown, "chart": Markup(chart)}


def _arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of an .npz; None where there is no such file."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _known(values: Floats) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


# What makes units fire


def _fields(run: Run, rate: float | None) -> Entry | None:
    """evaluations/fields.json and fields.npz as pictures and charts; None where they do not stand both."""
    said, arrays = run.read_json("evaluations/fields.json"), _arrays(run.path / "evaluations" / "fields.npz")
    if said is None or arrays is None:
        return None
    units = []
    for u, unit in enumerate(said["units"]):
        films = {kind: arrays[kind][u] for kind in FIELDS}
        units.append({**unit, "scale": rate or 1.0, "per": "s" if rate else "bin", **_field(unit["unit"], films, rate)})
    return {"step": said["step"], "clips": said["clips"], "units": units, "names": FIELDS, "styles": STYLES}


def _field(unit: str, films: Mapping[str, NDArray[np.float32]], rate: float | None) -> Entry:
    """Of each film (lags, height, width) the frame that holds its peak, and the course of the peak's pixel."""
    pictures: dict[str, tuple[Thumbnail, str] | None] = dict.fromkeys(films)
    lines = []
    for kind, film in films.items():
        if not np.isfinite(film).all() or not film.any():
            continue
        lag, row, column = np.unravel_index(np.abs(film).argmax(), film.shape)
        ago = f"{1000 * lag / rate:.0f} ms" if rate else f"{lag} {'bin' if lag == 1 else 'bins'}"
        pictures[kind] = (field_picture(film[lag]), ago)
        course = film[::-1, row, column] / np.abs(film).max()
        x = (np.arange(1 - len(film), 1) * (1000 / rate if rate else 1)).tolist()
        lines.append(Line(x, course.tolist(), STYLES[kind]))
    lags = f"Course in time of the fields of {unit}, each at its peak pixel and by its peak"
    x_label = "ms from the bin" if rate else "bins from the bin"
    return {"pictures": pictures, "chart": Markup(line_chart(lines, name=lags, x_label=x_label, y_range=(-1, 1)))}

"""The demonstration of responses: simulated neurons, whose best possible score is known, predicted by one core.

Four sessions train a core; a fifth, with other units, gets readouts on the frozen core. It takes some minutes.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune import api
from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.recordings.store import write_recording
from visiontune.metrics.responses import bin_sums, bits_per_spike
from visiontune.progress import note
from visiontune.run import Run
from visiontune.simulated_neurons import simulate

SESSIONS, UNITS, SECONDS = 4, 60, 300.0
NEW_UNITS = 40
REPEATS = (1, 10)  # a stimulus of each kind, so often: what is shown again is not learned from again
# The simulated cells have no memory beyond their filters.
CHOICES: dict[str, Any] = {"responses.recurrence": "none"}

Rates = Mapping[str, NDArray[np.float32]]


def simulated_sessions(folder: Path, units: Sequence[int], seconds: float) -> tuple[list[Path], Rates]:
    """Prepared sessions with so many units each, and the true rates of their units by session, (bins, units)."""
    rates, paths = {}, []
    for number, count in enumerate(units):
        made = simulate(f"simulated-{number}", seed=number, units=count, seconds=seconds, repeats=REPEATS)
        rates[made.recording.name] = made.rates.astype(np.float32)
        paths.append(write_recording(made.recording, folder / made.recording.name))
        note(f"{paths[-1]}: {count} units, {seconds:g} s")
    return paths, rates


def beside_the_oracle(run: Run, rates: Rates) -> dict[str, tuple[float, float]]:
    """Mean bits per spike over the units of each session: the run's on its test split, and those of the rates that the
    spikes were drawn from, on the very same bins."""
    found = {}
    for use in run.recipe.data.datasets:
        dataset = ClipDataset.open(use.path)
        name = dataset.recording.name
        with np.load(run.path / "evaluations" / "test" / f"{name}.npz") as file:
            starts = np.array([trial.start for trial in dataset.trials])[file["trials"]]
            counts, valid = file["counts"], file["valid"]
            truth = rates[name][starts + file["places"]]
            found[name] = (_score(file["rates"], counts, valid), _score(truth, counts, valid))
    return found


def _score(rates: NDArray[Any], counts: NDArray[Any], valid: NDArray[np.bool_]) -> float:
    sums = bin_sums(rates.astype(np.float64), counts.astype(np.float64), valid)
    return float(np.nanmean(bits_per_spike(sums.total())))


def responses(out: Path) -> tuple[dict[str, Any], str]:
    """Simulate, train, evaluate, and fit a new session, in `out`; what stands there is used again.

    Returns the result as plain values and as text.
    """
    started = time.monotonic()
    paths, rates = simulated_sessions(out / "data", [UNITS] * SESSIONS + [NEW_UNITS], SECONDS)
    core, new = Run(out / "core"), Run(out / "new-session")
    if core.recipe_path.exists():
        api.resume(core.path)
    else:
        api.train(*paths[:SESSIONS], out=core.path, overrides=CHOICES)
    if new.recipe_path.exists():
        api.resume(new.path)
    else:
        api.train(paths[SESSIONS], out=new.path, start=core.path)
    value: dict[str, Any] = {}
    lines = [f"receipt {receipt['name']}: {receipt['status']} ({receipt['reason']})" for receipt in core.receipts]
    for name, run in (("core", core), ("new session on the frozen core", new)):
        api.evaluate(run.path, split="test")
        pairs = list(beside_the_oracle(run, rates).values())
        own, best = (float(np.mean([pair[place] for pair in pairs])) for place in (0, 1))
        lines.append(
            f"{name}: {own:.3f} bits per spike on the test split; the true rates reach {best:.3f} ({own / best:.0%})"
        )
        value[name] = {"bits_per_spike": own, "oracle": best, "report": str(run.report_path)}
        lines.append(f"report: {run.report_path}")
    value["receipts"] = {receipt["name"]: receipt["status"] for receipt in core.receipts}
    value["seconds"] = round(time.monotonic() - started, 1)
    lines.append(f"after {value['seconds']:.0f} s")
    return value, "\n".join(lines)

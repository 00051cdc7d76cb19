"""Simulated sessions written as the files that users have."""

from pathlib import Path
from typing import Any

import numpy as np

from visiontune.simulated_neurons import Simulated


def write_npz(simulated: Simulated, path: Path) -> None:
    """Write a session as an .npz file by the names of docs/recordings.md, and its name, which is not read."""
    recording = simulated.recording
    trials = recording.trials
    kinds = sorted({trial.kind for trial in trials})
    lengths = [trial.stop - trial.start for trial in trials]
    conditions = [-1 if trial.condition is None else int(trial.condition) for trial in trials]
    arrays: dict[str, Any] = {
        "stimulus": recording.stimulus,
        "counts": recording.counts,
        "valid": recording.valid[:, 0],
        "eye": recording.eye,
        "trials": np.repeat(np.arange(len(trials), dtype=np.int32), lengths),
        "conditions": np.repeat(np.array(conditions, np.int32), lengths),
        "kinds": np.array([kinds.index(trial.kind) for trial in trials], np.int32),
        "kind_names": kinds,
        "name": recording.name,
        "rate": recording.rate,
        "units": recording.units,
    }
    if recording.behaviour is not None:
        arrays |= {"behaviour": recording.behaviour, "behaviour_names": recording.behaviour_names}
    if recording.subject is not None:
        arrays["subject"] = recording.subject
    np.savez(path, **arrays)

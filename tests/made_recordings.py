"""Small recordings made in memory: smooth films that no two seeds share, and spikes at given rates."""

from dataclasses import replace
from typing import Any

import numpy as np

from visiontune.data.recordings.recording import Recording, Trial

SIDE = 6


def film(seed: int, bins: int, side: int = SIDE) -> np.ndarray:
    """Noise that differs from frame to frame: (bins, side, side) uint8."""
    return np.random.default_rng([7, seed]).integers(0, 256, (bins, side, side), dtype=np.uint8)


def made(
    lengths: list[int] | None = None,
    *,
    units: int = 4,
    seed: int = 0,
    rate: float = 20.0,
    gap: int = 0,
    behaviour: int = 0,
    name: str = "session",
    **fields: Any,
) -> Recording:
    """Trials of these lengths with `gap` bins between them; each shows a film of its own, of which no other is like."""
    lengths = [30] * 12 if lengths is None else lengths
    random = np.random.default_rng(seed)
    bins = sum(lengths) + gap * (len(lengths) - 1)
    stimulus = np.full((bins, SIDE, SIDE), 128, np.uint8)
    trials, start = [], 0
    for number, length in enumerate(lengths):
        stimulus[start : start + length] = film(1000 * seed + number, length)
        trials.append(Trial(f"trial-{number}", start, start + length))
        start += length + gap
    recording = Recording(
        name=name,
        rate=rate,
        stimulus=stimulus,
        counts=random.poisson(0.5, (bins, units)).astype(np.uint8),
        valid=np.ones((bins, 1), bool),
        units=tuple(f"u{i}" for i in range(units)),
        trials=tuple(trials),
        behaviour=random.normal(3, 2, (bins, behaviour)).astype(np.float32) if behaviour else None,
    )
    return replace(recording, **fields)


def with_trials(recording: Recording, **values: list[Any]) -> Recording:
    """The recording with these fields of its trials, one value each: `split=["train", ...]`."""
    trials = [
        replace(trial, **{name: column[i] for name, column in values.items()})
        for i, trial in enumerate(recording.trials)
    ]
    return replace(recording, trials=tuple(trials))

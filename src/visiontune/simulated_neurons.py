"""A simulated population with known rates: the ground truth against which models of neurons are held.

Cells are linear-nonlinear, energy (Adelson and Bergen 1985) or gain-controlled (Heeger 1992). All sessions draw theirs
from one distribution, as if they were recorded in one area of the brain.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visiontune.data.recordings.recording import Recording, Trial
from visiontune.demo_shapes import photographs
from visiontune.errors import DataError
from visiontune.simulated_stimuli import KINDS, NOMINAL, gabor_noise, gaze, grey, look, plan_trials, scene, wandering

Floats = NDArray[np.float32]

HISTORY = 16  # bins: a rate depends on this bin's frame and the 15 before it, and on no other
CELL_KINDS = ("linear", "energy", "gain")
SHARES = (0.4, 0.35, 0.25)
BEHAVIOUR = ("running", "pupil")
RATES = (1.2, 22.0)  # spikes a second before behaviour, so that they lie between 1 and 30 with it
TYPICAL_RATE = 7.0  # their median; their logarithms are normal with a standard deviation of 0.8
BITS = (0.35, 1.0)  # bits per spike that a cell's rate should hold before behaviour
PEAKS = (8.0, 20.0)  # times its mean rate, towards which a cell's rate saturates ...
FASTEST = 200.0  # ... but no more than these spikes a second
CHUNK = 4096  # bins multiplied at once


@dataclass(frozen=True, eq=False)
class Cells:
    """Units as arrays; (units,) where nothing else is said, float32.

    kinds: of CELL_KINDS. frequency: cycles a pixel. orientation: radians, the direction in which the luminance changes.
    even, odd, pool: (pixels, units).
    kernels: (HISTORY, units), lag 0 first. threshold: of linear cells, in units of their filter. constant: the
    contrast at which gain-controlled cells saturate. scale: counts a bin for a drive of 1. spontaneous, ceiling: counts
    a bin. behaviour: (2, units), gain for running and pupil.
    """

    kinds: tuple[str, ...]
    frequency: Floats
    orientation: Floats
    even: Floats
    odd: Floats
    pool: Floats
    kernels: Floats
    threshold: Floats
    constant: Floats
    scale: Floats
    spontaneous: Floats
    ceiling: Floats
    behaviour: Floats

    def of(self, kind: str) -> NDArray[np.int64]:
        """The numbers of the units of one kind."""
        return np.flatnonzero(np.array(self.kinds) == kind)


@dataclass(frozen=True, eq=False)
class Simulated:
    """A session and what produced it. rates: (bins, units) float64, the expected count of each bin."""

    recording: Recording
    rates: NDArray[np.float64]
    cells: Cells


def simulate(
    name: str,
    *,
    seed: int,
    units: int = 100,
    seconds: float = 600.0,
    rate: float = 60.0,
    size: tuple[int, int] = (24, 24),
    kinds: Sequence[str] = KINDS,
    behaviour: bool = True,
    eye_movements: bool = True,
    repeats: tuple[int, int] | None = None,
    dtype: Literal["uint8", "float32"] = "uint8",
    subject: str | None = None,
) -> Simulated:
    """One session, the same for the same arguments on the same machine; `seed` and `name` draw everything.

    size: (height, width) in pixels. kinds: of "natural", which shows scikit-learn's photographs, and "gabor".
    behaviour: running and pupil are recorded and change the gain of units. eye_movements: without them the eye rests
    and natural scenes jump from one place to the next. repeats: (conditions of each kind, times that each is shown);
    None: (2, 20), or fewer conditions where they would fill more than half of the session. A repeat takes 3 s and shows
    the same frames to the same gaze; behaviour goes on. dtype: uint8 stores 127.5 * (1 + contrast) rounded, float32 the
    contrast in [-1, 1]. subject: whose recording it is said to be; it changes nothing else.

    Trials fill the session without gaps. About 1.5 % of the bins are not valid, as if the eye tracker had lost the eye.
    Raises DataError where the arguments cannot be met, MachineError where scikit-learn is not installed.
    """
    bins = round(seconds * rate)
    conditions, shows = _check(units, bins, rate, size, kinds, repeats)
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    planning, drawing, cell_draws, states, spiking = map(
        np.random.default_rng, np.random.SeedSequence([seed, key]).spawn(5)
    )
    plans = plan_trials(planning, bins, rate, kinds, conditions, shows)
    views = [grey(photograph) for photograph in photographs()] if "natural" in kinds else []
    stimulus, eye = np.empty((bins, *size), np.dtype(dtype)), np.zeros((bins, 2), np.float32)
    trials: list[Trial] = []
    shown: dict[int, Trial] = {}
    jump = max(1, round(0.3 * rate))
    for number, plan in enumerate(plans):
        start = trials[-1].stop if trials else 0
        condition = None if plan.condition is None else str(plan.condition)
        trial = Trial(f"trial-{number}", start, start + plan.bins, plan.kind, condition)
        here = slice(trial.start, trial.stop)
        first = None if plan.condition is None else shown.setdefault(plan.condition, trial)
        if first is None or first is trial:
            looked = gaze(drawing, plan.bins, rate)
            if eye_movements:
                eye[here] = looked
            else:
                looked = looked[np.arange(plan.bins) // jump * jump]
            if plan.kind == "natural":
                frames = look(scene(drawing, views, size), looked, size)
            else:
                frames = gabor_noise(drawing, plan.bins, size)
            stimulus[here] = _stored(frames, stimulus.dtype)
        else:
            stimulus[here], eye[here] = stimulus[first.start : first.stop], eye[first.start : first.stop]
        trials.append(trial)
    states_shown = _behaviour(states, bins, rate) if behaviour else None
    starts = trial_starts(trials, bins)
    cells = _calibrated(_drawn(cell_draws, units, size), cell_draws, stimulus, starts, rate)
    rates = expected_counts(cells, stimulus, trials, states_shown)
    counts = spiking.poisson(rates)
    valid = np.ones((bins, 1), np.bool_)
    for lost in spiking.integers(0, bins, round(bins / rate / 10)):
        valid[lost : lost + round(0.15 * rate)] = False
    recording = Recording(
        name=name,
        rate=rate,
        stimulus=stimulus,
        counts=counts.astype(np.uint8 if counts.max(initial=0) < 256 else np.uint16),
        valid=valid,
        units=tuple(f"u{number:03d}" for number in range(units)),
        trials=tuple(trials),
        behaviour=states_shown,
        behaviour_names=BEHAVIOUR if behaviour else (),
        eye=eye,
        subject=subject,
    )
    return Simulated(recording, rates, cells)


def expected_counts(
    cells: Cells, stimulus: NDArray, trials: Sequence[Trial], behaviour: Floats | None = None
) -> NDArray[np.float64]:
    """The expected counts of each bin: (bins, units) float64, above 0.

    stimulus: (bins, height, width), uint8, or float32 contrast. behaviour: (bins, 2), as BEHAVIOUR names it. What came
    before a trial does not count: its first frame stands for the frames before it.
    """
    rates = cells.spontaneous + cells.scale * _drive(
        cells, *_filtered(cells, stimulus, trial_starts(trials, len(stimulus)))
    )
    rates = rates / (1 + rates / cells.ceiling)
    if behaviour is not None:
        rates = rates * (1 + behaviour @ cells.behaviour)
    return rates.astype(np.float64)


def trial_starts(trials: Sequence[Trial], bins: int) -> NDArray[np.int64]:
    """(bins,): the first bin of the trial that each bin belongs to."""
    starts = np.zeros(bins, np.int64)
    for trial in trials:
        starts[trial.start : trial.stop] = trial.start
    return starts


def _check(
    units: int, bins: int, rate: float, size: tuple[int, int], kinds: Sequence[str], repeats: tuple[int, int] | None
) -> tuple[int, int]:
    """How many conditions a kind has and how often each is shown; DataError where the arguments do not fit."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise DataError(f"There is no stimulus {unknown[0]!r}.", where="kinds", fix=f"take some of {', '.join(KINDS)}")
    if not kinds or units < 1 or bins < HISTORY or min(size) < 8:
        raise DataError(
            f"{units} units in {bins} bins of {size[0]}x{size[1]} pixels, stimuli {list(kinds)}: too little.",
            fix=f"a session has a stimulus, a unit, {HISTORY} bins and 8x8 pixels at least",
        )
    shortest = round(3 * rate) * len(kinds)
    if repeats is None:
        shows = 20
        return min(2, bins // 2 // (shortest * shows)), shows
    if repeats[0] * repeats[1] * shortest > bins:
        needed = repeats[0] * repeats[1] * 3 * len(kinds)
        raise DataError(
            f"The repeats take {needed} s, more than the session has.", fix="repeat less, or take more seconds"
        )
    return repeats


def _stored(frames: Floats, dtype: np.dtype) -> NDArray:
    """Contrast as it is kept: float32 in [-1, 1], or grey levels."""
    frames = frames.clip(-1, 1)
    return np.rint((frames + 1) * 127.5).astype(np.uint8) if dtype == np.uint8 else frames


def _behaviour(generator: np.random.Generator, bins: int, rate: float) -> Floats:
    """(bins, 2) float32: running speed from 0 to 2.5, in bouts; pupil size, standardised, from -2.5 to 2.5."""
    running = (wandering(generator, bins, rate, 10.0) + 0.3).clip(0, 2.5)
    return np.stack([running, wandering(generator, bins, rate, 15.0).clip(-2.5, 2.5)], axis=1).astype(np.float32)


def _drawn(generator: np.random.Generator, units: int, size: tuple[int, int]) -> Cells:
    """Units of random kinds and shapes, their rates not yet set."""
    unit = min(size) / NOMINAL
    high, wide = size
    ones = np.ones(units, np.float32)
    x, y = ((generator.uniform(0.25, 0.75, units) * side - 0.5).astype(np.float32) for side in (wide, high))
    frequency = np.exp(generator.uniform(np.log(0.11), np.log(0.22), units)).astype(np.float32) / np.float32(unit)
    width = (generator.uniform(0.36, 0.5, units) / frequency).astype(np.float32)
    orientation, phase = (generator.uniform(0, 2 * np.pi, units).astype(np.float32) for _ in range(2))
    rows, columns = (place.reshape(-1, 1).astype(np.float32) for place in np.indices(size))
    across, down = columns - x, rows - y
    window = np.exp(-(across**2 + down**2) / (2 * width**2))
    wave = 2 * np.pi * frequency * (across * np.cos(orientation) + down * np.sin(orientation)) + phase
    # The even filter of a pair answers to plain grey, which no cell here should: as much of its window is taken away.
    pair = [shape - window * (shape * window).sum(0) / window.sum(0) for shape in (np.cos(wave), np.sin(wave))]
    pair = [(shape * window) / np.sqrt(((np.cos(wave) * window) ** 2).sum(0)) for shape in pair]
    pool = np.exp(-(across**2 + down**2) / (2 * (1.5 * width) ** 2))
    return Cells(
        kinds=tuple(str(kind) for kind in generator.choice(CELL_KINDS, units, p=SHARES)),
        frequency=frequency, orientation=orientation,
        even=pair[0], odd=pair[1], pool=pool / pool.sum(axis=0), kernels=_kernels(generator, units),
        threshold=generator.uniform(-0.3, 0.4, units).astype(np.float32),
        constant=ones, scale=ones, spontaneous=0 * ones, ceiling=np.inf * ones,
        behaviour=generator.uniform([[-0.25], [-0.12]], [[0.6], [0.12]], (2, units)).astype(np.float32),
    )  # fmt: skip


def _kernels(generator: np.random.Generator, units: int) -> Floats:
    """(HISTORY, units), of unit norm: differences of two gamma functions, 8 to 12 bins long, 1 to 3 bins late."""
    length, late = generator.uniform(8, 12, units), generator.uniform(1, 3, units)
    place = ((np.arange(HISTORY)[:, None] - late) / length).clip(0, 1)
    lobes = [place**3 * np.exp(-steep * place) * (1 - place**2) for steep in (13.0, 6.5)]
    lobes = [lobe / lobe.sum(axis=0) for lobe in lobes]
    kernels = lobes[0] - generator.uniform(0.5, 0.9, units) * lobes[1]
    return (kernels / np.sqrt((kernels**2).sum(axis=0))).astype(np.float32)


def _filtered(cells: Cells, stimulus: NDArray, starts: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Even filters of all units, odd ones of energy units, contrast in the pools of gain-controlled units.

    (bins, units of these) each, filtered in time.
    """
    energy, gain = cells.of("energy"), cells.of("gain")
    filters = np.concatenate([cells.even, cells.odd[:, energy], cells.pool[:, gain]], axis=1)
    linear = np.empty((len(stimulus), filters.shape[1]), np.float32)
    squares = np.empty((len(stimulus), len(gain)), np.float32)
    for start in range(0, len(stimulus), CHUNK):
        part = stimulus[start : start + CHUNK].reshape(-1, len(filters))
        contrast = part / np.float32(127.5) - 1 if part.dtype == np.uint8 else part.astype(np.float32)
        np.matmul(contrast, filters, out=linear[start : start + CHUNK])
        np.matmul(contrast**2, cells.pool[:, gain], out=squares[start : start + CHUNK])
    even, odd, mean = np.split(linear, [len(cells.kinds), len(cells.kinds) + len(energy)], axis=1)
    weights = np.abs(cells.kernels[:, gain])
    pool = filtered_in_time(squares - mean**2, weights / weights.sum(axis=0), starts)
    return (
        filtered_in_time(even, cells.kernels, starts),
        filtered_in_time(odd, cells.kernels[:, energy], starts),
        np.sqrt(pool.clip(0)),
    )


def filtered_in_time(values: Floats, kernels: Floats, starts: NDArray[np.int64]) -> Floats:
    """(bins, columns) filtered by (HISTORY, columns) inside each trial, its first bin standing for those before it."""
    bins, result = np.arange(len(values)), np.zeros_like(values)
    for lag, weights in enumerate(kernels):
        result += weights * values[np.maximum(bins - lag, starts)]
    return result


def _drive(cells: Cells, even: Floats, odd: Floats, pool: Floats) -> Floats:
    """What the stimulus does to each unit, from 0 on: (bins, units), of no unit yet."""
    energy, gain = cells.of("energy"), cells.of("gain")
    drive = np.maximum(even - cells.threshold, 0)
    drive[:, energy] = even[:, energy] ** 2 + odd**2
    drive[:, gain] = np.maximum(even[:, gain], 0) / np.sqrt(cells.constant[gain] ** 2 + pool**2)
    return drive


def _calibrated(
    cells: Cells, generator: np.random.Generator, stimulus: NDArray, starts: NDArray[np.int64], rate: float
) -> Cells:
    """The cells with thresholds, mean rates and spontaneous rates that suit what this session shows."""
    even, odd, pool = _filtered(cells, stimulus, starts)
    constant = cells.constant.copy()
    constant[cells.of("gain")] = 0.3 * np.median(pool, axis=0)
    cells = replace(cells, threshold=cells.threshold * even.std(axis=0), constant=np.maximum(constant, 1e-6))
    drive = _drive(cells, even, odd, pool)[::4].astype(np.float64)
    average = drive.mean(axis=0)
    drive /= average
    mean = (TYPICAL_RATE * np.exp(generator.normal(0, 0.8, len(cells.kinds)))).clip(*RATES) / rate
    wanted = generator.uniform(*BITS, len(cells.kinds))
    ceiling = np.minimum(generator.uniform(*PEAKS, len(cells.kinds)) * mean, FASTEST / rate)

    def saturated(share: NDArray[np.float64]) -> NDArray[np.float64]:
        raw = mean * ((1 - share) * drive + share)
        return raw / (1 + raw / ceiling)

    # The larger the spontaneous share of a rate, the less a spike says: halve the interval in which that share lies.
    low, high = np.full(len(mean), 0.02), np.full(len(mean), 0.98)
    for _ in range(12):
        middle = (low + high) / 2
        rates = saturated(middle)
        relative = rates / rates.mean(axis=0)
        more = (relative * np.log2(relative)).mean(axis=0) > wanted
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    share = (low + high) / 2
    mend = mean / saturated(share).mean(axis=0)  # saturation takes from the mean
    values = (mend * mean * (1 - share) / average, mend * mean * share, mend * ceiling)
    scale, spontaneous, ceiling = (value.astype(np.float32) for value in values)
    return replace(cells, scale=scale, spontaneous=spontaneous, ceiling=ceiling)

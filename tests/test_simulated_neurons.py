"""The simulated population is what it says: its rates, its cells, its stimuli and its files."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.written_recordings import write_npz
from visiontune.data.recordings.readers import read_session
from visiontune.data.recordings.recording import Trial
from visiontune.errors import DataError
from visiontune.metrics import responses
from visiontune.simulated_neurons import HISTORY, Simulated, expected_counts, simulate
from visiontune.simulated_stimuli import PIXELS_PER_DEGREE

BENCH = Path(__file__).parents[1] / "bench" / "linear_nonlinear.py"


@pytest.fixture(scope="module")
def session() -> Simulated:
    return simulate("first", seed=0, units=24, seconds=150, size=(16, 18), repeats=(1, 8), subject="A")


def rates_of(simulated: Simulated, **changed: Any) -> np.ndarray:
    recording = simulated.recording
    given = {"stimulus": recording.stimulus, "trials": recording.trials, "behaviour": recording.behaviour} | changed
    return expected_counts(simulated.cells, **given)


def test_the_same_seed_and_name_give_the_same_bytes_and_others_do_not():
    def made(name: str, seed: int) -> tuple[bytes, ...]:
        made = simulate(name, seed=seed, units=5, seconds=20, size=(12, 12))
        recording = made.recording
        assert recording.behaviour is not None and recording.eye is not None
        arrays = (recording.stimulus, recording.counts, recording.valid, recording.behaviour, recording.eye, made.rates)
        return tuple(array.tobytes() for array in arrays)

    first = made("a", 0)
    assert first == made("a", 0)
    for other in (made("b", 0), made("a", 1)):
        assert all(one != another for one, another in zip(first, other, strict=True))


def test_shapes_and_types(session: Simulated):
    recording = session.recording
    assert recording.stimulus.shape == (9000, 16, 18) and recording.stimulus.dtype == np.uint8
    assert recording.counts.shape == (9000, 24) and recording.counts.dtype == np.uint8
    assert session.rates.shape == (9000, 24) and session.rates.dtype == np.float64 and session.rates.min() > 0
    assert recording.valid.shape == (9000, 1) and 0.95 < recording.valid.mean() < 1
    assert recording.eye is not None and recording.eye.dtype == np.float32 and 1 < np.abs(recording.eye).max() <= 5
    assert recording.behaviour is not None and recording.behaviour.shape == (9000, 2)
    assert recording.behaviour.dtype == np.float32 and recording.behaviour[:, 0].min() == 0
    assert recording.trials[0].start == 0 and recording.trials[-1].stop == 9000
    assert all(a.stop == b.start for a, b in zip(recording.trials, recording.trials[1:], strict=False))
    assert all(180 <= trial.stop - trial.start <= 600 for trial in recording.trials)
    assert {trial.kind for trial in recording.trials} == {"natural", "gabor"}
    assert set(session.cells.kinds) == {"linear", "energy", "gain"}


def test_float_sessions_store_contrast():
    stored, grey = (
        simulate("a", seed=0, units=3, seconds=20, size=(12, 12), dtype=kind) for kind in ("float32", "uint8")
    )
    contrast = stored.recording.stimulus
    assert contrast.dtype == np.float32 and contrast.min() >= -1 and contrast.max() <= 1
    assert np.abs(contrast - (grey.recording.stimulus / 127.5 - 1)).max() <= 0.5 / 127.5 + 1e-6


def test_rates_depend_on_sixteen_frames_of_their_own_trial_and_on_nothing_else(session: Simulated):
    trial = session.recording.trials[3]
    before = rates_of(session)
    assert np.array_equal(before, session.rates)
    for changed in (trial.start, trial.start + 40, trial.stop - 1):
        stimulus = session.recording.stimulus.copy()
        stimulus[changed] = 255 - stimulus[changed]
        moved = np.flatnonzero((np.abs(rates_of(session, stimulus=stimulus) / before - 1) > 1e-5).any(axis=1))
        assert all(changed <= bin < min(changed + HISTORY, trial.stop) for bin in moved)
        if changed + HISTORY < trial.stop:
            assert moved.min() <= changed + 3 and moved.max() >= changed + 7  # kernels are long


def test_the_first_frame_of_a_trial_stands_for_those_before_it(session: Simulated):
    trial = session.recording.trials[3]
    frames = session.recording.stimulus[trial.start : trial.stop]
    held = np.concatenate([np.repeat(frames[:1], 30, axis=0), frames])
    whole = expected_counts(session.cells, held, [Trial("a", 0, len(held))])
    alone = expected_counts(session.cells, frames, [Trial("a", 0, len(frames))])
    assert np.allclose(whole[30:], alone, rtol=1e-4)


def test_behaviour_scales_the_rates_of_its_own_bin(session: Simulated):
    still = rates_of(session, behaviour=None)
    behaviour = session.recording.behaviour
    assert behaviour is not None
    assert np.allclose(session.rates, still * (1 + behaviour @ session.cells.behaviour), rtol=1e-5)
    assert np.ptp(session.rates / still) > 0.5
    none = simulate("first", seed=0, units=3, seconds=20, size=(12, 12), behaviour=False)
    assert none.recording.behaviour is None and none.recording.behaviour_names == ()


def gratings(simulated: Simulated, unit: int, phases: np.ndarray, contrasts: np.ndarray) -> np.ndarray:
    """The highest rate above the spontaneous one that gratings of the unit's own frequency bring, each after grey.

    phases and contrasts are broadcast. Rates do not saturate by themselves here.
    """
    cells = replace(simulated.cells, ceiling=np.full_like(simulated.cells.ceiling, np.inf))
    y, x = np.indices(simulated.recording.stimulus.shape[1:])
    angle = cells.orientation[unit]
    wave = 2 * np.pi * cells.frequency[unit] * (x * np.cos(angle) + y * np.sin(angle))
    shown = [c * np.cos(wave + p) for p, c in zip(*np.broadcast_arrays(phases, contrasts), strict=True)]
    frames = np.zeros((len(shown), 40, *wave.shape), np.float32)
    frames[:, 16:] = np.array(shown)[:, None]
    trials = [Trial(str(number), 40 * number, 40 * number + 40) for number in range(len(shown))]
    rates = expected_counts(cells, frames.reshape(-1, *wave.shape), trials)[:, unit]
    return rates.reshape(-1, 40).max(axis=1) - cells.spontaneous[unit]


def test_energy_cells_do_not_care_for_phase_and_linear_ones_do(session: Simulated):
    phases = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    for unit in session.cells.of("energy"):
        peaks = gratings(session, unit, phases, np.array(0.5))
        assert peaks.max() < 1.15 * peaks.min()
    for unit in session.cells.of("linear"):
        peaks = gratings(session, unit, phases, np.array(0.5))
        assert peaks.max() > 1.4 * peaks.min()


def test_gain_controlled_cells_saturate_and_linear_ones_do_not(session: Simulated):
    phases = np.tile(np.linspace(0, 2 * np.pi, 8, endpoint=False), 2)
    contrasts = np.repeat([0.5, 1.0], 8)

    def growth(unit: int) -> float:
        peaks = gratings(session, unit, phases, contrasts).reshape(2, 8).max(axis=1)
        return peaks[1] / peaks[0]

    assert max(growth(unit) for unit in session.cells.of("gain")) < 1.25
    assert min(growth(unit) for unit in session.cells.of("linear")) > 1.7
    assert min(growth(unit) for unit in session.cells.of("energy")) > 3.9


def test_counts_are_poisson_about_the_rates(session: Simulated):
    off = (session.recording.counts - session.rates) / np.sqrt(session.rates)
    assert np.abs(off.mean(axis=0)).max() < 4 / np.sqrt(len(off))
    assert np.abs((off**2).mean() - 1) < 0.05
    per_second = session.rates.mean(axis=0) * session.recording.rate
    assert per_second.min() > 0.8 and per_second.max() < 40 and per_second.max() > 4 * per_second.min()


def bits_per_spike(counts: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """(units,): the Poisson log likelihood of `rates` above that of each unit's mean count, in bits, over its spikes.

    counts, rates: (bins, units), the rates above 0; written by itself, so that the metrics can be held against it.
    """
    counts, spikes = counts.astype(np.float64), counts.sum(axis=0, dtype=np.float64)
    mean = spikes / len(counts)
    return (counts * np.log(rates / mean) - rates + mean).sum(axis=0) / (spikes * np.log(2))


def test_nothing_beats_the_true_rates(session: Simulated):
    seen = session.recording.valid[:, 0]
    counts, rates = session.recording.counts[seen], session.rates[seen]
    best = bits_per_spike(counts, rates)
    assert best.min() > 0.05 and 0.3 < np.median(best) < 1.0
    generator = np.random.default_rng(0)
    constant = np.broadcast_to(counts.mean(axis=0), counts.shape)
    for other in (rates * 1.3, rates / 1.3, rates**1.5, constant, rates * generator.lognormal(0, 0.5, rates.shape)):
        assert (bits_per_spike(counts, other) < best).all()
    assert np.allclose(bits_per_spike(counts, constant), 0, atol=1e-12)


def test_bits_per_spike_equal_those_of_the_metrics_and_obey_the_mask(session: Simulated):
    recording = session.recording
    mask = (np.arange(len(recording.stimulus)) % 3 > 0) & recording.valid[:, 0]
    valid = np.broadcast_to(mask[:, None], recording.counts.shape)
    sums = responses.bin_sums(session.rates, recording.counts.astype(np.float64), valid)
    masked = bits_per_spike(recording.counts[mask], session.rates[mask])
    assert np.allclose(responses.bits_per_spike(sums.total()), masked, rtol=1e-9)
    assert not np.allclose(masked, bits_per_spike(recording.counts, session.rates), rtol=1e-3)


def test_repeats_show_the_same_frames_to_the_same_gaze(session: Simulated):
    recording = session.recording
    assert recording.eye is not None
    shows: dict[str, list[Trial]] = {}
    for trial in recording.trials:
        if trial.condition is not None:
            shows.setdefault(trial.condition, []).append(trial)
    assert {trials[0].kind for trials in shows.values()} == {"natural", "gabor"}
    for trials in shows.values():
        assert len(trials) == 8 and len({trial.kind for trial in trials}) == 1
        for array, same in ((recording.stimulus, True), (recording.eye, True), (recording.counts, False)):
            first, *others = (array[trial.start : trial.stop] for trial in trials)
            assert all(np.array_equal(first, other) == same for other in others)


def test_ten_minutes_hold_two_conditions_of_each_kind_shown_twenty_times():
    trials = simulate("a", seed=0, units=1, seconds=600, size=(8, 8)).recording.trials
    numbers = [trial.condition for trial in trials if trial.condition is not None]
    assert {number: numbers.count(number) for number in numbers} == {str(number): 20 for number in range(4)}
    assert sum(trial.condition is None for trial in trials) > 30


def test_the_crop_moves_by_the_recorded_gaze(session: Simulated):
    recording = session.recording
    assert recording.eye is not None
    checked = 0
    for trial in recording.trials:
        if trial.kind != "natural":
            continue
        frames = recording.stimulus[trial.start : trial.stop].astype(float)
        eye = recording.eye[trial.start : trial.stop]
        for one, other in ((t, t + lag) for lag in (5, 20, 60) for t in range(0, len(eye) - lag, 7)):
            right, up = (eye[other] - eye[one]) * PIXELS_PER_DEGREE
            exact = np.array([-up, right])
            close = np.abs(exact - np.rint(exact)).max() < 0.1 and 2 < np.abs(exact).max() < 8
            if close and frames[one].std() > 12 and frames[other].std() > 12:
                assert best_shift(frames[one], frames[other]) == tuple(np.rint(exact).astype(int))
                checked += 1
    assert checked >= 10


def best_shift(first: np.ndarray, second: np.ndarray, most: int = 8) -> tuple[int, int]:
    """(rows, columns) by which the second crop lies further down and right: where the two agree best."""
    found = {}
    high, wide = first.shape
    for down in range(-most, most + 1):
        for right in range(-most, most + 1):
            one = first[max(down, 0) : high + min(down, 0), max(right, 0) : wide + min(right, 0)]
            other = second[max(-down, 0) : high + min(-down, 0), max(-right, 0) : wide + min(-right, 0)]
            found[down, right] = np.mean((one - other) ** 2)
    return min(found, key=lambda shift: found[shift])


def test_without_eye_movements_the_eye_rests_and_scenes_jump():
    recording = simulate(
        "a", seed=0, units=2, seconds=20, size=(12, 12), kinds=("natural",), eye_movements=False
    ).recording
    assert recording.eye is not None and not recording.eye.any()
    changed = (np.diff(recording.stimulus.astype(int), axis=0) != 0).any(axis=(1, 2)).mean()
    assert 0.01 < changed < 0.1


def test_a_written_session_is_read_as_it_was(session: Simulated, tmp_path: Path):
    write_npz(session, tmp_path / "first.npz")
    found, made = read_session(tmp_path / "first.npz"), session.recording
    assert found.faults == []
    for name in ("name", "rate", "units", "trials", "behaviour_names", "subject"):
        assert getattr(found.recording, name) == getattr(made, name)
    for name in ("stimulus", "counts", "valid", "behaviour", "eye"):
        array, expected = getattr(found.recording, name), getattr(made, name)
        assert array.dtype == expected.dtype and np.array_equal(array, expected)


def test_what_cannot_be_simulated_is_refused():
    good: dict[str, Any] = {"seed": 0, "units": 2, "seconds": 60, "size": (12, 12)}
    wrong = {"kinds": ("gratings",), "units": 0, "seconds": 0, "size": (4, 12), "repeats": (2, 20)}
    for name, value in wrong.items():
        with pytest.raises(DataError):
            simulate("a", **{**good, name: value})


def test_the_plain_fit_finds_linear_cells_and_misses_energy_cells():
    """The baseline of the bench: one that did not work would make every model look good.

    Ten times as many spikes as the cells have and no behaviour, so that the fit is judged and not the noise.
    """
    bench = runpy.run_path(str(BENCH))
    session: dict[str, Any] = {"kinds": ("gabor",), "behaviour": False, "repeats": (0, 0)}
    simulated = simulate("a", seed=0, units=16, seconds=200, size=(12, 12), **session)
    recording, parts = simulated.recording, bench["split_by_trial"](simulated)
    counts = np.random.default_rng(0).poisson(10 * simulated.rates)
    fit = bench["fit_linear_nonlinear"](
        recording.stimulus, counts, recording.trials, parts["train"], parts["validation"],
        components=100, ridges=(0.1, 0.01), iterations=15,
    )  # fmt: skip
    test = parts["test"]
    share = bits_per_spike(counts[test], fit.rates(recording.stimulus, recording.trials)[test])
    share = share / bits_per_spike(counts[test], 10 * simulated.rates[test])
    assert np.median(share[simulated.cells.of("linear")]) > 0.8
    assert np.median(share[simulated.cells.of("energy")]) < 0.1

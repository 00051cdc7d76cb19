"""Faults of recordings: each one planted is found, by its place; clean data have none."""

from dataclasses import replace

import numpy as np
import pytest

from tests.made_recordings import made, with_trials
from visiontune.data.recordings.examine import clock_faults, examine
from visiontune.data.recordings.split import clusters
from visiontune.data.recordings.store import write_recording
from visiontune.data.recordings.survey import survey
from visiontune.errors import DataError


def faults_of(recording):
    found = survey(recording)
    return {fault.code: fault for fault in examine(recording, found, clusters(recording.trials, found))}


@pytest.mark.parametrize("seed", range(5))
def test_clean_data_have_no_fault(seed):
    recording = made([30] * 60, seed=seed, units=20, behaviour=2, gap=2)
    assert not faults_of(recording)
    assert not faults_of(replace(recording, stimulus=recording.stimulus.astype(np.float32) / 255 - 0.5))


def planted(**arrays):
    """A recording with values put into some of its arrays: `planted(counts=((slice(None), 2), 0))`."""
    recording = made([30] * 10, behaviour=2, seed=3)
    for name, (place, value) in arrays.items():
        array = getattr(recording, name).astype(np.float32)
        array[place] = value
        recording = replace(recording, **{name: array})
    return recording


@pytest.mark.parametrize(
    ("recording", "code", "severity", "where"),
    [
        (planted(stimulus=((5, 0, 0), np.nan)), "not-a-number", "warning", "stimulus"),
        (planted(counts=((5, 0), np.inf)), "not-a-number", "warning", "counts"),
        (planted(behaviour=((5, 0), np.nan)), "not-a-number", "warning", "behaviour"),
        (planted(counts=((5, 0), -1)), "negative-counts", "error", "counts"),
        (planted(counts=((5, 0), 0.5)), "fractional-counts", "warning", "counts"),
        (planted(counts=((slice(None), 2), 0)), "silent-unit", "warning", "u2"),
        (planted(stimulus=(slice(None), 7)), "constant-stimulus", "error", "stimulus"),
        (planted(behaviour=((slice(None), 1), 4)), "constant-behaviour", "warning", "channel 1"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(recording, code, severity, where):
    found = faults_of(recording)
    assert set(found) == {code}
    assert (found[code].severity, found[code].where) == (severity, where) and found[code].fix


def test_units_with_the_same_counts_are_named_and_silent_ones_are_not_twins():
    counts = made([30] * 10).counts.copy()
    counts[:, 3] = counts[:, 1]
    found = faults_of(made([30] * 10, counts=counts))
    assert set(found) == {"duplicate-units"} and found["duplicate-units"].where == "u1 = u3"
    counts[:, 1] = counts[:, 3] = 0
    assert set(faults_of(made([30] * 10, counts=counts))) == {"silent-unit"}
    wide = made([30] * 10, counts=counts.astype(np.float32) + 0.25)
    assert "duplicate-units" in faults_of(wide)


def test_counts_none_of_which_is_valid_teach_nothing():
    recording = made()
    found = faults_of(replace(recording, valid=np.zeros_like(recording.valid)))
    assert found["seldom-valid"].severity == "error"
    assert found["seldom-valid"].found == "no count of any unit is valid"


def test_a_channel_of_behaviour_that_holds_nothing_is_named_and_stops_the_preparation(tmp_path):
    names = {"behaviour_names": ("pupil", "running")}
    empty = replace(planted(behaviour=((slice(None), 1), np.nan)), **names)
    found = faults_of(empty)
    assert set(found) == {"empty-behaviour", "not-a-number"} and found["empty-behaviour"].where == "running"
    with pytest.raises(DataError, match="1 channel of behaviour holds no finite number") as refused:
        write_recording(empty, tmp_path / "out")
    assert refused.value.where == "session: running" and "take this channel out" in str(refused.value.fix)


def test_units_that_are_seldom_valid_are_named_and_not_called_silent():
    valid = np.ones((300, 4), bool)
    valid[:, 1], valid[:260, 2] = False, False
    found = faults_of(made([30] * 10, valid=valid))
    assert set(found) == {"seldom-valid"} and found["seldom-valid"].where == "u1 (0%), u2 (13%)"


def test_repeated_and_nearly_repeated_stimuli_across_given_splits_are_leaks():
    recording = made([30] * 12)
    stimulus = recording.stimulus.copy()
    stimulus[30:60] = stimulus[330:360]
    stimulus[60:90] = np.clip(stimulus[300:330].astype(int) + 2, 0, 255)
    split = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    found = faults_of(with_trials(replace(recording, stimulus=stimulus), split=split))
    assert set(found) == {"leak-across-splits"}
    where = found["leak-across-splits"].where
    assert "trial-1 (train) = trial-11 (test)" in where and "trial-2 (train) = trial-10 (test)" in where
    same = faults_of(with_trials(replace(recording, stimulus=stimulus), split=["train"] * 12))
    assert not same


def test_a_condition_that_shows_different_frames_is_said():
    found = faults_of(with_trials(made([30] * 4), condition=["a", "a", None, "b"]))
    assert set(found) == {"condition-differs"} and found["condition-differs"].where == "a"


def test_an_aperture_that_all_trials_share_does_not_make_them_repeats():
    recording = made([30] * 30)
    stimulus = np.full((900, 40, 40), 0, np.uint8)
    stimulus[:, 20:] = 255
    stimulus[:, 17:23, 17:23] = recording.stimulus // 8 + 110
    found = faults_of(replace(recording, stimulus=stimulus))
    assert set(found) == {"alike-everywhere"}


def test_recordings_without_trials_or_with_two_of_one_name_are_errors():
    assert faults_of(replace(made(), trials=()))["no-trials"].severity == "error"
    twice = with_trials(made([30] * 3), id=["a", "b", "a"])
    assert faults_of(twice)["duplicate-trial"].where == "a"


CLOCK = np.arange(200) / 50
TRIALS = np.repeat([0, 1], 100)


def clock(times, trials=TRIALS):
    return {fault.code: fault for fault in clock_faults(times, trials, 50.0)}


def test_good_clocks_and_breaks_between_trials_are_no_fault():
    paused = CLOCK + np.repeat([0, 7.0], 100)
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, 200) / 50
    assert not clock({"stimulus": paused, "counts": paused + jitter})
    assert not clock({})
    assert not clock({"counts": CLOCK * 1.003})  # by 0.3 bins in each trial, which begins anew


def test_clocks_that_go_back_drift_or_part_are_errors():
    back = CLOCK.copy()
    back[50] = back[49]
    assert "first after bin 49" in clock({"counts": back})["clock-not-forward"].found
    assert clock({"counts": CLOCK * 1.02})["drifting-clock"].where == "counts_times"
    parted = clock({"stimulus": CLOCK, "counts": CLOCK + np.where(np.arange(200) < 120, 0, 0.8 / 50)})
    assert "misaligned-clocks" in parted and "first at bin 120" in parted["misaligned-clocks"].found
    assert {fault.severity for fault in parted.values()} == {"error"}

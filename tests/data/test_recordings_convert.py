"""Conversion of rates: spikes are never lost but where bins are cut, and every array says what was done to it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made_recordings import made, with_trials
from visiontune.data.recordings.convert import at_rate
from visiontune.errors import DataError


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=25)
def test_counts_are_summed_trial_by_trial(lengths, factor, gap):
    recording = made(lengths, gap=gap, rate=240.0, behaviour=2)
    if max(lengths) < factor:
        return
    found = at_rate(recording, 240 / factor).recording
    assert found.rate == 240 / factor
    old = {trial.id: trial for trial in recording.trials}
    assert [trial.id for trial in found.trials] == [t.id for t in recording.trials if t.stop - t.start >= factor]
    for trial in found.trials:
        start, groups = old[trial.id].start, trial.stop - trial.start
        assert groups == (old[trial.id].stop - start) // factor
        for group in range(groups):
            here = slice(start + group * factor, start + (group + 1) * factor)
            new = trial.start + group
            np.testing.assert_array_equal(found.counts[new], recording.counts[here].sum(axis=0, dtype=int))
            np.testing.assert_array_equal(found.stimulus[new], recording.stimulus[here.start])
            np.testing.assert_allclose(found.behaviour[new], recording.behaviour[here].mean(axis=0), rtol=1e-5)


def test_a_bin_is_valid_where_all_of_its_bins_are_and_trials_are_never_averaged():
    valid = np.ones((12, 1), bool)
    valid[5] = False
    recording = with_trials(made([7, 5], valid=valid), condition=["a", "b"], split=["train", None])
    conversion = at_rate(recording, 10)
    found = conversion.recording
    assert found.valid[:, 0].tolist() == [True, True, False, True, True]
    assert [(t.start, t.stop, t.condition, t.split) for t in found.trials] == [(0, 3, "a", "train"), (3, 5, "b", None)]
    report = "\n".join(conversion.report)
    for said in ("counts: summed", "valid: where all", "stimulus: the first frame", "kept", "cut: 2 bins at the ends"):
        assert said in report


def test_later_parts_of_an_interrupted_trial_keep_to_the_bins_of_the_whole():
    recording = with_trials(made([7, 8, 3], rate=20.0), offset=[0, 9, 17])
    found = at_rate(recording, 5).recording
    assert [(t.start, t.stop, t.offset) for t in found.trials] == [(0, 1, 0), (1, 2, 3)]
    np.testing.assert_array_equal(found.stimulus[1], recording.stimulus[7 + 3])  # of the whole trial, the bin 12


def test_many_spikes_do_not_overflow_and_broken_counts_stay_broken():
    full = at_rate(replace(made([8]), counts=np.full((8, 4), 200, np.uint8)), 10).recording
    assert (np.asarray(full.counts) == 400).all()
    counts = np.ones((8, 4), np.float32)
    counts[3, 1] = np.nan
    broken = at_rate(replace(made([8]), counts=counts), 10).recording
    assert np.isnan(broken.counts[1, 1]) and np.isnan(broken.counts).sum() == 1


def test_a_measured_rate_is_taken_for_the_one_that_is_asked_for_and_this_is_said():
    measured = made([8], rate=60.0039)
    for asked, bins in ((60, 8), (30, 4)):
        conversion = at_rate(measured, asked)
        assert conversion.recording.rate == asked and len(conversion.recording.stimulus) == bins
        assert conversion.report[0] == f"{60.0039 * asked / 60:.6g} bins a second are taken for {asked}"
    rounding = at_rate(made([8], rate=30.000000000001705), 30)
    assert rounding.recording.rate == 30 and not rounding.report
    with pytest.raises(DataError, match=r"60.0039 bins a second cannot become 59"):
        at_rate(measured, 59)


@pytest.mark.parametrize("rate", [15.0, 40.0, 0.0])
def test_rates_that_need_parts_of_bins_are_refused(rate):
    with pytest.raises(DataError, match="only whole bins") as caught:
        at_rate(made([8]), rate)
    assert "20, 10, 6.66667, 5" in caught.value.fix
    assert at_rate(made([8]), 20).report == ()

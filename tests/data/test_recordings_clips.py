"""Clips of a recording: every bin predicted once, none of another trial seen, all of one shape."""

import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made_recordings import film, made, with_trials
from visiontune.data.recordings.arrays import session_from
from visiontune.data.recordings.clips import ClipDataset, ClipPlace
from visiontune.data.recordings.inspect import inspect_recordings
from visiontune.data.recordings.store import read_trials, write_recording
from visiontune.data.responses import Clip, Responses
from visiontune.data.split import SPLITS
from visiontune.errors import DataError
from visiontune.metrics.predicted_session import PredictedSession
from visiontune.metrics.response_scores import score_responses


def opened(folder, recording, clip, burn_in) -> ClipDataset:
    return ClipDataset.open(write_recording(recording, folder, 0), clip, burn_in)


def parts(dataset, split, i) -> tuple[Clip, Responses]:
    sample = dataset.sample(split, i)
    assert isinstance(sample.seen, Clip) and isinstance(sample.target, Responses)
    return sample.seen, sample.target


def numbered(lengths, gap=0):
    """A recording whose first pixels say the bin's number, whose counts too."""
    recording = made(lengths, gap=gap, behaviour=1)
    stimulus, counts = recording.stimulus.copy(), recording.counts.astype(np.uint16)
    bins = np.arange(len(stimulus))
    stimulus[:, 0, 0], stimulus[:, 0, 1], counts[:, 0] = bins % 256, bins // 256, bins
    return replace(recording, stimulus=stimulus, counts=counts, behaviour=bins[:, None].astype(np.float32))


def interrupted(conditions=(0, 0, *[-1] * 10), splits=("test", "test", *["train"] * 9, "validation")):
    """Twelve trials of 60 bins; the first two, which show the same, are interrupted: 20..24 and 30..34 are of none."""
    whole = made([60] * 12)
    stimulus, trials = whole.stimulus.copy(), np.repeat(np.arange(12), 60)
    stimulus[60:120] = stimulus[:60]
    trials[20:25] = trials[90:95] = -1
    values = {"stimulus": stimulus, "counts": whole.counts, "rate": 20.0, "trials": trials}
    return session_from(values | {"conditions": conditions, "splits": splits}, "s", "").recording


@given(
    st.lists(st.integers(1, 40), min_size=4, max_size=12),
    st.integers(1, 15),
    st.integers(0, 12),
    st.integers(0, 3),
)
@settings(max_examples=25)
def test_clips_predict_each_bin_once_and_see_no_other_trial(tmp_path_factory, lengths, clip, burn_in, gap):
    recording = numbered(lengths, gap)
    dataset = opened(tmp_path_factory.mktemp("clips") / "out", recording, clip, burn_in)
    predicted = np.zeros(len(recording.stimulus), int)
    for split in SPLITS:
        for i in range(dataset.count(split)):
            seen, target = parts(dataset, split, i)
            place = dataset.where(split, i)
            trial = recording.trials[place.trial]
            assert (
                seen.frames.shape == (burn_in + clip, 6, 6) and target.counts.shape == (clip, 4) == target.valid.shape
            )
            assert seen.burn_in == burn_in and target.start == place.start == trial.start + place.place
            shown = seen.frames[:, 0, 0].astype(int) + 256 * seen.frames[:, 0, 1].astype(int)
            assert trial.start <= shown.min() and shown.max() < trial.stop
            assert dataset.trials[place.trial].split == split
            first = target.start - burn_in
            expected = np.minimum(np.arange(first, first + burn_in + clip), trial.stop - 1)
            np.testing.assert_array_equal(shown, expected)
            scale = dataset.recording.behaviour_std[0] or 1
            told = seen.behaviour[:, 0] * scale + dataset.recording.behaviour_mean[0]
            np.testing.assert_allclose(told, expected, atol=1e-2)
            rows = np.flatnonzero(target.valid[:, 0])
            assert (target.valid == target.valid[:, :1]).all()
            np.testing.assert_array_equal(target.counts[rows, 0], target.start + rows)
            predicted[target.start + rows] += 1
    expected = np.zeros(len(predicted), int)
    for trial in recording.trials:
        expected[trial.start + burn_in : trial.stop] = 1
    np.testing.assert_array_equal(predicted, expected)
    short = sum(length for length in lengths if length <= burn_in)
    assert sum(dataset.left_out_bins(split) for split in SPLITS) == short
    assert len(dataset) == sum(dataset.count(split) for split in SPLITS)


def test_the_index_names_each_clip_and_agrees_with_its_sample(tmp_path):
    recording = with_trials(made([30, 50, 41, 70]), split=["train", "train", "validation", "test"])
    dataset = opened(tmp_path / "out", recording, 16, 8)
    index = dataset.index("train")
    assert index.ids == ["trial-0/8", "trial-0/14", "trial-1/8", "trial-1/24", "trial-1/34"]
    assert [dataset.sample("train", i).id for i in range(5)] == index.ids
    assert index.prompts == [None] * 5 and index.answers == [""] * 5 and index.widths == [[6]] * 5
    assert len(set(index.contents)) == 5
    with pytest.raises(IndexError):
        dataset.sample("train", 5)
    with pytest.raises(DataError, match="no split 'holdout'"):
        dataset.count("holdout")


def test_a_clip_says_where_it_lies_and_which_condition_it_repeats(tmp_path):
    recording = with_trials(
        made([20, 20, 20, 20]), split=["train", "validation", "test", "train"], condition=["a", None, None, "b"]
    )
    dataset = opened(tmp_path / "out", recording, 8, 4)
    places = [dataset.where("train", i) for i in range(dataset.count("train"))]
    assert places == [
        ClipPlace(4, 0, 0, 4), ClipPlace(12, 0, 0, 12), ClipPlace(64, 3, 1, 4), ClipPlace(72, 3, 1, 12)
    ]  # fmt: skip
    assert dataset.where("test", 0).condition == -1


def test_trials_that_show_the_same_frames_are_repeats_without_a_named_condition(tmp_path):
    """The third and fourth show what the first shows, whose condition has a name; the sixth what the fifth shows."""
    recording = made([20] * 8)
    stimulus = recording.stimulus.copy()
    stimulus[40:60] = stimulus[60:80] = stimulus[:20]
    stimulus[100:120] = stimulus[80:100]
    splits = ["test"] * 6 + ["train", "validation"]
    recording = with_trials(replace(recording, stimulus=stimulus), split=splits, condition=["a", *[None] * 7])
    dataset = opened(tmp_path / "out", recording, 16, 4)
    assert [dataset.where("test", i).condition for i in range(6)] == [0, -1, 0, 0, 1, 1]
    assert dataset.where("train", 0).condition == -1


def test_trials_interrupted_at_one_place_are_repeats_by_the_frames_of_all_their_parts(tmp_path):
    recording = made([30] * 7)
    stimulus, trials = recording.stimulus.copy(), np.repeat(np.arange(7), 30)
    stimulus[30:60] = stimulus[:30]
    stimulus[60:75] = stimulus[:15]  # goes on otherwise
    trials[[12, 42, 72]] = -1
    values = {"stimulus": stimulus, "counts": recording.counts, "rate": 20.0, "trials": trials}
    found = session_from(values | {"splits": ["test"] * 3 + ["train"] * 4}, "s", "").recording
    dataset = opened(tmp_path / "out", found, 8, 2)
    conditions = {(where.trial, where.condition) for i in range(dataset.count("test"))
                  if (where := dataset.where("test", i))}  # fmt: skip
    assert conditions == {(0, 0), (2, 0), (4, -1)}


def test_the_parts_of_an_interrupted_trial_are_one_showing_of_its_stimulus(tmp_path):
    recording = interrupted()
    assert [(t.id, t.offset) for t in recording.trials[:4]] == [
        ("trial-0", 0), ("trial-0+1", 25), ("trial-1", 0), ("trial-1+1", 35)
    ]  # fmt: skip
    dataset = opened(tmp_path / "out", recording, 8, 4)
    assert not [fault for fault in dataset.info.faults if fault.code == "condition-differs"]
    bins, splits = set(), []
    for i in range(dataset.count("test")):
        where, target = dataset.where("test", i), dataset.responses("test", i)
        rows = np.flatnonzero(target.valid[:, 0])
        bins |= {(where.trial, where.place + int(row), where.start + int(row)) for row in rows}
        splits.append(where.condition)
    assert set(splits) == {0} and {trial for trial, _, _ in bins} == {0, 2}
    assert len({(trial, place) for trial, place, _ in bins}) == len(bins)
    assert all(start == 60 * (trial // 2) + place for trial, place, start in bins)
    facts = inspect_recordings(tmp_path / "out").sessions[0]
    assert (facts.trials, facts.repeats) == (14, 1)


def test_an_interruption_is_no_repeat_that_is_kept_for_the_test_split(tmp_path):
    found = {}
    for offset in (0, 30):
        recording = with_trials(made(), condition=["a", "a", *[None] * 10], offset=[0, offset, *[0] * 10])
        folders = [write_recording(recording, tmp_path / f"{offset}-{seed}", seed) for seed in range(5)]
        found[offset] = {trial.split for folder in folders for trial in read_trials(folder)[:2]}
    assert found[0] == {"test"} and "train" in found[30]


def test_a_trial_without_an_interruption_is_listed_as_ever(tmp_path):
    opened(tmp_path / "out", made(), 8, 4)
    listed = json.loads((tmp_path / "out/trials.json").read_text())
    assert "offset" not in {name for trial in listed for name in trial}


def test_the_true_rates_of_interrupted_repeats_score_as_the_truth(tmp_path):
    """Laid over each other from their own beginnings, the parts would be averages of different frames."""
    random = np.random.default_rng(0)
    rate, shown = np.exp(random.normal(0, 1, (120, 4))), film(3, 120)
    trials = np.repeat(np.arange(20), 120)
    for repeat in range(10):
        trials[repeat * 120 + random.integers(20, 100) :][:5] = -1
    true = np.concatenate([rate] * 10 + [np.ones_like(rate)] * 10)
    recording = session_from(
        {
            "stimulus": np.concatenate([shown] * 10 + [film(k, 120) for k in range(10, 20)]),
            "counts": random.poisson(true).astype(np.uint8),
            "rate": 20.0,
            "trials": trials,
            "conditions": [0] * 10 + [-1] * 10,
            "splits": ["test"] * 10 + ["train"] * 7 + ["validation"] * 3,
        },
        "s",
        "",
    ).recording
    dataset, pieces = opened(tmp_path / "out", recording, 32, 4), []
    for i in range(dataset.count("test")):
        where, target = dataset.where("test", i), dataset.responses("test", i)
        kept = np.flatnonzero(target.valid.any(axis=1))
        numbers = (np.full(len(kept), where.trial), np.full(len(kept), where.condition), where.place + kept)
        rates = true[where.start + kept]
        pieces.append(
            PredictedSession("s", dataset.units, rates, target.counts[kept].astype(float), target.valid[kept], *numbers)
        )
    metrics = score_responses(pieces, resamples=0).metrics
    assert metrics["feve"].value == pytest.approx(1, abs=0.05)
    assert metrics["ccnorm"].value == pytest.approx(1, abs=0.05)


def test_frames_stay_uint8_and_are_not_copied_and_float_frames_stay_float32(tmp_path):
    recording = made([40] * 8)
    seen, target = parts(opened(tmp_path / "bytes", recording, 16, 8), "train", 0)
    assert seen.frames.dtype == np.uint8 and not seen.frames.flags.owndata and not seen.frames.flags.writeable
    assert target.counts.dtype == np.float32 and target.valid.dtype == bool
    assert target.units == ("session/u0", "session/u1", "session/u2", "session/u3")
    real = replace(recording, stimulus=recording.stimulus.astype(np.float64) / 255)
    assert parts(opened(tmp_path / "real", real, 16, 8), "train", 0)[0].frames.dtype == np.float32


def test_behaviour_is_normalised_by_the_train_split_and_what_is_not_known_is_the_mean(tmp_path):
    recording = made([30] * 10, behaviour=2)
    behaviour = recording.behaviour.copy()
    behaviour[4, 0] = np.nan
    recording = with_trials(replace(recording, behaviour=behaviour), split=["train"] * 8 + ["validation", "test"])
    dataset = opened(tmp_path / "out", recording, 30, 0)
    clips = [parts(dataset, "train", i)[0].behaviour for i in range(dataset.count("train"))]
    together = np.concatenate(clips)
    assert together.dtype == np.float32 and np.isfinite(together).all()
    np.testing.assert_allclose(together.std(axis=0), 1, atol=3e-3)
    np.testing.assert_allclose(together.mean(axis=0), 0, atol=3e-3)
    assert together[4, 0] == 0


def test_clips_carry_the_channels_that_are_named_in_their_order(tmp_path):
    recording = replace(made([30] * 10, behaviour=3), behaviour_names=("a", "b", "c"))
    whole = opened(tmp_path / "out", recording, 30, 0)
    some = ClipDataset.open(tmp_path / "out", 30, 0, ("c", "a"))
    behaviour = parts(whole, "train", 0)[0].behaviour
    np.testing.assert_array_equal(parts(some, "train", 0)[0].behaviour, behaviour[:, [2, 0]])
    assert parts(ClipDataset.open(tmp_path / "out", 30, 0, ()), "train", 0)[0].behaviour is None
    assert pickle.loads(pickle.dumps(some)).channels == ("c", "a")
    with pytest.raises(DataError, match="no d was recorded; channels of behaviour: a, b, c"):
        ClipDataset.open(tmp_path / "out", 30, 0, ("d",))


def test_validity_a_unit_is_kept(tmp_path):
    recording = made([30] * 8)
    valid = np.random.default_rng(0).random((240, 4)) < 0.5
    dataset = opened(tmp_path / "out", replace(recording, valid=valid), 30, 0)
    _, target = parts(dataset, "train", 0)
    np.testing.assert_array_equal(target.valid, valid[target.start : target.start + 30])


def test_scores_are_those_of_the_very_clips(tmp_path):
    recording = made([30] * 10)
    stimulus = recording.stimulus.copy()
    stimulus[:30] = 128 + (stimulus[:30].astype(int) - 128) // 8
    recording = with_trials(replace(recording, stimulus=stimulus), split=["train"] * 8 + ["validation", "test"])
    dataset = opened(tmp_path / "out", recording, 11, 5)
    scores = dataset.scores("train")
    assert set(scores) == {"contrast", "spikes"}
    for i in range(dataset.count("train")):
        seen, target = parts(dataset, "train", i)
        contrast = seen.frames[5:].std(axis=(1, 2)).mean() / dataset.recording.stimulus_mean
        assert scores["contrast"][i] == pytest.approx(contrast, rel=1e-4)
        assert scores["spikes"][i] == pytest.approx(target.counts[target.valid].mean())
    calm = [dataset.where("train", i).trial == 0 for i in range(dataset.count("train"))]
    assert scores["contrast"][calm].max() < scores["contrast"][~np.array(calm)].min() / 4
    assert dataset.scores("train") is scores


def test_a_score_leaves_padding_out(tmp_path):
    recording = made([10] * 8)
    stimulus = recording.stimulus.copy()
    stimulus[9::10] = 0  # the last frame of each trial, which padding repeats
    padded = opened(tmp_path / "a", replace(recording, stimulus=stimulus), 100, 0)
    whole = opened(tmp_path / "b", replace(recording, stimulus=stimulus), 10, 0)
    np.testing.assert_array_equal(padded.scores("train")["contrast"], whole.scores("train")["contrast"])


def first_ids(dataset):
    return [dataset.sample("train", i).id for i in range(3)], dataset.sample("train", 0).seen.frames.sum()


def test_it_can_be_pickled_forked_and_read_elsewhere(tmp_path):
    dataset = opened(tmp_path / "out", made(), 16, 8)
    expected = first_ids(dataset)
    dataset.scores("train")
    assert len(pickle.dumps(dataset)) < 20_000
    assert first_ids(pickle.loads(pickle.dumps(dataset))) == expected
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            assert pool.submit(first_ids, dataset).result() == expected


def test_a_damaged_file_is_found(tmp_path):
    dataset = opened(tmp_path / "out", made(), 16, 8)
    dataset.verify()
    path = dataset.path / "counts.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="was changed"):
        dataset.verify()
    path.write_bytes(bytes(data[:-1]))
    with pytest.raises(DataError, match="bytes instead of"):
        ClipDataset.open(dataset.path, 16, 8)


def test_only_recordings_are_cut_into_clips(classes, tmp_path):
    from visiontune.data.prepare import prepare

    images = prepare(classes({"cat": 4, "dog": 4}), tmp_path / "images", workers=1)
    with pytest.raises(DataError, match="no recording"):
        ClipDataset.open(images.path, 16, 8)
    stored = write_recording(made(), tmp_path / "out", 0)
    with pytest.raises(DataError, match="clip of 0 bins"):
        ClipDataset.open(stored, 0, 8)

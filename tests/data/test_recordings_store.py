"""A recording on disk: whole or not at all, small types, statistics of the train split alone, splits by content."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.killed import count_changes_of_the_disk, killed
from tests.made_recordings import made, with_trials
from visiontune.data.dataset import Dataset
from visiontune.data.dataset_info import read_info
from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.recordings.split import in_blocks, near_pairs
from visiontune.data.recordings.store import contents, read_trials, write_recording
from visiontune.data.recordings.survey import Moments, survey
from visiontune.data.remote import send
from visiontune.errors import DataError


def summary(path):
    found = read_info(path).recording
    assert found is not None
    return found


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_arrays_come_back_in_the_smallest_types_that_hold_them(tmp_path):
    recording = made(behaviour=2, eye=np.ones((360, 2), np.float32))
    stored = write_recording(recording, tmp_path / "out", 0)
    arrays = {path.stem: np.load(path) for path in stored.glob("*.npy")}
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "stimulus": "uint8", "counts": "uint8", "valid": "bool", "behaviour": "float32", "eye": "float32",
    }  # fmt: skip
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, getattr(recording, name))
    info = read_info(stored)
    assert (info.seen, info.target, info.labels) == ("clips", "responses", None)
    assert sum(info.splits.values()) == 12 and set(info.files) == {f"{name}.npy" for name in arrays} | {"trials.json"}
    Dataset.open(stored).verify()


@pytest.mark.parametrize(
    ("counts", "kind"),
    [
        ([0, 255], "uint8"),
        ([0, 256], "uint16"),
        ([0.0, 3.0], "uint8"),
        ([0.5, 3.0], "float32"),
        ([0, 70000], "float32"),
    ],
)
def test_counts_are_stored_exactly(tmp_path, counts, kind):
    recording = made([30] * 8)
    values = np.resize(np.array(counts), recording.counts.shape)
    out = write_recording(replace(recording, counts=values), tmp_path / "out", 0)
    stored = np.load(out / "counts.npy")
    assert stored.dtype == kind
    np.testing.assert_array_equal(stored, values)


def test_a_memory_mapped_recording_is_written_in_chunks_to_the_same_bytes(tmp_path, monkeypatch):
    recording = made(behaviour=1, gap=3)
    whole = write_recording(recording, tmp_path / "whole", 0)
    np.save(tmp_path / "stimulus.npy", recording.stimulus)
    mapped = np.load(tmp_path / "stimulus.npy", mmap_mode="r")
    monkeypatch.setattr("visiontune.data.recordings.chunks.CHUNK_BYTES", 1000)
    chunked = write_recording(replace(recording, stimulus=mapped), tmp_path / "chunked", 0)
    assert files(whole) == files(chunked)


def test_the_same_again_changes_nothing_and_something_else_is_refused(tmp_path):
    out = write_recording(made(), tmp_path / "out", 0)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    write_recording(made(), out, 0)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times
    with pytest.raises(DataError, match="other data"):
        write_recording(made(seed=1), out, 0)
    with pytest.raises(DataError, match="seed 0"):
        write_recording(made(), out, 1)


def test_killed_at_every_moment_and_run_again_it_ends_the_same(tmp_path):
    recording = made([20] * 4)
    write_recording(recording, tmp_path / "whole", 0)
    moment, finished = 0, False
    while not finished:
        out = tmp_path / f"killed-{moment}"

        def work(counted, out=out):
            count_changes_of_the_disk(counted)
            write_recording(recording, out, 0)

        finished = killed(moment, work)
        if out.exists() and not (out / "dataset.json").exists() and any(out.iterdir()):
            with pytest.raises(DataError, match="interrupted"):
                ClipDataset.open(out)
        assert files(write_recording(recording, out, 0)) == files(tmp_path / "whole")
        moment += 1
    assert moment > 10


def test_without_its_dataset_json_a_folder_is_no_dataset(tmp_path):
    out = write_recording(made(), tmp_path / "out", 0)
    (out / "dataset.json").unlink()
    with pytest.raises(DataError, match="not a prepared dataset"):
        ClipDataset.open(out)
    with pytest.raises(DataError, match="neither empty nor a dataset"):
        write_recording(made(), out, 0)


def test_what_models_are_fitted_with_comes_from_the_train_split_alone(tmp_path):
    recording = made(behaviour=2)
    first = write_recording(recording, tmp_path / "first", 0)
    placed = [trial.split for trial in read_trials(first)]
    stimulus, counts, behaviour = recording.stimulus.copy(), recording.counts.copy(), recording.behaviour.copy()
    for trial in read_trials(first):
        if trial.split != "train":
            stimulus[trial.start : trial.stop] //= 2
            counts[trial.start : trial.stop] += 3
            behaviour[trial.start : trial.stop] += 100
    other = with_trials(
        replace(recording, stimulus=stimulus, counts=counts, behaviour=behaviour),
        split=placed,
    )
    changed = summary(write_recording(other, tmp_path / "changed", 0))
    same = summary(first)
    for name in ("stimulus_mean", "stimulus_std", "behaviour_mean", "behaviour_std", "mean_counts"):
        assert getattr(changed, name) == getattr(same, name), name
    train = np.concatenate([np.arange(t.start, t.stop) for t in read_trials(first) if t.split == "train"])
    assert same.stimulus_mean == pytest.approx(recording.stimulus[train].mean(), rel=1e-12)
    assert same.stimulus_std == pytest.approx(recording.stimulus[train].std(), rel=1e-12)
    assert same.behaviour_std == pytest.approx(recording.behaviour[train].std(axis=0, dtype=np.float64), rel=1e-9)
    assert same.mean_counts == pytest.approx(recording.counts[train].mean(axis=0), rel=1e-12)


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9), min_size=1, max_size=5))
def test_moments_joined_are_the_moments_of_everything(parts):
    joined = Moments.joined([Moments.of(np.array(part)) for part in parts])
    everything = np.concatenate([np.array(part) for part in parts])
    assert joined.mean[0] == pytest.approx(everything.mean(), abs=1e-9)
    assert joined.std[0] == pytest.approx(everything.std(), abs=1e-6)


def test_what_is_no_number_is_stored_as_not_valid(tmp_path):
    recording = made([30] * 8, behaviour=1)
    stimulus, counts = recording.stimulus.astype(np.float32), recording.counts.astype(np.float32)
    behaviour = recording.behaviour.copy()
    stimulus[5, 0, 0], counts[6, 2], behaviour[7, 0] = np.nan, np.inf, np.nan
    broken = replace(recording, stimulus=stimulus, counts=counts, behaviour=behaviour)
    out = write_recording(broken, tmp_path / "out", 0)
    valid = np.load(out / "valid.npy")
    assert valid.shape == (240, 4)
    expected = np.ones((240, 4), bool)
    expected[5], expected[6, 2], expected[7] = False, False, False
    np.testing.assert_array_equal(valid, expected)
    assert np.isfinite(np.load(out / "stimulus.npy")).all() and np.load(out / "counts.npy").dtype == np.uint8
    assert {fault.where for fault in read_info(out).faults if fault.code == "not-a-number"} == {
        "stimulus", "counts", "behaviour",
    }  # fmt: skip
    assert summary(out).valid == pytest.approx(expected.mean())


def test_negative_counts_are_refused(tmp_path):
    recording = made()
    counts = recording.counts.astype(np.int16)
    counts[3, 1] = -1
    with pytest.raises(DataError, match="1 counts are negative"):
        write_recording(replace(recording, counts=counts), tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def splits_of(recording, folder, seed=0, **options):
    return [trial.split for trial in read_trials(write_recording(recording, folder, seed, **options))]


def test_trials_are_split_70_15_15_by_time_in_each_kind(tmp_path):
    recording = with_trials(made([40, 200] * 20), kind=["gabor"] * 20 + ["natural"] * 20)
    shares = defaultdict(Counter)
    for trial in read_trials(write_recording(recording, tmp_path / "out", 0)):
        shares[trial.kind][trial.split] += trial.stop - trial.start
    for kind, bins in shares.items():
        whole = bins.total()
        assert [bins[s] / whole for s in ("train", "validation", "test")] == pytest.approx(
            [0.7, 0.15, 0.15], abs=0.03
        ), kind


@given(st.integers(0, 2**31), st.randoms(use_true_random=False))
@settings(max_examples=8)
def test_the_split_is_a_function_of_seed_and_contents(tmp_path_factory, seed, random):
    order = list(range(14))
    random.shuffle(order)
    one, other = made([20] * 14), made([20] * 14)
    stimulus = np.concatenate([one.stimulus[20 * i : 20 * i + 20] for i in order])
    folder = tmp_path_factory.mktemp("split")
    first = splits_of(one, folder / "one", seed)
    assert splits_of(replace(other, stimulus=stimulus), folder / "other", seed) == [first[i] for i in order]


def test_repeats_stay_together_and_given_splits_stay(tmp_path):
    recording = made([30] * 24)
    stimulus = recording.stimulus.copy()
    for first, again in ((0, 5), (5, 9), (2, 11)):
        stimulus[30 * again : 30 * again + 30] = stimulus[30 * first : 30 * first + 30]
    near = stimulus[30 * 3 : 30 * 3 + 30].astype(int) + np.random.default_rng(0).integers(-3, 4, (30, 6, 6))
    stimulus[30 * 7 : 30 * 7 + 30] = near.clip(0, 255)
    condition = [None] * 24
    condition[13] = condition[17] = "movie"
    recording = with_trials(replace(recording, stimulus=stimulus), condition=condition)
    for seed in range(8):
        found = splits_of(recording, tmp_path / f"{seed}", seed)
        for together in ({0, 5, 9}, {2, 11}, {3, 7}, {13, 17}):
            assert len({found[i] for i in together}) == 1, together
    given_ones = ["test"] * 3 + ["validation"] * 3 + ["train"] * 18
    assert splits_of(with_trials(recording, split=given_ones), tmp_path / "given")[:3] == ["test"] * 3


def test_a_film_shown_in_two_sessions_stands_in_one_split(tmp_path):
    for seed in range(4):
        first = write_recording(made(name="a"), tmp_path / f"a{seed}", seed)
        rest = made([30] * 20, seed=5, name="b")
        stimulus = rest.stimulus.copy()
        stimulus[:360] = made().stimulus[:360]
        second = splits_of(replace(rest, stimulus=stimulus), tmp_path / f"b{seed}", seed, earlier=contents(first))
        assert second[:12] == [trial.split for trial in read_trials(first)]


def test_a_trial_that_repeats_two_splits_is_left_out_and_named(tmp_path):
    recording = made([30] * 10)
    stimulus = recording.stimulus.copy()
    stimulus[:30] = stimulus[30:60] = stimulus[60:90]
    split = ["validation", "test", None, *["train"] * 7]
    out = write_recording(with_trials(replace(recording, stimulus=stimulus), split=split), tmp_path / "out", 0)
    info = read_info(out)
    assert read_trials(out)[2].split is None and [row.id for row in info.left_out] == ["trial-2"]
    assert "leak-across-splits" in {fault.code for fault in info.faults}
    with pytest.raises(DataError, match="trial-2"):
        write_recording(
            with_trials(replace(recording, stimulus=stimulus), split=split), tmp_path / "strict", 0, strict=True
        )


def test_one_long_trial_is_cut_into_blocks_that_are_split(tmp_path):
    recording = made([20 * 300], rate=20.0)
    blocks = in_blocks(recording).trials
    assert len(blocks) == 15 and {trial.stop - trial.start for trial in blocks} == {400}
    assert blocks[0].start == 0 and blocks[-1].stop == 6000
    assert set(splits_of(recording, tmp_path / "out")) == {"train", "validation", "test"}
    short = made([30] * 3)
    assert in_blocks(short).trials == short.trials


def test_films_that_are_unlike_are_not_taken_for_repeats():
    """Drifting gratings and flickering fields: flat on average, and told apart by their frames."""
    phase = np.arange(30)[:, None, None] * 0.7
    x, y = np.meshgrid(np.arange(6), np.arange(6))
    films = [128 + 100 * np.sin(phase + x * np.cos(a) + y * np.sin(a)) for a in np.linspace(0, 3, 8)]
    random = np.random.default_rng(1)
    films += [np.repeat(random.integers(0, 2, (30, 1, 1)) * 255, 36, axis=1).reshape(30, 6, 6) for _ in range(8)]
    recording = replace(made([30] * 16), stimulus=np.concatenate(films).astype(np.uint8))
    assert near_pairs(survey(recording)).shape == (2, 0)


def test_a_repeated_stimulus_is_kept_for_the_test_split_where_it_fits(tmp_path):
    """Repeats tell how much can be explained, and teach little that is new."""
    again = (3, 9, 15)
    session = made([20] * 40)
    frames = session.stimulus.copy()
    for i in again[1:]:
        frames[i * 20 : i * 20 + 20] = frames[60:80]
    session = with_trials(
        replace(session, stimulus=frames), condition=["again" if i in again else None for i in range(40)]
    )
    for seed in range(4):
        splits = [trial.split for trial in read_trials(write_recording(session, tmp_path / str(seed), seed))]
        assert {splits[i] for i in again} == {"test"} and splits.count("test") in (5, 6, 7)
    most = with_trials(session, condition=["again" if i < 20 else None for i in range(40)])
    frames = most.stimulus.copy()
    frames[:400] = np.tile(frames[:20], (20, 1, 1))
    stored = write_recording(replace(most, stimulus=frames), tmp_path / "most", 0)
    assert read_trials(stored)[0].split == "train"  # half of all that was recorded is too much for a test


def test_a_recording_travels_through_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = write_recording(made(behaviour=2), tmp_path / "out", 0)
    before = files(stored)
    send(stored, f"file://{tmp_path}/bucket")
    again = ClipDataset.open(f"file://{tmp_path}/bucket", 8, 4)
    assert before.items() <= files(again.path).items() and again.path != stored
    again.verify()
    (again.path / "dataset.json").unlink()  # as a fetch that was killed leaves it
    ClipDataset.open(f"file://{tmp_path}/bucket", 8, 4).verify()

"""Formats of recordings: what goes in comes back, and what cannot be read is said with the fix."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.made_recordings import film
from visiontune.data.recordings.arrays import session_from
from visiontune.data.recordings.readers import is_recordings, read_session, sessions
from visiontune.errors import DataError, MachineError

BINS, UNITS = 60, 3
ARRAYS = {
    "stimulus": film(1, BINS),
    "counts": np.random.default_rng(0).poisson(1, (BINS, UNITS)).astype(np.uint8),
    "valid": np.random.default_rng(1).random((BINS, UNITS)) < 0.9,
    "eye": np.random.default_rng(2).normal(size=(BINS, 2)).astype(np.float32),
    "behaviour": np.random.default_rng(3).normal(size=(BINS, 2)).astype(np.float32),
    "trials": np.repeat([0, 1, -1, 2], 15),
    "conditions": np.array(["a", "", "a"]),
    "kinds": np.array([1, 0, 1]),
    "splits": np.array(["train", "", "val"]),
}
FACTS = {
    "rate": 50.0,
    "units": ["a", "b", "c"],
    "subject": "Luke",
    "behaviour_names": ["speed", "pupil"],
    "kind_names": ["gabor", "natural"],
}


def folder(path: Path, arrays=ARRAYS, facts=FACTS) -> Path:
    path.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    (path / "meta.json").write_text(json.dumps(facts))
    return path


def json_folder(path: Path) -> Path:
    folder(path, {n: a for n, a in ARRAYS.items() if n not in ("kinds", "splits", "conditions")})
    for name, value in {"kinds": ["natural", "gabor", "natural"], "splits": ["train", "", "val"]}.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    (path / "conditions.json").write_text(json.dumps(["a", "", "a"]))
    return path


def npz(path: Path) -> Path:
    path = path.with_suffix(".npz")
    np.savez(path, **ARRAYS, **{name: np.array(value) for name, value in FACTS.items()})
    return path


def hdf5(path: Path, **options) -> Path:
    h5py = pytest.importorskip("h5py")
    path = path.with_suffix(".h5")
    with h5py.File(path, "w") as file:
        for name, array in ARRAYS.items():
            if array.dtype.kind == "U":
                file[name] = array.tolist()
            else:
                file.create_dataset(name, data=array, **options)
        for name, value in FACTS.items():
            file.attrs[name] = value
    return path


def compressed(path: Path) -> Path:
    return hdf5(path, compression="gzip", chunks=True)


@pytest.mark.parametrize("write", [folder, json_folder, npz, hdf5, compressed])
def test_what_was_written_comes_back(write, tmp_path):
    session = read_session(write(tmp_path / "Luke_2026-01-02"))
    found = session.recording
    assert not session.faults
    assert (found.name, found.rate, found.subject) == ("Luke_2026-01-02", 50.0, "Luke")
    assert (found.units, found.behaviour_names) == (("a", "b", "c"), ("speed", "pupil"))
    for name in ("stimulus", "counts", "valid", "eye", "behaviour"):
        np.testing.assert_array_equal(getattr(found, name), ARRAYS[name])
    assert found.stimulus.dtype == np.uint8 and found.valid.dtype == bool
    trials = [(t.id, t.start, t.stop, t.kind, t.condition, t.split) for t in found.trials]
    assert trials == [
        ("trial-0", 0, 15, "natural", "a", "train"),
        ("trial-1", 15, 30, "gabor", None, None),
        ("trial-2", 45, 60, "natural", "a", "validation"),
    ]


@pytest.mark.parametrize("write", [folder, hdf5])
def test_large_arrays_are_mapped_and_not_read(write, tmp_path):
    stimulus = read_session(write(tmp_path / "s")).recording.stimulus
    base = stimulus
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert type(base).__name__ == "mmap"


def test_little_is_enough_and_one_trial_is_assumed(tmp_path):
    few = {name: ARRAYS[name] for name in ("stimulus", "counts")}
    found = read_session(folder(tmp_path / "s", few, {"rate": 120})).recording
    assert [(t.id, t.start, t.stop) for t in found.trials] == [("trial-0", 0, BINS)]
    assert found.valid.shape == (BINS, 1) and found.valid.all() and found.units == ("unit-0", "unit-1", "unit-2")


def changed(**arrays):
    values = {**ARRAYS, **FACTS, **arrays}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("values", "found", "fix"),
    [
        (changed(counts=None, robs=ARRAYS["counts"]), "no counts; found: behaviour", "rename robs to counts"),
        (changed(stimulus=None, stimulis=ARRAYS["stimulus"]), "there is no stimulus", "rename stimulis to stimulus"),
        (changed(rate=None), "there is no rate", "number of bins a second"),
        (changed(rate=-1), "the rate is -1", "above 0"),
        (changed(stimulus=ARRAYS["stimulus"][:, None]), r"stimulus is of the shape \(60, 1, 6, 6\)", "height, width"),
        (changed(stimulus=ARRAYS["stimulus"][:, :1, :1]), "frames have 1 x 1 pixels", "at least 2 x 2"),
        (changed(counts=ARRAYS["counts"].astype(complex)), "counts is of complex128", "holds numbers"),
        (changed(counts=ARRAYS["counts"].T), "stimulus 60, counts 3", "cut or align"),
        (changed(behaviour=ARRAYS["behaviour"][:59]), "stimulus 60, counts 60, behaviour 59", "cut or align"),
        (changed(eye=ARRAYS["stimulus"][:, :, 0]), "eye is of the shape", "bins, 2"),
        (changed(valid=ARRAYS["valid"][:, :2]), "valid is of the shape", "units"),
        (changed(trials=ARRAYS["trials"] + 0.5), "not whole", "may not be averaged"),
        (changed(trials=np.where(ARRAYS["trials"] == 1, np.inf, ARRAYS["trials"])), "not whole", "may not be averaged"),
        (changed(stimulus_times=np.array(["a"] * BINS)), r"stimulus_times is of the shape .*<U1", "one second a bin"),
        (changed(kinds=["a", "b"]), "kinds has 2 entries for 3 trials", "one a trial"),
        (changed(splits=["train", "holdout", "val"]), "no split 'holdout'", "train, val"),
        (changed(conditions=np.arange(BINS)), "trial 0 has several conditions", "bin by bin"),
        (changed(conditions=np.array([[1], [-1], [1]])), r"conditions is of the shape \(3, 1\)", "or (trials,)"),
        (changed(conditions=3), r"conditions is of the shape \(\)", "or (trials,)"),
        (changed(kinds=np.array([[0], [1], [0]])), r"kinds is of the shape \(3, 1\)", "is (trials,)"),
        (changed(stimulus_times=np.zeros((BINS, 1))), r"stimulus_times is of the shape \(60, 1\)", "one second a bin"),
        (changed(conditions=[1, 2]), "conditions has 2 entries for 60 bins and 3 trials", "one a bin"),
        (changed(behaviour_names=["speed"]), "2 channels, and 1 are named", "name each"),
        (changed(behaviour_names=["pupil", "pupil"]), "behaviour are called pupil", "name each once"),
        (changed(units=["a", "a", "b"]), "Two units have one name", "its own"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_fix(values, found, fix):
    with pytest.raises(DataError, match=found) as caught:
        session_from(values, "s", "place")
    assert fix in (caught.value.fix or "")


def test_numbers_of_trials_and_conditions_may_have_gaps_and_repeat():
    trials = np.repeat([4, np.nan, 7, 4], 15)
    conditions = np.repeat([3.0, np.nan, -1, 3], 15)
    made_of = {name: ARRAYS[name] for name in ("stimulus", "counts")} | {"rate": 1, "trials": trials}
    found = session_from(made_of | {"conditions": conditions}, "s", "").recording
    assert [(t.id, t.start, t.condition) for t in found.trials] == [
        ("trial-4", 0, "3"), ("trial-7", 30, None), ("trial-4+1", 45, "3")
    ]  # fmt: skip


def test_numbers_of_conditions_written_as_floats_keep_all_digits():
    """NaN among the numbers, and MATLAB, make floats of them."""
    numbers = np.array([12345671.0, 12345672.0, np.nan])
    assert [t.condition for t in session_from(changed(conditions=numbers), "s", "").recording.trials] == [
        "12345671", "12345672", None
    ]  # fmt: skip


def test_a_trial_that_comes_again_after_another_is_said_to_begin_anew():
    def said(trials):
        session = session_from(changed(trials=np.array(trials), conditions=None, kinds=None, splits=None), "s", "")
        return [(fault.code, fault.severity, fault.where) for fault in session.faults], session.recording.trials

    again, trials = said([3] * 20 + [-1] * 5 + [3] * 5 + [8] * 20 + [3] * 10)
    assert again == [("trial-again", "warning", "trial-3")]
    assert [(trial.id, trial.offset) for trial in trials] == [
        ("trial-3", 0), ("trial-3+1", 25), ("trial-8", 0), ("trial-3+2", 0)
    ]  # fmt: skip
    assert said([3] * 20 + [-1] * 5 + [3] * 5 + [8] * 30)[0] == []


def test_a_folder_of_sessions_is_read_one_by_one(tmp_path):
    folder(tmp_path / "sessions/b")
    npz(tmp_path / "sessions/a")
    (tmp_path / "sessions/notes.txt").write_text("nothing")
    found = sessions(tmp_path / "sessions")
    assert list(found) == ["a", "b"] and is_recordings(tmp_path / "sessions")
    assert sessions(tmp_path / "sessions/b") == {"b": tmp_path / "sessions/b"}
    npz(tmp_path / "sessions/b")
    with pytest.raises(DataError, match="two sessions are called b"):
        sessions(tmp_path / "sessions")


def test_other_folders_are_no_recordings(classes, tmp_path):
    assert not is_recordings(classes({"cat": 2}))
    assert not is_recordings(tmp_path / "nothing")
    with pytest.raises(DataError, match="no recording here") as caught:
        sessions(tmp_path)
    assert "stimulus.npy" in caught.value.fix
    with pytest.raises(DataError, match="no recording"):
        read_session(tmp_path)


def test_files_of_other_data_in_a_folder_are_no_recordings(classes, tmp_path):
    h5py = pytest.importorskip("h5py")
    images = classes({"cat": 2})
    np.savez(images / "embeddings.npz", features=np.zeros((3, 4)))
    with h5py.File(images / "features.h5", "w") as file:
        file["features"] = np.zeros((3, 4))
    (images / "empty.npz").touch()
    (images / "damaged.hdf5").write_bytes(b"nothing")
    np.save(images / "plain", np.zeros(3))
    (images / "plain.npy").rename(images / "plain.npz")
    assert not is_recordings(images)
    assert is_recordings(images / "embeddings.npz")  # given by name, it is meant


def test_a_damaged_session_among_others_is_not_passed_over(tmp_path):
    (tmp_path / "b.npz").write_bytes(b"nothing")
    assert list(sessions(tmp_path)) == ["b"]
    npz(tmp_path / "a")
    (tmp_path / "notes.txt").write_text("nothing")
    assert list(sessions(tmp_path)) == ["a", "b"]


def test_images_are_passed_over_by_their_names(tmp_path, monkeypatch):
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()
    asked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(str(path)) or stat(path, **options))
    assert not is_recordings(tmp_path)
    assert asked and not [path for path in asked if ".png" in path]


def test_what_has_another_name_is_not_read(tmp_path):
    """Arrays of objects and of other forms, which this package cannot read, may lie beside those of a session."""
    h5py = pytest.importorskip("h5py")
    place = folder(tmp_path / "a")
    np.save(place / "notes.npy", np.array([object()]), allow_pickle=True)
    (place / "more.json").write_text("{")
    np.savez(tmp_path / "b.npz", **ARRAYS, rate=50.0, notes=np.array([object()]))
    with h5py.File(hdf5(tmp_path / "c"), "a") as file:
        file.create_dataset("notes", (2,), h5py.vlen_dtype(int))
    for path in (place, tmp_path / "b.npz", tmp_path / "c.h5"):
        assert read_session(path).recording.rate == 50


def test_what_was_found_beside_is_told_where_an_array_is_missing(tmp_path):
    arrays = {"stimulus": ARRAYS["stimulus"], "robs": ARRAYS["counts"]}
    np.savez(tmp_path / "a.npz", **arrays, rate=50.0)
    folder(tmp_path / "b", arrays)
    for path in (tmp_path / "a.npz", tmp_path / "b"):
        with pytest.raises(DataError, match=r"found: .*robs") as caught:
            read_session(path)
        assert caught.value.fix == "rename robs to counts"


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        read_session(tmp_path / "a.npz")
    place = folder(tmp_path / "s")
    (place / "meta.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_session(place)
    np.save(place / "counts.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(DataError, match=r"array cannot be read"):
        read_session(place)
    (place / "counts.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"array cannot be read"):
        read_session(place)
    films = sensorium(tmp_path / "sensorium")
    (films / "data/responses/2.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"array cannot be read"):
        read_session(films)


def test_compressed_files_with_damaged_bytes_are_named(tmp_path):
    h5py = pytest.importorskip("h5py")
    np.savez_compressed(tmp_path / "a.npz", **{**ARRAYS, **FACTS})
    places = {tmp_path / "a.npz": (tmp_path / "a.npz").stat().st_size // 2}
    path = compressed(tmp_path / "s")
    with h5py.File(path, "r") as file:
        places[path] = file["stimulus"].id.get_chunk_info(0).byte_offset + 20
    for path, place in places.items():
        data = bytearray(path.read_bytes())
        data[place : place + 200] = bytes(255 - one for one in data[place : place + 200])
        path.write_bytes(data)
        with pytest.raises(DataError, match="cannot be read"):
            read_session(path)


def test_no_condition_and_no_split_may_be_null_and_numbers_below_zero_stand_beside_names():
    values = changed(conditions=["a", None, -1], splits=["train", None, "val"], kinds=np.array([1.0, 0.0, 1.0]))
    found = session_from(values, "s", "place").recording.trials
    assert [(t.condition, t.split, t.kind) for t in found] == [
        ("a", "train", "natural"), (None, None, "gabor"), (None, "validation", "natural")
    ]  # fmt: skip


def test_without_h5py_the_package_to_install_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(MachineError, match="h5py") as caught:
        read_session(tmp_path / "a.h5")
    assert "visiontune[hdf5]" in caught.value.fix


def test_a_file_that_is_no_hdf5_is_said(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "a.h5").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no HDF5 file"):
        read_session(tmp_path / "a.h5")


# SENSORIUM's layout.

TIERS = ["train", "oracle", "live_test_main", "none", "final_test_bonus", "train"]


def sensorium(path: Path, *, whole=True, padded=4) -> Path:
    random = np.random.default_rng(5)
    for name in ("videos", "responses", "behavior", "pupil_center"):
        (path / "data" / name).mkdir(parents=True)
    for trial in range(len(TIERS)):
        bins = 20 + trial
        arrays = {
            "videos": film(trial, bins).transpose(1, 2, 0).astype(np.float32) + (0 if whole else 0.25),
            "responses": random.gamma(1, 1, (UNITS, bins)).astype(np.float32),
            "behavior": random.normal(size=(2, bins)),
            "pupil_center": random.normal(size=(2, bins)),
        }
        for name, array in arrays.items():
            end = np.full((*array.shape[:-1], padded), np.nan)
            if TIERS[trial].startswith("final") and name == "responses":
                array = np.zeros_like(array)
            np.save(path / "data" / name / f"{trial}.npy", np.concatenate([array, end], axis=-1))
    for place, values in {"meta/trials/tiers.npy": TIERS, "meta/neurons/unit_ids.npy": [11, 12, 15]}.items():
        (path / place).parent.mkdir(parents=True, exist_ok=True)
        np.save(path / place, np.array(values))
    return path


def test_a_sensorium_folder_is_cut_turned_and_split_by_tier(tmp_path):
    place = sensorium(tmp_path / "dynamic1-2-3")
    session = read_session(place)
    found = session.recording
    assert [(t.id, t.stop - t.start, t.split) for t in found.trials] == [
        ("trial-0", 20, "train"), ("trial-1", 21, "validation"), ("trial-2", 22, "test"), ("trial-5", 25, "train")
    ]  # fmt: skip
    assert found.rate == 30 and found.units == ("11", "12", "15") and found.behaviour_names == ("pupil", "running")
    assert found.stimulus.dtype == np.uint8 and found.stimulus.shape == (88, 6, 6)
    np.testing.assert_array_equal(found.stimulus[20:41], film(1, 21))
    for name, array in {"responses": found.counts, "behavior": found.behaviour, "pupil_center": found.eye}.items():
        np.testing.assert_allclose(array[20:41], np.load(place / f"data/{name}/1.npy")[:, :21].T, rtol=1e-6)
    said = {fault.code: fault.found for fault in session.faults}
    assert set(said) == {"padding-cut", "no-responses", "other-tiers"}
    assert "16 bins" in said["padding-cut"] and "none 1" in said["other-tiers"]
    assert "final_test_bonus 1" in said["no-responses"]


def test_sensorium_videos_that_are_not_whole_stay_float(tmp_path):
    found = read_session(sensorium(tmp_path / "s", whole=False, padded=0)).recording
    assert found.stimulus.dtype == np.float32
    np.testing.assert_array_equal(found.stimulus[:20], film(0, 20) + 0.25)


@pytest.mark.parametrize("name", ["tiers", "condition_hash"])
def test_a_sensorium_folder_says_something_of_each_video(tmp_path, name):
    """Trials that have no tier would vanish without a word."""
    place = sensorium(tmp_path / "s")
    np.save(place / f"meta/trials/{name}.npy", np.array(TIERS[:4]))
    with pytest.raises(DataError, match="4 entries for 6 videos") as caught:
        read_session(place)
    assert caught.value.where.endswith(f"{name}.npy")


def test_a_sensorium_folder_that_lacks_a_file_is_refused(tmp_path):
    place = sensorium(tmp_path / "s")
    (place / "data/responses/2.npy").unlink()
    with pytest.raises(DataError, match="missing") as caught:
        read_session(place)
    assert caught.value.where.endswith("data/responses/2.npy")

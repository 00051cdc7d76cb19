"""Recordings through `inspect` and `prepare`: what users type and what they read."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import visiontune
from tests.made_recordings import made, with_trials
from visiontune.api.response_verbs import recordings_of
from visiontune.cli import main
from visiontune.data.dataset import Dataset
from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.recordings.inspect import RecordingsInspection, inspect_recordings
from visiontune.data.recordings.prepare import holds_recordings, prepare_recordings
from visiontune.data.recordings.store import contents
from visiontune.errors import DataError
from visiontune.machine import hardware
from visiontune.training.plan_responses import derive_responses


def save(recording, folder):
    """A recording as a folder of arrays."""
    folder.mkdir(parents=True)
    np.save(folder / "stimulus.npy", recording.stimulus)
    np.save(folder / "counts.npy", recording.counts)
    trials = np.full(len(recording.stimulus), -1)
    for number, trial in enumerate(recording.trials):
        trials[trial.start : trial.stop] = number
    np.save(folder / "trials.npy", trials)
    for name in ("kind", "split"):
        values = [getattr(trial, name) or "" for trial in recording.trials]
        (folder / f"{name}s.json").write_text(json.dumps(values))
    (folder / "meta.json").write_text(json.dumps({"rate": recording.rate, "subject": "Luke"}))
    return folder


@pytest.fixture
def two(tmp_path):
    """Two sessions, of which the second has a silent unit and shows a film of the first."""
    first, second = made([30] * 20, units=3), made([30] * 20, units=5, seed=8)
    counts, stimulus = second.counts.copy(), second.stimulus.copy()
    counts[:, 4] = 0
    stimulus[:60] = first.stimulus[30:90]
    save(with_trials(first, kind=["gabor"] * 10 + ["natural"] * 10), tmp_path / "sessions/a")
    save(replace(second, counts=counts, stimulus=stimulus), tmp_path / "sessions/b")
    return tmp_path / "sessions"


def shown(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_inspect_shows_each_session_and_what_is_wrong(two, capsys):
    found = visiontune.inspect(two)
    assert isinstance(found, RecordingsInspection)
    assert [(s.name, s.units, s.seconds, s.trials, s.repeats) for s in found.sessions] == [
        ("a", 3, 30.0, 20, 0), ("b", 5, 30.0, 20, 0)
    ]  # fmt: skip
    assert [(fault.code, fault.where) for fault in found.faults] == [("silent-unit", "b: unit-4")]
    text = shown(capsys, "inspect", two)
    for said in ("6x6 uint8", "gabor 10, natural 10", "2 sessions, 8 units, 60 seconds", "b: unit-4", "fix:"):
        assert said in text
    value = json.loads(shown(capsys, "inspect", two, "--json"))
    assert value["units"] == 8 and value["trains"][0]["target"] == "responses"
    assert sum(value["splits"].values()) == pytest.approx(60)


def test_sessions_that_cannot_be_learned_together_are_said(two, tmp_path):
    save(made([30] * 20, units=2, seed=3, rate=40.0), two / "c")
    (fault,) = [fault for fault in inspect_recordings(two).faults if fault.code == "unlike-sessions"]
    assert fault.where == "c" and "a has bins a second 20.0, and c has 40.0" in fault.found
    prepare_recordings(two, tmp_path / "data")
    assert fault in inspect_recordings(tmp_path / "data").faults


def test_rates_that_differ_as_measured_ones_do_are_one(tmp_path):
    for name, rate in {"a": 30.000000000001705, "b": 30.000000000027285, "c": 30.002}.items():
        save(made([30] * 20, seed=ord(name), rate=rate), tmp_path / "sessions" / name)
    assert not [fault for fault in inspect_recordings(tmp_path / "sessions").faults if fault.code == "unlike-sessions"]
    datasets = [Dataset.open(path) for path in prepare_recordings(tmp_path / "sessions", tmp_path / "data")]
    recipe = derive_responses(datasets, [None] * 3, hardware("cpu"))
    assert recipe.responses is not None and recipe.responses.rate == pytest.approx(30)


def test_sessions_in_folders_below_are_named(two, tmp_path, capsys):
    save(made([30] * 20, seed=4), two / "later" / "d")
    (fault,) = [fault for fault in inspect_recordings(two).faults if fault.code == "sessions-below"]
    assert fault.where == "later" and fault.severity == "warning"
    prepare_recordings(two, tmp_path / "data")
    assert "not read: later" in capsys.readouterr().err


def test_sessions_beside_prepared_ones_are_named(two, tmp_path, capsys):
    """The one that was prepared from what lies beside it is not missing, nor is one that is named too."""
    prepare_recordings(two / "a", tmp_path / "data")
    for name in "ab":
        np.savez(tmp_path / f"data/{name}.npz", stimulus=np.zeros((9, 2, 2)), counts=np.zeros((9, 1)))
    (fault,) = [fault for fault in inspect_recordings(tmp_path / "data").faults if fault.code == "not-prepared"]
    assert fault.where == "b" and fault.found == "1 session beside the prepared ones is not read"
    found = recordings_of([tmp_path / "data"], tmp_path / "run")
    assert found is not None and [one.path.name for one in found] == ["a"]
    assert "beside the prepared ones" in (said := capsys.readouterr().err) and said.rstrip().endswith("too: b")
    recordings_of([tmp_path / "data", two / "b"], tmp_path / "run")
    assert "beside the prepared ones" not in capsys.readouterr().err


def test_a_split_without_a_trial_is_said(tmp_path):
    save(made([30]), tmp_path / "one")
    (fault,) = [fault for fault in inspect_recordings(tmp_path / "one").faults if fault.code == "empty-split"]
    assert fault.found == (
        "no trial is in the validation and the test split: there is nothing to choose or to score by"
    )
    (path,) = prepare_recordings(tmp_path / "one", tmp_path / "data")
    assert fault.found in [one.found for one in ClipDataset.open(path).info.faults]


def test_prepare_makes_a_dataset_of_each_session_that_inspect_foresaw(two, tmp_path, capsys):
    foreseen = inspect_recordings(two)
    text = shown(capsys, "prepare", two, "--out", tmp_path / "data")
    assert "a: 3 units" in text and str(tmp_path / "data/b") in text
    assert inspect_recordings(tmp_path / "data") == foreseen
    assert inspect_recordings(tmp_path / "data/a").sessions == foreseen.sessions[:1]
    assert holds_recordings(tmp_path / "data") and not holds_recordings(tmp_path)
    assert len(ClipDataset.open(tmp_path / "data/a", 8, 4)) > 0


def test_a_film_of_two_sessions_has_one_split_however_they_are_prepared(two, tmp_path):
    for seed in range(5):
        a, b = prepare_recordings(two, tmp_path / f"{seed}", seed=seed)
        splits = [[trial.split for trial in ClipDataset.open(path).trials] for path in (a, b)]
        assert splits[0][1:3] == splits[1][:2]
    prepare_recordings(two / "b", tmp_path / "late")
    a, b = prepare_recordings(two, tmp_path / "late")
    splits = [[trial.split for trial in ClipDataset.open(path).trials] for path in (a, b)]
    assert splits[0][1:3] == splits[1][:2]


@pytest.fixture
def alike(tmp_path):
    """Two sessions of 20 and of 60 films, of which they have 20 in common."""
    first, second = made([30] * 20, seed=1), made([30] * 60, seed=2)
    stimulus = second.stimulus.copy()
    stimulus[: len(first.stimulus)] = first.stimulus
    return save(first, tmp_path / "b"), save(replace(second, stimulus=stimulus), tmp_path / "a")


def splits_in_common(first, second):
    of = contents(second.path)
    return [(split, of[content]) for content, split in contents(first.path).items() if content in of]


def test_sessions_that_are_trained_on_together_are_split_together(alike, tmp_path, capsys):
    found = recordings_of(alike, tmp_path / "run")
    assert found is not None and [one.path.name for one in found] == ["b", "a"], "as weights are given"
    pairs = splits_in_common(*found)
    assert len(pairs) == 20 and all(one == other for one, other in pairs)
    shutil.rmtree(found[0].path)  # as of a run that was killed before it, and is started again
    again = recordings_of(alike, tmp_path / "run")
    assert again is not None and [one.path for one in again] == [one.path for one in found]
    assert splits_in_common(*again) == pairs
    assert "leak" not in capsys.readouterr().err


def test_a_session_is_split_as_a_prepared_one_that_it_is_trained_with(alike, tmp_path, capsys):
    (path,) = prepare_recordings(alike[1], tmp_path / "data", seed=3)
    found = recordings_of([alike[0], path], tmp_path / "run")
    assert found is not None and [one.path.name for one in found] == ["b", "a"] and found[1].path == path
    assert all(one == other for one, other in splits_in_common(*found))
    assert "stimuli of sessions" not in capsys.readouterr().err


def test_sessions_that_were_split_apart_are_said_where_they_are_trained_on_together(alike, tmp_path, capsys):
    paths = [prepare_recordings(path, tmp_path / f"data-{path.name}")[0] for path in alike]
    capsys.readouterr()
    found = recordings_of(paths, tmp_path / "run")
    assert found is not None and any(one != other for one, other in splits_in_common(*found))
    said = capsys.readouterr().err
    assert "stimuli of sessions in several of the given splits" in said and "prepare these sessions together" in said
    assert "a (train) = b (" in said and not (tmp_path / "run").exists()


def test_films_that_are_given_other_splits_in_another_session_are_a_leak(two, tmp_path):
    for name, split in {"a": "train", "b": "test"}.items():
        splits = [split] * 3 + ["train"] * 15 + ["validation", "test"]
        (two / name / "splits.json").write_text(json.dumps(splits))
    (fault,) = [fault for fault in inspect_recordings(two).faults if fault.code == "leak-across-splits"]
    assert fault.where == "a (train) = b (test)"


def test_the_same_again_changes_nothing(two, tmp_path):
    paths = prepare_recordings(two, tmp_path / "data")
    times = [path.stat().st_mtime_ns for folder in paths for path in sorted(folder.iterdir())]
    assert prepare_recordings([two / "a", two / "b"], tmp_path / "data") == paths
    assert [path.stat().st_mtime_ns for folder in paths for path in sorted(folder.iterdir())] == times


def test_a_rate_is_converted_and_said(two, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["prepare", str(two / "a"), "--out", str(tmp_path / "data"), "--rate", "10"])
    assert "a: counts: summed" in capsys.readouterr().err
    found = ClipDataset.open(tmp_path / "data/a").recording
    assert found.rate == 10 and sum(found.bins.values()) == 300
    with pytest.raises(DataError, match="only whole bins"):
        visiontune.prepare_recordings(two, tmp_path / "more", rate=7)


def test_a_session_of_which_a_rate_leaves_no_trial_is_said_so(tmp_path):
    session = save(made([3] * 8), tmp_path / "short")
    with pytest.raises(DataError, match=r"^the recording has no trial\n"):
        prepare_recordings(session, tmp_path / "data", rate=5)


def test_recordings_are_not_prepared_at_a_url(two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="not prepared at a URL") as caught:
        visiontune.prepare_recordings(two, "s3://me:secret@bucket/data")
    assert caught.value.where == "s3://bucket/data" and "copy" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["sessions"]


def test_a_session_that_cannot_be_read_is_a_fault_and_stops_prepare(two, tmp_path):
    (two / "a/meta.json").write_text("{}")
    found = inspect_recordings(two)
    assert [session.name for session in found.sessions] == ["b"]
    assert (found.faults[0].code, found.faults[0].severity) == ("unreadable-recording", "error")
    assert found.faults[0].where.startswith("a: ") and "rate" in found.faults[0].found
    with pytest.raises(DataError, match="no rate"):
        prepare_recordings(two, tmp_path / "data")


def test_options_of_images_are_refused_and_other_data_are_not_taken_for_recordings(two, classes, tmp_path, capsys):
    for option in (["--limit", "3"], ["--engine", "ray"], ["--public"]):
        with pytest.raises(SystemExit) as stopped:
            main(["prepare", str(two), "--out", str(tmp_path / "data"), *option])
        assert stopped.value.code == 1 and option[0] in capsys.readouterr().err
    with pytest.raises(DataError, match="these are recordings"):
        visiontune.inspect(two, limit=3)
    with pytest.raises(DataError, match="a dataset each"):
        visiontune.prepare(two, tmp_path / "data")
    images = classes({"cat": 4, "dog": 4})
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", str(images), "--out", str(tmp_path / "images"), "--rate", "3"])
    assert stopped.value.code == 1
    with pytest.raises(DataError, match="inside the session"):
        prepare_recordings(two / "a", two / "a/data")

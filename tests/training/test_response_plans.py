"""What is chosen for runs on recordings: how long they learn, what modulates them, and what is refused."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visiontune
from tests.made_recordings import made, with_trials
from tests.response_runs import QUICK, train
from visiontune.cli import main
from visiontune.data.dataset import Dataset
from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.recordings.store import write_recording
from visiontune.errors import DataError, PausedError, RecipeError, RequirementError
from visiontune.exports.verify_run import verify_run
from visiontune.machine import hardware
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.run_group import open_run
from visiontune.training import plan_responses
from visiontune.training.callbacks import Callback
from visiontune.training.model import open_datasets
from visiontune.training.plan_responses import derive_responses


def test_readouts_on_a_frozen_core_see_fewer_clips_more_often(
    prepared: Path,
    core_run: Run,
) -> None:
    session = Dataset.open(next(path.parent for path in sorted(prepared.rglob("dataset.json"))))
    recipe = derive_responses([session], [None], hardware("cpu"), start=core_run)
    choices = recipe.responses
    assert choices is not None
    clips = ClipDataset.open(session.path, choices.clip, choices.burn_in).count("train")
    assert recipe.why["schedule.steps"].startswith("24 epochs"), "few clips are seen often"
    assert recipe.schedule.steps == -(-24 * clips // recipe.batch.samples)
    limited = derive_responses([session], [None], hardware("cpu"), start=core_run, epochs=2)
    assert limited.schedule.steps == -(-2 * clips // limited.batch.samples)


def test_the_places_of_readouts_are_looked_for_in_the_clips_of_the_run(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[ClipDataset] = []
    monkeypatch.setattr(plan_responses, "place_readouts", lambda network, cut, *_: looked_at.extend(cut) or 0)
    choices = train(prepared, tmp_path / "run", **{"schedule.steps": 1}).recipe.responses
    assert {(one.clip, one.burn_in) for one in looked_at} == {(choices.clip, choices.burn_in)}


class PauseAtOnce(Callback):
    def on_step(self, run: Run, entry: Mapping[str, Any]) -> None:
        run.ask_to_pause()


def test_hours_become_a_recorded_number_of_steps(prepared: Path, tmp_path: Path) -> None:
    follow = ("schedule.steps", "evaluation.every", "checkpoints.every")
    few = {name: value for name, value in QUICK.items() if name not in follow}
    with pytest.raises(PausedError):
        visiontune.train(prepared, out=tmp_path / "run", hours=0.5, overrides=few, callbacks=[PauseAtOnce()])
    opened = open_run(tmp_path / "run")
    assert isinstance(opened, Run)
    recipe = opened.recipe
    assert recipe.schedule.hours is None and "hours; a step takes" in recipe.why["schedule.steps"]
    assert recipe.schedule.steps > QUICK["schedule.steps"]
    assert recipe.evaluation.every == -(-recipe.schedule.steps // 10)
    with pytest.raises(RecipeError, match="give more time"):
        visiontune.train(prepared, out=tmp_path / "short", hours=1e-7, overrides=few)


def recorded(folder: Path, name: str, behaviour: tuple[str, ...], rate: float = 20.0) -> Dataset:
    """A prepared session that recorded these channels, each with values of its own."""
    channels = np.stack([np.random.default_rng([5, ord(one[0])]).normal(size=360) for one in behaviour], 1)
    made_ = replace(made(name=name, rate=rate), behaviour=channels.astype(np.float32), behaviour_names=behaviour)
    return Dataset.open(write_recording(made_, folder / name))


def derived(datasets: list[Dataset], **given: Any) -> Recipe:
    return derive_responses(datasets, [None] * len(datasets), hardware("cpu"), given=given)


def test_behaviour_is_found_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = recorded(tmp_path, "one", ("p", "r")), recorded(tmp_path, "other", ("r", "p"))
    recipe = derived([one, other])
    assert recipe.responses is not None
    assert recipe.responses.modulation == "film" and recipe.responses.behaviour == ("p", "r")
    assert "not used" not in capsys.readouterr().err
    clips = [open_datasets(recipe)[d].sample("train", 0).seen.behaviour for d in (0, 1)]  # pyright: ignore
    np.testing.assert_allclose(*clips, atol=1e-5)  # the same channels, one behind the other


def test_behaviour_that_not_all_sessions_recorded_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions_ = [recorded(tmp_path, "one", ("p", "r")), recorded(tmp_path, "other", ("q", "p"))]
    recipe = derived(sessions_)
    assert recipe.responses is not None and recipe.responses.behaviour == ("p",)
    assert "behaviour that is not used (not all sessions recorded it): q, r" in capsys.readouterr().err
    alone = derived(sessions_[:1], behaviour=["r"])
    assert alone.responses is not None and alone.responses.behaviour == ("r",)
    assert "behaviour that is not used: p" in capsys.readouterr().err
    without = derived(sessions_, modulation="none")
    assert without.responses is not None and without.responses.behaviour == ()
    with pytest.raises(RecipeError, match="other recorded q, p, and the core is modulated by r"):
        derived(sessions_, behaviour=["r"])
    apart = [recorded(tmp_path, "third", ("x",)), sessions_[0]]
    with pytest.raises(RecipeError, match=r"modulated \(film\) by no channel"):
        derived(apart, modulation="film")


def test_a_core_is_not_given_bins_that_would_have_to_be_divided(tmp_path: Path, core_run: Run) -> None:
    slow = recorded(tmp_path, "slow", ("running", "pupil"), rate=30.0)
    with pytest.raises(RecipeError, match="30 bins a second, and the core sees 60") as refused:
        derive_responses([slow], [None], hardware("cpu"), start=core_run)
    assert "joined, not divided" in str(refused.value.fix)


def test_a_session_without_a_training_trial_is_refused_as_that(tmp_path: Path) -> None:
    held_out = with_trials(made(name="held-out"), split=["test"] * 12)
    path = write_recording(held_out, tmp_path / "held-out")
    with pytest.raises(DataError, match="No trial is in the train split"):
        derived([Dataset.open(path)])


def test_presets_and_fields_of_adapters_on_recordings(prepared: Path, tmp_path: Path) -> None:
    """A preset leaves out what a core cannot do; asked for by hand, the same is refused, before anything is written."""
    few = {**QUICK, "schedule.steps": 1, "evaluation.every": 1}
    run: Any = visiontune.train(prepared, out=tmp_path / "low", preset="low-memory", overrides=few)
    assert run.status == "finished" and run.recipe.batch.tokens == 200 and not run.recipe.machine.recompute
    for name, value, said in (
        ("machine.recompute", True, "machine.recompute is of text and objects"),
        ("lora.rank", 3, "lora.rank is set, and no part has adapters"),
        ("data.curriculum", {"score": "foo", "stages": [{"until": 0.5, "weights": [1, 2]}]}, "contrast"),
    ):
        with pytest.raises(RecipeError, match=said):
            visiontune.train(prepared, out=tmp_path / "refused", overrides={**few, name: value})
        assert not (tmp_path / "refused/recipe.yaml").exists()


def test_a_run_on_recordings_is_verified_by_its_rates(core_run: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(core_run.path, copy.path)
    checks = {check.name: check for check in verify_run(copy)}
    assert checks["answers"].status == "passed" and "bins again, the same" in checks["answers"].found
    path = copy.path / "evaluations/validation/session-0.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["rates"] = arrays["rates"] + 0.1
    np.savez(path, **arrays)
    assert {check.name: check.status for check in verify_run(copy)}["answers"] == "failed"
    path.unlink()
    assert {check.name: check.status for check in verify_run(copy)}["answers"] == "failed"


def test_evaluate_says_why_a_metric_has_no_value(
    core_run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(core_run.path, copy)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(copy), "--split", "validation"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and "validation bits_per_spike: " in out
    assert "validation feve: no stimulus has bins that are valid in two trials" in out
    with pytest.raises(RequirementError, match=r"feve>=0 \(there is none: no stimulus has"):
        visiontune.evaluate(copy, split="validation", require="feve>=0")


def test_a_movie_gets_the_rates_that_an_evaluation_gives_its_trial(prepared: Path, tmp_path: Path) -> None:
    """A recurrent core remembers from where a clip begins: both cut a trial in the same places."""
    few = {**QUICK, "schedule.steps": 1, "evaluation.every": 1, "responses.modulation": "none"}
    run: Any = visiontune.train(prepared, out=tmp_path / "run", overrides=few)
    visiontune.evaluate(run.path, split="test")
    dataset = open_datasets(run.recipe)[0]
    assert isinstance(dataset, ClipDataset) and run.recipe.responses.recurrence == "convgru"
    lengths = {i: t.stop - t.start for i, t in enumerate(dataset.trials) if t.split == "test"}
    number = max(lengths, key=lambda i: lengths[i])
    assert (lengths[number] - run.recipe.responses.burn_in) % run.recipe.responses.clip, "the last clip is moved back"
    trial = dataset.trials[number]
    np.save(tmp_path / "movie.npy", np.load(dataset.path / "stimulus.npy")[trial.start : trial.stop])
    (written,) = visiontune.predict_movies(run.path, [tmp_path / "movie.npy"], session="session-0")
    with np.load(written) as movie, np.load(run.path / "evaluations/test/session-0.npz") as file:
        own = file["trials"] == number
        assert own.any()
        np.testing.assert_allclose(movie["rates"][file["places"][own]], file["rates"][own], rtol=1e-4, atol=1e-6)


def test_validation_without_a_spike_is_not_called_no_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = with_trials(made(name="quiet"), split=["train"] * 8 + ["validation"] * 2 + ["test"] * 2)
    counts = recording.counts.copy()
    counts[240:] = 0
    path = write_recording(replace(recording, counts=counts), tmp_path / "quiet")
    few = {**QUICK, "schedule.steps": 1, "evaluation.every": 1, "responses.clip": 12}
    visiontune.train(path, out=tmp_path / "run", overrides=few)
    assert "step 1: bits_per_spike: nothing to score" in capsys.readouterr().err


def test_a_choice_that_was_given_has_no_derived_reason(prepared: Path) -> None:
    session = Dataset.open(next(path.parent for path in sorted(prepared.rglob("dataset.json"))))
    given = derived([session], clip=12)
    assert given.responses is not None and given.responses.clip == 12 and given.why["responses.clip"] == "set by hand"

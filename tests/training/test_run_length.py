"""How long a run is: said once, whatever the batch is; evaluations follow it, and reasons say who asked for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import visiontune
from visiontune.data.dataset import Dataset
from visiontune.errors import RecipeError
from visiontune.machine import hardware
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.plan import derive
from visiontune.training.plan_objects import derive_objects
from visiontune.training.plan_responses import derive_responses
from visiontune.training.time_limit import with_steps

Derive = Callable[..., Recipe]


@pytest.fixture(params=["texts", "objects", "responses"])
def derived(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> Derive:
    """`derived(**asked)`: the derived recipe of four epochs, for each target."""

    def of(**asked: Any) -> Recipe:
        options: Any = {"epochs": 4, "asked": asked}
        if request.param == "texts":
            digits = request.getfixturevalue("digits")
            return derive([digits], [None], str(tiny_checkpoint), hardware("cpu"), **options)
        if request.param == "objects":
            drawn = request.getfixturevalue("shapes")
            return derive_objects([drawn], [None], "tiny/rf-detr", hardware("cpu"), **options)[0]
        folder = next(path.parent for path in sorted(request.getfixturevalue("prepared").rglob("dataset.json")))
        return derive_responses([Dataset.open(folder)], [None], hardware("cpu"), **options)

    return of


def test_epochs_hold_whatever_the_samples_of_a_step(derived: Derive) -> None:
    plain, single = derived(), derived(**{"batch.samples": 1})
    assert -(-single.schedule.steps // plain.batch.samples) == plain.schedule.steps > 1
    assert single.schedule.steps % 4 == 0 and "4 epochs, as asked" in single.why["schedule.steps"]
    often = 8 if single.target == "text" else 10
    assert single.evaluation.every == single.checkpoints.every == -(-single.schedule.steps // often)
    assert list(single.why) == list(plain.why)


def test_windows_hold_whole_steps_whatever_the_samples_of_one(derived: Derive) -> None:
    for samples in (1, 5, 24):
        assert derived(**{"batch.samples": samples}).changed({"batch.samples": samples}).batch.window == 8 * samples


def test_evaluations_and_checkpoints_follow_the_steps_in_force(derived: Derive) -> None:
    asked = derived(**{"schedule.steps": 60})
    often = 8 if asked.target == "text" else 10
    assert asked.evaluation.every == asked.checkpoints.every == -(-60 // often)


@pytest.fixture
def planned(digits: Dataset, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Derive:
    """`planned(**options)`: the recipe of `train` with these options, planned and not trained."""
    from visiontune.training import loop

    monkeypatch.setattr(loop, "train_run", lambda run, callbacks: run)
    made = 0

    def plan(**options: Any) -> Recipe:
        nonlocal made
        made += 1
        visiontune.train(digits.path, model=str(tiny_checkpoint), out=tmp_path / f"run-{made}", **options)
        return Run(tmp_path / f"run-{made}").recipe

    return plan


def test_samples_of_a_step_from_the_command_line_or_a_recipe_file_change_the_steps(
    planned: Derive, digits: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("batch: {samples: 1}\n")
    asked = {"batch.samples": 1}
    for recipe in (planned(epochs=2, overrides=asked), planned(epochs=2, recipe=tmp_path / "mine.yaml")):
        assert recipe.batch.samples == 1 and recipe.schedule.steps == 2 * digits.count("train")
    assert planned(preset="quick", overrides=asked).schedule.steps == digits.count("train")
    assert planned(overrides={**asked, "schedule.steps": 7}).schedule.steps == 7


@pytest.mark.parametrize(
    ("options", "overrides", "found"),
    [
        ({"epochs": 1, "hours": 1}, {}, "--epochs and --hours are two ways"),
        ({"hours": 1}, {"schedule.steps": 5}, "--hours and --schedule.steps are two ways"),
        ({"epochs": 1}, {"schedule.steps": 5}, "--epochs and --schedule.steps are two ways"),
        ({}, {"schedule.hours": 1, "schedule.steps": 5}, "--schedule.steps and --schedule.hours are two ways"),
    ],
)
def test_the_length_of_a_run_is_said_once(
    planned: Derive, options: dict[str, Any], overrides: dict[str, Any], found: str
) -> None:
    with pytest.raises(RecipeError, match=found):
        planned(**options, overrides=overrides)


def test_the_command_line_says_another_length_than_a_recipe_file(planned: Derive, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("schedule: {steps: 9, hours: 2, kind: linear}\n")
    mine: dict[str, Any] = {"recipe": tmp_path / "mine.yaml"}
    assert planned(**mine).schedule.hours == 2
    stepped, epoch = planned(**mine, overrides={"schedule.steps": 5}), planned(**mine, epochs=1)
    assert (stepped.schedule.steps, stepped.schedule.hours, stepped.schedule.kind) == (5, None, "linear")
    assert epoch.schedule.hours is None and "1 epoch, as asked" in epoch.why["schedule.steps"]
    (tmp_path / "mine.yaml").write_text("schedule: {steps: 9}\n")
    assert planned(**mine, overrides={"schedule.steps": 5}).schedule.steps == 5


def test_reasons_say_who_asked_for_a_value(planned: Derive, tmp_path: Path) -> None:
    quick, plain = planned(preset="quick"), planned()
    for name in ("lora.rank", "lora.alpha", "evaluation.samples"):
        assert quick.why[name] == "preset quick" != plain.why[name]
    assert quick.why["schedule.steps"] == "1 epoch, preset quick"
    changed = planned(overrides={"lora.rank": 3, "evaluation.patience": 2})
    assert changed.why == {**plain.why, "lora.rank": "set by hand", "evaluation.patience": "set by hand"}
    changed.save(tmp_path / "first.yaml")
    again = planned(recipe=tmp_path / "first.yaml")
    assert again.model_copy(update={"why": {}}) == changed.model_copy(update={"why": {}})
    assert again.why == {**plain.why, "lora.rank": "from first.yaml", "evaluation.patience": "from first.yaml"}


def test_what_follows_from_hours_says_so_and_what_was_asked_for_stays(planned: Derive, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("evaluation: {every: 7}\n")
    for recipe, evaluations in ((planned(), 20), (planned(recipe=tmp_path / "mine.yaml"), 7)):
        hours = with_steps(recipe, 200, "1 hour")
        assert (hours.evaluation.every, hours.checkpoints.every) == (evaluations, 20)
        said = "ten times a run" if evaluations == 20 else "from mine.yaml"
        assert hours.why == {**recipe.why, "schedule.steps": "1 hour", "evaluation.every": said}

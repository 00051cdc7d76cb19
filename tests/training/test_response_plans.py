"""How long runs on recordings learn: steps that follow from data, from hours, or from what was asked."""

from pathlib import Path
from typing import Any

import pytest

import visiontune
from tests.training.test_response_runs import QUICK, finished, prepared, sessions  # noqa: F401
from visiontune.data.dataset import Dataset
from visiontune.data.recordings.clips import ClipDataset
from visiontune.errors import RecipeError
from visiontune.machine import hardware
from visiontune.run import Run
from visiontune.training.plan_responses import derive_responses


def test_readouts_on_a_frozen_core_see_fewer_clips_more_often(
    prepared: Path,  # noqa: F811
    finished: Run,  # noqa: F811
) -> None:
    session = Dataset.open(next(path.parent for path in sorted(prepared.rglob("dataset.json"))))
    recipe = derive_responses([session], [None], hardware("cpu"), start=finished)
    choices = recipe.responses
    assert choices is not None
    clips = ClipDataset.open(session.path, choices.clip, choices.burn_in).count("train")
    assert recipe.why["schedule.steps"].startswith("24 epochs"), "few clips are seen often"
    assert recipe.schedule.steps == -(-24 * clips // recipe.batch.samples)
    limited = derive_responses([session], [None], hardware("cpu"), start=finished, epochs=2)
    assert limited.schedule.steps == -(-2 * clips // limited.batch.samples)


def test_hours_become_a_recorded_number_of_steps(prepared: Path, tmp_path: Path) -> None:  # noqa: F811
    few = {name: value for name, value in QUICK.items() if name not in ("evaluation.every", "checkpoints.every")}
    run: Any = visiontune.train(prepared, out=tmp_path / "run", hours=2 / 3600, overrides=few)
    recipe = run.recipe
    assert recipe.schedule.hours is None and "hours; a step takes" in recipe.why["schedule.steps"]
    assert run.state["step"] == recipe.schedule.steps != QUICK["schedule.steps"]
    assert recipe.evaluation.every == -(-recipe.schedule.steps // 10)
    with pytest.raises(RecipeError, match="give more time"):
        visiontune.train(prepared, out=tmp_path / "short", hours=1e-7, overrides=few)

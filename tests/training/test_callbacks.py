"""A run tells callbacks of each step, evaluation and checkpoint, and an error of theirs does not harm it."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import visiontune
from visiontune.errors import PausedError, RecipeError, RunError
from visiontune.run import Run
from visiontune.training import checkpoint
from visiontune.training.loop import train_run

Plan = Callable[..., Run]
DROPOUT = {"lora.dropout": 0.2}
SLOW_STEP, SLOW_SECONDS = 2, 0.5


class Diary(visiontune.Callback):
    """Notes what it hears, and requires that it stands in the run folder by then; slow after one step."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def on_step(self, run: Run, entry: Mapping[str, Any]) -> None:
        assert entry == run.metrics("step")[entry["step"] - 1]
        self.heard.append(("step", entry["step"]))
        if entry["step"] == SLOW_STEP:
            time.sleep(SLOW_SECONDS)

    def on_evaluate(self, run: Run, entry: Mapping[str, Any]) -> None:
        assert entry == run.metrics("evaluation")[-1] and entry["metrics"]["accuracy"]["n"] == 16
        self.heard.append(("evaluation", entry["step"]))

    def on_checkpoint(self, run: Run, path: Path, step: int) -> None:
        assert path == run.checkpoint_path(step) and checkpoint.load(run, step).progress.step == step
        self.heard.append(("checkpoint", step))


class Stumbles(visiontune.Callback):
    """Fails after one step."""

    def __init__(self, step: int, error: Exception) -> None:
        self.step, self.error = step, error

    def on_step(self, run: Run, entry: Mapping[str, Any]) -> None:
        if entry["step"] == self.step:
            raise self.error


class StopsAtFirstScore(visiontune.Callback):
    def on_evaluate(self, run: Run, entry: Mapping[str, Any]) -> None:
        run.ask_to_pause()


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.metrics("step")]


def promised(start: int) -> list[tuple[str, int]]:
    """What a run of twelve steps tells from step `start` on: it evaluates each six and saves each three."""
    found = []
    for step in range(start, 13):
        found += [("step", step)] + [("evaluation", step)] * (step % 6 == 0) + [("checkpoint", step)] * (step % 3 == 0)
    return found


def test_callbacks_hear_of_everything_once_in_order_and_an_error_of_one_leaves_a_sound_run(plan: Plan) -> None:
    diary, straight = Diary(), plan("straight", DROPOUT)
    train_run(straight, [diary])
    assert diary.heard == promised(1)
    after = straight.metrics("step")[SLOW_STEP]["seconds"]
    assert after["data"] + after["other"] < SLOW_SECONDS, "the time of a callback is no step's"

    first, run = Diary(), plan("failing", DROPOUT)
    with pytest.raises(RunError, match="The callback Stumbles failed after step 8: ValueError: planted") as caught:
        train_run(run, [first, Stumbles(8, ValueError("planted"))])
    assert run.status == "failed" and f"visiontune resume {run.path}" in (caught.value.fix or "")
    assert first.heard == promised(1)[: promised(1).index(("step", 8)) + 1]
    second = Diary()
    visiontune.resume(run.path, callbacks=[second])
    assert second.heard == promised(7), "the steps after the checkpoint of step 6 come again"
    assert losses(run) == losses(straight) and run.status == "finished"

    paused = plan("paused", DROPOUT)
    with pytest.raises(PausedError):
        train_run(paused, [StopsAtFirstScore()])
    assert paused.status == "paused" and paused.checkpoint_steps()[-1] == 6
    assert losses(train_run(paused)) == losses(straight)


def test_an_error_that_says_paused_without_a_checkpoint_is_an_error_all_the_same(plan: Plan) -> None:
    run = plan()
    with pytest.raises(RunError, match="The callback Stumbles failed after step 1: PausedError"):
        train_run(run, [Stumbles(1, PausedError("enough"))])
    assert run.status == "failed"


@pytest.mark.parametrize("other", [Diary, print, "tensorboard"])
def test_what_is_no_callback_is_refused_before_anything_is_done(other: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not a callback") as caught:
        visiontune.train("no data", model="tiny/smolvlm", out=tmp_path / "run", callbacks=[other])
    assert "visiontune.Callback" in (caught.value.fix or "") and not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match="is not a callback"):
        visiontune.resume(tmp_path / "run", callbacks=[other])

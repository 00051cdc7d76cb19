"""Trackers are told what metrics.jsonl says, each step once though the run was stopped, and change nothing in it."""

import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import visiontune
from tests.conftest import QUICK
from tests.training.test_callbacks import DROPOUT, Plan, Stumbles, losses
from visiontune.cli.command_line import recipe_options
from visiontune.data.dataset import Dataset
from visiontune.errors import MachineError, RecipeError, RunError
from visiontune.machine import hardware
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.loop import train_run
from visiontune.training.plan import derive, plan_run

TENSORBOARD = {"tracking.trackers": ["tensorboard"]}
SHORT = {"schedule.steps": 2, "evaluation.every": 2, "evaluation.samples": 4, "checkpoints.every": 2}


@pytest.fixture(scope="module")
def tracked_run(digits: Dataset, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Told to TensorBoard and W&B (without a connection); stopped after step 5 and resumed from the checkpoint of 3."""
    import wandb

    recipe = derive([digits], [None], str(tiny_checkpoint), hardware("cpu"))
    told = {"tracking.trackers": ["tensorboard", "wandb"], "tracking.project": "digits"}
    run = Run(tmp_path_factory.mktemp("tracked") / "run")
    plan_run(run, recipe.changed({**QUICK, "optimizer.learning_rate": 1e-2, **DROPOUT, **told}), [digits])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WANDB_MODE", "offline")
        patched.setenv("WANDB_SILENT", "true")
        with pytest.raises(RunError, match="planted"):
            train_run(run, [Stumbles(5, ValueError("planted"))])
        assert wandb.run is None, "closed, though the run failed"
        train_run(run)
        wandb.teardown()  # its process writes what it heard before it ends
        yield run


def test_tensorboard_shows_each_step_once_with_the_numbers_of_the_metrics(tracked_run: Run) -> None:
    events = EventAccumulator(str(tracked_run.path / "tracking/tensorboard")).Reload()
    shown = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    steps, evaluations = tracked_run.metrics("step"), tracked_run.metrics("evaluation")
    for name in ("loss", "learning_rate", "gradient_norm", "tokens", "padding", "peak_memory_bytes"):
        assert [event.step for event in events.Scalars(name)] == list(range(1, 13)), name
        assert shown[name] == pytest.approx({entry["step"]: entry[name] for entry in steps}), name
    assert shown["seconds/forward"] == pytest.approx({e["step"]: e["seconds"]["forward"] for e in steps})
    for tag, end in (("validation/accuracy", "value"), ("validation/accuracy_low", "low")):
        assert shown[tag] == pytest.approx({e["step"]: e["metrics"]["accuracy"][end] for e in evaluations})
    assert "receipts/trained_moved/text_summary" in events.Tags()["tensors"]
    assert len(list(tracked_run.path.glob("tracking/tensorboard/*/hparams.yml"))) == 1


def test_wandb_goes_on_in_one_run_of_the_project(tracked_run: Run) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(tracked_run.path.glob("tracking/wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    attempts = [[Record.FromString(data) for data in wandb_records(file)] for file in files]
    assert len(attempts) == 2
    runs = [r.run for records in attempts for r in records if r.WhichOneof("record_type") == "run"]
    ids = tracked_run.read_json("tracking/ids.json")
    assert ids is not None and {(one.run_id, one.project) for one in runs} == {(ids["wandb"], "digits")}
    heard = []
    for records in attempts:
        rows = [r.history for r in records if r.WhichOneof("record_type") == "history"]
        named = [{"/".join([i.key, *i.nested_key]).strip("/"): i.value_json for i in row.item} for row in rows]
        heard.append([(row.step.num, items) for row, items in zip(rows, named, strict=True) if "loss" in str(items)])
    assert [[step for step, _ in one] for one in heard] == [[1, 2, 3, 4, 5], list(range(4, 13))]
    assert "validation/accuracy" in str(heard[1][-1]) and '"passed"' in str(heard[1][-1])
    configured = [r for records in attempts for r in records if r.WhichOneof("record_type") == "config"]
    assert "lora.rank" in str(configured)


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format, after a header of seven bytes."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def test_a_tracked_run_is_the_run_without_trackers(tracked_run: Run, plan: Plan) -> None:
    assert losses(tracked_run) == losses(train_run(plan("plain", DROPOUT)))


def test_who_is_told_is_no_part_of_what_a_run_is(recipe_of: Recipe) -> None:
    _, told = recipe_options(["--tracking.trackers", "[tensorboard, wandb]", "--tracking.project", "mine"])
    changed = recipe_of.changed(told)
    assert changed.tracking.trackers == ("tensorboard", "wandb") and changed.tracking.project == "mine"
    assert changed.sha256 == recipe_of.sha256 != recipe_of.changed({"seed": 7}).sha256


def test_an_unknown_tracker_is_refused_before_data_are_prepared(digits_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "told.yaml").write_text("tracking:\n  trackers: [notebook]\n")
    options: dict[str, Any] = {"model": "tiny/smolvlm", "out": tmp_path / "run", "recipe": tmp_path / "told.yaml"}
    with pytest.raises(RecipeError, match="'tensorboard', 'wandb' or 'trackio'"):
        visiontune.train(digits_folder, **options)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_named_with_what_to_type_before_data_are_prepared(
    digits_folder: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = importlib.util.find_spec
    absent = {"tracking.trackers": ["trackio"]}
    planned = plan("planned", absent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else original(name))
    for attempt in (
        lambda: visiontune.train(digits_folder, model="tiny/smolvlm", out=tmp_path / "run", overrides=absent),
        lambda: train_run(planned),
    ):
        with pytest.raises(MachineError, match="The package trackio is missing") as caught:
            attempt()
        assert caught.value.fix == "pip install 'visiontune[trackio]'"
    assert not (tmp_path / "run").exists() and planned.status == "planned"


def test_a_tracker_that_does_not_start_stops_the_run_and_one_that_does_not_close_does_not(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: Any) -> None:
        raise OSError("planted")

    run = plan("run", {**TENSORBOARD, **SHORT})
    with monkeypatch.context() as patched:
        patched.setattr(TensorBoardTracker, "start", fails)
        with pytest.raises(MachineError, match="The tracker tensorboard did not start: OSError: planted") as caught:
            train_run(run)
    assert str(run.recipe_path) in (caught.value.fix or "") and run.status == "failed" and run.metrics() == []
    monkeypatch.setattr(TensorBoardTracker, "finish", fails)
    assert train_run(run).status == "finished"
    assert "tensorboard could not be closed: OSError: planted" in capsys.readouterr().err

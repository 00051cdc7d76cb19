"""What is foreseen of a run is what it then takes: tokens, memory, disk; `train --dry-run` says it with the time."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import visiontune
from tests.allocated import peak_of_steps
from tests.conftest import QUICK
from tests.mixed_lengths import write_mixed
from visiontune.cli import main
from visiontune.data.dataset import Dataset
from visiontune.errors import MachineError, RecipeError
from visiontune.machine import hardware
from visiontune.run import Run
from visiontune.training import forecast, loop
from visiontune.training.loop import train_run
from visiontune.training.memory import LiveBytes
from visiontune.training.plan import derive, plan_run
from visiontune.training.ranks import Ranks
from visiontune.training.session import set_up

SHORT = {**QUICK, "schedule.steps": 8, "evaluation.every": 8, "checkpoints.every": 4, "batch.samples": 8}
SHORT |= {"batch.window": 32, "batch.tokens": 600, "data.limit": 40}
LORA = {"parts.vision_encoder": "frozen", "parts.language_model": "lora", "parts.embeddings": "frozen"}
LORA |= {"parts.projector": "lora", "features.cache": "never"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("mixed")
    return visiontune.prepare(write_mixed(folder / "source", 60), folder / "data", workers=1)


def planned(mixed: Dataset, folder: Path, **changes: Any) -> Run:
    run = Run(folder)
    plan_run(run, derive([mixed], [None], "tiny/smolvlm", hardware("cpu")).changed({**SHORT, **changes}), [mixed])
    return run


@pytest.mark.parametrize("changes", [{}, {"batch.packing": True, "optimizer.average": 0.9}])
def test_tokens_padding_and_checkpoints_are_those_that_were_foreseen(
    mixed: Dataset, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = planned(mixed, tmp_path / "run", **changes)
    train_run(run)
    steps, found = run.metrics("step"), run.read_json("forecast.json")
    receipts = {receipt["name"]: receipt["numbers"] for receipt in run.receipts}
    assert found is not None and found["seconds"] is None, "no step was timed"
    assert found["tokens"] == sum(step["tokens"] for step in steps)
    assert found["image_tokens"] == receipts["placeholders"]["image_tokens"] > 0
    computed = sum(step["tokens"] / (1 - step["padding"]) for step in steps)
    assert found["padding"] == pytest.approx(1 - found["tokens"] / computed, abs=1e-3)
    assert (found["padding"] > 0.01) != bool(changes), "packed rows have none"
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in run.checkpoints_folder.glob("step-*")]
    each = found["disk_bytes"]["checkpoints"] / (run.recipe.checkpoints.keep + 2)
    assert max(sizes) <= each <= 1.1 * max(sizes)
    kept = receipts["memory"]["forecast"]
    assert kept["tokens"] == found["tokens"] and kept["measured_step_seconds"] > 0
    assert kept["measured_checkpoint_bytes"] <= found["disk_bytes"]["checkpoints"]


@pytest.mark.parametrize("changes", [{}, LORA, {**LORA, "machine.recompute": True}, {"batch.packing": True}])
def test_the_memory_of_a_step_is_that_of_the_allocator(mixed: Dataset, tmp_path: Path, changes: dict[str, Any]) -> None:
    session = set_up(run := planned(mixed, tmp_path / "run", **changes), run.recipe, Ranks("cpu"))
    assert all(parameter.grad is None for parameter in session.module.parameters() if parameter.requires_grad)
    assert session.predicted_bytes == pytest.approx(peak_of_steps(session, 4), rel=0.05)


def test_features_that_are_kept_stand_in_the_disk_that_was_foreseen(mixed: Dataset, tmp_path: Path) -> None:
    run = planned(mixed, tmp_path / "run", **{**LORA, "features.cache": "always", "data.augment": 0.0})
    dry = set_up(run, run.recipe, Ranks("cpu"), dry=True)
    session = set_up(run, run.recipe, Ranks("cpu"))
    loop.foresee(session)
    found = (run.read_json("forecast.json") or {})["disk_bytes"]
    assert found["features"] == session.features_bytes > 0
    assert dry.features_bytes == session.features_bytes and session.features is not None
    assert dry.features is None, "they are not computed for a forecast"


def test_live_bytes_count_each_storage_once_and_until_nobody_holds_it() -> None:
    given = torch.zeros(1000)
    live = LiveBytes([given, given[:10]])
    assert live.now == live.peak == 4000
    with live:
        made = given + 1
        view = made[:5].view(1, 5)
        del made
        assert live.now == 8000, "the view holds all of it"
        del view
        assert live.now == 4000
        _ = torch.zeros(500) + torch.ones(500)
    assert live.peak == 4000 + 3 * 2000


def test_a_dry_run_leaves_no_run_and_its_time_stands_in_the_receipt_of_the_run_that_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_mixed(tmp_path / "source", 60).parent, tmp_path / "run"
    few = {"data.limit": 16, "evaluation.samples": 4, "evaluation.max_new_tokens": 8}
    overrides = {**SHORT, **few, "schedule.steps": 4, "evaluation.every": 2}
    options = [text for name, value in overrides.items() for text in (f"--{name}", json.dumps(value))]
    asked = ["train", str(source), "--model", "tiny/smolvlm", "--out", str(out), *options, "--dry-run"]
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--json"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)["forecast"]["run"]
    assert found["seconds"] == pytest.approx(4 * found["step_seconds"] + 2 * found["evaluation_seconds"])
    assert {entry.name for entry in out.iterdir()} == {"data", "forecast.json"}
    stamp = next((out / "data").rglob("dataset.json")).stat().st_mtime_ns
    visiontune.train(source, model="tiny/smolvlm", out=out, overrides=overrides)
    assert next((out / "data").rglob("dataset.json")).stat().st_mtime_ns == stamp, "prepared once"
    (kept,) = [receipt["numbers"]["forecast"] for receipt in Run(out).receipts if receipt["name"] == "memory"]
    assert kept["seconds"] == found["seconds"] and kept["measured_step_seconds"] > 0


def test_a_forecast_of_another_recipe_is_not_kept(mixed: Dataset, tmp_path: Path) -> None:
    run = planned(mixed, tmp_path / "run")
    (run.path / "forecast.json").write_text(json.dumps({"recipe_sha256": "another", "tokens": 1}))
    loop.foresee(set_up(run, run.recipe, Ranks("cpu")))
    assert (run.read_json("forecast.json") or {})["tokens"] > 1


def test_a_disk_that_cannot_hold_the_run_is_an_error_before_the_first_step(
    mixed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(mixed, tmp_path / "run")
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(MachineError, match="1 MiB are free"):
        train_run(run)
    assert run.status == "failed" and not run.metrics("step")


def test_a_dry_run_with_a_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="teacher"):
        visiontune.forecast(tmp_path, out=tmp_path / "run", teacher=tmp_path)
    with pytest.raises(TypeError, match="epoch"):
        visiontune.forecast(tmp_path, out=tmp_path / "run", epoch=3)

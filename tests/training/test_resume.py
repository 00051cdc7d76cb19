"""A run that is paused, killed or moved to other workers or ranks is the same run."""

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import visiontune.files
import visiontune.run
from tests.conftest import planner
from visiontune.cli import main
from visiontune.data.dataset import Dataset
from visiontune.errors import MachineError, PausedError, RunError
from visiontune.files import write_json
from visiontune.run import Run
from visiontune.training import checkpoint, loop
from visiontune.training.loop import train_run
from visiontune.training.model import load_trained

Plan = Callable[..., Run]
DROPOUT = {"lora.dropout": 0.2}


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.metrics("step")]


def accuracies(run: Run) -> list[float]:
    return [entry["metrics"]["accuracy"]["value"] for entry in run.metrics("evaluation")]


def last_weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint_path(run.checkpoint_steps()[-1]) / checkpoint.WEIGHTS)


def assert_same_run(one: Run, other: Run) -> None:
    assert losses(one) == losses(other)
    assert accuracies(one) == accuracies(other)
    a, b = last_weights(one), last_weights(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert one.status == other.status == "finished"


@pytest.fixture(scope="module")
def straight(digits: Dataset, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run, with dropout."""
    return train_run(planner(digits, tiny_checkpoint, tmp_path_factory.mktemp("runs"))("straight", DROPOUT))


def finish(run: Run) -> Run:
    """Resume until the run is finished; returns it."""
    while run.status != "finished":
        try:
            train_run(run)
        except PausedError:
            continue
    return run


def test_a_run_paused_after_every_few_steps_is_the_same_run(plan: Plan, straight: Run) -> None:
    run = plan("paused", DROPOUT)
    for expected in (1, 2, 3):
        run.ask_to_pause()
        with pytest.raises(PausedError) as caught:
            train_run(run)
        assert caught.value.exit_code == 75
        assert run.status == "paused" and run.checkpoint_steps()[-1] == expected
        assert not run.pause_asked()
    assert_same_run(finish(run), straight)


def test_dropout_follows_from_the_run_and_not_from_what_the_process_drew_before(plan: Plan, straight: Run) -> None:
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    assert_same_run(train_run(plan("elsewhere", DROPOUT)), straight)
    assert torch.equal(before, torch.get_rng_state())


def test_ctrl_c_and_sigterm_checkpoint_and_pause(plan: Plan, straight: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plan("signalled", DROPOUT)
    original = loop._count

    for number in (signal.SIGINT, signal.SIGTERM):

        def count(session: Any, batches: Any, number: signal.Signals = number) -> None:
            original(session, batches)
            os.kill(os.getpid(), number)

        monkeypatch.setattr(loop, "_count", count)
        with pytest.raises(PausedError):
            train_run(run)
        assert run.status == "paused"
    monkeypatch.setattr(loop, "_count", original)
    assert run.state["step"] == 2
    assert_same_run(finish(run), straight)


def in_child(run: Run) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=train_run, args=(run,))
    child.start()
    return child  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_five_random_moments_it_is_the_same_run(plan: Plan, straight: Run, workers: int) -> None:
    run = plan(f"killed-{workers}", {**DROPOUT, "machine.workers": workers})
    moments = random.Random(workers)
    for _ in range(5):
        child = in_child(run)
        wanted = len(run.metrics("step")) + moments.randint(0, 2)
        deadline = time.monotonic() + 60
        while child.is_alive() and len(run.metrics("step")) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05)
        if child.pid and child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert_same_run(finish(run), straight)


@pytest.mark.parametrize("write", [1, 2, 4, 7, 9])
def test_killed_while_a_checkpoint_is_written_it_is_the_same_run(
    plan: Plan, straight: Run, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan("torn", DROPOUT)
    original = visiontune.files.sync_file
    synced = 0

    def sync(path: Any) -> None:
        nonlocal synced
        original(path)
        synced += ".step-" in str(path)
        if synced == write:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(visiontune.files, "sync_file", sync)
    child = in_child(run)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    monkeypatch.setattr(visiontune.files, "sync_file", original)
    for step in run.checkpoint_steps():
        checkpoint.load(run, step)  # what has a checkpoint's name is whole
    assert_same_run(finish(run), straight)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    plan: Plan, straight: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plan("damaged", DROPOUT)
    run.ask_to_pause()
    with pytest.raises(PausedError):
        train_run(run)
    run.ask_to_pause()
    with pytest.raises(PausedError):
        train_run(run)
    weights = run.checkpoint_path(2) / checkpoint.WEIGHTS
    damage(weights)
    with pytest.raises(RunError, match="damaged"):
        checkpoint.load(run, 2)
    assert_same_run(finish(run), straight)
    assert "damaged" in capsys.readouterr().err


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_a_checkpoint_with_an_empty_manifest_is_damaged_and_passed_over(
    straight: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(shutil.copytree(straight.path, tmp_path / "run"))
    *_, earlier, last = run.checkpoint_steps()
    (run.checkpoint_path(last) / checkpoint.MANIFEST).write_bytes(b"")
    latest = checkpoint.load_latest(run)
    assert latest is not None and latest.progress.step == earlier
    assert f"The checkpoint of step {last} is damaged: manifest.json" in capsys.readouterr().err


def test_a_finished_run_trains_again_what_was_damaged_and_removed(straight: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(straight.path, tmp_path / "run"))
    *earlier, last = run.checkpoint_steps()
    damage(run.checkpoint_path(last) / checkpoint.WEIGHTS)
    with pytest.raises(RunError, match="damaged") as caught:
        checkpoint.load(run, last)
    told = str(caught.value.fix)
    assert "remove this checkpoint's folder" in told and f"resume {run.path}" in told
    assert f"again from the checkpoint of step {earlier[-1]}" in told
    shutil.rmtree(run.checkpoint_path(last))
    write_json(run.checkpoints_folder / "best.json", {**(run.best or {}), "step": last})
    with pytest.raises(RunError, match=f"best checkpoint, of step {last}, is missing") as caught:
        load_trained(run, run.recipe, torch.device("cpu"))
    assert str(caught.value.fix) == f"visiontune resume {run.path}"
    assert_same_run(train_run(run), straight)
    assert run.state["attempt"] == 2 and run.best == straight.best


def test_where_the_best_checkpoint_was_removed_the_best_that_stands_is_taken(
    straight: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(shutil.copytree(straight.path, tmp_path / "run"))
    last = run.checkpoint_steps()[-1]
    saved = checkpoint.load(run, last)
    saved.progress.best_step = 1  # a better one, that was removed since
    checkpoint.save(run, saved.progress, saved.trained, saved.moments)
    write_json(run.checkpoints_folder / "best.json", {**(run.best or {}), "step": 1})
    run.set_state("finished", best_step=1)
    train_run(run)
    assert "the best checkpoint, of step 1, is missing; that of step" in capsys.readouterr().err
    scores = {entry["step"]: entry["metrics"]["accuracy"]["value"] for entry in run.metrics("evaluation")}
    best = max((scores[step], step) for step in run.checkpoint_steps() if step in scores)
    assert run.best == {"step": best[1], "metric": "accuracy", "value": best[0]}
    assert run.missing_steps == [] and len(run.metrics("step")) == last


def test_a_kill_before_the_best_is_named_leaves_the_former_one_and_the_end_names_the_best(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan("named", {"schedule.steps": 4, "evaluation.every": 2, "checkpoints.every": 2, "checkpoints.keep": 1})
    values = iter([0.25, 0.5])
    original = checkpoint.write_best

    def scored(*_: object) -> Any:
        metric = SimpleNamespace(value=next(values))
        return SimpleNamespace(metric=lambda _: metric, to_json=lambda: {"metrics": {}})

    def killed(run: Run, step: int, metric: str, value: float) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        original(run, step, metric, value)

    monkeypatch.setattr(loop, "score_some", scored)
    monkeypatch.setattr(checkpoint, "write_best", killed)
    child = in_child(run)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert run.checkpoint_steps() == [2, 4] and run.best is not None and run.best["step"] == 2
    monkeypatch.setattr(checkpoint, "write_best", original)
    train_run(run)
    assert run.state["best_step"] == 4 and run.best == {"step": 4, "metric": "accuracy", "value": 0.5}


def test_a_full_disk_keeps_the_last_good_checkpoint(plan: Plan, straight: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plan("full", DROPOUT)
    original = checkpoint.save_file

    def disk_full(tensors: Any, path: Any) -> None:
        if ".step-6" in str(path) and path.name == checkpoint.OPTIMIZER:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", disk_full)
    with pytest.raises(MachineError, match="No space left") as caught:
        train_run(run)
    assert "step 3 is whole" in (caught.value.fix or "")
    assert run.checkpoint_steps() == [3] and run.status == "failed"
    monkeypatch.setattr(checkpoint, "save_file", original)
    assert_same_run(finish(run), straight)


def test_a_disk_that_is_full_for_every_file_is_said_and_nothing_else(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plan("brim", {"schedule.steps": 1})

    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def step(*_: object) -> dict[str, Any]:
        monkeypatch.setattr(visiontune.run.MetricsLog, "write", disk_full)
        monkeypatch.setattr(visiontune.run, "write_json", disk_full)  # of the state
        monkeypatch.setattr("visiontune.report.write_report", disk_full)
        return {"loss": 0.0}

    monkeypatch.setattr(loop, "_step", step)
    with pytest.raises(SystemExit) as ended:
        main(["resume", str(run.path)])
    err = capsys.readouterr().err
    assert ended.value.code == 1 and "the disk is full" in err and f"resume {run.path}" in err, err
    assert run.status == "interrupted"


def test_a_real_file_size_limit_keeps_the_last_good_checkpoint(plan: Plan, capfd: pytest.CaptureFixture[str]) -> None:
    run = plan("limited")
    run.ask_to_pause()
    with pytest.raises(PausedError):
        train_run(run)
    size = (run.checkpoint_path(1) / checkpoint.OPTIMIZER).stat().st_size

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        main(["resume", str(run.path)])

    child = multiprocessing.get_context("fork").Process(target=limited)
    child.start()
    child.join()
    err = capfd.readouterr().err
    assert child.exitcode == 1, err
    assert "could not be written" in err and "Traceback" not in err
    assert run.checkpoint_steps() == [1]


def test_two_trainers_cannot_use_one_folder(plan: Plan) -> None:
    run = plan("shared")
    with run.locked(), pytest.raises(RunError, match="is using this run folder"):
        train_run(run)


def test_two_ranks_equal_one_with_dropout(plan: Plan) -> None:
    overrides = {**DROPOUT, "batch.tokens": 200, "schedule.steps": 6}
    one = train_run(plan("one", overrides))
    two = plan("two", {**overrides, "tracking.trackers": ["tensorboard"]})
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launch, "-m", "visiontune", "resume", str(two.path), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["status"] == "finished"  # one object, though two processes ran
    assert two.status == "finished"
    assert losses(one) == pytest.approx(losses(two), abs=1e-5)
    a, b = last_weights(one), last_weights(two)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) <= 1e-5
    assert {r["name"]: r["status"] for r in one.receipts} == {r["name"]: r["status"] for r in two.receipts}
    told = EventAccumulator(str(two.path / "tracking/tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in told] == [1, 2, 3, 4, 5, 6], "only the first rank tells"


def test_another_base_model_is_refused(plan: Plan) -> None:
    run = plan("tiny", model="tiny/smolvlm")
    run.ask_to_pause()
    with pytest.raises(PausedError):
        train_run(run)
    path = run.base_folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match="not the one that the run was started with"):
        train_run(run)


def test_the_resolved_recipe_reruns_to_the_same_losses(straight: Run, tmp_path: Path) -> None:
    again = Run(tmp_path / "again")
    again.path.mkdir()
    straight.recipe.save(again.recipe_path)
    assert_same_run(train_run(again), straight)


def test_a_finished_run_is_left_alone(straight: Run) -> None:
    before = (straight.path / "metrics.jsonl").read_bytes()
    train_run(straight)
    assert (straight.path / "metrics.jsonl").read_bytes() == before


def test_every_line_of_the_metrics_names_its_attempt(plan: Plan) -> None:
    run = plan("attempts")
    run.ask_to_pause()
    with pytest.raises(PausedError):
        train_run(run)
    finish(run)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["attempt"] for line in lines if line["kind"] == "step"] == [1] + [2] * 11


def test_a_paused_run_is_free_for_another_process_at_once(plan: Plan) -> None:
    run = plan("handed over", {"machine.workers": 1})
    run.ask_to_pause()
    with pytest.raises(PausedError) as kept:  # whoever keeps the error keeps the frames of the trainer alive
        train_run(run)
    child = in_child(run)
    child.join()
    assert child.exitcode == 0 and run.status == "finished" and kept.value is not None


def test_a_signal_to_the_whole_process_group_pauses_too(plan: Plan, capfd: pytest.CaptureFixture[str]) -> None:
    run = plan("group", {"machine.workers": 2, "schedule.steps": 500, "evaluation.every": 500})

    def grouped() -> None:
        os.setsid()
        main(["resume", str(run.path)])

    child = multiprocessing.get_context("fork").Process(target=grouped)
    child.start()
    while len(run.metrics("step")) < 3 and child.is_alive():
        time.sleep(0.01)
    assert child.pid
    os.killpg(child.pid, signal.SIGTERM)
    child.join(60)
    err = capfd.readouterr().err
    assert child.exitcode == 75, err
    assert run.status == "paused" and "Traceback" not in err

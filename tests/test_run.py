import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest

import visiontune
from visiontune.errors import DataError, RecipeError, RunError
from visiontune.run import Run

HOLD = """
import sys, time
from visiontune.run import Run
with Run(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def line(attempt: int, step: int, **facts: object) -> dict[str, object]:
    return {"kind": "step", "attempt": attempt, "step": step, **facts}


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the run folder tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_shipped_folder_without_its_contract_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "certificate.json").write_text("{}")
    with pytest.raises(RunError, match="exported from a run"):
        Run.open(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(RunError, match=r"contract\.json is missing"):
        Run.open(tmp_path)


def test_a_path_or_weights_in_one_text_are_not_taken_letter_by_letter(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder") as refused:
        visiontune.predict(tmp_path, "big/1.png")
    assert refused.value.where == "big/1.png"
    with pytest.raises(RecipeError, match="this is '2,1'"):
        visiontune.train(tmp_path, out=tmp_path / "run", weights="2,1")  # pyright: ignore[reportArgumentType]


def test_two_processes_cannot_hold_one_run(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(RunError, match=f"Process {holder.pid} is using this run folder") as caught,
        Run(tmp_path).locked(),
    ):
        pass
    assert caught.value.where == str(tmp_path) and caught.value.fix


def test_a_kill_frees_the_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with Run(tmp_path).locked():
        pass


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of the training"), Run(tmp_path).locked():
        raise ValueError("of the training")
    with Run(tmp_path).locked():
        assert (tmp_path / "lock").read_text().isdigit()


def test_a_torn_last_line_is_left_out_by_readers_and_cut_by_the_next_writer(tmp_path: Path) -> None:
    run = Run(tmp_path)
    log = run.open_metrics()
    log.write(line(1, 1, loss=2.0))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "attempt": 1, "step": 2, "lo')
    assert [entry["step"] for entry in run.metrics()] == [1]
    log = run.open_metrics()
    log.write(line(2, 2, loss=1.5))
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(text)["step"] for text in lines] == [1, 2]


@pytest.mark.parametrize("torn", ["", "{", '{"kind": "step", "text": "数'])
def test_a_file_that_is_nothing_but_a_torn_line_becomes_empty(tmp_path: Path, torn: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(torn, encoding="utf-8")
    run = Run(tmp_path)
    assert run.metrics() == []
    run.open_metrics().close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_line_is_whole_for_readers_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = Run(tmp_path).open_metrics()
    log.write(line(1, 1))
    assert len(Run(tmp_path).metrics()) == 1
    log.close()


def test_readers_take_the_last_attempt_of_each_step_in_the_order_of_steps(tmp_path: Path) -> None:
    run = Run(tmp_path)
    log = run.open_metrics()
    for step in (1, 2, 3):
        log.write(line(1, step, loss=9.0))
    log.write({"kind": "evaluation", "attempt": 1, "step": 3, "split": "validation", "metrics": {}})
    for step in (2, 3, 4):
        log.write(line(2, step, loss=1.0))
    log.close()
    assert [(e["step"], e["attempt"], e["loss"]) for e in run.metrics("step")] == [
        (1, 1, 9.0), (2, 2, 1.0), (3, 2, 1.0), (4, 2, 1.0),
    ]  # fmt: skip
    assert [e["attempt"] for e in run.metrics("evaluation")] == [1]
    assert len(run.metrics()) == 5


def test_a_loss_that_is_no_number_is_refused_before_it_makes_the_log_unreadable(tmp_path: Path) -> None:
    log = Run(tmp_path).open_metrics()
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write(line(1, 1, loss=float("nan")))
    log.write(line(1, 1, loss=None))
    log.close()
    assert len(Run(tmp_path).metrics()) == 1


def test_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"recipe\.yaml is missing") as caught:
        Run.open(tmp_path)
    assert caught.value.where == str(tmp_path) and caught.value.fix


def test_a_fresh_folder_has_no_facts_and_no_errors(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.status == "planned"
    assert run.metrics() == run.receipts == run.checkpoint_steps() == []
    assert run.best is None and not run.pause_asked() and run.labels is None


def test_a_run_knows_its_labels_in_their_order_and_that_free_text_has_none(tmp_path: Path) -> None:
    for labels in (["dog", "cat", "数"], None):
        (tmp_path / "labels.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
        assert Run(tmp_path).labels == labels


def test_the_state_keeps_its_facts_and_drops_the_reason_of_an_old_failure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.set_state("running", attempt=1, step=5)
    run.set_state("failed", reason="the loss is not finite")
    assert run.state == {"status": "failed", "attempt": 1, "step": 5, "reason": "the loss is not finite"}
    run.set_state("running", attempt=2)
    assert run.state == {"status": "running", "attempt": 2, "step": 5}


def test_a_pause_is_asked_for_through_the_folder_and_cleared_again(tmp_path: Path) -> None:
    Run(tmp_path).ask_to_pause()
    assert Run(tmp_path).pause_asked()
    Run(tmp_path).clear_control()
    assert not Run(tmp_path).pause_asked()
    for half in ("", '{"requ'):  # as a writer leaves it for a moment
        (tmp_path / "control.json").write_text(half)
        assert not Run(tmp_path).pause_asked()
    (tmp_path / "control.json").write_text('{"request": "stop"}')
    with pytest.raises(RunError, match="Unknown request"):
        Run(tmp_path).pause_asked()


def test_half_written_checkpoints_are_never_seen_and_steps_sort_as_numbers(tmp_path: Path) -> None:
    for name in ("step-100", "step-20", ".step-300.17.part", ".step-20.old", "step-20 copy"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "best.json").write_text('{"step": 20, "metric": "accuracy", "value": 0.5}')
    run = Run(tmp_path)
    assert run.checkpoint_steps() == [20, 100]
    assert run.best == {"step": 20, "metric": "accuracy", "value": 0.5}


def test_reading_a_long_log_takes_no_time_worth_naming(tmp_path: Path) -> None:
    log = Run(tmp_path).open_metrics()
    for step in range(20_000):
        log.write(line(1, step, loss=1.0))
    log.close()
    start = time.process_time()
    assert len(Run(tmp_path).metrics("step")) == 20_000
    assert time.process_time() - start < 5


def test_a_folder_is_free_at_once_though_a_forked_worker_still_has_the_lock_file_open(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.locked():
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        worker.start()
    started = time.monotonic()
    try:
        with run.locked():
            assert time.monotonic() - started < 0.5
    finally:
        worker.kill()
        worker.join()

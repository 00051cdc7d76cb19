"""Preparing on Ray: the same files as on processes of this machine, whatever happens meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import visiontune
from visiontune.data import workers
from visiontune.data.prepare import prepare
from visiontune.data.workers import parallel, started
from visiontune.errors import DataError, MachineError

SMALL_PAGES = {"width": 256, "height": 128, "margins": (8, 8, 8, 8), "font_size": 12}


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """Ray, started once for the tests of this file."""
    pytest.importorskip("ray", exc_type=ImportError)
    from ray import cloudpickle

    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)  # Ray's processes cannot import a test
    with started("ray"):
        yield
    cloudpickle.unregister_pickle_by_value(here)


def articles(folder: Path, count: int) -> Path:
    rows = [{"id": f"a{i}", "text": f"{i * i} sheep {i} " * 40, "summary": f"{i} sheep"} for i in range(count)]
    (folder / "articles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "articles.jsonl"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_documents_and_their_pages_are_the_same_files_on_ray(
    running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ  # set for Ray's processes alone
    monkeypatch.setattr("visiontune.data.documents.CHUNK_ROWS", 4)
    monkeypatch.chdir(tmp_path)  # relative paths mean the same on Ray
    source = articles(Path(), 40)
    made = prepare(source, Path("ours"), pages=SMALL_PAGES, materialise="png", workers=1, shard_bytes=8_000)
    options = {"materialise": "png", "workers": 2, "engine": "ray"}
    prepare(source, Path("rays"), pages=SMALL_PAGES, shard_bytes=8_000, **options)
    assert files(Path("ours")) == files(Path("rays")) and len(made.info.files) > 3


def test_images_are_the_same_files_on_ray(running: None, classes: Callable[..., Path], tmp_path: Path) -> None:
    source = classes({"cat": 30, "dog": 30})
    prepare(source, tmp_path / "ours", workers=1, shard_bytes=8_000)
    prepare(source, tmp_path / "rays", workers=2, shard_bytes=8_000, engine="ray")
    assert files(tmp_path / "ours") == files(tmp_path / "rays")


def _first_is_slow(task: int) -> int:
    time.sleep(2.0 if task == 0 else 0.01)
    return task * task


def test_results_come_in_the_order_of_the_tasks_which_are_drawn_when_needed(running: None) -> None:
    drawn = []

    def tasks() -> Iterator[int]:
        for task in range(20):
            drawn.append(task)
            yield task

    results = parallel(_first_is_slow, tasks(), 2, "ray")
    assert next(results) == 0 and len(drawn) == workers.TASKS_A_WORKER * 2
    assert list(results) == [task * task for task in range(1, 20)]


def _fails(task: int) -> None:
    raise DataError("broken", where=f"task {task}", fix="this")


def test_an_error_on_ray_arrives_whole(running: None) -> None:
    with pytest.raises(DataError) as caught:
        list(parallel(_fails, [1, 2, 3], 2, "ray"))
    assert (caught.value.where, caught.value.fix) == ("task 1", "this")
    with pytest.raises(MachineError, match="worker died"):
        list(parallel(os._exit, [1], 1, "ray"))


def test_a_killed_preparation_on_ray_goes_on_and_leaves_no_worker(running: None, tmp_path: Path) -> None:
    source = articles(tmp_path, 400)
    command = f"""
from pathlib import Path
import visiontune.data.documents
visiontune.data.documents.CHUNK_ROWS = 8
from visiontune.data.prepare import prepare
prepare(Path({str(source)!r}), Path({str(tmp_path / "out")!r}), engine="ray", workers=2)
"""
    process = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.DEVNULL)
    done = tmp_path / "out/.prepare"
    while process.poll() is None and not list(done.glob("documents-*.parquet")):
        time.sleep(0.01)
    started_by_it = psutil.Process(process.pid).children(recursive=True)
    # Ray's agents look for their server about once a minute; with it gone they end too.
    started_by_it = [one for one in started_by_it if not one.name().endswith("Agent")]
    assert process.poll() is None and started_by_it
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(started_by_it, timeout=30)
    assert alive == []
    prepare(source, tmp_path / "out", engine="ray", workers=2)
    prepare(source, tmp_path / "expected", workers=1)
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_ray_is_quiet_and_nothing_runs_afterwards(tmp_path: Path) -> None:
    pytest.importorskip("ray", exc_type=ImportError)
    source = articles(tmp_path, 9)
    command = [sys.executable, "-m", "visiontune", "prepare", str(source), "--out", str(tmp_path / "out")]
    before = {process.pid for process in psutil.process_iter()}
    found = subprocess.run([*command, "--engine", "ray", "--json"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert sum(json.loads(found.stdout)["splits"].values()) == 9
    assert all("rows" in line for line in found.stderr.splitlines()), found.stderr
    ours = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and "ray" in str(p.info["cmdline"])]
    assert psutil.wait_procs(ours, timeout=30)[1] == []


def test_an_unknown_engine_and_a_missing_ray_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = articles(tmp_path, 5)
    with pytest.raises(DataError, match="no engine 'spark'") as refused:
        visiontune.prepare(source, tmp_path / "out", engine="spark")  # pyright: ignore[reportArgumentType]
    assert refused.value.fix == "engines: processes, ray"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="needs Ray") as caught:
        visiontune.prepare(source, tmp_path / "out", engine="ray")
    assert "pip install 'visiontune[ray]'" in (caught.value.fix or "") and not (tmp_path / "out").exists()

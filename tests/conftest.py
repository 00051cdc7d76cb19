"""Real small data and real small models, made once for a test session."""

import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

import visiontune
from visiontune.cli import main
from visiontune.data.dataset import Dataset
from visiontune.recipe import Recipe
from visiontune.run import Run

# The same examples each time: a change must not fail by the luck of another one. To search for more of them:
# `pytest --hypothesis-profile default`.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

SAME_EVERYWHERE: dict[str, Any] = {
    "machine.device": "cpu",
    "machine.precision": "fp32",
    "machine.workers": 0,
    "machine.threads": 1,
}
# Quick, and the same on every machine: twelve steps of eight samples on one thread. Too few held-out samples are left
# for the receipt "image matters", which so short a run could not pass.
QUICK = {
    "data.limit": 30,
    "batch.samples": 8,
    "batch.window": 32,
    "batch.tokens": 512,
    "schedule.steps": 12,
    "evaluation.every": 6,
    "evaluation.samples": 16,
    "checkpoints.every": 3,
    **SAME_EVERYWHERE,
}


Call = Callable[..., tuple[int, str, str]]


def pytest_collection_finish() -> None:
    """What was imported stays to the end: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line; returns its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session", autouse=True)
def one_core(worker_id: str) -> None:
    """A core for each test process and all that it starts: two that share two cores would only wait for each other."""
    torch.set_num_threads(1)
    if worker_id != "master" and sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker_id.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Nothing waits until what it wrote is on the disk: no test cuts the power, and a process that is killed loses
    nothing of what it handed over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def digit_scans() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's handwritten digits: (1797, 8, 8) in [0, 16] and their classes."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    return scans.reshape(-1, 8, 8), labels


def png(scan: np.ndarray) -> bytes:
    """A digit scan as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray((scan * 255 / 16).round().astype("uint8")).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory, digit_scans: tuple[np.ndarray, np.ndarray]) -> Path:
    """600 digits as PNG files in class folders."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (scan, label) in enumerate(zip(*(half[:600] for half in digit_scans), strict=True)):
        place = folder / str(label)
        place.mkdir(exist_ok=True)
        (place / f"{number:04d}.png").write_bytes(png(scan))
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Dataset:
    """The 600 digits prepared."""
    return visiontune.prepare(digits_folder, tmp_path_factory.mktemp("prepared") / "digits", workers=1)


@pytest.fixture(scope="session")
def three_digits(tmp_path_factory: pytest.TempPathFactory, digit_scans: tuple[np.ndarray, np.ndarray]) -> Dataset:
    """345 scans of the digits 0, 1 and 3: quickly learned, and enough are held out to tell whether images matter."""
    folder = tmp_path_factory.mktemp("three") / "photos"
    for number, (scan, label) in enumerate(zip(*(half[:1150] for half in digit_scans), strict=True)):
        if label in (0, 1, 3):
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            (folder / str(label) / f"{number:04d}.png").write_bytes(png(scan))
    return visiontune.prepare(folder, tmp_path_factory.mktemp("prepared") / "three", workers=1)


INKS = {"red": (235, 60, 40), "blue": (40, 90, 235)}


@pytest.fixture(scope="session")
def inked(tmp_path_factory: pytest.TempPathFactory, digit_scans: tuple[np.ndarray, np.ndarray]) -> Dataset:
    """600 digits in red or blue ink: twenty classes such as "red 3", and colours that must not be mixed up."""
    folder = tmp_path_factory.mktemp("inked")
    for number, (scan, label) in enumerate(zip(*(half[:600] for half in digit_scans), strict=True)):
        ink = list(INKS)[number // 10 % 2]
        place = folder / f"{ink} {label}"
        place.mkdir(exist_ok=True)
        pixels = (scan[..., None] / 16 * np.array(INKS[ink])).round().astype("uint8")
        Image.fromarray(pixels).save(place / f"{number:04d}.png")
    return visiontune.prepare(folder, tmp_path_factory.mktemp("prepared") / "inked", workers=1)


@pytest.fixture(scope="session")
def device_run(tmp_path_factory: pytest.TempPathFactory, inked: Dataset, tiny_checkpoint: Path) -> Run:
    """A quick run for a device: frozen vision encoder, LoRA in the projector and the language model."""
    from visiontune.machine import hardware
    from visiontune.training.loop import train_run
    from visiontune.training.plan import derive, plan_run

    recipe = derive([inked], [None], str(tiny_checkpoint), hardware("cpu"), profile="desktop-llama")
    changes = {"optimizer.learning_rate": 1e-2, "device.max_new_tokens": 8, "checkpoints.every": 6}
    run = Run(tmp_path_factory.mktemp("device") / "run")
    plan_run(run, recipe.changed({**QUICK, **changes}), [inked])
    return train_run(run)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SmolVLM on disk, as a checkpoint from a hub would stand there."""
    from visiontune.models.smolvlm import build_tiny

    folder = tmp_path_factory.mktemp("checkpoint")
    build_tiny(folder, ["Which digit is this? Answer with its name.", *"0123456789"], 1, width=64, layers=2)
    return folder


def planner(dataset: Dataset, checkpoint: Path | str, folder: Path) -> Callable[..., Run]:
    """What plans a quick run in a folder: `plan("name", {"lora.rank": 4})`."""
    from visiontune.machine import hardware
    from visiontune.training.plan import derive, plan_run

    def make(name: str = "run", overrides: dict[str, Any] | None = None, model: str | None = None) -> Run:
        recipe = derive([dataset], [None], model or str(checkpoint), hardware("cpu"))
        recipe = recipe.changed({**QUICK, "optimizer.learning_rate": 1e-2, **(overrides or {})})
        run = Run(folder / name)
        plan_run(run, recipe, [dataset])
        return run

    return make


@pytest.fixture
def plan(digits: Dataset, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Run]:
    """Plan a quick run: `plan("name", {"lora.rank": 4})`. Pretrained-like by default: frozen vision, LoRA elsewhere."""
    return planner(digits, tiny_checkpoint, tmp_path)


@pytest.fixture
def recipe_of(digits: Dataset, tiny_checkpoint: Path) -> Recipe:
    """The recipe that is derived for the digits and the tiny checkpoint, made quick."""
    from visiontune.machine import hardware
    from visiontune.training.plan import derive

    return derive([digits], [None], str(tiny_checkpoint), hardware("cpu")).changed(QUICK)


def pytest_configure() -> None:
    """Each of several test processes keeps to a core of its own: two that train on two threads each wait for each other
    most of the time."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.startswith("gw") and sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, half of them for each of two processes: the first takes the first half of the list.

    Before them those that fork often: a fork takes the longer the more memory the process has come to hold.
    """
    forking = ("test_prepare.py", "test_remote.py", "test_pseudo_labels.py", "test_documents.py")
    longest = (
        *forking,
        *("test_demo.py", "test_documentation.py", "test_certificate.py", "test_receipts.py", "test_resume.py"),
    )
    long = sorted((item for item in items if item.path.name in longest), key=lambda i: longest.index(i.path.name))
    rest = [item for item in items if item.path.name not in longest]
    first = [item for item in long if longest.index(item.path.name) % 2 == 0]
    second = [item for item in long if longest.index(item.path.name) % 2 == 1]
    room = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *rest[:room], *second, *rest[room:]]

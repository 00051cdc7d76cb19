"""Data and short runs that several files look at, made once for a test session."""

from pathlib import Path

import pytest

import visiontune
from tests import object_runs, response_runs
from tests.written_recordings import write_npz
from visiontune.data.dataset import Dataset
from visiontune.data.recordings.prepare import prepare_recordings
from visiontune.demo_shapes import draw_source
from visiontune.run import Run
from visiontune.run_group import RunGroup
from visiontune.simulated_neurons import simulate


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_source(tmp_path_factory.mktemp("shapes") / "source", 40)


@pytest.fixture(scope="session")
def shapes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return visiontune.prepare(source, tmp_path_factory.mktemp("prepared") / "shapes")


@pytest.fixture(scope="session")
def detector_run(shapes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return object_runs.train(shapes.path, tmp_path_factory.mktemp("runs") / "detector")


@pytest.fixture(scope="session")
def group(shapes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunGroup:
    changes = {"data.image_longest_edge": 96, "schedule.steps": 2, "checkpoints.every": 1, "evaluation.every": 2}
    return object_runs.train(
        shapes.path, tmp_path_factory.mktemp("runs") / "teacher", "tiny/mm-grounding-dino,tiny/sam", **changes
    )


@pytest.fixture(scope="session")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions of 60 s as .npz files, of two subjects, with other numbers of units."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, units in enumerate(response_runs.UNITS):
        made = simulate(
            f"session-{number}", seed=number, units=units, seconds=45, size=(16, 16), repeats=(1, 4),
            subject=f"subject-{number}",
        )  # fmt: skip
        write_npz(made, folder / f"session-{number}.npz")
    return folder


@pytest.fixture(scope="session")
def prepared(sessions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare_recordings(sessions, folder)
    return folder


@pytest.fixture(scope="session")
def core_run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return response_runs.train(prepared, tmp_path_factory.mktemp("runs") / "core")

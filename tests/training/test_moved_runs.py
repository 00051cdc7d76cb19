"""A run folder that was moved, renamed or copied reads the data that were prepared inside it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import visiontune
from visiontune.demo_shapes import draw_source
from visiontune.run import Run
from visiontune.training.model import open_datasets


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_source(tmp_path_factory.mktemp("drawn") / "shapes", 12)


def planned(data: Path, out: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    from visiontune.training import loop

    monkeypatch.setattr(loop, "train_run", lambda run, callbacks: run)
    options: dict[str, Any] = {"machine.device": "cpu", "machine.workers": 0}
    visiontune.train(data, model=model, out=out, overrides=options)
    return out


def read_in(folder: Path) -> list[Path]:
    """Where a run's datasets are read."""
    return [dataset.path for dataset in open_datasets(Run(folder).recipe)]


def test_a_run_reads_its_own_data_where_it_was_moved_or_copied(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planned(drawn, tmp_path / "run", "tiny/rf-detr", monkeypatch)
    (name,) = (path.name for path in read_in(run))
    assert read_in(run) == [run / "data" / name]
    recipe = (run / "recipe.yaml").read_bytes()
    copied = Path(shutil.copytree(run, tmp_path / "copied"))
    assert read_in(copied) == [copied / "data" / name]
    assert str(run / "data" / name) in capsys.readouterr().err, "it is said that another folder is read"
    moved = run.rename(tmp_path / "moved")
    assert read_in(moved) == [moved / "data" / name] and (moved / "recipe.yaml").read_bytes() == recipe

    info = copied / "data" / name / "dataset.json"  # other data of that name are not those of the run
    info.write_text(json.dumps({**json.loads(info.read_text()), "content_hash": "0" * 64}))
    assert Run(copied).recipe.data.datasets[0].path == str(run / "data" / name)


def test_members_of_a_group_read_the_data_of_the_group(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = planned(drawn, tmp_path / "group", "tiny/rf-detr,tiny/sam", monkeypatch)
    moved = group.rename(tmp_path / "moved")
    for role in ("detector", "segmenter"):
        assert [path.parent for path in read_in(moved / role)] == [moved / "data"]

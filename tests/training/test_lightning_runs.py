"""Runs that start from Lightning checkpoints of VisionCore's layout, on a small simulated session."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import visiontune
from tests.conftest import SAME_EVERYWHERE
from tests.vision_core import clip, published, save, whole
from tests.written_recordings import write_npz
from visiontune.cli.command_line import main
from visiontune.data.recordings.prepare import prepare_recordings
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.models.cortex_network import Cortex
from visiontune.run import Run
from visiontune.simulated_neurons import simulate
from visiontune.training.model import load_trained, open_datasets

QUICK: dict[str, Any] = {
    "responses.clip": 48,
    "batch.samples": 4,
    "batch.window": 16,
    "batch.tokens": 400,
    "schedule.steps": 2,
    "evaluation.every": 2,
    "evaluation.samples": 4,
    "checkpoints.every": 2,
    **SAME_EVERYWHERE,
}
PUBLISHED = ("adapter.table", "core.blocks.0.norm.*", "core.blocks.[12].*", "recurrence.*")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prepared session with behaviour, frames of 20 x 22 pixels."""
    folder = tmp_path_factory.mktemp("session")
    write_npz(simulate("one", seed=0, units=3, seconds=45, size=(20, 22), repeats=(1, 4)), folder / "one.npz")
    (data,) = prepare_recordings([folder / "one.npz"], folder / "data")
    return data


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder / "whole.ckpt", *whole())
    save(folder / "published.ckpt", *published(), prefix="model._orig_mod.")
    return folder


def train(data: Path, out: Path, start: Path | None = None, **overrides: Any) -> Run:
    run = visiontune.train(data, out=out, start=start, overrides={**QUICK, **overrides})
    assert isinstance(run, Run)
    return run


def test_readouts_are_fitted_on_the_frozen_core_of_a_checkpoint(
    session: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(session, tmp_path / "run", checkpoints / "whole.ckpt")
    said = capsys.readouterr().err
    assert run.status == "finished" and "whole.ckpt: 19 tensors taken, 0 of the core start new" in said
    states = dict.fromkeys(("adapter", "core", "frontend", "recurrence"), "frozen")
    assert run.recipe.parts == {**states, "readout": "full"}
    assert "taken whole from whole.ckpt and kept: adapter, core, frontend, recurrence" in run.recipe.why["parts"]
    assert run.recipe.responses is not None and run.recipe.responses.burn_in == 5 + 2 + 8
    status = {receipt["name"]: receipt["status"] for receipt in run.receipts}
    assert status["frozen stayed frozen"] == status["trained moved"] == "passed"
    taken = json.loads((run.base_folder / "taken.json").read_text())
    base, trained = Cortex.load(run.base_folder), load_trained(run, run.recipe, torch.device("cpu"))[0].network
    assert set(taken["taken"]) | set(taken["new"]) == set(base.state_dict())
    assert all(name.startswith("readout.") for name in taken["new"]) and taken["unused"]["readouts.0.bias"]
    kept = trained.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in base.state_dict().items() if name in taken["taken"])
    (dataset,) = open_datasets(run.recipe)
    assert dataset.info.recording is not None
    started = torch.nn.functional.softplus(base.readout.bias.detach())
    torch.testing.assert_close(started, torch.tensor(dataset.info.recording.mean_counts), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        theirs = whole()[0](clip()[:1])
        assert float((base.features(clip()[:1], torch.tensor([0])) - theirs).abs().max()) <= 1e-5


def test_what_a_checkpoint_lacks_has_to_be_allowed_and_is_trained(
    session: Path, checkpoints: Path, tmp_path: Path
) -> None:
    start = checkpoints / "published.ckpt"
    with pytest.raises(ModelError, match="17 tensors of the core are not filled") as refused:
        train(session, tmp_path / "run", start)
    assert "recurrence.state_bias (its reset gate" in refused.value.found and "--allow-missing" in str(refused.value)
    with pytest.raises(RecipeError, match=r"No tensor 'core\.blocks\.7' is missing"):
        train(session, tmp_path / "run", start, **{"model.allow_missing": [*PUBLISHED, "core.blocks.7"]})
    with pytest.raises(RecipeError, match="would stay as it is drawn") as frozen:
        train(session, tmp_path / "run", start, **{"model.allow_missing": PUBLISHED, "parts.core": "frozen"})
    assert frozen.value.where == "parts.core" and not (tmp_path / "run" / "recipe.yaml").exists()

    options = [option for name in PUBLISHED for option in ("--allow-missing", name)]
    fields = [part for name, value in QUICK.items() for part in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(session), "--from", str(start), *options, "--out", str(tmp_path / "run"), *fields])
    assert ended.value.code == 0
    run = Run(tmp_path / "run")
    trained = dict.fromkeys(("adapter", "core", "recurrence", "readout"), "full")
    assert run.recipe.parts == {**trained, "frontend": "frozen"}
    assert "trained, because not whole: adapter (1 tensors); core (" in run.recipe.why["parts"]
    assert run.recipe.optimizer.learning_rate < run.recipe.optimizer.part_learning_rates["readout"]
    assert run.recipe.model.allow_missing == PUBLISHED
    taken = json.loads((run.base_folder / "taken.json").read_text())
    assert set(taken["taken"]) == {"frontend.weight", "core.blocks.0.weight", "core.blocks.0.bias"} and taken["notes"]
    assert "failed" not in {receipt["status"] for receipt in run.receipts}


def test_tensors_are_missing_from_checkpoints_alone(session: Path, checkpoints: Path, tmp_path: Path) -> None:
    allowed = {"model.allow_missing": ["core.*"]}
    with pytest.raises(RecipeError, match="from a Lightning checkpoint alone"):
        train(session, tmp_path / "run", **allowed)
    first = train(session, tmp_path / "first", checkpoints / "whole.ckpt")
    with pytest.raises(RecipeError, match="from a Lightning checkpoint alone"):
        train(session, tmp_path / "run", first.path, **allowed)
    with pytest.raises(RecipeError, match=r"No tensor 'core\.\*' is missing"):
        train(session, tmp_path / "run", checkpoints / "whole.ckpt", **allowed)
    for number in range(8):
        folder = tmp_path / "photos" / ("even", "odd")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
    with pytest.raises(RecipeError, match=r"model\.allow_missing is of responses"):
        visiontune.train(tmp_path / "photos", model="tiny/smolvlm", out=tmp_path / "texts", overrides=allowed)


def test_a_checkpoints_core_keeps_its_shape_and_its_units_may_be_read_otherwise(
    session: Path, checkpoints: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"responses\.kernels is of a new core"):
        train(session, tmp_path / "other", checkpoints / "whole.ckpt", **{"responses.kernels": [5, 5, 3]})
    changes = {"responses.readout": "factorised", "responses.output": "exp"}
    run = train(session, tmp_path / "run", checkpoints / "whole.ckpt", **changes)
    config = Cortex.load(run.base_folder).config
    assert (config.readout, config.output, config.stimulus_mean, config.stimulus_std) == ("factorised", "exp", 127, 255)


def test_frames_that_are_not_of_eight_bits_are_refused(checkpoints: Path, tmp_path: Path) -> None:
    write_npz(simulate("one", seed=0, units=3, seconds=45, size=(20, 22), repeats=(1, 4)), tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "one.npz", **{**arrays, "stimulus": arrays["stimulus"].astype(np.float32)})
    with pytest.raises(DataError, match="shown frames of 8 bits"):
        train(tmp_path / "one.npz", tmp_path / "run", checkpoints / "whole.ckpt")

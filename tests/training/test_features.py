"""Features of a frozen vision encoder: computed once, the same losses, never another state's."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open

from tests.killed import Counted, killed
from tests.training.test_document_runs import documents, planned  # noqa: F401  # a fixture
from visiontune.data.dataset import Dataset
from visiontune.data.sample import Images
from visiontune.errors import MachineError, PausedError, RecipeError
from visiontune.machine import hardware
from visiontune.models.adapter import Features, ModelAdapter
from visiontune.models.load import build_tiny
from visiontune.run import Run
from visiontune.training import features, loop
from visiontune.training.loop import train_run
from visiontune.training.model import load_base
from visiontune.training.plan import derive, plan_run

Plan = Callable[..., Run]
LORA = {
    "parts.vision_encoder": "frozen",
    "parts.projector": "lora",
    "parts.language_model": "lora",
    "parts.embeddings": "frozen",
}


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.metrics("step")]


def decided(run: Run) -> dict[str, Any]:
    return json.loads((run.path / "features.json").read_text())


@pytest.mark.parametrize("model", ["tiny/deepseek-ocr", "tiny/deepseek-ocr2"])
def test_pages_read_from_features_give_the_losses_of_pages_drawn(
    documents: Dataset,  # noqa: F811
    tmp_path: Path,
    model: str,
) -> None:
    few = {"data.limit": 16, "schedule.steps": 2}
    runs = {
        kept: train_run(planned(documents, tmp_path / kept, model, **LORA, **few, **{"features.cache": kept}))
        for kept in ("never", "always")
    }
    assert losses(runs["always"]) == pytest.approx(losses(runs["never"]), rel=1e-6)
    assert decided(runs["always"])["kept"] and not (runs["never"].path / "features.json").exists()


def test_images_read_from_features_give_the_losses_of_images_with_several_tiles(plan: Plan) -> None:
    tiles = {"data.image_longest_edge": 64, "data.image_splitting": True, "features.cache": "never"}
    tiles |= {"schedule.steps": 4}
    never = train_run(plan("never", tiles))
    always = train_run(plan("always", {**tiles, "features.cache": "always"}))
    assert losses(always) == pytest.approx(losses(never), rel=1e-6)


def test_augmented_views_take_turns_with_and_without_features(plan: Plan) -> None:
    turns = {"data.augment": 0.5, "data.augmented_views": 2, "data.limit": 12}
    turns |= {"batch.window": 8, "schedule.steps": 6}
    drawn = losses(train_run(plan("drawn", {**turns, "features.cache": "never"})))
    read = train_run(plan("read", {**turns, "features.cache": "always"}))
    assert losses(read) == pytest.approx(drawn, rel=1e-6)
    assert "24 views" in decided(read)["reason"]  # 12 rows, two views each
    anew = losses(train_run(plan("anew", {**turns, "data.augmented_views": None})))
    assert anew[:3] == drawn[:3] and anew != drawn  # from the third epoch on views are seen again


def test_arithmetic_decides_whether_features_pay(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"data.limit": 15}
    once = train_run(plan("once", {**rows, "schedule.steps": 2}))  # 16 samples
    often = train_run(plan("often", {**rows, "schedule.steps": 6}))
    assert not decided(once)["kept"] and "does not pay" in decided(once)["reason"]
    assert decided(often)["kept"] and decided(often)["reads"] == pytest.approx(48 / 15)
    full = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1000), rmtree=shutil.rmtree)
    monkeypatch.setattr(features, "shutil", full)
    assert "has 0 MiB" in decided(train_run(plan("full", {**rows, "schedule.steps": 6})))["reason"]


def test_what_cannot_be_kept_is_refused_where_it_is_insisted_on(plan: Plan) -> None:
    with pytest.raises(RecipeError, match="vision encoder is trained"):
        train_run(plan("full", {"parts.vision_encoder": "lora", "features.cache": "always"}))
    with pytest.raises(RecipeError, match="augmented anew"):
        train_run(plan("anew", {"data.augment": 0.5, "features.cache": "always"}))
    assert not (train_run(plan("auto", {"data.augment": 0.5})).path / "features.json").exists()


def test_a_disk_too_full_for_features_is_said(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(features, "save_file", disk_full)
    run = plan("full", {"features.cache": "always"})
    with pytest.raises(MachineError, match=r"Features could not be written: .*No space left"):
        train_run(run)
    assert run.status == "failed" and not run.began


def test_runs_share_features_in_a_folder_and_a_runs_own_are_removed_at_its_end(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"features.cache": "always", "features.folder": str(tmp_path / "shared"), "schedule.steps": 4}
    first = losses(train_run(plan("first", shared)))
    computed: list[int] = []
    write = features._write
    monkeypatch.setattr(features, "_write", lambda path, made: (computed.append(len(made)), write(path, made)))
    assert losses(train_run(plan("second", {**shared, "lora.rank": 2}))) != first and not computed
    own = train_run(plan("own", {"features.cache": "always", "schedule.steps": 4}))
    assert sum(computed) == 30 and not (own.path / "features").exists()


def test_runs_of_fewer_rows_share_whole_chunks_and_have_a_last_one_of_their_own(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"features.cache": "always", "features.folder": str(tmp_path / "shared"), "schedule.steps": 4}
    computed: list[int] = []
    write = features._write
    monkeypatch.setattr(features, "CHUNK_ROWS", 8)
    monkeypatch.setattr(features, "_write", lambda path, made: (computed.append(len(made)), write(path, made)))
    train_run(plan("few", {**shared, "data.limit": 20}))
    assert computed == [8, 8, 4]
    every = losses(train_run(plan("all", shared)))
    assert computed[3:] == [8, 6]
    train_run(plan("as few", {**shared, "data.limit": 20}))
    assert len(computed) == 5
    assert every == pytest.approx(losses(train_run(plan("seen", {**shared, "features.cache": "never"}))), rel=1e-6)


def test_whatever_features_depend_on_has_features_of_its_own(
    plan: Plan, digits: Dataset, inked: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    build_tiny("tiny/smolvlm", folder, ["Which digit is this? Answer with its name.", *"0123456789"], 2, 32)
    shared = {"features.cache": "always", "features.folder": str(tmp_path / "shared"), "schedule.steps": 1}
    shared |= {"data.limit": 8}
    turns = {"data.augment": 0.5, "data.augmented_views": 1}

    def kept() -> int:
        return len(list((tmp_path / "shared").iterdir()))

    train_run(plan("first", shared))
    for number, (change, model) in enumerate(
        (
            ({}, str(folder)),
            (turns, None),
            ({**turns, "seed": 1}, None),
            ({"data.image_longest_edge": 16}, None),
            ({"machine.precision": "bf16"}, None),
        )
    ):
        train_run(plan(f"change {number}", {**shared, **change}, model))
        assert kept() == 2 + number, change
    run = Run(tmp_path / "rows")
    recipe = Run(tmp_path / "first").recipe
    other = derive([inked], [None], recipe.model.name, hardware("cpu"))
    used = {"data": other.data.model_copy(update={"limit": 8}), "evaluation": other.evaluation}
    plan_run(run, recipe.model_copy(update=used), [inked])
    train_run(run)
    assert kept() == 7
    train_run(plan("again", {**shared, "seed": 1}))  # without augmentation the seed changes no feature
    assert kept() == 7


def test_a_resumed_run_reads_the_same_features_and_ends_the_same(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_run(plan("whole", {"features.cache": "auto"}))
    halted = plan("halted", {"features.cache": "auto"})
    step = loop._step
    calls = 0

    def paused_after_five(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            halted.ask_to_pause()
        return step(*arguments, **options)

    monkeypatch.setattr(loop, "_step", paused_after_five)
    with pytest.raises(PausedError):
        train_run(halted)
    assert (halted.path / "features").is_dir()
    monkeypatch.undo()
    assert losses(train_run(halted)) == losses(whole)


def test_a_killed_computation_goes_on_with_the_chunks_that_are_missing(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan("run", {"features.cache": "always"})
    monkeypatch.setattr(features, "CHUNK_ROWS", 4)

    def work(counted: Counted) -> None:
        features._write = counted(features._write)
        train_run(run)

    assert not killed(3, work)
    computed: list[str] = []
    write = features._write
    monkeypatch.setattr(features, "_write", lambda path, made: (computed.append(path.name), write(path, made)))
    train_run(run)
    assert len(computed) == 5 and computed[0].endswith(
        "00000012-00000016.safetensors"
    )  # 30 rows, 8 chunks, three stood


def test_features_are_kept_in_the_precision_in_which_the_projector_gets_them(
    documents: Dataset,  # noqa: F811
    tmp_path: Path,
) -> None:
    options = {"features.cache": "always", "features.folder": str(tmp_path / "shared"), "machine.precision": "bf16"}
    options |= {"schedule.steps": 2}
    read = train_run(planned(documents, tmp_path / "read", **LORA, **options))
    chunk = min((tmp_path / "shared").glob("*/*.safetensors"))
    with safe_open(chunk, framework="pt") as file:
        assert file.get_tensor("features").dtype == torch.bfloat16
        assert file.get_tensor("counts").tolist() == documents.index("train").pages[: features.CHUNK_ROWS]
    drawn = train_run(planned(documents, tmp_path / "drawn", **LORA, **{**options, "features.cache": "never"}))
    assert losses(read) == pytest.approx(losses(drawn), rel=1e-6)


def test_samples_without_an_image_stand_beside_those_with_one(plan: Plan, digits: Dataset) -> None:
    run = plan("run")
    adapter: ModelAdapter = load_base(run, run.recipe, torch.device("cpu"))
    samples = [digits.sample("train", i) for i in range(3)]
    samples[1] = replace(samples[1], seen=Images(()))
    batch = adapter.encoder.collate([adapter.encoder.encode(one) for one in samples])
    with torch.no_grad():
        made = adapter.vision_features(batch)
        assert [len(one) for one in made] == [1, 0, 1]
        stored = [
            adapter.encoder.encode(sample, features=Features(one, ((0, 0),)) if len(one) else None)
            for sample, one in zip(samples, made, strict=True)
        ]
        read = adapter.losses(adapter.encoder.collate(stored))["text"]
        assert np.allclose(read, adapter.losses(batch)["text"], rtol=1e-6)

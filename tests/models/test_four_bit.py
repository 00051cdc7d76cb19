"""QLoRA: base weights in four bits under adapters. bitsandbytes computes them on a CPU too, so what runs on CUDA is
tried here, past the refusal."""

import importlib.util
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from visiontune.data.dataset import Dataset
from visiontune.errors import MachineError, PausedError, RecipeError
from visiontune.models.four_bit import quantise, refuse_four_bit
from visiontune.models.load import load_adapter
from visiontune.models.parts import Part, trained_tensors
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training import model
from visiontune.training.checkpoint import load_latest
from visiontune.training.loop import train_run
from visiontune.training.plan import plan_run
from visiontune.training.ranks import Ranks
from visiontune.training.session import set_up

STATES = {"vision_encoder": "frozen", "projector": "lora", "language_model": "lora", "embeddings": "full"}
ADAPTED: dict[str, Any] = {f"parts.{part}": state for part, state in STATES.items() if part != "embeddings"}
ADAPTED |= {"parts.embeddings": "frozen", "features.cache": "never"}
FOUR_BIT = {**ADAPTED, "model.four_bit": ["language_model"]}


@pytest.mark.parametrize(
    ("parts", "device", "error", "said"),
    [
        (["language_model"], "cpu", MachineError, "on CUDA; this run is on cpu"),
        (["embeddings"], "cuda", RecipeError, "trained in full"),
        (["decoder"], "cuda", RecipeError, "no part 'decoder'"),
    ],
)
def test_what_has_no_four_bit_weights_is_refused(parts: list[str], device: str, error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        refuse_four_bit(parts, STATES, device)
    refuse_four_bit([], STATES, device)


def test_a_missing_package_is_an_error_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match=r"visiontune\[qlora\]"):
        refuse_four_bit(["language_model"], STATES, "cuda")


def test_linear_layers_of_the_part_shrink_and_others_stay_whole(tiny_checkpoint: Path, recipe_of: Recipe) -> None:
    adapter = load_adapter(str(tiny_checkpoint), None, recipe_of.data)
    before = {name: parameter.clone() for name, parameter in adapter.network.named_parameters()}
    part = next(part for part in adapter.parts if part.name == "language_model")
    count = quantise(adapter.network, [part], torch.float32)
    adapter.network.to("cpu")
    packed = {name: p for name, p in adapter.network.named_parameters() if p.dtype == torch.uint8}
    assert len(packed) == count == 14, "seven layers in each of two blocks"
    assert all(part.holds(name) and before[name].numel() == 2 * p.numel() for name, p in packed.items())
    for name, parameter in adapter.network.named_parameters():
        assert name in packed or torch.equal(parameter, before[name])
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["down_proj"]), adapter.network)
    adapted = [module for name, module in adapter.network.named_modules() if name.endswith("down_proj")]
    assert {type(module).__name__ for module in adapted} == {"Linear4bit"}, "PEFT knows that the weights are packed"


def test_weights_that_another_layer_shares_stay_whole() -> None:
    network = torch.nn.ModuleDict({"embed": torch.nn.Embedding(64, 64), "head": torch.nn.Linear(64, 64, bias=False)})
    network["head"].weight = network["embed"].weight
    assert quantise(network, [Part("all", ("embed", "head"))], torch.float32) == 0
    assert type(network["head"]) is torch.nn.Linear


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the refusal, and without the layout that bitsandbytes gives weights on some CPUs at the first answer."""
    monkeypatch.setattr(model, "refuse_four_bit", lambda *_: None)
    monkeypatch.setattr(importlib.import_module("bitsandbytes.nn.modules"), "has_avx512bf16", lambda: False)


def planned(folder: Path, recipe: Recipe, digits: Dataset, changes: dict[str, Any]) -> Run:
    run = Run(folder)
    steps = {"schedule.steps": 4, "evaluation.every": 4, "evaluation.samples": 4, "checkpoints.every": 2}
    plan_run(run, recipe.changed({**steps, **changes}), [digits])
    return run


def test_a_run_on_four_bits_learns_resumes_and_keeps_its_base(
    digits: Dataset, recipe_of: Recipe, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(MachineError, match="four bits"):
        train_run(planned(tmp_path / "refused", recipe_of, digits, FOUR_BIT))
    request.getfixturevalue("on_cpu")
    whole = planned(tmp_path / "whole", recipe_of, digits, ADAPTED)
    run = train_run(planned(tmp_path / "four", recipe_of, digits, FOUR_BIT))
    statuses = {receipt["name"]: receipt["status"] for receipt in run.receipts}
    assert statuses["frozen stayed frozen"] == statuses["trained moved"] == "passed"
    first, its = run.metrics("step")[0]["loss"], train_run(whole).metrics("step")[0]["loss"]
    assert first != its and first == pytest.approx(its, rel=0.05), "nearly the same model"
    parts = {part["part"]: part["parameters"] for part in run.read_json("parts.json") or []}
    assert parts == {part["part"]: part["parameters"] for part in whole.read_json("parts.json") or []}

    paused = planned(tmp_path / "paused", recipe_of, digits, FOUR_BIT)
    paused.ask_to_pause()
    with pytest.raises(PausedError):
        train_run(paused)
    train_run(paused)
    assert [step["loss"] for step in paused.metrics("step")] == [step["loss"] for step in run.metrics("step")]


@pytest.mark.usefixtures("on_cpu")
def test_its_adapter_is_that_of_the_whole_base(digits: Dataset, recipe_of: Recipe, tmp_path: Path) -> None:
    """What was learned on four bits is loaded upon the weights that the checkpoint has, off CUDA and in exports."""
    run = planned(tmp_path / "run", recipe_of, digits, {**FOUR_BIT, "schedule.steps": 2, "evaluation.every": 2})
    train_run(run)
    elsewhere = run.recipe.computing_on("cpu", "fp32")
    assert elsewhere.model.four_bit == ()
    adapter, _ = model.load_trained(run, elsewhere, torch.device("cpu"))
    latest = load_latest(run)
    assert latest is not None
    loaded = trained_tensors(adapter.trained_module, adapter.parts, elsewhere.parts)
    assert loaded.keys() == latest.trained.keys() and all(torch.equal(loaded[n], latest.trained[n]) for n in loaded)
    session = set_up(run, run.recipe, Ranks("cpu"))
    assert {p.dtype for p in session.module.parameters()} >= {torch.uint8}

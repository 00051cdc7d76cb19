"""Which attention computes, as the recipe says."""

from collections.abc import Callable

import pytest
import torch

from visiontune.errors import MachineError, RecipeError
from visiontune.run import Run
from visiontune.training.loop import train_run

Plan = Callable[..., Run]


def test_flash_attention_is_asked_of_the_model_or_refused(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from transformers import PreTrainedModel

    from visiontune.training import model

    with pytest.raises(MachineError, match="computes on CUDA"):
        train_run(plan("cpu", {"machine.attention": "flash"}))
    machine = plan("other").recipe.machine.model_copy(update={"device": "cuda"})
    with pytest.raises(RecipeError, match="bf16 or fp16"):
        model.refuse_flash(machine)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match="package flash-attn is missing"):
        model.refuse_flash(machine.model_copy(update={"precision": "bf16"}))
    monkeypatch.undo()

    asked: list[str] = []
    monkeypatch.setattr(model, "refuse_flash", lambda _: None)
    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", lambda _, name: asked.append(name))
    for name in ("sdpa", "flash"):
        run = plan(name, {"machine.attention": name})
        model.load_base(run, run.recipe, torch.device("cpu"))
    assert asked == ["flash_attention_2"]

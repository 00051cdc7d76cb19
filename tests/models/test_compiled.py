"""Compiled layers: the same losses, few graphs, and nothing compiled that learns nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from visiontune.data.dataset import Dataset
from visiontune.models.compiled import compile_layers
from visiontune.run import Run
from visiontune.training.loop import train_run
from visiontune.training.model import load_base

Plan = Callable[..., Run]
SHORT = {"schedule.steps": 4, "evaluation.every": 4, "evaluation.samples": 4, "schedule.warmup": 0.25}


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.metrics("step")]


def test_compiled_layers_leave_the_losses_and_answer_uncompiled(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for any backend; what the traced graphs are made into is torch's affair, and would take a minute."""
    from torch._dynamo.testing import CompileCounter

    graphs = CompileCounter()
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: original(f, backend=graphs, **options))
    run = plan("answers")
    adapter: Any = load_base(run, run.recipe, torch.device("cpu"))
    assert compile_layers(adapter.network) == 4
    batch = adapter.encoder.collate(
        [adapter.encoder.encode(Dataset.open(run.recipe.data.datasets[0].path).sample("train", 0))]
    )
    with torch.no_grad():
        adapter.losses(batch)
    assert graphs.frame_count == 0, "what learns nothing is not compiled"

    overrides = {**SHORT, "lora.dropout": 0.0, "batch.tokens": 200, "machine.recompute": True}
    plain = train_run(plan("plain", overrides))
    compiled = train_run(plan("compiled", {**overrides, "machine.compile": True}))
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
    assert 0 < graphs.frame_count <= 8, "few graphs for all layers and lengths"
    torch.compiler.reset()

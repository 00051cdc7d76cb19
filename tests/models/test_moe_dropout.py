"""Dropout of experts and gates acts while training only, follows from the generator, and keeps the mean."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.conftest import png
from visiontune.data.sample import ImageFile, Images, Sample, Text
from visiontune.errors import RecipeError
from visiontune.models.adapter import Batch
from visiontune.models.deepseek_ocr import load
from visiontune.models.load import build_tiny
from visiontune.models.moe_dropout import attach
from visiontune.models.parts import apply_states
from visiontune.recipe import MoeDropout, Recipe
from visiontune.recipe_sections import Data, Lora, PartState


@pytest.fixture(scope="module", params=["tiny/deepseek-ocr", "tiny/deepseek-ocr2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    build_tiny(request.param, folder, ["?", *"0123456789"], 1, 32)
    return folder


@pytest.fixture
def data(recipe_of: Recipe) -> Data:
    return recipe_of.data.model_copy(update={"image_longest_edge": 32})


@pytest.fixture
def batch(folder: Path, data: Data, digit_scans: tuple[np.ndarray, np.ndarray]) -> Batch:
    encoder = load(str(folder), None, data).encoder
    samples = [Sample(str(i), Images((ImageFile(png(digit_scans[0][i]), "s"),)), Text(str(i), "?")) for i in range(4)]
    return encoder.collate([encoder.encode(one) for one in samples])


def dropping(folder: Path, data: Data, dropout: MoeDropout) -> Any:
    adapter = load(str(folder), None, data)
    attach(dropout, adapter.expert_layers)
    return adapter


def losses(adapter: Any, batch: Batch, seed: int = 0) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return adapter.losses(batch)["text"]


def test_rates_of_zero_are_the_model_without_dropout_bit_for_bit_and_draw_nothing(
    folder: Path, data: Data, batch: Batch
) -> None:
    without, zero = load(str(folder), None, data), dropping(folder, data, MoeDropout())
    without.network.train(), zero.network.train()
    state = torch.get_rng_state()
    assert torch.equal(without.losses(batch)["text"], zero.losses(batch)["text"])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "dropout", [MoeDropout(experts=0.5), MoeDropout(gates=0.5), MoeDropout(experts=0.3, gates=0.3)]
)
def test_dropout_follows_from_the_generator_and_evaluation_never_drops(
    folder: Path, data: Data, batch: Batch, dropout: MoeDropout
) -> None:
    adapter = dropping(folder, data, dropout)
    plain = load(str(folder), None, data)
    assert torch.equal(losses(adapter.network.eval() and adapter, batch), losses(plain, batch))
    adapter.network.train()
    drawn = [losses(adapter, batch, seed) for seed in range(4)]
    assert torch.equal(drawn[2], losses(adapter, batch, 2))
    assert len({one.sum().item() for one in drawn}) > 1
    adapter.network.eval()
    assert torch.equal(losses(adapter, batch, 3), losses(plain, batch, 5))


def test_a_frozen_mixture_keeps_its_experts(folder: Path, data: Data, batch: Batch) -> None:
    adapter = dropping(folder, data, MoeDropout(experts=0.9))
    adapter.network.train()
    adapter.network.get_submodule("model.language_model.layers").eval()
    assert torch.equal(losses(adapter, batch, 1), losses(adapter, batch, 2))


def test_a_dropped_expert_gets_no_gradient_and_adapters_on_experts_are_dropped_with_them(
    folder: Path, data: Data, batch: Batch
) -> None:
    adapter = dropping(folder, data, MoeDropout(experts=0.99))  # one of four stays
    adapter.network.train()
    losses(adapter, batch).sum().backward()
    experts: Any = adapter.network.get_submodule("model.language_model.layers.1.mlp.experts")
    assert experts.gate_up_proj.grad.flatten(1).any(-1).sum() == 1
    assert experts.down_proj.grad.flatten(1).any(-1).sum() == 1
    frozen: dict[str, PartState] = dict.fromkeys(("vision_encoder", "projector", "embeddings"), "frozen")
    lora = Lora(rank=2, alpha=4, dropout=0.0)
    peft = apply_states(adapter.network, adapter.parts, {**frozen, "language_model": "lora"}, lora, seed=0)
    assert peft is not None
    peft.train()
    losses(adapter, batch).sum().backward()
    (factor,) = [p for n, p in peft.named_parameters() if "mlp.experts.base_layer.lora_B" in n]
    assert factor.grad is not None
    by_expert = factor.grad.reshape(factor.shape[0], 2, 4)  # (out, rank, experts), as PEFT reads it
    assert by_expert.flatten(0, 1).any(0).sum() == 1


class Echo(torch.nn.Module):
    """Stands for an expert layer: gives the gates back as they reach it."""

    num_experts = 8

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        return gates


@pytest.mark.parametrize(
    "dropout", [MoeDropout(experts=0.4, keep_experts=3), MoeDropout(gates=0.4), MoeDropout(experts=0.7, gates=0.2)]
)
def test_the_mean_of_many_draws_is_the_gate_without_dropout(dropout: MoeDropout) -> None:
    layer = Echo()
    attach(dropout, [layer])
    chosen = torch.arange(8).reshape(4, 2)
    gates = torch.linspace(0.1, 0.8, 8).reshape(4, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = torch.stack([layer(torch.zeros(4, 1), chosen, gates) for _ in range(20_000)])
    stays = (drawn != 0).flatten(1)
    if dropout.experts:
        assert int(stays.sum(1).min()) >= (0 if dropout.gates else dropout.keep_experts)
    assert torch.allclose(drawn.mean(0) / gates, torch.ones(4, 2), atol=0.06)
    expected = (1 - dropout.experts) * (1 - dropout.gates)
    assert stays.float().mean().item() == pytest.approx(expected, abs=0.03)


def test_as_many_experts_as_asked_stay() -> None:
    layer = Echo()
    attach(MoeDropout(experts=0.99, keep_experts=3), [layer])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [layer(torch.zeros(4, 1), torch.arange(8).reshape(4, 2), torch.ones(4, 2)) for _ in range(100)]
    assert min(int((one != 0).sum()) for one in drawn) == 3


def test_rates_and_counts_that_make_no_sense_are_refused() -> None:
    for wrong in ({"experts": 1.0}, {"gates": -0.1}, {"keep_experts": 0}):
        with pytest.raises(ValidationError):
            MoeDropout(**wrong)
    with pytest.raises(RecipeError, match="a layer has 8"):
        attach(MoeDropout(experts=0.1, keep_experts=9), [Echo()])
    with pytest.raises(RecipeError, match="no experts"):
        attach(MoeDropout(gates=0.1), [])

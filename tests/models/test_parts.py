"""Parts are trained, adapted or frozen as asked, and counted."""

from pathlib import Path

import pytest
import torch
from torch import nn

from visiontune.errors import ModelError, RecipeError
from visiontune.models.adapter import ModelAdapter
from visiontune.models.load import load_adapter
from visiontune.models.parts import (
    Part,
    apply_states,
    check_parts,
    frozen_tensors,
    set_training_mode,
    summarise,
    tensors_sha256,
    trained_tensors,
)
from visiontune.recipe import Lora, PartState, Recipe

LORA = Lora(rank=4, alpha=8, dropout=0.0)
NAMES = ("vision_encoder", "projector", "language_model", "embeddings")


@pytest.fixture
def adapter(tiny_checkpoint: Path, recipe_of: Recipe) -> ModelAdapter:
    return load_adapter(str(tiny_checkpoint), None, recipe_of.data)


def states(**changed: PartState) -> dict[str, PartState]:
    return {**dict.fromkeys(NAMES, "frozen"), **changed}


def test_every_weight_belongs_to_exactly_one_part(adapter: ModelAdapter) -> None:
    check_parts(adapter.network, adapter.parts, states(projector="full"))
    assert sum(s.parameters for s in summarise(adapter.network, adapter.parts, states())) == sum(
        p.numel() for p in adapter.network.parameters()
    )


def test_a_part_that_names_no_module_is_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="without any weight"):
        check_parts(network, (Part("all", ("0",)), Part("none", ("7",))), {"all": "full", "none": "full"})


def test_a_weight_outside_all_parts_is_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ModelError, match="belongs to 0 parts"):
        check_parts(network, (Part("first", ("0",)),), {"first": "full"})


def test_part_names_are_module_paths_not_prefixes_of_names() -> None:
    assert Part("p", ("model.vision",)).holds("model.vision.weight")
    assert not Part("p", ("model.vision",)).holds("model.vision_model.weight")


def test_an_unknown_or_missing_part_in_the_recipe_is_an_error_with_the_names(adapter: ModelAdapter) -> None:
    with pytest.raises(RecipeError, match="unknown") as caught:
        check_parts(adapter.network, adapter.parts, {**states(), "visual": "full"})
    assert "vision_encoder" in (caught.value.fix or "")


def test_nothing_to_train_is_an_error(adapter: ModelAdapter) -> None:
    with pytest.raises(RecipeError, match="nothing would be trained"):
        apply_states(adapter.network, adapter.parts, states(), LORA, seed=0)


@pytest.mark.parametrize("part", NAMES)
def test_a_part_in_full_trains_all_of_its_weights_and_no_other(adapter: ModelAdapter, part: str) -> None:
    chosen = states(**{part: "full"})
    assert apply_states(adapter.network, adapter.parts, chosen, LORA, seed=0) is None
    for summary in summarise(adapter.network, adapter.parts, chosen):
        assert summary.trainable == (summary.parameters if summary.part == part else 0)


@pytest.mark.parametrize("part", NAMES)
def test_lora_on_a_part_adds_adapters_to_its_linear_layers_only(adapter: ModelAdapter, part: str) -> None:
    chosen = states(**{part: "lora"})
    linear = [p for p, m in adapter.network.named_modules() if isinstance(m, nn.Linear)]
    expected = sum(next(x for x in adapter.parts if x.name == part).holds(path) for path in linear)
    peft = apply_states(adapter.network, adapter.parts, chosen, LORA, seed=0)
    assert peft is not None
    trained = [name for name, p in peft.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * expected > 0
    assert all("lora_" in name for name in trained)


def test_full_beside_lora_is_saved_with_the_adapter_and_off_is_the_base_model(adapter: ModelAdapter) -> None:
    chosen = states(language_model="lora", projector="full", vision_encoder="full")
    peft = apply_states(adapter.network, adapter.parts, chosen, LORA, seed=0)
    assert peft is not None
    by_part = {s.part: s for s in summarise(peft, adapter.parts, chosen)}
    assert by_part["projector"].trainable > 0 and by_part["vision_encoder"].trainable > 0
    # The trained copy stands beside the original, which stays for `disable_adapter`.
    assert by_part["projector"].parameters == 2 * by_part["projector"].trainable


def test_new_adapters_follow_from_the_seed_and_leave_the_global_generator_alone(
    tiny_checkpoint: Path, recipe_of: Recipe
) -> None:
    def adapters(seed: int) -> str:
        fresh = load_adapter(str(tiny_checkpoint), None, recipe_of.data)
        chosen = states(language_model="lora")
        before = torch.get_rng_state()
        peft = apply_states(fresh.network, fresh.parts, chosen, LORA, seed=seed)
        assert peft is not None
        assert torch.equal(before, torch.get_rng_state())
        return tensors_sha256(trained_tensors(peft, fresh.parts, chosen))

    assert adapters(1) == adapters(1) != adapters(2)


def test_frozen_and_trained_tensors_are_disjoint_and_complete(adapter: ModelAdapter) -> None:
    chosen = states(language_model="lora", projector="full")
    peft = apply_states(adapter.network, adapter.parts, chosen, LORA, seed=0)
    assert peft is not None
    trained, frozen = trained_tensors(peft, adapter.parts, chosen), frozen_tensors(peft, adapter.parts, chosen)
    assert not set(trained) & set(frozen)
    assert set(trained) | set(frozen) >= set(dict(peft.named_parameters()))


def test_batch_norm_of_a_frozen_part_rests_and_of_a_trained_part_is_saved() -> None:
    network = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": nn.BatchNorm1d(2)})
    parts = (Part("a", ("a",)), Part("b", ("b",)))
    chosen: dict[str, PartState] = {"a": "frozen", "b": "full"}
    apply_states(network, parts, chosen, LORA, seed=0)
    set_training_mode(network, network, parts, chosen)
    before = tensors_sha256(frozen_tensors(network, parts, chosen))
    for module in network.values():
        module(torch.randn(8, 2))
    assert tensors_sha256(frozen_tensors(network, parts, chosen)) == before
    assert "b.running_mean" in trained_tensors(network, parts, chosen)
    assert "a.running_mean" in frozen_tensors(network, parts, chosen)


def test_the_hash_sees_a_single_changed_number() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.bfloat16)}
    changed = {"a": torch.tensor([0.0, 0.0, 1e-30]), "b": tensors["b"]}
    assert tensors_sha256(tensors) != tensors_sha256(changed)
    assert tensors_sha256(tensors) == tensors_sha256(dict(reversed(tensors.items())))

"""Parts are trained, adapted or frozen as asked, and counted."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import png
from visiontune.data.sample import ImageFile, Images, Sample, Text
from visiontune.errors import ModelError, RecipeError
from visiontune.models.adapter import Batch, ModelAdapter
from visiontune.models.load import build_tiny, load_adapter
from visiontune.models.parts import (
    Part,
    apply_states,
    check_parts,
    frozen_tensors,
    save_adapter,
    set_training_mode,
    summarise,
    tensors_sha256,
    trained_tensors,
    without_cpu_kernels,
)
from visiontune.recipe import Recipe
from visiontune.recipe_sections import Lora, PartState

LORA = Lora(rank=4, alpha=8, dropout=0.0)
NAMES = ("vision_encoder", "projector", "language_model", "embeddings")


@pytest.fixture
def adapter(tiny_checkpoint: Path, recipe_of: Recipe) -> ModelAdapter:
    return load_adapter(str(tiny_checkpoint), None, recipe_of.data)


def states(**changed: PartState) -> dict[str, PartState]:
    return {**dict.fromkeys(NAMES, "frozen"), **changed}


def test_of_kernels_that_are_never_used_nothing_is_said_and_of_all_else_it_is(caplog: pytest.LogCaptureFixture) -> None:
    without_cpu_kernels()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
    logger.warning("another fault: %s", 3)
    logger.error("an error")
    assert caplog.messages == ["another fault: 3", "an error"]


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


def test_layers_may_be_named_part_by_part(adapter: ModelAdapter) -> None:
    chosen = states(language_model="lora", projector="lora")
    some = LORA.model_copy(update={"layers": {"language_model": ("q_proj", "v_proj")}})
    peft = apply_states(adapter.network, adapter.parts, chosen, some, seed=0)
    assert peft is not None
    adapted = {name.split(".lora_A")[0] for name, _ in peft.named_parameters() if ".lora_A." in name}
    language = {path for path in adapted if "text_model" in path}
    assert {path.rpartition(".")[2] for path in language} == {"q_proj", "v_proj"}
    assert adapted - language, "of the projector every layer"


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ({"language_model": ("qproj",)}, "no layer called 'qproj'"),
        ({"vision_encoder": ("q_proj",)}, "no part that LoRA"),
    ],
)
def test_a_layer_or_part_that_is_not_there_is_an_error_with_the_names(
    adapter: ModelAdapter, layers: dict[str, tuple[str, ...]], found: str
) -> None:
    some = LORA.model_copy(update={"layers": layers})
    with pytest.raises(RecipeError, match=found) as caught:
        apply_states(adapter.network, adapter.parts, states(language_model="lora"), some, seed=0)
    assert "q_proj" in (caught.value.fix or "") or "language_model" in (caught.value.fix or "")


def test_scales_of_updates_are_those_of_the_papers(tiny_checkpoint: Path, recipe_of: Recipe) -> None:
    for stabilised, expected in ((False, LORA.alpha / LORA.rank), (True, LORA.alpha / LORA.rank**0.5)):
        fresh = load_adapter(str(tiny_checkpoint), None, recipe_of.data)
        lora = LORA.model_copy(update={"stabilised": stabilised})
        apply_states(fresh.network, fresh.parts, states(language_model="lora"), lora, seed=0)
        scales = {
            m.scaling["default"]
            for m in fresh.network.modules()
            if type(m).__name__ == "Linear" and hasattr(m, "scaling")
        }
        assert scales == {expected}


def test_decomposed_weights_learn_their_lengths_and_start_as_the_base_model(adapter: ModelAdapter, digits: Any) -> None:
    batch = adapter.encoder.collate([adapter.encoder.encode(digits.sample("train", 0))])
    with torch.no_grad():
        before = adapter.losses(batch)["text"]
    lora = LORA.model_copy(update={"decomposed": True})
    peft = apply_states(adapter.network, adapter.parts, states(language_model="lora"), lora, seed=0)
    assert peft is not None
    lengths = [p for name, p in peft.named_parameters() if "lora_magnitude_vector" in name]
    assert lengths and all(p.requires_grad for p in lengths)
    with torch.no_grad():
        torch.testing.assert_close(adapter.losses(batch)["text"], before)
        with peft.disable_adapter():
            assert torch.equal(adapter.losses(batch)["text"], before)


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


# Mixtures of experts, whose weights are stacked in one tensor a layer


@pytest.fixture(scope="module", params=["tiny/deepseek-ocr", "tiny/deepseek-ocr2"])
def experts_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "base"
    build_tiny(request.param, folder, ["Which digit is this?", *"0123456789"], 1, 32)
    return folder


@pytest.fixture
def mixture(experts_folder: Path, recipe_of: Recipe) -> ModelAdapter:
    return load_adapter(str(experts_folder), None, recipe_of.data.model_copy(update={"image_longest_edge": 32}))


@pytest.fixture
def batch(mixture: ModelAdapter, digit_scans: tuple[np.ndarray, np.ndarray]) -> Batch:
    samples = [Sample(str(i), Images((ImageFile(png(digit_scans[0][i]), "s"),)), Text(str(i), "?")) for i in range(8)]
    return mixture.encoder.collate([mixture.encoder.encode(one) for one in samples])


def train_a_little(adapter: ModelAdapter, batch: Batch, chosen: dict[str, PartState], lora: Lora = LORA) -> None:
    """A few steps of plain gradient descent, so that the adapters are not zero any more; ends in eval mode."""
    adapter.peft = apply_states(adapter.network, adapter.parts, chosen, lora, seed=0)
    set_training_mode(adapter.trained_module, adapter.network, adapter.parts, chosen)
    trained = [p for p in adapter.trained_module.parameters() if p.requires_grad]
    for _ in range(4):
        adapter.losses(batch)["text"].sum().backward()
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
                    parameter.grad = None
    adapter.trained_module.eval()


def test_lora_on_the_language_model_reaches_attention_shared_and_routed_experts_and_no_vision(
    mixture: ModelAdapter, batch: Batch
) -> None:
    chosen = states(language_model="lora")
    peft = apply_states(mixture.network, mixture.parts, chosen, LORA, seed=0)
    assert peft is not None
    trained = {name: p for name, p in peft.named_parameters() if p.requires_grad}
    assert all(".language_model.layers." in name and ".lora_" in name for name in trained)
    routed = {name for name in trained if ".mlp.experts." in name}
    assert len(routed) == 4, "two factors for each of gate_up_proj and down_proj"
    for wanted in ("self_attn.q_proj", "self_attn.o_proj", "mlp.shared_experts.up_proj", "mlp.gate_proj"):
        assert any(wanted in name for name in trained)
    mixture.losses(batch)["text"].sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in trained.items() if ".lora_B" in name)
    assert {n for n in frozen_tensors(peft, mixture.parts, chosen) if n.endswith(("gate_up_proj", "experts.down_proj"))}


def test_with_the_adapter_off_a_mixture_of_experts_is_the_base_bit_for_bit(mixture: ModelAdapter, batch: Batch) -> None:
    with torch.no_grad():
        before = mixture.losses(batch)["text"]
    train_a_little(mixture, batch, states(language_model="lora", projector="lora"))
    assert mixture.peft is not None
    with torch.no_grad():
        trained = mixture.losses(batch)["text"]
        with mixture.peft.disable_adapter():
            assert torch.equal(mixture.losses(batch)["text"], before)
        assert torch.equal(mixture.losses(batch)["text"], trained) and not torch.equal(trained, before)


@pytest.mark.parametrize(
    "chosen",
    [
        {"language_model": "lora"},
        {"language_model": "lora", "vision_encoder": "full"},
        {"language_model": "lora", "vision_encoder": "lora", "projector": "lora"},
    ],
)
def test_a_saved_adapter_on_experts_is_the_model_in_plain_peft_and_merged(
    mixture: ModelAdapter, batch: Batch, experts_folder: Path, tmp_path: Path, chosen: dict[str, PartState]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    train_a_little(mixture, batch, states(**chosen))
    adapter: Any = mixture
    with torch.no_grad():
        for name, parameter in adapter.peft.named_parameters():  # large enough that nothing agrees by chance
            if ".mlp.experts." in name and ".lora_B" in name:
                parameter += 0.1
        ours = mixture.losses(batch)["text"]
        save_adapter(adapter.peft, tmp_path)
        plain = AutoModelForImageTextToText.from_pretrained(experts_folder, dtype=torch.float32)
        reloaded: Any = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
        trained = adapter.network
        mixture.network = reloaded.base_model.model
        assert torch.equal(mixture.losses(batch)["text"], ours)
        with reloaded.disable_adapter():
            assert not torch.allclose(mixture.losses(batch)["text"], ours, atol=1e-3)
        mixture.network = trained
        mixture.network = adapter.peft.merge_and_unload()
        assert torch.allclose(mixture.losses(batch)["text"], ours, atol=1e-5)
        assert set(dict(mixture.network.named_parameters())) == set(
            dict(AutoModelForImageTextToText.from_pretrained(experts_folder).named_parameters())
        )


def test_the_adapters_of_linear_layers_have_dropout_beside_those_of_experts(mixture: Any, batch: Batch) -> None:
    lora = Lora(rank=4, alpha=8, dropout=0.5)
    mixture.peft = apply_states(mixture.network, mixture.parts, states(language_model="lora"), lora, seed=0)
    layer = mixture.network.get_submodule("model.language_model.layers.0.self_attn.q_proj")
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1.0)
    mixture.trained_module.train()
    first, second = (mixture.losses(batch)["text"] for _ in range(2))
    assert not torch.equal(first, second)
    mixture.trained_module.eval()
    assert torch.equal(mixture.losses(batch)["text"], mixture.losses(batch)["text"])


def test_loose_weights_beside_lora_are_refused_and_trained_where_everything_is_full(mixture: ModelAdapter) -> None:
    with pytest.raises(RecipeError, match="view_separator"):
        apply_states(mixture.network, mixture.parts, states(language_model="lora", projector="full"), LORA, seed=0)
    chosen = states(projector="full")
    apply_states(mixture.network, mixture.parts, chosen, LORA, seed=0)
    set_training_mode(mixture.network, mixture.network, mixture.parts, chosen)
    loose = {
        name
        for name, _ in mixture.network.named_parameters()
        if name in ("model.view_separator", "model.image_newline")
    }
    assert set(trained_tensors(mixture.network, mixture.parts, chosen)) == {
        *loose,
        "model.multi_modal_projector.weight",
        "model.multi_modal_projector.bias",
    }
    assert loose


def test_an_expert_weight_that_is_not_there_is_an_error(mixture: ModelAdapter) -> None:
    wrong = tuple(
        replace(part, stacked=tuple(path.replace("down_proj", "no_proj") for path in part.stacked))
        for part in mixture.parts
    )
    with pytest.raises(ModelError, match="were asked for"):
        apply_states(mixture.network, wrong, states(language_model="lora"), LORA, seed=0)

"""Adapters beside what vLLM asks of one, as its sources say it; vLLM itself is not run here.

The rules are those of vLLM 0.2x, read in September 2026 in its repository and API pages (docs.vllm.ai): which fields of
adapter_config.json are refused (`vllm/lora/peft_helper.py`), which names of tensors are read and how they are renamed
(`vllm/lora/utils.py`, `vllm/lora/lora_model.py`), which modules get LoRA (`vllm/lora/model_manager.py`), the largest
rank (`vllm/config/lora.py`), and for each family `hf_to_vllm_mapper`, `packed_modules_mapping` and `get_mm_mapping`
(`vllm/model_executor/models/`: qwen2_5_vl.py, qwen3_vl.py, gemma3_mm.py, idefics3.py, of which smolvlm.py is one).
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from visiontune.models.load import build_tiny, load_adapter
from visiontune.models.parts import apply_states, save_adapter
from visiontune.recipe_sections import Data, DatasetUse, Lora

TEXTS = ("What is it?", "A cat.", "Be brief.")
LAYERS = {"self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"}, "mlp": {"gate_proj", "up_proj", "down_proj"}}
MAX_RANK = 16  # of a vLLM that is started without --max-lora-rank
FROZEN = dict.fromkeys(("vision_encoder", "projector", "language_model", "embeddings"), "frozen")


@dataclass(frozen=True)
class Family:
    """Where a family's modules stand in vLLM: how beginnings of names change, in order, and those of its parts."""

    language: str
    vision: tuple[str, ...]
    renamed: dict[str, str] = field(default_factory=dict)


QWEN3 = {
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
}
FAMILIES = {
    "tiny/qwen-vl": Family("language_model.model.", ("visual.",), QWEN3 | {"model.": "language_model.model."}),
    "tiny/qwen3-vl": Family("language_model.model.", ("visual.",), QWEN3),
    "tiny/gemma3": Family(
        "language_model.model.",
        ("vision_tower.", "multi_modal_projector."),
        {
            "model.language_model.": "language_model.model.",
            "model.vision_tower.": "vision_tower.",
            "model.multi_modal_projector.": "multi_modal_projector.",
            "lm_head.": "language_model.lm_head.",
        },
    ),
    "tiny/smolvlm": Family("model.text_model.", ("model.vision_model.", "model.connector.")),
}


def written(name: str, folder: Path, states: dict[str, str], **lora: Any) -> tuple[dict[str, Any], list[str]]:
    """adapter_config.json and the names of the tensors of a tiny model's adapter."""
    build_tiny(name, folder / "base", TEXTS, 0, 48)
    use = DatasetUse(path="data", content_hash="0")
    data = Data(datasets=(use,), prompt="What is it?", image_longest_edge=48, max_tokens=512)
    adapter: Any = load_adapter(str(folder / "base"), None, data)
    choices = Lora(**({"rank": 8, "alpha": 16.0, "dropout": 0.0} | lora))
    peft = apply_states(adapter.network, adapter.parts, FROZEN | states, choices, 0)
    assert peft is not None
    save_adapter(peft, folder / "adapter")
    with safe_open(folder / "adapter/adapter_model.safetensors", "pt") as file:
        return json.loads((folder / "adapter/adapter_config.json").read_text()), list(file.keys())


def refused(config: dict[str, Any], names: list[str]) -> list[str]:
    """Why vLLM would not load an adapter."""
    found = []
    if missing := {"r", "lora_alpha", "target_modules"} - config.keys():
        found.append(f"no {missing}")
    if config["r"] > MAX_RANK:
        found.append("rank")
    if config.get("modules_to_save"):
        found.append("modules_to_save")
    if config.get("use_dora"):
        found.append("DoRA")
    if config.get("bias", "none") != "none":
        found.append("bias")
    if not all(re.search(r"\.lora_[AB]\.weight$", name) for name in names):
        found.append("names")
    return found


def in_vllm(name: str, family: Family) -> str:
    """The module of vLLM that a tensor of an adapter belongs to."""
    module = name.removeprefix("base_model.model.")
    for old, new in family.renamed.items():
        if module.startswith(old):
            module = new + module.removeprefix(old)
    return module.rpartition(".lora_")[0]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("stabilised", [False, True], ids=["LoRA", "rsLoRA"])
def test_every_tensor_of_an_adapted_language_model_finds_its_module_in_vllm(
    name: str, stabilised: bool, tmp_path: Path
) -> None:
    config, names = written(name, tmp_path, {"language_model": "lora"}, stabilised=stabilised)
    assert refused(config, names) == []
    assert config["use_rslora"] == stabilised
    family = FAMILIES[name]
    modules = [in_vllm(one, family) for one in names]
    layers = 1 + max(int(module.removeprefix(family.language).split(".")[1]) for module in modules)
    wanted = {
        f"{family.language}layers.{i}.{block}.{layer}"
        for i in range(layers)
        for block, its in LAYERS.items()
        for layer in its
    }
    assert set(modules) == wanted and len(modules) == 2 * len(wanted)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("states", "lora", "why"),
    [
        ({"projector": "full"}, {}, ["modules_to_save", "names"]),
        ({}, {"decomposed": True}, ["DoRA", "names"]),
        ({}, {"rank": 32}, ["rank"]),
    ],
    ids=["a part in full", "DoRA", "a rank of many samples"],
)
def test_what_vllm_refuses(
    name: str, states: dict[str, str], lora: dict[str, Any], why: list[str], tmp_path: Path
) -> None:
    config, names = written(name, tmp_path, {"language_model": "lora", **states}, **lora)
    assert refused(config, names) == why


@pytest.mark.parametrize("name", FAMILIES)
def test_the_images_side_stands_where_vllm_adapts_only_on_demand(name: str, tmp_path: Path) -> None:
    """Such tensors are not used unless vLLM was started with enable_tower_connector_lora."""
    states = {"vision_encoder": "lora"} | ({} if name == "tiny/gemma3" else {"projector": "lora"})
    config, names = written(name, tmp_path, states)
    assert refused(config, names) == []
    modules = [in_vllm(one, FAMILIES[name]) for one in names]
    assert all(module.startswith(FAMILIES[name].vision) for module in modules)

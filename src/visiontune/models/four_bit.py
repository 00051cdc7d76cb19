"""Frozen weights in four bits: QLoRA (Dettmers et al. 2023), by bitsandbytes."""

import importlib
import importlib.util
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from visiontune.errors import MachineError, RecipeError
from visiontune.models.parts import Part

FIELD = "model.four_bit"


def refuse_four_bit(parts: Collection[str], states: Mapping[str, str], device: str) -> None:
    """Raise RecipeError where a part named in `model.four_bit` does not exist or is trained in full, MachineError where
    this device or installation has no four-bit weights."""
    for part in parts:
        if part not in states:
            raise RecipeError(f"There is no part '{part}'.", where=FIELD, fix=f"parts: {', '.join(states)}")
        if states[part] == "full":
            raise RecipeError(
                f"Part '{part}' is trained in full; weights in four bits cannot be trained.",
                where=FIELD,
                fix=f"--parts.{part} lora",
            )
    if parts and device != "cuda":
        raise MachineError(
            f"Weights in four bits are computed with on CUDA; this run is on {device}.",
            where=FIELD,
            fix="leave the field out here; LoRA on a CPU keeps its base weights whole",
        )
    if parts and importlib.util.find_spec("bitsandbytes") is None:
        raise MachineError(
            "Weights in four bits need the package bitsandbytes.", where=FIELD, fix="pip install 'visiontune[qlora]'"
        )


def quantise(network: nn.Module, parts: Collection[Part], dtype: torch.dtype) -> int:
    """Put the weights of these parts' linear layers in NF4 with double quantisation, once the network is moved to its
    device; returns how many layers. They compute in `dtype`. Weights that other layers share stay whole.
    """
    bitsandbytes: Any = importlib.import_module("bitsandbytes")
    holders: dict[int, int] = {}
    for _, parameter in network.named_parameters(remove_duplicate=False):
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    chosen = [
        (path, module)
        for path, module in network.named_modules()
        if type(module) is nn.Linear and holders[id(module.weight)] == 1 and any(part.holds(path) for part in parts)
    ]
    for path, module in chosen:
        four_bit = bitsandbytes.nn.Linear4bit(
            module.in_features, module.out_features, bias=module.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
        weight = module.weight.data
        four_bit.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=four_bit)
        if module.bias is not None:
            four_bit.bias = nn.Parameter(module.bias.data, requires_grad=False)
        outer, _, name = path.rpartition(".")
        setattr(network.get_submodule(outer), name, four_bit)
    # PEFT reads there which kind of LoRA layer to make.
    network.is_loaded_in_4bit = bool(chosen)  # pyright: ignore[reportArgumentType]
    return len(chosen)

"""Dropout for mixtures of experts: whole experts, and single entries of the gate, left out while training.

It acts where the router's choice enters the fused expert tensors, so it needs no weights of its own and stands beside
LoRA on them. It draws from torch's current generator, which the loop seeds by the place in the run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from visiontune.errors import RecipeError
from visiontune.recipe import MoeDropout


def attach(dropout: MoeDropout, layers: Iterable[nn.Module]) -> None:
    """Apply dropout to expert layers, called as transformers calls them: (hidden states, chosen experts, their gates).

    In each forward of each layer, while it trains, whole experts are left out for all tokens, and single entries of the
    gate, a token's share in one of its experts. What stays is scaled up, so that the mean is that of the whole layer. A
    rate of zero draws nothing; two of them leave the layers as they are. Raises RecipeError where there are no experts,
    or fewer than are to stay.
    """
    layers = list(layers)
    if not layers and (dropout.experts or dropout.gates):
        raise RecipeError("The model has no experts to leave out.", where="moe_dropout", fix="leave moe_dropout at 0")
    for layer in layers:
        experts: Any = layer.num_experts
        if dropout.keep_experts > experts:
            raise RecipeError(
                f"{dropout.keep_experts} experts are to stay; a layer has {experts}.",
                where="moe_dropout.keep_experts",
                fix=f"use {experts} or fewer",
            )
        if dropout.experts or dropout.gates:
            layer.register_forward_pre_hook(_LeaveOut(dropout, experts))


@dataclass(frozen=True)
class _LeaveOut:
    dropout: MoeDropout
    experts: int

    def __call__(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not layer.training:
            return None
        hidden, chosen, gates = inputs  # (tokens, width), (tokens, experts a token) twice
        if self.dropout.experts:
            drawn = torch.rand(self.experts, device=gates.device)
            # The luckiest stay in any case. All experts are equal in this, so the scale keeps the mean exactly.
            threshold = drawn.topk(self.dropout.keep_experts).values[-1].clamp(max=self.dropout.experts)
            stays = (drawn >= threshold).to(gates.dtype)
            gates = gates * (stays * (self.experts / stays.sum()))[chosen]
        if self.dropout.gates:
            gates = nn.functional.dropout(gates, self.dropout.gates)
        return hidden, chosen, gates

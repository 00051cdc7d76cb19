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


@dataclass(frozen=True)
class MoeDropout:
    """What is left out in each forward of each layer, while it trains.

    experts: the chance of each expert to be left out, for all tokens. keep_experts: so many stay at least. gates: the
    chance of each entry of the gate, a token's share in one of its experts, to be left out. What stays is scaled up, so
    that the mean is that of the whole layer.
    """

    experts: float = 0.0
    gates: float = 0.0
    keep_experts: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.experts < 1 and 0 <= self.gates < 1 and self.keep_experts >= 1):
            raise RecipeError(
                f"There is no dropout like {self}.", fix="rates from 0 to below 1, and at least one expert that stays"
            )


def attach(dropout: MoeDropout, layers: Iterable[nn.Module]) -> None:
    """Apply dropout to expert layers, called as transformers calls them: (hidden states, chosen experts, their gates).

    A rate of zero draws nothing; two of them leave the layers as they are. Raises RecipeError if more experts are to
    stay than there are.
    """
    for layer in layers:
        experts: Any = layer.num_experts
        if dropout.keep_experts > experts:
            raise RecipeError(f"{dropout.keep_experts} experts are to stay; a layer has {experts}.")
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

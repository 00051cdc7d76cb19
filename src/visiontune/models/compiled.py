"""Layers compiled by torch.compile for training: one graph of each kind of layer serves all lengths and batches."""

from typing import Any

import torch
from torch import nn

from visiontune.errors import RecipeError


def compile_layers(network: nn.Module) -> int:
    """Compile the repeated layers of a transformers model; returns how many.

    Shapes are dynamic, so that windows of many lengths need no graph each. What computes no gradient, as answering
    does with its growing cache, runs uncompiled. Raises RecipeError for a model without such layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise RecipeError(
            "This model has no repeated layers that are compiled.", where="machine.compile", fix="leave it off"
        )
    for layer in layers:
        _compile(layer)
    return len(layers)


def _compile(layer: Any) -> None:
    eager = layer.forward
    compiled = torch.compile(eager, dynamic=True)

    def forward(*inputs: Any, **named: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else eager)(*inputs, **named)

    layer.forward = forward

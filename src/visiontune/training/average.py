"""A moving average of the trained weights: evaluated, kept and shipped in their place, while training goes on with its
own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

WARM = 10  # the average of the first steps follows the weights more closely: at step s by (1 + s) / (WARM + s)


class WeightAverage:
    """The exponential moving average of a module's trainable parameters, by name, in their own type and place."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._own = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self._own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after `step` steps, counted from 1."""
        decay = min(self._decay, (1 + step) / (WARM + step))
        for name, parameter in self._own.items():
            self.tensors[name].lerp_(parameter.detach(), 1 - decay)

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from an average that was kept."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this holds, the module's weights are the average; then its own again, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._own.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data

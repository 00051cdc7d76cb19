"""Penalties on the weights of the network of `cortex_network`. Each is a pure function of the weights."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from visiontune.models.cortex_network import Cortex


def readout_l1(cortex: "Cortex") -> Tensor:
    """The sum of a unit's absolute weights over channels and places, averaged over units."""
    return cortex.readout.l1().mean()


def core_l2(cortex: "Cortex") -> Tensor:
    """The sum of squares of all weights (no gains, no biases) of core, modulation and recurrence."""
    parts = (cortex.core, cortex.modulation, cortex.recurrence)
    squares = [weight.square().sum() for part in parts for weight in part.parameters() if weight.ndim > 1]
    return torch.stack(squares).sum()


def smoothness(cortex: "Cortex") -> Tensor:
    """The squared Laplacian of the first spatial kernels, and the squared second difference in time of the front end's
    filters, summed over where they are defined without padding: nothing for kernels that are flat or a ramp."""
    kernels = cortex.core.first_kernels.flatten(0, 2)[:, None]
    total = kernels.new_zeros(())
    if kernels.shape[-1] >= 3:
        laplacian = kernels.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
        total = total + functional.conv2d(kernels, laplacian[None, None]).square().sum()
    for taps in cortex.frontend.parameters():
        total = total + taps.diff(n=2, dim=1).square().sum()
    return total


def locality(cortex: "Cortex") -> Tensor:
    """The variance of the places that a unit reads (down plus across, in half pictures), averaged over units."""
    return cortex.readout.spread().mean()


PENALTIES: dict[str, Callable[["Cortex"], Tensor]] = {
    "readout_l1": readout_l1,
    "core_l2": core_l2,
    "smoothness": smoothness,
    "locality": locality,
}

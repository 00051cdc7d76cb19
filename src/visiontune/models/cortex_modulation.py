"""How behaviour changes features, and memory beyond the convolutions, in the network of `cortex_network`."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from visiontune.models.cortex_core import convolved

FILM_HIDDEN = 32


class Film(nn.Module):
    """Scales and shifts each channel by what the animal does in the bin (Perez et al. 2018). Starts as the identity.

    x * (1 + scale) + shift, both from a layer of 32 rectified units; the weights and the bias of the last layer start
    at zero.
    """

    def __init__(self, channels: int, behaviour: int) -> None:
        super().__init__()
        self.hidden_weight = nn.Parameter(torch.empty(FILM_HIDDEN, behaviour))
        self.hidden_bias = nn.Parameter(torch.empty(FILM_HIDDEN))
        self.weight = nn.Parameter(torch.empty(2 * channels, FILM_HIDDEN))
        self.bias = nn.Parameter(torch.empty(2 * channels))

    def start(self, generator: torch.Generator) -> None:
        """The hidden layer drawn from `generator`, the last one zero."""
        nn.init.kaiming_normal_(self.hidden_weight, nonlinearity="relu", generator=generator)
        nn.init.normal_(self.hidden_bias, std=0.1, generator=generator)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, behaviour: Tensor) -> Tensor:
        """x: (batch, time, height, width, channels). behaviour: (batch, time, inputs). Returns the shape of x."""
        hidden = convolved(behaviour[:, :, None, None], self.hidden_weight[..., None, None], self.hidden_bias).relu()
        scale, shift = convolved(hidden, self.weight[..., None, None], self.bias).chunk(2, dim=-1)
        return x * (1 + scale) + shift


class Concatenation(nn.Module):
    """Behaviour as further channels of every pixel, mixed with the features by a rectified 1x1 convolution.

    The part for the features starts as the identity, the part for behaviour small.
    """

    def __init__(self, channels: int, behaviour: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels))
        self.behaviour_weight = nn.Parameter(torch.empty(channels, behaviour))
        self.bias = nn.Parameter(torch.empty(channels))

    def start(self, generator: torch.Generator) -> None:
        """The identity, and small weights drawn from `generator`."""
        nn.init.eye_(self.weight)
        nn.init.normal_(self.behaviour_weight, std=0.01, generator=generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, behaviour: Tensor) -> Tensor:
        """x: (batch, time, height, width, channels). behaviour: (batch, time, inputs). Returns the shape of x."""
        added = convolved(behaviour[:, :, None, None], self.behaviour_weight[..., None, None], self.bias)
        return (convolved(x, self.weight[..., None, None]) + added).relu()


class Unchanged(nn.Module):
    """Features as they are."""

    def start(self, generator: torch.Generator) -> None:
        """Nothing to start."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x."""
        return x


class ConvGRU(nn.Module):
    """A gated recurrent unit at every pixel, with 3x3 convolutions (Ballas et al. 2016); its state starts at zero.

    The reset gate acts on the convolved state, so that one convolution a bin serves all gates. What comes from the
    features is computed for all bins at once.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(3 * channels, inputs, 3, 3))
        self.state_weight = nn.Parameter(torch.empty(3 * channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(3 * channels))
        self.state_bias = nn.Parameter(torch.empty(channels))
        self.channels = channels

    def start(self, generator: torch.Generator) -> None:
        """Weights that keep the variance, drawn from `generator`; gates half open."""
        nn.init.kaiming_normal_(self.input_weight, nonlinearity="linear", generator=generator)
        nn.init.kaiming_normal_(self.state_weight, nonlinearity="linear", generator=generator)
        with torch.no_grad():
            self.state_weight.mul_(0.5)  # below one, or the state may never forget where it started
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.state_bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, time, height, width, in). Returns (batch, time, height, width, channels), in [-1, 1]."""
        given = convolved(x, self.input_weight, self.bias).permute(0, 1, 4, 2, 3)
        state = torch.zeros_like(given[:, 0, : self.channels])
        states = []
        for now in given.unbind(1):
            carried = functional.conv2d(state, self.state_weight, padding=1)
            gates = (now[:, : 2 * self.channels] + carried[:, : 2 * self.channels]).sigmoid()
            keep, reset = gates.chunk(2, dim=1)
            new = carried[:, 2 * self.channels :] + self.state_bias[:, None, None]
            new = (now[:, 2 * self.channels :] + reset * new).tanh()
            state = new + keep * (state - new)
            states.append(state)
        return torch.stack(states, dim=1).permute(0, 1, 3, 4, 2)

"""The core of the network of `cortex_network`: convolutions over space, and over time without padding.

All that happens here to a frame depends on that frame and a fixed number of earlier ones, so a clip computed at once
gives what each of its windows alone would give.
"""

from collections.abc import Sequence
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["relu", "split_relu"]


class LocalNorm(nn.Module):
    """Divides each pixel of each frame by the root mean square of its channels and a learned constant.

    y = gain * x / sqrt(mean over channels of x**2 + floor**2). RMSNorm (Zhang and Sennrich 2019) has a floor near
    zero, which takes away the contrast of the stimulus; here the floor starts at one, as the semi-saturation of
    divisive normalisation (Carandini and Heeger 2012).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(channels))
        self.floor = nn.Parameter(torch.empty(()))

    def start(self, generator: torch.Generator) -> None:
        """Gain and floor of one; draws nothing."""
        nn.init.ones_(self.gain)
        nn.init.ones_(self.floor)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., channels). Returns the same shape."""
        power = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(power + self.floor.square() + 1e-6) * self.gain


class Block(nn.Module):
    """Convolution, norm, shortcut where there is one, activation, pooling.

    `weight`: (out, in, time, height, width). Space is padded with zeros (the mean of the stimulus, in the first block)
    and keeps its size, but for `stride` and `pool`; time is not padded. `split_relu` keeps what is above and what is
    below zero in channels of their own, so that it gives twice as many.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        temporal: int,
        stride: int,
        pool: int,
        norm: bool,
        activation: Activation,
        residual: bool,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, temporal, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.norm = LocalNorm(outputs) if norm else None
        self.shortcut = nn.Parameter(torch.empty(outputs, inputs)) if residual and inputs != outputs else None
        self.residual, self.activation, self.stride, self.pool = residual, activation, stride, pool
        self.channels = 2 * outputs if activation == "split_relu" else outputs

    @property
    def memory(self) -> int:
        """How many frames are lost at the start of a clip."""
        return self.weight.shape[2] - 1

    def start(self, generator: torch.Generator) -> None:
        """Weights that keep the variance (He et al. 2015), drawn from `generator`."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(self.bias)
        if self.norm is not None:
            self.norm.start(generator)
        if self.shortcut is not None:
            nn.init.kaiming_normal_(self.shortcut, nonlinearity="linear", generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, time, height, width, in). Returns (batch, time - memory, height', width', channels)."""
        temporal = self.weight.shape[2]
        kept = x.shape[1] - self.memory
        # A window's frames side by side as channels: a convolution in two dimensions rounds the same whatever the
        # length of the clip, one in three does not.
        seen = x if temporal == 1 else torch.cat([x[:, j : j + kept] for j in range(temporal)], dim=-1)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        y = convolved(seen, weight, self.bias, self.stride)
        if self.norm is not None:
            y = self.norm(y)
        if self.residual:
            newest = x[:, self.memory :, :: self.stride, :: self.stride]
            y = y + (newest if self.shortcut is None else convolved(newest, self.shortcut[..., None, None]))
        y = torch.cat([y, -y], dim=-1).relu() if self.activation == "split_relu" else y.relu()
        if self.pool > 1:
            y = _as_clip(functional.avg_pool2d(_as_images(y), self.pool, ceil_mode=True), len(x))
        return y


class Core(nn.Module):
    """Blocks one after another. `resnet` has a shortcut around each but the first, `conv` has none."""

    def __init__(
        self,
        inputs: int,
        *,
        kind: Literal["resnet", "conv"],
        channels: Sequence[int],
        kernels: Sequence[int],
        temporal_kernels: Sequence[int],
        strides: Sequence[int],
        pools: Sequence[int],
        norm: bool,
        activation: Activation,
    ) -> None:
        super().__init__()
        blocks = []
        for i, outputs in enumerate(channels):
            block = Block(
                inputs,
                outputs,
                kernel=kernels[i],
                temporal=temporal_kernels[i],
                stride=strides[i],
                pool=pools[i],
                norm=norm,
                activation=activation,
                residual=kind == "resnet" and i > 0,
            )
            blocks.append(block)
            inputs = block.channels
        self.blocks = nn.ModuleList(blocks)
        self.channels = inputs
        self.memory = sum(block.memory for block in blocks)

    @property
    def first_kernels(self) -> Tensor:
        """The weights that see the pixels: (out, in, time, height, width)."""
        return self.get_parameter("blocks.0.weight")

    def start(self, generator: torch.Generator) -> None:
        """Every block's start, in order."""
        for block in self._blocks():
            block.start(generator)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, time, height, width, in). Returns (batch, time - memory, height', width', channels)."""
        for block in self._blocks():
            x = block(x)
        return x

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def size_after(size: int, strides: Sequence[int], pools: Sequence[int]) -> int:
    """The height or width that is left of `size` pixels after the blocks; the last one may cover less than a whole."""
    for stride, pool in zip(strides, pools, strict=True):
        size = ceil(ceil(size / stride) / pool)
    return size


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Each frame of (batch, time, height, width, in) convolved with `weight`, (out, in, kernel, kernel); space is
    padded with zeros.

    The rounding of a product of matrices depends on its shape and on how it lies in memory. So that it is the same for
    every frame, however many there are: also linear layers are convolutions frame by frame, never one product over all
    frames; channels stand last; and frames hold an even number of values (zeros fill up; `out` has to be even).
    """
    if x.shape[-1] % 2:
        x, weight = functional.pad(x, (0, 1)), functional.pad(weight, (0, 0, 0, 0, 0, 1))
    return _as_clip(functional.conv2d(_as_images(x), weight, bias, stride, weight.shape[-1] // 2), len(x))


def _as_images(x: Tensor) -> Tensor:
    """(batch, time, height, width, channels) as (batch * time, channels, height, width), channels last in memory."""
    return x.contiguous().flatten(0, 1).permute(0, 3, 1, 2)


def _as_clip(x: Tensor, batch: int) -> Tensor:
    """The other way round."""
    return x.permute(0, 2, 3, 1).unflatten(0, (batch, -1))

"""Where frames enter the network of `cortex_network`: each session's own view of them, and filters in time.

Inside the network a clip is (batch, time, height, width, channels), channels last: the fastest layout for the
convolutions on a CPU.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from visiontune.models.cortex_core import convolved


class SessionAdapter(nn.Module):
    """How each session sees the same picture: moved, scaled, brighter or darker. Starts as the exact identity.

    `table`: (sessions, 6), in this order the logarithm of the scale and the shift in half pictures, each down and
    across, the gain beyond one, and the offset in standard deviations of the stimulus. What lies outside of the picture
    repeats its edge. Between pixels the picture is interpolated by cubic convolution (Keys 1981, a = -1/2), so that a
    table of zeros gives back every pixel bit for bit and still has a gradient in both directions.
    """

    def __init__(self, sessions: int, height: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(sessions, 6))
        self.size = (height, width)

    def start(self, generator: torch.Generator) -> None:
        """The identity for every session; draws nothing."""
        nn.init.zeros_(self.table)

    def forward(self, frames: Tensor, session: Tensor) -> Tensor:
        """frames: (batch, time, height, width). session: (batch,) int64, rows of the table. Returns the same shape."""
        row = functional.embedding(session, self.table)
        height, width = self.size
        # Even sizes and copies in the plain order, so that every frame rounds the same: see `convolved`.
        frames = functional.pad(frames, (0, width % 2, 0, height % 2))
        down = _resampling(row[:, 0], row[:, 2], height, frames.shape[2])
        across = _resampling(row[:, 1], row[:, 3], width, frames.shape[3]).mT.contiguous()
        frames = (frames.flatten(1, 2) @ across).unflatten(1, frames.shape[1:3])
        frames = (down[:, None] @ frames)[:, :, :height, :width]
        gain, offset = row[:, 4, None, None, None], row[:, 5, None, None, None]
        return frames * (1 + gain) + offset


def _resampling(log_scale: Tensor, shift: Tensor, size: int, padded: int) -> Tensor:
    """Matrices that resample an axis: (batch, padded, padded), rows for the pixels made, columns for those read."""
    middle = (size - 1) / 2
    places = torch.arange(size, dtype=shift.dtype, device=shift.device) - middle
    source = middle + places * log_scale.exp()[:, None] + shift[:, None] * (size / 2)
    source = source.clamp(-2, size + 1)  # beyond, all pixels read the edge
    whole = source.detach().floor()
    t = source - whole
    weights = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    columns = torch.arange(padded, device=shift.device)
    matrix = torch.zeros(*source.shape, padded, dtype=shift.dtype, device=shift.device)
    for step, weight in enumerate(weights):
        read = (whole + (step - 1)).clamp(0, size - 1).long()
        matrix = matrix + weight[..., None] * (read[..., None] == columns)
    return functional.pad(matrix, (0, 0, 0, padded - size))


class TemporalFrontend(nn.Module):
    """Learned filters in time, the same at every pixel, over the last `taps` frames (valid: no padding).

    `weight`: (channels, taps), the last tap for the newest frame. They start as Gaussian derivatives of the orders 0 to
    3, at one more scale for every four channels, each of unit length (Koenderink 1988 has such kernels for time).
    """

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, taps))

    @property
    def memory(self) -> int:
        """How many frames are lost at the start of a clip."""
        return self.weight.shape[1] - 1

    def start(self, generator: torch.Generator) -> None:
        """Gaussian derivatives; draws nothing."""
        with torch.no_grad():
            self.weight.copy_(gaussian_derivatives(*self.weight.shape))

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (batch, time, height, width). Returns (batch, time - memory, height, width, channels)."""
        return convolved(frames.unfold(1, self.weight.shape[1], 1), self.weight[..., None, None])


class PlainFrontend(nn.Module):
    """Frames as they are, as one channel."""

    memory = 0

    def start(self, generator: torch.Generator) -> None:
        """Nothing to start."""

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (batch, time, height, width). Returns (batch, time, height, width, 1)."""
        return frames[..., None]


def gaussian_derivatives(channels: int, taps: int) -> Tensor:
    """Filters in time: (channels, taps) float64, the newest frame last. Channel c is a derivative of the order c % 4 of
    a Gaussian whose width is taps / 6, and 1.6 times narrower for every four channels; it peaks 2.5 widths back."""
    rows = []
    for channel in range(channels):
        order, scale = channel % 4, channel // 4
        width = max(taps / 6 / 1.6**scale, 0.5)
        ago = torch.arange(taps - 1, -1, -1, dtype=torch.float64)
        z = (ago - min(2.5 * width, (taps - 1) / 2)) / width
        row = (1.0, -z, z**2 - 1, -(z**3) + 3 * z)[order] * torch.exp(-(z**2) / 2)
        norm = math.sqrt(float((row**2).sum()))
        # One tap has no derivative: where nothing is left, the filter looks at the newest frame.
        rows.append(row / norm if norm > 1e-6 else functional.one_hot(torch.tensor(taps - 1), taps).double())
    return torch.stack(rows)

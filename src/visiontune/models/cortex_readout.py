"""From the features of a clip to the drive of each unit: readouts of the network of `cortex_network`.

All units of all sessions stand in one flat table; a batch names the rows that each of its samples wants. A readout
gives the drive, before the output's activation.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

START_SPREAD = 0.4  # half the picture lies within one standard deviation of its middle, about
PLACED_SPREAD = 0.05  # of units whose place is known
START_WEIGHT = 0.02


class Readout(nn.Module, ABC):
    """What the readouts share: `bias`, (units,), and weights with one row a unit.

    Places are (down, across) in [-1, 1], from edge to edge of the picture.
    """

    bias: nn.Parameter

    def __init__(self, units: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(units))
        self.channels, self.size = channels, (height, width)
        for name, count in (("rows", height), ("columns", width)):
            self.register_buffer(name, places_along(count).float(), persistent=False)
        self.register_buffer("half_pixel", torch.tensor([1 / height, 1 / width]), persistent=False)

    def forward(self, features: Tensor, units: Tensor) -> Tensor:
        """features: (batch, channels, time, height, width). units: (batch, n) int64, rows of the table.

        Returns the drive: (batch, time, n).
        """
        rows = {name: functional.embedding(units, table.flatten(1)) for name, table in self.tables().items()}
        return self.drive(features, rows) + functional.embedding(units, self.bias[:, None])[..., 0][:, None]

    def tables(self) -> dict[str, Tensor]:
        """The weights by name, without the bias; the first dimension of each is the units."""
        return {name: table for name, table in self.named_parameters() if name != "bias"}

    @abstractmethod
    def start(self, generator: torch.Generator) -> None:
        """Weights that are small and drawn from `generator`; biases of zero."""

    @abstractmethod
    def start_at(self, rows: Tensor, places: Tensor) -> None:
        """Start rows of the table, (n,) int64, at places in the picture, (n, 2)."""

    @abstractmethod
    def drive(self, features: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Features weighted by the rows of each table, (batch, n, ...), flat beyond; (batch, time, n)."""

    @abstractmethod
    def l1(self) -> Tensor:
        """For each unit the sum of its absolute weights over channels and places: (units,)."""

    @abstractmethod
    def spread(self) -> Tensor:
        """For each unit the variance of the places it reads, down plus across: (units,)."""

    def _spread_of(self, mass: Tensor) -> Tensor:
        """mass: (units, height, width), not negative. Its second moment about its own centre: (units,)."""
        mass = mass / mass.sum((1, 2), keepdim=True).clamp_min(1e-12)
        down, across = mass.sum(2), mass.sum(1)
        moment: Any = 0
        for share, places in ((down, self.get_buffer("rows")), (across, self.get_buffer("columns"))):
            centre = share @ places
            moment = moment + (share * (places - centre[:, None]).square()).sum(1)
        return moment


class GaussianReadout(Readout):
    """Each unit reads the features around one place, weighted by a Gaussian that sums to one (after Lurz et al. 2021,
    whose units sample one place).

    `place`: (units, 2), used within [-1, 1]; a place outside still learns the way back. `width`: (units, 2), the
    standard deviation is half a pixel plus its softplus. `weight`: (units, channels).
    """

    def __init__(self, units: int, channels: int, height: int, width: int) -> None:
        super().__init__(units, channels, height, width)
        self.place = nn.Parameter(torch.empty(units, 2))
        self.width = nn.Parameter(torch.empty(units, 2))
        self.weight = nn.Parameter(torch.empty(units, channels))

    def start(self, generator: torch.Generator) -> None:
        """Near the middle, over a good part of the picture, with small weights."""
        nn.init.normal_(self.place, std=0.05, generator=generator)
        nn.init.normal_(self.weight, std=START_WEIGHT, generator=generator)
        nn.init.zeros_(self.bias)
        nn.init.constant_(self.width, math.log(math.expm1(START_SPREAD)))

    @torch.no_grad()
    def start_at(self, rows: Tensor, places: Tensor) -> None:
        """Reads little more than a pixel there."""
        self.place[rows] = places.to(self.place)
        self.width[rows] = math.log(math.expm1(PLACED_SPREAD))

    def deviations(self, width: Tensor) -> Tensor:
        """The standard deviations that rows of `width`, (..., 2), stand for; at least half a pixel."""
        return functional.softplus(width) + self.get_buffer("half_pixel")

    def masks(self, place: Tensor, width: Tensor) -> Tensor:
        """The Gaussians of rows of `place` and `width`, (..., 2): (..., height, width), each sums to one."""
        inside: Any = _Inside.apply(place)
        deviation = self.deviations(width)
        sides = [
            torch.softmax(-0.5 * ((places - inside[..., i, None]) / deviation[..., i, None]).square(), dim=-1)
            for i, places in enumerate((self.get_buffer("rows"), self.get_buffer("columns")))
        ]
        return sides[0][..., :, None] * sides[1][..., None, :]

    def drive(self, features: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Pools the features under the Gaussian first: channels are fewer than places."""
        masks = self.masks(rows["place"], rows["width"]).flatten(2)
        return _pooled(features, masks, rows["weight"])

    def l1(self) -> Tensor:
        """The Gaussians sum to one, so it is the sum over the channels."""
        return self.weight.abs().sum(1)

    def spread(self) -> Tensor:
        """The squares of the standard deviations."""
        return self.deviations(self.width).square().sum(1)


class FactorisedReadout(Readout):
    """Each unit weights places by a free mask and channels by features (Klindt et al. 2017).

    `mask`: (units, height * width), starts even. `weight`: (units, channels).
    """

    def __init__(self, units: int, channels: int, height: int, width: int) -> None:
        super().__init__(units, channels, height, width)
        self.mask = nn.Parameter(torch.empty(units, height * width))
        self.weight = nn.Parameter(torch.empty(units, channels))

    def start(self, generator: torch.Generator) -> None:
        """Masks that sum to about one, and small weights."""
        even = 1 / self.mask.shape[1]
        nn.init.normal_(self.mask, mean=even, std=0.1 * even, generator=generator)
        nn.init.normal_(self.weight, std=START_WEIGHT, generator=generator)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def start_at(self, rows: Tensor, places: Tensor) -> None:
        """The mask starts as the narrow Gaussian of a `GaussianReadout` there."""
        height, width = self.size
        gaussian = GaussianReadout(len(rows), 2, height, width).to(self.mask)
        gaussian.start_at(torch.arange(len(rows), device=rows.device), places)
        self.mask[rows] = gaussian.masks(gaussian.place, gaussian.width).flatten(1)

    def drive(self, features: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Pools the features under the mask first."""
        return _pooled(features, rows["mask"], rows["weight"])

    def l1(self) -> Tensor:
        """Of mask and features together, so that one cannot grow for the other."""
        return self.mask.abs().sum(1) * self.weight.abs().sum(1)

    def spread(self) -> Tensor:
        """Of the absolute mask, about its centre of mass."""
        return self._spread_of(self.mask.abs().unflatten(1, self.size))


class LinearReadout(Readout):
    """Each unit has a weight for every channel at every place. `weight`: (units, channels, height, width)."""

    def __init__(self, units: int, channels: int, height: int, width: int) -> None:
        super().__init__(units, channels, height, width)
        self.weight = nn.Parameter(torch.empty(units, channels, height, width))

    def start(self, generator: torch.Generator) -> None:
        """Weights as small together as those of the other readouts."""
        places = self.size[0] * self.size[1]
        nn.init.normal_(self.weight, std=START_WEIGHT / math.sqrt(places), generator=generator)
        nn.init.zeros_(self.bias)

    def start_at(self, rows: Tensor, places: Tensor) -> None:
        """Nothing: each place has weights of its own, which start small everywhere."""

    def drive(self, features: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """One product of matrices for each sample."""
        # Features stand with channels last in memory: flat in that order they need no copy.
        weight = rows["weight"].unflatten(2, (self.channels, -1)).transpose(2, 3).flatten(2)
        return features.permute(0, 2, 3, 4, 1).flatten(2) @ weight.mT

    def l1(self) -> Tensor:
        """Over all weights."""
        return self.weight.abs().sum((1, 2, 3))

    def spread(self) -> Tensor:
        """Of the absolute weights summed over channels, about their centre of mass."""
        return self._spread_of(self.weight.abs().sum(1))


READOUTS: dict[str, type[Readout]] = {
    "gaussian": GaussianReadout,
    "factorised": FactorisedReadout,
    "linear": LinearReadout,
}


def places_along(count: int) -> Tensor:
    """The middles of an axis' pixels in [-1, 1], from edge to edge of the picture: (count,) float64."""
    return (2 * torch.arange(count, dtype=torch.float64) + 1) / count - 1


def _pooled(features: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """features: (batch, channels, time, height, width). masks: (batch, n, height * width). weight: (batch, n,
    channels). Returns (batch, time, n)."""
    flat = features.flatten(3).permute(0, 3, 2, 1)  # (batch, places, time, channels)
    pooled = (masks @ flat.flatten(2)).unflatten(2, flat.shape[2:])
    return (pooled @ weight[..., None])[..., 0].mT


class _Inside(torch.autograd.Function):
    """Clamps to [-1, 1]; outside, the gradient passes where a step against it leads back in."""

    @staticmethod
    def forward(ctx: Any, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return place.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (place,), (grad,) = ctx.saved_tensors, grads
        outward = ((place > 1) & (grad < 0)) | ((place < -1) & (grad > 0))
        return grad.masked_fill(outward, 0)

"""The masks of RF-DETR: matched by a coarse look at all of them, drawn whole only for the queries that need it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from visiontune.models import set_loss

MASK_COEFFICIENT, DICE_COEFFICIENT = 5.0, 5.0
COST_STRIDE = 8  # pixels of the image between those that matching looks at, both ways


@dataclass(frozen=True)
class Drawing:
    """What the masks of one layer are drawn from.

    queries: (..., n, d), bias: (..., n, 1). features: (d, height, width) of one image, (batch, d, height, width) of
    several.
    """

    queries: Tensor
    features: Tensor
    bias: Tensor

    def images(self, groups: int) -> "list[Drawing]":
        """Of each image of a batch, its queries in groups: (groups, n / groups, d). All are taken at once: one that is
        taken by itself has a gradient as large as all."""
        parts = (values.unflatten(1, (groups, -1)).unbind() for values in (self.queries, self.bias))
        return [
            Drawing(queries, seen, bias) for queries, bias, seen in zip(*parts, self.features.unbind(), strict=True)
        ]

    def some(self, first: int, end: int) -> "Drawing":
        """The same of some of the queries, from the `first` up to the `end`, of each image of a batch."""
        return replace(self, queries=self.queries[:, first:end], bias=self.bias[:, first:end])

    def of(self, *places: Tensor | int) -> "Drawing":
        """The same of these queries of one image."""
        return replace(self, queries=self.queries[places], bias=self.bias[places])

    def logits(self) -> Tensor:
        """Mask logits of one image, (..., n, height, width)."""
        return (self.queries @ self.features.flatten(1) + self.bias).unflatten(-1, self.features.shape[-2:])


def drawings_of(network: Any, features: Tensor, hidden: Tensor, proposed: Tensor, size: Sequence[int]) -> list[Drawing]:
    """What an RfDetrForInstanceSegmentation draws the masks of a batch from: for each layer of `hidden` (layers, batch,
    n, d) and, as the last, for the proposals (batch, n, d). Their logits are those of its own `segmentation_head`."""
    spatial = functional.interpolate(
        features, [side // network.config.mask_downsample_ratio for side in size], mode="bilinear"
    )
    vectors = [network.query_features_proj(network.query_features_block(queries)) for queries in (*hidden, proposed)]
    # The head projects each pixel, then multiplies it by queries. Queries are fewer: they are turned instead, by what
    # the projection makes of zero and of unit vectors.
    units = torch.eye(spatial.shape[1], device=spatial.device, dtype=spatial.dtype)[None, :, :, None]
    shift = network.spatial_features_proj(torch.zeros_like(units[:, :, :1]))
    turn = (network.spatial_features_proj(units) - shift)[0, :, :, 0]
    bias = network.segmentation_bias
    layers = [Drawing(vectors[-1], spatial, bias.expand(*proposed.shape[:2], 1))]
    for block, queries in zip(network.blocks, vectors[:-1], strict=True):
        spatial = block(spatial)
        layers.insert(-1, Drawing(queries @ turn, spatial, queries @ shift[0, :, 0] + bias))
    return layers


def cost_stride(config: Any) -> int:
    """Pixels of masks between those that matching looks at, both ways."""
    return max(1, COST_STRIDE // config.mask_downsample_ratio)


def mask_cost(layers: Sequence[Drawing], stride: int, masks: Tensor) -> Tensor:
    """What matching costs by masks, (S, queries, n), for n masks (n, height, width) of one image and each layer's
    (groups, queries): from every `stride`th pixel both ways."""
    points = (..., slice(stride // 2, None, stride), slice(stride // 2, None, stride))
    seen = masks[points].flatten(-2).float() / 255
    found = (replace(layer, features=layer.features[points]).logits().flatten(-2).float() for layer in layers)
    return torch.cat([set_loss.mask_cost(one, seen, MASK_COEFFICIENT, DICE_COEFFICIENT) for one in found])


def mask_loss(layer: Drawing, masks: Tensor, queries: Tensor, objects: Tensor, weights: Tensor) -> Tensor:
    """(2,): cross-entropy and dice, times their coefficients, summed over what is matched (groups, m) in one layer and
    weighs anything."""
    group, place = weights.nonzero(as_tuple=True)
    mine, its = layer.of(group, queries[group, place]).logits(), masks[objects[group, place]]
    entropy, dice = set_loss.mask_losses(mine.flatten(1), its.flatten(1) / 255, weights[group, place])
    return torch.stack([MASK_COEFFICIENT * entropy, DICE_COEFFICIENT * dice])

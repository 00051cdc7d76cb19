"""Queries that training places near the objects, each told which one is its own (Li et al. 2022, "DN-DETR").

Queries that a model proposes have to be matched to objects, and that is chance as long as it proposes anything. These
teach from the first step on how a box is mended, a class is told and a mask is drawn (Li et al. 2023, "Mask DINO").
In a group of queries each object has one; the others stand anywhere and are told that they have none, as those of Zhang
et al. 2022, "DINO". An image has as many of them as of its other queries, so that nothing depends on what else is in
the batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SIZE = 2.0  # powers of two by which a side shrinks or grows at strength 1
LEAST_SIDE = 0.05  # of the others


def noised(boxes: Tensor, groups: int, queries: int, strength: float, number: int) -> Tensor:
    """Boxes near those of n objects, and others: (groups * queries, 4) float32. In each group the first n are near
    object 0 to n - 1, as far as there are so many queries.

    boxes: (n, 4), centre x, centre y, width, height, as shares of the picture. strength: how far a centre moves, in
    sides of its box; a side changes by the factor 4**strength at most. number: decides the moves, and the others.
    """
    generator = np.random.default_rng([number, 2])
    near = boxes[:queries].repeat(groups, 1, 1)
    moves = torch.from_numpy(generator.uniform(-strength, strength, near.shape)).float()
    near = torch.cat([near[..., :2] + moves[..., :2] * near[..., 2:], near[..., 2:] * 2 ** (SIZE * moves[..., 2:])], -1)
    anywhere = torch.from_numpy(generator.random((groups, queries - near.shape[1], 4))).float()
    anywhere[..., 2:] = anywhere[..., 2:] * (1 - LEAST_SIDE) + LEAST_SIDE
    return torch.cat([near, anywhere], dim=1).flatten(0, 1)


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[dict[str, Any]]:
    """What `module` is called with by keyword while the context is open, once it was called."""
    inputs: dict[str, Any] = {}
    handle = module.register_forward_pre_hook(lambda _, __, given: inputs.update(given), with_kwargs=True)
    try:
        yield inputs
    finally:
        handle.remove()

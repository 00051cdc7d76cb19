"""What models that predict sets of objects share: queries matched to objects, and losses of boxes, masks and crowds.

Everything is about one image; S sets of queries (decoder layers, groups) are looked at side by side. Boxes are
centre x, centre y, width and height as shares of the picture's sides. Carion et al. 2020, "End-to-End Object Detection
with Transformers"; costs and coefficients are those of the DETR family.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from visiontune.models.adapter import Batch

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
CLASS_COEFFICIENT, L1_COEFFICIENT, GIOU_COEFFICIENT = 1.0, 5.0, 2.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
IN_CROWD = 0.5  # the share of a query's box that must lie in a crowd's region

LEAST_AREA = 1e-7  # of the picture: divisors of boxes without an area
LEAST_LIKELY = 1e-8
WORST_COST = 1e6  # of what is no number


@dataclass(frozen=True)
class Targets:
    """What is learned from one image: its n objects, and apart from them its k crowds.

    boxes: (n, 4) float32. soft: (n, classes) float32, how likely each class is. masks: (n, height, width) uint8, the
    share of each pixel that is covered, times 255, None where none are learned. has_mask: (n,) bool. crowd_boxes: (k,
    4). crowd_classes: (k,) int64. looked_for: (classes,) bool, the classes whose objects were drawn.
    """

    boxes: Tensor
    soft: Tensor
    masks: Tensor | None
    has_mask: Tensor
    crowd_boxes: Tensor
    crowd_classes: Tensor
    looked_for: Tensor

    @property
    def weights(self) -> Tensor:
        """(n,) float32, how much each object counts: 1 for what people drew."""
        return self.soft.amax(dim=1)


def targets_of(batch: Batch, row: int) -> Targets:
    """The targets of one image of a batch of objects."""
    tensors = {name: values[row] for name, values in batch.tensors.items() if name not in ("pixel_values", "features")}
    learned, crowd = tensors["present"] & ~tensors["crowd"], tensors["present"] & tensors["crowd"]
    return Targets(
        boxes=tensors["boxes"][learned],
        soft=tensors["soft"][learned],
        masks=tensors["masks"][learned] if "masks" in tensors else None,
        has_mask=tensors["has_mask"][learned],
        crowd_boxes=tensors["boxes"][crowd],
        crowd_classes=tensors["classes"][crowd],
        looked_for=tensors["looked_for"],
    )


def weight_of(soft: Tensor, crowd: Tensor) -> float:
    """How many objects (n, classes), (n,) count, those that are likely as their most likely class; crowds do not."""
    return float(soft[~crowd].amax(dim=1).sum()) if len(soft) else 0.0


def overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of boxes (..., 4) and (..., 4) that broadcast.

    Boxes without an area have an IoU of 0 with all others; none gives NaN.
    """
    low = [boxes[..., :2] - boxes[..., 2:] / 2 for boxes in (first, second)]
    high = [boxes[..., :2] + boxes[..., 2:] / 2 for boxes in (first, second)]
    shared = _area(torch.minimum(*high) - torch.maximum(*low))
    union = _area(first[..., 2:]) + _area(second[..., 2:]) - shared
    hull = _area(torch.maximum(*high) - torch.minimum(*low))
    iou = shared / union.clamp(min=LEAST_AREA)
    return iou, iou - (hull - union) / hull.clamp(min=LEAST_AREA)


def pairwise_overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """`overlaps` of each of (..., q, 4) with each of (n, 4): both (..., q, n)."""
    return overlaps(first[..., :, None, :], second)


def box_cost(boxes: Tensor, objects: Tensor, l1: float = L1_COST, giou: float = GIOU_COST) -> Tensor:
    """What matching costs by boxes (..., q, 4) and (n, 4): (..., q, n)."""
    distance = (boxes[..., :, None, :] - objects).abs().sum(dim=-1)
    return l1 * distance - giou * pairwise_overlaps(boxes, objects)[1]


def class_cost(logits: Tensor, soft: Tensor, cost: float = CLASS_COST) -> Tensor:
    """What matching costs by classes: (..., q, classes) and how likely (n, classes) each is: (..., q, n).

    The focal loss (Lin et al. 2017) of a query that has the class, less that of one that has not.
    """
    likely = logits.sigmoid()
    has = FOCAL_ALPHA * (1 - likely) ** FOCAL_GAMMA * -(likely + LEAST_LIKELY).log()
    has_not = (1 - FOCAL_ALPHA) * likely**FOCAL_GAMMA * -(1 - likely + LEAST_LIKELY).log()
    return cost * _product(has - has_not, soft)


def mask_cost(logits: Tensor, masks: Tensor, bce: float, dice: float) -> Tensor:
    """What matching costs by masks (..., q, p) and (n, p), the same p pixels of each, in [0, 1]: (..., q, n)."""
    likely = logits.sigmoid()
    entropy = (functional.softplus(logits).sum(dim=-1, keepdim=True) - _product(logits, masks)) / logits.shape[-1]
    shared, sizes = _product(likely, masks), likely.sum(dim=-1, keepdim=True) + masks.sum(dim=-1)
    return bce * entropy + dice * (1 - (2 * shared + 1) / (sizes + 1))


def match(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest one-to-one matching of queries and objects in each set (S, q, n), each set by itself.

    Returns the matched queries and their objects, both (S, min(q, n)) int64. Computed on the CPU in float64.
    """
    from scipy.optimize import linear_sum_assignment

    costs = cost.detach().double().nan_to_num(WORST_COST, WORST_COST, WORST_COST).cpu().numpy()
    found = [linear_sum_assignment(one) for one in costs]
    queries, objects = (torch.from_numpy(np.stack([pair[side] for pair in found])) for side in (0, 1))
    return queries.to(cost.device), objects.to(cost.device)


def box_losses(boxes: Tensor, objects: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """L1 loss and 1 - generalised IoU of matched boxes (..., 4) and (..., 4), times weights (...): both sums."""
    boxes, objects = boxes.float(), objects.float()
    distance = (boxes - objects).abs().sum(dim=-1)
    return (distance * weights).sum(), ((1 - overlaps(boxes, objects)[1]) * weights).sum()


def mask_losses(logits: Tensor, masks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, mean over pixels, and dice loss of matched masks (m, p) and (m, p) in [0, 1], times weights (m,):
    both sums, float32. Milletari et al. 2016, with 1 added above and below the line."""
    logits, masks = logits.float(), masks.float()
    likely = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=-1)
    dice = 1 - (2 * (likely * masks).sum(dim=-1) + 1) / (likely.sum(dim=-1) + masks.sum(dim=-1) + 1)
    return (entropy * weights).sum(), (dice * weights).sum()


def excused(boxes: Tensor, matched: Tensor, targets: Targets) -> Tensor:
    """Which classes each query is not judged by: (S, q, classes) bool, for boxes (S, q, 4) and matched queries (S, m).

    Nobody told the objects of a crowd apart, so a query inside it may be right; a matched query has its own object.
    Of a class that was not looked for nobody knows whether it is there.
    """
    inside = boxes.detach().float()[..., :, None, :]
    low = torch.maximum(*(b[..., :2] - b[..., 2:] / 2 for b in (inside, targets.crowd_boxes)))
    high = torch.minimum(*(b[..., :2] + b[..., 2:] / 2 for b in (inside, targets.crowd_boxes)))
    within = _area(high - low) > IN_CROWD * _area(inside[..., 2:])
    within = within.scatter(1, matched[..., None].expand(-1, -1, within.shape[-1]), False)
    crowds = functional.one_hot(targets.crowd_classes, targets.soft.shape[1])
    return (within.float() @ crowds.float() > 0) | ~targets.looked_for


def _product(first: Tensor, second: Tensor) -> Tensor:
    """(..., q, p) and (n, p) to (..., q, n), in their own precision: costs must not be rounded by autocast."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.T


def _area(sides: Tensor) -> Tensor:
    """(..., 2) sides, which may be negative, to (...)."""
    wide, high = sides.clamp(min=0).unbind(dim=-1)
    return wide * high

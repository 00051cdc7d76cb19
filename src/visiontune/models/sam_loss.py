"""The loss of masks that are drawn in boxes: object by object, so that each counts once, however large it is."""

import torch
from torch import Tensor
from torch.nn import functional

TERMS = ("mask", "dice", "overlap")
DICE_COEFFICIENT = 5.0


def object_losses(logits: Tensor, masks: Tensor, overlaps: Tensor) -> Tensor:
    """The three terms of each object, (3, n) float32, in the order of TERMS, times their coefficients.

    logits: (n, height, width). masks: the same, the covered share of each pixel in [0, 1]. overlaps: (n,), the IoU that
    the model expects of its mask.

    mask: cross-entropy, the mean over the object's pixels and that over all others, half each. An object covers few
    pixels of the frame: where all pixels weigh alike, empty masks are a minimum that a small model does not leave.
    dice: Milletari et al. 2016, with 1 added above and below the line. overlap: the squared error of the expected IoU,
    as SAM was trained (Kirillov et al. 2023).
    """
    seen, drawn = logits.flatten(1).float(), masks.flatten(1).float()
    entropy = functional.binary_cross_entropy_with_logits(seen, drawn, reduction="none")
    inside = (entropy * drawn).sum(dim=1) / drawn.sum(dim=1).clamp(min=1)
    outside = (entropy * (1 - drawn)).sum(dim=1) / (1 - drawn).sum(dim=1).clamp(min=1)
    likely = seen.sigmoid()
    dice = 1 - (2 * (likely * drawn).sum(dim=1) + 1) / (likely.sum(dim=1) + drawn.sum(dim=1) + 1)
    with torch.no_grad():
        found, true = seen > 0, drawn > 0.5
        overlap = (found & true).sum(dim=1) / (found | true).sum(dim=1).clamp(min=1)
    return torch.stack([(inside + outside) / 2, DICE_COEFFICIENT * dice, (overlaps.float() - overlap) ** 2])

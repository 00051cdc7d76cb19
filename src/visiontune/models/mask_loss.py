"""The loss of masks: object by object, so that each counts once, however large it is."""

import torch
from torch import Tensor
from torch.nn import functional

TERMS = ("mask", "dice", "overlap")
DICE_COEFFICIENT = 5.0


def mask_losses(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy and dice of each mask, (2, n) float32, times their coefficients.

    logits: (n, height, width). masks: the same, the covered share of each pixel in [0, 1].

    Cross-entropy: the mean over the object's pixels and that over all others, half each. An object covers few pixels of
    the frame: where all pixels weigh alike, empty masks are a minimum that a small model does not leave.
    Dice: Milletari et al. 2016, with 1 added above and below the line.
    """
    seen, drawn = logits.flatten(1).float(), masks.flatten(1).float()
    entropy = functional.binary_cross_entropy_with_logits(seen, drawn, reduction="none")
    inside = (entropy * drawn).sum(dim=1) / drawn.sum(dim=1).clamp(min=1)
    outside = (entropy * (1 - drawn)).sum(dim=1) / (1 - drawn).sum(dim=1).clamp(min=1)
    likely = seen.sigmoid()
    dice = 1 - (2 * (likely * drawn).sum(dim=1) + 1) / (likely.sum(dim=1) + drawn.sum(dim=1) + 1)
    return torch.stack([(inside + outside) / 2, DICE_COEFFICIENT * dice])


def object_losses(logits: Tensor, masks: Tensor, overlaps: Tensor) -> Tensor:
    """The three terms of each object, (3, n) float32, in the order of TERMS, times their coefficients.

    logits and masks as `mask_losses` has them. overlaps: (n,), the IoU that the model expects of its mask; the term is
    its squared error, as SAM was trained (Kirillov et al. 2023).
    """
    with torch.no_grad():
        found, true = logits.flatten(1) > 0, masks.flatten(1) > 0.5
        overlap = (found & true).sum(dim=1) / (found | true).sum(dim=1).clamp(min=1)
    return torch.cat([mask_losses(logits, masks), (overlaps.float() - overlap)[None] ** 2])

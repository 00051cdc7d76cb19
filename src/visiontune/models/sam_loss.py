"""The loss of masks that are drawn in boxes: object by object, so that each counts once, however large it is."""

from torch import Tensor

TERMS = ("mask", "dice", "overlap")


def object_losses(logits: Tensor, masks: Tensor, overlaps: Tensor) -> Tensor:
    raise NotImplementedError

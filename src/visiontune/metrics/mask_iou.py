"""How well masks are drawn where the boxes are given: mean IoU, beside the masks that fill the boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco

from visiontune.data.objects import Objects, Rle
from visiontune.errors import DataError
from visiontune.metrics.average_precision import to_hotcoco
from visiontune.metrics.intervals import Metric, ratio


@dataclass(frozen=True)
class PromptedMaskIou:
    """The mean IoU of masks over objects, prompted by ground-truth boxes; the intervals are over images.

    `n` of a metric is the number of images that hold such an object. `filled_boxes` is what filling each box gives on
    the same objects. `objects` were counted; `without_mask` and `crowd` objects were left out.
    """

    mean: Metric
    filled_boxes: Metric
    objects: int
    without_mask: int
    crowd: int

    def to_json(self) -> dict[str, Any]:
        """{"prompts", "mean", "filled_boxes", "objects", "without_mask", "crowd"}."""
        return {
            "prompts": "ground-truth boxes",
            "mean": self.mean.to_json(),
            "filled_boxes": self.filled_boxes.to_json(),
            "objects": self.objects,
            "without_mask": self.without_mask,
            "crowd": self.crowd,
        }


def prompted_mask_iou(
    truths: Sequence[Objects], masks: Sequence[Sequence[Rle | None]], seed: int = 0
) -> PromptedMaskIou:
    """`masks[i][j]` was drawn from the true box of object j of image i; None, or an empty mask, has the IoU 0.

    Raises DataError where there is not one mask for each object, or one of another size.
    """
    if len(truths) != len(masks):
        raise DataError(
            f"There are {len(truths)} images and masks of {len(masks)}.", fix="give one list for each image"
        )
    drawn_sums, filled_sums, counts = [], [], []
    without_mask = crowd = 0
    for image, (truth, drawn) in enumerate(zip(truths, masks, strict=True)):
        if len(truth) != len(drawn):
            raise DataError(
                f"There are {len(truth)} objects and {len(drawn)} masks.",
                where=f"image {image}",
                fix="give one mask, or None, for each object",
            )
        of_drawn, of_filled = [], []
        for true, mask, box, is_crowd in zip(truth.masks, drawn, truth.boxes, truth.crowd, strict=True):
            if is_crowd:
                crowd += 1
            elif true is None:
                without_mask += 1
            else:
                of_drawn.append(0.0 if mask is None else _iou(mask, true, image))
                of_filled.append(_iou(filled_box(box.tolist(), true.height, true.width), true, image))
        if of_drawn:
            drawn_sums.append(sum(of_drawn))
            filled_sums.append(sum(of_filled))
            counts.append(len(of_drawn))
    means = [_share(sums, counts, seed) for sums in (drawn_sums, filled_sums)]
    return PromptedMaskIou(means[0], means[1], sum(counts), without_mask, crowd)


def filled_box(box: Sequence[float], height: int, width: int) -> Rle:
    """The mask of all pixels of a box (left, top, width, height in pixels), as COCO draws it."""
    return Rle(height, width, hotcoco.mask.fr_bbox(list(box), height, width)["counts"])


def _iou(mask: Rle, true: Rle, image: int) -> float:
    if (mask.height, mask.width) != (true.height, true.width):
        raise DataError(
            f"A mask is {mask.height} x {mask.width}, the true one {true.height} x {true.width} pixels.",
            where=f"image {image}",
            fix="make masks at the size of the image",
        )
    return float(hotcoco.mask.iou([to_hotcoco(mask)], [to_hotcoco(true)], [False])[0, 0])


def _share(sums: Sequence[float], counts: Sequence[int], seed: int) -> Metric:
    """A mean over objects: the sum over the images' sums by that of their counts; an IoU does not pass 1."""
    metric = ratio(sums, counts, seed)
    return metric if metric.high is None else Metric(metric.value, metric.low, min(metric.high, 1.0), metric.n)

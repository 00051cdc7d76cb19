import numpy as np
import pytest

from tests.coco_scenes import ellipse, filled, mask_of, objects
from visiontune.data.objects import Rle
from visiontune.errors import DataError
from visiontune.metrics.mask_iou import filled_box, prompted_mask_iou

SIZE = (200, 200)
BOXES = [[10.0, 10.0, 80.0, 40.0], [100.0, 60.0, 60.0, 120.0]]
MASKS = [ellipse(box, SIZE) for box in BOXES]


def pixels(top: int, bottom: int) -> Rle:
    found = np.zeros(SIZE)
    found[top:bottom] = 1
    return mask_of(found)


def test_the_mean_is_over_objects_and_not_over_images() -> None:
    boxes, row = [[0, 0, 200, 100]] * 3, pixels(0, 100)
    truths = [objects(boxes, [0] * 3, masks=[row] * 3), objects(boxes[:1], [0], masks=[row])]
    found = prompted_mask_iou(truths, [[pixels(0, 50), pixels(0, 50), pixels(0, 100)], [pixels(100, 200)]])
    assert found.mean.value == (0.5 + 0.5 + 1 + 0) / 4
    assert (found.objects, found.mean.n) == (4, 2)


def test_masks_that_are_the_true_ones_beat_filling_the_boxes_of_ellipses() -> None:
    found = prompted_mask_iou([objects(BOXES, [0, 1], masks=MASKS)], [MASKS])
    assert found.mean.value == 1 and found.mean.low is not None and found.mean.low < 1 and found.mean.high == 1
    assert found.filled_boxes.value == pytest.approx(np.pi / 4, abs=0.01)
    boxes = [filled_box(box, *SIZE) for box in BOXES]
    filling = prompted_mask_iou([objects(BOXES, [0, 1], masks=MASKS)], [boxes])
    assert filling.mean == filling.filled_boxes == found.filled_boxes


def test_no_mask_for_an_object_counts_as_zero() -> None:
    truths = [objects(BOXES, [0, 1], masks=MASKS)]
    assert prompted_mask_iou(truths, [[MASKS[0], None]]).mean.value == 0.5
    assert prompted_mask_iou(truths, [[MASKS[0], pixels(0, 0)]]).mean.value == 0.5


def test_crowds_and_objects_without_a_mask_are_left_out_and_counted() -> None:
    boxes = [*BOXES, BOXES[0]]
    truth = objects(boxes, [0, 0, 0], masks=[MASKS[0], None, MASKS[0]], crowd=[False, False, True])
    found = prompted_mask_iou([truth], [[MASKS[0], MASKS[1], pixels(0, 1)]])
    assert (found.mean.value, found.objects, found.without_mask, found.crowd) == (1, 1, 1, 1)
    nothing = prompted_mask_iou([objects([], [])], [[]])
    assert nothing.mean.value is None and nothing.objects == 0


def test_a_box_is_filled_as_pycocotools_fills_it() -> None:
    random = np.random.default_rng(0)
    for box in np.concatenate([random.uniform(-50, 200, (200, 2)), random.uniform(0, 250, (200, 2))], axis=1).tolist():
        assert filled_box(box, *SIZE).counts == filled(box, SIZE)["counts"]


def test_lists_that_do_not_fit_and_masks_of_another_size_are_refused() -> None:
    truths = [objects(BOXES, [0, 1], masks=MASKS)]
    with pytest.raises(DataError, match="1 images and masks of 0"):
        prompted_mask_iou(truths, [])
    with pytest.raises(DataError, match=r"2 objects and 1 masks.\n.*image 0"):
        prompted_mask_iou(truths, [MASKS[:1]])
    with pytest.raises(DataError, match="50 x 50, the true one 200 x 200"):
        prompted_mask_iou(truths, [[MASKS[0], ellipse([0, 0, 9, 9], (50, 50))]])


def test_the_json_form_says_that_the_boxes_were_given() -> None:
    value = prompted_mask_iou([objects(BOXES, [0, 1], masks=MASKS)], [MASKS]).to_json()
    assert list(value) == ["prompts", "mean", "filled_boxes", "objects", "without_mask", "crowd"]
    assert value["prompts"] == "ground-truth boxes" and value["mean"]["value"] == 1

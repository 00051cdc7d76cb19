from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.coco_scenes import Scene, ellipse, objects, random_scene, reference_evaluator
from visiontune.data.objects import Objects
from visiontune.errors import DataError
from visiontune.metrics.average_precision import FIGURES, Curves, Kind, coco_pair, curves


def evaluated(scene: Scene, kind: Kind) -> Curves:
    return curves(coco_pair(scene.truths, scene.predictions, scene.sizes, scene.class_names, kind))


def assert_same_as_pycocotools(scene: Scene, kind: Kind) -> None:
    reference: Any = reference_evaluator(scene, kind)
    found = evaluated(scene, kind)
    assert list(found.figures().values()) == [None if value == -1 else value for value in reference.stats]
    np.testing.assert_array_equal(np.nan_to_num(found.precision, nan=-1), reference.eval["precision"][..., -1])
    np.testing.assert_array_equal(np.nan_to_num(found.recall, nan=-1), reference.eval["recall"])


scenes = {
    "images": st.integers(1, 6),
    "classes": st.integers(1, 3),
    "most_objects": st.integers(0, 12),
    "detections": st.sampled_from([0, 0.5, 3, 20]),
    "score_levels": st.sampled_from([0, 1, 3]),
    "crowd_share": st.sampled_from([0, 0.3, 1]),
    "whole_pixels": st.booleans(),
}


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), side=st.sampled_from([20, 200, 600]), **scenes)
def test_boxes_give_the_figures_of_pycocotools_to_the_last_digit(seed: int, **scene: Any) -> None:
    assert_same_as_pycocotools(random_scene(seed, **scene), "boxes")


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), side=st.sampled_from([10, 60, 160]), masks=st.just(True), **scenes)
def test_masks_give_the_figures_of_pycocotools_to_the_last_digit(seed: int, **scene: Any) -> None:
    drawn = random_scene(seed, **scene)
    assert_same_as_pycocotools(drawn, "masks")
    assert_same_as_pycocotools(drawn, "boxes")


SIZE = (100, 100)
BOX = [10, 10, 40, 40]
ONE = pytest.approx(1)  # COCO adds the smallest number to what precision is divided by


def figures(truth: Objects, found: Objects, kind: Kind) -> dict[str, float | None]:
    return evaluated(Scene([truth], [found], [SIZE], ["cat", "dog"]), kind).figures()


def test_what_was_not_found_counts_as_zero_and_what_was_never_there_as_nothing() -> None:
    nothing = figures(objects([BOX], [0]), objects([], [], scores=[]), "boxes")
    assert nothing["ap"] == nothing["ar100"] == 0 and nothing["ap_large"] is None
    assert set(figures(objects([], []), objects([BOX], [0], scores=[0.9]), "boxes").values()) == {None}


def test_predictions_of_an_empty_image_need_no_scores() -> None:
    assert figures(objects([BOX], [0]), objects([], []), "boxes")["ap"] == 0


def test_an_object_without_a_mask_counts_for_boxes_and_is_ignored_for_masks() -> None:
    other = [60, 60, 30, 30]
    truth = objects([BOX, other], [0, 0], masks=[ellipse(BOX, SIZE), None])
    boxes, masks = [other, BOX], [ellipse(other, SIZE), ellipse(BOX, SIZE)]
    found = objects(boxes, [0, 0], masks=masks, scores=[0.9, 0.8])
    assert figures(truth, found, "masks")["ap"] == ONE, "the better prediction lies on the object without a mask"
    missed = objects(boxes[1:], [0], masks=masks[1:], scores=[0.8])
    assert figures(truth, missed, "masks")["ar100"] == 1 and figures(truth, missed, "boxes")["ar100"] == 0.5
    elsewhere = objects([other, BOX], [1, 0], masks=masks, scores=[0.9, 0.8])
    assert evaluated(Scene([truth, truth], [found, elsewhere], [SIZE] * 2, ["cat", "dog"]), "masks").figures(1) == {
        name: None for name in FIGURES
    }


def test_the_area_of_the_mask_and_not_of_the_box_says_whether_an_object_is_small() -> None:
    box = [10, 10, 34, 34]
    found = objects([box], [0], masks=[ellipse(box, SIZE)], scores=[0.9])
    assert figures(objects([box], [0], masks=[ellipse(box, SIZE)]), found, "boxes")["ap_small"] == ONE
    assert figures(objects([box], [0]), found, "boxes")["ap_small"] is None


mask = ellipse(BOX, SIZE)


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (objects([BOX], [2]), objects([], []), r"not among the 2 names.*\n.*image 0, true objects"),
        (
            objects([BOX], [0]),
            objects([BOX], [-1], scores=[1]),
            r"not among the 2 names.*\n.*image 0, predicted objects",
        ),
        (objects([[0, 0, np.nan, 1]], [0]), objects([], []), "not finite"),
        (objects([BOX], [0]), objects([BOX], [0]), "no score"),
        (objects([BOX], [0]), objects([BOX], [0], scores=[np.nan]), "no score"),
        (objects([BOX], [0], masks=[ellipse(BOX, (90, 100))]), objects([], []), "90 x 100, the image 100 x 100"),
        (
            objects([BOX], [0], masks=[mask]),
            objects([BOX, BOX], [0, 0], masks=[mask, None], scores=[1, 1]),
            "1 of 2 predictions have no mask",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_place(truth: Objects, found: Objects, message: str) -> None:
    with pytest.raises(DataError, match=message):
        figures(truth, found, "masks")


def test_each_image_has_truths_predictions_and_a_size() -> None:
    with pytest.raises(DataError, match="1 images with truths, 1 with predictions and 2 sizes"):
        evaluated(Scene([objects([], [])], [objects([], [])], [SIZE] * 2, ["cat"]), "boxes")

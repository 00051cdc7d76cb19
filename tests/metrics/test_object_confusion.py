from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.coco_scenes import Scene, ellipse, objects, random_scene, reference_evaluator
from visiontune.data.objects import Objects
from visiontune.metrics.average_precision import Kind
from visiontune.metrics.object_confusion import object_confusion

NAMES = ["rider", "bicycle"]
RIDER, BICYCLE, ELSEWHERE = [10, 10, 30, 60], [12, 12, 30, 60], [70, 70, 20, 20]


def above(found: Objects, score: float) -> Objects:
    assert found.scores is not None
    kept = np.flatnonzero(found.scores >= score)
    masks = tuple(found.masks[k] for k in kept)
    return replace(found, boxes=found.boxes[kept], classes=found.classes[kept], masks=masks, scores=found.scores[kept])


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    score=st.sampled_from([0.0, 0.3, 0.7]),
    place=st.sampled_from([0, 4, 9]),
    kind=st.sampled_from(["boxes", "masks"]),
    whole_pixels=st.booleans(),
)
def test_the_diagonal_are_cocos_true_positives_and_nothing_is_counted_twice(
    seed: int, score: float, place: int, kind: Kind, whole_pixels: bool
) -> None:
    scene = random_scene(
        seed, images=3, classes=2, most_objects=6, detections=3, side=60, masks=True, whole_pixels=whole_pixels
    )
    kept = replace(scene, predictions=[above(found, score) for found in scene.predictions])
    reference: Any = reference_evaluator(kept, kind)
    right, ignored = np.zeros(2, np.int64), 0
    for found in reference.evalImgs:
        if found is not None and found["aRng"] == [0, 1e10]:
            matched, left_out = found["dtMatches"][place] > 0, found["dtIgnore"][place].astype(bool)
            right[found["category_id"] - 1] += int((matched & ~left_out).sum())
            ignored += int((matched & left_out).sum())
    iou = float(np.linspace(0.5, 0.95, 10)[place])
    confusion = object_confusion(scene.truths, scene.predictions, scene.class_names, kind, score=score, iou=iou)
    assert np.diagonal(confusion.counts)[:2].tolist() == right.tolist()
    assert confusion.ignored == ignored
    labels = [
        label
        for truth in scene.truths
        for label, crowd, mask in zip(truth.classes.tolist(), truth.crowd, truth.masks, strict=True)
        if not crowd and (kind == "boxes" or mask is not None)
    ]
    assert confusion.counts[:2].sum(axis=1).tolist() == np.bincount(labels, minlength=2).tolist()
    assert confusion.counts[:, :2].sum() + ignored == sum(map(len, kept.predictions))
    assert confusion.counts[2, 2] == 0


def counted(truth: Objects, found: Objects, **options: float) -> list[list[int]]:
    return object_confusion([truth], [found], NAMES, "boxes", **options).counts.tolist()


def test_a_bicycle_under_its_rider_is_no_confusion() -> None:
    truth = objects([RIDER, BICYCLE], [0, 1])
    found = objects([RIDER, RIDER], [1, 0], scores=[0.9, 0.8])
    assert counted(truth, found) == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_the_wrong_class_a_duplicate_a_false_alarm_and_a_miss_have_their_places() -> None:
    wrong = objects([RIDER], [1], scores=[0.9])
    assert counted(objects([RIDER], [0]), wrong) == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    twice = objects([RIDER, BICYCLE], [0, 0], scores=[0.9, 0.8])
    assert counted(objects([RIDER], [0]), twice) == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    elsewhere = objects([ELSEWHERE], [1], scores=[0.9])
    assert counted(objects([RIDER], [0]), elsewhere) == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_predictions_in_a_crowd_of_their_class_are_ignored_and_those_of_another_class_are_not() -> None:
    truth = objects([[0, 0, 90, 90]], [0], crowd=[True])
    found = objects([RIDER, ELSEWHERE, RIDER], [0, 0, 1], scores=[0.9, 0.8, 0.7])
    confusion = object_confusion([truth], [found], NAMES, "boxes")
    assert confusion.ignored == 2
    assert confusion.counts.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_the_best_prediction_chooses_first_and_of_equal_truths_the_last_as_in_coco() -> None:
    first, last = [10, 0, 10, 10], [12, 0, 10, 10]
    only_first, between = [9, 0, 10, 10], [11, 0, 10, 10]
    truth = objects([first, last], [0, 0])
    for boxes in ([between, only_first], [only_first, [10.5, 0, 10, 10]]):
        found = objects(boxes, [0, 0], scores=[0.9, 0.8])
        assert counted(truth, found, iou=0.6) == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "hits"), [({}, 1), ({"score": 0.6}, 0), ({"iou": 0.9}, 0), ({"score": 0.1, "iou": 0.1}, 1)]
)
def test_score_and_iou_decide_what_counts(options: dict[str, float], hits: int) -> None:
    assert counted(objects([RIDER], [0]), objects([BICYCLE], [0], scores=[0.5]), **options)[0][0] == hits


def test_masks_may_differ_where_boxes_agree() -> None:
    size, box = (100, 100), [10, 10, 60, 60]

    def masked(shape: Sequence[float], scores: Sequence[float] | None = None) -> Objects:
        return objects([box], [0], masks=[ellipse(shape, size)], scores=scores)

    truths, found = [masked(box)], [masked([10, 10, 20, 60], [0.9])]
    of_kind = {kind: object_confusion(truths, found, NAMES, kind).counts[0, 0] for kind in ("boxes", "masks")}
    assert of_kind == {"boxes": 1, "masks": 0}


def test_the_json_form_is_the_documented_one() -> None:
    scene = Scene([objects([RIDER], [0])], [objects([], [])], [(100, 100)], NAMES)
    assert object_confusion(scene.truths, scene.predictions, NAMES, "boxes").to_json() == {
        "labels": NAMES,
        "counts": [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
        "ignored": 0,
        "score": 0.5,
        "iou": 0.5,
    }

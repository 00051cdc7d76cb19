import json
from typing import Any

import numpy as np
import pytest

from tests.coco_scenes import Scene, ellipse, objects, random_scene, reference_evaluator
from visiontune.errors import DataError, RecipeError
from visiontune.metrics.average_precision import FIGURES
from visiontune.metrics.object_scores import ObjectScores, Prompts, score_objects
from visiontune.metrics.requirements import parse_requirements

SIZE = (100, 100)
BOX, OTHER = [10, 10, 40, 40], [60, 60, 30, 30]


def scored(scene: Scene, prompts: Prompts = "none", halves: int = 20, **options: float) -> ObjectScores:
    return score_objects(
        scene.truths,
        scene.predictions,
        scene.sizes,
        scene.class_names,
        prompts=prompts,
        halves=halves,
        **options,  # pyright: ignore
    )


def some(masks: bool = False) -> Scene:
    return random_scene(3, images=12, classes=3, most_objects=6, detections=3, side=120, masks=masks)


def test_all_figures_are_those_of_pycocotools_by_their_names() -> None:
    scene = some(masks=True)
    scores = scored(scene)
    for kind, prefix in (("boxes", "box"), ("masks", "mask")):
        for name, expected in zip(FIGURES, reference_evaluator(scene, kind).stats, strict=True):
            assert scores.metrics[f"{prefix}_{name}"].value == (None if expected == -1 else expected), name
    assert len(scores.metrics) == 24


def test_a_class_has_the_figures_of_an_evaluation_of_it_alone() -> None:
    scene = some()
    scores = scored(scene).boxes
    assert scores is not None
    for c, one in enumerate(scores.classes):
        alone: Any = reference_evaluator(scene, "boxes", only_class=c)
        found = [metric.value for metric in one.figures.values()]
        assert found == [None if value == -1 else value for value in alone.stats]
        assert one.precision_at_half.tolist() == alone.eval["precision"][0, :, 0, 0, 2].tolist()
        np.testing.assert_allclose(one.precision, alone.eval["precision"][:, :, 0, 0, 2].mean(axis=0), rtol=1e-15)


def test_masks_are_scored_of_models_that_draw_them_and_have_no_value_without_true_ones() -> None:
    with_masks = some(masks=True)
    without = some()
    assert scored(without).masks is None
    assert scored(Scene(with_masks.truths, without.predictions, with_masks.sizes, with_masks.class_names)).masks is None
    undrawn = scored(Scene(without.truths, with_masks.predictions, with_masks.sizes, with_masks.class_names)).masks
    assert undrawn is not None and {metric.value for metric in undrawn.figures.values()} == {None}, "they draw masks"
    nothing_found = [objects([], [], scores=[])] * 12
    masks = scored(Scene(with_masks.truths, nothing_found, with_masks.sizes, with_masks.class_names)).masks
    assert masks is not None and masks.figures["ap"].value == 0


def test_given_boxes_are_not_scored_and_their_masks_are_never_called_mask_ap() -> None:
    scene = some(masks=True)
    pipeline, given = scored(scene, "detector boxes"), scored(scene, "ground-truth boxes")
    assert given.boxes is None and "mask_ap" not in given.metrics and pipeline.boxes is not None
    assert given.metrics["prompted_mask_ap"] == pipeline.metrics["mask_ap"]
    assert (pipeline.to_json()["prompts"], given.to_json()["prompts"]) == ("detector boxes", "ground-truth boxes")
    with pytest.raises(RecipeError, match="no metric 'mask_ap'"):
        parse_requirements("mask_ap>=0.1")[0].holds(given)
    for name in (*pipeline.metrics, *given.metrics):
        assert parse_requirements(f"{name}>0.5")[0].metric == name
    with pytest.raises(DataError, match="The boxes were given, and there are no masks"):
        scored(some(), "ground-truth boxes")


def test_requirements_ask_for_figures_of_all_and_of_single_classes() -> None:
    truth = objects([BOX, OTHER], [0, 1])
    found = objects([BOX, BOX], [0, 1], scores=[0.9, 0.9])
    scores = scored(Scene([truth], [found], [SIZE], ["cat", "st. bernard", "fox"]))
    texts = ("box_ap50>=0.5", "box_ap50>0.5", "box_ap50.cat>=0.9", "box_ap50.st. bernard>0", "box_ar100.fox>=0")
    held = {text: parse_requirements(text)[0].holds(scores) for text in texts}
    assert list(held.values()) == [False, False, True, False, False], "0.9999999999999998 / 2 is COCO's half"
    for unknown in ("box_ap51", "mask_ap", "box_ap50.dog", "ap50"):
        with pytest.raises(RecipeError, match=r"box_ap, box_ap50.*LABEL one of cat, st\. bernard, fox"):
            scores.metric(unknown)


def test_the_worst_class_comes_first_and_one_without_truths_last() -> None:
    truth = objects([BOX, OTHER, OTHER, OTHER], [0, 2, 2, 4])
    found = objects([BOX, [0, 0, 9, 9]], [0, 1], scores=[0.9, 0.9])
    scores = scored(Scene([truth], [found], [SIZE], ["cat", "dog", "fox", "owl", "elk"])).boxes
    assert scores is not None
    assert [(one.label, one.truths, one.predictions) for one in scores.worst_first()] == [
        ("fox", 2, 0),
        ("elk", 1, 0),
        ("cat", 1, 1),
        ("dog", 0, 1),
        ("owl", 0, 0),
    ]
    assert [one["label"] for one in scores.to_json()["classes"]] == ["fox", "elk", "cat", "dog", "owl"]
    np.testing.assert_allclose(scores.precision_at_half, 1 / 3, rtol=1e-12)


def test_what_coco_leaves_out_is_counted() -> None:
    masks = [ellipse(BOX, SIZE), None, None]
    truth = objects([BOX, OTHER, OTHER], [0, 0, 0], masks=masks, crowd=[False, False, True])
    found = objects([BOX] * 130, [0] * 130, masks=[masks[0]] * 130, scores=[0.5] * 130)
    scores = scored(Scene([truth], [found], [SIZE], ["cat"]))
    assert scores.boxes is not None and scores.masks is not None
    shared = {"crowd": 1, "predictions": 130, "over_limit": 30}
    assert scores.boxes.counts == {"truths": 2, "without_mask": 0, **shared}
    assert scores.masks.counts == {"truths": 1, "without_mask": 1, **shared}


def test_intervals_stand_around_ap_and_ap50_and_can_be_left_out() -> None:
    metrics = scored(some()).metrics
    with_ends = {name for name, metric in metrics.items() if metric.low is not None}
    assert with_ends == {"box_ap", "box_ap50"}
    ap = metrics["box_ap"]
    assert ap.low is not None and ap.value is not None and ap.high is not None and ap.low < ap.value < ap.high
    assert scored(some(), seed=1).metrics["box_ap"] != ap == scored(some()).metrics["box_ap"]
    plain = scored(some(), halves=0).metrics
    assert {name: metric.value for name, metric in plain.items()} == {name: m.value for name, m in metrics.items()}
    assert plain["box_ap"].low is None


def test_confusion_is_counted_at_the_score_and_the_iou_that_were_asked_for() -> None:
    truth, found = objects([BOX], [0]), objects([[10, 10, 40, 30]], [0], scores=[0.4])
    scene = Scene([truth], [found], [SIZE], ["cat"])
    for options, hits in (({}, 0), ({"confusion_score": 0.4}, 1), ({"confusion_score": 0.4, "confusion_iou": 0.8}, 0)):
        scores = scored(scene, **options).boxes
        assert scores is not None and scores.confusion.counts[0, 0] == hits


def test_the_json_form_is_the_documented_one() -> None:
    value = scored(some(masks=True)).to_json()
    assert list(value) == ["n", "prompts", "metrics", "boxes", "masks"]
    assert list(value["boxes"]) == ["figures", "classes", "confusion", "counts", "precision_at_half"]
    one = value["masks"]["classes"][0]
    assert list(one) == ["label", "truths", "predictions", "figures", "precision_at_half", "precision"]
    assert len(one["precision"]) == len(value["boxes"]["precision_at_half"]) == 101
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_there_must_be_an_image_and_it_may_be_empty() -> None:
    with pytest.raises(DataError, match="no images"):
        scored(Scene([], [], [], ["cat"]))
    empty = scored(Scene([objects([], [])], [objects([], [])], [SIZE], ["cat"]))
    assert empty.metrics["box_ap"].value is None and empty.n == 1
    assert empty.to_json()["boxes"]["precision_at_half"] is None

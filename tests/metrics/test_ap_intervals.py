from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.coco_scenes import Scene, objects, random_scene
from visiontune.metrics.ap_intervals import ap_intervals, average_precisions, halved, ranked_detections
from visiontune.metrics.average_precision import CocoPair, coco_pair, curves
from visiontune.metrics.intervals import Metric
from visiontune.metrics.object_scores import score_objects


def pair_of(scene: Scene, images: Any = None) -> CocoPair:
    chosen = range(len(scene.truths)) if images is None else images
    truths, predictions, sizes = (
        [column[i] for i in chosen] for column in (scene.truths, scene.predictions, scene.sizes)
    )
    return coco_pair(truths, predictions, sizes, scene.class_names, "boxes")


def intervals(pair: CocoPair, halves: int = 200, seed: int = 0) -> list[tuple[Metric, Metric]]:
    counted = curves(pair)
    figures = [counted.figures(), *(counted.figures(c) for c in range(pair.classes))]
    return ap_intervals(pair, [(one["ap"], one["ap50"]) for one in figures], halves, seed)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), images=st.integers(1, 6), detections=st.sampled_from([0, 2, 20]))
def test_some_of_the_images_have_the_ap_of_an_evaluation_of_them_alone(
    seed: int, images: int, detections: float
) -> None:
    scene = random_scene(seed, images=images, classes=2, most_objects=6, detections=detections)
    chosen = np.random.default_rng(seed).random((3, images)) < 0.5
    of_class = [average_precisions(ranked, chosen) for ranked in ranked_detections(pair_of(scene))]
    for resample in np.flatnonzero(chosen.any(axis=1)):
        alone = curves(pair_of(scene, np.flatnonzero(chosen[resample])))
        for c in range(2):
            expected = alone.precision[:, :, c, 0].mean(axis=1)
            np.testing.assert_allclose(of_class[c][resample], expected, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), levels=st.sampled_from([0, 2]), side=st.sampled_from([200, 400_000]))
def test_all_images_have_the_ap_of_coco_with_ties_and_areas_that_coco_ignores(
    seed: int, levels: int, side: int
) -> None:
    options = {"images": 5, "classes": 3, "most_objects": 8, "detections": 4}
    pair = pair_of(random_scene(seed, side=side, score_levels=levels, **options))
    counted = curves(pair)
    for c, ranked in enumerate(ranked_detections(pair)):
        found = average_precisions(ranked, np.ones((1, 5), np.bool_))[0]
        np.testing.assert_allclose(found, counted.precision[:, :, c, 0].mean(axis=1), rtol=1e-12)


def found_by_chance(images: int, classes: int = 2) -> Scene:
    """Objects of which 85 % are found, more or less exactly, and false alarms with lower scores."""
    random = np.random.default_rng(0)
    truths, predictions = [], []
    for _ in range(images):
        n, alarms = int(random.integers(0, 8)), int(random.poisson(1))
        boxes = np.concatenate([random.uniform(0, 400, (n, 2)), 2.0 ** random.uniform(3, 7, (n, 2))], axis=1)
        labels, seen = random.integers(0, classes, n), random.random(n) < 0.85
        near = boxes + np.tile(boxes[:, 2:], (1, 2)) * random.normal(0, 0.06, (n, 4))
        alarm = np.concatenate([random.uniform(0, 400, (alarms, 2)), np.full((alarms, 2), 40.0)], axis=1)
        scores = np.concatenate([random.normal(0.7, 0.2, int(seen.sum())), random.normal(0.4, 0.2, alarms)])
        found = np.concatenate([labels[seen], random.integers(0, classes, alarms)])
        truths.append(objects(boxes, labels.tolist()))
        predictions.append(objects(np.concatenate([near[seen], alarm]), found.tolist(), scores=scores.tolist()))
    return Scene(truths, predictions, [(600, 600)] * images, [f"class {c}" for c in range(classes)])


def test_the_interval_of_60_images_holds_the_ap_of_6000_about_as_often_as_it_says() -> None:
    scene = found_by_chance(6000, classes=8)  # with many classes AP is too high by as much as it varies
    truth = curves(pair_of(scene)).figures()["ap"]
    assert truth is not None
    held = 0
    for part in range(100):
        ap, _ = intervals(pair_of(scene, range(60 * part, 60 * part + 60)), halves=60)[0]
        assert ap.low is not None and ap.high is not None
        held += ap.low <= truth <= ap.high
    assert 88 <= held <= 99


def test_more_images_give_a_narrower_interval_and_the_seed_chooses_the_draws() -> None:
    few, many = (pair_of(found_by_chance(images)) for images in (30, 300))
    (narrow, _), (wide, _) = intervals(many)[0], intervals(few)[0]
    assert wide.low is not None and wide.high is not None and narrow.low is not None and narrow.high is not None
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2
    assert intervals(few) == intervals(few) != intervals(few, seed=1)
    assert (wide.n, narrow.n) == (30, 300)


def test_a_class_is_scored_over_the_images_in_which_it_was_looked_for() -> None:
    scene, asked = found_by_chance(60), np.array([True, False])
    alone = score_objects(scene.truths[:40], scene.predictions[:40], scene.sizes[:40], scene.class_names)
    truths = [*scene.truths[:40], *(replace(t.of_classes(asked), looked_for=asked) for t in scene.truths[40:])]
    predictions = [*scene.predictions[:40], *(p.of_classes(asked) for p in scene.predictions[40:])]
    scores = score_objects(truths, predictions, scene.sizes, scene.class_names)
    for figure in ("box_ap", "box_ap50", "box_ar100"):
        assert [scores.metric(f"{figure}{name}").n for name in ("", ".class 0", ".class 1")] == [60, 60, 40]
        assert scores.metric(f"{figure}.class 1").value == alone.metric(f"{figure}.class 1").value
    # Objects that are all found claim no more than so many images allow.
    found = [replace(t, scores=np.ones(len(t))) for t in truths]
    low = score_objects(truths, found, scene.sizes, scene.class_names).metric("box_ap.class 1").low
    assert low == pytest.approx(0.025 ** (1 / 40))


def test_halves_of_a_class_are_halves_of_the_images_in_which_it_was_looked_for() -> None:
    scene, asked = found_by_chance(60), np.array([True, False])
    two = [i for i, truth in enumerate(scene.truths) if (truth.classes == 1).any()][:2]
    truths = [
        truth if i in two else replace(truth.of_classes(asked), looked_for=asked)
        for i, truth in enumerate(scene.truths)
    ]
    predictions = [p if i in two else p.of_classes(asked) for i, p in enumerate(scene.predictions)]
    pair = coco_pair(truths, predictions, scene.sizes, scene.class_names, "boxes")
    of_each = np.stack([halved(pair_of(scene, [i, i]), 1, 0)[2, 0] for i in two])
    for half in halved(pair, 100, 0)[2]:  # one of the two, never both or none
        assert (np.abs(of_each - half) < 1e-12).all(axis=1).any()


@pytest.mark.parametrize("right", [True, False])
def test_images_without_an_error_or_without_a_hit_claim_no_certainty(right: bool) -> None:
    truth = objects([[10, 10, 30, 30]], [0])
    found = objects([[10, 10, 30, 30] if right else [60, 60, 30, 30]], [0], scores=[0.9])
    pair = pair_of(Scene([truth] * 20, [found] * 20, [(100, 100)] * 20, ["cat", "dog"]))
    everything, cat, dog = intervals(pair)
    exact_bound = 1 - 0.025 ** (1 / 20)
    expected = (1.0, 1 - exact_bound, 1.0) if right else (0.0, 0.0, exact_bound)
    for ap, ap50 in (everything, cat):
        assert (ap.value, ap.low, ap.high) == (ap50.value, ap50.low, ap50.high) == pytest.approx(expected)
    assert dog[0] == Metric(None, None, None, 0), "a class without truths"

"""Choices for images with objects: each follows from the data, and its reason says the number that decided."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

import visiontune
from tests.drawn_objects import Scene, cells, coco_source, letters, street, text_lines
from visiontune.data.object_measures import ObjectMeasures, measure_objects
from visiontune.data.object_symmetry import Evidence
from visiontune.training.object_choices import object_choices

Measure = Callable[[list[Scene]], ObjectMeasures]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """`measured(scenes)`: the measures of the scenes' training images, prepared from a COCO file."""

    def make(scenes: list[Scene]) -> ObjectMeasures:
        folder = tmp_path_factory.mktemp("scenes")
        return measure_objects(visiontune.prepare(coco_source(folder / "source", scenes), folder / "data", workers=1))

    return make


@pytest.fixture(scope="module")
def usual(measured: Measure) -> ObjectMeasures:
    return measured([cells(seed) for seed in range(40)])


def chosen(measures: ObjectMeasures, name: str, *, tiny: bool = True, patch: int | None = 8, **more: Any) -> Any:
    """The value, after its reason was seen to hold a number."""
    given = {"tiny": tiny, "native_side": 560, "patch": patch, "patches": 2} | more
    value, reason = object_choices(measures, **given)[name]
    assert any(letter.isdigit() for letter in reason), reason
    return value


@pytest.mark.parametrize(
    ("scene", "mirror", "reason"),
    [
        (cells, "all", "look alike from all sides"),
        (street, "horizontal", "look of"),
        (letters, "none", "left and right differ: look of"),
        (text_lines, "none", "left and right differ: strokes"),
    ],
)
def test_images_are_mirrored_only_as_the_data_look_alike(
    scene: Callable[[int], Scene], mirror: str, reason: str, measured: Measure
) -> None:
    measures = measured([scene(seed) for seed in range(60)])
    value, why = object_choices(measures, tiny=True, native_side=560, patch=8, patches=2)["objects.mirror"]
    assert value == mirror and reason in why


def test_too_few_images_are_taken_for_photographs(measured: Measure) -> None:
    measures = measured([cells(seed) for seed in range(10)])
    value, why = object_choices(measures, tiny=True, native_side=560, patch=8, patches=2)["objects.mirror"]
    assert value == "horizontal" and f"{measures.looked_at} images are too few" in why


def test_few_images_are_changed_more_and_faint_objects_less(usual: ObjectMeasures, measured: Measure) -> None:
    faint = measured([cells(seed, depth=8) for seed in range(40)])
    many = replace(usual, images=50_000)
    assert chosen(faint, "data.augment") < chosen(usual, "data.augment") > chosen(many, "data.augment") > 0


def test_a_tiny_model_sees_small_objects_at_a_larger_size_and_a_published_one_at_its_own(
    usual: ObjectMeasures, measured: Measure
) -> None:
    name = "data.image_longest_edge"
    small, large = (measured([cells(seed, radius=r, count=4) for seed in range(24)]) for r in (3, 25))
    for patch in (8, 16):
        sides = [chosen(one, name, patch=patch) for one in (small, usual, large)]
        assert sides[0] == 320 and sides[2] == 128 and all(side % patch == 0 for side in sides)
    side = chosen(usual, name, patch=8)
    assert side * usual.sizes["10%"] >= 2 * 8 and (side == 128 or (side - 8) * usual.sizes["10%"] < 2 * 8)
    assert chosen(small, name, patch=8, patches=0.5) < 320
    assert chosen(usual, name, patch=16, multiple=96) % 96 == 0
    assert {chosen(one, name, tiny=False) for one in (small, usual, large)} == {560}


def test_crowded_images_call_for_more_queries_and_more_objects_found(usual: ObjectMeasures, measured: Measure) -> None:
    crowded = measured([cells(seed, radius=3, count=120) for seed in range(12)])
    assert crowded.most > 80 > usual.most
    assert chosen(usual, "queries") == 20 and chosen(usual, "objects.most") == 100
    assert 1.5 * crowded.most <= chosen(crowded, "queries") < 1.5 * crowded.most + 1
    assert 1.5 * crowded.most <= chosen(crowded, "objects.most") < 1.5 * crowded.most + 10
    assert chosen(replace(crowded, most=2000), "queries") == 300
    assert "queries" not in object_choices(usual, tiny=False, native_side=560, patch=None, patches=2)


def test_few_images_are_shown_more_often_and_random_weights_need_more_of_it(usual: ObjectMeasures) -> None:
    def epochs(images: int, tiny: bool) -> int:
        return chosen(replace(usual, images=images), "epochs", tiny=tiny)

    assert epochs(200, True) == 90 and epochs(200, False) == 30 and epochs(600, False) == 10
    for tiny in (True, False):
        several = [epochs(images, tiny) for images in (20, 300, 1000, 100_000)]
        assert several == sorted(several, reverse=True) and several[-1] >= 3 and several[0] <= 150
    assert chosen(usual, "epochs") == 150 and usual.images < 60
    crowded = replace(usual, images=204, objects=204 * 14)
    assert chosen(crowded, "epochs") == round(6000 / 204)  # each image teaches more


def test_small_sets_are_learned_in_small_batches(usual: ObjectMeasures) -> None:
    assert chosen(usual, "batch.samples") == 8 and chosen(replace(usual, images=5000), "batch.samples") == 16


def test_images_without_objects_get_choices_too(measured: Measure) -> None:
    nothing = measured([(cells(seed)[0], [], []) for seed in range(24)])
    assert chosen(nothing, "data.image_longest_edge") == 128 and chosen(nothing, "queries") == 20


def test_checkpoints_are_chosen_by_images_that_show_the_rarest_class(usual: ObjectMeasures) -> None:
    def chosen_by(**classes: int) -> tuple[Any, str]:
        measures = replace(usual, images=10_000, classes=classes)
        return object_choices(measures, tiny=False, native_side=560, patch=None, patches=2)["evaluation.samples"]

    assert chosen_by(car=20_000, bus=400) == (256, "enough to choose by")
    samples, reason = chosen_by(car=20_000, tram=200, absent=0)
    assert samples * 200 / 10_000 == 10 and "tram is rare, 200 objects in 10000 training images" in reason
    assert chosen_by(car=20_000, sled=2)[0] == 1024
    assert chosen_by(absent=0)[0] == 256


def test_choices_follow_from_what_the_documents_say_and_from_nothing_else(usual: ObjectMeasures) -> None:
    """The table in docs/objects.md, and the measures that it calls reported only."""

    def choices(**changed: Any) -> dict[str, Any]:
        found = object_choices(
            replace(usual, **{"images": 500, **changed}), tiny=True, native_side=560, patch=16, patches=2
        )
        return {name: value for name, (value, _) in found.items()}

    reported = {
        "empty": 3, "longest_side": {"50%": 4000.0}, "crowds": 7, "median_objects": 90.0, "usual_most": 95.0,
        "masks": 0.5, "overlapping": 0.9, "contrast": 0.01, "brightness": 0.1, "brightness_spread": 0.4,
        "sharpness": 0.001, "images_with": {"9": 40}, "looked_at": 30,
    }  # fmt: skip
    broken = dict.fromkeys(usual.symmetry, Evidence("look", 9.0, 1.0))
    deciding = {
        "images": 5000, "objects": 50_000, "most": 90, "sizes": {"10%": 0.07}, "object_contrast": 0.01,
        "symmetry": broken, "classes": {"cell": 1},
    }  # fmt: skip
    of_plans = {"boxes_alone"}  # decides on the metric, with what the model draws
    assert reported.keys() | deciding.keys() | of_plans == {field.name for field in fields(ObjectMeasures)}
    assert choices(**reported) == choices()
    assert [name for name, value in deciding.items() if choices(**{name: value}) == choices()] == []

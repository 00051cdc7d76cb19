"""Runs that find objects, as they are planned: what follows from the data and from fields that are set by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import visiontune
from tests.drawn_objects import Scene, coco_source
from visiontune.api import object_verbs, run_verbs
from visiontune.api.object_verbs import plan_objects
from visiontune.data.dataset import Dataset
from visiontune.demo_shapes import draw_source
from visiontune.errors import ModelError, RecipeError
from visiontune.machine import Hardware
from visiontune.models.load import build_tiny_finder
from visiontune.recipe import ObjectChoices, Recipe
from visiontune.training.plan_objects import derive_objects

MACHINE = Hardware("cpu", "cpu", 8 * 2**30, 2, bf16=False)
Plan = Callable[..., Recipe]


def crowd(seed: int, count: int) -> Scene:
    """So many discs that overlap, each of 15 % of the image a side."""
    image = Image.new("RGB", (200, 200), (200, 200, 200))
    places = np.random.default_rng(seed).permutation(20 * 20)[:count]
    boxes = [(int(place % 20) * 8, int(place // 20) * 8, 30, 30) for place in places]
    for x, y, width, height in boxes:
        ImageDraw.Draw(image).ellipse((x, y, x + width - 1, y + height - 1), fill=(seed * 9, x % 250, y % 250))
    return image, boxes, ["dot"] * count


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Dataset]:
    """`crowded(n)`: images with n objects each."""
    made: dict[int, Dataset] = {}

    def make(count: int) -> Dataset:
        if count not in made:
            folder = tmp_path_factory.mktemp("crowded")
            source = coco_source(folder / "source", [crowd(seed, count) for seed in range(20)])
            made[count] = visiontune.prepare(source, folder / "data", workers=1)
        return made[count]

    return make


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    """`planned(data, model, changes, fragment)`: the recipe of a run that is planned and not trained."""

    def plan(data: Dataset, model: str = "tiny/rf-detr", changes: Any = None, fragment: Any = None) -> Recipe:
        fragments = [] if fragment is None else [fragment]
        out = tmp_path / "run"
        (run,) = plan_objects([data], [None], {"detector": model}, out, MACHINE, fragments, changes or {})
        return run.recipe

    return plan


def test_images_grow_until_every_query_has_a_patch(
    crowded: Callable[[int], Dataset], planned: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the size that its objects call for, 160 pixels, the model had 100 places for 190 objects."""
    recipe = planned(crowded(190))
    assert recipe.objects is not None and recipe.objects.queries == 285
    assert recipe.data.image_longest_edge == 288 and (288 // 16) ** 2 >= 285 > (256 // 16) ** 2
    assert "285 queries have a patch of 16 px each" in recipe.why["data.image_longest_edge"]
    assert recipe.why["objects.queries"] == "190 objects in an image at most, and half as many again"
    assert "cannot be found" not in capsys.readouterr().err


def test_what_a_small_model_has_no_places_for_is_told(
    crowded: Callable[[int], Dataset], planned: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    data = crowded(360)
    recipe = planned(data)
    assert recipe.objects is not None and recipe.objects.queries == 300
    assert "300 places for them, not half as many again" in recipe.why["objects.queries"]
    n = data.count("train")
    told = capsys.readouterr().err
    assert f"{n} of {n} training images hold more objects than the 300 that tiny/rf-detr finds" in told
    assert f"{60 / 360:.1%} of all objects cannot be found" in told and "crop the images" in told


def test_places_fit_the_size_of_images_that_is_asked_for(
    crowded: Callable[[int], Dataset], planned: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = planned(crowded(190), changes={"data.image_longest_edge": 160})
    assert recipe.objects is not None and recipe.objects.queries == 100
    assert "no more than the 100 patches of 160 px" in recipe.why["objects.queries"]
    assert "more objects than the 100 that" in capsys.readouterr().err


def test_a_trained_checkpoint_has_the_places_it_was_built_with(
    crowded: Callable[[int], Dataset], planned: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = crowded(190)
    choices = ObjectChoices(classes=("dot",), masks=False, mirror="none", queries=40)
    build_tiny_finder("tiny/rf-detr", tmp_path / "published", choices, 0, 128)
    planned(data, str(tmp_path / "published"))
    told = capsys.readouterr().err
    assert "more objects than the 40 that" in told and f"{150 / 190:.1%} of all" in told
    planned(data, "tiny/mm-grounding-dino")
    assert "more objects than the 30 that tiny/mm-grounding-dino finds" in capsys.readouterr().err


def test_a_limit_set_by_hand_is_called_by_its_name(
    crowded: Callable[[int], Dataset], planned: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(crowded(190), changes={"objects.most": 120})
    told = capsys.readouterr().err
    assert "more objects than the 120 that" in told and "raise --objects.most" in told


def test_images_are_augmented_where_late_layers_of_a_segmenter_learn(planned: Plan, tmp_path: Path) -> None:
    """What an encoder makes of an image is kept only where all of it is frozen."""
    shapes = visiontune.prepare(draw_source(tmp_path / "source", 40), tmp_path / "data", workers=1)
    choices = ObjectChoices(classes=("disc", "square"), masks=True, mirror="none")
    sam = str(tmp_path / "sam")
    build_tiny_finder("tiny/sam", Path(sam), choices, 0, 64)
    frozen = planned(shapes, sam)
    assert frozen.objects is not None and (frozen.data.augment, frozen.objects.mirror) == (0.0, "none")
    assert "computed once" in frozen.why["data.augment"]
    late = {"parts.vision_encoder_late": "lora"}
    for learning in (planned(shapes, sam, late), planned(shapes, sam, fragment={"parts": {"vision_encoder": "lora"}})):
        assert learning.objects is not None and learning.data.augment > 0 and learning.objects.mirror != "none"
        assert not any("computed once" in reason for reason in learning.why.values())


def test_a_student_that_cannot_be_trained_is_refused_before_the_teacher_labels(
    crowded: Callable[[int], Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def label(*_: Any) -> None:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(object_verbs, "distilled", label)
    options: dict[str, Any] = {"model": "tiny/rf-detr", "teacher": "runs/teacher", "out": tmp_path / "run"}
    for changes, error, found in (
        ({"data.image_longest_edge": 200}, ModelError, "200 x 200 pixels do not fit"),
        ({"parts.nose": "full"}, RecipeError, r"unknown \[.nose.\]"),
        ({"optimizer.clip_norm": -1}, RecipeError, "clip_norm"),
    ):
        with pytest.raises(error, match=found):
            visiontune.train(crowded(20).path, overrides=changes, **options)
        assert not list((tmp_path / "run").glob("[!.]*"))
    with pytest.raises(AssertionError, match="was asked"):
        visiontune.train(crowded(20).path, **options)
    assert "measuring" not in capsys.readouterr().err


def test_weights_are_those_of_the_labelled_datasets_and_a_rule_is_of_all(
    crowded: Callable[[int], Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The teacher's images are drawn as often as their number says, here a third, whatever the weights."""
    few, many, labelled_by_the_teacher = crowded(2), crowded(3), crowded(4)
    monkeypatch.setattr(object_verbs, "distilled", lambda *_: [few, many, labelled_by_the_teacher])
    monkeypatch.setattr(run_verbs, "_trained", lambda run, _: run)  # the plan is what is looked at
    quick = {"data.image_longest_edge": 64, "objects.queries": 4, "schedule.steps": 1, "evaluation.samples": 1}

    def weights(name: str, **options: Any) -> list[float | None]:
        run: Any = visiontune.train(
            few.path, many.path, model="tiny/rf-detr", teacher="t", out=tmp_path / name, overrides=quick, **options
        )
        return [use.weight for use in run.recipe.data.datasets]

    n = few.count("train")
    assert n == many.count("train") == labelled_by_the_teacher.count("train")
    assert weights("weighed", weights=[3, 1]) == [1.5 * n, 0.5 * n, n]
    assert f"the {n} images that the teacher alone labelled have 33.3% of the draws" in capsys.readouterr().err
    assert weights("ruled", mixture="uniform") == pytest.approx([1 / 3] * 3)
    assert weights("by size") == [None] * 3


def test_a_checkpoint_is_chosen_by_boxes_where_a_class_has_no_masks(tmp_path: Path) -> None:
    source = draw_source(tmp_path / "source", 12)
    whole = visiontune.prepare(source, tmp_path / "whole", workers=1)
    value = json.loads(source.read_text())
    name = value["categories"][0]["name"]
    for one in value["annotations"]:
        if one["category_id"] == value["categories"][0]["id"]:
            del one["segmentation"]
    source.write_text(json.dumps(value))
    some = visiontune.prepare(source, tmp_path / "some", workers=1)
    recipe, _ = derive_objects([some], [None], "tiny/rf-detr", MACHINE)
    assert recipe.objects is not None and recipe.objects.masks
    assert (
        recipe.evaluation.metric == "box_ap" and f"of {name} there are boxes alone" in recipe.why["evaluation.metric"]
    )
    for data, model, metric in ((some, "tiny/sam", "prompted_mask_ap"), (whole, "tiny/rf-detr", "mask_ap")):
        assert derive_objects([data], [None], model, MACHINE)[0].evaluation.metric == metric

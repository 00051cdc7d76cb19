"""Measures of images with objects: true numbers of what was drawn, and the symmetries that the scenes have."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import visiontune
from tests.drawn_objects import HEIGHT, WIDTH, Scene, cells, coco_source, letters, street, text_lines
from visiontune.data.dataset import Dataset
from visiontune.data.object_measures import ObjectMeasures, measure_objects
from visiontune.data.object_symmetry import FEWEST
from visiontune.data.objects import Objects
from visiontune.errors import DataError

Prepare = Callable[..., Dataset]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    """`prepared(scenes, masks=True)`: the scenes as a COCO file, prepared."""

    def make(scenes: list[Scene], name: str = "data", **choices) -> Dataset:
        source = coco_source(tmp_path / f"{name}-source", scenes, **choices)
        return visiontune.prepare(source, tmp_path / name, workers=1)

    return make


def targets(dataset: Dataset) -> list[Objects]:
    found = []
    for i in range(dataset.count("train")):
        target = dataset.sample("train", i).target
        assert isinstance(target, Objects)
        found.append(target)
    return found


def test_counts_and_sizes_are_those_of_what_was_drawn(prepared: Prepare) -> None:
    scenes = [cells(seed, count=6) for seed in range(16)] + [cells(seed, count=1) for seed in range(100, 108)]
    dataset = prepared(scenes, crowds=range(0, 60, 3))
    every = targets(dataset)
    found = measure_objects(dataset)
    real = [int((~one.crowd).sum()) for one in every]
    boxes = np.concatenate([one.boxes[~one.crowd] for one in every])
    assert (found.images, found.objects, found.crowds) == (len(every), sum(real), sum(map(len, every)) - sum(real))
    assert found.crowds > 0 and found.empty == real.count(0) > 0
    assert (found.most, found.median_objects) == (max(real), np.median(real))
    shares = np.sqrt(boxes[:, 2] * boxes[:, 3] / (WIDTH * HEIGHT))
    assert found.sizes["10%"] == pytest.approx(np.quantile(shares, 0.1))
    assert found.longest_side["50%"] == WIDTH and found.classes == {"cell": sum(real)} and found.masks == 0


def test_the_share_of_objects_with_masks_and_the_number_of_each_class(prepared: Prepare) -> None:
    plain = prepared([street(seed) for seed in range(12)])
    masked = prepared([street(seed) for seed in range(12, 24)], "masked", masks=True, crowds=range(0, 40, 4))
    found, one, other = measure_objects([plain, masked]), measure_objects(plain), measure_objects(masked)
    assert (one.masks, other.masks) == (0, 1) and other.crowds > 0
    assert found.masks == pytest.approx(other.objects / (one.objects + other.objects))
    assert (found.boxes_alone, one.boxes_alone, other.boxes_alone) == ([], ["car", "person"], [])
    assert found.images == one.images + other.images
    assert found.classes == {name: one.classes[name] + other.classes[name] for name in ("car", "person")}


def test_overlapping_objects_are_those_with_an_iou_above_a_tenth(prepared: Prepare) -> None:
    apart, touching, over = (10, 10, 20, 20), (30, 10, 20, 20), (40, 14, 20, 20)
    dataset = prepared([(cells(seed)[0], [apart, touching, over], ["cell"] * 3) for seed in range(10)])
    assert measure_objects(dataset).overlapping == pytest.approx(2 / 3)


def test_contrast_sharpness_and_brightness_are_seen_in_the_pixels(prepared: Prepare) -> None:
    def of(name: str, change: Callable[[Scene], Scene] = lambda scene: scene, **choices) -> ObjectMeasures:
        return measure_objects(prepared([change(cells(seed, **choices)) for seed in range(12)], name))

    def blurred(scene: Scene) -> Scene:
        return scene[0].filter(ImageFilter.GaussianBlur(2)), scene[1], scene[2]

    usual, faint = of("usual"), of("faint", depth=15)
    assert usual.object_contrast == pytest.approx(80 / 255, rel=0.25)
    assert faint.object_contrast == pytest.approx(15 / 255, rel=0.35) and faint.contrast < usual.contrast / 2
    assert of("blurred", blurred).sharpness < usual.sharpness / 5
    bright = of("bright", light=60)
    assert bright.brightness_spread > 5 * usual.brightness_spread and 0.4 < usual.brightness < 0.7


BROKEN = {
    "cells": (cells, (False, False, False)),
    "cells under a lamp that stands above": (lambda seed: cells(seed, lamp=25), (False, False, False)),
    "streets": (street, (False, True, True)),
    "letters": (letters, (True, True, True)),
    "text lines, dark on light and light on dark": (text_lines, (True, False, True)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_symmetries_of_a_scene_are_found(name: str, prepared: Prepare) -> None:
    scene, broken = BROKEN[name]
    found = measure_objects(prepared([scene(seed) for seed in range(60)])).symmetry
    assert list(found) == ["left_right", "up_down", "transposed"]
    assert tuple(one is not None and one.broken for one in found.values()) == broken, list(map(str, found.values()))


def test_a_scene_turned_by_a_quarter_has_the_other_mirror(prepared: Prepare) -> None:
    """What breaks up and down breaks left and right when everything lies on its side."""

    def turned(seed: int) -> Scene:
        image, boxes, names = street(seed)
        lying = image.transpose(Image.Transpose.TRANSPOSE)
        return lying, [(top, left, height, width) for left, top, width, height in boxes], names

    found = measure_objects(prepared([turned(seed) for seed in range(60)])).symmetry
    assert [one is not None and one.broken for one in found.values()] == [True, False, True]


def test_too_few_images_are_not_judged(prepared: Prepare) -> None:
    found = measure_objects(prepared([street(seed) for seed in range(12)]))
    assert found.images < FEWEST and set(found.symmetry.values()) == {None}


def test_images_without_any_object_are_measured(prepared: Prepare) -> None:
    found = measure_objects(prepared([(street(seed)[0], [], []) for seed in range(40)]))
    assert (found.objects, found.most, found.object_contrast, found.sizes["50%"]) == (0, 0, 0, 0)
    up_down = found.symmetry["up_down"]
    assert up_down is not None and up_down.broken and up_down.what == "layout of the images"


def test_measures_repeat_are_plain_values_and_decode_no_more_images_than_asked(
    prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prepared([cells(seed) for seed in range(30)])
    found = measure_objects(dataset)
    assert json.loads(json.dumps(found.to_json())) == measure_objects(dataset).to_json()
    read: list[int] = []
    sample = Dataset.sample
    monkeypatch.setattr(Dataset, "sample", lambda self, split, i: read.append(i) or sample(self, split, i))
    assert measure_objects(dataset, images=5).looked_at == len(read) == 5
    assert read[0] == 0 and read[-1] == dataset.count("train") - 1
    few = measure_objects(dataset, limit=7)
    assert few.images == 7 and few.objects == sum(len(one) for one in targets(dataset)[:7])


def test_texts_have_no_objects_to_measure(digits: Dataset) -> None:
    with pytest.raises(DataError, match="texts, not objects"):
        measure_objects(digits)

"""Each known fault of annotations is found where it is, and sound data raise no alarm."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.planted_annotations import PLANTS, planted, sound_annotations
from tests.planted_images import IMAGE_PLANTS, draw_images, oriented
from visiontune.data.annotations import coco, formats, yolo
from visiontune.data.annotations.conventions import MANY
from visiontune.data.annotations.examine import examine
from visiontune.data.annotations.image_files import Places, measure

REAL = Path(__file__).parent / "annotations"
# What a fault brings about besides itself, on the same annotation or the same class.
BESIDES = {
    "bad-category-id": {"unused-class"},
    "bad-class-name": {"unused-class"},
    "box-past-edge": {"wrong-area"},
    "polygon-past-edge": {"box-off-mask", "polygon-crosses-itself"},
    "polygon-crosses-itself": {"box-off-mask", "wrong-area"},
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_fault_is_found_once_in_its_place_and_nothing_else(plant):
    file, image_id, annotation_id = planted(sound_annotations(), plant)
    findings = examine(coco.to_table(file, "planted.json")).findings
    (found,) = [finding for finding in findings if finding.code == plant.code]
    assert annotation_id is None or found.annotation_id == annotation_id
    assert image_id is None or found.image_id in (image_id, None)
    assert found.file.startswith("planted.json") and found.found and found.fix
    assert {finding.code for finding in findings} - {plant.code} <= BESIDES.get(plant.code, set())


def test_at_least_39_faults_of_annotations_have_a_name():
    assert len({plant.code for plant in PLANTS}) >= 39


@pytest.mark.parametrize("plant", IMAGE_PLANTS, ids=lambda plant: plant.name)
def test_a_fault_of_an_image_file_is_found_and_nothing_else(plant, tmp_path):
    file = sound_annotations(9)
    draw_images(tmp_path, file)
    assert examine(coco.to_table(file, "x"), measure(coco.to_table(file, "x"), Places(tmp_path))).findings == []
    image_id = plant.plant(tmp_path, file)
    table = coco.to_table(file, "x")
    if plant.code == "image-in-several-splits":
        splits = tuple("test" if number == image_id else "train" for number in table.images.ids.tolist())
        table = replace(table, images=replace(table.images, splits=splits))
    findings = examine(table, measure(table, Places(tmp_path))).findings
    assert [(finding.code, finding.image_id) for finding in findings] == [(plant.code, image_id)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_size_that_says_what_was_annotated_and_an_image_without_objects_raise_no_alarm(orientation, tmp_path):
    file = sound_annotations(9)
    draw_images(tmp_path, file)
    told, empty = file["images"][4], file["images"][6]
    assert empty["id"] not in {one["image_id"] for one in file["annotations"]}
    oriented(tmp_path / empty["file_name"], orientation if orientation < 5 else 1)
    if orientation >= 5:
        # Sizes are those of the image as it is shown; so the stored pixels lie on their side.
        path = tmp_path / told["file_name"]
        with Image.open(path) as image:
            image.transpose(Image.Transpose.TRANSPOSE).save(path)
        oriented(path, orientation)
    table = coco.to_table(file, "x")
    assert examine(table, measure(table, Places(tmp_path))).findings == []


@pytest.mark.parametrize("orientation", range(2, 9))
def test_yolo_has_no_size_that_says_which_way_an_image_was_annotated(orientation, tmp_path):
    Image.effect_noise((40, 20), 60).convert("RGB").save(tmp_path / "a.png")
    Image.effect_noise((40, 20), 60).convert("RGB").save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.25 0.5")
    (tmp_path / "classes.txt").write_text("cat")
    for name in ("a.png", "b.png"):
        oriented(tmp_path / name, orientation)
    table = yolo.read(tmp_path)
    (finding,) = examine(table, measure(table, Places(tmp_path))).findings
    assert (finding.code, finding.severity, finding.place) == ("exif-orientation", "warning", "a.png")


def test_of_an_image_with_a_wrong_size_that_is_told_and_nothing_that_follows_from_it(tmp_path):
    file = sound_annotations(9)
    draw_images(tmp_path, file)
    image = file["images"][4]
    image["width"], image["height"] = image["width"] // 3, image["height"] // 3
    table = coco.to_table(file, "x")
    found = examine(table, measure(table, Places(tmp_path)))
    assert [(one.code, one.severity, one.image_id) for one in found.findings] == [
        ("image-size-differs", "error", image["id"])
    ]
    assert found.changes == [] and coco.to_json(found.mended) == coco.to_json(table)


def test_real_masks_as_published_raise_no_alarm():
    (table,) = formats.read(REAL / "nuclei")
    assert len(table.annotations) == 217
    assert examine(table).findings == []


def test_real_boxes_as_published_have_two_points_for_boxes_and_nothing_else():
    (table,) = formats.read(REAL / "bccd")
    findings = examine(table).findings
    assert [(finding.code, finding.severity) for finding in findings] == [("box-without-area", "drop")] * 2
    assert [finding.found for finding in findings] == [
        "the box [504, 337, 0, 0] has no area",
        "the box [181, 329, 0, 0] has no area",
    ]
    assert examine(examine(table).mended).findings == []


@pytest.mark.parametrize("seed", range(5))
def test_made_up_sound_annotations_raise_no_alarm(seed):
    assert examine(coco.to_table(sound_annotations(40, seed), "sound")).findings == []


def test_faults_on_many_annotations_are_all_named():
    file = sound_annotations(60)
    for entry in file["annotations"]:
        del entry["area"]
    findings = examine(coco.to_table(file, "x")).findings
    assert Counter(finding.code for finding in findings) == {"missing-area": len(file["annotations"])}
    assert {finding.annotation_id for finding in findings} == {entry["id"] for entry in file["annotations"]}


def test_a_mask_and_a_box_that_fit_loosely_raise_no_alarm():
    file = sound_annotations()
    for entry in file["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [max(0, x - 1), max(0, y - 1), w + 1, h + 1]
        entry["area"] = float(entry["area"]) if "segmentation" in entry else (w + 1) * (h + 1)
    assert examine(coco.to_table(file, "loose")).findings == []


def test_objects_without_a_mask_among_others_with_one_are_no_fault():
    file = sound_annotations()
    for entry in file["annotations"][::3]:
        entry.pop("segmentation", None)
    assert examine(coco.to_table(file, "some masks")).findings == []


def few_corners(count):
    """`count` boxes written as corners, each of which leaves its image if it is read as COCO has it."""
    images = [{"id": k, "file_name": f"{k}.png", "width": 64, "height": 48} for k in range(count)]
    entries = [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [30 + k % 3, 20, 50 + k % 3, 40], "area": 400}
        for k in range(count)
    ]
    return {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "a"}]}


def test_another_convention_is_mended_only_where_many_boxes_prove_it():
    sure = examine(coco.to_table(few_corners(MANY), "corners"))
    assert [(finding.code, finding.severity) for finding in sure.findings] == [("boxes-as-corners", "repair")]
    assert sure.mended.annotations.boxes[0].tolist() == [30, 20, 20, 20]
    unsure = examine(coco.to_table(few_corners(MANY - 1), "corners"))
    assert [(finding.code, finding.severity) for finding in unsure.findings] == [("boxes-as-corners", "error")]
    assert unsure.changes == []


@pytest.mark.parametrize("centred", [True, False])
def test_shares_from_the_centre_and_from_the_corner_are_told_apart(centred):
    file = sound_annotations(60)
    for entry, edge in zip(file["annotations"], [0, 1] * 200, strict=False):
        image = next(image for image in file["images"] if image["id"] == entry["image_id"])
        entry.pop("segmentation", None)
        # Boxes at the edges: none could be read the other way without leaving the image.
        left = edge * (image["width"] - 20)
        box = [left / image["width"], 0.5, 20 / image["width"], 0.25]
        entry["bbox"] = [box[0] + box[2] / 2, box[1] + box[3] / 2, *box[2:]] if centred else box
        entry["pixels"] = [left, image["height"] / 2, 20, image["height"] / 4]
        entry["area"] = 20 * image["height"] / 4
    found = examine(coco.to_table(file, "shares"))
    assert "boxes-as-shares" in {finding.code for finding in found.findings if finding.severity == "repair"}
    wanted = {entry["id"]: entry["pixels"] for entry in file["annotations"]}
    mended = found.mended.annotations
    for number, box in zip(mended.ids.tolist(), mended.boxes, strict=True):
        assert np.allclose(box, wanted[number])


def test_the_same_image_in_the_folders_of_two_splits_is_named(tmp_path):
    from visiontune.data.annotations.faults_images import duplicate_images

    tables = []
    for split in ("train", "valid"):
        file = sound_annotations(3)
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(file))
        draw_images(tmp_path / split, file)
    tables = coco.read(tmp_path)
    files = [measure(table, Places((tmp_path / table.name).parent)) for table in tables]
    assert [finding.code for finding in duplicate_images(tables, files)] == ["image-in-several-splits"] * 3


def test_images_are_found_beside_and_above_the_annotations_and_never_outside(tmp_path):
    file = sound_annotations(2)
    (tmp_path / "data/annotations").mkdir(parents=True)
    (tmp_path / "data/annotations/a.json").write_text(json.dumps(file))
    draw_images(tmp_path / "data/images", file)
    places = Places(tmp_path / "data/annotations/a.json")
    assert places.find("000.png") == [tmp_path / "data/images/000.png"]
    (tmp_path / "secret.png").write_bytes(b"")
    assert places.find("../secret.png") == places.find("../../secret.png") == places.find("") == []


def test_findings_are_faults_of_the_house_with_their_place():
    plant = next(plant for plant in PLANTS if plant.name == "box of width zero")
    file, image_id, annotation_id = planted(sound_annotations(), plant)
    (finding,) = examine(coco.to_table(copy.deepcopy(file), "a.json")).findings
    fault = finding.to_fault()
    assert (fault.code, fault.severity) == ("box-without-area", "drop")
    assert fault.where == f"a.json, image {image_id} (003.png), annotation {annotation_id}"
    assert json.loads(json.dumps(finding.to_json()))["annotation_id"] == annotation_id

"""Repairs: certain, listed change by change, nothing dropped uncounted, and mended twice is mended once."""

import copy
import io
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.planted_annotations import PLANTS, planted, sound_annotations
from tests.planted_images import IMAGE_PLANTS, draw_images
from visiontune.data.annotations import coco
from visiontune.data.annotations.examine import examine
from visiontune.data.annotations.image_files import Places, measure
from visiontune.data.annotations.masks import from_pixels, objects, to_pixels
from visiontune.data.annotations.repairs_images import turned_pixels, turned_points
from visiontune.data.annotations.repairs_objects import clipped_ring
from visiontune.data.images import decode

SOUND = sound_annotations()
BY_NAME = {plant.name: plant for plant in PLANTS}


def mended(name):
    file, _, annotation_id = planted(SOUND, BY_NAME[name])
    found = examine(coco.to_table(file, name))
    return found, annotation_id


def entry_of(found, annotation_id):
    return next(entry for entry in coco.to_json(found.mended)["annotations"] if entry["id"] == annotation_id)


def sound_entry(annotation_id):
    return next(entry for entry in SOUND["annotations"] if entry["id"] == annotation_id)


@given(st.lists(st.sampled_from([plant for plant in PLANTS if plant.code != "missing-section"]), max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_second_repair_changes_nothing_and_finds_nothing_to_mend(plants):
    file = copy.deepcopy(SOUND)
    for plant in plants:
        try:
            file, _, _ = planted(file, plant)
        except (IndexError, KeyError, TypeError, StopIteration, AttributeError):
            continue  # an earlier fault has taken what this one needs
    first = examine(coco.to_table(file, "once"))
    second = examine(first.mended)
    assert second.changes == []
    assert [finding for finding in second.findings if finding.severity in ("repair", "drop")] == []
    assert coco.to_json(second.mended) == coco.to_json(first.mended)


@given(st.lists(st.sampled_from([plant for plant in PLANTS if plant.code != "missing-section"]), max_size=4))
@settings(max_examples=40, deadline=None)
def test_every_annotation_that_is_gone_is_counted(plants):
    file = copy.deepcopy(SOUND)
    for plant in plants:
        try:
            file, _, _ = planted(file, plant)
        except (IndexError, KeyError, TypeError, StopIteration, AttributeError):
            continue
    found = examine(coco.to_table(file, "counted"))
    out = [change for change in found.changes if change.field in ("annotation", "image")]
    gone = len(file["annotations"]) + len(file["images"])
    gone -= len(found.mended.annotations) + len(found.mended.images)
    assert len(out) == gone == sum(found.dropped.values())


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_whatever_is_mended_or_dropped_stands_in_the_list_of_changes(plant):
    file, _, _ = planted(SOUND, plant)
    found = examine(coco.to_table(file, "x"))
    to_mend = {finding.code for finding in found.findings if finding.severity in ("repair", "drop")}
    assert {change.why for change in found.changes} == to_mend
    assert all(repr(change.before) != repr(change.after) for change in found.changes)
    json.dumps([change.to_json() for change in found.changes])


def with_ids(image, annotation, category, reference):
    """Sound annotations with their ids written by these functions of the number, references to images by the last."""
    file = copy.deepcopy(SOUND)
    for entry in file["images"]:
        entry["id"] = image(entry["id"])
    for entry in file["annotations"]:
        entry["id"], entry["image_id"] = annotation(entry["id"]), reference(entry["image_id"])
        entry["category_id"] = category(entry["category_id"])
    for entry in file["categories"]:
        entry["id"] = category(entry["id"])
    return file


@pytest.mark.parametrize("kinds", [(str, str, str, str), (int, int, int, str), (str, int, int, int), (float,) * 4])
def test_ids_that_are_whole_numbers_written_as_text_become_those_numbers(kinds):
    found = examine(coco.to_table(with_ids(*kinds), "x"))
    assert coco.to_json(found.mended) == coco.to_json(coco.to_table(SOUND, "x"))
    assert {finding.severity for finding in found.findings} == {"repair"}
    written = sum(kind is not int for kind in kinds[1:]) * len(SOUND["annotations"])
    written += (kinds[0] is not int) * len(SOUND["images"]) + (kinds[2] is not int) * len(SOUND["categories"])
    assert len(found.changes) == len(found.findings) == written


def test_ids_of_any_text_become_numbers_and_are_named_as_their_author_knows_them():
    file = with_ids("img-{}".format, "ann-{}".format, "c{}".format, "img-{}".format)
    file["annotations"][0]["bbox"][0] = -500
    del file["annotations"][0]["segmentation"]
    found = examine(coco.to_table(file, "x"))
    assert {finding.severity for finding in found.findings} == {"repair", "drop"}
    (gone,) = [finding for finding in found.findings if finding.severity == "drop"]
    assert (
        gone.place == f"image {file['annotations'][0]['image_id']} (001.png), annotation {file['annotations'][0]['id']}"
    )
    (change,) = [change for change in found.changes if change.field == "annotation"]
    assert change.place == gone.place
    sound = coco.to_table(SOUND, "x")
    kept = found.mended.annotations
    assert (found.mended.image_rows == sound.image_rows[1:]).all()
    assert (found.mended.category_rows == sound.category_rows[1:]).all() and len(set(kept.ids.tolist())) == len(kept)


def test_a_text_beside_the_same_number_is_another_image():
    file = copy.deepcopy(SOUND)
    first, second = file["images"][1], file["images"][2]
    for entry in file["annotations"]:
        if entry["image_id"] == second["id"]:
            entry["image_id"] = str(first["id"])
    second["id"] = str(first["id"])
    mended = examine(coco.to_table(file, "x")).mended
    assert len(set(mended.images.ids.tolist())) == len(file["images"])
    assert (mended.image_rows == coco.to_table(SOUND, "x").image_rows).all()


def test_the_table_that_is_examined_stays_as_it_is():
    for plant in PLANTS:
        file, _, _ = planted(SOUND, plant)
        table = coco.to_table(file, "x")
        before = coco.to_json(table)
        before = copy.deepcopy(before)
        examine(table)
        assert coco.to_json(table) == before


@pytest.mark.parametrize("name", ["mask without box", "box of three numbers"])
def test_a_box_that_is_missing_or_broken_is_that_of_the_masks_pixels(name):
    found, annotation_id = mended(name)
    rows = found.mended.annotations.ids == annotation_id
    image_row = int(found.mended.image_rows[rows][0])
    mask = objects(found.mended, image_row).masks[objects(found.mended, image_row).ids.index(annotation_id)]
    ys, xs = np.nonzero(to_pixels(mask))
    tight = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    assert entry_of(found, annotation_id)["bbox"] == tight


@pytest.mark.parametrize("name", ["no area", "area of the box on a mask"])
def test_an_area_is_measured_from_the_mask(name):
    found, annotation_id = mended(name)
    assert entry_of(found, annotation_id)["area"] == sound_entry(annotation_id)["area"]


def test_an_area_without_a_mask_is_width_times_height():
    found, annotation_id = mended("area a text")
    box = sound_entry(annotation_id)["bbox"]
    assert entry_of(found, annotation_id)["area"] == box[2] * box[3]


def test_a_box_past_the_edge_is_clipped_to_the_image():
    found, annotation_id = mended("box left of the image")
    old = sound_entry(annotation_id)["bbox"]
    assert entry_of(found, annotation_id)["bbox"] == [0, old[1], old[2] - 3, old[3]]


@pytest.mark.parametrize("name", ["width and height exchanged", "run lengths row by row"])
def test_a_transposed_mask_is_the_sound_one_again(name):
    found, annotation_id = mended(name)
    assert entry_of(found, annotation_id) == sound_entry(annotation_id)


@pytest.mark.parametrize("name", ["all boxes as corners"])
def test_boxes_in_another_convention_are_the_sound_ones_again(name):
    found, _ = mended(name)
    boxes = coco.to_table(SOUND, "sound").annotations.boxes
    assert np.abs(found.mended.annotations.boxes - boxes).max() < 1e-9


def test_a_broken_mask_leaves_the_box():
    for name in ("run lengths broken off", "polygon of two points", "run lengths of another size"):
        found, annotation_id = mended(name)
        assert entry_of(found, annotation_id).get("segmentation") is None
        assert entry_of(found, annotation_id)["bbox"] == sound_entry(annotation_id)["bbox"]


def test_parts_that_can_be_drawn_stay_when_another_part_cannot():
    file = copy.deepcopy(SOUND)
    entry = next(entry for entry in file["annotations"] if isinstance(entry.get("segmentation"), list))
    whole = copy.deepcopy(entry["segmentation"])
    entry["segmentation"] = [*whole, [1.0, 2.0]]
    found = examine(coco.to_table(file, "x"))
    assert entry_of(found, entry["id"])["segmentation"] == whole


def test_the_crowd_stays_a_crowd():
    table = examine(coco.to_table(SOUND, "sound")).mended
    assert (table.annotations.crowd == 1).sum() == 1
    found, annotation_id = mended("iscrowd true")
    assert entry_of(found, annotation_id)["iscrowd"] == 1


def test_classes_that_differ_in_case_and_blanks_become_one_with_all_objects():
    file = copy.deepcopy(SOUND)
    file["categories"].append({"id": 99, "name": " Nut"})
    moved = [entry for entry in file["annotations"] if entry["category_id"] == 5][:3]
    for entry in moved:
        entry["category_id"] = 99
    found = examine(coco.to_table(file, "x"))
    assert found.mended.categories.names == ("bolt", "nut", "washer")
    assert coco.to_json(found.mended)["annotations"] == coco.to_json(coco.to_table(SOUND, "x"))["annotations"]
    assert Counter(change.field for change in found.changes) == {"class": 1, "category_id": 3}


def test_a_file_listed_twice_keeps_the_objects_of_both_entries():
    file = copy.deepcopy(SOUND)
    image = next(image for image in file["images"] if image["id"] == file["annotations"][5]["image_id"])
    file["images"].append({**image, "id": 9000})
    file["annotations"][5]["image_id"] = 9000
    found = examine(coco.to_table(file, "x"))
    assert coco.to_json(found.mended) == coco.to_json(coco.to_table(SOUND, "x"))


def test_ids_that_are_used_twice_are_new_and_free():
    found, _ = mended("annotation id used twice")
    assert len(np.unique(found.mended.annotations.ids)) == len(SOUND["annotations"])


RING = st.lists(st.tuples(st.floats(-30, 90), st.floats(-30, 90)), min_size=3, max_size=9)


@given(RING)
def test_a_clipped_polygon_covers_the_pixels_of_the_image_that_it_covered(points):
    from pycocotools import mask as coco_mask

    ring = np.array(points).round(1)
    inside = clipped_ring(ring, 60, 50)
    assert len(inside) == 0 or (inside.min() >= 0 and inside[:, 0].max() <= 60 and inside[:, 1].max() <= 50)
    # Drawn on a larger canvas and cut out, the whole polygon is the reference.
    moved = (ring + 40).ravel().tolist()
    whole = coco_mask.decode(coco_mask.frPyObjects([moved], 140, 140))[40:90, 40:100, 0]
    kept = np.zeros_like(whole)
    if len(inside) >= 3:
        kept = coco_mask.decode(coco_mask.frPyObjects([(inside + 40).ravel().tolist()], 140, 140))[40:90, 40:100, 0]
    # Rounding moves the outline by a pixel: what differs is thin, and lies at the outline.
    outline = np.abs(np.diff(np.vstack([ring, ring[:1]]), axis=0)).sum() + 4 * 60
    assert (whole != kept).sum() <= outline


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_and_points_are_turned_as_the_image_is(orientation):
    stored = np.zeros((20, 30), np.uint8)
    stored[3:8, 11:25] = 255
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif.tobytes())
    upright = np.asarray(decode(buffer.getvalue()))[..., 0] > 0
    assert (turned_pixels(stored > 0, orientation) == upright).all()
    height, width = upright.shape
    corners = turned_points(np.array([[11.0, 3.0], [25.0, 8.0]]), orientation, width, height)
    ys, xs = np.nonzero(upright)
    assert corners.min(axis=0).tolist() == [xs.min(), ys.min()]
    assert corners.max(axis=0).tolist() == [xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("plant", IMAGE_PLANTS, ids=lambda plant: plant.name)
def test_repairs_with_image_files_are_done_once(plant, tmp_path):
    file = sound_annotations(9)
    draw_images(tmp_path, file)
    plant.plant(tmp_path, file)
    table = coco.to_table(file, "x")
    first = examine(table, measure(table, Places(tmp_path)))
    second = examine(first.mended, measure(first.mended, Places(tmp_path)))
    assert second.changes == []
    assert [finding for finding in second.findings if finding.severity in ("repair", "drop")] == []
    gone = len(file["images"]) + len(file["annotations"])
    gone -= len(first.mended.images) + len(first.mended.annotations)
    assert gone == sum(first.dropped.values())


def test_boxes_and_masks_of_a_turned_image_stand_on_their_pixels(tmp_path):
    stored = np.zeros((20, 30), np.uint8)
    stored[3:8, 11:25] = 255
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif.tobytes())
    mask = from_pixels(stored > 0)
    ring = [11, 3, 25, 3, 25, 8, 11, 8]
    entries = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": [11, 3, 14, 5], "area": 70, "segmentation": segmentation}
        for k, segmentation in enumerate((mask.to_coco(), [ring]))
    ]
    file = {
        "images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}],
        "annotations": entries,
        "categories": [{"id": 1, "name": "a"}],
    }
    table = coco.to_table(file, "turned")
    found = examine(table, measure(table, Places(tmp_path)))
    upright = np.asarray(decode((tmp_path / "a.png").read_bytes()))[..., 0] > 0
    for one in objects(found.mended, 0).masks:
        assert (to_pixels(one) == upright).all()
    ys, xs = np.nonzero(upright)
    tight = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    assert objects(found.mended, 0).boxes.tolist() == [tight, tight]

"""COCO files: every form is read, and a file that is read and written says what it said."""

import copy
import json
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.planted_annotations import PLANTS, planted, sound_annotations
from visiontune.data.annotations import coco
from visiontune.data.annotations.examine import examine
from visiontune.data.annotations.masks import objects, to_pixels
from visiontune.data.annotations.table import Kind, Table, merged
from visiontune.errors import DataError

NUCLEI = Path(__file__).parent / "annotations/nuclei/annotations.json"


def one_image(**fields) -> Table:
    """A table of one image of 8 x 6 pixels with one annotation."""
    annotation = {"id": 1, "image_id": 7, "category_id": 3, **fields}
    image = {"id": 7, "file_name": "a.png", "width": 8, "height": 6}
    file = {"images": [image], "annotations": [annotation], "categories": [{"id": 3, "name": "cell"}]}
    return coco.to_table(file, "one")


def test_real_file_is_written_as_it_was_read(tmp_path):
    (table,) = coco.read(NUCLEI)
    coco.write(table, tmp_path / "again.json")
    assert orjson.loads((tmp_path / "again.json").read_bytes()) == orjson.loads(NUCLEI.read_bytes())


FIELDS = st.dictionaries(
    st.text(min_size=1),
    st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(), st.lists, max_leaves=4),
    max_size=3,
)
SECTION = st.lists(FIELDS | st.integers() | st.none() | st.text(), max_size=4)


@given(
    FIELDS,
    SECTION | st.none(),
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "id": st.integers() | st.none() | st.booleans(),
                "image_id": st.integers(0, 3) | st.text(),
                "category_id": st.integers(-1, 3),
                "bbox": st.lists(st.integers(-9, 99) | st.floats(-9, 99) | st.text(), max_size=5) | st.none(),
                "area": st.floats(-9, 99) | st.integers() | st.text() | st.none(),
                "iscrowd": st.integers(0, 2) | st.booleans() | st.none(),
                "segmentation": st.none() | st.just([]) | st.lists(st.lists(st.floats(0, 9))) | FIELDS | st.text(),
                "attributes": FIELDS,
            },
        ),
        max_size=4,
    ),
)
def test_nothing_of_any_file_is_lost(top, images, annotations):
    file = {**top, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a", "x": [1]}]}
    assert coco.to_json(coco.to_table(copy.deepcopy(file), "any")) == file


def test_every_planted_fault_is_written_back_as_it_was_read():
    sound = sound_annotations()
    for plant in PLANTS:
        file, _, _ = planted(sound, plant)
        again = coco.to_json(coco.to_table(copy.deepcopy(file), plant.name))
        assert again == file


def test_masks_of_every_form_are_the_same_pixels():
    pixels = np.zeros((6, 8), np.uint8)
    pixels[1:4, 2:5] = 1
    packed = coco_mask.encode(np.asfortranarray(pixels))
    forms = {
        Kind.POLYGONS: [[2, 1, 5, 1, 5, 4, 2, 4]],
        Kind.COMPRESSED: {"size": [6, 8], "counts": packed["counts"].decode()},
        Kind.UNCOMPRESSED: {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 20]},
    }
    for kind, value in forms.items():
        table = one_image(segmentation=value)
        assert table.annotations.kinds.tolist() == [kind]
        (mask,) = objects(table, 0).masks
        assert (to_pixels(mask) == pixels).all()
        assert objects(table, 0).boxes.tolist() == [[2, 1, 3, 3]]


def test_counts_in_bytes_are_written_as_text():
    packed = coco_mask.encode(np.asfortranarray(np.eye(6, 8, dtype=np.uint8)))
    table = one_image(segmentation={"size": [6, 8], "counts": packed["counts"]})
    assert table.annotations.kinds.tolist() == [Kind.COMPRESSED]
    assert orjson.dumps(coco.to_json(table))


def test_sparse_ids_become_places_in_the_list_of_classes():
    file = sound_annotations()
    table = coco.to_table(file, "sparse")
    assert table.categories.ids.tolist() == [2, 5, 8]
    for row in range(len(table.images)):
        found = objects(table, row)
        wanted = [e for e in file["annotations"] if e["image_id"] == table.images.ids[row]]
        assert found.ids == tuple(entry["id"] for entry in wanted)
        assert found.classes.tolist() == [[2, 5, 8].index(entry["category_id"]) for entry in wanted]
        assert found.crowd.tolist() == [entry["iscrowd"] == 1 for entry in wanted]


def test_images_without_objects_are_there():
    table = coco.to_table(sound_annotations(), "sound")
    empty = [row for row in range(len(table.images)) if not len(table.annotation_rows(row))]
    assert len(empty) == 4
    assert all(len(objects(table, row)) == 0 for row in empty)


def test_an_object_without_box_and_mask_is_refused():
    with pytest.raises(DataError, match="neither box nor mask"):
        objects(one_image(), 0)


def test_roboflow_folders_are_the_splits_and_their_equal_ids_stay_apart(tmp_path):
    for number, split in enumerate(("train", "valid", "test")):
        file = {
            "images": [{"id": 0, "file_name": f"{split}.jpg", "width": 8, "height": 6}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": number, "bbox": [1, 1, 2, number + 1]}],
            "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}, {"id": 2, "name": "c"}],
        }
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(file))
    tables = coco.read(tmp_path)
    assert [table.images.splits for table in tables] == [("test",), ("train",), ("validation",)]
    table = merged(tables, "all")
    assert table.images.splits == ("test", "train", "validation")
    assert table.images.file_names == ("test/test.jpg", "train/train.jpg", "valid/valid.jpg")
    assert table.categories.names == ("a", "b", "c")
    found = [objects(table, row) for row in range(3)]
    assert [one.classes.tolist() for one in found] == [[2], [0], [1]]
    assert [one.boxes[0, 3] for one in found] == [3, 1, 2]
    assert len({one.ids for one in found}) == 3
    findings = examine(table).findings
    assert not [finding for finding in findings if finding.severity == "error"]
    # The numbers in one table are new; places are those of the author's files.
    assert "all, valid/_annotations.coco.json, image 0 (valid.jpg), annotation 0" in {
        finding.to_fault().where for finding in findings
    }


def test_splits_are_written_as_they_are_read(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / "in" / split).mkdir(parents=True)
        file = sound_annotations(6, seed=len(split))
        (tmp_path / "in" / split / "_annotations.coco.json").write_text(json.dumps(file))
    table = merged(coco.read(tmp_path / "in"), "in")
    coco.write_splits(table, tmp_path / "out")
    again = merged(coco.read(tmp_path / "out"), "in")
    assert coco.to_json(again) == coco.to_json(table)
    assert again.images.splits == table.images.splits


def test_files_beside_each_other_are_the_splits_that_their_names_say(tmp_path):
    for name in ("instances_train2017", "instances_val2017", "more"):
        (tmp_path / f"{name}.json").write_text(json.dumps(sound_annotations(2)))
    assert [set(table.images.splits) for table in coco.read(tmp_path)] == [{"train"}, {"validation"}, {None}]
    (alone,) = coco.read(tmp_path / "instances_train2017.json")
    assert set(alone.images.splits) == {None}


def test_a_file_with_nan_is_read_and_the_box_named(tmp_path):
    (tmp_path / "nan.json").write_text(json.dumps(coco.to_json(one_image(bbox=[float("nan"), 1, 2, 2]))))
    (table,) = coco.read(tmp_path / "nan.json")
    assert [finding.code for finding in examine(table).findings] == ["bad-box"]


@pytest.mark.parametrize(("text", "found"), [("[1, 2]", "a list"), ('{"images": [', "not JSON"), ("null", "nothing")])
def test_what_is_no_coco_file_is_refused_with_its_name(tmp_path, text, found):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(DataError, match=found) as error:
        coco.read(tmp_path / "file.json")
    assert "file.json" in (error.value.where or "")


def test_whole_numbers_too_large_for_a_float_are_written_back_as_they_were():
    big = 2**53 + 1
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [big, 0, 1e20, 5], "area": big, "iscrowd": 0}
    file = {"images": [], "annotations": [one, {**one, "id": 2, "bbox": [1, 2, 1e20, 5]}], "categories": []}
    assert coco.to_json(coco.to_table(file, "x")) == file

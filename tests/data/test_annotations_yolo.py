"""YOLO data sets: boxes and polygons, splits, class names, and what the format cannot hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import visiontune
from tests.planted_annotations import sound_annotations
from tests.planted_images import draw_images
from visiontune.data.annotations import coco, yolo
from visiontune.data.annotations.examine import examine
from visiontune.errors import DataError

SIDE = (40, 20)


def dataset(root: Path, labels: dict[str, str | None], description: dict | None = None, images: str = "images") -> Path:
    """A YOLO folder of pictures of 40 x 20 pixels. `labels`: picture -> its label file, None without one."""
    for name, text in labels.items():
        picture = root / images / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIDE).save(picture)
        if text is not None:
            label = Path(str(picture).replace("/images/", "/labels/")).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(text)
    if description is not None:
        (root / "data.yaml").write_text(yaml.safe_dump(description))
    return root


def test_boxes_are_from_the_centre_and_polygons_from_their_points(tmp_path):
    text = "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.1 0.5 0.1 0.5 0.6\n"
    table = yolo.read(dataset(tmp_path, {"a": text}, {"names": ["cat", "dog"], "train": "images"}))
    assert table.annotations.boxes.tolist() == [[15, 5, 10, 10], [4, 2, 16, 10]]
    assert table.annotations.category_ids.tolist() == [1, 0]
    assert table.annotations.segmentations == (None, [[4, 2, 20, 2, 20, 12]])
    assert table.annotations.areas.tolist() == [100, 80]
    assert examine(table).findings == []


def test_pictures_without_labels_and_with_empty_ones_are_images_without_objects(tmp_path):
    labels = {"a": None, "b": "", "c": "0 0.5 0.5 0.5 0.5\n"}
    table = yolo.read(dataset(tmp_path, labels, {"names": ["cat"], "train": "images"}))
    assert table.images.file_names == ("images/a.png", "images/b.png", "images/c.png")
    assert [len(table.annotation_rows(row)) for row in range(3)] == [0, 0, 1]


@pytest.mark.parametrize(
    "names", [["cat", "dog"], {0: "cat", 1: "dog"}, {"1": "dog", "0": "cat"}], ids=["list", "numbers", "texts"]
)
def test_names_are_a_list_or_numbered(tmp_path, names):
    table = yolo.read(dataset(tmp_path, {"a": "1 0.5 0.5 0.5 0.5"}, {"names": names, "train": "images"}))
    assert table.categories.names == ("cat", "dog")
    assert table.categories.names[table.category_rows[0]] == "dog"


def test_classes_txt_names_the_classes_where_there_is_no_data_yaml(tmp_path):
    dataset(tmp_path, {"train/a": "0 0.5 0.5 0.5 0.5", "val/b": None, "c": None})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    table = yolo.read(tmp_path)
    assert table.categories.names == ("cat", "dog")
    assert dict(zip(table.images.file_names, table.images.splits, strict=True)) == {
        "images/train/a.png": "train",
        "images/val/b.png": "validation",
        "images/c.png": None,
    }


def test_labels_may_stand_beside_their_images(tmp_path):
    dataset(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"}, {"names": ["cat"], "train": "photos"}, images="photos")
    assert len(yolo.read(tmp_path).annotations) == 1


@pytest.mark.parametrize("labels", ["beside", "labels"])
@pytest.mark.parametrize("listed", [False, True])
def test_folders_above_a_data_set_do_not_say_where_its_labels_are(tmp_path, labels, listed):
    root = tmp_path / "images" / "set"
    pictures, texts = (root / "train",) * 2 if labels == "beside" else (root / "images/train", root / "labels/train")
    for name in ("a", "b"):
        pictures.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIDE, (len(name), ord(name), 0)).save(pictures / f"{name}.png")
    texts.mkdir(parents=True, exist_ok=True)
    for name in ("a", "stray"):
        (texts / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (root / "list.txt").write_text("".join(f"{pictures / name}.png\n" for name in ("a", "b")))
    train = "list.txt" if listed else str(pictures.relative_to(root))
    (root / "data.yaml").write_text(yaml.safe_dump({"names": ["cat"], "train": train}))
    table = yolo.read(root)
    assert [len(table.annotation_rows(row)) for row in range(2)] == [1, 0]
    unused = [fault for fault in visiontune.inspect(root).faults if fault.code == "unused-labels"]
    assert [fault.where for fault in unused] == ["set, stray.txt"]


def test_a_data_set_whose_root_is_the_folder_of_images_has_its_labels_beside_that(tmp_path):
    dataset(tmp_path, {"train/a": "0 0.5 0.5 0.5 0.5"})
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"path": "images", "names": ["cat"], "train": "train"}))
    assert len(yolo.read(tmp_path).annotations) == 1


@pytest.mark.parametrize(
    "places",
    [
        {"train": "images/train", "val": "images/val", "test": "images/test"},
        {"train": ["images/train"], "val": ["images/val", "images/test"]},
        {"train": "../images/train", "val": "../images/val", "test": "../images/test"},
        {"path": "/not/on/this/machine", "train": "images/train", "val": "images/val", "test": "images/test"},
        {"train": "train.txt", "val": "images/val", "test": "images/test"},
    ],
    ids=["folders", "lists", "Roboflow's", "another machine's path", "a list of files"],
)
def test_splits_are_where_data_yaml_says(tmp_path, places):
    (tmp_path / "data").mkdir()
    root = dataset(tmp_path / "data", {"train/a": None, "val/b": None, "test/c": None}, {"names": ["cat"], **places})
    (root / "train.txt").write_text("./images/train/a.png\n")
    table = yolo.read(root)
    splits = {Path(name).stem: split for name, split in zip(table.images.file_names, table.images.splits, strict=True)}
    assert splits == {"a": "train", "b": "validation", "c": "test" if "test" in places else "validation"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("0 0.5 0.5 0.5", "4 numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 numbers"),
        ("cat 0.5 0.5 0.5 0.5", "no number"),
        ("0 nan 0.5 0.5 0.5", "not finite"),
        ("0.5 0.5 0.5 0.5 0.5", "no whole number"),
        ("-1 0.5 0.5 0.5 0.5", "no whole number"),
    ],
)
def test_lines_that_say_no_object_are_named_with_their_place(tmp_path, line, found):
    table = yolo.read(dataset(tmp_path, {"a": f"0 0.5 0.5 0.5 0.5\n{line}\n"}, {"names": ["cat"], "train": "images"}))
    (finding,) = examine(table).findings
    assert (finding.code, finding.severity) == ("broken-line", "drop")
    assert "labels/a.txt, line 2" in finding.place and found in finding.found
    assert examine(table).dropped == {"broken-line": 1}
    assert len(table.annotations) == 1


def test_faults_and_changes_name_the_file_and_the_line(tmp_path):
    text = "0 0.5 0.5 0.25 0.5\n\n0 0.5 0.5 0 0.5\n0 0.5 0.5 0.25 0.5\nx\n"
    found = examine(yolo.read(dataset(tmp_path / "set", {"train/a": text}, {"names": ["cat"], "train": "images"})))
    where = {finding.code: finding.to_fault().where for finding in found.findings}
    assert where == {
        "box-without-area": "set, labels/train/a.txt, line 3",
        "broken-line": "set, labels/train/a.txt, line 5",
        "duplicate-annotation": "set, labels/train/a.txt, line 4",
    }
    assert "it says what labels/train/a.txt, line 1 says" in {finding.found for finding in found.findings}
    assert {change.to_json()["place"] for change in found.changes} == {
        place.removeprefix("set, ") for place in where.values()
    }


def test_a_class_that_has_no_name_is_a_fault(tmp_path):
    table = yolo.read(dataset(tmp_path, {"a": "7 0.5 0.5 0.5 0.5"}, {"names": ["cat"], "train": "images"}))
    assert "unknown-category" in {finding.code for finding in examine(table).findings}


@pytest.mark.parametrize("description", [{}, {"names": 3}, {"names": {"cat": 0}}])
def test_without_class_names_it_is_refused(tmp_path, description):
    with pytest.raises(DataError):
        yolo.read(dataset(tmp_path, {"a": None}, {"train": "images", **description}))


def test_a_place_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="not there") as error:
        yolo.read(dataset(tmp_path, {"a": None}, {"names": ["cat"], "train": "pictures"}))
    assert "pictures" in (error.value.where or "")


def _expressible(seed: int) -> dict:
    """Sound annotations that YOLO can hold: boxes and single polygons, no crowd."""
    file = sound_annotations(12, seed)
    file["annotations"] = [
        entry
        for entry in file["annotations"]
        if not entry["iscrowd"] and isinstance(entry.get("segmentation"), list | None)
    ]
    for image in file["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    return file


@given(st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_what_yolo_can_hold_comes_back(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("yolo")
    table = coco.to_table(_expressible(seed), "x")
    draw_images(folder, coco.to_json(table))
    assert yolo.write(table, folder) == {}
    again = yolo.read(folder)
    assert again.images.file_names == table.images.file_names
    assert again.categories.names == table.categories.names
    assert np.abs(again.annotations.boxes - table.annotations.boxes).max() < 1e-5
    assert again.annotations.kinds.tolist() == table.annotations.kinds.tolist()
    for one, two in zip(again.annotations.segmentations, table.annotations.segmentations, strict=True):
        assert (one is None) == (two is None) and (one is None or np.allclose(one, two, atol=1e-5))
    assert set(again.images.splits) == {"train"}


def test_what_yolo_cannot_hold_is_counted(tmp_path):
    file = sound_annotations()
    file["annotations"][3]["note"] = "odd"
    masks = [e for e in file["annotations"] if isinstance(e.get("segmentation"), dict) and not e["iscrowd"]]
    masks[0]["segmentation"] = {"size": [1, 1], "counts": [0, 1]}
    masks[1]["bbox"][2] -= 5
    table = coco.to_table(file, "x")
    assert yolo.write(table, tmp_path) == {
        "masks that cannot be drawn": 1,
        "boxes that are not those of their masks": 1,
        "crowds": 1,
        "fields of objects": 1,
    }
    lines = sum(len(path.read_text().splitlines()) for path in tmp_path.glob("*.txt") if path.stem[0].isdigit())
    assert lines == len(table.annotations) - 1


def test_written_splits_come_back(tmp_path):
    dataset(tmp_path, {"a": None, "b": None, "c": None}, {"names": ["cat"], "train": "images"})
    table = yolo.read(tmp_path)
    parts = json.loads(json.dumps(["train", "validation", "test"]))
    from dataclasses import replace

    table = replace(table, images=replace(table.images, splits=tuple(parts)))
    yolo.write(table, tmp_path)
    assert yolo.read(tmp_path).images.splits == ("train", "validation", "test")

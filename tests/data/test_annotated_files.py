"""What lies beside annotations: images and labels that nobody uses, and folders that only look like images."""

import json
from pathlib import Path

import pytest
from PIL import Image

import visiontune
from tests.planted_annotations import sound_annotations
from tests.planted_images import draw_images
from visiontune.errors import DataError

XML = """<annotation><filename>{}.png</filename><size><width>40</width><height>20</height></size><object>
<name>cat</name><bndbox><xmin>3</xmin><ymin>5</ymin><xmax>20</xmax><ymax>15</ymax></bndbox></object></annotation>"""


def pictures(folder: Path, *names: str) -> None:
    """Pictures of 40 x 20 pixels, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (40, 20), (90 * number, 20, 200)).save(folder / f"{name}.png")


def of_coco(folder: Path) -> None:
    file = sound_annotations(6)
    draw_images(folder / "images", file)
    for name in ("left", "right"):
        (folder / "images" / f"{name}.png").write_bytes((folder / "images/000.png").read_bytes())
    (folder / "annotations.json").write_text(json.dumps(file))


def of_voc(folder: Path) -> None:
    pictures(folder / "JPEGImages", "a", "b", "left", "right")
    (folder / "Annotations").mkdir()
    for name in ("a", "b"):
        (folder / "Annotations" / f"{name}.xml").write_text(XML.format(name))


def of_yolo(folder: Path) -> None:
    pictures(folder / "images/train", "a", "b")
    (folder / "labels/train").mkdir(parents=True)
    for name in ("a", "left", "right"):
        (folder / "labels/train" / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (folder / "data.yaml").write_text("train: images/train\nnames: [cat]\n")


@pytest.mark.parametrize(
    ("make", "found", "names"),
    [
        (of_coco, "images that the annotations do not list: 2", "left.png, right.png"),
        (of_voc, "images without an XML file: 2", "left.png, right.png"),
        (of_yolo, "label files without an image: 2", "left.txt, right.txt"),
    ],
)
def test_files_that_nobody_uses_are_told_once(tmp_path, make, found, names):
    make(tmp_path / "set")
    told = [fault for fault in visiontune.inspect(tmp_path / "set").faults if fault.code.startswith("unused-")]
    assert [(fault.severity, fault.where, fault.found) for fault in told] == [("warning", f"set, {names}", found)]


RESULTS = '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]'


@pytest.mark.parametrize(
    ("form", "text", "found"),
    [
        ("folder", "", "this JSON file is empty"),
        ("folder", RESULTS, "a list of 1 results"),
        ("file", RESULTS, "a list of 1 results"),
        ("folder", '{"info": {}}', "has no images, annotations, categories"),
    ],
)
def test_a_json_file_beside_images_that_is_no_coco_file_is_said_to_be_none(tmp_path, text, found, form):
    pictures(tmp_path / "images", "a", "b")
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=found) as caught:
        visiontune.inspect(tmp_path if form == "folder" else tmp_path / "annotations.json")
    assert "images, annotations and categories" in (caught.value.fix or "")
    assert (caught.value.where or "").endswith("annotations.json")


def test_labels_without_the_names_of_their_classes_are_said_to_lack_them(tmp_path):
    of_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(
        DataError, match=r"YOLO label files \(labels/train/a.txt and 2 more\), and nothing names"
    ) as caught:
        visiontune.inspect(tmp_path)
    assert "data.yaml" in (caught.value.fix or "") and "classes.txt" in (caught.value.fix or "")


def test_stray_texts_and_json_files_beside_class_folders_refuse_nothing(tmp_path):
    pictures(tmp_path / "cat", "a", "b")
    pictures(tmp_path / "dog", "c")
    (tmp_path / "notes.json").write_text("")
    (tmp_path / "cat/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert visiontune.inspect(tmp_path).labels == {"cat": 2, "dog": 1}


@pytest.mark.parametrize("crowds", [True, False])
def test_data_without_an_object_say_why_nothing_would_be_trained(tmp_path, crowds):
    file = sound_annotations(6)
    draw_images(tmp_path / "images", file)
    file["annotations"] = [{**one, "iscrowd": 1} for one in file["annotations"]] if crowds else []
    (tmp_path / "annotations.json").write_text(json.dumps(file))
    found = visiontune.inspect(tmp_path / "annotations.json")
    (fault,) = found.faults
    assert found.trains == [] and fault.code == "no-objects"
    assert fault.found == "none of 6 images has an object" + " that is no crowd" * crowds
    assert found.objects is not None and (found.objects.masks, found.objects.count) == (0, 0)
    assert (found.objects.crowds > 0) == crowds

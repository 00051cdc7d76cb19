"""What lies beside annotations: images and labels that nobody uses, and folders that only look like images."""

import json
from pathlib import Path

import pytest
from PIL import Image

import visiontune
from tests.planted_annotations import sound_annotations
from tests.planted_images import draw_images

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

"""Pascal VOC: boxes to the pixel in both ways of counting, fields kept, and what the format cannot hold counted."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planted_annotations import sound_annotations
from visiontune.data.annotations import coco, formats, voc
from visiontune.data.annotations.examine import examine
from visiontune.errors import DataError

BCCD = Path(__file__).parent / "annotations/bccd"


def annotation(*objects: str, name: str = "a.jpg", size: str = "<width>40</width><height>20</height>") -> str:
    return f"<annotation><filename>{name}</filename><size>{size}</size>{''.join(objects)}</annotation>"


def an_object(xmin, ymin, xmax, ymax, name: str = "cat", more: str = "") -> str:
    box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def folder(root: Path, **files: str) -> Path:
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def test_vocs_own_pixels_are_counted_from_1_and_include_the_last(tmp_path):
    table = voc.read(folder(tmp_path, a=annotation(an_object(1, 1, 40, 20), an_object(3, 5, 4, 8))))
    assert table.annotations.boxes.tolist() == [[0, 0, 40, 20], [2, 4, 2, 4]]
    assert table.annotations.areas.tolist() == [800, 8]


@pytest.mark.parametrize("proof", [(0, 1, 5, 5), (7, 7, 7, 7), (1.5, 1, 5, 5)], ids=["a 0", "a point", "a fraction"])
def test_a_coordinate_that_no_pixel_from_1_has_makes_all_of_them_edges(tmp_path, proof):
    table = voc.read(
        folder(tmp_path, a=annotation(an_object(3, 5, 4, 8)), b=annotation(an_object(*proof), name="b.jpg"))
    )
    assert table.annotations.boxes[0].tolist() == [3, 5, 1, 3]


def test_the_caller_may_say_how_pixels_are_counted(tmp_path):
    source = folder(tmp_path, a=annotation(an_object(3, 5, 4, 8)))
    assert voc.read(source, "edges").annotations.boxes.tolist() == [[3, 5, 1, 3]]
    assert voc.read(source, "counted from 1").annotations.boxes.tolist() == [[2, 4, 2, 4]]


def test_real_annotations_are_edges_and_keep_their_fields():
    table = voc.read(BCCD)
    assert len(table.images) == 6 and table.categories.names == ("Platelets", "RBC", "WBC")
    assert table.annotations.boxes[0].tolist() == [260, 177, 231, 199]
    assert table.annotations.other[0] == {"pose": "Unspecified", "truncated": 0, "difficult": 0}
    assert table.images.other[0]["folder"] == "JPEGImages"
    assert set(table.images.widths.tolist()) == {640} and set(table.images.heights.tolist()) == {480}


def test_an_image_without_objects_is_there(tmp_path):
    table = voc.read(folder(tmp_path, a=annotation()))
    assert table.images.file_names == ("a.jpg",) and len(table.annotations) == 0


def test_segmentations_are_not_read_and_counted(tmp_path):
    text = annotation(an_object(3, 5, 9, 9, more="<part><name>head</name></part>"), "<segmented>1</segmented>")
    table = voc.read(folder(tmp_path, a=text))
    assert table.ignored == {"segmentation images": 1, "parts of objects": 1}
    assert len(table.annotations) == 1


def test_splits_are_those_of_imagesets(tmp_path):
    source = folder(tmp_path, a=annotation(), b=annotation(name="b.jpg"), c=annotation(name="c.jpg"))
    (source / "ImageSets/Main").mkdir(parents=True)
    (source / "ImageSets/Main/train.txt").write_text("a\n")
    (source / "ImageSets/Main/val.txt").write_text("b 1\n")
    assert voc.read(source).images.splits == ("train", "validation", None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<annotation>", "not XML"),
        (annotation("<object><name>cat</name></object>"), "no box of four numbers"),
        (annotation(an_object("x", 1, 2, 3)), "no box of four numbers"),
        (annotation(an_object(1, 1, 2, 3, name=" ")), "no class name"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, text, found):
    table = voc.read(folder(tmp_path, a=text, b=annotation(an_object(3, 5, 9, 9), name="b.jpg")))
    (finding,) = [finding for finding in examine(table).findings if finding.code in ("broken-line", "broken-file")]
    assert finding.severity == "drop" and found in finding.found and "Annotations/a.xml" in finding.place
    assert len(table.annotations) == 1


def test_faults_and_changes_name_the_file_and_the_number_of_the_object(tmp_path):
    text = annotation("<object></object>", an_object(9, 5, 3, 8), size="<width>40</width>")
    found = examine(voc.read(folder(tmp_path / "set", a=text)))
    where = {finding.code: finding.to_fault().where for finding in found.findings}
    assert where == {
        "bad-image-size": "set, Annotations/a.xml",
        "box-without-area": "set, Annotations/a.xml, object 2",
        "broken-line": "set, Annotations/a.xml, object 1",
    }
    assert [change.to_json()["place"] for change in found.changes] == [
        "Annotations/a.xml, object 1",
        "Annotations/a.xml, object 2",
    ]


def test_a_missing_size_is_a_fault(tmp_path):
    table = voc.read(folder(tmp_path, a=annotation(size="<width>wide</width>")))
    assert [finding.code for finding in examine(table).findings] == ["bad-image-size"] * 2


def test_the_image_is_the_file_that_is_there(tmp_path):
    source = folder(tmp_path, a=annotation(name="other.png"))
    (source / "JPEGImages").mkdir()
    (source / "JPEGImages/a.png").write_bytes(b"")
    assert voc.read(source).images.file_names == ("JPEGImages/a.png",)


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(2, 20), st.integers(2, 9)), min_size=1, max_size=6
    )
)
@settings(max_examples=20, deadline=None)
def test_whole_pixels_come_back(tmp_path_factory, boxes):
    file = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 20}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": list(box), "difficult": k % 2}
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "cat & <dog>"}],
    }
    table = coco.to_table(file, "x")
    folder_ = tmp_path_factory.mktemp("voc")
    assert voc.write(table, folder_) == {}
    again = voc.read(folder_)
    assert again.annotations.boxes.tolist() == table.annotations.boxes.tolist()
    assert again.categories.names == table.categories.names
    assert again.images.file_names == table.images.file_names
    assert [fields["difficult"] for fields in again.annotations.other.values()] == [k % 2 for k in range(len(boxes))]


def test_what_voc_cannot_hold_is_counted(tmp_path):
    table = coco.to_table(sound_annotations(), "x")
    lost = voc.write(table, tmp_path)
    masks = sum(entry.get("segmentation") is not None for entry in sound_annotations()["annotations"])
    assert lost["masks"] == masks and lost["crowd flags"] == 1 and lost["fractions of pixels"] > 0
    again = voc.read(tmp_path)
    assert len(again.annotations) == len(table.annotations)
    assert np.abs(again.annotations.boxes - table.annotations.boxes).max() <= 1


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda root: (root / "a.json").write_text("{}"), "1 .json"),
        (lambda root: None, "an empty folder"),
        (lambda root: [(root / f"{k}.png").write_bytes(b"") for k in range(3)], "3 .png"),
    ],
)
def test_a_folder_of_no_known_format_is_refused_with_what_is_in_it(tmp_path, make, found):
    make(tmp_path)
    with pytest.raises(DataError, match=found) as error:
        formats.read(tmp_path)
    assert "COCO" in (error.value.fix or "") and "data.yaml" in (error.value.fix or "")


def test_the_format_is_found_from_a_file_or_a_folder(tmp_path):
    assert formats.detect(BCCD) == "voc"
    assert formats.detect(BCCD / "Annotations") == "voc"
    assert formats.detect(BCCD.parent / "nuclei") == "coco"
    assert formats.detect(BCCD.parent / "nuclei/annotations.json") == "coco"
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    assert formats.detect(tmp_path) == formats.detect(tmp_path / "data.yaml") == "yolo"
    with pytest.raises(DataError, match="no such file"):
        formats.detect(tmp_path / "nothing")

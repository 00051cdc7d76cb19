"""Boxes and masks as data: inspected, mended where that was agreed to, prepared, split, and read back as they were."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import visiontune
from visiontune.data.annotations.masks import from_pixels
from visiontune.data.dataset import Dataset
from visiontune.data.formats.rows import SourceRow
from visiontune.data.objects import Objects, from_text, to_text
from visiontune.data.split import SPLITS, assign
from visiontune.data.survey import _strata
from visiontune.errors import DataError, ModelError

CLASSES = ("cat", "dog", "owl")
SIDE = 32
IMAGES = 80


def scene(number: int) -> list[dict[str, Any]]:
    """The objects of image `number`: cats on all but each tenth image, dogs on each fourth, an owl on each eighth."""
    rng = np.random.default_rng(number)
    present = [0] * (number % 10 > 0) + [1] * (number % 4 == 0) + [2] * (number % 8 == 0)
    objects = []
    for k, place in enumerate(present if number % 10 else []):
        left, top = rng.integers(0, SIDE - 12, 2).tolist()
        objects.append({"category_id": place, "bbox": [left, top, 8 + k, 9], "id": 1000 * number + k})
    return objects


def coco(folder: Path, *, masks: bool = True) -> Path:
    """80 images of noise in images/, their annotations in annotations.json; returns the file."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(IMAGES):
        name = f"{number:03d}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for one in scene(number):
            left, top, width, height = one["bbox"]
            drawn = np.zeros((SIDE, SIDE), bool)
            drawn[top : top + height, left : left + width] = True
            crowd = int(one["id"] % 1000 == 1)
            mask = {"segmentation": from_pixels(drawn).to_coco()} if masks else {}
            extra = {"image_id": number, "area": width * height, "iscrowd": crowd}
            annotations.append({**one, "bbox": [left, top, width, height], **extra, **mask})
    value = {"images": images, "annotations": annotations, "categories": _categories()}
    (folder / "annotations.json").write_text(json.dumps(value))
    return folder / "annotations.json"


def _categories() -> list[dict[str, Any]]:
    return [{"id": i, "name": name} for i, name in enumerate(CLASSES)]


def rows(dataset: Dataset) -> dict[str, tuple[str, Objects]]:
    """id -> split and objects."""
    found = {}
    for split in SPLITS:
        for i in range(dataset.count(split)):
            sample = dataset.sample(split, i)
            assert isinstance(sample.target, Objects)
            found[sample.id] = (split, sample.target)
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("coco")
    return visiontune.prepare(coco(folder / "source"), folder / "data", workers=1)


def test_every_object_is_stored_and_read_back_with_its_class_box_mask_and_crowd(prepared: Dataset) -> None:
    found = rows(prepared)
    assert len(found) == IMAGES
    for number in range(IMAGES):
        _, objects = found[f"{number:03d}.png"]
        wanted = scene(number)
        assert objects.ids == tuple(one["id"] for one in wanted)
        assert objects.classes.tolist() == [one["category_id"] for one in wanted]
        assert objects.boxes.tolist() == [list(map(float, one["bbox"])) for one in wanted]
        assert objects.crowd.tolist() == [one["id"] % 1000 == 1 for one in wanted]
        assert [mask is not None and (mask.height, mask.width) for mask in objects.masks] == [(SIDE, SIDE)] * len(
            wanted
        )


def test_images_without_objects_are_kept_as_negatives(prepared: Dataset) -> None:
    found = rows(prepared)
    empty = [name for name, (_, objects) in found.items() if not len(objects)]
    assert len(empty) == IMAGES // 10 == prepared.info.objects.negatives  # pyright: ignore[reportOptionalMemberAccess]


def test_each_class_stands_in_each_split_in_its_share(prepared: Dataset) -> None:
    images: dict[str, Counter[str]] = {name: Counter() for name in CLASSES}
    for split, objects in rows(prepared).values():
        for place in set(objects.classes.tolist()):
            images[CLASSES[place]][split] += 1
    for counts in images.values():
        total = counts.total()
        for split, share in zip(SPLITS, (0.70, 0.15, 0.15), strict=True):
            assert abs(counts[split] - share * total) <= max(1.5, 0.05 * total), (counts, split)


def test_the_rarest_class_that_an_image_shows_decides_where_it_is_counted() -> None:
    rows = [
        SourceRow(f"{i}.png", (), (), None, "[]", False, None, of_classes=("cat", "owl") if i % 15 == 0 else ("cat",))
        for i in range(300)
    ]
    for seed in range(10):
        splits = assign([row.id for row in rows], range(300), _strata(rows), given=[None] * 300, earlier={}, seed=seed)
        owls = Counter(split for split, row in zip(splits, rows, strict=True) if "owl" in (row.of_classes or ()))
        assert owls == {"train": 14, "validation": 3, "test": 3}


def test_what_would_be_trained_follows_from_what_stands_in_the_data(tmp_path: Path) -> None:
    with_masks = visiontune.inspect(coco(tmp_path / "masks")).to_json()
    assert [one["target"] for one in with_masks["trains"]] == ["boxes", "masks"]
    assert [one["target"] for one in visiontune.inspect(coco(tmp_path / "boxes", masks=False)).trains] == ["boxes"]
    facts = with_masks["targets"]["objects"]
    wanted = Counter(
        CLASSES[one["category_id"]] for number in range(IMAGES) for one in scene(number) if one["id"] % 1000 != 1
    )
    assert facts["classes"] == {name: wanted[name] for name in CLASSES} and facts["crowds"] > 0
    assert visiontune.inspect(tmp_path / "masks" / "annotations.json").samples == IMAGES


def faulty(folder: Path) -> Path:
    """The same with a box without area, one that reaches out of its image, one annotation twice, one image missing."""
    path = coco(folder, masks=False)
    value = json.loads(path.read_text())
    annotations = value["annotations"]
    annotations[0]["bbox"][2] = 0
    annotations[1]["bbox"] = [SIDE - 4, 3, 8, 8]
    annotations.append({**annotations[2], "id": 999_999})
    (folder / "images" / "005.png").unlink()
    path.write_text(json.dumps(value))
    return path


def test_faults_that_can_be_mended_are_refused_until_that_is_agreed_to(tmp_path: Path) -> None:
    source = faulty(tmp_path / "source")
    with pytest.raises(DataError, match=r"5 faults of the annotations can be mended: .*box-without-area 1") as caught:
        visiontune.prepare(source, tmp_path / "data", workers=1)
    assert "--repair" in (caught.value.fix or "") and not (tmp_path / "data" / "dataset.json").exists()
    codes = {fault.code for fault in visiontune.inspect(source).faults}
    assert {"box-without-area", "missing-image-file"} <= codes


def test_a_repair_lists_every_change_loses_nothing_uncounted_and_is_done_once(tmp_path: Path) -> None:
    source = faulty(tmp_path / "source")
    before = source.read_bytes()
    data = visiontune.prepare(source, tmp_path / "data", workers=1, repair=True)
    changes = [json.loads(line) for line in (data.path / "repairs.jsonl").read_text().splitlines()]
    assert len(changes) == data.info.mended >= 3 and source.read_bytes() == before
    taken_out = sum(change["field"] == "annotation" for change in changes)
    drawn = json.loads(before)["annotations"]
    kept = sum(len(objects) for _, objects in rows(data).values())
    assert kept == len(drawn) - taken_out
    left_out = Counter(row.code for row in data.info.left_out)
    assert left_out["missing-image-file"] == 1 and left_out["box-without-area"] == 1
    again = visiontune.prepare(source, tmp_path / "data", workers=1, repair=True)
    assert again.info == data.info


def test_an_image_that_is_not_taken_is_listed_with_its_reason_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = coco(tmp_path / "source", masks=False)
    value = json.loads(source.read_text())
    of_image = {number: [one for one in value["annotations"] if one["image_id"] == number] for number in range(IMAGES)}
    of_image[4][0]["iscrowd"] = 2
    (only,) = of_image[1]
    only["bbox"][2] = 0
    source.write_text(json.dumps(value))
    data = visiontune.prepare(source, tmp_path / "data", workers=1, repair=True)
    left_out = {(row.id, row.code): row.found for row in data.info.left_out}
    name = "annotations.json, image"
    assert left_out.pop((f"{name} 1 (001.png), annotation {only['id']}", "box-without-area"))
    assert left_out == {
        (f"{name} 4 (004.png)", "image-with-errors"): "it has an error: iscrowd is 2",
        (f"{name} 1 (001.png)", "lost-all-objects"): "all of its objects were taken out (box-without-area 1): it would "
        "be learned as an image without any",
    }
    assert {"001.png", "004.png"}.isdisjoint(rows(data)) and len(rows(data)) == IMAGES - 2
    said = capsys.readouterr().err
    assert "left out: 2 images and 1 object" in said and "it has an error: iscrowd is 2" in said
    assert "training refuses these data: iscrowd is 2" in said


@pytest.mark.parametrize("reference", [None, "nobody", 999_999])
def test_objects_of_nobody_knows_which_image_forbid_training_where_images_have_none(
    tmp_path: Path, reference: Any
) -> None:
    source = coco(tmp_path / "source", masks=False)
    value = json.loads(source.read_text())
    for one in value["annotations"]:
        one["image_id"] = reference
    source.write_text(json.dumps(value))
    data = visiontune.prepare(source, tmp_path / "data", workers=1, repair=True)
    (error,) = [fault for fault in data.info.faults if fault.severity == "error"]
    assert error.code == "objects-of-no-image" and f"{IMAGES} images have no object" in error.found


def test_a_corrected_box_is_another_dataset_and_leaves_every_image_in_its_split(
    prepared: Dataset, tmp_path: Path
) -> None:
    source = coco(tmp_path / "source")
    first = visiontune.prepare(source, tmp_path / "data", workers=1)
    assert first.info.content_hash == prepared.info.content_hash
    splits = {name: split for name, (split, _) in rows(first).items()}
    value = json.loads(source.read_text())
    value["annotations"][0]["bbox"][0] += 1
    value["annotations"][0].pop("segmentation")
    source.write_text(json.dumps(value))
    second = visiontune.prepare(source, tmp_path / "data", workers=1)
    assert second.info.content_hash != first.info.content_hash
    assert {name: split for name, (split, _) in rows(second).items()} == splits


def test_yolo_says_the_same_as_coco(prepared: Dataset, tmp_path: Path) -> None:
    coco(tmp_path / "source", masks=False)
    images = tmp_path / "source" / "images"
    labels = tmp_path / "yolo" / "labels"
    labels.mkdir(parents=True)
    shutil.copytree(images, tmp_path / "yolo" / "images")
    (tmp_path / "yolo" / "data.yaml").write_text("train: images\nnames: [cat, dog, owl]\n")
    for number in range(IMAGES):
        lines = []
        for one in scene(number):
            left, top, width, height = one["bbox"]
            centre = ((left + width / 2) / SIDE, (top + height / 2) / SIDE, width / SIDE, height / SIDE)
            lines.append(" ".join([str(one["category_id"]), *(f"{value:.8f}" for value in centre)]))
        (labels / f"{number:03d}.txt").write_text("\n".join(lines) + "\n")
    dataset = visiontune.prepare(tmp_path / "yolo", tmp_path / "data", workers=1)
    found = {Path(name).name: objects for name, (_, objects) in rows(dataset).items()}
    for name, (_, objects) in rows(prepared).items():
        assert found[name].classes.tolist() == objects.classes.tolist()
        assert np.allclose(found[name].boxes, objects.boxes, atol=1e-4)


def test_images_of_a_data_yaml_are_read_from_the_folder_that_it_calls_path(tmp_path: Path) -> None:
    source = coco(tmp_path / "source").parent
    (source / "labels").mkdir()
    (source / "labels/003.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (tmp_path / "described").mkdir()
    (tmp_path / "described/data.yaml").write_text(f"path: {source}\ntrain: images\nnames: [cat, dog, owl]\n")
    for given in (tmp_path / "described", tmp_path / "described/data.yaml"):
        found = visiontune.inspect(given)
        assert found.samples == IMAGES and found.objects is not None and found.objects.count == 1


def test_the_splits_of_a_roboflow_export_are_kept(tmp_path: Path) -> None:
    for split, numbers in (("train", range(6)), ("valid", range(6, 9)), ("test", range(9, 12))):
        (tmp_path / "source" / split).mkdir(parents=True)
        images = [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in numbers]
        boxes = [
            {"id": n, "image_id": n, "category_id": 0, "bbox": [1, 2, 9, 9], "iscrowd": 0, "area": 81} for n in numbers
        ]
        value = {"images": images, "annotations": boxes, "categories": _categories()}
        (tmp_path / "source" / split / "_annotations.coco.json").write_text(json.dumps(value))
        for n in numbers:
            pixels = np.random.default_rng(n).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "source" / split / f"{n}.png")
    dataset = visiontune.prepare(tmp_path / "source", tmp_path / "data", workers=1)
    assert dataset.info.splits == {"train": 6, "validation": 3, "test": 3}


def test_a_name_that_files_in_two_folders_have_is_not_guessed(tmp_path: Path) -> None:
    source = coco(tmp_path / "source")
    (tmp_path / "source" / "more").mkdir()
    (tmp_path / "source" / "more" / "009.png").write_bytes((tmp_path / "source" / "images" / "009.png").read_bytes())
    (fault,) = [fault for fault in visiontune.inspect(source).faults if fault.code == "unreadable-image"]
    assert "image 9" in fault.where and "images, more" in fault.found


def test_images_outside_the_source_are_not_read(tmp_path: Path) -> None:
    source = coco(tmp_path / "source")
    value = json.loads(source.read_text())
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "secret.png")
    value["images"][3]["file_name"] = "../secret.png"
    source.write_text(json.dumps(value))
    value["images"][4]["file_name"] = str(tmp_path / "secret.png")
    source.write_text(json.dumps(value))
    found = [fault for fault in visiontune.inspect(source).faults if fault.code == "missing-image-file"]
    assert [fault.found for fault in found] == [
        f"{name!r} is outside the source's folder, {tmp_path / 'source'}"
        for name in ("../secret.png", str(tmp_path / "secret.png"))
    ]
    assert all("put the image, or a link to its folder, into that folder" in fault.fix for fault in found)


def _moved(folder: Path, to: str, names: str = "{}") -> Path:
    """The COCO file in folder/source/labels, with its images in folder/`to` and `names` of them."""
    source = coco(folder / "source", masks=False)
    labels = folder / "source/labels/annotations.json"
    labels.parent.mkdir()
    value = json.loads(source.read_text())
    for image in value["images"]:
        image["file_name"] = names.format(image["file_name"])
    labels.write_text(json.dumps(value))
    source.unlink()
    (folder / to).parent.mkdir(parents=True, exist_ok=True)
    (folder / "source/images").rename(folder / to)
    return labels


@pytest.mark.parametrize(
    ("to", "names"),
    [
        ("source/labels/a/b/c", "{}"),
        ("source/labels/a/b/c", "c/{}"),
        ("source/pics", "../pics/{}"),
        ("source/pics", "FOLDER/source/pics/{}"),
    ],
)
def test_images_are_found_far_below_and_where_names_lead_from_a_folder_of_annotations_alone(
    tmp_path: Path, to: str, names: str
) -> None:
    source = _moved(tmp_path, to, names.replace("FOLDER", str(tmp_path)))
    found = visiontune.inspect(source)
    assert (found.samples, found.faults) == (IMAGES, [])
    if "FOLDER" in names:  # the dataset may go to another machine
        assert found.ids[0] == "pics/000.png"


def test_a_name_that_folders_far_below_share_is_not_guessed(tmp_path: Path) -> None:
    source = _moved(tmp_path, "source/labels/a/b/c")
    (tmp_path / "source/labels/a/d").mkdir()
    shutil.copy(tmp_path / "source/labels/a/b/c/003.png", tmp_path / "source/labels/a/d")
    (fault,) = visiontune.inspect(source).faults
    assert fault.code == "unreadable-image" and "files in several folders have this name" in fault.found


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_in_the_source_are_followed_wherever_they_lead(tmp_path: Path, what: str) -> None:
    source = coco(tmp_path / "source")
    images = tmp_path / "source/images"
    images.rename(tmp_path / "elsewhere")
    if what == "folder":
        images.symlink_to(tmp_path / "elsewhere")
    else:
        images.mkdir()
        for path in (tmp_path / "elsewhere").iterdir():
            (images / path.name).symlink_to(path)
    found = visiontune.inspect(source)
    assert (found.samples, found.faults) == (IMAGES, [])


def test_without_a_single_image_the_faults_are_named_and_nothing_would_be_trained(tmp_path: Path) -> None:
    source = coco(tmp_path / "source")
    shutil.rmtree(tmp_path / "source" / "images")
    found = visiontune.inspect(source)
    assert found.samples == 0 and found.trains == []
    codes = Counter(fault.code for fault in found.faults)
    assert codes == {"missing-image-file": IMAGES, "nothing-usable": 1}
    assert found.to_json()["targets"]["objects"]["classes"] == dict.fromkeys(CLASSES, 0)
    with pytest.raises(DataError, match=r"nothing is left to prepare: .*there is no file"):
        visiontune.prepare(source, tmp_path / "data", repair=True)


def test_a_model_that_writes_text_is_not_trained_on_objects_and_that_is_said(prepared: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="finds no objects"):
        visiontune.train(prepared.path, model="tiny/smolvlm", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_repair_is_for_boxes_and_masks(digits_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="boxes and masks are repaired"):
        visiontune.prepare(digits_folder, tmp_path / "data", repair=True)


def test_objects_of_unknown_classes_are_not_read_back() -> None:
    one = from_text('[{"id": 1, "category": "cat", "bbox": [1, 2, 3, 4], "iscrowd": 0}]', CLASSES)
    assert to_text(one, CLASSES) == '[{"id": 1, "category": "cat", "bbox": [1.0, 2.0, 3.0, 4.0], "iscrowd": 0}]'
    with pytest.raises(ValueError, match="no such class: cat"):
        from_text(to_text(one, CLASSES), ("dog",))

"""Prepared boxes and masks written as COCO, YOLO and VOC: what comes back, what is lost and told, what is refused."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

import visiontune
from tests.conftest import Call
from tests.killed import killed
from tests.planted_annotations import sound_annotations
from tests.planted_images import draw_images
from visiontune import lock
from visiontune.data import annotated_folder
from visiontune.data.annotated_folder import EXPORT_NAME, write_annotated
from visiontune.data.annotations import coco, voc
from visiontune.data.annotations.masks import areas_and_boxes, from_pixels
from visiontune.data.dataset import Dataset
from visiontune.data.dataset_info import Provenance
from visiontune.data.objects import Objects
from visiontune.data.pseudo_labels import LabelledImage, write_dataset
from visiontune.data.sample import ImageFile, Images
from visiontune.data.split import SPLITS
from visiontune.errors import DataError, RecipeError, RunError, VisiontuneError
from visiontune.exports.place import places_held

ANNOTATIONS = Path(__file__).parent / "annotations"
Scene = tuple[str, Objects]


def a_mask(pixels: np.ndarray) -> dict[str, Any]:
    """An annotation's mask, box and area."""
    mask = from_pixels(pixels)
    areas, boxes = areas_and_boxes([mask])
    return {"segmentation": mask.to_coco(), "bbox": boxes[0].tolist(), "area": areas[0]}


def write_source(folder: Path) -> Path:
    """Polygons, run lengths, boxes alone, a crowd, images of nothing, a mask in pieces with a hole; and folders in
    which images have the same name, and one that no file system likes."""
    file = sound_annotations(30)
    for k, image in enumerate(file["images"]):
        image["file_name"] = f"{'ab'[k % 2]}/{k // 2:03d}.png" if k < 28 else f"street {k}: é.png"
    image = file["images"][0]
    pixels = np.zeros((image["height"], image["width"]), bool)
    pixels[2:12, 3:15] = pixels[16:20, 5:9] = True
    pixels[5:8, 6:9] = False
    identity = {"id": 5000, "image_id": image["id"], "category_id": file["categories"][0]["id"], "iscrowd": 0}
    file["annotations"].append({**identity, **a_mask(pixels)})
    folder.mkdir()
    draw_images(folder, file)
    (folder / "annotations.json").write_text(json.dumps(file))
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("annotated")
    return visiontune.prepare(write_source(folder / "source"), folder / "data", workers=1)


def scenes(dataset: Dataset) -> dict[str, Scene]:
    """The hash of an image's bytes -> its split and objects."""
    found = {}
    for split in SPLITS:
        for i in range(dataset.count(split)):
            sample = dataset.sample(split, i)
            assert isinstance(sample.seen, Images) and isinstance(sample.target, Objects)
            found[hashlib.sha256(sample.seen.files[0].data).hexdigest()] = (split, sample.target)
    assert len(found) == len(dataset)
    return found


def classes_of(dataset: Dataset) -> list[str]:
    assert dataset.info.objects is not None
    return list(dataset.info.objects.classes)


def exported(call: Call, dataset: Dataset, form: str, folder: Path) -> tuple[Dataset, dict[str, Any], str]:
    """The export prepared again, unmended and without a fault; what its record and standard error say."""
    code, out, err = call("export", dataset.path, "--to", form, "--out", folder / form, "--json")
    assert code == 0 and json.loads(out) == {form: str(folder / form)}, err
    code, out, _ = call("inspect", folder / form, "--json")
    inspected = json.loads(out)
    assert code == 0 and [fault for fault in inspected["faults"] if fault["severity"] != "warning"] == []
    code, _, failed = call("prepare", folder / form, "--out", folder / "again", "--workers", 1)
    assert code == 0, failed
    return Dataset.open(folder / "again"), json.loads((folder / form / EXPORT_NAME).read_text()), err


def corners(box: list[float]) -> np.ndarray:
    return np.array([*box[:2], box[0] + box[2], box[1] + box[3]])


def rows_of(objects: Objects, keep: np.ndarray | None = None) -> list[tuple[Any, ...]]:
    rows = zip(
        objects.classes.tolist(),
        objects.boxes.tolist(),
        objects.masks,
        objects.crowd.tolist(),
        objects.ids,
        strict=True,
    )
    return [row for row, kept in zip(rows, keep if keep is not None else [True] * len(objects), strict=True) if kept]


def test_coco_gives_back_every_object_class_box_mask_crowd_id_and_split(
    call: Call, prepared: Dataset, tmp_path: Path
) -> None:
    again, record, err = exported(call, prepared, "coco", tmp_path)
    assert classes_of(again) == classes_of(prepared) and again.info.splits == prepared.info.splits
    before, after = scenes(prepared), scenes(again)
    assert {k: (split, rows_of(objects)) for k, (split, objects) in after.items()} == {
        k: (split, rows_of(objects)) for k, (split, objects) in before.items()
    }
    assert record["lost"] == {} and "warning" not in err
    assert record["content_hash"] == prepared.info.content_hash


def test_pycocotools_reads_the_coco_files(prepared: Dataset, tmp_path: Path) -> None:
    folder = visiontune.export(prepared.path, to="coco", out=tmp_path / "coco")["coco"]
    objects = 0
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        read = COCO(str(folder / name / "_annotations.coco.json"))
        assert len(read.imgs) == prepared.info.splits[split]
        for image in read.imgs.values():
            with Image.open(folder / name / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"])
        assert [category["supercategory"] for category in read.cats.values()] == ["objects"] * len(read.cats)
        for annotation in read.anns.values():
            objects += 1
            if "segmentation" in annotation:
                assert read.annToMask(annotation).sum() == annotation["area"]
    assert objects == sum(len(objects) for _, objects in scenes(prepared).values())


def test_yolo_gives_back_all_but_crowds_masks_to_the_pixel(call: Call, prepared: Dataset, tmp_path: Path) -> None:
    again, record, err = exported(call, prepared, "yolo", tmp_path)
    assert classes_of(again) == classes_of(prepared) and again.info.splits == prepared.info.splits
    before, after = scenes(prepared), scenes(again)
    masks = 0
    for key, (split, objects) in before.items():
        wanted, found = rows_of(objects, ~objects.crowd), rows_of(after[key][1])
        assert after[key][0] == split and [row[0] for row in found] == [row[0] for row in wanted]
        for (_, box, mask, _, _), (_, box_found, mask_found, crowd, _) in zip(wanted, found, strict=True):
            assert mask_found == mask and not crowd
            assert np.allclose(corners(box_found), corners(box), atol=1e-5 if mask is None else 1)
            masks += mask is not None
    assert masks > 40
    crowds = sum(int(objects.crowd.sum()) for _, objects in before.values())
    assert crowds == 1 == record["lost"]["crowds"] and "crowds (1)" in err
    mixed = record["lost"]["images with boxes beside masks, which some tools misread"]
    assert mixed > 0 and f"misread ({mixed})" in err


def test_the_folders_of_yolo_are_those_that_its_tools_read(prepared: Dataset, tmp_path: Path) -> None:
    folder = visiontune.export(prepared.path, to="yolo", out=tmp_path / "yolo")["yolo"]
    said = yaml.safe_load((folder / "data.yaml").read_text())
    assert list(said["names"].values()) == classes_of(prepared)
    assert "path" not in said, "tools take it as one of the working folder's"
    for key, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        listed = (folder / said[key]).read_text().splitlines()
        assert len(listed) == prepared.info.splits[split]
        for name in listed:
            assert (folder / name).parent == folder / "images" / key
            label = folder / "labels" / key / f"{Path(name).stem}.txt"
            values = np.array(" ".join(" ".join(line.split()[1:]) for line in label.open()).split(), float)
            assert (values >= 0).all() and (values <= 1).all()


def test_voc_gives_back_boxes_to_the_pixel_and_splits(call: Call, prepared: Dataset, tmp_path: Path) -> None:
    again, record, err = exported(call, prepared, "voc", tmp_path)
    assert classes_of(again) == sorted(classes_of(prepared)) and again.info.splits == prepared.info.splits
    names, names_again = classes_of(prepared), classes_of(again)
    before, after = scenes(prepared), scenes(again)
    for key, (split, objects) in before.items():
        assert after[key][0] == split
        found = after[key][1]
        assert [names_again[c] for c in found.classes] == [names[c] for c in objects.classes]
        assert np.abs(found.boxes - objects.boxes).max(initial=0) <= 1
    masks = sum(mask is not None for _, objects in before.values() for mask in objects.masks)
    assert record["lost"]["masks"] == masks and record["lost"]["crowd flags"] == 1 and f"masks ({masks})" in err
    difficult = [path for path in (tmp_path / "voc/Annotations").iterdir() if "<difficult>1" in path.read_text()]
    assert len(difficult) == 1


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
def test_real_annotations_of_cells_come_back(call: Call, tmp_path: Path, form: str) -> None:
    shutil.copytree(ANNOTATIONS / "bccd", tmp_path / "bccd")
    draw_images(tmp_path / "bccd", coco.to_json(voc.read(ANNOTATIONS / "bccd")))
    dataset = visiontune.prepare(tmp_path / "bccd", tmp_path / "data", repair=True, workers=1)
    again, record, _ = exported(call, dataset, form, tmp_path)
    before, after = scenes(dataset), scenes(again)
    assert classes_of(again) == classes_of(dataset) and set(before) == set(after)
    for key, (split, objects) in before.items():
        assert after[key][0] == split and after[key][1].classes.tolist() == objects.classes.tolist()
        assert np.allclose(after[key][1].boxes, objects.boxes, atol=1e-5)
    assert record["lost"].keys() <= {"ids of objects"}


def test_real_masks_of_nuclei_come_back_from_yolo(call: Call, tmp_path: Path) -> None:
    (tmp_path / "nuclei").mkdir()
    file = json.loads((ANNOTATIONS / "nuclei/annotations.json").read_text())
    draw_images(tmp_path / "nuclei", file)
    (tmp_path / "nuclei/annotations.json").write_text(json.dumps(file))
    dataset = visiontune.prepare(tmp_path / "nuclei", tmp_path / "data", repair=True, workers=1)
    again, record, _ = exported(call, dataset, "yolo", tmp_path)
    before, after = scenes(dataset), scenes(again)
    assert {k: [m for m in o.masks] for k, (_, o) in after.items()} == {
        k: [m for m in o.masks] for k, (_, o) in before.items()
    }
    assert record["lost"].keys() <= {"ids of objects"}


def test_images_keep_their_names_and_those_with_the_same_get_a_hash(prepared: Dataset, tmp_path: Path) -> None:
    folder = visiontune.export(prepared.path, to="voc", out=tmp_path / "voc")["voc"]
    record = json.loads((folder / EXPORT_NAME).read_text())
    assert set(record["renamed"].values()) == {row for split in SPLITS for row in prepared.index(split).ids}
    names = sorted(path.name for path in (folder / "JPEGImages").iterdir())
    assert len(names) == 30 and len([name for name in names if name.startswith("003~")]) == 2
    assert all(" " not in name and ":" not in name for name in names)


def test_several_forms_go_to_folders_of_their_names(prepared: Dataset, tmp_path: Path) -> None:
    folders = visiontune.export(prepared.path, to=["voc", "coco"], out=tmp_path / "out")
    assert folders == {"coco": tmp_path / "out/coco", "voc": tmp_path / "out/voc"}
    assert all((folder / EXPORT_NAME).is_file() for folder in folders.values())


def teachers(folder: Path) -> Dataset:
    """Objects of a teacher with soft scores; their ids are unique within an image alone."""

    def row(number: int, split: str) -> LabelledImage:
        packed = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.fromarray(pixels).save(packed, "PNG", exif=exif)
        boxes = np.array([[2.5, 3, 10, 12], [20, 20, 0.4, 0.4]])
        soft = np.array([[0.9, 0.05], [0.2, 0.6]])
        found = Objects(boxes, np.array([0, 1]), (None, None), np.array([False, False]), (0, 1), soft=soft)
        return LabelledImage(f"row {number}", split, ImageFile(packed.getvalue(), ""), found)

    provenance = Provenance(source="more", format="teacher", created_by="a test", fingerprint="0")
    return write_dataset(folder, [row(0, "train"), row(1, "train")], ["cat", "dog", "owl"], provenance=provenance)


def test_what_a_teacher_found_is_kept_by_coco_and_counted_elsewhere(call: Call, tmp_path: Path) -> None:
    dataset = teachers(tmp_path / "data")
    records, said = {}, {}
    for form in ("coco", "yolo", "voc"):
        code, _, said[form] = call("export", dataset.path, "--to", form, "--out", tmp_path / form)
        assert code == 0
        records[form] = json.loads((tmp_path / form / EXPORT_NAME).read_text())
        assert records[form]["likely"] == 4 and records[form]["turned"] == 2 and "EXIF turns: 2" in said[form]
    file = json.loads((tmp_path / "coco/train/_annotations.coco.json").read_text())
    assert [entry["likely"] for entry in file["annotations"]] == [
        {"cat": 0.9, "dog": 0.05},
        {"cat": 0.2, "dog": 0.6},
    ] * 2
    assert [entry["id"] for entry in file["annotations"]] == [1, 2, 3, 4]
    assert records["coco"]["lost"] == {annotated_folder.RENUMBERED: 4}
    assert records["yolo"]["lost"]["fields of objects"] == 4 and "ask for `val`" in said["yolo"]
    lost = records["voc"]["lost"]
    assert lost["values of likely"] == 4 and lost["classes without objects"] == 1
    assert lost["boxes of one pixel, now two wide"] == 2
    assert voc.read(tmp_path / "voc").annotations.boxes.tolist() == [[2, 3, 10, 12], [20, 20, 2, 1]] * 2


def test_an_earlier_export_is_replaced_and_other_things_are_not(prepared: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    visiontune.export(prepared.path, to="coco", out=out)
    visiontune.export(prepared.path, to="yolo", out=out)
    assert sorted(path.name for path in out.iterdir()) == [
        "data.yaml", EXPORT_NAME, "images", "labels", "test.txt", "train.txt", "val.txt"
    ]  # fmt: skip
    (out / "runs").mkdir()
    with pytest.raises(DataError, match="something else: runs"):
        visiontune.export(prepared.path, to="yolo", out=out)
    assert (out / "runs").is_dir()
    for place in (prepared.path, prepared.path / "inside"):
        with pytest.raises(DataError, match="lies in the dataset"):
            visiontune.export(prepared.path, to="coco", out=place)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        visiontune.export(prepared.path, to="coco", out=tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / EXPORT_NAME).write_text("[]")
    with pytest.raises(DataError, match="something else"):
        visiontune.export(prepared.path, to="coco", out=tmp_path / "other")


@pytest.mark.parametrize("moment", [0, 12, 29, 30])
def test_killed_at_any_moment_leaves_no_folder_that_looks_whole(prepared: Dataset, tmp_path: Path, moment: int) -> None:
    def work(counted: Callable[..., Any]) -> None:
        annotated_folder.read_header = counted(annotated_folder.read_header)
        annotated_folder.write_json = counted(annotated_folder.write_json)
        write_annotated(prepared, "yolo", tmp_path / "out")

    assert not killed(moment, work)
    assert not (tmp_path / "out").exists()
    assert write_annotated(prepared, "yolo", tmp_path / "out").is_dir()


def test_wrong_forms_and_wrong_data_are_refused_with_what_to_do(
    call: Call, prepared: Dataset, digits: Dataset, tmp_path: Path
) -> None:
    def refused(*arguments: object) -> dict[str, str]:
        code, out, _ = call("export", *arguments, "--json")
        assert code == 1 and not (tmp_path / "out").exists()
        return json.loads(out)["error"]

    out = ("--out", tmp_path / "out")
    error = refused(prepared.path, "--to", "coco,gguf", *out)
    assert "'gguf' is a form of runs" in error["found"] and "coco, yolo, voc" in error["fix"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("")
    error = refused(tmp_path / "run", "--to", "coco", *out)
    assert "'coco' is a form of prepared datasets, and this is a run" in error["found"] and "gguf" in error["fix"]
    error = refused(prepared.path.parent / "source", "--to", "yolo", *out)
    assert "this is none" in error["found"] and "visiontune prepare" in error["fix"]
    error = refused(digits.path, "--to", "coco", *out)
    assert "no boxes or masks" in error["found"] and error["where"].startswith(str(digits.path))
    assert "no export form" in refused(prepared.path, "--to", "tfrecord", *out)["found"]
    assert "asked for twice" in refused(prepared.path, "--to", "coco,coco", *out)["found"]
    assert "needs a folder" in refused(prepared.path, "--to", "coco")["found"]


@pytest.mark.parametrize(
    "option",
    [
        {"quantisation": "int8"}, {"dtype": "float32"}, {"step": 3}, {"samples": 8}, {"limit": 2},
        {"with_inputs": True}, {"push": "me/data"}, {"public": True},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_runs_are_refused_of_a_dataset(prepared: Dataset, tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="An export of a dataset takes no --") as error:
        visiontune.export(prepared.path, to="coco", out=tmp_path / "out", **option)
    assert isinstance(error.value, VisiontuneError) and not (tmp_path / "out").exists()


def test_what_the_preparation_left_out_is_said(call: Call, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    (source / "a/003.png").write_bytes(b"no image")
    call("prepare", source, "--repair", "--out", tmp_path / "data", "--workers", 1)
    code, _, err = call("export", tmp_path / "data", "--to", "coco", "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / EXPORT_NAME).read_text())
    assert code == 0 and "left out are not here either" in err and sum(record["left_out"].values()) >= 1


def test_nothing_is_written_to_a_place_that_another_export_holds(
    prepared: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    with places_held([tmp_path / "out"]), pytest.raises(RunError, match="is exporting to this place"):
        visiontune.export(prepared.path, to="coco", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_somebody_put_among_those_of_an_earlier_export_are_named_and_stay(
    prepared: Dataset, tmp_path: Path
) -> None:
    out = write_annotated(prepared, "coco", tmp_path / "out")
    write_annotated(prepared, "coco", out)  # what an export wrote gives way
    (out / "train" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"something else: train/notes\.txt"):
        write_annotated(prepared, "coco", out)
    assert (out / "train" / "notes.txt").read_text() == "mine"

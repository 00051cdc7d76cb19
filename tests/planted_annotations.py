"""Sound annotations made up, and each known fault planted into such: what the examination is measured with."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Coco = dict[str, Any]
# Changes a parsed COCO file in place; says which image and which annotation has the fault, None for the whole file.
Planting = Callable[[Coco], tuple[int | None, int | None]]

SIDES = ((64, 48), (80, 60), (50, 70))
CLASSES = ("bolt", "nut", "washer")
_POINTS = 12


@dataclass(frozen=True)
class Plant:
    """A fault by name, the code under which it must be found, and how it gets into a file."""

    name: str
    code: str
    plant: Planting


def sound_annotations(images: int = 24, seed: int = 0) -> Coco:
    """A COCO file without a fault: polygons, run lengths in both forms, boxes alone, a crowd, images of nothing."""
    random = np.random.default_rng(seed)
    coco: Coco = {
        "info": {"description": "made up"},
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * k + 2, "name": name} for k, name in enumerate(CLASSES)],
    }
    for number in range(images):
        width, height = SIDES[number % len(SIDES)]
        image_id = 10 + 7 * number
        coco["images"].append({"id": image_id, "file_name": f"{number:03d}.png", "width": width, "height": height})
        for k in range(number % 6):
            entry = _object(random, width, height, ("polygons", "compressed", "lists", "box")[(number + k) % 4])
            identity = {"id": 100 + len(coco["annotations"]), "image_id": image_id}
            crowd = int(number == 5 and k == 0)
            category = coco["categories"][(number + k) % len(CLASSES)]["id"]
            coco["annotations"].append({**identity, "category_id": category, "iscrowd": crowd, **entry})
    return coco


def planted(sound: Coco, plant: Plant) -> tuple[Coco, int | None, int | None]:
    """A copy of sound annotations with one fault, and the ids of the image and the annotation that have it."""
    coco = copy.deepcopy(sound)
    return coco, *plant.plant(coco)


def _object(random: np.random.Generator, width: int, height: int, form: str) -> dict[str, Any]:
    size = random.integers(12, 24, 2)
    left, top = (random.integers(1, side - part) for side, part in zip((width, height), size, strict=True))
    angles = np.arange(_POINTS) / _POINTS * 2 * np.pi
    radius = 0.7 + 0.3 * random.random(_POINTS)
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None] * size / 2 + (left, top) + size / 2
    outline = outline.round(2)
    if form == "box":
        return {"bbox": [int(left), int(top), *size.tolist()], "area": int(size.prod())}
    polygons = [outline.ravel().tolist()]
    rle: Any = coco_mask.frPyObjects(polygons, height, width)[0]  # pyright: ignore[reportCallIssue, reportArgumentType]
    if form == "polygons":
        low, high = outline.min(axis=0), outline.max(axis=0)
        area = float(coco_mask.area(rle))
        return {"segmentation": polygons, "bbox": [*low.tolist(), *(high - low).tolist()], "area": area}
    counts: Any = rle["counts"].decode("ascii")
    if form == "lists":
        counts = _runs(coco_mask.decode(rle))
    box = coco_mask.toBbox(rle).tolist()
    return {
        "segmentation": {"size": [height, width], "counts": counts},
        "bbox": box,
        "area": float(coco_mask.area(rle)),
    }


def _runs(pixels: np.ndarray) -> list[int]:
    """The run lengths of a (height, width) mask, column by column, background first."""
    flat = pixels.ravel(order="F").astype(np.int8)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
    return [0, *runs] if flat[0] else runs


def _with(coco: Coco, form: str) -> dict[str, Any]:
    """The second annotation (no crowd) of a form: polygons, compressed, lists or box."""

    def matches(entry: dict[str, Any]) -> bool:
        value = entry.get("segmentation")
        if form == "polygons":
            return isinstance(value, list)
        if form == "box":
            return value is None
        return isinstance(value, dict) and isinstance(value["counts"], str if form == "compressed" else list)

    return [entry for entry in coco["annotations"] if matches(entry) and not entry["iscrowd"]][1]


def _image_of(coco: Coco, entry: dict[str, Any]) -> dict[str, Any]:
    return next(image for image in coco["images"] if image["id"] == entry["image_id"])


def _field(form: str, name: str, value: Callable[[Any, dict[str, Any]], Any]) -> Planting:
    """Another value for one field of an annotation; `value` takes the old one and the image."""

    def plant(coco: Coco) -> tuple[int | None, int | None]:
        entry = _with(coco, form)
        old_id, image = entry["id"], _image_of(coco, entry)
        entry[name] = value(entry.get(name), image)
        return image["id"], None if name == "id" else old_id

    return plant


def _without_fields(form: str, *names: str) -> Planting:
    def plant(coco: Coco) -> tuple[int | None, int | None]:
        entry = _with(coco, form)
        for name in names:
            entry.pop(name, None)
        return entry["image_id"], entry["id"]

    return plant


def _image_field(name: str, value: Any) -> Planting:
    """Another value for a field of the last image; no annotation points to it any more."""

    def plant(coco: Coco) -> tuple[int | None, int | None]:
        image = coco["images"][-1]
        coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] != image["id"]]
        old_id = image["id"]
        if value is None:
            del image[name]
        else:
            image[name] = value
        return None if name == "id" else old_id, None

    return plant


def _section(name: str) -> Planting:
    def plant(coco: Coco) -> tuple[int | None, int | None]:
        del coco[name]
        return None, None

    return plant


def _class(change: Callable[[list[dict[str, Any]]], None]) -> Planting:
    def plant(coco: Coco) -> tuple[int | None, int | None]:
        change(coco["categories"])
        return None, None

    return plant


def _entry(change: Callable[[dict[str, Any]], Any], form: str = "box") -> Planting:
    """One more annotation, made from one that is there; named by its own id."""

    def plant(coco: Coco) -> tuple[int | None, int | None]:
        entry = copy.deepcopy(_with(coco, form))
        entry["id"] = 9000
        coco["annotations"].append(entry | change(entry))
        return coco["annotations"][-1]["image_id"], coco["annotations"][-1]["id"]

    return plant


def _no_object(coco: Coco) -> tuple[int | None, int | None]:
    coco["annotations"].append(7)
    return None, None


def _second_image(name: str, same_id: bool) -> Planting:
    def plant(coco: Coco) -> tuple[int | None, int | None]:
        first = coco["images"][0]
        image = {**first, "id": first["id"] if same_id else 9000, "file_name": name or first["file_name"]}
        coco["images"].append(image)
        return image["id"], None

    return plant


def _all_boxes(change: Callable[[list[float], dict[str, Any]], list[float]]) -> Planting:
    def plant(coco: Coco) -> tuple[int | None, int | None]:
        for entry in coco["annotations"]:
            entry["bbox"] = change(entry["bbox"], _image_of(coco, entry))
        return None, None

    return plant


def _rows_first(value: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    pixels = coco_mask.decode({"size": value["size"], "counts": value["counts"].encode()})
    counts: Any = coco_mask.encode(np.asfortranarray(pixels.T))["counts"]
    return {"size": [image["height"], image["width"]], "counts": counts.decode()}


def _shares(box: list[float], image: dict[str, Any]) -> list[float]:
    return [box[0] / image["width"], box[1] / image["height"], box[2] / image["width"], box[3] / image["height"]]


_NAN = float("nan")
_BOW_TIE = [[10.0, 10.0, 30.0, 30.0, 30.0, 10.0, 10.0, 30.0]]

PLANTS = (
    Plant("no images", "missing-section", _section("images")),
    Plant("no annotations", "missing-section", _section("annotations")),
    Plant("no categories", "missing-section", _section("categories")),
    Plant("annotation that is a number", "not-an-object", _no_object),
    Plant("image id a text", "bad-image-id", _image_field("id", "7")),
    Plant("image id below zero", "bad-image-id", _image_field("id", -4)),
    Plant("image without width", "bad-image-size", _image_field("width", None)),
    Plant("image of height zero", "bad-image-size", _image_field("height", 0)),
    Plant("image without file name", "bad-file-name", _image_field("file_name", None)),
    Plant("annotation id true", "bad-annotation-id", _field("box", "id", lambda _, __: True)),
    Plant("annotation id below zero", "bad-annotation-id", _field("box", "id", lambda _, __: -1)),
    Plant("image_id a text", "bad-image-reference", _field("box", "image_id", lambda old, _: str(old))),
    Plant("annotation without category_id", "bad-category-reference", _without_fields("box", "category_id")),
    Plant("iscrowd 2", "bad-crowd", _field("box", "iscrowd", lambda _, __: 2)),
    Plant("iscrowd true", "bad-crowd", _field("compressed", "iscrowd", lambda _, __: True)),
    Plant("class id a text", "bad-category-id", _class(lambda list_: list_.append({"id": "9", "name": "gear"}))),
    Plant("class without name", "bad-class-name", _class(lambda list_: list_.append({"id": 99, "name": " "}))),
    Plant("two images, one id", "duplicate-image-id", _second_image("other.png", same_id=True)),
    Plant("image listed twice", "duplicate-image-id", _second_image("", same_id=True)),
    Plant("file listed under two ids", "duplicate-file-name", _second_image("", same_id=False)),
    Plant("two classes, one id", "duplicate-category-id", _class(lambda list_: list_.append({"id": 2, "name": "x"}))),
    Plant("annotation id used twice", "duplicate-annotation-id", _field("polygons", "id", lambda _, __: 100)),
    Plant("annotation of no image", "unknown-image", _entry(lambda _: {"image_id": 5})),
    Plant("annotation of no class", "unknown-category", _entry(lambda _: {"category_id": 77})),
    Plant("class name twice", "duplicate-class-name", _class(lambda list_: list_.append({"id": 99, "name": "nut"}))),
    Plant(
        "class name in capitals", "similar-class-names", _class(lambda list_: list_.append({"id": 99, "name": "NUT "}))
    ),
    Plant("full stop in class name", "separator-in-class-name", _class(lambda list_: list_[0].update(name="no. 5"))),
    Plant("class without objects", "unused-class", _class(lambda list_: list_.append({"id": 99, "name": "gear"}))),
    Plant("mask without box", "missing-box", _without_fields("polygons", "bbox")),
    Plant("neither box nor mask", "no-box-and-no-mask", _without_fields("box", "bbox")),
    Plant("box of three numbers", "bad-box", _field("polygons", "bbox", lambda old, _: old[:3])),
    Plant("box with a text", "bad-box", _field("box", "bbox", lambda old, _: [*old[:3], "12"])),
    Plant("box with NaN", "bad-box", _field("box", "bbox", lambda old, _: [_NAN, *old[1:]])),
    Plant("box of width zero", "box-without-area", _field("box", "bbox", lambda old, _: [*old[:2], 0, old[3]])),
    Plant("box of height below zero", "box-without-area", _field("box", "bbox", lambda old, _: [*old[:3], -old[3]])),
    Plant(
        "box outside the image",
        "box-outside-image",
        _field("box", "bbox", lambda old, image: [image["width"] + 5, *old[1:]]),
    ),
    Plant(
        "box past the edge", "box-past-edge", _field("box", "bbox", lambda old, image: [image["width"] - 9, *old[1:]])
    ),
    Plant("box left of the image", "box-past-edge", _field("box", "bbox", lambda old, _: [-3, *old[1:]])),
    Plant("one box as shares", "box-as-shares", _field("box", "bbox", _shares)),
    Plant(
        "all boxes as shares",
        "boxes-as-shares",
        _all_boxes(_shares),
    ),
    Plant(
        "all boxes as corners",
        "boxes-as-corners",
        _all_boxes(lambda box, _: [*box[:2], box[0] + box[2], box[1] + box[3]]),
    ),
    Plant(
        "box off its mask",
        "box-off-mask",
        _field("polygons", "bbox", lambda old, _: [max(0, old[0] - 9) if old[0] > 9 else old[0] + 9, *old[1:]]),
    ),
    Plant(
        "box of the whole image",
        "box-of-whole-image",
        _field("box", "bbox", lambda _, image: [0, 0, image["width"], image["height"]]),
    ),
    Plant(
        "polygon of two points", "polygon-too-short", _field("polygons", "segmentation", lambda old, _: [old[0][:4]])
    ),
    Plant(
        "half a point", "polygon-with-half-a-point", _field("polygons", "segmentation", lambda old, _: [old[0][:-1]])
    ),
    Plant(
        "polygon with NaN",
        "polygon-not-finite",
        _field("polygons", "segmentation", lambda old, _: [[_NAN, *old[0][1:]]]),
    ),
    Plant(
        "part of a polygon outside",
        "polygon-outside-image",
        _field("polygons", "segmentation", lambda old, _: [*old, [number + 500 for number in old[0]]]),
    ),
    Plant(
        "polygon past the edge",
        "polygon-past-edge",
        _field("polygons", "segmentation", lambda old, _: [[-20.0, old[0][1], *old[0][2:]]]),
    ),
    Plant(
        "polygon that crosses itself", "polygon-crosses-itself", _field("polygons", "segmentation", lambda *_: _BOW_TIE)
    ),
    Plant("polygon without its list", "flat-polygon", _field("polygons", "segmentation", lambda old, _: old[0])),
    Plant(
        "segmentation that is a text",
        "segmentation-of-unknown-form",
        _field("box", "segmentation", lambda *_: "mask.png"),
    ),
    Plant(
        "run lengths without counts",
        "rle-without-counts",
        _field("compressed", "segmentation", lambda old, _: {"size": old["size"]}),
    ),
    Plant(
        "run lengths without size",
        "rle-without-size",
        _field("compressed", "segmentation", lambda old, _: {"counts": old["counts"]}),
    ),
    Plant(
        "run lengths broken off",
        "rle-broken",
        _field("compressed", "segmentation", lambda old, _: {**old, "counts": old["counts"][:3] + "~"}),
    ),
    Plant(
        "run lengths too short",
        "rle-of-wrong-length",
        _field("lists", "segmentation", lambda old, _: {**old, "counts": old["counts"][:-1]}),
    ),
    Plant(
        "run lengths of another size",
        "rle-of-wrong-size",
        _field("compressed", "segmentation", lambda *_: {"size": [10, 10], "counts": [40, 8, 52]}),
    ),
    Plant(
        "width and height exchanged",
        "rle-transposed",
        _field("compressed", "segmentation", lambda old, _: {**old, "size": old["size"][::-1]}),
    ),
    Plant("run lengths row by row", "rle-transposed", _field("compressed", "segmentation", _rows_first)),
    Plant(
        "mask without pixels",
        "empty-mask",
        _field("lists", "segmentation", lambda old, _: {**old, "counts": [int(np.prod(old["size"]))]}),
    ),
    Plant("no area", "missing-area", _without_fields("compressed", "area")),
    Plant("area a text", "bad-area", _field("box", "area", lambda *_: "large")),
    Plant("area of the box on a mask", "wrong-area", _field("compressed", "area", lambda old, _: old * 1.6)),
    Plant("area below zero", "wrong-area", _field("box", "area", lambda old, _: -old)),
    Plant("the same annotation again", "duplicate-annotation", _entry(lambda _: {}, "polygons")),
    Plant(
        "one box, two classes",
        "box-of-two-classes",
        _entry(lambda old: {"category_id": 2 if old["category_id"] != 2 else 5}),
    ),
)

"""Random scenes of objects for the tests of metrics, and what pycocotools says about them."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visiontune.data.objects import Objects, Rle

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """Truths and predictions of some images, one of each an image; sizes are (height, width)."""

    truths: list[Objects]
    predictions: list[Objects]
    sizes: list[Size]
    class_names: list[str]


def objects(
    boxes: Sequence[Sequence[float]],
    classes: Sequence[int],
    *,
    masks: Sequence[Rle | None] | None = None,
    crowd: Sequence[bool] | None = None,
    scores: Sequence[float] | None = None,
) -> Objects:
    """Objects of one image."""
    n = len(classes)
    return Objects(
        np.asarray(boxes, np.float64).reshape(n, 4),
        np.asarray(classes, np.int64),
        tuple(masks) if masks is not None else (None,) * n,
        np.asarray(crowd if crowd is not None else [False] * n, np.bool_),
        tuple(range(1, n + 1)),
        None if scores is None else np.asarray(scores, np.float64),
    )


def mask_of(pixels: np.ndarray) -> Rle:
    """A mask from its pixels, (height, width)."""
    found: Any = reference_mask.encode(np.asfortranarray(pixels, np.uint8))
    return Rle(*found["size"], found["counts"])


def filled(box: Sequence[float], size: Size) -> dict[str, Any]:
    """A box filled in, as pycocotools draws it."""
    drawn: Any = reference_mask.frPyObjects(np.array([box], np.float64), *size)
    return drawn[0]


def ellipse(box: Sequence[float], size: Size) -> Rle:
    """The ellipse in a box, cut off at the image's edge."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    left, top, width, height = box
    inside = ((x - left - width / 2) / max(width / 2, 0.1)) ** 2 + ((y - top - height / 2) / max(height / 2, 0.1)) ** 2
    return mask_of(inside <= 1)


def random_scene(
    seed: int,
    *,
    images: int,
    classes: int,
    most_objects: int,
    detections: float,
    side: int = 200,
    masks: bool = False,
    score_levels: int = 0,
    crowd_share: float = 0.1,
    whole_pixels: bool = False,
) -> Scene:
    """Up to `most_objects` objects an image, and per object about `detections` detections near it or anywhere.

    With `score_levels` scores have only so many values; with `whole_pixels` boxes end on pixels, so that IoUs tie too.
    Sizes are spread evenly over powers of two, from less than a pixel to more than the image.
    """
    random = np.random.default_rng(seed)
    truths, predictions, sizes = [], [], []

    def boxes(n: int) -> np.ndarray:
        width_height = 2.0 ** random.uniform(-1, np.log2(side * 1.2), (n, 2))
        found = np.concatenate([random.uniform(-0.1 * side, side, (n, 2)), width_height], axis=1)
        return np.ceil(found) if whole_pixels else found

    for _ in range(images):
        size = (int(random.integers(side // 2, side + 1)), int(random.integers(side // 2, side + 1)))
        n = int(random.integers(0, most_objects + 1))
        true_boxes, true_classes = boxes(n), random.integers(0, classes, n)
        crowd = random.random(n) < crowd_share
        d = int(random.poisson(detections * (n + 1)))
        found, found_classes = boxes(d), random.integers(0, classes, d)
        near = random.random(d) < (0.7 if n else 0)
        which = random.integers(0, max(n, 1), d)
        if n:
            jitter = true_boxes[which] * random.normal(1, 0.08, (d, 4))
            found = np.where(near[:, None], np.round(jitter) if whole_pixels else jitter, found)
            found[:, 2:] = np.abs(found[:, 2:])
            kept = near & (random.random(d) < 0.85)
            found_classes = np.where(kept, true_classes[which], found_classes)
        scores = random.random(d) if not score_levels else random.integers(0, score_levels, d) / score_levels
        true_masks = [ellipse(box, size) if random.random() < 0.8 else None for box in true_boxes] if masks else None
        found_masks = [ellipse(box, size) for box in found] if masks else None
        truths.append(objects(true_boxes, true_classes, masks=true_masks, crowd=crowd))
        predictions.append(objects(found, found_classes, masks=found_masks, scores=scores))
        sizes.append(size)
    return Scene(truths, predictions, sizes, [f"class {c}" for c in range(classes)])


def reference_dataset(scene: Scene, kind: str) -> dict[str, Any]:
    """The truths as a COCO file has them; for masks, what has none is its filled box, a crowd."""
    annotations = []
    for image, (truth, size) in enumerate(zip(scene.truths, scene.sizes, strict=True)):
        for box, label, mask, crowd in zip(truth.boxes.tolist(), truth.classes, truth.masks, truth.crowd, strict=True):
            shape = None if mask is None else {"size": [mask.height, mask.width], "counts": mask.counts}
            one = {
                "id": len(annotations) + 1,
                "image_id": image + 1,
                "category_id": int(label) + 1,
                "bbox": box,
                "area": box[2] * box[3] if shape is None else float(reference_mask.area(shape)),  # pyright: ignore
                "iscrowd": int(crowd),
            }
            if kind == "masks":
                one |= {"segmentation": shape or filled(box, size), "iscrowd": int(crowd or shape is None)}
            annotations.append(one)
    return {
        "images": [{"id": i + 1, "height": h, "width": w} for i, (h, w) in enumerate(scene.sizes)],
        "categories": [{"id": c + 1, "name": name} for c, name in enumerate(scene.class_names)],
        "annotations": annotations,
    }


def reference_results(scene: Scene, kind: str) -> list[dict[str, Any]]:
    """The predictions as a COCO results file has them."""
    results = []
    for image, found in enumerate(scene.predictions):
        assert found.scores is not None
        for box, label, mask, score in zip(found.boxes.tolist(), found.classes, found.masks, found.scores, strict=True):
            one = {"image_id": image + 1, "category_id": int(label) + 1, "score": float(score)}
            if kind == "boxes":
                one["bbox"] = box
            else:
                assert mask is not None
                one["segmentation"] = {"size": [mask.height, mask.width], "counts": mask.counts}
            results.append(one)
    return results


def reference_evaluator(scene: Scene, kind: str, only_class: int | None = None) -> COCOeval:
    """pycocotools' evaluator of the scene, or of one of its classes, evaluated, accumulated and summarised."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = reference_dataset(scene, kind)  # pyright: ignore
        truth.createIndex()
        results = reference_results(scene, kind)
        if results:
            found = truth.loadRes(results)  # pyright: ignore
        else:  # loadRes looks at the first result
            found = COCO()
            found.dataset = {**reference_dataset(scene, kind), "annotations": []}  # pyright: ignore
            found.createIndex()
        evaluator = COCOeval(truth, found, "bbox" if kind == "boxes" else "segm")
        if only_class is not None:
            evaluator.params.catIds = [only_class + 1]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator

"""COCO's twelve figures of boxes and masks: how long visiontune, pycocotools and faster-coco-eval take, and how far the
figures are apart. Then how often intervals of AP hold the true AP, and what masks that fill their boxes score.

    python bench/evaluate_boxes.py [ANNOTATIONS.json]    (a COCO file with masks, for the last table)

Scenes are generated. All three start from lists in memory and end with the figures; the best of three runs counts. AP
is the mean precision over recalls, classes and IoUs from 0.5 to 0.95.
"""

import contextlib
import io
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as reference_mask

from visiontune.data.objects import Objects, Rle
from visiontune.metrics.ap_intervals import HALVES, ap_intervals
from visiontune.metrics.average_precision import Kind, coco_pair, curves
from visiontune.metrics.mask_iou import filled_box, prompted_mask_iou
from visiontune.metrics.object_scores import score_objects

HEIGHT, WIDTH, CLASSES = 480, 640, 10
NAMES = [f"class {c}" for c in range(CLASSES)]
RUNS = 3

Scene = tuple[list[Objects], list[Objects], list[tuple[int, int]]]


def scene(images: int, seed: int = 0, *, masks: bool = False, alarms: float = 53.0) -> Scene:
    """Up to 16 objects an image; most are found, and there are about `alarms` more detections, with lower scores."""
    random = np.random.default_rng(seed)
    truths, predictions = [], []
    for _ in range(images):
        n, more = int(random.integers(0, 17)), int(random.poisson(alarms))
        boxes, classes = random_boxes(random, n), random.integers(0, CLASSES, n)
        seen = random.random(n) < 0.85
        near = boxes + np.tile(boxes[:, 2:], (1, 2)) * random.normal(0, 0.06, (n, 4))
        found = np.concatenate([near[seen], random_boxes(random, more)])
        found[:, 2:] = np.maximum(found[:, 2:], 1)
        scores = np.concatenate([random.normal(0.7, 0.2, int(seen.sum())), random.normal(0.3, 0.2, more)]).clip(0, 1)
        found_classes = np.concatenate([classes[seen], random.integers(0, CLASSES, more)])
        truths.append(objects(boxes, classes, None, masks=masks))
        predictions.append(objects(found, found_classes, scores, masks=masks))
    return truths, predictions, [(HEIGHT, WIDTH)] * images


def random_boxes(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    corners = random.uniform(0, (WIDTH * 0.8, HEIGHT * 0.8), (n, 2))
    return np.concatenate([corners, 2.0 ** random.uniform(3, 7.5, (n, 2))], axis=1)


def objects(boxes: NDArray, classes: NDArray, scores: NDArray | None, *, masks: bool) -> Objects:
    drawn = tuple(ellipse(box) if masks else None for box in boxes.tolist())
    return Objects(boxes, classes, drawn, np.zeros(len(boxes), np.bool_), tuple(range(len(boxes))), scores)


def ellipse(box: Sequence[float]) -> Rle:
    """The ellipse in a box, as a polygon of 24 corners."""
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    left, top, width, height = box
    corners = np.stack([left + width * (1 + np.cos(turns)) / 2, top + height * (1 + np.sin(turns)) / 2], axis=1)
    drawn: Any = reference_mask.frPyObjects([corners.ravel().tolist()], HEIGHT, WIDTH)  # pyright: ignore
    return Rle(HEIGHT, WIDTH, drawn[0]["counts"])


def coco_lists(made: Scene, kind: Kind) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The truths as a COCO file and the predictions as a results file, both as they are in memory after reading."""
    truths, predictions, sizes = made
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for side, found in zip(rows, (truths, predictions), strict=True):
        for image, one in enumerate(found):
            for j, (box, label, mask) in enumerate(
                zip(one.boxes.tolist(), one.classes.tolist(), one.masks, strict=True)
            ):
                row: dict[str, Any] = {"image_id": image + 1, "category_id": label + 1}
                shape = None if mask is None else {"size": [mask.height, mask.width], "counts": mask.counts}
                if kind == "boxes" or one.scores is None:
                    row["bbox"] = box
                if kind == "masks":
                    row["segmentation"] = shape
                if one.scores is None:
                    area = box[2] * box[3] if shape is None else float(reference_mask.area(shape))  # pyright: ignore
                    row |= {"id": len(side) + 1, "area": area, "iscrowd": 0}
                else:
                    row["score"] = float(one.scores[j])
                side.append(row)
    images = [{"id": i + 1, "height": height, "width": width} for i, (height, width) in enumerate(sizes)]
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(NAMES)]
    return {"images": images, "categories": categories, "annotations": rows[0]}, rows[1]


def by_visiontune(made: Scene, kind: Kind) -> list[float]:
    figures = curves(coco_pair(*made, NAMES, kind)).figures()
    return [-1.0 if value is None else value for value in figures.values()]


def by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], kind: Kind) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    loaded = COCO()
    loaded.dataset = truth  # pyright: ignore
    loaded.createIndex()
    found = loaded.loadRes(results)  # pyright: ignore
    evaluator = COCOeval(loaded, found, "bbox" if kind == "boxes" else "segm")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return list(evaluator.stats)


def by_faster_coco_eval(truth: dict[str, Any], results: list[dict[str, Any]], kind: Kind) -> list[float]:
    from faster_coco_eval import COCO, COCOeval_faster

    loaded = COCO(truth)
    found = loaded.loadRes(results)
    evaluator = COCOeval_faster(loaded, found, "bbox" if kind == "boxes" else "segm")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return list(evaluator.stats)[:12]


def timed(evaluate: Callable[..., list[float]], *inputs: Any) -> tuple[float, list[float]]:
    """Seconds of the fastest run, and the figures."""
    best, figures = float("inf"), []
    for _ in range(RUNS):
        fresh = [json_copy(one) for one in inputs]  # the evaluators write into what they are given
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            figures = evaluate(*fresh)
        best = min(best, time.perf_counter() - started)
    return best, figures


def json_copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: json_copy(inner) for key, inner in value.items()}
    return [json_copy(inner) for inner in value] if isinstance(value, list) else value


def compare(what: str, made: Scene, kind: Kind) -> None:
    truth, results = coco_lists(made, kind)
    print(f"\n{what}: {len(made[0])} images, {len(truth['annotations'])} truths, {len(results)} detections")
    print("| evaluator | s, load and evaluate | times pycocotools | largest difference of the twelve figures |")
    print("|---|---|---|---|")
    reference, expected = timed(by_pycocotools, truth, results, kind)
    rows = [("pycocotools", reference, expected)]
    rows.append(("faster-coco-eval", *timed(by_faster_coco_eval, truth, results, kind)))
    rows.append(("visiontune (hotcoco)", *timed(by_visiontune, made, kind)))
    for name, seconds, figures in rows:
        apart = max(abs(a - b) for a, b in zip(figures, expected, strict=True))
        print(f"| {name} {_version(name)} | {seconds:.3f} | {reference / seconds:.1f} | {apart} |")
    started = time.perf_counter()
    scores = score_objects(*made, NAMES)
    prefix = {"boxes": "box", "masks": "mask"}[kind]
    ap = scores.metrics[f"{prefix}_ap"]
    print(f"score_objects, with intervals and confusion: {time.perf_counter() - started:.2f} s; AP {ap}")


def _version(name: str) -> str:
    return version({"visiontune (hotcoco)": "hotcoco"}.get(name, name))


def coverage(images: int, sets: int = 200) -> None:
    """How often the intervals of `images` images hold the AP of the 10,000 that they are drawn from."""
    truths, predictions, sizes = scene(10_000, seed=1, alarms=2)
    true = curves(coco_pair(truths, predictions, sizes, NAMES, "boxes")).figures()["ap"]
    assert true is not None
    halves = bootstrap = 0
    too_high = []
    random = np.random.default_rng(2)
    for _ in range(sets):
        chosen = random.choice(len(truths), images, replace=False)
        drawn = [truths[i] for i in chosen], [predictions[i] for i in chosen], [sizes[i] for i in chosen]
        pair = coco_pair(*drawn, NAMES, "boxes")
        figures = curves(pair).figures()
        ap, _ = ap_intervals(pair, [(figures["ap"], None)] + [(None, None)] * CLASSES, HALVES, seed=0)[0]
        assert ap.value is not None and ap.low is not None and ap.high is not None
        halves += ap.low <= true <= ap.high
        low, high = bootstrapped(drawn, random)
        bootstrap += low <= true <= high
        too_high.append(ap.value - true)
    print(f"| {images} | {np.mean(too_high):.4f} | {halves / sets:.1%} | {bootstrap / sets:.1%} |")


def bootstrapped(drawn: Scene, random: np.random.Generator) -> tuple[float, float]:
    """The percentile bootstrap of AP: images drawn with replacement, each draw evaluated anew."""
    found = []
    for _ in range(100):
        draw = random.integers(0, len(drawn[0]), len(drawn[0]))
        repeated = [drawn[0][i] for i in draw], [drawn[1][i] for i in draw], [drawn[2][i] for i in draw]
        found.append(curves(coco_pair(*repeated, NAMES, "boxes")).figures()["ap"])
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def from_coco(segmentation: dict[str, Any]) -> Rle:
    height, width = segmentation["size"]
    return Rle(height, width, segmentation["counts"].encode())


def filling(path: Path) -> None:
    """What filling the boxes of a file scores as masks from ground-truth boxes. Its masks must be compressed RLE."""
    found = json.loads(path.read_text(encoding="utf-8"))
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in found["images"]}
    for annotation in found["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    truths = []
    for rows in of_image.values():
        masks = tuple(from_coco(row["segmentation"]) for row in rows)
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        crowd = np.array([row["iscrowd"] for row in rows], np.bool_)
        truths.append(Objects(boxes, np.zeros(len(rows), np.int64), masks, crowd, tuple(row["id"] for row in rows)))
    filled: list[list[Rle | None]] = [
        [
            None if mask is None else filled_box(box, mask.height, mask.width)
            for box, mask in zip(one.boxes.tolist(), one.masks, strict=True)
        ]
        for one in truths
    ]
    scores = prompted_mask_iou(truths, filled)
    print(f"\nFilling the boxes of {path.name}: mean IoU {scores.filled_boxes}, {scores.objects} objects")


def main(annotations: Sequence[str]) -> None:
    print(f"{platform.platform()}, Python {platform.python_version()}, numpy {np.__version__}")
    compare("Boxes", scene(1000), "boxes")
    compare("Masks", scene(200, masks=True), "masks")
    print("\n| images | AP too high by | interval of halves holds the true AP | percentile bootstrap does |")
    print("|---|---|---|---|")
    for images in (20, 50, 200):
        coverage(images)
    for path in annotations:
        filling(Path(path))


if __name__ == "__main__":
    main(sys.argv[1:])

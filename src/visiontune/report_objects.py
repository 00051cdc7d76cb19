"""What the report of a run says of objects: figures, curves, confusions, and images with truth and prediction drawn."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from visiontune.charts import precision_recall_chart
from visiontune.data.annotations.masks import areas_and_boxes
from visiontune.data.objects import Objects
from visiontune.data.sample import ObjectPrediction
from visiontune.metrics.average_precision import FIGURES, Kind
from visiontune.metrics.object_confusion import BACKGROUND, object_confusion
from visiontune.overlay import beside, colour, draw
from visiontune.pictures import Pictures, Thumbnail, drawing
from visiontune.recipe import Recipe
from visiontune.run import Run

WORST_SHOWN, BEST_SHOWN = 8, 3
CONFUSIONS_SHOWN = 10
CURVES_SHOWN = 3  # classes beside the mean
SIDE = 480  # longer side of a drawn image in pixels; two of them fill the page
TAUGHT_SIDE = 300
AREAS = {"small": (-1, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # above, up to, in pixels

Entry = dict[str, Any]


@dataclass(frozen=True)
class ImageFindings:
    """How one image came out: the line of its prediction, and counts of its objects and of what was found.

    `truths` and `predictions` are those that are counted, without crowds and what lies in them.
    """

    line: int
    truths: int
    predictions: int
    right: int
    missed: int
    false: int

    @property
    def confused(self) -> int:
        """Objects that were taken for another class."""
        return self.truths - self.right - self.missed

    @property
    def f1(self) -> float:
        """In [0, 1]; 1 where there is nothing and nothing was found."""
        counted = self.truths + self.predictions
        return 2 * self.right / counted if counted else 1.0


def found_objects(run: Run, recipe: Recipe | None, evaluations: dict[str, Entry], pictures: Pictures) -> Entry | None:
    """What the evaluations of a run that finds objects say; None for other runs, and while there is no evaluation.

    The figures are those of all splits, what lies under them is of the first one alone.
    """
    values = {split: value for split, value in evaluations.items() if "prompts" in value}
    if not values:
        return None
    split, value = next(iter(values.items()))
    kinds = [kind for kind in ("boxes", "masks") if value[kind] is not None]
    metric = "" if recipe is None else recipe.evaluation.metric
    kind: Kind = "masks" if kinds == ["masks"] or ("masks" in kinds and "mask" in metric) else "boxes"
    confusion = value[kind]["confusion"]
    classes = tuple(confusion["labels"])
    path = run.path / "evaluations" / split / "predictions.jsonl"
    columns = [
        {"split": name, "title": _title(of, one["prompts"]), **one[of], "n": one["n"]}
        for name, one in values.items()
        for of in ("boxes", "masks")
        if one[of] is not None
    ]
    named = {name for one in values.values() for name in one["metrics"] if not _is_figure(name)}
    return {
        "split": split,
        "kind": _title(kind, value["prompts"]),
        "prompts": value["prompts"],
        "columns": columns,
        "figure_names": FIGURES,
        "splits": values,
        "others": sorted(named),
        "by_kind": [_by_kind(of, value, classes) for of in kinds],
        "confusion": _confusion(confusion),
        "legend": [(_css(c), name) for c, name in enumerate(classes)],
        "least_score": confusion["score"],
        "iou": confusion["iou"],
        **_images(path, split, classes, kind, confusion, pictures),
    }


def objects_taught(
    examples: Sequence[Entry], recipe: Recipe | None, pictures: Pictures
) -> list[tuple[Entry, Thumbnail | None, dict[str, int]]]:
    """The samples that a receipt shows, each with its image, its objects drawn on it, and their classes counted."""
    known = () if recipe is None or recipe.objects is None else recipe.objects.classes
    classes = list(dict.fromkeys([*known, *(one["category"] for example in examples for one in example["objects"])]))
    shown = []
    for example in examples:
        entries = example["objects"]
        objects = Objects(
            boxes=np.array([one["bbox"] for one in entries], np.float64).reshape(-1, 4),
            classes=np.array([classes.index(one["category"]) for one in entries], np.int64),
            masks=(None,) * len(entries),
            crowd=np.array([one["iscrowd"] for one in entries], np.bool_),
            ids=tuple(range(len(entries))),
        )
        image = pictures.image_of_example(example)
        picture = None if image is None else drawing(draw(image, objects, classes, side=TAUGHT_SIDE))
        shown.append((example, picture, dict(Counter(one["category"] for one in entries))))
    return shown


def image_findings(
    line: int, prediction: ObjectPrediction, kind: Kind, *, score: float, iou: float
) -> ImageFindings | None:
    """Count what was found in one image with at least `score`, as the confusion matrix counts; None without a truth."""
    if prediction.truth is None:
        return None
    counts = object_confusion(
        [prediction.truth], [prediction.target], prediction.classes, kind, score=score, iou=iou
    ).counts
    return ImageFindings(
        line=line,
        truths=int(counts[:-1].sum()),
        predictions=int(counts[:, :-1].sum()),
        right=int(counts.trace()),
        missed=int(counts[:-1, -1].sum()),
        false=int(counts[-1].sum()),
    )


def _title(kind: str, prompts: str) -> str:
    """The boxes or the masks of an evaluation, by a name that says where the masks' boxes came from."""
    if kind == "boxes":
        return "Boxes"
    return {"none": "Masks", "detector boxes": "Masks in the boxes found"}.get(prompts, "Masks in ground-truth boxes")


def _is_figure(metric: str) -> bool:
    return any(metric.startswith(f"{of}_") and metric.removeprefix(f"{of}_") in FIGURES for of in _PREFIXES)


_PREFIXES = ("box", "mask", "prompted_mask")


def _by_kind(kind: str, value: Entry, classes: Sequence[str]) -> Entry:
    """The curves and the classes of boxes or of masks, the worst first."""
    scores, title = value[kind], _title(kind, value["prompts"])
    rows = [{**row, "colour": _css(classes.index(row["label"]))} for row in scores["classes"]]
    drawn = [(row["label"], row["precision_at_half"]) for row in rows if row["precision_at_half"] is not None]
    beside_mean = drawn[:CURVES_SHOWN] if len(drawn) > 1 else []
    mean = scores["precision_at_half"]
    chart = "" if mean is None else precision_recall_chart(mean, beside_mean, name=f"{title}, precision by recall")
    return {"title": title, "rows": rows, "chart": Markup(chart), "beside": [label for label, _ in beside_mean]}


def _confusion(value: Entry) -> Entry:
    """The matrix as the page takes it, and its largest entries off the diagonal with their shares of the class."""
    columns = [*value["labels"], BACKGROUND]
    rows = [(label, sum(row), row) for label, row in zip(columns, value["counts"], strict=True)]
    top = [
        (count, None if label == BACKGROUND and r == len(rows) - 1 else count / total, label, columns[c])
        for r, (label, total, row) in enumerate(rows)
        for c, count in enumerate(row)
        if count and c != r
    ]
    top.sort(key=lambda entry: -entry[0])
    return {"columns": columns, "rows": rows, "top": top[:CONFUSIONS_SHOWN], "ignored": value["ignored"]}


def _images(
    path: Path, split: str, classes: tuple[str, ...], kind: Kind, confusion: Entry, pictures: Pictures
) -> Entry:
    """The worst images and the best ones of a split, drawn, and how many true objects of each size there are."""
    sizes = dict.fromkeys(AREAS, 0)
    if not path.is_file():
        return {"worst": [], "best": [], "ranked": 0, "sizes": sizes}
    ranked: list[ImageFindings] = []
    for line, prediction in _predictions(path, classes):
        found = image_findings(line, prediction, kind, score=confusion["score"], iou=confusion["iou"])
        if found is not None and prediction.truth is not None:
            ranked.append(found)
            areas = _areas(prediction.truth)
            for name, (above, most) in AREAS.items():
                sizes[name] += int(((areas > above) & (areas <= most)).sum())
    ranked.sort(key=lambda one: (one.f1, -one.missed - one.confused - one.false, one.line))
    worst = [one for one in ranked[:WORST_SHOWN] if one.f1 < 1]
    best = sorted(ranked[len(worst) :], key=lambda one: (-one.f1, -one.truths, one.line))[:BEST_SHOWN]
    shown = {}
    for line, prediction in _predictions(path, classes, {one.line for one in (*worst, *best)}):
        image = pictures.image_of_prediction(prediction, split, line)
        picture = None if image is None else _drawn(image, prediction, confusion["score"])
        shown[line] = (prediction, picture)
    return {
        "worst": [(one, *shown[one.line]) for one in worst],
        "best": [(one, *shown[one.line]) for one in best],
        "ranked": len(ranked),
        "sizes": sizes,
    }


def _predictions(
    path: Path, classes: tuple[str, ...], lines: Collection[int] | None = None
) -> Iterator[tuple[int, ObjectPrediction]]:
    """All predictions of a split, or those in these lines, one at a time: those of a large one do not fit in memory."""
    with path.open(encoding="utf-8") as file:
        for line, text in enumerate(file):
            if lines is None or line in lines:
                yield line, ObjectPrediction.from_json(json.loads(text), classes)


def _areas(objects: Objects) -> np.ndarray:
    """The areas of the objects that are no crowds, of their masks where they have some: (n,) float64, in pixels."""
    areas = objects.boxes[:, 2] * objects.boxes[:, 3]
    masked = [i for i, mask in enumerate(objects.masks) if mask is not None]
    areas[masked] = areas_and_boxes([mask for mask in objects.masks if mask is not None])[0]
    return areas[~objects.crowd]


def _drawn(image: Image.Image, prediction: ObjectPrediction, score: float) -> Thumbnail:
    """Truth and prediction on one image each, side by side."""
    assert prediction.truth is not None
    truth = draw(image, prediction.truth, prediction.classes, side=SIDE)
    found = draw(image, prediction.target, prediction.classes, least_score=score, side=SIDE)
    return drawing(beside(truth, found, ("truth", f"prediction, scores from {score:g}")))


def _css(number: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour(number))

"""Objects found in a split or in files, and their scores."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visiontune.data.dataset import Dataset
from visiontune.data.objects import Objects
from visiontune.data.sample import ImageFile, Images, ObjectPrediction, Sample
from visiontune.errors import DataError, ModelError
from visiontune.files import write_json, written_whole
from visiontune.metrics.mask_iou import PromptedMaskIou, prompted_mask_iou
from visiontune.metrics.object_scores import ObjectScores, Prompts, score_objects
from visiontune.models.objects import ObjectAdapter, nothing
from visiontune.progress import note, progress
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.precision import autocast
from visiontune.training.ranks import Ranks
from visiontune.training.rows import split_batches
from visiontune.words import counted


def prompts_of(adapter: ObjectAdapter) -> Prompts:
    """Where the boxes of a model's own predictions come from, when a split is answered with it alone."""
    return "ground-truth boxes" if adapter.prompted else "none"


def find_in_split(
    adapter: ObjectAdapter,
    datasets: Sequence[Dataset],
    split: str,
    recipe: Recipe,
    ranks: Ranks,
    *,
    limit: int | None = None,
    rows: int | None = None,
    show: bool = False,
) -> list[ObjectPrediction]:
    """What the model finds in a split, on every rank, dataset by dataset, in the order of their rows.

    `limit` and `rows` as `predict_split` has them. A model that is prompted is told the boxes that people drew.
    """
    indexes = [dataset.index(split) for dataset in datasets]
    how: dict[str, Any] = {"with_answer": adapter.prompted, "limit": limit, "rows": rows}
    total, batches = split_batches(adapter.encoder, datasets, indexes, split, recipe, ranks, **how)
    found: list[tuple[tuple[int, int], Objects]] = []
    adapter.trained_module.eval()
    with progress(f"finding objects in {split}", total, "images", show=show and ranks.is_first) as advance:
        for batch in batches:
            with torch.no_grad(), autocast(ranks.device, recipe.machine.precision):
                made = adapter.find(batch.to(ranks.device))
            found += [((d, i), replace(one, soft=None)) for (d, i, _), one in zip(batch.origins, made, strict=True)]
            advance(len(made))
    predictions = []
    for (d, i), one in sorted(ranks.gathered(found), key=lambda entry: entry[0]):
        sample, truth = indexes[d].ids[i], indexes[d].target(i)
        assert isinstance(truth, Objects)
        classes = adapter.encoder.classes
        predictions.append(ObjectPrediction(sample, (sample,), one, classes, indexes[d].size(i), truth))
    return predictions


def drawn_in(
    adapter: ObjectAdapter,
    predictions: Sequence[ObjectPrediction],
    pictures: Callable[[int], Images],
    recipe: Recipe,
    device: torch.device,
    *,
    show: bool = False,
) -> list[ObjectPrediction]:
    """Predictions with the masks that a prompted model draws in their boxes; `pictures(i)` shows prediction i again.

    A mask's score is that of its box times the overlap that the model expects.
    """
    made = []
    adapter.trained_module.eval()
    with progress("masks in the boxes found", len(predictions), "images", show=show) as advance:
        for i, prediction in enumerate(predictions):
            # Where a mask lies does not depend on the class, which the segmenter may not know.
            boxes = replace(prediction.target, classes=np.zeros_like(prediction.target.classes), scores=None, soft=None)
            asked = Sample(prediction.id, pictures(i), boxes)
            batch = adapter.encoder.collate([adapter.encoder.encode(asked)])
            with torch.no_grad(), autocast(device, recipe.machine.precision):
                (masked,) = adapter.find(batch.to(device))
            mine, expected = prediction.target.scores, masked.scores
            assert mine is not None and expected is not None
            made.append(
                replace(prediction, target=replace(prediction.target, masks=masked.masks, scores=mine * expected))
            )
            advance(1)
    return made


def score_predictions(
    predictions: Sequence[ObjectPrediction], prompts: Prompts, *, halves: int | None = None
) -> ObjectScores:
    """The scores of predictions whose truth is known. DataError where there are none."""
    known = [(p, p.truth) for p in predictions if p.truth is not None]
    if not known:
        raise DataError("No prediction has a truth to be held to.", fix="score a split of a prepared dataset")
    truths, targets, sizes = [t for _, t in known], [p.target for p, _ in known], [p.size for p, _ in known]
    options: dict[str, Any] = {} if halves is None else {"halves": halves}
    return score_objects(truths, targets, sizes, known[0][0].classes, prompts=prompts, **options)


def mask_iou(predictions: Sequence[ObjectPrediction]) -> PromptedMaskIou:
    """The overlap of masks drawn in true boxes with the true masks, beside that of the filled boxes."""
    truths, drawn = [], []
    for prediction in predictions:
        if prediction.truth is not None:
            masks = iter(prediction.target.masks)  # one for each object that is no crowd, in their order
            truths.append(prediction.truth)
            drawn.append([None if crowd else next(masks) for crowd in prediction.truth.crowd.tolist()])
    return prompted_mask_iou(truths, drawn)


def evaluate_split_of_objects(
    run: Run,
    predictions: Sequence[ObjectPrediction],
    split: str,
    ranks: Ranks,
    step: int,
    prompts: Prompts,
    started: float,
) -> ObjectScores:
    """Score a split's predictions, and write evaluations/SPLIT/{metrics.json, predictions.jsonl}."""
    scores = score_predictions(predictions, prompts)
    if ranks.is_first:
        folder = run.path / "evaluations" / split
        with written_whole(folder / "predictions.jsonl") as aside:
            lines = (json.dumps(p.to_json(), ensure_ascii=False) for p in predictions)
            aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        facts: dict[str, Any] = {"split": split, "step": step, "seconds": round(time.monotonic() - started, 3)}
        if prompts == "ground-truth boxes":
            facts["mask_iou"] = mask_iou(predictions).to_json()
        write_json(folder / "metrics.json", {**scores.to_json(), **facts})
        note(f"evaluation of {counted(len(predictions), f'{split} image')}: {folder}")
    return scores


def find_in_files(
    adapter: ObjectAdapter, paths: Sequence[Path], recipe: Recipe, device: torch.device
) -> list[ObjectPrediction]:
    """What the model finds in image files, in their order. Raises DataError for a file that is no readable image."""
    if adapter.prompted:
        raise ModelError(
            "This model draws masks in boxes that it is given, and none are given.",
            fix="predict with the run of a detector and a segmenter together, or with a detector",
        )
    adapter.trained_module.eval()
    encoder = adapter.encoder
    predictions = []
    with progress("finding objects", len(paths), "files") as advance:
        for path in paths:
            shown = Images((ImageFile(path.read_bytes(), str(path)),))
            encoded = encoder.encode(Sample(str(path), shown, nothing(len(encoder.classes))), with_answer=False)
            with torch.no_grad(), autocast(device, recipe.machine.precision):
                (found,) = adapter.find(encoder.collate([encoded]).to(device))
            target = replace(found, soft=None)
            predictions.append(ObjectPrediction(str(path), (str(path),), target, encoder.classes, encoded.size))
            advance(1)
    return predictions

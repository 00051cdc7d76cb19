"""Masks from random weights: cell nuclei by tiny SAM, told the boxes, and by tiny RF-DETR, told nothing.

Mean IoU of the masks beside filling the true box, mask AP50, on test images that no training step saw; of RF-DETR
over the nuclei that it finds, and beside filling the boxes that it found. A picture of each goes to the folder
`--pictures`.

    python bench/nuclei.py FOLDER/nuclei/annotations.json [--models tiny/sam,tiny/rf-detr] [--pictures FOLDER]
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import visiontune
from visiontune.data.images import decode
from visiontune.data.sample import ObjectPrediction
from visiontune.metrics.mask_iou import PromptedMaskIou, filled_box, prompted_mask_iou
from visiontune.models.objects import finds_objects
from visiontune.overlay import beside, draw
from visiontune.training.evaluate_objects import find_in_split, mask_iou, prompts_of, score_predictions
from visiontune.training.model import load_trained, open_datasets
from visiontune.training.ranks import Ranks
from visiontune.training.teacher_targets import IOU, chosen_of, matches

SHOWN = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--models", default="tiny/sam,tiny/rf-detr")
    parser.add_argument("--epochs", type=float, default=None)
    parser.add_argument("--pictures", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = visiontune.prepare(arguments.annotations, Path(folder) / "data", repair=True)
        for model in arguments.models.split(","):
            started = time.monotonic()
            run: Any = visiontune.train(
                data.path, model=model, out=Path(folder) / model.replace("/", "-"), epochs=arguments.epochs
            )
            took = time.monotonic() - started
            show(run, model, took, arguments.pictures)


def show(run: Any, model: str, took: float, pictures: Path | None) -> None:
    ranks = Ranks("cpu")
    adapter = finds_objects(load_trained(run, run.recipe, torch.device("cpu"))[0])
    datasets = open_datasets(run.recipe)
    found = find_in_split(adapter, datasets, "test", run.recipe, ranks)
    scores = score_predictions(found, prompts_of(adapter))
    figures = {name: round(m.value, 4) for name, m in scores.metrics.items() if m.value is not None and "ap" in name}
    print(
        f"{model}: {run.recipe.schedule.steps} steps of {run.recipe.batch.samples}, {took:.0f} s; {figures}", flush=True
    )
    said, told = "", ""
    if adapter.prompted:
        overlap = mask_iou(found)
    else:
        overlap, own_boxes = iou_of_the_found(found)
        said = f"filling its own box {own_boxes.mean.value:.4f}, "
        told = f" of the nuclei found at a box IoU of {IOU}"
    print(f"{model}: mean IoU {overlap.mean.value:.4f}, {said}filling the true box {overlap.filled_boxes.value:.4f}, "
          f"{overlap.objects} masks{told}", flush=True)  # fmt: skip
    for place, prediction in enumerate(found[:SHOWN] if pictures else []):
        assert pictures is not None and prediction.truth is not None
        pictures.mkdir(parents=True, exist_ok=True)
        seen: Any = datasets[0].sample("test", place).seen
        image = decode(seen.files[0].data)
        sides = [draw(image, one, prediction.classes, least_score=0.3) for one in (prediction.truth, prediction.target)]
        beside(*sides, ("drawn by people", model)).save(pictures / f"{model.replace('/', '-')}-{place}.png")


def iou_of_the_found(predictions: list[ObjectPrediction]) -> tuple[PromptedMaskIou, PromptedMaskIou]:
    """Over the true objects that findings fit, each taken once, by the surest finding first: of the findings' masks,
    and of the masks that fill their boxes."""
    truths, drawn, filled = [], [], []
    for prediction in predictions:
        truth, target = prediction.truth, prediction.target
        assert truth is not None and target.scores is not None
        found = chosen_of(target, np.argsort(-target.scores, kind="stable").tolist())
        taken = matches(truth, found)
        places = taken[taken >= 0].tolist()
        truths.append(chosen_of(truth, np.flatnonzero(taken >= 0).tolist()))
        drawn.append([found.masks[place] for place in places])
        filled.append([filled_box(found.boxes[place].tolist(), *prediction.size) for place in places])
    return prompted_mask_iou(truths, drawn), prompted_mask_iou(truths, filled)


if __name__ == "__main__":
    main()

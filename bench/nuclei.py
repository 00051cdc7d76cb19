"""Masks from random weights: cell nuclei by tiny SAM, told the boxes, and by tiny RF-DETR, told nothing.

Mean IoU of the masks beside filling the box, mask AP50, on test images that no training step saw. A picture of each
goes to the folder `--pictures`.

    python bench/nuclei.py FOLDER/nuclei/annotations.json [--models tiny/sam,tiny/rf-detr] [--pictures FOLDER]
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import visiontune
from visiontune.data.images import decode
from visiontune.models.objects import finds_objects
from visiontune.overlay import beside, draw
from visiontune.training.evaluate_objects import find_in_split, mask_iou, prompts_of, score_predictions
from visiontune.training.model import load_trained, open_datasets
from visiontune.training.ranks import Ranks

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
    if adapter.prompted:
        overlap = mask_iou(found)
        print(f"{model}: mean IoU {overlap.mean.value:.4f}, filling the box {overlap.filled_boxes.value:.4f}, "
              f"{overlap.objects} masks", flush=True)  # fmt: skip
    for place, prediction in enumerate(found[:SHOWN] if pictures else []):
        assert pictures is not None and prediction.truth is not None
        pictures.mkdir(parents=True, exist_ok=True)
        seen: Any = datasets[0].sample("test", place).seen
        image = decode(seen.files[0].data)
        sides = [draw(image, one, prediction.classes, least_score=0.3) for one in (prediction.truth, prediction.target)]
        beside(*sides, ("drawn by people", model)).save(pictures / f"{model.replace('/', '-')}-{place}.png")


if __name__ == "__main__":
    main()

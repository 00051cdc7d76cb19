"""Boxes from random weights: `visiontune train` with no flag but `--model tiny/rf-detr` beside a plain script.

Both learn BCCD's training images (blood cells, as `prepare` splits them), see equally many samples, and are scored on
the same test images. The plain script is what a person writes first: transformers' own loss, AdamW, flips.

    python bench/bccd.py FOLDER/bccd [--seeds 3] [--epochs 90]
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import visiontune
from visiontune.data.dataset import Dataset
from visiontune.data.images import decode
from visiontune.data.objects import Objects
from visiontune.data.sample import ObjectPrediction
from visiontune.models.objects import to_pixels
from visiontune.recipe import ObjectChoices
from visiontune.training.evaluate_objects import score_predictions

SIDE, BATCH, RATE, CLIP = 192, 8, 5e-4, 0.5
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def images_of(dataset: Dataset, split: str) -> list[tuple[torch.Tensor, Objects, tuple[int, int]]]:
    """Each image of a split as the model wants it, its objects, and its size (height, width)."""
    made = []
    for i in range(dataset.count(split)):
        sample: Any = dataset.sample(split, i)
        image = decode(sample.seen.files[0].data)
        pixels = torch.from_numpy(np.asarray(image.resize((SIDE, SIDE)))).permute(2, 0, 1).float() / 255
        made.append(((pixels - MEAN) / STD, sample.target, (image.height, image.width)))
    return made


def plain(dataset: Dataset, classes: tuple[str, ...], steps: int, seed: int, folder: Path) -> dict[str, float]:
    """The plain script: train for so many steps and score the test split."""
    from transformers import AutoConfig, RfDetrForObjectDetection

    from visiontune.models.rf_detr import build_tiny

    choices = ObjectChoices(classes=classes, masks=False, mirror="none", queries=60)
    build_tiny(folder, choices, seed, image_size=SIDE)
    torch.manual_seed(seed)
    model: Any = RfDetrForObjectDetection(AutoConfig.from_pretrained(folder))  # the library's own first weights
    generator = np.random.default_rng(seed)
    train = images_of(dataset, "train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / steps)))
    model.train()
    order: list[int] = []
    for _ in range(steps):
        while len(order) < BATCH:
            order += generator.permutation(len(train)).tolist()
        some, order = order[:BATCH], order[BATCH:]
        pixels, labels = [], []
        for i in some:
            image, objects, (height, width) = train[i]
            boxes = objects.boxes / [width, height, width, height]
            centres = np.c_[boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]]
            for axis in (0, 1):
                if generator.random() < 0.5:
                    image = image.flip(2 - axis)
                    centres[:, axis] = 1 - centres[:, axis]
            pixels.append(image)
            labels.append(
                {"class_labels": torch.from_numpy(objects.classes), "boxes": torch.from_numpy(centres).float()}
            )
        loss = model(pixel_values=torch.stack(pixels), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    model.eval()
    predictions = []
    for pixels, truth, size in images_of(dataset, "test"):
        with torch.no_grad():
            outputs = model(pixel_values=pixels[None])
        scores, places = outputs.logits[0].sigmoid().flatten().topk(100)
        boxes = to_pixels(outputs.pred_boxes[0][places // len(classes)].double().numpy(), size)
        found = Objects(boxes, (places % len(classes)).numpy(), (None,) * 100, np.zeros(100, bool), tuple(range(100)),
                        scores.double().numpy())  # fmt: skip
        predictions.append(ObjectPrediction(str(len(predictions)), (), found, classes, size, truth))
    return figures(score_predictions(predictions, "none"))


def ours(dataset: Dataset, epochs: float | None, seed: int, out: Path) -> tuple[dict[str, float], int, str]:
    """`visiontune train DATA --model tiny/rf-detr --out OUT`, then `evaluate`; the steps taken and samples a step."""
    run: Any = visiontune.train(dataset.path, model="tiny/rf-detr", out=out, epochs=epochs, overrides={"seed": seed})
    scores: Any = visiontune.evaluate(out, split="test")
    recipe = run.recipe
    return figures(scores), recipe.schedule.steps * recipe.batch.samples, str(run.status)


def figures(scores: Any) -> dict[str, float]:
    return {name: scores.metric(name).value or 0.0 for name in ("box_ap", "box_ap50")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=None, help="instead of those that the recipe derives")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = visiontune.prepare(arguments.bccd, Path(folder) / "data", repair=True)
        classes = dataset.index("train").classes
        assert classes is not None
        rows: dict[str, list[dict[str, float]]] = {"visiontune": [], "plain script": []}
        for seed in range(arguments.seeds):
            started = time.monotonic()
            mine, seen, status = ours(dataset, arguments.epochs, seed, Path(folder) / f"run-{seed}")
            took = time.monotonic() - started
            print(f"seed {seed}: visiontune {mine}, {seen} samples seen, {took:.0f} s, run {status}", flush=True)
            started = time.monotonic()
            theirs = plain(dataset, classes, seen // BATCH, seed, Path(folder) / f"plain-{seed}")
            took = time.monotonic() - started
            print(f"seed {seed}: plain      {theirs}, {seen // BATCH * BATCH} samples seen, {took:.0f} s", flush=True)
            rows["visiontune"].append(mine)
            rows["plain script"].append(theirs)
        for name, found in rows.items():
            ap, ap50 = (np.mean([one[key] for one in found]) for key in ("box_ap", "box_ap50"))
            print(
                f"{name:12}  mean of {len(found)} seeds: AP {ap:.3f}, AP50 {ap50:.3f} on {dataset.count('test')} images"
            )


if __name__ == "__main__":
    main()

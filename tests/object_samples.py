"""Samples with drawn objects, and what the tests of models that find objects do with them."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from visiontune.data.objects import Objects, Rle
from visiontune.data.sample import ImageFile, Images, Sample
from visiontune.demo_shapes import CLASSES, draw_source
from visiontune.recipe_sections import Data, DatasetUse


def data(side: int) -> Data:
    return Data(datasets=(DatasetUse(path="drawn", content_hash="0"),), image_longest_edge=side)


def as_sample(
    name: str, image: Image.Image, boxes: Sequence[Any], classes: Sequence[int], masks: Sequence[Rle | None]
) -> Sample:
    """An image with its objects; boxes are left, top, width, height."""
    packed = io.BytesIO()
    image.save(packed, "PNG")
    target = Objects(
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        classes=np.array(classes, np.int64),
        masks=tuple(masks),
        crowd=np.zeros(len(classes), bool),
        ids=tuple(range(len(classes))),
    )
    return Sample(name, Images((ImageFile(packed.getvalue(), f"{name}.png"),)), target)


def objects_of(sample: Sample) -> Objects:
    assert isinstance(sample.target, Objects)
    return sample.target


def picture_of(sample: Sample) -> Image.Image:
    assert isinstance(sample.seen, Images)
    return Image.open(io.BytesIO(sample.seen.files[0].data))


def changed(sample: Sample, **changes: Any) -> Sample:
    return replace(sample, target=replace(objects_of(sample), **changes))


def batch_of(model: Any, samples: Sequence[Sample]) -> Any:
    return model.encoder.collate([model.encoder.encode(sample) for sample in samples])


def total(model: Any, batch: Any) -> torch.Tensor:
    return torch.stack([v.sum() / max(1.0, batch.weights[k]) for k, v in model.losses(batch).items()]).sum()


def train(model: Any, batch: Any, steps: int, rate: float) -> None:
    """Learn one batch by heart."""
    optimizer = torch.optim.AdamW(model.network.parameters(), rate, weight_decay=1e-4)
    model.network.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20, 1.1 - step / steps)
        optimizer.zero_grad()
        total(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        optimizer.step()
    model.network.eval()


def listing(
    folder: Path, classes: Sequence[str], seed: int, drawn: Sequence[str] = CLASSES[:4], count: int = 30
) -> Path:
    """Images of all that is `drawn`, annotated with the objects of `classes` alone, in this order."""
    path = draw_source(folder, count, classes=drawn, seed=seed, masks=False)
    value = json.loads(path.read_text())
    number = {drawn.index(name) + 1: place for place, name in enumerate(classes)}
    value["annotations"] = [
        {**one, "category_id": number[one["category_id"]]}
        for one in value["annotations"]
        if one["category_id"] in number
    ]
    value["categories"] = [{"id": place, "name": name} for place, name in enumerate(classes)]
    path.write_text(json.dumps(value))
    return path

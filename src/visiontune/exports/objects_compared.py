"""Whether an exported folder, loaded by plain libraries, finds the same objects as the model in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visiontune.data.objects import Objects
from visiontune.data.sample import Sample
from visiontune.exports.certificate import Check, Limits
from visiontune.models.load import load_adapter
from visiontune.models.objects import ObjectAdapter, finds_objects
from visiontune.recipe import Recipe
from visiontune.training.model import new_weights_seed
from visiontune.training.precision import autocast

WORTH, BEST = 0.05, 5  # objects with a lower score are looked at only where they are among an image's best few


def found_by(adapter: ObjectAdapter, samples: Sequence[Sample], recipe: Recipe) -> list[Objects]:
    """What a model finds in each sample, on the CPU in the precision of the recipe; a prompted one in its own boxes."""
    adapter.trained_module.eval()
    made = []
    for sample in samples:
        batch = adapter.encoder.collate([adapter.encoder.encode(sample, with_answer=adapter.prompted)])
        with torch.no_grad(), autocast(torch.device("cpu"), recipe.machine.precision):
            made += adapter.find(batch)
    return made


def check_reloaded_objects(
    folder: Path,
    base: str | None,
    recipe: Recipe,
    samples: Sequence[Sample],
    trained: Sequence[Objects],
    limits: Limits,
) -> list[Check]:
    """Load an exported folder with plain transformers (with `base`: with PEFT upon that model) and compare what it
    finds."""
    from peft import PeftModel

    name = base or str(folder)
    again = finds_objects(load_adapter(name, None, recipe.data, objects=recipe.objects, seed=new_weights_seed(recipe)))
    if base is not None:
        network: Any = again.network
        adapted: Any = PeftModel.from_pretrained(network, str(folder)).base_model.model
        again.network = adapted.eval()
    return [compared(samples, trained, found_by(again, samples, recipe), limits)]


def compared(samples: Sequence[Sample], mine: Sequence[Objects], its: Sequence[Objects], limits: Limits) -> Check:
    """Whether two models find the same objects: of the same class, at the same place, equally sure."""
    looked_at, lost, furthest, first = 0, 0, 0.0, ""
    for sample, one, other in zip(samples, mine, its, strict=True):
        for own, far in ((one, _distances(one, other)), (other, _distances(other, one))):
            scores = np.ones(len(own)) if own.scores is None else own.scores
            worth = far[(scores >= WORTH) | (np.argsort(np.argsort(-scores, kind="stable")) < BEST)]
            looked_at += len(worth)
            missing = int((worth > limits.log_probability).sum())
            lost += missing
            first = first or (sample.id if missing else "")
            furthest = max([furthest, *worth[np.isfinite(worth)].tolist()])
    numbers = {"images": len(samples), "objects": looked_at, "other": lost, "furthest": round(furthest, 7)}
    if lost > max(1.0, limits.disagreement * looked_at) or (lost and limits.disagreement == 0):
        found = f"{lost} of {looked_at} objects have no counterpart, first in {first}"
        return Check("objects", "failed", found, numbers)
    found = f"{looked_at} objects in {len(samples)} images, counterparts no further than {furthest:.2g}"
    return Check("objects", "passed", found, numbers)


def _distances(one: Objects, other: Objects) -> NDArray[np.float64]:
    """For each object the distance to the nearest of its class in `other`: the larger of those of score and of box, as
    a share of the box's longer side; infinite where there is none."""
    far = np.full(len(one), np.inf)
    mine, theirs = (np.ones(len(o)) if o.scores is None else o.scores for o in (one, other))
    for row in range(len(one)):
        same = np.flatnonzero(other.classes == one.classes[row])
        if len(same):
            side = max(1.0, float(one.boxes[row, 2:].max()))
            apart = np.abs(other.boxes[same] - one.boxes[row]).max(axis=1) / side
            far[row] = np.maximum(apart, np.abs(theirs[same] - mine[row])).min()
    return far

"""Whether an exported folder, loaded by plain libraries, finds the same objects as the model in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from visiontune.data.objects import Objects
from visiontune.data.sample import Sample
from visiontune.exports.certificate import Check
from visiontune.exports.object_agreement import ObjectLimits, check_objects
from visiontune.models.load import load_adapter
from visiontune.models.objects import ObjectAdapter, finds_objects
from visiontune.models.parts import without_cpu_kernels
from visiontune.recipe import Recipe
from visiontune.training.model import new_weights_seed
from visiontune.training.precision import autocast

LEAST_SCORE = 0.05  # objects with a lower score count only where an image has no other
# By what the numbers were rounded to, in the run or in the export.
RELOADED_LIMITS = {
    "f32": ObjectLimits(score=0.005, overlap=0.95, disagreement=0.0),
    "f16": ObjectLimits(score=0.02, overlap=0.9, disagreement=0.0),
    "bf16": ObjectLimits(score=0.05, overlap=0.9, disagreement=0.005),
}


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
    limits: ObjectLimits,
) -> list[Check]:
    """Load an exported folder with plain transformers (with `base`: with PEFT upon that model) and compare what it
    finds."""
    options: dict[str, Any] = {"objects": recipe.objects, "seed": new_weights_seed(recipe)}
    name, revision = (str(folder), None) if base is None else (base, recipe.model.revision)
    again = finds_objects(load_adapter(name, revision, recipe.data, **options))
    if base is not None:
        without_cpu_kernels()
        from peft import PeftModel

        network: Any = again.network
        adapted: Any = PeftModel.from_pretrained(network, str(folder)).base_model.model
        again.network = adapted.eval()
    return [check_objects(list(zip(trained, found_by(again, samples, recipe), strict=True)), LEAST_SCORE, limits)]

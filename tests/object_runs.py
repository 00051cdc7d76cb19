"""Short runs that find objects, on one thread."""

from pathlib import Path
from typing import Any

import visiontune
from tests.conftest import SAME_EVERYWHERE

QUICK: dict[str, Any] = {
    "data.image_longest_edge": 64,
    "objects.queries": 16,
    "batch.samples": 4,
    "batch.window": 16,
    "schedule.steps": 6,
    "optimizer.learning_rate": 3e-4,  # what rounding does to a step grows with it
    "evaluation.every": 3,
    "evaluation.samples": 4,
    "checkpoints.every": 2,
    **SAME_EVERYWHERE,
}


def train(data: Any, out: Path, model: str = "tiny/rf-detr", **overrides: Any) -> Any:
    return visiontune.train(data, model=model, out=out, overrides={**QUICK, **overrides})

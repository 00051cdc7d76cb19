"""Short runs on recordings of neurons, on one thread."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import visiontune
from tests.conftest import SAME_EVERYWHERE
from visiontune.training import finish, receptive_fields
from visiontune.training.receptive_fields import write_fields

QUICK: dict[str, Any] = {
    "responses.channels": [4],
    "responses.kernels": [5],
    "responses.temporal_kernels": [1],
    "responses.strides": [2],
    "responses.pools": [1],
    "responses.recurrent_channels": 2,
    "responses.temporal_taps": 6,
    "responses.temporal_channels": 2,
    "responses.clip": 48,
    "batch.samples": 4,
    "batch.window": 16,
    "batch.tokens": 200,
    "schedule.steps": 6,
    "evaluation.every": 3,
    "evaluation.samples": 8,
    "checkpoints.every": 2,
    **SAME_EVERYWHERE,
}
UNITS = (7, 4)


def train(data: Any, out: Path, start: Any = None, **overrides: Any) -> Any:
    kept = QUICK if start is None else {n: v for n, v in QUICK.items() if not n.startswith("responses.")}
    with pytest.MonkeyPatch.context() as patched:
        # Half of so short a run would go into them; what they show is seen in test_receptive_fields.py.
        patched.setattr(finish, "write_fields", partial(write_fields, clips=2))
        patched.setattr(receptive_fields, "STEPS", 2)
        return visiontune.train(data, out=out, start=start, overrides={**kept, **overrides})

"""The verbs, as Python functions. Torch and transformers are imported only by those that need them."""

from typing import Any

from visiontune.api.answer_verbs import compare, evaluate, predict, predict_movies
from visiontune.api.data_verbs import inspect, prepare, prepare_recordings
from visiontune.api.export_verbs import export, verify
from visiontune.api.run_verbs import forecast, pause, resume, train

__all__ = [
    "compare",
    "doctor",
    "evaluate",
    "export",
    "forecast",
    "inspect",
    "pause",
    "predict",
    "predict_movies",
    "prepare",
    "prepare_recordings",
    "resume",
    "train",
    "verify",
]


def doctor() -> dict[str, Any]:
    """This machine: devices, memory, disk, versions, and what is missing for what."""
    from visiontune.machine import doctor as examine

    return examine()

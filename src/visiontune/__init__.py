"""visiontune turns a person's own images and annotations into a fine-tuned vision model, and proves each step."""

from visiontune.api import (
    compare,
    doctor,
    evaluate,
    export,
    forecast,
    inspect,
    pause,
    predict,
    predict_movies,
    prepare,
    prepare_recordings,
    resume,
    train,
    verify,
)
from visiontune.errors import VisiontuneError

__all__ = [
    "VisiontuneError",
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

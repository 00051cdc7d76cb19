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
from visiontune.training.callbacks import Callback

__all__ = [
    "Callback",
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

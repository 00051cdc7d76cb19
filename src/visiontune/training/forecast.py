"""What a run will take, worked out before its first step: tokens, memory, disk, and where steps are timed, time."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data.order import Order
from visiontune.errors import MachineError
from visiontune.models.adapter import ModelAdapter
from visiontune.models.parts import trained_tensors
from visiontune.models.text import TextEncoder
from visiontune.recipe import Recipe
from visiontune.training.batches import DRAWN_AT_ONCE, plan_window
from visiontune.words import counted

FORECAST_NAME = "forecast.json"
WINDOWS_PLANNED = 32  # of these the padding is counted
ADAM_MOMENTS = 2
BESIDE_THEM = 64 * 1024  # bytes of a checkpoint's other files and of the headers of its tensors


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    tokens: that go through the language model (of objects and responses: pixels of images, bins), without padding;
    image_tokens of them stand for images. padding: the share of what is computed that is padding. memory_bytes: the
    peak of a step on one device. disk_bytes: what the run folder will hold at most, by what it is for. step_seconds,
    evaluation_seconds and seconds are None until steps have been timed (`train --dry-run`); then `seconds` is what all
    steps and the evaluations on the way take.
    """

    steps: int
    samples: int
    epochs: float
    tokens: int
    image_tokens: int | None
    padding: float
    memory_bytes: int
    disk_bytes: dict[str, int]
    step_seconds: float | None = None
    evaluation_seconds: float | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The forecast for a person."""
        images = "" if not self.image_tokens else f", {self.image_tokens / self.tokens:.0%} of them of images"
        disk = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in self.disk_bytes.items())
        found = [
            f"steps: {self.steps:,} of {counted(self.samples // self.steps, 'sample')}, "
            f"{counted(self.epochs, 'epoch', form='.3g')}",
            f"tokens: {self.tokens:,}{images}, padding {self.padding:.1%}",
            f"memory: {self.memory_bytes / 2**20:,.0f} MiB at most on a device",
            f"disk: {disk}",
        ]
        if self.seconds is not None:
            found.append(
                f"time: {_duration(self.seconds)} (a step {self.step_seconds:.3g} s, an evaluation "
                f"{self.evaluation_seconds:.3g} s)"
            )
        return found


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def forecast(
    recipe: Recipe,
    adapter: ModelAdapter,
    order: Order,
    lengths: Sequence[np.ndarray],
    layouts: Sequence[Sequence[Any]],
    memory_bytes: int,
    features_bytes: int,
) -> Forecast:
    """The forecast of a run without its time; `lengths` and `layouts` are those of each dataset's training rows."""
    steps, samples = recipe.schedule.steps, recipe.schedule.steps * recipe.batch.samples
    encoder = adapter.encoder
    images = None
    if isinstance(encoder, TextEncoder):
        images = [np.array([encoder.image_tokens(one) for one in rows], np.int64) for rows in layouts]
    tokens = image_tokens = 0
    for start in range(0, samples, DRAWN_AT_ONCE):
        draws = order.draw(start, min(samples, start + DRAWN_AT_ONCE))
        for dataset, length in enumerate(lengths):
            rows = draws.index[draws.dataset == dataset]
            tokens += int(length[rows].sum())
            image_tokens += 0 if images is None else int(images[dataset][rows].sum())
    rows = sum(min(len(one), recipe.data.limit or len(one)) for one in lengths)
    checkpoints = recipe.checkpoints.keep + 2  # the best one too, and one that is being written
    disk = {"checkpoints": checkpoints * _checkpoint_bytes(recipe, adapter)}
    if features_bytes:
        disk["features"] = features_bytes
    return Forecast(
        steps=steps,
        samples=samples,
        epochs=samples / rows,
        tokens=tokens,
        image_tokens=None if images is None else image_tokens,
        padding=_padding(recipe, order, lengths),
        memory_bytes=memory_bytes,
        disk_bytes=disk,
    )


def refuse_full_disk(found: Forecast, folder: Path, resumed: bool) -> None:
    """Raise MachineError where the disk cannot hold what the run will write; of one that is `resumed` much stands."""
    free, needed = shutil.disk_usage(folder).free, sum(found.disk_bytes.values())
    if needed > free and not resumed:
        raise MachineError(
            f"The run will write {needed / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB are free.",
            where=str(folder),
            fix="choose --out on another disk, lower --checkpoints.keep, or use --features.cache never",
        )


def _checkpoint_bytes(recipe: Recipe, adapter: ModelAdapter) -> int:
    module = adapter.trained_module
    kept = sum(t.numel() * t.element_size() for t in trained_tensors(module, adapter.parts, recipe.parts).values())
    learned = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    return kept * (2 if recipe.optimizer.average else 1) + ADAM_MOMENTS * learned + BESIDE_THEM


def _padding(recipe: Recipe, order: Order, lengths: Sequence[np.ndarray]) -> float:
    """The share of padding in windows spread over the run."""
    if recipe.batch.packing:
        return 0.0
    windows = max(1, recipe.schedule.steps * recipe.batch.samples // recipe.batch.window)
    held = padded = 0
    for window in sorted({int(w) for w in np.linspace(0, windows - 1, min(windows, WINDOWS_PLANNED))}):
        for step in plan_window(order, lengths, recipe.batch, window):
            for micro_batch in step:
                taken = [int(lengths[d][i]) for d, i, _ in micro_batch.samples]
                held, padded = held + sum(taken), padded + max(taken) * len(taken)
    return 1 - held / max(1, padded)

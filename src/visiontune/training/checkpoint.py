"""Checkpoints: what a run needs to go on as if it had never stopped. Safetensors and JSON, whole or absent."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from visiontune.data.order import Draws
from visiontune.errors import MachineError, RunError
from visiontune.files import fingerprint, folder_written_whole, is_same_file, write_json
from visiontune.progress import warn
from visiontune.run import Run
from visiontune.words import command

WEIGHTS, OPTIMIZER, STATE, MANIFEST = "trained.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
AVERAGE = "average.safetensors"


@dataclass
class Progress:
    """Where a run stands. (window, step_in_window) is the place in the order; the rest is counted on the way."""

    step: int = 0
    window: int = 0
    step_in_window: int = 0
    seen: dict[str, int] = field(default_factory=dict)  # dataset number -> samples
    seen_digest: int = 0  # sum of a hash of each (dataset, index, epoch) seen, modulo 2**64
    shortened: int = 0
    image_tokens: int = 0
    micro_batch_pieces: int = 1  # each micro-batch is cut into so many since memory ran out
    best_value: float | None = None
    best_step: int = 0
    evaluations_without_better: int = 0
    stopped_early: bool = False
    loss_scale: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def add_seen(self, origins: Sequence[tuple[int, int, int]]) -> None:
        """Count samples, as (dataset, index, epoch), that went through the model."""
        if not origins:
            return
        draws = Draws(*np.array(origins, dtype=np.int64).T)
        for dataset, count in enumerate(np.bincount(draws.dataset).tolist()):
            if count:
                self.seen[str(dataset)] = self.seen.get(str(dataset), 0) + count
        self.seen_digest = (self.seen_digest + draws.digest()) % 2**64


def save(
    run: Run, progress: Progress, trained: dict[str, torch.Tensor], moments: dict[str, torch.Tensor],
    average: dict[str, torch.Tensor] | None = None,
) -> Path:  # fmt: skip
    """Write the checkpoint of `progress.step`, with the weights' average where there is one.

    Raises MachineError when the disk is full; the checkpoints that stood stay.
    """
    path = run.checkpoint_path(progress.step)
    try:
        with folder_written_whole(path) as folder:
            save_file(_on_cpu(trained), folder / WEIGHTS)
            save_file(_on_cpu(moments), folder / OPTIMIZER)
            write_json(folder / STATE, asdict(progress))
            if average is not None:
                save_file(_on_cpu(average), folder / AVERAGE)
            names = (WEIGHTS, OPTIMIZER, STATE, *(() if average is None else (AVERAGE,)))
            write_json(folder / MANIFEST, {name: fingerprint(folder / name) for name in names})
    except (OSError, SafetensorError) as error:
        steps = run.checkpoint_steps()
        raise MachineError(
            f"The checkpoint of step {progress.step} could not be written: {error}",
            where=str(path),
            fix=f"free disk space, then `{command('resume', run.path)}`; "
            + (f"the checkpoint of step {steps[-1]} is whole" if steps else "no checkpoint stands yet"),
        ) from error
    return path


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def write_best(run: Run, step: int, metric: str, value: float) -> None:
    """Name the best checkpoint, before `remove_old` removes the one that was named so far."""
    write_json(run.checkpoints_folder / "best.json", {"step": step, "metric": metric, "value": value})


def remove_old(run: Run, progress: Progress, keep: int) -> None:
    """Remove checkpoints beyond the last `keep` ones and the best one, and what a kill left half-written."""
    steps = run.checkpoint_steps()
    for step in steps[:-keep]:
        if step != progress.best_step:
            shutil.rmtree(run.checkpoint_path(step))
    for leftover in run.checkpoints_folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back; tensors on the CPU. `average` holds nothing where no average was kept."""

    progress: Progress
    trained: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]

    @property
    def shipped(self) -> dict[str, torch.Tensor]:
        """What the run gives away: the average of the weights where one was kept."""
        return self.trained | self.average


def load(run: Run, step: int, *, with_optimizer: bool = True) -> Checkpoint:
    """Read the checkpoint of a step; raises RunError if it is missing or its bytes are not those that were written."""
    folder = run.checkpoint_path(step)
    try:
        manifest = run.read_json(f"checkpoints/{folder.name}/{MANIFEST}")
    except ValueError as error:  # not JSON, not UTF-8
        raise _damaged(run, step, MANIFEST) from error
    if manifest is None:
        raise RunError(
            f"There is no checkpoint of step {step}.",
            where=str(run.checkpoints_folder),
            fix=f"steps that stand: {run.checkpoint_steps()}",
        )
    for name, written in manifest.items():
        if not is_same_file(folder / name, written):
            raise _damaged(run, step, name)
    state = run.read_json(f"checkpoints/{folder.name}/{STATE}")
    moments = load_file(folder / OPTIMIZER) if with_optimizer else {}
    average = load_file(folder / AVERAGE) if AVERAGE in manifest else {}
    return Checkpoint(Progress(**(state or {})), load_file(folder / WEIGHTS), moments, average)


def _damaged(run: Run, step: int, name: str) -> RunError:
    return RunError(
        f"The checkpoint of step {step} is damaged: {name} is not what was written.",
        where=str(run.checkpoint_path(step) / name),
        fix="remove this checkpoint's folder" + _without(run, step),
    )


def _without(run: Run, step: int) -> str:
    """What to do once the damaged checkpoint of a step is removed."""
    others = [other for other in run.checkpoint_steps() if other != step]
    resume = command("resume", run.path)
    if not others:
        return f", then `{resume}`, which trains from the start: no other checkpoint stands"
    if step > others[-1]:
        return f", then `{resume}`, which trains again from the checkpoint of step {others[-1]}"
    if run.best is not None and run.best["step"] == step:
        return f", then `{resume}`, which takes the best of the checkpoints that stand: {others}"
    return "; the run does without it"


def standing_best(run: Run, progress: Progress, metric: str) -> int:
    """The step of the best checkpoint of a run at its end; where that was removed, of the best one that stands."""
    best, stand = progress.best_step or progress.step, run.checkpoint_steps()
    if best in stand:
        return best
    values = {entry["step"]: entry["metrics"].get(metric, {}).get("value") for entry in run.metrics("evaluation")}
    scored = {step: value for step, value in values.items() if step in stand and value is not None}
    return max(scored, key=lambda step: (scored[step], step), default=progress.step)


def load_latest(run: Run) -> Checkpoint | None:
    """The latest checkpoint that is undamaged, or None where there is none; damaged ones are named and passed over."""
    for step in reversed(run.checkpoint_steps()):
        try:
            return load(run, step)
        except RunError as error:
            warn(f"{error.found} Trying an earlier one.")
    return None


def put_tensors(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copy saved tensors into a module; raises RunError unless the names and shapes are exactly those it trains."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    wanted = {name for name, p in module.named_parameters() if p.requires_grad}
    if unknown := sorted(set(tensors) - set(own)) + sorted(wanted - set(tensors)):
        raise RunError(
            f"The checkpoint does not fit the model: {len(unknown)} tensors differ, the first is '{unknown[0]}'.",
            fix="use the base model and the library versions that the run was trained with",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise RunError(f"'{name}' has shape {tuple(tensor.shape)}; the model's is {tuple(own[name].shape)}.")
            own[name].copy_(tensor)

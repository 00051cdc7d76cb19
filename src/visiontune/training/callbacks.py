"""Callbacks: plain Python objects that a run tells of its steps, evaluations and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visiontune.errors import RecipeError, RunError
from visiontune.words import command

if TYPE_CHECKING:
    from visiontune.run import Run


class Callback:
    """What a person wants done while a run trains; a subclass overrides the methods that it needs.

    They are called in the first process alone, once what they tell of stands in the run folder. `run.ask_to_pause()`
    pauses the run at the end of the step; an error stops the run, and resuming goes on from the last checkpoint. Steps
    after that checkpoint come again then.
    """

    def __str__(self) -> str:
        return type(self).__name__

    def on_step(self, run: Run, entry: Mapping[str, Any]) -> None:
        """After each step, with its line of metrics.jsonl: step, loss, learning_rate, seconds and so on."""

    def on_evaluate(self, run: Run, entry: Mapping[str, Any]) -> None:
        """After each evaluation, with its line of metrics.jsonl: step, split, metrics (each with its interval)."""

    def on_checkpoint(self, run: Run, path: Path, step: int) -> None:
        """After each checkpoint, with its folder; later ones may remove it."""


class CallbackList(Callback):
    """Several callbacks as one, in order. An error of one of them becomes a RunError that says whose it was."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = list(callbacks)

    def on_step(self, run: Run, entry: Mapping[str, Any]) -> None:
        for one in self._callbacks:
            with _named(one, run, f"after step {entry['step']}"):
                one.on_step(run, entry)

    def on_evaluate(self, run: Run, entry: Mapping[str, Any]) -> None:
        for one in self._callbacks:
            with _named(one, run, f"after the evaluation of step {entry['step']}"):
                one.on_evaluate(run, entry)

    def on_checkpoint(self, run: Run, path: Path, step: int) -> None:
        for one in self._callbacks:
            with _named(one, run, f"after the checkpoint of step {step}"):
                one.on_checkpoint(run, path, step)


@contextmanager
def _named(callback: Callback, run: Run, when: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RunError(
            f"The callback {callback} failed {when}: {type(error).__name__}: {error}",
            where=str(run.path),
            fix=f"mend it and visiontune.resume({str(run.path)!r}, callbacks=[...]), or go on without: "
            f"{command('resume', run.path)}; the last checkpoint is sound",
        ) from error


def refuse_others(callbacks: Sequence[object]) -> None:
    """Raise RecipeError for what is no callback."""
    for one in callbacks:
        if not isinstance(one, Callback):
            raise RecipeError(
                f"{one!r} is not a callback.",
                where="callbacks",
                fix="give objects of a subclass of visiontune.Callback",
            )

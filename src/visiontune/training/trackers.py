"""Trackers beside metrics.jsonl (TensorBoard, W&B, trackio): Accelerate's classes, each fed by a callback."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any
from uuid import uuid4

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from visiontune.errors import MachineError
from visiontune.files import write_json
from visiontune.progress import warn
from visiontune.recipe import Recipe
from visiontune.recipe_sections import Tracking
from visiontune.run import Run
from visiontune.training.callbacks import Callback
from visiontune.words import command

IDS = "tracking/ids.json"  # tracker -> the id of this run there, so that a resumed run goes on in it


def refuse_missing(tracking: Tracking) -> None:
    """Raise MachineError for a tracker whose package is not installed."""
    for name in tracking.trackers:
        if importlib.util.find_spec(name) is None:
            raise MachineError(
                f"The package {name} is missing.", where="tracking.trackers", fix=f"pip install 'visiontune[{name}]'"
            )


@contextmanager
def tracked(run: Run, recipe: Recipe, step: int) -> Iterator[list[Callback]]:
    """The trackers that the recipe names, for a run that goes on from `step`; they are closed whatever happens.

    Raises MachineError for one that does not start.
    """
    with ExitStack() as started:
        yield [started.enter_context(_started(name, run, recipe, step)) for name in recipe.tracking.trackers]


@contextmanager
def _started(name: str, run: Run, recipe: Recipe, step: int) -> Iterator[Callback]:
    ids = run.read_json(IDS) or {}
    known = name in ids
    ids.setdefault(name, uuid4().hex[:12])
    tracker = _tracker(name, run, recipe.tracking.project, ids[name], step)
    try:
        with redirect_stdout(sys.stderr):  # trackio speaks on standard output, where --json has its one object
            tracker.start()
            if not known:
                tracker.store_init_configuration(_hyperparameters(recipe))
    except Exception as error:
        raise MachineError(
            f"The tracker {name} did not start: {type(error).__name__}: {error}",
            where="tracking.trackers",
            fix=f"log in as {name} asks, or take it out of {run.recipe_path}; then {command('resume', run.path)}",
        ) from error
    write_json(run.path / IDS, ids)
    feed = TrackerFeed(name, tracker, step)
    try:
        yield feed
    finally:
        try:
            with redirect_stdout(sys.stderr):
                feed.close(run)
        except Exception as error:  # what the run itself came to is more than this
            warn(f"the tracker {name} could not be closed: {type(error).__name__}: {error}")


def _tracker(name: str, run: Run, project: str, run_id: str, step: int) -> GeneralTracker:
    folder = run.path / "tracking"
    folder.mkdir(exist_ok=True)
    title = f"{run.path.resolve().name}-{run_id[:4]}"
    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", folder, purge_step=step + 1)  # steps that come again replace these
    if name == "wandb":
        return WandBTracker(
            project, dir=str(folder), id=run_id, name=title, resume="allow", settings={"console": "off"}
        )
    return TrackioTracker(project, name=f"{title}{run_id[4:]}", resume="allow")  # it knows runs by their names


class TrackerFeed(Callback):
    """Hands the numbers of steps and evaluations to a tracker."""

    def __init__(self, name: str, tracker: GeneralTracker, step: int) -> None:
        self._name = name
        self._tracker = tracker
        self._step = step

    def __str__(self) -> str:
        return self._name

    def on_step(self, run: Run, entry: Mapping[str, Any]) -> None:
        self._step = entry["step"]
        seconds = {f"seconds/{part}": spent for part, spent in entry["seconds"].items()}
        self._log({name: value for name, value in entry.items() if name not in ("step", "attempt")} | seconds)

    def on_evaluate(self, run: Run, entry: Mapping[str, Any]) -> None:
        split = entry["split"]
        values = {f"{split}/{name}": metric["value"] for name, metric in entry["metrics"].items()}
        for end in ("low", "high"):
            values |= {f"{split}/{name}_{end}": metric[end] for name, metric in entry["metrics"].items()}
        self._log(values)

    def _log(self, values: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        self._tracker.log(numbers, step=self._step)

    def close(self, run: Run) -> None:
        """Say what became of the receipts so far, and close the tracker."""
        statuses = {f"receipts/{one['name'].replace(' ', '_')}": one["status"] for one in run.receipts}
        self._tracker.log(statuses, step=self._step)
        if self._name == "trackio":
            # Accelerate's tracker would leave this run the current one; at exit trackio would end it again, aloud.
            importlib.import_module("trackio").finish()
        else:
            self._tracker.finish()


def _hyperparameters(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """The fields of the recipe as `section.field`; what is no plain value as JSON."""
    found: dict[str, Any] = {}
    for section, value in recipe.model_dump(mode="json", exclude={"why", "tracking"}).items():
        found |= (
            {f"{section}.{name}": inner for name, inner in value.items()}
            if isinstance(value, dict)
            else {section: value}
        )
    return {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in found.items()}

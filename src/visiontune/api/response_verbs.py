"""What `train`, `evaluate` and `predict` do about responses of neurons."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visiontune.errors import DataError, RecipeError
from visiontune.files import write_arrays
from visiontune.progress import note

if TYPE_CHECKING:
    from visiontune.api.data_verbs import Source
    from visiontune.data.dataset import Dataset
    from visiontune.machine import Hardware
    from visiontune.metrics.response_scores import ResponseScores
    from visiontune.recipe import Recipe
    from visiontune.run import Run
    from visiontune.training.ranks import Ranks


def recordings_of(data: Sequence[Source], folder: Path) -> list[Dataset] | None:
    """The sessions at these places, one dataset each, prepared inside `folder` where they are not yet; None where no
    place holds recordings. Raises DataError where only some do."""
    from visiontune.data.dataset import Dataset
    from visiontune.data.recordings.prepare import holds_recordings, prepare_recordings, prepared

    others = [source for source in data if not holds_recordings(Path(source))]
    if len(others) == len(data):
        return None
    if others:
        raise DataError(
            "Some of the data are recordings, and this is none.",
            where=str(others[0]),
            fix="train on one kind of target at a time",
        )
    found: list[Path] = []
    for number, path in enumerate(map(Path, data)):
        apart = folder if len(data) == 1 else folder / f"{number}-{path.stem}"
        found += prepared(path).values() or prepare_recordings(path, apart)
    return [Dataset.open(path) for path in found]


def plan_responses(
    run: Run,
    datasets: Sequence[Dataset],
    shares: Sequence[float | None],
    machine: Hardware,
    fragments: Sequence[dict[str, Any]],
    changes: dict[str, Any],
    *,
    start: Source | None,
    **options: Any,
) -> None:
    """Write the run folder: a new core for these sessions, or their readouts on the core of `start`, a run or a
    Lightning checkpoint."""
    from visiontune.models.cortex_lightning import read_lightning
    from visiontune.run import Run
    from visiontune.training.import_core import is_checkpoint
    from visiontune.training.plan import plan_run
    from visiontune.training.plan_responses import derive_responses

    given: dict[str, Any] = {}
    for fragment in fragments:
        given |= fragment.get("responses") or {}
    given |= {n.removeprefix("responses."): v for n, v in changes.items() if n.startswith("responses.")}
    source = None if start is None else read_lightning(Path(start)) if is_checkpoint(start) else Run(start)
    recipe = derive_responses(datasets, shares, machine, start=source, given=given, **options)
    for fragment in fragments:
        recipe = recipe.overlaid(fragment)
    plan_run(run, recipe.changed(changes), datasets)


def evaluate_responses(
    run: Run, recipe: Recipe, split: str, ranks: Ranks, limit: int | None, step: int | None
) -> ResponseScores:
    """Predict a split and score it."""
    from visiontune.models.cortex import predicts_responses
    from visiontune.training.evaluate_responses import evaluate_split_of_responses, predict_split_of_responses
    from visiontune.training.model import load_trained, open_datasets

    started = time.monotonic()
    loaded, at = load_trained(run, recipe, ranks.device, step)
    adapter, datasets = predicts_responses(loaded), open_datasets(recipe)
    sessions = predict_split_of_responses(adapter, datasets, split, recipe, ranks, limit=limit, show=True)
    return evaluate_split_of_responses(run, sessions, split, ranks, at, started)


def predict_rates(
    run: Run,
    recipe: Recipe,
    movies: Sequence[Path],
    ranks: Ranks,
    step: int | None,
    out: Path | None,
    session: str | None,
) -> list[Path]:
    """The rates of units in movies, (frames, height, width) arrays in .npy files; returns the .npz files written.

    `session` picks whose units; of a run of one session its own. Raises DataError, and RecipeError where one is to be
    picked.
    """
    import numpy as np

    from visiontune.models.cortex import predicts_responses
    from visiontune.training.evaluate_responses import predict_movie
    from visiontune.training.model import load_trained

    adapter = predicts_responses(load_trained(run, recipe, ranks.device, step)[0])
    names = adapter.cortex.config.sessions
    if session is None and len(names) > 1:
        raise RecipeError(
            f"The run has {len(names)} sessions.", where="--session", fix=f"pick one: {', '.join(names[:10])}"
        )
    if out is not None and len(movies) > 1:
        raise RecipeError("One file is to be written, and several movies are given.", where="--out", fix="leave it out")
    written = []
    for path in movies:
        try:
            movie = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise DataError(f"This is no array: {error}", where=str(path), fix="save it with numpy.save") from error
        units, rates = predict_movie(adapter, movie, session or next(iter(names)), recipe, ranks.device, str(path))
        target = out or run.path / "predictions" / f"{path.stem}.npz"
        write_arrays(target, {"rates": rates, "units": np.array(units)})
        note(f"rates of {len(units)} units in {len(rates)} bins: {target}")
        written.append(target)
    return written

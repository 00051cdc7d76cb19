"""What `train`, `evaluate` and `predict` do about responses of neurons."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visiontune.errors import DataError, RecipeError
from visiontune.files import write_arrays
from visiontune.progress import note, warn
from visiontune.words import counted

if TYPE_CHECKING:
    from visiontune.api.data_verbs import Source
    from visiontune.data.dataset import Dataset
    from visiontune.machine import Hardware
    from visiontune.metrics.response_scores import ResponseScores
    from visiontune.recipe import Recipe
    from visiontune.run import Run
    from visiontune.training.ranks import Ranks


def recordings_of(data: Sequence[Source], folder: Path) -> list[Dataset] | None:
    """The sessions at these places, one dataset each, in their order; None where no place holds recordings.

    Those that are not prepared yet are prepared inside `folder`, all together, so that frames that several of them or a
    prepared one show get one split. Of a folder that holds prepared ones those alone are taken, which is said where
    others lie beside them. Raises DataError where only some places hold recordings.
    """
    from visiontune.data.dataset import Dataset
    from visiontune.data.recordings.prepare import (
        holds_recordings,
        prepare_recordings,
        prepared,
        unprepared,
        warn_of_leaks,
    )
    from visiontune.data.recordings.readers import sessions

    others = [source for source in data if not holds_recordings(Path(source))]
    if len(others) == len(data):
        return None
    if others:
        raise DataError(
            "Some of the data are recordings, and this is none.",
            where=str(others[0]),
            fix="train on one kind of target at a time",
        )
    standing = {path: list(prepared(path).values()) for path in map(Path, data)}
    raw = [path for path in map(Path, data) if not standing[path]]
    before = [path for paths in standing.values() for path in paths]
    made = {path.name: path for path in prepare_recordings(raw, folder, beside=before)} if raw else {}
    if not raw:
        warn_of_leaks(before)
    for path in map(Path, data):
        if beside := [name for name in unprepared(path) if name not in made]:
            warn(f"sessions beside the prepared ones in {path} are not read, name them too: {', '.join(beside)}")
    found = [standing[path] or [made[name] for name in sessions(path)] for path in map(Path, data)]
    return [Dataset.open(path) for paths in found for path in paths]


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
    from visiontune.recipe import leaves
    from visiontune.run import Run
    from visiontune.training.import_core import is_checkpoint
    from visiontune.training.plan import plan_run
    from visiontune.training.plan_responses import derive_responses
    from visiontune.training.refusals import refuse_idle

    given: dict[str, Any] = {}
    for fragment in fragments:
        given |= fragment.get("responses") or {}
    given |= {n.removeprefix("responses."): v for n, v in changes.items() if n.startswith("responses.")}
    source = None if start is None else read_lightning(Path(start)) if is_checkpoint(start) else Run(start)
    asked = dict(leaf for one in (*fragments, changes) for leaf in leaves(one))
    recipe = derive_responses(datasets, shares, machine, start=source, given=given, asked=asked, **options)
    for fragment in fragments:
        recipe = recipe.overlaid(fragment)
    recipe = recipe.changed(changes)
    refuse_idle([recipe], changes)
    plan_run(run, recipe, datasets)


def evaluate_responses(
    run: Run, recipe: Recipe, split: str, ranks: Ranks, limit: int | None, step: int | None
) -> ResponseScores:
    """Predict a split and score it."""
    from visiontune.models.cortex import predicts_responses
    from visiontune.training.evaluate_responses import (
        evaluate_split_of_responses,
        left_out_bins,
        predict_split_of_responses,
    )
    from visiontune.training.model import load_trained, open_datasets

    started = time.monotonic()
    loaded, at = load_trained(run, recipe, ranks.device, step)
    adapter, datasets = predicts_responses(loaded), open_datasets(recipe)
    sessions = predict_split_of_responses(adapter, datasets, split, recipe, ranks, limit=limit, show=True)
    return evaluate_split_of_responses(run, sessions, split, ranks, at, started, left_out_bins(datasets, split))


def predict_rates(
    run: Run,
    recipe: Recipe,
    movies: Sequence[Path],
    ranks: Ranks,
    step: int | None,
    out: Path | None,
    session: str | None,
) -> list[Path]:
    """The rates of units in movies, .npy files of (frames, height, width) or folders of them; returns the .npz files
    written: `out`, or in RUN/predictions one named as the movie, of several sessions in a folder named as its session.

    `session` picks whose units; of a run of one session its own. Raises DataError, and RecipeError where one is to be
    picked.
    """
    import numpy as np

    from visiontune.data.recordings.movies import movie_files, open_movie
    from visiontune.models.cortex import predicts_responses
    from visiontune.training.evaluate_responses import predict_movie
    from visiontune.training.model import load_trained

    adapter = predicts_responses(load_trained(run, recipe, ranks.device, step)[0])
    config, files = adapter.cortex.config, movie_files(movies)
    names = config.sessions
    if session is None and len(names) > 1:
        raise RecipeError(
            f"The run has {len(names)} sessions.", where="--session", fix=f"pick one: {', '.join(names[:10])}"
        )
    if out is not None and len(files) > 1:
        raise RecipeError("One file is to be written, and several movies are given.", where="--out", fix="leave it out")
    if out is not None and out.is_dir():
        raise RecipeError("This is a folder; one file is to be written.", where=str(out), fix=f"--out {out}/rates.npz")
    session = session or next(iter(names))
    folder = run.path / "predictions"
    folder = folder if len(names) == 1 else folder / session
    written = []
    for path in files:
        movie = open_movie(path, (config.height, config.width))
        units, rates = predict_movie(adapter, movie, session, recipe, ranks.device, str(path))
        target = out or folder / f"{path.stem}.npz"
        write_arrays(target, {"rates": rates, "units": np.array(units)})
        note(f"rates of {counted(len(units), 'unit')} in {counted(len(rates), 'bin')}: {target}")
        written.append(target)
    return written

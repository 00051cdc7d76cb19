"""Responses predicted for a split or for a movie, and their scores."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visiontune.data.dataset import Dataset
from visiontune.data.recordings.clips import ClipDataset, cut_into_clips, recorded
from visiontune.data.responses import Clip, Responses, session_of
from visiontune.data.sample import Sample
from visiontune.errors import DataError
from visiontune.files import write_arrays, write_json
from visiontune.metrics.predicted_session import PredictedSession, assemble
from visiontune.metrics.response_scores import ResponseScores, score_responses
from visiontune.models.cortex import CortexAdapter
from visiontune.progress import note, progress, warn
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.precision import autocast
from visiontune.training.ranks import Ranks
from visiontune.training.rows import split_batches


def predict_split_of_responses(
    adapter: CortexAdapter,
    datasets: Sequence[Dataset],
    split: str,
    recipe: Recipe,
    ranks: Ranks,
    *,
    limit: int | None = None,
    rows: int | None = None,
    show: bool = False,
) -> tuple[PredictedSession, ...]:
    """The rates of every session's units in the bins that count, whole sessions on every rank.

    `limit` takes so many clips, from all sessions in turn; `rows` takes the first clips of each.
    """
    indexes = [dataset.index(split) for dataset in datasets]
    how: dict[str, Any] = {"with_answer": True, "limit": limit, "rows": rows}
    total, batches = split_batches(adapter.encoder, datasets, indexes, split, recipe, ranks, **how)
    pieces: list[PredictedSession] = []
    adapter.trained_module.eval()
    with progress(f"predicting {split}", total, "clips", show=show and ranks.is_first) as advance:
        for batch in batches:
            with torch.no_grad(), autocast(ranks.device, recipe.machine.precision):
                rates = adapter.rates(batch.to(ranks.device)).double().cpu().numpy()
            counts, valid = batch.tensors["counts"].numpy(), batch.tensors["valid"].numpy()
            pieces += [
                _piece(recorded(datasets[d]), split, i, rates[place], counts[place], valid[place])
                for place, (d, i, _) in enumerate(batch.origins)
            ]
            advance(len(rates))
    return assemble(ranks.gathered(pieces))


def _piece(
    dataset: ClipDataset, split: str, i: int, rates: NDArray[Any], counts: NDArray[Any], valid: NDArray[np.bool_]
) -> PredictedSession:
    """The bins of one clip in which some unit counts; arrays are (bins, units or more)."""
    n, where = len(dataset.units), dataset.where(split, i)
    kept = np.flatnonzero(valid[:, :n].any(axis=1))
    return PredictedSession(
        name=dataset.recording.name,
        units=dataset.units,
        rates=rates[kept, :n].astype(np.float64),
        counts=counts[kept, :n].astype(np.float64),
        valid=valid[kept, :n],
        trials=np.full(len(kept), where.trial),
        conditions=np.full(len(kept), where.condition),
        places=where.place + kept,
    )


def evaluate_split_of_responses(
    run: Run,
    sessions: Sequence[PredictedSession],
    split: str,
    ranks: Ranks,
    step: int,
    started: float,
    left_out: int = 0,
) -> ResponseScores:
    """Score a split's predictions, and write evaluations/SPLIT/{metrics.json, SESSION.npz}.

    `left_out` bins of the split stand in trials no longer than the burn-in and have no prediction (`left_out_bins`).
    Each SESSION.npz holds the arrays of its `PredictedSession`: rates, counts, valid, trials, conditions, places.
    """
    scores = score_responses(sessions)
    if ranks.is_first:
        folder = run.path / "evaluations" / split
        for one in sessions:
            arrays = {name: getattr(one, name) for name in ("trials", "conditions", "places", "valid")}
            arrays |= {"rates": one.rates.astype(np.float32), "counts": one.counts.astype(np.float32)}
            write_arrays(folder / f"{one.name}.npz", {"units": np.array(one.units), **arrays})
        for other in set(folder.glob("*.npz")) - {folder / f"{one.name}.npz" for one in sessions}:
            other.unlink()  # of an earlier evaluation, of more sessions
        facts: dict[str, Any] = {"split": split, "step": step, "left_out_bins": left_out}
        facts["seconds"] = round(time.monotonic() - started, 3)
        write_json(folder / "metrics.json", {**scores.to_json(), **facts})
        bins = sum(len(one.trials) for one in sessions)
        if left_out:
            warn(f"{left_out} {split} bins stand in trials no longer than the burn-in: they are not scored")
        note(f"evaluation of {len(scores.per_unit)} units in {bins} {split} bins: {folder}")
    return scores


def left_out_bins(datasets: Sequence[Dataset], split: str) -> int:
    """The bins of a split that no clip predicts, for their trials are no longer than the burn-in."""
    return sum(recorded(dataset).left_out_bins(split) for dataset in datasets)


def predict_movie(
    adapter: CortexAdapter, movie: NDArray[Any], session: str, recipe: Recipe, device: torch.device, where: str
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """What the units of a session would do in a movie: their keys, and (frames, units) float32, spikes a bin.

    movie: (frames, height, width), as the session's stimulus was recorded, one frame a bin. Behaviour is held at its
    mean. The first `responses.burn_in` bins have no prediction and are NaN; it is cut into clips as a trial of a
    recording is. Raises DataError for a movie of another size or a session that the model has not.
    """
    choices, config = adapter.choices, adapter.cortex.config
    units = tuple(key for key in config.units if session_of(key) == session)
    if not units:
        raise DataError(
            f"The model has no session '{session}'.", where=where, fix=f"sessions: {', '.join(config.sessions)}"
        )
    if len(movie) <= choices.burn_in:
        raise DataError(
            f"The movie has {len(movie)} frames, and the first {choices.burn_in} of a movie are only seen.",
            where=where,
            fix="show a longer one",
        )
    rates = np.full((len(movie), len(units)), np.nan, np.float32)
    adapter.trained_module.eval()
    clips = cut_into_clips(len(movie), choices.clip, choices.burn_in)
    with progress("predicting", len(clips), "clips") as advance:
        for first, covered in clips:
            start = first + choices.burn_in
            shown = movie[first : start + choices.clip]
            missing = choices.burn_in + choices.clip - len(shown)
            frames = np.concatenate([shown, np.repeat(shown[-1:], missing, axis=0)])
            behaviour = np.zeros((len(frames), config.behaviour), np.float32) if config.behaviour else None
            nothing = np.zeros((choices.clip, len(units)), np.float32)
            asked = Responses(nothing, np.ones_like(nothing, bool), units, start)
            sample = Sample(f"{where}/{start}", Clip(frames, choices.burn_in, behaviour), asked)
            batch = adapter.encoder.collate([adapter.encoder.encode(sample, with_answer=False)])
            with torch.no_grad(), autocast(device, recipe.machine.precision):
                made = adapter.rates(batch.to(device))[0].float().cpu().numpy()
            rates[start + covered : start + choices.clip] = made[covered : choices.clip - missing]
            advance(1)
    return units, rates

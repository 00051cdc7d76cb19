"""Responses predicted for a split or for a movie, and their scores."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visiontune.data.dataset import Dataset
from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.responses import Clip, Responses
from visiontune.data.sample import Sample
from visiontune.errors import DataError
from visiontune.files import write_json, written_whole
from visiontune.metrics.response_scores import PredictedSession, ResponseScores, assemble, score_responses
from visiontune.models.cortex import CortexAdapter
from visiontune.progress import note, progress
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.batches import MicroBatch, Reading, load_steps
from visiontune.training.precision import autocast
from visiontune.training.ranks import Ranks
from visiontune.training.rows import batched, first_rows


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
    refs = [(d, i, 0) for d, i in sorted(first_rows(datasets, split, limit=limit, rows=rows))]
    frames = recipe.batch.tokens
    length = adapter.choices.burn_in + adapter.choices.clip
    batches = batched(refs, [length] * len(refs), frames)
    own = [[MicroBatch(0, 0, tuple(batch))] for batch in batches[ranks.rank :: ranks.count]]
    reading = Reading(datasets, adapter.encoder, split)
    workers = recipe.machine.workers if len(own) > 4 else 0
    pieces: list[PredictedSession] = []
    adapter.trained_module.eval()
    total = sum(len(step[0].samples) for step in own)
    with progress(f"predicting {split}", total, "clips", show=show and ranks.is_first) as advance:
        for _, loaded in load_steps(own, reading, workers=workers):
            for _, batch in loaded:
                with torch.no_grad(), autocast(ranks.device, recipe.machine.precision):
                    rates = adapter.rates(batch.to(ranks.device)).double().cpu().numpy()
                counts, valid = batch.tensors["counts"].numpy(), batch.tensors["valid"].numpy()
                pieces += [
                    _piece(_recorded(datasets[d]), split, i, rates[place], counts[place], valid[place])
                    for place, (d, i, _) in enumerate(batch.origins)
                ]
                advance(len(rates))
    return assemble(ranks.gathered(pieces))


def _recorded(dataset: Dataset) -> ClipDataset:
    if not isinstance(dataset, ClipDataset):
        raise DataError("This dataset holds no recording.", where=str(dataset.path), fix="prepare recordings")
    return dataset


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
) -> ResponseScores:
    """Score a split's predictions, and write evaluations/SPLIT/{metrics.json, SESSION.npz}.

    Each SESSION.npz holds the arrays of its `PredictedSession`: rates, counts, valid, trials, conditions, places.
    """
    scores = score_responses(sessions)
    if ranks.is_first:
        folder = run.path / "evaluations" / split
        for one in sessions:
            with written_whole(folder / f"{one.name}.npz") as aside, aside.open("wb") as file:
                arrays = {name: getattr(one, name) for name in ("trials", "conditions", "places", "valid")}
                single = {"rates": one.rates.astype(np.float32), "counts": one.counts.astype(np.float32)}
                np.savez_compressed(file, units=np.array(one.units), **single, **arrays)
        facts = {"split": split, "step": step, "seconds": round(time.monotonic() - started, 3)}
        write_json(folder / "metrics.json", {**scores.to_json(), **facts})
        bins = sum(len(one.trials) for one in sessions)
        note(f"evaluation of {len(scores.per_unit)} units in {bins} {split} bins: {folder}")
    return scores


def predict_movie(
    adapter: CortexAdapter, movie: NDArray[Any], session: str, recipe: Recipe, device: torch.device, where: str
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """What the units of a session would do in a movie: their keys, and (frames, units) float32, spikes a bin.

    movie: (frames, height, width), as the session's stimulus was recorded, one frame a bin. Behaviour is held at its
    mean. The first `responses.burn_in` bins have no prediction and are NaN. Raises DataError for a movie of another
    size or a session that the model has not.
    """
    choices, config = adapter.choices, adapter.cortex.config
    units = tuple(key for key in config.units if key.rpartition("/")[0] == session)
    if not units:
        raise DataError(
            f"The model has no session '{session}'.", where=where, fix=f"sessions: {', '.join(config.sessions)}"
        )
    if movie.ndim != 3 or len(movie) <= choices.burn_in:
        raise DataError(
            f"The movie has the shape {movie.shape}.",
            where=where,
            fix=f"(frames, height, width), with more than {choices.burn_in} frames: those before are only seen",
        )
    rates = np.full((len(movie), len(units)), np.nan, np.float32)
    adapter.trained_module.eval()
    starts = range(choices.burn_in, len(movie), choices.clip)
    with progress("predicting", len(starts), "clips") as advance:
        for start in starts:
            shown = movie[start - choices.burn_in : start + choices.clip]
            missing = choices.burn_in + choices.clip - len(shown)
            frames = np.concatenate([shown, np.repeat(shown[-1:], missing, axis=0)])
            behaviour = np.zeros((len(frames), config.behaviour), np.float32) if config.behaviour else None
            nothing = np.zeros((choices.clip, len(units)), np.float32)
            asked = Responses(nothing, np.ones_like(nothing, bool), units, start)
            sample = Sample(f"{where}/{start}", Clip(frames, choices.burn_in, behaviour), asked)
            batch = adapter.encoder.collate([adapter.encoder.encode(sample, with_answer=False)])
            with torch.no_grad(), autocast(device, recipe.machine.precision):
                made = adapter.rates(batch.to(device))[0].float().cpu().numpy()
            rates[start : start + choices.clip] = made[: choices.clip - missing]
            advance(1)
    return units, rates


def write_rates(path: Path, units: Sequence[str], rates: NDArray[np.float32]) -> None:
    """Write `rates` (frames, units) and `units` as one .npz, whole."""
    with written_whole(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, rates=rates, units=np.array(list(units)))

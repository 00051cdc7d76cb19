"""What makes a unit fire: its spike-triggered average, its gradient field, and the film that excites it most.

All three are films of the frames that a bin's rate depends on through the filters: (lags, height, width), lag 0 first,
which is the bin's own frame, and lag `memory` last. Brightness is in standard deviations of the session's training
frames, zero is their mean.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visiontune.data.dataset import Dataset
from visiontune.data.order import key
from visiontune.data.recordings.clips import ClipDataset, recorded
from visiontune.errors import DataError
from visiontune.files import write_arrays, write_json
from visiontune.models.cortex import CortexAdapter, clip_of, responses_of
from visiontune.progress import note
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.precision import autocast

MOST_UNITS = 12
CLIPS = 32  # of each session, for the gradient fields
STEPS = 32  # of the ascent to the most exciting film
LONGEST_STEP = 0.5  # of the ascent, in root mean squares of the film
START = 0.05  # the same, of the noise that it starts from
PRODUCTS = 2e10  # multiplications that the averages of a session may take: some seconds on one core
LEAST_RATE = 1e-30  # spikes a bin; the logarithm of a rate is climbed, and stays finite

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Fields:
    """Fields of units; every film is (units, lags, height, width) float32.

    average: the mean of the training stimulus before the unit's spikes, minus its mean before all valid bins; NaN for a
    unit without a spike. It is not corrected for the stimulus' own correlations. gradient: by how many spikes a bin the
    predicted rate rises as a pixel becomes one standard deviation brighter, averaged over training clips. exciting: the
    film with the highest predicted rate that was found among those whose root mean square is one, as training frames
    have, after frames of mean brightness; behaviour is at its mean. Its pixels may leave the range of a screen.

    mean_rates (of the training data) and exciting_rates: (units,) float64, spikes a bin. spikes: (units,) float64, how
    many the averages hold.
    """

    units: tuple[str, ...]
    average: Floats
    gradient: Floats
    exciting: Floats
    mean_rates: NDArray[np.float64]
    exciting_rates: NDArray[np.float64]
    spikes: NDArray[np.float64]


@dataclass(frozen=True)
class _Asked:
    """The units that are asked for of one session: `rows` in the result, `columns` in the session."""

    dataset: ClipDataset
    rows: list[int]
    columns: list[int]

    def samples(self, most: int, limit: int | None) -> list[int]:
        """At most so many training clips, evenly spread over those that the run takes."""
        count = min(self.dataset.count("train"), limit or self.dataset.count("train"))
        return sorted(set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()))


def receptive_fields(
    adapter: CortexAdapter,
    datasets: Sequence[Dataset],
    recipe: Recipe,
    device: torch.device,
    units: Sequence[str],
    clips: int = CLIPS,
) -> Fields:
    """The fields of some units, by their keys. The same arguments give the same fields.

    `clips` training clips of each session are taken for the gradient fields, of each its first predicted bin; for the
    spike-triggered averages all of them, or as many as can be multiplied in some seconds. Raises DataError for a unit
    that no dataset has, or a session without training clips.
    """
    asked = _asked(datasets, units)
    shape = (len(units), adapter.cortex.memory + 1, adapter.cortex.config.height, adapter.cortex.config.width)
    average, gradient = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    means, spikes = np.zeros(len(units)), np.zeros(len(units))
    adapter.trained_module.eval()
    limit = recipe.data.limit
    for one in asked:
        cost = 2 * len(one.rows) * shape[1] * shape[2] * shape[3] * one.dataset.clip
        average[one.rows], spikes[one.rows] = _averages(one, shape[1], one.samples(max(1, int(PRODUCTS / cost)), limit))
        gradient[one.rows] = _gradients(adapter, one, shape[1], one.samples(clips, limit), recipe, device)
        means[one.rows] = np.array(one.dataset.recording.mean_counts)[one.columns]
    exciting, rates = _exciting(adapter, asked, len(units), recipe, device)
    return Fields(tuple(units), average, gradient, exciting, means, rates, spikes)


def write_fields(
    run: Run,
    adapter: CortexAdapter,
    datasets: Sequence[Dataset],
    recipe: Recipe,
    device: torch.device,
    step: int,
    *,
    clips: int = CLIPS,
) -> Path:
    """Write the fields of at most 12 units to evaluations/fields.npz, and what is said of them to fields.json beside.

    The units are those with the most bits per spike on the validation split, from all sessions in turn; where that was
    not evaluated, those with the most spikes. The arrays of fields.npz have the names in Fields. Returns its path.
    """
    started = time.monotonic()
    scores = run.read_json("evaluations/validation/metrics.json")
    fields = receptive_fields(adapter, datasets, recipe, device, best_units(datasets, scores), clips)
    path = run.path / "evaluations" / "fields.npz"
    films = {name: getattr(fields, name) for name in ("average", "gradient", "exciting")}
    write_arrays(path, {"units": np.array(fields.units), **films})
    said = [
        {
            "unit": unit,
            "mean_rate": round(float(fields.mean_rates[u]), 6),
            "exciting_rate": round(float(fields.exciting_rates[u]), 6),
            "spikes": float(fields.spikes[u]),
        }
        for u, unit in enumerate(fields.units)
    ]
    seconds = round(time.monotonic() - started, 3)
    facts = {"step": step, "lags": fields.average.shape[1], "clips": clips, "seconds": seconds}
    write_json(path.with_suffix(".json"), {**facts, "units": said})
    note(f"receptive fields of {len(said)} units: {path}")
    return path


def best_units(datasets: Sequence[Dataset], scores: Mapping[str, Any] | None, most: int = MOST_UNITS) -> list[str]:
    """The keys of at most `most` units: each session's best, then each session's second, and so on.

    scores: what metrics.json of an evaluation says; units without bits per spike there come last. None: those with the
    most spikes a bin in the training data come first.
    """
    bits: dict[str, float | None] = {}
    if scores is not None:
        bits = {one["unit"]: one["bits_per_spike"]["value"] for one in scores["per_unit"]}
    ranked = []
    for dataset in map(recorded, datasets):
        rates = dict(zip(dataset.units, dataset.recording.mean_counts, strict=True))
        worth = {unit: rates[unit] if scores is None else bits.get(unit) for unit in dataset.units}
        order = sorted(worth, key=lambda unit: -np.inf if (value := worth[unit]) is None else value, reverse=True)
        ranked.append([(place, unit, worth[unit]) for place, unit in enumerate(order[:most])])
    turns = sorted(
        (entry for session in ranked for entry in session),
        key=lambda entry: (entry[0], np.inf if entry[2] is None else -entry[2], entry[1]),
    )
    return [unit for _, unit, _ in turns[:most]]


def _asked(datasets: Sequence[Dataset], units: Sequence[str]) -> list[_Asked]:
    asked, found = [], set()
    for dataset in map(recorded, datasets):
        columns = {unit: column for column, unit in enumerate(dataset.units)}
        rows = [row for row, unit in enumerate(units) if unit in columns]
        found |= {units[row] for row in rows}
        if rows and not dataset.count("train"):
            raise DataError("This session has no training clips.", where=str(dataset.path), fix="ask for other units")
        if rows:
            asked.append(_Asked(dataset, rows, [columns[units[row]] for row in rows]))
    if missing := [unit for unit in units if unit not in found]:
        raise DataError(
            f"No dataset has a unit {missing[0]}, and {len(missing) - 1} more.", fix="name units session/unit"
        )
    return asked


def _averages(one: _Asked, lags: int, clips: Sequence[int]) -> tuple[Floats, NDArray[np.float64]]:
    """Spike-triggered averages (units, lags, height, width) and the numbers of spikes in them (units,)."""
    dataset, n = one.dataset, len(one.columns)
    mean, std = dataset.recording.stimulus_mean, dataset.recording.stimulus_std or 1.0
    height, width = dataset.recording.height, dataset.recording.width
    sums = np.zeros((2 * n, lags, height * width))  # of frames before spikes, and before valid bins
    weights = np.zeros(2 * n)
    for i in clips:
        sample = dataset.sample("train", i)
        clip, target = clip_of(sample), responses_of(sample)
        valid = target.valid[:, one.columns]
        if not valid.any():
            continue
        spikes = np.where(valid, target.counts[:, one.columns], 0)
        both = np.concatenate([spikes, valid], axis=1).astype(np.float32).T
        weights += both.sum(axis=1, dtype=np.float64)
        frames = (clip.frames.reshape(len(clip.frames), -1) - np.float32(mean)) / np.float32(std)
        for lag in range(lags):
            first = clip.burn_in - lag
            sums[:, lag] += both @ frames[first : first + len(valid)]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / weights[:, None, None]
    average = (means[:n] - means[n:]).reshape(n, lags, height, width)
    return average.astype(np.float32), weights[:n]


def _gradients(
    adapter: CortexAdapter, one: _Asked, lags: int, clips: Sequence[int], recipe: Recipe, device: torch.device
) -> Floats:
    """The mean gradients of the rates in the first predicted bin of clips: (units, lags, height, width)."""
    encoder, dataset = adapter.encoder, one.dataset
    frames_seen = adapter.choices.burn_in + 1
    at_once = max(1, recipe.batch.tokens // frames_seen)
    total: Any = 0.0
    for start in range(0, len(clips), at_once):
        encoded = [encoder.encode(dataset.sample("train", i)) for i in clips[start : start + at_once]]
        batch = encoder.collate(encoded).to(device)
        behaviour = batch.tensors.get("behaviour")
        frames = batch.tensors["frames"][:, :frames_seen].float().requires_grad_()
        with torch.enable_grad(), autocast(device, recipe.machine.precision):
            rates = _last_rates(
                adapter,
                frames,
                batch.tensors["session"],
                batch.tensors["units"][:, one.columns],
                None if behaviour is None else behaviour[:, :frames_seen],
            )
            found = []
            for column in range(len(one.columns)):  # rates of one bin alone: those of several would mix their lags
                (gradient,) = torch.autograd.grad(rates[:, column].sum(), frames, retain_graph=True)
                found.append(gradient[:, -lags:].flip(1).double().sum(0).cpu())
        total = total + torch.stack(found)
    std = dataset.recording.stimulus_std or 1.0
    return (total.numpy() * (std / len(clips))).astype(np.float32)


def _exciting(
    adapter: CortexAdapter, asked: Sequence[_Asked], units: int, recipe: Recipe, device: torch.device
) -> tuple[Floats, NDArray[np.float64]]:
    """The most exciting films (units, lags, height, width) and their rates (units,), by gradient ascent on the sphere.

    Frames of mean brightness come before the films, as many as the burn-in has more than the filters see.
    """
    cortex, config = adapter.cortex, adapter.cortex.config
    lags = cortex.memory + 1
    known = {unit: row for row, unit in enumerate(config.units)}
    rows, session = torch.zeros(units, 1, dtype=torch.int64), torch.zeros(units, dtype=torch.int64)
    mean, std = torch.zeros(units, 1, 1, 1), torch.ones(units, 1, 1, 1)
    for one in asked:
        recording = one.dataset.recording
        rows[one.rows, 0] = torch.tensor([known[one.dataset.units[column]] for column in one.columns])
        session[one.rows] = config.sessions.index(recording.name)
        mean[one.rows], std[one.rows] = recording.stimulus_mean, recording.stimulus_std or 1.0
    rows, session, mean, std = (tensor.to(device) for tensor in (rows, session, mean, std))
    generator = torch.Generator().manual_seed(key(recipe.seed, 10) >> 1)
    noise = torch.randn(1, lags, config.height, config.width, generator=generator)
    film = START * noise.repeat(units, 1, 1, 1).to(device)
    before = torch.zeros(units, adapter.choices.burn_in + 1 - lags, config.height, config.width, device=device)
    behaviour = None
    if config.behaviour:
        behaviour = torch.zeros(units, before.shape[1] + lags, config.behaviour, device=device)
    best, highest = _projected(film), torch.full((units,), -torch.inf, device=device)
    for step in range(STEPS + 1):
        film.requires_grad_()
        with torch.enable_grad(), autocast(device, recipe.machine.precision):
            shown = torch.cat([before, film], dim=1) * std + mean
            rates = _last_rates(adapter, shown, session, rows, behaviour)[:, 0]
            # The logarithm has the same direction, and one that does not vanish where the rate is small.
            (gradient,) = torch.autograd.grad(rates.clamp_min(LEAST_RATE).log().sum(), film)
        film, rates = film.detach(), rates.detach()
        if step > 0:  # the noise has not the contrast that is asked for
            better = rates > highest
            best, highest = torch.where(better[:, None, None, None], film, best), torch.where(better, rates, highest)
        length = LONGEST_STEP * (1 - step / (STEPS + 1))
        film = _projected(film + length * _projected(gradient))
    return best.flip(1).cpu().numpy().astype(np.float32), highest.double().cpu().numpy()


def _last_rates(
    adapter: CortexAdapter,
    frames: torch.Tensor,
    session: torch.Tensor,
    rows: torch.Tensor,
    behaviour: torch.Tensor | None,
) -> torch.Tensor:
    """The rates in the last bin of clips, (clips, units) float32; arguments as for `Cortex.forward`."""
    features = adapter.cortex.features(frames, session, behaviour)[:, :, -1:]
    return adapter.cortex.rates(features, rows)[:, 0].float()


def _projected(film: torch.Tensor) -> torch.Tensor:
    """Films scaled to a root mean square of one; those of zeros stay."""
    return film / film.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-30)

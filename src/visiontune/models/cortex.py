"""Responses of neurons: clips as tensors, and the network that predicts counts, as the training loop sees it.

The network runs densely over a clip. Its frames before the first predicted bin (the burn-in) fill the memory of its
filters and of its recurrence, and predict nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visiontune.data.dataset import Index
from visiontune.data.responses import Clip, Responses, session_of
from visiontune.data.sample import Sample
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.models.adapter import Batch, Encoder, Features, Layout, ModelAdapter, Supervision
from visiontune.models.cortex_network import PARTS, Cortex, CortexConfig
from visiontune.models.cortex_penalties import PENALTIES
from visiontune.models.parts import Part
from visiontune.recipe import ResponseChoices

LEAST_RATE = 1e-8  # spikes a bin; keeps the logarithm of a rate finite


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """One clip of a session with n units. Arrays are views of the recording where they can be: `collate` copies them.

    frames: (burn_in + bins, height, width), uint8 or float32 as recorded; None where `features` (bins, channels,
    height, width) stand in its place. behaviour: (burn_in + bins, channels) float32. units: (n,) int64, their rows in
    the network's table. counts: (bins, n) float32. valid: (bins, n) bool.
    """

    id: str
    session: int
    units: torch.Tensor
    counts: NDArray[np.float32]
    valid: NDArray[np.bool_]
    frames: NDArray[Any] | None
    behaviour: NDArray[np.float32] | None
    features: torch.Tensor | None = None


class ClipEncoder(Encoder[EncodedClip]):
    """Clips to tensors. Frames stay as they are recorded: they are cast and normalised on the device."""

    def __init__(self, config: CortexConfig, choices: ResponseChoices) -> None:
        self.config = config
        self.choices = choices
        self._rows = {key: row for row, key in enumerate(config.units)}
        self._known: dict[tuple[str, ...], torch.Tensor] = {}
        self._sessions = {name: number for number, name in enumerate(config.sessions)}

    def encode(
        self,
        sample: Sample,
        *,
        with_answer: bool = True,
        augmentation: int | None = None,
        features: Features | None = None,
    ) -> EncodedClip:
        """One clip; without its answer, with counts of zero. Raises DataError for a unit that the network has not, or
        frames of another size."""
        target = responses_of(sample)
        counts = target.counts if with_answer else np.zeros_like(target.counts)
        shown: dict[str, Any] = {"frames": None, "behaviour": None}
        if features is None:
            shown = self._shown(clip_of(sample), sample.id)
        units = self._rows_of(target.units, sample.id)
        return EncodedClip(
            id=sample.id,
            session=self._sessions[session_of(target.units[0])],
            units=units,
            counts=counts,
            valid=target.valid,
            features=None if features is None else features.values,
            **shown,
        )

    def _rows_of(self, units: tuple[str, ...], where: str) -> torch.Tensor:
        """The rows of units in the network's table: (n,) int64; worked out once for each session."""
        if units not in self._known:
            if unknown := [key for key in units if key not in self._rows]:
                raise DataError(
                    f"The model has no unit {unknown[0]}, and {len(unknown) - 1} more.",
                    where=where,
                    fix="fit readouts for them: visiontune train SESSION --from RUN",
                )
            self._known[units] = torch.tensor([self._rows[key] for key in units], dtype=torch.int64)
        return self._known[units]

    def _shown(self, clip: Clip, where: str) -> dict[str, Any]:
        wanted = (self.config.height, self.config.width)
        if clip.frames.shape[1:] != wanted:
            raise DataError(
                f"Frames of {clip.frames.shape[1]} x {clip.frames.shape[2]} pixels; the model sees {wanted[0]} x "
                f"{wanted[1]}.",
                where=where,
                fix="record or resize all sessions to one size",
            )
        behaviour = clip.behaviour
        if self.config.modulation == "none":
            behaviour = None
        elif behaviour is None or behaviour.shape[1] != self.config.behaviour:
            found = 0 if behaviour is None else behaviour.shape[1]
            raise DataError(
                f"{found} channels of behaviour; the model is modulated by {self.config.behaviour}.",
                where=where,
                fix="give every session the same behaviour, or train with --responses.modulation none",
            )
        return {"frames": clip.frames, "behaviour": behaviour}

    def collate(self, encoded: Sequence[EncodedClip], *, pad_left: bool = False) -> Batch:
        """Clips side by side; where sessions have fewer units than others, rows of padding are not valid."""
        most = max(len(one.units) for one in encoded)
        bins = encoded[0].counts.shape[0]
        tensors = {
            "session": torch.tensor([one.session for one in encoded]),
            "units": torch.zeros(len(encoded), most, dtype=torch.int64),
            "counts": torch.zeros(len(encoded), bins, most),
            "valid": torch.zeros(len(encoded), bins, most, dtype=torch.bool),
        }
        counts, valid = tensors["counts"].numpy(), tensors["valid"].numpy()  # views: what is written there is in them
        for place, one in enumerate(encoded):
            n = len(one.units)
            tensors["units"][place, :n] = one.units
            counts[place, :, :n] = one.counts
            valid[place, :, :n] = one.valid
        for name in ("frames", "behaviour"):
            given = [value for one in encoded if (value := getattr(one, name)) is not None]
            if given:
                tensors[name] = torch.from_numpy(np.stack(given))
        kept = [one.features for one in encoded if one.features is not None]
        if kept:
            tensors["core_features"] = torch.stack(kept)
        frames = self.choices.burn_in + bins
        return Batch(
            ids=[one.id for one in encoded],
            tensors=tensors,
            weights={"poisson": float(tensors["valid"].sum())},
            tokens=frames * len(encoded),
            padded_tokens=frames * len(encoded),
            image_tokens=0,
            image_features=0,
            tiles=0,
        )

    def supervision(self, sample: Sample) -> Supervision:
        """The spikes of each unit in the valid bins of a clip, held to the recording's."""
        target = responses_of(sample)
        batch = self.collate([self.encode(sample)])
        counts, valid = batch.tensors["counts"][0].double().numpy(), batch.tensors["valid"][0].numpy()
        learned, recorded = (counts * valid).sum(0), (target.counts.astype(np.float64) * target.valid).sum(0)
        wrong = None
        if learned.shape != recorded.shape or not np.array_equal(learned, recorded):
            wrong = f"{sample.id}: {learned.sum():g} spikes are learned and {recorded.sum():g} were recorded"
        elif [self.config.units[row] for row in batch.tensors["units"][0].tolist()] != list(target.units):
            wrong = f"{sample.id}: the counts are learned by other units than those that they were recorded of"
        shown = {
            "first_bin": target.start,
            "bins": int(valid.any(axis=1).sum()),
            "units": len(target.units),
            "spikes": float(learned.sum()),
        }
        return Supervision(shown, wrong)

    def exchanged(self, sample: Sample, other: Sample) -> EncodedClip:
        """A sample with its own responses, units and behaviour, and the frames of another one."""
        mine, its = clip_of(sample), clip_of(other)
        return self.encode(Sample(sample.id, Clip(its.frames, its.burn_in, mine.behaviour), sample.target))

    def layouts(self, index: Index) -> Iterator[Layout]:
        """One layout for all clips: frames seen, bins predicted."""
        for _ in index.ids:
            yield ((self.choices.burn_in + self.choices.clip, self.choices.clip),)

    def views(self, layout: Layout) -> int:
        """The bins that a clip predicts: each has features of its own."""
        return sum(bins for _, bins in layout)

    def preprocessing(self) -> dict[str, Any]:
        """What stands between recorded frames and the network."""
        config = self.config
        return {
            "mean": config.stimulus_mean,
            "std": config.stimulus_std,
            "clip": self.choices.clip,
            "burn_in": self.choices.burn_in,
        }

    def lengths(self, index: Index) -> NDArray[np.int64]:
        """Frames of each clip; shape (rows,)."""
        return np.full(len(index.ids), self.choices.burn_in + self.choices.clip, np.int64)

    def save(self, folder: Path) -> None:
        """Nothing: all that is done to frames stands in the network's config."""


def clip_of(sample: Sample) -> Clip:
    """The clip that a sample shows; DataError where it shows something else."""
    if not isinstance(sample.seen, Clip):
        raise DataError("The sample shows no clip of a recording.", where=sample.id, fix="prepare recordings")
    return sample.seen


def responses_of(sample: Sample) -> Responses:
    """The responses that a sample teaches; DataError where its target is another."""
    if not isinstance(sample.target, Responses):
        raise DataError("The target is no responses of neurons.", where=sample.id, fix="prepare recordings")
    return sample.target


class CortexAdapter(ModelAdapter):
    """The network, with half the Poisson deviance of counts as its loss.

    That is the negative log-likelihood of a Poisson distribution without the part that no rate can change: it has the
    same gradient, and is zero for a rate that knows each count.
    """

    family = "cortex"
    terms = ("poisson",)

    def __init__(self, network: Cortex, choices: ResponseChoices) -> None:
        self.network = network
        self.cortex = network
        self.choices = choices
        self.encoder = ClipEncoder(network.config, choices)
        held = {name for name in PARTS if any(True for _ in getattr(network, name).parameters())}
        self.parts = tuple(Part(name, (name,)) for name in PARTS if name in held)
        self.undecayed = frozenset({"readout.place", "readout.width"})
        self.feature_parts = tuple(part.name for part in self.parts if part.name != "readout")
        if choices.burn_in < network.memory:
            raise RecipeError(
                f"The core looks {network.memory} frames back; a clip shows {choices.burn_in} before its first bin.",
                where="responses.burn_in",
                fix=f"at least {network.memory}",
            )

    def rates(self, batch: Batch) -> torch.Tensor:
        """The predicted spikes a bin of each unit: (batch, bins, units) float32; rows of padding hold anything."""
        kept = batch.tensors.get("core_features")
        made = self._features(batch) if kept is None else kept
        return self.cortex.rates(made.transpose(1, 2), batch.tensors["units"]).float()

    def _features(self, batch: Batch) -> torch.Tensor:
        """(batch, bins, channels, height, width) of the predicted bins alone."""
        tensors = batch.tensors
        made = self.cortex.features(tensors["frames"], tensors["session"], tensors.get("behaviour"))
        return made[:, :, -self.choices.clip :].transpose(1, 2)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Half the Poisson deviance, summed over the valid bins and units of each clip: (batch,) float32."""
        counts, valid = batch.tensors["counts"], batch.tensors["valid"]
        rates = self.rates(batch).clamp_min(LEAST_RATE)
        lost = rates - counts + torch.xlogy(counts, counts) - counts * rates.log()
        return {"poisson": torch.where(valid, lost, 0.0).sum(dim=(1, 2))}

    def penalty(self, step: int, steps: int) -> torch.Tensor | None:
        """The penalties of the recipe at this step, summed; None where there are none."""
        weights = {name: one.at(step, steps) for name, one in self.choices.penalties.items()}
        terms = [weight * PENALTIES[name](self.cortex) for name, weight in weights.items() if weight]
        return torch.stack(terms).sum() if terms else None

    def vision_features(self, batch: Batch) -> list[torch.Tensor]:
        """What the frozen parts make of each clip: (bins, channels, height, width)."""
        return list(self._features(batch).contiguous())


def predicts_responses(adapter: ModelAdapter) -> CortexAdapter:
    """The adapter as one that predicts responses; ModelError where it does something else."""
    if not isinstance(adapter, CortexAdapter):
        raise ModelError(f"Models of the family {adapter.family} predict no responses of neurons.")
    return adapter


def load(folder: Path, choices: ResponseChoices) -> CortexAdapter:
    """The network of a folder, in float32. Raises ModelError where a tensor is missing or not known."""
    return CortexAdapter(Cortex.load(folder), choices)

"""The network that predicts responses: one core shared by many sessions, one flat table of readouts.

frames -> each session's view of them -> filters in time -> core -> behaviour -> recurrence -> features -> the rows of
the units asked for -> rates. A clip is computed at once; without recurrence every bin equals what its window gives.
"""

from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn import functional

from visiontune.data.order import key
from visiontune.errors import ModelError
from visiontune.files import write_text, written_whole
from visiontune.models.cortex_core import Core, size_after
from visiontune.models.cortex_frontend import PlainFrontend, SessionAdapter, TemporalFrontend
from visiontune.models.cortex_modulation import Concatenation, ConvGRU, Film, Unchanged
from visiontune.models.cortex_readout import READOUTS
from visiontune.recipe_targets import CoreShape

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PARTS = ("adapter", "frontend", "core", "modulation", "recurrence", "readout")
LEAST_RATE = 1e-4  # the bias of a unit that never fires stays finite


class CortexConfig(CoreShape):
    """The shape of a network and what its rows stand for; unknown fields are refused."""

    model_type: Literal["cortex"] = "cortex"
    height: int = Field(ge=2, description="pixels down")
    width: int = Field(ge=2, description="pixels across")
    stimulus_mean: float = Field(allow_inf_nan=False, description="of the training frames, taken from every pixel")
    stimulus_std: float = Field(gt=0, allow_inf_nan=False, description="of the training frames, divides every pixel")
    behaviour: int = Field(default=0, ge=0, description="channels of behaviour; 0 without modulation")
    sessions: tuple[str, ...] = Field(min_length=1, description="rows of the adapter's table")
    units: tuple[str, ...] = Field(min_length=1, description="rows of the readout's table, session/unit")

    @model_validator(mode="after")
    def _names_its_rows(self) -> Self:
        if (self.behaviour > 0) != (self.modulation != "none"):
            raise ValueError("behaviour is above zero with modulation, and zero without")
        for name, rows in (("sessions", self.sessions), ("units", self.units)):
            if len(set(rows)) < len(rows):
                raise ValueError(f"{name} are named twice")
        return self

    @property
    def inputs(self) -> int:
        """Channels that the core sees."""
        return 1 if self.frontend == "none" else self.temporal_channels

    @property
    def feature_size(self) -> tuple[int, int]:
        """Height and width of the features."""
        return (
            size_after(self.height, self.strides, self.pools),
            size_after(self.width, self.strides, self.pools),
        )


class Cortex(nn.Module):
    """The network. Its parts are `adapter`, `frontend`, `core`, `modulation`, `recurrence` and `readout`.

    New weights are drawn from `seed` alone, each part's by itself: other units leave the core's weights as they are.
    """

    def __init__(self, config: CortexConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.adapter = SessionAdapter(len(config.sessions), config.height, config.width)
        self.frontend = (
            PlainFrontend()
            if config.frontend == "none"
            else TemporalFrontend(config.temporal_channels, config.temporal_taps)
        )
        self.core = Core(
            config.inputs,
            kind=config.core,
            channels=config.channels,
            kernels=config.kernels,
            temporal_kernels=config.temporal_kernels,
            strides=config.strides,
            pools=config.pools,
            norm=config.norm == "rms",
            activation=config.activation,
        )
        channels = self.core.channels
        if config.modulation == "none":
            self.modulation = Unchanged()
        else:
            kind = Film if config.modulation == "film" else Concatenation
            self.modulation = kind(channels, config.behaviour)
        if config.recurrence == "none":
            self.recurrence = Unchanged()
        else:
            self.recurrence = ConvGRU(channels, config.recurrent_channels)
            channels = config.recurrent_channels
        self.readout = READOUTS[config.readout](len(config.units), channels, *config.feature_size)
        for number, name in enumerate(PARTS):
            generator = torch.Generator().manual_seed(key(seed, number) >> 1)
            getattr(self, name).start(generator)

    @property
    def memory(self) -> int:
        """How many frames at a clip's start are only seen: bin t needs the frames t - memory to t. The recurrent state
        reaches back further, and is not counted."""
        return self.frontend.memory + self.core.memory

    def features(self, frames: Tensor, session: Tensor, behaviour: Tensor | None = None) -> Tensor:
        """What the core makes of clips: (batch, channels, time - memory, height', width'), one for each frame from the
        clip's frame `memory` on.

        frames: (batch, time, height, width), uint8 or float, as recorded; they are normalised here. session: (batch,)
        int64, rows of `config.sessions`. behaviour: (batch, time, channels) float, with modulation and not without.
        Raises ModelError where these do not fit the config, before anything is computed.
        """
        self._check(frames, behaviour)
        config = self.config
        x = (frames.to(self.adapter.table.dtype) - config.stimulus_mean) / config.stimulus_std
        x = self.core(self.frontend(self.adapter(x, session)))
        if behaviour is not None:
            x = self.modulation(x, behaviour[:, self.memory :].to(x.dtype))
        return self.recurrence(x).permute(0, 4, 1, 2, 3)

    def rates(self, features: Tensor, units: Tensor) -> Tensor:
        """The rates of units in spikes a bin: (batch, time, n), above zero.

        features: as from `features`. units: (batch, n) int64, rows of `config.units`; where a sample has fewer than n,
        any row (say 0) pads, and the caller's loss leaves those places out.
        """
        drive = self.readout(features, units)
        return functional.softplus(drive) if self.config.output == "softplus" else drive.exp()

    def forward(self, frames: Tensor, session: Tensor, units: Tensor, behaviour: Tensor | None = None) -> Tensor:
        """The rates of units for clips, see `features` and `rates`."""
        return self.rates(self.features(frames, session, behaviour), units)

    def initialise_bias(self, mean_rates: Tensor) -> None:
        """Start every unit at its mean rate in the training data: (units,), spikes a bin.

        The bias becomes the inverse of the output at that rate, which a unit predicts exactly as long as its features
        weigh nothing; they start small. Rates below 1e-4 count as that. Raises ModelError for another shape.
        """
        bias = self.readout.bias
        if mean_rates.shape != bias.shape or not bool(torch.isfinite(mean_rates).all()):
            raise ModelError(
                f"Mean rates of the shape {tuple(mean_rates.shape)} were given for {len(bias)} units.",
                fix="give each unit of config.units one finite mean rate",
            )
        rates = mean_rates.double().clamp_min(LEAST_RATE)
        start = rates.log() if self.config.output == "exp" else rates + torch.log(-torch.expm1(-rates))
        with torch.no_grad():
            bias.copy_(start)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder, made where it is missing."""
        from safetensors.torch import save_file

        with written_whole(folder / WEIGHTS) as aside:
            save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, aside)
        write_text(folder / CONFIG, self.config.model_dump_json(indent=1) + "\n")

    @staticmethod
    def load(folder: Path) -> "Cortex":
        """The network that `save` wrote. Raises ModelError for a config that does not hold, and, by name, for tensors
        that are missing, unexpected or of another shape."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            config = CortexConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS)
        except (OSError, ValidationError, SafetensorError) as error:
            raise ModelError(
                f"This is no network for responses: {error}", where=str(folder), fix="name a folder that `save` wrote"
            ) from error
        cortex = Cortex(config)
        own = cortex.state_dict()
        wrong = [f"{name} is missing" for name in own if name not in tensors]
        wrong += [f"{name} is not expected" for name in tensors if name not in own]
        wrong += [
            f"{name} is {tuple(tensors[name].shape)} and not {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ]
        if wrong:
            raise ModelError(
                f"The weights do not fit the config: {'; '.join(sorted(wrong))}.",
                where=str(folder / WEIGHTS),
                fix="use the config that was saved with these weights",
            )
        cortex.to(next(iter(tensors.values())).dtype).load_state_dict(tensors)
        return cortex

    def _check(self, frames: Tensor, behaviour: Tensor | None) -> None:
        config = self.config
        if frames.ndim != 4 or frames.shape[2:] != (config.height, config.width) or frames.shape[1] <= self.memory:
            raise ModelError(
                f"Clips of the shape {tuple(frames.shape)} do not fit: (clips, frames, {config.height}, "
                f"{config.width}) with more than {self.memory} frames do.",
                fix="give whole clips, at the size that the model was made for",
            )
        if behaviour is None and config.modulation != "none":
            raise ModelError(
                f"The model is modulated by {config.behaviour} channels of behaviour, and none is given.",
                fix="give the behaviour of each clip, or train a model with modulation none",
            )
        if behaviour is not None and config.modulation == "none":
            raise ModelError(
                "Behaviour is given, and the model has no modulation: it would not be used.",
                fix="leave it out, or train a model with modulation film or concat",
            )
        if behaviour is not None and behaviour.shape != (*frames.shape[:2], config.behaviour):
            raise ModelError(
                f"Behaviour of the shape {tuple(behaviour.shape)} does not fit: "
                f"{(*frames.shape[:2], config.behaviour)} does.",
                fix="give one row of behaviour for each frame",
            )

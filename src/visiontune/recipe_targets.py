"""The sections of a recipe that belong to one kind of target: texts, objects, or responses."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Even = Annotated[int, Field(ge=2, multiple_of=2)]
PenaltyName = Literal["readout_l1", "core_l2", "smoothness", "locality"]


class Section(BaseModel):
    """One section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MoeDropout(Section):
    """Dropout for mixtures of experts, in each layer that has them; what stays is scaled up."""

    experts: Share = Field(default=0.0, description="chance of each expert to be left out of a forward")
    gates: Share = Field(default=0.0, description="chance of each token's share in one of its experts to be left out")
    keep_experts: Count = Field(default=1, description="so many experts of a layer stay at least")


class ObjectChoices(Section):
    """Objects to be found in images; absent where the target is another."""

    classes: tuple[str, ...] = Field(min_length=1, description="names of the classes, in the order of their numbers")
    masks: bool = Field(description="learn masks too; needs a model that draws them")
    mirror: Literal["none", "horizontal", "all"] = Field(
        description="mirror training images left to right, or in all ways: square ones are turned too"
    )
    most: Count = Field(default=100, description="objects found in an image at most")
    queries: Count | None = Field(
        default=None,
        description="places for objects in a tiny detector, built for them; others have their own",
    )
    denoise: Share = Field(
        default=0.0,
        description="RF-DETR: extra queries stand at the objects in training, this share of their sides away; 0: none",
    )
    prompt_jitter: Share = Field(
        default=0.1,
        description="models that are told boxes: how far a side of a training box is moved, as a share of its length",
    )


class Penalty(Section):
    """A sum over weights that is added to the loss once a step, times `weight`."""

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(description="factor once it is in full force")
    start: Share = Field(default=0.0, description="share of the steps before which it is off")
    ramp: Share = Field(default=0.0, description="share of the steps in which it rises evenly; it stays on afterwards")

    def at(self, step: int, steps: int) -> float:
        """The factor at a step of a run of so many."""
        passed = step / steps - self.start
        if passed < 0:
            return 0.0
        return self.weight * (min(1.0, passed / self.ramp) if self.ramp else 1.0)


class CoreShape(Section):
    """The shape of a network for responses, apart from what sessions and units decide.

    Blocks of the core are given by tuples of one length; the first block is the stem. Numbers of channels are even: the
    frames of a clip then stand equally aligned in memory, and a clip rounds as its windows do.
    """

    frontend: Literal["none", "learnable_temporal"] = Field(
        default="learnable_temporal", description="temporal filters in front of a new core"
    )
    temporal_taps: Count = Field(default=12, description="frames that each of these filters spans")
    temporal_channels: Even = Field(default=4, description="how many of them; even")
    core: Literal["resnet", "conv"] = Field(default="resnet", description="kind of a new core")
    channels: tuple[Even, ...] = Field(min_length=1, description="filters of each block of a new core; even")
    kernels: tuple[Count, ...] = Field(description="pixels a side of each block's filters; odd")
    temporal_kernels: tuple[Count, ...] = Field(description="frames that each block's filters span")
    strides: tuple[Count, ...] = Field(description="steps of each block's filters, in pixels")
    pools: tuple[Count, ...] = Field(description="pixels a side that are averaged after each block")
    activation: Literal["relu", "split_relu"] = Field(
        default="relu", description="of a new core's blocks; split_relu keeps both signs, in twice the channels"
    )
    norm: Literal["rms", "none"] = Field(default="rms", description="norm over the channels of a new core's blocks")
    modulation: Literal["none", "concat", "film"] = Field(
        default="none", description="how behaviour acts upon a new core"
    )
    recurrence: Literal["none", "convgru"] = Field(default="none", description="memory at the end of a new core")
    recurrent_channels: Annotated[int, Field(ge=0, multiple_of=2)] = Field(
        default=0, description="channels of that memory; 0 without"
    )
    readout: Literal["gaussian", "factorised", "linear"] = Field(
        default="gaussian", description="how a unit reads the core's features"
    )
    output: Literal["softplus", "exp"] = Field(default="softplus", description="what keeps rates above zero")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        blocks = (self.kernels, self.temporal_kernels, self.strides, self.pools)
        if any(len(values) != len(self.channels) for values in blocks):
            raise ValueError("channels, kernels, temporal_kernels, strides and pools need one entry a block each")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError("kernels are odd, so that space keeps its place")
        if (self.recurrent_channels > 0) != (self.recurrence != "none"):
            raise ValueError("recurrent_channels is above zero with recurrence, and zero without")
        return self


class ResponseChoices(CoreShape):
    """Responses of neurons to be predicted; absent where the target is another."""

    clip: Count = Field(description="bins that a clip predicts; all of them share one pass through the core")
    burn_in: Annotated[int, Field(ge=0)] = Field(
        description="frames that a clip sees before its first predicted bin; at least the core's memory"
    )
    rate: Positive = Field(description="bins a second of the recordings; sessions of another rate are refused")
    behaviour: tuple[str, ...] = Field(
        default=(), description="channels that modulate the core, by name; sessions without one of them are refused"
    )
    penalties: dict[PenaltyName, Penalty] = Field(
        default_factory=dict, description="penalties on weights, each with its schedule"
    )


class Stage(Section):
    """A stretch of a run in which samples are drawn by their score."""

    until: Annotated[float, Field(gt=0, lt=1)] = Field(description="share of the run's samples at which it ends")
    weights: tuple[Positive, ...] = Field(
        min_length=2,
        description="how much likelier a sample is drawn, from the lowest scores to the highest, in equal groups",
    )


class Curriculum(Section):
    """Samples drawn by a score first, and all alike in the end."""

    score: Literal["contrast", "spikes"] = Field(description="the score of each sample")
    stages: tuple[Stage, ...] = Field(min_length=1, description="stages in order; after the last all are drawn alike")

    @model_validator(mode="after")
    def _in_order(self) -> "Curriculum":
        ends = [stage.until for stage in self.stages]
        if ends != sorted(set(ends)):
            raise ValueError(f"stages end one after the other; their ends are {ends}")
        return self

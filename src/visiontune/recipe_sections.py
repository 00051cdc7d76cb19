"""The sections of a recipe that any target may have: what a run is made of, field by field, each with what it means."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from visiontune.data.pages import PageSpec
from visiontune.data.pages.legibility import LEGIBLE_X_HEIGHT
from visiontune.recipe_targets import Count, Curriculum, Positive, Section, Share

TextMetric = Literal["accuracy", "exact_match", "normalised_match", "rougeL"]
ObjectMetric = Literal["box_ap", "box_ap50", "mask_ap", "mask_ap50", "prompted_mask_ap"]
ResponseMetric = Literal["bits_per_spike", "correlation"]
PartState = Literal["frozen", "lora", "full"]


class DatasetUse(Section):
    """One prepared dataset of a run."""

    path: str = Field(description="folder of the prepared dataset")
    content_hash: str = Field(description="hash of the content that the run was planned for; another hash is refused")
    weight: Positive | None = Field(default=None, description="share of the draws; none: as many as it has rows")


class ModelChoice(Section):
    """Which weights the run starts from."""

    name: str = Field(description="hub id, local folder, or tiny/<family>")
    revision: str | None = Field(default=None, description="hub revision")
    four_bit: tuple[str, ...] = Field(
        default=(),
        description="parts, frozen or adapted, whose linear layers keep their base weights in four bits (QLoRA, "
        "Dettmers et al. 2023); on CUDA alone, of texts alone",
    )
    allow_missing: tuple[str, ...] = Field(
        default=(),
        description="tensors of the core, or patterns of their names, that a Lightning checkpoint need not fill: they "
        "start new; of responses alone",
    )


class Data(Section):
    """What is shown to the model."""

    datasets: tuple[DatasetUse, ...] = Field(min_length=1, description="the datasets, in order")
    prompt: str = Field(
        default="", description="the question asked about each sample that brings none of its own; of texts alone"
    )
    limit: Count | None = Field(
        default=None,
        description="train, and score while training, with the first N rows of each split of each dataset only",
    )
    image_longest_edge: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="pixels to which the longer side is resized before tiling; of detectors the side of their input; "
        "0 for responses, whose frames stay as recorded",
    )
    image_splitting: bool = Field(default=False, description="cut large images into tiles beside the overview")
    pages: PageSpec | None = Field(
        default=None, description="how documents become pages, as the datasets were prepared; none: images are seen"
    )
    augment: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="strength of what is done to training images, 0 to 1: shifts, turns and scaling; with "
        "objects zoom, shifts, light and colours",
    )
    augmented_views: Count | None = Field(
        default=None, description="augment each sample in so many ways, in turn; none: anew in each epoch"
    )
    least_x_height: Annotated[float, Field(ge=0)] = Field(
        default=LEGIBLE_X_HEIGHT,
        description="pixels; pages whose letters are lower after the model's resize are refused",
    )
    max_tokens: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="longest sequence; longer answers are shortened and counted, images never cut; of texts alone",
    )
    curriculum: Curriculum | None = Field(
        default=None, description="draw samples by a score at first; of responses alone; none: all alike"
    )

    @model_validator(mode="after")
    def _all_weights_or_none(self) -> "Data":
        if len({use.weight is None for use in self.datasets}) > 1:
            raise ValueError("give every dataset a weight, or none of them")
        return self


class FeatureCache(Section):
    """What a frozen vision encoder makes of the images: computed once, or anew in each epoch; the result is one."""

    cache: Literal["auto", "always", "never"] = Field(
        default="auto", description="keep the features on disk; auto: where arithmetic says that it pays"
    )
    folder: str | None = Field(default=None, description="folder that runs share; none: in the run, until it is done")


class Lora(Section):
    """The low-rank adapters (Hu et al. 2021), on the linear layers of the parts set to `lora`."""

    rank: Count = Field(description="rank of the update")
    alpha: Positive = Field(description="the update is scaled by alpha / rank")
    dropout: Share = Field(description="dropout in front of the adapters")
    layers: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="of single parts the layers that are adapted, by the last part of their names, as q_proj; of other "
        "parts every linear layer",
    )
    stabilised: bool = Field(
        default=False, description="scale by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023)"
    )
    decomposed: bool = Field(
        default=False, description="learn the length of each weight's columns apart (DoRA, Liu et al. 2024)"
    )


class Optimizer(Section):
    """AdamW (Loshchilov and Hutter 2019); norms and biases are not decayed."""

    learning_rate: Positive = Field(description="peak learning rate")
    part_learning_rates: dict[str, Positive] = Field(default_factory=dict, description="peak rate for single parts")
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="decoupled weight decay")
    beta1: Share = Field(default=0.9, description="decay of the mean of gradients")
    beta2: Share = Field(default=0.999, description="decay of the mean of squared gradients")
    epsilon: Positive = Field(default=1e-8, description="term added to the denominator")
    average: Share = Field(
        default=0.0,
        description="decay of a moving average of the trained weights, which is evaluated and shipped; 0: none",
    )
    clip_norm: Positive | None = Field(default=1.0, description="longest gradient; none: no clipping")


class Schedule(Section):
    """How long, and how the learning rate moves."""

    kind: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="shape after the warm-up")
    warmup: Share = Field(default=0.1, description="share of the steps in which the rate rises from zero")
    steps: Count = Field(description="optimiser steps of the whole run")
    hours: Positive | None = Field(
        default=None,
        description="time for training; before the first step some are timed, and `steps` set in its place",
    )


class Batch(Section):
    """How samples become steps. The cut into micro-batches changes speed and memory, not the result."""

    samples: Count = Field(description="samples a step, over all ranks")
    tokens: Count = Field(description="padded tokens a micro-batch may hold")
    window: Count = Field(description="samples that are sorted by length together; a multiple of `samples`")
    packing: bool = Field(
        default=False, description="samples of a micro-batch stand in one row, without padding; of texts alone"
    )

    @model_validator(mode="after")
    def _window_holds_whole_steps(self) -> "Batch":
        if self.window % self.samples:
            raise ValueError(f"window ({self.window}) must be a multiple of samples ({self.samples})")
        return self


class Evaluation(Section):
    """Validation during the run."""

    every: Count = Field(description="steps between evaluations")
    samples: Count = Field(description="validation samples each time, the same ones")
    metric: TextMetric | ObjectMetric | ResponseMetric = Field(description="what the best checkpoint is chosen by")
    answers: Literal["scored", "generated"] = Field(
        default="generated",
        description="scored: the label set's most probable label, from one reading of the prompt; generated: free text",
    )
    wanted_accuracy: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.99,
        description="scored: abstain below the confidence from which on validation answers are right this often",
    )
    patience: Count | None = Field(default=None, description="stop after so many evaluations without a better one")
    max_new_tokens: Annotated[int, Field(ge=0)] = Field(
        default=0, description="longest generated answer; of texts alone"
    )


class Checkpoints(Section):
    """When the run's state is written."""

    every: Count = Field(description="steps between checkpoints")
    keep: Count = Field(default=2, description="latest checkpoints kept, besides the best one")


class Machine(Section):
    """Where the run computes."""

    device: Literal["cpu", "cuda", "mps"] = Field(description="device")
    precision: Literal["fp32", "bf16", "fp16"] = Field(description="precision of forward, backward and frozen weights")
    workers: Annotated[int, Field(ge=0)] = Field(description="processes that read and decode ahead")
    threads: Count = Field(description="CPU threads of each training process")
    recompute: bool = Field(
        default=False,
        description="compute each layer again for its backward instead of keeping it: less memory, slower",
    )
    compile: bool = Field(
        default=False,
        description="compile the layers by torch.compile for the steps, one graph for all shapes: slow to begin, then "
        "faster on GPUs; of texts alone",
    )
    attention: Literal["sdpa", "flash"] = Field(
        default="sdpa",
        description="torch's own attention, or the package flash-attn, on CUDA in bf16 or fp16; of texts alone. Packed "
        "samples are attended to by torch's own",
    )


class Tracking(Section):
    """Trackers that are told of a run, beside its own `metrics.jsonl`; they change nothing in it."""

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), description="tensorboard, wandb, trackio: each is an extra that has to be installed"
    )
    project: str = Field(default="visiontune", min_length=1, description="project of the run in wandb and trackio")

"""Recipe: every choice of a run. Typed, frozen, unknown fields refused; saved with the run, enough to run it again."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from visiontune.contract import DeviceContract
from visiontune.data.pages import PageSpec
from visiontune.data.pages.legibility import LEGIBLE_X_HEIGHT
from visiontune.errors import RecipeError
from visiontune.files import write_text
from visiontune.recipe_targets import (
    Count,
    Curriculum,
    MoeDropout,
    ObjectChoices,
    Positive,
    ResponseChoices,
    Section,
    Share,
)

SCHEMA_VERSION = 1
S = TypeVar("S", bound=Section)

TextMetric = Literal["accuracy", "exact_match", "normalised_match", "rougeL"]
ObjectMetric = Literal["box_ap", "box_ap50", "mask_ap", "mask_ap50", "prompted_mask_ap"]
ResponseMetric = Literal["bits_per_spike", "correlation"]
PartState = Literal["frozen", "lora", "full"]


class DatasetUse(Section):
    """One prepared dataset of a run."""

    path: str = Field(description="folder of the prepared dataset")
    content_hash: str = Field(description="hash of the rows that the run was planned for; another hash is refused")
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
        description="use the first N rows of each split of each dataset only",
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


class Recipe(Section):
    """Every choice of a run."""

    schema_version: Literal[1] = SCHEMA_VERSION
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of order, new weights and dropout")
    model: ModelChoice
    data: Data
    objects: ObjectChoices | None = Field(
        default=None, description="what is found in images; none: the target is another"
    )
    responses: ResponseChoices | None = Field(
        default=None, description="how neurons' responses are predicted; none: the target is another"
    )
    features: FeatureCache = FeatureCache()
    parts: dict[str, PartState] = Field(description="what happens to each part of the model")
    lora: Lora
    moe_dropout: MoeDropout = MoeDropout()
    optimizer: Optimizer
    schedule: Schedule
    batch: Batch
    evaluation: Evaluation
    checkpoints: Checkpoints
    tracking: Tracking = Tracking()
    machine: Machine
    device: DeviceContract | None = Field(
        default=None, description="what the app will do with pictures and prompts; none: not trained for a device"
    )
    why: dict[str, str] = Field(default_factory=dict, description="the reason for each derived choice")

    @property
    def target(self) -> Literal["text", "objects", "responses"]:
        """What is learned."""
        return "objects" if self.objects is not None else "responses" if self.responses is not None else "text"

    @model_validator(mode="after")
    def _says_nothing_of_other_targets(self) -> "Recipe":
        if self.objects is not None and self.responses is not None:
            raise ValueError("objects and responses cannot be learned together")
        metrics = METRICS[self.target]
        if self.evaluation.metric not in metrics:
            raise ValueError(
                f"evaluation.metric is {self.evaluation.metric}; of {self.target} there are {', '.join(metrics)}"
            )
        needed = {"data.image_longest_edge": self.target != "responses"}
        needed |= dict.fromkeys(("data.prompt", "data.max_tokens", "evaluation.max_new_tokens"), self.target == "text")
        for name, wanted in needed.items():
            if wanted and not _value(self, name):
                raise ValueError(f"{name} is needed for {self.target}")
        for targets, names in FIELDS_OF.items():
            for name in names if self.target not in targets else ():
                if _value(self, name) != _default(self, name):
                    raise ValueError(f"{name} is of {' and '.join(targets)}; here {self.target} are learned")
        return self

    @model_validator(mode="after")
    def _trains_what_the_device_does(self) -> "Recipe":
        if self.device is None:
            return self
        for name, value, wanted in (
            ("data.image_longest_edge", self.data.image_longest_edge, self.device.image_size),
            ("data.image_splitting", self.data.image_splitting, False),
            ("evaluation.max_new_tokens", self.evaluation.max_new_tokens, self.device.max_new_tokens),
        ):
            if value != wanted:
                raise ValueError(f"{name} is {value}, but the device does {wanted}")
        return self

    def to_yaml(self) -> str:
        """The recipe as YAML text, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)

    def computing_on(self, device: str, precision: str) -> "Recipe":
        """The recipe on another device; off CUDA with whole weights and torch's own attention."""
        machine: dict[str, Any] = {"device": device, "precision": precision}
        changed = {} if device == "cuda" else {"model": self.model.model_copy(update={"four_bit": ()})}
        machine |= {} if device == "cuda" else {"attention": "sdpa"}
        return self.model_copy(update={"machine": self.machine.model_copy(update=machine), **changed})

    @property
    def sha256(self) -> str:
        """A hash of all choices that change the run: not of their reasons, nor of who is told of it."""
        plain = self.model_copy(update={"why": {}, "tracking": Tracking()})
        return hashlib.sha256(plain.to_yaml().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the recipe whole."""
        write_text(path, self.to_yaml())

    def changed(self, overrides: dict[str, Any]) -> "Recipe":
        """A recipe with some fields changed, each named `section.field`; raises RecipeError for an unknown one."""
        check_names(overrides)
        values = self.model_dump(mode="json")
        for mine, its in FOLLOWS_THE_DEVICE.items():
            if its in overrides and mine not in overrides:
                overrides = {**overrides, mine: overrides[its]}
        for name, value in overrides.items():
            *sections, field = name.split(".")
            if sections == ["device"] and self.device is None:
                raise RecipeError(
                    f"'{name}' is set, but the recipe is for no device.", fix="name one: --for android-256"
                )
            if sections in (["objects"], ["responses"]) and self.target != sections[0]:
                raise RecipeError(
                    f"'{name}' is set, and the recipe learns {self.target}.", fix=f"train on {sections[0]}"
                )
            place: Any = values
            for section in sections:
                place = place[section]
            place[field] = value
            values["why"][name] = "set by hand"
        return parse(values, "the command line")

    def overlaid(self, fragment: dict[str, Any]) -> "Recipe":
        """This recipe with the fields that a (partial) recipe file names changed."""
        return self.changed(dict(_leaves(fragment)))


METRICS = {"text": get_args(TextMetric), "objects": get_args(ObjectMetric), "responses": get_args(ResponseMetric)}
# Fields that only recipes for these targets may set.
FIELDS_OF = {
    ("text",): (
        *(f"data.{name}" for name in ("prompt", "image_splitting", "pages", "augmented_views", "least_x_height")),
        *("data.max_tokens", "evaluation.answers", "evaluation.wanted_accuracy", "evaluation.max_new_tokens"),
        *("device", "moe_dropout", "batch.packing", "model.four_bit"),
        *("machine.attention", "machine.compile"),
    ),
    ("text", "objects"): ("data.image_longest_edge", "data.augment"),
    ("responses",): ("data.curriculum", "model.allow_missing"),
}


def _value(recipe: Any, name: str) -> Any:
    for part in name.split("."):
        recipe = getattr(recipe, part)
    return recipe


def _default(recipe: Recipe, name: str) -> Any:
    section, _, field = name.rpartition(".")
    owner: BaseModel = _value(recipe, section) if section else recipe
    return type(owner).model_fields[field].default


def _leaves(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict) and inner and name not in WHOLE:
            leaves += _leaves(inner, f"{name}.")
        elif name not in ("why", "schema_version", "device.profile") and (name, inner) not in ABSENT:
            leaves.append((name, inner))
    return leaves


WHOLE = ("why", "data.pages", "data.curriculum", "responses.penalties")  # fields whose values are mappings
ABSENT = (("device", None), ("objects", None), ("responses", None))
FOLLOWS_THE_DEVICE = {
    "data.image_longest_edge": "device.image_size",
    "evaluation.max_new_tokens": "device.max_new_tokens",
}


def sections() -> dict[str, type[BaseModel]]:
    """The sections of a recipe; those of one target and of the device are there only in recipes for these."""
    plain = {name: field.annotation for name, field in Recipe.model_fields.items()}
    found = {name: kind for name, kind in plain.items() if isinstance(kind, type) and issubclass(kind, Section)}
    return {**found, "objects": ObjectChoices, "responses": ResponseChoices, "device": DeviceContract}


def field_names() -> list[str]:
    """Every field that a recipe file or the command line may set, as `section.field`."""
    names = []
    for name in Recipe.model_fields:
        if name in sections():
            names += [f"{name}.{inner}" for inner in sections()[name].model_fields if inner != "profile"]
        elif name not in ("why", "schema_version"):
            names.append(name)
    return names


def check_names(names: Iterable[str]) -> None:
    """Raise RecipeError for a name, as `section.field`, that is no field of a recipe."""
    known = field_names()
    for name in names:
        section, _, field = name.rpartition(".")
        if name not in known and not (field and section in ("parts", "optimizer.part_learning_rates")):
            raise RecipeError(f"There is no recipe field '{name}'.", fix=f"fields: {', '.join(known)}")


def fragment_names(fragment: dict[str, Any]) -> list[str]:
    """The fields that a (partial) recipe file sets, as `section.field`."""
    return [name for name, _ in _leaves(fragment)]


def parse(values: dict[str, Any], where: str) -> Recipe:
    """Validate plain values; raises RecipeError as `validated`."""
    return validated(Recipe, values, where)


def validated(kind: type[S], values: dict[str, Any], where: str) -> S:
    """Plain values as a section; raises RecipeError with the field, what stands there and what may stand there."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            field = ".".join(str(part) for part in fault["loc"]) or "recipe"
            lines.append(f"{field}: {fault['msg']} (found {fault['input']!r})")
        raise RecipeError(
            "The recipe is not valid: " + "; ".join(lines), where=where, fix="see docs/recipe.md"
        ) from error

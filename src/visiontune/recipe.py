"""Recipe: every choice of a run. Typed, frozen, unknown fields refused; saved with the run, enough to run it again."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from visiontune.contract import DeviceContract
from visiontune.errors import RecipeError
from visiontune.files import write_text
from visiontune.recipe_sections import (
    Batch,
    Checkpoints,
    Data,
    Evaluation,
    FeatureCache,
    Lora,
    Machine,
    ModelChoice,
    ObjectMetric,
    Optimizer,
    PartState,
    ResponseMetric,
    Schedule,
    TextMetric,
    Tracking,
)
from visiontune.recipe_targets import MoeDropout, ObjectChoices, ResponseChoices, Section

SCHEMA_VERSION = 1
BY_HAND = "set by hand"
MOST_SHOWN = 8  # values of a list that an error shows
S = TypeVar("S", bound=Section)


class Fragment(dict[str, Any]):
    """The plain values of a recipe file, whole or partial, `where` they stand, and the `preset` that it is, if any."""

    def __init__(self, values: dict[str, Any], where: str, preset: str | None = None) -> None:
        super().__init__(values)
        self.where, self.preset = where, preset

    def with_values(self, values: dict[str, Any]) -> "Fragment":
        """Other values, of the same place."""
        return Fragment(values, self.where, self.preset)

    @property
    def said(self) -> str:
        """The reason for its values."""
        return f"from {Path(self.where).name}" if self.preset is None else f"preset {self.preset}"


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

    def changed(
        self, overrides: dict[str, Any], where: str = "the command line", said: str = BY_HAND, derived: bool = False
    ) -> "Recipe":
        """A recipe with some fields changed, each named `section.field`; raises RecipeError for an unknown one.

        `where` is the place that an error names, `said` the reason for each value. `derived`: one that the recipe has
        already keeps its reason.
        """
        check_names(overrides, where)
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
            if derived and field in place and place[field] == value and values["why"].get(name) != BY_HAND:
                continue
            place[field] = value
            values["why"][name] = said
        return parse(values, where)

    def overlaid(self, fragment: dict[str, Any]) -> "Recipe":
        """This recipe with the fields that a (partial) recipe file names changed; an error names the file."""
        if not isinstance(fragment, Fragment):
            return self.changed(dict(leaves(fragment)), "the recipe file")
        # A whole recipe says again most of what is derived; what a preset says is there because of the preset.
        return self.changed(dict(leaves(fragment)), fragment.where, fragment.said, derived=fragment.preset is None)


METRICS = {"text": get_args(TextMetric), "objects": get_args(ObjectMetric), "responses": get_args(ResponseMetric)}
# Fields that only recipes for these targets may set.
FIELDS_OF = {
    ("text",): (
        *(f"data.{name}" for name in ("prompt", "image_splitting", "pages", "augmented_views", "least_x_height")),
        *("data.max_tokens", "evaluation.answers", "evaluation.wanted_accuracy", "evaluation.max_new_tokens"),
        *("device", "moe_dropout", "batch.packing", "model.four_bit"),
        *("machine.attention", "machine.compile"),
    ),
    ("text", "objects"): ("data.image_longest_edge", "data.augment", "machine.recompute"),
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


def leaves(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The fields that a (partial) recipe file sets, as `section.field`, with their values."""
    found: list[tuple[str, Any]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict) and inner and name not in WHOLE:
            found += leaves(inner, f"{name}.")
        elif name not in ("why", "schema_version", "device.profile") and (name, inner) not in ABSENT:
            found.append((name, inner))
    return found


WHOLE = (
    "why",
    "data.pages",
    "data.curriculum",
    "lora.layers",
    "responses.penalties",
)  # fields whose values are mappings
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


def check_names(names: Iterable[str], where: str | None = None) -> None:
    """Raise RecipeError for a name, as `section.field`, that is no field of a recipe; `where` it stands."""
    known = field_names()
    for name in names:
        section, _, field = name.rpartition(".")
        if name not in known and not (field and section in ("parts", "optimizer.part_learning_rates")):
            raise RecipeError(f"There is no recipe field '{name}'.", where=where, fix=f"fields: {', '.join(known)}")


def fragment_names(fragment: dict[str, Any]) -> list[str]:
    """The fields that a (partial) recipe file sets, as `section.field`."""
    return [name for name, _ in leaves(fragment)]


def parse(values: dict[str, Any], where: str) -> Recipe:
    """Validate plain values; raises RecipeError as `validated`."""
    return validated(Recipe, values, where)


def validated(kind: type[S], values: dict[str, Any], where: str) -> S:
    """Plain values as a section; raises RecipeError with the field, what stands there and what may stand there."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_line(fault) for fault in error.errors() if not _follows(fault)]
        raise RecipeError(
            "The recipe is not valid: " + "; ".join(lines), where=where, fix="see docs/recipe.md"
        ) from error


def _line(fault: ErrorDetails) -> str:
    """A fault of pydantic for people: what stands there is said where it is a value, not where it is a section."""
    field, found = ".".join(str(part) for part in fault["loc"]), fault["input"]
    whole = isinstance(found, dict | BaseModel) or (isinstance(found, list | tuple) and len(found) > MOST_SHOWN)
    said = fault["msg"].removeprefix("Value error, ") + ("" if whole else f" (found {found!r})")
    return f"{field}: {said}" if field else said


def _follows(fault: ErrorDetails) -> bool:
    """Whether a list is called too short only because its values were refused, each with a fault of its own."""
    return fault["type"] == "too_short" and len(fault["input"]) >= fault.get("ctx", {}).get("min_length", 0)

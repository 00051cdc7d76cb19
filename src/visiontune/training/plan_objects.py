"""From images with objects, model and machine to a recipe with a reason for each choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from visiontune.data.dataset import Dataset
from visiontune.data.object_measures import ObjectMeasures, measure_objects
from visiontune.errors import ModelError, RecipeError
from visiontune.machine import Hardware
from visiontune.models.load import family_of, is_segmenter, is_tiny, load_adapter, native_image_size, read_config
from visiontune.models.objects import ObjectAdapter, finds_objects
from visiontune.models.rf_detr_tiny import MASK_PATCH
from visiontune.models.sam import SamAdapter
from visiontune.recipe import BY_HAND, ObjectChoices, Recipe, parse
from visiontune.recipe_sections import Data, DatasetUse, PartState
from visiontune.training.class_lists import classes_of, said_of
from visiontune.training.derived import AS_ASKED, Reasons, batch_section, datasets_section, machine_section
from visiontune.training.object_choices import TINY_SIDES, object_choices, side_for
from visiontune.words import counted

KEPT_FEATURES = "what the frozen encoder makes of an image is computed once"
TINY_PATCH, TINY_MULTIPLE = 16, 32  # pixels: of a token, and of the windows that a tiny model looks through


@dataclass(frozen=True)
class Usual:
    """How models of a family are usually trained: what happens to their parts, and the optimiser's settings."""

    states: Mapping[str, PartState]
    learning_rate: float
    weight_decay: float
    reason: str
    average: float = 0.0
    part_rates: Mapping[str, float] = field(default_factory=dict)
    mask_states: Mapping[str, PartState] = field(default_factory=dict)
    clip_norm: float = 0.1
    warmup: float = 0.1
    samples: int | None = None  # a step; None: as the data call for
    most_epochs: float | None = None
    mask_objects: int | None = None  # in a step where masks are learned, fewer than with `samples`; None: as many
    largest_mask_side: int | None = None  # pixels of the images that a tiny model learns masks from
    small_object: float = 2.0  # patches a side of the smallest tenth, in a tiny model's images
    rate_objects: int | None = None  # the learning rate is for so many objects in a step; None: for any number
    largest_rate: float = 1.0
    augment: float | None = None  # strength of augmentation; None: as the data call for
    denoise: tuple[float, float] | None = None  # from so many objects in an image on, and how strongly

    def rate(self, objects: float) -> tuple[float, str]:
        """The learning rate for so many objects in a step, and why: with more of them a step is less noise."""
        if self.rate_objects is None:
            return self.learning_rate, "usual for this family"
        grown = self.learning_rate * max(1.0, objects / self.rate_objects)
        return float(f"{min(self.largest_rate, grown):.1g}"), f"random weights, {objects:.0f} objects in a step"

    def queries_at_objects(self, objects: float) -> tuple[float, str]:
        """`objects.denoise` for so many objects in an image, and why: of many, it is long chance which is matched."""
        if self.denoise is None or objects < self.denoise[0]:
            return 0.0, f"{objects:.1f} objects in an image: few are soon told apart without"
        return self.denoise[1], f"{objects:.1f} objects in an image: many are found far sooner with them"

    def samples_of_masks(self, samples: int, objects: float) -> tuple[int, str]:
        """`batch.samples` where masks are learned, for so many objects in an image, and why: each costs as much."""
        if self.mask_objects is not None:
            samples = max(1, min(samples, round(self.mask_objects / max(1.0, objects))))
        return samples, f"{objects:.1f} objects in an image: more and smaller steps, masks are slow to learn"


# family -> published checkpoints
USUAL = {
    "rf_detr": Usual(
        states=dict.fromkeys(("vision_encoder", "projector", "decoder", "heads"), "full"),
        mask_states=dict.fromkeys(("mask_head", "mask_bias"), "full"),
        learning_rate=1e-4,
        part_rates={"vision_encoder": 2e-5},
        weight_decay=1e-4,
        average=0.993,
        reason="a small model is trained whole, its pretrained encoder more slowly",
    ),
    "grounding_dino": Usual(
        # Heads that learn three classes forget others: 8.9 AP in `bench/shapes.py forget`, and 0.6 as they are.
        states={
            "vision_encoder": "frozen",
            "text_encoder": "frozen",
            "projector": "frozen",
            "fusion": "lora",
            "decoder": "lora",
            "heads": "frozen",
        },
        learning_rate=2e-4,
        weight_decay=1e-4,
        reason="encoders and heads keep what they know of other classes; adapters learn the new ones",
    ),
    "sam": Usual(
        states={
            "vision_encoder": "frozen",
            "vision_encoder_late": "frozen",
            "prompt_encoder": "frozen",
            "mask_decoder": "full",
        },
        learning_rate=1e-4,
        weight_decay=1e-4,
        reason="the encoder keeps what it knows, and the mask decoder learns",
        clip_norm=1.0,
    ),
}
RANDOM = "random weights: there is nothing worth keeping, every part learns"
# the same for tiny models, where every part learns
TINY = {
    # With four images a step it learns much more from as many images than with eight. Blood cells, fourteen in an
    # image, are learned better at 192 pixels than at 224, and far sooner with queries near them; not so drawn shapes,
    # two in an image (bench/bccd.py, bench/shapes.py). Masks of many objects, nuclei, 25 in an image, take more
    # steps than images: one image a step taught more in the same time than four.
    "rf_detr": Usual(
        {},
        3e-4,
        1e-4,
        RANDOM,
        0.99,
        clip_norm=0.5,
        warmup=0.03,
        samples=4,
        mask_objects=24,
        largest_mask_side=256,
        rate_objects=8,
        largest_rate=1e-3,
        small_object=1.5,
        augment=0.0,
        denoise=(5, 0.4),
    ),
    "grounding_dino": Usual({}, 5e-4, 1e-2, RANDOM, 0.99, warmup=0.3),
    # Each image teaches up to sixteen masks at once; a token is eight pixels, so that large images cost much.
    "sam": Usual({}, 2e-3, 1e-2, RANDOM, 0.99, clip_norm=1.0, samples=4, most_epochs=60, largest_mask_side=256),
}


def draws_masks(model: str) -> bool:
    """Whether a model can draw masks, prompted or not."""
    family = family_of(model)
    if family != "rf_detr" or is_tiny(model):
        return family in ("rf_detr", "sam")
    return any("Segmentation" in name for name in read_config(model).architectures or ())


def zero_shot(model: str, datasets: Sequence[Dataset], device: torch.device) -> ObjectAdapter:
    """A model that finds the classes of these data by their names, as it was published; ModelError for any other."""
    if family_of(model) != "grounding_dino" or is_tiny(model):
        raise ModelError(
            "Only a published detector that is asked by names can label images that it was not trained for.",
            where=model,
            fix="give a run as the teacher, or a Grounding DINO checkpoint",
        )
    uses = tuple(DatasetUse(path=str(d.path), content_hash=d.info.content_hash) for d in datasets)
    data = Data(datasets=uses, image_longest_edge=native_image_size(model))
    objects = ObjectChoices(classes=classes_of(datasets), masks=False, mirror="none")
    adapter = finds_objects(load_adapter(model, None, data, objects=objects))
    adapter.network.to(device).eval()
    return adapter


@dataclass(frozen=True)
class _Case:
    """A model, and what it learns from; each choice comes with its reason."""

    family: str
    segmenter: bool
    usual: Usual
    states: Mapping[str, PartState]
    tiny: bool
    masks: bool
    images: int  # that training has
    objects: float  # in an image
    of_data: Mapping[str, tuple[Any, str]]  # by `object_choices`
    asked: Mapping[str, Any]  # set by hand

    @property
    def kept_features(self) -> bool:
        """Whether what the frozen encoder makes of an image is computed once."""
        states = [self.asked.get(f"parts.{part}", self.states.get(part)) for part in SamAdapter.feature_parts]
        return self.segmenter and all(state == "frozen" for state in states)

    @property
    def patch(self) -> int:
        return _patch(self.family, self.masks)

    def side(self) -> tuple[int, str]:
        side, reason = self.of_data["data.image_longest_edge"]
        by_hand = self.asked.get("data.image_longest_edge")
        if isinstance(by_hand, int) and by_hand > 0:
            return by_hand, BY_HAND
        largest = self.usual.largest_mask_side if self.masks else None
        if largest is not None and side > largest:
            return largest, "no larger: tokens are small for masks"
        if self.builds_queries:
            wanted, why = self.of_data["queries"]
            needed = side_for(wanted, self.patch, TINY_MULTIPLE, largest or TINY_SIDES[1])
            if needed > side:
                return needed, f"{wanted} queries have a patch of {self.patch} px each; {why}"
        return side, reason

    @property
    def builds_queries(self) -> bool:
        """Whether the model is built with as many queries as the recipe says."""
        return self.tiny and self.family == "rf_detr"

    def queries(self, side: int) -> tuple[int, str]:
        """`objects.queries` for images of `side` pixels, and why: each starts from a patch of its own."""
        wanted, reason = self.of_data["queries"]
        patches = (side // self.patch) ** 2
        if wanted > patches:
            return max(1, patches), f"{reason}; no more than the {patches} patches of {side} px"
        return wanted, reason

    def augment(self) -> tuple[float, str]:
        if self.kept_features:
            return 0.0, KEPT_FEATURES
        if self.usual.augment is not None:
            return self.usual.augment, "random weights: more variety delays what they learn first"
        return self.of_data["data.augment"]

    def mirror(self) -> tuple[str, str]:
        return ("none", KEPT_FEATURES) if self.kept_features else self.of_data["objects.mirror"]

    def samples(self) -> tuple[int, str]:
        samples, reason = self.of_data["batch.samples"]
        if self.usual.samples is not None:
            samples, reason = self.usual.samples, "small steps teach random weights more from as many images"
        if self.masks and self.usual.mask_objects is not None:
            return self.usual.samples_of_masks(samples, self.objects)
        return samples, reason

    def metric(self, boxes_alone: Sequence[str]) -> tuple[str, str]:
        """`evaluation.metric`, and why. boxes_alone: classes of which no training object has a mask."""
        if self.masks and not self.segmenter and boxes_alone:
            shown = ", ".join(boxes_alone[:5]) + (", ..." if len(boxes_alone) > 5 else "")
            return "box_ap", f"every class counts: of {shown} there are boxes alone, which AP of masks does not see"
        metric = "prompted_mask_ap" if self.segmenter else "mask_ap" if self.masks else "box_ap"
        return metric, "what the model is for"

    def epochs(self) -> tuple[float, str]:
        epochs, reason = self.of_data["epochs"]
        most = self.usual.most_epochs
        if most is not None and epochs > most:
            epochs, reason = most, f"{self.images} training images; enough for this family"
        return float(epochs), f"{counted(epochs, 'epoch', form='g')}: {reason}"


def derive_objects(
    datasets: Sequence[Dataset],
    weights: Sequence[float | None],
    model: str,
    machine: Hardware,
    *,
    ranks: int = 1,
    limit: int | None = None,
    epochs: float | None = None,
    epochs_by: str = AS_ASKED,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Recipe, ObjectMeasures]:
    """The recipe that data, model and machine call for, with its reasons, and what was measured of the data.

    `asked` are the fields that are set by hand, as `section.field`: not taken over here, but other choices follow from
    them. Without `objects.masks`, masks are learned where the data have some and the model draws them.
    Raises ModelError, DataError, and RecipeError where masks are asked for and the data have none.
    """
    classes = classes_of(datasets)
    if family_of(model) not in USUAL:
        raise ModelError("This model writes text; it finds no objects.", where=model, fix="--model tiny/rf-detr")
    measures = measure_objects(datasets, limit=limit)
    case = _case(datasets, model, measures, limit=limit, asked=asked)
    usual = case.usual
    reasons = Reasons(asked, epochs_by)
    choose = reasons.choose
    if (said := said_of(datasets)) is not None:
        reasons.why["objects.classes"] = said
    side, samples = choose("data.image_longest_edge", *case.side()), choose("batch.samples", *case.samples())
    steps = reasons.steps(case.images, samples, epochs, case.epochs())
    tokens = 4096 if machine.device == "cpu" else int(min(65536, max(4096, machine.memory / 2**30 * 512)))
    validation = _images(datasets, "validation", limit)
    evaluated, why_so_many = case.of_data["evaluation.samples"]
    values: dict[str, Any] = {
        "seed": 0,
        "model": {"name": model},
        "data": {
            "datasets": datasets_section(datasets, weights),
            "limit": limit,
            "image_longest_edge": side,
            "augment": choose("data.augment", *case.augment()),
        },
        "objects": {"classes": list(classes), **_objects_section(case, side, reasons)},
        "parts": choose("parts", dict(case.states), usual.reason),
        "lora": {
            "rank": choose("lora.rank", 8 if case.images < 1000 else 16, f"{case.images} training images"),
            "alpha": choose("lora.alpha", 16.0 if case.images < 1000 else 32.0, "twice the rank"),
            "dropout": choose("lora.dropout", 0.05, "few images for many weights"),
        },
        "optimizer": {
            "learning_rate": choose("optimizer.learning_rate", *usual.rate(case.objects * samples)),
            "part_learning_rates": dict(usual.part_rates),
            "weight_decay": choose("optimizer.weight_decay", usual.weight_decay, "usual for this family"),
            "clip_norm": choose("optimizer.clip_norm", usual.clip_norm, "usual for this family"),
            "average": choose("optimizer.average", usual.average, "steadier than the last weights"),
        },
        "schedule": {
            "steps": steps,
            "warmup": choose("schedule.warmup", usual.warmup, "usual for this family"),
        },
        "batch": batch_section(samples, tokens, machine, reasons),
        "evaluation": {
            "every": reasons.every(steps, 10),
            "samples": choose("evaluation.samples", min(max(1, validation), evaluated), why_so_many),
            "metric": choose("evaluation.metric", *case.metric(measures.boxes_alone)),
        },
        "checkpoints": {"every": reasons.every(steps, 10)},
        "machine": machine_section(machine, ranks, reasons),
        "why": reasons.why,
    }
    return parse(values, "the derived recipe"), measures


def _case(
    datasets: Sequence[Dataset], model: str, measures: ObjectMeasures, *, limit: int | None, asked: Mapping[str, Any]
) -> _Case:
    tiny, family = is_tiny(model), family_of(model)
    usual, masks = (TINY if tiny else USUAL)[family], asked.get("objects.masks")
    drawn = any(d.info.objects is not None and d.info.objects.masks for d in datasets)
    if masks and not drawn:
        raise RecipeError("The data have no masks.", where="objects.masks", fix="leave it out, or annotate masks")
    masks = draws_masks(model) and drawn if masks is None else masks
    states = dict(USUAL[family].states) | (dict(USUAL[family].mask_states) if masks else {})
    of_data = object_choices(
        measures,
        tiny=tiny,
        native_side=0 if tiny else native_image_size(model),
        patch=_patch(family, masks),
        multiple=TINY_MULTIPLE,
        patches=usual.small_object,
    )
    return _Case(
        family=family,
        segmenter=is_segmenter(model),
        usual=usual,
        states=dict.fromkeys(states, "full") if tiny else states,
        tiny=tiny,
        masks=masks,
        images=_images(datasets, "train", limit),
        objects=measures.objects / max(1, measures.images),
        of_data=of_data,
        asked=asked,
    )


def _patch(family: str, masks: bool) -> int:
    """Pixels of a token of a tiny model."""
    return MASK_PATCH if family == "rf_detr" and masks else TINY_PATCH


def _images(datasets: Sequence[Dataset], split: str, limit: int | None) -> int:
    return sum(min(dataset.count(split), limit or dataset.count(split)) for dataset in datasets)


def _objects_section(case: _Case, side: int, reasons: Reasons) -> dict[str, Any]:
    """`objects` of a recipe, less the classes. side: pixels of the longer side of images."""
    choose = reasons.choose
    section = {
        "masks": choose(
            "objects.masks",
            case.masks,
            "the data have masks, and the model draws them" if case.masks else "boxes alone",
        ),
        "mirror": choose("objects.mirror", *case.mirror()),
        "most": choose("objects.most", *case.of_data["objects.most"]),
    }
    if case.usual.denoise is not None:
        section["denoise"] = choose("objects.denoise", *case.usual.queries_at_objects(case.objects))
    if case.builds_queries:
        section["queries"] = choose("objects.queries", *case.queries(side))
    return section

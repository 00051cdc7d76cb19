"""From data, model and machine to a recipe with a reason for each choice, and the run folder that holds it."""

import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from visiontune.contract import contract_for
from visiontune.data.dataset import Dataset, font_path
from visiontune.data.order import key
from visiontune.data.pages import LEGIBLE_X_HEIGHT, Fonts, PageSpec, remedy, resize_scale, x_height
from visiontune.data.sample import Text
from visiontune.data.split import SPLITS
from visiontune.errors import DataError
from visiontune.files import make_folder, write_json
from visiontune.machine import Hardware
from visiontune.models.load import (
    build_tiny,
    build_tiny_finder,
    chat_prompt,
    cuts_into_tiles,
    finds_objects,
    is_tiny,
    longest_context,
    native_image_size,
    page_tokens,
    projector_takes_lora,
    tiny_image_size,
)
from visiontune.progress import note
from visiontune.recipe import Recipe, parse
from visiontune.run import Run
from visiontune.training.class_lists import refuse_other_classes
from visiontune.training.derived import AS_ASKED, Reasons, batch_section, datasets_section, machine_section
from visiontune.training.evaluate import closed_labels
from visiontune.training.plan_responses import build_network
from visiontune.training.refusals import refuse_taken
from visiontune.words import counted

LABELS_IN_PROMPT = 40
TINY_TEXTS = 20_000
TINY_STEPS = 1200
TINY_EPOCHS_AT_MOST = 60.0
TINY_PAGE = 512  # pixels; print of usual size is still legible, and a CPU can follow
PAGE_UNIT = 64
PAGE_FRAME = 8  # tokens
MOST_TILES_A_SIDE = 4
MAX_TOKENS = 2048


@dataclass(frozen=True)
class DataFacts:
    """What of the data decides a recipe. Sizes are of training images, in pixels of the longer side."""

    train_rows: int
    validation_rows: int
    labels: tuple[str, ...] | None
    answers: tuple[str, ...]
    prompts: tuple[str, ...]
    said: tuple[str, ...]  # in the turns of conversations
    every_row_has_a_prompt: bool
    median_long_side: int
    pages: PageSpec | None
    fonts: Fonts | None = None
    most_pages: int = 0
    most_images: int = 0
    longest_text: int = 0  # bytes of all that is said about a sample


def data_facts(datasets: Sequence[Dataset], limit: int | None) -> DataFacts:
    """Read the facts from the indexes; no image is decoded."""
    labels: dict[str, None] | None = {}
    answers: Counter[str] = Counter()
    prompts: Counter[str] = Counter()
    said: set[str] = set()
    rows = 0
    most_pages = most_images = longest_text = 0
    sides: list[int] = []
    for dataset in datasets:
        if dataset.info.target != "text":
            raise DataError(
                "The target is objects, and this model writes text.",
                where=str(dataset.path),
                fix="name a model that finds objects, such as --model tiny/rf-detr",
            )
        indexes = {split: dataset.index(split) for split in SPLITS}
        for index in indexes.values():
            most_pages = max([most_pages, *index.pages])
            most_images = max([most_images, *map(len, index.widths)])
            longest_text = max([longest_text, *(bytes_of(index.text(i)) for i in range(len(index.ids)))])
        index = indexes["train"]
        rows += min(len(index.ids), limit or len(index.ids))
        answers.update(index.answers)
        prompts.update(prompt for prompt in index.prompts if prompt)
        said.update(turn.text for turns in index.turns for turn in turns)
        sides += [max(w + h) for w, h in zip(index.widths, index.heights, strict=True) if w]
        known = dataset.info.labels
        labels = None if labels is None or known is None else labels | dict.fromkeys(known)
    if rows == 0:
        raise DataError("There is no training sample.", fix="prepare a dataset with at least one row in `train`")
    spec = _page_spec(datasets)
    return DataFacts(
        train_rows=rows,
        validation_rows=sum(min(d.count("validation"), limit or d.count("validation")) for d in datasets),
        labels=None if labels is None else tuple(labels),
        answers=tuple(sorted(answers)),
        prompts=tuple(sorted(prompts)),
        said=tuple(sorted(said - {""})),
        every_row_has_a_prompt=sum(prompts.values()) >= rows,
        median_long_side=max(spec.width, spec.height) if spec else int(np.median(sides)) if sides else 0,
        pages=spec,
        fonts=None if spec is None else datasets[0].fonts(),
        most_pages=most_pages,
        most_images=most_images,
        longest_text=longest_text,
    )


def bytes_of(text: Text) -> int:
    """The bytes of all that is said about a sample."""
    said = [turn.text for turn in text.turns] or [text.prompt or ""]
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in (*said, text.answer))


def _page_spec(datasets: Sequence[Dataset]) -> PageSpec | None:
    """How the datasets' documents become pages; None for images. Raises DataError where they differ."""
    specs = {None if dataset.info.pages is None else dataset.info.pages.hash for dataset in datasets}
    if len(specs) > 1:
        raise DataError(
            "The datasets are seen in different ways: as images and as pages, or as pages of different specs.",
            where=", ".join(str(dataset.path) for dataset in datasets),
            fix="prepare them with the same page spec, or train on one kind at a time",
        )
    return datasets[0].info.pages


def question(labels: Iterable[str] | None, *, pages: bool) -> str:
    """The question asked about samples that bring none."""
    if labels is None:
        return "Summarise this document." if pages else "Describe this image."
    names = list(labels)
    if len(names) > LABELS_IN_PROMPT:
        return "Which class does this image show? Answer with its name."
    return f"Which of these classes does this image show: {', '.join(names)}? Answer with its name."


def derive(
    datasets: Sequence[Dataset],
    weights: Sequence[float | None],
    model: str,
    machine: Hardware,
    *,
    ranks: int = 1,
    limit: int | None = None,
    epochs: float | None = None,
    epochs_by: str = AS_ASKED,
    profile: str | None = None,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """The recipe that data, model and machine call for, with its reasons; `profile` names the device it is for.

    `asked` are the fields that are set by hand, as `section.field`: not taken over here, but the number of steps, and
    how often is evaluated, follow from them.

    Raises ModelError, DataError, and RecipeError for an unknown profile.
    """
    if finds_objects(model):
        raise DataError(
            "These data have texts, such as the names of folders, and this model finds objects.",
            where=", ".join(str(dataset.path) for dataset in datasets),
            fix="name a model that writes text, or give annotations of boxes: COCO's JSON, YOLO's data.yaml, VOC's XML",
        )
    facts = data_facts(datasets, limit)
    tiny = is_tiny(model)
    reasons = Reasons(asked, epochs_by)
    choose = reasons.choose

    n = facts.train_rows
    samples = choose("batch.samples", next(b for b in (4, 8, 16, 32) if b == 32 or n < 24 * b), f"{n} training samples")
    shown = TINY_STEPS * reasons.in_force("batch.samples", samples)
    times = min(TINY_EPOCHS_AT_MOST, max(3.0, shown / n)) if tiny else 3.0
    because = f"{counted(times, 'epoch', form='.3g')}: {'random weights learn slowly' if tiny else 'usual for LoRA'}"
    steps = reasons.steps(n, samples, epochs, (times, because))
    tile = _tile(model, facts)
    device = None if profile is None else contract_for(profile, image_size=tile, chat_prompt=chat_prompt(model))
    if device is not None:
        tile = device.image_size
    edge, splitting = tile, False
    if device is None and (facts.pages is None or not tiny):  # a tiny model is built for its pages
        edge, splitting = image_choice(model, facts.median_long_side, facts.labels is not None)
    longest_answer = max(len(answer.encode()) for answer in facts.answers)
    values: dict[str, Any] = {
        "seed": 0,
        "model": {"name": model},
        "data": {
            "datasets": datasets_section(datasets, weights),
            "prompt": choose(
                "data.prompt", question(facts.labels, pages=facts.pages is not None), _prompt_reason(facts)
            ),
            "limit": limit,
            "image_longest_edge": choose(
                "data.image_longest_edge",
                edge,
                f"the vision encoder takes {tile} px; the median longer side is {facts.median_long_side} px"
                if device is None
                else f"what {profile} shows the model",
            ),
            "image_splitting": choose(
                "data.image_splitting",
                splitting,
                "large images are cut into tiles" if splitting else "one tile an image is enough for these images",
            ),
            "pages": None if facts.pages is None else facts.pages.model_dump(mode="json"),
            "augment": choose(
                "data.augment",
                0.5 if tiny and facts.pages is None else 0.0,
                "pages are drawn as clean in use as in training; 0.25 where they will come from a camera"
                if facts.pages is not None
                else "a vision encoder that starts from nothing sees few images"
                if tiny
                else "the vision encoder is frozen",
            ),
            "max_tokens": choose("data.max_tokens", *_max_tokens(model, facts, edge, splitting)),
        },
        "parts": _parts(model, reasons.why),
        "lora": {
            "rank": choose("lora.rank", 8 if n < 1000 else 16 if n < 20_000 else 32, f"{n} training samples"),
            "alpha": choose("lora.alpha", 2.0 * (8 if n < 1000 else 16 if n < 20_000 else 32), "twice the rank"),
            "dropout": choose("lora.dropout", 0.05, "few samples for many weights"),
        },
        "optimizer": {
            "learning_rate": choose(
                "optimizer.learning_rate",
                1e-3 if tiny else 2e-4,
                "random weights of a small model" if tiny else "usual for LoRA on pretrained weights",
            ),
            "weight_decay": choose(
                "optimizer.weight_decay", 0.3 if tiny else 0.01, "every weight learns" if tiny else "usual for LoRA"
            ),
        },
        "schedule": {"steps": steps},
        "batch": batch_section(samples, _tokens(machine), machine, reasons),
        "evaluation": {
            "every": reasons.every(steps, 8),
            "samples": choose("evaluation.samples", min(max(1, facts.validation_rows), 256), "enough to choose by"),
            "metric": "accuracy" if facts.labels else "rougeL",
            "answers": choose(
                "evaluation.answers",
                "scored" if facts.labels else "generated",
                "the answers are labels" if facts.labels else "the answers are free text",
            ),
            "max_new_tokens": choose(
                "evaluation.max_new_tokens",
                device.max_new_tokens if device else min(512, 4 + longest_answer),
                f"as {profile} does" if device else f"the longest answer has {longest_answer} bytes",
            ),
        },
        "checkpoints": {"every": reasons.every(steps, 8)},
        "machine": machine_section(machine, ranks, reasons),
        "device": None if device is None else device.model_dump(mode="json"),
        "why": reasons.why,
    }
    return parse(values, "the derived recipe")


def _prompt_reason(facts: DataFacts) -> str:
    if facts.every_row_has_a_prompt:
        return "not asked: every sample brings its own question"
    return "names the classes" if facts.labels else "free text"


def _tile(model: str, facts: DataFacts) -> int:
    """Pixels of the square that the vision encoder takes."""
    if facts.pages is not None and facts.fonts is not None:
        return page_side(model, facts.pages, facts.fonts)
    return image_choice(model, facts.median_long_side, labelled=True)[0]


def page_side(model: str, spec: PageSpec, fonts: Fonts) -> int:
    """Pixels a side of the square that the model fits a page into. A tiny model is built for it: TINY_PAGE, or more
    where letters need it, and no more than the page has."""
    if not is_tiny(model):
        return native_image_size(model)
    whole = max(1, max(spec.width, spec.height) // PAGE_UNIT) * PAGE_UNIT
    needed = LEGIBLE_X_HEIGHT / x_height(spec, fonts) * max(spec.width, spec.height)
    return min(whole, max(TINY_PAGE, math.ceil(needed / PAGE_UNIT) * PAGE_UNIT))


def image_choice(model: str, median_long_side: int, labelled: bool) -> tuple[int, bool]:
    """`data.image_longest_edge` and `data.image_splitting` for images of this median longer side, in pixels.

    Large images are cut into tiles where the model can, unless their answers are labels. Raises ModelError.
    """
    if is_tiny(model):
        least = tiny_image_size(model)
        return (least if median_long_side <= least else 2 * least), False
    side = native_image_size(model)
    if labelled or median_long_side <= side or not cuts_into_tiles(model):
        return side, False
    return min(MOST_TILES_A_SIDE, -(-median_long_side // side)) * side, True


def longest_sequence(model: str, images: int, text: int, edge: int, splitting: bool) -> tuple[int, int]:
    """Tokens that so many images (or pages) of `edge` pixels and `text` bytes take at most, and how many of them the
    model reads."""
    views = (edge // native_image_size(model)) ** 2 + 1 if splitting else 1
    side = native_image_size(model) if splitting else edge
    # A token is at least a byte; each view is framed by a few more, and so is the question.
    needed = images * views * (page_tokens(model, side) + PAGE_FRAME) + text + PAGE_FRAME
    context = longest_context(model)
    return max(MAX_TOKENS, needed), context


def _max_tokens(model: str, facts: DataFacts, edge: int, splitting: bool) -> tuple[int, str]:
    """The longest sequence, and why: that of the sample with the most to see, as far as the model reads."""
    seen = facts.most_images if facts.pages is None else facts.most_pages
    needed, context = longest_sequence(model, seen, facts.longest_text, edge, splitting)
    what = "images" if facts.pages is None else "pages"
    return min(context, needed), f"{seen} {what} at most; the model reads {context} tokens"


def refuse_illegible(recipe: Recipe, dataset: Dataset) -> None:
    """Raise DataError where letters are lower than `data.least_x_height` pixels after the model's resize."""
    spec, side = recipe.data.pages, recipe.data.image_longest_edge
    if spec is None:
        return
    fonts = dataset.fonts()
    seen = x_height(spec, fonts) * resize_scale(spec, side)
    if seen < recipe.data.least_x_height:
        raise DataError(
            f"The model sees the pages at {side} pixels a side, letters with an x-height of {seen:.1f} pixels; below "
            f"{recipe.data.least_x_height:g} they run together.",
            where=str(dataset.path),
            fix=f"prepare anew: {remedy(spec, fonts, side)}; or lower --data.least_x_height if you mean it",
        )


def _parts(model: str, why: dict[str, str]) -> dict[str, str]:
    if is_tiny(model):
        why["parts"] = "random weights: there is nothing worth keeping, every part learns"
        return dict.fromkeys(("vision_encoder", "projector", "language_model", "embeddings"), "full")
    why["parts"] = "pretrained: the vision encoder keeps what it knows, adapters learn the new answers"
    projector = "lora" if projector_takes_lora(model) else "full"  # it is small
    return {"vision_encoder": "frozen", "projector": projector, "language_model": "lora", "embeddings": "frozen"}


def _tokens(machine: Hardware) -> int:
    """Padded tokens of a micro-batch; a first guess, cut finer by the loop where memory runs out."""
    if machine.device == "cpu":
        return 4096
    return int(min(32768, max(2048, machine.memory / 2**30 * 256)))


def plan_run(run: Run, recipe: Recipe, datasets: Sequence[Dataset]) -> None:
    """Write a new run folder: the recipe, and the tiny model where one was asked for. Raises RunError if one stands."""
    refuse_taken(run)
    refuse_illegible(recipe, datasets[0])
    if recipe.objects is not None:
        refuse_other_classes(recipe.objects.classes, datasets)
    make_folder(run.path)
    seed, size = key(recipe.seed, 6), recipe.data.image_longest_edge
    if recipe.responses is not None:
        build_network(run, recipe, datasets, seed)
    elif is_tiny(recipe.model.name) and recipe.objects is not None:
        build_tiny_finder(recipe.model.name, run.base_folder, recipe.objects, seed, size)
    elif is_tiny(recipe.model.name):
        facts = data_facts(datasets, recipe.data.limit)
        texts = [recipe.data.prompt, *facts.prompts[:TINY_TEXTS], *facts.said[:TINY_TEXTS], *facts.answers[:TINY_TEXTS]]
        build_tiny(recipe.model.name, run.base_folder, texts, seed, size)
    for font in recipe.data.pages.fonts if recipe.data.pages is not None else ():
        kept = font_path(run.path, font)
        if kept.parent == run.path and not kept.exists():  # the package's own font is not copied
            shutil.copyfile(font_path(datasets[0].path, font), kept)
    write_json(run.path / "labels.json", {"labels": closed_labels(datasets)})
    recipe.save(run.recipe_path)
    steps, samples = counted(recipe.schedule.steps, "step"), counted(recipe.batch.samples, "sample")
    note(f"run folder: {run.path}  ({steps} of {samples})")

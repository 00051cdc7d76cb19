"""What `train`, `evaluate` and `predict` do about boxes and masks: which models, in which runs, and what of them is
scored together."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visiontune.api.devices import computed_on
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.files import make_folder, write_json
from visiontune.progress import note
from visiontune.run import Run
from visiontune.run_group import RunGroup, open_run

if TYPE_CHECKING:
    from visiontune.api.data_verbs import Source
    from visiontune.data.dataset import Dataset
    from visiontune.data.object_measures import ObjectMeasures
    from visiontune.data.sample import Images, ObjectPrediction
    from visiontune.machine import Hardware
    from visiontune.metrics.object_scores import ObjectScores
    from visiontune.models.objects import ObjectAdapter
    from visiontune.recipe import Recipe
    from visiontune.training.ranks import Ranks

DETECTOR = "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det"
SEGMENTER = "facebook/sam-vit-base"
LEAST_SHOWN = 0.3  # the score from which on objects are drawn and listed
STUDENT, STUDENT_WITH_MASKS = "Roboflow/rf-detr-nano", "Roboflow/rf-detr-seg-nano"


def models_for(datasets: Sequence[Dataset], model: str | None, *, student: bool) -> dict[str, str]:
    """The models to train, by role: `detector`, `segmenter` or both.

    The data decide: boxes call for a detector, masks for a segmenter. `model` names other checkpoints, one or two
    separated by a comma; each has the role that its family plays. Raises ModelError and DataError.
    """
    from visiontune.models.load import is_segmenter

    masks = any(d.info.objects is not None and d.info.objects.masks for d in datasets)
    if model is None and student:
        return {"detector": STUDENT_WITH_MASKS if masks else STUDENT}
    if model is None:
        return {"detector": DETECTOR} | ({"segmenter": SEGMENTER} if masks else {})
    found: dict[str, str] = {}
    for name in (part.strip() for part in model.split(",")):
        role = "segmenter" if is_segmenter(name) else "detector"
        if role in found:
            raise ModelError(
                f"'{found[role]}' and '{name}' are both a {role}.", where="--model", fix="name one of each"
            )
        found[role] = name
    if "segmenter" in found and not masks:
        raise DataError(
            "A model that draws masks is to be trained, and the data have no masks.",
            where=str(datasets[0].path),
            fix="train a detector, or bring masks",
        )
    return found


def plan_objects(
    datasets: Sequence[Dataset],
    shares: Sequence[float | None],
    models: dict[str, str],
    out: Path,
    machine: Hardware,
    fragments: Sequence[dict[str, Any]],
    changes: dict[str, Any],
    **options: Any,
) -> list[Run]:
    """Write the run folders: of one model `out` itself, of two `out/ROLE` each, under a plan file."""
    from visiontune.recipe import leaves
    from visiontune.training.class_lists import warn_of_class_lists
    from visiontune.training.object_places import warn_of_crowded_images
    from visiontune.training.plan import plan_run
    from visiontune.training.plan_objects import derive_objects
    from visiontune.training.refusals import refuse_idle

    runs = {role: Run(out if len(models) == 1 else out / role) for role in models}
    asked = dict(leaf for given in (*fragments, changes) for leaf in leaves(given))
    planned: dict[str, tuple[Recipe, ObjectMeasures]] = {}
    for role in runs:
        recipe, measures = derive_objects(datasets, shares, models[role], machine, asked=asked, **options)
        for fragment in fragments:
            recipe = recipe.overlaid(fragment)
        planned[role] = recipe.changed(changes), measures
    refuse_idle([recipe for recipe, _ in planned.values()], changes)
    warn_of_class_lists(datasets)
    for role, (recipe, measures) in planned.items():
        warn_of_crowded_images(recipe, measures)
        plan_run(runs[role], recipe, datasets)
        write_json(runs[role].path / "measures.json", measures.to_json())
    if len(runs) > 1:
        RunGroup(out, runs).save()
    return list(runs.values())


def check_student(
    datasets: Sequence[Dataset],
    shares: Sequence[float | None],
    models: dict[str, str],
    machine: Hardware,
    fragments: Sequence[dict[str, Any]],
    changes: dict[str, Any],
    **options: Any,
) -> None:
    """Raise what planning a student on what people drew, and putting its model together, raises: before a teacher
    spends hours on labels. Nothing is kept."""
    import torch

    from visiontune.training.model import adapt, load_base

    if not any(dataset.info.objects is not None and dataset.info.objects.masks for dataset in datasets):
        changes = {**changes, "objects.masks": False}  # the teacher may bring some
    note("the student is put together on trial before the teacher labels anything")
    # What is said here is said again, of all the data, when the student is planned.
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        for run in plan_objects(datasets, shares, models, Path(folder, "run"), machine, fragments, changes, **options):
            adapt(load_base(run, run.recipe, torch.device("cpu")), run.recipe)


def runs_of(path: Path) -> list[Run]:
    """The runs that a folder holds, in the order in which they are trained."""
    opened = open_run(path)
    return list(opened.runs.values()) if isinstance(opened, RunGroup) else [opened]


def evaluate_objects(
    opened: Run | RunGroup, recipes: dict[str, Recipe], split: str, ranks: Ranks, limit: int | None, step: int | None
) -> ObjectScores:
    """Score a split; of a group each run by itself, and the whole: the detector's boxes prompting the segmenter.

    Returns the scores of the whole.
    """
    from visiontune.data.sample import Images
    from visiontune.models.objects import finds_objects
    from visiontune.training.evaluate_objects import (
        drawn_in,
        evaluate_split_of_objects,
        find_in_split,
        prompts_of,
    )
    from visiontune.training.model import load_trained, open_datasets
    from visiontune.training.rows import first_rows

    runs = opened.runs if isinstance(opened, RunGroup) else {"": opened}
    found: dict[str, tuple[ObjectAdapter, list[ObjectPrediction]]] = {}
    scores: ObjectScores | None = None
    whole = time.monotonic()
    reached = 0
    datasets: list[Dataset] = []
    for role, run in runs.items():
        started, recipe = time.monotonic(), recipes[role]
        datasets = open_datasets(recipe)
        loaded, reached = load_trained(run, recipe, ranks.device, step)
        adapter = finds_objects(loaded)
        predictions = find_in_split(adapter, datasets, split, recipe, ranks, limit=limit, show=True)
        prompts = prompts_of(adapter)
        scores = evaluate_split_of_objects(run, predictions, split, ranks, reached, prompts, started)
        found[role] = adapter, predictions
    if isinstance(opened, RunGroup) and set(found) == {"detector", "segmenter"}:
        rows = sorted(first_rows(datasets, split, limit=limit))  # those of the predictions, in their order

        def shown(place: int) -> Images:
            d, i = rows[place]
            seen = datasets[d].sample(split, i).seen
            assert isinstance(seen, Images)
            return seen

        boxes = found["detector"][1]
        segmenter = found["segmenter"][0]
        drawn = drawn_in(segmenter, boxes, shown, recipes["segmenter"], ranks.device, show=ranks.is_first)
        holder = Run(opened.path)
        scores = evaluate_split_of_objects(holder, drawn, split, ranks, reached, "detector boxes", whole)
    assert scores is not None
    return scores


def refuse_without_adapter(run: Run) -> None:
    """Raise ModelError for a run that has no adapter to switch off."""
    if "lora" not in run.recipe.parts.values():
        raise ModelError(
            "Without an adapter to switch off, nothing is left of the model as it was before.",
            where=str(run.path),
            fix="use a run with a part set to lora",
        )


def refuse_file(folder: Path) -> None:
    """Raise DataError where a file stands in the place of the folder for pictures."""
    if folder.exists() and not folder.is_dir():
        raise DataError("This is a file, and pictures go to a folder.", where=str(folder), fix="use another --pictures")


def evaluate_known(
    run: Run, recipe: Recipe, known: Dataset, split: str, ranks: Ranks, limit: int | None, step: int | None
) -> dict[str, Any]:
    """What is left of the classes that the model knew before: box AP on other data, with the adapter, which the run
    has, on and off.

    Writes evaluations/known-NAME-SPLIT-HASH.json, with the hash of the data: others may have their name. Raises
    RecipeError for a model that cannot be asked for other classes.
    """
    from visiontune.models.objects import finds_objects
    from visiontune.training.evaluate_objects import find_in_split, score_predictions
    from visiontune.training.model import load_trained
    from visiontune.training.refusals import refuse_unseen

    loaded, reached = load_trained(run, recipe, ranks.device, step)
    adapter, names = finds_objects(loaded), known.index(split).classes
    if names is None:
        raise DataError("The known data hold no objects.", where=str(known.path), fix="give prepared boxes")
    assert adapter.peft is not None  # refuse_without_adapter
    adapter.encoder = adapter.encoder.asking(names)
    refuse_unseen(adapter.encoder, [known], [split], limit=limit, fix="cut off the longer side of these images")
    find = partial(find_in_split, adapter, [known], split, recipe, ranks, limit=limit, show=True)
    after = score_predictions(find(), "none")
    with adapter.peft.disable_adapter():
        before = score_predictions(find(), "none")
    figures = {}
    for name in ["box_ap", "box_ap50", *(f"box_ap.{label}" for label in names)]:
        figures[name] = {"before": before.metric(name).to_json(), "after": after.metric(name).to_json()}
    value = {"data": str(known.path), "split": split, "step": reached, "n": after.n, "metrics": figures}
    if ranks.is_first:
        name = f"known-{known.path.name}-{split}-{known.info.content_hash[:8]}.json"
        write_json(run.path / "evaluations" / name, value)
    return value


def predict_objects(
    opened: Run | RunGroup,
    recipes: dict[str, Recipe],
    paths: Sequence[Path],
    ranks: Ranks,
    step: int | None,
    classes: Sequence[str] | None,
    pictures: Path,
    least_score: float | None,
) -> list[ObjectPrediction]:
    """What is found in image files, with masks where a segmenter stands beside the detector; a picture of each with
    what was found goes to the folder `pictures`."""
    from visiontune.data.sample import ImageFile, Images
    from visiontune.models.objects import finds_objects
    from visiontune.training.evaluate_objects import drawn_in, find_in_files
    from visiontune.training.model import load_trained

    refuse_file(pictures)
    runs = opened.runs if isinstance(opened, RunGroup) else {"": opened}
    role = "detector" if "detector" in runs else next(iter(runs))
    loaded, _ = load_trained(runs[role], recipes[role], ranks.device, step)
    adapter = finds_objects(loaded)
    if classes is not None:
        adapter.encoder = adapter.encoder.asking(distinct(classes))
    predictions = find_in_files(adapter, paths, recipes[role], ranks.device)
    if "segmenter" in runs and role == "detector":
        loaded, _ = load_trained(runs["segmenter"], recipes["segmenter"], ranks.device, step)
        segmenter = finds_objects(loaded)

        def shown(place: int) -> Images:
            return Images((ImageFile(paths[place].read_bytes(), str(paths[place])),))

        predictions = drawn_in(segmenter, predictions, shown, recipes["segmenter"], ranks.device, show=True)
    return drawn_on(predictions, paths, pictures, least_score)


def distinct(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of classes to be found; RecipeError for none, or for two that read alike."""
    names = tuple(name.strip() for name in classes if name.strip())
    if not names:
        raise RecipeError("No class is named.", where="--classes", fix='name some, as "car, bicycle"')
    read = [" ".join(name.casefold().strip(" .").split()) for name in names]
    if twice := [name for name, own in zip(names, read, strict=True) if read.count(own) > 1]:
        raise RecipeError(f"Classes read alike: {', '.join(twice)}.", where="--classes", fix="name each once")
    return names


def drawn_on(
    predictions: Sequence[ObjectPrediction], paths: Sequence[Path], pictures: Path, least_score: float | None
) -> list[ObjectPrediction]:
    """The predictions, each with the path of a picture in the folder `pictures` that shows it, beside its file's."""
    from visiontune.data.images import decode
    from visiontune.overlay import draw

    make_folder(pictures)
    least = LEAST_SHOWN if least_score is None else least_score
    drawn = []
    for number, (path, prediction) in enumerate(zip(paths, predictions, strict=True)):
        picture = draw(decode(path.read_bytes()), prediction.target, prediction.classes, least_score=least)
        name = path.stem if [p.stem for p in paths].count(path.stem) == 1 else f"{number:04d}-{path.stem}"
        picture.save(pictures / f"{name}.png")
        drawn.append(replace(prediction, source=(str(path), str(pictures / f"{name}.png"))))
    note(f"pictures with what was found: {pictures}")
    return drawn


def distilled(
    teacher: Source,
    datasets: Sequence[Dataset],
    unlabelled: Sequence[Source],
    out: Path,
    machine: Hardware,
    limit: int | None,
) -> list[Dataset]:
    """What a teacher makes of the data and of unlabelled images, of each the first `limit`, as datasets in
    `out/distilled`.

    The teacher is a run, a group of runs, or a model that finds objects by their names. Raises what `distil` raises.
    """
    import torch

    from visiontune.models.objects import finds_objects
    from visiontune.models.parts import tensors_sha256
    from visiontune.training.distil import distil
    from visiontune.training.model import load_trained
    from visiontune.training.plan_objects import zero_shot
    from visiontune.training.teacher import Finder, Teacher

    device = torch.device(machine.device)
    finders: dict[str, Finder] = {}
    if RunGroup.stands_at(teacher) or Run(teacher).recipe_path.is_file():
        opened = open_run(teacher)
        if isinstance(opened, RunGroup) and "detector" not in opened.runs:
            raise ModelError("This group of runs has no detector to teach.", where=str(teacher), fix="give a detector")
        for role, run in (opened.runs if isinstance(opened, RunGroup) else {"detector": opened}).items():
            recipe = computed_on(run.recipe, machine.device)
            adapter, _ = load_trained(run, recipe, device)
            finders[role] = Finder(finds_objects(adapter), recipe.batch.tokens, recipe.machine.precision, device)
    else:
        finders["detector"] = Finder(zero_shot(str(teacher), datasets, device), 4096, "fp32", device)
    hashes = [tensors_sha256(finder.adapter.trained_module.state_dict()) for finder in finders.values()]
    note(f"the teacher {teacher} labels images: {out / 'distilled'}")
    return distil(
        Teacher(finders["detector"], finders.get("segmenter")),
        datasets,
        [Path(source) for source in unlabelled],
        out / "distilled",
        teacher_key=" ".join(hashes),
        limit=limit,
    )

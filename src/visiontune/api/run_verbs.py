"""`train`, `resume`, `pause`, `evaluate`, `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visiontune.api.data_verbs import Source, prepare
from visiontune.errors import DataError, ModelError, RecipeError, RequirementError
from visiontune.progress import note, warn

if TYPE_CHECKING:
    from visiontune.data.dataset import Dataset
    from visiontune.data.sample import ObjectPrediction, Prediction
    from visiontune.machine import Device
    from visiontune.metrics.intervals import Metric
    from visiontune.metrics.object_scores import ObjectScores
    from visiontune.metrics.requirements import Requirement
    from visiontune.metrics.text import TextScores
    from visiontune.run import Run
    from visiontune.run_group import RunGroup


def train(
    *data: Source,
    model: str | None = None,
    out: Source,
    teacher: Source | None = None,
    unlabelled: Sequence[Source] = (),
    weights: Sequence[float] | None = None,
    preset: str | None = None,
    recipe: Source | None = None,
    epochs: float | None = None,
    limit: int | None = None,
    device_profile: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Run | RunGroup:
    """Train on one or several datasets (folders that are not prepared yet are prepared inside `out`).

    Texts need a `model`. Boxes call for a detector, masks for a segmenter, both for both, then as a group of runs;
    `model` picks other checkpoints, two separated by a comma. With a `teacher` (a run, or a model that finds objects by
    their names) a small student learns from what people drew and from what the teacher finds in those images and in the
    `unlabelled` ones.

    The recipe is derived from data, model and machine; `preset` (quick, standard, quality, low-memory), `recipe` (a
    YAML file, whole or partial) and `overrides` (`{"lora.rank": 8}`) change its fields, in this order. `device_profile`
    names the device that the model is for ("android-256"): training then sees the very pixels and prompts that the
    device will. Raises VisiontuneError.
    """
    from visiontune.api.object_verbs import distilled, models_for, plan_objects, runs_of
    from visiontune.machine import hardware
    from visiontune.models.load import is_tiny, read_config
    from visiontune.recipe import check_names, fragment_names, read_fragment, read_preset
    from visiontune.run import Run
    from visiontune.run_group import open_run
    from visiontune.training.loop import train_run
    from visiontune.training.plan import derive, plan_run, refuse_taken
    from visiontune.training.ranks import Ranks

    run = Run(out)
    changes = dict(overrides or {})
    fragment = read_fragment(Path(recipe)) if recipe is not None else {}
    first, usual_epochs = read_preset(preset) if preset is not None else ({}, None)
    device: Device | None = changes.get("machine.device", fragment.get("machine", {}).get("device"))
    machine = hardware(device)
    ranks = Ranks(machine.device)
    if ranks.is_first:
        # What can be known to be wrong at once is said before hours are spent on preparing data.
        if not data:
            raise DataError("No data were given.", fix="visiontune train DATA --model NAME --out RUN")
        check_names([*changes, *fragment_names(fragment)])
        refuse_taken(run)
        for name in [] if model is None else model.split(","):
            if not is_tiny(name):
                read_config(name)
        names = [Path(s).name if len(data) == 1 else f"{i}-{Path(s).name}" for i, s in enumerate(data)]
        sources = zip(data, names, strict=True)
        datasets = [_dataset(source, run.path / "data" / name, limit) for source, name in sources]
        shares = list(weights) if weights is not None else [None] * len(datasets)
        if len(shares) != len(datasets):
            raise DataError(
                f"{len(datasets)} datasets need as many weights; there are {len(shares)}.", where="--weights"
            )
        options: dict[str, Any] = {"ranks": ranks.count, "limit": limit}
        options["epochs"] = usual_epochs if epochs is None else epochs
        if all(dataset.info.target == "objects" for dataset in datasets):
            if device_profile is not None:
                raise RecipeError("A device's contract is about texts.", where="--for", fix="leave it out for objects")
            models = models_for(datasets, model, student=teacher is not None)
            if teacher is not None:
                datasets = distilled(teacher, datasets, unlabelled, run.path, machine)
                shares = [None] * len(datasets)
            elif unlabelled:
                raise DataError(
                    "Nobody labels the unlabelled images.", where="--unlabelled", fix="--teacher runs/teacher"
                )
            plan_objects(datasets, shares, models, run.path, machine, [first, fragment], changes, **options)
        else:
            if model is None:
                raise ModelError("Texts need a model.", where="--model", fix="--model tiny/smolvlm for a first look")
            if teacher is not None or unlabelled:
                raise DataError("A teacher labels boxes and masks; these data have texts.", fix="leave it out")
            planned = derive(datasets, shares, model, machine, profile=device_profile, **options)
            plan_run(run, planned.overlaid(first).overlaid(fragment).changed(changes), datasets)
    ranks.wait()
    for one in runs_of(run.path):
        _trained(train_run, one)
    return open_run(run.path)


def _dataset(source: Source, prepared: Path, limit: int | None) -> Dataset:
    """The prepared dataset at `source`, or the folder there prepared; DataError where a fault forbids training.

    One at a URL is fetched into the folder `prepared`.
    """
    from visiontune.data.dataset import Dataset
    from visiontune.data.dataset_info import INFO_NAME
    from visiontune.data.remote import fetch, is_url

    if is_url(source):
        source = fetch(str(source), prepared)
    source = Path(source)
    dataset = Dataset.open(source) if (source / INFO_NAME).is_file() else prepare(source, prepared, limit=limit)
    if errors := [fault for fault in dataset.info.faults if fault.severity == "error"]:
        first = errors[0]
        raise DataError(
            f"The data have {len(errors)} errors, the first: {first.found}", where=first.where, fix=first.fix
        )
    return dataset


def _trained(train_run: Any, run: Run) -> Run:
    from visiontune.machine import is_first_process
    from visiontune.report import write_report

    try:
        return train_run(run)
    finally:
        if is_first_process() and run.recipe_path.exists():
            note(f"report: {write_report(run)}")


def resume(run: Source) -> Run | RunGroup:
    """Go on with a run, or with each run of a group, from its latest checkpoint; only the folder is needed.

    Raises VisiontuneError.
    """
    from visiontune.api.object_verbs import runs_of
    from visiontune.run_group import open_run
    from visiontune.training.loop import train_run

    for one in runs_of(Path(run)):
        _trained(train_run, one)
    return open_run(run)


def pause(run: Source) -> Run | RunGroup:
    """Ask the trainer of a run (of a group: of each that is running) to checkpoint and stop at its next step."""
    from visiontune.run_group import RunGroup, open_run

    opened = open_run(run)
    running = [r for r in opened.runs.values() if r.status == "running"] if isinstance(opened, RunGroup) else [opened]
    for one in running:
        one.ask_to_pause()
    return opened


def evaluate(
    run: Source,
    *,
    split: str = "test",
    require: str | Sequence[str] = (),
    limit: int | None = None,
    step: int | None = None,
    device: Device | None = None,
    ratios: Sequence[float] = (),
    bertscore: str | None = None,
    bertscore_layer: int | None = None,
    known: Source | None = None,
) -> TextScores | ObjectScores:
    """Answer a split with the best checkpoint (or that of `step`) and score the answers.

    Of a group of runs each is scored, and then the whole: masks drawn in the boxes that the detector found. `known`, a
    prepared dataset of boxes of other classes, asks what is left of what the model knew before it was tuned.

    `require` holds conditions like "accuracy>=0.85"; raises RequirementError where one does not hold. At `ratios` of
    text tokens to vision tokens documents are drawn and answered again (`training.ratios`). `bertscore` names an
    encoder (hub id or folder) for BERTScore, by its last layer or `bertscore_layer`.
    """
    from visiontune.api.object_verbs import evaluate_known, evaluate_objects
    from visiontune.data.dataset import Dataset
    from visiontune.metrics.bertscore import Embedder
    from visiontune.metrics.requirements import parse_requirements
    from visiontune.models.text import writes_text
    from visiontune.report import write_report
    from visiontune.run_group import RunGroup, open_run
    from visiontune.training.evaluate import answered, evaluate_baselines, evaluate_split
    from visiontune.training.model import load_trained, open_datasets
    from visiontune.training.ranks import Ranks
    from visiontune.training.ratios import MOST_DOCUMENTS, check_ratios, evaluate_ratios

    requirements = parse_requirements(require) if require else ()
    group = open_run(run)
    members = group.runs if isinstance(group, RunGroup) else {"": group}
    opened = next(iter(members.values()))
    recipes = {role: _on_device(member, device) for role, member in members.items()}
    recipe = next(iter(recipes.values()))
    if recipe.objects is not None:
        if ratios or bertscore is not None or bertscore_layer is not None:
            raise RecipeError("Ratios and BERTScore are of texts; this run finds objects.", fix="leave them out")
        ranks = Ranks(recipe.machine.device)
        _refuse_empty(open_datasets(recipe), split, run)
        found = evaluate_objects(group, recipes, split, ranks, limit, step)
        if known is not None:
            role = "detector" if "detector" in members else next(iter(members))
            asked = Dataset.open(known)
            kept = evaluate_known(members[role], recipes[role], asked, split, ranks, limit, step)["metrics"]["box_ap"]
            note(f"known before: box AP {_value(kept['before'])}, now {_value(kept['after'])}")
        if ranks.is_first:
            for member in members.values():
                note(f"report: {write_report(member)}")
        _require(requirements, found, run, split)
        return found
    if known is not None:
        raise RecipeError("What was known before is asked of detectors.", where="--known", fix="leave it out")
    check_ratios(ratios, recipe)
    if bertscore is None and bertscore_layer is not None:
        raise RecipeError("A layer is given, and no encoder.", where="--bertscore-layer", fix="--bertscore ENCODER")
    datasets = open_datasets(recipe)
    _refuse_empty(datasets, split, run)
    ranks = Ranks(recipe.machine.device)
    embedder = None if bertscore is None else Embedder(bertscore, layer=bertscore_layer, device=ranks.device)
    loaded, step = load_trained(opened, recipe, ranks.device, step)
    adapter = writes_text(loaded)
    scores = evaluate_split(opened, adapter, datasets, split, recipe, ranks, step, limit=limit, embedder=embedder)
    if ranks.is_first and recipe.data.pages is not None:
        for one in evaluate_baselines(opened, adapter, datasets, split, recipe, ranks.device, step, limit=limit):
            ahead = _shown(one.ahead)
            note(f"beside it, {one.name}: ROUGE-L {_shown(one.metrics['rougeL'])}, the model ahead by {ahead}")
    if ranks.is_first and ratios:
        sampled = answered(opened, datasets, split, limit=limit, most=MOST_DOCUMENTS)
        points, unreachable = evaluate_ratios(opened, adapter, *sampled, split, ratios, recipe, ranks.device, step)
        for point in points:
            of = "own pages" if point.asked is None else f"{point.asked:g} asked for"
            note(f"ratio {point.ratio:.1f} ({of}, {point.font_size} px): ROUGE-L {_shown(point.metrics['rougeL'])}")
        for one in unreachable:
            note(f"ratio {one.asked:g} is not reached: {one.reason}")
    if ranks.is_first:
        note(f"report: {write_report(opened)}")
    _require(requirements, scores, run, split)
    return scores


def _refuse_empty(datasets: Sequence[Dataset], split: str, run: Source) -> None:
    if sum(dataset.count(split) for dataset in datasets) == 0:
        raise DataError(f"Split '{split}' is empty.", where=str(run), fix="use another --split, or prepare more data")


def _require(requirements: Sequence[Requirement], scores: TextScores | ObjectScores, run: Source, split: str) -> None:
    if failed := [f"{r} (found {scores.metric(r.metric).value})" for r in requirements if not r.holds(scores)]:
        raise RequirementError(f"Required, and not so: {'; '.join(failed)}.", where=f"{run}, {split} split")


def _value(metric: dict[str, Any]) -> str:
    return "–" if metric["value"] is None else f"{metric['value']:.3f}"


def _shown(metric: Metric) -> str:
    return "–" if metric.value is None else f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})"


def predict(
    run: Source,
    images: Sequence[Source],
    *,
    prompt: str | None = None,
    limit: int | None = None,
    step: int | None = None,
    device: Device | None = None,
    classes: Sequence[str] | None = None,
    pictures: Source | None = None,
    least_score: float | None = None,
) -> list[Prediction] | list[ObjectPrediction]:
    """Answers about image files, or all images of folders, by a run or by the file of a shipped folder itself.

    Objects that are found are also drawn, those with at least `least_score` (0.3), on copies in the folder `pictures`
    (`RUN/predictions` where not given). A model that finds objects by their names can be asked for other `classes`.
    A run that was trained on documents answers about text files. Raises DataError for a file that cannot be read.
    """
    from visiontune.data.images import SUFFIXES, TEXT_SUFFIXES, image_files
    from visiontune.exports.onnx_runtime import is_onnx_shipment
    from visiontune.exports.shipment import is_shipment, predict_shipped

    if absent := [source for source in images if not Path(source).exists()]:
        raise DataError("There is no such file or folder.", where=str(absent[0]), fix="check the path")
    if is_onnx_shipment(Path(run)):
        from visiontune.api.object_verbs import drawn_on
        from visiontune.exports.onnx_runtime import find_in_files

        _refuse({"prompt": prompt, "classes": classes, "step": step, "device": device}, "A shipped detector takes")
        paths = [path for source in images for path in image_files(Path(source))][:limit]
        folder = Path(run) / "predictions" if pictures is None else Path(pictures)
        return drawn_on(find_in_files(Path(run), paths), paths, folder, least_score)
    of_objects = {"classes": classes, "pictures": pictures, "least_score": least_score}
    if is_shipment(Path(run)):
        _refuse({**of_objects, "step": step, "device": device}, "A shipped model that writes text takes")
        paths = [path for source in images for path in image_files(Path(source))][:limit]
        return predict_shipped(Path(run), paths, prompt=prompt)
    from visiontune.api.object_verbs import predict_objects
    from visiontune.models.text import writes_text
    from visiontune.run_group import RunGroup, open_run
    from visiontune.training.evaluate import predict_files
    from visiontune.training.model import load_trained
    from visiontune.training.ranks import Ranks

    group = open_run(run)
    members = group.runs if isinstance(group, RunGroup) else {"": group}
    recipes = {role: _on_device(member, device) for role, member in members.items()}
    opened, recipe = next(iter(members.values())), next(iter(recipes.values()))
    if recipe.objects is not None:
        _refuse({"prompt": prompt}, "A run that finds objects takes")
        paths = [path for source in images for path in image_files(Path(source))][:limit]
        folder = Path(run) / "predictions" if pictures is None else Path(pictures)
        ranks = Ranks(recipe.machine.device)
        return predict_objects(group, recipes, paths, ranks, step, classes, folder, least_score)
    _refuse(of_objects, "A run that writes text takes")
    suffixes = SUFFIXES if recipe.data.pages is None else TEXT_SUFFIXES
    paths = [path for source in images for path in image_files(Path(source), suffixes)][:limit]
    ranks = Ranks(recipe.machine.device)
    adapter, step = load_trained(opened, recipe, ranks.device, step)
    return predict_files(opened, writes_text(adapter), paths, recipe, ranks.device, step, prompt)


def _refuse(options: dict[str, Any], what: str) -> None:
    """Raise RecipeError where one of these options is given."""
    if given := [name for name, value in options.items() if value is not None]:
        option = f"--{given[0].replace('_', '-')}"
        raise RecipeError(f"{what} no {option}.", where=option, fix="leave it out")


def _on_device(run: Run, device: Device | None) -> Any:
    """The run's recipe on the device asked for, else on its own one where it is here, else on the best one here."""
    import torch

    from visiontune.machine import available_devices, hardware

    recipe = run.recipe
    if device is None and recipe.machine.device not in available_devices():
        warn(f"the run was trained on {recipe.machine.device}, which is not here; using {available_devices()[0]}")
        device = available_devices()[0]
    chosen = hardware(device or recipe.machine.device)
    torch.set_num_threads(recipe.machine.threads)
    precision = recipe.machine.precision if chosen.device == recipe.machine.device else "fp32"
    machine = recipe.machine.model_copy(update={"device": chosen.device, "precision": precision})
    return recipe.model_copy(update={"machine": machine})

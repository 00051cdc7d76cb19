"""`train`, `forecast`, `resume`, `pause`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visiontune.api.data_verbs import Source, prepare
from visiontune.api.options import beside_arguments, check_epochs, check_limit, one_length, refuse
from visiontune.errors import DataError, ModelError, RecipeError, RunError
from visiontune.progress import note
from visiontune.words import counted

if TYPE_CHECKING:
    from visiontune.data.dataset import Dataset
    from visiontune.machine import Device
    from visiontune.run import Run
    from visiontune.run_group import RunGroup
    from visiontune.training.callbacks import Callback
    from visiontune.training.forecast import Forecast


def train(
    *data: Source,
    model: str | None = None,
    out: Source,
    teacher: Source | None = None,
    unlabelled: Sequence[Source] = (),
    start: Source | None = None,
    weights: Sequence[float] | None = None,
    mixture: str | None = None,
    preset: str | None = None,
    recipe: Source | None = None,
    epochs: float | None = None,
    hours: float | None = None,
    limit: int | None = None,
    device_profile: str | None = None,
    overrides: dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run | RunGroup:
    """Train on one or several datasets (folders that are not prepared yet are prepared inside `out`).

    Texts need a `model`. Boxes call for a detector, masks for a segmenter, both for both, then as a group of runs;
    `model` picks other checkpoints, two separated by a comma. With a `teacher` (a run, or a model that finds objects by
    their names) a small student learns from what people drew and from what the teacher finds in those images and in the
    `unlabelled` ones. Recordings of neurons, a folder of sessions or several, train one core with a readout for each
    unit, or readouts on the frozen core of `start`: a run, or a Lightning checkpoint of VisionCore's layout. Parts
    that this does not fill are trained (`model.allow_missing` has to name their tensors).

    `weights` are the datasets' shares of the draws, `mixture` a rule that gives them (`training.mixtures`). The recipe
    is derived from data, model and machine; `preset` (quick, standard, quality, low-memory), `recipe` (a YAML file,
    whole or partial) and `overrides` (`{"lora.rank": 8}`) change its fields, in this order; a file's datasets, and its
    model and limit beside those given here, are not taken over. `device_profile` names the
    device that the model is for ("android-256"): training then sees the very pixels and prompts that the device will.
    `callbacks` are told of steps, evaluations and checkpoints. Raises VisiontuneError.
    """
    from visiontune.api.object_verbs import runs_of
    from visiontune.run_group import open_run
    from visiontune.training.callbacks import refuse_others

    refuse_others(callbacks)
    if isinstance(weights, str):
        raise RecipeError(f"Weights are numbers, one for each dataset; this is '{weights}'.", fix="weights=[2, 1]")
    _plan(
        data,
        Path(out),
        Path(out),
        model=model,
        teacher=teacher,
        unlabelled=unlabelled,
        start=start,
        weights=weights,
        mixture=mixture,
        preset=preset,
        recipe=recipe,
        epochs=epochs,
        hours=hours,
        limit=limit,
        device_profile=device_profile,
        overrides=overrides,
    )
    for one in runs_of(Path(out)):
        _trained(one, callbacks)
    return open_run(out)


def forecast(*data: Source, out: Source, **options: Any) -> dict[str, Forecast]:
    """What `train` with the same data and options would take: tokens, memory, disk, time, on this machine.

    A few steps are computed and timed, and nothing is learned. Folders that are not prepared yet are prepared inside
    `out`, where `train` finds them again, and the forecast is kept there beside them. The forecast of a run has the
    name "", those of a group the names of their roles. Raises RecipeError with a teacher, and what `train` raises
    before its first step.
    """
    from visiontune.api.object_verbs import runs_of
    from visiontune.files import write_json
    from visiontune.machine import is_first_process
    from visiontune.training.forecast import FORECAST_NAME
    from visiontune.training.loop import dry_run

    refuse({"teacher": options.get("teacher")}, "A dry run is of training alone and takes")
    planned, first = Path(out, ".dry-run"), is_first_process()
    if first:
        shutil.rmtree(planned, ignore_errors=True)  # of one that was killed
    found = {}
    try:
        _plan(data, Path(out), planned, **options)
        for run in runs_of(planned):
            role = str(run.path.relative_to(planned)) if run.path != planned else ""
            found[role] = dry_run(run)
            if first:
                kept = {"recipe_sha256": run.recipe.sha256, **found[role].to_json()}
                write_json(Path(out, role) / FORECAST_NAME, kept)
    finally:
        if first:
            shutil.rmtree(planned, ignore_errors=True)
    return found


def _plan(
    data: Sequence[Source],
    out: Path,
    at: Path,
    *,
    model: str | None = None,
    teacher: Source | None = None,
    unlabelled: Sequence[Source] = (),
    start: Source | None = None,
    weights: Sequence[float] | None = None,
    mixture: str | None = None,
    preset: str | None = None,
    recipe: Source | None = None,
    epochs: float | None = None,
    hours: float | None = None,
    limit: int | None = None,
    device_profile: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Prepare what is not prepared, and plan the run, or the group of runs, in the folder `at`."""
    from visiontune.api.object_verbs import check_student, distilled, models_for, plan_objects
    from visiontune.api.response_verbs import plan_responses, recordings_of
    from visiontune.data.leaks import refuse_leaks
    from visiontune.machine import hardware
    from visiontune.models.load import is_tiny, read_config
    from visiontune.recipe import Fragment, check_names, fragment_names, leaves, validated
    from visiontune.recipe_files import of_any_target, read_fragment, read_preset
    from visiontune.recipe_sections import Tracking
    from visiontune.run import Run
    from visiontune.training.derived import AS_ASKED
    from visiontune.training.mixtures import beside_unlabelled
    from visiontune.training.mixtures import shares as mixed
    from visiontune.training.plan import derive, plan_run
    from visiontune.training.ranks import Ranks
    from visiontune.training.refusals import refuse_idle, refuse_taken
    from visiontune.training.trackers import refuse_missing

    check_limit(limit)
    check_epochs(epochs)
    run, prepared = Run(at), Path(out) / "data"
    fragment = read_fragment(Path(recipe)) if recipe is not None else Fragment({}, "no recipe file")
    fragment = one_length(epochs, hours, overrides or {}, fragment)
    changes = dict(overrides or {}) | ({} if hours is None else {"schedule.hours": hours})
    first, usual_epochs = read_preset(preset or "standard")
    device: Device | None = changes.get("machine.device", fragment.get("machine", {}).get("device"))
    machine = hardware(device)
    ranks = Ranks(machine.device)
    if ranks.is_first:
        # What can be known to be wrong at once is said before hours are spent on preparing data.
        if not data:
            raise DataError("No data were given.", fix="visiontune train DATA --model NAME --out RUN")
        check_names(changes, "the command line")
        check_names(fragment_names(fragment), None if recipe is None else str(recipe))
        told = {name: changes[f"tracking.{name}"] for name in Tracking.model_fields if f"tracking.{name}" in changes}
        refuse_missing(validated(Tracking, {**(fragment.get("tracking") or {}), **told}, "tracking"))
        refuse_taken(Run(out))
        for name in [] if model is None else model.split(","):
            if not is_tiny(name):
                read_config(name)
        datasets = recordings_of(data, prepared)
        if datasets is None:
            names = [Path(s).name if len(data) == 1 else f"{i}-{Path(s).name}" for i, s in enumerate(data)]
            sources = zip(data, names, strict=True)
            datasets = [_dataset(source, prepared / name, limit) for source, name in sources]
            refuse_leaks(datasets)
        if mixture is not None and weights is not None:
            raise RecipeError("Weights and a mixture are two ways to say one thing.", where="--mixture", fix="give one")
        shares = list(weights) if weights is not None else [None] * len(datasets)
        shares = shares if mixture is None else mixed(mixture, datasets)
        if len(shares) != len(datasets):
            raise DataError(
                f"{len(datasets)} datasets need as many weights; there are {len(shares)}.", where="--weights"
            )
        fragment = beside_arguments(fragment, datasets, shares, model, start, limit)
        options: dict[str, Any] = {"ranks": ranks.count, "limit": limit}
        options["epochs"] = usual_epochs if epochs is None else epochs
        options["epochs_by"] = AS_ASKED if epochs is not None else first.said
        responses = all(dataset.info.target == "responses" for dataset in datasets)
        if start is not None and not responses:
            raise RecipeError("Only readouts of neurons start from a run.", where="--from", fix="--model FOLDER")
        if responses:
            refuse({"model": model, "teacher": teacher, "for": device_profile}, "Training on recordings takes")
            refuse({"unlabelled": unlabelled or None}, "Training on recordings takes")
            fragments = [of_any_target(first), fragment]
            plan_responses(run, datasets, shares, machine, fragments, changes, start=start, **options)
        elif all(dataset.info.target == "objects" for dataset in datasets):
            if device_profile is not None:
                raise RecipeError("A device's contract is about texts.", where="--for", fix="leave it out for objects")
            models = models_for(datasets, model, student=teacher is not None)
            fragments = [of_any_target(first), fragment]
            if teacher is not None:
                check_student(datasets, shares, models, machine, fragments, changes, **options)
                datasets = distilled(teacher, datasets, unlabelled, run.path, machine, limit)
                # A rule is of all datasets that are learned from, weights are of those that were given.
                shares = mixed(mixture, datasets) if mixture else beside_unlabelled(shares, datasets, limit)
            elif unlabelled:
                raise DataError(
                    "Nobody labels the unlabelled images.", where="--unlabelled", fix="--teacher runs/teacher"
                )
            plan_objects(datasets, shares, models, run.path, machine, fragments, changes, **options)
        else:
            if model is None:
                raise ModelError("Texts need a model.", where="--model", fix="--model tiny/smolvlm for a first look")
            if teacher is not None or unlabelled:
                raise DataError("A teacher labels boxes and masks; these data have texts.", fix="leave it out")
            asked = dict(leaf for given in (first, fragment, changes) for leaf in leaves(given))
            planned = derive(datasets, shares, model, machine, profile=device_profile, asked=asked, **options)
            planned = planned.overlaid(first).overlaid(fragment).changed(changes)
            refuse_idle([planned], changes)
            plan_run(run, planned, datasets)
    ranks.wait()


def _dataset(source: Source, prepared: Path, limit: int | None) -> Dataset:
    """The prepared dataset at `source`, or the folder there prepared; DataError where a fault forbids training.

    One at a URL is fetched into the folder `prepared`.
    """
    from visiontune.data.dataset import Dataset
    from visiontune.data.dataset_info import INFO_NAME
    from visiontune.data.hub_source import is_hub
    from visiontune.data.remote import fetch, is_url

    if is_url(source):
        source = fetch(str(source), prepared)
    ready = not is_hub(source) and (Path(source) / INFO_NAME).is_file()
    dataset = Dataset.open(Path(source)) if ready else prepare(source, prepared, limit=limit)
    if errors := [fault for fault in dataset.info.faults if fault.severity == "error"]:
        first = errors[0]
        raise DataError(
            f"The data have {counted(len(errors), 'error')}, the first: {first.found}", where=first.where, fix=first.fix
        )
    return dataset


def _trained(run: Run, callbacks: Sequence[Callback]) -> Run:
    from visiontune.machine import is_first_process
    from visiontune.report import write_report
    from visiontune.training.loop import train_run

    def report() -> None:
        if is_first_process() and run.recipe_path.exists():
            note(f"report: {write_report(run)}")

    try:
        trained = train_run(run, callbacks)
    except BaseException:
        with suppress(OSError):  # on a full disk; the error that stands says why
            report()
        raise
    report()
    return trained


def resume(run: Source, *, callbacks: Sequence[Callback] = ()) -> Run | RunGroup:
    """Go on with a run, or with each run of a group, from its latest checkpoint; only the folder is needed.

    `callbacks` are told of what comes. Raises VisiontuneError.
    """
    from visiontune.api.object_verbs import runs_of
    from visiontune.run_group import open_run
    from visiontune.training.callbacks import refuse_others

    refuse_others(callbacks)
    for one in runs_of(Path(run)):
        _trained(one, callbacks)
    return open_run(run)


def pause(run: Source) -> Run | RunGroup:
    """Ask the trainer of a run (of a group: of each that is running) to checkpoint and stop at its next step.

    Raises RunError where nothing is being trained.
    """
    from visiontune.run_group import RunGroup, open_run

    opened = open_run(run)
    members = list(opened.runs.values()) if isinstance(opened, RunGroup) else [opened]
    # A run that is only planned may be about to begin.
    waiting = ("running",) if isinstance(opened, RunGroup) else ("running", "planned")
    asked = [one for one in members if one.status in waiting]
    if not asked:
        said = ", ".join(sorted({one.status for one in members}))
        raise RunError(f"Nothing is trained here: {said}.", where=str(opened.path), fix="pause a run that is running")
    for one in asked:
        one.ask_to_pause()
    return opened

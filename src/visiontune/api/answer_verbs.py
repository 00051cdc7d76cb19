"""`evaluate`, `compare`, `predict`, `predict_movies`: what a trained model answers, and how good its answers are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from visiontune.api.devices import recipe_on
from visiontune.api.options import check_limit, check_score, refuse
from visiontune.errors import DataError, ModelError, RecipeError, RequirementError
from visiontune.progress import note, warn
from visiontune.words import counted

if TYPE_CHECKING:
    from visiontune.api.data_verbs import Source
    from visiontune.data.asked_files import AskedFiles
    from visiontune.data.dataset import Dataset
    from visiontune.data.sample import ObjectPrediction, Prediction
    from visiontune.machine import Device
    from visiontune.metrics.intervals import Metric
    from visiontune.metrics.requirements import Requirement
    from visiontune.models.text import TextEncoder
    from visiontune.recipe import Recipe
    from visiontune.run import Run
    from visiontune.training.run_comparison import RunComparison
    from visiontune.training.scoring import Scores


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
) -> Scores:
    """Answer a split with the best checkpoint (or that of `step`) and score the answers.

    Of a group of runs each is scored, and then the whole: masks drawn in the boxes that the detector found. `known`, a
    prepared dataset of boxes of other classes, asks what is left of what the model knew before it was tuned.

    `require` holds conditions like "accuracy>=0.85"; raises RequirementError where one does not hold. At `ratios` of
    text tokens to vision tokens documents are drawn and answered again (`training.ratios`). `bertscore` names an
    encoder (hub id or folder) for BERTScore, by its last layer or `bertscore_layer`.
    """
    from visiontune.api.object_verbs import evaluate_known, evaluate_objects, refuse_without_adapter
    from visiontune.api.response_verbs import evaluate_responses
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

    check_limit(limit)
    requirements = parse_requirements(require) if require else ()
    group = open_run(run)
    members = group.runs if isinstance(group, RunGroup) else {"": group}
    opened = next(iter(members.values()))
    recipes = {role: recipe_on(member, device) for role, member in members.items()}
    recipe = next(iter(recipes.values()))
    if recipe.objects is not None:
        if ratios or bertscore is not None or bertscore_layer is not None:
            raise RecipeError("Ratios and BERTScore are of texts; this run finds objects.", fix="leave them out")
        ranks = Ranks(recipe.machine.device)
        _refuse_empty(open_datasets(recipe), split, run)
        role = "detector" if "detector" in members else next(iter(members))
        if known is not None:
            refuse_without_adapter(members[role])
        found = evaluate_objects(group, recipes, split, ranks, limit, step)
        if known is not None:
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
    if recipe.responses is not None:
        refuse({"ratios": ratios or None, "bertscore": bertscore, "bertscore-layer": bertscore_layer}, "Responses take")
        _refuse_empty(open_datasets(recipe), split, run)
        ranks = Ranks(recipe.machine.device)
        responded = evaluate_responses(opened, recipe, split, ranks, limit, step)
        if ranks.is_first:
            note(f"report: {write_report(opened)}")
        _require(requirements, responded, run, split)
        return responded
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


def compare(first: Source, second: Source, *, split: str = "test") -> RunComparison:
    """Hold two evaluated runs to each other on the samples that both answered.

    Each metric comes with the second run's minus the first's and its 95 % interval, from a paired bootstrap. Nothing is
    run: evaluate both first. Raises RunError where one was not evaluated, DataError where they share no sample.
    """
    from visiontune.run_group import RunGroup, open_run
    from visiontune.training.run_comparison import compare_runs

    def opened(path: Source) -> Run:
        run = open_run(path)
        if isinstance(run, RunGroup):
            raise RecipeError(
                "This is a group of runs.",
                where=str(path),
                fix=f"compare one of them: {quote(f'{path}/{next(iter(run.runs))}')}",
            )
        return run

    return compare_runs(opened(first), opened(second), split)


def _refuse_empty(datasets: Sequence[Dataset], split: str, run: Source) -> None:
    if sum(dataset.count(split) for dataset in datasets) == 0:
        raise DataError(f"Split '{split}' is empty.", where=str(run), fix="use another --split, or prepare more data")


def _require(requirements: Sequence[Requirement], scores: Scores, run: Source, split: str) -> None:
    if failed := [f"{r} ({_found(scores, r.metric)})" for r in requirements if not r.holds(scores)]:
        raise RequirementError(f"Required, and not so: {'; '.join(failed)}.", where=f"{run}, {split} split")


def _found(scores: Scores, metric: str) -> str:
    from visiontune.metrics.response_scores import ResponseScores

    value = scores.metric(metric).value
    if value is not None:
        return f"found {value:.6g}"
    reason = scores.reasons.get(metric) if isinstance(scores, ResponseScores) else None
    return f"there is none{'' if reason is None else f': {reason}'}"


def _value(metric: dict[str, Any]) -> str:
    return "–" if metric["value"] is None else f"{metric['value']:.3f}"


def _shown(metric: Metric) -> str:
    return "–" if metric.value is None else f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})"


def predict(
    run: Source,
    images: Sequence[Source] | Source,
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
    (`RUN/predictions` where not given). A model that finds objects by their names can be asked for other `classes`. A
    run that was trained on documents answers about text files; of a run on recordings, `predict_movies` asks. Where
    files cannot be read, the others are answered, and PartlyReadError is raised with these `answers`.
    """
    from visiontune.data.asked_files import asked_files
    from visiontune.data.dataset import font_path
    from visiontune.data.documents import Rendering
    from visiontune.exports.onnx_runtime import is_onnx_shipment
    from visiontune.exports.shipment import is_shipment, predict_shipped, shipped_members, tell_shipped_question

    images = [images] if isinstance(images, str | Path) else images
    check_limit(limit)
    check_score(least_score)
    if not images:
        raise DataError("No files were given.", fix="visiontune predict RUN FILE_OR_FOLDER ...")
    if absent := [source for source in images if not Path(source).exists()]:
        raise DataError("There is no such file or folder.", where=str(absent[0]), fix="check the path")
    if is_onnx_shipment(Path(run)):
        from visiontune.api.object_verbs import drawn_on, refuse_file
        from visiontune.exports.onnx_runtime import find_in_files

        refuse({"prompt": prompt, "classes": classes, "step": step, "device": device}, "A shipped detector takes")
        asked = asked_files(images, limit=limit)
        shipped = Path(run).resolve()
        # Not inside: what is shipped stays as it was certified.
        folder = shipped.with_name(f"{shipped.name}-predictions") if pictures is None else Path(pictures)
        refuse_file(folder)
        found = find_in_files(Path(run), asked.paths)
        return asked.answered(drawn_on(found, asked.paths, folder, least_score))
    of_objects = {"classes": classes, "pictures": pictures, "least_score": least_score}
    if is_shipment(Path(run)):
        refuse({**of_objects, "step": step, "device": device}, "A shipped model that writes text takes")
        asked = asked_files(images, limit=limit)
        if prompt is None:
            tell_shipped_question(Path(run))
        return asked.answered(predict_shipped(Path(run), asked.paths, prompt=prompt))
    from visiontune.api.object_verbs import predict_objects
    from visiontune.models.text import writes_text
    from visiontune.run_group import RunGroup, open_run
    from visiontune.training.evaluate import predict_files
    from visiontune.training.model import load_trained
    from visiontune.training.ranks import Ranks

    if members := shipped_members(Path(run)):
        several = f"one of them: {', '.join(members)}; together they are asked as a run"
        raise ModelError(
            f"This folder is no shipped model itself, but holds {counted(len(members), 'shipped model')}.",
            where=str(run),
            fix=f"ask {several if len(members) > 1 else members[0]}",
        )
    group = open_run(run)
    members = group.runs if isinstance(group, RunGroup) else {"": group}
    recipes = {role: recipe_on(member, device) for role, member in members.items()}
    opened, recipe = next(iter(members.values())), next(iter(recipes.values()))
    if recipe.responses is not None:
        raise RecipeError(
            "A run on recordings predicts responses to movies.",
            where=str(run),
            fix="visiontune.predict_movies(...)",
        )
    if recipe.objects is not None:
        refuse({"prompt": prompt}, "A run that finds objects takes")
        asked = asked_files(images, limit=limit)
        folder = Path(run) / "predictions" if pictures is None else Path(pictures)
        ranks = Ranks(recipe.machine.device)
        found = predict_objects(group, recipes, asked.paths, ranks, step, classes, folder, least_score)
        return asked.answered(found)
    refuse(of_objects, "A run that writes text takes")
    spec, rendering = recipe.data.pages, None
    if spec is not None:
        rendering = Rendering(spec, tuple((font_path(opened.path, font), font.face) for font in spec.fonts))
    asked = asked_files(images, limit, rendering)
    ranks = Ranks(recipe.machine.device)
    loaded, step = load_trained(opened, recipe, ranks.device, step)
    adapter = writes_text(loaded)
    if prompt is None:
        tell_question(recipe)
    asked = asked.without(_too_long(asked, adapter.encoder, recipe.data.max_tokens, prompt))
    made = predict_files(opened, adapter, asked.paths, recipe, ranks.device, step, prompt)
    return asked.answered(made)


def tell_question(recipe: Recipe) -> None:
    """Warn where the run's own question will be asked, and every sample that was trained on brought another."""
    # The plan says so in its reason: the run's datasets need not be there any more.
    if recipe.why.get("data.prompt", "").startswith("not asked"):
        warn(
            f"every sample of this run brought its own question, and none is given now: {recipe.data.prompt!r} is "
            "asked, which was never trained on; ask yours with --prompt"
        )


def _too_long(asked: AskedFiles, encoder: TextEncoder, most: int, prompt: str | None) -> dict[Path, DataError]:
    """The files that leave no room for an answer among the `most` tokens that the run reads."""
    part = "give a part of the text, in files of their own" if asked.pages else "give a part of the image"
    fix = part if prompt is None else f"{part}; or ask a shorter question"
    found: dict[Path, DataError] = {}
    for path, tokens in zip(asked.paths, encoder.asked_lengths(asked.index(prompt)).tolist(), strict=True):
        if tokens >= most:
            seen = counted(asked.pages[path], "page") if path in asked.pages else "the image"
            found[path] = DataError(
                f"too long: {seen} and the question take {tokens:,} tokens, and the run reads {most:,} with the answer",
                fix=fix,
            )
    return found


def predict_movies(
    run: Source,
    movies: Sequence[Source] | Source,
    *,
    session: str | None = None,
    out: Source | None = None,
    step: int | None = None,
    device: Device | None = None,
) -> list[Path]:
    """What the units of a session would do in movies: .npy files of (frames, height, width), a frame a bin, or folders
    of them.

    Of a run of several sessions, `session` picks one. Returns the .npz files that were written: `out`, or
    RUN/predictions/NAME.npz, of several sessions RUN/predictions/SESSION/NAME.npz, with `rates` (frames, units), spikes
    a bin, NaN in the first bins, and `units`. Raises RecipeError and DataError.
    """
    from visiontune.api.response_verbs import predict_rates
    from visiontune.run import Run
    from visiontune.training.ranks import Ranks

    movies = [movies] if isinstance(movies, str | Path) else movies
    if not movies:
        raise DataError("No files were given.", fix="visiontune predict RUN movie.npy ...")
    if absent := [source for source in movies if not Path(source).exists()]:
        raise DataError("There is no such file.", where=str(absent[0]), fix="check the path")
    opened = Run(run)
    recipe = recipe_on(opened, device)
    if recipe.responses is None:
        raise RecipeError("Only runs on recordings predict what units do.", where=str(run), fix="visiontune.predict")
    target = None if out is None else Path(out)
    ranks = Ranks(recipe.machine.device)
    return predict_rates(opened, recipe, [Path(movie) for movie in movies], ranks, step, target, session)

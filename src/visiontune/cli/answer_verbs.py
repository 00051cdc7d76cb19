"""The verbs about what a trained model answers, one short function each."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

import visiontune
from visiontune.cli.answer import Answer, AtStep, Limit, OnDevice, metric_lines, numbers
from visiontune.errors import PartlyReadError, RecipeError
from visiontune.words import counted

if TYPE_CHECKING:
    from visiontune.data.sample import ObjectPrediction

Split = Literal["train", "validation", "test"]


def evaluate(
    run: Path,
    *,
    split: Split = "test",
    require: Annotated[list[str] | None, Parameter(help='condition for exit status 0, as "accuracy>=0.85"')] = None,
    limit: Limit = None,
    step: AtStep = None,
    device: OnDevice = None,
    ratios: Annotated[
        str | None, Parameter(help="draw the documents at these ratios of text tokens to vision tokens too, as 2,5,10")
    ] = None,
    bertscore: Annotated[str | None, Parameter(help="an encoder (hub id or folder) for BERTScore")] = None,
    bertscore_layer: Annotated[int | None, Parameter(help="its layer to compare; the last where not given")] = None,
    known: Annotated[
        Path | None, Parameter(help="prepared boxes of classes that the detector knew before: what is left of them")
    ] = None,
) -> Answer:
    """Answer a split with the trained model and score the answers."""
    options: dict[str, Any] = {"split": split, "limit": limit, "step": step, "device": device}
    asked = [] if ratios is None else numbers(ratios, "--ratios")
    options |= {"bertscore": bertscore, "bertscore_layer": bertscore_layer, "known": known}
    scores = visiontune.evaluate(run, require=require or (), ratios=asked, **options)
    value = {"run": str(run), "split": split, **scores.to_json()}
    if asked:
        value["ratios"] = json.loads((run / "evaluations" / split / "ratios.json").read_text(encoding="utf-8"))
    none = [name for name, metric in value["metrics"].items() if metric["value"] is None]
    absent = [f"  {split} {name}: {value['reasons'][name]}" for name in none if name in value.get("reasons", {})]
    return Answer(value, "\n".join([f"{run}:", *metric_lines(split, value["metrics"]), *absent]))


def compare(first: Path, second: Path, *, split: Split = "test") -> Answer:
    """Hold two runs to each other on the samples that both answered: by how much the second is better, by a paired
    bootstrap. Evaluate both first.

    Parameters
    ----------
    first
        a run, such as the one before
    second
        another run, evaluated on the same prepared dataset and split
    """
    found = visiontune.compare(first, second, split=split)
    lines = [f"{second} beside {first}, {counted(found.n, f'{split} {found.counted}')}"]
    for one in found.metrics:
        if one.first.value is None or one.second.value is None or one.difference.value is None:
            lines.append(f"  {one.name}: nothing counted")
            continue
        ends = "" if one.difference.low is None else f" ({one.difference.low:+.4f} to {one.difference.high:+.4f})"
        lines.append(
            f"  {one.name}: {one.first.value:.4f}, {one.second.value:.4f}, {one.difference.value:+.4f}{ends}: "
            f"{one.verdict}"
        )
    for run, alone in ((first, found.only_first), (second, found.only_second)):
        if alone:
            lines.append(f"  only in {run}: {len(alone)}, such as {alone[0]}")
    if found.left_out:
        named = ", ".join(f"{name} in {counted(n, 'image')}" for name, n in found.left_out.items())
        lines.append(f"  not compared, since only one of the runs looked for it: {named}")
    return Answer({"first": str(first), "second": str(second), **found.to_json()}, "\n".join(lines))


def predict(
    run: Path,
    *images: Path,
    prompt: Annotated[str | None, Parameter(help="ask this instead of the run's question")] = None,
    limit: Limit = None,
    step: AtStep = None,
    device: OnDevice = None,
    classes: Annotated[str | None, Parameter(help='find these instead of the run\'s own, as "car, bicycle"')] = None,
    pictures: Annotated[
        Path | None, Parameter(help="folder for the images with what was found; else RUN/predictions")
    ] = None,
    least_score: Annotated[float | None, Parameter(help="draw and list objects with at least this score, 0.3")] = None,
    session: Annotated[str | None, Parameter(help="of a run on recordings: whose units are predicted")] = None,
    out: Annotated[Path | None, Parameter(help="of a run on recordings: the .npz file for the rates")] = None,
) -> Answer:
    """Answers about image files, or about all images of folders; about text files, where documents were trained on.
    Objects that are found are listed and drawn. A run on recordings predicts responses to movies (.npy).

    Parameters
    ----------
    run
        a run, or a shipped folder: then the shipped file itself answers
    """
    from visiontune.api.object_verbs import LEAST_SHOWN
    from visiontune.data.sample import Prediction
    from visiontune.run import Run

    if (run / "recipe.yaml").is_file() and Run(run).recipe.responses is not None:
        others = {"--prompt": prompt, "--limit": limit, "--classes": classes, "--pictures": pictures}
        _refuse_given({**others, "--least-score": least_score}, "is not for a run on recordings")
        written = visiontune.predict_movies(run, images, session=session, out=out, step=step, device=device)
        return Answer({"predictions": [str(path) for path in written]}, "\n".join(map(str, written)))
    _refuse_given({"--session": session, "--out": out}, "is for runs on recordings")
    names = None if classes is None else classes.split(",")
    unread: PartlyReadError | None = None
    try:
        predictions = visiontune.predict(
            run, images, prompt=prompt, limit=limit, step=step, device=device, classes=names, pictures=pictures,
            least_score=least_score,
        )  # fmt: skip
    except PartlyReadError as error:
        predictions, unread = error.answers, error
    unsure = {True: "unsure, perhaps ", False: "", None: ""}
    lines = [
        f"{p.source[0]}: {unsure[p.abstained]}{p.target.answer}  ({p.scores['confidence']:.2f})"
        if isinstance(p, Prediction)
        else f"{p.source[0]}: {_found(p, LEAST_SHOWN if least_score is None else least_score)}"
        for p in predictions
    ]
    refused = [{"file": file, "found": found} for file, found in (unread.unreadable if unread else {}).items()]
    value = {"predictions": [p.to_json() for p in predictions], "unreadable": refused}
    return Answer(value, "\n".join(lines), unread)


def _refuse_given(options: dict[str, Any], why: str) -> None:
    if given := [name for name, value in options.items() if value is not None]:
        raise RecipeError(f"{given[0]} {why}.", where=given[0], fix="leave it out")


def _found(prediction: "ObjectPrediction", least_score: float) -> str:
    target = prediction.target
    scores = [] if target.scores is None else target.scores.tolist()
    shown = [
        f"{prediction.classes[c]} ({score:.2f}) at {', '.join(f'{side:.0f}' for side in box)}"
        for c, score, box in zip(target.classes.tolist(), scores, target.boxes.tolist(), strict=True)
        if score >= least_score
    ]
    return "; ".join(shown) or "nothing found"

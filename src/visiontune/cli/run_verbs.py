"""The verbs about runs and what is made of them, one short function each."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

import visiontune
from visiontune.cli.answer import Answer, AtStep, Limit, OnDevice
from visiontune.errors import RecipeError

if TYPE_CHECKING:
    from visiontune.data.sample import ObjectPrediction


def train(
    *data: str,
    model: str | None = None,
    out: Path,
    teacher: Annotated[
        str | None, Parameter(help="a run (or a detector asked by names) that a small student of objects learns from")
    ] = None,
    unlabelled: Annotated[
        list[Path] | None, Parameter(help="folder of images that the teacher labels for the student; may be repeated")
    ] = None,
    start: Annotated[
        Path | None,
        Parameter(
            name="--from", help="a run, or a Lightning checkpoint, whose core is kept, for recordings of other units"
        ),
    ] = None,
    allow_missing: Annotated[
        list[str] | None,
        Parameter(
            help="tensor of the core, or pattern, that a checkpoint need not fill and starts new; may be repeated"
        ),
    ] = None,
    weights: Annotated[str | None, Parameter(help="share of the draws of each dataset, as 2,1")] = None,
    mixture: Annotated[
        str | None, Parameter(help="a rule for these shares: uniform, proportional, subject, temperature=0.5")
    ] = None,
    recipe: Annotated[
        Path | None, Parameter(help="YAML file, whole or partial, that changes the derived recipe")
    ] = None,
    preset: Annotated[str | None, Parameter(help="quick, standard, quality or low-memory")] = None,
    epochs: Annotated[float | None, Parameter(help="how often each sample is seen; sets schedule.steps")] = None,
    hours: Annotated[float | None, Parameter(help="time for training, turned into steps before the first one")] = None,
    limit: Limit = None,
    seed: Annotated[int | None, Parameter(help="seed of order, new weights and dropout")] = None,
    device_profile: Annotated[
        str | None, Parameter(name="--for", help="train exactly what this device will run: android-256, desktop-llama")
    ] = None,
    overrides: Annotated[dict[str, Any] | None, Parameter(parse=False)] = None,
) -> Answer:
    """Train on one or several datasets, from data, model and machine alone.

    Any field of the recipe can be set as --section.field VALUE (see docs/recipe.md), for instance --lora.rank 8.

    Parameters
    ----------
    data
        prepared datasets, also at a URL, folders of images, or recordings of neurons
    model
        hub id, folder of a checkpoint, or a tiny one to try: tiny/smolvlm, tiny/deepseek-ocr, tiny/deepseek-ocr2 for
        texts; tiny/rf-detr, tiny/grounding-dino, tiny/mm-grounding-dino, tiny/sam, tiny/sam2 for objects. Objects need
        none: boxes train a detector, masks a segmenter, both both; two names are separated by a comma
    out
        the new run folder; of two models one folder each inside
    """
    shares = None if weights is None else _numbers(weights, "--weights")
    overrides = (overrides or {}) | ({} if seed is None else {"seed": seed})
    overrides |= {} if allow_missing is None else {"model.allow_missing": allow_missing}
    return _run_answer(
        visiontune.train(
            *data,
            model=model,
            out=out,
            teacher=teacher,
            unlabelled=unlabelled or (),
            start=start,
            weights=shares,
            mixture=mixture,
            preset=preset,
            recipe=recipe,
            epochs=epochs,
            hours=hours,
            limit=limit,
            device_profile=device_profile,
            overrides=overrides,
        )
    )


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"'{text}' is no list of numbers.", where=option, fix=f"{option} 2,1") from error


def resume(run: Path) -> Answer:
    """Go on with a paused, killed or failed run."""
    return _run_answer(visiontune.resume(run))


def pause(run: Path) -> Answer:
    """Ask a running trainer to checkpoint and stop at its next step."""
    asked = visiontune.pause(run)
    return Answer({"path": str(asked.path), "request": "pause"}, f"asked {asked.path} to pause")


def _run_answer(run: Any) -> Answer:
    from visiontune.run_group import RunGroup

    if isinstance(run, RunGroup):
        answers = [_run_answer(one) for one in run.runs.values()]
        members = dict(zip(run.runs, (answer.value for answer in answers), strict=True))
        return Answer({"path": str(run.path), "runs": members}, "\n".join(answer.text for answer in answers))
    scores = run.read_json("evaluations/validation/metrics.json")
    metrics = scores["metrics"] if scores else {}
    receipts = {receipt["name"]: receipt["status"] for receipt in run.receipts}
    value = {"path": str(run.path), **run.state, "receipts": receipts, "validation": metrics}
    lines = [f"{run.path}: {run.status}, step {run.state['step']}"]
    lines += [f"  receipt {name}: {status}" for name, status in receipts.items()]
    return Answer(value, "\n".join([*lines, *_metric_lines("validation", metrics)]))


def _metric_lines(split: str, metrics: dict[str, Any]) -> list[str]:
    return [
        f"  {split} {name}: {m['value']:.4f} ({_interval(m)}n = {m['n']})"
        for name, m in metrics.items()
        if m["value"] is not None
    ]


def _interval(metric: dict[str, Any]) -> str:
    return "" if metric["low"] is None else f"95 % interval {metric['low']:.4f} to {metric['high']:.4f}, "


def evaluate(
    run: Path,
    *,
    split: Literal["train", "validation", "test"] = "test",
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
    asked = [] if ratios is None else _numbers(ratios, "--ratios")
    options |= {"bertscore": bertscore, "bertscore_layer": bertscore_layer, "known": known}
    scores = visiontune.evaluate(run, require=require or (), ratios=asked, **options)
    value = {"run": str(run), "split": split, **scores.to_json()}
    if asked:
        value["ratios"] = json.loads((run / "evaluations" / split / "ratios.json").read_text(encoding="utf-8"))
    return Answer(value, "\n".join([f"{run}:", *_metric_lines(split, value["metrics"])]))


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
    names = None if classes is None else [name.strip() for name in classes.split(",") if name.strip()]
    predictions = visiontune.predict(
        run, images, prompt=prompt, limit=limit, step=step, device=device, classes=names, pictures=pictures,
        least_score=least_score,
    )  # fmt: skip
    unsure = {True: "unsure, perhaps ", False: "", None: ""}
    lines = [
        f"{p.source[0]}: {unsure[p.abstained]}{p.target.answer}  ({p.scores['confidence']:.2f})"
        if isinstance(p, Prediction)
        else f"{p.source[0]}: {_found(p, LEAST_SHOWN if least_score is None else least_score)}"
        for p in predictions
    ]
    return Answer({"predictions": [p.to_json() for p in predictions]}, "\n".join(lines))


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


def export(
    run: Path,
    *,
    to: str,
    out: Path | None = None,
    quant: Annotated[
        str | None,
        Parameter(help="of a GGUF: f32, f16, bf16, q8_0 (if not given), q4_0, q4_k_m, q6_k, ...; of ONNX: int8"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, Parameter(help="of merged weights; else the base model's own")
    ] = None,
    step: AtStep = None,
    samples: Annotated[int, Parameter(help="inputs that the shipped file and the trained model are compared on")] = 64,
    limit: Annotated[int | None, Parameter(help="let the shipped file see the first N validation samples only")] = None,
    with_inputs: Annotated[bool, Parameter(help="put the compared pictures beside the certificate")] = False,
    push: Annotated[str | None, Parameter(help="hub repository ORG/NAME to upload to, private")] = None,
    public: Annotated[bool, Parameter(help="make the hub repository public")] = False,
) -> Answer:
    """Write the trained model for others: adapter (PEFT), merged (transformers), gguf (llama.cpp), onnx (onnxruntime),
    each with its certificate.

    Parameters
    ----------
    to
        forms, separated by commas: adapter, merged, gguf, onnx
    out
        folder; of several forms each gets a folder of its name inside. Without it: RUN/exports
    """
    folders = visiontune.export(
        run,
        to=to,
        out=out,
        quantisation=None if quant is None else quant.lower(),
        dtype=dtype,
        step=step,
        samples=samples,
        limit=limit,
        with_inputs=with_inputs,
        push=push,
        public=public,
    )
    value = {form: str(folder) for form, folder in folders.items()}
    return Answer(value, "\n".join(f"{form}: {folder}" for form, folder in value.items()))


def verify(
    path: Path,
    *,
    run: Annotated[Path | None, Parameter(help="the run that was shipped: everything is checked anew")] = None,
    data: Annotated[Path | None, Parameter(help="its prepared dataset, for the inputs that did not travel")] = None,
) -> Answer:
    """Run the certificate of a shipped folder again, or check that a run is what its folder says.

    Parameters
    ----------
    path
        a shipped folder (its own files are run), or a run
    """
    checks = [check.to_json() for check in visiontune.verify(path, run=run, data=data)]
    lines = [f"{check['name']}: {check['status']} ({check['found']})" for check in checks]
    return Answer({"path": str(path), "checks": checks}, "\n".join(lines))


def demo(name: Literal["digits", "pages", "boxes", "responses"] = "digits", *, out: Path | None = None) -> Answer:
    """Train a tiny model, and show what it proves.

    Parameters
    ----------
    name
        digits: real scanned digits, up to the file that a phone runs (needs the extra [demo]); pages: a small
        DeepSeek-OCR learns to read words that it was never shown; boxes: shapes on photographs, found by a small
        detector, up to the ONNX file (needs the extras [demo] and [onnx]); responses: simulated neurons, whose best
        possible score is known (needs the extra [demo])
    out
        folder for the data, the dataset and the run, by default `demo`, `demo-pages`, `demo-boxes` or `demo-responses`;
        what stands there is used again
    """
    if name == "responses":
        from visiontune.demo_responses import responses

        value, text = responses(out or Path("demo-responses"))
        return Answer(value, text)
    if name == "boxes":
        from visiontune.demo_boxes import boxes

        value, text = boxes(out or Path("demo-boxes"))
        return Answer(value, text)
    if name == "pages":
        from visiontune.demo_pages import pages

        value, text = pages(out or Path("demo-pages"))
    else:
        from visiontune.demo import digits

        value, text = digits(out or Path("demo"))
    return Answer(value, text)


def doctor() -> Answer:
    """This machine: devices, memory, disk, versions, and what is missing for what."""
    facts = visiontune.doctor()
    gib = 2**30
    lines = [f"python {facts['python']} on {facts['system']}, {facts['cores']} cores"]
    lines.append(f"memory {facts['memory_bytes'] / gib:.1f} GiB ({facts['memory_free_bytes'] / gib:.1f} free), disk "
                 f"{facts['disk_free_bytes'] / gib:.1f} GiB free")  # fmt: skip
    lines += [f"device {d['device']}: {d['name']}, {d['memory_bytes'] / gib:.1f} GiB" for d in facts["devices"]]
    lines += [f"{package} {version or 'missing'}" for package, version in facts["versions"].items()]
    lines += [f"missing: {m['package']}, for {m['needed_for']}" for m in facts["missing"]]
    return Answer(facts, "\n".join(lines))

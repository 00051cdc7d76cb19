"""The verbs about runs and what is made of them, one short function each."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import visiontune
from visiontune.cli.answer import Answer, AtStep, Limit, metric_lines, numbers


def train(
    *data: str,
    model: str | None = None,
    out: Path,
    teacher: Annotated[
        str | None, Parameter(help="a run (or a detector asked by names) that a small student of objects learns from")
    ] = None,
    unlabelled: Annotated[
        list[Path] | None,
        Parameter(negative=(), help="folder of images that the teacher labels for the student; may be repeated"),
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
            negative=(),
            help="tensor of the core, or pattern, that a checkpoint need not fill and starts new; may be repeated",
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
    dry_run: Annotated[
        bool, Parameter(help="say what the run would take in tokens, memory, disk and time, and stop", negative=())
    ] = False,
    overrides: Annotated[dict[str, Any] | None, Parameter(parse=False)] = None,
) -> Answer:
    """Train on one or several datasets, from data, model and machine alone.

    Any field of the recipe can be set as --section.field VALUE (see docs/recipe.md), for instance --lora.rank 8.

    Parameters
    ----------
    data
        prepared datasets, also at a URL, folders of images, tables of images and texts, datasets of the hub
        (hub:OWNER/NAME, hub:OWNER/NAME:CONFIG@REVISION), or recordings of neurons
    model
        hub id, folder of a checkpoint, or a tiny one to try: tiny/smolvlm, tiny/qwen-vl, tiny/qwen3-vl, tiny/gemma3,
        tiny/deepseek-ocr, tiny/deepseek-ocr2 for texts; tiny/rf-detr, tiny/grounding-dino, tiny/mm-grounding-dino,
        tiny/sam, tiny/sam2 for objects. Objects need none: boxes train a detector, masks a segmenter, both both; two
        names are separated by a comma
    out
        the new run folder; of two models one folder each inside
    """
    shares = None if weights is None else numbers(weights, "--weights")
    overrides = (overrides or {}) | ({} if seed is None else {"seed": seed})
    overrides |= {} if allow_missing is None else {"model.allow_missing": allow_missing}
    options: dict[str, Any] = {
        "model": model,
        "teacher": teacher,
        "unlabelled": unlabelled or (),
        "start": start,
        "weights": shares,
        "mixture": mixture,
        "preset": preset,
        "recipe": recipe,
        "epochs": epochs,
        "hours": hours,
        "limit": limit,
        "device_profile": device_profile,
        "overrides": overrides,
    }
    if dry_run:
        found = visiontune.forecast(*data, out=out, **options)
        lines = [line for role, one in found.items() for line in ([f"{role}:"] if role else []) + one.lines()]
        return Answer({"forecast": {role or "run": one.to_json() for role, one in found.items()}}, "\n".join(lines))
    return _run_answer(visiontune.train(*data, out=out, **options))


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
    return Answer(value, "\n".join([*lines, *metric_lines("validation", metrics)]))


def export(
    source: str,
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
    samples: Annotated[
        int | None, Parameter(help="inputs that the shipped file and the trained model are compared on; 64")
    ] = None,
    limit: Annotated[int | None, Parameter(help="let the shipped file see the first N validation samples only")] = None,
    with_inputs: Annotated[bool, Parameter(help="put the compared pictures beside the certificate")] = False,
    push: Annotated[str | None, Parameter(help="hub repository ORG/NAME to upload to, private")] = None,
    public: Annotated[bool, Parameter(help="make the hub repository public")] = False,
) -> Answer:
    """Write the trained model for others: adapter (PEFT), merged (transformers), gguf (llama.cpp), onnx (onnxruntime),
    each with its certificate. Or write a dataset of boxes and masks for others: coco, yolo, voc.

    Parameters
    ----------
    source
        a run or a group of runs; or a prepared dataset of boxes and masks, also at a URL
    to
        forms, separated by commas: of a run adapter, merged, gguf, onnx; of a dataset coco, yolo, voc
    out
        folder; of several forms each gets a folder of its name inside. Without it, of a run: RUN/exports
    """
    folders = visiontune.export(
        source,
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

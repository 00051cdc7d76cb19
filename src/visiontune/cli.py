"""The verbs at the command line, one short function each."""

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

import visiontune
from visiontune.errors import RecipeError, VisiontuneError
from visiontune.machine import is_first_process

Device = Literal["cpu", "cuda", "mps"]
Limit = Annotated[int | None, Parameter(help="take N samples, for a first look")]
OnDevice = Annotated[Device | None, Parameter(help="compute here instead of on the run's own device")]
AtStep = Annotated[int | None, Parameter(help="the checkpoint of this step instead of the best one")]
Columns = Annotated[str | None, Parameter(help="columns of a table, as document=body,answer=tldr")]
PageSize = Annotated[str | None, Parameter(help="pixels of a page for documents, as 1024x1024")]
FontSize = Annotated[int | None, Parameter(help="pixels of the font for documents")]
LineSpacing = Annotated[float | None, Parameter(help="distance of lines for documents, in font sizes")]
MaxPages = Annotated[int | None, Parameter(help="leave longer documents out, or cut them around the answer")]
Ratio = Annotated[float | None, Parameter(help="choose the font size for so many text tokens a vision token")]
FontFiles = Annotated[list[Path] | None, Parameter(help="font for documents; several in order of fallback")]
UsageError = 2

app = App(
    name="visiontune",
    help="Turn your own images and annotations into a fine-tuned vision model, and prove each step.\n\n"
    "Every verb takes --json (one object on standard output) and --debug (the traceback of an error).",
    help_format="plaintext",
    result_action="return_value",
)


@dataclass(frozen=True)
class Answer:
    """What a verb has to say: `value` for programs (--json), `text` for people."""

    value: Any
    text: str


@app.command
def inspect(
    data: str,
    *,
    limit: Limit = None,
    columns: Columns = None,
    page: PageSize = None,
    font_size: FontSize = None,
    line_spacing: LineSpacing = None,
    font: FontFiles = None,
    model: Annotated[str | None, Parameter(help="tell what this model would make of documents")] = None,
) -> Answer:
    """What the data are, what would be trained, what is wrong.

    Parameters
    ----------
    data
        a folder of images, a table of long texts (JSONL, CSV, Parquet), or a prepared dataset, also at a URL
    """
    pages = _pages(page, font_size, line_spacing)
    options: dict[str, Any] = {"limit": limit, "columns": _columns(columns), "pages": pages, "fonts": font}
    found = visiontune.inspect(data, model=model, **options).to_json()
    lines = [f"{found['samples']} samples; " + ", ".join(f"{split} {n}" for split, n in found["splits"].items())]
    for target, facts in found["targets"].items():
        labels = facts.get("labels")
        lines.append(f"target: {target}" + (f", {len(labels)} classes: {_counts(labels)}" if labels else ""))
    lines += _document_lines(found["documents"])
    lines.append("trains: " + ("; ".join(f"{t['kind']} ({t['target']})" for t in found["trains"]) or "nothing yet"))
    return Answer(found, "\n".join([*lines, *_fault_lines(found["faults"]), f"{len(found['faults'])} faults"]))


def _fault_lines(found: list[dict[str, str]], shown: int = 3) -> list[str]:
    """The faults of each kind together, the first few in full; --json and dataset.json have all of them."""
    kinds: dict[str, list[dict[str, str]]] = {}
    for fault in found:
        kinds.setdefault(fault["code"], []).append(fault)
    lines = []
    for kind in kinds.values():
        lines += [f"{f['severity']}: {f['found']}\n  where: {f['where']}\n  fix:   {f['fix']}" for f in kind[:shown]]
        if rest := kind[shown:]:
            where = ", ".join(f["where"] for f in rest[:10]) + (", ..." if len(rest) > 10 else "")
            lines.append(f"{rest[0]['severity']}: {len(rest)} more of this kind: {where}")
    return lines


def _document_lines(facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return []
    page, letters, missing = facts["page"], facts["x_height"], facts["missing_glyphs"]
    resized = ", ".join(
        f"{height:.1f} at {side}{' (illegible)' if int(side) in letters['illegible'] else ''}"
        for side, height in letters["resized"].items()
    )
    lines = [
        f"documents: {_range(facts['characters'])} characters, {_range(facts['pages'])} pages each",
        f"pages: {facts['total_pages']:,} of {page['width']} x {page['height']} px, font size {page['font_size']} px, "
        f"{facts['characters_a_page']:,.0f} characters on each",
        f"scripts: {_counts(facts['scripts'])}; {missing:,} characters without a glyph",
        f"x-height: {letters['drawn']:.1f} px as drawn" + (f"; resized: {resized}" if resized else ""),
    ]
    if (model := facts["model"]) is not None:
        lines.append(
            f"{model['model']}: pages of {model['side']} px, {model['page_tokens']} vision tokens each, x-height "
            f"{model['x_height']:.1f} px, {model['characters_a_token']:.1f} characters a vision token"
        )
        lines.append(
            f"{model['text_tokens']:,} text tokens / {model['vision_tokens']:,} vision tokens = "
            f"{model['ratio']:.1f} (of {model['sampled']} documents)"
            if model["ratio"] is not None
            else "text tokens are not known: a tiny model has no tokenizer before it is built"
        )
    return lines


def _range(values: dict[str, float]) -> str:
    return f"{values['min']:,} to {values['max']:,} (median {values['median']:,.10g})"


def _pages(page: str | None, font_size: int | None, line_spacing: float | None) -> dict[str, Any] | None:
    """The fields of a page spec that were given, None where none was."""
    fields: dict[str, Any] = {}
    if page is not None:
        width, by, height = page.lower().partition("x")
        if not (by and width.strip().isdecimal() and height.strip().isdecimal()):
            raise RecipeError(f"'{page}' is no size of a page.", where="--page", fix="--page 1024x1024")
        fields |= {"width": int(width), "height": int(height)}
    if font_size is not None:
        fields["font_size"] = font_size
    if line_spacing is not None:
        fields["line_spacing"] = line_spacing
    return fields or None


def _columns(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    if wrong := [name for name, equals, column in pairs if not (name.strip() and equals and column.strip())]:
        raise RecipeError(
            f"'{wrong[0]}' names no column.", where="--columns", fix="--columns document=body,answer=tldr"
        )
    return {name.strip(): column.strip() for name, _, column in pairs}


def _counts(labels: dict[str, int], most: int = 20) -> str:
    shown = ", ".join(f"{label} {count}" for label, count in list(labels.items())[:most])
    return shown + (", ..." if len(labels) > most else "")


@app.command
def prepare(
    *data: Path,
    out: str | None = None,
    listed: Annotated[bool, Parameter(name="--list", negative="", help="show the known corpora instead")] = False,
    seed: int = 0,
    limit: Limit = None,
    strict: bool = False,
    workers: int | None = None,
    columns: Columns = None,
    page: PageSize = None,
    font_size: FontSize = None,
    line_spacing: LineSpacing = None,
    font: FontFiles = None,
    max_pages: MaxPages = None,
    ratio: Ratio = None,
    model: Annotated[str | None, Parameter(help="the model that --ratio is for: hub id or folder")] = None,
    engine: Annotated[
        Literal["processes", "ray"], Parameter(help="whose processes: this machine's, or Ray's (extra [ray])")
    ] = "processes",
    materialise: Annotated[
        Literal["png", "webp"] | None, Parameter(help="also write the pages of documents as image files")
    ] = None,
    staging: Annotated[Path | None, Parameter(help="local folder to prepare in, where --out is a URL")] = None,
    push: Annotated[str | None, Parameter(help="hub repository ORG/NAME to upload the dataset to, private")] = None,
    public: Annotated[bool, Parameter(help="make the hub repository public")] = False,
) -> Answer:
    """One clean dataset on disk: split, hashed, with what was left out and why.

    Parameters
    ----------
    data
        a folder of images, a table of long texts (JSONL, CSV, Parquet; a file or a folder of them), or the name of a
        known corpus, such as mlsum:fr or cnn_dailymail (needs the extra [corpora] and a connection); or several of them
    out
        folder of the dataset, or a URL such as s3://bucket/data; an earlier one there is extended, its rows keep their
        split
    seed
        seed of the split
    strict
        refuse the whole folder if one sample cannot be used
    workers
        processes; as many as cores where not given
    """
    if listed:
        return _corpora()
    if not data or out is None:
        raise CycloptsError(msg="`prepare` needs data and --out FOLDER, or --list.")
    options: dict[str, Any] = {"seed": seed, "limit": limit, "strict": strict, "workers": workers}
    pages = _pages(page, font_size, line_spacing)
    options |= {"pages": pages, "fonts": font, "max_pages": max_pages, "ratio": ratio, "model": model}
    options |= {"engine": engine, "materialise": materialise, "staging": staging, "push": push, "public": public}
    dataset = visiontune.prepare(data, out, columns=_columns(columns), **options)
    info = dataset.info.model_dump(mode="json")
    splits = ", ".join(f"{split} {count}" for split, count in dataset.info.splits.items())
    cut = f", {dataset.info.windows} cut to a window" if dataset.info.windows else ""
    text = f"{len(dataset)} samples ({splits}){cut}, {len(dataset.info.left_out)} left out: {dataset.path}"
    return Answer({"path": str(dataset.path), **info}, text)


def _corpora() -> Answer:
    from visiontune.data.corpora import CORPORA

    value = [{"name": name, **corpus.to_json()} for name, corpus in CORPORA.items()]
    wide = max(len(name) for name in CORPORA)
    lines = [
        f"{one['name']:{wide}}  {one['hub']} {one['config'] or '-'}, {one['language']}; "
        f"{', '.join(f'{role}: {place}' for role, place in one['columns'].items())}; {one['licence']}"
        for one in value
    ]
    return Answer({"corpora": value}, "\n".join(lines))


@app.command
def train(
    *data: str,
    model: str,
    out: Path,
    weights: Annotated[str | None, Parameter(help="share of the draws of each dataset, as 2,1")] = None,
    recipe: Annotated[
        Path | None, Parameter(help="YAML file, whole or partial, that changes the derived recipe")
    ] = None,
    preset: Annotated[str | None, Parameter(help="quick, standard, quality or low-memory")] = None,
    epochs: Annotated[float | None, Parameter(help="how often each sample is seen; sets schedule.steps")] = None,
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
        prepared datasets, also at a URL, or folders of images
    model
        hub id, folder of a checkpoint, or tiny/smolvlm, tiny/deepseek-ocr, tiny/deepseek-ocr2
    out
        the new run folder
    """
    shares = None if weights is None else _numbers(weights, "--weights")
    overrides = (overrides or {}) | ({} if seed is None else {"seed": seed})
    return _run_answer(
        visiontune.train(
            *data,
            model=model,
            out=out,
            weights=shares,
            preset=preset,
            recipe=recipe,
            epochs=epochs,
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


@app.command
def resume(run: Path) -> Answer:
    """Go on with a paused, killed or failed run."""
    return _run_answer(visiontune.resume(run))


@app.command
def pause(run: Path) -> Answer:
    """Ask a running trainer to checkpoint and stop at its next step."""
    asked = visiontune.pause(run)
    return Answer({"path": str(asked.path), "request": "pause"}, f"asked {asked.path} to pause")


def _run_answer(run: Any) -> Answer:
    scores = run.read_json("evaluations/validation/metrics.json")
    metrics = scores["metrics"] if scores else {}
    receipts = {receipt["name"]: receipt["status"] for receipt in run.receipts}
    value = {"path": str(run.path), **run.state, "receipts": receipts, "validation": metrics}
    lines = [f"{run.path}: {run.status}, step {run.state['step']}"]
    lines += [f"  receipt {name}: {status}" for name, status in receipts.items()]
    return Answer(value, "\n".join([*lines, *_metric_lines("validation", metrics)]))


def _metric_lines(split: str, metrics: dict[str, Any]) -> list[str]:
    return [
        f"  {split} {name}: {m['value']:.4f} (95 % interval {m['low']:.4f} to {m['high']:.4f}, n = {m['n']})"
        for name, m in metrics.items()
        if m["value"] is not None
    ]


@app.command
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
) -> Answer:
    """Answer a split with the trained model and score the answers."""
    options: dict[str, Any] = {"split": split, "limit": limit, "step": step, "device": device}
    asked = [] if ratios is None else _numbers(ratios, "--ratios")
    options |= {"bertscore": bertscore, "bertscore_layer": bertscore_layer}
    scores = visiontune.evaluate(run, require=require or (), ratios=asked, **options)
    value = {"run": str(run), "split": split, **scores.to_json()}
    if asked:
        value["ratios"] = json.loads((run / "evaluations" / split / "ratios.json").read_text(encoding="utf-8"))
    return Answer(value, "\n".join([f"{run}:", *_metric_lines(split, value["metrics"])]))


@app.command
def predict(
    run: Path,
    *images: Path,
    prompt: Annotated[str | None, Parameter(help="ask this instead of the run's question")] = None,
    limit: Limit = None,
    step: AtStep = None,
    device: OnDevice = None,
) -> Answer:
    """Answers about image files, or about all images of folders; about text files, where documents were trained on.

    Parameters
    ----------
    run
        a run, or a shipped folder: then the shipped file itself answers
    """
    predictions = visiontune.predict(run, images, prompt=prompt, limit=limit, step=step, device=device)
    unsure = {True: "unsure, perhaps ", False: "", None: ""}
    lines = [
        f"{p.source[0]}: {unsure[p.abstained]}{p.target.answer}  ({p.scores['confidence']:.2f})" for p in predictions
    ]
    return Answer({"predictions": [p.to_json() for p in predictions]}, "\n".join(lines))


@app.command
def export(
    run: Path,
    *,
    to: str,
    out: Path | None = None,
    quant: Annotated[str, Parameter(help="of a GGUF: f32, f16, bf16, q8_0, q4_0, q4_k_m, q5_k_m, q6_k, ...")] = "q8_0",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, Parameter(help="of merged weights; else the base model's own")
    ] = None,
    step: AtStep = None,
    samples: Annotated[int, Parameter(help="inputs that a GGUF and the trained model are compared on")] = 64,
    limit: Annotated[int | None, Parameter(help="let the GGUF answer the first N validation samples only")] = None,
    with_inputs: Annotated[bool, Parameter(help="put the compared pictures beside the certificate")] = False,
    push: Annotated[str | None, Parameter(help="hub repository ORG/NAME to upload to, private")] = None,
    public: Annotated[bool, Parameter(help="make the hub repository public")] = False,
) -> Answer:
    """Write the trained model for others: adapter (PEFT), merged (transformers), gguf (llama.cpp, with certificate).

    Parameters
    ----------
    to
        forms, separated by commas: adapter, merged, gguf
    out
        folder; of several forms each gets a folder of its name inside. Without it: RUN/exports
    """
    folders = visiontune.export(
        run,
        to=to,
        out=out,
        quantisation=quant.lower(),
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


@app.command
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


@app.command
def demo(name: Literal["digits", "pages"] = "digits", *, out: Path | None = None) -> Answer:
    """Train a tiny model, and show what it proves.

    Parameters
    ----------
    name
        digits: real scanned digits, up to the file that a phone runs (needs the extra [demo]); pages: a small
        DeepSeek-OCR learns to read words that it was never shown
    out
        folder for the data, the dataset and the run, by default `demo` or `demo-pages`; what stands there is used again
    """
    if name == "pages":
        from visiontune.demo_pages import pages

        value, text = pages(out or Path("demo-pages"))
    else:
        from visiontune.demo import digits

        value, text = digits(out or Path("demo"))
    return Answer(value, text)


@app.command
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


def recipe_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--section.field VALUE` out of the arguments; values are read as YAML: 8, true, null have types."""
    import yaml

    rest: list[str] = []
    overrides: dict[str, Any] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if not (name.startswith("--") and "." in name):
            rest.append(argument)
            continue
        if not equals:
            if not waiting:
                raise RecipeError(f"'{name}' has no value.", fix=f"{name} VALUE")
            value = waiting.pop(0)
        parsed = yaml.safe_load(value)
        # YAML 1.1 reads 1e-3 as text; a person means the number.
        overrides[name.removeprefix("--").replace("-", "_")] = _number(parsed) if isinstance(parsed, str) else parsed
    return rest, overrides


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, or with the exit code of the error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json, debug = "--json" in given, "--debug" in given
    given = [argument for argument in given if argument not in ("--json", "--debug")]
    sys.exit(_run(given, as_json, debug))


def _run(given: list[str], as_json: bool, debug: bool) -> int:
    try:
        rest, overrides = recipe_options(given)
        command, bound, _ = app.parse_args(rest, print_error=False, exit_on_error=False)
        if overrides:
            if command is not train:
                raise RecipeError(f"'--{next(iter(overrides))}' is a recipe field; only `train` takes those.")
            bound.arguments["overrides"] = overrides
        answer = command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        _complain({"found": str(error), "where": None, "fix": "visiontune --help"}, as_json)
        return UsageError
    except VisiontuneError as error:
        if debug:
            traceback.print_exc()
        _complain({"found": error.found, "where": error.where, "fix": error.fix}, as_json)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        found = f"visiontune met an error it did not expect: {type(error).__name__}: {error}"
        _complain({"found": found, "where": None, "fix": "run again with --debug and report what it prints"}, as_json)
        return 70
    if isinstance(answer, Answer) and is_first_process():
        print(json.dumps(answer.value, ensure_ascii=False, allow_nan=False) if as_json else answer.text)
    return 0


def _complain(error: dict[str, str | None], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error}, ensure_ascii=False))
    print(f"error: {VisiontuneError(error['found'] or '', where=error['where'], fix=error['fix'])}", file=sys.stderr)

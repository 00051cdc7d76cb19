"""The report of a run: everything in its folder as one HTML file that needs nothing else, for a person to read."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from visiontune.charts import Line, line_chart, smoothed, stacked_bar
from visiontune.data.sample import Prediction
from visiontune.exports.certificate import CERTIFICATE_NAME
from visiontune.files import write_text
from visiontune.metric_names import NAMES
from visiontune.metrics.rouge import rouge
from visiontune.page import fill, within
from visiontune.pictures import SHOWN_PIXELS, Pictures
from visiontune.recipe import Recipe
from visiontune.report_objects import found_objects, objects_taught
from visiontune.report_responses import found_responses
from visiontune.run import Run

MISTAKES_SHOWN, CORRECT_SHOWN = 16, 8
FAR_SHOWN, NEAR_SHOWN, RANKED = 8, 4, 256  # free text: answers shown, of so many that are compared with their truth
SUPERVISED_SHOWN = 6
MATRIX_CLASSES = 20
CONFUSIONS_SHOWN = 10
CLASS_ROWS = 200
RECEIPT_ORDER = ("failed", "pending", "passed", "not applicable")
SPLIT_ORDER = ("test", "validation", "train")
TIMED = ("data", "forward", "backward", "optimizer", "other")

Entry = dict[str, Any]  # an object as it stands in one of the folder's JSON files, or one for the page
Curve = tuple[str, str, Markup]


def write_report(run: Run) -> Path:
    """Write report.html from what stands in the run folder, finished or not, and return its path.

    Raises RecipeError if the recipe is one of a newer visiontune. A dataset that was moved costs only its pictures.
    """
    recipe = run.recipe if run.recipe_path.is_file() else None
    steps, checks, receipts = run.metrics("step"), run.metrics("evaluation"), run.receipts
    pictures, evaluations = Pictures(recipe), _evaluations(run)
    objects = found_objects(run, recipe, evaluations, pictures)
    responses = found_responses(run, recipe, evaluations)
    texts = {} if objects or responses else evaluations
    shown = [example for one in receipts if one["name"] == "supervised" for example in one["examples"]]
    shown = shown[:SUPERVISED_SHOWN]
    facts = {
        "name": run.path.resolve().name,
        "state": run.state,
        "recipe": recipe,
        "datasets": pictures.names,
        "seconds": sum(entry["seconds"]["total"] for entry in steps) + sum(entry["seconds"] for entry in checks),
        "peak_memory": max((entry.get("peak_memory_bytes") or 0 for entry in steps), default=0),
        "last_step": steps[-1]["step"] if steps else run.state["step"],
        "receipts": sorted(receipts, key=lambda receipt: RECEIPT_ORDER.index(receipt["status"])),
        "verdict": Counter(receipt["status"] for receipt in receipts),
        "headline": _headline(recipe, run.best, evaluations, checks),
        "evaluations": texts,
        "metric_names": list(dict.fromkeys(name for value in texts.values() for name in value["metrics"])),
        "objects": objects,
        "responses": responses,
        "unit": "images" if objects else "units" if responses or (recipe and recipe.responses) else "samples",
        "baselines": _of_first_split(run, "baselines.json"),
        "ratios": _ratios(run),
        "calibration": run.read_json("calibration.json"),
        "exports": _exports(run),
        "curves": _curves(recipe, run.best, steps, checks),
        "step_time": _step_time(steps),
        "parts": run.read_json("parts.json") or [],
        "measures": run.read_json("measures.json"),
        "supervised": [(one, pictures.of_example(one)) for one in shown if "segments" in one],
        "taught": objects_taught([one for one in shown if "objects" in one], recipe, pictures),
        "spikes": [one for one in shown if "spikes" in one],
        "predictions": _predictions(run, texts, pictures),
        "written": _written(run, texts, pictures),
        "confusion": _confusion(texts),
        "classes": _classes(texts),
        "recipe_lines": [] if recipe is None else list(_recipe_lines(recipe)),
        "no_pictures": pictures.missing,
        "receipt_order": RECEIPT_ORDER,
        "matrix_classes": MATRIX_CLASSES,
        "class_rows": CLASS_ROWS,
    }
    write_text(run.report_path, fill("report.html", facts, shown_pixels=SHOWN_PIXELS))
    return run.report_path


# What stands in the folder, section by section


def _evaluations(run: Run) -> dict[str, Entry]:
    """evaluations/SPLIT/metrics.json of each split, the test split first."""
    found = {split: run.read_json(f"evaluations/{split}/metrics.json") for split in SPLIT_ORDER}
    return {split: value for split, value in found.items() if value is not None}


def _of_first_split(run: Run, name: str) -> Entry | None:
    """evaluations/SPLIT/NAME of the first split that has one, the test split first, with its split."""
    for split in SPLIT_ORDER:
        if (value := run.read_json(f"evaluations/{split}/{name}")) is not None:
            return {"split": split, **value}
    return None


def _ratios(run: Run) -> Entry | None:
    """The curve of ROUGE-L over compression, with those of the baselines, and what it is drawn from."""
    found = _of_first_split(run, "ratios.json")
    if found is None:
        return None
    points = found["points"]
    x = [point["ratio"] for point in points]
    value, low, high = ([point["metrics"]["rougeL"][end] for point in points] for end in ("value", "low", "high"))
    beside = {
        one["name"]: [point["baselines"][b]["metrics"]["rougeL"]["value"] for point in points]
        for b, one in enumerate(points[0]["baselines"])
    }
    lines = [Line(x, y, f"beside-{b}", points=True) for b, y in enumerate(beside.values())]
    said = ", ".join(f"{y:.3f} at {ratio:.1f}" for ratio, y in zip(x, value, strict=True))
    chart = line_chart(
        [*lines, Line(x, value, "main", low, high, points=True)],
        name=f"ROUGE-L by compression: {said}",
        x_label="text tokens / vision tokens",
        from_zero=True,
    )
    return {**found, "chart": Markup(chart), "beside": list(beside)}


def _exports(run: Run) -> list[Entry]:
    """exports/{gguf,onnx}-TYPE.json of each export with a certificate, failed ones first, then the smallest."""
    rows = []
    for path in sorted([*(run.path / "exports").glob("gguf-*.json"), *(run.path / "exports").glob("onnx-*.json")]):
        value = json.loads(path.read_text(encoding="utf-8"))
        if _is_replaced(value):
            continue
        checks = {check["name"]: check for check in value["checks"]}
        graphs = value.get("form") == "onnx"
        metric = checks["metric"]["numbers"] or None
        speed = value["speed"]
        seconds = speed["median_ms"] / 1000 if speed.get("median_ms") else speed.get("median_seconds")
        rows.append(
            {
                "quantisation": f"ONNX, {value['dtype']}" if graphs else value["quantisation"],
                "verdict": value["verdict"],
                "folder": value["folder"],
                "step": value["trained"]["step"],
                "bytes": sum(file["bytes"] for file in value["files"].values()),
                "seconds": seconds,
                "metric": _average_precision(metric) if graphs and metric else metric,
                "failed": [check["name"] for check in value["checks"] if check["status"] == "failed"],
            }
        )
    return sorted(rows, key=lambda row: (row["verdict"] != "failed", row["bytes"]))


def _is_replaced(value: Entry) -> bool:
    """Whether another export stands in the place of this one now."""
    path = Path(value["folder"]) / CERTIFICATE_NAME
    if not path.is_file():
        return False
    return json.loads(path.read_bytes()) != {name: one for name, one in value.items() if name != "folder"}


def _average_precision(numbers: Entry) -> Entry | None:
    """AP of masks, else of boxes, from the numbers of an ONNX certificate, as metrics without intervals."""
    known = [name for name in sorted(numbers, reverse=True) if name.endswith("_ap")]
    if not known:
        return None
    plain = {"low": None, "high": None, "n": numbers["images"]}
    return {"name": known[0]} | {of: {"value": numbers[known[0]][of], **plain} for of in ("trained", "shipped")}


def _headline(
    recipe: Recipe | None, best: Entry | None, evaluations: dict[str, Entry], checks: list[Entry]
) -> Entry | None:
    """The metric of the recipe on the test split, else on validation: at the end, or at the best step so far."""
    for split, value in evaluations.items():
        name = recipe.evaluation.metric if recipe else next(iter(value["metrics"]))
        if name in value["metrics"]:
            return {"name": name, "split": split, "step": value.get("step"), "metric": value["metrics"][name]}
    for entry in checks:
        if best and entry["step"] == best["step"] and best["metric"] in entry["metrics"]:
            metric = entry["metrics"][best["metric"]]
            return {"name": best["metric"], "split": entry["split"], "step": entry["step"], "metric": metric}
    return None


def _curves(recipe: Recipe | None, best: Entry | None, steps: list[Entry], checks: list[Entry]) -> list[Curve]:
    """(title, caption, chart) of each curve that has points."""
    x = [entry["step"] for entry in steps]
    span = max(5, len(steps) // 30)
    curves: list[Curve] = []

    def of_steps(title: str, caption: str, y: list[float | None]) -> None:
        known = [value for value in y if value is not None]
        if known:
            average = smoothed(y, span)
            chart = line_chart(
                [Line(x, y, "raw"), Line(x, average)],
                name=f"{title} by step: first {known[0]:.4g}, last {known[-1]:.4g}",
                x_label="step",
                from_zero=True,
            )
            curves.append((title, f"{caption}; last {known[-1]:.4g}", Markup(chart)))

    smoothing = f"thin: each step, thick: mean of {span} steps"
    of_steps("Training loss", smoothing, [entry["loss"] for entry in steps])
    curves += _evaluation_curve(recipe, best, checks)
    rates = [entry["learning_rate"] for entry in steps]
    if rates:
        chart = line_chart(
            [Line(x, rates)], name=f"Learning rate by step, highest {max(rates):.3g}", x_label="step", from_zero=True
        )
        curves.append(("Learning rate", f"highest {max(rates):.3g}", Markup(chart)))
    of_steps("Gradient norm", "before clipping, drawn likewise", [entry.get("gradient_norm") for entry in steps])
    words = {"text": ("Samples", "Tokens"), "objects": ("Images", "Patches"), "responses": ("Clips", "Frames")}
    for unit, name in zip(("samples", "tokens"), words[recipe.target if recipe else "text"], strict=True):
        of_steps(f"{name} a second", "whole steps, drawn likewise", [_speed(entry, unit) for entry in steps])
    return curves


def _speed(entry: Entry, unit: str) -> float | None:
    total = entry["seconds"]["total"]
    return entry[unit] / total if total > 0 else None


def _evaluation_curve(recipe: Recipe | None, best: Entry | None, checks: list[Entry]) -> list[Curve]:
    name = recipe.evaluation.metric if recipe else "accuracy"
    entries = [entry for entry in checks if entry["split"] == "validation" and name in entry["metrics"]]
    metrics = [entry["metrics"][name] for entry in entries]
    if not any(metric["value"] is not None for metric in metrics):
        return []
    x = [entry["step"] for entry in entries]
    values, low, high = ([metric[key] for metric in metrics] for key in ("value", "low", "high"))
    mark = (best["step"], best["value"]) if best and best["metric"] == name else None
    caption = "band: 95 % interval" + (f"; best {mark[1]:.3f} at step {mark[0]}" if mark else "")
    title = f"Validation {within(NAMES.get(name, name))}"
    chart = line_chart(
        [Line(x, values, "main", low, high, points=True)], name=f"{title} by step, {caption}", x_label="step", best=mark
    )
    return [(title, caption, Markup(chart))]


def _step_time(steps: list[Entry]) -> Entry | None:
    """Where the mean step spends its time."""
    sums = {kind: sum(entry["seconds"].get(kind, 0.0) for entry in steps) for kind in TIMED}
    total = sum(sums.values())
    if total <= 0:
        return None
    rows = [(kind, seconds / len(steps), seconds / total) for kind, seconds in sums.items()]
    words = ", ".join(f"{kind} {share:.0%}" for kind, _, share in rows)
    return {
        "bar": Markup(stacked_bar(list(sums.items()), name=f"Time of a step: {words}")),
        "rows": rows,
        "total": total / len(steps),
    }


def _predictions(run: Run, evaluations: dict[str, Entry], pictures: Pictures) -> Entry | None:
    """The most confident mistakes and some right answers of the headline's split, with their images."""
    split, known = _with_truth(run, evaluations)
    if not known or evaluations[split]["classes"] is None:
        return None
    right = [entry for entry in known if _is_right(entry[0])]
    mistakes = [entry for entry in known if not _is_right(entry[0])]
    mistakes.sort(key=lambda entry: -entry[0].scores.get("confidence", 0.0))
    some = right[:: max(1, len(right) // CORRECT_SHOWN)][:CORRECT_SHOWN]
    return {
        "split": split,
        "mistakes": [(p, pictures.of_prediction(p, split, at)) for p, at in mistakes[:MISTAKES_SHOWN]],
        "right": [(p, pictures.of_prediction(p, split, at)) for p, at in some],
        "mistakes_count": len(mistakes),
        "right_count": len(right),
    }


def _written(run: Run, evaluations: dict[str, Entry], pictures: Pictures) -> Entry | None:
    """Free text of the headline's split beside its truth: the answers least like it and most like it, by ROUGE-L."""
    split, known = _with_truth(run, evaluations)
    if not known or evaluations[split]["classes"] is not None:
        return None
    scored = [(_likeness(prediction), prediction, at) for prediction, at in known[:RANKED]]
    scored.sort(key=lambda entry: entry[0])
    far, near = scored[:FAR_SHOWN], scored[FAR_SHOWN:][-NEAR_SHOWN:][::-1]
    return {
        "split": split,
        "far": [(p, pictures.of_prediction(p, split, at), like) for like, p, at in far],
        "near": [(p, pictures.of_prediction(p, split, at), like) for like, p, at in near],
        "ranked": len(scored),
        "count": len(known),
    }


def _with_truth(run: Run, evaluations: dict[str, Entry]) -> tuple[str, list[tuple[Prediction, int]]]:
    """The headline's split, and its predictions whose truth is known, each with its line."""
    for split in evaluations:
        path = run.path / "evaluations" / split / "predictions.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            made = (Prediction.from_json(json.loads(line)) for line in lines)
            return split, [(prediction, at) for at, prediction in enumerate(made) if prediction.truth is not None]
    return "", []


def _is_right(prediction: Prediction) -> bool:
    return prediction.truth is not None and prediction.truth.answer.strip() == prediction.target.answer.strip()


def _likeness(prediction: Prediction) -> float:
    """ROUGE-L of a prediction whose truth is known."""
    return rouge(prediction.truth.answer if prediction.truth else "", prediction.target.answer)["rougeL"]


def _confusion(evaluations: dict[str, Entry]) -> Entry | None:
    """The confusion matrix of the headline's split with each row's shares, and its largest entries off the diagonal."""
    for split, value in evaluations.items():
        if value["confusion"] is None:
            continue
        labels, counts = value["confusion"]["labels"], value["confusion"]["counts"]
        columns = [*labels, "(other)"]
        rows = [(label, sum(row), row) for label, row in zip(labels, counts, strict=True)]
        confusions = [
            (count, count / total, label, columns[c])
            for r, (label, total, row) in enumerate(rows)
            for c, count in enumerate(row)
            if count and c != r
        ]
        confusions.sort(key=lambda entry: -entry[0])
        return {"split": split, "columns": columns, "rows": rows, "top": confusions[:CONFUSIONS_SHOWN]}
    return None


def _classes(evaluations: dict[str, Entry]) -> Entry | None:
    """The rates of each class on the headline's split, the lowest F1 first."""
    for split, value in evaluations.items():
        if value["classes"] is not None:
            rows = sorted(value["classes"], key=lambda row: 2 if row["f1"]["value"] is None else row["f1"]["value"])
            return {"split": split, "rows": rows}
    return None


def _recipe_lines(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The recipe as YAML, a field at a time, each with the reason for its choice."""
    values = recipe.model_dump(mode="json", exclude={"why"})
    left = dict(recipe.why)

    def lines(values: dict[str, Any], prefix: str, indent: str) -> Iterator[tuple[str, str]]:
        for key, value in values.items():
            reason = left.pop(f"{prefix}{key}", "")
            if isinstance(value, dict) and value:
                yield f"{indent}{key}:", reason
                yield from lines(value, f"{prefix}{key}.", indent + "  ")
            else:
                text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=60)
                yield "\n".join(indent + line for line in text.splitlines()), reason

    yield from lines(values, "", "")
    for name, reason in left.items():
        yield f"# {name}", reason

"""Whether a run is what its folder says."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from visiontune.data.dataset import Dataset
from visiontune.data.objects import Objects
from visiontune.data.sample import ObjectPrediction, Prediction
from visiontune.errors import VisiontuneError
from visiontune.exports.certificate import Check
from visiontune.models.cortex import predicts_responses
from visiontune.models.objects import ObjectAdapter, finds_objects
from visiontune.models.parts import frozen_tensors, tensors_sha256, trained_tensors
from visiontune.models.text import writes_text
from visiontune.run import Run
from visiontune.training import checkpoint, receipts
from visiontune.training.evaluate import calibration_of, predict_split
from visiontune.training.evaluate_objects import find_in_split
from visiontune.training.evaluate_responses import predict_split_of_responses
from visiontune.training.model import adapt, load_base, load_trained, open_datasets
from visiontune.training.ranks import Ranks
from visiontune.training.rows import first_rows

ANSWERS_REPEATED = 16
CONFIDENCE_WITHIN = 1e-3
PIXELS_WITHIN = 0.1
RATES_WITHIN = 1e-3  # of 1 + the rate, in spikes a bin


def verify_run(run: Run) -> list[Check]:
    """Whether a run is what its folder says: receipts, data, checkpoints, base weights, answers."""
    checks = [
        Check("finished", "passed" if run.status == "finished" else "failed", f"the run is {run.status}"),
        _receipts(run),
    ]
    recipe = run.recipe
    recipe = recipe.computing_on("cpu", recipe.machine.precision)
    try:
        datasets = open_datasets(recipe)
        for dataset in datasets:
            dataset.verify()
    except VisiontuneError as error:
        datasets = []
        checks.append(Check("data", "failed", f"{error.found} {error.where or ''}".strip()))
    else:
        checks.append(Check("data", "passed", f"{len(datasets)} datasets, each file hashed"))
    steps = run.checkpoint_steps()
    try:
        for step in steps:
            checkpoint.load(run, step)
    except VisiontuneError as error:
        return [*checks, Check("checkpoints", "failed", error.found)]
    shown = ", ".join(map(str, steps)) or "none"
    checks.append(Check("checkpoints", "passed" if steps else "failed", f"steps {shown}"))
    adapter = load_base(run, recipe, torch.device("cpu"))
    adapt(adapter, recipe)
    start = run.read_json("start.json") or {"frozen_sha256": None, "trained_sha256": None}
    module, parts = adapter.trained_module, adapter.parts
    same = (
        tensors_sha256(frozen_tensors(module, parts, recipe.parts)) == start["frozen_sha256"]
        and receipts.hashes_by_part(trained_tensors(module, parts, recipe.parts), parts) == start["trained_sha256"]
    )
    found = "the weights that the run was started with" if same else f"{recipe.model.name} has other weights now"
    checks.append(Check("base model", "passed" if same else "failed", found))
    if steps and datasets:
        checks.append(_answers(run, recipe, datasets))
    return checks


def _receipts(run: Run) -> Check:
    by_status: dict[str, list[str]] = {}
    for receipt in run.receipts:
        by_status.setdefault(receipt["status"], []).append(receipt["name"])
    found = "; ".join(f"{status}: {', '.join(names)}" for status, names in by_status.items()) or "there are none"
    bad = "failed" in by_status or "pending" in by_status or not by_status
    return Check("receipts", "failed" if bad else "passed", found)


def _answers(run: Run, recipe: Any, datasets: Sequence[Dataset]) -> Check:
    """The first validation samples answered again by the checkpoint that the run evaluated."""
    scores = run.read_json("evaluations/validation/metrics.json")
    if recipe.responses is not None and scores is not None:
        return _rates_again(run, recipe, datasets, scores["step"])
    path = run.path / "evaluations" / "validation" / "predictions.jsonl"
    if scores is None or not path.is_file():
        return Check("answers", "not checked", "the run has no evaluation of the validation split")
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    how: dict[str, Any] = {"rows": recipe.data.limit}
    if len(rows := sorted(first_rows(datasets, "validation", **how))) != len(lines):
        how = {"rows": None}  # an evaluation of fewer wrote the first ones
        rows = sorted(first_rows(datasets, "validation", limit=len(lines)))
    # By their places: several datasets may have an id in common.
    line_of = dict(zip(rows, lines, strict=True))
    how["limit"] = min(ANSWERS_REPEATED, len(lines))
    lines = [line_of[row] for row in sorted(first_rows(datasets, "validation", **how))]
    adapter, step = load_trained(run, recipe, torch.device("cpu"), scores["step"])
    if recipe.objects is not None:
        return _objects_again(finds_objects(adapter), recipe, datasets, lines, how)
    written = [Prediction.from_json(json.loads(line)) for line in lines]
    again = predict_split(writes_text(adapter), datasets, "validation", recipe, Ranks("cpu"), **how)
    calibration = calibration_of(run, step)
    again = again if calibration is None else [calibration.applied(p) for p in again]
    other = [
        p.id
        for p, before in zip(again, written, strict=True)
        if (p.id, p.target.answer) != (before.id, before.target.answer)
        or abs(p.scores["confidence"] - before.scores["confidence"]) > CONFIDENCE_WITHIN
    ]
    if other:
        return Check("answers", "failed", f"{len(other)} of {len(again)} answers are others, first {other[0]}")
    return Check("answers", "passed", f"{len(again)} answers again, the same")


def _rates_again(run: Run, recipe: Any, datasets: Sequence[Dataset], step: int) -> Check:
    """The first validation clips of each session predicted again by the checkpoint that the run evaluated."""
    adapter = predicts_responses(load_trained(run, recipe, torch.device("cpu"), step)[0])
    again = predict_split_of_responses(
        adapter, datasets, "validation", recipe, Ranks("cpu"), rows=-(-ANSWERS_REPEATED // len(datasets))
    )
    bins, farthest = 0, 0.0
    for one in again:
        path = run.path / "evaluations" / "validation" / f"{one.name}.npz"
        if not path.is_file():
            return Check("answers", "failed", f"the rates of {one.name} are missing: {path.name}")
        with np.load(path) as kept:
            places = {at: i for i, at in enumerate(zip(kept["trials"].tolist(), kept["places"].tolist(), strict=True))}
            mine = [places.get(at) for at in zip(one.trials.tolist(), one.places.tolist(), strict=True)]
            if None in mine:
                return Check("answers", "failed", f"{mine.count(None)} bins of {one.name} were not evaluated")
            written = kept["rates"][mine]
        apart = np.abs(one.rates - written) / (1 + np.abs(written))
        bins, farthest = bins + len(apart), max(farthest, float(apart.max(initial=0)))
    if farthest > RATES_WITHIN:
        return Check("answers", "failed", f"rates in {bins} bins again, up to {farthest:.1e} apart")
    return Check("answers", "passed", f"rates in {bins} bins again, the same")


def _objects_again(
    adapter: ObjectAdapter, recipe: Any, datasets: Sequence[Dataset], lines: Sequence[str], how: dict[str, Any]
) -> Check:
    names = tuple(adapter.encoder.classes)
    written = [ObjectPrediction.from_json(json.loads(line), names) for line in lines]
    again = find_in_split(adapter, datasets, "validation", recipe, Ranks("cpu"), **how)
    other = [
        p.id
        for p, before in zip(again, written, strict=True)
        if p.id != before.id or not _alike(p.target, before.target)
    ]
    if other:
        return Check("answers", "failed", f"the objects of {len(other)} of {len(again)} images are others: {other[0]}")
    return Check("answers", "passed", f"the objects of {len(again)} images again, the same")


def _alike(one: Objects, other: Objects) -> bool:
    if one.classes.tolist() != other.classes.tolist():
        return False
    mine, theirs = (np.zeros(0) if o.scores is None else o.scores for o in (one, other))
    return bool(
        np.allclose(one.boxes, other.boxes, atol=PIXELS_WITHIN) and np.allclose(mine, theirs, atol=CONFIDENCE_WITHIN)
    )

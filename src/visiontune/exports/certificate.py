"""The certificate of an export: the same inputs through the trained model and the shipped file, held to stated limits.

Each check is *passed*, *failed* or *not checked*, with what was found. What llama.cpp answers is `Outcome`; what the
trained model answered is `Reference`.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import floor, isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visiontune.data.images import decode
from visiontune.errors import CertificateError
from visiontune.exports.reference import Reference, pixels_sha256
from visiontune.exports.runtime import Runtime
from visiontune.exports.shipment import Shipment, png
from visiontune.metrics.answers import Counted
from visiontune.metrics.intervals import Metric, mean
from visiontune.models.labels import LabelTree

CERTIFICATE_NAME = "certificate.json"
SCHEMA_VERSION = 1
INPUTS_FOLDER = "inputs"
SHOWN = 5
ROUNDING = 1e-9  # of a sum of shares
Status = Literal["passed", "failed", "not checked"]

CHECKS = {
    "files": "the files that belong together are there, and are those that were certified",
    "contract": "contract.json says what the run was trained for",
    "layout": "the projector's keys make llama.cpp cut the picture as in training",
    "weights": "each tensor is the trained one, as exactly as its type can hold it",
    "template": "the chat template in the file makes the prompt of the contract",
    "pixels": "the picture is the one that the trained model gets, byte for byte",
    "prompt": "llama.cpp reads the prompt as the tokens of training",
    "image tokens": "the picture takes as many tokens as in training",
    "log-probabilities": "the answer's tokens are as probable as for the trained model",
    "tokens": "the greedy answer has the same tokens, near-ties excepted",
    "labels": "the most probable label is the same, near-ties excepted",
    "metric": "the task metric on the validation split is as good",
}
OBJECT_CHECKS = {
    "objects": "the same objects are found, at the same places, equally sure",
    "outputs": "scores, boxes and masks of every query are those of the trained model",
}
RUN_CHECKS = {
    "finished": "the run came to its end",
    "receipts": "no receipt failed",
    "data": "the datasets are those that the run was planned for, and whole",
    "checkpoints": "each checkpoint's files are those that were written",
    "base model": "base weights and new weights are those that the run was started with",
    "answers": "the best checkpoint answers validation samples as the run wrote it",
}


@dataclass(frozen=True)
class Limits:
    """How far a shipped file may be from the trained model.

    log_probability: mean distance a token, natural logarithm. near_tie: a token or label whose lead over the runner-up
    is smaller may change. disagreement and drop: shares of the samples (one sample is always allowed).
    """

    log_probability: float
    near_tie: float
    disagreement: float
    drop: float


LIMITS = {
    "f32": Limits(0.005, 0.02, 0.0, 0.0),
    "f16": Limits(0.02, 0.1, 0.0, 0.0),
    "bf16": Limits(0.05, 0.3, 0.005, 0.005),
    "q8_0": Limits(0.1, 0.5, 0.005, 0.005),
    "q6_k": Limits(0.2, 0.75, 0.01, 0.01),
    "q5_k_m": Limits(0.3, 1.0, 0.02, 0.01),
}
COARSE = Limits(0.5, 2.0, 0.03, 0.02)  # four bits and fewer


@dataclass(frozen=True)
class Check:
    """One fact about an export, and how it came out."""

    name: str
    status: Status
    found: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """{"name", "what", "status", "found", "numbers"}."""
        return {"name": self.name, "what": (CHECKS | OBJECT_CHECKS | RUN_CHECKS)[self.name], **asdict(self)}


@dataclass(frozen=True)
class Outcome:
    """What the shipped file made of one input: the fields of `Reference` and the seconds of a whole answer."""

    id: str
    pixels_sha256: str
    prompt_ids: tuple[int, ...]
    image_tokens: int
    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    labels: tuple[float, ...] | None
    seconds: float


Pairs = Sequence[tuple[Reference, Outcome | Reference]]


def limits_for(quantisation: str) -> Limits:
    """The limits that a quantisation is held to."""
    return LIMITS.get(quantisation, COARSE)


def run_shipped(
    runtime: Runtime, shipment: Shipment, inputs: Iterable[tuple[Reference, bytes]], advance: Callable[[int], None]
) -> list[Outcome]:
    """The shipped file on the references' inputs; `inputs` holds with each reference its image file's bytes."""
    outcomes, tree, device = [], shipment.tree, shipment.device
    for reference, file in inputs:
        picture = device.picture(decode(file))
        image, prompt = png(picture), device.prompt_for(reference.question)
        made = runtime.answer(prompt, image, marker=device.marker, max_new_tokens=device.max_new_tokens)
        scored, seconds = None, made.seconds
        if tree is not None:
            scored, seconds = _scored(runtime, prompt, image, device.marker, tree)
        outcomes.append(
            Outcome(
                id=reference.id,
                pixels_sha256=pixels_sha256(np.asarray(picture)),
                prompt_ids=made.prompt_ids,
                image_tokens=made.image_tokens,
                text=made.text.strip(),
                tokens=made.tokens,
                log_probabilities=made.log_probabilities,
                labels=scored,
                seconds=seconds,
            )
        )
        advance(1)
    return outcomes


def _scored(
    runtime: Runtime, prompt: str, image: bytes, marker: str, tree: LabelTree
) -> tuple[tuple[float, ...], float]:
    started = time.perf_counter()
    scores = runtime.score_labels(prompt, image, marker=marker, tree=tree)
    return tuple(scores.tolist()), time.perf_counter() - started


def check_outcomes(references: Sequence[Reference], outcomes: Sequence[Outcome], limits: Limits) -> list[Check]:
    """The checks of what was answered, in the order of CHECKS."""
    pairs = list(zip(references, outcomes, strict=True))
    return [
        same("pixels", [(r.id, r.pixels_sha256, o.pixels_sha256) for r, o in pairs]),
        same("prompt", [(r.id, r.prompt_ids, o.prompt_ids) for r, o in pairs]),
        same("image tokens", [(r.id, r.image_tokens, o.image_tokens) for r, o in pairs]),
        *check_answers(pairs, limits),
    ]


def check_answers(pairs: Pairs, limits: Limits) -> list[Check]:
    """The checks of probabilities, tokens and labels."""
    return [_log_probabilities(pairs, limits), _tokens(pairs, limits), _labels(pairs, limits)]


def same(name: str, pairs: Sequence[tuple[str, Any, Any]]) -> Check:
    """Whether what was wanted and what was found are the same for each input: (id, wanted, found)."""
    other = [(sample, wanted, found) for sample, wanted, found in pairs if wanted != found]
    if not other:
        what = f"the same for all {len(pairs)} inputs"
        if name == "image tokens":
            what = f"{', '.join(map(str, sorted({wanted for _, wanted, _ in pairs})))} for all {len(pairs)} inputs"
        return Check(name, "passed", what, {"inputs": len(pairs)})
    sample, wanted, found = other[0]
    shown = f"{_first_difference(wanted, found)}, first in {sample}"
    numbers = {"inputs": len(pairs), "other": len(other)}
    return Check(name, "failed", f"other for {len(other)} of {len(pairs)} inputs: {shown}", numbers)


def _first_difference(mine: Any, its: Any) -> str:
    if isinstance(mine, tuple):
        place = next((i for i, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), min(len(mine), len(its)))
        return (
            f"{len(mine)} tokens in training, {len(its)} shipped, from token {place} on "
            f"{list(mine[place : place + 4])} became {list(its[place : place + 4])}"
        )
    if isinstance(mine, str):
        return f"pixels {mine[:12]} became {its[:12]}"
    return f"{mine} became {its}"


def _agreed(reference: Reference, outcome: Outcome | Reference) -> int:
    """How many first tokens both answers share."""
    both = zip(reference.tokens, outcome.tokens, strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(reference.tokens), len(outcome.tokens)))


def _log_probabilities(pairs: Pairs, limits: Limits) -> Check:
    both = [
        pair
        for r, o in pairs
        for pair in zip(r.log_probabilities[: _agreed(r, o)], o.log_probabilities[: _agreed(r, o)], strict=True)
    ]
    distances = [abs(mine - its) for mine, its in both if not isnan(its)]  # llama.cpp tells none inside a letter
    if not distances:
        return Check("log-probabilities", "failed", "no answer begins with the same token", {})
    mean, largest = float(np.mean(distances)), float(np.max(distances))
    untold = f", {len(both) - len(distances)} that llama.cpp does not tell" if len(distances) < len(both) else ""
    return Check(
        "log-probabilities",
        "passed" if mean <= limits.log_probability else "failed",
        f"mean distance {mean:.2g} (limit {limits.log_probability:g}), largest {largest:.2g}, {len(distances)} tokens"
        + untold,
        {"mean": mean, "largest": largest, "limit": limits.log_probability, "tokens": len(distances)},
    )


def _tokens(pairs: Pairs, limits: Limits) -> Check:
    near, far = [], []
    for r, o in pairs:
        place = _agreed(r, o)
        if r.tokens == o.tokens:
            continue
        margin = r.margins[place] if place < len(r.margins) else 0.0  # one ends where the other goes on at the limit
        (near if margin <= limits.near_tie else far).append({"id": r.id, "place": place, "margin": round(margin, 5)})
    same = len(pairs) - len(near) - len(far)
    found = f"{same} of {len(pairs)} answers identical, {len(near)} part at a near-tie (a lead up to {limits.near_tie})"
    if far:
        first = far[0]
        found += f", {len(far)} beyond: {first['id']} at token {first['place']}, lead {first['margin']}"
    allowed = max(1, floor(limits.disagreement * len(pairs))) if limits.disagreement else 0
    numbers = {"identical": same, "near_ties": near, "beyond": far, "inputs": len(pairs), "allowed": allowed}
    return Check("tokens", "failed" if len(far) > allowed else "passed", found, numbers)


def _labels(pairs: Pairs, limits: Limits) -> Check:
    if any(r.labels is None or o.labels is None for r, o in pairs):
        return Check("labels", "not checked", "the answers are free text")
    mine = np.array([r.labels for r, _ in pairs])
    its = np.array([o.labels for _, o in pairs])
    other = np.flatnonzero(mine.argmax(axis=1) != its.argmax(axis=1))
    top = np.sort(mine, axis=1)
    leads = top[:, -1] - top[:, -2] if mine.shape[1] > 1 else np.full(len(mine), np.inf)
    far = [int(row) for row in other if leads[row] > limits.near_tie]
    allowed = floor(limits.disagreement * len(pairs))
    distance = float(np.abs(np.exp(mine) - np.exp(its)).max())
    found = (
        f"{len(pairs) - len(other)} of {len(pairs)} the same, {len(other) - len(far)} near-ties, {len(far)} beyond "
        f"({allowed} allowed); largest distance of a probability {distance:.2g}"
    )
    numbers = {
        "same": len(pairs) - len(other), "inputs": len(pairs), "allowed": allowed, "largest_distance": distance,
        "other": [{"id": pairs[int(row)][0].id, "lead": round(float(leads[row]), 5)} for row in other],
    }  # fmt: skip
    return Check("labels", "failed" if len(far) > allowed else "passed", found, numbers)


@dataclass(frozen=True)
class Compared:
    """The task metric of trained model and shipped file on the same samples, and the second minus the first."""

    name: str
    trained: Metric
    shipped: Metric
    difference: Metric

    def to_json(self) -> dict[str, Any]:
        """{"name", "trained", "shipped", "difference"}."""
        rates = {"trained": self.trained, "shipped": self.shipped, "difference": self.difference}
        return {"name": self.name, **{name: rate.to_json() for name, rate in rates.items()}}


def compare_metric(name: str, trained: Sequence[float], shipped: Sequence[float], limits: Limits) -> Check:
    """The metric check: what each sample's answer counts for, in [0, 1], of the trained model and the shipped file."""
    first, second = np.array(trained, float), np.array(shipped, float)
    n = len(first)
    difference = mean((second - first).tolist(), bounds=(-1.0, 1.0))
    compared = Compared(name, Counted(first).metric(), Counted(second).metric(), difference)
    lost = max(0.0, float((first - second).sum()))
    allowed = max(1, floor(limits.drop * n))
    of_both = [rate.value or 0.0 for rate in (compared.trained, compared.shipped)]
    found = (
        f"{name} {of_both[0]:.4f} trained, {of_both[1]:.4f} shipped on {n} samples: "
        f"lower by {lost / max(n, 1):.4f} ({allowed / max(n, 1):.4f} allowed)"
    )
    return Check("metric", "failed" if lost > allowed + ROUNDING else "passed", found, compared.to_json())


def is_weights(path: Path) -> bool:
    """Whether a folder holds exported weights, an adapter or merged, with their certificate."""
    return (path / CERTIFICATE_NAME).is_file() and read_certificate(path).get("form") in ("adapter", "merged")


def read_certificate(folder: Path, *needed: str) -> dict[str, Any]:
    """What certificate.json of an exported folder says; CertificateError where it is missing, not whole, or says
    nothing of something `needed`."""
    path = folder / CERTIFICATE_NAME
    if not path.is_file():
        raise CertificateError(
            "There is no certificate here.", where=str(folder), fix="export the run again, or give the run's folder"
        )
    fix = "copy the folder again, or export the run again"
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CertificateError(f"The certificate is not whole: {error}", where=str(path), fix=fix) from error
    if not isinstance(value, dict):
        raise CertificateError("The certificate is no JSON object.", where=str(path), fix=fix)
    if missing := [name for name in needed if name not in value]:
        raise CertificateError(f"This certificate names no {', '.join(missing)}.", where=str(path), fix=fix)
    return value


def failed_before(folder: Path) -> str:
    """The checks that had failed when a folder was exported, as its certificate has them; empty where it passed, or
    where there is no certificate."""
    value = read_certificate(folder) if (folder / CERTIFICATE_NAME).is_file() else {}
    if value.get("verdict") != "failed":
        return ""
    known = [Check(check["name"], check["status"], check["found"]) for check in value.get("checks", ())]
    return f"The certificate says that the export failed: {failures(known)}"


def certified_members(path: Path) -> list[str]:
    """The names of the folders in a folder without a certificate that have one each."""
    if not path.is_dir() or (path / CERTIFICATE_NAME).is_file():
        return []
    return sorted(child.name for child in path.iterdir() if (child / CERTIFICATE_NAME).is_file())


def verdict(checks: Sequence[Check]) -> Status:
    """failed where a check failed, passed where none did, not checked where there was nothing to judge by."""
    if any(check.status == "failed" for check in checks):
        return "failed"
    return "passed" if any(check.status == "passed" for check in checks) else "not checked"


def ordered(checks: Iterable[Check], absent: str = "an earlier check failed") -> list[Check]:
    """The checks in the order of CHECKS; those that are not there are not checked, for the reason `absent`."""
    by_name = {check.name: check for check in checks}
    return [by_name.get(name, Check(name, "not checked", absent)) for name in CHECKS]


def failures(checks: Iterable[Check]) -> str:
    """The failed checks with what was found, as one text."""
    return "; ".join(f"{check.name}: {check.found}" for check in checks if check.status == "failed")

"""What is checked of a shipped ONNX folder: the same images through the trained model and the shipped graphs.

No torch here: what the trained model makes of an image comes as `Seen`.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data.images import decode
from visiontune.data.objects import Objects
from visiontune.data.sample import ObjectPrediction, Sample
from visiontune.errors import ModelError, VisiontuneError
from visiontune.exports.certificate import OBJECT_CHECKS, Check
from visiontune.exports.object_agreement import ObjectLimits, check_objects
from visiontune.exports.onnx_runtime import Floats, OnnxContract, OnnxModel, open_model, read_onnx_contract, sigmoid
from visiontune.exports.reference import image_of, objects_of
from visiontune.files import file_sha256
from visiontune.machine import processor
from visiontune.metrics.object_scores import Prompts, score_objects
from visiontune.progress import progress

CHECKS = {
    "files": "the graphs are there, and are those that were certified",
    "contract": "contract.json says what the run was trained for",
    "pixels": "the graph gets the pixels that the trained model gets",
    "outputs": OBJECT_CHECKS["outputs"],
    "objects": "the same objects are found",
    "metric": "average precision on the validation split is as good",
}
PIXELS = 1e-5  # a grey level is 0.017 of what a normalised pixel is told in


@dataclass(frozen=True)
class OnnxLimits(ObjectLimits):
    """How far shipped graphs may be from the trained model, beyond ObjectLimits.

    output: of scores, boxes (shares of the picture) and mask probabilities, in each image; None: told, but not held to.
    drop: of average precision.
    """

    output: float | None
    drop: float


LIMITS = {
    "float32": OnnxLimits(score=1e-3, overlap=0.95, disagreement=0.02, output=1e-4, drop=0.001),
    "int8": OnnxLimits(score=0.1, overlap=0.5, disagreement=0.1, output=None, drop=0.02),
}


@dataclass(frozen=True, eq=False)
class Seen:
    """What the trained model makes of one image, in float32.

    pixels: (3, side, side) float32. outputs: by the names of the graph's outputs, without the batch. The queries of
    RF-DETR begin at the places that the shipped graph chose; their probabilities stay by `shortfall` below those of the
    model's own choice.
    """

    pixels: Floats
    outputs: Mapping[str, Floats]
    objects: Objects
    shortfall: float


See = Callable[[Sample, Mapping[str, Floats]], Seen]


@dataclass(frozen=True)
class HeldTo:
    """What shipped graphs are held to.

    `see` says what the trained model makes of one of the compared `samples`, given the shipped graph's outputs; `base`
    the same of the model without its adapter, where it has one. `predictions` are the trained model's on rows of the
    validation split; `sample(i)` is the one of prediction i.
    """

    wanted: OnnxContract
    samples: Sequence[Sample]
    see: See
    base: See | None
    predictions: Sequence[ObjectPrediction]
    sample: Callable[[int], Sample]
    prompts: Prompts
    threads: int


@dataclass(frozen=True)
class Found:
    """The checks, the compared images' objects as the trained model finds them, and how fast the graphs were."""

    checks: list[Check]
    objects: list[Objects]
    speed: dict[str, Any]


def certify_onnx(folder: Path, held_to: HeldTo, certified: Mapping[str, Any] | None = None) -> Found:
    """All checks of a shipped folder as it stands. `certified` holds the files as a certificate lists them."""
    contract = read_onnx_contract(folder)
    limits = LIMITS[held_to.wanted.dtype]
    checks = [check_files(folder, contract, certified), check_contract(contract, held_to.wanted, "trained")]
    if checks[0].status == "failed" or (contract.family, contract.side) != (held_to.wanted.family, held_to.wanted.side):
        return Found(checks, [], {})  # nothing there could be compared
    try:
        model = open_model(folder, held_to.threads)
        pixels, outputs, pairs = [], [], []
        with progress("the same images through the shipped graphs", len(held_to.samples), "images") as advance:
            for sample in held_to.samples:
                image, told = decode(image_of(sample)), objects_of(sample)
                mine, size = model.pixels(image), (image.height, image.width)
                made = model.outputs(mine, size, told)
                seen = held_to.see(sample, made)
                pixels.append(float(np.abs(mine - seen.pixels).max()))
                outputs.append(_distances(seen, made))
                pairs.append((seen.objects, model.objects(made, size, told)))
                advance(1)
        checks += [check_pixels(held_to.samples, pixels), _check_outputs(held_to, outputs, model, limits)]
        checks.append(check_objects(pairs, held_to.wanted.score_threshold, limits))
        predictions, speed = _predict(model, held_to)
    except VisiontuneError as error:
        return Found([*checks, Check("outputs", "failed", f"the graphs could not be compared: {error.found}")], [], {})
    checks.append(_check_metric(held_to, predictions, limits))
    return Found(checks, [seen for seen, _ in pairs], speed)


def check_files(folder: Path, contract: OnnxContract, certified: Mapping[str, Any] | None = None) -> Check:
    """Whether the graphs are there, have the hashes of the contract and (where known) those of the certificate."""
    for name, sha256 in contract.files.items():
        path = folder / name
        if not path.is_file():
            return Check("files", "failed", f"{name} is missing")
        if file_sha256(path) != sha256 or (certified is not None and certified.get(name, {}).get("sha256") != sha256):
            return Check("files", "failed", f"{name} is not the file that was certified")
    return Check("files", "passed", ", ".join(contract.files))


def check_contract(contract: OnnxContract, wanted: OnnxContract, of: str) -> Check:
    """Whether contract.json says what was wanted; `of` says who wanted it."""
    if drift := wanted.differences(contract):
        return Check("contract", "failed", f"not as {of}: {'; '.join(drift)}", {"drift": drift})
    return Check("contract", "passed", f"as {of}")


def check_pixels(samples: Sequence[Sample], largest: Sequence[float]) -> Check:
    """Whether the runtime makes the trained model's pixels; `largest` is the largest difference in each image."""
    worst, beyond = int(np.argmax(largest)), sum(one > PIXELS for one in largest)
    numbers = {"largest": largest[worst], "limit": PIXELS, "images": len(largest), "beyond": beyond}
    if beyond:
        found = f"others in {beyond} of {len(largest)} images, by up to {largest[worst]:.2g} in {samples[worst].id}"
        return Check("pixels", "failed", f"{found}: another resize, mean or std", numbers)
    return Check("pixels", "passed", f"the same in {len(largest)} images, within {largest[worst]:.1g}", numbers)


def _distances(seen: Seen, its: Mapping[str, Floats]) -> dict[str, tuple[float, float]]:
    """Mean and largest distance of each output that is there: of boxes in shares of the picture, of logits as
    probabilities. ModelError where one is missing or has another shape."""
    found = {"proposals": (seen.shortfall, seen.shortfall)} if "proposals" in its else {}
    for name, values in seen.outputs.items():
        pair = (values, its.get(name, np.zeros(0, np.float32)))
        if pair[1].shape != values.shape:
            raise ModelError(f"{name} has the shape {pair[1].shape}, not {values.shape}.")
        one, other = pair if name in ("boxes", "scores") else map(sigmoid, pair)
        if values.size:
            distance = np.abs(one - other)
            found[name] = (float(distance.mean()), float(distance.max()))
    return found


def _check_outputs(
    held_to: HeldTo, found: Sequence[Mapping[str, tuple[float, float]]], model: OnnxModel, limits: OnnxLimits
) -> Check:
    of = {
        name: {
            "mean": float(np.mean([one[name][0] for one in found if name in one])),
            "largest": max(one[name][1] for one in found if name in one),
        }
        for name in dict.fromkeys(name for one in found for name in one)
    }
    if not of:
        return Check("outputs", "not checked", "there is no object in the compared images")
    told = ", ".join(f"{name} mean {v['mean']:.2g}, largest {v['largest']:.2g}" for name, v in of.items())
    numbers: dict[str, Any] = {"of": of, "limit": limits.output, "images": len(found)}
    if limits.output is None:
        return Check("outputs", "not checked", f"{told} (eight bits: judged by what is found)", numbers)
    far = [i for i, one in enumerate(found) if _largest(one) > limits.output]
    numbers["beyond"] = len(far)
    said = f"{told}; beyond {limits.output:g} in {len(far)} of {len(found)} images"
    if not far:
        return Check("outputs", "passed", said, numbers)
    if held_to.base is not None:
        sample = held_to.samples[far[0]]
        image = decode(image_of(sample))
        made = model.outputs(model.pixels(image), (image.height, image.width), objects_of(sample))
        if _largest(_distances(held_to.base(sample, made), made)) <= limits.output:
            said += ": they are those of the base model, the adapter is not in the file"
    return Check("outputs", "failed", said, numbers)


def _largest(distances: Mapping[str, tuple[float, float]]) -> float:
    return max((largest for _, largest in distances.values()), default=0.0)


def _predict(model: OnnxModel, held_to: HeldTo) -> tuple[list[ObjectPrediction], dict[str, Any]]:
    """What the graphs find in the validation split, and the milliseconds of an image that is decoded."""
    made, taken = [], []
    with progress("the shipped graphs on validation", len(held_to.predictions), "images") as advance:
        for i, trained in enumerate(held_to.predictions):
            sample = held_to.sample(i)
            image, told = decode(image_of(sample)), objects_of(sample)
            started = time.perf_counter()
            found = model.find(image, told)
            taken.append((time.perf_counter() - started) * 1000)
            made.append(replace(trained, target=replace(found, soft=None)))
            advance(1)
    speed = {
        "median_ms": round(float(np.median(taken)), 3),
        "p95_ms": round(float(np.quantile(taken, 0.95)), 3),
        "threads": held_to.threads,
        "machine": processor(),
    }
    return made, speed


def _check_metric(held_to: HeldTo, shipped: Sequence[ObjectPrediction], limits: OnnxLimits) -> Check:
    known = [i for i, prediction in enumerate(held_to.predictions) if prediction.truth is not None]
    if not known:
        return Check("metric", "not checked", "there is no validation image")
    both = []
    for predictions in (held_to.predictions, shipped):
        chosen = [predictions[i] for i in known]
        truths, targets = [p.truth for p in chosen if p.truth is not None], [p.target for p in chosen]
        sizes, classes = [p.size for p in chosen], chosen[0].classes
        both.append(score_objects(truths, targets, sizes, classes, prompts=held_to.prompts, halves=0).metrics)
    told, numbers, failed = [], {"images": len(known), "limit": limits.drop}, False
    for name in [name for name in both[0] if name.endswith("_ap")]:
        mine, its = (metrics[name].value if name in metrics else None for metrics in both)
        if mine is None or its is None:
            continue
        numbers[name] = {"trained": mine, "shipped": its, "difference": its - mine}
        failed |= mine - its > limits.drop or (limits.output is not None and its - mine > limits.drop)
        told.append(f"{name} {mine:.4f} trained, {its:.4f} shipped ({its - mine:+.4f}, limit {limits.drop:g})")
    found = f"{'; '.join(told) or 'no objects are drawn'}; {len(known)} validation images"
    return Check("metric", "failed" if failed else "passed" if told else "not checked", found, numbers)


def ordered(checks: Iterable[Check], absent: str = "an earlier check failed") -> list[Check]:
    """The checks in the order of CHECKS; those that are not there are not checked, for the reason `absent`."""
    by_name = {check.name: check for check in checks}
    return [by_name.get(name, Check(name, "not checked", absent)) for name in CHECKS]


def as_json(check: Check) -> dict[str, Any]:
    """{"name", "what", "status", "found", "numbers"}."""
    return {"name": check.name, "what": CHECKS[check.name], **asdict(check)}

"""A shipped folder as it stands: its files, what llama.cpp makes of the references' inputs, its whole evaluation."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visiontune.data.dataset import Dataset
from visiontune.data.images import decode
from visiontune.data.sample import Prediction
from visiontune.errors import VisiontuneError
from visiontune.exports.certificate import Check, check_outcomes, compare_metric, limits_for, run_shipped, same
from visiontune.exports.gguf_check import check_layout
from visiontune.exports.reference import Reference, image_of
from visiontune.exports.runtime import MARKER, Runtime
from visiontune.exports.shipment import Shipment, answer, open_runtime, png, prediction, read_shipment
from visiontune.files import is_same_file, write_json
from visiontune.machine import cores, processor
from visiontune.metrics.answers import points
from visiontune.metrics.text import score_texts
from visiontune.progress import progress

QUESTIONS = 8


@dataclass(frozen=True)
class Shown:
    """What came of showing the references' inputs to the shipped file. `speed` and `runtime` are empty if it failed."""

    checks: list[Check]
    speed: dict[str, Any]
    runtime: str


@dataclass(frozen=True)
class HeldTo:
    """What an export is held to: the trained model's shipment, answers and rates.

    `images` are the references' image files. `weights` makes the weights check of a shipment as it was found. `asked`
    are the validation samples, as (dataset, row), that are answered; `points` says what the trained model's
    answer to each counts for, by `metric`. `threads` is for llama.cpp.
    """

    wanted: Shipment
    references: Sequence[Reference]
    images: Sequence[bytes]
    weights: Callable[[Shipment], Check]
    datasets: Sequence[Dataset]
    asked: Sequence[tuple[int, int]]
    points: Sequence[float]
    metric: str
    threads: int


def certify(folder: Path, held_to: HeldTo, place: Path, certified: Mapping[str, Any] | None = None) -> Shown:
    """All checks of a shipped folder as it stands; its evaluation is written to `place`.

    `certified` holds the files as a certificate lists them, where there is one. Checks that an earlier one makes
    impossible are absent.
    """
    shipped = read_shipment(folder)
    checks = [check_files(folder, shipped, certified), check_contract(shipped, held_to.wanted, "trained")]
    if not all((folder / name).is_file() for name in (shipped.text_model, shipped.projector)):
        return Shown(checks, {}, "")
    checks += [check_layout(folder, shipped), held_to.weights(shipped)]
    shown = through_the_shipped_file(folder, shipped, held_to.references, held_to.images, held_to.threads)
    checks += shown.checks
    if shown.runtime:
        predictions = evaluate_shipped(folder, shipped, held_to, place)
        checks.append(compare_predictions(held_to, predictions, shipped))
    return Shown(checks, shown.speed, shown.runtime)


def through_the_shipped_file(
    folder: Path, shipment: Shipment, references: Sequence[Reference], images: Sequence[bytes], threads: int
) -> Shown:
    """Run the shipped files on the inputs and check what they answer; `images` are the references' image files."""
    try:
        with open_runtime(folder, shipment, threads) as runtime:
            checks = [check_template(runtime, shipment)]
            with progress("the same inputs through the shipped file", len(images), "samples") as advance:
                outcomes = run_shipped(runtime, shipment, zip(references, images, strict=True), advance)
            seconds = [outcome.seconds for outcome in outcomes]
            speed = {
                "median_seconds": round(float(np.median(seconds)), 4),
                "p95_seconds": round(float(np.quantile(seconds, 0.95)), 4),
                "load_seconds": round(runtime.load_seconds, 3),
                "peak_memory_bytes": runtime.peak_memory_bytes(),
                "threads": threads,
                "machine": processor(),
            }
            version = runtime.version
    except VisiontuneError as error:
        return Shown([Check("prompt", "failed", f"the shipped files could not be asked: {error.found}")], {}, "")
    return Shown([*checks, *check_outcomes(references, outcomes, limits_for(shipment.quantisation))], speed, version)


def check_prompts(folder: Path, shipment: Shipment, references: Sequence[Reference]) -> list[Check]:
    """What can be checked without the inputs: any picture gives the same tokens of the prompt and of the picture."""
    questions = {reference.question: reference for reference in references}
    asked = list(questions.values())[:QUESTIONS]
    side = shipment.device.image_size
    blank, device = png(Image.new("RGB", (side, side), (127, 127, 127))), shipment.device
    try:
        with open_runtime(folder, shipment, cores()) as runtime:
            template = check_template(runtime, shipment)
            read = [runtime.read(device.prompt_for(r.question), blank, marker=device.marker) for r in asked]
    except VisiontuneError as error:
        return [Check("prompt", "failed", f"the shipped files could not be asked: {error.found}")]
    return [
        template,
        same("prompt", [(r.id, r.prompt_ids, one.prompt_ids) for r, one in zip(asked, read, strict=True)]),
        same("image tokens", [(r.id, r.image_tokens, one.image_tokens) for r, one in zip(asked, read, strict=True)]),
    ]


def check_files(folder: Path, shipment: Shipment, certified: Mapping[str, Any] | None = None) -> Check:
    """Whether text model and projector are there, and (where known) are the bytes that were certified."""
    for name in (shipment.text_model, shipment.projector):
        path = folder / name
        if not path.is_file():
            return Check("files", "failed", f"{name} is missing")
        if certified is not None:
            entry = certified.get(name)
            if entry is None:
                return Check("files", "failed", f"{name} is not in the certificate")
            if not is_same_file(path, entry):
                return Check("files", "failed", f"{name} is not the file that was certified")
    return Check("files", "passed", f"{shipment.text_model} and {shipment.projector}")


def check_contract(shipment: Shipment, wanted: Shipment, of: str) -> Check:
    """Whether contract.json says what was wanted; `of` says who wanted it."""
    if drift := wanted.differences(shipment):
        return Check("contract", "failed", f"not as {of}: {'; '.join(drift)}", {"drift": drift})
    return Check("contract", "passed", f"profile {shipment.device.profile}, as {of}")


def check_template(runtime: Runtime, shipment: Shipment) -> Check:
    """Whether the chat template in the file makes the contract's prompt."""
    wanted = shipment.device.prompt.replace("{marker}", MARKER).replace("{question}", shipment.question)
    found = runtime.chat_prompt(shipment.question)
    if found == wanted:
        return Check("template", "passed", "makes the prompt of the contract")
    return Check("template", "failed", f"makes {found[:120]!r} where the contract has {wanted[:120]!r}")


def compare_predictions(held_to: HeldTo, predictions: Sequence[Prediction], shipment: Shipment) -> Check:
    """The metric check of the shipped file's answers to the samples that are asked."""
    metric, limits = held_to.metric, limits_for(shipment.quantisation)
    return compare_metric(metric, held_to.points, points(predictions, metric), limits)


def evaluate_shipped(folder: Path, shipment: Shipment, held_to: HeldTo, place: Path) -> list[Prediction]:
    """The shipped file's answers to the validation split, written to `place` with their scores.

    Answers that an interrupted call left in `place` stand.
    """
    datasets, refs = held_to.datasets, held_to.asked
    place.mkdir(parents=True, exist_ok=True)
    path, tree = place / "predictions.jsonl", shipment.tree
    predictions = _whole_lines(path)
    started = time.monotonic()
    if left := refs[len(predictions) :]:
        shown = progress("the shipped file answers validation", len(refs), "samples")
        with (
            open_runtime(folder, shipment, held_to.threads) as runtime,
            path.open("a", encoding="utf-8") as log,
            shown as advance,
        ):
            advance(len(predictions))
            for d, i in left:
                sample = datasets[d].sample("validation", i)
                picture = png(shipment.device.picture(decode(image_of(sample))))
                answered = answer(runtime, shipment, tree, picture, sample.text.prompt or shipment.question)
                made = prediction(shipment, sample.id, answered, sample.text, known=True)
                log.write(json.dumps(made.to_json(), ensure_ascii=False) + "\n")
                log.flush()
                predictions.append(made)
                advance(1)
    scores = score_texts(predictions, None if tree is None else list(tree.labels))
    seconds = round(time.monotonic() - started, 3)
    write_json(place / "metrics.json", {**scores.to_json(), "split": "validation", "seconds": seconds})
    return predictions


def _whole_lines(path: Path) -> list[Prediction]:
    """The predictions of a file's whole lines; a line torn at its end is cut off."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [Prediction.from_json(json.loads(line)) for line in whole.decode().split("\n")[:-1]]

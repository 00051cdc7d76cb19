"""A run shipped: GGUF files for its device, checked against the trained model, with everything an app needs beside.

The work goes on in a folder aside. Killed anywhere, the same command goes on there: references, files and answered
validation samples stand once they are made. Only a whole export takes its name: `OUT` where the certificate passed,
`OUT.failed` where it did not.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from visiontune.data.dataset import Dataset
from visiontune.data.sample import Prediction
from visiontune.errors import CertificateError, RunError
from visiontune.exports.answers import references
from visiontune.exports.card import public_name, write_card, write_modelfile
from visiontune.exports.certificate import (
    CERTIFICATE_NAME,
    INPUTS_FOLDER,
    SCHEMA_VERSION,
    Check,
    failures,
    limits_for,
    ordered,
    verdict,
)
from visiontune.exports.certificate_page import write_page
from visiontune.exports.compare import HeldTo, certify
from visiontune.exports.gguf import predicted_bytes, write_gguf
from visiontune.exports.gguf_check import check_weights
from visiontune.exports.llama_server import check_package
from visiontune.exports.place import of_step
from visiontune.exports.quantise import check_quantisation, projector_quantisation
from visiontune.exports.reference import (
    REFERENCE_NAME,
    chosen,
    image_of,
    read_references,
    write_references,
)
from visiontune.exports.shipment import LabelTokens, Shipment
from visiontune.exports.unfinished import Unfinished
from visiontune.exports.weights import trained_names, write_merged
from visiontune.files import file_sha256, fingerprint, write_json, written_whole
from visiontune.machine import versions
from visiontune.metrics.answers import points
from visiontune.models.text import TextAdapter, writes_text
from visiontune.progress import note, progress
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.evaluate import calibration_of, predict_split, tree_to_score
from visiontune.training.model import load_trained, open_datasets
from visiontune.training.ranks import Ranks
from visiontune.training.rows import first_rows

INPUTS = 64
CONTEXT_STEP = 256
EVALUATION = "evaluation/validation"


@dataclass(frozen=True)
class Trained:
    """A run's model in float32 on the CPU, and what an export of it must say."""

    run: Run
    recipe: Recipe
    adapter: TextAdapter
    step: int
    datasets: list[Dataset]
    shipment: Shipment


def load_for_shipping(run: Run, quantisation: str, step: int | None = None, name: str | None = None) -> Trained:
    """The trained model to ship, under its run's name or another `name`; RunError for a run that was not trained for a
    device, and before anything is loaded what a missing package or an unknown quantisation raise."""
    check_quantisation(quantisation)
    recipe = run.recipe
    check_package(recipe.device.runtime_version if recipe.device else None)
    if recipe.device is None:
        raise RunError(
            "This run was not trained for a device: llama.cpp would show it other pixels and another prompt.",
            where=str(run.recipe_path),
            fix="train a SmolVLM with --for android-256 or --for desktop-llama; or export this run --to merged",
        )
    recipe = recipe.computing_on("cpu", "fp32")
    torch.set_num_threads(recipe.machine.threads)
    datasets = open_datasets(recipe)
    adapter, step = load_trained(run, recipe, torch.device("cpu"), step)
    writer = writes_text(adapter)
    name = name or run.path.resolve().name
    shipment = _shipment(run, name, recipe, writer, datasets, step, quantisation)
    return Trained(run, recipe, writer, step, datasets, shipment)


def _shipment(
    run: Run, name: str, recipe: Recipe, adapter: TextAdapter, datasets: Sequence[Dataset], step: int, quantisation: str
) -> Shipment:
    device = recipe.device
    assert device is not None
    tree = tree_to_score(adapter, run.labels, recipe)
    calibration = calibration_of(run, step) if tree is not None else None
    splits = [dataset.index(split) for dataset in datasets for split in dataset.info.splits]
    longest = max(int(adapter.encoder.lengths(index).max()) for index in splits if len(index.ids))
    return Shipment(
        name=name,
        text_model=f"{name}-{quantisation.upper()}.gguf",
        projector=f"mmproj-{name}-{projector_quantisation(quantisation).upper()}.gguf",
        quantisation=quantisation,
        device=device,
        question=recipe.data.prompt,
        example_prompt=device.prompt_for(recipe.data.prompt),
        context=-(-(longest + device.max_new_tokens) // CONTEXT_STEP) * CONTEXT_STEP,
        labels=None
        if tree is None
        else tuple(LabelTokens(label=label, tokens=ids) for label, ids in zip(tree.labels, tree.tokens, strict=True)),
        temperature=1.0 if calibration is None else calibration.temperature,
        abstain_below=None if calibration is None else calibration.abstain_below,
    )


def ship(
    run: Run,
    out: Path,
    quantisation: str,
    *,
    step: int | None = None,
    samples: int = INPUTS,
    limit: int | None = None,
    with_inputs: bool = False,
) -> Path:
    """Write the GGUF files of a run with their certificate to `out`, and return it.

    `samples` inputs are compared token by token; the whole validation split (its first `limit` rows) is answered by the
    shipped file. `with_inputs` puts the compared pictures beside. Raises CertificateError where the export is not the
    trained model: it is kept as `OUT.failed`.
    """
    trained = load_for_shipping(run, quantisation, step)
    recipe = trained.recipe
    work = Unfinished(out, _key(trained, samples, limit, with_inputs))
    folder, shipment = work.folder, trained.shipment
    rows = chosen(trained.datasets, samples)
    inputs = [trained.datasets[d].sample("validation", i) for d, i in rows]
    if not work.done("references"):
        tree = tree_to_score(trained.adapter, run.labels, trained.recipe)
        made = references(trained.adapter, inputs, trained.recipe, tree)
        with progress("reference answers of the trained model", len(inputs), "samples") as advance:
            write_references(folder / REFERENCE_NAME, made, advance)
        if with_inputs:
            for sample in inputs:
                _write_input(folder, image_of(sample))
        work.finish("references", {"points": points_before(trained, limit)})
    if not work.done("files"):
        work.finish("files", _write_files(trained, folder))
    files = work.result("files")
    held_to = HeldTo(
        wanted=shipment,
        references=read_references(folder / REFERENCE_NAME),
        images=[image_of(sample) for sample in inputs],
        weights=lambda shipped: Check(**files["weights"]),
        datasets=trained.datasets,
        asked=asked_rows(trained, limit),
        points=work.result("references")["points"],
        metric=recipe.evaluation.metric,
        threads=recipe.machine.threads,
    )
    found = certify(folder, held_to, folder / EVALUATION)
    checks = ordered(found.checks)
    value = {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict(checks),
        "name": shipment.name,
        "quantisation": quantisation,
        "files": files["files"],
        "predicted_bytes": files["predicted"],
        "contract": shipment.model_dump(mode="json"),
        "limits": asdict(limits_for(quantisation)),
        "checks": [check.to_json() for check in checks],
        "inputs": {"compared": len(inputs), "travel_with_it": with_inputs, "evaluation_limit": limit},
        "speed": found.speed,
        "runtime": found.runtime,
        "versions": versions(),
        "trained": _origin(trained),
    }
    write_json(folder / CERTIFICATE_NAME, value)
    write_page(folder, value)
    write_card(run, folder, "gguf", trained.step, (shipment, value))
    write_modelfile(folder, shipment)
    passed = value["verdict"] == "passed"
    final = out if passed else out.with_name(f"{out.name}.failed")
    work.leave_as(final)
    write_json(
        run.path / "exports" / f"gguf-{quantisation}{of_step(step)}.json", {"folder": str(final.resolve()), **value}
    )
    note(f"certificate {value['verdict']}: {final / CERTIFICATE_NAME}")
    if not passed:
        raise CertificateError(
            f"The exported file is not the model that was trained. {failures(checks)}",
            where=str(final),
            fix="do not ship it; certificate.html shows each check. A finer --quant may pass",
        )
    return final


def _origin(trained: Trained) -> dict[str, Any]:
    """Where the shipped weights come from."""
    run, recipe = trained.run, trained.recipe
    return {
        "base_model": public_name(recipe.model.name),
        "revision": recipe.model.revision,
        "step": trained.step,
        "recipe_sha256": file_sha256(run.recipe_path),
        "data": [use.content_hash for use in recipe.data.datasets],
        "receipts": {receipt["name"]: receipt["status"] for receipt in run.receipts},
    }


def _key(trained: Trained, samples: int, limit: int | None, with_inputs: bool) -> dict[str, Any]:
    """What decides the contents of an export."""
    weights = trained.run.read_json(f"checkpoints/{trained.run.checkpoint_path(trained.step).name}/manifest.json")
    return {
        "stages": 3,  # the form of what stages leave behind
        "shipment": trained.shipment.model_dump(mode="json"),
        "recipe": file_sha256(trained.run.recipe_path),
        "step": trained.step,
        "weights": weights,
        "samples": samples,
        "limit": limit,
        "with_inputs": with_inputs,
        "versions": versions(),
    }


def _write_files(trained: Trained, folder: Path) -> dict[str, Any]:
    """Write contract and GGUF files, and compare their tensors with the merged weights: files, predicted sizes, check.

    The adapter is merged in place.
    """
    shipment, merged = trained.shipment, folder / ".merged"
    names = trained_names(trained.adapter)
    write_merged(trained.adapter, merged)
    size = shipment.device.image_size
    try:
        expected = predicted_bytes(merged, shipment.quantisation, size)
        written = write_gguf(
            merged,
            folder,
            shipment.quantisation,
            image_size=size,
            name=shipment.name,
            with_template=shipment.device.chat_template(),
        )
        weights = check_weights(folder, shipment, merged, names)
    finally:
        shutil.rmtree(merged, ignore_errors=True)
    shipment.write(folder)
    files = {file.path.name: {**fingerprint(file.path), "types": file.types} for file in written}
    predicted = dict(zip(files, (size for size in expected if size is not None), strict=True))
    return {"files": files, "predicted": predicted, "weights": asdict(weights)}


def asked_rows(trained: Trained, limit: int | None) -> list[tuple[int, int]]:
    """The validation samples, as (dataset, row), that a shipped file answers."""
    return sorted(first_rows(trained.datasets, "validation", limit=limit, rows=trained.recipe.data.limit))


def points_before(trained: Trained, limit: int | None) -> list[float]:
    """What the trained model's answer to each of `asked_rows` counts for by the metric of its run: as the run wrote the
    answer, else answered anew."""
    run, recipe = trained.run, trained.recipe
    scores = run.read_json("evaluations/validation/metrics.json")
    every = asked_rows(trained, None)
    path = run.path / "evaluations" / "validation" / "predictions.jsonl"
    if scores is not None and scores["step"] == trained.step and scores["n"] == len(every) and path.is_file():
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        # By their places: several datasets may have an id in common.
        written = dict(zip(every, lines, strict=True))
        found = [Prediction.from_json(json.loads(written[row])) for row in asked_rows(trained, limit)]
    else:
        ranks = Ranks("cpu")
        found = predict_split(
            trained.adapter, trained.datasets, "validation", recipe, ranks,
            limit=limit, rows=recipe.data.limit, show=True,
        )  # fmt: skip
    return points(found, recipe.evaluation.metric)


def _write_input(folder: Path, image: bytes) -> None:
    """An input beside the certificate, under the hash of its bytes."""
    with written_whole(folder / INPUTS_FOLDER / hashlib.sha256(image).hexdigest()) as aside:
        aside.write_bytes(image)

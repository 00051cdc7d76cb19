"""The certificate of a shipped ONNX folder run again, wherever it stands. torch only where the run is given."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from visiontune.data.dataset import Dataset
from visiontune.data.images import decode
from visiontune.data.objects import Objects, from_entries
from visiontune.exports.certificate import Check, read_certificate
from visiontune.exports.object_agreement import check_objects
from visiontune.exports.onnx_certificate import (
    LIMITS,
    certify_onnx,
    check_contract,
    check_files,
    ordered,
)
from visiontune.exports.onnx_runtime import OnnxContract, open_model, read_onnx_contract
from visiontune.exports.reference import REFERENCE_NAME, image_of, objects_of, read_lines
from visiontune.progress import progress
from visiontune.run import Run


def verify_onnx(folder: Path, run: Run | None = None, data: Dataset | None = None) -> list[Check]:
    """The certificate's checks again, here and now.

    With the run all are made anew. Without it files and contract are held to the certificate and, with the prepared
    dataset, what is found in the compared images to what the trained model found. Raises CertificateError where
    certificate or references are missing or not whole.
    """
    value = read_certificate(folder, "name", "verdict", "dtype", "files", "contract", "inputs", "trained")
    contract = read_onnx_contract(folder)
    if run is not None:
        from visiontune.exports.onnx_ship import held_to_run, load_finder

        trained = load_finder(run, value["trained"]["step"])
        inputs = value["inputs"]
        held_to = held_to_run(trained, value["name"], value["dtype"], inputs["compared"], inputs["evaluation_limit"])
        return ordered(certify_onnx(folder, held_to, value["files"]).checks)
    certified = OnnxContract.model_validate(value["contract"])
    checks = [check_files(folder, contract, value["files"]), check_contract(contract, certified, "certified")]
    if checks[0].status == "failed":
        return ordered(checks, "a file is not the certified one")
    if data is None:
        return ordered(checks, "the images are not here: give --run or --data")
    model, limits = open_model(folder), LIMITS[contract.dtype]
    data = data.among(certified.classes) if contract.family == "sam" else data  # which is told the objects drawn
    rows = {name: i for i, name in enumerate(data.index("validation").ids)}
    pairs: list[tuple[Objects, Objects]] = []
    compared = None if value["verdict"] == "failed" else value["inputs"]["compared"]
    lines = read_lines(folder / REFERENCE_NAME, compared)
    with progress("the same images through the shipped graphs", len(lines), "images") as advance:
        for line in lines:
            advance(1)
            if line["id"] not in rows:
                continue
            sample = data.sample("validation", rows[line["id"]])
            image = image_of(sample)
            if hashlib.sha256(image).hexdigest() == line["image_sha256"]:
                # Asked as the trained model was, whatever these data list.
                wanted = line.get("looked_for", certified.classes)
                asked = np.array([name in wanted for name in certified.classes])
                made = model.find(decode(image), replace(objects_of(sample), looked_for=asked))
                pairs.append((from_entries(line["objects"], certified.classes), made))
    if pairs:
        checks.append(check_objects(pairs, certified.score_threshold, limits))
    return ordered(checks, "only with the run: --run" if pairs else "the compared images are not in these data")

"""The certificate run again on a shipped folder, wherever it stands. torch only where the run is given."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visiontune.data.dataset import Dataset
from visiontune.exports.certificate import INPUTS_FOLDER, Check, ordered, read_certificate
from visiontune.exports.compare import (
    HeldTo,
    certify,
    check_contract,
    check_files,
    check_prompts,
    through_the_shipped_file,
)
from visiontune.exports.gguf_check import check_layout, check_weights
from visiontune.exports.reference import REFERENCE_NAME, Reference, chosen, image_of, read_references
from visiontune.exports.shipment import Shipment, read_shipment
from visiontune.machine import cores
from visiontune.progress import progress
from visiontune.run import Run

ONLY_WITH_RUN = "only with the run: --run"


@dataclass(frozen=True)
class Certified:
    """A shipped folder and what its certificate says."""

    folder: Path
    value: dict[str, Any]
    references: list[Reference]


def verify_shipment(folder: Path, run: Run | None = None, data: Dataset | None = None) -> list[Check]:
    """The certificate's checks again, here and now.

    With the run they are all made anew: references, weights, evaluation. Without it the files, the contract and the
    layout are checked against the certificate, and the references' inputs are run where they can be had: from the
    folder itself (`export --with-inputs`) or from the prepared dataset `data`. Raises CertificateError where
    certificate or references are missing or not whole.
    """
    certified = _read(folder)
    shipment = read_shipment(folder)
    if run is not None:
        return _against_run(certified, run)
    static = [
        check_files(folder, shipment, certified.value["files"]),
        check_contract(shipment, Shipment.model_validate(certified.value["contract"]), "certified"),
    ]
    if not all((folder / name).is_file() for name in (shipment.text_model, shipment.projector)):
        return ordered(static, "a file is missing")
    static.append(check_layout(folder, shipment))
    found = _inputs(certified, data)
    if not found:
        prompts = check_prompts(folder, shipment, certified.references)
        absent = "the inputs are not here: give --run or --data, or export with --with-inputs"
        of_the_run = [Check(name, "not checked", ONLY_WITH_RUN) for name in ("weights", "metric")]
        return ordered([*static, *prompts, *of_the_run], absent)
    shown = through_the_shipped_file(folder, shipment, [r for r, _ in found], [image for _, image in found], cores())
    return ordered([*static, *shown.checks], ONLY_WITH_RUN)


def _against_run(certified: Certified, run: Run) -> list[Check]:
    from visiontune.exports.answers import references
    from visiontune.exports.ship import asked_rows, load_for_shipping, points_before
    from visiontune.exports.weights import trained_names, write_merged
    from visiontune.training.evaluate import tree_to_score

    value = certified.value
    trained = load_for_shipping(run, value["quantisation"], value["trained"]["step"], value["name"])
    recipe, limit = trained.recipe, value["inputs"]["evaluation_limit"]
    rows = chosen(trained.datasets, value["inputs"]["compared"])
    samples = [trained.datasets[d].sample("validation", i) for d, i in rows]
    made = references(trained.adapter, samples, recipe, tree_to_score(trained.adapter, run.labels, recipe))
    answered = []
    with progress("reference answers of the trained model", len(samples), "samples") as advance:
        for reference in made:
            answered.append(reference)
            advance(1)
    points = points_before(trained, limit)
    names = trained_names(trained.adapter)
    with tempfile.TemporaryDirectory(prefix="visiontune-verify-") as temporary:
        merged = Path(temporary) / "merged"
        write_merged(trained.adapter, merged)
        held_to = HeldTo(
            wanted=trained.shipment,
            references=answered,
            images=[image_of(sample) for sample in samples],
            weights=lambda shipped: check_weights(certified.folder, shipped, merged, names),
            datasets=trained.datasets,
            asked=asked_rows(trained, limit),
            points=points,
            metric=recipe.evaluation.metric,
            threads=recipe.machine.threads,
        )
        return ordered(certify(certified.folder, held_to, Path(temporary) / "evaluation", value["files"]).checks)


def _read(folder: Path) -> Certified:
    value = read_certificate(folder, "name", "files", "contract", "quantisation", "inputs", "trained")
    return Certified(folder, value, read_references(folder / REFERENCE_NAME, value["inputs"]["compared"]))


def _inputs(certified: Certified, data: Dataset | None) -> list[tuple[Reference, bytes]]:
    """The references whose image file can be had, with its bytes; one whose bytes are others does not count."""
    rows = {} if data is None else {sample: i for i, sample in enumerate(data.index("validation").ids)}
    found = []
    for reference in certified.references:
        path = certified.folder / INPUTS_FOLDER / reference.image_sha256
        image = None
        if path.is_file():
            image = path.read_bytes()
        elif data is not None and reference.id in rows:
            image = image_of(data.sample("validation", rows[reference.id]))
        if image is not None and hashlib.sha256(image).hexdigest() == reference.image_sha256:
            found.append((reference, image))
    return found

"""A run that finds objects shipped as ONNX graphs, checked against the trained model. torch is needed here only."""

import hashlib
import importlib.util
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visiontune.data.dataset import Dataset
from visiontune.data.objects import Objects, to_entries
from visiontune.data.sample import Sample
from visiontune.errors import CertificateError, MachineError, ModelError, RunError
from visiontune.exports.certificate import CERTIFICATE_NAME, SCHEMA_VERSION, failures, verdict
from visiontune.exports.onnx_card import write_onnx_card
from visiontune.exports.onnx_certificate import LIMITS, HeldTo, Seen, as_json, certify_onnx, ordered
from visiontune.exports.onnx_graph import DECODER, FAMILIES, Proposals, graph_outputs, plain_network, write_graphs
from visiontune.exports.onnx_quantise import quantise
from visiontune.exports.onnx_runtime import OnnxContract
from visiontune.exports.place import of_step
from visiontune.exports.reference import REFERENCE_NAME, chosen, image_of, objects_of
from visiontune.files import file_sha256, folder_written_whole, write_json, write_text
from visiontune.machine import versions
from visiontune.models.objects import EncodedObjects, ObjectAdapter, finds_objects
from visiontune.progress import note
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.evaluate_objects import find_in_split, prompts_of
from visiontune.training.model import load_trained, open_datasets
from visiontune.training.ranks import Ranks
from visiontune.training.rows import first_rows
from visiontune.training.teacher_targets import overall_threshold

NEEDED = ("onnx", "onnxruntime", "onnxscript")
COMPARED = 64
CALIBRATION_IMAGES = 64
NOTHING_RIGHT = 0.5  # the score from which on to show objects, of a model that finds none right
BILINEAR = 2  # Pillow's number of the filter


@dataclass(frozen=True)
class TrainedFinder:
    """A run's model that finds objects, in float32 on the CPU."""

    run: Run
    recipe: Recipe
    adapter: ObjectAdapter
    step: int
    datasets: list[Dataset]


def load_finder(run: Run, step: int | None = None) -> TrainedFinder:
    """The trained model to ship; RunError where it is none that has an ONNX form, MachineError without the packages."""
    if missing := [package for package in NEEDED if importlib.util.find_spec(package) is None]:
        raise MachineError(f"The package {missing[0]} is missing.", fix="pip install 'visiontune[onnx]'")
    recipe = run.recipe
    if recipe.objects is None:
        raise RunError("This run writes text.", where=str(run.recipe_path), fix="export it --to gguf or --to merged")
    recipe = recipe.computing_on("cpu", "fp32")
    torch.set_num_threads(recipe.machine.threads)
    datasets = open_datasets(recipe)
    loaded, step = load_trained(run, recipe, torch.device("cpu"), step)
    adapter = finds_objects(loaded)
    if adapter.family not in FAMILIES:
        raise RunError(
            f"Models of the family '{adapter.family}' have no ONNX form.",
            where=str(run.path),
            fix="distil it into an RF-DETR and ship that, or export it --to merged",
        )
    return TrainedFinder(run, recipe, adapter, step, datasets)


def ship_onnx(
    run: Run,
    folder: Path,
    *,
    step: int | None = None,
    int8: bool = False,
    samples: int = COMPARED,
    limit: int | None = None,
) -> Path:
    """Write the ONNX graphs of a run with contract.json, certificate and card to `folder`, and return it.

    `samples` validation images are compared output by output, the validation split (its first `limit` rows) by average
    precision. `int8`: in eight bits, calibrated on training images. Raises CertificateError where the graphs are not
    the trained model: they are kept as `FOLDER.failed`.
    """
    trained = load_finder(run, step)
    dtype = "int8" if int8 else "float32"
    held_to = held_to_run(trained, run.path.resolve().name, dtype, samples, limit)
    with folder_written_whole(folder) as aside:
        started = time.monotonic()
        how = _write_graphs(trained, aside, int8)
        seconds = round(time.monotonic() - started, 1)
        files = {path.name: file_sha256(path) for path in sorted(aside.iterdir())}
        contract = held_to.wanted.model_copy(update={"files": files})
        contract.write(aside)
        found = certify_onnx(aside, held_to)
        _write_references(aside / REFERENCE_NAME, held_to, found.objects)
        checks = ordered(found.checks)
        value = {
            "schema_version": SCHEMA_VERSION,
            "verdict": verdict(checks),
            "form": "onnx",
            "name": contract.name,
            "dtype": dtype,
            "files": {n: {"bytes": (aside / n).stat().st_size, "sha256": sha256} for n, sha256 in files.items()},
            "export": {"seconds": seconds, "graphs": how},
            "contract": contract.model_dump(mode="json"),
            "limits": asdict(LIMITS[dtype]),
            "checks": [as_json(check) for check in checks],
            "inputs": {"compared": len(held_to.samples), "evaluation_limit": limit},
            "speed": found.speed,
            "versions": versions() | {package: metadata.version(package) for package in NEEDED},
            "trained": {
                "step": trained.step,
                "recipe_sha256": file_sha256(run.recipe_path),
                "data": [use.content_hash for use in trained.recipe.data.datasets],
                "receipts": {receipt["name"]: receipt["status"] for receipt in run.receipts},
            },
        }
        write_json(aside / CERTIFICATE_NAME, value)
        write_onnx_card(run, aside, contract, value)
        failed = value["verdict"] == "failed"
        final = folder.with_name(f"{folder.name}.failed") if failed else folder
        write_json(
            run.path / "exports" / f"onnx-{dtype}{of_step(step)}.json", {"folder": str(final.resolve()), **value}
        )
        note(f"certificate {value['verdict']}: {final / CERTIFICATE_NAME}")
        if failed:
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            raise CertificateError(
                f"The exported graphs are not the model that was trained. {failures(checks)}",
                where=str(final),
                fix="do not ship them; certificate.json has each check"
                + (". Without int8 they may pass" if int8 else ""),
            )
    return folder


def held_to_run(trained: TrainedFinder, name: str, dtype: str, samples: int, limit: int | None) -> HeldTo:
    """What graphs of this model, shipped in `dtype` under a name, are held to."""
    recipe, adapter, datasets = trained.recipe, trained.adapter, trained.datasets
    rows = sorted(first_rows(datasets, "validation", limit=limit, rows=recipe.data.limit))
    predictions = find_in_split(
        adapter, datasets, "validation", recipe, Ranks("cpu"), limit=limit, rows=recipe.data.limit, show=True
    )
    threshold = 0.0 if adapter.prompted else overall_threshold(predictions) or NOTHING_RIGHT
    return HeldTo(
        wanted=contract_of(adapter, name, dtype, threshold),
        samples=[datasets[d].sample("validation", i) for d, i in chosen(datasets, samples)],
        see=partial(see_trained, adapter),
        base=None if adapter.peft is None else partial(see_base, adapter),
        predictions=predictions,
        sample=lambda place: datasets[rows[place][0]].sample("validation", rows[place][1]),
        prompts=prompts_of(adapter),
        threads=recipe.machine.threads,
    )


def contract_of(adapter: ObjectAdapter, name: str, dtype: str, score_threshold: float) -> OnnxContract:
    """What an app must do for this model. RunError for a processor that resizes otherwise."""
    choices, processor, prompted = adapter.encoder.choices, adapter.encoder.processor, adapter.prompted
    if prompted:
        processor = processor.image_processor
    if processor.resample != BILINEAR:
        raise RunError(
            f"The model's processor resizes with Pillow's filter {processor.resample}; ONNX folders do bilinearly.",
            fix="export it --to merged",
        )
    return OnnxContract.model_validate(
        {
            "name": name,
            "family": adapter.family,
            "dtype": dtype,
            "side": _side(adapter),
            "fit": "stretch" if len(set(adapter.encoder.picture(100, 200))) == 1 else "upper_left",
            "resize": "pillow_bilinear" if prompted else "bilinear",
            "mean": processor.image_mean,
            "std": processor.image_std,
            "classes": adapter.encoder.classes,
            "boxes": "corners_pixels" if prompted else "centre_size_shares",
            "masks": prompted or choices.masks,
            "most": choices.most,
            "score_threshold": score_threshold,
        }
    )


def _side(adapter: ObjectAdapter) -> int:
    """Pixels a side of the square that the model gets: a square picture fills it."""
    return max(adapter.encoder.picture(1000, 1000))


def see_trained(adapter: ObjectAdapter, sample: Sample, made: Mapping[str, NDArray[Any]]) -> Seen:
    """What the trained model makes of one image; one that is prompted is told the boxes that people drew. ModelError
    where the graph has other queries than the model."""
    encoded = adapter.encoder.encode(sample, with_answer=adapter.prompted)
    pixels = encoded.pixel_values
    assert pixels is not None
    network: Any = adapter.network
    given = None
    if not adapter.prompted:
        places = made.get("proposals", np.zeros(0, np.int64))
        if len(places) != network.config.num_queries:
            raise ModelError(f"The graph has {len(places)} queries, not {network.config.num_queries}.")
        given = torch.from_numpy(places)[None]
    with Proposals(given) as proposals:
        outputs = graph_outputs(adapter.family, network, pixels, _prompts(encoded))
    with Proposals(given):
        (objects,) = adapter.find(adapter.encoder.collate([encoded]))
    return Seen(pixels.numpy(), outputs, objects, proposals.shortfall)


def see_base(adapter: ObjectAdapter, sample: Sample, made: Mapping[str, NDArray[Any]]) -> Seen:
    """The same of the model without its adapter."""
    assert adapter.peft is not None
    with adapter.peft.disable_adapter():
        return see_trained(adapter, sample, made)


def _prompts(encoded: EncodedObjects) -> torch.Tensor:
    """The boxes (n, 4) as left, top, right and bottom in pixels of the square, without crowds."""
    boxes, sides = encoded.boxes[~encoded.crowd], torch.tensor(encoded.picture).flip(0).repeat(2)
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1) * sides


def _write_graphs(trained: TrainedFinder, folder: Path, int8: bool) -> dict[str, Any]:
    """Write the graphs; says of each how it was made. In eight bits is what sees the image; a mask decoder stays."""
    adapter = trained.adapter
    network, side = plain_network(adapter), _side(adapter)
    if not int8:
        return {name: {"form": "float32"} for name in write_graphs(adapter.family, network, side, folder)}
    with tempfile.TemporaryDirectory(prefix=".float32-", dir=folder) as place:
        how: dict[str, Any] = {}
        for name in write_graphs(adapter.family, network, side, Path(place)):
            if name == DECODER:
                shutil.copy(Path(place) / name, folder / name)
                how[name] = {"form": "float32"}
            else:
                how[name] = quantise(Path(place) / name, folder / name, _training_images(trained))
    return how


def _training_images(trained: TrainedFinder) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Images of the training split, spread evenly over it, as the graphs take them."""
    encoder, datasets = trained.adapter.encoder, trained.datasets
    refs = [(d, i) for d, dataset in enumerate(datasets) for i in range(dataset.count("train"))]
    for place in np.linspace(0, len(refs) - 1, min(CALIBRATION_IMAGES, len(refs))).round().astype(int):
        d, i = refs[place]
        pixels = encoder.encode(datasets[d].sample("train", i), with_answer=False).pixel_values
        assert pixels is not None
        yield {"pixel_values": pixels[None].numpy()}


def _write_references(path: Path, held_to: HeldTo, found: Sequence[Objects]) -> None:
    """One line for each compared image: the hash of its file, the classes that were looked for where they are not all,
    and what the trained model finds in it; none where the graphs could not be compared."""
    classes, lines = held_to.wanted.classes, []
    for sample, one in zip(held_to.samples if found else (), found, strict=True):
        line: dict[str, Any] = {"id": sample.id, "image_sha256": hashlib.sha256(image_of(sample)).hexdigest()}
        if (wanted := objects_of(sample).looked_for) is not None:
            line["looked_for"] = [name for name, asked in zip(classes, wanted.tolist(), strict=True) if asked]
        lines.append(line | {"objects": to_entries(one, classes)})
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

"""The trained model as others load it: a PEFT adapter, or one merged folder for plain transformers."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from visiontune.data.objects import Objects
from visiontune.data.sample import Sample
from visiontune.errors import CertificateError, DataError, RunError
from visiontune.exports.answers import check_reloaded, references
from visiontune.exports.card import CARD_NAME, write_card
from visiontune.exports.certificate import (
    CERTIFICATE_NAME,
    LIMITS,
    SCHEMA_VERSION,
    Check,
    Limits,
    failures,
    read_certificate,
    verdict,
)
from visiontune.exports.hub import ADAPTER_CONFIG, BASE_MODEL
from visiontune.exports.object_agreement import ObjectLimits
from visiontune.exports.objects_reloaded import RELOADED_LIMITS, check_reloaded_objects, found_by
from visiontune.exports.reference import Reference, chosen
from visiontune.files import fingerprint, folder_written_whole, is_same_file, write_json
from visiontune.machine import versions
from visiontune.models.adapter import ModelAdapter
from visiontune.models.labels import LabelTree
from visiontune.models.load import read_config
from visiontune.models.objects import finds_objects
from visiontune.models.parts import save_adapter
from visiontune.models.text import writes_text
from visiontune.progress import note, warn
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.evaluate import tree_to_score
from visiontune.training.model import base_name, load_trained, open_datasets
from visiontune.words import counted

DataType = Literal["float32", "bfloat16", "float16"]

CPU = torch.device("cpu")
COMPARED = 16
# Limits by what the numbers were rounded to, in the run or in the export.
PRECISION = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_PEFT_PARTS = re.compile(r"\.modules_to_save(\.default)?")


def export_weights(
    run: Run, forms: Sequence[str], folders: Sequence[Path], step: int | None = None, dtype: DataType | None = None
) -> None:
    """Write each form, "adapter" or "merged", to its folder, from the best checkpoint or that of `step`.

    Weights are put together in float32 on the CPU, upon the full-precision base, and cast once, to `dtype` or the base
    model's own type. Each folder is then loaded by plain transformers (and PEFT) and answers validation samples beside
    the model as it was trained, in the run's own precision; certificate.json has the difference. Raises RunError where
    a run has no adapter to write or for an unknown `dtype`, CertificateError where a folder is not the trained model:
    it is kept as `FOLDER.failed`.
    """
    if "adapter" in forms and "lora" not in run.recipe.parts.values():
        raise RunError(
            "This run has no adapter: no part was trained with LoRA.",
            where=str(run.recipe_path),
            fix="export it merged: --to merged",
        )
    if dtype is not None and dtype not in (known := get_args(DataType)):
        raise RunError(f"'{dtype}' is no type of weights.", where="dtype", fix=f"one of {', '.join(known)}")
    trained, adapter, step = _loaded(run, step)
    base = base_name(run, run.recipe)
    own = str(read_config(base, run.recipe.model.revision).dtype or "float32").removeprefix("torch.")
    for form, folder in sorted(zip(forms, folders, strict=True)):  # the adapter before it is merged
        stored = "float32" if form == "adapter" else dtype or own
        with folder_written_whole(folder) as aside:
            if form == "adapter":
                _save_adapter(adapter, base, aside)
            else:
                _save_merged(adapter, aside, stored)
            adapter.encoder.save(aside)
            if run.recipe.device is not None:  # what the device does, which the processor does not do by itself
                write_json(aside / "device.json", run.recipe.device.model_dump(mode="json"))
            checks, limits = _held_to(run, aside, form, stored, trained, adapter)
            _write_certificate(aside, form, stored, step, checks, limits)
            write_card(run, aside, form, step, None)
            if verdict(checks) == "failed":
                kept = folder.with_name(f"{folder.name}.failed")
                shutil.rmtree(kept, ignore_errors=True)
                aside.rename(kept)
                raise CertificateError(
                    f"The exported {form} folder is not the model that was trained. {failures(checks)}",
                    where=str(kept),
                    fix="do not use it; for merged weights --dtype float32 may pass",
                )
        note(f"step {step}: {folder}, certificate: {verdict(checks)}")


def verify_weights(folder: Path, run: Run | None) -> list[Check]:
    """The certificate of an `adapter` or `merged` folder again: the files that it lists are as they were, and with the
    run the folder is loaded and compared with the trained model anew."""
    value = read_certificate(folder, "form", "dtype", "step", "files")
    if changed := [name for name, known in value["files"].items() if not _is_certified(folder / name, known)]:
        return [Check("files", "failed", f"missing, or not as certified: {', '.join(changed)}")]
    files = Check("files", "passed", f"{counted(len(value['files']), 'file')} as certified")
    if run is None:
        return [files]
    trained, adapter, _ = _loaded(run, value["step"])
    return [files, *_held_to(run, folder, value["form"], value["dtype"], trained, adapter)[0]]


def _loaded(run: Run, step: int | None) -> "tuple[_Answered | _Found | None, ModelAdapter, int]":
    """What the trained model makes of validation samples in the run's own precision, the model in float32, its step."""
    recipe, exact = (run.recipe.computing_on("cpu", name) for name in (run.recipe.machine.precision, "fp32"))
    adapter, step = load_trained(run, recipe, CPU, step)
    trained = _answered(run, recipe, adapter)
    if recipe != exact:
        adapter, step = load_trained(run, exact, CPU, step)
    return trained, adapter, step


def _held_to(
    run: Run, folder: Path, form: str, stored: str, trained: "_Answered | _Found | None", adapter: ModelAdapter
) -> tuple[list[Check], Limits | ObjectLimits]:
    """The checks of a folder beside the trained model, and their limits."""
    precisions = PRECISION[stored], PRECISION[run.recipe.machine.precision]
    rounded = max(precisions, key=lambda name: LIMITS[name].near_tie)
    limits = (LIMITS if run.recipe.objects is None else RELOADED_LIMITS)[rounded]
    if trained is None:
        return [], limits
    base = base_name(run, run.recipe) if form == "adapter" else None
    return trained.held_to(folder, base, adapter, run.recipe.computing_on("cpu", "fp32"), rounded), limits


@dataclass(frozen=True)
class _Answered:
    """Validation samples, the labels to score, and what the model as it was trained makes of them."""

    samples: list[Sample]
    tree: LabelTree | None
    answers: list[Reference]

    def held_to(
        self, folder: Path, base: str | None, adapter: ModelAdapter, recipe: Recipe, rounded: str
    ) -> list[Check]:
        """What the exported folder makes of them beside it."""
        writer, limits = writes_text(adapter), LIMITS[rounded]
        return check_reloaded(folder, base, writer, recipe, self.samples, self.tree, self.answers, limits)


@dataclass(frozen=True)
class _Found:
    """Validation samples, and the objects that the model as it was trained finds in them."""

    samples: list[Sample]
    found: list[Objects]

    def held_to(
        self, folder: Path, base: str | None, adapter: ModelAdapter, recipe: Recipe, rounded: str
    ) -> list[Check]:
        """What the exported folder finds beside it."""
        return check_reloaded_objects(folder, base, recipe, self.samples, self.found, RELOADED_LIMITS[rounded])


def _answered(run: Run, recipe: Recipe, adapter: ModelAdapter) -> _Answered | _Found | None:
    """None where the data are no longer here: then nothing can be compared, and the certificate says so."""
    try:
        datasets = open_datasets(recipe)
        samples = [datasets[d].sample("validation", i) for d, i in chosen(datasets, COMPARED)]
    except DataError as error:
        warn(f"the export cannot be compared with the trained model: {error.found}")
        return None
    if recipe.objects is not None:
        return _Found(samples, found_by(finds_objects(adapter), samples, recipe))
    writer = writes_text(adapter)
    tree = tree_to_score(writer, run.labels, recipe)
    return _Answered(samples, tree, list(references(writer, samples, recipe, tree)))


def _write_certificate(
    folder: Path, form: str, dtype: str, step: int, checks: Sequence[Check], limits: Limits | ObjectLimits
) -> None:
    value = {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict(checks),
        "form": form,
        "dtype": dtype,
        "step": step,
        "limits": asdict(limits),
        "checks": [check.to_json() for check in checks],
        "files": {
            path.relative_to(folder).as_posix(): _known_by(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != CARD_NAME  # which people go on with
        },
        "versions": versions(),
    }
    write_json(folder / CERTIFICATE_NAME, value)


def _known_by(path: Path) -> dict[str, Any]:
    """What a file is known again by. Of an adapter's config all but the place of its base model: that is another on
    each computer, and does not go to a hub."""
    if path.name != ADAPTER_CONFIG:
        return fingerprint(path)
    config = json.loads(path.read_bytes()) | {BASE_MODEL: None}
    data = json.dumps(config, sort_keys=True).encode()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _is_certified(path: Path, known: dict[str, Any]) -> bool:
    if path.name != ADAPTER_CONFIG:
        return is_same_file(path, known)
    try:
        return path.is_file() and _known_by(path) == known
    except (ValueError, TypeError):  # cut, or no longer an object
        return False


def _save_adapter(adapter: ModelAdapter, base: str, folder: Path) -> None:
    assert adapter.peft is not None
    adapter.peft.peft_config["default"].base_model_name_or_path = base
    save_adapter(adapter.peft, folder)


def write_merged(adapter: ModelAdapter, out: Path) -> None:
    """Merge the adapter into the float32 weights and write the folder with its processor.

    The adapter is merged in place: the model in memory has none afterwards.
    """
    with folder_written_whole(out) as aside:
        _save_merged(adapter, aside, "float32")
        adapter.encoder.save(aside)


def _save_merged(adapter: ModelAdapter, folder: Path, dtype: str) -> None:
    network: Any = adapter.network
    if adapter.peft is not None:
        network = adapter.peft.merge_and_unload()
        adapter.network, adapter.peft = network, None
    if dtype != "float32":
        network = network.to(getattr(torch, dtype))
    network.save_pretrained(folder)


def trained_names(adapter: ModelAdapter) -> set[str]:
    """The tensors of the merged model that training changes, by their names there."""
    found = set()
    for name, parameter in adapter.trained_module.named_parameters():
        if parameter.requires_grad:
            plain = name.removeprefix("base_model.model.")
            if ".lora_" in plain:
                found.add(plain[: plain.index(".lora_")] + ".weight")
            else:
                found.add(_PEFT_PARTS.sub("", plain))
    return found

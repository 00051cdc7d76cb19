"""The trained model as others load it: a PEFT adapter, or one merged folder for plain transformers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from visiontune.errors import RunError
from visiontune.exports.card import write_card
from visiontune.files import folder_written_whole, write_json
from visiontune.models.adapter import ModelAdapter
from visiontune.models.load import read_config
from visiontune.progress import note
from visiontune.run import Run
from visiontune.training.model import base_name, load_trained

DataType = Literal["float32", "bfloat16", "float16"]

_PEFT_PARTS = re.compile(r"\.(lora_[A-Za-z_]+|modules_to_save)(\.default)?")


def export_weights(
    run: Run, forms: Sequence[str], folders: Sequence[Path], step: int | None = None, dtype: DataType | None = None
) -> None:
    """Write each form, "adapter" or "merged", to its folder, from the best checkpoint or that of `step`.

    Weights are put together in float32 on the CPU and cast once, to `dtype` or the base model's own type. Raises
    RunError where a run has no adapter to write.
    """
    recipe = run.recipe
    recipe = recipe.model_copy(update={"machine": recipe.machine.model_copy(update={"precision": "fp32"})})
    adapter, step = load_trained(run, recipe, torch.device("cpu"), step)
    for form, folder in sorted(zip(forms, folders, strict=True)):  # the adapter before it is merged
        base = base_name(run, recipe)
        if form == "adapter":
            _write_adapter(run, adapter, base, step, folder)
        else:
            own = str(read_config(base, recipe.model.revision).dtype or "float32").removeprefix("torch.")
            with folder_written_whole(folder) as aside:
                _save_merged(adapter, aside, dtype or own)
                _add_beside(run, adapter, "merged", step, aside)
        note(f"step {step}: {folder}")


def _write_adapter(run: Run, adapter: ModelAdapter, base: str, step: int, out: Path) -> None:
    if adapter.peft is None:
        raise RunError(
            "This run has no adapter: no part was trained with LoRA.",
            where=str(run.recipe_path),
            fix="export it merged: --to merged",
        )
    adapter.peft.peft_config["default"].base_model_name_or_path = base
    with folder_written_whole(out) as aside:
        adapter.peft.save_pretrained(str(aside))
        _add_beside(run, adapter, "adapter", step, aside)


def write_merged(adapter: ModelAdapter, out: Path, dtype: str = "float32") -> None:
    """Merge the adapter into the float32 weights, cast once, and write the folder with its processor.

    The adapter is merged in place: the model in memory has none afterwards.
    """
    with folder_written_whole(out) as aside:
        _save_merged(adapter, aside, dtype)
        adapter.encoder.save(aside)


def _save_merged(adapter: ModelAdapter, folder: Path, dtype: str) -> None:
    network: Any = adapter.network
    if adapter.peft is not None:
        network = adapter.peft.merge_and_unload()
        adapter.network, adapter.peft = network, None
    if dtype != "float32":
        network = network.to(getattr(torch, dtype))
    network.save_pretrained(folder)


def _add_beside(run: Run, adapter: ModelAdapter, form: str, step: int, folder: Path) -> None:
    """The processor and the model card; for a run trained for a device also what the device does, as device.json."""
    adapter.encoder.save(folder)
    if run.recipe.device is not None:
        write_json(folder / "device.json", run.recipe.device.model_dump(mode="json"))
    write_card(run, folder, form, step, None)


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

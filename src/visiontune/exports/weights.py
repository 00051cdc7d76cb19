"""The trained model as others load it: a PEFT adapter, or one merged folder for plain transformers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from visiontune.contract import DeviceContract
from visiontune.errors import RunError
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
            _write_adapter(run, adapter, base, recipe.device, folder)
        else:
            own = str(read_config(base, recipe.model.revision).dtype or "float32").removeprefix("torch.")
            write_merged(adapter, folder, dtype or own, recipe.device)
        note(f"step {step}: {folder}")


def _write_adapter(run: Run, adapter: ModelAdapter, base: str, device: DeviceContract | None, out: Path) -> None:
    if adapter.peft is None:
        raise RunError(
            "This run has no adapter: no part was trained with LoRA.",
            where=str(run.recipe_path),
            fix="export it merged: --to merged",
        )
    adapter.peft.peft_config["default"].base_model_name_or_path = base
    with folder_written_whole(out) as aside:
        adapter.peft.save_pretrained(str(aside))
        _add_processor(adapter, device, aside)


def write_merged(
    adapter: ModelAdapter, out: Path, dtype: str = "float32", device: DeviceContract | None = None
) -> None:
    """Merge the adapter into the float32 weights, cast once, and write the folder with its processor.

    The adapter is merged in place: the model in memory has none afterwards.
    """
    network: Any = adapter.network
    if adapter.peft is not None:
        network = adapter.peft.merge_and_unload()
        adapter.network, adapter.peft = network, None
    if dtype != "float32":
        network = network.to(getattr(torch, dtype))
    with folder_written_whole(out) as aside:
        network.save_pretrained(aside)
        _add_processor(adapter, device, aside)


def _add_processor(adapter: ModelAdapter, device: DeviceContract | None, folder: Path) -> None:
    """The processor beside the weights; for a run trained for a device also what the device does, as device.json."""
    adapter.encoder.save(folder)
    if device is not None:
        write_json(folder / "device.json", device.model_dump(mode="json"))


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

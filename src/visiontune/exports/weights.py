"""The trained model as others load it: a PEFT adapter, or one merged folder for plain transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch

from visiontune.errors import RunError, VisiontuneError
from visiontune.files import folder_written_whole
from visiontune.models.adapter import ModelAdapter
from visiontune.progress import note
from visiontune.run import Run
from visiontune.training.model import base_name, load_trained

FORMS = ("adapter", "merged")


def export_weights(run: Run, forms: Sequence[str], out: Path, step: int | None = None) -> dict[str, Path]:
    """Write each form to `out/FORM` from the best checkpoint, or that of `step`; returns the folders.

    Weights are put together in float32 on the CPU. Raises VisiontuneError for an unknown form, RunError where a run
    has no adapter to write.
    """
    if unknown := [form for form in forms if form not in FORMS]:
        raise VisiontuneError(f"There is no export form '{unknown[0]}'.", fix=f"forms: {', '.join(FORMS)}")
    recipe = run.recipe
    recipe = recipe.model_copy(update={"machine": recipe.machine.model_copy(update={"precision": "fp32"})})
    adapter, step = load_trained(run, recipe, torch.device("cpu"), step)
    folders = {}
    if "adapter" in forms:
        folders["adapter"] = _write_adapter(run, adapter, base_name(run, recipe), out / "adapter")
    if "merged" in forms:
        folders["merged"] = _write_merged(adapter, out / "merged")
    for folder in folders.values():
        note(f"step {step}: {folder}")
    return folders


def _write_adapter(run: Run, adapter: ModelAdapter, base: str, out: Path) -> Path:
    if adapter.peft is None:
        raise RunError(
            "This run has no adapter: no part was trained with LoRA.",
            where=str(run.recipe_path),
            fix="export it merged: --to merged",
        )
    adapter.peft.peft_config["default"].base_model_name_or_path = base
    with folder_written_whole(out) as aside:
        adapter.peft.save_pretrained(str(aside))
        adapter.encoder.save(aside)
    return out


def _write_merged(adapter: ModelAdapter, out: Path) -> Path:
    network = adapter.network if adapter.peft is None else adapter.peft.merge_and_unload()
    with folder_written_whole(out) as aside:
        network.save_pretrained(aside)  # pyright: ignore[reportCallIssue]
        adapter.encoder.save(aside)
    return out

"""A run's model put together: base weights, parts as the recipe says, trained weights of a checkpoint."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from visiontune.data.dataset import Dataset, font_path
from visiontune.data.order import key
from visiontune.data.pages import load_fonts
from visiontune.data.recordings.clips import ClipDataset
from visiontune.errors import DataError, MachineError, RecipeError, RunError
from visiontune.models.adapter import ModelAdapter
from visiontune.models.compiled import compile_layers
from visiontune.models.four_bit import quantise, refuse_four_bit
from visiontune.models.load import is_tiny, load_adapter
from visiontune.models.moe_dropout import attach
from visiontune.models.parts import apply_states, train_in_float32
from visiontune.recipe import Recipe, ResponseChoices
from visiontune.recipe_sections import Machine
from visiontune.run import Run
from visiontune.training.checkpoint import load, put_tensors
from visiontune.training.precision import DTYPES
from visiontune.words import command


def open_datasets(recipe: Recipe) -> list[Dataset]:
    """The datasets of a run, their classes counted as the run's; raises DataError where one has other rows than the run
    was planned for."""
    datasets = []
    for use in recipe.data.datasets:
        dataset = opened(Path(use.path), recipe.responses)
        if dataset.info.content_hash != use.content_hash:
            raise DataError(
                "The dataset has changed since the run was planned.",
                where=use.path,
                fix="train again with a new --out, or put the earlier dataset back",
            )
        spec, wanted = dataset.info.pages, recipe.data.pages
        if (spec and spec.hash) != (wanted and wanted.hash):
            raise DataError(
                "The run shows its documents as other pages than the dataset was prepared with.",
                where=use.path,
                fix="leave data.pages as it was derived; prepare the dataset again for other pages",
            )
        datasets.append(dataset if recipe.objects is None else dataset.among(recipe.objects.classes))
    return datasets


def opened(path: Path, responses: ResponseChoices | None) -> Dataset:
    """The dataset at `path`, a recording as clips of the length that is predicted."""
    if responses is None:
        return Dataset.open(path)
    return ClipDataset.open(path, responses.clip, responses.burn_in, responses.behaviour)


def base_name(run: Run, recipe: Recipe) -> str:
    """What the base model is loaded from: models that are built for a run stand in its folder."""
    built = recipe.responses is not None or is_tiny(recipe.model.name)
    return str(run.base_folder) if built else recipe.model.name


def new_weights_seed(recipe: Recipe) -> int:
    """What the weights follow from that the classes of a run ask for anew."""
    return key(recipe.seed, 8)


def load_base(run: Run, recipe: Recipe, device: torch.device) -> ModelAdapter:
    """The model that the run starts from, as it computes in the run: in its precision, on its device, in eval mode."""
    refuse_four_bit(recipe.model.four_bit, recipe.parts, recipe.machine.device)
    if recipe.machine.attention == "flash":
        refuse_flash(recipe.machine)
    adapter = load_adapter(
        base_name(run, recipe),
        recipe.model.revision,
        recipe.data,
        recipe.device,
        objects=recipe.objects,
        responses=recipe.responses,
        seed=new_weights_seed(recipe),
    )
    if (spec := recipe.data.pages) is not None:
        adapter.encoder.fonts = load_fonts([(font_path(run.path, font), font.face) for font in spec.fonts])
        spec.check(adapter.encoder.fonts)
    for parameter in adapter.network.parameters():  # buffers, such as rotary frequencies, keep their float32
        parameter.data = parameter.data.to(DTYPES[recipe.machine.precision])
    if recipe.model.four_bit:
        chosen = [part for part in adapter.parts if part.name in recipe.model.four_bit]
        quantise(adapter.network, chosen, DTYPES[recipe.machine.precision])
    network: Any = adapter.network.to(device).eval()
    if recipe.machine.attention == "flash":
        network.set_attn_implementation("flash_attention_2")
    if recipe.batch.packing:
        adapter.pack()
    return adapter


def refuse_flash(machine: Machine) -> None:
    """Raise MachineError or RecipeError where the package flash-attn cannot compute."""
    if machine.device != "cuda":
        raise MachineError(
            f"FlashAttention computes on CUDA; this run is on {machine.device}.",
            where="machine.attention",
            fix="--machine.attention sdpa",
        )
    if machine.precision == "fp32":
        raise RecipeError(
            "FlashAttention computes in bf16 or fp16.", where="machine.attention", fix="--machine.precision bf16"
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise MachineError(
            "The package flash-attn is missing.",
            where="machine.attention",
            fix="pip install flash-attn, or --machine.attention sdpa",
        )


def adapt(adapter: ModelAdapter, recipe: Recipe) -> None:
    """Freeze and adapt the parts as the recipe says; the new weights follow from the recipe's seed."""
    attach(recipe.moe_dropout, adapter.expert_layers)
    adapter.peft = apply_states(adapter.network, adapter.parts, recipe.parts, recipe.lora, key(recipe.seed, 4))
    train_in_float32(adapter.trained_module)
    if recipe.machine.recompute:
        network: Any = adapter.network
        if not network.supports_gradient_checkpointing:
            raise RecipeError(
                f"Layers of the family {adapter.family} cannot be computed again for their backward.",
                where="machine.recompute",
                fix="leave it off; lower batch.tokens to need less memory",
            )
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if recipe.machine.compile:
        compile_layers(adapter.network)


def load_trained(run: Run, recipe: Recipe, device: torch.device, step: int | None = None) -> tuple[ModelAdapter, int]:
    """The trained model of a run at a checkpoint (the best one, or the last where none is best), and that step.

    Raises RunError where no checkpoint stands.
    """
    if step is None:
        steps = run.checkpoint_steps()
        if not steps:
            raise RunError("The run has no checkpoint yet.", where=str(run.path), fix=command("resume", run.path))
        step = int(run.best["step"]) if run.best else steps[-1]
        if step not in steps:
            raise RunError(
                f"The best checkpoint, of step {step}, is missing; those of {steps} stand.",
                where=str(run.checkpoints_folder),
                fix=command("resume", run.path),
            )
    adapter = load_base(run, recipe, device)
    adapt(adapter, recipe)
    put_tensors(adapter.trained_module, load(run, step, with_optimizer=False).shipped)
    adapter.trained_module.eval()
    return adapter, step

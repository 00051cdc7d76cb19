"""On which device a model computes that was trained, here or elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visiontune.progress import warn

if TYPE_CHECKING:
    from visiontune.machine import Device
    from visiontune.recipe import Recipe
    from visiontune.run import Run


def recipe_on(run: Run, device: Device | None) -> Recipe:
    """The run's recipe on the device asked for, else on its own one where it is here, else on the best one here.

    This process then has as many threads as the run had.
    """
    import torch

    from visiontune.machine import available_devices, hardware

    recipe = run.recipe
    if device is None and recipe.machine.device not in available_devices():
        warn(f"the run was trained on {recipe.machine.device}, which is not here; using {available_devices()[0]}")
        device = available_devices()[0]
    chosen = hardware(device or recipe.machine.device)
    torch.set_num_threads(recipe.machine.threads)
    return computed_on(recipe, chosen.device)


def computed_on(recipe: Recipe, device: Device) -> Recipe:
    """The recipe of a trained run on this device: on another one than its own in float32, and off CUDA with whole
    weights and torch's own attention."""
    precision = recipe.machine.precision if device == recipe.machine.device else "fp32"
    if recipe.model.four_bit and device != "cuda":
        warn("the run was trained on weights in four bits; here they are whole, and answers may differ")
    return recipe.computing_on(device, precision)

"""AdamW over the trained parts, its learning rates and schedule, its state by parameter name."""

import math
from collections.abc import Collection

import torch
from torch import nn

from visiontune.errors import RecipeError
from visiontune.models.parts import Part, part_of, plain_name
from visiontune.recipe_sections import Optimizer, Schedule


def build(
    module: nn.Module, parts: tuple[Part, ...], recipe: Optimizer, undecayed: Collection[str] = ()
) -> torch.optim.AdamW:
    """AdamW with a group for each part and decay; weights of fewer than two dimensions (norms, biases) and those that
    are named in `undecayed` are not decayed.

    Raises RecipeError for the learning rate of a part that does not exist or is not trained.
    """
    by_part: dict[str, list[tuple[nn.Parameter, bool]]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and plain_name(name) not in undecayed
            by_part.setdefault(part_of(parts, name), []).append((parameter, decays))
    if unknown := sorted(set(recipe.part_learning_rates) - set(by_part)):
        raise RecipeError(
            f"There is a learning rate for {unknown}, which is not trained.",
            where="optimizer.part_learning_rates",
            fix=f"trained parts: {', '.join(by_part)}",
        )
    groups = []
    for part, parameters in by_part.items():
        rate = recipe.part_learning_rates.get(part, recipe.learning_rate)
        for decayed in (True, False):
            chosen = [parameter for parameter, decays in parameters if decays == decayed]
            decay = recipe.weight_decay if decayed else 0.0
            if chosen:
                groups.append({"params": chosen, "peak": rate, "lr": rate, "weight_decay": decay, "part": part})
    # One pass over each weight: faster on every device, and no temporary as large as the weights.
    return torch.optim.AdamW(groups, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon, fused=True)


def schedule_factor(schedule: Schedule, step: int) -> float:
    """The share of the peak learning rate at a step, counted from 0: up to 1 in the warm-up, then as `kind` says."""
    warmup = round(schedule.warmup * schedule.steps)
    if step < warmup:
        return (step + 1) / warmup
    through = (step - warmup) / max(1, schedule.steps - warmup)
    match schedule.kind:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * through))
        case "linear":
            return 1 - through
        case "constant":
            return 1.0


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def state_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, torch.Tensor]:
    """The optimiser's moments and step counts, as `parameter name|field`."""
    tensors = {}
    for name, parameter in module.named_parameters():
        for field, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{field}"] = value
    return tensors


def put_state(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `state_tensors` gave; each tensor goes to its parameter's device."""
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        name, field = key.rsplit("|", 1)
        parameter = parameters[name]
        optimizer.state[parameter][field] = value.to(parameter.device).clone()

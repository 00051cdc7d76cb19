"""A run that starts from the core of another program's checkpoint: its choices, its parts, its network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from visiontune.data.dataset_info import RecordingSummary
from visiontune.errors import DataError, RecipeError
from visiontune.models.cortex_coverage import Coverage, ForeignCore, refuse_missing
from visiontune.models.cortex_lightning import PIXEL_MEAN, PIXEL_STD, read_lightning
from visiontune.models.cortex_network import Cortex, CortexConfig
from visiontune.progress import note
from visiontune.recipe import Recipe
from visiontune.recipe_targets import CoreShape

READOUT_FIELDS = ("readout", "output")  # of new units: the checkpoint's are only where they start from


def is_checkpoint(start: str | Path) -> bool:
    """Whether what a run starts from is a checkpoint, and not the folder of a run."""
    return Path(start).is_file() or Path(start).suffix == ".ckpt"


def refuse_another_core(its: CoreShape, wanted: CoreShape, where: Path, apart_from: Sequence[str] = ()) -> None:
    """Raise RecipeError for the first field in which the core that is wanted is not the one that a run starts from."""
    for name in CoreShape.model_fields:
        if name not in apart_from and getattr(its, name) != getattr(wanted, name):
            raise RecipeError(
                f"responses.{name} is of a new core, and this run goes on from one.",
                where=str(where),
                fix="leave the field out, or train a new core",
            )


def choices_of(
    core: ForeignCore, sessions: Sequence[RecordingSummary], clip: int, penalties: Mapping[str, Any], choose: Any
) -> dict[str, Any]:
    """The fields of `responses` for readouts on a checkpoint's core. Raises DataError for frames that are not of 8
    bits: the core was shown those."""
    for one in sessions:
        if one.stimulus != "uint8":
            raise DataError(
                f"The core of a checkpoint was shown frames of 8 bits, and those of {one.name} are {one.stimulus}.",
                where=str(core.path),
                fix="record or convert the frames to uint8",
            )
    name = core.path.name
    choose(
        "model.name", None, f"the core of {name}, shown (pixel - {PIXEL_MEAN:g}) / {PIXEL_STD:g}, as VisionCore does"
    )
    modulated = core.shape.modulation != "none"
    return {
        **core.shape.model_dump(mode="json"),
        "channels": choose("responses.channels", core.shape.channels, f"as {name} has them"),
        "clip": clip,
        "burn_in": 0,
        "rate": choose("responses.rate", sessions[0].rate, f"the sessions'; {name} does not say for which it was made"),
        "behaviour": common_behaviour(sessions) if modulated else (),
        "penalties": penalties,
    }


def common_behaviour(sessions: Sequence[RecordingSummary]) -> tuple[str, ...]:
    """The channels of behaviour that all sessions recorded, in the order of the first."""
    return tuple(name for name in sessions[0].behaviour_names if all(name in one.behaviour_names for one in sessions))


def states_of(parts: Sequence[str], coverage: Coverage, name: str) -> tuple[dict[str, str], str]:
    """Each part frozen where it is whole and trained where it is not, and why."""
    untaken = sorted({tensor.split(".")[0] for tensor in coverage.missing})
    states = {part: "full" if part in untaken or part == "readout" else "frozen" for part in parts}
    kept = ", ".join(part for part in parts if states[part] == "frozen")
    whole = f"taken whole from {name} and kept: {kept or 'nothing'}"
    lacking = "; ".join(
        f"{part} ({sum(t.startswith(f'{part}.') for t in coverage.missing)} tensors)" for part in untaken
    )
    return states, f"{whole}; trained, because not whole: {lacking}" if untaken else f"{whole}; units get readouts"


def imported(recipe: Recipe, config: CortexConfig, rates: torch.Tensor, seed: int) -> tuple[Cortex, dict[str, Any]]:
    """The network that a run starts from, and what of the checkpoint is in it. Raises ModelError for a partial load
    that `model.allow_missing` does not name, and RecipeError where the recipe asks for another core, or keeps a part
    that is not whole."""
    core = read_lightning(Path(recipe.model.name))
    refuse_another_core(core.shape, config, core.path, apart_from=READOUT_FIELDS)
    network = Cortex(config.model_copy(update={"stimulus_mean": PIXEL_MEAN, "stimulus_std": PIXEL_STD}), seed)
    network.initialise_bias(rates)
    coverage = core.fill(network)
    refuse_missing(coverage.missing, recipe.model.allow_missing, str(core.path))
    for name in coverage.missing:
        if (state := recipe.parts.get(part := name.split(".")[0])) != "full":
            raise RecipeError(
                f"{name} starts new, and its part is to be {state}: it would stay as it is drawn.",
                where=f"parts.{part}",
                fix=f"--parts.{part} full",
            )
    counts = f"{len(coverage.taken)} tensors taken, {len(coverage.missing)} of the core start new"
    note(f"{core.path.name}: {counts}, {len(coverage.unused)} of its own are not used; base/taken.json says why")
    for told in coverage.notes:
        note(f"{core.path.name}: {told}")
    told = {"taken": coverage.taken, "new": coverage.new, "unused": coverage.unused, "notes": list(coverage.notes)}
    return network, {"checkpoint": str(core.path), **told}

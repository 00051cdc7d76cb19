"""A network for other sessions and units, or of another shape, with the weights of one that was trained.

What is taken is named tensor by tensor, and row by row in the two tables: nothing is skipped in silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from visiontune.errors import ModelError
from visiontune.models.cortex_network import Cortex, CortexConfig

ADAPTER_TABLE = "adapter.table"
READOUT_TABLES = "readout."


@dataclass(frozen=True)
class Taken:
    """Where the weights of a new network come from; every tensor stands in one of the first three, sorted.

    taken: whole from the source. new: started anew. mixed: tables of which some rows are taken and some new. left:
    tensors of the source that the new network has no place for. `sessions` and `units` are those whose rows are taken,
    in the new network's order.
    """

    taken: tuple[str, ...]
    new: tuple[str, ...]
    mixed: tuple[str, ...]
    left: tuple[str, ...]
    sessions: tuple[str, ...]
    units: tuple[str, ...]


def continue_from(source: Cortex, config: CortexConfig, seed: int) -> tuple[Cortex, Taken]:
    """A network of the shape `config` with the weights of `source` wherever it has them.

    Rows of the tables are taken for sessions and units of the same name; what `source` does not have starts anew from
    `seed`. Raises ModelError where a tensor of one name has two shapes, naming all of them; rows of new units must be
    as long as those of the source too.
    """
    made = Cortex(config, seed).to(source.adapter.table.dtype)
    theirs = source.state_dict()
    wrong = [
        f"{name} is {tuple(theirs[name].shape)} and should be {tuple(tensor.shape)}"
        for name, tensor in made.state_dict().items()
        if name in theirs and _shape(name, tensor) != _shape(name, theirs[name])
    ]
    if wrong:
        raise ModelError(
            f"The weights of the source do not fit: {'; '.join(sorted(wrong))}.",
            fix="keep the shape of the source: channels, kernels, modulation, recurrence, readout and frame size",
        )
    sessions, session_rows = _shared(source.config.sessions, config.sessions)
    units, unit_rows = _shared(source.config.units, config.units)
    groups: dict[str, list[str]] = {"taken": [], "new": [], "mixed": []}
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if name not in theirs:
                groups["new"].append(name)
                continue
            if not _is_table(name):
                tensor.copy_(theirs[name])
                groups["taken"].append(name)
                continue
            rows, here = session_rows if name == ADAPTER_TABLE else unit_rows
            tensor[here] = theirs[name][rows].to(tensor.device)
            kind = "new" if len(here) == 0 else "taken" if len(here) == len(tensor) else "mixed"
            groups[kind].append(name)
    taken = Taken(
        taken=tuple(sorted(groups["taken"])),
        new=tuple(sorted(groups["new"])),
        mixed=tuple(sorted(groups["mixed"])),
        left=tuple(sorted(set(theirs) - set(made.state_dict()))),
        sessions=sessions,
        units=units,
    )
    return made, taken


def with_units(source: Cortex, sessions: Sequence[str], units: Sequence[str], seed: int) -> tuple[Cortex, Taken]:
    """The same network for other sessions and units: see `continue_from`."""
    values = {**source.config.model_dump(), "sessions": tuple(sessions), "units": tuple(units)}
    return continue_from(source, CortexConfig.model_validate(values), seed)


def _is_table(name: str) -> bool:
    return name == ADAPTER_TABLE or name.startswith(READOUT_TABLES)


def _shape(name: str, tensor: torch.Tensor) -> torch.Size:
    """The shape that two networks must share: that of one row, of tables."""
    return tensor.shape[1:] if _is_table(name) else tensor.shape


def _shared(old: Sequence[str], new: Sequence[str]) -> tuple[tuple[str, ...], tuple[list[int], list[int]]]:
    """The names in both, in the order of `new`, and their rows in each."""
    row = {name: i for i, name in enumerate(old)}
    here = [i for i, name in enumerate(new) if name in row]
    return tuple(new[i] for i in here), ([row[new[i]] for i in here], here)

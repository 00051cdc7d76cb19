"""A trained network for other sessions and units.

What is taken is named tensor by tensor, and row by row in the two tables: nothing is skipped in silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visiontune.models.cortex_network import Cortex

ADAPTER_TABLE = "adapter.table"
READOUT_TABLES = "readout."


@dataclass(frozen=True)
class Taken:
    """Where the weights of a new network come from; every tensor stands in one of the first three, sorted.

    taken: whole from the source. new: started anew. mixed: tables of which some rows are taken and some new. `sessions`
    and `units` are those whose rows are taken, in the new network's order.
    """

    taken: tuple[str, ...]
    new: tuple[str, ...]
    mixed: tuple[str, ...]
    sessions: tuple[str, ...]
    units: tuple[str, ...]


def with_units(
    source: Cortex, sessions: Sequence[str], units: Sequence[str], mean_rates: Tensor, seed: int
) -> tuple[Cortex, Taken]:
    """The same network for other sessions and units.

    Rows of the tables are taken for those of the same name; those of others start anew from `seed`, units at their
    `mean_rates` (see `Cortex.initialise_bias`).
    """
    made = Cortex(source.config.model_copy(update={"sessions": tuple(sessions), "units": tuple(units)}), seed)
    made.initialise_bias(mean_rates)
    made.to(source.adapter.table.dtype)
    theirs = source.state_dict()
    shared_sessions, session_rows = _shared(source.config.sessions, made.config.sessions)
    shared_units, unit_rows = _shared(source.config.units, made.config.units)
    groups: dict[str, list[str]] = {"taken": [], "new": [], "mixed": []}
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if name != ADAPTER_TABLE and not name.startswith(READOUT_TABLES):
                tensor.copy_(theirs[name])
                groups["taken"].append(name)
                continue
            rows, here = session_rows if name == ADAPTER_TABLE else unit_rows
            tensor[here] = theirs[name][rows].to(tensor.device)
            kind = "new" if len(here) == 0 else "taken" if len(here) == len(tensor) else "mixed"
            groups[kind].append(name)
    taken, new, mixed = (tuple(sorted(groups[kind])) for kind in ("taken", "new", "mixed"))
    return made, Taken(taken, new, mixed, shared_sessions, shared_units)


def _shared(old: Sequence[str], new: Sequence[str]) -> tuple[tuple[str, ...], tuple[list[int], list[int]]]:
    """The names in both, in the order of `new`, and their rows in each."""
    row = {name: i for i, name in enumerate(old)}
    here = [i for i, name in enumerate(new) if name in row]
    return tuple(new[i] for i in here), ([row[new[i]] for i in here], here)

"""Which tensors of a network a foreign checkpoint fills, and the refusal of a partial load that nobody asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from visiontune.errors import ModelError, RecipeError
from visiontune.models.cortex_network import Cortex
from visiontune.models.cortex_transfer import READOUT_TABLES
from visiontune.recipe_targets import CoreShape


@dataclass(frozen=True)
class Coverage:
    """Where a network's tensors come from: `taken`, ours by the theirs it is made of; `new`, ours by why nothing fills
    it; `unused`, theirs by why. `notes` say where features differ although tensors are the same."""

    taken: dict[str, str]
    new: dict[str, str]
    unused: dict[str, str]
    notes: tuple[str, ...]

    @property
    def missing(self) -> dict[str, str]:
        """The new ones, but for readouts, which are of new units anyway."""
        return {name: why for name, why in self.new.items() if not name.startswith(READOUT_TABLES)}


@dataclass(frozen=True, eq=False)
class ForeignCore:
    """What a checkpoint holds. `theirs`: its tensors, without prefixes. `values`: by our names a tensor, None for one
    that starts as theirs is; `sources`: the theirs that each is made of. `differs` and `unused`: reasons, by how our
    and their names start."""

    path: Path
    shape: CoreShape
    theirs: dict[str, Tensor]
    values: dict[str, Tensor | None]
    sources: dict[str, tuple[str, ...]]
    differs: dict[str, str]
    unused: dict[str, str]
    notes: tuple[str, ...]

    def coverage(self, ours: Mapping[str, Tensor]) -> Coverage:
        """What of a network's state, by its names, the checkpoint fills."""
        taken: dict[str, str] = {}
        new: dict[str, str] = {}
        used: set[str] = set()
        for name, tensor in ours.items():
            value = self.values.get(name)
            if name.startswith(READOUT_TABLES):
                new[name] = "units of these sessions get readouts of their own"
            elif name not in self.values:
                new[name] = _reason(self.differs, name, "the checkpoint has nothing of the kind")
            elif value is not None and value.shape != tensor.shape:
                new[name] = f"theirs is {tuple(value.shape)} and ours {tuple(tensor.shape)}"
            else:
                taken[name] = ", ".join(self.sources[name]) or "as it starts: theirs has none"
                used |= set(self.sources[name])
        unused = {n: _reason(self.unused, n, "nothing here computes with it") for n in self.theirs if n not in used}
        return Coverage(taken, new, unused, self.notes)

    def fill(self, cortex: Cortex) -> Coverage:
        """Copy into a network all that fits it."""
        state = cortex.state_dict()
        coverage = self.coverage(state)
        for name in coverage.taken:
            if (value := self.values[name]) is not None:
                state[name].copy_(value)
        return coverage


def refuse_missing(missing: Mapping[str, str], allowed: Sequence[str], where: str) -> None:
    """Raise ModelError for tensors that nothing fills and no pattern of `allowed` names, RecipeError for a pattern that
    names none of them."""
    for pattern in allowed:
        if not any(fnmatchcase(name, pattern) for name in missing):
            raise RecipeError(
                f"No tensor '{pattern}' is missing; missing are: {', '.join(missing) or 'none'}.",
                where="--allow-missing",
                fix="leave it out, or name one of these",
            )
    if left := [name for name in missing if not any(fnmatchcase(name, pattern) for pattern in allowed)]:
        alike: dict[str, list[str]] = {}
        for name in left:
            alike.setdefault(missing[name], []).append(name)
        told = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in alike.items())
        raise ModelError(
            f"{len(left)} tensors of the core are not filled: {told}.",
            where=where,
            fix=f"--allow-missing NAME, or a pattern as '{left[0].split('.')[0]}.*', starts it new and trains its part",
        )


def _reason(reasons: Mapping[str, str], name: str, otherwise: str) -> str:
    found = max((start for start in reasons if name.startswith(start)), key=len, default=None)
    return otherwise if found is None else reasons[found]

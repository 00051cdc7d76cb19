"""What every derived recipe has, whatever its target: choices with their reasons, the datasets, the machine."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from visiontune.data.dataset import Dataset
from visiontune.machine import Hardware
from visiontune.words import counted

AS_ASKED = "as asked"
OFTEN = {8: "eight times a run", 10: "ten times a run"}


class Reasons:
    """The reasons of choices, by the names of recipe fields: `why` of the recipe.

    `asked` are the fields that a preset, a recipe file or the command line sets: not taken over here, but the length of
    the run follows from them. `epochs_by` says who asked for epochs.
    """

    def __init__(self, asked: Mapping[str, Any] = MappingProxyType({}), epochs_by: str = AS_ASKED) -> None:
        self.why: dict[str, str] = {}
        self.asked, self.epochs_by = asked, epochs_by

    def choose(self, field: str, value: Any, reason: str) -> Any:
        """Note the reason for a value, and return the value."""
        self.why[field] = reason
        return value

    def in_force(self, field: str, derived: int) -> int:
        """The count that the recipe will have. What is asked for and is no count is refused with the recipe."""
        asked = self.asked.get(field)
        return asked if isinstance(asked, int) and asked > 0 else derived

    def steps(self, n: int, samples: int, epochs: float | None, usual: tuple[float, str]) -> int:
        """`schedule.steps` that show each of n samples so many times: as asked, or, where None, as usual, which comes
        with its reason. samples: of a step, as derived."""
        samples = self.in_force("batch.samples", samples)
        asked = None if epochs is None else (epochs, f"{counted(epochs, 'epoch', form='g')}, {self.epochs_by}")
        times, reason = asked or usual
        self.why["schedule.steps"] = reason
        return max(1, -(-round(times * n) // samples))

    def every(self, steps: int, times: int) -> int:
        """`evaluation.every` and `checkpoints.every` of a run. steps: as derived."""
        return self.choose("evaluation.every", often(self.in_force("schedule.steps", steps), times), OFTEN[times])


def datasets_section(datasets: Sequence[Dataset], weights: Sequence[float | None]) -> list[dict[str, Any]]:
    """`data.datasets` of a recipe."""
    return [
        {"path": str(d.path.resolve()), "content_hash": d.info.content_hash, "weight": weight}
        for d, weight in zip(datasets, weights, strict=True)
    ]


def batch_section(samples: int, tokens: int, machine: Hardware, reasons: Reasons, unit: str = "") -> dict[str, Any]:
    """`batch` of a recipe: windows of eight steps. samples: of a step, as derived; where others are asked for, those.
    unit: of what `tokens` counts, where that is no token."""
    memory = f"{unit}{machine.device} with {machine.memory / 2**30:.0f} GB"
    samples = reasons.in_force("batch.samples", samples)
    return {"samples": samples, "tokens": reasons.choose("batch.tokens", tokens, memory), "window": 8 * samples}


def often(steps: int, times: int) -> int:
    """Every how many steps something is done so many times in a run."""
    return max(1, -(-steps // times))


def machine_section(machine: Hardware, ranks: int, reasons: Reasons) -> dict[str, Any]:
    """`machine` of a recipe."""
    choose, cores = reasons.choose, machine.cores
    precise = "the device computes in bf16" if machine.bf16 else "no fast bf16 on this device"
    return {
        "device": choose("machine.device", machine.device, "the best device here"),
        "precision": choose("machine.precision", "bf16" if machine.bf16 else "fp32", precise),
        "workers": choose("machine.workers", min(8, max(1, (cores - 1) // ranks)), f"{cores} cores"),
        "threads": choose("machine.threads", max(1, cores // ranks), f"{cores} cores for {ranks} ranks"),
    }

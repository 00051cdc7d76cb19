"""What the verbs of the command line share: what they answer with, and the options of several of them."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

Device = Literal["cpu", "cuda", "mps"]
Limit = Annotated[int | None, Parameter(help="take N samples, for a first look")]
OnDevice = Annotated[Device | None, Parameter(help="compute here instead of on the run's own device")]
AtStep = Annotated[int | None, Parameter(help="the checkpoint of this step instead of the best one")]


@dataclass(frozen=True)
class Answer:
    """What a verb has to say: `value` for programs (--json), `text` for people."""

    value: Any
    text: str


def counts(labels: dict[str, int], most: int = 20) -> str:
    """The first labels with their counts, for a line of text."""
    shown = ", ".join(f"{label} {count}" for label, count in list(labels.items())[:most])
    return shown + (", ..." if len(labels) > most else "")

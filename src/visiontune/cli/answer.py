"""What the verbs of the command line share: what they answer with, and the options of several of them."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from visiontune.errors import RecipeError, VisiontuneError

UNCLEAR = re.compile(r"[,:;'\"]|\s\d+$|^\s|\s$")  # what parts names and counts in a line
Device = Literal["cpu", "cuda", "mps"]
Limit = Annotated[int | None, Parameter(help="take N samples, for a first look")]
OnDevice = Annotated[Device | None, Parameter(help="compute here instead of on the run's own device")]
AtStep = Annotated[int | None, Parameter(help="the checkpoint of this step instead of the best one")]


@dataclass(frozen=True)
class Answer:
    """What a verb has to say: `value` for programs (--json), `text` for people.

    `error`: a part could not be done; it is said behind the answer, and the exit code is its own.
    """

    value: Any
    text: str
    error: VisiontuneError | None = None


def counts(labels: dict[str, int], most: int = 20) -> str:
    """The first labels with their counts, for a line of text; quoted where they hold what parts them."""
    shown = ", ".join(f"{_plain(label)} {count}" for label, count in list(labels.items())[:most])
    return shown + (", ..." if len(labels) > most else "")


def _plain(label: str) -> str:
    return repr(label) if UNCLEAR.search(label) else label


def metric_lines(split: str, metrics: dict[str, Any]) -> list[str]:
    """A line for each metric that has a value."""
    return [
        f"  {split} {name}: {m['value']:.4f} ({_interval(m)}n = {m['n']})"
        for name, m in metrics.items()
        if m["value"] is not None
    ]


def _interval(metric: dict[str, Any]) -> str:
    return "" if metric["low"] is None else f"95 % interval {metric['low']:.4f} to {metric['high']:.4f}, "


def numbers(text: str, option: str) -> list[float]:
    """The numbers of an option, separated by commas. Raises RecipeError."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"'{text}' is no list of numbers.", where=option, fix=f"{option} 2,1") from error

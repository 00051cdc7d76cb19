"""Conditions on metrics, such as accuracy>=0.85, and whether scores of texts or of objects satisfy them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from visiontune.errors import RecipeError
from visiontune.metric_names import NAMES
from visiontune.metrics.intervals import Metric
from visiontune.metrics.text import PER_CLASS, RATIOS


class Scores(Protocol):
    """What has metrics by name."""

    def metric(self, name: str) -> Metric:
        """The metric of that name; raises RecipeError where there is none."""
        ...


# What a metric may be, by its name, where that is not 0 to 1.
RANGES = {
    **dict.fromkeys(RATIOS, (0.0, inf)),
    **dict.fromkeys(("bits_per_spike", "bits_per_spike_median", "feve", "ccnorm"), (-inf, inf)),
    **dict.fromkeys(("correlation", "average_correlation"), (-1.0, 1.0)),
}


@dataclass(frozen=True)
class Requirement:
    """A condition on a metric's value (not on its interval), such as accuracy>=0.85 or f1.cat>0.5."""

    metric: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.bound:g}"

    def holds(self, scores: Scores) -> bool:
        """Whether the scores satisfy it; a metric without a value does not. RecipeError for an unknown metric."""
        value = scores.metric(self.metric).value
        if value is None:
            return False
        return {
            ">=": value >= self.bound,
            ">": value > self.bound,
            "<=": value <= self.bound,
            "<": value < self.bound,
        }[self.operator]


_REQUIREMENT = re.compile(r"\s*(?P<metric>[^<>=]+?)\s*(?P<operator>>=|<=|>|<)\s*(?P<bound>[-+.\deE]+)\s*(?:,|$)")


def parse_requirements(texts: str | Sequence[str]) -> tuple[Requirement, ...]:
    """Read conditions, several in one text separated by commas or one a text. Raises RecipeError, also for a metric
    that no model has.

    A label may hold commas itself: only a comma behind a number separates.
    """
    requirements = []
    for text in [texts] if isinstance(texts, str) else texts:
        position = 0
        while position < len(text) or not text:
            match = _REQUIREMENT.match(text, position)
            if match is None:
                raise _unreadable(text[position:])
            try:
                bound = float(match["bound"])
            except ValueError as error:
                raise _unreadable(text[position:]) from error
            kind = match["metric"].split(".")[0]
            if kind not in NAMES and kind not in PER_CLASS:
                raise RecipeError(f"There is no metric '{kind}'.", fix=f"one of {', '.join((*NAMES, *PER_CLASS))}")
            low, high = RANGES.get(kind, (0.0, 1.0))
            if not (low <= bound <= high and abs(bound) < inf):
                asked = match[0].strip(" ,")
                raise RecipeError(
                    f"'{asked}' asks for {bound:g}; {match['metric']} lies between {low:g} and {high:g}.",
                    fix="write 85 % as 0.85",
                )
            requirements.append(Requirement(match["metric"], match["operator"], bound))
            position = match.end()
    return tuple(requirements)


def _unreadable(text: str) -> RecipeError:
    return RecipeError(
        f"'{text}' is not a requirement.",
        fix="write a metric, one of >= > <= < and a number, such as accuracy>=0.85 or f1.LABEL>=0.5",
    )

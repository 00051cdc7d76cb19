"""A clip of a recording and the responses to it: what is seen and what is predicted, bin by bin."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Clip:
    """What is seen: frames in time, one a bin. The first `burn_in` of them are only seen; the others are predicted.

    frames: (burn_in + bins, height, width), uint8 or float32. behaviour: (burn_in + bins, channels) float32,
    normalised; None where none was recorded.
    """

    frames: NDArray[Any]
    burn_in: int
    behaviour: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Responses:
    """What units did, or are predicted to do, in each bin.

    counts: (bins, units) float32, spikes a bin. valid: (bins, units) bool, whether a count is learned and scored.
    units: their keys, session/unit. start: number of the first bin in its session.
    """

    counts: NDArray[np.float32]
    valid: NDArray[np.bool_]
    units: tuple[str, ...]
    start: int


def session_of(key: str) -> str:
    """The session of a unit's key, session/unit: a unit's name may hold slashes, a session's does not."""
    return key.partition("/")[0]

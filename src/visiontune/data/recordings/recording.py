"""Recording: what one session holds. Arrays have time first, in bins of one width; readers make them, `prepare` keeps
them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.split import SPLITS
from visiontune.errors import DataError


@dataclass(frozen=True)
class Trial:
    """The bins start..stop-1 of a session, shown without a break.

    `kind` names the stimulus ("natural", "gabor", "gratings", "flashes", ...). Trials of one `condition` show the same
    stimulus, bin by bin; None: shown once. `split` is what the data's author gave. Of a trial that was interrupted,
    each part is a trial, and `offset` is how many bins of the stimulus lie before it: bins of one condition are
    repeats of each other where offset and place together are the same.
    """

    id: str
    start: int
    stop: int
    kind: str = "stimulus"
    condition: str | None = None
    split: str | None = None
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Recording:
    """One session.

    stimulus: (bins, height, width), uint8 or float32. counts: (bins, units), spikes in a bin (or another response that
    is not negative), uint8, uint16 or float32. valid: (bins, units) or (bins, 1), whether a count is learned and
    scored. behaviour: (bins, channels) float32. eye: (bins, 2) float32, degrees. Raises DataError where shapes or
    trials do not fit together.
    """

    name: str
    rate: float  # bins a second
    stimulus: NDArray[Any]
    counts: NDArray[Any]
    valid: NDArray[np.bool_]
    units: tuple[str, ...]
    trials: tuple[Trial, ...]
    behaviour: NDArray[np.float32] | None = None
    behaviour_names: tuple[str, ...] = ()
    eye: NDArray[np.float32] | None = None
    subject: str | None = None

    def __post_init__(self) -> None:
        bins = len(self.stimulus)
        arrays = {"counts": self.counts, "valid": self.valid, "behaviour": self.behaviour, "eye": self.eye}
        wrong = [f"{name} has {len(a)}" for name, a in arrays.items() if a is not None and len(a) != bins]
        if wrong:
            raise DataError(
                f"The stimulus has {bins} bins, and {', '.join(wrong)}.",
                where=self.name,
                fix="cut or align the arrays to one clock: bin t of each must be the same moment",
            )
        if self.counts.ndim != 2 or self.counts.shape[1] != len(self.units):
            raise DataError(
                f"The counts have the shape {self.counts.shape}, and {len(self.units)} units are named.",
                where=self.name,
                fix="counts are (bins, units)",
            )
        if len(set(self.units)) < len(self.units):
            raise DataError("Two units have one name.", where=self.name, fix="give each unit its own")
        last = 0
        for trial in self.trials:
            if not last <= trial.start < trial.stop <= bins or trial.offset < 0 or trial.split not in (None, *SPLITS):
                raise DataError(
                    f"Trial {trial.id} holds the bins {trial.start} to {trial.stop}, split {trial.split}; trials follow"
                    f" each other inside {bins} bins.",
                    where=self.name,
                    fix="mend the trials' starts and ends",
                )
            last = trial.stop

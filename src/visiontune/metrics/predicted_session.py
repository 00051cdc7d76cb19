"""What was predicted for a session's evaluated bins, and how pieces of it are put together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PredictedSession:
    """The evaluated bins of a session, or some of them: what its units did and what was predicted.

    units: their keys, session/unit. rates (predicted) and counts: (bins, units), spikes a bin; where `valid`, (bins,
    units), they are finite and not negative. trials, conditions, places: (bins,), which trial a bin belongs to, the
    number of that trial's stimulus (-1 where it was shown once), and the bin's place inside the trial; trials of one
    condition show the same stimulus at the same place. Raises DataError for shapes or values that break this.
    """

    name: str
    units: tuple[str, ...]
    rates: Floats
    counts: Floats
    valid: NDArray[np.bool_]
    trials: NDArray[np.int64]
    conditions: NDArray[np.int64]
    places: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = (len(self.trials), len(self.units))
        matrices = {"rates": self.rates, "counts": self.counts, "valid": self.valid}
        columns = {"trials": self.trials, "conditions": self.conditions, "places": self.places}
        wrong = [f"{name} {a.shape}" for name, a in matrices.items() if a.shape != shape]
        wrong += [f"{name} {a.shape}" for name, a in columns.items() if a.shape != shape[:1]]
        if not self.units:
            raise DataError("The session has no units.", where=self.name, fix="leave it out")
        if wrong:
            raise DataError(
                f"{shape[0]} bins of {shape[1]} units were to be scored, and {', '.join(wrong)} do not fit.",
                where=self.name,
                fix="give one row a bin and one column a unit",
            )
        for name in ("rates", "counts"):
            values = matrices[name]
            bad = ~(values >= 0) | ~np.isfinite(values)
            bad &= self.valid
            if bad.any():
                units = [self.units[u] for u in np.flatnonzero(bad.any(axis=0))]
                raise DataError(
                    f"{int(bad.sum())} valid {name} are negative or not finite, in {len(units)} units.",
                    where=f"{self.name}: {', '.join(units[:5])}",
                    fix="mark bins without a count as invalid"
                    if name == "counts"
                    else "the model's output has to be a rate; a smaller learning rate keeps it finite",
                )


def assemble(sessions: Sequence[PredictedSession]) -> tuple[PredictedSession, ...]:
    """Whole sessions by name, from pieces in any order; the bins of each sorted by trial and place in it.

    Arrays become float64. Raises DataError for pieces with other units, for a bin that came twice, for a trial with two
    conditions, and for a unit key in two sessions.
    """
    pieces: dict[str, list[PredictedSession]] = {}
    for piece in sessions:
        pieces.setdefault(piece.name, []).append(piece)
    whole = tuple(_joined(pieces[name]) for name in sorted(pieces))
    keys = [unit for session in whole for unit in session.units]
    if len(set(keys)) < len(keys):
        raise DataError("A unit key stands twice.", fix="name units session/unit, each once")
    return whole


def _joined(pieces: list[PredictedSession]) -> PredictedSession:
    first = pieces[0]
    if any(piece.units != first.units for piece in pieces):
        raise DataError("Two pieces of a session have other units.", where=first.name, fix="keep units and their order")
    rates = np.concatenate([piece.rates for piece in pieces], dtype=np.float64)
    counts = np.concatenate([piece.counts for piece in pieces], dtype=np.float64)
    valid = np.concatenate([piece.valid for piece in pieces])
    trials = np.concatenate([piece.trials for piece in pieces])
    conditions = np.concatenate([piece.conditions for piece in pieces])
    places = np.concatenate([piece.places for piece in pieces])
    order = np.lexsort((places, trials))
    rates, counts, valid = rates[order], counts[order], valid[order]
    trials, conditions, places = trials[order], conditions[order], places[order]
    same_trial = trials[1:] == trials[:-1]
    if (twice := same_trial & (places[1:] == places[:-1])).any():
        raise DataError(
            f"{int(twice.sum())} bins came twice.",
            where=f"{first.name}: trial {trials[1:][twice][0]}, place {places[1:][twice][0]}",
            fix="hand each bin over once; samplers pad the last batch of a rank with samples of others",
        )
    if (two := same_trial & (conditions[1:] != conditions[:-1])).any():
        raise DataError(
            "The bins of one trial have two conditions.",
            where=f"{first.name}: trial {trials[1:][two][0]}",
            fix="give all bins of a trial the number of its stimulus",
        )
    return PredictedSession(first.name, first.units, rates, counts, valid, trials, conditions, places)

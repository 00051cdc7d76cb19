"""Which split each trial of a recording stands in: given ones stay, what looks alike stays together, the rest is placed
70/15/15 by time."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from visiontune.data.near_duplicates import connected
from visiontune.data.recordings.recording import Recording, Trial
from visiontune.data.recordings.survey import Survey
from visiontune.data.split import SHARES, assign, keyed

BLOCK_SECONDS = 20.0
# A kind of stimulus with fewer trials than this cannot be split 70/15/15 by whole trials: long ones are cut.
ENOUGH_TRIALS = 7
NEAR = 0.98
# A mean frame whose pixels differ by less than this share of the session's range is flat: it tells nothing.
FLAT = 0.004
_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Clusters:
    """`of`: the cluster of each trial, named by its first, (trials,). `alike_everywhere`: near-identical stimuli would
    join most of the session into one cluster (an aperture or a frame that all share): looks tell nothing there."""

    of: NDArray[np.int64]
    alike_everywhere: bool


def in_blocks(recording: Recording, seconds: float = BLOCK_SECONDS) -> Recording:
    """The recording with its long trials cut into blocks of about `seconds`, which then are trials of their own.

    Cut are trials longer than two blocks without a split or a condition, of kinds that have fewer than `ENOUGH_TRIALS`:
    a session of free viewing, above all. No clip crosses a block.
    """
    block = max(1, round(seconds * recording.rate))
    kinds = Counter(trial.kind for trial in recording.trials)
    trials: list[Trial] = []
    for trial in recording.trials:
        length = trial.stop - trial.start
        whole = trial.split is not None or trial.condition is not None or kinds[trial.kind] >= ENOUGH_TRIALS
        if whole or length <= 2 * block:
            trials.append(trial)
            continue
        edges = np.linspace(trial.start, trial.stop, round(length / block) + 1).astype(int).tolist()
        trials += [
            replace(trial, id=f"{trial.id}.{number}", start=start, stop=stop, offset=0)
            for number, (start, stop) in enumerate(pairwise(edges))
        ]
    return replace(recording, trials=tuple(trials))


def near_pairs(found: Survey) -> NDArray[np.int64]:
    """Pairs of trials whose stimuli are not the same and look so: (2, pairs).

    Both their mean frames and 32 of their frames, evenly spread, correlate above 0.98, once averaged over blocks of
    pixels. Flat mean frames (drifting gratings, full-field flashes) are told apart by their single frames alone.
    """
    span = found.frame_range[1] - found.frame_range[0]
    pairs: list[NDArray[np.int64]] = [np.zeros((2, 0), np.int64)]
    if not found.trials:
        return pairs[0]
    # Trials of fewer bins than instants show fewer different frames, but as many.
    looks = np.stack([trial.look for trial in found.trials]).astype(np.float32)
    instants = np.stack([trial.instants for trial in found.trials]).astype(np.float32)
    looks -= looks.mean(axis=1, keepdims=True)
    instants -= instants.mean(axis=1, keepdims=True)
    flat = looks.std(axis=1) < FLAT * span
    still = instants.std(axis=1) < FLAT * span
    looks /= np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), 1e-12)
    instants /= np.maximum(np.linalg.norm(instants, axis=1, keepdims=True), 1e-12)
    contents = np.unique([trial.content for trial in found.trials], return_inverse=True)[1]
    for start in range(0, len(looks), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        alike = instants[rows] @ instants.T > NEAR
        alike &= (looks[rows] @ looks.T > NEAR) | (flat[rows, None] & flat)
        alike &= ~still[rows, None] & ~still & (contents[rows, None] != contents)
        left, right = np.nonzero(alike)
        keep = left + start < right
        pairs.append(np.stack([left[keep] + start, right[keep]]))
    return np.concatenate(pairs, axis=1)


def clusters(trials: Sequence[Trial], found: Survey) -> Clusters:
    """Trials of one condition, with the same frames, or with nearly the same look, where looks tell anything."""
    exact = []
    for names in ([t.condition for t in trials], [t.content for t in found.trials]):
        first: dict[str, int] = {}
        joined = [(first.setdefault(name, i), i) for i, name in enumerate(names) if name is not None]
        exact.append(np.array(joined, np.int64).reshape(-1, 2).T)
    edges = np.concatenate(exact, axis=1)
    near = near_pairs(found)
    alike = bool(np.bincount(connected(len(trials), near), minlength=1).max() > max(10, len(trials) / 2))
    return Clusters(connected(len(trials), edges if alike else np.hstack([edges, near])), alike)


def _repeats_for_test(
    trials: Sequence[Trial], groups: NDArray[np.int64], contents: Sequence[str], seed: int
) -> dict[str, str]:
    """The contents of repeated stimuli that are kept for the test split, where nobody gave them one.

    Repeats tell how much of a response can be explained at all, and teach little that is new. Of each kind, repeated
    stimuli go to the test split as long as they fit into its share of the kind's bins; one goes there if it takes no
    more than twice that share.
    """
    bins = np.array([trial.stop - trial.start for trial in trials])
    whole = np.array([trial.offset == 0 for trial in trials])  # later parts of an interrupted trial repeat nothing
    found: dict[str, str] = {}
    for kind in sorted({trial.kind for trial in trials}):
        own = np.array([trial.kind == kind for trial in trials])
        room, taken = SHARES[2] * bins[own].sum(), 0
        repeated = [int(g) for g in np.unique(groups[own]) if (groups[whole] == g).sum() > 1]
        for group in sorted(repeated, key=lambda first: keyed(seed, contents[first])):
            members = [int(i) for i in np.flatnonzero(groups == group)]
            size = int(bins[members].sum())
            given = any(trials[i].split is not None or trials[i].kind != kind for i in members)
            if not given and (taken + size <= room or (not taken and size <= 2 * room)):
                taken += size
                found |= {contents[i]: "test" for i in members}
    return found


def with_splits(
    recording: Recording, found: Survey, groups: NDArray[np.int64], seed: int, earlier: Mapping[str, str]
) -> list[str | None]:
    """The split of each trial; None for one that is left out, since what it repeats stands in two splits.

    `groups` are the clusters of trials. `earlier` maps contents to the splits of other sessions, so that a film shown
    in two is in one split. A pure function of the seed and the contents.
    """
    contents = [trial.content for trial in found.trials]
    earlier = {**_repeats_for_test(recording.trials, groups, contents, seed), **earlier}
    # A trial counts as many times as it has seconds, so that the shares are shares of time.
    weights = [max(1, round((trial.stop - trial.start) / recording.rate)) for trial in recording.trials]
    rows = [i for i, weight in enumerate(weights) for _ in range(weight)]
    placed = assign(
        [contents[i] for i in rows],
        [int(groups[i]) for i in rows],
        [recording.trials[i].kind for i in rows],
        given=[recording.trials[i].split for i in rows],
        earlier=earlier,
        seed=seed,
    )
    return list(dict(zip(rows, placed, strict=True)).values())

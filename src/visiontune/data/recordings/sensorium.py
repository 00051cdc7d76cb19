"""Sessions in the folders of SENSORIUM 2023 and neuralpredictors: one array a trial, time last, NaN at the ends.

data/videos/0.npy (height, width, bins), data/responses/0.npy (units, bins), data/behavior/0.npy (channels, bins),
data/pupil_center/0.npy (2, bins), meta/trials/tiers.npy (trials,), meta/neurons/unit_ids.npy (units,).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.faults import Fault
from visiontune.data.recordings.arrays import Session
from visiontune.data.recordings.recording import Recording, Trial
from visiontune.data.recordings.scratch import assembled
from visiontune.errors import DataError

RATE = 30.0
# Which split a tier is. Tiers of other names are not taken, and counted: "none" above all.
TIERS = {
    "train": "train",
    "oracle": "validation",
    "validation": "validation",
    "test": "test",
    "live_main": "test",
    "live_bonus": "test",
    "live_test_main": "test",
    "live_test_bonus": "test",
    "final_main": "test",
    "final_bonus": "test",
    "final_test_main": "test",
    "final_test_bonus": "test",
}


@dataclass(frozen=True)
class _Part:
    """A trial's number, its bins without the padding, those with it, and whether its responses were published."""

    number: int
    bins: int
    padded: int
    answered: bool


def detect(path: Path) -> bool:
    """Whether a folder has this layout."""
    return (path / "data" / "videos").is_dir() and (path / "data" / "responses").is_dir()


def read(path: Path) -> Session:
    """One session. Videos of whole numbers from 0 to 255 become uint8. Raises DataError where files are missing."""
    tiers = _of_each_trial(path, "tiers")
    taken = [i for i, tier in enumerate(tiers) if tier in TIERS]
    if not taken:
        raise DataError(
            f"no trial has a tier that is known; found: {', '.join(sorted(set(tiers))[:8]) or 'none'}",
            where=str(path / "meta/trials/tiers.npy"),
            fix=f"use {', '.join(TIERS)}",
        )
    first_video = _array(path, "videos", taken[0], 3)
    units = len(_array(path, "responses", taken[0], 2))
    parts, byte = _measured(path, taken, first_video.shape[:2], units)
    used = [part for part in parts if part.answered and part.bins]
    if not used:
        raise DataError("no trial has responses", where=str(path), fix="use the release that has them")
    kind = np.uint8 if byte else np.float32
    recording = Recording(
        name=path.resolve().name,
        rate=_rate(path),
        stimulus=assembled(_pieces(path, "videos", used, (2, 0, 1)), kind, first_video.shape[:2]),
        counts=assembled(_pieces(path, "responses", used, (1, 0)), np.float32, (units,)),
        valid=np.ones((sum(part.bins for part in used), 1), bool),
        units=_units(path, units),
        trials=_trials(path, used, tiers),
        behaviour=_optional(path, "behavior", used),
        behaviour_names=_behaviour_names(path, used),
        eye=_optional(path, "pupil_center", used),
    )
    return Session(recording, _faults(parts, tiers, used))


def _measured(path: Path, taken: list[int], size: tuple[int, ...], units: int) -> tuple[list[_Part], bool]:
    """The trials, and whether all their pixels are whole numbers from 0 to 255."""
    parts, byte = [], True
    for number in taken:
        video, responses = _array(path, "videos", number, 3), _array(path, "responses", number, 2)
        if video.shape[:2] != size or len(responses) != units or video.shape[2] != responses.shape[1]:
            raise DataError(
                f"video {video.shape} and responses {responses.shape} do not fit {(*size, 'bins')} and "
                f"{(units, 'bins')}",
                where=f"{path}: trial {number}",
                fix="all trials of a session have one frame size, the same units, and as many frames as bins",
            )
        answered = bool(np.isfinite(responses).any()) and bool(np.nan_to_num(responses).any())
        bins = _unpadded(video.reshape(-1, video.shape[2]))
        bins = min(bins, _unpadded(responses)) if answered else bins
        parts.append(_Part(number, bins, video.shape[2], answered))
        shown = video[:, :, :bins]
        byte = byte and bool(((shown == np.rint(shown)) & (shown >= 0) & (shown <= 255)).all())
    return parts, byte


def _unpadded(array: NDArray[Any]) -> int:
    """How many bins there are before the last ones that hold nothing but NaN. array: (values, bins)."""
    there = np.flatnonzero(~np.isnan(array).all(axis=0))
    return int(there[-1]) + 1 if len(there) else 0


def _pieces(path: Path, name: str, parts: list[_Part], axes: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    for part in parts:
        yield _array(path, name, part.number, len(axes)).transpose(axes)[: part.bins]


def _optional(path: Path, name: str, parts: list[_Part]) -> NDArray[np.float32] | None:
    """(bins, channels), NaN for what is missing; None where no trial has it."""
    if not (path / "data" / name).is_dir():
        return None
    channels = len(_array(path, name, parts[0].number, 2))
    return assembled(_pieces(path, name, parts, (1, 0)), np.float32, (channels,))


def _behaviour_names(path: Path, parts: list[_Part]) -> tuple[str, ...]:
    """Two channels are pupil size and running speed, three have the change of pupil size between them."""
    if not (path / "data" / "behavior").is_dir():
        return ()
    channels = len(_array(path, "behavior", parts[0].number, 2))
    if channels == 2:
        return ("pupil", "running")
    return ("pupil", "pupil change", "running") if channels == 3 else tuple(f"channel {i}" for i in range(channels))


def _trials(path: Path, parts: list[_Part], tiers: list[str]) -> tuple[Trial, ...]:
    named = (path / "meta" / "trials" / "condition_hash.npy").is_file()
    conditions = _of_each_trial(path, "condition_hash") if named else None
    trials, start = [], 0
    for part in parts:
        tier = tiers[part.number]
        trials.append(
            Trial(
                id=f"trial-{part.number}",
                start=start,
                stop=start + part.bins,
                kind="bonus" if tier.endswith("bonus") else "video",
                condition=None if conditions is None else conditions[part.number],
                split=TIERS[tier],
            )
        )
        start += part.bins
    return tuple(trials)


def _of_each_trial(path: Path, name: str) -> list[str]:
    """What meta/trials says of each trial. DataError where it says it of more or fewer trials than there are videos."""
    file = path / "meta" / "trials" / f"{name}.npy"
    values = [str(one) for one in _load(file).reshape(-1).tolist()]
    videos = sum(1 for _ in (path / "data" / "videos").glob("*.npy"))
    if len(values) != videos:
        fix = "write one entry for each trial, or unpack the whole archive again"
        raise DataError(f"{len(values)} entries for {videos} videos", where=str(file), fix=fix)
    return values


def _units(path: Path, units: int) -> tuple[str, ...]:
    file = path / "meta" / "neurons" / "unit_ids.npy"
    if not file.is_file():
        return tuple(f"unit-{i}" for i in range(units))
    names = tuple(str(one) for one in _load(file).reshape(-1).tolist())
    if len(names) != units:
        raise DataError(f"{len(names)} units are named, {units} have responses", where=str(file), fix="name each once")
    return names


def _rate(path: Path) -> float:
    file = path / "meta" / "trials" / "target_fps.npy"
    if not file.is_file():
        return RATE
    rates = {float(one) for one in _load(file).reshape(-1).tolist()}
    if len(rates) != 1:
        raise DataError("trials have several rates", where=str(file), fix="keep trials of one rate in a session")
    return rates.pop()


def _faults(parts: list[_Part], tiers: list[str], used: list[_Part]) -> list[Fault]:
    faults = []
    if padded := sum(part.padded - part.bins for part in used):
        found = f"{padded} bins of padding (NaN) at the ends of trials were cut"
        faults.append(Fault("padding-cut", "warning", "data", found, "nothing: this is how the format pads"))
    if unanswered := Counter(tiers[part.number] for part in parts if not part.answered):
        found = f"trials without any response are not taken: {', '.join(f'{t} {n}' for t, n in unanswered.items())}"
        faults.append(Fault("no-responses", "warning", "data/responses", found, "use the release that has them"))
    if others := Counter(tier for tier in tiers if tier not in TIERS):
        found = f"trials of other tiers are not taken: {', '.join(f'{t} {n}' for t, n in others.items())}"
        faults.append(Fault("other-tiers", "warning", "meta/trials/tiers.npy", found, f"use {', '.join(TIERS)}"))
    return faults


def _array(path: Path, name: str, number: int, rank: int) -> NDArray[Any]:
    file = path / "data" / name / f"{number}.npy"
    array = _load(file)
    if array.ndim != rank:
        fix = "videos are (height, width, bins), responses (units, bins), behaviour and pupil (channels, bins)"
        raise DataError(f"the array has the shape {array.shape}", where=str(file), fix=fix)
    return array


def _load(file: Path) -> NDArray[Any]:
    if not file.is_file():
        raise DataError("a file of the session is missing", where=str(file), fix="unpack the whole archive again")
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"the array cannot be read: {error}", where=str(file), fix="unpack it again") from error

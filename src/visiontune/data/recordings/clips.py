"""ClipDataset: a prepared recording as samples, each a clip and the responses to it. Arrays are memory-mapped."""

import hashlib
import os
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.dataset import Dataset, Index
from visiontune.data.dataset_info import DatasetInfo, RecordingSummary
from visiontune.data.recordings.store import StoredTrial, read_trials
from visiontune.data.responses import Clip, Responses
from visiontune.data.sample import Sample
from visiontune.data.split import SPLITS
from visiontune.errors import DataError

CLIP_BINS = 64
BURN_IN = 32


@dataclass(frozen=True)
class ClipPlace:
    """Where a clip's first predicted bin lies: `start` in its session, `place` in its trial. `trial` and `condition`
    are numbers inside the session; -1 for a stimulus that is shown once. Trials without a named condition that show
    exactly the same frames have one. All parts of an interrupted trial have the number of the first, and places that
    count from its beginning."""

    start: int
    trial: int
    condition: int
    place: int


@dataclass(frozen=True, eq=False)
class _Plan:
    """The clips of a split, one entry each: (clips,) int64.

    first: the session's bin of the first frame. trial: its number. place: the first predicted bin inside the trial.
    shown: how many frames lie in the trial; later ones are padding. covered: how many of the predicted bins an
    earlier clip predicts.
    """

    first: NDArray[np.int64]
    trial: NDArray[np.int64]
    place: NDArray[np.int64]
    shown: NDArray[np.int64]
    covered: NDArray[np.int64]
    left_out_bins: int


class ClipDataset(Dataset):
    """A prepared recording, cut into clips of `burn_in` frames that are only seen and `clip` bins that are predicted.

    All clips have `burn_in + clip` frames. Those of a trial predict each of its bins from the `burn_in`-th on exactly
    once: the last one is moved back to end with the trial, and what another clip predicts is not valid in it. In a
    trial that is shorter than a clip, the last frame is repeated and the padding is not valid. No clip holds a bin of
    another trial. Clips carry the `channels` of behaviour, in this order; None: all that were recorded. Cheap to open,
    picklable, and usable after a fork, as every Dataset.
    """

    def __init__(
        self,
        path: Path,
        info: DatasetInfo,
        clip: int = CLIP_BINS,
        burn_in: int = BURN_IN,
        channels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(path, info)
        if info.recording is None:
            raise DataError(
                "this dataset holds no recording", where=str(path), fix="prepare one with `visiontune prepare`"
            )
        if clip < 1 or burn_in < 0:
            raise DataError(f"a clip of {clip} bins after {burn_in} more is nothing", fix="use 1 and 0 or more")
        self.clip = clip
        self.burn_in = burn_in
        self.recording: RecordingSummary = info.recording
        recorded = self.recording.behaviour_names
        self.channels = recorded if channels is None else tuple(channels)
        if absent := [name for name in self.channels if name not in recorded]:
            raise DataError(
                f"no {', '.join(absent)} was recorded; channels of behaviour: {', '.join(recorded) or 'none'}",
                where=str(path),
                fix="name channels that were recorded",
            )
        self._arrays: _Arrays | None = None
        self._plans: dict[str, _Plan] = {}
        self._scores: dict[str, dict[str, NDArray[np.float64]]] = {}

    @classmethod
    def open(
        cls, path: Path | str, clip: int = CLIP_BINS, burn_in: int = BURN_IN, channels: Sequence[str] | None = None
    ) -> "ClipDataset":
        """Open the recording in the folder `path` (or at a URL); DataError when it is none or lacks a file."""
        dataset = Dataset.open(path)
        return cls(dataset.path, dataset.info, clip, burn_in, channels)

    def __getstate__(self) -> dict[str, Any]:
        own = {"clip": self.clip, "burn_in": self.burn_in, "recording": self.recording, "channels": self.channels}
        return super().__getstate__() | own | {"_arrays": None, "_plans": {}, "_scores": {}}

    def __len__(self) -> int:
        return sum(self.count(split) for split in SPLITS)

    @cached_property
    def units(self) -> tuple[str, ...]:
        """The keys of the units, session/unit."""
        return self.recording.unit_keys

    @cached_property
    def trials(self) -> list[StoredTrial]:
        """The trials of the session, in the order of time; their numbers are their places here."""
        return read_trials(self.path)

    @cached_property
    def _conditions(self) -> NDArray[np.int64]:
        """The number of each trial's stimulus, -1 where it was shown once: (trials,). What has no named condition is
        known by its frames, of an interrupted trial by those of all parts."""
        parts: dict[int, list[tuple[int, str]]] = {}
        for whole, trial in zip(self._wholes.tolist(), self.trials, strict=True):
            parts.setdefault(whole, []).append((trial.offset, trial.content))
        shown = {whole: tuple(frames) for whole, frames in parts.items()}
        often = Counter(shown.values())
        named = {frames: name for whole, frames in shown.items() if (name := self.trials[whole].condition)}
        numbers: dict[Hashable, int] = {}
        of_whole = dict.fromkeys(shown, -1)
        for whole, frames in shown.items():
            stimulus = self.trials[whole].condition or named.get(frames) or (frames if often[frames] > 1 else None)
            if stimulus is not None:
                of_whole[whole] = numbers.setdefault(stimulus, len(numbers))
        return np.array([of_whole[whole] for whole in self._wholes.tolist()], np.int64)

    @cached_property
    def _wholes(self) -> NDArray[np.int64]:
        """The number of the trial that each trial is a part of, its own where it is whole: (trials,)."""
        numbers: list[int] = []
        for i, trial in enumerate(self.trials):
            before = self.trials[i - 1] if trial.offset and i else None
            goes_on = (
                before is not None
                and (before.condition, before.split) == (trial.condition, trial.split)
                and before.offset + before.stop - before.start <= trial.offset
            )
            numbers.append(numbers[-1] if goes_on else i)
        return np.array(numbers, np.int64)

    def count(self, split: str) -> int:
        """The number of clips in a split; DataError when there is no such split."""
        return len(self._plan(split).first)

    def left_out_bins(self, split: str) -> int:
        """The bins of a split in trials of no more than `burn_in` bins, which give no clip."""
        return self._plan(split).left_out_bins

    def index(self, split: str) -> "ClipIndex":
        """The clips of a split without their frames: their ids, trial/first predicted bin, and the size of a frame."""
        plan = self._plan(split)
        places = list(zip(plan.trial.tolist(), plan.place.tolist(), strict=True))
        n = len(places)
        return ClipIndex(
            ids=[self._id(trial, place) for trial, place in places],
            prompts=[None] * n,
            answers=[""] * n,
            widths=[[self.recording.width]] * n,
            heights=[[self.recording.height]] * n,
            contents=[
                hashlib.sha256(f"{self.trials[trial].content} {place} {self.clip} {self.burn_in}".encode()).hexdigest()
                for trial, place in places
            ],
            dataset=self,
            split=split,
        )

    def where(self, split: str, i: int) -> ClipPlace:
        """Where clip `i` of a split lies in its session and its trial."""
        plan = self._plan(split)
        part = int(plan.trial[i])
        place = self.trials[part].offset + int(plan.place[i])
        return ClipPlace(int(plan.first[i]) + self.burn_in, int(self._wholes[part]), int(self._conditions[part]), place)

    def sample(self, split: str, i: int) -> Sample:
        """Clip `i` of a split; IndexError outside 0 .. count(split) - 1.

        Frames are a read-only view of the file where the clip lies whole in its trial.
        """
        target = self.responses(split, i)
        plan, arrays = self._plan(split), self._open()
        first, shown = int(plan.first[i]), int(plan.shown[i])
        padding = self.burn_in + self.clip - shown
        seen = slice(first, first + shown)
        behaviour = None if arrays.behaviour is None or not self.channels else self._normalised(arrays.behaviour[seen])
        frames = arrays.stimulus[seen]
        if padding:
            frames = np.concatenate([frames, np.repeat(frames[-1:], padding, axis=0)])
            if behaviour is not None:
                behaviour = np.concatenate([behaviour, np.repeat(behaviour[-1:], padding, axis=0)])
        clip = Clip(frames, self.burn_in, behaviour)
        return Sample(self._id(int(plan.trial[i]), int(plan.place[i])), clip, target)

    def responses(self, split: str, i: int) -> Responses:
        """What the units did in clip `i` of a split, without what they saw; IndexError as `sample`."""
        if not 0 <= i < self.count(split):
            raise IndexError(f"clip {i} of {self.count(split)} in split {split!r}")
        plan, arrays = self._plan(split), self._open()
        first, shown, covered = int(plan.first[i]), int(plan.shown[i]), int(plan.covered[i])
        padding = self.burn_in + self.clip - shown
        predicted = slice(first + self.burn_in, first + shown)
        counts = arrays.counts[predicted].astype(np.float32)
        valid = np.repeat(arrays.valid[predicted], len(self.units) // arrays.valid.shape[1], axis=1)
        valid[:covered] = False
        if padding:
            counts = np.concatenate([counts, np.zeros((padding, counts.shape[1]), np.float32)])
            valid = np.concatenate([valid, np.zeros((padding, valid.shape[1]), bool)])
        return Responses(counts, valid, self.units, first + self.burn_in)

    def scores(self, split: str) -> dict[str, NDArray[np.float64]]:
        """Numbers to order clips by, of each clip of a split: (clips,) float64.

        contrast: the standard deviation of the pixels of a frame, averaged over the clip's predicted frames, divided by
        the mean brightness of the train split (by its standard deviation where that mean is not positive, as of
        stimuli that are centred). spikes: the mean of the valid counts, a bin and a unit; 0 where none is valid.
        """
        if split not in self._scores:
            plan, arrays = self._plan(split), self._open()
            scale = self.recording.stimulus_mean if self.recording.stimulus_mean > 0 else self.recording.stimulus_std
            contrast, spikes = np.zeros(len(plan.first)), np.zeros(len(plan.first))
            for i, (first, shown) in enumerate(zip(plan.first.tolist(), plan.shown.tolist(), strict=True)):
                predicted = slice(first + self.burn_in, first + shown)
                contrast[i] = arrays.stimulus[predicted].astype(np.float32).std(axis=(1, 2)).mean()
                target = self.responses(split, i)
                spikes[i] = target.counts[target.valid].sum(dtype=np.float64) / max(1, int(target.valid.sum()))
            self._scores[split] = {"contrast": contrast / (scale or 1), "spikes": spikes}
        return self._scores[split]

    def _id(self, trial: int, place: int) -> str:
        return f"{self.trials[trial].id}/{place}"

    @cached_property
    def _columns(self) -> list[int]:
        """Where the channels stand in what was recorded."""
        return [self.recording.behaviour_names.index(name) for name in self.channels]

    def _normalised(self, behaviour: NDArray[np.float32]) -> NDArray[np.float32]:
        """The channels of behaviour by the statistics of the train split; what is not known is the mean, 0."""
        mean = np.array(self.recording.behaviour_mean, np.float32)[self._columns]
        std = np.array(self.recording.behaviour_std, np.float32)[self._columns]
        return np.nan_to_num(
            (behaviour[:, self._columns] - mean) / np.where(std > 0, std, np.float32(1)), nan=0.0
        ).astype(np.float32)

    def _open(self) -> "_Arrays":
        if self._arrays is None or self._arrays.process != os.getpid():
            self._arrays = _Arrays(self.path, self.info)
        return self._arrays

    def _plan(self, split: str) -> _Plan:
        if split not in SPLITS:
            super().count(split)  # which says that there is no such split
        if split not in self._plans:
            self._plans[split] = self._planned(split)
        return self._plans[split]

    def _planned(self, split: str) -> _Plan:
        frames = self.burn_in + self.clip
        rows: list[tuple[int, int, int, int, int]] = []
        short = 0
        for number, trial in enumerate(self.trials):
            length = trial.stop - trial.start
            if trial.split != split:
                continue
            if length <= self.burn_in:
                short += length
                continue
            for first, covered in cut_into_clips(length, self.clip, self.burn_in):
                rows.append((trial.start + first, number, first + self.burn_in, min(frames, length), covered))
        columns = np.array(rows, np.int64).reshape(-1, 5).T
        return _Plan(*columns, left_out_bins=short)


def cut_into_clips(length: int, clip: int, burn_in: int) -> list[tuple[int, int]]:
    """For each clip of `length` frames its first frame, and how many of its predicted bins an earlier one predicts."""
    offsets = range(0, length - burn_in, clip)
    firsts = [max(0, min(offset, length - burn_in - clip)) for offset in offsets]
    return [(first, offset - first) for first, offset in zip(firsts, offsets, strict=True)]


def recorded(dataset: Dataset) -> ClipDataset:
    """The dataset as a recording; DataError where it is none."""
    if not isinstance(dataset, ClipDataset):
        raise DataError("This dataset holds no recording.", where=str(dataset.path), fix="prepare recordings")
    return dataset


@dataclass(frozen=True)
class ClipIndex(Index):
    """The clips of a split without their frames; targets are read from the recording when they are asked for."""

    dataset: ClipDataset | None = None
    split: str = "train"

    def target(self, i: int) -> Responses:
        """The responses to clip i."""
        assert self.dataset is not None
        return self.dataset.responses(self.split, i)


class _Arrays:
    """The memory-mapped arrays of a recording. They belong to the process that opened them."""

    def __init__(self, path: Path, info: DatasetInfo) -> None:
        self.process = os.getpid()
        self.stimulus = _mapped(path / "stimulus.npy")
        self.counts = _mapped(path / "counts.npy")
        self.valid = _mapped(path / "valid.npy")
        self.behaviour = _mapped(path / "behaviour.npy") if "behaviour.npy" in info.files else None


def _mapped(path: Path) -> NDArray[Any]:
    """An array on disk as a plain read-only array: slices of np.memmap itself are several times slower."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))

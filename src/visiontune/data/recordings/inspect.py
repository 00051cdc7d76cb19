"""What recordings are, and what is wrong with them: of raw sessions or of prepared ones, in the same form."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data.dataset_info import RecordingSummary, read_info
from visiontune.data.faults import Fault, ordered
from visiontune.data.recordings.arrays import Session
from visiontune.data.recordings.examine import examine
from visiontune.data.recordings.prepare import converted, leaks_between_sessions, prepared, sessions_of
from visiontune.data.recordings.readers import read_session
from visiontune.data.recordings.split import clusters, in_blocks, with_splits
from visiontune.data.recordings.store import read_trials
from visiontune.data.recordings.survey import survey
from visiontune.data.split import SPLITS
from visiontune.errors import DataError


@dataclass(frozen=True)
class SessionFacts:
    """The facts of one session. `rate` is in bins a second, `size` is (height, width) in pixels.

    `kinds` counts trials; `repeats` counts the trials that show what another one shows, `stimuli` the different ones.
    `valid` is the share of counts that are. `spikes_a_second` is the median of the units' rates in the train split.
    `splits` are the seconds in each split: those that stand, or those that `prepare` would make with its own seed.
    """

    name: str
    subject: str | None
    units: int
    bins: int
    rate: float
    size: tuple[int, int]
    stimulus: str
    kinds: dict[str, int]
    trials: int
    stimuli: int
    repeats: int
    valid: float
    spikes_a_second: float
    behaviour: tuple[str, ...]
    eye: bool
    splits: dict[str, float]

    @property
    def seconds(self) -> float:
        """The length of all trials."""
        return self.bins / self.rate


@dataclass(frozen=True)
class RecordingsInspection:
    """The facts of sessions and what is wrong; `where` of a fault starts with the session's name."""

    sessions: list[SessionFacts]
    faults: list[Fault] = field(default_factory=list)

    @property
    def units(self) -> int:
        """The units of all sessions."""
        return sum(session.units for session in self.sessions)

    def to_json(self) -> dict[str, Any]:
        """The one JSON form of an inspection."""
        return {
            "sessions": [asdict(session) | {"seconds": round(session.seconds, 3)} for session in self.sessions],
            "units": self.units,
            "seconds": round(sum(session.seconds for session in self.sessions), 3),
            "splits": {split: round(sum(s.splits[split] for s in self.sessions), 3) for split in SPLITS},
            "faults": [fault.to_json() for fault in self.faults],
            "trains": [{"target": "responses", "kind": "prediction of responses"}] if self.sessions else [],
        }

    def table(self) -> str:
        """The sessions as lines for people: one each, under their titles."""
        titles = ["session", "units", "seconds", "rate", "stimulus", "kinds", "repeats", "valid", "spikes/s", "splits"]
        rows = [
            [
                session.name,
                f"{session.units}",
                f"{session.seconds:,.0f}",
                f"{session.rate:g}",
                f"{session.size[0]}x{session.size[1]} {session.stimulus}",
                ", ".join(f"{kind} {count}" for kind, count in session.kinds.items()),
                f"{session.repeats} of {session.trials}",
                f"{session.valid:.0%}",
                f"{session.spikes_a_second:.2g}",
                "/".join(f"{session.splits[split]:,.0f}" for split in SPLITS),
            ]
            for session in self.sessions
        ]
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        return "\n".join(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [titles, *rows]
        )


def inspect_recordings(
    source: Path | Sequence[Path], *, seed: int = 0, rate: float | None = None
) -> RecordingsInspection:
    """Inspect sessions, or prepared ones; nothing is written. A session that cannot be read is a fault, and the others
    are inspected. Raises DataError when there is none at all."""
    standing = prepared(Path(source)) if isinstance(source, str | Path) else {}
    if standing:
        return _of_prepared(standing)
    facts: list[SessionFacts] = []
    faults: list[Fault] = []
    placed: dict[str, dict[str, str]] = {}
    for name, path in sessions_of(source).items():
        try:
            session = converted(read_session(path), rate)
        except DataError as error:
            faults.append(_unreadable(name, error))
            continue
        known = {content: split for own in placed.values() for content, split in own.items()}
        one, found, placed[name] = _looked_at(session, seed, known)
        facts += one
        faults += found
    return RecordingsInspection(facts, ordered([*faults, *leaks_between_sessions(placed)]))


def _unreadable(name: str, error: DataError) -> Fault:
    where = f"{name}: {error.where}" if error.where else name
    return Fault("unreadable-recording", "error", where, error.found, error.fix or "mend it, or take it out")


def _looked_at(
    session: Session, seed: int, known: dict[str, str]
) -> tuple[list[SessionFacts], list[Fault], dict[str, str]]:
    """The facts of a session (none where it has no trials), its faults, and the splits of what it shows."""
    recording = in_blocks(session.recording)
    found = survey(recording)
    faults = [_of(recording.name, fault) for fault in [*session.faults, *examine(recording, found)]]
    if not recording.trials:
        return [], faults, {}
    placed = with_splits(recording, found, seed, known)
    contents = {trial.content: split for trial, split in zip(found.trials, placed, strict=True) if split is not None}
    lengths = np.array([trial.stop - trial.start for trial in recording.trials])
    training = np.array([split == "train" for split in placed])
    spikes = np.stack([trial.spikes for trial in found.trials])[training].sum(axis=0)
    valid = np.stack([trial.valid_bins for trial in found.trials])
    kinds: dict[str, int] = {}
    for trial in recording.trials:
        kinds[trial.kind] = kinds.get(trial.kind, 0) + 1
    splits = {
        split: sum(int(n) for n, own in zip(lengths, placed, strict=True) if own == split) / recording.rate
        for split in SPLITS
    }
    groups = clusters(recording.trials, found)
    stimulus = "uint8" if recording.stimulus.dtype == np.uint8 else "float32"
    facts = SessionFacts(
        name=recording.name,
        subject=recording.subject,
        units=len(recording.units),
        bins=int(lengths[[split is not None for split in placed]].sum()),
        rate=recording.rate,
        size=(recording.stimulus.shape[1], recording.stimulus.shape[2]),
        stimulus=stimulus,
        kinds=dict(sorted(kinds.items())),
        trials=len(recording.trials),
        stimuli=len(np.unique(groups)),
        repeats=len(groups) - len(np.unique(groups)),
        valid=float(valid.sum() / (lengths.sum() * len(recording.units))),
        spikes_a_second=float(np.median(spikes / np.maximum(valid[training].sum(axis=0), 1)) * recording.rate),
        behaviour=recording.behaviour_names
        or tuple(f"channel {i}" for i in range(0 if recording.behaviour is None else recording.behaviour.shape[1])),
        eye=recording.eye is not None,
        splits=splits,
    )
    return [facts], faults, contents


def _of_prepared(standing: dict[str, Path]) -> RecordingsInspection:
    facts, faults, placed = [], [], {}
    for name, path in standing.items():
        info = read_info(path)
        assert info.recording is not None
        trials = read_trials(path)
        facts.append(_of_summary(info.recording, len(trials), len({trial.group for trial in trials})))
        faults += [_of(info.recording.name, fault) for fault in info.faults]
        placed[name] = {trial.content: trial.split for trial in trials if trial.split is not None}
    return RecordingsInspection(facts, ordered([*faults, *leaks_between_sessions(placed)]))


def _of_summary(summary: RecordingSummary, trials: int, stimuli: int) -> SessionFacts:
    return SessionFacts(
        name=summary.name,
        subject=summary.subject,
        units=len(summary.units),
        bins=sum(summary.bins.values()),
        rate=summary.rate,
        size=(summary.height, summary.width),
        stimulus=summary.stimulus,
        kinds=summary.kinds,
        trials=trials,
        stimuli=stimuli,
        repeats=trials - stimuli,
        valid=summary.valid,
        spikes_a_second=float(np.median(summary.mean_counts) * summary.rate),
        behaviour=summary.behaviour_names,
        eye=summary.eye,
        splits=summary.seconds,
    )


def _of(name: str, fault: Fault) -> Fault:
    return Fault(fault.code, fault.severity, f"{name}: {fault.where}", fault.found, fault.fix)

"""What recordings are, and what is wrong with them: of raw sessions or of prepared ones, in the same form."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data.dataset_info import RecordingSummary, read_info
from visiontune.data.faults import Fault, ordered, some
from visiontune.data.recordings.arrays import Session
from visiontune.data.recordings.examine import empty_splits, examine
from visiontune.data.recordings.prepare import leaks_between_sessions, prepared, unlike_sessions, unprepared
from visiontune.data.recordings.readers import holders, read_session, sessions
from visiontune.data.recordings.split import clusters, in_blocks
from visiontune.data.recordings.store import StoredTrial, bins_of, placed, read_trials, splits_of, summary_of
from visiontune.data.recordings.survey import survey
from visiontune.data.split import SPLITS
from visiontune.errors import DataError
from visiontune.words import counted


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
        titles = ["session", "units", "seconds", "rate", "stimulus", "kinds", "repeats", "valid", "median spikes/s",
                  "splits"]  # fmt: skip
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


def inspect_recordings(source: Path) -> RecordingsInspection:
    """Inspect sessions, or prepared ones; nothing is written. A session that cannot be read is a fault, and the others
    are inspected. Raises DataError when there is none at all."""
    if standing := prepared(source):
        return _of_prepared(standing, unprepared(source))
    facts: list[SessionFacts] = []
    faults: list[Fault] = []
    splits: dict[str, dict[str, str]] = {}
    for name, path in sessions(source).items():
        try:
            session = read_session(path)
        except DataError as error:
            faults.append(_unreadable(name, error))
            continue
        known = {content: split for own in splits.values() for content, split in own.items()}
        one, found, splits[name] = _looked_at(session, known)
        facts += one
        faults += found
    faults += [*_not_looked_into(source), *unlike_sessions(facts), *leaks_between_sessions(splits)]
    return RecordingsInspection(facts, ordered(faults))


def _not_looked_into(source: Path) -> list[Fault]:
    """Folders beside the sessions that hold sessions themselves."""
    if not (found := holders(source)):
        return []
    said = f"{len(found)} folders here hold sessions that are not read" if len(found) > 1 else (
        "a folder here holds sessions that are not read"
    )  # fmt: skip
    return [Fault("sessions-below", "warning", some(found), said, "name these folders too, or put all in one")]


def _unreadable(name: str, error: DataError) -> Fault:
    where = f"{name}: {error.where}" if error.where else name
    return Fault("unreadable-recording", "error", where, error.found, error.fix or "mend it, or take it out")


def _looked_at(session: Session, known: dict[str, str]) -> tuple[list[SessionFacts], list[Fault], dict[str, str]]:
    """The facts of a session (none where it has no trials), its faults, and the splits of what it shows."""
    recording = in_blocks(session.recording)
    found = survey(recording)
    together = clusters(recording.trials, found)
    faults = [_of(recording.name, fault) for fault in [*session.faults, *examine(recording, found, together)]]
    if not recording.trials:
        return [], faults, {}
    trials = placed(recording, found, together, seed=0, earlier=known)
    faults += [_of(recording.name, fault) for fault in empty_splits(bins_of(trials))]
    return [_facts(summary_of(recording, found, trials), trials)], faults, splits_of(trials)


def _of_prepared(standing: dict[str, Path], beside: Sequence[str]) -> RecordingsInspection:
    facts, faults, splits = [], [], {}
    for name, path in standing.items():
        info = read_info(path)
        assert info.recording is not None
        trials = read_trials(path)
        facts.append(_facts(info.recording, trials))
        faults += [_of(info.recording.name, fault) for fault in info.faults]
        splits[name] = splits_of(trials)
    faults += [*unlike_sessions(facts), *leaks_between_sessions(splits)]
    if beside:
        found = (
            f"{counted(len(beside), 'session')} beside the prepared ones {'is' if len(beside) == 1 else 'are'} not read"
        )
        faults.append(Fault("not-prepared", "warning", some(beside), found, "prepare them too, or name them alone"))
    return RecordingsInspection(facts, ordered(faults))


def _facts(summary: RecordingSummary, trials: Sequence[StoredTrial]) -> SessionFacts:
    stimuli = len({trial.group for trial in trials})
    whole = [trial.group for trial in trials if trial.offset == 0]  # later parts of a trial repeat nothing
    return SessionFacts(
        name=summary.name,
        subject=summary.subject,
        units=len(summary.units),
        bins=sum(summary.bins.values()),
        rate=summary.rate,
        size=(summary.height, summary.width),
        stimulus=summary.stimulus,
        kinds=summary.kinds,
        trials=len(trials),
        stimuli=stimuli,
        repeats=len(whole) - len(set(whole)),
        valid=summary.valid,
        spikes_a_second=float(np.median(summary.mean_counts) * summary.rate),
        behaviour=summary.behaviour_names,
        eye=summary.eye,
        splits=summary.seconds,
    )


def _of(name: str, fault: Fault) -> Fault:
    return Fault(fault.code, fault.severity, f"{name}: {fault.where}", fault.found, fault.fix)

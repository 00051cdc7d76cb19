"""From sessions to datasets: one folder a session, one split for what several sessions show."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from visiontune.data.dataset_info import INFO_NAME, read_info
from visiontune.data.faults import Fault, leak_across_splits
from visiontune.data.recordings.arrays import Session
from visiontune.data.recordings.convert import at_rate
from visiontune.data.recordings.readers import holders, is_recordings, names_in, read_session, sessions
from visiontune.data.recordings.store import contents, write_recording
from visiontune.errors import DataError
from visiontune.progress import note, progress, warn
from visiontune.words import command, counted


def prepare_recordings(
    source: Path | Sequence[Path],
    out: Path,
    *,
    seed: int = 0,
    rate: float | None = None,
    strict: bool = False,
    beside: Sequence[Path] = (),
) -> list[Path]:
    """Write each session of `source` as a dataset `out`/NAME; those that stand already are left as they are.

    `source` is one session or a folder of sessions (`readers.sessions`), or several of these. `rate`: bins a second to
    convert to (`convert.at_rate`). A stimulus that several sessions show gets one split in all of them, where nobody
    gave it others, and that of the prepared ones in `out` and `beside`. Returns the datasets' folders, sorted by name.
    Raises DataError, with `strict` also where a trial would be left out.
    """
    found = sessions(*([source] if isinstance(source, Path) else source))
    for path in found.values():
        if out.resolve().is_relative_to(path.resolve()):
            raise DataError(
                "the datasets would lie inside the session they are made from", where=str(out), fix="use another --out"
            )
    for one in [source] if isinstance(source, Path) else source:
        if below := holders(one):
            warn(f"sessions in folders below {one} are not read: {', '.join(below)}")
    earlier = _splits([*beside, *prepared(out).values()])
    paths = []
    with progress("preparing", len(found), "sessions") as advance:
        for name, path in found.items():
            session = _converted(read_session(path), rate)
            known = {content: split for own in earlier.values() for content, split in own.items()}
            paths.append(
                write_recording(session.recording, out / name, seed, earlier=known, known=session.faults, strict=strict)
            )
            earlier |= _splits(paths[-1:])
            advance(1, name)
    for path in paths:
        info = read_info(path)
        if info.left_out:
            out_of_it = counted(len(info.left_out), "trial")
            warn(f"{path.name}: {out_of_it} left out: {info.left_out[0].found}")
        if info.faults:
            warn(f"{path.name}: {counted(len(info.faults), 'fault')}, listed by `{command('inspect', path)}`")
    _warn(leaks_between_sessions(earlier))
    return paths


def warn_of_leaks(paths: Sequence[Path]) -> None:
    """Say which frames stand in several splits of these prepared recordings."""
    _warn(leaks_between_sessions(_splits(paths)))


def _splits(paths: Sequence[Path]) -> dict[str, dict[str, str]]:
    """The splits of what prepared recordings show, by their names and contents."""
    return {path.resolve().name: contents(path) for path in paths}


def _warn(faults: Sequence[Fault]) -> None:
    for fault in faults:
        warn(f"{fault.found}: {fault.where}; {fault.fix}")


def prepared(folder: Path) -> dict[str, Path]:
    """The prepared recordings in a folder, or the folder itself, by name, sorted."""
    places = [folder] if (folder / INFO_NAME).is_file() else [path.parent for path in folder.glob(f"*/{INFO_NAME}")]
    return {path.resolve().name: path for path in sorted(places) if _is_prepared(path / INFO_NAME)}


def unprepared(folder: Path) -> list[str]:
    """The sessions that lie beside prepared ones in a folder and are none of these, by name: they are not read."""
    standing = prepared(folder)
    return [name for name in names_in(folder) if name not in standing] if standing else []


def holds_recordings(path: Path) -> bool:
    """Whether `inspect_recordings` is for this path: sessions, raw or prepared."""
    return is_recordings(path) or bool(prepared(path))


def _is_prepared(file: Path) -> bool:
    try:
        value = json.loads(file.read_bytes())
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("seen") == "clips"


def _converted(session: Session, rate: float | None) -> Session:
    """The session at another rate, which is said; as it is without one."""
    if rate is None:
        return session
    conversion = at_rate(session.recording, rate)
    for line in conversion.report:
        note(f"{session.recording.name}: {line}")
    return Session(conversion.recording, session.faults)


def same_rate(one: float, other: float) -> bool:
    """Whether two rates are one, but for how they were measured: within 0.1 %."""
    return math.isclose(one, other, rel_tol=1e-3)


class Shown(Protocol):
    """What decides whether sessions can be learned together."""

    @property
    def name(self) -> str: ...
    @property
    def rate(self) -> float: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def stimulus(self) -> str: ...


def unlike(first: Shown, other: Shown) -> tuple[str, str] | None:
    """How another session differs from the first, so that they cannot be learned together, and the fix; None where they
    can."""
    for what, its, wanted, alike, fix in (
        ("bins a second", other.rate, first.rate, same_rate(other.rate, first.rate), "prepare all with one --rate"),
        ("frames of (height, width)", other.size, first.size, other.size == first.size, "resize the stimuli"),
        (
            "frames of type", other.stimulus, first.stimulus, other.stimulus == first.stimulus,
            "store all stimuli in one type",
        ),
    ):  # fmt: skip
        if not alike:
            return f"{first.name} has {what} {wanted}, and {other.name} has {its}", fix
    return None


def unlike_sessions(sessions: Sequence[Shown]) -> list[Fault]:
    """Sessions that cannot be learned together with the first."""
    faults = []
    for other in sessions[1:]:
        if (difference := unlike(sessions[0], other)) is not None:
            found, fix = difference
            fault = Fault("unlike-sessions", "warning", other.name, f"{found}: not to be learned together", fix)
            faults.append(fault)
    return faults


def leaks_between_sessions(splits: Mapping[str, Mapping[str, str]]) -> list[Fault]:
    """Stimuli that stand in several splits, each in another session. `splits`: by session and content."""
    shown: dict[str, dict[str, str]] = defaultdict(dict)
    for name, own in splits.items():
        for content, split in own.items():
            shown[content][name] = split
    leaks = sorted({tuple(sorted(where.items())) for where in shown.values() if len(set(where.values())) > 1})
    faults = leak_across_splits(
        [[f"{name} ({split})" for name, split in leak] for leak in leaks], "stimuli of sessions"
    )
    how = "prepare these sessions together from the start, or give such stimuli one split"
    return [replace(fault, fix=f"{how}: scores on the held-out splits are too good otherwise") for fault in faults]

"""The formats that recordings come in, and the sessions that a folder or a file holds. Another format is one file here
and one line in FORMATS."""

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data.dataset_info import INFO_NAME
from visiontune.data.recordings import hdf5, nwb, sensorium
from visiontune.data.recordings.arrays import NAMES, Session, session_from
from visiontune.errors import DataError, MachineError

META_NAME = "meta.json"


@dataclass(frozen=True)
class Format:
    """A reader: `detect` says whether a path is its own, by its name and what lies there; `read` reads one session.
    `names`, of files, lists the arrays in one without reading them."""

    detect: Callable[[Path], bool]
    read: Callable[[Path], Session]
    names: Callable[[Path], Iterable[str]] | None = None


def read_session(path: Path) -> Session:
    """The session in a folder or a file. DataError where it is none, or one that cannot be read."""
    for candidate in FORMATS:
        if candidate.detect(path):
            return candidate.read(path)
    raise DataError("this is no recording", where=str(path), fix=LAYOUTS)


def sessions(*sources: Path) -> dict[str, Path]:
    """Where the sessions of some sources lie, by name, sorted: a source itself, or what lies in its folder. DataError
    for two of one name, and where a source holds none."""
    found: dict[str, Path] = {}
    for source in sources:
        inside = _found_in(source)
        if not inside:
            raise DataError("there is no recording here", where=str(source), fix=LAYOUTS)
        for path in sorted(inside):
            name = _session_name(path)
            if name in found:
                fix = "rename one, or prepare them apart"
                raise DataError(f"two sessions are called {name}", where=f"{found[name]}, {path}", fix=fix)
            found[name] = path
    return dict(sorted(found.items()))


def is_recordings(source: Path) -> bool:
    """Whether a path is a session, or a folder that holds some; prepared ones are not meant."""
    return bool(_found_in(source))


def names_in(source: Path) -> list[str]:
    """What the sessions that lie in a folder are called, sorted; prepared ones are not meant."""
    return sorted({_session_name(path) for path in _found_in(source)})


def holders(source: Path) -> list[str]:
    """The names of the folders in a folder of sessions that are none, and hold some."""
    if not source.is_dir() or _is_one(source):
        return []
    inside = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path.name for path in inside if not _is_one(path) and _found_in(path)]


def _is_one(path: Path) -> bool:
    """Whether a path is one session by its name and layout."""
    return any(candidate.detect(path) for candidate in FORMATS)


def _session_name(path: Path) -> str:
    """What a session is called: as its folder, or as its file without the ending."""
    path = path.resolve()
    return path.name if path.is_dir() else path.stem


def _found_in(source: Path) -> list[Path]:
    """The source, where it is a session by its name, or the sessions in its folder.

    Files in a folder must hold an array of a session: there may be others of their endings. One that cannot be opened
    is taken for a session among sessions, or where nothing else lies: reading it says what is wrong.
    """
    if any(candidate.detect(source) for candidate in FORMATS):
        return [source]
    if not source.is_dir() or (source / INFO_NAME).is_file():
        return []
    found: dict[bool | None, list[Path]] = {True: [], None: []}
    others = False
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if (is_one := _is_session(entry)) is False:
                others = True
            else:
                found[is_one].append(Path(entry))
    return found[True] + (found[None] if found[True] or not others else [])


def _is_session(entry: os.DirEntry[str]) -> bool | None:
    """Whether what lies in a folder is a session; None for a file that cannot be opened."""
    path = Path(entry)
    for candidate in FORMATS:
        # A folder of images holds many files: all are passed over by their endings.
        if candidate.names is None:
            if entry.is_dir() and candidate.detect(path):
                return True
        elif candidate.detect(path):
            try:
                return not {"stimulus", "counts"}.isdisjoint(candidate.names(path))
            except (DataError, MachineError):
                return None
    return False


def _is_folder(path: Path) -> bool:
    known = [f"{name}.npy" for name in ("stimulus", "counts")]
    return path.is_dir() and not (path / INFO_NAME).is_file() and any((path / name).is_file() for name in known)


def _read_folder(path: Path) -> Session:
    """A folder of NAME.npy (memory-mapped) and NAME.json, and of facts in meta.json."""
    values: dict[str, Any] = {}
    others: list[str] = []
    for file in sorted(path.iterdir()):
        if file.suffix not in (".npy", ".json") or file.name == META_NAME:
            continue
        if file.stem in NAMES:
            values[file.stem] = _loaded(file) if file.suffix == ".npy" else _json(file)
        else:
            others.append(file.stem)
    if (path / META_NAME).is_file():
        meta = _json(path / META_NAME)
        if not isinstance(meta, dict):
            raise DataError("meta.json holds no object", where=str(path / META_NAME), fix='write {"rate": 120, ...}')
        values = {name: value for name, value in meta.items() if name in NAMES} | values
        others += [name for name in meta if name not in NAMES]
    return session_from(values, _session_name(path), str(path), others)


def _read_npz(path: Path) -> Session:
    """An .npz file: arrays, and facts as scalars or arrays of strings."""
    with _opened_npz(path) as file:
        values = {name: file[name] for name in NAMES if name in file.files}
        others = [name for name in file.files if name not in NAMES]
    plain = {name: value.item() if value.ndim == 0 else value for name, value in values.items()}
    return session_from(plain, _session_name(path), str(path), others)


def _npz_names(path: Path) -> list[str]:
    with _opened_npz(path) as file:
        return file.files


@contextmanager
def _opened_npz(path: Path) -> Iterator[Any]:
    """An .npz file, open to read; DataError where it is none, as an .npy file of that name, or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"the file cannot be read: {error}", where=str(path), fix="write it with numpy.savez"
        ) from error


def _loaded(file: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"the array cannot be read: {error}", where=str(file), fix="write it with numpy.save, of numbers or strings"
        ) from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"this is not JSON: {error}", where=str(file), fix="correct the file") from error


FORMATS = (
    Format(sensorium.detect, sensorium.read),
    Format(_is_folder, _read_folder),
    Format(lambda path: path.suffix == ".npz" and path.is_file(), _read_npz, _npz_names),
    Format(lambda path: path.suffix == ".nwb" and path.is_file(), nwb.read, hdf5.names),
    Format(lambda path: path.suffix in (".h5", ".hdf5") and path.is_file(), hdf5.read, hdf5.names),
)
LAYOUTS = (
    "a session is a folder with stimulus.npy, counts.npy and meta.json, one .npz, .h5 or .nwb file, or a folder of "
    "SENSORIUM's layout; docs/recordings.md has their names and shapes"
)

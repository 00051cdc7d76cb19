"""The formats that recordings come in, and the sessions that a folder or a file holds. Another format is one file here
and one line in FORMATS."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data.dataset_info import INFO_NAME
from visiontune.data.recordings import hdf5, nwb, sensorium
from visiontune.data.recordings.arrays import ARRAYS, CLOCKS, Session, session_of
from visiontune.errors import DataError

META_NAME = "meta.json"


@dataclass(frozen=True)
class Format:
    """A reader: `detect` says whether a path is its own, by its name and what lies there; `read` reads one session."""

    name: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], Session]


def read_session(path: Path) -> Session:
    """The session in a folder or a file. DataError where it is none, or one that cannot be read."""
    for candidate in FORMATS:
        if candidate.detect(path):
            return candidate.read(path)
    raise DataError("this is no recording", where=str(path), fix=LAYOUTS)


def sessions(source: Path) -> dict[str, Path]:
    """Where the sessions of a source lie, by name, sorted: the source itself, or what lies in its folder."""
    if _is_session(source):
        return {session_name(source): source}
    inside = [path for path in _children(source) if _is_session(path)]
    found: dict[str, Path] = {}
    for path in sorted(inside):
        name = session_name(path)
        if name in found:
            raise DataError(
                f"two sessions are called {name}", where=f"{found[name]}, {path}", fix="rename one, or take it out"
            )
        found[name] = path
    if not found:
        raise DataError("there is no recording here", where=str(source), fix=LAYOUTS)
    return found


def is_recordings(source: Path) -> bool:
    """Whether a path is a session, or a folder that holds some; prepared ones are not meant."""
    return _is_session(source) or any(_is_session(path) for path in _children(source))


def session_name(path: Path) -> str:
    """What a session is called: as its folder, or as its file without the ending."""
    path = path.resolve()
    return path.name if path.is_dir() else path.stem


def _is_session(path: Path) -> bool:
    return any(candidate.detect(path) for candidate in FORMATS)


def _children(source: Path) -> list[Path]:
    if not source.is_dir() or (source / INFO_NAME).is_file():
        return []
    return [path for path in source.iterdir() if not path.name.startswith(".")]


def _is_folder(path: Path) -> bool:
    known = [f"{name}.npy" for name in ("stimulus", "counts")]
    return path.is_dir() and not (path / INFO_NAME).is_file() and any((path / name).is_file() for name in known)


def read_folder(path: Path) -> Session:
    """A folder of NAME.npy (memory-mapped) and NAME.json, and of facts in meta.json."""
    values: dict[str, Any] = {}
    for file in sorted(path.iterdir()):
        if file.suffix == ".npy":
            values[file.stem] = _loaded(file)
        elif file.suffix == ".json" and file.name != META_NAME:
            values[file.stem] = _json(file)
    if (path / META_NAME).is_file():
        meta = _json(path / META_NAME)
        if not isinstance(meta, dict):
            raise DataError("meta.json holds no object", where=str(path / META_NAME), fix='write {"rate": 120, ...}')
        values = meta | values
    return session_of(values, session_name(path), str(path))


def read_npz(path: Path) -> Session:
    """An .npz file: arrays, and facts as scalars or arrays of strings."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"the file cannot be read: {error}", where=str(path), fix="write it with numpy.savez"
        ) from error
    plain = {name: value.item() if value.ndim == 0 else value for name, value in values.items()}
    return session_of(plain, session_name(path), str(path))


def _loaded(file: Path) -> np.ndarray:
    try:
        mapped = file.stem in (*ARRAYS[:5], *CLOCKS)
        return np.asarray(np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False))
    except ValueError as error:
        raise DataError(
            f"the array cannot be read: {error}", where=str(file), fix="write it with numpy.save, of numbers or strings"
        ) from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"this is not JSON: {error}", where=str(file), fix="correct the file") from error


FORMATS = (
    Format("SENSORIUM folder", sensorium.detect, sensorium.read),
    Format("folder of arrays", _is_folder, read_folder),
    Format("NPZ", lambda path: path.suffix == ".npz" and path.is_file(), read_npz),
    Format("NWB", lambda path: path.suffix == ".nwb" and path.is_file(), nwb.read),
    Format("HDF5", lambda path: path.suffix in (".h5", ".hdf5") and path.is_file(), hdf5.read),
)
LAYOUTS = (
    "a session is a folder with stimulus.npy, counts.npy and meta.json, one .npz, .h5 or .nwb file, or a folder of "
    "SENSORIUM's layout; docs/recordings.md has their names and shapes"
)

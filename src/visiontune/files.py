"""Files that are either whole or absent: written aside, synced, renamed."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visiontune.errors import MachineError

# Why no folder can be made in a place, whatever is done elsewhere on the disk.
_NO_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they do not stand yet. Raises MachineError where none can be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise MachineError(
            f"No folder can be made here: {os.strerror(error.errno)}.",
            where=str(path),
            fix="choose another place, or see that its folder may be written to",
        ) from error


@contextmanager
def full_disk_said(
    out: Path, fix: str = "make room and run the same command again: it goes on where it stopped"
) -> Iterator[None]:
    """Say a full disk as MachineError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MachineError(
            "the disk is full; nothing that stood was damaged",
            where=str(out),
            fix=fix,
        ) from error


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Force a file's bytes to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is synced and renamed over `path`, else removed."""
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        sync_file(aside)
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `path`; on success it is synced and takes `path`'s place, else it is removed.

    A kill between the two renames that replace an existing folder leaves the old one beside as `.NAME.old`.
    """
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in sorted(aside.rglob("*")):
            if file.is_file():
                sync_file(file)
            else:
                sync_folder(file)
        sync_folder(aside)
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        aside.rename(path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole."""
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as one compressed .npz, whole."""
    import numpy as np

    with written_whole(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **arrays)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> dict[str, int | str]:
    """What a file is known again by: {"bytes", "sha256"}."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def is_same_file(path: Path, known: Mapping[str, Any]) -> bool:
    """Whether a file is there and has that fingerprint; its size is looked at first."""
    return path.is_file() and path.stat().st_size == known["bytes"] and file_sha256(path) == known["sha256"]

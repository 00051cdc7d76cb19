"""A lock file that one process holds at a time; a kill frees it."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from visiontune.errors import RunError
from visiontune.files import make_folder

PATIENCE_SECONDS = 1.0


def is_held(path: Path) -> bool:
    """Whether another process holds the lock file `path`, which is made where there is none."""
    with path.open("a") as file:
        if not _try_lock(file):
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
        return False


def _try_lock(file: IO[str]) -> bool:
    """Lock an open file, unless another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held(path: Path, what: str, where: Path, fix: str) -> Iterator[None]:
    """Hold the lock file `path`; RunError where another process does: "Process N `what`", with `where` and `fix`."""
    make_folder(path.parent)
    with path.open("a+") as file:
        # The workers of a process that was killed hold its lock for some milliseconds more.
        until = time.monotonic() + PATIENCE_SECONDS
        while not _try_lock(file):
            if time.monotonic() > until:
                file.seek(0)
                process = file.read().strip() or "unknown"
                raise RunError(f"Process {process} {what}", where=str(where), fix=fix)
            time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            # Closing would not do: a worker that was forked meanwhile has the same open file.
            fcntl.flock(file, fcntl.LOCK_UN)

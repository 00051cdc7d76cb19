"""Work that is killed at a chosen moment, for tests of what stands then and what a second try makes of it."""

import gc
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

Counted = Callable[[Callable[..., Any]], Callable[..., Any]]


def killed(moment: int, work: Callable[[Counted], None]) -> bool:
    """Do `work` in a forked child that dies by SIGKILL at its `moment`-th counted call; whether it got to its end.

    `work` is given the function that makes another one counted. Forked, so that what it changes stays in the child.
    """

    def child() -> None:
        gc.disable()  # it would copy all that the parent holds
        left = moment

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return function(*arguments, **named)

            return call

        work(counted)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def count_changes_of_the_disk(counted: Counted) -> None:
    """Count every change that a preparation makes to the disk beside the bytes of its files."""
    for name in ("replace", "unlink", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    shutil.rmtree = counted(shutil.rmtree)
    shutil.copyfile = counted(shutil.copyfile)

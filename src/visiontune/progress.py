"""What long work says while it runs: a bar on a terminal, lines in a log; always on standard error."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called with the number of units just done, and a few words on how it goes."""

    def __call__(self, done: int, status: str = "") -> None: ...


LOG_LINE_SECONDS = 15.0


def note(text: str) -> None:
    """Say one line to the person who watches."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Say one line that asks for attention."""
    note(f"warning: {text}")


@contextmanager
def progress(title: str, total: int, unit: str = "", *, show: bool = True) -> Iterator[Advance]:
    """Show how far `total` units of work have come; call the yielded function with each number of units done.

    With `show` off nothing is said: of several processes that do the same, one speaks.
    """
    if not show:
        yield lambda done, status="": None
    elif sys.stderr.isatty():
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        with _lines(title, total, unit) as advance:
            yield advance


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, status="")

        def advance(done: int, status: str = "") -> None:
            bar.update(task, advance=done, status=status)

        yield advance


@contextmanager
def _lines(title: str, total: int, unit: str) -> Iterator[Advance]:
    started = said = time.monotonic()
    finished = 0

    def advance(done: int, status: str = "") -> None:
        nonlocal finished, said
        finished += done
        now = time.monotonic()
        if now - said >= LOG_LINE_SECONDS:
            said = now
            note(f"{title}: {finished}/{total} {unit}, {now - started:.0f} s  {status}".rstrip())

    yield advance
    note(f"{title}: {finished}/{total} {unit}, {time.monotonic() - started:.1f} s")

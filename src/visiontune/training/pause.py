"""Requests to pause a run: control.json, SIGTERM, Ctrl-C. All mean: checkpoint at the end of this step, then stop."""

import signal
import threading
from types import FrameType
from typing import Any, Self

from visiontune.progress import note
from visiontune.run import Run

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PauseRequests:
    """While it is entered, signals ask for a pause instead of ending the process; a second one ends it at once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._signalled = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there may Python take signals
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        note(f"{signal.Signals(number).name}: pausing at the end of this step; once more ends it at once")
        signal.signal(number, self._before[signal.Signals(number)])

    def asked(self) -> bool:
        """Whether a pause was asked for."""
        return self._signalled or self._run.pause_asked()

    def clear(self) -> None:
        """Forget the request, now that it is met."""
        self._signalled = False
        self._run.clear_control()

"""Training that is asked to pause at a chosen step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from visiontune.errors import PausedError
from visiontune.training import loop


@contextmanager
def paused_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is trained inside pauses at the end of this step, and has to."""
    count = loop._count

    def count_and_pause(session: Any, batches: Any) -> None:
        count(session, batches)
        if session.progress.step == step:
            session.run.ask_to_pause()

    with monkeypatch.context() as patched, pytest.raises(PausedError):
        patched.setattr(loop, "_count", count_and_pause)
        yield

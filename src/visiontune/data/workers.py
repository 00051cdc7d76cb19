"""Work shared by processes: a pure function over many tasks, its results in order.

The processes are fresh interpreters that speak over pipes. A fork would copy whatever locks the threads of a program
hold; multiprocessing's "spawn" would run the user's script again. When this process ends, even by SIGKILL, their pipe
ends, and so do they.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from visiontune.errors import MachineError

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def parallel(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """The function's results in the order of the tasks, computed by `workers` processes (1: in this one).

    Tasks are drawn when they are needed: all at once could fill the memory. An error of the function is raised here;
    MachineError when a process dies.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    started: list[_Process] = []
    idle: SimpleQueue[_Process | None] = SimpleQueue()
    for _ in range(workers):
        idle.put(None)

    def run(task: Task) -> Result:
        process = idle.get()
        if process is None:
            process = _Process()
            started.append(process)
        try:
            return process.call(function, task)
        finally:
            idle.put(process)

    waiting: deque[Future[Result]] = deque()
    threads = ThreadPoolExecutor(workers)
    try:
        for task in tasks:
            waiting.append(threads.submit(run, task))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        threads.shutdown(wait=True)
        for process in started:
            process.end()


class _Process:
    """One worker process. Not for several threads at once."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from visiontune.data.workers import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for the process that the user started
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        try:
            pickle.dump((function, task), self._to)
            self._to.flush()
            succeeded, value = pickle.load(self._from)
        except (EOFError, BrokenPipeError) as error:
            fix = "if memory ran out, use fewer workers; run the same command again: it goes on where it stopped"
            raise MachineError("a worker process ended unexpectedly", fix=fix) from error
        if not succeeded:
            raise value
        return value

    def end(self) -> None:
        self._from.close()
        with suppress(BrokenPipeError):  # it may be gone already
            self._to.close()
        self._process.wait()


def serve() -> None:
    """What a worker process does: answer each (function, task) from standard input until that ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that is printed may get between the answers
    while True:
        try:
            function, task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (True, function(task))
        except Exception as error:  # raised again where the task came from
            answer = (False, error)
        pickle.dump(answer, answers)
        answers.flush()

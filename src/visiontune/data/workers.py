"""Work shared by processes: a pure function over many tasks, its results in order."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from visiontune.errors import MachineError

Task = TypeVar("Task")
Result = TypeVar("Result")


def parallel(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """The function's results in the order of the tasks, computed by `workers` processes (1: in this one).

    The processes are joblib's: fresh interpreters, so that no lock of a thread is copied and a plain script needs no
    `__main__` guard. Tasks are drawn when they are needed: all at once could fill the memory. An error of the function
    is raised here; MachineError when a process dies.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    shared: Any = Parallel(
        n_jobs=workers,
        return_as="generator",
        pre_dispatch="2*n_jobs",
        batch_size=1,  # pyright: ignore[reportArgumentType]  # annotated by its default alone
    )
    try:
        yield from shared(delayed(function)(task) for task in tasks)
    except TerminatedWorkerError as error:
        fix = "if memory ran out, use fewer workers; run the same command again: it goes on where it stopped"
        raise MachineError("a worker process ended unexpectedly", fix=fix) from error

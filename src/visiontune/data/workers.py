"""Work shared by processes: a pure function over many tasks, its results in order.

The processes are this machine's, or those of a Ray cluster (`ray.data`).
"""

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from visiontune.errors import DataError, MachineError

Engine = Literal["processes", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
# Of Ray Data's tasks, so many a worker are handed over at a time: all at once could fill the memory.
TASKS_A_WORKER = 4
RETRIES = 3  # of a task whose process on a cluster died

_AGAIN = "if memory ran out, use fewer workers; run the same command again: it goes on where it stopped"

Task = TypeVar("Task")
Result = TypeVar("Result")


def check_engine(engine: str) -> None:
    """Raise DataError for an engine that is none of ENGINES, MachineError where it is not installed."""
    if engine not in ENGINES:
        raise DataError(f"there is no engine '{engine}'", where="--engine", fix=f"engines: {', '.join(ENGINES)}")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise MachineError("the engine 'ray' needs Ray", where="--engine ray", fix="pip install 'visiontune[ray]'")


@contextmanager
def started(engine: Engine) -> Iterator[None]:
    """Have the engine ready inside; without it, every call of `parallel` starts Ray and stops it.

    Ray that runs already in this process is used and left running. Else a cluster is joined that Ray itself finds
    (RAY_ADDRESS, `ray start`), or started on this machine, without its dashboard, and stopped at the end.
    """
    check_engine(engine)
    if engine == "processes":
        yield
        return
    import ray
    import ray.data

    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # how far the work is, whoever asked for it says
    with _no_usage_reports():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def parallel(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, engine: Engine = "processes"
) -> Iterator[Result]:
    """The function's results in the order of the tasks, computed by `workers` processes (1: in this one).

    The processes are joblib's: fresh interpreters, so that no lock of a thread is copied and a plain script needs no
    `__main__` guard. With the engine "ray" they are Ray's, even a single one; Ray starts no more at a time than it has
    CPUs. Tasks are drawn when they are needed: all at once could fill the memory. An error of the function is raised
    here; MachineError when a process dies.
    """
    if engine == "ray":
        yield from _on_ray(function, tasks, workers)
        return
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
        raise MachineError("a worker process ended unexpectedly", fix=_AGAIN) from error


def _on_ray(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    with started("ray"):
        import ray.data
        from ray import cloudpickle
        from ray.exceptions import RayError

        travel: Any = cloudpickle  # it has no types
        folder = Path.cwd()

        # Tasks and results travel as bytes, since Ray Data's rows are those of a table. An error travels as a result:
        # it is the function's own, and Ray need neither log it nor try again.
        def call(row: dict[str, bytes]) -> dict[str, bytes]:
            os.chdir(folder)  # relative paths mean the same as here
            try:
                outcome = (function(travel.loads(row["task"])), None)
            except Exception as error:
                outcome = (None, error)
            return {"outcome": travel.dumps(outcome)}

        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = context.print_on_execution_start = False
        waiting = iter(tasks)
        while some := [{"task": travel.dumps(task)} for task in islice(waiting, TASKS_A_WORKER * workers)]:
            try:
                with ray.data.DataContext.current(context), warnings.catch_warnings():
                    # Ray 2.64 is to have another way to limit how often a task is tried, and no version has it yet.
                    warnings.filterwarnings("ignore", "`ray_remote_args`", DeprecationWarning)
                    rows = ray.data.from_items(some, override_num_blocks=len(some))
                    pool = ray.data.TaskPoolStrategy(min(workers, len(some)))
                    rows = rows.map(call, compute=pool, max_retries=RETRIES)
                    outcomes = [travel.loads(row["outcome"]) for row in rows.iter_rows()]
            except RayError as error:
                said = str(error).strip().splitlines()
                raise MachineError(f"Ray could not do the work: {said[-1] if said else error!r}", fix=_AGAIN) from error
            for result, error in outcomes:
                if error is not None:
                    raise error
                yield result


@contextmanager
def _no_usage_reports() -> Iterator[None]:
    """Ray sends no reports on its use from what is started inside, unless its own switch says so already."""
    switch = "RAY_USAGE_STATS_ENABLED"
    set_here = switch not in os.environ
    os.environ.setdefault(switch, "0")
    try:
        yield
    finally:
        if set_here:
            del os.environ[switch]

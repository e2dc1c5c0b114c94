"""Worker processes: a task that crashes, hangs or uses too much memory fails alone."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from types import TracebackType
from typing import Any, Generic, TypeVar

import psutil
from loky import ProcessPoolExecutor, cpu_count

from alphafuse.errors import DatasetError

from .interrupts import hold_interrupts, wait_for_any
from .processes import start_worker

try:
    import resource
except ImportError:  # Windows: no limits
    resource = None  # type: ignore[assignment]

Key = TypeVar("Key")
Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_PER_WORKER = 2  # one running and one waiting, so that no worker waits for this process
START_SECONDS = 10.0  # extra time for a new process's first task
# reasons of failed tasks; every task decodes a clip, and stores keep these texts
CRASHED = "the decoder crashed"
HUNG = "the decoder took too long"
NO_MEMORY = "needs more memory than a decode worker may take"


def map_tasks(
    function: Callable[[Task], Result],
    tasks: Iterable[tuple[Key, Task]],
    *,
    failed: Callable[[str], Result],
    workers: int = 0,
    timeout_seconds: float = 0.0,
    memory_bytes: int = 0,
    preload: str = "",
) -> Generator[tuple[Key, Result], None, None]:
    """Apply `function` to tasks in worker processes; yield (key, result) as tasks finish.

    A `TaskPool` for one iteration; the processes end with it. `TaskPool` documents the arguments.
    """
    with TaskPool(
        function,
        failed=failed,
        workers=workers,
        timeout_seconds=timeout_seconds,
        memory_bytes=memory_bytes,
        preload=preload,
    ) as pool:
        yield from pool.map(tasks)


class TaskPool(Generic[Task, Result]):
    """Worker processes that apply a function to tasks, one iteration after another; a context manager.

    At most two tasks per worker are running, waiting or not yet yielded. A task that ends its process or takes too long
    loses only its own result and the time of starting another process.
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        *,
        failed: Callable[[str], Result],
        workers: int = 0,
        timeout_seconds: float = 0.0,
        memory_bytes: int = 0,
        preload: str = "",
    ) -> None:
        """Store the settings; processes start with their first tasks.

        Args:
            function: picklable function of a task; its exceptions end the iteration.
            failed: reason -> the result of a task that crashed its process, took too long or used too much memory.
            workers: number of processes; 0 = one per processor.
            timeout_seconds: wall-time limit per task; 0 = no limit.
            memory_bytes: memory limit per worker, beyond its memory at the start; 0 = no limit. Beyond it, allocations
                fail (on Linux; on other systems as far as they follow RLIMIT_AS).
            preload: a module that a worker imports before its memory is limited, so that it does not count.
        """
        if workers < 0:
            raise DatasetError(f"workers must be at least 0, not {workers}")
        self._failed = failed
        self._workers: list[_Worker[Any, Task, Result]] = [
            _Worker(function, timeout_seconds, memory_bytes, preload) for _ in range(workers or cpu_count())
        ]

    def map(self, tasks: Iterable[tuple[Key, Task]]) -> Generator[tuple[Key, Result], None, None]:
        """Yield (key, result) as tasks finish; one iteration at a time.

        An iteration that is left early ends the processes.

        Args:
            tasks: (key, argument) pairs; taken one by one, as workers become free.
        """
        waiting = iter(tasks)
        try:
            _fill(self._workers, waiting)
            while any(worker.queue for worker in self._workers):
                _wait_for_any(self._workers)
                for worker in self._workers:
                    while (entry := worker.finished(self._failed)) is not None:
                        _fill([worker], waiting)  # before the result is yielded: the worker continues meanwhile
                        yield entry
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes, even during a task."""
        for worker in self._workers:
            worker.end()

    def __enter__(self) -> TaskPool[Task, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker(Generic[Key, Task, Result]):
    """One process and its queue of tasks; the first one is running."""

    def __init__(
        self, function: Callable[[Task], Result], timeout_seconds: float, memory_bytes: int, preload: str
    ) -> None:
        self._function, self._timeout, self._limits = function, timeout_seconds, (memory_bytes, preload)
        self._pool: ProcessPoolExecutor | None = None
        self.queue: deque[tuple[Key, Task, Future[Result]]] = deque()
        self._deadline = math.inf  # of the running task

    def give(self, key: Key, task: Task) -> None:
        """Add a task to the queue of the process."""
        with hold_interrupts():
            is_new = self._pool is None
            try:
                future = self._process().submit(self._function, task)
            except BrokenProcessPool:
                if self.queue:  # the running task ended the process: `finished` detects that and gives this task again
                    future = Future()
                else:  # the process was killed from outside while idle
                    self.end()
                    is_new, future = True, self._process().submit(self._function, task)
            if not self.queue:
                self._start_clock(START_SECONDS if is_new else 0.0)
            self.queue.append((key, task, future))

    def _process(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # loky: its workers do not import the caller's main module, so scripts need no __main__ guard
            self._pool = ProcessPoolExecutor(
                max_workers=1, initializer=_start_worker, initargs=(os.getpid(), *self._limits)
            )
        return self._pool

    @property
    def seconds_left(self) -> float:
        """Return the time left for the running task; infinite without a limit."""
        return max(0.0, self._deadline - time.monotonic()) if self.queue else math.inf

    def finished(self, failed: Callable[[str], Result]) -> tuple[Key, Result] | None:
        """Return a task that has a result or has failed; None if there is none yet."""
        with hold_interrupts():
            if self.queue and self.queue[0][2].done():
                key, _, future = self.queue.popleft()
                self._start_clock()
                try:
                    return key, future.result()
                except BrokenProcessPool:
                    self._restart()
                    return key, failed(CRASHED)
                except MemoryError:
                    return key, failed(NO_MEMORY)
            if self.seconds_left == 0.0:
                key, _, _ = self.queue.popleft()
                self._restart()
                return key, failed(HUNG)
            return None

    def end(self) -> None:
        """End the process, even during a task, and drop its tasks."""
        self.queue.clear()
        with hold_interrupts():
            if self._pool is not None:
                self._pool.shutdown(wait=True, kill_workers=True)
                self._pool = None

    def _start_clock(self, extra: float = 0.0) -> None:
        self._deadline = time.monotonic() + self._timeout + extra if self._timeout else math.inf

    def _restart(self) -> None:
        """Start another process for the tasks that were waiting when this process ended."""
        rest = [(key, task) for key, task, _ in self.queue]
        self.end()
        for key, task in rest:
            self.give(key, task)


def _fill(pool: Sequence[_Worker[Key, Task, Any]], tasks: Iterator[tuple[Key, Task]]) -> None:
    """Fill the queue of each worker while there are tasks."""
    for _ in range(TASKS_PER_WORKER):
        for worker in pool:
            if len(worker.queue) < TASKS_PER_WORKER:
                entry = next(tasks, None)
                if entry is None:
                    return
                worker.give(*entry)


def _wait_for_any(pool: Sequence[_Worker[Any, Any, Any]]) -> None:
    """Wait until a task is finished or has taken too long."""
    wait_for_any([worker.queue[0][2] for worker in pool if worker.queue], min(worker.seconds_left for worker in pool))


def _start_worker(parent: int, memory_bytes: int, preload: str) -> None:
    start_worker(parent)
    if memory_bytes and resource is not None:
        if preload:
            import_module(preload)
        limit = psutil.Process().memory_info().vms + memory_bytes
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))  # `fetch` raises it for its libraries

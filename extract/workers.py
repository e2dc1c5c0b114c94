"""Work on files in processes of their own, which may crash without harming more than the file at hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from loky import ProcessPoolExecutor, cpu_count

from alphafuse.data.processes import end_with_parent
from alphafuse.errors import DatasetError

Key = TypeVar("Key")
Result = TypeVar("Result")


def map_files(
    function: Callable[[Path], Result],
    files: Sequence[tuple[Key, Path]],
    *,
    crashed: Result,
    workers: int = 0,
    ahead: int = 0,
) -> Generator[tuple[Key, Result], None, None]:
    """Apply `function` to files in worker processes and yield (key, result) as they are finished.

    Never many more are in flight than are being used. A file that crashes its process is yielded with `crashed`; those
    that were in flight with it are done again, each alone.

    Args:
        function: what to do with a file; it must be picklable, and its exceptions end the iteration.
        files: (what names the file to the caller, its path).
        crashed: the result of a file that ends its process.
        workers: processes; 0 = one per processor.
        ahead: results to make while the caller is busy with earlier ones, beside two per worker.
    """
    if workers < 0:
        raise DatasetError(f"workers must be at least 0, not {workers}")
    workers = min(workers or cpu_count(), max(len(files), 1))
    window = 2 * workers + ahead
    queue = list(reversed(files))
    suspects: list[tuple[Key, Path]] = []  # were in flight when a worker died
    while queue:
        with _pool(workers) as pool:
            flying: dict[Future[Result], tuple[Key, Path]] = {}
            try:
                while queue or flying:
                    while queue and len(flying) < window:
                        flying[pool.submit(function, queue[-1][1])] = queue[-1]
                        queue.pop()  # only now: submitting to a pool that just broke raises
                    for future in wait(flying, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield flying.pop(future)[0], result
            except BrokenProcessPool:
                suspects += flying.values()
            except GeneratorExit:
                pool.shutdown(wait=True, kill_workers=True)
                raise
    for key, path in suspects:
        yield key, _alone(function, path, crashed)


def _alone(function: Callable[[Path], Result], path: Path, crashed: Result) -> Result:
    """Apply `function` in a process of its own, which may die."""
    with _pool(1) as pool:
        try:
            return pool.submit(function, path).result()
        except BrokenProcessPool:
            return crashed


def _pool(workers: int) -> ProcessPoolExecutor:
    # loky: its workers don't run the caller's main module again, so scripts need no __main__ guard
    return ProcessPoolExecutor(max_workers=workers, initializer=_start_worker, initargs=(os.getpid(),))


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    end_with_parent(parent)

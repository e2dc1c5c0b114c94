"""Several devices of this machine: a process per device, each with a local engine, over disjoint clips.

The processes share the work by claims, as any extractions of one store do; if the file system has no locks, each gets
a fixed part of the clips.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from loky import cpu_count
from loky.backend.context import get_context

from alphafuse.data.dataset import Dataset
from alphafuse.errors import AlphafuseError
from alphafuse.extract.jobs import Done
from alphafuse.extract.missing import Work
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.interrupts import heed_interrupts
from alphafuse.system.processes import free_memory_bytes, start_worker

from .embedder import SHARE_OF_FREE, Embedder, load_encoders
from .local import LocalEngine

FINISHED = "finished"  # a process sends this after its part of a work


class DevicesEngine:
    """A process for each device; a context manager. Leaving it ends the processes; they write finished embeddings.

    Attributes:
        recipes: stream -> everything that decides its numbers.
    """

    recipes: dict[str, dict[str, Any]]

    def __init__(self, dataset: Dataset, settings: ExtractSettings, devices: Sequence[str]) -> None:
        """Store the settings; no process is started.

        Args:
            dataset: its encoders are the defaults of the settings.
            settings: `workers`, `models` and `max_memory_gb` are those of all processes together.
            devices: devices, one per process.
        """
        self._dataset, self._settings, self._devices = dataset, settings, tuple(devices)
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> DevicesEngine:
        """Start the processes, and wait until each has loaded the encoders.

        Raises:
            AlphafuseError: the error of one of the processes.
        """
        context, count = get_context("loky"), len(self._devices)
        share = replace(
            self._settings,
            workers=math.ceil((self._settings.workers or cpu_count()) / count),
            models=math.ceil((self._settings.models or cpu_count()) / count),
            max_memory_gb=(self._settings.max_memory_gb or SHARE_OF_FREE * free_memory_bytes() / 1e9) / count,
        )
        try:
            for number, device in enumerate(self._devices):
                parent_end, child_end = context.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(child_end, os.getpid(), self._dataset, replace(share, device=device), (number, count)),
                )
                process.start()
                child_end.close()  # so that the pipe ends with the process
                self._connections.append(parent_end)
                self._processes.append(process)
            for recipes in self._answers():
                self.recipes = recipes
            self._require_any()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def fill(self, work: Work) -> Generator[Done, None, None]:
        """Extract what is missing, and yield counts of stored clips. If a process is killed, the others do its clips.

        Raises:
            AlphafuseError: the error of one of the processes; the others store finished embeddings and end.
        """
        for connection in self._connections:
            with contextlib.suppress(OSError):  # the process has ended
                connection.send(work)
        for done in self._answers():
            yield replace(done, elsewhere=0, figures={})  # each process yields counts of its own work
        self._require_any()

    def _answers(self) -> Iterator[Any]:
        """Yield what the processes send, until each has finished or was killed."""
        waiting = list(self._connections)
        while waiting:
            for connection in wait(waiting):
                assert isinstance(connection, Connection)
                try:
                    answer = connection.recv()
                except (EOFError, OSError):  # killed: its claims ended with it
                    self._connections.remove(connection)
                    waiting.remove(connection)
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                if answer == FINISHED:
                    waiting.remove(connection)
                else:
                    yield answer

    def _require_any(self) -> None:
        if not self._connections:
            raise AlphafuseError(
                f"all processes of {', '.join(self._devices)} were killed, perhaps for lack of memory: allow less "
                "(--max-memory), then run the same command again"
            )

    def _end(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.terminate()  # it writes finished embeddings first
        for process in self._processes:
            process.join()


def _serve(
    connection: Connection, parent: int, dataset: Dataset, settings: ExtractSettings, part: tuple[int, int]
) -> None:
    """Run in a process: load the encoders, then do the works that the main process sends, until the pipe closes."""
    start_worker(parent)
    heed_interrupts()
    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):
        try:
            engine = LocalEngine(Embedder(load_encoders(dataset, settings, settings.device), settings), part=part)
            connection.send(engine.recipes)
            connection.send(FINISHED)
            while True:
                work: Work = connection.recv()
                with contextlib.closing(engine.fill(work)) as filling:
                    for done in filling:
                        if done.clips or not done.is_shared:
                            connection.send(done)
                connection.send(FINISHED)
        except AlphafuseError as error:
            connection.send(error)

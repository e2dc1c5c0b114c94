"""Stage one on several devices of this machine without Ray: a process per device, over disjoint clips.

    settings, "cuda:0,cuda:1" -> a process with an Extractor on each -> one store, one report

The processes share the work as any extractions of one store do, by claims; where the file system has no locks, by a
fixed part of the clips for each.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from loky import cpu_count
from loky.backend.context import get_context

from alphafuse.data.dataset import Dataset
from alphafuse.errors import AlphafuseError
from alphafuse.extract.memory import SHARE_OF_FREE
from alphafuse.extract.pipeline import Extractor, ExtractReport, Progress
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.interrupts import heed_interrupts
from alphafuse.system.processes import free_memory_bytes, start_worker


def extract_on_devices(
    dataset: Dataset, splits: Sequence[str], settings: ExtractSettings, *, progress: Progress | None = None
) -> list[ExtractReport]:
    """Extract what the stores of these splits lack, on all of the settings' devices at once.

    Args:
        dataset: the root.
        splits: some of "train", "val", "test".
        settings: with several devices, see `list_devices`; `workers`, `models` and `max_memory_gb` are those of all
            processes together.
        progress: is told of the clips of all.

    Raises:
        AlphafuseError: what went wrong in one of the processes; the others end with what they have in the store. A
            process that is killed leaves its clips to the others.
    """
    devices = settings.device.split(",")
    with _processes(dataset, splits, settings, devices) as connections:
        _Split(connections, None).gather()  # each has its models, and has looked at the stores
        reports = []
        for split in splits:
            for connection in connections:
                with contextlib.suppress(OSError):  # of a process that is gone
                    connection.send(split)
            found = _Split(connections, progress).gather()
            if not found:
                raise AlphafuseError(
                    f"all processes of {', '.join(devices)} were killed, by lack of memory perhaps: allow less "
                    "(--max-memory), then run the same command again"
                )
            reports.append(_merged(found))
    return reports


class _Split:
    """One round of answers: what all processes tell until each has done its part."""

    def __init__(self, connections: list[Connection], progress: Progress | None) -> None:
        self._connections, self._progress = connections, progress
        self._has_started = False

    def gather(self) -> list[Any]:
        """The answers; fewer than there are processes where some were killed."""
        answers, waiting = [], list(self._connections)
        try:
            while waiting:
                for connection in wait(waiting):
                    assert isinstance(connection, Connection)
                    try:
                        kind, content = connection.recv()
                    except (EOFError, OSError):  # killed: its claims ended with it
                        self._connections.remove(connection)
                        waiting.remove(connection)
                        continue
                    if kind == "answer":
                        answers.append(content)
                        waiting.remove(connection)
                    elif kind == "error":
                        raise content
                    else:
                        self._tell(kind, content)
        finally:
            if self._has_started and self._progress is not None:
                self._progress.stop()
        return answers

    def _tell(self, kind: str, content: dict[str, Any]) -> None:
        if self._progress is None:
            return
        if kind == "clips":
            self._progress.clips(**content)
        elif not self._has_started:  # the first process that looked knows what there was to do
            self._has_started = True
            self._progress.start(**content)


def _merged(reports: Sequence[ExtractReport]) -> ExtractReport:
    """One report of the processes' own."""
    first = reports[0]
    own = sum(report.clips - report.already for report in reports)
    return replace(
        first,
        already=first.clips - own,
        embedded={name: sum(report.embedded[name] for report in reports) for name in first.embedded},
        failures=tuple(failure for report in reports for failure in report.failures),
        seconds=max(report.seconds for report in reports),
        decode_seconds=sum(report.decode_seconds for report in reports),
        embed_seconds=sum(report.embed_seconds for report in reports),
        is_shared=all(report.is_shared for report in reports),
    )


@contextlib.contextmanager
def _processes(
    dataset: Dataset, splits: Sequence[str], settings: ExtractSettings, devices: Sequence[str]
) -> Iterator[list[Connection]]:
    """A process per device, and the connections to them; leaving the block ends them, with what they have written."""
    context, count = get_context("loky"), len(devices)
    share = replace(
        settings,
        workers=math.ceil((settings.workers or cpu_count()) / count),
        models=math.ceil((settings.models or cpu_count()) / count),
        max_memory_gb=(settings.max_memory_gb or SHARE_OF_FREE * free_memory_bytes() / 1e9) / count,
    )
    connections, started = [], []
    try:
        for number, device in enumerate(devices):
            here, there = context.Pipe()
            of_device = replace(share, device=device)
            process = context.Process(
                target=_serve, args=(there, os.getpid(), dataset, tuple(splits), of_device, (number, count))
            )
            process.start()
            there.close()  # so that its end is seen
            connections.append(here)
            started.append(process)
        yield connections
    finally:
        for process in started:
            if process.is_alive():
                process.terminate()  # it writes what it has
        for process in started:
            process.join()


class _Told(Progress):
    """Progress that goes to the main process; what other processes did, they tell themselves."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def start(self, split: str, *, clips: int, already: int) -> None:
        self._connection.send(("start", {"split": split, "clips": clips, "already": already}))

    def clips(self, *, complete: int, incomplete: int) -> None:
        self._connection.send(("clips", {"complete": complete, "incomplete": incomplete}))


def _serve(
    connection: Connection,
    parent: int,
    dataset: Dataset,
    splits: Sequence[str],
    settings: ExtractSettings,
    part: tuple[int, int],
) -> None:
    """A process: load the models, then extract the splits that the main process names, until it hangs up."""
    start_worker(parent)
    heed_interrupts()
    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):
        try:
            extractor = Extractor(dataset, settings, part=part)
            for split in splits:
                extractor.pending(split)
            connection.send(("answer", None))
            while True:
                connection.send(("answer", extractor.extract(connection.recv(), progress=_Told(connection))))
        except AlphafuseError as error:
            connection.send(("error", error))

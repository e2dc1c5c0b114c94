"""Free memory, the memory that a call takes, and worker processes that end with their main process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

_CGROUP = Path("/sys/fs/cgroup")  # limits of this container (Linux control groups, version 2)
_PROCESS = Path("/proc/self")
_watched: set[int] = set()
Result = TypeVar("Result")


def start_worker(parent: int) -> None:
    """Begin a worker process: ignore Ctrl-C, which the main process `parent` handles, and end soon after `parent`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)


def end_with_parent(parent: int) -> None:
    """End this worker process within about a second after its main process `parent` (a process id) has ended.

    Repeated calls do nothing more.
    """
    if parent not in _watched and parent != os.getpid():
        _watched.add(parent)
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def free_memory_bytes() -> int:
    """Bytes of memory that this process can still take: the machine's free memory, or less in a container."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def measure_memory(call: Callable[[], Result]) -> tuple[Result, int | None]:
    """Call a function; return its result and by how many bytes it raised this process's memory at most.

    None if the system doesn't tell (it resets the peak through Linux's /proc). Memory that was free within the process
    before isn't counted, so measure first calls.
    """
    before = psutil.Process().memory_info().rss
    try:
        (_PROCESS / "clear_refs").write_text("5")  # resets VmHWM
    except OSError:
        return call(), None
    result = call()
    peak = next(line for line in (_PROCESS / "status").read_text().splitlines() if line.startswith("VmHWM:"))
    return result, max(0, int(peak.split()[1]) * 1024 - before)

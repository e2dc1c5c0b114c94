"""Free memory, and worker processes that end with their main process."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")  # limits of this container (Linux control groups, version 2)
_watched: set[int] = set()


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

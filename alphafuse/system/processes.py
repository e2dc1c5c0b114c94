"""What both stages ask of the machine: memory that is free, and workers that end with their main process."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")  # a container's own limits (Linux control groups, version 2)
_watched: set[int] = set()


def start_worker(parent: int) -> None:
    """What a worker process does first: leave Ctrl-C to `parent`, its main process, and end soon after it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)


def end_with_parent(parent: int) -> None:
    """End this process soon after `parent`, its main process, is gone: a worker whose main was killed has no use.

    Call it in the worker, as often as you like; `parent` is the `os.getpid()` of the main process.
    """
    if parent not in _watched and parent != os.getpid():
        _watched.add(parent)
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def free_memory_bytes() -> int:
    """Memory that this process could still take: what the machine has left, or what its container may."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))

"""What worker processes of both stages share."""

from __future__ import annotations

import os
import threading
import time

_watched: set[int] = set()


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

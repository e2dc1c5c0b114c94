"""A folder of this process for temporary files, such as objects fetched from an object store.

The folder is removed when the process ends. A killed process leaves its folder behind; the next process of the same
user on that machine that makes one removes it. A lock on the folder tells whether its process is alive, also if that
process runs in another container.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: a killed process's folder stays until the system clears its temporary files
    fcntl = None  # type: ignore[assignment]

PREFIX = "alphafuse-scratch-"
_folders: dict[int, Path] = {}  # process id -> its folder: a forked process makes a new one
_lock = threading.Lock()


def scratch_folder() -> Path:
    """This process's folder, below TMPDIR; raise `OSError` if none can be made."""
    with _lock:
        folder = _folders.get(os.getpid())
        if folder is None or not folder.is_dir():
            folder = _folders[os.getpid()] = _make()
        return folder


def _make() -> Path:
    _remove_leftovers(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # readable by this user only
        lock = _lock_folder(folder, wait=True)
        if lock != -1:  # otherwise another process removed it as a leftover between the two lines above
            atexit.register(_remove_at_exit, os.getpid(), folder)
            return folder


def _remove_at_exit(process: int, folder: Path) -> None:
    if os.getpid() == process:  # a forked process inherits the call, but the folder is its parent's
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(where: Path) -> None:
    for folder in where.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if fcntl is None or folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = _lock_folder(folder, wait=False)
            if lock >= 0:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock_folder(folder: Path, *, wait: bool) -> int:
    """Lock a folder and return the file descriptor that holds the lock; -1 if another process has it or it is gone.

    -2 where the system has no locks: then leftovers stay.
    """
    if fcntl is None:
        return -2
    number = -1
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(number), folder.lstat()):
            return number
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        if wait:
            return -2
    if number >= 0:
        os.close(number)
    return -1

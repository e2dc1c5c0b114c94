"""A folder of this process for temporary files, such as what is fetched from an object store.

It goes when the process ends. One that was killed leaves its folder behind, with what it held at that moment; the next
process of the same user on that machine that needs one removes it. A lock on the folder says whether its process lives,
also of one in another container.
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
except ImportError:  # Windows: what a killed process leaves stays until the system clears its temporary folder
    fcntl = None  # type: ignore[assignment]

PREFIX = "alphafuse-scratch-"
_own: dict[int, Path] = {}  # process -> its folder: a forked process makes its own
_lock = threading.Lock()


def scratch_folder() -> Path:
    """This process's folder, below TMPDIR; `OSError` where none can be made."""
    with _lock:
        folder = _own.get(os.getpid())
        if folder is None or not folder.is_dir():
            folder = _own[os.getpid()] = _make()
        return folder


def _make() -> Path:
    _remove_leftovers(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # only this user may look into it
        held = _held(folder, wait=True)
        if held != -1:  # else another process took it for a leftover, between the two lines above
            atexit.register(_remove_own, os.getpid(), folder)
            return folder


def _remove_own(process: int, folder: Path) -> None:
    if os.getpid() == process:  # a forked process has inherited this, and the folder isn't its own
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(where: Path) -> None:
    for folder in where.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if fcntl is None or folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            held = _held(folder, wait=False)
            if held >= 0:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)


def _held(folder: Path, *, wait: bool) -> int:
    """Lock a folder for as long as the number returned stays open; -1 when another has it, or it is gone.

    -2 where there are no locks: then nobody removes anything.
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

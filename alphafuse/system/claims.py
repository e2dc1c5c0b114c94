"""Claims: several processes fill one store without extracting a clip twice.

A claim is a lock on one byte of the file `.claims` in the store's folder; the byte's offset is a hash of the clip_id.
Locks belong to the open file: they end when their process ends, even if it is killed, and leave nothing to clean up.
The steps of a process:

    claim some clips -> drop those `finished` by others -> embed -> write the shard -> release

The shard is written before the release, so the next process that claims a clip finds it finished.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from alphafuse.errors import StoreError

from .files import to_path
from .remote import is_remote

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".claims"
_CLIP_BITS = 62  # offsets are signed 64-bit numbers
_PRESENCE = 1 << _CLIP_BITS  # the byte after those of the clips: each process holds a shared lock on it
_COMMITS = _PRESENCE + 1  # the next byte: a shared lock while a shard is written for the run that holds all claims
_MOST_RUN = 200  # largest length of a run's name, in bytes
_TAKEN = (errno.EAGAIN, errno.EACCES)


class Claims:
    """Claims of one process on the clips of one store: a context manager, to be used by any thread.

    Two objects exclude each other, on Linux also in one process. Processes that are forked while it is open share its
    claims, which then last until all of them end; spawned processes do not share them.

    Attributes:
        is_shared: False if locks are not available (a URL, a read-only folder, a file system without locks, Windows).
            Then every claim succeeds, and two extractions at once repeat clips. Rows stored twice are read once.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the store's file of claims; make it if it does not exist."""
        self.path = to_path(folder) / NAME
        self._held: dict[str, int] = {}  # clip_id -> offset of its byte
        self._has_all = self._is_fenced = False
        self._lock = threading.Lock()
        self._file: int | None = None
        self._open()

    @property
    def is_shared(self) -> bool:  # noqa: D102  # see above
        return self._file is not None

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Claims({str(self.path)!r}, {len(self._held)} held{'' if self.is_shared else ', not shared'})"

    def claim(self, clip_ids: Iterable[str]) -> list[str]:
        """Claim clips without waiting; return those that are newly claimed.

        It takes a few microseconds per clip while all processes together hold some thousands.
        """
        with self._lock:
            if self.is_shared and not self._is_current():  # the file was removed
                self._open()
            got = []
            for clip_id in clip_ids:
                place = _place(clip_id)
                if clip_id not in self._held and (self._has_all or self._take(place)):
                    self._held[clip_id] = place
                    got.append(clip_id)
            if got:
                self._fence("")
            return got

    def claim_all(self, run: str = "") -> bool:
        """Claim every clip, also future ones, until `close`.

        It waits only for shards that are being written for an earlier run (`committing`): they are in the store when it
        returns, and the earlier run can't write more.

        Args:
            run: name of this run, for the processes that write its shards.

        Returns:
            Whether it succeeded: False, with nothing changed, if another process has claimed a clip. True if claims are
            not shared.
        """
        with self._lock:
            if self.is_shared and not self._is_current():
                self._open()
            self._has_all = self._has_all or self._take(0, _PRESENCE)
            if self._has_all:
                self._fence(run)
            return self._has_all

    def _fence(self, run: str) -> None:
        """Allow only this run to commit shards from now on. Call it once, while holding claims."""
        if self._file is None or self._is_fenced:
            return
        self._is_fenced = True
        if os.pread(self._file, _MOST_RUN, 0) == run.encode():
            return
        with contextlib.suppress(OSError):  # locks are no longer available: continue without them
            _set_lock(self._file, _COMMITS, _EXCLUSIVE, wait=True)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, run.encode(), 0)
            _set_lock(self._file, _COMMITS, _UNLOCK)

    def release(self, clip_ids: Iterable[str]) -> None:
        """Release claims; clips that are not held are ignored. After `claim_all`, only `close` releases them."""
        with self._lock:
            for clip_id in clip_ids:
                place = self._held.pop(clip_id, None)
                if place is not None and self._file is not None and not self._has_all:
                    _set_lock(self._file, place, _UNLOCK)

    def close(self) -> None:
        """Release all claims; the last process removes the file."""
        file, self._file = self._file, None
        self._held.clear()
        self._has_all = False
        if file is None:
            return
        with contextlib.suppress(OSError):
            _set_lock(
                file, _PRESENCE, _UNLOCK
            )  # before the check below: if two close at once, one must see that it is the last
            if _set_lock(file, _PRESENCE, _EXCLUSIVE) and _is_same(file, self.path):
                self.path.unlink()
        os.close(file)

    def _open(self) -> None:
        """Open the current file, and repeat there the claims that are held."""
        if self._file is not None:
            os.close(self._file)
        self._file = _open_present(self.path) if fcntl is not None and not is_remote(self.path) else None
        if self._has_all:
            self._has_all = self._take(0, _PRESENCE)
        for place in self._held.values():
            self._take(place)

    def _is_current(self) -> bool:
        return self._file is not None and _is_same(self._file, self.path)

    def _take(self, place: int, length: int = 1) -> bool:
        if self._file is None:
            return True
        try:
            return _set_lock(self._file, place, _EXCLUSIVE, length=length)
        except OSError:  # the file system has run out of locks: repeating a clip is better than losing it
            return True


@contextlib.contextmanager
def committing(folder: Path, run: str) -> Iterator[None]:
    """Context in which any process on any machine writes a shard for the run that has claimed the whole store.

    Raises:
        StoreError: another run has claimed clips since this run ended, or this machine sees another folder.
    """
    advice = (
        "every machine of the cluster must see the store (a shared file system), or the root's stores must be a URL"
    )
    try:
        file = os.open(folder / NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise StoreError(f"{folder} isn't the same folder on {socket.gethostname()}: {advice}") from None
    try:
        with contextlib.suppress(OSError):
            _set_lock(file, _COMMITS, _SHARED, wait=True)
        if os.pread(file, _MOST_RUN, 0) != run.encode():
            raise StoreError(f"another extraction has taken over {folder}: nothing is written for the earlier one")
        yield
    finally:
        os.close(file)


def _place(clip_id: str) -> int:
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _CLIP_BITS)


def _open_present(path: Path) -> int | None:
    """Open the file and lock its presence byte; return its descriptor, or None if locks are not available."""
    while True:
        file = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # do not follow a link, do not wait for the writer of a named pipe
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            _set_lock(file, _PRESENCE, _SHARED, wait=True)  # waits at most while another process removes the file
            if _is_same(file, path):
                return file
            os.close(file)  # the file was removed: make it again
        except OSError:
            if file is not None:
                os.close(file)
            return None


def _is_same(file: int, path: Path) -> bool:
    """Whether the file at `path` is the open one."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


if fcntl is not None:
    _SHARED, _EXCLUSIVE, _UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
    _OWN_LOCKS = hasattr(fcntl, "F_OFD_SETLK")
else:
    _SHARED = _EXCLUSIVE = _UNLOCK = 0


def _set_lock(file: int, place: int, kind: int, *, length: int = 1, wait: bool = False) -> bool:
    """Lock or unlock bytes; return False if another holder has locked one of them.

    On Linux the lock belongs to the open file; on other systems to the process.

    Raises:
        OSError: locks are not available.
    """
    try:
        if _OWN_LOCKS:
            lock = struct.pack("hhqqi0q", kind, os.SEEK_SET, place, length, 0)  # struct flock
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, lock)
        else:
            how = {_SHARED: fcntl.LOCK_SH, _EXCLUSIVE: fcntl.LOCK_EX, _UNLOCK: fcntl.LOCK_UN}[kind]
            fcntl.lockf(file, how if wait or kind == _UNLOCK else how | fcntl.LOCK_NB, length, place, os.SEEK_SET)
    except OSError as error:
        if error.errno in _TAKEN and not wait:
            return False
        raise
    return True

"""Which process extracts which clip, so that several processes fill one store and do no clip twice.

A claim is a lock on one byte of the file `.claims` in the store's folder; the byte's place follows from the clip_id.
Locks belong to the open file, so they end with their process however it ends, and nothing is ever left to clean up.
What a process does with them:

    claim some clips -> drop those that are `finished` meanwhile -> embed -> write the shard -> release

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
_PRESENCE = 1 << _CLIP_BITS  # the byte behind those of the clips: a shared lock on it says that someone is here
_COMMITS = _PRESENCE + 1  # and the next: a shared lock on it says that a shard is being written for whoever has claimed
_MOST_RUN = 200  # bytes of the name of a run
_TAKEN = (errno.EAGAIN, errno.EACCES)


class Claims:
    """Claims of one process on the clips of one store: a context manager, to be used by any thread.

    Two objects exclude each other, in one process too (there on Linux only). Processes that are forked while it is open
    share its claims and keep them until they end as well; processes that are spawned don't.

    Attributes:
        is_shared: False where locks can't be had (a URL, a read-only folder, a file system without them, Windows): then
            every claim succeeds, and two extractions at once do clips twice. Rows stored twice are read once.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open, or make, the store's file of claims."""
        self.path = to_path(folder) / NAME
        self._held: dict[str, int] = {}  # clip_id -> its byte
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
        """Those of these clips that this object has now and had not before; never waits.

        A few microseconds a clip, as long as all processes together hold some thousands.
        """
        with self._lock:
            if self.is_shared and not self._is_current():  # someone removed the file
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
        """Claim every clip, also those that have not been named yet, until `close`.

        Waits only for shards that are being written for an earlier run (`committing`): they are in the store when it
        returns, and that run can write no more.

        Args:
            run: names this run, for those who write its shards.

        Returns:
            False when another has claimed any clip; then nothing more is held than before. Where claims aren't shared,
            True.
        """
        with self._lock:
            if self.is_shared and not self._is_current():
                self._open()
            self._has_all = self._has_all or self._take(0, _PRESENCE)
            if self._has_all:
                self._fence(run)
            return self._has_all

    def _fence(self, run: str) -> None:
        """Let only this run have shards written by others from now on; call it with claims, once is enough."""
        if self._file is None or self._is_fenced:
            return
        self._is_fenced = True
        if os.pread(self._file, _MOST_RUN, 0) == run.encode():
            return
        with contextlib.suppress(OSError):  # no locks any more: as without them
            _set_lock(self._file, _COMMITS, _EXCLUSIVE, wait=True)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, run.encode(), 0)
            _set_lock(self._file, _COMMITS, _UNLOCK)

    def release(self, clip_ids: Iterable[str]) -> None:
        """Give claims back; clips that are not held are ignored. After `claim_all` others get none before `close`."""
        with self._lock:
            for clip_id in clip_ids:
                place = self._held.pop(clip_id, None)
                if place is not None and self._file is not None and not self._has_all:
                    _set_lock(self._file, place, _UNLOCK)

    def close(self) -> None:
        """Give all claims back; the last one removes the file."""
        file, self._file = self._file, None
        self._held.clear()
        self._has_all = False
        if file is None:
            return
        with contextlib.suppress(OSError):
            _set_lock(file, _PRESENCE, _UNLOCK)  # first: of two that close at once, one must be the last
            if _set_lock(file, _PRESENCE, _EXCLUSIVE) and _is_same(file, self.path):
                self.path.unlink()
        os.close(file)

    def _open(self) -> None:
        """Open the file of now, and claim there what is held."""
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
        except OSError:  # the file system has run out of locks: better a clip done twice than not at all
            return True


@contextlib.contextmanager
def committing(folder: Path, run: str) -> Iterator[None]:
    """Write a shard for the run that has claimed a whole store, in this block; from any process on any machine.

    Raises:
        StoreError: the run has ended and another has claimed clips since, or this machine sees another folder.
    """
    mend = "every machine of the cluster must see the store (a shared file system), or the root's stores must be a URL"
    try:
        file = os.open(folder / NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise StoreError(f"{folder} isn't the same folder on {socket.gethostname()}: {mend}") from None
    try:
        with contextlib.suppress(OSError):
            _set_lock(file, _COMMITS, _SHARED, wait=True)
        if os.pread(file, _MOST_RUN, 0) != run.encode():
            raise StoreError(f"another extraction has taken over {folder}: nothing is written for the one before")
        yield
    finally:
        os.close(file)


def _place(clip_id: str) -> int:
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _CLIP_BITS)


def _open_present(path: Path) -> int | None:
    """The number of the open file, on which this process's presence is marked; None where locks can't be had."""
    while True:
        file = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # neither follows a link nor waits for the writer of a named pipe
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, "no regular file")
            _set_lock(file, _PRESENCE, _SHARED, wait=True)  # at most while the last of the others removes the file
            if _is_same(file, path):
                return file
            os.close(file)  # it did: make it anew
        except OSError:
            if file is not None:
                os.close(file)
            return None


def _is_same(file: int, path: Path) -> bool:
    """Whether the file of that name is the one that is open."""
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
    """Lock or unlock bytes; False when another has one of them.

    On Linux the lock belongs to the open file; elsewhere to the process.

    Raises:
        OSError: no locks here.
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

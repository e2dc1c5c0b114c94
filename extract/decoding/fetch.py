"""Get a clip as a local file: the file itself, or a temporary copy of the object behind its URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from alphafuse.errors import AlphafuseError, DecodeError
from alphafuse.system.remote import is_remote, local_copy, reason_of

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

NO_FILE = "can't be opened: No such file or directory"  # the message of decoding for a missing local file
_loaded: set[str] = set()  # file systems whose libraries this process has loaded


@contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """Yield the clip as a local file; a copy, in this process's temporary folder, is removed at the end of the block.

    Raises:
        DecodeError: the object doesn't exist or can't be fetched; its message is the reason to record.
    """
    with ExitStack() as stack:
        try:
            with _without_limit(path):
                file = stack.enter_context(local_copy(path))
        except FileNotFoundError:
            raise DecodeError(NO_FILE) from None
        except AlphafuseError as error:
            raise DecodeError(f"can't be fetched: {reason_of(error.__cause__ or error)}") from error
        yield file


@contextmanager
def _without_limit(path: Path) -> Iterator[None]:
    """Lift a decode worker's memory limit while it fetches, which takes little memory for any object.

    The first time, the limit is raised by the size of the file system's libraries (s3fs: 180 MB of address space, 40
    MB of memory), so that a clip may take as much memory as a local one.
    """
    if not is_remote(path) or resource is None:
        yield
        return
    now, most = resource.getrlimit(resource.RLIMIT_AS)
    before = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        yield
    finally:
        scheme = path.protocol  # type: ignore[attr-defined]
        grown = 0 if scheme in _loaded else max(0, psutil.Process().memory_info().vms - before)
        _loaded.add(scheme)
        limit = now if now == resource.RLIM_INFINITY else now + grown
        resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))

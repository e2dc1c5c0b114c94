"""Object stores (s3://, gs://, hf://, memory://, ...): list objects, read them in ranges, fetch and write them whole.

The path of an object is a `upath.UPath`, made by `files.to_path`; every other path is a `pathlib.Path`. fsspec's file
systems do the work; they retry by themselves and find credentials as their own tools do. Their exceptions are of many
classes; each becomes an `AlphafuseError` of one line, except `FileNotFoundError`, which callers handle.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from alphafuse.errors import AlphafuseError

from .files import one_line, split_address
from .scratch import scratch_folder

BLOCK_BYTES = 64 * 2**10  # the first block of a shard of 600 clips holds all of it but the features
KEPT_BLOCKS = 64
FIRST_BLOCKS_AT_ONCE = 32  # requests in parallel
WHOLE_BYTES = 2**30  # largest object that is fetched whole if much of it is read
_WITH_BUCKETS = ("s3", "s3a", "gs", "gcs")
CACHE_BYTES = 4 * 2**30  # of fetched objects, kept below TMPDIR


def is_remote(path: Path) -> bool:
    """Whether a path is a URL."""
    return not isinstance(path, Path)


@contextlib.contextmanager
def one_line_errors(path: Path, verb: str = "reach", kind: type[AlphafuseError] = AlphafuseError) -> Iterator[None]:
    """Turn exceptions of a file system into `kind`, with one line of text; `FileNotFoundError` passes."""
    try:
        yield
    except (AlphafuseError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # OSError, botocore's, aiohttp's, google's, huggingface_hub's
        raise kind(
            f"can't {verb} {one_line(path, 1000)}: {reason_of(error)}: check the address and your credentials, "
            "then run the same command again"
        ) from error


def reason_of(error: BaseException) -> str:
    """Return the text of an exception as one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(text).rstrip(". ") or type(error).__name__


def _filesystem(path: Path) -> tuple[Any, str]:
    """Return the file system of a URL and the object's name in it."""
    return path.fs, path.path.rstrip("/")  # type: ignore[attr-defined]


def list_objects(folder: Path, *, recursive: bool = False) -> dict[str, int]:
    """Map the names of the objects in `folder`, relative to it, to their bytes; {} if there is no such folder.

    Lists the folder at each call (S3: a request per 1000 objects).

    Raises:
        AlphafuseError: the bucket doesn't exist, or can't be reached.
    """
    with one_line_errors(folder, "list"):
        system, name = _filesystem(folder)
        system.invalidate_cache(name)
        try:
            found = system.find(name, detail=True).values() if recursive else system.ls(name, detail=True)
        except FileNotFoundError:
            _require_bucket(folder)
            return {}
    below = f"{name}/"
    return {
        entry["name"][len(below) :]: entry["size"] or 0
        for entry in found
        if entry["type"] == "file" and entry["name"].startswith(below) and _is_plain(entry["name"][len(below) :])
    }


def _require_bucket(folder: Path) -> None:
    """Raise `AlphafuseError` if the bucket of a folder doesn't exist."""
    system, name = _filesystem(folder)
    if folder.protocol in _WITH_BUCKETS:  # type: ignore[attr-defined]
        with contextlib.suppress(PermissionError):  # listing a folder may be permitted, looking at its bucket not
            bucket = name.partition("/")[0]
            if not system.exists(bucket):
                raise AlphafuseError(
                    f"there is no bucket '{bucket}' for {one_line(folder, 1000)}: make it, or check its name"
                )


def _is_plain(name: str) -> bool:
    """Whether an object's name is also a relative path: no empty parts, no `..`."""
    return bool(name) and str(PurePosixPath(name)) == name and ".." not in name.split("/")


def object_size(path: Path) -> int | None:
    """Return an object's bytes, requested at each call; None if there is no such object."""
    with one_line_errors(path):
        system, name = _filesystem(path)
        system.invalidate_cache(name.rpartition("/")[0])
        try:
            found = system.info(name)
        except FileNotFoundError:
            return None
    return int(found["size"] or 0) if found["type"] == "file" else None


def folder_exists(folder: Path) -> bool:
    """Whether a folder exists, or an object below a URL.

    Raises:
        AlphafuseError: the bucket doesn't exist, or can't be reached.
    """
    if not is_remote(folder):
        return folder.is_dir()
    with one_line_errors(folder):
        system, name = _filesystem(folder)
        system.invalidate_cache(name)
        if system.isdir(name):
            return True
    _require_bucket(folder)
    return False


def write_object(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write an object in one request, so that it appears whole or not at all.

    With `replace=False` an existing object stays as it is. That holds for two writers at the same moment too if the
    file system has conditional requests (S3, Google's, memory); on others the last writer wins.

    Raises:
        AlphafuseError: it can't be written.
    """
    with _writing(path):
        system, name = _filesystem(path)
        if replace:
            system.pipe_file(name, content)
            return
        try:
            system.pipe_file(name, content, mode="create")
        except FileExistsError:
            return
        except Exception:  # no conditional requests, or another attempt is writing
            if object_size(path) is None:
                system.pipe_file(name, content)


def upload(path: Path, file: Path) -> None:
    """Upload a local file as an object, which appears whole or not at all."""
    with _writing(path):
        system, name = _filesystem(path)
        system.put_file(str(file), name)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        with one_line_errors(path, "write"):
            yield
    except FileNotFoundError as error:
        raise AlphafuseError(
            f"can't write {one_line(path, 1000)}: {reason_of(error)}: make the bucket, or check its name"
        ) from error


def remove(path: Path) -> None:
    """Remove an object if it exists."""
    with one_line_errors(path, "remove"), contextlib.suppress(FileNotFoundError):
        system, name = _filesystem(path)
        system.rm_file(name)


# reading


class RangeFile(io.RawIOBase):
    """An object read in ranges, as a file that h5py can open.

    Small reads go through blocks of 64 KiB, of which 64 are kept; larger ones are requests of their own.

    Attributes:
        size: bytes.
        failure: the exception of the last failed request; h5py hides what a file raises.
    """

    def __init__(self, path: Path, *, size: int | None = None, head: bytes = b"") -> None:
        """Open an object, or raise `FileNotFoundError`; `size` and `head` (its first block) save requests."""
        self.path = path
        self.failure: Exception | None = None
        with one_line_errors(path, "read"):
            self._system, self._name = _filesystem(path)
            self.size: int = self._system.info(self._name)["size"] if size is None else size
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        if len(head) == min(BLOCK_BYTES, self.size):
            self._blocks[0] = head
        self._place = 0

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # noqa: D102
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def tell(self) -> int:  # noqa: D102
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or the part of it up to the end of the object; return the bytes read."""
        start, stop = self._place, min(self._place + len(buffer), self.size)
        if stop <= start:
            return 0
        try:
            content = self._fetch(start, stop) if stop - start > BLOCK_BYTES else self._from_blocks(start, stop)
        except Exception as error:
            self.failure = error
            raise
        buffer[: len(content)] = content
        self._place = stop
        return len(content)

    def _from_blocks(self, start: int, stop: int) -> bytes:
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        missing = [number for number in range(first, last + 1) if number not in self._blocks]
        if missing:
            begin, end = missing[0] * BLOCK_BYTES, min((missing[-1] + 1) * BLOCK_BYTES, self.size)
            content = self._fetch(begin, end)
            for number in range(missing[0], missing[-1] + 1):
                self._blocks[number] = content[number * BLOCK_BYTES - begin :][:BLOCK_BYTES]
        for number in range(first, last + 1):
            self._blocks.move_to_end(number)
        content = b"".join(self._blocks[number] for number in range(first, last + 1))
        while len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return content[start - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]

    def _fetch(self, start: int, stop: int) -> bytes:
        with one_line_errors(self.path, "read"):
            content: bytes = self._system.cat_file(self._name, start=start, end=stop)
        if len(content) != stop - start:
            raise ValueError(f"it is shorter than its {self.size} bytes")
        return content


def first_blocks(sizes: Mapping[Path, int]) -> dict[Path, bytes]:
    """Fetch the first blocks of objects (path -> size) in parallel; objects that can't be read are left out."""
    paths = list(sizes)
    if not paths:
        return {}
    with one_line_errors(paths[0], "read"):
        system, _ = _filesystem(paths[0])
        names = [_filesystem(path)[1] for path in paths]
        ends = [min(BLOCK_BYTES, size) for size in sizes.values()]
        found = system.cat_ranges(names, [0] * len(names), ends, on_error="return")
    return {path: head for path, head in zip(paths, found, strict=True) if isinstance(head, bytes)}


class ObjectCache:
    """Local copies of objects that never change: the most recently used ones, up to a number of bytes."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        """Start empty; `most_bytes` bounds the copies together."""
        self.most_bytes = most_bytes
        self._files: OrderedDict[tuple[str, int], tuple[Path, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def open(self, path: Path, size: int | None = None) -> BinaryIO | None:
        """Open the local copy of an object, fetched first if needed; None if cache or disk have no room for it.

        Raises:
            FileNotFoundError: no such object.
            AlphafuseError: it can't be reached.
        """
        with self._lock:
            if self._process != os.getpid():  # a forked process: the files belong to its parent
                self._files.clear()
                self._process = os.getpid()
            system, name = _filesystem(path)
            if size is None:
                with one_line_errors(path, "read"):
                    size = int(system.info(name)["size"])
            if size > min(WHOLE_BYTES, self.most_bytes):
                return None
            key = (str(path), size)
            if key in self._files:
                self._files.move_to_end(key)
                with contextlib.suppress(FileNotFoundError):  # the temporary folder was cleared
                    return self._files[key][0].open("rb", buffering=0)
            self._drop(self.most_bytes - size)
            local = _fetch_whole(path, suffix=".h5")
            if local is None:
                return None
            file = local.open("rb", buffering=0)
            self._files[key] = (local, os.fstat(file.fileno()).st_size)
            return file

    def _drop(self, most_bytes: int) -> None:
        while self._files and sum(size for _, size in self._files.values()) > most_bytes:
            _, (file, _) = self._files.popitem(last=False)
            file.unlink(missing_ok=True)


def _fetch_whole(path: Path, suffix: str) -> Path | None:
    """Fetch an object into a new local file; None if the disk has no room."""
    try:
        local = scratch_folder() / f"{uuid.uuid4().hex}{suffix}"
    except OSError:
        return None
    try:
        with one_line_errors(path, "read"):
            system, name = _filesystem(path)
            try:
                system.get_file(name, str(local))
            except OSError as error:
                if not _is_local(error, local):
                    raise
                local.unlink(missing_ok=True)
                return None
    except BaseException:
        local.unlink(missing_ok=True)
        raise
    return local


def _is_local(error: OSError, local: Path) -> bool:
    """Whether writing the local file failed, rather than reading the object."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS) or error.filename == str(local)


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yield a local file as it is, or a temporary copy of an object or of a part of a file (`split_address`).

    The copy is removed when the block ends.

    Raises:
        FileNotFoundError: no such object.
        AlphafuseError: it can't be fetched.
    """
    name, part = split_address(path.name)
    if part is not None:
        with tempfile.NamedTemporaryFile() as copy_of_part:
            with path.with_name(name).open("rb") as container:
                container.seek(part[0])
                copy_of_part.write(container.read(part[1]))
            copy_of_part.flush()
            yield Path(copy_of_part.name)
        return
    if not is_remote(path):
        yield path
        return
    copy = _fetch_whole(path, path.suffix)
    if copy is None:
        raise AlphafuseError(f"can't fetch {one_line(path, 1000)}: no room in the temporary folder (TMPDIR)")
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)

"""Read untrusted HDF5 files: everything in them is checked before libhdf5 reads a value.

An `UntrustedFile` returns datasets and attributes only if they are contiguous, uncompressed and inside the file. Links,
filters, virtual and external storage are refused.

So is everything that uses a "global heap" (text of variable length, virtual datasets), before libhdf5 opens the object.
libhdf5 (2.0) does not survive a damaged heap: of 2,692 files with such text and random damage, nine made it hang and
one crashed it; of 28,000 without such text, none did. A damaged virtual dataset makes it hang on opening. So this
module reads an object's header first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from alphafuse.errors import AlphafuseError, StoreError
from alphafuse.system.files import is_clean, one_line
from alphafuse.system.remote import ObjectCache, RangeFile, is_remote

# exceptions of h5py, struct and json for a damaged file
READ_ERRORS = (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError, struct.error)
MAX_ATTRIBUTE_BYTES = 60_000  # the limit of HDF5 is 64 KiB
SLICE_BYTES = 4 * 2**20
GAP_BYTES = 32 * 2**10  # reading a gap of this size takes no longer than another call of h5py
ID_ROWS = 65_536  # strings read at a time: about 5 MB
MAX_JSON_DEPTH = 16
# fmt: off
NUMBERS = {
    "float32 or float16": (h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F16LE, h5py.h5t.IEEE_F32BE, h5py.h5t.IEEE_F16BE),
    "float64": (h5py.h5t.IEEE_F64LE,), "int64": (h5py.h5t.STD_I64LE,), "uint8": (h5py.h5t.STD_U8LE,),
}
# fmt: on
_SUPERBLOCK = b"\x89HDF\r\n\x1a\n\0"  # signature and version 0, which all shards have
_SUPERBLOCK_BYTES = 96
_MAX_HEADER_BLOCKS, _MAX_HEADER_BYTES = 64, 2**20
_DATATYPE, _LAYOUT, _ATTRIBUTE, _CONTINUATION, _ATTRIBUTE_INFO = 0x03, 0x08, 0x0C, 0x10, 0x15  # kinds of messages
_SHARED = 0x02  # flag of a message that is stored in another object
_VARIABLE = 9  # class of datatypes of variable length
_CACHE = ObjectCache()  # local copies of files behind URLs


class ShardGoneError(Exception):
    """A listed shard doesn't exist any more: another process packed the store meanwhile."""


def damaged(path: Path, error: object) -> StoreError:
    """Return the error for a shard that can't be read."""
    return StoreError(f"shard {one_line(path, 1000)} is damaged ({one_line(error)}): remove it and run extract again")


def open_untrusted(path: Path, *, size: int | None = None, head: bytes = b"", whole: bool = False) -> UntrustedFile:
    """Open a file for reading, without file locks (a shard never changes).

    Args:
        path: a file, or an object behind a URL, which is read in ranges.
        size, head: size and first block of an object, if known.
        whole: fetch an object whole, or take it from this process's cache, because much of it will be read.

    Raises:
        ShardGoneError: the file doesn't exist any more.
        StoreError: not a regular file, not HDF5 as alphafuse writes it, damaged, or not reachable.
    """
    source, status = _open_object(path, size, head, whole) if is_remote(path) else _open_file(path)
    try:
        if size is not None and status.st_size != size:
            raise ValueError(f"it has {status.st_size} bytes instead of {size}")
        start = _read_at(source, 0, _SUPERBLOCK_BYTES)
        # sizes of addresses and lengths, and the base address of all others
        if not start.startswith(_SUPERBLOCK) or start[13:15] != b"\x08\x08" or any(start[24:32]):
            raise ValueError("it doesn't start like a shard")
        file = h5py.File(source, "r") if is_remote(path) else h5py.File(path, "r", locking=False)
        try:
            return UntrustedFile(path, file, source, status)
        except BaseException:
            file.close()
            raise
    except (*READ_ERRORS, AlphafuseError) as error:
        source.close()
        raise _error_for(path, source, error) from None
    except BaseException:
        source.close()
        raise


def _open_file(path: Path) -> tuple[Any, os.stat_result]:
    shown = one_line(path, 1000)
    try:
        status = path.stat()
        if not stat.S_ISREG(
            status.st_mode
        ):  # checked before opening, because opening a named pipe waits for its writer
            raise StoreError(f"shard {shown} is not a regular file: move it out of the store")
        return path.open("rb", buffering=0), status
    except FileNotFoundError:
        if path.is_symlink():
            raise StoreError(f"shard {shown} is a broken link: restore its file or remove the link") from None
        raise ShardGoneError(path) from None
    except OSError as error:
        raise StoreError(
            f"shard {shown} can't be read ({error.strerror}): check its permissions and its disk"
        ) from None


def _open_object(path: Path, size: int | None, head: bytes, whole: bool) -> tuple[Any, os.stat_result]:
    """Open an object as a file; its status has only the size."""
    try:
        source: Any = _CACHE.open(path, size) if whole else None
        source = source or RangeFile(path, size=size, head=head)
    except FileNotFoundError:
        raise ShardGoneError(path) from None
    except AlphafuseError as error:
        raise StoreError(str(error)) from None
    return source, os.stat_result((0,) * 6 + (source.seek(0, os.SEEK_END), 0, 0, 0))


def _read_at(source: Any, address: int, count: int) -> bytes:
    source.seek(address)
    content: bytes = source.read(count)
    return content


def _error_for(path: Path, source: Any, error: Exception) -> Exception:
    """Return the error to raise for an error of h5py, which may hide that the object is missing or unreachable."""
    failure = getattr(source, "failure", None) or error
    if isinstance(failure, FileNotFoundError):
        return ShardGoneError(path)
    if isinstance(failure, AlphafuseError):
        return failure if isinstance(failure, StoreError) else StoreError(str(failure))
    return damaged(path, failure)


class UntrustedFile:
    """An opened HDF5 file, a context manager that turns errors of h5py into a `StoreError` with the file's name.

    Its methods raise one of `READ_ERRORS` for content that shards don't have.

    Attributes:
        path: the file.
        root: its root group.
        status: status of the file when it was opened; for an object only the size.
    """

    def __init__(self, path: Path, file: h5py.File, source: Any, status: os.stat_result) -> None:
        self.path, self.root, self.status = path, file, status
        self._source = source  # the same bytes, read without libhdf5
        self._require_header(int.from_bytes(_read_at(source, 64, 8), "little"), "/")

    def __enter__(self) -> UntrustedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.root.close()
        self._source.close()
        if isinstance(error, (*READ_ERRORS, AlphafuseError)) and getattr(self._source, "failure", None):
            raise _error_for(self.path, self._source, error) from error
        if isinstance(error, READ_ERRORS):
            raise damaged(self.path, error) from error

    def group(self, parent: h5py.Group, name: str) -> h5py.Group:
        """Return a group of this file."""
        opened = self._open(parent, name)
        if not isinstance(opened, h5py.h5g.GroupID):
            raise ValueError(f"{_place(parent, name)} is not a group")
        return h5py.Group(opened)

    def dataset(self, parent: h5py.Group, name: str, kind: str, rank: int = 1) -> h5py.Dataset:
        """Return a dataset after checking that all its values are in this file.

        Args:
            parent, name: the group of the dataset, and its name.
            kind: "text" (of fixed length) or one of `NUMBERS`.
            rank: number of dimensions.
        """
        place, opened = _place(parent, name), self._open(parent, name)
        if not isinstance(opened, h5py.h5d.DatasetID):
            raise ValueError(f"{place} is not a dataset")
        shape, found = opened.shape or (), opened.get_type()
        if not (isinstance(found, h5py.h5t.TypeStringID) if kind == "text" else _is_number(found, kind)):
            raise ValueError(f"{place} is not {kind}")
        made = opened.get_create_plist()
        if made.get_nfilters() or made.get_external_count():
            raise ValueError(_not_contiguous(place))
        if len(shape) != rank:
            raise ValueError(f"{place} has {len(shape)} dimensions instead of {rank}")
        claimed, stored, offset = found.get_size(), opened.get_storage_size(), opened.get_offset()
        for length in shape:
            claimed *= length
        if claimed != stored or (claimed and (offset is None or offset + claimed > self.status.st_size)):
            raise ValueError(f"{place} claims {claimed} bytes, which the file doesn't hold")
        return h5py.Dataset(opened)

    def integer(self, name: str) -> int:
        """Return an integer attribute of the root."""
        if self._attribute(name).get_type().get_class() != h5py.h5t.INTEGER:
            raise ValueError(f"{name} is not an integer")
        return int(self.root.attrs[name])

    def text(self, name: str) -> str:
        """Return a text attribute of the root."""
        if not isinstance(self._attribute(name).get_type(), h5py.h5t.TypeStringID):
            raise ValueError(f"{name} is not text")
        text: str = bytes(self.root.attrs[name]).decode()
        return text

    def json(self, name: str) -> dict[str, Any]:
        """Return a text attribute of the root that is a json object."""
        content = json.loads(self.text(name), parse_constant=_refuse_constant)
        if not isinstance(content, dict):
            raise ValueError(f"{name} is not a json object")
        _require_shallow(content, name)
        return content

    def _attribute(self, name: str) -> h5py.h5a.AttrID:
        if not h5py.h5a.exists(self.root.id, name.encode()):
            raise ValueError(f"it has no {name}")
        attribute = h5py.h5a.open(self.root.id, name.encode())
        if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
            raise ValueError(f"{name} is not a single value")
        if attribute.get_storage_size() > MAX_ATTRIBUTE_BYTES:
            raise ValueError(f"{name} is longer than {MAX_ATTRIBUTE_BYTES} bytes")
        return attribute

    def _open(self, parent: h5py.Group, name: str) -> h5py.h5d.DatasetID | h5py.h5g.GroupID:
        """Open an object by its name after checking its header; a link out of this file is refused."""
        place = _place(parent, name)
        if name.encode() not in parent.id:
            raise ValueError(f"it has no {place}")
        link = parent.id.links.get_info(name.encode())
        if link.type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{place} is a link to another file")
        self._require_header(link.u, place)
        return h5py.h5o.open(parent.id, name.encode())

    def _require_header(self, address: int, place: str) -> None:
        """Raise `ValueError` unless opening and reading this object can't lead libhdf5 to a global heap.

        See "Version 1 Data Object Header Prefix" and the header messages in the HDF5 File Format Specification.
        """
        version, size = struct.unpack("<B7xI4x", _read_at(self._source, address, 16))
        blocks, total = [(address + 16, size)], 0
        if version != 1:
            raise ValueError(f"the header of {place} differs from those of shards")
        for number, (start, length) in enumerate(blocks):
            total += length
            if number == _MAX_HEADER_BLOCKS or total > _MAX_HEADER_BYTES:
                raise ValueError(f"the header of {place} is longer than those of shards")
            block, first = _read_at(self._source, start, length), 0
            while first + 8 <= len(block):
                kind, taken, flags = struct.unpack_from("<HHB", block, first)
                message = block[first + 8 : first + 8 + taken]
                first += 8 + taken
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack_from("<QQ", message))
                elif kind == _LAYOUT and message[:2] != b"\x03\x01":  # contiguous
                    raise ValueError(_not_contiguous(place))
                elif kind == _DATATYPE and message[0] & 0x0F == _VARIABLE:
                    raise ValueError(f"{place} is of variable length, which is not allowed in shards")
                elif kind == _ATTRIBUTE:
                    _require_plain_attribute(message, place)
                if kind == _ATTRIBUTE_INFO or (flags & _SHARED and kind in (_DATATYPE, _LAYOUT, _ATTRIBUTE)):
                    raise ValueError(f"parts of the header of {place} are in another place")


def _require_plain_attribute(message: bytes, place: str) -> None:
    version, name_size = struct.unpack_from("<BxH", message)
    if version != 1:
        raise ValueError(f"an attribute of {place} differs from those of shards")
    if message[8 + (name_size + 7) // 8 * 8] & 0x0F == _VARIABLE:
        name = one_line(message[8 : 8 + name_size].rstrip(b"\0").decode(errors="replace"), 40)
        raise ValueError(f"{name} is of variable length, which is not allowed in shards")


def _place(parent: h5py.Group, name: str) -> str:
    return f"{parent.name.rstrip('/')}/{name}"


def _not_contiguous(place: str) -> str:
    return f"{place} is chunked, compressed, virtual or in another file: shards are contiguous"


def _is_number(found: h5py.h5t.TypeID, kind: str) -> bool:
    return any(found.equal(known) for known in NUMBERS[kind])


def require_members(group: h5py.Group, known: set[str]) -> None:
    """Raise `ValueError` unless a group holds exactly these objects."""
    if group.id.get_num_objs() != len(known):
        raise ValueError(f"{group.name} holds objects other than {', '.join(sorted(known))}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not json")


def _require_shallow(content: object, name: str) -> None:
    level = [content]
    for _ in range(MAX_JSON_DEPTH):
        containers = (list(x.values()) if isinstance(x, dict) else x for x in level if isinstance(x, dict | list))
        level = [item for container in containers for item in container]
    if level:
        raise ValueError(f"{name} is nested deeper than {MAX_JSON_DEPTH} levels")


# values


def strings(dataset: h5py.Dataset, *, clean: bool = False) -> Iterator[list[str]]:
    """Yield texts in order, `ID_ROWS` at a time; if `clean`, they must not be empty or have control characters."""
    for start in range(0, len(dataset), ID_ROWS):
        part = [
            value.decode() for value in dataset[start : start + ID_ROWS].tolist()
        ]  # NumPy has removed the NULs at the end
        if clean and not all(map(is_clean, part)):
            bad = next(value for value in part if not is_clean(value))
            raise ValueError(f"{dataset.name} has '{one_line(bad, 40)}': empty, too long, or with control characters")
        yield part


class RawRows:
    """Rows (rows, dim) of a contiguous dataset, read directly from the file; sliced like the dataset."""

    def __init__(self, file: int, offset: int, dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
        self._file, self._offset, self.dtype, self.shape = file, offset, dtype, shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        values = np.empty((rows.stop - rows.start, self.shape[1]), self.dtype)
        room, place = values.data.cast("B"), self._offset + rows.start * self.shape[1] * self.dtype.itemsize
        while len(room):
            count = os.preadv(self._file, [room], place)
            if not count:
                raise ValueError("it ends too early")
            room, place = room[count:], place + count
        return values


def read_slices(dataset: h5py.Dataset | RawRows, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of a dataset, given by ascending numbers, in bounded parts: (slice of `rows`, its values)."""
    row_bytes = max(1, dataset.dtype.itemsize * dataset.shape[1])
    most = max(1, SLICE_BYTES // row_bytes)
    ends = np.flatnonzero(np.diff(rows) > 1 + GAP_BYTES // row_bytes) + 1
    first = 0
    for end in [*ends.tolist(), len(rows)]:
        while first < end:
            start = rows[first]
            last = first + int(np.searchsorted(rows[first:end], start + most))
            values = dataset[start : rows[last - 1] + 1]
            yield slice(first, last), values[rows[first:last] - start]
            first = last


@contextlib.contextmanager
def open_raw(path: Path) -> Iterator[int]:
    """Open a local file for reading and yield its descriptor; errors as in `open_untrusted`."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise ShardGoneError(path) from None
    except OSError as error:
        raise damaged(path, error) from None
    try:
        yield file
    except READ_ERRORS as error:
        raise damaged(path, error) from error
    finally:
        os.close(file)


def content_sha256(recipes: str, datasets: Mapping[str, h5py.Dataset]) -> str:
    """Return the checksum of recipes and datasets: name, dtype, shape and values of each, in name order."""
    digest = hashlib.sha256(recipes.encode())
    for name, dataset in sorted(datasets.items()):
        text = h5py.check_string_dtype(dataset.dtype) is not None
        digest.update(f"{name} {'text' if text else dataset.dtype} {dataset.shape} ".encode())
        if text:
            for number, part in enumerate(strings(dataset)):
                digest.update((("\0" if number else "") + "\0".join(part)).encode())
        elif dataset.ndim == 1:
            digest.update(dataset[()].data)
        else:
            for _, values in read_slices(dataset, np.arange(len(dataset))):
                digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()

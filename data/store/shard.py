"""One shard: an HDF5 file of embeddings that is not trusted.

    /clip_id, /label, /group      (clips,) UTF-8 strings
    /timesformer, /ast            (clips, dim) float32 or float16; a row of NaN = this clip has no such embedding
    /present/timesformer, ast     (clips,) uint8: 1 where the row is an embedding, so that resuming reads no features
    /failures/clip_id, modality, reason   (failures,) UTF-8 strings: why a clip has none
    attributes: format_version, recipes (json: per modality, everything that decides the numbers),
                provenance (json: encoder names, library versions, device, time), sha256 (of the datasets)

All of it is contiguous and uncompressed, so what a shard claims to hold must lie in its file: `open_shard` checks that
before anything is read, and refuses links, filters, virtual and external storage, and whatever else is no part of it.

Strings have a fixed length. Those of variable length, which earlier versions wrote, are checked by `heaps.py` first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path, PosixPath
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from alphafuse.data.embeddings import MODALITIES, Failure, finite_rows
from alphafuse.errors import AlphafuseError, StoreError, unknown
from alphafuse.system.files import MAX_TEXT, is_clean, one_line
from alphafuse.system.remote import ObjectCache, RangeFile, is_remote

from .heaps import MAX_ATTRIBUTE_BYTES, REFERENCE, require_own_text, require_sound_heaps

FORMAT_VERSION = 1
# what h5py, struct and json raise for a damaged file
READ_ERRORS = (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError, struct.error)
SLICE_BYTES = 4 * 2**20
GAP_BYTES = 32 * 2**10  # reading what lies between two rows takes no longer than another call of h5py
ID_ROWS = 65_536  # strings read at a time: about 5 MB
MAX_DIM = 2**16
MOST_LAYOUTS = 65_536  # shards whose layout is remembered, at a few hundred bytes each
MAX_JSON_DEPTH = 16
_COLUMNS = ("clip_id", "label", "group")
FAILURE_COLUMNS = ("clip_id", "modality", "reason")
_FLOATS = (h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F16LE, h5py.h5t.IEEE_F32BE, h5py.h5t.IEEE_F16BE)
_SUPERBLOCK = b"\x89HDF\r\n\x1a\n\0"  # signature, and version 0, the one that all our shards have
_CACHE = ObjectCache()  # of shards behind URLs


class ShardGoneError(Exception):
    """A shard was listed and is gone: another process packed the store meanwhile."""


def open_shard(path: Path, *, size: int | None = None, head: bytes = b"", whole: bool = False) -> Shard:
    """Open a shard for reading, without file locks (it never changes), and check all of it but the values.

    Args:
        path: a file, or an object behind a URL; of objects only what is asked for is read, in ranges.
        size, head: of an object: its bytes and its first block, where they are known.
        whole: much of an object will be read: fetch all of it at once, or take it from this process's cache.

    Raises:
        ShardGoneError: no such file any more.
        StoreError: not a regular file, not a shard, damaged, one of another format version, or out of reach.
    """
    if is_remote(path):
        return _open_object(path, size, head, whole)
    status = _require_file(path)
    try:
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise ShardGoneError(path) from None
    except READ_ERRORS as error:
        raise damaged(path, error) from None
    try:
        return Shard(path, file, status)
    except READ_ERRORS as error:
        file.close()
        raise damaged(path, error) from None
    except BaseException:
        file.close()
        raise


def _open_object(path: Path, size: int | None, head: bytes, whole: bool) -> Shard:
    try:
        source: Any = _CACHE.open(path, size) if whole else None
        source = source or RangeFile(path, size=size, head=head)
    except FileNotFoundError:
        raise ShardGoneError(path) from None
    except AlphafuseError as error:
        raise StoreError(str(error)) from None
    try:
        actual = source.seek(0, os.SEEK_END)
        source.seek(0)
        start = bytearray(len(_SUPERBLOCK) + 6)
        source.readinto(start)
        if not _begins_well(start) or (size is not None and actual != size):
            raise ValueError("it doesn't begin as a shard does")
        file = h5py.File(source, "r")
        try:
            return Shard(path, file, os.stat_result((0,) * 6 + (actual, 0, 0, 0)), source)
        except BaseException:
            file.close()
            raise
    except (*READ_ERRORS, AlphafuseError) as error:
        source.close()
        raise _said(path, source, error) from None
    except BaseException:
        source.close()
        raise


def _said(path: Path, source: Any, error: Exception) -> Exception:
    """What to raise for an error of h5py's: it may hide that the object is gone or can't be reached."""
    failure = getattr(source, "failure", None) or error
    if isinstance(failure, FileNotFoundError):
        return ShardGoneError(path)
    if isinstance(failure, AlphafuseError):
        return failure if isinstance(failure, StoreError) else StoreError(str(failure))
    return damaged(path, failure)


def damaged(path: Path, error: object) -> StoreError:
    """The error for a shard that can't be read."""
    return StoreError(f"shard {one_line(path, 1000)} is damaged ({one_line(error)}): remove it and run extract again")


class Shard:
    """An opened shard, a context manager: what h5py raises while it is open becomes a `StoreError` that names it.

    Attributes:
        path: the file.
        status: its own when it was opened; of an object only the size.
        rows: clips.
        dims: modality -> dimension, for the modalities that it holds.
        recipes: modality -> what decided its numbers; also of modalities that it has no embeddings of.
    """

    def __init__(self, path: Path, file: h5py.File, status: os.stat_result, source: Any = None) -> None:
        self.path = path
        self._file = file
        self._source = source  # that an object is read from
        self.status = status
        self._require_version()
        self._columns = {name: self._open_text(file, name) for name in _COLUMNS}
        self.rows = len(self._columns["clip_id"])
        self._features: dict[str, h5py.Dataset] = {}
        for modality in MODALITIES:
            if modality in file:
                self._features[modality] = self._open_features(modality)
        self.dims = {modality: dataset.shape[1] for modality, dataset in self._features.items()}
        self._masks = self._open_masks() if "present" in file else {}
        failures = self._open_group(file, "failures")
        self._failures = {name: self._open_text(failures, name) for name in FAILURE_COLUMNS}
        _require_members(file, {*_COLUMNS, *self.dims, "failures", *(["present"] if self._masks else [])})
        _require_members(failures, set(FAILURE_COLUMNS))
        for columns in (self._columns, self._failures):
            lengths = {name: len(dataset) for name, dataset in columns.items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"its columns have different lengths: {lengths}")
        self.recipes = self._read_recipes()

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._source is not None:
            self._source.close()
        if isinstance(error, (*READ_ERRORS, AlphafuseError)) and getattr(self._source, "failure", None):
            raise _said(self.path, self._source, error) from error
        if isinstance(error, READ_ERRORS):
            raise damaged(self.path, error) from error

    # what it holds

    def clip_ids(self) -> Iterator[list[str]]:
        """clip_ids in order, `ID_ROWS` at a time."""
        return self._read_text(self._columns["clip_id"])

    def columns(self) -> Iterator[tuple[list[str], ...]]:
        """clip_ids, labels and groups in order, `ID_ROWS` at a time."""
        yield from zip(*(self._read_text(column) for column in self._columns.values()), strict=True)

    def failures(self) -> list[Failure]:
        """The recorded failures; reasons as one line each."""
        columns = [self._read_text(self._failures[name], clean=name != "reason") for name in FAILURE_COLUMNS]
        found = []
        for part in zip(*columns, strict=True):
            for clip_id, modality, reason in zip(*part, strict=True):
                if modality not in MODALITIES:
                    raise ValueError(f"a failure of {unknown('modality', one_line(modality, 40), MODALITIES)}")
                found.append(Failure(clip_id, modality, one_line(reason, MAX_TEXT)))
        return found

    def features(self, modality: str, dims: dict[str, int]) -> h5py.Dataset:
        """A modality's (clips, dim) dataset; its dim is added to `dims`, or must be the one that is there."""
        expected = dims.setdefault(modality, self.dims[modality])
        if self.dims[modality] != expected:
            raise ValueError(f"{modality} has dimension {self.dims[modality]} instead of {expected}")
        return self._features[modality]

    def embedded(self, modality: str) -> np.ndarray:
        """(clips,) bool: which rows are embeddings; shards of earlier versions don't say, so their rows are read."""
        if modality in self._masks:
            return self._masks[modality][()] != 0
        return self._finite(modality)

    def provenance(self) -> dict[str, Any]:
        """Facts that don't decide the numbers."""
        return self._read_json("provenance")

    def problems(self) -> list[str]:
        """Read everything: what is wrong with the values, a line each."""
        found = []
        datasets = {**self._columns, **self._features}
        datasets |= {f"failures/{name}": dataset for name, dataset in self._failures.items()}
        datasets |= {f"present/{name}": dataset for name, dataset in self._masks.items()}
        for _ in self.columns():
            pass
        self.failures()
        self.provenance()
        if content_sha256(self._read_attribute("recipes"), datasets) != self._read_attribute("sha256"):
            found.append("content differs from its checksum")
        for modality, mask in self._masks.items():
            if not np.array_equal(mask[()] != 0, self._finite(modality)):
                found.append(f"/present/{modality} differs from the rows that are embeddings")
        return found

    def _finite(self, modality: str) -> np.ndarray:
        finite = np.zeros(self.rows, bool)
        for part, values in read_slices(self._features[modality], np.arange(self.rows)):
            finite[part] = finite_rows(values)
        return finite

    # checks; each raises one of READ_ERRORS

    def _require_version(self) -> None:
        attribute = self._open_attribute("format_version")
        if attribute.get_type().get_class() != h5py.h5t.INTEGER:
            raise ValueError("format_version is no integer")
        version = int(self._file.attrs["format_version"])
        if version != FORMAT_VERSION:
            raise StoreError(
                f"shard {one_line(self.path, 1000)} has format version {version}, this alphafuse reads "
                f"{FORMAT_VERSION}: install the alphafuse that made it, or extract into another root"
            )

    def _open_object(self, group: h5py.Group, name: str) -> h5py.h5d.DatasetID | h5py.h5g.GroupID:
        """An object by its name, without following a link out of this file."""
        if name.encode() not in group.id:
            raise ValueError(f"it has no {group.name.rstrip('/')}/{name}")
        if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"/{name} is a link elsewhere")
        return h5py.h5o.open(group.id, name.encode())

    def _open_group(self, file: h5py.File, name: str) -> h5py.Group:
        opened = self._open_object(file, name)
        if not isinstance(opened, h5py.h5g.GroupID):
            raise ValueError(f"/{name} is no group")
        return h5py.Group(opened)

    def _open_dataset(self, group: h5py.Group, name: str, rank: int) -> h5py.Dataset:
        """A dataset whose values lie in this file, as many as it claims; its shape is asked for last."""
        opened = self._open_object(group, name)
        if not isinstance(opened, h5py.h5d.DatasetID):
            raise ValueError(f"/{name} is no dataset")
        made = opened.get_create_plist()
        if made.get_layout() != h5py.h5d.CONTIGUOUS or made.get_nfilters() or made.get_external_count():
            raise ValueError(f"/{name} is chunked, compressed, virtual or elsewhere: shards are contiguous")
        shape, kind = opened.shape or (), opened.get_type()
        if len(shape) != rank:
            raise ValueError(f"/{name} has {len(shape)} dimensions instead of {rank}")
        variable = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
        claimed = REFERENCE.itemsize if variable else kind.get_size()
        stored, offset = opened.get_storage_size(), opened.get_offset()
        for length in shape:
            claimed *= length
        if claimed != stored or (claimed and (offset is None or offset + claimed > self.status.st_size)):
            raise ValueError(f"/{name} claims {claimed} bytes, which the file doesn't hold")
        return h5py.Dataset(opened)

    def _open_text(self, group: h5py.Group, name: str) -> h5py.Dataset:
        dataset = self._open_dataset(group, name, 1)
        self._require_text(dataset.id.get_type(), name)
        return dataset

    def _open_features(self, modality: str) -> h5py.Dataset:
        dataset = self._open_dataset(self._file, modality, 2)
        kind = dataset.id.get_type()
        if not any(kind.equal(known) for known in _FLOATS):
            raise ValueError(f"/{modality} is neither float32 nor float16")
        rows, dim = dataset.shape
        if rows != self.rows or not 1 <= dim <= MAX_DIM:
            raise ValueError(f"/{modality} has shape ({rows}, {dim}) for {self.rows} clips")
        return dataset

    def _open_masks(self) -> dict[str, h5py.Dataset]:
        group, masks = self._open_group(self._file, "present"), {}
        _require_members(group, set(self.dims))
        for modality in self.dims:
            masks[modality] = self._open_dataset(group, modality, 1)
            if len(masks[modality]) != self.rows or not masks[modality].id.get_type().equal(h5py.h5t.STD_U8LE):
                raise ValueError(f"/present/{modality} is no uint8 per clip")
        return masks

    def _open_attribute(self, name: str) -> h5py.h5a.AttrID:
        if not h5py.h5a.exists(self._file.id, name.encode()):
            raise ValueError(f"it has no {name}")
        attribute = h5py.h5a.open(self._file.id, name.encode())
        if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
            raise ValueError(f"{name} is no single value")
        if attribute.get_storage_size() > MAX_ATTRIBUTE_BYTES:
            raise ValueError(f"{name} is longer than {MAX_ATTRIBUTE_BYTES} bytes")
        return attribute

    def _require_text(self, kind: h5py.h5t.TypeID, name: str) -> None:
        if not isinstance(kind, h5py.h5t.TypeStringID):
            raise ValueError(f"{name} is no text")
        if kind.is_variable_str():
            if is_remote(self.path):
                raise StoreError(
                    f"shard {one_line(self.path, 1000)} is of an earlier kind, which is read from a local folder only: "
                    "copy its store there, run `alphafuse store pack`, and copy it back"
                )
            status = self.status
            require_sound_heaps(self.path, status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns)

    def _read_attribute(self, name: str) -> str:
        self._require_text(self._open_attribute(name).get_type(), name)
        value = self._file.attrs[name]
        text = value.decode() if isinstance(value, bytes) else str(value)
        if len(text.encode()) > MAX_ATTRIBUTE_BYTES:  # also refuses what was no UTF-8
            raise ValueError(f"{name} is longer than {MAX_ATTRIBUTE_BYTES} bytes")
        return text

    def _read_json(self, name: str) -> dict[str, Any]:
        content = json.loads(self._read_attribute(name), parse_constant=_refuse_constant)
        if not isinstance(content, dict):
            raise ValueError(f"{name} is no json object")
        _require_shallow(content, name)
        return content

    def _read_recipes(self) -> dict[str, dict[str, Any]]:
        recipes = self._read_json("recipes")
        for modality, values in recipes.items():
            if modality not in MODALITIES:
                raise ValueError(f"recipes of {unknown('modality', one_line(modality, 40), MODALITIES)}")
            if not isinstance(values, dict):
                raise ValueError(f"recipes of {modality} are no json object")
        for modality in self.dims:
            if modality not in recipes:
                raise ValueError(f"{modality} has no recipes")
        return recipes

    def _read_text(self, dataset: h5py.Dataset, *, clean: bool = True) -> Iterator[list[str]]:
        """Strings in order, `ID_ROWS` at a time; `clean` ones are not empty and have no control characters."""
        if dataset.id.get_type().is_variable_str():
            require_own_text(self.path, dataset.name, dataset.id.get_offset() or 0, len(dataset))
        for part in _strings(dataset):
            if clean and not all(map(is_clean, part)):
                bad = next(value for value in part if not is_clean(value))
                raise ValueError(
                    f"{dataset.name} has '{one_line(bad, 40)}': empty, too long, or with control characters"
                )
            yield part


def _strings(dataset: h5py.Dataset) -> Iterator[list[str]]:
    """Strings of a dataset in order, `ID_ROWS` at a time."""
    for start in range(0, len(dataset), ID_ROWS):
        part = dataset[start : start + ID_ROWS].tolist()  # of fixed length: bytes without the NULs that fill it up
        yield [value.decode() for value in part]


def _require_file(path: Path) -> os.stat_result:
    """The status of a regular file that begins as our shards do."""
    shown = one_line(path, 1000)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # before it is opened: opening a named pipe waits for its writer
            raise StoreError(f"shard {shown} is no regular file: move it out of the store")
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        if path.is_symlink():
            raise StoreError(f"shard {shown} is a link to nothing: bring its file back or remove the link") from None
        raise ShardGoneError(path) from None
    except OSError as error:
        raise StoreError(f"shard {shown} can't be read ({error.strerror}): see its permissions and its disk") from None
    if not _begins_well(start):
        raise damaged(path, "it doesn't begin as a shard does")
    return status


def _begins_well(start: bytes | bytearray) -> bool:
    """Whether a file of which this is the beginning can be one of our shards."""
    return start.startswith(_SUPERBLOCK) and start[13:15] == b"\x08\x08"  # sizes of addresses and of lengths


def _require_members(group: h5py.Group, known: set[str]) -> None:
    if group.id.get_num_objs() != len(known):
        raise ValueError(f"{group.name} holds something else than {', '.join(sorted(known))}")


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


def read_slices(dataset: h5py.Dataset | RawRows, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Read rows of a dataset, given by ascending numbers, a bounded slice at a time: (part of `rows`, its values)."""
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


class RawRows:
    """Rows of a dataset read straight from the shard's file, where they lie contiguous: (rows, dim), sliced like it."""

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


_Version = tuple[int, ...]
_layouts: dict[Path, tuple[_Version, dict[str, tuple[int, np.dtype[Any], tuple[int, int]]]]] = {}


@contextlib.contextmanager
def open_features(path: Path, dims: Mapping[str, int]) -> Iterator[Mapping[str, h5py.Dataset | RawRows]]:
    """Modality -> its rows in a shard, to be sliced; errors as those of `open_shard`.

    Opening and checking a shard takes a millisecond, which counts when a thousand of them are read again and again. So
    what a check found is remembered, and holds as long as the file is the one that was checked.
    """
    known = _layouts.get(path)
    if known is not None:
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise ShardGoneError(path) from None
        except OSError as error:
            raise damaged(path, error) from None
        try:
            version, places = known
            if _version(os.fstat(file)) == version and all(
                dims.get(name, shape[1]) == shape[1] for name, (_, _, shape) in places.items()
            ):
                yield {name: RawRows(file, *place) for name, place in places.items()}
                return
        except READ_ERRORS as error:
            raise damaged(path, error) from error
        finally:
            os.close(file)
    with open_shard(path, whole=True) as shard:
        features = {modality: shard.features(modality, dict(dims)) for modality in shard.dims}
        if isinstance(path, PosixPath):
            if len(_layouts) >= MOST_LAYOUTS:
                _layouts.clear()
            places = {name: (data.id.get_offset() or 0, data.dtype, data.shape) for name, data in features.items()}
            _layouts[path] = _version(shard.status), places
        yield features


def _version(status: os.stat_result) -> _Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def content_sha256(recipes: str, datasets: Mapping[str, h5py.Dataset]) -> str:
    """Checksum of recipes and datasets: name, dtype, shape and values of each, in name order."""
    digest = hashlib.sha256(recipes.encode())
    for name, dataset in sorted(datasets.items()):
        text = h5py.check_string_dtype(dataset.dtype) is not None
        digest.update(f"{name} {'text' if text else dataset.dtype} {dataset.shape} ".encode())
        if text:
            for number, part in enumerate(_strings(dataset)):
                digest.update((("\0" if number else "") + "\0".join(part)).encode())
        elif dataset.ndim == 1:
            digest.update(dataset[()].data)
        else:
            for _, values in read_slices(dataset, np.arange(len(dataset))):
                digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()

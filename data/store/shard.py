"""One shard, opened for reading: store format 2.

    /clip_id, /labels, /group       (clips,) text; labels: a json list of at least one label
    /bytes, /digest                 (clips,) int64 and text: size and digest of the clip's file (-1 and "": unknown)
    /offsets                        (clips + 1,) int64: clip i has the rows offsets[i] to offsets[i + 1]
    /windows                        (rows, 2) float64: the part of the clip that a row embeds, in seconds (NaN: unknown)
    /streams/NAME/features          (rows, dim) float32 or float16; a row of NaN: no embedding
    /streams/NAME/present           (rows,) uint8: 1 where the row is an embedding, so that resuming reads no features
    /failures/clip_id, stream, reason   (failures,) text: why a clip has no embedding of a stream
    attributes: format_version, recipes (json: per stream, everything that decides the numbers),
                provenance (json: encoder names, library versions, device, time), sha256 (of the datasets)

Text has a fixed length, everything is contiguous and uncompressed. A shard may come from anyone: `hdf5.py` checks
each object before it is read, and a shard that holds anything else is refused.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PosixPath
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from alphafuse.data.embeddings import UNKNOWN_BYTES, Failure, any_row, finite_rows, is_one_each
from alphafuse.data.streams import require_stream
from alphafuse.errors import StoreError
from alphafuse.system.files import MAX_TEXT, is_clean, one_line

from .hdf5 import (
    RawRows,
    UntrustedFile,
    content_sha256,
    open_raw,
    open_untrusted,
    read_slices,
    require_members,
    strings,
)

FORMAT_VERSION = 2
MAX_DIM = 2**16
MOST_LAYOUTS = 65_536  # shards whose layout is cached, with a few hundred bytes each
FAILURE_COLUMNS = {"clip_id": "clip_id", "stream": "stream", "reason": "reason"}  # dataset -> attribute of Failure
_DIGEST = re.compile(r"[0-9a-f]{64}|")


def open_shard(path: Path, *, size: int | None = None, head: bytes = b"", whole: bool = False) -> Shard:
    """Open a shard for reading and check everything but the values; see `hdf5.open_untrusted`.

    Raises:
        ShardGoneError: the file doesn't exist any more.
        StoreError: not a regular file, not a shard, damaged, of another format version, or not reachable.
    """
    content = open_untrusted(path, size=size, head=head, whole=whole)
    with contextlib.ExitStack() as stack:
        stack.enter_context(content)
        shard = Shard(content)
        stack.pop_all()  # the file stays open
        return shard


class Shard:
    """An opened shard, a context manager that turns errors of h5py into a `StoreError` with the shard's name.

    Attributes:
        path: the file.
        clips, rows: number of clips, and of windows of all clips.
        dims: stream -> dimension, for the stored streams.
        recipes: stream -> everything that decides its numbers; also for streams without embeddings in this shard.
    """

    def __init__(self, content: UntrustedFile) -> None:
        self._content, self.path, self.status = content, content.path, content.status
        root = content.root
        version = content.integer("format_version")
        if version != FORMAT_VERSION:
            raise StoreError(
                f"shard {one_line(self.path, 1000)} has format version {version}, this alphafuse reads "
                f"{FORMAT_VERSION}: install the alphafuse that made it, or extract into another root"
            )
        self.recipes = self._read_recipes()
        texts = {name: content.dataset(root, name, "text") for name in ("clip_id", "labels", "group", "digest")}
        sizes, offsets = content.dataset(root, "bytes", "int64"), content.dataset(root, "offsets", "int64")
        windows = content.dataset(root, "windows", "float64", rank=2)
        failures = content.group(root, "failures")
        failed = {name: content.dataset(failures, name, "text") for name in FAILURE_COLUMNS}
        self.clips, self.rows = len(texts["clip_id"]), len(windows)
        streams = content.group(root, "streams")
        self._features, self._masks = dict[str, h5py.Dataset](), dict[str, h5py.Dataset]()
        for name in self.recipes:
            if name.encode() in streams.id:
                group = content.group(streams, name)
                self._features[name] = content.dataset(group, "features", "float32 or float16", rank=2)
                self._masks[name] = content.dataset(group, "present", "uint8")
                require_members(group, {"features", "present"})
        self.dims = {stream: dataset.shape[1] for stream, dataset in self._features.items()}
        require_members(root, {*texts, "bytes", "offsets", "windows", "failures", "streams"})
        require_members(failures, set(failed))
        require_members(streams, set(self.dims))
        self._columns = {**texts, "bytes": sizes, "offsets": offsets, "windows": windows}
        self._failures = failed
        self._offsets: np.ndarray | None = None
        self._require_lengths()

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._content.__exit__(kind, error, trace)

    # content

    def clip_ids(self) -> Iterator[list[str]]:
        """Yield clip_ids in order, some at a time."""
        return strings(self._columns["clip_id"], clean=True)

    def columns(self) -> Iterator[tuple[list[str], list[tuple[str, ...]], list[str]]]:
        """Yield clip_ids, all labels of each clip, and groups in order, some at a time."""
        columns = self.clip_ids(), strings(self._columns["labels"]), strings(self._columns["group"], clean=True)
        for clip_ids, labels, groups in zip(*columns, strict=True):
            yield clip_ids, [_labels(text) for text in labels], groups

    def labels(self) -> list[tuple[str, ...]]:
        """(clips,): all labels of each clip."""
        return [_labels(text) for part in strings(self._columns["labels"]) for text in part]

    def offsets(self) -> np.ndarray:
        """(clips + 1,) int64: clip i has the rows offsets[i] to offsets[i + 1]."""
        if self._offsets is None:
            offsets = self._columns["offsets"][()]
            if offsets[0] != 0 or offsets[-1] != self.rows or (np.diff(offsets) < 0).any():
                raise ValueError(f"/offsets do not ascend from 0 to its {self.rows} windows")
            self._offsets = offsets
        return self._offsets

    def windows(self) -> np.ndarray:
        """(rows, 2) float64: start and end in seconds; NaN where unknown."""
        windows: np.ndarray = self._columns["windows"][()]
        return windows

    def file_bytes(self) -> np.ndarray:
        """(clips,) int64: size of each clip's file; -1 where unknown."""
        sizes: np.ndarray = self._columns["bytes"][()]
        return sizes

    def digests(self) -> list[str]:
        """(clips,): digest of each clip's file; "" where unknown."""
        return [digest for part in strings(self._columns["digest"]) for digest in part]

    def failures(self) -> list[Failure]:
        """Return the recorded failures, each reason as one line."""
        columns = [strings(dataset, clean=name != "reason") for name, dataset in self._failures.items()]
        found = []
        for part in zip(*columns, strict=True):
            for clip_id, stream, reason in zip(*part, strict=True):
                _require_known(stream, "a failure")
                found.append(Failure(clip_id, stream, one_line(reason, MAX_TEXT)))
        return found

    def features(self, stream: str, dims: dict[str, int]) -> h5py.Dataset:
        """Return a stream's (rows, dim) dataset; add its dim to `dims`, or require the one that `dims` has."""
        expected = dims.setdefault(stream, self.dims[stream])
        if self.dims[stream] != expected:
            raise ValueError(f"{stream} has dimension {self.dims[stream]} instead of {expected}")
        return self._features[stream]

    def embedded(self, stream: str) -> np.ndarray:
        """Return (clips,) bool: whether a clip has an embedding, of at least one window; reads no features."""
        return any_row(self._masks[stream][()] != 0, self.offsets())

    def provenance(self) -> dict[str, Any]:
        """Facts that don't decide the numbers."""
        return self._content.json("provenance")

    def problems(self) -> list[str]:
        """Read everything and return what is wrong with the values, a line each."""
        found = []
        for _ in self.columns():
            pass
        self.failures()
        self.provenance()
        self.offsets()
        datasets = {**self._columns, **{f"failures/{name}": dataset for name, dataset in self._failures.items()}}
        for stream in self.dims:
            datasets[f"streams/{stream}/features"] = self._features[stream]
            datasets[f"streams/{stream}/present"] = self._masks[stream]
        if content_sha256(self._content.text("recipes"), datasets) != self._content.text("sha256"):
            found.append("content differs from its checksum")
        for stream, mask in self._masks.items():
            if not np.array_equal(mask[()] != 0, self._finite(stream)):
                found.append(f"/streams/{stream}/present differs from the rows that are embeddings")
        windows = self.windows()
        if not ((windows[:, 0] <= windows[:, 1]) | np.isnan(windows).all(axis=1)).all():
            found.append("/windows has one that ends before it starts")
        if (self.file_bytes() < UNKNOWN_BYTES).any() or not all(map(_DIGEST.fullmatch, self.digests())):
            found.append("/bytes or /digest has a value that no file can have")
        return found

    def _finite(self, stream: str) -> np.ndarray:
        finite = np.zeros(self.rows, bool)
        for part, values in read_slices(self._features[stream], np.arange(self.rows)):
            finite[part] = finite_rows(values)
        return finite

    # checks; each raises ValueError

    def _read_recipes(self) -> dict[str, dict[str, Any]]:
        recipes = self._content.json("recipes")
        for stream, recipe in recipes.items():
            _require_known(stream, "recipes")
            if not isinstance(recipe, dict):
                raise ValueError(f"recipes of {stream} are not a json object")
        return recipes

    def _require_lengths(self) -> None:
        texts = {name: len(column) for name, column in self._columns.items() if name != "windows"}
        texts["offsets"] -= 1
        failures = {f"failures/{name}": len(dataset) for name, dataset in self._failures.items()}
        for lengths in (texts, failures):
            if len(set(lengths.values())) > 1:
                raise ValueError(f"its columns have different lengths: {lengths}")
        if self._columns["windows"].shape[1] != 2:
            raise ValueError(f"/windows has shape {self._columns['windows'].shape} instead of ({self.rows}, 2)")
        for name, dataset in self._features.items():
            if len(dataset) != self.rows or not 1 <= dataset.shape[1] <= MAX_DIM:
                raise ValueError(f"/streams/{name}/features has shape {dataset.shape} for {self.rows} windows")
            if len(self._masks[name]) != self.rows:
                raise ValueError(f"/streams/{name}/present has {len(self._masks[name])} rows for {self.rows} windows")


def _require_known(stream: str, what: str) -> None:
    try:
        require_stream(one_line(stream, 40))
    except StoreError as error:
        raise ValueError(f"{what} of {error}") from None


@functools.lru_cache(maxsize=65_536)
def _labels(text: str) -> tuple[str, ...]:
    """Return a clip's labels from their json list."""
    labels = json.loads(text)
    if not isinstance(labels, list) or not labels:
        raise ValueError(f"/labels has '{one_line(text, 40)}', which is not a json list of labels")
    for label in labels:
        if not isinstance(label, str) or not is_clean(label):
            raise ValueError(f"/labels has '{one_line(label, 40)}': empty, too long, or with control characters")
    return tuple(labels)


_Version = tuple[int, ...]
_Places = dict[str, tuple[int, np.dtype[Any], tuple[int, int]]]
_layouts: dict[Path, tuple[_Version, _Places, np.ndarray | None]] = {}


@contextlib.contextmanager
def open_features(
    path: Path, dims: Mapping[str, int]
) -> Iterator[tuple[Mapping[str, h5py.Dataset | RawRows], np.ndarray | None]]:
    """Open a shard and return stream -> its rows, which can be sliced, and the offsets of clips (None: one row each).

    Errors are those of `open_shard`. Opening and checking a shard takes a millisecond, which matters if a thousand of
    them are read repeatedly. So the result of a check is cached, and is valid while the file is the checked one.
    """
    known = _layouts.get(path)
    if known is not None:
        version, places, offsets = known
        with open_raw(path) as file:
            if _version(os.fstat(file)) == version and all(
                dims.get(name, shape[1]) == shape[1] for name, (_, _, shape) in places.items()
            ):
                yield {name: RawRows(file, *place) for name, place in places.items()}, offsets
                return
    with open_shard(path, whole=True) as shard:
        features = {stream: shard.features(stream, dict(dims)) for stream in shard.dims}
        offsets = None if is_one_each(shard.offsets()) else shard.offsets()
        if isinstance(path, PosixPath):
            if len(_layouts) >= MOST_LAYOUTS:
                _layouts.clear()
            places = {name: (data.id.get_offset() or 0, data.dtype, data.shape) for name, data in features.items()}
            _layouts[path] = _version(shard.status), places, offsets
        yield features, offsets


def _version(status: os.stat_result) -> _Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

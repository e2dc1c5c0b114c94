"""Embeddings that stay on disk, for stores that are larger than memory.

`StoredEmbeddings` is the lazy counterpart of `Embeddings`. Per clip it holds the position of its rows (4 bytes per
stream, and 4 more), and its id, label and group as `Texts`, whose bytes it shares with the manifest. Rows are read on
request, a few MB at a time, so reading takes little more memory than its result. `EmbeddingSource` is the interface of
both, and all that training and scoring use.

Rows are read by `os.preadv`, not from a memory map, because its pages would count as memory of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from alphafuse.data.columns import AT_ONCE, Places, Texts, row_int
from alphafuse.data.embeddings import (
    ROWS_AT_ONCE,
    UNKNOWN_BYTES,
    Embeddings,
    Failure,
    failures_of,
    finite_rows,
    pool,
    rows_of,
)
from alphafuse.errors import StoreError, unknown
from alphafuse.system.remote import is_remote

from .hdf5 import ShardGoneError, damaged, read_slices
from .shard import open_features, open_shard

READ_TRIES = 5
Result = TypeVar("Result")


class EmbeddingSource(Protocol):
    """Embeddings of clips, in memory or on disk: the interface for training and scoring.

    >>> from alphafuse import Dataset, EmbeddingSource
    >>> def count(source: EmbeddingSource) -> int:
    ...     return int(source.present("ast").sum())
    >>> dataset = Dataset.open("demo")
    >>> count(dataset.embeddings("val")), count(dataset.store("val").open_rows())
    (26, 26)
    """

    @property
    def clip_ids(self) -> Sequence[str]:
        """(clips,)."""

    @property
    def labels(self) -> Sequence[str]:
        """(clips,)."""

    @property
    def groups(self) -> Sequence[str]:
        """(clips,): source videos."""

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        """Stream -> everything that decides its numbers."""

    @property
    def dims(self) -> Mapping[str, int]:
        """Stream -> dimension, for the stored streams."""

    def __len__(self) -> int:
        """Clips."""

    def present(self, stream: str) -> np.ndarray:
        """Return (clips,) bool: whether a clip has this embedding; `StoreError` for a stream not in `dims`."""

    def take(self, rows: np.ndarray) -> EmbeddingSource:
        """Return the clips at these positions (an integer array) or under this mask (a boolean array)."""

    def read_rows(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return stream -> (positions, dim) float32, in the order of the positions (integers); NaN means absent."""

    def storage_order(self) -> np.ndarray:
        """Return (clips,) integers: all positions, in the order in which `read_rows` is fastest, block by block."""


class Locator(Protocol):
    """The interface of a store that `StoredEmbeddings` needs."""

    folder: Path

    def absolute(self) -> Locator:
        """Return the same store with an absolute path, for processes with another working folder."""

    def locate(self, clip_ids: Sequence[str]) -> tuple[RowIndex, tuple[Failure, ...]]:
        """Find the present rows of these clips, and the failures of those without."""

    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        """Stream -> the recipe that all shards share."""


@dataclass(frozen=True)
class RowIndex:
    """Positions of clips' rows. The clips of all shards are numbered consecutively, as if the shards were one table.

    Attributes:
        shards: files, oldest first.
        starts: (shards + 1,) int64: number of each shard's first clip; last, the number of all clips.
        dims: stream -> dimension.
        entries: stream -> (clips,) number under which the clip's embedding is stored (int32, int64 from 2^31 on), -1
            if it has none.
        mentions: (clips,) number under which the clip is listed, with or without embeddings; -1 if it is not.
    """

    shards: tuple[Path, ...]
    starts: np.ndarray
    dims: Mapping[str, int]
    entries: Mapping[str, np.ndarray]
    mentions: np.ndarray

    def take(self, positions: np.ndarray) -> RowIndex:
        """Return the index of the clips at these positions."""
        entries = {stream: numbers[positions] for stream, numbers in self.entries.items()}
        return replace(self, entries=entries, mentions=self.mentions[positions])

    def only(self, streams: Sequence[str]) -> RowIndex:
        """Return the index of these streams only."""
        dims = {stream: dim for stream, dim in self.dims.items() if stream in streams}
        return replace(self, dims=dims, entries={stream: self.entries[stream] for stream in dims})

    def places(self) -> np.ndarray:
        """Return (clips,) int64: the number of a clip's first embedding, else of its mention; -1 if it has none."""
        places = np.full(len(self.mentions), -1, np.int64)
        for numbers in (*self.entries.values(), self.mentions):
            np.copyto(places, numbers, where=places < 0)
        return places

    def shards_of(self, numbers: np.ndarray) -> list[int]:
        """Return the positions of the shards that hold clips with these numbers."""
        found = np.unique(np.searchsorted(self.starts, numbers[numbers >= 0], side="right")) - 1
        return [int(shard) for shard in found]


@dataclass(eq=False, repr=False)
class StoredEmbeddings:
    """Embeddings of clips, in the requested order, that stay on disk; `EmbeddingStore.open_rows` makes it.

    It describes the store at that time: embeddings added later are ignored; if another process packs the store, the
    rows are located again.

    Attributes:
        clip_ids, labels, groups: (clips,) each.
        failures: reasons of absent rows; a clip that is absent without a failure had not been extracted.
        recipes: stream -> everything that decides its numbers.
        store: store of the rows.
        index: positions of the rows in it.

    >>> import numpy as np
    >>> from alphafuse import EmbeddingStore
    >>> rows = EmbeddingStore("demo/stores/test").open_rows()
    >>> rows.dims
    {'timesformer': 96, 'ast': 96}
    >>> rows.read_rows(np.array([0, 7]))["ast"].shape
    (2, 96)
    """

    clip_ids: Texts
    labels: Texts
    groups: Texts
    failures: tuple[Failure, ...]
    recipes: Mapping[str, Mapping[str, Any]]
    store: Locator
    index: RowIndex
    _order: np.ndarray | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}=({len(self)}, {dim})" for name, dim in self.dims.items())
        return f"StoredEmbeddings({len(self)} clips, {shapes}, {len(self.failures)} failures, in {self.store.folder})"

    @property
    def dims(self) -> Mapping[str, int]:
        """Stream -> dimension."""
        return self.index.dims

    def present(self, stream: str) -> np.ndarray:
        """Return (clips,) bool: whether a clip has this stream's embedding."""
        if stream not in self.dims:
            raise StoreError(unknown("stream", stream, self.dims))
        return self.index.entries[stream] >= 0

    def take(self, rows: np.ndarray) -> StoredEmbeddings:
        """Return the clips at these positions (an integer array) or under this mask (a boolean array)."""
        if rows.dtype == bool and rows.all():
            return self
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows
        clip_ids = self.clip_ids.take(positions)
        return StoredEmbeddings(
            clip_ids=clip_ids,
            labels=self.labels.take(positions),
            groups=self.groups.take(positions),
            failures=failures_of(self.failures, clip_ids),
            recipes=self.recipes,
            store=self.store,
            index=self.index.take(positions),
        )

    def only(self, streams: Sequence[str]) -> StoredEmbeddings:
        """Return the same clips in the same `storage_order`, with these streams only."""
        if set(streams) >= set(self.dims):
            return self
        self.storage_order()
        kept = replace(self, index=self.index.only(streams))
        kept._order = self._order
        return kept

    def absolute(self) -> StoredEmbeddings:
        """Return the same with absolute local paths, for processes with another working folder."""
        if is_remote(self.store.folder):
            return self
        self.storage_order()
        shards = tuple(path.absolute() for path in self.index.shards)
        same = replace(self, store=self.store.absolute(), index=replace(self.index, shards=shards))
        same._order = self._order
        return same

    def read_rows(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return stream -> (positions, dim) float32, in the order of the positions (integers); NaN means absent.

        A clip with several windows gets the mean over those that have an embedding. Neighbours in `storage_order`
        are read together, in whatever order the positions are; pass many at a time, since each call opens the shards
        that it reads.

        Raises:
            StoreError: a shard is damaged, or embeddings have disappeared since the store was opened.
        """
        return self._retrying(lambda: _read_features(self.index, positions, None))

    def read_windows(self, positions: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
        """Return stream -> (rows, dim) float32, a row per window, clip after clip; NaN means absent.

        Args:
            positions: positions of clips (integers), in any order, each once.
            offsets: (positions + 1,): offsets of these clips' rows in the result, from `columns`.

        Raises:
            StoreError: as in `read_rows`, or two shards disagree about a clip's windows.
        """
        return self._retrying(lambda: _read_features(self.index, positions, offsets))

    def blocks(self, offsets: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield all clips in order, some at a time: their positions, and stream -> (rows, dim).

        `offsets` are those of `columns`.
        """
        start = 0
        while start < len(self):
            most = int(np.searchsorted(offsets, offsets[start] + ROWS_AT_ONCE, side="right")) - 1
            positions = np.arange(start, max(most, start + 1))
            yield positions, self.read_windows(positions, rows_of(offsets, positions)[1])
            start += len(positions)

    def columns(self) -> Embeddings:
        """Return everything that is stored of these clips but features: windows, files, all labels."""
        return Embeddings(
            clip_ids=tuple(self.clip_ids),
            labels=tuple(self.labels),
            groups=tuple(self.groups),
            features={},
            failures=self.failures,
            recipes=self.recipes,
            **self._retrying(lambda: _read_columns(self.index)),
        )

    def load(self, *, pooled: bool = False) -> Embeddings:
        """Read the same into memory; `pooled`: with one row per clip, as `read_rows` returns it."""
        columns, everything = self.columns(), np.arange(len(self))
        if pooled:
            return replace(columns.pooled(), features=self.read_rows(everything))
        return replace(columns, features=self.read_windows(everything, columns.offsets))

    def storage_order(self) -> np.ndarray:
        """Return (clips,) integers: all positions sorted by shard and row; clips without embeddings come last.

        It stays the same if the store is packed meanwhile, so that random draws from it do too.
        """
        if self._order is None:
            place = replace(self.index, mentions=np.full(len(self), -1)).places()
            place[place < 0] = self.index.starts[-1]
            self._order = np.argsort(place, kind="stable").astype(row_int(len(self)), copy=False)
            self._order.setflags(write=False)
        return self._order

    def _retrying(self, read: Callable[[], Result]) -> Result:
        """Return the result of `read`; if a shard has disappeared, locate the rows again and retry."""
        for _ in range(READ_TRIES):
            try:
                return read()
            except ShardGoneError:
                self._locate_again()
        raise keeps_changing(self.store.folder)

    def _locate_again(self) -> None:
        """Locate the rows in the present shards; absent rows stay absent."""
        distinct = self.clip_ids.take(Places(self.clip_ids).firsts())
        found, _ = self.store.locate(distinct)
        recipes = self.store.recipes()
        places = Places(distinct)
        chunks = range(0, len(self), AT_ONCE)
        current = found.take(np.concatenate([places.find(self.clip_ids.strings(i, i + AT_ONCE)) for i in chunks]))
        entries = {}
        for stream, before in self.index.entries.items():
            numbers = current.entries.get(stream)
            same = current.dims.get(stream) == self.dims[stream] and recipes.get(stream) == self.recipes[stream]
            if numbers is None or not same or (numbers[before >= 0] < 0).any():
                raise StoreError(
                    f"{self.store.folder} has lost {stream} embeddings since it was opened: run the same command "
                    "again, after `alphafuse extract` if it asks for that"
                )
            entries[stream] = np.where(before >= 0, numbers, -1)
        self.index = replace(current, dims=self.dims, entries=entries)


def keeps_changing(folder: Path) -> StoreError:
    """Return the error for a store whose shards keep disappearing."""
    return StoreError(f"shards of {folder} keep disappearing: is another process packing the store?")


def _read_features(index: RowIndex, positions: np.ndarray, offsets: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return stream -> features of these clips: pooled (positions, dim), or (rows, dim) by `offsets`."""
    rows = len(positions) if offsets is None else int(offsets[-1])
    result, order, wanted = {}, {}, {}
    shards: set[int] = set()
    for stream, dim in index.dims.items():
        numbers = index.entries[stream][positions]
        result[stream] = np.full((rows, dim), np.nan, np.float32)
        order[stream] = np.argsort(numbers, kind="stable")[np.count_nonzero(numbers < 0) :]
        wanted[stream] = numbers[order[stream]]
        shards.update(index.shards_of(wanted[stream]))
    for shard in sorted(shards):
        start, stop = index.starts[shard : shard + 2]
        with open_features(index.shards[shard], index.dims) as (features, ends):
            for stream, numbers in wanted.items():
                first, last = np.searchsorted(numbers, (start, stop))
                if first < last:
                    targets, clips = order[stream][first:last], numbers[first:last] - start
                    if offsets is not None:
                        targets, own = rows_of(offsets, targets)
                        counts = np.diff(ends)[clips] if ends is not None else np.ones(len(clips), np.int64)
                        if not np.array_equal(np.diff(own), counts):
                            raise StoreError(
                                f"shards of {index.shards[shard].parent} disagree about a clip's windows: remove "
                                f"{index.shards[shard].name}, which came later, and extract again"
                            )
                    for part, values in _read_clips(features[stream], clips, ends, pooled=offsets is None):
                        if (
                            offsets is None and np.isnan(values[:, 0]).any()
                        ):  # although the shard's mask marks it as an embedding
                            raise damaged(index.shards[shard], f"a row of {stream} is not an embedding")
                        result[stream][targets[part]] = values
    return result


def _read_clips(
    dataset: Any, clips: np.ndarray, ends: np.ndarray | None, *, pooled: bool
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield features of a shard's clips, given by ascending numbers: (slice of the result, its values).

    The result has a row per clip if `pooled`, else all rows; `ends` are the shard's offsets, None = one row each.
    """
    if ends is None:
        yield from read_slices(dataset, clips)
        return
    distinct, again = np.unique(clips, return_inverse=True)
    rows, own = rows_of(ends, distinct)
    values = np.empty((len(rows), dataset.shape[1]), np.float32)
    for part, some in read_slices(dataset, rows):
        values[part] = some
    values[~finite_rows(values)] = np.nan
    yield slice(None), pool(values, own)[again] if pooled else values[rows_of(own, again)[0]]


def _read_columns(index: RowIndex) -> dict[str, Any]:
    """Read the windows, files and labels of clips from the shards, as fields of `Embeddings`."""
    places = index.places()
    order = np.argsort(places, kind="stable")
    numbers, counts, file_bytes = places[order], np.ones(len(places), np.int64), np.full(len(places), UNKNOWN_BYTES)
    digests, labels = [""] * len(places), [()] * len(places)
    parts = []
    for shard in index.shards_of(numbers):
        start, stop = index.starts[shard : shard + 2]
        first, last = np.searchsorted(numbers, (start, stop))
        targets, clips = order[first:last], numbers[first:last] - start
        with open_shard(index.shards[shard], whole=True) as opened:
            file_bytes[targets] = opened.file_bytes()[clips]
            shard_digests, shard_labels = opened.digests(), opened.labels()
            for target, clip in zip(targets.tolist(), clips.tolist(), strict=True):
                digests[target], labels[target] = shard_digests[clip], shard_labels[clip]
            rows, own = rows_of(opened.offsets(), clips)
            counts[targets] = np.diff(own)
            parts.append((targets, opened.windows()[rows]))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    windows = np.full((offsets[-1], 2), np.nan)
    for targets, found in parts:
        windows[rows_of(offsets, targets)[0]] = found
    return {
        "windows": windows,
        "offsets": offsets,
        "file_bytes": file_bytes,
        "digests": tuple(digests),
        "label_lists": tuple(labels),
    }

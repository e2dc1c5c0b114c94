"""Embeddings that stay on disk: how stage two sees a store that is larger than memory.

`StoredEmbeddings` is the lazy counterpart of `Embeddings`. Per clip it holds its id, label and group (shared with the
manifest) and where its rows lie (8 bytes per modality); rows are read when they are asked for, in slices of at most
`SLICE_BYTES`, so that reading takes little more memory than what it returns. `EmbeddingSource` is what both have in
common, and all that training and scoring use.

Slices go through h5py. Measured on one core, rows of 768 float32 in the page cache: slices of 1 to 8 MB at 21 to
25 GB/s, a memory map at 9 GB/s, a slice of one row in 7 microseconds. And mapped pages would count as the process's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np

from alphafuse.errors import StoreError, unknown

if TYPE_CHECKING:
    from .store import EmbeddingStore, Failure

FORMAT_VERSION = 1
READ_TRIES = 5
READ_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError)  # what h5py raises for a damaged file
SLICE_BYTES = 4 * 2**20
GAP_BYTES = 32 * 2**10  # reading what lies between two rows takes no longer than another call of h5py
ID_ROWS = 65_536  # clip_ids read at a time: about 5 MB


class EmbeddingSource(Protocol):
    """Embeddings of clips, in memory or on disk: what training and scoring need of them."""

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
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Modality -> what decided its numbers."""

    @property
    def dims(self) -> Mapping[str, int]:
        """Modality -> dimension, for the modalities that there are."""

    def __len__(self) -> int:
        """Clips."""

    def present(self, modality: str) -> np.ndarray:
        """(clips,) bool: which clips have this modality's embedding; `StoreError` for a modality not in `dims`."""

    def take(self, rows: np.ndarray) -> EmbeddingSource:
        """The clips at these positions (an integer array) or under this mask (a boolean array)."""

    def read_rows(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Modality -> (positions, dim) float32, in the order of the positions (integers); NaN where absent."""

    def storage_order(self) -> np.ndarray:
        """(clips,) int64: all positions, in an order in which `read_rows` is fastest, block after block."""


@dataclass(frozen=True)
class RowIndex:
    """Where clips' rows lie. Rows are numbered through all shards, as if these were one table.

    Attributes:
        shards: files, oldest first.
        starts: (shards + 1,) int64: number of each shard's first row; last, the rows of all.
        dims: modality -> dimension.
        rows: modality -> (clips,) int64 row number, -1 where the clip has no such embedding.
    """

    shards: tuple[Path, ...]
    starts: np.ndarray
    dims: Mapping[str, int]
    rows: Mapping[str, np.ndarray]

    def take(self, positions: np.ndarray) -> RowIndex:
        """The index of the clips at these positions."""
        return replace(self, rows={modality: rows[positions] for modality, rows in self.rows.items()})


@dataclass(eq=False, repr=False)
class StoredEmbeddings:
    """Embeddings of clips, in the order asked for, that stay on disk; `EmbeddingStore.open_rows` makes it.

    It describes the store as it was then: embeddings added later are not seen, and when another process packs the
    store, rows are looked up anew.

    Attributes:
        clip_ids, labels, groups: (clips,) each.
        failures: why rows are absent; a clip that is absent without a failure had not been extracted.
        settings: modality -> what decided its numbers.
        store: where the rows are.
        index: where in it.
    """

    clip_ids: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    failures: tuple[Failure, ...]
    settings: Mapping[str, Mapping[str, Any]]
    store: EmbeddingStore
    index: RowIndex
    _order: np.ndarray | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}=({len(self)}, {dim})" for name, dim in self.dims.items())
        return f"StoredEmbeddings({len(self)} clips, {shapes}, {len(self.failures)} failures, in {self.store.folder})"

    @property
    def dims(self) -> Mapping[str, int]:
        """Modality -> dimension."""
        return self.index.dims

    def present(self, modality: str) -> np.ndarray:
        """(clips,) bool: which clips have this modality's embedding."""
        if modality not in self.dims:
            raise StoreError(unknown("modality", modality, self.dims))
        return self.index.rows[modality] >= 0

    def take(self, rows: np.ndarray) -> StoredEmbeddings:
        """The clips at these positions (an integer array) or under this mask (a boolean array)."""
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows
        chosen = positions.tolist()
        clip_ids = tuple(self.clip_ids[i] for i in chosen)
        return StoredEmbeddings(
            clip_ids=clip_ids,
            labels=tuple(self.labels[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
            failures=failures_of(self.failures, clip_ids),
            settings=self.settings,
            store=self.store,
            index=self.index.take(positions),
        )

    def read_rows(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Modality -> (positions, dim) float32, in the order of the positions (integers); NaN where absent.

        Positions that lie side by side in `storage_order` are read together, in whatever order they are given; ask for
        many at a time, since each call opens the shards it reads.

        Raises:
            StoreError: a shard is damaged, or embeddings that were there are gone.
        """
        for _ in range(READ_TRIES):
            try:
                return _read_rows(self.index, positions)
            except ShardGoneError:
                self._locate_again()
            except READ_ERRORS as error:
                raise damaged(self.store.folder, error) from error
        raise keeps_changing(self.store.folder)

    def storage_order(self) -> np.ndarray:
        """(clips,) int64: all positions sorted by shard and row; clips without any embedding come last.

        It stays the same when the store is packed meanwhile, so that what is drawn from it does too.
        """
        if self._order is None:
            nowhere = self.index.starts[-1]
            place = np.full(len(self), nowhere)
            for rows in self.index.rows.values():  # a clip's first modality decides
                place = np.where((place == nowhere) & (rows >= 0), rows, place)
            self._order = np.argsort(place, kind="stable")
            self._order.setflags(write=False)
        return self._order

    def _locate_again(self) -> None:
        """Find the rows in the shards of now; those that were absent stay so."""
        distinct = {clip_id: position for position, clip_id in enumerate(dict.fromkeys(self.clip_ids))}
        found, _ = self.store.locate(tuple(distinct))
        settings = self.store.settings()
        here = found.take(np.fromiter((distinct[clip_id] for clip_id in self.clip_ids), np.int64, len(self)))
        rows = {}
        for modality, before in self.index.rows.items():
            now = here.rows.get(modality)
            same = here.dims.get(modality) == self.dims[modality] and settings.get(modality) == self.settings[modality]
            if now is None or not same or (now[before >= 0] < 0).any():
                raise StoreError(
                    f"{self.store.folder} has lost {modality} embeddings since it was opened: run the same command "
                    "again, after `alphafuse extract` if it asks for that"
                )
            rows[modality] = np.where(before >= 0, now, -1)
        self.index = replace(here, dims=self.dims, rows=rows)


def failures_of(failures: Sequence[Failure], clip_ids: Sequence[str]) -> tuple[Failure, ...]:
    """The failures of these clips."""
    failed = {failure.clip_id for failure in failures}
    kept = failed.intersection(clip_ids)
    return tuple(failure for failure in failures if failure.clip_id in kept)


# one shard


class ShardGoneError(Exception):
    """A shard was listed and is gone: another process packed the store meanwhile."""


def open_shard(path: Path) -> h5py.File:
    """Open a shard for reading, without file locks (it never changes).

    Raises:
        ShardGoneError: no such file any more.
        StoreError: not a readable shard, or one of another format version.
    """
    try:
        shard = h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise ShardGoneError(path) from None
    except OSError as error:
        raise StoreError(f"shard {path} is damaged ({error}): remove it and run extract again") from None
    version = shard.attrs.get("format_version")
    if version != FORMAT_VERSION:
        shard.close()
        raise StoreError(
            f"shard {path} has format version {version}, this alphafuse reads {FORMAT_VERSION}: "
            "install the alphafuse that made it, or extract into another root"
        )
    return shard


def damaged(folder: Path, error: Exception) -> StoreError:
    """The error for a shard that opens and can't be read."""
    return StoreError(f"a shard of {folder} is damaged ({error}): `alphafuse store verify {folder}` names it")


def keeps_changing(folder: Path) -> StoreError:
    """The error for a store whose shards are gone each time they are looked for."""
    return StoreError(f"shards of {folder} keep disappearing: is something else packing the store?")


def id_chunks(shard: h5py.File) -> Iterator[list[str]]:
    """clip_ids of a shard in order, `ID_ROWS` at a time."""
    clip_ids = shard["clip_id"].asstr()
    for start in range(0, len(clip_ids), ID_ROWS):
        yield list(clip_ids[start : start + ID_ROWS])


def feature_rows(shard: h5py.File, modality: str, dims: dict[str, int]) -> h5py.Dataset:
    """A modality's (clips, dim) dataset; its dim is added to `dims`, or must be the one that is there."""
    dataset = shard[modality]
    expected = (len(shard["clip_id"]), dims.setdefault(modality, dataset.shape[-1]))
    if dataset.shape != expected:
        raise ValueError(f"{modality} has shape {dataset.shape} instead of {expected}")
    return dataset


def read_slices(dataset: h5py.Dataset, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
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


def finite_rows(values: np.ndarray) -> np.ndarray:
    """(rows,) bool: which rows of a matrix are embeddings."""
    return np.isfinite(values).all(axis=1)


def _read_rows(index: RowIndex, positions: np.ndarray) -> dict[str, np.ndarray]:
    result, order, wanted = {}, {}, {}
    shards: set[int] = set()
    for modality, dim in index.dims.items():
        rows = index.rows[modality][positions]
        result[modality] = np.empty((len(rows), dim), np.float32)
        result[modality][rows < 0] = np.nan
        order[modality] = np.argsort(rows, kind="stable")
        order[modality] = order[modality][np.count_nonzero(rows < 0) :]
        wanted[modality] = rows[order[modality]]
        shards.update((np.unique(np.searchsorted(index.starts, wanted[modality], side="right")) - 1).tolist())
    for number in sorted(shards):
        start, stop = index.starts[number : number + 2]
        with open_shard(index.shards[number]) as shard:
            for modality, rows in wanted.items():
                first, last = np.searchsorted(rows, (start, stop))
                if first < last:
                    targets = order[modality][first:last]
                    dataset = feature_rows(shard, modality, dict(index.dims))
                    for part, values in read_slices(dataset, rows[first:last] - start):
                        result[modality][targets[part]] = values
    return result

"""Embeddings that stay on disk: how stage two sees a store that is larger than memory.

`StoredEmbeddings` is the lazy counterpart of `Embeddings`. Per clip it holds where its rows lie (4 bytes per modality),
and its id, label and group as `Texts`, whose bytes it shares with the manifest; rows are read when they are asked for,
a few MB at a time, so that reading takes little more memory than what it returns. `EmbeddingSource` is what both have
in common, and all that training and scoring use.

Rows are read by `os.preadv`, not from a memory map, whose pages would count as the process's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from alphafuse.data.columns import AT_ONCE, Places, Texts, row_int
from alphafuse.data.embeddings import Failure, failures_of
from alphafuse.errors import StoreError, unknown
from alphafuse.system.remote import is_remote

from .shard import ShardGoneError, damaged, open_features, read_slices

if TYPE_CHECKING:
    from .store import EmbeddingStore

READ_TRIES = 5


class EmbeddingSource(Protocol):
    """Embeddings of clips, in memory or on disk: what training and scoring need of them.

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
        """(clips,) integers: all positions, in an order in which `read_rows` is fastest, block after block."""


@dataclass(frozen=True)
class RowIndex:
    """Where clips' rows lie. Rows are numbered through all shards, as if these were one table.

    Attributes:
        shards: files, oldest first.
        starts: (shards + 1,) int64: number of each shard's first row; last, the rows of all.
        dims: modality -> dimension.
        rows: modality -> (clips,) row number (int32, int64 from 2^31 rows on), -1 where the clip has no such embedding.
    """

    shards: tuple[Path, ...]
    starts: np.ndarray
    dims: Mapping[str, int]
    rows: Mapping[str, np.ndarray]

    def take(self, positions: np.ndarray) -> RowIndex:
        """The index of the clips at these positions."""
        return replace(self, rows={modality: rows[positions] for modality, rows in self.rows.items()})

    def only(self, modalities: Sequence[str]) -> RowIndex:
        """The index of some modalities alone."""
        dims = {modality: dim for modality, dim in self.dims.items() if modality in modalities}
        return replace(self, dims=dims, rows={modality: self.rows[modality] for modality in dims})


@dataclass(eq=False, repr=False)
class StoredEmbeddings:
    """Embeddings of clips, in the order asked for, that stay on disk; `EmbeddingStore.open_rows` makes it.

    It describes the store as it was then: embeddings added later are not seen, and when another process packs the
    store, rows are looked up anew.

    Attributes:
        clip_ids, labels, groups: (clips,) each.
        failures: why rows are absent; a clip that is absent without a failure had not been extracted.
        recipes: modality -> what decided its numbers.
        store: where the rows are.
        index: where in it.

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

    def only(self, modalities: Sequence[str]) -> StoredEmbeddings:
        """The same clips in the same `storage_order`, of which only these modalities are read."""
        if set(modalities) >= set(self.dims):
            return self
        self.storage_order()
        kept = replace(self, index=self.index.only(modalities))
        kept._order = self._order
        return kept

    def anywhere(self) -> StoredEmbeddings:
        """The same, for processes that work in other folders: local paths are absolute."""
        if is_remote(self.store.folder):
            return self
        self.storage_order()
        shards = tuple(path.absolute() for path in self.index.shards)
        store = type(self.store)(self.store.folder.absolute())
        same = replace(self, store=store, index=replace(self.index, shards=shards))
        same._order = self._order
        return same

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
        raise keeps_changing(self.store.folder)

    def storage_order(self) -> np.ndarray:
        """(clips,) integers: all positions sorted by shard and row; clips without any embedding come last.

        It stays the same when the store is packed meanwhile, so that what is drawn from it does too.
        """
        if self._order is None:
            place = np.full(len(self), -1, np.int64)
            for rows in self.index.rows.values():  # a clip's first modality decides
                np.copyto(place, rows, where=place < 0)
            place[place < 0] = self.index.starts[-1]
            self._order = np.argsort(place, kind="stable").astype(row_int(len(self)), copy=False)
            self._order.setflags(write=False)
        return self._order

    def _locate_again(self) -> None:
        """Find the rows in the shards of now; those that were absent stay so."""
        distinct = self.clip_ids.take(Places(self.clip_ids).firsts())
        found, _ = self.store.locate(distinct)
        recipes = self.store.recipes()
        places = Places(distinct)
        chunks = range(0, len(self), AT_ONCE)
        here = found.take(np.concatenate([places.find(self.clip_ids.strings(i, i + AT_ONCE)) for i in chunks]))
        rows = {}
        for modality, before in self.index.rows.items():
            now = here.rows.get(modality)
            same = here.dims.get(modality) == self.dims[modality] and recipes.get(modality) == self.recipes[modality]
            if now is None or not same or (now[before >= 0] < 0).any():
                raise StoreError(
                    f"{self.store.folder} has lost {modality} embeddings since it was opened: run the same command "
                    "again, after `alphafuse extract` if it asks for that"
                )
            rows[modality] = np.where(before >= 0, now, -1)
        self.index = replace(here, dims=self.dims, rows=rows)


def keeps_changing(folder: Path) -> StoreError:
    """The error for a store whose shards are gone each time they are looked for."""
    return StoreError(f"shards of {folder} keep disappearing: is something else packing the store?")


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
        with open_features(index.shards[number], index.dims) as features:
            for modality, rows in wanted.items():
                first, last = np.searchsorted(rows, (start, stop))
                if first < last:
                    targets = order[modality][first:last]
                    for part, values in read_slices(features[modality], rows[first:last] - start):
                        if np.isnan(values[:, 0]).any():  # the shard said otherwise; `verify` looks at all columns
                            raise damaged(index.shards[number], f"a row of /{modality} is no embedding")
                        result[modality][targets[part]] = values
    return result

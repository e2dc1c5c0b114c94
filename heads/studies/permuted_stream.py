"""Embeddings in which one stream is that of other clips, to see what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alphafuse.data.store.lazy import EmbeddingSource


@dataclass(frozen=True, eq=False)
class PermutedStream:
    """Embeddings in which one stream of each clip is that of another clip: an `EmbeddingSource`.

    Attributes:
        rows: the embeddings.
        stream: the stream.
        positions: (clips,) which of `rows` they are.
        partners: (all of `rows`,) the clip whose stream each gets.
    """

    rows: EmbeddingSource
    stream: str
    positions: np.ndarray
    partners: np.ndarray

    @classmethod
    def of(cls, rows: EmbeddingSource, stream: str, partners: np.ndarray) -> PermutedStream:
        """Permute one stream of all clips."""
        return cls(rows, stream, np.arange(len(rows)), partners)

    @property
    def clip_ids(self) -> Sequence[str]:
        """(clips,)."""
        return [self.rows.clip_ids[i] for i in self.positions]

    @property
    def labels(self) -> Sequence[str]:
        """(clips,)."""
        return [self.rows.labels[i] for i in self.positions]

    @property
    def groups(self) -> Sequence[str]:
        """(clips,)."""
        return [self.rows.groups[i] for i in self.positions]

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        """As those of the embeddings."""
        return self.rows.recipes

    @property
    def dims(self) -> Mapping[str, int]:
        """As those of the embeddings."""
        return self.rows.dims

    def __len__(self) -> int:
        return len(self.positions)

    def present(self, stream: str) -> np.ndarray:
        """Return (clips,) bool."""
        chosen = self.partners[self.positions] if stream == self.stream else self.positions
        return self.rows.present(stream)[chosen]

    def take(self, rows: np.ndarray) -> PermutedStream:
        """Return some of the clips."""
        return replace(self, positions=self.positions[rows])

    def read_rows(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return stream -> (positions, dim) float32."""
        chosen = self.positions[positions]
        found = self.rows.read_rows(chosen)
        return {**found, self.stream: self.rows.read_rows(self.partners[chosen])[self.stream]}

    def storage_order(self) -> np.ndarray:
        """Return all positions, in the order in which the other streams are read fastest."""
        place = np.empty(len(self.rows), np.int64)
        place[self.rows.storage_order()] = np.arange(len(self.rows))
        return np.argsort(place[self.positions], kind="stable")

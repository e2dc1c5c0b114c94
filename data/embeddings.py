"""Embeddings of clips in memory: what stage one hands to the store, and the store to stage two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alphafuse.errors import StoreError, unknown

MODALITIES = ("timesformer", "ast")
ROWS_AT_ONCE = 4096  # bounds memory, changes no number


@dataclass(frozen=True)
class Failure:
    """Why a clip has no embedding of a modality.

    >>> from alphafuse import Failure
    >>> Failure("0mel8sIKhgk_000007", "ast", "no audio stream").reason
    'no audio stream'
    """

    clip_id: str
    modality: str
    reason: str


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of clips, in the order asked for.

    Attributes:
        clip_ids, labels, groups: (clips,) each.
        features: modality -> (clips, dim) float32; a row of NaN where the clip has no embedding.
        failures: why rows are absent; a clip that is absent without a failure has not been extracted yet.
        recipes: modality -> what decided its numbers.

    >>> import numpy as np
    >>> from alphafuse import Embeddings, Failure
    >>> rows = Embeddings(
    ...     clip_ids=("a", "b"),
    ...     labels=("dog", "cat"),
    ...     groups=("a", "b"),
    ...     features={"ast": np.array([[0.5, 1.0, 2.0], [np.nan] * 3], np.float32)},
    ...     failures=(Failure("b", "ast", "no audio stream"),),
    ...     recipes={"ast": {"protocol": "mine"}},
    ... )
    >>> rows
    Embeddings(2 clips, ast=(2, 3), 1 failures)
    >>> rows.present("ast")
    array([ True, False])
    >>> rows.take(rows.present("ast")).clip_ids
    ('a',)
    """

    clip_ids: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    features: Mapping[str, np.ndarray]
    failures: tuple[Failure, ...] = ()
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for modality, matrix in self.features.items():
            if modality not in MODALITIES:
                raise StoreError(unknown("modality", modality, MODALITIES))
            if matrix.ndim != 2 or len(matrix) != len(self.clip_ids):
                raise StoreError(f"{modality}: shape {matrix.shape} does not fit {len(self.clip_ids)} clips")

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={matrix.shape}" for name, matrix in self.features.items())
        return f"Embeddings({len(self)} clips, {shapes}, {len(self.failures)} failures)"

    @property
    def dims(self) -> Mapping[str, int]:
        """Modality -> dimension."""
        return {modality: matrix.shape[1] for modality, matrix in self.features.items()}

    def present(self, modality: str) -> np.ndarray:
        """(clips,) bool: which clips have this modality's embedding."""
        if modality not in self.features:
            raise StoreError(unknown("modality", modality, self.features))
        matrix = self.features[modality]
        present = np.empty(len(matrix), bool)
        for start in range(0, len(matrix), ROWS_AT_ONCE):
            present[start : start + ROWS_AT_ONCE] = finite_rows(matrix[start : start + ROWS_AT_ONCE])
        return present

    def take(self, rows: np.ndarray) -> Embeddings:
        """The clips at these positions (an integer array) or under this mask (a boolean array)."""
        if rows.dtype == bool and rows.all():
            return self
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows
        clip_ids = tuple(self.clip_ids[i] for i in positions)
        return Embeddings(
            clip_ids=clip_ids,
            labels=tuple(self.labels[i] for i in positions),
            groups=tuple(self.groups[i] for i in positions),
            features={name: matrix[positions] for name, matrix in self.features.items()},
            failures=failures_of(self.failures, clip_ids),
            recipes=self.recipes,
        )

    def read_rows(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Modality -> (positions, dim) float32, in the order of the positions (integers); NaN where absent."""
        return {name: matrix[positions].astype(np.float32, copy=False) for name, matrix in self.features.items()}

    def storage_order(self) -> np.ndarray:
        """(clips,) int64: all positions, which in memory may be read in any order."""
        return np.arange(len(self))


def failures_of(failures: Sequence[Failure], clip_ids: Sequence[str]) -> tuple[Failure, ...]:
    """The failures of these clips."""
    if not failures:
        return ()
    failed = {failure.clip_id for failure in failures}
    kept = failed.intersection(clip_ids)
    return tuple(failure for failure in failures if failure.clip_id in kept)


def finite_rows(values: np.ndarray) -> np.ndarray:
    """(rows,) bool: which rows of a matrix are embeddings."""
    return np.isfinite(values).all(axis=1)

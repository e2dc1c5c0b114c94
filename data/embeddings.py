"""Embeddings of clips in memory: stage one writes them into the store, and the store returns them to stage two.

A clip has one row per window, a part of the clip that all streams embed. Most clips have one window; then row i is
clip i, and `windows` and `offsets` can be omitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from alphafuse.errors import StoreError, unknown
from alphafuse.system.files import UNKNOWN_BYTES

from .streams import require_stream

ROWS_AT_ONCE = 4096  # bounds memory, changes no number


@dataclass(frozen=True)
class Failure:
    """A reason why a clip has no embedding of a stream.

    >>> from alphafuse import Failure
    >>> Failure("0mel8sIKhgk_000007", "ast", "no audio stream").reason
    'no audio stream'
    """

    clip_id: str
    stream: str
    reason: str


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of clips, in the requested order.

    Attributes:
        clip_ids, labels, groups: (clips,) each; a clip's label is the first of its labels.
        features: stream -> (rows, dim) float32, clip after clip; a row of NaN means that there is no embedding.
        failures: reasons of absent rows; a clip that is absent without a failure has not been extracted yet.
        recipes: stream -> everything that decides its numbers.
        windows: (rows, 2) float64: start and end of each row's window in seconds; NaN = unknown, the default.
        offsets: (clips + 1,) int64: clip i has the rows offsets[i] to offsets[i + 1]; default: one row per clip.
        file_bytes: (clips,) int64: size of the clip's file when it was extracted; -1 = unknown, the default.
        digests: (clips,): `alphafuse.system.files.file_digest` of that file; "" = unknown, the default.
        label_lists: (clips,): all labels of each clip; by default, and if the first isn't the clip's label, that label.

    Raises:
        StoreError: a stream is unknown, or shapes of arrays don't fit each other.

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
    windows: np.ndarray = field(default=None)  # type: ignore[arg-type]
    offsets: np.ndarray = field(default=None)  # type: ignore[arg-type]
    file_bytes: np.ndarray = field(default=None)  # type: ignore[arg-type]
    digests: tuple[str, ...] = field(default=None)  # type: ignore[arg-type]
    label_lists: tuple[tuple[str, ...], ...] = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        clips = len(self.clip_ids)
        self._default("offsets", lambda: np.arange(clips + 1))
        if len(self.offsets) != clips + 1 or self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise StoreError(f"offsets of shape {self.offsets.shape} don't ascend from 0 for {clips} clips")
        rows = int(self.offsets[-1])
        self._default("windows", lambda: np.full((rows, 2), np.nan))
        self._default("file_bytes", lambda: np.full(clips, UNKNOWN_BYTES))
        self._default("digests", lambda: ("",) * clips)
        lists = self.label_lists or [(label,) for label in self.labels]
        fitting = tuple(
            several if several[:1] == (label,) else (label,) for several, label in zip(lists, self.labels, strict=True)
        )
        object.__setattr__(self, "label_lists", fitting)
        if self.windows.shape != (rows, 2) or not len(self.file_bytes) == len(self.digests) == clips:
            raise StoreError(f"windows, file_bytes or digests do not fit {clips} clips of {rows} windows")
        for stream, matrix in self.features.items():
            require_stream(stream)
            if matrix.ndim != 2 or len(matrix) != rows:
                raise StoreError(f"{stream}: shape {matrix.shape} does not fit {clips} clips of {rows} windows")

    def _default(self, name: str, value: Any) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value())

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={matrix.shape}" for name, matrix in self.features.items())
        return f"Embeddings({len(self)} clips, {shapes}, {len(self.failures)} failures)"

    @property
    def dims(self) -> Mapping[str, int]:
        """Stream -> dimension."""
        return {stream: matrix.shape[1] for stream, matrix in self.features.items()}

    @property
    def row_clips(self) -> np.ndarray:
        """Return (rows,) int64: the position of each row's clip."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def present(self, stream: str) -> np.ndarray:
        """Return (clips,) bool: whether a clip has this stream's embedding, of at least one window."""
        if stream not in self.features:
            raise StoreError(unknown("stream", stream, self.features))
        matrix = self.features[stream]
        finite = np.empty(len(matrix), bool)
        for start in range(0, len(matrix), ROWS_AT_ONCE):
            finite[start : start + ROWS_AT_ONCE] = finite_rows(matrix[start : start + ROWS_AT_ONCE])
        return any_row(finite, self.offsets)

    def take(self, rows: np.ndarray) -> Embeddings:
        """Return the clips at these positions (an integer array) or under this mask (a boolean array)."""
        if rows.dtype == bool and rows.all():
            return self
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows
        clip_ids = tuple(self.clip_ids[i] for i in positions)
        taken, offsets = rows_of(self.offsets, positions)
        return Embeddings(
            clip_ids=clip_ids,
            labels=tuple(self.labels[i] for i in positions),
            groups=tuple(self.groups[i] for i in positions),
            features={name: matrix[taken] for name, matrix in self.features.items()},
            failures=failures_of(self.failures, clip_ids),
            recipes=self.recipes,
            windows=self.windows[taken],
            offsets=offsets,
            file_bytes=self.file_bytes[positions],
            digests=tuple(self.digests[i] for i in positions),
            label_lists=tuple(self.label_lists[i] for i in positions),
        )

    def read_rows(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return stream -> (positions, dim) float32, in the order of the positions (integers); NaN means absent.

        A clip with several windows gets the mean over those that have an embedding.
        """
        taken, offsets = rows_of(self.offsets, positions)
        return {name: pool(matrix[taken], offsets) for name, matrix in self.features.items()}

    def pooled(self) -> Embeddings:
        """Return one row per clip, as `read_rows` does; its window spans those of the clip."""
        if is_one_each(self.offsets):
            return self
        some, first, last = np.diff(self.offsets) > 0, self.offsets[:-1], self.offsets[1:] - 1
        windows = np.full((len(self), 2), np.nan)
        windows[some] = np.stack([self.windows[first[some], 0], self.windows[last[some], 1]], axis=1)
        features = self.read_rows(np.arange(len(self)))
        return replace(self, features=features, windows=windows, offsets=np.arange(len(self) + 1))

    def storage_order(self) -> np.ndarray:
        """Return (clips,) int64: all positions in order; in memory, every order is fast."""
        return np.arange(len(self))


def failures_of(failures: Sequence[Failure], clip_ids: Sequence[str]) -> tuple[Failure, ...]:
    """Return the failures of these clips."""
    if not failures:
        return ()
    failed = {failure.clip_id for failure in failures}
    kept = failed.intersection(clip_ids)
    return tuple(failure for failure in failures if failure.clip_id in kept)


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Return (rows,) bool: whether a row of a matrix is an embedding."""
    return np.isfinite(values).all(axis=1)


# rows of clips; offsets (clips + 1,): clip i has the rows offsets[i] to offsets[i + 1]


def is_one_each(offsets: np.ndarray) -> bool:
    """Whether every clip has exactly one row."""
    return bool(offsets[-1] == len(offsets) - 1 and (np.diff(offsets) == 1).all())


def rows_of(offsets: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of these clips, clip after clip (rows,), and these clips' own offsets (clips + 1,)."""
    starts = offsets[clips]
    own = np.concatenate([[0], np.cumsum(offsets[clips + 1] - starts)])
    return np.repeat(starts - own[:-1], np.diff(own)) + np.arange(own[-1]), own


def any_row(mask: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Turn (rows,) bool into (clips,) bool: whether any row of a clip is True."""
    if is_one_each(offsets):
        return mask
    before = np.concatenate([[0], np.cumsum(mask)])
    return before[offsets[1:]] > before[offsets[:-1]]


def pool(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Turn (rows, dim) into (clips, dim) float32: the mean over each clip's embeddings, NaN if it has none.

    The mean is computed in float64; for a clip with one embedding it is that row, to the bit.
    """
    if is_one_each(offsets):
        return values.astype(np.float32, copy=False)
    pooled = np.full((len(offsets) - 1, values.shape[1]), np.nan, np.float32)
    finite = finite_rows(values)
    clips, starts, counts = np.unique(
        np.repeat(np.arange(len(pooled)), np.diff(offsets))[finite], return_index=True, return_counts=True
    )
    if len(clips):
        pooled[clips] = np.add.reduceat(values[finite].astype(np.float64), starts, axis=0) / counts[:, None]
    return pooled

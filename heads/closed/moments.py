"""Sufficient statistics of embeddings: all that ridge regression needs, gathered in one pass over a store.

Per fold of source videos: the clips of each class, the sum of their vectors and the Gram matrix of the dimensions of
all streams. Sums over folds are statistics of their clips, so a training set is any sum of folds, some of the streams
are a block of the matrices, and weights of streams scale rows and columns. The memory depends on dimensions and
classes, not on the number of clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.errors import ExperimentError
from alphafuse.system.devices import threads_for

ROWS_AT_ONCE = 4096  # rows in memory at a time; sums are float64, so that the number changes only rounding
NULL_SHARE = 1e-10  # axes with less than this share of a stream's largest variance are float32's rounding


@dataclass(frozen=True)
class Moments:
    """Statistics of clips that have all streams, per fold and class. D: all dimensions; C: classes; F: folds.

    Attributes:
        dims: stream -> dimension, in the order of the columns.
        shift: (D,) float64, subtracted from each vector before it is summed, against cancellation; near their mean.
        counts: (F, C) float64, clips.
        sums: (F, C, D) float64, sums of the shifted vectors.
        gram: (F, D, D) float64, sums of the products of the shifted vectors.

    >>> import numpy as np
    >>> from alphafuse import Dataset
    >>> from alphafuse.heads.closed.moments import Moments, assign_folds
    >>> rows = Dataset.open("demo").embeddings("train")
    >>> targets = np.unique(rows.labels, return_inverse=True)[1]
    >>> found = Moments.of(rows, targets, assign_folds(rows.groups, targets, 5), classes=16)
    >>> found.folds, found.counts.sum(), found.gram.shape
    (5, np.float64(230.0), (5, 192, 192))
    """

    dims: Mapping[str, int]
    shift: np.ndarray
    counts: np.ndarray
    sums: np.ndarray
    gram: np.ndarray

    @classmethod
    def of(
        cls,
        rows: EmbeddingSource,
        targets: np.ndarray,
        folds: np.ndarray,
        *,
        classes: int,
        streams: Sequence[str] = (),
        advance: Callable[[int], None] = lambda clips: None,
    ) -> Moments:
        """Gather the statistics of all clips of a source.

        Args:
            rows: embeddings; every clip has all streams.
            targets: (clips,) int in [0, classes).
            folds: (clips,) int, from 0.
            classes: C.
            streams: the streams to use; all by default.
            advance: called with the clips of each block.

        Raises:
            ExperimentError: a clip lacks a stream, or there are no clips.
        """
        dims = {stream: rows.dims[stream] for stream in streams or rows.dims}
        if not len(rows):
            raise ExperimentError("there are no clips to weigh streams on")
        total, count = sum(dims.values()), int(folds.max()) + 1
        shift: np.ndarray | None = None
        counts = np.zeros((count, classes))
        sums, gram = np.zeros((count, classes, total)), np.zeros((count, total, total))
        for positions, x in blocks(rows, dims):
            if np.isnan(x).any():
                raise ExperimentError("a clip lacks a stream: statistics are of clips that have all streams")
            shift = x.mean(axis=0, dtype=np.float64) if shift is None else shift
            shifted = x - shift  # float64
            of_fold, of_class = folds[positions], targets[positions]
            for fold in np.unique(of_fold):
                own = np.flatnonzero(of_fold == fold)
                own = own[np.argsort(of_class[own], kind="stable")]
                vectors = torch.from_numpy(shifted[own])
                with threads_for(len(own) * total**2):
                    gram[fold] += (vectors.T @ vectors).numpy()
                found, starts, sizes = np.unique(of_class[own], return_index=True, return_counts=True)
                counts[fold, found] += sizes
                sums[fold, found] += np.add.reduceat(shifted[own], starts, axis=0)
            advance(len(positions))
        assert shift is not None
        return cls(dims, shift, counts, sums, gram)

    def __add__(self, other: Moments) -> Moments:
        """Return the statistics of both sets of clips, which were shifted by the same vector."""
        if dict(self.dims) != dict(other.dims) or not np.array_equal(self.shift, other.shift):
            raise ValueError("statistics of different streams or shifts can't be added")
        return replace(
            self, counts=self.counts + other.counts, sums=self.sums + other.sums, gram=self.gram + other.gram
        )

    @property
    def folds(self) -> int:
        """Number of folds."""
        return len(self.counts)

    @property
    def columns(self) -> dict[str, slice]:
        """Stream -> its columns."""
        ends = np.cumsum([0, *self.dims.values()])
        return {stream: slice(int(ends[i]), int(ends[i + 1])) for i, stream in enumerate(self.dims)}

    def only(self, streams: Sequence[str]) -> Moments:
        """Return the statistics of some of the streams, in this object's order."""
        dims = {stream: dim for stream, dim in self.dims.items() if stream in streams}
        if dims == self.dims:
            return self
        own = np.concatenate([np.arange(one.start, one.stop) for stream, one in self.columns.items() if stream in dims])
        return Moments(dims, self.shift[own], self.counts, self.sums[:, :, own], self.gram[:, own][:, :, own])

    def covariance(self, stream: str) -> np.ndarray:
        """Return the covariance of a stream's dimensions over all clips, (dim, dim)."""
        own = self.columns[stream]
        n = self.counts.sum()
        mean = self.sums.sum(axis=(0, 1))[own] / n
        return self.gram[:, own, own].sum(axis=0) / n - np.outer(mean, mean)

    def scaled(self, factors: np.ndarray) -> Moments:
        """Return the statistics of the vectors times `factors`, (D,) or one number per dimension."""
        return replace(
            self,
            shift=self.shift * factors,
            sums=self.sums * factors,
            gram=self.gram * factors * factors[:, None],
        )

    def rotated(self, basis: Mapping[str, np.ndarray]) -> Moments:
        """Return the statistics of each stream's vectors times its `basis`, (dim, new dim)."""
        dims = {stream: basis[stream].shape[1] for stream in self.dims}
        matrix = torch.block_diag(*(torch.from_numpy(basis[stream]) for stream in self.dims))  # (D, new D)
        gram = np.stack([(matrix.T @ torch.from_numpy(of_fold) @ matrix).numpy() for of_fold in self.gram])
        rotation = matrix.numpy()
        return replace(self, dims=dims, shift=self.shift @ rotation, sums=self.sums @ rotation, gram=gram)

    def principal_axes(self, stream: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a stream's principal axes, (dim, rank), and the variance along each, (rank,), largest first.

        Axes without variance are left out: constant or repeated dimensions, and with fewer clips than dimensions all
        directions that no clip has. A ridge never uses them.
        """
        variances, axes = np.linalg.eigh(self.covariance(stream))
        kept = variances > NULL_SHARE * max(variances[-1], 0)
        return axes[:, kept][:, ::-1], variances[kept][::-1]


def blocks(rows: EmbeddingSource, dims: Mapping[str, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield positions and their vectors of these streams side by side, (rows, D) float32, in the order of storage."""
    order = rows.storage_order()
    for start in range(0, len(order), ROWS_AT_ONCE):
        positions = order[start : start + ROWS_AT_ONCE]
        read = rows.read_rows(positions)
        yield positions, np.concatenate([read[stream] for stream in dims], axis=1)


def assign_folds(groups: Sequence[str], targets: np.ndarray, folds: int, *, seed: int = 0) -> np.ndarray:
    """Return the fold of each clip, (clips,) int in [0, folds): whole source videos, each class spread over all folds.

    Source videos are shuffled, sorted by the class of their first clip, and dealt out in turn.
    """
    _, first, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(first))
    dealt = shuffled[np.argsort(targets[first[shuffled]], kind="stable")]
    of_group = np.empty(len(first), np.int64)
    of_group[dealt] = np.arange(len(first)) % min(folds, len(first))
    return of_group[index]


def effective_rank(variances: np.ndarray) -> float:
    """Return the exponential of the entropy of the shares of variance (Roy and Vetterli 2007): 1 to their number.

    >>> float(effective_rank(np.array([1.0, 1.0])))
    2.0
    """
    shares = variances / variances.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))

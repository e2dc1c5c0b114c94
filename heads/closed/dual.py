"""Ridge on few clips, directly from their rows: in dual form where there are fewer clips than dimensions.

The kernel of n clips is a sum over streams, K = sum of alpha_s^2 X_s X_s', X_s centred. With Y the centred one-hot
labels,

    scores of the n clips = shares of the classes + K (K + lambda)^-1 Y          = shares + S Y
    head                  W_s = alpha_s^2 X_s' (K + lambda)^-1 Y                 on stream s

which is the ridge of `ridge`, whose matrices have the size of the dimensions. Both come from one decomposition of the
smaller of the two, K = U diag(d) U'; after it, every penalty costs a few products.

The error of leaving clips out needs no other fit (Allen 1974; Golub, Heath and Wahba 1979; with an intercept and
several clips at once: Cook and Weisberg 1982, section 3.6): the left-out residuals of the clips of one source video g
are

    (I - H_gg)^-1 E_g,   H = 11'/n + S,   E = Y - S Y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .moments import NULL_SHARE
from .ridge import best_penalty


@dataclass(frozen=True)
class Choice:
    """The penalty of a ridge on few clips.

    Attributes:
        penalty: lambda.
        loss: squared error per left-out clip, a sum over classes; None if no clip could be left out.
        left_out: number of clips that were left out and counted.
    """

    penalty: float
    loss: float | None
    left_out: int


class FewClips:
    """Ridge heads of weighted streams on few clips, for any penalty.

    Args:
        features: stream -> (n, dim), one row per clip, without NaN.
        targets: (n,) int in [0, classes).
        classes: C.
        alphas: stream -> weight; 0 drops the stream. By default all streams get the same total variance.

    >>> import numpy as np
    >>> from alphafuse import Dataset
    >>> from alphafuse.heads.closed.dual import FewClips
    >>> rows = Dataset.open("demo").embeddings("train")
    >>> targets = np.unique(rows.labels, return_inverse=True)[1]
    >>> clips = FewClips(rows.features, targets, 16)
    >>> choice = clips.choose_penalty(rows.groups)
    >>> matrix, bias = clips.head(choice.penalty)
    >>> choice.left_out, matrix.shape, bias.shape
    (230, (192, 16), (16,))
    """

    def __init__(
        self,
        features: Mapping[str, np.ndarray],
        targets: np.ndarray,
        classes: int,
        alphas: Mapping[str, float] | None = None,
    ) -> None:
        alphas = equal_weights(features) if alphas is None else alphas
        self._alpha = np.concatenate([np.full(x.shape[1], alphas[stream]) for stream, x in features.items()])
        x = np.concatenate(list(features.values()), axis=1).astype(np.float64)
        self._mean = x.mean(axis=0)  # (D,)
        self._x = torch.from_numpy((x - self._mean) * self._alpha)  # (n, D)
        self.n, self._targets = len(targets), targets
        self.shares = torch.from_numpy(np.bincount(targets, minlength=classes) / self.n)
        self._y = torch.nn.functional.one_hot(torch.from_numpy(targets), classes).double() - self.shares  # (n, C)
        self._u, self._d = _directions(self._x)  # (n, rank), (rank,)
        self._uy = self._u.T @ self._y  # (rank, C)

    @property
    def unit(self) -> float:
        """The penalty that halves a direction of average size: the mean of K's n - 1 eigenvalues."""
        return float(self._d.sum()) / max(self.n - 1, 1) or 1.0

    def head(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (matrix (D, C), bias (C,)), float64, for unweighted vectors, streams side by side."""
        coefficients = self._u @ (self._uy / (self._d + penalty)[:, None])  # (n, C)
        matrix = (self._x.T @ coefficients).numpy() * self._alpha[:, None]
        return matrix, self.shares.numpy() - self._mean @ matrix

    def left_out(self, penalty: float, groups: Sequence[str]) -> np.ndarray:
        """Return residuals of the one-hot labels (n, C), each clip's from a ridge without the clips of its group."""
        return self._left_out(penalty, _together(groups))

    def _left_out(self, penalty: float, together: Sequence[torch.Tensor]) -> np.ndarray:
        kept = self._d / (self._d + penalty)
        residuals = self._y - self._u @ (self._uy * kept[:, None])
        own = 1 - 1 / self.n - (self._u.square() @ kept)  # the diagonal of I - H
        found = residuals / own[:, None]
        for rows in together:  # (groups, clips): all groups of one size at once
            u = self._u[rows]
            blocks = torch.eye(rows.shape[1], dtype=torch.float64) - 1 / self.n - (u * kept) @ u.mT
            found[rows] = torch.linalg.solve(blocks, residuals[rows])
        return found.numpy()

    def choose_penalty(self, groups: Sequence[str]) -> Choice:
        """Return the penalty of least squared error on left-out clips, leaving out one source video at a time.

        A clip whose class has no clip in another source video isn't counted: without it, its class is unknown, which
        says nothing about the penalty. If no clip is counted (one clip per class), the penalty is `unit`.

        Args:
            groups: (n,) source video of each clip.
        """
        counted, together = has_company(self._targets, groups), _together(groups)
        if not counted.any() or not len(self._d):
            return Choice(self.unit, None, 0)

        def loss_of(penalty: float) -> float:
            return float(np.square(self._left_out(penalty, together)[counted]).sum() / counted.sum())

        return Choice(*best_penalty(loss_of, self.unit), int(counted.sum()))


def equal_weights(features: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the weights that give streams, (n, dim) each, the total variance that `standardised` gives them.

    A stream that is constant over these clips gets 0.
    """
    total = sum(x.shape[1] for x in features.values())
    weights = {}
    for stream, x in features.items():
        variance = float(x.var(axis=0, dtype=np.float64).sum())
        is_constant = variance <= 1e-12 * float(np.square(x.mean(axis=0, dtype=np.float64)).sum())
        weights[stream] = 0.0 if is_constant else (variance * len(features) / total) ** -0.5
    return weights


def has_company(targets: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return (n,) bool: whether a clip's class has a clip in another group."""
    pairs = np.unique(np.stack([targets, np.unique(_as_text(groups), return_inverse=True)[1]]), axis=1)
    return np.asarray(np.bincount(pairs[0], minlength=targets.max() + 1)[targets] > 1)


def _directions(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return U (n, rank) and d (rank,) of X X' = U diag(d) U', without null ones, from the smaller of X X' and X' X."""
    is_dual = len(x) <= x.shape[1]
    d, vectors = torch.linalg.eigh(x @ x.T if is_dual else x.T @ x)
    kept = d > NULL_SHARE * d[-1].clamp(min=0)
    d, vectors = d[kept], vectors[:, kept]
    return (vectors if is_dual else x @ vectors / d.sqrt()), d


def _together(groups: Sequence[str]) -> list[torch.Tensor]:
    """Return the rows of the groups that have several, (groups, size) for each size."""
    _, index, sizes = np.unique(_as_text(groups), return_inverse=True, return_counts=True)
    order = np.argsort(index, kind="stable")
    starts = np.cumsum(sizes) - sizes
    return [
        torch.from_numpy(order[starts[sizes == size][:, None] + np.arange(size)])
        for size in np.unique(sizes[sizes > 1])
    ]


def _as_text(groups: Sequence[str]) -> np.ndarray:
    return np.asarray(groups, dtype=object).astype(str)

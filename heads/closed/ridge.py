"""Ridge heads in closed form: one-hot labels regressed on the streams, from `Moments` alone.

A head of the weights alpha_s and the penalty lambda minimises

    sum over clips |y - y_mean - sum over streams alpha_s x_s V_s|^2 + lambda sum over streams |V_s|^2,

x_s and y about their training means. With W_s = alpha_s V_s that is a ridge on the unweighted vectors with the penalty
lambda / alpha_s^2 on stream s: the weight of a stream is the scale of its prior (banded ridge, Nunez-Elizalde et al.
2019). So W = (G + P)^-1 B with G the centred Gram matrix, B the centred products of vectors and labels, P diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alphafuse.system.devices import threads_for

from .moments import Moments

LARGEST_EXPONENT = 40.0  # log2 of the penalty, relative to the dimensions: beyond, nothing is learned or penalised
ROUNDING = 1e-12  # a penalty below this share of the largest sum of squares is lost in the rounding of float64
SMALL = 512  # dimensions
PARABOLAS = 2  # one alone is off by up to 3e-4 of the loss, as much as two weights differ by
FLAT = 1e-7  # a relative difference of two losses that isn't worth another step


@dataclass(frozen=True)
class Centred:
    """Statistics of some clips about a mean vector and mean labels.

    Attributes:
        n: number of clips.
        mean: (D,) the mean vector, in shifted coordinates.
        shares: (C,) the mean of the one-hot labels.
        gram: (D, D) sum of products of the centred vectors.
        cross: (D, C) sum of products of centred vectors and labels.
        total: sum of squares of the centred labels.
    """

    n: float
    mean: torch.Tensor
    shares: torch.Tensor
    gram: torch.Tensor
    cross: torch.Tensor
    total: float

    @classmethod
    def of(
        cls, moments: Moments, folds: Sequence[int], *, about: Centred | None = None, device: str | torch.device = "cpu"
    ) -> Centred:
        """Return the statistics of these folds, about their own means or about those of `about`."""
        chosen = list(folds)
        counts = torch.from_numpy(moments.counts[chosen].sum(axis=0)).to(device)  # (C,)
        sums = torch.from_numpy(moments.sums[chosen].sum(axis=0)).to(device)  # (C, D)
        gram = torch.from_numpy(moments.gram[chosen].sum(axis=0)).to(device)
        n, of_all = float(counts.sum()), sums.sum(dim=0)
        mean = about.mean if about else of_all / n
        shares = about.shares if about else counts / n
        gram = gram - torch.outer(of_all, mean) - torch.outer(mean, of_all) + n * torch.outer(mean, mean)
        cross = (sums - torch.outer(counts, mean)).T - torch.outer(of_all - n * mean, shares)
        total = float(n - 2 * counts @ shares + n * shares @ shares)
        return cls(n, mean, shares, gram, cross, total)

    def block(self, columns: torch.Tensor) -> Centred:
        """Return the statistics of some of the columns."""
        return Centred(
            self.n, self.mean[columns], self.shares, self.gram[columns][:, columns], self.cross[columns], self.total
        )

    def solve(self, penalty: torch.Tensor) -> torch.Tensor:
        """Return the ridge's matrix (D, C) for a penalty (D,) above 0 on each dimension."""
        return torch.cholesky_solve(self.cross, torch.linalg.cholesky(_penalised(self.gram, penalty)))


@dataclass(frozen=True)
class Weighting:
    """Weights of the streams and the penalty that suits them best.

    Attributes:
        alphas: (N,) at least 0 each; 0 drops the stream.
        penalty: lambda.
        loss: out-of-fold squared error per clip, a mean over clips of sums over classes.
    """

    alphas: tuple[float, ...]
    penalty: float
    loss: float


class Folds:
    """Heads trained on all folds but one, scored on that one: the out-of-fold error of any weighting, without a clip.

    Args:
        moments: statistics with at least two folds. Axes without variance should be left out.
        device: device of the matrices.
    """

    def __init__(self, moments: Moments, *, device: str | torch.device = "cpu") -> None:
        self.moments, self.device = moments, device
        everything = range(moments.folds)
        self.train = [Centred.of(moments, [i for i in everything if i != f], device=device) for f in everything]
        held = [Centred.of(moments, [f], about=self.train[f], device=device) for f in everything]
        self.whole = Centred.of(moments, everything, device=device)
        self.unit = float(sum(moments.dims.values()))  # the penalty's natural size, if a dimension's variance is 1
        self._least = ROUNDING * float(self.whole.gram.diagonal().max())  # keeps singular matrices solvable
        self._total = sum(of_fold.total for of_fold in held)
        # small matrices are faster together, large ones one by one
        at_once = moments.folds if self.unit < SMALL else 1
        pairs = [*zip(self.train, held, strict=True)]
        self._all = [_Stacked.of(pairs[start : start + at_once]) for start in range(0, len(pairs), at_once)]
        self._used: tuple[tuple[bool, ...], list[_Stacked]] = (len(moments.dims) * (True,), self._all)

    def penalties(self, alphas: Sequence[float], penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the columns of the streams that weigh something, and the penalty on each of these columns."""
        columns, values = [], []
        for alpha, own in zip(alphas, self.moments.columns.values(), strict=True):
            if alpha:
                columns.append(torch.arange(own.start, own.stop))
                value = max(penalty / alpha**2, self._least)
                values.append(torch.full((own.stop - own.start,), value, dtype=torch.float64))
        return torch.cat(columns).to(self.device), torch.cat(values).to(self.device)

    def loss(self, alphas: Sequence[float], penalty: float) -> float:
        """Return the out-of-fold squared error per clip."""
        columns, values = self.penalties(alphas, penalty)
        used = tuple(alpha > 0 for alpha in alphas)
        if used != self._used[0]:  # kept while the set of streams stays
            self._used = used, self._all if all(used) else [part.block(columns) for part in self._all]
        return (self._total + sum(part.error(values) for part in self._used[1])) / self.whole.n

    def at(self, alphas: Sequence[float], penalty: float) -> Weighting:
        """Return these weights with this penalty."""
        with threads_for(self.unit**3):
            return Weighting(tuple(float(alpha) for alpha in alphas), penalty, self.loss(alphas, penalty))

    def best(self, alphas: Sequence[float], *, near: float | None = None) -> Weighting:
        """Return these weights with the penalty of least out-of-fold error; `near` is a guess of it."""
        with threads_for(self.unit**3):
            found, loss = best_penalty(lambda penalty: self.loss(alphas, penalty), self.unit, near)
        return Weighting(tuple(float(alpha) for alpha in alphas), found, loss)

    def distances(self, weightings: Sequence[Weighting], to: Weighting) -> np.ndarray:
        """Return how far each weighting's out-of-fold scores are from another's: mean squares per clip, (weightings,).

        All of them weigh every stream.
        """
        with threads_for(self.unit**3):
            total = np.zeros(len(weightings))
            for part in self._all:
                reference = part.solve(self.penalties(to.alphas, to.penalty)[1])
                for i, one in enumerate(weightings):
                    moved = part.solve(self.penalties(one.alphas, one.penalty)[1]).sub_(reference)
                    total[i] += float((part.held_gram @ moved).mul_(moved).sum())
        return total / self.whole.n

    def heads(self, weighting: Weighting) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return (matrix (D, C), bias (C,)) for shifted vectors, of the head trained without each fold."""
        return [self._head(train, weighting) for train in self.train]

    def refit(self, weighting: Weighting) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (matrix (D, C), bias (C,)) for shifted vectors, of the head trained on all folds."""
        return self._head(self.whole, weighting)

    def _head(self, train: Centred, weighting: Weighting) -> tuple[torch.Tensor, torch.Tensor]:
        columns, values = self.penalties(weighting.alphas, weighting.penalty)
        with threads_for(self.unit**3):
            if all(weighting.alphas):
                matrix = train.solve(values)
            else:
                matrix = torch.zeros_like(train.cross)
                matrix[columns] = train.block(columns).solve(values)
        return matrix, train.shares - train.mean @ matrix


@dataclass(frozen=True)
class _Stacked:
    """The matrices of some folds, trained on and held out: (folds, D, D) and (folds, D, C)."""

    gram: torch.Tensor
    cross: torch.Tensor
    held_gram: torch.Tensor
    held_cross: torch.Tensor

    @classmethod
    def of(cls, pairs: Sequence[tuple[Centred, Centred]]) -> _Stacked:
        """Stack pairs of training and held-out statistics; a single pair is not copied."""
        parts = [[train.gram, train.cross, held.gram, held.cross] for train, held in pairs]
        if len(parts) == 1:
            return cls(*(matrix[None] for matrix in parts[0]))
        return cls(*(torch.stack(matrices) for matrices in zip(*parts, strict=True)))

    def block(self, columns: torch.Tensor) -> _Stacked:
        """Return the matrices of some of the columns."""
        gram, held_gram = (whole[:, columns][:, :, columns] for whole in (self.gram, self.held_gram))
        return _Stacked(gram, self.cross[:, columns], held_gram, self.held_cross[:, columns])

    def solve(self, penalty: torch.Tensor) -> torch.Tensor:
        """Return the ridges' matrices, (folds, D, C), for a penalty (D,) on each dimension."""
        return torch.cholesky_solve(self.cross, torch.linalg.cholesky(_penalised(self.gram, penalty)))

    def error(self, penalty: torch.Tensor) -> float:
        """Return the out-of-fold squared error less that of the training shares; penalty (D,)."""
        matrix = self.solve(penalty)
        return float((self.held_gram @ matrix).sub_(self.held_cross, alpha=2).mul_(matrix).sum())


def _penalised(gram: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Return (..., D, D) with the penalty (D,) added to the diagonal."""
    penalised = gram.clone()
    penalised.diagonal(dim1=-2, dim2=-1).add_(penalty)
    return penalised


def best_penalty(loss_of: Callable[[float], float], unit: float, near: float | None = None) -> tuple[float, float]:
    """Return the penalty of least loss and the loss there, within about 0.05 octaves, by successive parabolas.

    Args:
        loss_of: penalty -> loss, with one valley in the logarithm of the penalty.
        unit: the penalty that exponent 0 means.
        near: a guess; without one, every third octave of a wide range is tried first.
    """
    losses: dict[float, float] = {}

    def at(exponent: float) -> float:
        if exponent not in losses:
            losses[exponent] = loss_of(unit * 2.0**exponent)
        return losses[exponent]

    centre = float(np.log2(near / unit)) if near else min(np.arange(-12.0, 13.0, 3.0).tolist(), key=at)
    while abs(centre) < LARGEST_EXPONENT:
        below, here, above = at(centre - 1), at(centre), at(centre + 1)
        lower = min(below, above)
        if here <= lower or here - lower < FLAT * here:
            break
        centre += 1 if above < below else -1
    around = [centre - 1, centre, centre + 1]
    for _ in range(PARABOLAS):
        curvature, slope, _ = np.polyfit(np.subtract(around, centre), [at(one) for one in around], 2)
        if curvature <= 0:
            break
        vertex = centre - slope / (2 * curvature)
        tried = sorted({*around, float(np.clip(vertex, around[0], around[2]))})
        lowest = min(range(1, len(tried) - 1), key=lambda i: at(tried[i]), default=1)
        around = tried[lowest - 1 : lowest + 2]
    best = min(losses, key=losses.__getitem__)
    return unit * 2.0**best, losses[best]

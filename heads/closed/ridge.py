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
from .systems import Dual, Primal, System, columns_of

LARGEST_EXPONENT = 40.0  # log2 of the penalty, relative to the dimensions: beyond, nothing is learned or penalised
SMALL = 512  # dimensions: smaller matrices are faster together, larger ones one by one
ROUNDING = 1e-12  # a penalty below this share of the largest sum of squares is lost in the rounding of float64
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
        self._refit: System | None = None
        self._dims = tuple(moments.dims.values())
        self._used = tuple(range(len(self._dims)))
        self._all = self._parts = self._grouped(held)

    def _grouped(self, held: Sequence[Centred]) -> list[_Part]:
        """Return the folds with their systems, in the form and in groups that are fastest."""
        parts, at_once = [], self.moments.folds if self.unit < SMALL else 1
        for start in range(0, self.moments.folds, at_once):
            train, own = self.train[start : start + at_once], held[start : start + at_once]
            system = _system(self._dims, train)
            parts.append(_Part(system, _stacked([one.gram for one in own]), _stacked([one.cross for one in own])))
        return parts

    def penalties(self, alphas: Sequence[float], penalty: float) -> tuple[tuple[int, ...], torch.Tensor]:
        """Return the streams that weigh something, by number, and the penalty of each on its dimensions."""
        used = tuple(i for i, alpha in enumerate(alphas) if alpha)
        values = [max(penalty / alphas[i] ** 2, self._least) for i in used]
        return used, torch.tensor(values, dtype=torch.float64, device=self.device)

    def loss(self, alphas: Sequence[float], penalty: float) -> float:
        """Return the out-of-fold squared error per clip."""
        used, values = self.penalties(alphas, penalty)
        if used != self._used:  # kept while the set of streams stays
            every = len(used) == len(self._dims)
            self._used, self._parts = used, self._all if every else [one.only(self._dims, used) for one in self._all]
        return (self._total + sum(part.error(values) for part in self._parts)) / self.whole.n

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
                reference = part.system.solve(self.penalties(to.alphas, to.penalty)[1])
                for i, one in enumerate(weightings):
                    moved = part.system.solve(self.penalties(one.alphas, one.penalty)[1]).sub_(reference)
                    total[i] += float((part.gram @ moved).mul_(moved).sum())
        return total / self.whole.n

    def heads(self, weighting: Weighting) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return (matrix (D, C), bias (C,)) for shifted vectors, of the head trained without each fold."""
        matrices = [matrix for part in self._all for matrix in self._solve(part.system, weighting)]
        return [(matrix, of.shares - of.mean @ matrix) for matrix, of in zip(matrices, self.train, strict=True)]

    def refit(self, weighting: Weighting) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (matrix (D, C), bias (C,)) for shifted vectors, of the head trained on all folds."""
        if self._refit is None:
            self._refit = _system(self._dims, [self.whole])
        matrix = self._solve(self._refit, weighting)[0]
        return matrix, self.whole.shares - self.whole.mean @ matrix

    def _solve(self, system: System, weighting: Weighting) -> torch.Tensor:
        """Return the matrices of a system's training sets, (sets, D, C), 0 for streams without weight."""
        used, values = self.penalties(weighting.alphas, weighting.penalty)
        with threads_for(self.unit**3):
            if len(used) == len(self._dims):
                return system.solve(values)
            found = system.only(used).solve(values)
            whole = found.new_zeros(len(found), sum(self._dims), found.shape[2])
            whole[:, columns_of(self._dims, used, found.device)] = found
            return whole


@dataclass(frozen=True)
class _Part:
    """Some folds: the system of their training clips, and the statistics of their held-out clips.

    Attributes:
        system: of a training set per fold.
        gram: (folds, D, D) of the held-out clips.
        cross: (folds, D, C) of the held-out clips.
    """

    system: System
    gram: torch.Tensor
    cross: torch.Tensor

    def only(self, dims: Sequence[int], streams: Sequence[int]) -> _Part:
        """Return the same for some of the streams, by number."""
        own = columns_of(dims, streams, self.gram.device)
        return _Part(self.system.only(streams), self.gram[:, own][:, :, own], self.cross[:, own])

    def error(self, penalties: torch.Tensor) -> float:
        """Return the out-of-fold squared error less that of the training shares; a penalty per stream."""
        matrix = self.system.solve(penalties)
        return float((self.gram @ matrix).sub_(self.cross, alpha=2).mul_(matrix).sum())


def _system(dims: tuple[int, ...], sets: Sequence[Centred]) -> System:
    """Return the system of some training sets, in the form that is faster."""
    if len(sets) == 1 and sets[0].n < sum(dims):
        return Dual.of(dims, sets[0].gram, sets[0].cross)
    return Primal(dims, _stacked([one.gram for one in sets]), _stacked([one.cross for one in sets]))


def _stacked(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (matrices, ...); a single one is not copied."""
    return matrices[0][None] if len(matrices) == 1 else torch.stack(list(matrices))


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

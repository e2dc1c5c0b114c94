"""The out-of-fold error of many weightings of the streams, each with its best penalty, from statistics alone.

Moments -> `standardised` -> `ridge.Folds` -> `ratio_profile` (two streams) or `search` (more) -> Weightings
                                           -> `tuned`: one good weighting of some of the streams, quickly
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from .moments import Moments
from .ridge import Folds, Weighting

OCTAVES, STEP = 4.0, 0.125  # log2 of the ratio of two streams' alphas: from -4 to 4
SEARCHED = 0.5  # octaves between the ratios at which the best penalty is searched
REACH = 3.0  # log2 of a weight among more streams: from -3 to 3 around the best
DIRECTIONS = 24  # random weightings of more than two streams; more add little to two rounds along each stream


@dataclass(frozen=True)
class Standardised:
    """Statistics of centred streams of equal total variance, on their principal axes.

    Attributes:
        moments: of the rotated, scaled streams; a dimension's variance is 1 on average.
        matrix: (D, rank) float64: shifted vectors times it are the rotated, scaled ones.
        scales: stream -> standard deviation that it was divided by.
        variances: stream -> variances along its principal axes, largest first, after scaling.
    """

    moments: Moments
    matrix: np.ndarray
    scales: Mapping[str, float]
    variances: Mapping[str, np.ndarray]

    def only(self, streams: Sequence[str]) -> Standardised:
        """Return some of the streams; `matrix` keeps the rows of all."""
        own = [np.arange(one.start, one.stop) for stream, one in self.moments.columns.items() if stream in streams]
        return replace(self, moments=self.moments.only(streams), matrix=self.matrix[:, np.concatenate(own)])


def constant_streams(moments: Moments) -> list[str]:
    """Return the streams whose embeddings are the same for all clips: nothing can be learned from them."""
    return [
        stream
        for stream, own in moments.columns.items()
        if np.trace(moments.covariance(stream)) <= 1e-12 * float(np.square(moments.shift[own]).sum() + 1e-300)
    ]


def standardised(moments: Moments, *, each_dimension: bool = False) -> Standardised:
    """Scale all streams to the same total variance, so that equal weights have a meaning; leave out null axes.

    Args:
        moments: statistics of streams that vary.
        each_dimension: scale every dimension to variance 1 first (z-scores), so that a few large ones don't rule.
    """
    total = sum(moments.dims.values())
    factors = np.ones(total)
    scales, basis, variances = {}, {}, {}
    for stream, own in moments.columns.items():
        diagonal = np.diag(moments.covariance(stream)).clip(0)
        if each_dimension:
            varies = diagonal > 1e-10 * diagonal.max()
            factors[own] = np.where(varies, 1 / np.sqrt(np.where(varies, diagonal, 1)), 0)
            diagonal = varies.astype(np.float64)
        scales[stream] = float(np.sqrt(diagonal.sum() * len(moments.dims) / total))
        factors[own] /= scales[stream]
    scaled = moments.scaled(factors)
    for stream in moments.dims:
        basis[stream], variances[stream] = scaled.principal_axes(stream)
    matrix = torch.block_diag(*(torch.from_numpy(np.ascontiguousarray(basis[stream])) for stream in moments.dims))
    rotated = scaled.rotated({stream: np.ascontiguousarray(axes) for stream, axes in basis.items()})
    return Standardised(rotated, factors[:, None] * matrix.numpy(), scales, variances)


def of_ratio(exponent: float) -> tuple[float, float]:
    """Return the weights of two streams with this log2 of the second's over the first's, geometric mean 1.

    >>> of_ratio(2.0)
    (0.5, 2.0)
    """
    return 2.0 ** (-exponent / 2), 2.0 ** (exponent / 2)


def ratio_profile(
    folds: Folds, *, step: float = STEP, advance: Callable[[int], None] = lambda points: None
) -> list[Weighting]:
    """Return two streams' weightings from 2^-4 to 2^4 in steps of `step` octaves, the equal one in the middle.

    The best penalty is searched at every half octave. In between it is interpolated in its logarithm: at its valley's
    floor the error hardly depends on it.
    """
    coarse = np.arange(0, OCTAVES + SEARCHED, max(SEARCHED, step))
    middle = folds.best(of_ratio(0.0))
    found = {0.0: middle}
    for side in (1, -1):
        last = middle
        for distance in coarse[1:]:
            last = folds.best(of_ratio(side * distance), near=last.penalty)
            found[side * distance] = last
            advance(1)
    exponents = sorted(found)
    penalty_at = PchipInterpolator(exponents, [np.log(found[exponent].penalty) for exponent in exponents])
    profile = []
    for exponent in np.arange(-round(OCTAVES / step), round(OCTAVES / step) + 1) * step:
        if exponent not in found:
            found[exponent] = folds.at(of_ratio(exponent), float(np.exp(penalty_at(exponent))))
            advance(1)
        profile.append(found[exponent])
    advance(1)
    return profile


def search(folds: Folds, *, seed: int = 0, advance: Callable[[int], None] = lambda points: None) -> list[Weighting]:
    """Return weightings of three and more streams, the equal one first: random directions, then each stream in turn.

    Weights have the geometric mean 1. Two rounds vary one stream at a time around the best weighting found so far, in
    half octaves and then in quarters.
    """
    count = len(folds.moments.dims)
    tried: dict[tuple[float, ...], Weighting] = {}

    def measure(exponents: np.ndarray, near: float | None) -> Weighting:
        key = tuple(np.round(exponents - exponents.mean(), 6))
        if key not in tried:
            tried[key] = folds.best((2.0 ** np.array(key)).tolist(), near=near)
            advance(1)
        return tried[key]

    best = equal = measure(np.zeros(count), None)
    rng = np.random.default_rng(seed)
    for _ in range(DIRECTIONS):
        direction = rng.standard_normal(count)
        direction *= rng.uniform(0, REACH) / np.abs(direction).max()
        best = min(best, measure(direction, equal.penalty), key=lambda found: found.loss)
    for step in (0.5, 0.25):
        for stream in range(count):
            centre = np.log2(best.alphas)
            for exponent in np.arange(-REACH, REACH + step, step):
                moved = centre.copy()
                moved[stream] += exponent
                if np.abs(moved - moved.mean()).max() <= 2 * REACH:
                    best = min(best, measure(moved, best.penalty), key=lambda found: found.loss)
    return [equal, *(found for found in tried.values() if found is not equal)]


def tuned(folds: Folds, streams: Collection[str], *, near: float | None = None) -> Weighting:
    """Return a weighting of some of the streams that was tuned quickly, and the same way whatever the streams hold.

    From equal weights, each stream in turn is moved by octaves while the out-of-fold error falls, in two rounds. No
    weight is more than 16 times another, so that a stream of noise ends at a weight that hardly matters.

    Args:
        folds: of all streams.
        streams: at least one; the others get the weight 0.
        near: a guess of the best penalty at equal weights.
    """
    used = np.array([stream in streams for stream in folds.moments.dims])
    tried: dict[tuple[float, ...], Weighting] = {}

    def measure(exponents: np.ndarray, near: float | None) -> Weighting:
        key = tuple(np.round(exponents - exponents.mean(), 6) + 0.0)
        if key not in tried:
            alphas = np.zeros(len(used))
            alphas[used] = 2.0 ** np.array(key)
            tried[key] = folds.best(alphas.tolist(), near=near)
        return tried[key]

    place = np.zeros(used.sum())
    best = measure(place, near)
    for _ in range(2):
        before = best
        for step in (*-np.eye(len(place)), *np.eye(len(place))):
            while np.ptp(place + step) <= OCTAVES and (found := measure(place + step, best.penalty)).loss < best.loss:
                place, best = place + step, found
        if best is before:
            break
    return best

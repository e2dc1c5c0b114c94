"""The profile of a loss over weightings: out-of-fold error of many weights of the streams, each with its best penalty.

Moments -> `standardised` -> `Folds` -> `ratio_profile` or `search` -> Weightings -> `score_rows` -> losses per source video
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alphafuse.data.store.lazy import EmbeddingSource

from .moments import Moments, blocks
from .ridge import Folds, Weighting

OCTAVES, STEP = 4.0, 0.125  # log2 of the ratio of two streams' alphas: from -4 to 4
REACH = 3.0  # log2 of a weight among more streams: from -3 to 3 around the best
DIRECTIONS = 24  # random weightings of more than two streams; more add little to two rounds along each stream
MOST_UNITS = 20_000  # source videos are merged beyond: bounds memory, and a variance needs no more
HEAD_BYTES = 2**28  # matrices of the candidates that are scored in one pass over the rows
CALIBRATION_CLIPS = 20_000  # clips on which a temperature is fitted: one number needs no more


@dataclass(frozen=True)
class Standardised:
    """Statistics of centred streams of equal total variance, on their principal axes.

    Attributes:
        moments: of the rotated, scaled streams; a dimension's variance is 1 on average.
        matrix: (D, rank) float64: shifted vectors times it are the rotated, scaled ones.
        scales: stream -> standard deviation that it was divided by.
        variances: stream -> variances along its principal axes, largest first, after scaling.
        shift: (D,) the shift of the original vectors.
    """

    moments: Moments
    matrix: np.ndarray
    scales: Mapping[str, float]
    variances: Mapping[str, np.ndarray]
    shift: np.ndarray


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
    return Standardised(rotated, factors[:, None] * matrix.numpy(), scales, variances, moments.shift)


def of_ratio(exponent: float) -> tuple[float, float]:
    """Return the weights of two streams with this log2 of the second's over the first's, geometric mean 1.

    >>> of_ratio(2.0)
    (0.5, 2.0)
    """
    return 2.0 ** (-exponent / 2), 2.0 ** (exponent / 2)


def ratio_profile(
    folds: Folds, *, step: float = STEP, advance: Callable[[int], None] = lambda points: None
) -> list[Weighting]:
    """Return two streams' weightings from 2^-4 to 2^4 in steps of `step` octaves, the equal one in the middle."""
    count = round(OCTAVES / step)
    middle = folds.best(of_ratio(0.0))
    found = {0: middle}
    for side in (1, -1):
        last = middle
        for i in range(1, count + 1):
            last = folds.best(of_ratio(side * i * step), near=last.penalty)
            found[side * i] = last
            advance(1)
    return [found[i] for i in sorted(found)]


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
            tried[key] = folds.best(2.0 ** np.array(key), near=near)
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


@dataclass(frozen=True)
class RowScores:
    """Scores of candidates on clips, summed over units (source videos, or groups of them beyond 20,000).

    Attributes:
        sizes: (units,) clips.
        squared, correct, log_loss: (candidates, units) sums over clips; log_loss is None without temperatures.
    """

    sizes: np.ndarray
    squared: np.ndarray
    correct: np.ndarray
    log_loss: np.ndarray | None


Head = tuple[np.ndarray, np.ndarray]  # (D, C) and (C,), for shifted vectors


def original(found: tuple[torch.Tensor, torch.Tensor], standard: Standardised) -> Head:
    """Return a head for the shifted original vectors, from one for the standardised ones."""
    matrix, bias = (part.cpu().numpy() for part in found)
    return standard.matrix @ matrix, bias


def score_rows(
    rows: EmbeddingSource,
    targets: np.ndarray,
    folds: np.ndarray,
    units: np.ndarray,
    candidates: Sequence[Callable[[], Sequence[Head]]],
    moments: Moments,
    *,
    temperatures: Sequence[float] | None = None,
    advance: Callable[[int], None] = lambda clips: None,
) -> RowScores:
    """Score heads on rows; each block of candidates reads the rows once.

    Args:
        rows, targets, folds: as in `Moments.of`; fold f is scored by each candidate's head f.
        units: (clips,) the unit of each clip.
        candidates: functions that return a candidate's heads, one per fold.
        moments: the original statistics: streams and shift.
        temperatures: one per candidate: scores divided by it are the logits of its probabilities.
        advance: called with the clips of each block of rows, per candidate.
    """
    count = int(units.max()) + 1
    shape = (len(candidates), count)
    squared, correct, log_loss = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    classes = moments.counts.shape[1]
    each = (int(folds.max()) + 1) * len(moments.shift) * classes * 4
    at_once = max(1, HEAD_BYTES // each)
    for start in range(0, len(candidates), at_once):
        chosen = range(start, min(start + at_once, len(candidates)))
        heads = [
            [
                (torch.from_numpy(matrix.astype(np.float32)), torch.from_numpy(bias.astype(np.float32)))
                for matrix, bias in candidates[i]()
            ]
            for i in chosen
        ]
        for positions, x in blocks(rows, moments.dims):
            shifted = torch.from_numpy((x - moments.shift).astype(np.float32))
            of_fold, of_class, of_unit = folds[positions], targets[positions], units[positions]
            for fold in np.unique(of_fold):
                own = np.flatnonzero(of_fold == fold)
                vectors, truth = shifted[own], torch.from_numpy(of_class[own])
                for i, head in zip(chosen, heads, strict=True):
                    matrix, bias = head[fold]
                    scores = torch.addmm(bias, vectors, matrix)  # (rows, C)
                    of_truth = scores.gather(1, truth[:, None])[:, 0]
                    error = scores.square().sum(dim=1) - 2 * of_truth + 1
                    squared[i] += np.bincount(of_unit[own], error.double().numpy(), count)
                    hits = (scores.argmax(dim=1) == truth).double().numpy()
                    correct[i] += np.bincount(of_unit[own], hits, count)
                    if temperatures is not None:
                        logits = scores.double() / temperatures[i]
                        loss = torch.logsumexp(logits, dim=1) - of_truth.double() / temperatures[i]
                        log_loss[i] += np.bincount(of_unit[own], loss.numpy(), count)
            advance(len(positions) * len(chosen))
    sizes = np.bincount(units, minlength=count).astype(np.float64)
    return RowScores(sizes, squared, correct, log_loss if temperatures is not None else None)


def units_of(groups: Sequence[str], *, seed: int = 0) -> np.ndarray:
    """Return the unit of resampling of each clip, (clips,) int: its source video; beyond 20,000, whole ones merged at random."""
    _, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    count = int(index.max()) + 1
    if count <= MOST_UNITS:
        return index
    return (np.random.default_rng(seed).permutation(count) % MOST_UNITS)[index]

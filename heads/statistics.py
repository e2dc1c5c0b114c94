"""Intervals and tests: what a difference between heads can mean on a split of this size.

The unit of chance is the source video (group): clips of one video go together in every resample and every sign flip.
Arrays of per-clip values are (seeds, clips): one row for each head that differs from the others only in its seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

from alphafuse.data.power import LEVEL

RESAMPLES = 2000
DRAWS = 10_000
EXACT_GROUPS = 13  # sign flips are enumerated up to here (2^13 = 8,192), drawn beyond
BLOCK_CELLS = 4_000_000  # resampled group counts held at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval and the method that made it."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class PairedTest:
    """A two-sided paired test.

    Attributes:
        difference: mean of a - b.
        p_value: in (0, 1].
        method: for people.
        pairs: units that were compared (source videos, or clips for McNemar).
    """

    difference: float
    p_value: float
    method: str
    pairs: int


def wilson_interval(successes: float, n: int, *, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a proportion (E. B. Wilson 1927, without continuity correction).

    centre = (p + z^2 / 2n) / (1 + z^2 / n), half-width = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n).

    Args:
        successes: in [0, n]; a mean over seeds may be fractional.
        n: clips, at least 1.
        level: coverage in (0, 1).
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, not {successes} of {n}")
    z = norm.ppf((1 + level) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(float(low), float(high), "Wilson")


def bootstrap_interval(
    values: np.ndarray,
    groups: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Percentile bootstrap of the mean over seeds and clips: seeds and source videos are drawn with replacement.

    Where the bootstrap would have zero width (one source video, or the same value for every clip and seed), values in
    {0, 1} get Wilson's interval for as many draws as there are source videos, and other values an interval of zero
    width whose method says so.

    Args:
        values: (seeds, clips) of any real number (correct or not, loss, difference of two heads).
        groups: (clips,) source videos.
        resamples: draws.
        seed: of the draws.
        level: coverage.
    """
    values = _as_matrix(values, groups)
    sums, sizes = _group_sums(values, groups)
    if len(sizes) < 2 or np.ptp(values) == 0:
        if np.isin(values, (0, 1)).all():
            return wilson_interval(float(values.mean()) * len(sizes), len(sizes), level=level)
        mean = float(values.mean())
        return Interval(mean, mean, "none: no variation to resample")
    rng = np.random.default_rng(seed)
    n_seeds = len(values)
    means = []
    for count in _blocks(resamples, len(sizes)):
        seed_counts = _draw_counts(rng, count, n_seeds)  # (count, seeds)
        group_counts = _draw_counts(rng, count, len(sizes))  # (count, groups)
        totals = ((seed_counts @ sums) * group_counts).sum(axis=1)
        means.append(totals / (n_seeds * (group_counts @ sizes)))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    over = "source videos" if n_seeds == 1 else "seeds and source videos"
    return Interval(float(low), float(high), f"bootstrap over {over}")


def accuracy_interval(correct: np.ndarray, groups: Sequence[str]) -> Interval:
    """Interval of an accuracy. `correct`: (seeds, clips) bool.

    Wilson for one head on clips that all come from different source videos (only then are they independent), else the
    bootstrap.
    """
    correct = _as_matrix(correct, groups)
    if len(correct) == 1 and len(set(groups)) == len(groups):
        return wilson_interval(float(correct.sum()), correct.shape[1])
    return bootstrap_interval(correct, groups)


def difference_interval(a: np.ndarray, b: np.ndarray, groups: Sequence[str]) -> Interval:
    """Interval of the mean difference a - b of two experiments' accuracies, paired by clip and by seed.

    The bootstrap; where the two agree on every clip in every seed, plus and minus the largest share of differing
    source videos that Wilson's interval for 0 of n allows.

    Args:
        a, b: (seeds, clips) correct or not, the same seeds in the same order.
        groups: (clips,) source videos.
    """
    gap = _as_matrix(a, groups) - _as_matrix(b, groups)
    if not gap.any():
        bound = wilson_interval(0, len(set(groups))).high
        return Interval(-bound, bound, "Wilson bound on the share of differing source videos")
    return bootstrap_interval(gap, groups)


def paired_permutation_test(
    a: np.ndarray, b: np.ndarray, groups: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> PairedTest:
    """Two-sided sign-flip test of the mean difference between two experiments on the same clips.

    Per-clip values are averaged over seeds and summed over each source video; under the null hypothesis the sign of
    each video's difference is a coin toss. All 2^k sign patterns are enumerated for k <= 13 videos that differ at all;
    beyond, `draws` random ones with the +1 correction of Phipson and Smyth (2010), so that p is never 0.

    Args:
        a, b: (seeds, clips) or (clips,) values; the numbers of seeds may differ.
        groups: (clips,) source videos.
        draws, seed: of the random sign patterns.
    """
    gap = _as_matrix(a, groups).mean(axis=0) - _as_matrix(b, groups).mean(axis=0)  # (clips,)
    sums, sizes = _group_sums(gap[None], groups)
    mean = float(gap.mean())
    flips = sums[0][np.abs(sums[0]) > 1e-12]
    observed = abs(flips.sum()) - 1e-9  # sums in another order differ by rounding
    k = len(flips)
    if k <= EXACT_GROUPS:
        signs = 1 - 2 * ((np.arange(2**k)[:, None] >> np.arange(k)) & 1)  # (2^k, k)
        p_value = float(np.mean(np.abs(signs @ flips) >= observed))
        return PairedTest(mean, p_value, "paired permutation over source videos, exact", len(sizes))
    rng = np.random.default_rng(seed)
    extreme = 0
    for count in _blocks(draws, k):
        signs = 1 - 2 * rng.integers(0, 2, size=(count, k), dtype=np.int8)
        extreme += int(np.sum(np.abs(signs @ flips) >= observed))
    method = f"paired permutation over source videos, {draws:,} draws"
    return PairedTest(mean, (extreme + 1) / (draws + 1), method, len(sizes))


def mcnemar(a: np.ndarray, b: np.ndarray) -> PairedTest:
    """Exact McNemar test of two single heads: a binomial test on the clips that exactly one of them gets right.

    Args:
        a, b: (clips,) bool, correct or not, on the same clips.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"need two arrays of the same clips, not {a.shape} and {b.shape}")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    discordant = only_a + only_b
    p_value = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return PairedTest((only_a - only_b) / len(a), p_value, "McNemar, exact", len(a))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = float(running)
    return corrected


def _as_matrix(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """(seeds, clips) float64, once it is certain that it has as many clips as groups."""
    matrix = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != len(groups) or not matrix.size:
        raise ValueError(f"values of shape {matrix.shape} don't fit {len(groups)} clips")
    return matrix


def _group_sums(values: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums (seeds, groups) of values (seeds, clips), and the groups' sizes (groups,)."""
    _, index, sizes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True, return_counts=True)
    return np.stack([np.bincount(index, row, len(sizes)) for row in values]), sizes


def _draw_counts(rng: np.random.Generator, resamples: int, units: int) -> np.ndarray:
    """(resamples, units): how often each unit is drawn when as many are drawn with replacement as there are.

    Counting drawn indices takes a seventh of the time of `Generator.multinomial` with 15,000 units.
    """
    drawn = rng.integers(units, size=(resamples, units)) + units * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units)


def _blocks(total: int, width: int) -> Iterator[int]:
    """Split `total` draws into blocks of rows that hold at most `BLOCK_CELLS` numbers."""
    rows = max(1, BLOCK_CELLS // max(width, 1))
    for start in range(0, total, rows):
        yield min(rows, total - start)

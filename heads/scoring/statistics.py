"""Confidence intervals and significance tests of heads' scores.

The unit of resampling is the source video (group): clips of one video stay together in every resample and sign flip.
Arrays of per-clip values are (seeds, clips): one row per head; the heads differ only in their seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm
from scipy.stats import t as student_t

from alphafuse.data.power import LEVEL

RESAMPLES = 2000
DRAWS = 10_000
EXACT_GROUPS = 13  # up to this number all sign flips are enumerated (2^13 = 8,192); beyond, they are drawn at random
BLOCK_CELLS = 4_000_000  # resampled group counts in memory at a time: 32 MB


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval and the method that made it."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and clips with its interval, and the mean of each seed."""

    mean: float
    interval: Interval
    per_seed: tuple[float, ...]

    def __repr__(self) -> str:
        return f"{self.mean:.4f} [{self.interval.low:.4f}, {self.interval.high:.4f}]"


@dataclass(frozen=True)
class PairedTest:
    """A two-sided paired test.

    Attributes:
        difference: mean of a - b.
        p_value: p-value in (0, 1].
        method: name of the test, as shown to users.
        pairs: number of compared units (source videos, or clips for McNemar).
    """

    difference: float
    p_value: float
    method: str
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """Difference between the accuracies of two experiments' heads on the same clips.

    Attributes:
        interval: interval of the difference.
        test: the paired test, with its uncorrected p-value.
        p_holm: p-value corrected for the number of comparisons made together.
    """

    interval: Interval
    test: PairedTest
    p_holm: float

    @property
    def is_found(self) -> bool:
        """Whether the difference is significant after correction."""
        return self.p_holm < 1 - LEVEL

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return {
            "difference": self.test.difference,
            "interval": asdict(self.interval),
            "p_value": self.test.p_value,
            "p_holm": self.p_holm,
            "method": self.test.method,
        }


def estimate(values: np.ndarray, interval: Interval) -> Estimate:
    """Combine an interval with the mean of values (seeds, clips) and the mean of each seed."""
    return Estimate(float(values.mean()), interval, tuple(float(mean) for mean in values.mean(axis=1)))


def wilson_interval(successes: float, n: int, *, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a proportion (E. B. Wilson 1927, without continuity correction).

    centre = (p + z^2 / 2n) / (1 + z^2 / n), half-width = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n).

    Args:
        successes: number of successes in [0, n]; may be fractional, as a mean over seeds.
        n: number of clips, at least 1.
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

    If the bootstrap interval has zero width (one source video, or the same value for every clip and seed), values in
    {0, 1} get Wilson's interval with n = number of source videos; other values get an interval of zero width whose
    method says so.

    Args:
        values: (seeds, clips) real numbers (correct or not, loss, difference of two heads).
        groups: (clips,) source videos.
        resamples: number of resamples.
        seed: seed of the random generator.
        level: coverage.
    """
    values = _as_matrix(values, groups)
    sums, sizes = group_sums(values, groups)
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
    return Interval(float(low), float(high), f"bootstrap over {_over(n_seeds)}")


def bootstrap_counts(
    seeds: int, groups: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw bootstrap resamples for metrics that aren't means over clips (`resampled_interval`).

    Each resample draws seeds and source videos with replacement, as many as there are; clips of a video stay together.

    Returns:
        How often each seed is drawn, (resamples, seeds) int64, and how often each clip is, (resamples, clips) float32.
    """
    _, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    videos = int(index.max()) + 1
    rng = np.random.default_rng(seed)
    seed_counts = _draw_counts(rng, resamples, seeds)
    clip_counts = np.empty((resamples, len(index)), np.float32)
    done = 0
    for count in _blocks(resamples, videos):
        clip_counts[done : done + count] = _draw_counts(rng, count, videos)[:, index]
        done += count
    return seed_counts, clip_counts


def resampled_interval(
    per_seed: Sequence[float] | np.ndarray,
    resampled: np.ndarray,
    seed_counts: np.ndarray,
    *,
    centred: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    level: float = LEVEL,
) -> Interval:
    """Percentile bootstrap of the mean over seeds of a metric that isn't a mean over clips, such as mAP.

    `centred` is for metrics that are larger on average in a resample than in the sample, because a resample has fewer
    different clips. The percentiles are shifted by that bias, mean of the resamples minus the metric (Efron and
    Tibshirani 1993, chapter 10), and clipped to `bounds`. The interval is then for the mean over splits of this size.

    Args:
        per_seed: (seeds,) the metric on the original clips.
        resampled: (resamples, seeds) the metric on each resample's clips; NaN if undefined (such resamples are left
            out); infinite values are allowed unless `centred`.
        seed_counts: (resamples, seeds) from the call of `bootstrap_counts` whose clip counts gave `resampled`.
        centred, bounds: see above.
        level: coverage.

    Returns:
        The interval. If there is nothing to resample (one source video, or the same value in every resample), it has
        zero width and its method says so.
    """
    drawn = seed_counts * np.where(seed_counts > 0, resampled, 0)  # a seed that isn't drawn may be infinite or NaN
    means = np.sort(drawn.sum(axis=1)[~np.isnan(drawn).any(axis=1)] / resampled.shape[1])
    mean = float(np.mean(per_seed))
    if not len(means) or (resampled == resampled[0]).all():
        return Interval(mean, mean, "none: no variation to resample")
    last = len(means) - 1  # quantiles are drawn values, not interpolated, because values may be infinite
    low = float(means[math.floor(last * (1 - level) / 2)])
    high = float(means[math.ceil(last * (1 + level) / 2)])
    over = _over(resampled.shape[1])
    if not centred:
        return Interval(low, high, f"bootstrap over {over}")
    bias = float(means.mean()) - mean
    return Interval(max(low - bias, bounds[0]), min(high - bias, bounds[1]), f"centred bootstrap over {over}")


def t_interval(per_seed: Sequence[float], *, level: float = LEVEL) -> Interval:
    """Student's t interval of the mean over seeds: the variation between seeds on the same clips.

    mean +- t_{n-1} s / sqrt(n), with s the standard deviation with n - 1 (Student 1908). It is not clipped to [0, 1],
    and does not cover the variation between clips.

    Args:
        per_seed: at least 2 finite values, one per seed.
        level: coverage in (0, 1).

    Raises:
        ValueError: fewer than 2 values (one seed has no spread), or values that aren't finite.
    """
    values = np.asarray(per_seed, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"a t interval needs the finite figures of at least 2 seeds, not {list(per_seed)}")
    n = len(values)
    mean = float(values.mean())
    half = float(student_t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Interval(mean - half, mean + half, f"t over {n} seeds")


def accuracy_interval(correct: np.ndarray, groups: Sequence[str]) -> Interval:
    """Return the interval of an accuracy. `correct`: (seeds, clips) bool.

    Wilson's for one head on clips that all come from different source videos, because only such clips are independent;
    otherwise the bootstrap.
    """
    correct = _as_matrix(correct, groups)
    if len(correct) == 1 and len(set(groups)) == len(groups):
        return wilson_interval(float(correct.sum()), correct.shape[1])
    return bootstrap_interval(correct, groups)


def difference_interval(a: np.ndarray, b: np.ndarray, groups: Sequence[str]) -> Interval:
    """Return the interval of the mean difference a - b of two experiments' accuracies, paired by clip and by seed.

    Uses the bootstrap. If the two agree on every clip in every seed, the bounds are plus and minus the largest share
    of differing source videos that Wilson's interval for 0 of n allows.

    Args:
        a, b: (seeds, clips) correct or not, with the same seeds in the same order; if the numbers of seeds differ, the
            means over seeds are compared.
        groups: (clips,) source videos.
    """
    a, b = _as_matrix(a, groups), _as_matrix(b, groups)
    if len(a) != len(b):
        a, b = a.mean(axis=0, keepdims=True), b.mean(axis=0, keepdims=True)
    gap = a - b
    if not gap.any():
        bound = wilson_interval(0, len(set(groups))).high
        return Interval(-bound, bound, "Wilson bound on the share of differing source videos")
    return bootstrap_interval(gap, groups)


def paired_permutation_test(
    a: np.ndarray, b: np.ndarray, groups: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> PairedTest:
    """Two-sided sign-flip test of the mean difference between two experiments on the same clips.

    Per-clip values are averaged over seeds and summed over each source video. Under the null hypothesis the sign of
    each video's difference is random. With k <= 13 videos that differ, all 2^k sign patterns are enumerated. With more,
    `draws` random patterns are used, with the +1 correction of Phipson and Smyth (2010), so that p is never 0.

    Args:
        a, b: (seeds, clips) or (clips,) values; the numbers of seeds may differ.
        groups: (clips,) source videos.
        draws, seed: number and seed of the random sign patterns.
    """
    gap = _as_matrix(a, groups).mean(axis=0) - _as_matrix(b, groups).mean(axis=0)  # (clips,)
    sums, sizes = group_sums(gap[None], groups)
    mean = float(gap.mean())
    flips = sums[0][np.abs(sums[0]) > 1e-12]
    observed = abs(flips.sum()) - 1e-9  # tolerance: sums in another order differ by rounding
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


def paired_test(a: np.ndarray, b: np.ndarray, groups: Sequence[str]) -> PairedTest:
    """Test the difference of two experiments' per-clip values with the appropriate paired test.

    Exact McNemar for two single heads with values in {0, 1} on clips that all come from different source videos,
    because only such clips are independent; otherwise the paired permutation test.

    Args:
        a, b: (seeds, clips) or (clips,) values; the numbers of seeds may differ.
        groups: (clips,) source videos.
    """
    a, b = _as_matrix(a, groups), _as_matrix(b, groups)
    single = len(a) == len(b) == 1 and len(set(groups)) == len(groups)
    if single and np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        return mcnemar(a[0], b[0])
    return paired_permutation_test(a, b, groups)


def compare_pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]], groups: Sequence[str]) -> list[Comparison]:
    """Compare the first of each pair with the second, Holm-corrected over all pairs.

    Args:
        pairs: pairs of (seeds, clips) correct or not; the numbers of seeds may differ.
        groups: (clips,) source videos.
    """
    tests = [paired_test(a, b, groups) for a, b in pairs]
    intervals = [difference_interval(a, b, groups) for a, b in pairs]
    corrected = holm([test.p_value for test in tests])
    return [Comparison(*found) for found in zip(intervals, tests, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979); keeps their order.

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


def _over(seeds: int) -> str:
    """Return the name of the resampled units, for the name of the method."""
    return "source videos" if seeds == 1 else "seeds and source videos"


def _as_matrix(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return values as (seeds, clips) float64; ValueError unless there is one group per clip."""
    matrix = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != len(groups) or not matrix.size:
        raise ValueError(f"values of shape {matrix.shape} don't fit {len(groups)} clips")
    return matrix


def group_sums(values: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums (seeds, groups) of values (seeds, clips), and the groups' sizes (groups,)."""
    _, index, sizes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True, return_counts=True)
    return np.stack([np.bincount(index, row, len(sizes)) for row in values]), sizes


def _draw_counts(rng: np.random.Generator, resamples: int, units: int) -> np.ndarray:
    """Draw `units` units with replacement per resample; return how often each is drawn, (resamples, units).

    Counting drawn indices takes a seventh of the time of `Generator.multinomial` with 15,000 units.
    """
    drawn = rng.integers(units, size=(resamples, units)) + units * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units)


def _blocks(total: int, width: int) -> Iterator[int]:
    """Split `total` rows of `width` numbers into blocks of at most `BLOCK_CELLS` numbers; yield the blocks' rows."""
    rows = max(1, BLOCK_CELLS // max(width, 1))
    for start in range(0, total, rows):
        yield min(rows, total - start)

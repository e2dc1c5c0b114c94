"""Confidence intervals and significance tests of heads' scores (docs/statistics.md).

    several heads   seeds and source videos are both random: one model gives the interval and the test (`_crossed`)
    one head        its interval varies the source videos; its test is exact and about this head alone

The unit is the source video (group): clips of one video are never taken for independent.
Arrays of per-clip values are (seeds, clips): one row per head; the heads differ only in their seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr, stdtr, stdtrit
from scipy.stats import binomtest, norm
from scipy.stats import t as student_t

from alphafuse.data.power import LEVEL, POWER, smallest_resolvable_gap

Groups = Sequence[str] | np.ndarray  # source videos by name or by number, one per clip

# Satterthwaite's power is 2: then three seeds reject up to 7.7% of true nulls, because a share that is too small by
# luck also has too many degrees of freedom; with 1.5, 3 to 20 seeds reject 3.3 to 6.9% (docs/statistics.md)
SEED_POWER = 1.5
PSEUDO_VIDEOS = 1  # videos whose clips are all right or all wrong together, added to an accuracy's effective sample
NODES = 32  # quantiles over which the power of a test is averaged
RESAMPLES = 2000
DRAWS = 10_000
NOTHING_VARIES = "none: no variation"
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
    low, high = _wilson_ends(successes / n, n, float(norm.ppf((1 + level) / 2)))
    return Interval(0.0 if successes == 0 else low, 1.0 if successes == n else high, "Wilson")


def mean_interval(values: np.ndarray, groups: Groups, *, level: float = LEVEL) -> Interval:
    """Return the interval of a mean over seeds and clips, such as a loss: t with seeds and source videos random.

    If there is one source video, or every value is the same, the interval has zero width and its method says so.

    Args:
        values: (seeds, clips) real numbers; with one seed, the interval is about that head.
        groups: (clips,) source videos.
        level: coverage.
    """
    return _t_interval(_crossed([_Side.of(values, groups)]), level)


def mean_intervals(values: np.ndarray, groups: Groups, *, level: float = LEVEL) -> list[Interval]:
    """Return the interval of the mean of each row of (figures, clips), each as `mean_interval` of one head."""
    sums, sizes = group_sums(_as_matrix(values, groups), groups)
    return [_t_interval(_crossed([_Side(one[None], sizes)]), level) for one in sums]


def bootstrap_counts(
    seeds: int, groups: Groups, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw bootstrap resamples for metrics that aren't means over clips (`resampled_interval`).

    Each resample draws seeds and source videos with replacement, as many as there are; clips of a video stay together.

    Returns:
        How often each seed is drawn, (resamples, seeds) int64, and how often each clip is, (resamples, clips) float32.
    """
    index = _coded(groups)
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
        return Interval(mean, mean, NOTHING_VARIES)
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


def accuracy_interval(correct: np.ndarray, groups: Groups, *, level: float = LEVEL) -> Interval:
    """Return the interval of an accuracy.

    Wilson's for one head on clips that all come from different source videos, because only such clips are independent.
    Otherwise Wilson's with t quantiles and an effective number of clips, p (1 - p) / variance, where the variance is of
    the model in which seeds and source videos are random (Franco and others 2019). With few videos
    that variance may be small from luck: `PSEUDO_VIDEOS` videos are added whose clips are all right or wrong together.
    If all clips are right in all seeds, or all wrong, each source video counts as one independent clip.

    Args:
        correct: (seeds, clips) correct or not.
        groups: (clips,) source videos.
        level: coverage.
    """
    correct = _as_matrix(correct, groups)
    if len(correct) == 1 and len(set(groups)) == len(groups):
        return wilson_interval(float(correct.sum()), correct.shape[1], level=level)
    side = _Side.of(correct, groups)
    p = float(correct.mean())
    if side.videos < 2 or p in (0, 1):
        return wilson_interval(p * side.videos, side.videos, level=level)
    model = _crossed([side])
    pseudo = PSEUDO_VIDEOS
    per_video = (side.videos * model.variance / (p * (1 - p)) + pseudo / side.videos) / (side.videos + pseudo)
    low, high = _wilson_ends(p, 1 / per_video, float(stdtrit(model.freedom, (1 + level) / 2)))
    return Interval(low, high, f"Wilson over {_over(len(correct))}")


def difference_interval(a: np.ndarray, b: np.ndarray, groups: Groups, *, level: float = LEVEL) -> Interval:
    """Return the interval of the mean difference a - b of two experiments' accuracies, paired by clip.

    t with seeds and source videos random; of two single heads, with source videos random. Equal numbers of seeds are
    paired in their order, which is valid for any seeds; unequal ones are not paired, and where one experiment has one
    head, the interval is about that head. If the two agree on every clip in every seed, the bounds are plus and minus
    the largest share of differing source videos that Wilson's interval for 0 of n allows. If every clip has the same
    other difference, or there is one source video, they come from the exact bound of that share (Clopper and Pearson
    1934).

    Args:
        a, b: (seeds, clips) or (clips,), correct or not.
        groups: (clips,) source videos.
        level: coverage.
    """
    return _difference_interval(_crossed(_compared(a, b, groups)), level)


def paired_permutation_test(
    a: np.ndarray, b: np.ndarray, groups: Groups, *, draws: int = DRAWS, seed: int = 0
) -> PairedTest:
    """Two-sided sign-flip test of the mean difference between two experiments' heads on the same clips.

    It is about these heads: another training, with other seeds, is no part of its null hypothesis. Per-clip values are
    averaged over seeds and summed over each source video. Under the null hypothesis the sign of
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
        return PairedTest(mean, p_value, "paired permutation over source videos, exact, of these heads", len(sizes))
    rng = np.random.default_rng(seed)
    extreme = 0
    for count in _blocks(draws, k):
        signs = 1 - 2 * rng.integers(0, 2, size=(count, k), dtype=np.int8)
        extreme += int(np.sum(np.abs(signs @ flips) >= observed))
    method = f"paired permutation over source videos, {draws:,} draws, of these heads"
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
    return PairedTest((only_a - only_b) / len(a), p_value, "McNemar, exact, of these heads", len(a))


def paired_test(a: np.ndarray, b: np.ndarray, groups: Groups) -> PairedTest:
    """Test the difference of two experiments' per-clip values with the appropriate paired test.

    Several seeds: the t test of the model in which seeds and source videos are both random, which rejects exactly where
    `difference_interval` excludes 0. Two single heads: exact McNemar for values in {0, 1} on clips that all come from
    different source videos, because only such clips are independent, otherwise sign flips of source videos. These are
    about the two heads, and also the test of several seeds between which, and between whose videos, nothing varies.

    Args:
        a, b: (seeds, clips) or (clips,) values; the numbers of seeds may differ.
        groups: (clips,) source videos.
    """
    return _test(a, b, groups, _crossed(_compared(a, b, groups)))


def compare_pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]], groups: Groups) -> list[Comparison]:
    """Compare the first of each pair with the second, Holm-corrected over all pairs.

    An interval excludes 0 exactly if its p-value, before the correction, is below .05: several seeds have both from one
    model; the interval of two single heads reaches to 0 where their exact test doesn't reject.

    Args:
        pairs: pairs of (seeds, clips) correct or not; the numbers of seeds may differ.
        groups: (clips,) source videos.
    """
    coded = _coded(groups)
    found = [_interval_and_test(a, b, coded) for a, b in pairs]
    corrected = holm([test.p_value for _, test in found])
    return [Comparison(*both, p_holm) for both, p_holm in zip(found, corrected, strict=True)]


def resolvable_gap(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], groups: Groups, *, comparisons: int, power: float = POWER
) -> float:
    """Return the smallest difference in accuracy that the tests of these experiments find with this power.

    Two single heads on clips of different source videos: exact McNemar's (`smallest_resolvable_gap`). Otherwise the t
    test's, with the mean variance of these comparisons. That variance is itself estimated, the worse the fewer seeds
    there are, so the gap is one that is found with this power on average over such estimates.

    Args:
        pairs: pairs of (seeds, clips) correct or not, whose disagreement is taken for that of the experiments.
        groups: (clips,) source videos.
        comparisons: number of comparisons made together: the level is what Holm asks of the smallest p-value.
        power: probability in (0, 1).
    """
    level = 1 - (1 - LEVEL) / comparisons
    compared = [_compared(a, b, groups) for a, b in pairs]
    videos = compared[0][0].videos
    means = [(_as_matrix(a, groups).mean(axis=0), _as_matrix(b, groups).mean(axis=0)) for a, b in pairs]
    disagreement = float(np.mean([np.abs(a - b).mean() for a, b in means]))
    if not disagreement:
        return smallest_resolvable_gap(videos, power=power, level=level)
    if all(len(side.sums) == 1 for sides in compared for side in sides) and videos == len(groups):

        def gap_of(growth: float) -> float:
            share = min(disagreement * growth, 1.0)
            return smallest_resolvable_gap(videos, discordance=share, power=power, level=level)

    else:
        models = [model for model in map(_crossed, compared) if model.varies]
        if not models:
            return smallest_resolvable_gap(videos, power=power, level=level)
        variance = float(np.mean([model.variance for model in models]))
        freedom = float(np.median([model.freedom for model in models]))

        def gap_of(growth: float) -> float:
            return _t_gap(math.sqrt(variance * growth), freedom, power, level)

    # experiments that differ by so much disagree on more clips than these, which may be equally good
    return gap_of(math.hypot(1, gap_of(1.0) / disagreement))


def _t_gap(error: float, freedom: float, power: float, level: float) -> float:
    """Return the difference, at most 1, that a t test finds with this power; `error` is an estimated standard error."""
    bound = float(stdtrit(freedom, (1 + level) / 2))
    nodes = np.sqrt(2 * gammaincinv(freedom / 2, (np.arange(NODES) + 0.5) / NODES) / freedom)  # estimate / true error

    def missing(gap: float) -> float:  # the standard error that the test will use is an estimate, too
        return power - float(ndtr(gap / error * nodes[:, None] - bound * nodes).mean())

    return 1.0 if missing(1.0) >= 0 else float(brentq(missing, 0.0, 1.0, xtol=1e-6))


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


@dataclass(frozen=True)
class _Side:
    """Values of some heads: their sums over each source video, (seeds, videos), and the videos' sizes, (videos,)."""

    sums: np.ndarray
    sizes: np.ndarray
    sign: int = 1

    @classmethod
    def of(cls, values: np.ndarray, groups: Groups) -> _Side:
        return cls(*group_sums(_as_matrix(values, groups), groups))

    @property
    def videos(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class _Model:
    """A mean with its variance over seeds and source videos, and the degrees of freedom of that variance.

    `varies` is False if the variance is 0 or unknown (one source video); `seeds` is the largest number of heads.
    """

    mean: float
    variance: float
    freedom: float
    videos: int
    seeds: int
    varies: bool


def _crossed(sides: Sequence[_Side]) -> _Model:
    """Return the mean over seeds and source videos, both random and crossed; of two sides, the difference of means.

    Multi-reader multi-case analysis (Obuchowski and Rockette 1995, Hillis 2007) with seeds for readers and videos for
    cases: value[seed, video] = mean + seed + video + both. With S seeds and V videos of equal size, the variance of the
    mean is (max(MS_seed, MS_both) + max(MS_video - MS_both, 0)) / (S V), with Satterthwaite's (1946) degrees of freedom
    over all mean squares, where the seeds' share of the variance counts with the power `SEED_POWER`. Seeds of two sides
    are independent: each side has its own MS_seed and MS_both, and the video effects are of the difference of the
    sides' means. A side of one seed has no seed effects: its head is taken as it is.

    Videos of unequal size: an accuracy is a ratio of sums, so a video's value is its influence on the ratio,
    (sum - accuracy x size) / mean size, enlarged by the video's leverage on the accuracy (Bell and McCaffrey 2002), and
    the degrees of freedom count V' = (sum of sizes)^2 / (sum of squared sizes) videos (Kish 1965).
    """
    sizes = sides[0].sizes
    clips, videos = float(sizes.sum()), len(sizes)
    seeds = max(len(side.sums) for side in sides)
    accuracies = [side.sums.sum(axis=1) / clips for side in sides]  # (seeds,) each
    mean = float(sum(side.sign * of_seed.mean() for side, of_seed in zip(sides, accuracies, strict=True)))
    if videos < 2:
        return _Model(mean, 0.0, 1.0, videos, seeds, varies=False)
    leverage = np.sqrt((1 - 1 / videos) / (1 - sizes / clips))  # 1 for equal sizes
    df_video = max(clips**2 / float(np.square(sizes, dtype=np.float64).sum()) - 1, 1.0)
    of_video = np.zeros(videos)
    of_seeds: list[tuple[float, float]] = []  # each side's variance of the mean from seeds, and its degrees of freedom
    of_both = squares = 0.0
    for side, of_seed in zip(sides, accuracies, strict=True):
        count = len(side.sums)
        influence = (side.sums - of_seed[:, None] * sizes) * (leverage * videos / clips)  # (seeds, videos)
        means = influence.mean(axis=0)
        of_video += side.sign * means
        if count > 1:
            seed = float(of_seed.var(ddof=1)) / count
            both = float(np.square(influence - means).sum()) / ((count - 1) * (videos - 1) * count * videos)
            df_both = (count - 1) * df_video
            of_seeds.append((seed, count - 1) if seed >= both else (both, df_both))
            of_both += both
            squares += both**2 / df_both
    video = float(np.square(of_video).sum()) / ((videos - 1) * videos)
    squares += video**2 / df_video
    variance = sum(part for part, _ in of_seeds) + max(video - of_both, 0.0)
    scale = max(float(np.square(side.sums).sum()) / (len(side.sums) * clips**2) for side in sides)
    if variance <= 1e-20 * scale:  # rounding
        return _Model(mean, 0.0, df_video, videos, seeds, varies=False)
    squares += sum(variance**2 * (part / variance) ** SEED_POWER / freedom for part, freedom in of_seeds)
    return _Model(mean, variance, variance**2 / squares, videos, seeds, varies=True)


def _compared(a: np.ndarray, b: np.ndarray, groups: Groups) -> list[_Side]:
    """Return the sides of a comparison: the differences of paired seeds, or both experiments if the numbers differ."""
    a, b = _as_matrix(a, groups), _as_matrix(b, groups)
    if len(a) == len(b):
        return [_Side.of(a - b, groups)]
    first = _Side.of(a, groups)
    return [first, _Side(group_sums(b, groups)[0], first.sizes, sign=-1)]


def _interval_and_test(a: np.ndarray, b: np.ndarray, groups: Groups) -> tuple[Interval, PairedTest]:
    model = _crossed(_compared(a, b, groups))
    interval, test = _difference_interval(model, LEVEL), _test(a, b, groups, model)
    if test.p_value >= 1 - LEVEL:
        interval = replace(interval, low=min(interval.low, 0.0), high=max(interval.high, 0.0))
    return interval, test


def _test(a: np.ndarray, b: np.ndarray, groups: Groups, model: _Model) -> PairedTest:
    """Return the test of `paired_test`; `model` is of the same comparison."""
    a, b = _as_matrix(a, groups), _as_matrix(b, groups)
    if len(a) == len(b) == 1:
        single = model.videos == len(groups) and np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()
        return mcnemar(a[0], b[0]) if single else paired_permutation_test(a, b, groups)
    if not model.varies:
        return paired_permutation_test(a, b, groups)
    p_value = 2 * float(stdtr(model.freedom, -abs(model.mean) / math.sqrt(model.variance)))
    return PairedTest(model.mean, p_value, _test_name(len(a), len(b)), model.videos)


def _t_interval(model: _Model, level: float) -> Interval:
    if not model.varies:
        return Interval(model.mean, model.mean, NOTHING_VARIES)
    half = float(stdtrit(model.freedom, (1 + level) / 2)) * math.sqrt(model.variance)
    return Interval(model.mean - half, model.mean + half, f"t over {_over(model.seeds)}")


def _difference_interval(model: _Model, level: float) -> Interval:
    if model.varies:
        found = _t_interval(model, level)
        return Interval(max(found.low, -1.0), min(found.high, 1.0), found.method)
    mean, videos = model.mean, model.videos
    if abs(mean) < 1e-12:
        bound = wilson_interval(0, videos, level=level).high
        return Interval(-bound, bound, "Wilson bound on the share of differing source videos")
    bound = 1 - ((1 - level) / 2) ** (1 / videos)  # of videos that may differ in another way, by -1 to 1
    low, high = mean * (1 - bound) - bound, mean * (1 - bound) + bound
    return Interval(low, high, "exact bound on the share of source videos that differ otherwise")


def _test_name(a: int, b: int) -> str:
    """Return the name of the t test of experiments with these numbers of seeds."""
    if 1 in (a, b):
        return "paired t over seeds and source videos, against one head as it is"
    few = ", approximate with two seeds" if min(a, b) == 2 else ""
    return f"paired t over seeds and source videos{few}"


def _wilson_ends(p: float, n: float, quantile: float) -> tuple[float, float]:
    """Return the ends of Wilson's interval of the proportion p of n, which may be fractional."""
    square = quantile * quantile
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = quantile * math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _over(seeds: int) -> str:
    """Return the name of the resampled units, for the name of the method."""
    return "source videos" if seeds == 1 else "seeds and source videos"


def _as_matrix(values: np.ndarray, groups: Groups) -> np.ndarray:
    """Return values as (seeds, clips) float64; ValueError unless there is one group per clip."""
    matrix = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != len(groups) or not matrix.size:
        raise ValueError(f"values of shape {matrix.shape} don't fit {len(groups)} clips")
    return matrix


def group_sums(values: np.ndarray, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums (seeds, groups) of values (seeds, clips), and the groups' sizes (groups,)."""
    index = _coded(groups)
    sizes = np.bincount(index)
    return np.stack([np.bincount(index, row, len(sizes)) for row in values]), sizes


def _coded(groups: Groups) -> np.ndarray:
    """Return each clip's source video as a number from 0 on without gaps, (clips,) int; such numbers stay."""
    if isinstance(groups, np.ndarray) and groups.dtype.kind == "i" and groups.size and np.bincount(groups).all():
        return groups
    return np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]


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

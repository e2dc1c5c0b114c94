"""Choose between candidates, such as weights of a stream, by their losses on the same clips.

What can be said honestly of the best of many candidates is a set: those whose loss isn't significantly above any
other's (a model confidence set, Hansen, Lunde and Nason 2011, by the max-t statistic). It holds the candidate of least
expected loss in 95% of the data sets. The choice is the simplest candidate of the set, the one that weighs all alike,
and only if that is excluded the one of least loss: the best of many figures is mostly the luckiest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from alphafuse.data.power import LEVEL

from .statistics import group_sums

DRAWS = 4000
NEGLIGIBLE = 5e-4  # a share of the loss: a smaller difference is no reason to exclude, however certain it is
FAR = 4.0  # standard errors; the 95% quantile of the largest of 200 differences is 3.5
LONGEST = 8.0  # squared length of s + t - 2 y for two heads' scores s, t of one-hot labels y


@dataclass(frozen=True)
class Choice:
    """What the losses say about the candidates.

    Attributes:
        losses: (candidates,) mean loss of each.
        best: position of the least loss.
        chosen: position of the recommended candidate.
        inside: (candidates,) bool: the 95% confidence set of the best candidate.
        regret: mean loss of the equal candidate minus that of the best, at least 0.
        regret_bound: upper bound of that difference, one-sided 95%.
        units: source videos (or groups of them) that were resampled.

    >>> import numpy as np
    >>> from alphafuse import choose_weight
    >>> losses = np.random.default_rng(0).normal([[0.0], [0.5]], size=(2, 400))[:, None]
    >>> found = choose_weight(losses, [str(i) for i in range(400)], equal=1)
    >>> found.inside, found.is_equal_excluded, found.units
    (array([ True, False]), True, 400)
    """

    losses: np.ndarray
    best: int
    chosen: int
    inside: np.ndarray
    regret: float
    regret_bound: float
    units: int

    @property
    def is_equal_excluded(self) -> bool:
        """Whether the clips show that another candidate than the equal one is better."""
        return self.regret > 0 and self.chosen == self.best


def choose_weight(losses: np.ndarray, groups: Sequence[str], equal: int, *, seed: int = 0) -> Choice:
    """Choose a candidate by losses per clip; see the module for the rule.

    Args:
        losses: (candidates, seeds, clips) losses, lower is better; one seed for heads in closed form.
        groups: (clips,) source videos, the unit of resampling; seeds vary too.
        equal: position of the candidate that weighs all streams alike.
        seed: seed of the random draws.

    Raises:
        ValueError: losses of another shape or that aren't finite, or no such candidate.

    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(size=(3, 1, 400))
    >>> losses = noise + np.array([0.5, 0.0, 0.04])[:, None, None]
    >>> found = choose_weight(losses, [str(i) for i in range(400)], equal=2)
    >>> found.inside.tolist(), found.best, found.chosen
    ([False, True, True], 1, 2)
    """
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 3 or losses.shape[2] != len(groups) or not losses.size:
        raise ValueError(f"losses {losses.shape} must be (candidates, seeds, clips) with {len(groups)} clips")
    if not np.isfinite(losses).all() or not 0 <= equal < len(losses):
        raise ValueError(f"losses must be finite, and the equal candidate one of {len(losses)}, not {equal}")
    sums, sizes = group_sums(losses.mean(axis=1), groups)
    seeds = losses.shape[1]
    of_seeds = np.atleast_2d(np.cov(losses.mean(axis=2))) / seeds if seeds > 1 else None
    return choose_by_sums(sums, sizes, equal, of_seeds=of_seeds, seeds=seeds, seed=seed)


def choose_by_sums(
    sums: np.ndarray,
    sizes: np.ndarray,
    equal: int,
    *,
    of_seeds: np.ndarray | None = None,
    seeds: int = 1,
    inflation: float = 1.0,
    seed: int = 0,
) -> Choice:
    """Choose as `choose_weight` does, by the losses' sums over each source video.

    A multiplier bootstrap (Chernozhukov, Chetverikov and Kato 2013): the mean losses are drawn from the normal
    distribution with the covariance that source videos and seeds show, over a chi deviate because these are few.
    Candidate r stays in the set unless its largest t statistic against the others exceeds the 95% quantile of the same
    maximum over the draws.

    Args:
        sums: (candidates, units) sums of losses; sizes: (units,) clips.
        of_seeds: (candidates, candidates) covariance of the mean loss due to `seeds` seeds; None for one seed.
        inflation: factor on the variance that source videos show, for heads that are each scored on one fold of F and
            trained on the others: the clips that they share hide part of it. Nadeau and Bengio (2003): 1 + F / (F - 1).
        equal, seed: as in `choose_weight`.
    """
    count, units = sums.shape
    n = sizes.sum()
    means = sums.sum(axis=1) / n
    best = int(means.argmin())
    if units < 2:
        inside = np.ones(count, dtype=bool)
        return Choice(means, best, equal, inside, float(means[equal] - means[best]), float("inf"), units)
    influence = (sums - means[:, None] * sizes) / n  # (candidates, units)
    covariance = inflation * influence @ influence.T * units / (units - 1)
    freedom = units - 1.0
    if of_seeds is not None:  # Satterthwaite's degrees of freedom of a sum of two variances
        parts = [float(_of_differences(part).mean()) for part in (covariance, of_seeds)]
        squares = parts[0] ** 2 / freedom + parts[1] ** 2 / (seeds - 1)
        freedom = sum(parts) ** 2 / squares if squares else freedom
        covariance = covariance + of_seeds
    drawn = _student(np.random.default_rng(seed), covariance, freedom)
    error = np.sqrt(_of_differences(covariance))
    known = error > 1e-9 * (np.abs(means).max() + 1e-300)  # the others are the same candidate, up to rounding
    scale = np.divide(1, error, out=np.zeros_like(error), where=known)
    inside = np.ones(count, dtype=bool)
    for r in range(count):
        above = means[r] - means
        worst = (np.where(above > NEGLIGIBLE * abs(means[r]), above, 0) * scale[r]).max()
        inside[r] = worst <= np.quantile(((drawn[:, [r]] - drawn) * scale[r]).max(axis=1), LEVEL)
    inside[best] = True
    regret = float(means[equal] - means[best])
    bound = regret + float(student_t.ppf(LEVEL, units - 1)) * float(error[equal, best])
    return Choice(means, best, equal if inside[equal] else best, inside, regret, bound, units)


def hardly_above(losses: np.ndarray) -> np.ndarray:
    """Return which candidates' mean losses are too near to the least to exclude them, (candidates,) bool."""
    return np.asarray(losses - losses.min() <= NEGLIGIBLE * np.abs(losses))


def far_above(
    losses: np.ndarray, distances: np.ndarray, groups: Sequence[str], *, inflation: float = 1.0
) -> np.ndarray:
    """Return which candidates' mean errors exclude them whatever their errors on single clips are, (candidates,) bool.

    A clip's squared errors |s - y|^2 and |t - y|^2 by two heads differ by (s - t) . (s + t - 2 y). The second factor's
    squared length is at most 8 if neither error is above 2, that of a wrong answer that is certain. So the mean squared
    distance of the scores bounds the standard error of a difference.

    Args:
        losses: (candidates,) mean squared error per clip, of scores for one-hot labels.
        distances: (candidates,) mean squared distance per clip of the scores from those of the candidate of least loss.
        groups: (clips,) source videos.
        inflation: as in `choose_by_sums`.
    """
    sizes = np.unique(np.asarray(groups, dtype=object).astype(str), return_counts=True)[1].astype(np.float64)
    variance = inflation * LONGEST * distances * np.square(sizes / sizes.sum()).sum()
    return np.asarray(losses - losses.min() > FAR * np.sqrt(variance))


def of_all(choice: Choice, positions: np.ndarray, losses: np.ndarray) -> Choice:
    """Return a choice among some of the candidates, at these positions, as one among all, by their mean losses.

    Of the others those are inside that are hardly above the least.
    """
    inside = hardly_above(losses)
    inside[positions] = choice.inside
    filled = losses.copy()
    filled[positions] = choice.losses
    best, chosen = int(positions[choice.best]), int(positions[choice.chosen])
    return replace(choice, losses=filled, best=best, chosen=chosen, inside=inside)


def _of_differences(covariance: np.ndarray) -> np.ndarray:
    """Return the variances of all differences of two candidates, (candidates, candidates)."""
    spread = np.diag(covariance)
    return np.maximum(spread[:, None] + spread - 2 * covariance, 0)


def _student(rng: np.random.Generator, covariance: np.ndarray, freedom: float) -> np.ndarray:
    """Draw (DRAWS, candidates) from the multivariate t distribution with this covariance of the underlying normal."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    normal = rng.standard_normal((DRAWS, len(values))) @ root.T
    return normal * np.sqrt(freedom / rng.chisquare(freedom, size=(DRAWS, 1)))


def most_lost(whole: np.ndarray, without: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Return how much accuracy is lost without a stream, and its one-sided 95% upper bound, as shares.

    The bound is Student's over source videos, at least as far above as where no clip differs: there it is Wilson's
    bound for 0 of n source videos, so that few clips can't show that nothing is lost.

    Args:
        whole, without: (units,) correct clips of each source video, with and without the stream.
        sizes: (units,) clips of each.
    """
    lost, margin = paired_margin(whole - without, sizes)
    z = float(norm.ppf(LEVEL))
    return lost, lost + max(margin, z * z / (len(sizes) + z * z))


def paired_margin(differences: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Return the mean difference per clip, and the one-sided 95% margin of it by Student's t over source videos.

    Args:
        differences: (units,) sums of differences over the clips of each source video; sizes: (units,) clips of each.
    """
    units, n = len(sizes), sizes.sum()
    mean = float(differences.sum() / n)
    if units < 2:
        return mean, float("inf")
    influence = (differences - mean * sizes) / n
    error = float(np.sqrt((influence**2).sum() * units / (units - 1)))
    return mean, float(student_t.ppf(LEVEL, units - 1)) * error

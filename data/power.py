"""Statistical power: the smallest difference of two accuracies that a split can show."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

LEVEL = 0.95
POWER = 0.8


def smallest_resolvable_gap(n: int, *, discordance: float = 0.0, power: float = POWER, level: float = LEVEL) -> float:
    """Return the smallest difference of two heads' accuracies that exact McNemar's test finds with this power.

    Args:
        n: clips, all of different source videos.
        discordance: share of clips that exactly one of the heads gets right. It can't be smaller than the difference
            itself: with 0, all differences go one way (the most favourable case).
        power: probability in (0, 1) that the test finds the difference.
        level: 1 minus the level of the test.

    Returns:
        The difference in (0, 1]; 1 if the test finds no difference with this power.

    >>> round(smallest_resolvable_gap(18), 2)
    0.4
    """

    def missing(gap: float) -> float:
        return power - mcnemar_power(n, gap, discordance=max(discordance, gap), level=level)

    return 1.0 if missing(1.0) >= 0 else float(brentq(missing, 1e-9, 1.0))


def mcnemar_power(n: int, gap: float, *, discordance: float, level: float = LEVEL) -> float:
    """Return how often exact McNemar's test on n clips finds a difference `gap`, at most `discordance`."""
    spread = 8 * math.sqrt(n * discordance * (1 - discordance)) + 1
    k = np.arange(max(1, math.floor(n * discordance - spread)), min(n, math.ceil(n * discordance + spread)) + 1)
    fewest = binom.ppf((1 - level) / 2, k, 0.5) - 1  # rejected with so many wins or losses of k, or fewer
    wins = (1 + gap / discordance) / 2
    rejected = binom.cdf(fewest, k, wins) + binom.cdf(fewest, k, 1 - wins)
    return float(binom.pmf(k, n, discordance) @ rejected)

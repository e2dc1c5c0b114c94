"""Statistical power: the smallest difference of two accuracies that a split can show."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.stats import norm

LEVEL = 0.95
POWER = 0.8


def smallest_resolvable_gap(n: int, *, discordance: float = 0.0, power: float = POWER, level: float = LEVEL) -> float:
    """Return the smallest difference of two accuracies that a paired test on n clips detects with this power.

    Solves gap sqrt(n) = z_level sqrt(d) + z_power sqrt(d - gap^2) for the gap (Connor 1987, for McNemar's test), where
    d is the mean squared difference per clip: for two single heads, the share of clips that exactly one gets right. d
    can't be smaller than the gap itself: with `discordance=0`, all differences go one way (the most favourable case).

    >>> round(smallest_resolvable_gap(18), 2)
    0.38
    """
    z_level, z_power = norm.ppf((1 + level) / 2), norm.ppf(power)

    def excess(gap: float) -> float:
        d = max(discordance, gap)
        return gap * math.sqrt(n) - z_level * math.sqrt(d) - z_power * math.sqrt(max(d - gap * gap, 0.0))

    return 1.0 if excess(1.0) <= 0 else float(brentq(excess, 1e-9, 1.0))

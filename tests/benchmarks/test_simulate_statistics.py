"""The simulation of intervals and tests, at sizes that show whether they are far off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import simulate_statistics
from simulate_statistics import Case, draw, simulate

from alphafuse.heads.scoring.statistics import paired_permutation_test

Script = Callable[..., tuple[int, str, str]]


def test_the_experiments_that_are_drawn_have_the_accuracies_that_are_said() -> None:
    rng = np.random.default_rng(0)
    first, second, groups = draw(Case(4000, 0, 20, 10, 2.0), rng, 0.1)
    assert first.shape == (20, len(groups)) and second.shape == (10, len(groups))
    assert first.mean() == pytest.approx(0.65, abs=0.02) and second.mean() == pytest.approx(0.55, abs=0.02)
    assert first.mean(axis=1).std(ddof=1) == pytest.approx(0.02, rel=0.5)


def test_intervals_tests_and_power_hold_for_seeds_that_differ_and_videos_of_unequal_size() -> None:
    found = simulate(Case(400, 0, 5, 5, 2.0), draws=150, seed=1, jobs=1)
    assert found.covers > 0.9 and found.holds > 0.88 and found.rejects < 0.12 and 0.68 < found.finds < 0.92


def test_a_test_over_videos_alone_takes_seeds_for_a_difference() -> None:
    case, rng, held = Case(3000, 1, 3, 3, 2.0), np.random.default_rng(2), []
    for _ in range(40):
        first, second, groups = draw(case, rng)
        held.append(paired_permutation_test(first, second, groups.tolist(), draws=500).p_value < 0.05)
    assert np.mean(held) > 0.2


def test_it_prints_a_line_per_case(script: Script) -> None:
    code, out, _ = script(simulate_statistics.main, "--videos", 20, "--seeds", 3, "--others", 2, "--draws", 3)
    assert code == 0 and len(out.splitlines()) == 2 and "3|2" in out
    assert len(simulate_statistics.grid()) > 40

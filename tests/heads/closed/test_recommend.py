"""A confidence set's ends, and the weightings that it leaves out unseen."""

from __future__ import annotations

import numpy as np
import pytest

from alphafuse.heads.closed.profile import of_ratio
from alphafuse.heads.closed.recommend import Profile
from alphafuse.heads.closed.ridge import Weighting
from alphafuse.heads.scoring.choice import Choice


def profile_of(alphas: list[tuple[float, ...]], inside: list[bool]) -> Profile:
    choice = Choice(np.zeros(len(inside)), 0, 0, np.array(inside), 0.0, 0.0, 9)
    return Profile(tuple("abc"[: len(alphas[0])]), tuple(Weighting(one, 1.0, 0.0) for one in alphas), choice, True)


@pytest.mark.parametrize(
    ("inside", "limits", "words"),
    [
        ([False, True, True, False], (0.5, 2.0), "0.5 to 2"),
        ([True, True, False, False], (None, 0.5), "at most 0.5"),
        ([False, False, True, True], (2.0, None), "at least 2"),
        ([True, True, True, True], (None, None), "no limit found"),
    ],
)
def test_an_interval_has_no_limit_where_no_ratio_beyond_it_is_excluded(
    inside: list[bool], limits: tuple[float | None, float | None], words: str
) -> None:
    found = profile_of([of_ratio(exponent) for exponent in (-3.0, -1.0, 1.0, 3.0)], inside)
    assert found.limits_of("b") == pytest.approx(limits) and found.limits_in_words("b") == words
    assert found.to_json()["ranges"]["b"] == pytest.approx(list(limits))
    assert found.limits_of("a") == pytest.approx(tuple(end and 1 / end for end in limits[::-1]))


def test_of_three_streams_only_weightings_that_differ_in_one_stream_limit_it() -> None:
    def of(*exponents: float) -> tuple[float, ...]:
        return tuple(2.0 ** (np.array(exponents) - np.mean(exponents)))

    alphas = [of(0, 0, 0), of(1, 0, 0), of(2, 0, 0), of(0, -1, 0), of(-5, 3, 1)]
    found = profile_of(alphas, [True, True, False, True, False])
    low, high = found.limits_of("a")
    assert low is None  # the last one has less of a, but differs in the others too
    assert high == pytest.approx(2 ** (2 / 3)) and found.limits_of("c") == (None, None)

"""A confidence set's ends, and the weightings that it leaves out unseen."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from support.closed import make_rows

from alphafuse.heads.closed import recommend
from alphafuse.heads.closed.profile import of_ratio
from alphafuse.heads.closed.recommend import Profile
from alphafuse.heads.closed.ridge import Weighting
from alphafuse.heads.closed.rows import RowScores, heads_of, score_rows, scores_of
from alphafuse.heads.scoring import choice as choice_module
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


@pytest.mark.parametrize(
    ("dims", "signal", "far"), [((6, 6), (1.0, 0.25), choice_module.FAR), ((60, 150), (0.3, 0.0), 1.0)]
)
def test_weightings_whose_mean_errors_decide_need_no_scores(
    monkeypatch: pytest.MonkeyPatch, dims: tuple[int, int], signal: tuple[float, float], far: float
) -> None:
    """The second case, with a smaller number of standard errors, has weightings far above the least."""
    monkeypatch.setattr(choice_module, "FAR", far)
    sizes, signals = (dict(zip(("timesformer", "ast"), two, strict=True)) for two in (dims, signal))
    rows, targets = make_rows(1500, sizes, signal=signals)
    found: list[Profile] = []
    candidates: list[int] = []

    def counted(*given: Any, **named: Any) -> RowScores:
        candidates.append(len(given[1]))
        return score_rows(*given, **named)

    monkeypatch.setattr(recommend, "score_rows", counted)
    for many in (len(rows) + 1, len(rows)):
        monkeypatch.setattr(recommend, "MANY", many)
        laboratory = recommend.Laboratory(rows, targets, 4)
        found.append(laboratory.profile_of(laboratory.streams)[0])
    every, some = found
    assert candidates[0] == 65 + 3 and candidates[1] < 60, candidates  # three more: without each stream, and guessing
    np.testing.assert_array_equal(some.choice.inside, every.choice.inside)
    np.testing.assert_allclose(some.choice.losses, every.choice.losses, rtol=1e-5)
    assert (some.choice.chosen, some.is_learned) == (every.choice.chosen, every.is_learned)
    assert some.choice.regret == pytest.approx(every.choice.regret, abs=1e-5)


def test_the_distance_of_scores_bounds_the_standard_error_of_a_difference() -> None:
    rows, targets = make_rows(400, {"timesformer": 6, "ast": 30}, signal={"timesformer": 1.0, "ast": 0.2})
    laboratory = recommend.Laboratory(rows, targets, 4)
    weightings = [laboratory.problem.best(of_ratio(exponent)) for exponent in (-2.0, 0.0, 1.0, 3.0)]
    heads = [partial(heads_of, laboratory.problem, one, laboratory.standard) for one in weightings]
    scores = scores_of(laboratory.clips, heads, laboratory.moments)
    distances = laboratory.problem.distances(weightings, weightings[0])
    np.testing.assert_allclose(distances, np.square(scores - scores[0]).sum(axis=2).mean(axis=1), rtol=1e-4)
    errors = np.square(scores - np.eye(4)[targets]).sum(axis=2)
    of_video = (errors - errors[0]).reshape(4, -1, 2).sum(axis=2) / len(rows)
    assert (np.square(of_video).sum(axis=1) <= choice_module.LONGEST * distances * 2 / len(rows)).all()

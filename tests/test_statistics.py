"""Scores, intervals and tests against scipy, scikit-learn and figures worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from alphafuse.data.power import smallest_resolvable_gap
from alphafuse.heads.metrics import score
from alphafuse.heads.statistics import (
    accuracy_interval,
    bootstrap_interval,
    difference_interval,
    holm,
    mcnemar,
    paired_permutation_test,
    wilson_interval,
)


def each(clips: int) -> list[str]:
    return [f"video{i}" for i in range(clips)]


@pytest.mark.parametrize(("successes", "n"), [(0, 18), (4, 18), (18, 18), (50, 100), (1, 1), (7000, 15446)])
def test_wilson_equals_scipy(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    ours = wilson_interval(successes, n)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_4_of_18_by_hand() -> None:
    # z = 1.95996: centre = (4/18 + z^2/36) / (1 + z^2/18) = 0.32892 / 1.21341, half-width 0.26203 / 1.21341
    ours = wilson_interval(4, 18)
    assert (ours.low, ours.high) == pytest.approx((0.0900, 0.4521), abs=5e-4)


def test_wilson_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="5 of 4"):
        wilson_interval(5, 4)
    with pytest.raises(ValueError, match="n >= 1"):
        wilson_interval(0, 0)


def test_bootstrap_of_one_head_agrees_with_scipys() -> None:
    values = np.random.default_rng(0).normal(size=(1, 200))
    ours = bootstrap_interval(values, each(200), resamples=8000)
    theirs = stats.bootstrap((values[0],), np.mean, method="percentile", n_resamples=8000, rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.method == "bootstrap over source videos"


def test_bootstrap_over_videos_is_wider_when_clips_of_a_video_agree() -> None:
    rng = np.random.default_rng(1)
    values = np.repeat(rng.integers(0, 2, 50), 4)[None].astype(float)  # 50 videos of 4 equal clips
    clustered = bootstrap_interval(values, [f"v{i // 4}" for i in range(200)])
    naive = bootstrap_interval(values, each(200))
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)
    assert ratio == pytest.approx(2, rel=0.1)  # sqrt(4)


def test_bootstrap_over_seeds_is_wider_when_seeds_disagree() -> None:
    agreeing = np.tile(np.arange(40) % 2, (6, 1)).astype(float)
    disagreeing = np.stack([np.full(40, seed % 2) for seed in range(6)]).astype(float)
    narrow, wide = bootstrap_interval(agreeing, each(40)), bootstrap_interval(disagreeing, each(40))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert wide.method == "bootstrap over seeds and source videos"


def test_bootstrap_is_the_same_for_the_same_seed_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).random((3, 30))
    once = bootstrap_interval(values, each(30))
    assert bootstrap_interval(values, each(30)) == once
    monkeypatch.setattr("alphafuse.heads.statistics.BLOCK_CELLS", 3000)
    blocked = bootstrap_interval(values, each(30))
    assert (blocked.low, blocked.high) == pytest.approx((once.low, once.high), abs=0.01)


def test_bootstrap_of_zero_width_falls_back_to_wilson() -> None:
    assert bootstrap_interval(np.ones((5, 18)), each(18)) == wilson_interval(18, 18)
    assert bootstrap_interval(np.ones((5, 18)), [f"v{i // 2}" for i in range(18)]) == wilson_interval(9, 9)
    assert bootstrap_interval(np.array([[1, 0, 0, 0]]), ["v"] * 4) == wilson_interval(0.25, 1)  # one video, one draw
    constant = bootstrap_interval(np.full((2, 4), 0.7), each(4))
    assert (constant.low, constant.high, constant.method) == (0.7, 0.7, "none: no variation to resample")


def test_accuracy_interval_is_wilson_for_one_head_and_the_bootstrap_for_many() -> None:
    correct = np.random.default_rng(3).random((4, 60)) < 0.5
    assert accuracy_interval(correct[:1], each(60)) == wilson_interval(int(correct[0].sum()), 60)
    assert accuracy_interval(correct, each(60)).method.startswith("bootstrap over seeds")


def test_one_heads_interval_counts_source_videos_not_clips() -> None:
    rng = np.random.default_rng(6)
    videos = np.repeat(np.arange(50), 4)  # four clips of a video are right or wrong together: 50 draws, not 200
    covered = {"videos": 0, "clips": 0}
    for _ in range(200):
        correct = (rng.random(50) < 0.7)[videos][None]
        for name, groups in (("videos", [str(video) for video in videos]), ("clips", each(200))):
            interval = accuracy_interval(correct, groups)
            covered[name] += interval.low <= 0.7 <= interval.high
    assert covered["videos"] >= 180 and covered["clips"] < 160  # of 200; nominally 190


def test_difference_interval_of_equal_heads_is_not_empty() -> None:
    correct = np.random.default_rng(4).random((2, 18)) < 0.5
    interval = difference_interval(correct, correct, each(18))
    bound = wilson_interval(0, 18).high
    assert (interval.low, interval.high) == (-bound, bound)


@pytest.mark.parametrize("clips", [8, 13])
def test_exact_permutation_test_equals_scipys(clips: int) -> None:
    rng = np.random.default_rng(clips)
    a, b = rng.normal(0.5, 1, clips), rng.normal(0, 1, clips)
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    ours = paired_permutation_test(a, b, each(clips))
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-9)
    assert ours.difference == pytest.approx(np.mean(a - b))
    assert "exact" in ours.method


def test_drawn_permutation_test_is_close_to_the_exact_one() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.random(300) < 0.55).astype(float), (rng.random(300) < 0.45).astype(float)
    discordant = int(np.sum(a != b))
    exact = stats.binomtest(int(np.sum(a > b)), discordant).pvalue  # single heads: a sign test
    ours = paired_permutation_test(a, b, each(300))
    assert ours.p_value == pytest.approx(exact, abs=0.01)
    assert paired_permutation_test(np.ones(300), np.zeros(300), each(300)).p_value == 1 / 10_001


def test_permutation_test_flips_whole_videos() -> None:
    a, b = np.ones(12), np.zeros(12)
    assert paired_permutation_test(a, b, each(12)).p_value == 2 / 2**12
    assert paired_permutation_test(a, b, [f"v{i // 4}" for i in range(12)]).p_value == 2 / 2**3
    assert paired_permutation_test(a, a, each(12)).p_value == 1


def test_permutation_test_averages_seeds_first() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.random((5, 10)), rng.random((3, 10))
    many = paired_permutation_test(a, b, each(10))
    assert many == paired_permutation_test(a.mean(axis=0), b.mean(axis=0), each(10))


def test_mcnemar_by_hand() -> None:
    a = np.array([1] * 8 + [0] * 1 + [1] * 5, bool)
    b = np.array([0] * 8 + [1] * 1 + [1] * 5, bool)
    result = mcnemar(a, b)  # 8 against 1 discordant clips: 2 * (C(9,0) + C(9,1)) / 2^9 = 20 / 512
    assert result.p_value == pytest.approx(20 / 512)
    assert result.difference == pytest.approx(7 / 14)
    assert mcnemar(a, a).p_value == 1
    with pytest.raises(ValueError, match="same clips"):
        mcnemar(a, b[:3])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_smallest_resolvable_gap_is_found_with_80_percent_power() -> None:
    n, discordance = 400, 0.2
    gap = smallest_resolvable_gap(n, discordance=discordance)
    rng = np.random.default_rng(7)
    wins, losses, _ = rng.multinomial(n, [(discordance + gap) / 2, (discordance - gap) / 2, 1 - discordance], 4000).T
    found = (np.abs(wins - losses) / np.sqrt(wins + losses)) > 1.96  # McNemar's test, large sample
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_eighteen_clips_can_not_tell_11_from_22_percent() -> None:
    assert smallest_resolvable_gap(18) > 4 / 18 - 2 / 18
    assert smallest_resolvable_gap(2) == 1.0
    assert smallest_resolvable_gap(15_446, discordance=0.1) < 0.01


def test_scores_equal_scikit_learns() -> None:
    rng = np.random.default_rng(8)
    logits = rng.normal(size=(3, 50, 9))
    targets = rng.integers(0, 7, 50)  # two classes don't occur
    scores = score(logits, targets)
    for seed in range(3):
        shifted = np.exp(logits[seed])
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        classes = np.arange(9)
        assert scores.top1[seed].mean() == pytest.approx(metrics.accuracy_score(targets, logits[seed].argmax(1)))
        assert scores.topk[seed].mean() == pytest.approx(
            metrics.top_k_accuracy_score(targets, logits[seed], k=5, labels=classes)
        )
        assert scores.loss[seed].mean() == pytest.approx(metrics.log_loss(targets, probabilities, labels=classes))
        per_class = [np.mean(logits[seed].argmax(1)[targets == c] == c) for c in np.unique(targets)]
        assert scores.class_accuracy[seed] == pytest.approx(np.mean(per_class))


def test_top5_of_three_classes_is_top3() -> None:
    scores = score(np.random.default_rng(9).normal(size=(1, 6, 3)), np.zeros(6, int))
    assert scores.k == 3 and scores.topk.all()


def test_equal_logits_count_for_the_first_class_only() -> None:
    scores = score(np.zeros((1, 3, 3)), np.arange(3))
    assert scores.top1.tolist() == [[True, False, False]]
    assert scores.loss.ravel() == pytest.approx(math.log(3))


def test_scores_refuse_what_is_not_a_score() -> None:
    with pytest.raises(ValueError, match="don't fit"):
        score(np.zeros((1, 3, 3)), np.zeros(4, int))
    with pytest.raises(ValueError, match="finite"):
        score(np.full((1, 3, 3), np.nan), np.zeros(3, int))

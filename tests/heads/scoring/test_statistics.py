"""Intervals and tests compared with scipy, statsmodels and figures computed by hand.

statsmodels is not a dependency: its figures were computed with statsmodels 0.15.0 and are copied here.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from alphafuse.data.power import smallest_resolvable_gap
from alphafuse.heads.scoring.statistics import (
    accuracy_interval,
    bootstrap_counts,
    bootstrap_interval,
    difference_interval,
    holm,
    mcnemar,
    paired_permutation_test,
    paired_test,
    resampled_interval,
    t_interval,
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


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (4, 18, 0.09000928108601691, 0.45214584316212625),
        (50, 100, 0.4038315303659956, 0.5961684696340044),
        (7000, 15446, 0.445353847456814, 0.46105295912083916),
        (0, 18, 0.0, 0.1758792236466577),
    ],
)
def test_wilson_equals_statsmodels(successes: int, n: int, low: float, high: float) -> None:
    ours = wilson_interval(successes, n)  # statsmodels: proportion_confint(successes, n, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-12)


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
    monkeypatch.setattr("alphafuse.heads.scoring.statistics.BLOCK_CELLS", 3000)
    blocked = bootstrap_interval(values, each(30))
    assert (blocked.low, blocked.high) == pytest.approx((once.low, once.high), abs=0.01)


def test_bootstrap_of_zero_width_falls_back_to_wilson() -> None:
    assert bootstrap_interval(np.ones((5, 18)), each(18)) == wilson_interval(18, 18)
    assert bootstrap_interval(np.ones((5, 18)), [f"v{i // 2}" for i in range(18)]) == wilson_interval(9, 9)
    assert bootstrap_interval(np.array([[1, 0, 0, 0]]), ["v"] * 4) == wilson_interval(0.25, 1)  # one video, one draw
    constant = bootstrap_interval(np.full((2, 4), 0.7), each(4))
    assert (constant.low, constant.high, constant.method) == (0.7, 0.7, "none: no variation to resample")


def test_bootstrap_counts_resample_whole_videos_as_many_as_the_data_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = ["b", "a", "b", "c", "a", "b"]
    seeds, clips = bootstrap_counts(3, groups, resamples=500)
    assert seeds.shape == (500, 3) and clips.shape == (500, 6)
    assert (seeds.sum(axis=1) == 3).all() and (clips[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert (
        (clips[:, 0] == clips[:, 2]).all() and (clips[:, 0] == clips[:, 5]).all() and (clips[:, 1] == clips[:, 4]).all()
    )
    assert clips[:, :2].mean() == pytest.approx(1, abs=0.1)
    monkeypatch.setattr("alphafuse.heads.scoring.statistics.BLOCK_CELLS", 30)
    assert (bootstrap_counts(3, groups, resamples=500)[1].sum(axis=0) > 300).all()  # every block is filled


def test_resampled_interval_of_a_mean_over_clips_is_the_bootstrap_interval() -> None:
    rng = np.random.default_rng(10)
    values = rng.random((4, 1)) + rng.random((4, 120))
    groups = [f"v{i // 2}" for i in range(120)]
    seed_counts, clip_counts = bootstrap_counts(4, groups, resamples=4000, seed=1)
    resampled = clip_counts @ values.T / clip_counts.sum(axis=1, keepdims=True)
    ours = resampled_interval(values.mean(axis=1), resampled, seed_counts)
    expected = bootstrap_interval(values, groups, resamples=4000)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert expected.high - expected.low > 0.2
    assert ours.method == expected.method == "bootstrap over seeds and source videos"


def test_centred_interval_removes_the_bias_of_the_bootstrap_by_hand() -> None:
    resampled = np.linspace(0.3, 0.5, 1001)[:, None]  # mean 0.4, where the figure is 0.35: a bias of 0.05
    ones = np.ones((1001, 1), np.int64)
    plain = resampled_interval([0.35], resampled, ones)
    centred = resampled_interval([0.35], resampled, ones, centred=True)
    assert (plain.low, plain.high) == pytest.approx((0.305, 0.495))
    assert (centred.low, centred.high) == pytest.approx((0.255, 0.445))
    assert centred.method == "centred bootstrap over source videos"
    assert resampled_interval([0.06], resampled - 0.3, ones, centred=True).low == 0  # 0.005 - 0.04, cut at 0


def test_resampled_interval_leaves_undefined_resamples_out_and_keeps_infinite_ones() -> None:
    seed_counts = np.tile([[2, 0], [0, 2], [1, 1], [1, 1]], (250, 1))
    resampled = np.tile([[1, np.nan], [np.inf, 3], [np.nan, 9], [4, np.inf]], (250, 1))
    interval = resampled_interval([2.0, 2.0], resampled, seed_counts)  # means 1, 3, undefined, infinite
    assert (interval.low, interval.high) == (1, np.inf)


def test_resampled_interval_reports_that_nothing_varies_over_videos() -> None:
    seed_counts, clip_counts = bootstrap_counts(2, ["v"] * 5, resamples=50)
    assert (clip_counts == 1).all()
    interval = resampled_interval([0.2, 0.6], np.tile([0.2, 0.6], (50, 1)), seed_counts)
    assert (interval.low, interval.high, interval.method) == (0.4, 0.4, "none: no variation to resample")
    undefined = resampled_interval([0.5], np.full((50, 1), np.nan), np.ones((50, 1), np.int64))
    assert undefined.method == "none: no variation to resample"


def test_t_interval_equals_scipys_and_statsmodels() -> None:
    values = [0.61, 0.58, 0.64, 0.60, 0.59]
    ours = t_interval(values)
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(expected, abs=1e-12)
    # statsmodels: DescrStatsW(values).tconfint_mean()
    assert (ours.low, ours.high) == pytest.approx((0.5754147480901297, 0.6325852519098702), abs=1e-12)
    assert ours.method == "t over 5 seeds"


def test_t_interval_refuses_one_seed_and_infinite_figures() -> None:
    with pytest.raises(ValueError, match="at least 2 seeds"):
        t_interval([0.5])
    with pytest.raises(ValueError, match="finite"):
        t_interval([0.5, np.inf])


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


def test_random_permutation_test_is_close_to_the_exact_one() -> None:
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


@pytest.mark.parametrize(
    ("both", "only_a", "only_b", "neither", "p_value"),
    [(5, 8, 1, 4, 0.0390625), (101, 121, 59, 33, 4.4344492637551645e-06), (10, 3, 0, 2, 0.25)],
)
def test_mcnemar_equals_statsmodels(both: int, only_a: int, only_b: int, neither: int, p_value: float) -> None:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    # statsmodels: mcnemar([[both, only_a], [only_b, neither]], exact=True)
    assert mcnemar(a, b).p_value == pytest.approx(p_value, rel=1e-9)


def test_paired_test_is_mcnemar_only_for_two_single_heads_on_clips_of_different_videos() -> None:
    rng = np.random.default_rng(11)
    a, b = rng.random((3, 40)) < 0.7, rng.random((3, 40)) < 0.4
    pairs = [f"v{i // 2}" for i in range(40)]
    assert paired_test(a[:1], b[:1], each(40)) == paired_test(a[0], b[0], each(40)) == mcnemar(a[0], b[0])
    assert paired_test(a, b, each(40)) == paired_permutation_test(a, b, each(40))
    assert paired_test(a[:1], b, each(40)) == paired_permutation_test(a[:1], b, each(40))
    assert paired_test(a[0], b[0], pairs) == paired_permutation_test(a[0], b[0], pairs)
    losses = rng.random((2, 1, 40))
    assert paired_test(*losses, each(40)) == paired_permutation_test(*losses, each(40))
    with pytest.raises(ValueError, match="don't fit"):
        paired_test(a, b, each(39))


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


def test_eighteen_clips_cannot_distinguish_11_from_22_percent() -> None:
    assert smallest_resolvable_gap(18) > 4 / 18 - 2 / 18
    assert smallest_resolvable_gap(2) == 1.0
    assert smallest_resolvable_gap(15_446, discordance=0.1) < 0.01

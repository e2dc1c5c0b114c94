"""Intervals and tests compared with scipy, statsmodels and figures computed by hand.

statsmodels is not a dependency: its figures were computed with statsmodels 0.15.0 and are copied here.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from alphafuse.data.power import mcnemar_power, smallest_resolvable_gap
from alphafuse.heads.scoring.statistics import (
    accuracy_interval,
    bootstrap_counts,
    compare_pairs,
    difference_interval,
    holm,
    mcnemar,
    mean_interval,
    mean_intervals,
    paired_permutation_test,
    paired_test,
    resampled_interval,
    resolvable_gap,
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


def crossed_by_hand(values: np.ndarray) -> tuple[float, float]:
    """Return the variance of the mean of (seeds, videos) and its degrees of freedom, from the sums of an ANOVA."""
    seeds, videos = values.shape
    total = values.sum() ** 2 / values.size
    of_seeds = sum(row.sum() ** 2 for row in values) / videos - total
    of_videos = sum(column.sum() ** 2 for column in values.T) / seeds - total
    of_both = (values**2).sum() - total - of_seeds - of_videos
    ms_seed, ms_video = of_seeds / (seeds - 1), of_videos / (videos - 1)
    ms_both = of_both / ((seeds - 1) * (videos - 1))
    assert ms_seed > ms_both and ms_video > ms_both
    variance = (ms_seed + ms_video - ms_both) / values.size
    share = ms_seed / values.size / variance
    inverse = share**1.5 / (seeds - 1)
    inverse += (ms_video / values.size / variance) ** 2 / (videos - 1)
    inverse += (ms_both / values.size / variance) ** 2 / ((seeds - 1) * (videos - 1))
    return variance, 1 / inverse


def test_seeds_and_videos_are_crossed_as_in_an_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 1)) + 2 * rng.normal(size=30) + rng.normal(size=(4, 30))
    variance, freedom = crossed_by_hand(values)
    expected = stats.t.interval(0.95, freedom, values.mean(), np.sqrt(variance))
    found = mean_interval(values, each(30))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)
    assert found.method == "t over seeds and source videos"
    test = paired_test(values, np.zeros((4, 30)), each(30))
    assert test.p_value == pytest.approx(2 * stats.t.sf(abs(values.mean()) / np.sqrt(variance), freedom), rel=1e-9)
    repeated = mean_interval(np.repeat(values, 3, axis=1), np.repeat(each(30), 3))  # three equal clips per video
    assert (repeated.low, repeated.high) == pytest.approx(expected, abs=1e-9)


def test_one_head_with_a_clip_per_video_has_students_interval() -> None:
    values = np.random.default_rng(0).normal(size=(1, 20))
    found = mean_interval(values, each(20))
    expected = stats.t.interval(0.95, 19, values.mean(), stats.sem(values[0]))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)
    assert found.method == "t over source videos"


def test_videos_of_unequal_size_have_the_cluster_robust_variance_of_bell_and_mccaffrey() -> None:
    rng = np.random.default_rng(2)
    sizes = np.array([1, 7, 2, 2, 12, 3, 1, 5, 4, 4])
    video = np.repeat(np.arange(10), sizes)
    values, clips = rng.normal(size=10)[video] + rng.normal(size=sizes.sum()), sizes.sum()
    residuals, variance = values - values.mean(), 0.0
    for place in range(10):  # CR2 of a regression on a constant
        own = residuals[video == place]
        eigenvalues, vectors = np.linalg.eigh(np.eye(len(own)) - 1 / clips)
        variance += (vectors @ np.diag(eigenvalues**-0.5) @ vectors.T @ own).sum() ** 2 / clips**2
    freedom = clips**2 / (sizes**2).sum() - 1
    expected = stats.t.interval(0.95, freedom, values.mean(), np.sqrt(variance))
    found = mean_interval(values[None], [f"v{place}" for place in video])
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)
    both = mean_intervals(np.stack([values, 2 * values]), [f"v{place}" for place in video])
    assert both[0] == found and both[1].high - both[1].low == pytest.approx(2 * (found.high - found.low))


def test_intervals_are_wider_when_clips_of_a_video_or_heads_of_a_seed_agree() -> None:
    values = np.repeat(np.random.default_rng(1).integers(0, 2, 50), 4)[None].astype(float)  # 50 videos of 4 equal clips
    clustered, naive = (mean_interval(values, groups) for groups in ([f"v{i // 4}" for i in range(200)], each(200)))
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(2, rel=0.1)  # sqrt(4)
    agreeing = np.tile(np.arange(40) % 2, (6, 1))
    disagreeing = np.stack([np.full(40, seed % 2) for seed in range(6)])
    narrow, wide = accuracy_interval(agreeing, each(40)), accuracy_interval(disagreeing, each(40))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert wide.method == "Wilson over seeds and source videos"


def test_a_mean_without_variation_says_so() -> None:
    for values, groups in ((np.full((2, 4), 0.7), each(4)), (np.array([[0.1, 0.9, 1.1]]), ["v"] * 3)):
        found = mean_interval(values, groups)
        assert found.low == found.high == pytest.approx(0.7) and found.method.startswith("none")


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


def test_resampled_interval_of_a_mean_over_clips_is_near_the_models() -> None:
    rng = np.random.default_rng(10)
    values = rng.random((1, 120)) + rng.random((40, 120))
    groups = [f"v{i // 2}" for i in range(120)]
    seed_counts, clip_counts = bootstrap_counts(40, groups, resamples=4000, seed=1)
    resampled = clip_counts @ values.T / clip_counts.sum(axis=1, keepdims=True)
    ours = resampled_interval(values.mean(axis=1), resampled, seed_counts)
    expected = mean_interval(values, groups)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert expected.high - expected.low > 0.08 and ours.method == "bootstrap over seeds and source videos"


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
    assert (interval.low, interval.high, interval.method) == (0.4, 0.4, "none: no variation")
    undefined = resampled_interval([0.5], np.full((50, 1), np.nan), np.ones((50, 1), np.int64))
    assert undefined.method == "none: no variation"


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


def test_accuracy_interval_is_wilsons_of_the_effective_number_of_clips() -> None:
    rng = np.random.default_rng(3)
    correct = rng.random((4, 60)) < 0.3 + 0.4 * rng.random(60)
    assert accuracy_interval(correct[:1], each(60)) == wilson_interval(int(correct[0].sum()), 60)
    p, found = correct.mean(), accuracy_interval(correct, each(60))
    t_ends = mean_interval(correct, each(60))
    assert found.high - found.low == pytest.approx(t_ends.high - t_ends.low, rel=0.1)
    assert found.low + found.high > 2 * p if p < 0.5 else found.low + found.high < 2 * p  # towards one half


def test_accuracies_at_the_ends_and_without_variation_keep_a_width() -> None:
    assert accuracy_interval(np.ones((5, 18)), each(18)) == wilson_interval(18, 18)
    assert accuracy_interval(np.ones((5, 18)), [f"v{i // 2}" for i in range(18)]) == wilson_interval(9, 9)
    assert accuracy_interval(np.array([[1, 0, 0, 0]]), ["v"] * 4) == wilson_interval(0.25, 1)  # one video, one draw
    halves = accuracy_interval(np.tile([0, 1], (3, 12)), [f"v{i // 2}" for i in range(24)])  # no video varies, by luck
    assert halves.low < 0.43 and halves.high > 0.57


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


def test_difference_intervals_without_variation_keep_a_width() -> None:
    correct = np.random.default_rng(4).random((2, 18)) < 0.5
    bound = wilson_interval(0, 18).high
    found = difference_interval(correct, correct, each(18))
    assert (found.low, found.high) == (-bound, bound)
    for videos in (4, 5, 6, 12):  # always better: excludes 0 exactly if the sign flips do
        always = compare_pairs([(np.ones((3, videos)), np.zeros((3, videos)))], each(videos))[0]
        assert always.test.p_value == 2 / 2**videos and always.interval.high == pytest.approx(1)
        assert (always.interval.low > 0) == (always.test.p_value < 0.05)
    one_video = difference_interval(np.array([[1, 1, 0]]), np.array([[0, 1, 0]]), ["v"] * 3)
    assert one_video.low < -0.9 and one_video.high > 0.9


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 2), (5, 5), (5, 3), (4, 1)])
def test_an_interval_excludes_0_exactly_if_p_is_below_one_in_twenty(first: int, second: int) -> None:
    rng = np.random.default_rng(5)
    decided = 0
    for trial in range(60):
        hard = rng.random(30)
        a, b = (hard + 0.3 * rng.random((seeds, 30)) < level for seeds, level in ((first, 0.7), (second, 0.5)))
        found = compare_pairs([(a, b)], [f"v{i // (1 + trial % 2)}" for i in range(30)])[0]
        excludes = found.interval.low > 0 or found.interval.high < 0
        assert excludes == (found.test.p_value < 0.05) and found.interval.low <= found.test.difference
        decided += excludes
    assert 0 < decided < 60


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


def test_the_test_of_single_heads_is_exact_and_says_that_it_is_about_them() -> None:
    rng = np.random.default_rng(11)
    a, b = rng.random((3, 40)) < 0.7, rng.random((3, 40)) < 0.4
    pairs = [f"v{i // 2}" for i in range(40)]
    assert paired_test(a[:1], b[:1], each(40)) == paired_test(a[0], b[0], each(40)) == mcnemar(a[0], b[0])
    assert paired_test(a[0], b[0], pairs) == paired_permutation_test(a[0], b[0], pairs)
    losses = rng.random((2, 1, 40))
    assert paired_test(*losses, each(40)) == paired_permutation_test(*losses, each(40))
    for groups in (each(40), pairs):
        assert paired_test(a[0], b[0], groups).method.endswith("of these heads")
    assert paired_test(a, b, each(40)).method == "paired t over seeds and source videos"
    assert paired_test(a[:2], b, each(40)).method.endswith("approximate with two seeds")
    assert paired_test(a[:1], b, each(40)).method.endswith("against one head as it is")
    with pytest.raises(ValueError, match="don't fit"):
        paired_test(a, b, each(39))


def test_different_numbers_of_seeds_are_not_paired() -> None:
    rng = np.random.default_rng(12)
    hard = rng.normal(size=400)
    a, b = hard + rng.normal(size=(6, 1)) + rng.normal(size=(6, 400)), hard + rng.normal(size=(3, 400))
    found = paired_test(a, b, each(400))
    assert found.difference == pytest.approx(a.mean() - b.mean())
    means = [side.mean(axis=1) for side in (a, b)]
    welch = stats.ttest_ind(*means, equal_var=False)  # the seeds decide: their deviations exceed those of 400 videos
    assert found.p_value == pytest.approx(welch.pvalue, rel=0.2)


def test_names_and_numbers_of_videos_give_the_same() -> None:
    rng = np.random.default_rng(13)
    a, b = rng.random((2, 3, 24)) < 0.5
    numbers = np.repeat(np.arange(8), 3)
    assert compare_pairs([(a, b)], numbers) == compare_pairs([(a, b)], [f"v{i}" for i in numbers])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_smallest_resolvable_gap_is_found_with_80_percent_power() -> None:
    rng = np.random.default_rng(7)
    for n, discordance in ((40, 0.3), (400, 0.2)):
        gap = smallest_resolvable_gap(n, discordance=discordance)
        shares = [(discordance + gap) / 2, (discordance - gap) / 2, 1 - discordance]
        wins, losses, _ = rng.multinomial(n, shares, 4000).T
        found = 2 * stats.binom.cdf(np.minimum(wins, losses), wins + losses, 0.5) < 0.05  # McNemar's test, exact
        assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_power_of_mcnemar_by_hand() -> None:
    # all of at least six clips go one way: p = 2 / 2^6 = .031
    assert mcnemar_power(18, 0.4, discordance=0.4) == pytest.approx(stats.binom.sf(5, 18, 0.4))
    assert smallest_resolvable_gap(18) > 4 / 18 - 2 / 18  # 18 clips can't distinguish 11 from 22%
    assert smallest_resolvable_gap(5) == 1.0
    assert smallest_resolvable_gap(15_446, discordance=0.1) < 0.01


def test_the_resolvable_gap_is_by_the_test_that_is_made() -> None:
    rng = np.random.default_rng(8)
    hard = rng.random(200)
    a, b = (hard + 0.4 * rng.random((5, 200)) < 0.7 for _ in range(2))
    alone = resolvable_gap([(a[:1], b[:1])], each(200), comparisons=1)
    differing = float((a[0] != b[0]).mean())
    equally_good = smallest_resolvable_gap(200, discordance=differing)  # heads that are not disagree more
    grown = float(np.hypot(differing, equally_good))
    assert alone == pytest.approx(smallest_resolvable_gap(200, discordance=grown))
    several = resolvable_gap([(a, b)], each(200), comparisons=1)
    half = np.ptp([(found := difference_interval(a, b, each(200))).low, found.high]) / 2
    assert 1.3 * half < several < 2 * half  # about (1.96 + 0.84) / 1.96 half-widths, more with few degrees of freedom
    assert resolvable_gap([(a, b)], each(200), comparisons=8) > several
    assert resolvable_gap([(a, a)], each(200), comparisons=1) == smallest_resolvable_gap(200)

"""The confidence set of the best candidate, and what is lost without a stream, on losses whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from alphafuse.heads.scoring.choice import choose_by_sums, choose_weight, most_lost, paired_margin
from alphafuse.heads.scoring.statistics import wilson_interval

CANDIDATES, VIDEOS, CLIPS, BEST = 9, 60, 120, 3
GROUPS = [f"video{i // 2}" for i in range(CLIPS)]


def draw(rng: np.random.Generator, seeds: int) -> np.ndarray:
    """Losses (candidates, seeds, clips) that vary by source video and by seed and are alike for near candidates."""
    place = np.linspace(-1, 1, CANDIDATES)[:, None]

    def field(count: int) -> np.ndarray:
        return rng.normal(size=count) + 0.5 * place * rng.normal(size=count)  # (candidates, count)

    truth = 1 + 0.005 * (np.arange(CANDIDATES) - BEST) ** 2
    of_clip = 0.5 * (field(VIDEOS).repeat(2, axis=1) + 0.5 * field(CLIPS))
    of_seed = 0.1 * field(seeds) if seeds > 1 else np.zeros((CANDIDATES, 1))
    noise = 0.02 * rng.normal(size=(CANDIDATES, seeds, CLIPS))
    return truth[:, None, None] + of_clip[:, None] + of_seed[:, :, None] + noise


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_set_holds_the_candidate_of_least_expected_loss_in_95_of_100_data_sets(seeds: int) -> None:
    held, sizes, first = 0, [], []
    for number in range(60):
        found = choose_weight(draw(np.random.default_rng(number), seeds), GROUPS, 4, seed=number)
        held += found.inside[BEST]
        sizes.append(found.inside.sum())
        first.append(found.best == BEST)
        assert found.inside[found.best] and found.units == VIDEOS
        assert found.chosen == (4 if found.inside[4] else found.best)
    assert held >= 55, f"{held} of 60 sets hold the best"
    assert np.mean(sizes) < CANDIDATES - 1, "a set of everything says nothing"
    assert np.mean(first) < 0.7, "the least loss alone is often another's"


def test_clips_of_a_source_video_count_once_and_seeds_widen_the_set() -> None:
    losses = draw(np.random.default_rng(0), 1)
    copied = np.repeat(losses, 5, axis=2)
    groups = [group for group in GROUPS for _ in range(5)]
    once, again = choose_weight(losses, GROUPS, 4), choose_weight(copied, groups, 4)
    np.testing.assert_array_equal(once.inside, again.inside)
    np.testing.assert_allclose(once.regret_bound, again.regret_bound)
    apart = choose_weight(copied, [str(i) for i in range(copied.shape[2])], 4)
    assert apart.inside.sum() < once.inside.sum()
    steady = np.repeat(losses, 3, axis=1)
    varied = steady + np.array([-0.3, 0.0, 0.3])[:, None] * np.linspace(-1, 1, CANDIDATES)[:, None, None]
    same = choose_weight(steady, GROUPS, 4)
    np.testing.assert_array_equal(same.inside, once.inside)
    np.testing.assert_allclose(same.losses, losses.mean(axis=(1, 2)))
    assert choose_weight(varied, GROUPS, 4).inside.sum() > once.inside.sum()


def test_a_clear_difference_is_found_and_its_size_bounded() -> None:
    losses = draw(np.random.default_rng(1), 1)
    losses[7] -= 1
    found = choose_weight(losses, GROUPS, 4)
    assert found.inside.tolist() == [i == 7 for i in range(CANDIDATES)]
    assert (found.best, found.chosen, found.is_equal_excluded) == (7, 7, True)
    gaps = (losses[4] - losses[7])[0].reshape(VIDEOS, 2).mean(axis=1)
    assert found.regret == pytest.approx(gaps.mean())
    expected = ttest_1samp(gaps, 0).confidence_interval(0.90).high  # one-sided 95%
    assert found.regret_bound == pytest.approx(expected, rel=1e-6)


def test_identical_candidates_are_all_in_the_set() -> None:
    losses = np.repeat(draw(np.random.default_rng(2), 2)[:1], 4, axis=0)
    found = choose_weight(losses, GROUPS, 2)
    assert found.inside.all() and found.chosen == 2 and not found.is_equal_excluded
    assert found.regret == pytest.approx(0) and found.regret_bound == pytest.approx(0, abs=1e-6)
    alone = choose_weight(losses[:1], GROUPS, 0)
    assert alone.inside.tolist() == [True] and alone.chosen == 0


def test_one_source_video_excludes_nothing() -> None:
    found = choose_weight(draw(np.random.default_rng(3), 1), ["video"] * CLIPS, 4)
    assert found.inside.all() and found.chosen == 4 and found.regret_bound == float("inf") and found.units == 1


@pytest.mark.parametrize(
    ("shape", "groups", "equal"),
    [((2, 3), 3, 0), ((2, 1, 4), 3, 0), ((0, 1, 3), 3, 0), ((2, 1, 0), 0, 0), ((2, 1, 3), 3, 2), ((2, 1, 3), 3, -1)],
)
def test_losses_of_another_shape_are_refused(shape: tuple[int, ...], groups: int, equal: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        choose_weight(np.zeros(shape), ["video"] * groups, equal)
    with pytest.raises(ValueError, match="must be finite"):
        choose_weight(np.full((2, 1, 2), np.nan), ["a", "b"], 0)


def test_sums_of_source_videos_of_different_sizes_give_means_over_clips() -> None:
    sums, sizes = np.array([[3.0, 1.0, 8.0], [1.0, 1.0, 1.0]]), np.array([3.0, 1.0, 4.0])
    found = choose_by_sums(sums, sizes, 0)
    np.testing.assert_allclose(found.losses, [1.5, 0.375])
    mean, margin = paired_margin(sums[0] - sums[1], sizes)
    assert mean == pytest.approx(found.regret) and mean + margin == pytest.approx(found.regret_bound)


@pytest.mark.parametrize("videos", [1, 5, 50, 267])
def test_few_source_videos_never_show_that_nothing_is_lost(videos: int) -> None:
    correct, sizes = np.full(videos, 3.0), np.full(videos, 4.0)
    lost, bound = most_lost(correct, correct, sizes)
    assert lost == 0 and bound > 0.01
    if videos > 1:
        assert bound == pytest.approx(wilson_interval(0, videos, level=0.9).high)
    assert most_lost(np.full(400, 3.0), np.full(400, 3.0), np.full(400, 4.0))[1] < 0.01


def test_the_bound_of_what_is_lost_holds_in_95_of_100_data_sets() -> None:
    held = 0
    for number in range(200):
        rng = np.random.default_rng(number)
        easy = rng.random(200)[:, None]  # source videos differ
        whole, without = rng.random((200, 3)) < easy, rng.random((200, 3)) < easy * 0.9
        bound = most_lost(whole.sum(axis=1), without.sum(axis=1), np.full(200, 3.0))[1]
        held += bound >= 0.5 * 0.1
    assert held >= 184, f"{held} of 200 bounds hold"

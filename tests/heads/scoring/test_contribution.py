"""Contribution measures of arrays: indices of games, permutations, EMAP and shares of an answer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from alphafuse.heads.scoring import contribution
from alphafuse.heads.scoring.contribution import (
    additive_logits,
    best_sharpness,
    calibrated,
    discoveries,
    information_gain,
    margin_shares,
    of_groups,
    permuted_across,
    prior_hits,
    sampling_error,
    shapley_taylor_pairs,
    shapley_values,
    subsets_of,
)

PLAYERS = ("timesformer", "ast", "clap", "dino")


def random_game(players: tuple[str, ...], clips: int = 3) -> dict[frozenset[str], np.ndarray]:
    rng = np.random.default_rng(len(players))
    return {some: rng.normal(size=clips) for some in subsets_of(players)}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shapley_values_and_pairs_equal_those_of_shapiq(count: int) -> None:
    shapiq = pytest.importorskip("shapiq")
    players = PLAYERS[:count]
    game = random_game(players)

    for clip in range(3):

        def value(coalitions: np.ndarray, clip: int = clip) -> np.ndarray:
            names = ({name for name, joins in zip(players, row, strict=True) if joins} for row in coalitions)
            return np.array([game[frozenset(some)][clip] for some in names])

        exact = shapiq.ExactComputer(n_players=count, game=value)
        singles = exact(index="SV", order=1)
        for i, share in enumerate(shapley_values(game, players).values()):
            assert share[clip] == pytest.approx(singles[(i,)])
        if count > 1:
            pairs = exact(index="STII", order=2)
            for (one, other), found in shapley_taylor_pairs(game, players).items():
                assert found[clip] == pytest.approx(pairs[players.index(one), players.index(other)])


def test_shares_sum_to_the_value_of_all_beyond_none_also_of_groups() -> None:
    game = random_game(PLAYERS)
    whole = game[frozenset(PLAYERS)] - game[frozenset()]
    np.testing.assert_allclose(sum(shapley_values(game, PLAYERS).values()), whole)
    media = of_groups(game, {"video": ("timesformer", "dino"), "audio": ("ast", "clap")})
    assert len(media) == 4
    np.testing.assert_array_equal(media[frozenset({"audio"})], game[frozenset({"ast", "clap"})])
    np.testing.assert_allclose(sum(shapley_values(media, ("video", "audio")).values()), whole)


def test_cooperation_of_a_copy_is_minus_what_it_is_worth_alone_and_of_independent_halves_0() -> None:
    none, first, second, both = subsets_of("ab")
    copied = {none: np.array(0.25), first: np.array(0.75), second: np.array(0.75), both: np.array(0.75)}
    assert shapley_taylor_pairs(copied, "ab")["a", "b"] == -(0.75 - 0.25)
    # a label of four classes: each stream tells which half of them, without error
    quarter, half = math.log(1 / 4), math.log(1 / 2)
    bits = {
        some: information_gain(np.array([log_p]), np.array([quarter]))
        for some, log_p in ((none, quarter), (first, half), (second, half), (both, 0.0))
    }
    assert [float(one[0]) for one in bits.values()] == pytest.approx([0, 1, 1, 2])
    assert shapley_taylor_pairs(bits, "ab")["a", "b"] == pytest.approx(0)
    right = {none: np.array(0.25), first: np.array(0.5), second: np.array(0.5), both: np.array(1.0)}
    assert shapley_taylor_pairs(right, "ab")["a", "b"] == 0.25  # accuracy invents some


def test_with_no_stream_the_most_frequent_class_is_named() -> None:
    targets = np.array([0, 1, 2])
    np.testing.assert_array_equal(prior_hits(np.array([0.2, 0.5, 0.3]), targets), [0, 1, 0])
    np.testing.assert_array_equal(prior_hits(np.array([0.4, 0.4, 0.2]), targets), [0.5, 0.5, 0])


def test_the_sharpness_is_that_of_a_logistic_regression_and_0_for_noise() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 400)
    x = targets + rng.normal(size=400)
    evidence = np.stack([np.zeros(400), x - x.mean()], axis=1)
    prior = np.log(np.bincount(targets) / 400)
    fitted = LogisticRegression(C=1e9, fit_intercept=False).fit(evidence[:, 1:], targets)
    found = best_sharpness(evidence, np.zeros(2), targets)
    assert found == pytest.approx(float(fitted.coef_[0, 0]), rel=2e-3)
    np.testing.assert_allclose(np.exp(calibrated(evidence, prior, found)).sum(axis=1), 1)
    assert best_sharpness(-evidence, prior, targets) == 0  # what points away from the labels is worth the prior
    assert best_sharpness(0 * evidence, prior, targets) == 0
    np.testing.assert_allclose(calibrated(evidence, prior, 0.0), np.broadcast_to(prior, (400, 2)))


def test_classes_are_corrected_for_the_false_discovery_rate() -> None:
    rng = np.random.default_rng(2)
    values = [rng.normal(size=20) + 3 * (i == 0) for i in range(20)]
    p_values, corrected = discoveries(values, [[f"v{i}" for i in range(20)]] * 20)
    order = np.argsort(p_values)
    by_hand = np.minimum.accumulate((p_values[order] * 20 / np.arange(1, 21))[::-1])[::-1]
    np.testing.assert_allclose(corrected[order], np.minimum(by_hand, 1))
    assert np.flatnonzero(corrected <= 0.05).tolist() == [0]


@pytest.mark.parametrize("sizes", [(1, 1), (3, 1, 2, 5), (5, 5), (1,) * 40])
def test_a_permutation_takes_each_partner_from_another_source_video(sizes: tuple[int, ...]) -> None:
    groups = np.random.default_rng(0).permutation(np.repeat([f"v{i}" for i in range(len(sizes))], sizes))
    seen = set()
    for seed in range(20):
        partners = permuted_across(groups.tolist(), np.random.default_rng(seed))
        assert sorted(partners) == list(range(len(groups)))
        assert (groups != groups[partners]).all()
        seen.add(tuple(partners))
    assert len(seen) > 1 or len(groups) == 2
    one_video = permuted_across(["v"] * 3, np.random.default_rng(0))
    assert sorted(one_video) == [0, 1, 2]


# EMAP


def two_layers(streams: tuple[str, ...], clips: int, seed: int = 0) -> tuple[dict, dict, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = {name: rng.normal(size=(clips, 3)) for name in streams}
    weights = {name: rng.normal(size=(3, 8)) for name in streams}
    return features, weights, rng.normal(size=(8, 4))


@pytest.mark.parametrize("streams", [("a", "b"), ("a", "b", "c")])
def test_the_additive_logits_are_the_projection_by_brute_force(streams: tuple[str, ...]) -> None:
    clips = 7
    features, weights, output = two_layers(streams, clips)

    def hidden(clip_of: dict[str, int]) -> np.ndarray:
        return np.maximum(sum(features[name][clip_of[name]] @ weights[name] for name in streams), 0)

    def means(stream: str, partners: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                np.mean([hidden({name: i if name == stream else int(j) for name in streams}) for j in partners], axis=0)
                for i in range(clips)
            ]
        )

    found = additive_logits(means, lambda x: x @ output, streams, clips)
    assert found.partners == clips and not len(found.parts)
    # Hessel and Lee's formula, on logits
    logits = {
        (stream, i, j): hidden({name: i if name == stream else j for name in streams}) @ output
        for stream, i, j in itertools.product(streams, range(clips), range(clips))
    }
    grand = np.mean(list(logits.values()), axis=0)
    for i in range(clips):
        ones = sum(np.mean([logits[stream, i, j] for j in range(clips)], axis=0) for stream in streams)
        np.testing.assert_allclose(found.logits[i], ones - (len(streams) - 1) * grand, atol=1e-5)  # sums are float32


def test_many_clips_get_partners_drawn_at_random_and_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, streams = 60, ("a", "b")
    features, weights, output = two_layers(streams, clips)

    def means(stream: str, partners: np.ndarray) -> np.ndarray:
        other = features["b" if stream == "a" else "a"][partners] @ weights["b" if stream == "a" else "a"]
        own = features[stream] @ weights[stream]
        return np.maximum(own[:, None] + other, 0).mean(axis=1)

    exact = additive_logits(means, lambda x: x @ output, streams, clips).logits
    monkeypatch.setattr(contribution, "ALL_PAIRS", 40)
    monkeypatch.setattr(contribution, "SAMPLED_PAIRS", 1600)
    figures, errors = [], []
    for seed in range(30):
        found = additive_logits(means, lambda x: x @ output, streams, clips, seed=seed)
        assert found.partners == 26 and found.parts.shape == (5, clips, 4)
        figures.append(found.logits[0, 0])
        errors.append(sampling_error(found.parts[:, 0, 0]))
    assert np.mean(figures) == pytest.approx(exact[0, 0], abs=4 * np.std(figures) / math.sqrt(30))
    assert 0.5 < np.mean(errors) / np.std(figures) < 2.5  # partners are drawn without replacement: it errs upwards
    assert sampling_error([]) == 0


# shares of one answer


def test_shares_of_a_linear_answer_are_its_shapley_values_and_sum_to_the_margin() -> None:
    rng = np.random.default_rng(3)
    dims = {"a": 4, "b": 2, "c": 3}
    weights = {name: rng.normal(size=(5, dim)) for name, dim in dims.items()}
    centred = {name: rng.normal(size=(6, dim)) for name, dim in dims.items()}
    logits = sum(centred[name] @ weights[name].T for name in dims)
    order = np.argsort(-logits, axis=1)
    top, second = order[:, 0], order[:, 1]
    shares = margin_shares(weights, centred, top, second)
    rows = np.arange(6)
    np.testing.assert_allclose(sum(shares.values()), logits[rows, top] - logits[rows, second])
    game = {}
    for some in subsets_of(dims):  # a stream that hasn't joined has its mean, 0
        present = sum((centred[name] @ weights[name].T for name in some), np.zeros((6, 5)))
        game[some] = present[rows, top] - present[rows, second]
    for name, share in shapley_values(game, tuple(dims)).items():
        np.testing.assert_allclose(shares[name], share)

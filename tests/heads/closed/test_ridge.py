"""Ridge heads in closed form against scikit-learn, SciPy and himalaya."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from himalaya.ridge import solve_group_ridge_random_search
from scipy.optimize import minimize_scalar
from sklearn.model_selection import PredefinedSplit
from support.closed import DIMS, folds_of, make_rows, one_hot, ridge_of, side_by_side

from alphafuse.heads.closed.moments import Moments
from alphafuse.heads.closed.profile import of_ratio, ratio_profile, search, standardised, tuned
from alphafuse.heads.closed.ridge import Folds, Weighting, best_penalty

CLASSES = 4
WIDE = {"wide": 500, "narrow": 30}  # more dimensions than clips: solved in the space of the clips
SOME = {name: {stream: DIMS[stream] for stream in list(DIMS)[:count]} for count, name in enumerate("abc", start=1)}


def brute_force(
    x: np.ndarray,
    y: np.ndarray,
    of_clip: np.ndarray,
    dims: Mapping[str, int],
    alphas: tuple[float, ...],
    penalty: float,
) -> float:
    """Out-of-fold squared error per clip by a ridge of scikit-learn per fold."""
    total = 0.0
    for fold in range(of_clip.max() + 1):
        train, held = of_clip != fold, of_clip == fold
        model = ridge_of(x[train], y[train], dims, alphas, penalty)
        total += np.square(model.predict(x[held] * np.repeat(alphas, list(dims.values()))) - y[held]).sum()
    return float(total / len(x))


@pytest.mark.parametrize(
    ("dims", "alphas"),
    [
        (SOME["a"], (1.0,)),
        (SOME["b"], (1.0, 1.0)),
        (SOME["b"], (0.3, 4.0)),
        (SOME["b"], (0.0, 1.0)),
        (SOME["c"], (0.5, 2.0, 3.0)),
        (SOME["c"], (1.0, 0.0, 0.2)),
        (WIDE, (1.0, 1.0)),
        (WIDE, (0.3, 4.0)),
        (WIDE, (0.0, 1.0)),
        (WIDE, (2.0, 0.0)),
    ],
)
def test_out_of_fold_error_and_heads_are_those_of_scikit_learns_ridge(
    dims: Mapping[str, int], alphas: tuple[float, ...]
) -> None:
    rows, targets = make_rows(48, dims)
    x, y = side_by_side(rows), one_hot(targets, CLASSES)
    of_clip, folds = folds_of(rows, targets, CLASSES)
    for penalty in (0.01, 3.0, 500.0):
        assert folds.loss(alphas, penalty) == pytest.approx(brute_force(x, y, of_clip, dims, alphas, penalty), rel=1e-8)
        weighting = Weighting(alphas, penalty, 0.0)
        scaled, shifted = x * np.repeat(alphas, list(dims.values())), x - folds.moments.shift
        matrix, bias = (part.numpy() for part in folds.refit(weighting))
        np.testing.assert_allclose(
            shifted @ matrix + bias, ridge_of(x, y, dims, alphas, penalty).predict(scaled), atol=1e-8
        )
        for fold, (matrix, bias) in enumerate(folds.heads(weighting)):
            train = of_clip != fold
            model = ridge_of(x[train], y[train], dims, alphas, penalty)
            np.testing.assert_allclose(shifted @ matrix.numpy() + bias.numpy(), model.predict(scaled), atol=1e-8)


def test_the_error_does_not_depend_on_which_streams_were_asked_for_before() -> None:
    rows, targets = make_rows(48)
    folds = folds_of(rows, targets, CLASSES)[1]
    asked = [(1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 1.0)]
    found = [folds.loss(alphas, 2.0) for alphas in asked]
    assert found == [folds_of(rows, targets, CLASSES)[1].loss(alphas, 2.0) for alphas in asked]


@pytest.mark.parametrize(
    ("clips", "per_video", "classes"),
    [(12, 2, 4), (8, 1, 8), (30, 2, 15), (6, 3, 2)],
    ids=["fewer clips than dimensions", "one clip per class", "a class per source video", "two source videos"],
)
def test_few_clips_and_classes_absent_from_training_are_no_exception(clips: int, per_video: int, classes: int) -> None:
    rows, targets = make_rows(clips, classes=classes, per_video=per_video)
    targets = np.minimum(targets, classes - 2)  # the last class never occurs
    x, y = side_by_side(rows), one_hot(targets, classes)
    of_clip, folds = folds_of(rows, targets, classes)
    for penalty in (0.1, 50.0):
        expected = brute_force(x, y, of_clip, DIMS, (1.0, 2.0, 0.5), penalty)
        assert folds.loss((1.0, 2.0, 0.5), penalty) == pytest.approx(expected, rel=1e-7)


def test_labels_that_a_stream_gives_away_need_no_penalty_and_do_not_fail() -> None:
    targets = np.arange(60) // 2 % 30  # each class in one fold only: singular Gram matrices
    rows, _ = make_rows(60, {"timesformer": 40, "ast": 3}, classes=30)
    rows.features["timesformer"][:] = 0
    rows.features["timesformer"][np.arange(60), targets] = 1e4
    of_clip, _ = folds_of(rows, targets, 30)
    standard = standardised(Moments.of(rows, targets, of_clip, classes=30))
    for ratio in (-4.0, 4.0):
        assert np.isfinite(Folds(standard.moments).loss(of_ratio(ratio), 1e-13))
    easy = targets % 3
    standard = standardised(Moments.of(rows, easy, folds_of(rows, easy, 3)[0], classes=3))
    found = Folds(standard.moments).best((1.0, 1.0))
    assert np.isfinite(found.loss) and found.penalty > 0


@pytest.mark.parametrize("near", [None, 1e-3, 1e5])
def test_the_best_penalty_is_that_of_scipys_minimiser(near: float | None) -> None:
    rows, targets = make_rows(120, SOME["b"])
    of_clip, _ = folds_of(rows, targets, CLASSES)
    folds = Folds(standardised(Moments.of(rows, targets, of_clip, classes=CLASSES)).moments)
    for alphas in ((1.0, 1.0), (0.25, 4.0), (1.0, 0.0)):
        best = minimize_scalar(lambda e: folds.loss(alphas, 2.0**e), bounds=(-20, 30), method="bounded")  # noqa: B023
        found = folds.best(alphas, near=near)
        assert found.loss == pytest.approx(best.fun, rel=1e-5)
        assert np.log2(found.penalty) == pytest.approx(best.x, abs=0.1)


def test_the_search_for_a_penalty_ends_where_more_or_less_always_helps() -> None:
    for loss in (lambda penalty: 1 / (1 + penalty), lambda penalty: penalty, lambda penalty: 1.0):
        found, least = best_penalty(loss, 1.0)
        assert 0 < found < 2.0**42 and np.isfinite(least)


def test_classes_score_as_in_himalaya_at_the_same_scales_and_penalty() -> None:
    rows, targets = make_rows(60, classes=2, per_video=1)
    targets = np.random.default_rng(0).permutation(targets)
    targets[:3] = 2  # three classes
    x, y = side_by_side(rows), one_hot(targets, 3)
    of_clip, folds = folds_of(rows, targets, 3)
    parts = [rows.features[stream].astype(np.float64) for stream in DIMS]
    for gamma, penalty in (((0.2, 0.5, 0.3), 4.0), ((0.7, 0.1, 0.2), 0.5)):
        *_, scores, _ = solve_group_ridge_random_search(
            parts,
            y,
            n_iter=np.array([gamma]),
            alphas=np.array([penalty]),
            fit_intercept=True,
            cv=PredefinedSplit(of_clip),
            progress_bar=False,
            warn=False,
        )
        weighting = Weighting(tuple(np.sqrt(gamma)), penalty, 0.0)  # himalaya's gamma scales variances
        error = np.zeros((3, 3))
        for fold, (matrix, bias) in enumerate(folds.heads(weighting)):
            held = of_clip == fold
            predicted = (x[held] - folds.moments.shift) @ matrix.numpy() + bias.numpy()
            error[fold] = np.square(predicted - y[held]).mean(axis=0)
        np.testing.assert_allclose(-np.asarray(scores)[0], error.mean(axis=0), rtol=1e-6)  # a mean over folds
        assert folds.loss(weighting.alphas, penalty) == pytest.approx(-np.asarray(scores).sum(), rel=1e-6)


def test_the_profile_of_two_streams_is_the_least_error_at_each_ratio() -> None:
    rows, targets = make_rows(80, SOME["b"], signal={"timesformer": 1.0, "ast": 0.5})
    of_clip, _ = folds_of(rows, targets, CLASSES)
    folds = Folds(standardised(Moments.of(rows, targets, of_clip, classes=CLASSES)).moments)
    advanced: list[int] = []
    found = ratio_profile(folds, step=1.0, advance=advanced.append)
    ratios = [np.log2(one.alphas[1] / one.alphas[0]) for one in found]
    assert ratios == pytest.approx(list(range(-4, 5))) and sum(advanced) == len(found)
    assert found[4].alphas == (1.0, 1.0) and all(np.prod(one.alphas) == pytest.approx(1) for one in found)
    for one in found[::2]:
        best = minimize_scalar(lambda e: folds.loss(one.alphas, 2.0**e), bounds=(-20, 30), method="bounded")  # noqa: B023
        assert folds.loss(one.alphas, one.penalty) == pytest.approx(best.fun, rel=1e-4)


def test_the_search_over_three_streams_finds_what_random_search_finds() -> None:
    rows, targets = make_rows(120, signal={"timesformer": 1.5, "ast": 0.9, "dino-s": 0.0})
    of_clip, _ = folds_of(rows, targets, CLASSES)
    folds = Folds(standardised(Moments.of(rows, targets, of_clip, classes=CLASSES)).moments)
    found = search(folds)
    assert found[0].alphas == (1.0, 1.0, 1.0)
    assert all(np.prod(one.alphas) == pytest.approx(1, rel=1e-4) for one in found)
    assert len({one.alphas for one in found}) == len(found)
    best = min(found, key=lambda one: one.loss)
    rng = np.random.default_rng(7)
    for _ in range(60):
        exponents = rng.uniform(-3, 3, size=3)
        other = folds.best(tuple(2.0 ** (exponents - exponents.mean())), near=best.penalty)
        assert best.loss <= other.loss * 1.002
    assert best.alphas[2] == min(best.alphas), "the stream of noise weighs least"


def test_tuned_weights_have_nearly_the_least_error_and_noise_weighs_little() -> None:
    rows, targets = make_rows(120, signal={"timesformer": 1.5, "ast": 0.9, "dino-s": 0.0})
    of_clip, _ = folds_of(rows, targets, CLASSES)
    folds = Folds(standardised(Moments.of(rows, targets, of_clip, classes=CLASSES)).moments)
    two, three = tuned(folds, ("ast", "timesformer")), tuned(folds, folds.moments.dims)
    least = min(folds.best((2.0 ** (-e / 2), 2.0 ** (e / 2), 0.0)).loss for e in range(-4, 5))
    assert two.alphas[2] == 0 and two.loss == pytest.approx(least, rel=1e-3)
    assert three.loss < folds.best((1.0, 1.0, 1.0)).loss and np.prod(three.alphas) == pytest.approx(1, rel=1e-4)
    assert three.alphas[0] / three.alphas[2] == pytest.approx(16)
    assert tuned(folds, ["dino-s"]).alphas == (0.0, 0.0, 1.0)

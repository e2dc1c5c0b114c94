"""Ridge on few clips equals scikit-learn's, the primal heads and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from alphafuse.data.embeddings import Embeddings
from alphafuse.heads.closed.dual import FewClips, equal_weights, has_company
from alphafuse.heads.closed.moments import Moments
from alphafuse.heads.closed.profile import standardised
from alphafuse.heads.closed.ridge import Folds, Weighting
from alphafuse.heads.closed.rows import refit_of

DIMS, CLASSES = {"ast": 25, "dino": 10}, 4
ALPHAS = {"ast": 0.7, "dino": 2.0}


def clips(count: int) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Streams of different size and mean that tell the classes apart; source videos of one to three clips."""
    rng = np.random.default_rng(count)
    targets = np.arange(count) % CLASSES
    features = {
        stream: (3 * place + (place + 1) * (rng.normal(size=(count, dim)) + np.eye(CLASSES, dim)[targets])).astype("f4")
        for place, (stream, dim) in enumerate(DIMS.items())
    }
    return features, targets, [f"video{i}" for i in rng.integers(0, count // 2, count)]


def scikit_learns(x: np.ndarray, y: np.ndarray, penalty: float, at: np.ndarray) -> np.ndarray:
    scores: np.ndarray = Ridge(alpha=penalty, solver="cholesky").fit(x, y).predict(at)
    return scores


@pytest.mark.parametrize("count", [12, 80])  # fewer and more clips than dimensions
@pytest.mark.parametrize("penalty", [0.01, 1.0, 300.0])
def test_heads_and_left_out_errors_equal_scikit_learns_ridge_and_brute_force(count: int, penalty: float) -> None:
    features, targets, groups = clips(count)
    weighted = np.hstack([ALPHAS[stream] * x.astype(float) for stream, x in features.items()])
    labels = np.eye(CLASSES)[targets]
    few = FewClips(features, targets, CLASSES, ALPHAS)
    matrix, bias = few.head(penalty)
    scores = np.hstack(list(features.values())).astype(float) @ matrix + bias
    np.testing.assert_allclose(scores, scikit_learns(weighted, labels, penalty, weighted), atol=1e-9)

    expected = np.empty_like(labels)
    for group in set(groups):
        own = np.array([other == group for other in groups])
        expected[own] = labels[own] - scikit_learns(weighted[~own], labels[~own], penalty, weighted[own])
    np.testing.assert_allclose(few.left_out(penalty, groups), expected, atol=1e-7)


def test_equal_weights_give_the_primal_head_of_standardised_streams() -> None:
    features, targets, groups = clips(60)
    rows = Embeddings(
        clip_ids=tuple(f"{i}" for i in range(60)),
        labels=tuple(map(str, targets)),
        groups=tuple(groups),
        features=features,
    )
    moments = Moments.of(rows, targets, np.arange(60) % 3, classes=CLASSES)
    standard = standardised(moments)
    found = refit_of(Folds(standard.moments), Weighting((1.0, 1.0), 5.0, 0.0), standard)
    matrix, bias = found.matrix, found.bias
    found, found_bias = FewClips(features, targets, CLASSES).head(5.0)
    np.testing.assert_allclose(found, matrix, atol=1e-8)
    np.testing.assert_allclose(found_bias, bias - moments.shift @ matrix, atol=1e-8)


def test_the_chosen_penalty_has_the_least_left_out_error_of_clips_whose_class_is_elsewhere() -> None:
    features, targets, groups = clips(40)
    targets[0] = 3  # now alone in its class once class 3's other clips become class 2
    targets[1:][targets[1:] == 3] = 2
    few = FewClips(features, targets, CLASSES)
    choice = few.choose_penalty(groups)
    counted = has_company(targets, groups)
    assert not counted[0] and choice.left_out == counted.sum() < 40

    def loss(penalty: float) -> float:
        return float(np.square(few.left_out(penalty, groups)[counted]).sum() / counted.sum())

    grid = [loss(choice.penalty * 2**octaves) for octaves in np.arange(-6, 6.1, 0.25)]
    assert choice.loss == pytest.approx(loss(choice.penalty), rel=1e-2)
    assert loss(choice.penalty) <= min(grid) * (1 + 2e-3)


def test_with_one_clip_per_class_the_penalty_is_the_kernels_mean_eigenvalue() -> None:
    features = {"ast": np.random.default_rng(0).normal(size=(5, 7))}
    few = FewClips(features, np.arange(5), 5, {"ast": 1.0})
    choice = few.choose_penalty(list("abcde"))
    assert (choice.loss, choice.left_out) == (None, 0)
    assert choice.penalty == pytest.approx(features["ast"].var(axis=0).sum() * 5 / 4)


def test_a_constant_stream_weighs_nothing() -> None:
    features = {"ast": np.full((6, 3), 0.1, np.float32), "dino": np.random.default_rng(0).normal(size=(6, 2))}
    assert equal_weights(features)["ast"] == 0.0
    alone = FewClips({"ast": features["ast"]}, np.arange(6) % 2, 2)
    matrix, bias = alone.head(alone.choose_penalty(list("abcdef")).penalty)
    assert not matrix.any() and bias.tolist() == [0.5, 0.5]

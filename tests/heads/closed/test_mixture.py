"""Temperature and weights of late fusion against SciPy's optimisers, and in a simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

from alphafuse.heads.closed import mixture as module
from alphafuse.heads.closed.mixture import fit_temperature, late_weights


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_temperature_has_the_least_log_loss(scale: float) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(5, size=300)
    scores = scale * (np.eye(5)[targets] + rng.normal(size=(300, 5)))

    def loss(inverse: float) -> float:  # convex in the inverse
        answers = log_softmax(scores * inverse, axis=1)
        return -float(answers[np.arange(300), targets].sum() + answers.mean()) / 301  # one more clip of all classes

    best = minimize_scalar(loss, bounds=(0, 100 / scale), method="bounded", options={"xatol": 1e-8 / scale})
    found = fit_temperature(scores, targets)
    assert loss(1 / found) == pytest.approx(best.fun, rel=1e-7)
    assert 1 / found == pytest.approx(best.x, rel=1e-2)


def test_clips_that_are_all_right_dont_make_a_head_certain() -> None:
    targets = np.arange(20) % 4
    scores = np.eye(4)[targets]  # right by 1 everywhere
    inverse = 1 / fit_temperature(scores, targets)
    assert 3 < inverse < 8, "about log(clips x classes), not infinite"


def draw(rng: np.random.Generator, truth: np.ndarray, clips: int, *, alike: float = 0.0) -> np.ndarray:
    """Probabilities of the true label by streams that a mixture with these weights made: (streams, clips)."""
    shared = rng.normal(size=(clips, 4))
    logits = [alike * shared + (1 - alike) * 2 * rng.normal(size=(clips, 4)) for _ in truth]
    p = np.exp(log_softmax(np.stack(logits), axis=2))  # (streams, clips, classes)
    mixed = np.tensordot(truth, p, axes=1)
    labels = (rng.random((clips, 1)) > mixed.cumsum(axis=1)).sum(axis=1).clip(max=3)
    return p[:, np.arange(clips), labels]


@pytest.mark.parametrize("alike", [0.0, 0.85], ids=["different streams", "similar streams"])
@pytest.mark.parametrize("truth", [(0.7, 0.3), (0.95, 0.05), (0.2, 0.5, 0.3), (1.0, 0.0, 0.0)])
def test_late_weights_maximise_the_likelihood(truth: tuple[float, ...], alike: float) -> None:
    p = draw(np.random.default_rng(1), np.array(truth), 500, alike=alike)
    found = late_weights(p, [str(i) for i in range(500)])
    best = minimize(
        lambda w: -np.log(w @ p).mean(),
        np.full(len(truth), 1 / len(truth)),
        jac=lambda w: -(p / (w @ p)).mean(axis=1),
        bounds=[(0, 1)] * len(truth),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert -np.log(found.weights @ p).mean() == pytest.approx(best.fun, abs=1e-6)
    np.testing.assert_allclose(found.weights, best.x, atol=5e-3)
    assert found.weights.sum() == pytest.approx(1) and (found.low <= found.weights + 1e-9).all()
    assert (found.weights <= found.high + 1e-9).all()
    gain = np.log2(found.weights @ p).mean() - np.log2(p.mean(axis=0)).mean()
    assert found.bits == pytest.approx(gain) and found.bits >= 0 and found.clips == 500


def test_intervals_of_late_weights_cover_the_truth_and_the_test_keeps_its_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RESAMPLES", 200)
    covered, false, found = 0, 0, 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        groups = [f"video{i // 2}" for i in range(200)]
        for weight in (0.8, 0.5):
            p = np.repeat(draw(rng, np.array([weight, 1 - weight]), 100), 2, axis=1)  # clips of a video are the same
            one = late_weights(p, groups, seed=seed)
            covered += one.low[0] <= weight <= one.high[0]
            false += weight == 0.5 and one.p_equal < 0.05
            found += weight == 0.8 and one.p_equal < 0.05
    assert covered >= 52, f"{covered} of 60 intervals cover"
    assert false <= 5 and found >= 12, (false, found)


def test_two_copies_of_a_stream_may_have_any_weight() -> None:
    p = draw(np.random.default_rng(0), np.array([0.5, 0.5]), 100)[:1].repeat(2, axis=0)
    found = late_weights(p, [str(i) for i in range(100)])
    assert found.p_equal == pytest.approx(1) and found.bits == pytest.approx(0, abs=1e-9)
    assert found.low.max() < 0.1 and found.high.min() > 0.9

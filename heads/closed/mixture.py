"""Probabilities from scores: a temperature, and the weights of late fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar, nnls
from scipy.special import log_softmax
from scipy.stats import chi2

from alphafuse.heads.scoring.statistics import bootstrap_counts

RESAMPLES = 500
ROUNDS, HALVINGS = 50, 30  # most steps of Newton's method, and halvings of one
SMALLEST = 1e-12  # a probability of 0 would rule out a weight for ever


def fit_temperature(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature T of least mean log loss of softmax(scores / T) (Guo et al. 2017).

    One more clip, whose label is spread over all classes, keeps T above 0 where all clips are right: few clips can't
    show that a head is never wrong.

    Args:
        scores: (clips, C) of clips that the heads weren't trained on.
        targets: (clips,) int.
    """

    def loss(exponent: float) -> float:
        answers = log_softmax(scores / np.exp(exponent), axis=1)
        own = answers[np.arange(len(targets)), targets]
        return -float(own.sum() + answers.mean()) / (len(targets) + 1)

    return float(np.exp(minimize_scalar(loss, bounds=(-10, 6), method="bounded").x))


def log_probabilities(scores: np.ndarray, targets: np.ndarray, temperature: float) -> np.ndarray:
    """Return the log probability of each clip's label, (clips,) float64, from scores (clips, C) at a temperature."""
    return log_softmax(scores.astype(np.float64) / temperature, axis=1)[np.arange(len(targets)), targets]


@dataclass(frozen=True)
class LateWeights:
    """Weights of late fusion, sum over streams of w_s p_s, which maximise the likelihood of held-out labels.

    Attributes:
        weights: (streams,) at least 0 each, sum 1.
        low, high: (streams,) 95% intervals, percentiles over resamples of source videos; nearly 0 to 1 for copies.
        p_equal: two-sided p-value of equal weights, from the same resamples.
        bits: mean gain over equal weights in bits per clip.
        clips: number of clips.
    """

    weights: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_equal: float
    bits: float
    clips: int

    def to_json(self, streams: Sequence[str]) -> dict[str, Any]:
        """The fields, json-able, per stream."""
        return {
            "weights": dict(zip(streams, self.weights.tolist(), strict=True)),
            "low": dict(zip(streams, self.low.tolist(), strict=True)),
            "high": dict(zip(streams, self.high.tolist(), strict=True)),
            "p_equal": self.p_equal,
            "bits": self.bits,
            "clips": self.clips,
        }


def late_weights(probabilities: np.ndarray, groups: list[str], *, seed: int = 0) -> LateWeights:
    """Fit the weights of late fusion; the log likelihood is concave in them, so that there is one answer.

    Args:
        probabilities: (streams, clips) calibrated probability of each clip's own label by heads not trained on it.
        groups: (clips,) source videos.
        seed: seed of the resamples.
    """
    p = np.maximum(probabilities.T, SMALLEST)  # (clips, streams)
    equal = np.full(p.shape[1], 1 / p.shape[1])
    weights = _maximise(p, np.ones((1, len(p))), equal[None])[0]
    counts = bootstrap_counts(1, groups, resamples=RESAMPLES, seed=seed)[1]
    anywhere = np.random.default_rng(seed).dirichlet(np.ones(len(equal)), size=RESAMPLES)
    drawn = _maximise(p, counts, anywhere)  # (resamples, streams); of copies, each stays where it starts
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    # a Wald test with the resamples' covariance; one weight follows from the others
    gap, covariance = (weights - equal)[:-1], np.atleast_2d(np.cov(drawn[:, :-1].T))
    distance = float(gap @ np.linalg.pinv(covariance) @ gap)
    p_equal = float(chi2.sf(distance, len(gap)))
    bits = float(np.log2(p @ weights).mean() - np.log2(p @ equal).mean())
    return LateWeights(weights, low, high, p_equal, bits, len(p))


def _maximise(p: np.ndarray, counts: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return (resamples, streams) weights of highest likelihood; counts (resamples, clips), start like the result.

    Less n times the sum of weights, the log likelihood has its maximum where that sum is 1 by itself (Kim et al. 2020),
    so that only signs constrain Newton's steps. Expectation and maximisation would hardly move between similar streams.
    """
    streams = p.shape[1]
    weights, total = start, counts.sum(axis=1)
    products = (p[:, :, None] * p[:, None, :]).reshape(len(p), -1)

    def value(weights: np.ndarray) -> np.ndarray:
        return (counts * np.log(np.maximum(weights @ p.T, SMALLEST))).sum(axis=1) - total * weights.sum(axis=1)

    reached = value(weights)
    for _ in range(ROUNDS):
        mixed = weights @ p.T  # (resamples, clips)
        slope = (counts / mixed) @ p - total[:, None]
        curvature = ((counts / mixed**2) @ products).reshape(-1, streams, streams)
        curvature += 1e-9 * np.trace(curvature, axis1=1, axis2=2)[:, None, None] * np.eye(streams)  # for copies
        root = np.linalg.cholesky(curvature)
        aim = np.linalg.solve(root, (slope[:, :, None] + curvature @ weights[:, :, None]))[:, :, 0]
        step = np.stack([nnls(one.T, at)[0] for one, at in zip(root, aim, strict=True)]) - weights
        share = np.ones((len(weights), 1))
        for _ in range(HALVINGS):
            found = value(weights + share * step)
            worse = found < reached - 1e-12 * np.abs(reached)  # not by rounding
            if not worse.any():
                break
            share[worse] /= 2
        share[worse] = 0  # as far as float64 shows
        weights, reached = weights + share * step, np.maximum(found, reached)
        if np.abs(share * step).max() < 1e-6:
            break
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))

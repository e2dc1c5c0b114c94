"""Rows of streams of which more or less can be learned; for the tests of the closed form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.linear_model import Ridge

from alphafuse.data.embeddings import Embeddings
from alphafuse.heads.closed.moments import Moments, assign_folds
from alphafuse.heads.closed.ridge import Folds

DIMS = {"timesformer": 4, "ast": 3, "dino-s": 5}


def make_rows(
    clips: int,
    dims: Mapping[str, int] = DIMS,
    *,
    classes: int = 4,
    per_video: int = 2,
    signal: float | Mapping[str, float] = 1.0,
    seed: int = 0,
) -> tuple[Embeddings, np.ndarray]:
    """Make rows and targets: each stream is a class's point times its signal, plus noise, far from the origin."""
    rng = np.random.default_rng(seed)
    targets = np.arange(clips) // per_video % classes
    features = {}
    for number, (stream, dim) in enumerate(dims.items()):
        strength = signal[stream] if isinstance(signal, Mapping) else signal
        points = np.random.default_rng(number).normal(size=(classes, dim))
        spread = np.linspace(0.5, 3, dim) * 10.0**-number  # dimensions and streams of different sizes
        noisy = (strength * points[targets] + rng.normal(size=(clips, dim))) * spread + 5
        features[stream] = noisy.astype(np.float32)
    names = tuple(f"clip{i}" for i in range(clips))
    labels = tuple(f"class{target}" for target in targets)
    groups = tuple(f"video{i // per_video}" for i in range(clips))
    return Embeddings(names, labels, groups, features), targets


def side_by_side(rows: Embeddings) -> np.ndarray:
    """All streams of all clips, (clips, D) float64."""
    return np.concatenate([rows.features[stream] for stream in rows.dims], axis=1).astype(np.float64)


def one_hot(targets: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[targets]


def folds_of(rows: Embeddings, targets: np.ndarray, classes: int, count: int = 3) -> tuple[np.ndarray, Folds]:
    """The fold of each clip, and the heads trained without each, on the streams as they are."""
    of_clip = assign_folds(rows.groups, targets, count)
    return of_clip, Folds(Moments.of(rows, targets, of_clip, classes=classes))


def ridge_of(x: np.ndarray, y: np.ndarray, dims: Mapping[str, int], alphas: tuple[float, ...], penalty: float) -> Ridge:
    """Scikit-learn's ridge on columns times their stream's weight; its `coef_` is for those columns."""
    return Ridge(alpha=penalty, solver="cholesky").fit(x * np.repeat(alphas, list(dims.values())), y)

"""Rows of streams of which more or less can be learned; for the tests of the closed form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.streams import DEFAULT_STREAMS, Stream
from alphafuse.heads.closed.moments import Moments, assign_folds
from alphafuse.heads.closed.ridge import Folds
from support.toy import DINO

DIMS = {"timesformer": 4, "ast": 3, "dino-s": 5}
STREAMS = (*DEFAULT_STREAMS, DINO)
SIZES = {"train": 600, "val": 120, "test": 160}


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


def make_weigh_dataset(
    root: Path,
    *,
    sizes: Mapping[str, int] = SIZES,
    streams: tuple[Stream, ...] = DEFAULT_STREAMS,
    copies: tuple[str, str] | None = None,
    constant: str | None = None,
    undefined: str | None = None,
    classes: int = 4,
    **settings: Any,
) -> Dataset:
    """Make a root of `make_rows`; of `copies`, the second stream is the first's, `constant` is always the same, and
    a dimension of `undefined` is NaN."""
    dims = {stream.name: DIMS[stream.name] for stream in streams}
    rows, clips = {}, []
    for number, (split, size) in enumerate(sizes.items()):
        found, _ = make_rows(size, dims, classes=classes, seed=number, **settings)
        if copies:
            found.features[copies[1]] = found.features[copies[0]]  # type: ignore[index]
        if undefined:
            found.features[undefined][:, 1] = np.nan
        if constant:
            found.features[constant][:] = 0.1
        names = tuple(f"{split}{group}_{i:06d}" for i, group in enumerate(found.groups))
        groups = tuple(split + group for group in found.groups)
        recipes = {stream: {"protocol": "standard"} for stream in dims}
        rows[split] = Embeddings(names, found.labels, groups, found.features, recipes=recipes)
        clips += [
            Clip(name, f"{name}.mp4", *rest, split, group)
            for name, *rest, group in zip(names, found.labels, groups, strict=True)
        ]
    dataset = Dataset.create(
        root,
        Manifest(clips),
        name="made",
        clip_folder=root / "clips",
        classes=tuple(f"class{i}" for i in range(classes)),
        streams=streams,
    )
    for split, embeddings in rows.items():
        dataset.store(split).write(embeddings)
    return dataset

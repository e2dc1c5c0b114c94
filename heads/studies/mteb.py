"""The protocol of MTEB's VGGSound tasks on cached embeddings, and what its folds leak.

MTEB 2.20.0 (tasks VGGSoundV and VGGSoundVA; its classification task with cross-validation) scores the test split alone:
five shuffled folds; of each fold's training clips up to 8 per class; scikit-learn's logistic regression on the
embeddings as they are; accuracy on the fold left out. Clips of one source video can lie on both sides. The same with
whole source videos in each fold gives the difference: the leak.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import names_of
from alphafuse.errors import ExperimentError
from alphafuse.heads.scoring.statistics import Comparison, Estimate, accuracy_interval, compare_pairs, estimate
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.results import Tabular

from .curve import FUSED
from .same_clips import SameClips

FOLDS, PER_CLASS, ITERATIONS, SEED = 5, 8, 100, 42  # MTEB's
MTEB_DRAWS = 5
SPLIT = "test"  # the only split of MTEB's copy of VGGSound

Fold = tuple[np.ndarray, np.ndarray]  # positions of clips to train on, and of clips to score


@dataclass(frozen=True)
class MtebRow:
    """Scores of one stream alone, or of all together.

    Attributes:
        name: the stream, or "fused".
        per_fold: accuracy of each of MTEB's folds; their mean is MTEB's score.
        shuffled: accuracy over all clips in shuffled folds; the interval is over draws and source videos.
        grouped: the same with whole source videos in each fold; None if each clip has a source video of its own.
        leak: shuffled minus grouped, paired by clip and Holm-corrected over the rows; None without `grouped`.
    """

    name: str
    per_fold: tuple[float, ...]
    shuffled: Estimate
    grouped: Estimate | None
    leak: Comparison | None

    @property
    def score(self) -> float:
        """MTEB's score: the mean of its folds' accuracies, in [0, 1]."""
        return float(np.mean(self.per_fold))

    def to_json(self) -> dict[str, Any]:
        """Every figure, json-able."""
        return {
            "name": self.name,
            "score": self.score,
            "per_fold": list(self.per_fold),
            "shuffled": asdict(self.shuffled),
            "grouped": self.grouped and asdict(self.grouped),
            "leak": self.leak and self.leak.to_json(),
        }


@dataclass(frozen=True)
class MtebScores(Tabular):
    """Result of `mteb_scores`.

    Attributes:
        dataset_name: name of the dataset.
        streams: the streams, in order.
        rows: all streams together, if there are several, then each alone.
        clips, classes, source_videos: of the test split.
        repeated: clips that share their source video with another clip.
        dropped: clips left out because they lack a stream.
        draws: number of shufflings; the first is MTEB's.
        provenance: inputs of the study, for config.json.

    >>> from alphafuse import Dataset, mteb_scores
    >>> found = mteb_scores(Dataset.open("demo"), streams=["ast"], draws=1)
    >>> found.rows[0].name, len(found.rows[0].per_fold)
    ('ast', 5)
    """

    dataset_name: str
    streams: tuple[str, ...]
    rows: tuple[MtebRow, ...]
    clips: int
    classes: int
    source_videos: int
    repeated: int
    dropped: int
    draws: int
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        scores = ", ".join(f"{row.name} {row.score:.4f}, shuffled {row.shuffled!r}" for row in self.rows)
        return f"MtebScores({self.dataset_name!r}, {self.clips} clips, {scores})"

    def config(self) -> dict[str, Any]:
        """Return the content of config.json: the call's arguments under `curve`, and the other inputs."""
        return {
            "curve": {"preset": "mteb", "draws": self.draws, "seed": SEED, "streams": list(self.streams)},
            **self.provenance,
            "settings": {},
            "seeds": [SEED + draw for draw in range(self.draws)],
            "clips": {SPLIT: self.clips},
            "dropped": {SPLIT: self.dropped},
        }

    def to_json(self) -> dict[str, Any]:
        """Every figure, json-able."""
        return {
            "dataset": self.dataset_name,
            "preset": "mteb",
            "split": SPLIT,
            "streams": list(self.streams),
            "clips": {SPLIT: self.clips},
            "dropped": {SPLIT: self.dropped},
            "classes": self.classes,
            "source_videos": self.source_videos,
            "clips_of_repeated_videos": self.repeated,
            "folds": FOLDS,
            "per_class": PER_CLASS,
            "draws": self.draws,
            "seed": SEED,
            "rows": [row.to_json() for row in self.rows],
        }


def mteb_scores(
    dataset: Dataset | str | Path,
    *,
    streams: str | Sequence[str] = (),
    draws: int = MTEB_DRAWS,
    progress: Progress = NO_PROGRESS,
) -> MtebScores:
    """Score the test split's embeddings as MTEB's VGGSound tasks do, and again with whole source videos in each fold.

    Of several streams, the fusion is their embeddings side by side, unscaled. Writes no files; see
    `alphafuse.write_curve`.

    Args:
        dataset: a dataset, or its folder, whose test split is extracted; the other splits are not used.
        streams: streams to use; by default all that are extracted; "sight" and "sound" are all of a medium.
        draws: shufflings, with seeds 42 (MTEB's), 43, ...; more make the interval of the leak narrower.
        progress: counts logistic regressions.

    Raises:
        DatasetError, StoreError: a split that is empty or not extracted, an unknown stream.
        ExperimentError: draws below 1, fewer than two classes, or fewer than 5 source videos.

    >>> from alphafuse import Dataset, mteb_scores
    >>> mteb_scores(Dataset.open("demo"), streams=["timesformer"], draws=1)
    MtebScores('demo', 192 clips, timesformer 0...)
    """
    dataset = Dataset.open(dataset)
    if draws < 1:
        raise ExperimentError(f"MTEB's protocol needs at least 1 draw, not {draws}")
    complete = SameClips.complete(dataset, names_of(streams, dataset.media), splits=(SPLIT,))
    clips = complete.embeddings[SPLIT]
    classes, targets = np.unique(np.asarray(clips.labels, dtype=object).astype(str), return_inverse=True)
    groups = tuple(clips.groups)
    _, index, sizes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ExperimentError("the test clips have a single label: MTEB's protocol needs at least two classes")
    if len(sizes) < FOLDS:
        raise ExperimentError(
            f"{len(sizes)} source videos in test are too few for MTEB's {FOLDS} folds: add test clips"
        )
    read = clips.read_rows(np.arange(len(clips)))
    features = {FUSED: np.concatenate([read[stream] for stream in complete.read], axis=1)}
    features = {
        **(features if len(complete.read) > 1 else {}),
        **{stream: read[stream] for stream in complete.read},
    }
    ways = ("shuffled", "grouped") if (sizes > 1).any() else ("shuffled",)
    right: dict[tuple[str, str], np.ndarray] = {
        (name, way): np.zeros((draws, len(targets)), bool) for name in features for way in ways
    }
    per_fold: dict[str, list[float]] = {name: [] for name in features}
    progress.start("mteb", total=draws * FOLDS * len(right), unit="fit")
    try:
        for draw in range(draws):
            for way in ways:
                for train, held in drawn_folds(targets, SEED + draw, groups if way == "grouped" else None):
                    for name, x in features.items():
                        hits = predicted(x[train], targets[train], x[held]) == targets[held]
                        right[name, way][draw, held] = hits
                        if way == "shuffled" and draw == 0:
                            per_fold[name].append(float(hits.mean()))
                        progress.advance()
    finally:
        progress.stop()
    leaks: list[Comparison | None] = [None] * len(features)
    if len(ways) > 1:
        leaks = [*compare_pairs([(right[name, "shuffled"], right[name, "grouped"]) for name in features], groups)]
    scored = {key: estimate(found, accuracy_interval(found, groups)) for key, found in right.items()}
    return MtebScores(
        dataset_name=dataset.name,
        streams=complete.read,
        rows=tuple(
            MtebRow(name, tuple(per_fold[name]), scored[name, "shuffled"], scored.get((name, "grouped")), leak)
            for name, leak in zip(features, leaks, strict=True)
        ),
        clips=len(targets),
        classes=len(classes),
        source_videos=len(sizes),
        repeated=int((sizes[index] > 1).sum()),
        dropped=complete.dropped[SPLIT],
        draws=draws,
        provenance=complete.provenance,
    )


def drawn_folds(targets: np.ndarray, seed: int, groups: Sequence[str] | None = None) -> Iterator[Fold]:
    """Yield each fold: the positions of the drawn training clips, in the order of the draw, and of the clips left out.

    As in MTEB, one list of places in the training part is shuffled again for every fold, always from the same seed, and
    up to 8 clips of each class are taken in its order. The list is as long as the first fold's training part: of a
    longer one, the last clips are never drawn.

    Args:
        targets: (n,) int.
        seed: seed of folds and draws.
        groups: (n,) source videos, which then lie in one fold each; None shuffles clips.
    """
    everything = np.arange(len(targets))
    if groups is None:
        splits = KFold(FOLDS, shuffle=True, random_state=seed).split(everything)
    else:
        splits = GroupKFold(FOLDS, shuffle=True, random_state=seed).split(everything, groups=groups)
    places: np.ndarray | None = None
    for train, held in splits:
        places = np.arange(len(train)) if places is None else places
        np.random.RandomState(seed).shuffle(places)
        drawn = train[places[places < len(train)]]
        yield drawn[_first_of_each(targets[drawn])], held


def _first_of_each(targets: np.ndarray) -> np.ndarray:
    """Return the places of the first 8 clips of each class, in order."""
    order = np.argsort(targets, kind="stable")
    _, starts, sizes = np.unique(targets[order], return_index=True, return_counts=True)
    return np.sort(order[np.arange(len(targets)) - np.repeat(starts, sizes) < PER_CLASS])


def predicted(x: np.ndarray, targets: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return the classes of held clips (m,), by MTEB's logistic regression on x (n, D) float32 and targets (n,)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 steps are the protocol's, enough or not
        found: np.ndarray = LogisticRegression(max_iter=ITERATIONS).fit(x, targets).predict(held)
    return found

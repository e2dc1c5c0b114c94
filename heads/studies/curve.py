"""Learning curves: test accuracy against training clips per class, of each stream alone and of all together.

Ridge heads in closed form, several draws of training clips for each size; classes and test clips are the same for all
sizes. A draw of a size is part of the same draw of every larger size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.splits import Ceiling, reachable_ceiling
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.data.streams import names_of
from alphafuse.errors import ExperimentError
from alphafuse.heads.closed.dual import FewClips, equal_weights
from alphafuse.heads.closed.moments import Moments, assign_folds, blocks
from alphafuse.heads.closed.profile import constant_streams, standardised
from alphafuse.heads.closed.ridge import Folds
from alphafuse.heads.closed.rows import refit_of
from alphafuse.heads.scoring.statistics import (
    Comparison,
    Estimate,
    accuracy_interval,
    compare_pairs,
    estimate,
    resolvable_gap,
)
from alphafuse.heads.training.train import class_indices
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.results import Tabular

from .same_clips import SameClips, ceiling_json
from .words import told_apart

FUSED = "fused"  # all streams together, in results; no stream can have this name
EVERY = "all"  # the size that takes every training clip
CURVE_DRAWS = 10
FEW_NUMBERS = 2**22  # of clips x dimensions: up to 2,730 clips of 1,536 numbers; of more, the moments are faster
FOLDS = 5  # beyond, folds of source videos choose the penalty

Size = int | str
Head = tuple[np.ndarray, np.ndarray]  # (D, C) and (C,), for the streams' vectors side by side


@dataclass(frozen=True)
class CurvePoint:
    """One size of the training set.

    Attributes:
        size: most training clips per class, or "all".
        clips: number of training clips, the same in every draw.
        per_class: mean training clips per class; less than `size` if classes have fewer.
        short: number of classes that have fewer clips than `size`; 0 for "all".
        draws: number of draws; 1 if every draw would be the same clips.
        correct: stream or "fused" -> (draws, clips) bool on the test clips.
        top1: the same keys -> test top-1; the interval is over draws and source videos.
        penalties: the same keys -> the penalty of each draw, chosen within its clips.
        gains: stream -> what fusing gains over this stream alone, Holm-corrected over all sizes and streams; empty if
            there is only one stream.
    """

    size: Size
    clips: int
    per_class: float
    short: int
    draws: int
    correct: Mapping[str, np.ndarray]
    top1: Mapping[str, Estimate]
    penalties: Mapping[str, tuple[float, ...]]
    gains: Mapping[str, Comparison]

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {found!r}" for name, found in self.top1.items())
        return f"CurvePoint({self.size}: {self.clips} clips, {scores})"

    @property
    def lead(self) -> str:
        """What the curve is about: "fused", or the only stream."""
        return FUSED if FUSED in self.top1 else next(iter(self.top1))

    @property
    def best_stream(self) -> str:
        """The stream that scores highest alone."""
        return max((name for name in self.top1 if name != FUSED), key=lambda name: self.top1[name].mean)

    @property
    def pays(self) -> bool | None:
        """Whether fusing beats every stream alone (True), loses to one (False), or neither can be told (None)."""
        found = [told_apart(gain) for gain in self.gains.values()]
        return True if found and min(found) > 0 else False if found and min(found) < 0 else None

    def to_json(self) -> dict[str, Any]:
        """Every figure, json-able."""
        return {
            "size": self.size,
            "clips": self.clips,
            "per_class": self.per_class,
            "short": self.short,
            "draws": self.draws,
            "top1": {name: asdict(found) for name, found in self.top1.items()},
            "penalties": {name: list(found) for name, found in self.penalties.items()},
            "gains": {name: gain.to_json() for name, gain in self.gains.items()},
            "pays": self.pays,
        }


@dataclass(frozen=True)
class Curve(Tabular):
    """Result of `curve`.

    Attributes:
        dataset_name: name of the dataset.
        streams: the streams, in order.
        points: the sizes, smallest first.
        last_step: gain of the largest over the second largest size, of all streams together; None for one size.
        resolvable_gap: smallest gain of fusing that a paired test at the largest size finds in 4 of 5 cases; None for
            one stream.
        clips, dropped: split -> number of clips used, and left out because they lack a stream.
        classes: classes that occur in training.
        source_videos: of the test clips.
        ceiling: test clips whose label occurs in training.
        draws, seed: arguments of the call.
        provenance: inputs of the study, for config.json.

    >>> from alphafuse import Dataset, curve
    >>> found = curve(Dataset.open("demo"), sizes=[1, 8], draws=2)
    >>> [(point.size, point.clips) for point in found.points]
    [(1, 16), (8, 128)]
    >>> sorted(found.points[0].top1)
    ['ast', 'fused', 'timesformer']
    """

    dataset_name: str
    streams: tuple[str, ...]
    points: tuple[CurvePoint, ...]
    last_step: Comparison | None
    resolvable_gap: float | None
    clips: Mapping[str, int]
    dropped: Mapping[str, int]
    classes: int
    source_videos: int
    ceiling: Ceiling
    draws: int
    seed: int
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        sizes = ", ".join(str(point.size) for point in self.points)
        last = self.points[-1]
        figures = f"at {last.size} {last.lead} test top1={last.top1[last.lead]!r} n={self.clips['test']}"
        return f"Curve({self.dataset_name!r}, {'+'.join(self.streams)}, sizes {sizes}, {self.draws} draws, {figures})"

    def config(self) -> dict[str, Any]:
        """Return the content of config.json: the call's arguments under `curve`, and the other inputs."""
        return {
            "curve": {
                "preset": None,
                "sizes": [point.size for point in self.points],
                "draws": self.draws,
                "seed": self.seed,
                "streams": list(self.streams),
            },
            **self.provenance,
            "settings": {},
            "seeds": [self.seed],
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
        }

    def to_json(self) -> dict[str, Any]:
        """Every figure of the curve, json-able."""
        return {
            "dataset": self.dataset_name,
            "preset": None,
            "streams": list(self.streams),
            "classes": self.classes,
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
            "source_videos": self.source_videos,
            "reachable_ceiling": ceiling_json(self.ceiling),
            "draws": self.draws,
            "seed": self.seed,
            "points": [point.to_json() for point in self.points],
            "last_step": self.last_step and self.last_step.to_json(),
            "smallest_resolvable_gap": self.resolvable_gap,
        }


def curve(
    dataset: Dataset | str | Path,
    *,
    sizes: Sequence[Size] = (),
    draws: int = CURVE_DRAWS,
    streams: str | Sequence[str] = (),
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Curve:
    """Score ridge heads of each stream alone and of all together against the number of training clips per class.

    A size k takes up to k clips of each class: one clip per source video first, second clips only when every video has
    given one. A class with fewer clips gives all that it has, so classes stay the same for all sizes. Together, the
    streams weigh alike: each is scaled to the same total variance over the drawn clips. Each head's penalty is chosen
    within its own training clips, by the error on clips left out, one source video at a time
    (`FewClips.choose_penalty`); too many clips for that (`FEW_NUMBERS`) are split into five folds of source videos.
    Nothing is chosen on test clips, and validation clips are not used. Writes no files; see `alphafuse.write_curve`.

    Args:
        dataset: a dataset, or its folder, whose train and test splits are extracted.
        sizes: clips per class, or "all"; by default 1, 2, 4, ... as far as half of the classes have so many, and "all".
        draws: draws of training clips for each size.
        streams: streams to use; by default all that are extracted; "sight" and "sound" are all of a medium.
        seed: seed of the draws.
        progress: counts heads.

    Raises:
        DatasetError, StoreError: splits that are empty or not extracted, an unknown stream.
        ExperimentError: sizes or draws below 1, fewer than two classes, a stream that is the same for all clips.

    >>> from alphafuse import Dataset, curve
    >>> found = curve(Dataset.open("demo"), sizes=[2, "all"], draws=3)
    >>> [point.draws for point in found.points], found.points[1].pays
    ([3, 1], True)
    """
    dataset = Dataset.open(dataset)
    if draws < 1:
        raise ExperimentError(f"a learning curve needs at least 1 draw, not {draws}")
    clips = SameClips.complete(dataset, names_of(streams, dataset.media), splits=("train", "test"))
    train, test = clips.embeddings["train"], clips.embeddings["test"]
    all_targets = class_indices(train.labels, dataset.classes)
    trained, targets = np.unique(all_targets, return_inverse=True)
    if len(trained) < 2:
        raise ExperimentError("the training clips have a single label: a learning curve needs at least two classes")
    position = np.full(len(dataset.classes), -1)
    position[trained] = np.arange(len(trained))
    truth = position[class_indices(test.labels, dataset.classes)]  # -1: no head can be right
    per_class = np.bincount(targets)
    chosen = ordered(sizes or default_sizes(per_class), per_class)
    ranks = [draw_ranks(targets, train.groups, np.random.default_rng([seed, draw])) for draw in range(draws)]

    points = []
    names = (*clips.read, *((FUSED,) if len(clips.read) > 1 else ()))
    sets = {size: _draws_of(size, ranks) for size in chosen}
    progress.start("curve", total=sum(map(len, sets.values())) * len(names), unit="head")
    try:
        for size in reversed(chosen):  # the largest first: if a stream is constant, that is said at once
            correct: dict[str, list[np.ndarray]] = {name: [] for name in names}
            penalties: dict[str, list[float]] = {name: [] for name in names}
            for positions in sets[size]:
                heads = _fit(train, targets, positions, clips.read, seed)
                matrices = {name: head for name, (head, _) in heads.items()}
                for name, right in _right(test, truth, clips.read, matrices).items():
                    correct[name].append(right)
                    penalties[name].append(heads[name][1])
                progress.advance(len(names))
            points.append((size, sets[size], {name: np.stack(rows) for name, rows in correct.items()}, penalties))
    finally:
        progress.stop()
    points.reverse()
    groups = tuple(test.groups)
    gains = _gains([correct for _, _, correct, _ in points], clips.read, groups)
    made = tuple(
        CurvePoint(
            size=size,
            clips=len(drawn[0]),
            per_class=len(drawn[0]) / len(trained),
            short=int((per_class < size).sum()) if isinstance(size, int) else 0,
            draws=len(drawn),
            correct=correct,
            top1={name: estimate(right, accuracy_interval(right, groups)) for name, right in correct.items()},
            penalties={name: tuple(found) for name, found in penalties.items()},
            gains=gain,
        )
        for (size, drawn, correct, penalties), gain in zip(points, gains, strict=True)
    )
    last = None
    if len(made) > 1:
        before, after = (point.correct[point.lead] for point in made[-2:])
        last = compare_pairs([(after, before)], groups)[0]
    return Curve(
        dataset_name=dataset.name,
        streams=clips.read,
        points=made,
        last_step=last,
        resolvable_gap=_resolvable_gap(made, clips.read, groups),
        clips=clips.counts,
        dropped=clips.dropped,
        classes=len(trained),
        source_videos=len(set(groups)),
        ceiling=reachable_ceiling(train.labels, test.labels),
        draws=draws,
        seed=seed,
        provenance=clips.provenance,
    )


# sizes and draws


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Parse sizes written as "1,2,4,all".

    >>> parse_sizes("1,4,all")
    (1, 4, 'all')
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word == EVERY or word.isdecimal() for word in words):
        raise ExperimentError(f"invalid sizes '{text}': write clips per class, such as 1,2,4,all")
    return tuple(word if word == EVERY else int(word) for word in words)


def default_sizes(per_class: np.ndarray) -> tuple[Size, ...]:
    """Return 1, 2, 4, ... as far as half of the classes have so many clips, and "all".

    >>> default_sizes(np.array([3, 9, 9]))
    (1, 2, 4, 8, 'all')
    """
    most = int(np.median(per_class))
    return (*(2**power for power in range(most.bit_length())), EVERY)


def ordered(sizes: Sequence[Size], per_class: np.ndarray) -> tuple[Size, ...]:
    """Return sizes, smallest first and each once; "all" instead of sizes that take every clip.

    >>> ordered([8, 2, 2], np.array([3, 9])), ordered([9, "all"], np.array([3, 9]))
    ((2, 8), ('all',))
    """
    for size in sizes:
        if size != EVERY and (isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1):
            raise ExperimentError(f"a size is a number of clips per class of at least 1, or '{EVERY}', not {size!r}")
    numbers = {int(size) for size in sizes if size != EVERY}
    largest = int(per_class.max())
    takes_all = EVERY in sizes or any(size >= largest for size in numbers)
    return (*sorted(size for size in numbers if size < largest), *((EVERY,) if takes_all else ()))


def draw_ranks(targets: np.ndarray, groups: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Return the place of each clip in a random order of its class, (clips,) int from 0: a size k takes places below k.

    In each class, all source videos come in random order with one clip each, then again with a second clip, and so on.
    """
    _, group = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    _, video = np.unique(targets * (group.max() + 1) + group, return_inverse=True)  # a source video within a class
    shuffled = rng.permutation(len(targets))
    places = rng.permutation(int(video.max()) + 1)[video]
    rounds = np.empty(len(targets), np.int64)
    rounds[shuffled] = _counts_so_far(video[shuffled])
    order = np.lexsort((places, rounds, targets))
    ranks = np.empty(len(targets), np.int64)
    ranks[order] = _counts_so_far(targets[order])
    return ranks


def _counts_so_far(values: np.ndarray) -> np.ndarray:
    """Return how often each value occurred before, (n,) int."""
    order = np.argsort(values, kind="stable")
    _, starts, sizes = np.unique(values[order], return_index=True, return_counts=True)
    found = np.empty(len(values), np.int64)
    found[order] = np.arange(len(values)) - np.repeat(starts, sizes)
    return found


def _draws_of(size: Size, ranks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the positions of the clips of each draw of a size; one draw if all are the same."""
    if size == EVERY:
        return [np.arange(len(ranks[0]))]
    found = [np.flatnonzero(places < size) for places in ranks]
    return found[:1] if all(np.array_equal(one, found[0]) for one in found) else found


# heads


def _fit(
    train: EmbeddingSource,
    targets: np.ndarray,
    positions: np.ndarray,
    streams: Sequence[str],
    seed: int,
) -> dict[str, tuple[Head, float]]:
    """Return name -> head and penalty, for each stream alone and, of several, for all together."""
    rows, own = train.take(positions), targets[positions]
    width = max(sum(rows.dims[stream] for stream in streams), int(targets.max()) + 1)
    if len(positions) * width > FEW_NUMBERS:
        return _fit_many(rows, own, streams, int(targets.max()) + 1, seed)
    read = rows.read_rows(np.arange(len(positions)))
    features = {stream: read[stream] for stream in streams}
    weights = equal_weights(features)
    if len(positions) == len(train):
        _require_variety([stream for stream in streams if not weights[stream]])
    found = {}
    for name in (*streams, *((FUSED,) if len(streams) > 1 else ())):
        used = {stream: float(name in (stream, FUSED)) * weights[stream] for stream in streams}
        read_by = {stream: x for stream, x in features.items() if name in (stream, FUSED)}
        clips = FewClips(read_by, own, int(targets.max()) + 1, used)
        choice = clips.choose_penalty(rows.groups)
        matrix, bias = clips.head(choice.penalty)
        found[name] = ((_padded(matrix, rows.dims, streams, read_by), bias), choice.penalty)
    return found


def _fit_many(
    rows: EmbeddingSource, targets: np.ndarray, streams: Sequence[str], classes: int, seed: int
) -> dict[str, tuple[Head, float]]:
    """The same from the moments of the clips: the penalty of least error over folds of source videos."""
    of_fold = assign_folds(rows.groups, targets, FOLDS, seed=seed)
    moments = Moments.of(rows, targets, of_fold, classes=classes, streams=streams)
    _require_variety(constant_streams(moments))
    standard = standardised(moments)
    folds = Folds(standard.moments)
    found = {}
    for name in (*streams, *((FUSED,) if len(streams) > 1 else ())):
        best = folds.best([float(name in (stream, FUSED)) for stream in streams])
        head = refit_of(folds, best, standard)
        found[name] = ((head.matrix, head.bias - moments.shift @ head.matrix), best.penalty)
    return found


def _require_variety(constant: Sequence[str]) -> None:
    if constant:
        raise ExperimentError(
            f"the {constant[0]} embeddings are the same for all training clips: nothing can be learned from them; name "
            "the other streams with --stream"
        )


def _padded(
    matrix: np.ndarray, dims: Mapping[str, int], streams: Sequence[str], used: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return a head's matrix with rows of zeros for the streams that it doesn't read."""
    starts = iter(np.split(matrix, np.cumsum([dims[stream] for stream in used])[:-1]))
    empty = {stream: np.zeros((dims[stream], matrix.shape[1])) for stream in streams if stream not in used}
    return np.concatenate([empty[stream] if stream in empty else next(starts) for stream in streams])


def _right(
    test: EmbeddingSource, truth: np.ndarray, streams: Sequence[str], heads: Mapping[str, Head]
) -> dict[str, np.ndarray]:
    """Return name -> (clips,) bool: whether the head's first choice is the clip's label."""
    found = {name: np.zeros(len(test), bool) for name in heads}
    for positions, x in blocks(test, {stream: test.dims[stream] for stream in streams}):
        exact = x.astype(np.float64)
        for name, (matrix, bias) in heads.items():
            found[name][positions] = (exact @ matrix + bias).argmax(axis=1) == truth[positions]
    return found


# comparisons


def _gains(
    points: Sequence[Mapping[str, np.ndarray]], streams: Sequence[str], groups: Sequence[str]
) -> list[dict[str, Comparison]]:
    """Return, for each size, what fusing gains over each stream alone, Holm-corrected over all of them."""
    if len(streams) < 2:
        return [{} for _ in points]
    compared = compare_pairs([(point[FUSED], point[stream]) for point in points for stream in streams], groups)
    return [
        dict(zip(streams, compared[i * len(streams) : (i + 1) * len(streams)], strict=True)) for i in range(len(points))
    ]


def _resolvable_gap(points: Sequence[CurvePoint], streams: Sequence[str], groups: Sequence[str]) -> float | None:
    """Return the smallest gain at the largest size that a test finds with 80% power, corrected for all comparisons."""
    if len(streams) < 2:
        return None
    correct = points[-1].correct
    pairs = [(correct[FUSED], correct[stream]) for stream in streams]
    return resolvable_gap(pairs, groups, comparisons=len(points) * len(streams))

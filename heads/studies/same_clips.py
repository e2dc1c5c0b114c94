"""Heads trained and scored on the same clips: the common part of the studies.

    stores -> `SameClips` -> `train` -> `Trained`: an experiment's heads, one per seed, and their `SplitResult`s

This module alone selects the clips of a study and defines "best on validation".
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import SPLITS
from alphafuse.data.splits import Ceiling, reachable_ceiling
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.data.streams import in_order
from alphafuse.errors import EmptySplitError, ExperimentError
from alphafuse.heads.model.config import BASELINE, Experiment, usable_clips
from alphafuse.heads.scoring.metrics import Scores, score
from alphafuse.heads.scoring.statistics import (
    Comparison,
    Estimate,
    accuracy_interval,
    compare_pairs,
    estimate,
    mean_interval,
)
from alphafuse.heads.scoring.statistics import resolvable_gap as gap_of_pairs
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import TrainedHead, class_indices, memory_bytes, train_heads
from alphafuse.system.devices import choose_device
from alphafuse.system.progress import NO_PROGRESS, Progress

from .probe import Probe, ProbePoint, points_for, probe_grid

EVALUATED = ("val", "test")
CLOSED = TrainSettings()


@dataclass(frozen=True)
class SplitResult:
    """Scores of an experiment's heads (one per seed) on one split.

    Attributes:
        split: "val" or "test".
        clip_ids, groups, labels: ids, source videos and labels of the n scored clips.
        dropped: clips left out because they lack a stream.
        ceiling: number of the n clips whose label occurs in training.
        top1, topk: accuracies in [0, 1].
        loss: cross entropy in nats.
        scores: scores per clip, (seeds, clips).
    """

    split: str
    clip_ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    dropped: int
    ceiling: Ceiling
    top1: Estimate
    topk: Estimate
    loss: Estimate
    scores: Scores

    @property
    def n(self) -> int:
        """Number of scored clips."""
        return len(self.clip_ids)

    def __repr__(self) -> str:
        return f"SplitResult({self.split}: n={self.n}, top1={self.top1!r}, loss={self.loss!r})"

    def to_json(self) -> dict[str, Any]:
        """Return the split's part of a run's figures, json-able."""
        return {
            "n": self.n,
            "source_videos": len(set(self.groups)),
            "dropped": self.dropped,
            "reachable_ceiling": ceiling_json(self.ceiling),
            "top1": asdict(self.top1),
            f"top{self.scores.k}": asdict(self.topk),
            "loss": asdict(self.loss),
        }


@dataclass(frozen=True)
class Trained:
    """An experiment's heads, one per seed, and their scores on validation and, if requested, test clips.

    `probe` is what chose their settings, if a probe did.
    """

    experiment: Experiment
    heads: tuple[TrainedHead, ...]
    val: SplitResult
    test: SplitResult | None
    probe: Probe | None = None

    def __repr__(self) -> str:
        return f"Trained({self.experiment.title}, {len(self.heads)} seeds, val top1={self.val.top1!r})"


@dataclass(frozen=True)
class SameClips:
    """The clips that every experiment of a study uses, so that their results can be paired.

    Attributes:
        embeddings: split -> embeddings; with `absent="drop"`, of the clips that have all streams that are read.
        dropped: split -> number of clips left out.
        streams: streams that the training clips have, in order; those of the root without any embedding are no part.
        read: those of them that are read; every clip has them, unless absent ones are fused as zeros.
        classes: class names of the dataset.
        provenance: inputs of the study apart from its experiments, for config.json.
    """

    embeddings: Mapping[str, EmbeddingSource]
    dropped: Mapping[str, int]
    streams: tuple[str, ...]
    read: tuple[str, ...]
    classes: tuple[str, ...]
    provenance: Mapping[str, Any]

    @cached_property
    def trained_labels(self) -> frozenset[str]:
        """Labels of the training clips."""
        return frozenset(self.embeddings["train"].labels)

    @property
    def counts(self) -> dict[str, int]:
        """split -> number of clips."""
        return {split: len(embeddings) for split, embeddings in self.embeddings.items()}

    @classmethod
    def load(
        cls, dataset: Dataset, settings: TrainSettings, seeds: Sequence[int], experiment: Experiment = BASELINE
    ) -> SameClips:
        """Read the clips that heads of `experiment` can use; splits that exceed the memory stay on disk.

        Raises:
            EmptySplitError: a split has no such clip.
            ExperimentError: the experiment names a stream that doesn't exist or isn't extracted.
            DatasetError, StoreError: splits that are empty or not extracted.
        """
        found = cls._usable(dataset, SPLITS, settings, experiment, ", or use --absent zeros")
        training = {"settings": settings.to_json(), "seeds": list(seeds)}
        return replace(found, provenance={**found.provenance, **training})

    @classmethod
    def complete(
        cls,
        dataset: Dataset,
        streams: Sequence[str] = (),
        *,
        splits: Sequence[str] = SPLITS,
        settings: TrainSettings = CLOSED,
    ) -> SameClips:
        """Read the clips that have all of these streams, by default all extracted ones, for heads in closed form.

        Of the settings, device and memory decide which splits stay on disk. Raises as `load` does; `DatasetError` for
        an unknown stream.
        """
        for stream in streams:
            dataset.stream(stream)
        experiment = Experiment(streams=tuple(streams))
        named = ", or name other streams with --stream"
        return cls._usable(dataset, splits, replace(settings, absent="drop"), experiment, named)

    @classmethod
    def _usable(
        cls, dataset: Dataset, splits: Sequence[str], settings: TrainSettings, experiment: Experiment, way_out: str
    ) -> SameClips:
        memory = memory_bytes(settings, choose_device(settings.device))
        by_split = dataset.all_embeddings(splits=splits, streams=experiment.streams, max_bytes=memory // 2)
        first = by_split[splits[0]]
        _require_streams(dataset, first, experiment)
        config = experiment.head_config(first, dataset.classes, settings)
        kept: dict[str, EmbeddingSource] = {}
        dropped = {}
        for split, embeddings in by_split.items():
            usable = usable_clips(embeddings, config)
            if not usable.any():
                raise EmptySplitError(
                    f"none of the {len(embeddings)} {split} clips has the embeddings that a head of "
                    f"{' and '.join(config.streams)} needs: see `alphafuse store info`{way_out}"
                )
            kept[split] = embeddings if usable.all() else embeddings.take(usable)
            dropped[split] = int((~usable).sum())
        provenance = {**provenance_of(dataset, splits[0], first), "inputs": inputs_of(dataset, by_split)}
        return cls(kept, dropped, config.experiment.available, config.streams, dataset.classes, provenance)

    def train(
        self,
        experiments: Sequence[Experiment],
        seeds: Sequence[int],
        *,
        settings: TrainSettings,
        progress: Progress = NO_PROGRESS,
        splits: Sequence[str] = EVALUATED,
        engine: str = "local",
        address: str | None = None,
    ) -> list[Trained]:
        """Train all experiments with all seeds together; score them on "val" and, if `splits` has it, on "test".

        Of `progress` only `advance` is called, with finished epochs; the study calls `start` and `stop`.
        """
        heads = self._heads(experiments, seeds, settings, progress, engine, address)
        return [
            Trained(experiment, own, self.score(own, "val"), self.score(own, "test") if "test" in splits else None)
            for experiment, own in zip(experiments, heads, strict=True)
        ]

    def train_probed(
        self,
        experiments: Sequence[Experiment],
        seeds: Sequence[int],
        *,
        settings: TrainSettings,
        progress: Progress = NO_PROGRESS,
        engine: str = "local",
        address: str | None = None,
    ) -> list[Trained]:
        """Like `train`, with the settings of the probe's grid that are best for each experiment on validation clips.

        The points of the grid are trained with the first seed, each experiment's best one with all seeds. Test clips
        are scored once, by the latter heads.

        Raises:
            ExperimentError: as `probe_grid` does, besides the errors of `train`.
        """
        grid = probe_grid(settings)
        tried: dict[Experiment, list[ProbePoint]] = {experiment: [] for experiment in experiments}
        for point in grid:
            able = [experiment for experiment in experiments if point in points_for(experiment, grid)]
            heads = self._heads(able, seeds[:1], point, progress, engine, address) if able else []
            for experiment, (head,) in zip(able, heads, strict=True):
                epoch, history = head.epoch - 1, head.history
                figures = float(history.val_accuracy[epoch]), float(history.val_loss[epoch])
                tried[experiment].append(ProbePoint(point, *figures))
        clips = len(self.embeddings["val"])
        probes = {}
        for experiment, points in tried.items():
            best = min(points, key=lambda point: validation_rank(point.top1, point.loss))
            probes[experiment] = Probe(tuple(points), best, clips, seeds[0])
        found: dict[Experiment, Trained] = {}
        for point in grid:
            own = [experiment for experiment in experiments if probes[experiment].settings == point]
            if not own:
                continue
            trained = self.train(own, seeds, settings=point, progress=progress, engine=engine, address=address)
            found |= {one.experiment: replace(one, probe=probes[one.experiment]) for one in trained}
        return [found[experiment] for experiment in experiments]

    def _heads(
        self,
        experiments: Sequence[Experiment],
        seeds: Sequence[int],
        settings: TrainSettings,
        progress: Progress,
        engine: str,
        address: str | None,
    ) -> list[tuple[TrainedHead, ...]]:
        """Train all experiments with all seeds together; return each one's heads."""
        train = self.embeddings["train"]
        configs = [experiment.head_config(train, self.classes, settings) for experiment in experiments]
        heads = train_heads(
            train,
            self.embeddings["val"],
            configs,
            seeds,
            settings=settings,
            progress=progress,
            engine=engine,
            address=address,
        )
        return [tuple(heads[start : start + len(seeds)]) for start in range(0, len(heads), len(seeds))]

    def score(self, heads: Sequence[TrainedHead], split: str) -> SplitResult:
        """Score one experiment's heads on a split."""
        embeddings = self.embeddings[split]
        return self.score_logits(np.stack([trained.head.predict_logits(embeddings) for trained in heads]), split)

    def score_logits(self, logits: np.ndarray, split: str) -> SplitResult:
        """Score one experiment's logits, (seeds, clips, C), on a split."""
        embeddings = self.embeddings[split]
        scores = score(logits, class_indices(embeddings.labels, self.classes))
        groups = tuple(embeddings.groups)
        return SplitResult(
            split=split,
            clip_ids=tuple(embeddings.clip_ids),
            groups=groups,
            labels=tuple(embeddings.labels),
            dropped=self.dropped[split],
            ceiling=reachable_ceiling(self.trained_labels, embeddings.labels),
            top1=estimate(scores.top1, accuracy_interval(scores.top1, groups)),
            topk=estimate(scores.topk, accuracy_interval(scores.topk, groups)),
            loss=estimate(scores.loss, mean_interval(scores.loss, groups)),
            scores=scores,
        )


def provenance_of(dataset: Dataset, split: str, rows: EmbeddingSource) -> dict[str, Any]:
    """Return what every study's config.json records: dataset, classes, recipes and encoders of a split, versions."""
    return {
        "dataset": {"name": dataset.name, "source": dataset.source},
        "classes": list(dataset.classes),
        "embeddings": {stream: dict(recipe) for stream, recipe in rows.recipes.items() if stream in dataset.media},
        "encoders": dataset.store(split).provenance().get("encoders", {}),
        "versions": {
            "alphafuse": version("alphafuse"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def inputs_of(dataset: Dataset, splits: Mapping[str, EmbeddingSource]) -> str:
    """Return a digest of what decides a study's figures beside its own settings, in hexadecimal.

    Classes and how labels were given; clips, labels and source videos of each split, in order; streams, their recipes,
    and which clips lack them. The numbers themselves aren't read: clip and recipe decide them.
    """
    digest = hashlib.sha256(json.dumps([dataset.classes, dataset.labelled_by]).encode())
    for split, rows in splits.items():
        recipes = {stream: dict(rows.recipes[stream]) for stream in in_order(rows.dims)}
        listed = [list(rows.clip_ids), list(rows.labels), list(rows.groups)]
        digest.update(json.dumps([split, recipes, listed], sort_keys=True, default=str).encode())
        for stream in recipes:
            digest.update(np.packbits(rows.present(stream)).tobytes())
    return digest.hexdigest()


def current_inputs(dataset: Dataset) -> str:
    """Return the digest that a study of all streams records as "inputs", as the root is now; see `inputs_of`.

    Raises:
        DatasetError, StoreError: splits that are empty or not extracted.
    """
    return inputs_of(dataset, dataset.all_embeddings(max_bytes=0))  # 0: features stay on disk


def _require_streams(dataset: Dataset, train: EmbeddingSource, experiment: Experiment) -> None:
    """Raise `ExperimentError` if the experiment names a stream of the dataset that isn't extracted.

    To experiments that don't name it, such a stream doesn't exist.
    """
    for stream in dataset.media:
        if stream in (*experiment.streams, *experiment.transformed) and stream not in train.dims:
            raise ExperimentError(
                f"the clips have no {stream} embeddings yet: run `alphafuse extract --split all --stream {stream} "
                f"--root {dataset.root}`, or leave the stream out with --stream {','.join(in_order(train.dims))}"
            )


def ceiling_json(ceiling: Ceiling) -> dict[str, Any]:
    """Return a ceiling as json-able figures of a run."""
    return {**asdict(ceiling), "accuracy": ceiling.accuracy}


@contextmanager
def epochs_of(progress: Progress, title: str, heads: int, settings: TrainSettings) -> Iterator[Progress]:
    """Start progress over the epochs of this number of heads; stop it when the block ends."""
    progress.start(f"{title}, {heads} head{'s' * (heads != 1)}", total=heads * settings.total_epochs, unit="epoch")
    try:
        yield progress
    finally:
        progress.stop()


def seed_range(seeds: int, first_seed: int = 0) -> tuple[int, ...]:
    """Return `seeds` consecutive seeds; `ExperimentError` for fewer than one."""
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ExperimentError(f"seeds must be a whole number of at least 1, not {seeds!r}")
    return tuple(range(first_seed, first_seed + seeds))


def validation_rank(top1: float, loss: float) -> tuple[float, float]:
    """Return the sort key of heads, best first: highest mean validation accuracy, then lowest validation loss."""
    return -top1, loss


def best_on_validation(points: Sequence[Trained]) -> Trained:
    """Return the point with the highest mean validation top-1; among equals, with the lowest validation loss."""
    return min(points, key=lambda point: validation_rank(point.val.top1.mean, point.val.loss.mean))


def against(baseline: SplitResult, others: Sequence[SplitResult]) -> list[Comparison]:
    """Compare each of the others with the baseline in top-1 on the same clips, Holm-corrected over all of them."""
    return compare_pairs([(other.scores.top1, baseline.scores.top1) for other in others], baseline.groups)


def resolvable_gap(baseline: SplitResult, others: Sequence[SplitResult], *, comparisons: int) -> float:
    """Return the smallest gap in top-1 that the test of one of `comparisons` experiments finds with 80% power."""
    pairs = [(other.scores.top1, baseline.scores.top1) for other in others]
    return gap_of_pairs(pairs, baseline.groups, comparisons=comparisons)

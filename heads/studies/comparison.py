"""What table 1, sweep and compare share: the clips that every row uses, and each row against the untransformed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.power import LEVEL, smallest_resolvable_gap
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.heads.model.config import BASELINE, usable_clips
from alphafuse.heads.scoring.statistics import Interval, PairedTest, difference_interval, holm, paired_test
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import TrainedHead, train_heads
from alphafuse.system.progress import NO_PROGRESS, Progress

from .experiments import EVALUATED, Experiment, SplitResult, evaluate_heads, load_embeddings


@dataclass(frozen=True)
class CommonClips:
    """The clips that every row of a table uses, so that rows can be paired.

    Attributes:
        embeddings: split -> embeddings; with `absent="drop"`, of the clips that have both modalities.
        dropped: split -> how many clips that leaves out.
        classes: of the dataset.
    """

    embeddings: Mapping[str, EmbeddingSource]
    dropped: Mapping[str, int]
    classes: tuple[str, ...]

    @cached_property
    def trained_labels(self) -> frozenset[str]:
        """Labels of the training clips."""
        return frozenset(self.embeddings["train"].labels)

    @property
    def counts(self) -> dict[str, int]:
        """split -> clips."""
        return {split: len(embeddings) for split, embeddings in self.embeddings.items()}

    @classmethod
    def load(cls, dataset: Dataset, settings: TrainSettings) -> CommonClips:
        """Read them from the dataset's stores."""
        everything = load_embeddings(dataset, settings)
        fused = BASELINE.head_config(everything["train"], dataset.classes, settings)
        usable = {split: usable_clips(embeddings, fused) for split, embeddings in everything.items()}
        return cls(
            {split: everything[split].take(mask) for split, mask in usable.items()},
            {split: int((~mask).sum()) for split, mask in usable.items()},
            dataset.classes,
        )


@dataclass(frozen=True)
class Trained:
    """An experiment's heads, one per seed, and how they do on validation and (where it was asked for) test clips."""

    experiment: Experiment
    heads: tuple[TrainedHead, ...]
    val: SplitResult
    test: SplitResult | None

    def __repr__(self) -> str:
        return f"Trained({self.experiment.title}, {len(self.heads)} seeds, val top1={self.val.top1!r})"


def train_experiments(
    clips: CommonClips,
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    *,
    settings: TrainSettings,
    progress: Progress | None = None,
    splits: Sequence[str] = EVALUATED,
    engine: str = "local",
    address: str | None = None,
) -> list[Trained]:
    """Train all experiments with all seeds at once, and score them on these splits ("val" always, "test" if asked)."""
    train = clips.embeddings["train"]
    configs = [experiment.head_config(train, clips.classes, settings) for experiment in experiments]
    shown = progress or NO_PROGRESS
    shown.start("heads", total=len(configs) * len(seeds) * settings.total_epochs, unit="epoch")
    try:
        heads = train_heads(
            train,
            clips.embeddings["val"],
            configs,
            seeds,
            settings=settings,
            progress=shown,
            engine=engine,
            address=address,
        )
    finally:
        shown.stop()
    trained = []
    for position, experiment in enumerate(experiments):
        own = tuple(heads[position * len(seeds) : (position + 1) * len(seeds)])
        val = evaluate_on(clips, own, "val")
        trained.append(Trained(experiment, own, val, evaluate_on(clips, own, "test") if "test" in splits else None))
    return trained


def evaluate_on(clips: CommonClips, heads: Sequence[TrainedHead], split: str) -> SplitResult:
    """Score one experiment's heads on a split."""
    return evaluate_heads(
        [trained.head for trained in heads],
        clips.embeddings[split],
        split=split,
        train_labels=clips.trained_labels,
    )


@dataclass(frozen=True)
class Comparison:
    """An experiment against the untransformed baseline, on the same test clips.

    Attributes:
        interval: of the difference in test top-1, experiment minus baseline.
        test: the paired test that fits, its p-value uncorrected.
        p_holm: corrected for the number of comparisons in the table.
    """

    interval: Interval
    test: PairedTest
    p_holm: float

    @property
    def is_found(self) -> bool:
        """Whether the difference is significant at the table's level."""
        return self.p_holm < 1 - LEVEL

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return {
            "difference": self.test.difference,
            "interval": asdict(self.interval),
            "p_value": self.test.p_value,
            "p_holm": self.p_holm,
            "method": self.test.method,
        }


def compare_with(baseline: SplitResult, others: Sequence[SplitResult]) -> list[Comparison]:
    """Each of the others against the baseline, Holm-corrected over all of them."""
    a = [other.scores.top1 for other in others]
    b, groups = baseline.scores.top1, baseline.groups
    tests = [paired_test(values, b, groups) for values in a]
    corrected = holm([test.p_value for test in tests])
    return [
        Comparison(difference_interval(values, b, groups), test, p_holm)
        for values, test, p_holm in zip(a, tests, corrected, strict=True)
    ]


def resolvable_gap(baseline: SplitResult, others: Sequence[SplitResult], *, comparisons: int) -> float:
    """Smallest gap found with 80% power, at the mean squared difference per clip of the others from the baseline.

    At the level that Holm's correction asks of the smallest of so many p-values.
    """
    base = baseline.scores.top1.mean(axis=0)
    squared = [np.mean((result.scores.top1.mean(axis=0) - base) ** 2) for result in others]
    level = 1 - (1 - LEVEL) / comparisons
    return smallest_resolvable_gap(len(set(baseline.groups)), discordance=float(np.mean(squared)), level=level)

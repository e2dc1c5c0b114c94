"""Evaluation of a trained run on a split of its dataset, with every metric that VGGSound papers report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alphafuse.data.dataset import Dataset
from alphafuse.data.splits import Ceiling, reachable_ceiling
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.errors import DatasetError, ExperimentError
from alphafuse.heads.model.config import HeadConfig, usable_clips
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.scoring.metrics import Evaluation, evaluate_probabilities
from alphafuse.heads.scoring.statistics import Interval, PairedTest, compare_pairs
from alphafuse.heads.scoring.vggsounder import VGGSounderScores, vggsounder_scores
from alphafuse.heads.training.train import class_indices
from alphafuse.system.processes import free_memory_bytes

from .runs import dataset_of, read_run, require_recipe, resolve_run
from .same_clips import ceiling_json


@dataclass(frozen=True)
class Against:
    """Comparison with another run's heads on the same clips.

    Attributes:
        run: folder of the other run.
        top1: accuracy of the other run on the clips that both runs can use.
        n: number of these clips.
        interval: interval of the difference, this run minus the other.
        test: exact McNemar for two single heads, else the paired permutation test.
    """

    run: Path
    top1: float
    n: int
    interval: Interval
    test: PairedTest


@dataclass(frozen=True)
class RunEvaluation:
    """Result of `evaluate`: the scores of a run on a split.

    Attributes:
        run: the run folder.
        split: "train", "val" or "test".
        head: configuration of the run's heads.
        seeds: number of heads.
        dropped: clips left out because they lack a stream.
        ceiling: number of the clips whose label occurs in training.
        evaluation: the figures.
        against: comparison with another run, if one was named.
        vggsounder: multi-label scores, if requested.

    >>> from alphafuse import evaluate
    >>> found = evaluate("demo/runs/sqrt-ast", split="val")
    >>> found.seeds, found.head.experiment.transform, found.ceiling.accuracy
    (1, 'sqrt', 1.0)
    """

    run: Path
    split: str
    head: HeadConfig
    seeds: int
    dropped: int
    ceiling: Ceiling
    evaluation: Evaluation
    against: Against | None
    vggsounder: VGGSounderScores | None

    def __repr__(self) -> str:
        return f"RunEvaluation({str(self.run)!r}, {self.split}, {self.evaluation!r})"

    def to_json(self) -> dict[str, Any]:
        """Every figure, json-able."""
        against = self.against
        return {
            "run": str(self.run),
            "split": self.split,
            "dropped": self.dropped,
            "reachable_ceiling": ceiling_json(self.ceiling),
            **self.evaluation.to_json(),
            "against": against
            and {
                "run": str(against.run),
                "n": against.n,
                "top1": against.top1,
                "interval": asdict(against.interval),
                **asdict(against.test),
            },
            "vggsounder": self.vggsounder and self.vggsounder.to_json(),
        }


def evaluate(
    run: str | Path,
    *,
    split: str = "test",
    dataset: Dataset | None = None,
    against: str | Path | None = None,
    vggsounder: bool = False,
) -> RunEvaluation:
    """Score a run's heads on a split.

    Writes no files; see `alphafuse.write_evaluation`.

    Args:
        run: folder of a run with heads, or, with `dataset`, the name of one of its runs.
        split: the split to score. Test scores are no longer unbiased once they were used to choose something.
        dataset: a dataset other than the run's own (`<root>/runs/<name>`), extracted with the same recipes.
        against: another run to compare with on the same clips; a folder, or the name of one of the dataset's runs.
        vggsounder: also score VGGSounder's multiple labels; needs the package `vggsounder`.

    Raises:
        ExperimentError: the run has no heads, a label is not among their classes, or they can't use any clip.
        RecipeMismatchError: the embeddings were made by other encoders or another protocol than the run's.
        DatasetError, StoreError: the split doesn't exist or isn't extracted.

    >>> from alphafuse import evaluate
    >>> found = evaluate("demo/runs/sqrt-ast", split="test")
    >>> found.evaluation.clips, found.evaluation.source_videos
    (192, 144)
    >>> found.evaluation.mean_average_precision
    0.9... [0.8..., 0.9...]
    """
    run = resolve_run(run, dataset.root if dataset else None)
    dataset = dataset or dataset_of(run)
    against = resolve_run(against, dataset.root) if against else None
    heads = load_run(run, dataset, split)
    config = heads[0].config
    embeddings = load_embeddings_of(dataset, split)
    usable = usable_clips(embeddings, config)
    other: list[AlphaFusion] = []
    common = usable
    if against:
        other = load_run(against, dataset, split)
        if other[0].config.classes != config.classes:
            raise ExperimentError(f"{against} has other classes than {run}: compare runs of the same dataset")
        common = usable & usable_clips(embeddings, other[0].config)
    if not common.any():
        raise ExperimentError(f"none of the {len(embeddings)} {split} clips has the embeddings that the heads read")
    kept = embeddings.take(usable)
    probabilities = softmax(heads, kept)
    targets = class_indices(kept.labels, config.classes)
    return RunEvaluation(
        run=run,
        split=split,
        head=config,
        seeds=len(heads),
        dropped=int((~usable).sum()),
        ceiling=reachable_ceiling(trained_labels(dataset, config), kept.labels),
        evaluation=evaluate_probabilities(probabilities, targets, config.classes, kept.groups),
        against=_against(against, heads, other, embeddings.take(common)) if against else None,
        vggsounder=vggsounder_scores(kept.clip_ids, probabilities, config.classes) if vggsounder else None,
    )


def load_embeddings_of(dataset: Dataset, split: str) -> EmbeddingSource:
    """Open one split, on disk if it exceeds half of the free memory."""
    return dataset.embeddings(split, max_bytes=free_memory_bytes() // 2)


def softmax(heads: Sequence[AlphaFusion], embeddings: EmbeddingSource) -> np.ndarray:
    """Return class probabilities (heads, clips, C) float64."""
    logits = np.stack([head.predict_logits(embeddings) for head in heads])
    return torch.from_numpy(logits).double().softmax(dim=2).numpy()


def trained_labels(dataset: Dataset, config: HeadConfig) -> frozenset[str]:
    """Return the labels of the training clips that heads of this configuration can use.

    A label is left out if all its training clips lack a stream that the heads read. If the training split isn't
    extracted, all labels of the manifest's training clips are returned.
    """
    clips = dataset.manifest.of_split("train")
    try:
        usable = usable_clips(dataset.embeddings("train", max_bytes=0), config)  # max_bytes=0: features stay on disk
    except (DatasetError, ExperimentError):  # another root, where the training split may not be extracted
        usable = np.ones(len(clips), bool)
    return frozenset(compress(clips.clip_labels, usable))


def load_run(run: Path, dataset: Dataset, split: str) -> list[AlphaFusion]:
    """Load a run's heads, after checking that the split's embeddings have the run's recipes."""
    trained = read_run(run)
    stored = dataset.store(split).recipes()
    for stream in trained.streams if stored else ():
        own, other = trained.embeddings[stream], stored.get(stream, {})
        require_recipe(run, stream, own, other, than=f"the {split} clips of {dataset.root}")
    return list(trained.heads)


def _against(
    run: Path, heads: Sequence[AlphaFusion], other: Sequence[AlphaFusion], embeddings: EmbeddingSource
) -> Against:
    targets = class_indices(embeddings.labels, heads[0].config.classes)
    ours, theirs = (
        np.stack([head.predict_logits(embeddings).argmax(axis=1) == targets for head in some])
        for some in (heads, other)
    )  # (seeds, clips) each
    comparison = compare_pairs([(ours, theirs)], tuple(embeddings.groups))[0]
    return Against(run, float(theirs.mean()), len(targets), comparison.interval, comparison.test)

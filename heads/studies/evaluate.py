"""Evaluating a trained run on a split of its dataset: every metric that VGGSound work reports."""

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

from .runs import dataset_of, read_run, require_recipe
from .same_clips import ceiling_json


@dataclass(frozen=True)
class Against:
    """Another run's heads on the same clips.

    Attributes:
        run: its folder.
        top1: its accuracy on the clips that both runs can use.
        n: how many these are.
        interval: of the difference, this run minus the other.
        test: exact McNemar for two single heads, else the paired permutation test.
    """

    run: Path
    top1: float
    n: int
    interval: Interval
    test: PairedTest


@dataclass(frozen=True)
class RunEvaluation:
    """A run on a split.

    Attributes:
        run: its folder.
        split: "train", "val" or "test".
        head: configuration of its heads.
        seeds: how many heads.
        dropped: clips left out because they lack a modality.
        ceiling: how many of the clips have a label that occurs in training.
        evaluation: the figures.
        against: another run on the same clips, where one was named.
        vggsounder: multi-label scores, where they were asked for.

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

    Writes nothing: `alphafuse.write_evaluation` does.

    Args:
        run: folder that `fit` wrote, with its head/ and heads/.
        split: whose clips; what was chosen by looking at test scores is no longer tested by them.
        dataset: another one than the run lies in (`<root>/runs/<name>`), extracted under the same settings.
        against: another run, to be compared on the same clips.
        vggsounder: also score VGGSounder's multiple labels; needs the package of that name.

    Raises:
        ExperimentError: no heads there, labels that they don't know, or no clip that they can use.
        RecipeMismatchError: the embeddings were made by other encoders or another protocol than the run's.
        DatasetError, StoreError: no such split, or it isn't extracted.

    >>> from alphafuse import evaluate
    >>> found = evaluate("demo/runs/sqrt-ast", split="test")
    >>> found.evaluation.clips, found.evaluation.source_videos
    (192, 144)
    >>> found.evaluation.mean_average_precision
    0.9... [0.8..., 0.9...]
    """
    run = Path(run)
    dataset = dataset or dataset_of(run)
    heads = load_run(run, dataset, split)
    config = heads[0].config
    embeddings = load_embeddings_of(dataset, split)
    usable = usable_clips(embeddings, config)
    other: list[AlphaFusion] = []
    common = usable
    if against:
        other = load_run(Path(against), dataset, split)
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
        against=_against(Path(against), heads, other, embeddings.take(common)) if against else None,
        vggsounder=vggsounder_scores(kept.clip_ids, probabilities, config.classes) if vggsounder else None,
    )


def load_embeddings_of(dataset: Dataset, split: str) -> EmbeddingSource:
    """One split, on disk if half of the free memory can't hold it."""
    return dataset.embeddings(split, max_bytes=free_memory_bytes() // 2)


def softmax(heads: Sequence[AlphaFusion], embeddings: EmbeddingSource) -> np.ndarray:
    """Class probabilities (heads, clips, C) float64."""
    logits = np.stack([head.predict_logits(embeddings) for head in heads])
    return torch.from_numpy(logits).double().softmax(dim=2).numpy()


def trained_labels(dataset: Dataset, config: HeadConfig) -> frozenset[str]:
    """Labels of the training clips that heads of this kind can be trained on, all listed ones where none is extracted.

    A label whose only training clips lack a modality that the heads need is none that they know.
    """
    clips = dataset.manifest.of_split("train")
    try:
        usable = usable_clips(dataset.embeddings("train", max_bytes=0), config)  # which there are, without reading them
    except (DatasetError, ExperimentError):  # another root, of which only this split is extracted
        usable = np.ones(len(clips), bool)
    return frozenset(compress(clips.clip_labels, usable))


def load_run(run: Path, dataset: Dataset, split: str) -> list[AlphaFusion]:
    """A run's heads, once it is certain that the split's embeddings were made as the run's own were."""
    trained = read_run(run)
    stored = dataset.store(split).recipes()
    for modality in trained.modalities if stored else ():
        made, other = trained.embeddings[modality], stored.get(modality, {})
        require_recipe(run, modality, made, other, than=f"the {split} clips of {dataset.root}")
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

"""What heads say of every clip of a split, from its cached embeddings; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from alphafuse.data.dataset import Dataset
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import usable_clips
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.scoring.statistics import Estimate, accuracy_interval, estimate
from alphafuse.system.processes import free_memory_bytes
from alphafuse.system.results import Tabular


@dataclass(frozen=True)
class Predictions(Tabular):
    """A run's answers for the n clips of a split that its heads can use, in manifest order.

    Attributes:
        split: "train", "val" or "test".
        classes: C labels, in the order of the columns of `probabilities`.
        clip_ids, groups, labels: ids, source videos and labels of the n clips.
        probabilities: (n, C) float64, means over the run's heads. The accuracies of a run of several heads are means
            over single heads, and so differ a little from that of these means.
        dropped: clips of the split left out because they lack a stream.

    >>> from alphafuse import read_run
    >>> found = read_run("demo/runs/sqrt-ast").predictions("test")
    >>> found
    Predictions(test: n=192, 16 classes, top1=0.8... [0.7..., 0.8...])
    >>> found.clip_ids[0], found.labels[0], found.predicted[0], found.probabilities.shape
    ('...', '...', '...', (192, 16))
    """

    split: str
    classes: tuple[str, ...]
    clip_ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: np.ndarray
    dropped: int

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __repr__(self) -> str:
        return f"Predictions({self.split}: n={len(self)}, {len(self.classes)} classes, top1={self.top1!r})"

    @cached_property
    def predicted(self) -> tuple[str, ...]:
        """The most probable label of each clip."""
        return tuple(self.classes[i] for i in self.probabilities.argmax(axis=1))

    @cached_property
    def is_correct(self) -> np.ndarray:
        """Whether it is the clip's label, (n,) bool."""
        return np.array(self.predicted, dtype=object) == np.array(self.labels, dtype=object)

    @cached_property
    def top1(self) -> Estimate:
        """Share of clips that are labelled correctly, with its interval over source videos."""
        right = self.is_correct[None].astype(np.float64)
        return estimate(right, accuracy_interval(right, self.groups))


def predictions_of(heads: Sequence[AlphaFusion], dataset: Dataset, split: str) -> Predictions:
    """Ask heads of one configuration about a split's clips.

    Raises:
        DatasetError, StoreError: the split doesn't exist or isn't extracted.
        ExperimentError: the heads can't use any of its clips.
    """
    config = heads[0].config
    embeddings = load_embeddings_of(dataset, split)
    usable = usable_clips(embeddings, config)
    if not usable.any():
        raise ExperimentError(f"none of the {len(embeddings)} {split} clips has the embeddings that the heads read")
    kept = embeddings.take(usable)
    return Predictions(
        split=split,
        classes=config.classes,
        clip_ids=tuple(kept.clip_ids),
        groups=tuple(kept.groups),
        labels=tuple(kept.labels),
        probabilities=np.mean(softmax(heads, kept), axis=0),
        dropped=int((~usable).sum()),
    )


def load_embeddings_of(dataset: Dataset, split: str) -> EmbeddingSource:
    """Open one split, on disk if it exceeds half of the free memory."""
    return dataset.embeddings(split, max_bytes=free_memory_bytes() // 2)


def softmax(heads: Sequence[AlphaFusion], embeddings: EmbeddingSource) -> np.ndarray:
    """Return class probabilities (heads, clips, C) float64."""
    logits = np.stack([head.predict_logits(embeddings) for head in heads])
    return torch.from_numpy(logits).double().softmax(dim=2).numpy()

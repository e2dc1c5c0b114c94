"""Per-clip scores of heads: right or not, among the top five or not, and the loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import recall_score

TOP_K = 5


@dataclass(frozen=True)
class Scores:
    """Scores of one or more heads (seeds) on the same clips; C is the number of classes.

    Attributes:
        predicted: (seeds, clips) int64, index of the highest logit (the first one of equals).
        top1: (seeds, clips) bool.
        topk: (seeds, clips) bool, target among the k highest logits.
        k: 5, or C when there are fewer classes (then every clip counts).
        loss: (seeds, clips) float64, cross entropy in nats.
        class_accuracy: (seeds,) float64, mean over the classes that occur of the share found (macro recall).
    """

    predicted: np.ndarray
    top1: np.ndarray
    topk: np.ndarray
    k: int
    loss: np.ndarray
    class_accuracy: np.ndarray

    def __repr__(self) -> str:
        return f"Scores(top1={self.top1.mean():.4f}, loss={self.loss.mean():.4f}, seeds x clips {self.top1.shape})"


def score(logits: np.ndarray, targets: np.ndarray) -> Scores:
    """Score logits against targets.

    Args:
        logits: (seeds, clips, C) finite floats.
        targets: (clips,) int in [0, C).

    Raises:
        ValueError: shapes that don't fit, no clips, targets outside of the classes, or logits that aren't finite.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    if logits.ndim != 3 or targets.shape != logits.shape[1:2] or not targets.size:
        raise ValueError(f"logits {logits.shape} and targets {targets.shape} don't fit (seeds, clips, C) and (clips,)")
    if not np.isfinite(logits).all() or targets.min() < 0 or targets.max() >= logits.shape[2]:
        raise ValueError("logits must be finite and targets must be class indices")
    own = np.take_along_axis(logits, targets[None, :, None], axis=2)  # (seeds, clips, 1)
    earlier = np.arange(logits.shape[2]) < targets[:, None]  # (clips, C): equals with a lower index rank higher
    rank = ((logits > own) | ((logits == own) & earlier)).sum(axis=2)  # (seeds, clips), 0 = highest
    k = min(TOP_K, logits.shape[2])
    log_probabilities = log_softmax(logits.astype(np.float64), axis=2)
    predicted = logits.argmax(axis=2)
    occurring = np.unique(targets)
    return Scores(
        predicted=predicted,
        top1=rank == 0,
        topk=rank < k,
        k=k,
        loss=-np.take_along_axis(log_probabilities, targets[None, :, None], axis=2)[..., 0],
        class_accuracy=np.array(
            [recall_score(targets, row, labels=occurring, average="macro", zero_division=0) for row in predicted]
        ),
    )

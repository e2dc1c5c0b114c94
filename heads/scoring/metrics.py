"""Scores of heads: scores per clip for training runs (`score`), and full evaluations (`evaluate_probabilities`).

An evaluation has the metrics of VGGSound papers, with the same definitions (hche11/VGGSound utils.py and eval.py, and
the evaluation code of AST and CAV-MAE): mAP and AUC are unweighted means over classes of scikit-learn's
`average_precision_score` and `roc_auc_score` on one-hot labels and softmax scores; d' is computed from the mean AUC.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax
from scipy.stats import norm
from sklearn.metrics import average_precision_score, confusion_matrix, recall_score, roc_auc_score

from .statistics import (
    Estimate,
    Interval,
    accuracy_interval,
    bootstrap_counts,
    mean_interval,
    resampled_interval,
    t_interval,
)
from .statistics import estimate as mean_of

TOP_K = 5
ECE_BINS = 15  # Guo et al. 2017, section 5
RESAMPLES = 1000  # for metrics that aren't means over clips; 15,446 clips x 309 classes: 5 s per head on one core
BLOCK_CELLS = 4_000_000  # comparisons of scores in memory at a time
SUM_TOLERANCE = 1e-3  # error of the sum of a clip's probabilities: accepts float16, rejects logits
SMALLEST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Scores:
    """Scores of one or more heads (seeds) on the same clips; C is the number of classes.

    Attributes:
        predicted: (seeds, clips) int64, index of the highest logit (the first among equals).
        top1: (seeds, clips) bool, whether the target has the highest logit.
        topk: (seeds, clips) bool, whether the target is among the k highest logits.
        k: 5, or C if there are fewer classes (then topk is always True).
        loss: (seeds, clips) float64, cross entropy in nats.
        class_accuracy: (seeds,) float64, mean recall over the classes that occur (macro recall).
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
    _check("logits", logits, targets)
    log_probabilities = log_softmax(logits.astype(np.float64), axis=2)
    return _scores(logits, targets, loss=-_of_targets(log_probabilities, targets))


@dataclass(frozen=True)
class ClassRow:
    """One class of an evaluation's table; means are over seeds.

    Attributes:
        label: the class.
        n: number of its clips; without clips, only `precision` can have a value.
        recall, interval: mean share of its clips that are predicted correctly, and the interval of that share.
        precision: share of correct predictions among all predictions of this class, over all seeds; None if there are
            no such predictions.
        average_precision, auc: None if every clip, or no clip, is of this class.
        confused_with: the class that its clips are most often misclassified as (the first among equals), or None.
        confused: mean share of its clips that are misclassified as that class, or None.
    """

    label: str
    n: int
    recall: float | None
    interval: Interval | None
    precision: float | None
    average_precision: float | None
    auc: float | None
    confused_with: str | None
    confused: float | None


@dataclass(frozen=True)
class Evaluation:
    """Metrics of an experiment's heads (seeds) on the clips of one split: per head, and the mean over heads.

    Attributes:
        classes: C names.
        clips, source_videos, seeds: numbers of clips, source videos and heads.
        k: 5, or C if there are fewer classes.
        top1, topk: accuracies in [0, 1].
        mean_class_accuracy: mean recall over the classes that occur.
        mean_average_precision: mAP in [0, 1]: mean average precision over the classes that occur.
        auc: mean area under the ROC curve over the classes that occur, in [0, 1].
        d_prime: sqrt(2) times the inverse normal distribution function of that mean AUC; infinite for an AUC of 1.
        log_loss: mean of -ln(probability of the target), in nats.
        ece: expected calibration error in [0, 1] (Guo et al. 2017, eq. 3): mean `|confidence - accuracy|` over 15 bins
            of equal width, (m - 1) / 15 < confidence <= m / 15, weighted by their numbers of clips; a prediction's
            confidence is its probability.
        absent_classes: classes without a clip in the split; they have no recall, AP or AUC and don't enter the means.
        table: one row per class, in the order of `classes`.
        confusion: (C, C) int64, clips of the row's class that are predicted as the column's, summed over seeds.

    mAP, AUC and d' are None if fewer than two classes occur, because ranking metrics need clips of other classes.

    >>> from alphafuse import evaluate
    >>> figures = evaluate("demo/runs/sqrt-ast").evaluation
    >>> list(figures.estimates)
    ['top1', 'top5', 'mean_class_accuracy', 'mean_average_precision', 'auc', 'd_prime', 'log_loss', 'ece']
    >>> figures.confusion.shape, int(figures.confusion.sum()) == figures.clips * figures.seeds
    ((16, 16), True)
    """

    classes: tuple[str, ...]
    clips: int
    source_videos: int
    seeds: int
    k: int
    top1: Estimate
    topk: Estimate
    mean_class_accuracy: Estimate
    mean_average_precision: Estimate | None
    auc: Estimate | None
    d_prime: Estimate | None
    log_loss: Estimate
    ece: Estimate
    absent_classes: tuple[str, ...]
    table: tuple[ClassRow, ...]
    confusion: np.ndarray

    @property
    def estimates(self) -> dict[str, Estimate | None]:
        """The metrics by name, in the order of a report: "top1", "top5", ..., "ece"."""
        return {
            "top1": self.top1,
            f"top{self.k}": self.topk,
            "mean_class_accuracy": self.mean_class_accuracy,
            "mean_average_precision": self.mean_average_precision,
            "auc": self.auc,
            "d_prime": self.d_prime,
            "log_loss": self.log_loss,
            "ece": self.ece,
        }

    @property
    def over_seeds(self) -> dict[str, Interval | None]:
        """Each metric's t interval over seeds, on the same clips; None for one seed, or for an infinite d'."""
        return {name: _over_seeds(estimate) if estimate else None for name, estimate in self.estimates.items()}

    def __repr__(self) -> str:
        figures = ", ".join(f"{name}={estimate!r}" for name, estimate in self.estimates.items())
        classes = f"{len(self.classes)} classes, {len(self.absent_classes)} of them absent"
        return f"Evaluation({self.seeds} seeds x {self.clips} clips, {classes}: {figures})"

    def to_json(self) -> dict[str, Any]:
        """Everything but the confusion matrix, json-able; None for values that are undefined or not finite."""
        content = {
            "n": self.clips,
            "source_videos": self.source_videos,
            "seeds": self.seeds,
            "classes": len(self.classes),
            "absent_classes": list(self.absent_classes),
            **{
                name: asdict(estimate) | {"over_seeds": interval and asdict(interval)} if estimate else None
                for (name, estimate), interval in zip(self.estimates.items(), self.over_seeds.values(), strict=True)
            },
            "table": [asdict(row) for row in self.table],
        }
        return _none_if_not_finite(content)


def evaluate_probabilities(
    probabilities: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str],
    *,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Evaluate heads' softmax scores.

    Intervals: Wilson for accuracies and t for the log loss, over seeds and source videos; the bootstrap over seeds and
    source videos for what isn't a mean over clips (docs/statistics.md); each names its method. mAP and ECE are biased
    upwards on few clips, so their intervals are centred: they are intervals for the mean over splits of this size. In
    150 simulated splits of 1,500 clips and 30 classes they covered that mean in 95% (mAP) and 96% (ECE) of the splits;
    plain percentile intervals covered it in 85% and 80%. The ECE of a well calibrated head on few clips is mostly that
    bias: compare it only on the same clips.

    Args:
        probabilities: (seeds, clips, C) in [0, 1]; each clip's sum is 1. Compute the softmax in float64: a probability
            that float32 rounds to 0 gets a loss of 708 nats.
        targets: (clips,) int in [0, C).
        classes: C names.
        groups: (clips,) source videos.
        resamples: bootstrap resamples for the metrics that aren't means over clips.

    Raises:
        ValueError: shapes that don't fit, no clips, targets outside of the classes, or rows that aren't probabilities.

    >>> import numpy as np
    >>> from alphafuse import evaluate_probabilities
    >>> probabilities = np.array([[[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]]])  # one head, four clips
    >>> found = evaluate_probabilities(probabilities, np.array([0, 1, 1, 1]), ("bark", "meow"), ("a", "b", "c", "d"))
    >>> found.top1
    0.7500 [0.3006, 0.9544]
    >>> found.confusion
    array([[1, 0],
           [1, 2]])
    """
    probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    _check("probabilities", probabilities, targets)
    if len(classes) != probabilities.shape[2] or len(groups) != len(targets):
        raise ValueError(
            f"{len(classes)} classes and {len(groups)} groups don't fit probabilities {probabilities.shape}"
        )
    if probabilities.min() < 0 or np.abs(probabilities.sum(axis=2) - 1).max() > SUM_TOLERANCE:
        raise ValueError("probabilities must be softmax scores: not negative, and each clip's sum 1")
    loss = -np.log(np.maximum(_of_targets(probabilities, targets), SMALLEST))
    scores = _scores(probabilities, targets, loss=loss)
    confidence = probabilities.max(axis=2)  # (seeds, clips)
    average_precisions, aucs = _rankings(probabilities, targets)  # (seeds, C), NaN where not defined

    seed_counts, clip_counts = bootstrap_counts(len(probabilities), groups, resamples=resamples)
    drawn = _resample_classes(probabilities, scores.top1, targets, clip_counts)

    def estimate(per_seed: np.ndarray, resampled: np.ndarray, *, centred: bool = False) -> Estimate:
        interval = resampled_interval(per_seed, resampled, seed_counts, centred=centred)
        return Estimate(float(np.mean(per_seed)), interval, tuple(float(value) for value in per_seed))

    occurring = np.unique(targets)
    ranked = len(occurring) > 1
    map_per_seed, auc_per_seed = (values[:, occurring].mean(axis=1) for values in (average_precisions, aucs))
    confusion = confusion_matrix(
        np.tile(targets, len(probabilities)), scores.predicted.ravel(), labels=np.arange(len(classes))
    )
    return Evaluation(
        classes=tuple(classes),
        clips=len(targets),
        source_videos=len(set(groups)),
        seeds=len(probabilities),
        k=scores.k,
        top1=mean_of(scores.top1, accuracy_interval(scores.top1, groups)),
        topk=mean_of(scores.topk, accuracy_interval(scores.topk, groups)),
        mean_class_accuracy=estimate(scores.class_accuracy, drawn.class_accuracy),
        mean_average_precision=estimate(map_per_seed, drawn.average_precision, centred=True) if ranked else None,
        auc=estimate(auc_per_seed, drawn.auc) if ranked else None,
        d_prime=estimate(d_prime(auc_per_seed), d_prime(drawn.auc)) if ranked else None,
        log_loss=mean_of(loss, mean_interval(loss, groups)),
        ece=estimate(
            _calibration_errors(confidence, scores.top1, np.ones((1, len(targets)), np.float32))[0],
            _calibration_errors(confidence, scores.top1, clip_counts),
            centred=True,
        ),
        absent_classes=tuple(classes[index] for index in np.setdiff1d(np.arange(len(classes)), occurring)),
        table=tuple(_class_rows(scores.top1, targets, classes, groups, confusion, average_precisions, aucs)),
        confusion=confusion,
    )


def d_prime(auc: np.ndarray | float) -> np.ndarray:
    """Return sqrt(2) times the inverse normal distribution function of an AUC; +-infinity for 1 and 0.

    >>> round(float(d_prime(0.973)), 3)
    2.725
    """
    return math.sqrt(2) * norm.ppf(auc)


def _check(name: str, values: np.ndarray, targets: np.ndarray) -> None:
    if values.ndim != 3 or targets.shape != values.shape[1:2] or not targets.size:
        raise ValueError(f"{name} {values.shape} and targets {targets.shape} don't fit (seeds, clips, C) and (clips,)")
    if not np.isfinite(values).all() or targets.min() < 0 or targets.max() >= values.shape[2]:
        raise ValueError(f"{name} must be finite and targets must be class indices")


def _of_targets(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return each clip's value of its own class, (seeds, clips)."""
    return np.take_along_axis(values, targets[None, :, None], axis=2)[..., 0]


def _scores(values: np.ndarray, targets: np.ndarray, *, loss: np.ndarray) -> Scores:
    own = _of_targets(values, targets)[..., None]  # (seeds, clips, 1)
    earlier = np.arange(values.shape[2]) < targets[:, None]  # (clips, C): equals with a lower index rank higher
    rank = ((values > own) | ((values == own) & earlier)).sum(axis=2)  # (seeds, clips), 0 = highest
    k = min(TOP_K, values.shape[2])
    predicted = values.argmax(axis=2)
    occurring = np.unique(targets)
    return Scores(
        predicted=predicted,
        top1=rank == 0,
        topk=rank < k,
        k=k,
        loss=loss,
        class_accuracy=np.array(
            [recall_score(targets, row, labels=occurring, average="macro", zero_division=0) for row in predicted]
        ),
    )


def _over_seeds(estimate: Estimate) -> Interval | None:
    defined = len(estimate.per_seed) > 1 and np.isfinite(estimate.per_seed).all()
    return t_interval(estimate.per_seed) if defined else None


def _none_if_not_finite(content: Any) -> Any:
    """Return the content with None in place of infinities and NaN, which json lacks."""
    if isinstance(content, dict):
        return {name: _none_if_not_finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_none_if_not_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _rankings(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return average precision and AUC, (seeds, C) each; NaN for classes that all clips, or no clips, belong to."""
    seeds, clips, n_classes = probabilities.shape
    average_precisions = np.full((seeds, n_classes), np.nan)
    aucs = average_precisions.copy()
    for index in np.unique(targets):
        of_class = targets == index
        if of_class.sum() == clips:
            continue
        for seed in range(seeds):
            column = probabilities[seed, :, index]
            average_precisions[seed, index] = average_precision_score(of_class, column)
            aucs[seed, index] = roc_auc_score(of_class, column)
    return average_precisions, aucs


@dataclass(frozen=True)
class _ClassMeans:
    """Means over classes in each resample, (resamples, seeds) float64; NaN if the metric is undefined for all."""

    class_accuracy: np.ndarray
    average_precision: np.ndarray
    auc: np.ndarray


def _resample_classes(
    probabilities: np.ndarray, correct: np.ndarray, targets: np.ndarray, clip_counts: np.ndarray
) -> _ClassMeans:
    """Compute mean class accuracy, mAP and AUC of each resample; classes that aren't drawn are left out.

    A clip's rank in its class is the sum of the counts of the clips whose score is at least its own: one matrix product
    for all resamples and seeds, whereas sorting would be repeated for each.

    Args:
        probabilities: (seeds, clips, C).
        correct: (seeds, clips) bool.
        targets: (clips,).
        clip_counts: (resamples, clips) float32, how often each clip is drawn; exact in float32 up to 2^24 clips.
    """
    seeds, clips, _ = probabilities.shape
    shape = (len(clip_counts), seeds)
    accuracy, precision, area = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    found, ranked = np.zeros((len(clip_counts), 1)), np.zeros((len(clip_counts), 1))  # numbers of classes drawn
    total = clip_counts.sum(axis=1, dtype=np.float64)[:, None]
    for index in np.unique(targets):
        members = np.flatnonzero(targets == index)
        own_counts = clip_counts[:, members]  # (resamples, m)
        positives = own_counts.sum(axis=1, dtype=np.float64)[:, None]  # (resamples, 1)
        pairs = positives * (total - positives)
        accuracy += own_counts @ correct[:, members].T.astype(np.float32) / np.maximum(positives, 1)
        found += positives > 0
        ranked += pairs > 0
        area += pairs > 0  # the share of wrong pairs is subtracted below
        columns = np.ascontiguousarray(probabilities[:, :, index])  # (seeds, clips)
        for block in _blocks(members, seeds * clips):
            own = columns[:, block, None]  # (seeds, b, 1)
            above = columns[:, None, :] >= own  # (seeds, b, clips), including the clip itself
            tied = columns[:, None, :] == own
            tied[:, :, members] = False
            at_least = _weighted(clip_counts, above)  # (resamples, seeds, b)
            true = _weighted(own_counts, above[:, :, members])
            wrong = at_least - true - (_weighted(clip_counts, tied) / 2 if tied.any() else 0)  # a tie counts half
            weights = clip_counts[:, None, block]
            precisions = (weights * true / np.maximum(at_least, 1)).sum(axis=2)  # (resamples, seeds)
            precision += np.where(pairs > 0, precisions / np.maximum(positives, 1), 0)
            area -= (weights * wrong).sum(axis=2) / np.maximum(pairs, 1)
    return _ClassMeans(accuracy / _or_nan(found), precision / _or_nan(ranked), area / _or_nan(ranked))


def _weighted(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Count the chosen clips in each resample: counts (resamples, clips), chosen (seeds, b, clips) bool."""
    seeds, b, clips = chosen.shape
    return (counts @ chosen.reshape(-1, clips).T.astype(np.float32)).reshape(len(counts), seeds, b)


def _blocks(members: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Split members into blocks, so that rows of `width` numbers hold at most `BLOCK_CELLS` numbers per block."""
    rows = max(1, BLOCK_CELLS // width)
    for start in range(0, len(members), rows):
        yield members[start : start + rows]


def _or_nan(counts: np.ndarray) -> np.ndarray:
    return np.where(counts > 0, counts, np.nan)


def _calibration_errors(confidence: np.ndarray, correct: np.ndarray, clip_counts: np.ndarray) -> np.ndarray:
    """Compute the ECE of each resample, (resamples, seeds). confidence, correct: (seeds, clips).

    A bin's clips / n * |accuracy - confidence| equals |sum of (confidence - correct)| / n, so the numbers of clips per
    bin aren't needed.
    """
    total = clip_counts.sum(axis=1, dtype=np.float64)
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)  # (seeds, clips)
    errors = []
    for row, gap in zip(bins, confidence - correct, strict=True):
        in_bin = np.where(row[:, None] == np.arange(ECE_BINS), gap[:, None], 0)  # (clips, bins)
        errors.append(np.abs(clip_counts @ in_bin.astype(np.float32)).sum(axis=1) / total)
    return np.stack(errors, axis=1)


def _class_rows(
    correct: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str],
    confusion: np.ndarray,
    average_precisions: np.ndarray,
    aucs: np.ndarray,
) -> Iterator[ClassRow]:
    """Yield the table's rows. correct: (seeds, clips); confusion: (C, C); average_precisions, aucs: (seeds, C)."""
    group_of = np.asarray(groups, dtype=object)
    for index, label in enumerate(classes):
        members = np.flatnonzero(targets == index)
        predictions, mistakes = confusion[:, index].sum(), confusion[index].copy()
        mistakes[index] = 0
        most = int(mistakes.argmax())
        defined = np.isfinite(aucs[:, index]).all()
        yield ClassRow(
            label=label,
            n=len(members),
            recall=float(correct[:, members].mean()) if len(members) else None,
            interval=accuracy_interval(correct[:, members], group_of[members].tolist()) if len(members) else None,
            precision=float(confusion[index, index] / predictions) if predictions else None,
            average_precision=float(average_precisions[:, index].mean()) if defined else None,
            auc=float(aucs[:, index].mean()) if defined else None,
            confused_with=classes[most] if mistakes[most] else None,
            confused=float(mistakes[most] / correct[:, members].size) if mistakes[most] else None,
        )

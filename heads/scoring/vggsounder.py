"""Multi-label scores on VGGSounder's labels of VGGSound's test clips, with the optional package `vggsounder`.

VGGSounder (Zverev, Wiedemer et al. 2025) labels each test clip with all its classes, each marked as audible (A),
visible (V) or both (AV). Its clip ids have the format of this package, and its 309 class names are VGGSound's official
ones, in their order (1.0: 15,069 clips, 37,395 labels). A head may have fewer classes, such as the 91 of the paper's
split: labels that it can't predict count as misses, and their number is reported. A class name that the package lacks
is an error.

The definitions are those of the package's own `vggsounder.benchmark`, computed with scikit-learn.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.metrics import f1_score, jaccard_score

from alphafuse.errors import ExperimentError

from .statistics import Estimate, accuracy_interval, estimate

HIT_K = 5
# name of a label set in the package -> flags of the labels in it
LABEL_SETS = {
    "all": ("A", "V", "AV"),
    "a": ("A", "AV"),
    "v": ("V", "AV"),
    "av": ("AV",),
    "a only": ("A",),
    "v only": ("V",),
}
CLIP_SETS = ("all", "no background music")


@dataclass(frozen=True)
class ClipLabels:
    """VGGSounder's labels of a clip: class -> "A", "V" or "AV", and whether the clip has background music."""

    modalities: Mapping[str, str]
    background_music: bool


@dataclass(frozen=True)
class LabelTable:
    """VGGSounder's labels: clip_id -> labels; all class names, in order; the package's version."""

    clips: Mapping[str, ClipLabels]
    classes: tuple[str, ...]
    version: str

    def __repr__(self) -> str:
        return f"LabelTable({self.version}: {len(self.clips)} clips, {len(self.classes)} classes)"


@dataclass(frozen=True)
class LabelSetScores:
    """Scores on one set of labels of one set of clips; a clip without such a label is left out.

    Attributes:
        clips: "all", or "no background music": without the clips that VGGSounder marks as having background music.
        labels: "all", "a" (audible: A and AV), "v" (visible: V and AV), "av", "a only", "v only".
        n, label_count: number of clips, and of their labels.
        unreachable: number of the labels whose class the head lacks.
        hit1, hitk: share of clips with a label among the 1, or k, highest scores.
        subset_accuracy: share of clips whose only label is the predicted class.
        micro_f1, jaccard: scores of the predicted class, over all clips' labels together; means over seeds.
        macro_f1: mean F1 over all of VGGSounder's 309 classes; classes that occur neither as a label nor as a
            prediction count as 0; mean over seeds.
        best_subset_accuracy, best_micro_f1: scores of a head that is always right, since it predicts only one class
            per clip.
    """

    clips: str
    labels: str
    n: int
    label_count: int
    unreachable: int
    hit1: Estimate
    hitk: Estimate
    subset_accuracy: Estimate
    micro_f1: float
    macro_f1: float
    jaccard: float
    best_subset_accuracy: float
    best_micro_f1: float


@dataclass(frozen=True)
class VGGSounderScores:
    """Scores of one or more heads (seeds) on VGGSounder's labels.

    Attributes:
        version: version of the package, whose labels differ between versions.
        k: k of hitk.
        n, missing: number of clips that VGGSounder lists, and of the others.
        background_music: number of the n clips that VGGSounder marks as having background music.
        rows: scores for both sets of clips and each set of labels; sets without a clip are left out.
    """

    version: str
    k: int
    n: int
    missing: int
    background_music: int
    rows: tuple[LabelSetScores, ...]

    def row(self, clips: str = "all", labels: str = "all") -> LabelSetScores:
        """Return the scores on one set; `KeyError` if it has no clip."""
        for row in self.rows:
            if (row.clips, row.labels) == (clips, labels):
                return row
        raise KeyError((clips, labels))

    def __repr__(self) -> str:
        row = self.rows[0]
        figures = f"hit@1={row.hit1!r}, hit@{self.k}={row.hitk!r}, micro F1={row.micro_f1:.4f}"
        return f"VGGSounderScores({self.version}, n={self.n}, missing={self.missing}: {figures}, {len(self.rows)} rows)"

    def to_json(self) -> dict[str, Any]:
        """Every figure, json-able."""
        return asdict(self)


@dataclass(frozen=True)
class ModalityConfusion:
    """How often a single modality's head predicts a label of the clip while the fusion head does not.

    Attributes:
        version: version of the package.
        n, missing: number of clips that VGGSounder lists, and of the others.
        mu: modality -> share of the n clips; with two modalities also "both": both hit and the fusion misses.
    """

    version: str
    n: int
    missing: int
    mu: Mapping[str, Estimate]

    def __repr__(self) -> str:
        shares = ", ".join(f"{name}={share!r}" for name, share in self.mu.items())
        return f"ModalityConfusion({self.version}, n={self.n}, missing={self.missing}: {shares})"

    def to_json(self) -> dict[str, Any]:
        """Every figure, json-able."""
        return asdict(self)


def load_labels() -> LabelTable:
    """Load the labels of the package `vggsounder`; `ExperimentError` if it isn't installed."""
    try:
        package = importlib.import_module("vggsounder")
    except ImportError:
        raise ExperimentError("vggsounder is not installed: run `pip install 'alphafuse[vggsounder]'`") from None
    data = package.VGGSounder(background_music=None)  # the package's default excludes clips with background music
    clips = {
        clip_id: ClipLabels(
            dict(zip(clip.labels, clip.modalities, strict=True)), bool(clip.meta_labels["background_music"])
        )
        for clip_id, clip in data.items()
    }
    return LabelTable(clips, tuple(data.get_all_labels()), version("vggsounder"))


def vggsounder_scores(
    clip_ids: Sequence[str],
    probabilities: np.ndarray,
    classes: Sequence[str],
    *,
    k: int = HIT_K,
    table: LabelTable | None = None,
) -> VGGSounderScores:
    """Score heads on VGGSounder's labels.

    Intervals: Wilson over seeds and source videos (docs/statistics.md).

    Args:
        clip_ids: `{youtube_id}_{start:06d}`, without repetitions.
        probabilities: (clips, C) of one head or (seeds, clips, C); among equal scores the first class is used.
        classes: C of VGGSound's official class names.
        k: k of hitk, in [1, C].
        table: labels; the installed package's by default.

    Raises:
        ExperimentError: the package isn't installed, lacks a class name, or lists none of the clips.
        ValueError: shapes that don't fit, scores that aren't finite, repeated clips, or k outside of [1, C].
    """
    table = table or load_labels()
    heads = _as_heads(clip_ids, probabilities, classes)
    if not 1 <= k <= len(classes):
        raise ValueError(f"k must be in [1, {len(classes)}], not {k}")
    listed = _listed(clip_ids, classes, table)
    ranking = np.argsort(-heads[:, listed], axis=2, kind="stable")[:, :, :k]  # (seeds, n, k)
    chosen = _positions(classes, table)[ranking]  # as columns of VGGSounder's classes
    ids = [clip_ids[index] for index in listed]
    music = np.array([table.clips[clip_id].background_music for clip_id in ids])
    known = np.isin(table.classes, classes)
    truths = {name: _truth(ids, table, flags) for name, flags in LABEL_SETS.items()}
    rows = []
    for clip_set, in_set in zip(CLIP_SETS, (np.ones(len(ids), bool), ~music), strict=True):
        for name, truth in truths.items():
            labelled = np.flatnonzero(in_set & truth.any(axis=1))
            if len(labelled):
                groups = [_source_video(ids[index]) for index in labelled]
                rows.append(_label_set(clip_set, name, truth[labelled], chosen[:, labelled], groups, known))
    return VGGSounderScores(
        version=table.version,
        k=k,
        n=len(ids),
        missing=len(clip_ids) - len(ids),
        background_music=int(music.sum()),
        rows=tuple(rows),
    )


def modality_confusion(
    clip_ids: Sequence[str],
    fused: np.ndarray,
    single: Mapping[str, np.ndarray],
    classes: Sequence[str],
    *,
    table: LabelTable | None = None,
) -> ModalityConfusion:
    """VGGSounder's mu: share of clips where a single modality's prediction is a label and the fusion's is not.

    Uses all labels (A, V and AV) of all listed clips, like the package. mu measures the clips that fusion loses, not
    those that it gains.

    Args:
        clip_ids: `{youtube_id}_{start:06d}`, without repetitions.
        fused: (clips, C) or (seeds, clips, C) scores of the heads that read both modalities.
        single: modality -> scores of the heads that read it alone, of the same shape; one or two modalities, sight and
            sound. Of several streams of one modality, take a head that reads them all.
        classes: C of VGGSound's official class names.
        table: labels; the installed package's by default.

    Raises:
        ExperimentError: as `vggsounder_scores`.
        ValueError: shapes that don't fit or differ, scores that aren't finite, repeated clips, or a number of
            modalities other than 1 or 2.
    """
    table = table or load_labels()
    if len(single) not in (1, 2):
        raise ValueError(
            f"modality confusion needs the heads of 1 or 2 modalities, not of {len(single)}: sight and sound; of "
            "several streams of one modality, pass one head that reads them all"
        )
    heads = {name: _as_heads(clip_ids, scores, classes) for name, scores in single.items()}
    both = _as_heads(clip_ids, fused, classes)
    if any(scores.shape != both.shape for scores in heads.values()):
        raise ValueError(f"scores differ in shape: {[scores.shape for scores in (both, *heads.values())]}")
    listed = _listed(clip_ids, classes, table)
    ids = [clip_ids[index] for index in listed]
    truth = _truth(ids, table, LABEL_SETS["all"])
    columns = _positions(classes, table)

    def hits(scores: np.ndarray) -> np.ndarray:
        return truth[np.arange(len(ids)), columns[scores[:, listed].argmax(axis=2)]]  # (seeds, n)

    missed = ~hits(both)
    confused = {name: hits(scores) & missed for name, scores in heads.items()}
    if len(confused) == 2:
        first, second = confused.values()
        confused["both"] = first & second
    groups = [_source_video(clip_id) for clip_id in ids]
    return ModalityConfusion(
        version=table.version,
        n=len(ids),
        missing=len(clip_ids) - len(ids),
        mu={name: _estimate(values, groups) for name, values in confused.items()},
    )


def _label_set(
    clips: str, labels: str, truth: np.ndarray, chosen: np.ndarray, groups: Sequence[str], known: np.ndarray
) -> LabelSetScores:
    """Score clips that have a label. truth: (n, classes) bool; chosen: (seeds, n, k) columns; known: (classes,)."""
    n, label_count = len(truth), int(truth.sum())
    inside = truth[np.arange(n)[:, None], chosen]  # (seeds, n, k)
    alone = truth.sum(axis=1) == 1
    labelled = csr_matrix(truth)  # several times faster in scikit-learn than (n, classes) arrays
    predictions = [csr_matrix(_one_hot(columns, truth.shape[1])) for columns in chosen[:, :, 0]]
    return LabelSetScores(
        clips=clips,
        labels=labels,
        n=n,
        label_count=label_count,
        unreachable=int(truth[:, ~known].sum()),
        hit1=_estimate(inside[:, :, 0], groups),
        hitk=_estimate(inside.any(axis=2), groups),
        subset_accuracy=_estimate(inside[:, :, 0] & alone, groups),
        micro_f1=float(np.mean([f1_score(labelled, row, average="micro") for row in predictions])),
        macro_f1=float(np.mean([f1_score(labelled, row, average="macro", zero_division=0) for row in predictions])),
        jaccard=float(np.mean([jaccard_score(labelled, row, average="micro") for row in predictions])),
        best_subset_accuracy=float(alone.mean()),
        best_micro_f1=2 * n / (n + label_count),
    )


def _estimate(values: np.ndarray, groups: Sequence[str]) -> Estimate:
    """Return the mean of (seeds, n) bool with its interval."""
    return estimate(values, accuracy_interval(values, groups))


def _as_heads(clip_ids: Sequence[str], scores: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return scores as (seeds, clips, C); ValueError unless shapes fit, scores are finite and clips are unique."""
    heads = np.asarray(scores)
    heads = heads[None] if heads.ndim == 2 else heads
    if heads.ndim != 3 or heads.shape[1:] != (len(clip_ids), len(classes)) or not heads.size:
        raise ValueError(f"scores {np.shape(scores)} don't fit {len(clip_ids)} clips and {len(classes)} classes")
    if not np.isfinite(heads).all():
        raise ValueError("scores must be finite")
    if len(set(clip_ids)) < len(clip_ids):
        raise ValueError("clip_ids has repeated clips")
    return heads


def _listed(clip_ids: Sequence[str], classes: Sequence[str], table: LabelTable) -> np.ndarray:
    """Return the positions of the clips in the table; `ExperimentError` if there are none, or a class is unknown."""
    names = set(table.classes)
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ExperimentError(
            f"{len(unknown)} of the {len(classes)} classes, such as '{unknown[0]}', are not VGGSound's: VGGSounder "
            "labels VGGSound's test clips only, by its official class names"
        )
    listed = np.flatnonzero([clip_id in table.clips for clip_id in clip_ids])
    if not len(listed):
        raise ExperimentError(
            f"none of the {len(clip_ids)} clips, such as '{clip_ids[0]}', is among VGGSounder's {len(table.clips)}: "
            "evaluate VGGSound's test clips"
        )
    return listed


def _positions(classes: Sequence[str], table: LabelTable) -> np.ndarray:
    """Return the position of each of the head's classes among the table's, (C,)."""
    position = {name: index for index, name in enumerate(table.classes)}
    return np.array([position[name] for name in classes])


def _truth(ids: Sequence[str], table: LabelTable, flags: Sequence[str]) -> np.ndarray:
    """Return the labels whose flag is one of `flags`, (n, all classes) bool."""
    position = {name: index for index, name in enumerate(table.classes)}
    truth = np.zeros((len(ids), len(table.classes)), bool)
    for row, clip_id in enumerate(ids):
        modalities = table.clips[clip_id].modalities
        truth[row, [position[label] for label, flag in modalities.items() if flag in flags]] = True
    return truth


def _one_hot(columns: np.ndarray, width: int) -> np.ndarray:
    return columns[:, None] == np.arange(width)


def _source_video(clip_id: str) -> str:
    return clip_id.rsplit("_", 1)[0]

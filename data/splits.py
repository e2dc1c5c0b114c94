"""Choosing clips for a subset and for a split: by source video, balanced over labels, the same for the same seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .manifest import Clip


@dataclass(frozen=True)
class Ceiling:
    """How many clips of an evaluation split any head can get right at all.

    Attributes:
        reachable: clips whose label occurs in training.
        clips: all clips of the split.
    """

    reachable: int
    clips: int

    @property
    def accuracy(self) -> float:
        """Highest top-1 accuracy that a head can reach, in [0, 1]."""
        return self.reachable / self.clips if self.clips else 0.0


def reachable_ceiling(train_labels: Iterable[str], labels: Sequence[str]) -> Ceiling:
    """Count the labels that occur in training.

    >>> reachable_ceiling(["dog", "cat"], ["cat", "cow", "cat", "owl"])
    Ceiling(reachable=2, clips=4)
    """
    trained = set(train_labels)
    return Ceiling(sum(label in trained for label in labels), len(labels))


def take_subset(clips: Sequence[Clip], clip_count: int, *, seed: int) -> list[Clip]:
    """At most `clip_count` clips, whole source videos first, in proportion to the labels; manifest order."""
    chosen: set[str] = set()
    for group in _stratified_groups(clips, seed=seed):
        for clip in group:
            if len(chosen) < clip_count:
                chosen.add(clip.clip_id)
    return [clip for clip in clips if clip.clip_id in chosen]


def carve_split(clips: Sequence[Clip], fraction: float, *, into: str, seed: int) -> list[Clip]:
    """Move about `fraction` of the training clips into another split, by whole source videos, balanced over labels.

    Source videos that are a label's last ones in training are taken only when nothing else is left, so that labels
    of the carved split occur in training wherever the data allow it. At least one source video stays.

    Args:
        clips: any clips; those with another split than "train" come back as they are.
        fraction: share of the training clips to move, in [0, 1).
        into: name of the split to move them to.
        seed: decides which source videos are taken.
    """
    train = [clip for clip in clips if clip.split == "train"]
    wanted = round(len(train) * fraction)
    if fraction > 0 and len(train) > 1:
        wanted = max(wanted, 1)
    left = Counter(clip.label for clip in train)
    groups = _stratified_groups(train, seed=seed)
    moved: set[str] = set()
    for keep_labels in (True, False):
        for group in groups:
            ids = {clip.clip_id for clip in group}
            labels = Counter(clip.label for clip in group)
            if ids <= moved or len(moved) + len(ids) > max(wanted, 1) or not wanted:
                continue
            if len(moved) + len(ids) == len(train) or (keep_labels and any(left[a] <= n for a, n in labels.items())):
                continue
            moved |= ids
            left -= labels
    return [replace(clip, split=into) if clip.clip_id in moved else clip for clip in clips]


def _stratified_groups(clips: Sequence[Clip], *, seed: int) -> list[list[Clip]]:
    """Source videos in an order whose every beginning holds the labels in about their overall proportions.

    Within a label the videos are shuffled; the k-th of n gets the key (k + u) / n with u uniform in [0, 1), and all
    are sorted by it (systematic sampling).
    """
    by_group: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_group[clip.group].append(clip)
    by_label: dict[str, list[list[Clip]]] = defaultdict(list)
    for name in sorted(by_group):
        by_label[by_group[name][0].label].append(by_group[name])
    rng = np.random.default_rng(seed)
    keyed = []
    for label in sorted(by_label):
        groups = by_label[label]
        for rank, index in enumerate(rng.permutation(len(groups))):
            keyed.append(((rank + rng.random()) / len(groups), label, groups[index]))
    return [group for _, _, group in sorted(keyed, key=lambda entry: entry[:2])]

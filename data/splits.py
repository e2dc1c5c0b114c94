"""Choose clips for a subset and for a split: by source video, balanced over labels, decided by a seed."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alphafuse.errors import DatasetError

from .manifest import Clip

VAL_FRACTION = 0.1  # of the training clips; used if a source has no official validation split


@dataclass(frozen=True)
class Ceiling:
    """The clips of an evaluation split that a head can get right: those whose label occurs in training.

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
    """Choose at most `clip_count` clips, whole source videos first, in proportion to labels; manifest order."""
    chosen: set[str] = set()
    for group in _stratified_groups(clips, seed=seed):
        for clip in group:
            if len(chosen) < clip_count:
                chosen.add(clip.clip_id)
    return [clip for clip in clips if clip.clip_id in chosen]


def take_share(clips: Sequence[Clip], subset: str | int | float, *, seed: int, others: str = "") -> list[Clip]:
    """Choose a number of clips ("500") or a fraction ("0.1"), in proportion to splits and labels, by source video.

    Args:
        clips: any clips; the order is kept.
        subset: an int or digits are a number of clips, anything else a fraction in (0, 1].
        seed: decides which ones.
        others: other values that the caller accepts, for the error message.

    Raises:
        DatasetError: `subset` is neither of these, or larger than the number of clips.
    """
    text = str(subset)
    try:
        share = int(text) / len(clips) if text.isdigit() else float(text)
    except ValueError:
        share = 0.0
    if text.isdigit() and int(text) > len(clips):
        raise DatasetError(f"--subset {text} asks for more than the {len(clips)} clips found: leave it out for all")
    if not 0 < share <= 1:
        raise DatasetError(f"--subset '{text}' is neither {others}a number of clips nor a fraction above 0 and up to 1")
    sizes = Counter(clip.split for clip in clips)
    wanted = {split: round(share * size) for split, size in sizes.items() if split != "train"}
    wanted["train"] = round(share * len(clips)) - sum(wanted.values())
    kept: set[str] = set()
    for split, count in wanted.items():
        taken = take_subset([clip for clip in clips if clip.split == split], count, seed=seed)
        kept.update(clip.clip_id for clip in taken)
    return [clip for clip in clips if clip.clip_id in kept]


def split_off(clips: Sequence[Clip], fraction: float, *, into: str, seed: int) -> list[Clip]:
    """Move about `fraction` of the training clips into another split, by whole source videos, balanced over labels.

    A label's last source videos in training are taken only when no others are left, so that labels of the new split
    occur in training if the data allow it. At least one source video stays.

    Args:
        clips: any clips; those of other splits than "train" are returned unchanged.
        fraction: share of the training clips to move, in [0, 1).
        into: name of the split to move them to.
        seed: decides which source videos are taken.
    """
    train = [clip for clip in clips if clip.split == "train"]
    wanted = round(len(train) * fraction)
    if fraction > 0 and len(train) > 1:
        wanted = max(wanted, 1)
    return _split_off(clips, wanted, into=into, seed=seed, keep_labels=(True, False))


def resplit(clips: Sequence[Clip], *, val: int | float, test: int | float, seed: int) -> list[Clip]:
    """Split all clips again: stratified by label, by whole source videos, every val and test label in training.

    Within a label, source videos are drawn by systematic sampling, so that a split holds each label's share to within
    one source video. A label's last source video always stays in training (`single_video_labels` names the labels that
    can't be evaluated), so a split may become smaller than requested, never larger.

    Args:
        clips: any clips; their present splits don't matter, their order is kept.
        val, test: sizes: an int is a number of clips, a float below 1 a share of all clips.
        seed: decides which source videos are taken; the same seed gives the same splits.

    Raises:
        DatasetError: a size is negative or leaves nothing to train on, or a split stays empty because no label has a
            source video for it.
    """
    wanted = {split: _clip_count(split, size, len(clips)) for split, size in (("test", test), ("val", val))}
    if sum(wanted.values()) >= max(len(clips), 1):
        raise DatasetError(
            f"val {wanted['val']} and test {wanted['test']} of {len(clips)} clips leave none to train on: ask for less"
        )
    split_anew = [replace(clip, split="train") for clip in clips]
    for split, count in wanted.items():
        split_anew = _split_off_trained(split_anew, count, into=split, seed=seed)
    return split_anew


def k_folds(clips: Sequence[Clip], k: int, seed: int, *, val: int | float = VAL_FRACTION) -> list[list[Clip]]:
    """Split the same clips in k ways, so that nearly every clip is in test exactly once.

    Folds are scikit-learn's StratifiedGroupKFold (labels, source videos). In the i-th way fold i is test, and val is
    drawn from the others as `resplit` draws. Every val and test label occurs in training. For that, some source
    videos are in training in every way: a label's only one, and one of each label that would lie in a single fold.

    Args:
        clips: any clips; their present splits don't matter, their order is kept.
        k: number of folds, at least 2 and at most the clips of the largest label.
        seed: decides the folds and val.
        val: size of each val split, an int or a share of all clips.

    Raises:
        DatasetError: the clips don't allow this k or val.
    """
    if k < 2:
        raise DatasetError(f"folds must be at least 2, not {k}")
    count = _clip_count("val", val, len(clips))
    always_train = _single_videos(clips)
    free = [clip for clip in clips if clip.group not in always_train]
    largest = max(Counter(clip.label for clip in free).values(), default=0)
    if k > largest:
        raise DatasetError(
            f"{k} folds need a label with {k} clips that can be tested, the largest has {largest}: ask for fewer folds"
        )
    fold_of = _fold_of_group(free, k, seed)
    always_train |= _single_fold_videos(clips, fold_of, always_train)
    ways = []
    for fold in range(k):
        tested = {group for group, number in fold_of.items() if number == fold} - always_train
        way = [replace(clip, split="test" if clip.group in tested else "train") for clip in clips]
        ways.append(_split_off_trained(way, count, into="val", seed=seed + fold))
    return ways


def single_video_labels(clips: Iterable[Clip]) -> tuple[str, ...]:
    """Labels with a single source video, sorted: they can be trained on or evaluated, not both."""
    return tuple(sorted(label for label, groups in _groups_of_label(clips).items() if len(groups) == 1))


def parse_size(name: str, text: str) -> int | float:
    """Parse a split's size: "20" clips, or "0.2" of all clips; `DatasetError` for anything else."""
    try:
        return int(text) if text.isascii() and text.isdigit() else float(text)
    except ValueError:
        raise DatasetError(f"{name} '{text}' is neither a number of clips nor a share of them below 1") from None


def _clip_count(name: str, size: int | float, clips: int) -> int:
    """Return a split's size in clips."""
    if size < 0 or (isinstance(size, float) and not size < 1):
        raise DatasetError(f"{name} must be a number of clips or a share of them in [0, 1), not {size}")
    if isinstance(size, int):
        return size
    return max(round(size * clips), 1) if size else 0


def _split_off_trained(clips: Sequence[Clip], wanted: int, *, into: str, seed: int) -> list[Clip]:
    """Like `_split_off`, but each label stays in training, and a split that stays empty raises `DatasetError`."""
    moved = _split_off(clips, wanted, into=into, seed=seed, keep_labels=(True,))
    if wanted and not any(clip.split == into for clip in moved):
        raise DatasetError(
            f"no source video can go into {into} ({wanted} clips asked for): each is its label's last one in training, "
            "or larger than the split; get more source videos per label, or ask for other sizes"
        )
    return moved


def _split_off(
    clips: Sequence[Clip], wanted: int, *, into: str, seed: int, keep_labels: tuple[bool, ...]
) -> list[Clip]:
    """Move at most `wanted` training clips into another split by whole source videos; at least one video stays.

    `keep_labels` has an entry per pass over the source videos; True passes leave each label's last ones in training.
    """
    train = [clip for clip in clips if clip.split == "train"]
    left = Counter(clip.label for clip in train)
    groups = _stratified_groups(train, seed=seed)
    moved: set[str] = set()
    for keep in keep_labels:
        for group in groups:
            if len(moved) >= wanted:
                break
            ids = {clip.clip_id for clip in group}
            labels = Counter(clip.label for clip in group)
            if ids <= moved or len(moved) + len(ids) > wanted:
                continue
            if len(moved) + len(ids) == len(train) or (keep and any(left[a] <= n for a, n in labels.items())):
                continue
            moved |= ids
            left.subtract(labels)
    return [replace(clip, split=into) if clip.clip_id in moved else clip for clip in clips]


def _fold_of_group(clips: Sequence[Clip], k: int, seed: int) -> dict[str, int]:
    """Source video -> fold, by scikit-learn's StratifiedGroupKFold."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels = [clip.label for clip in clips]
    groups = [clip.group for clip in clips]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # labels with fewer clips than folds: expected here
        folds = list(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(labels, labels, groups))
    return {groups[position]: fold for fold, (_, tested) in enumerate(folds) for position in tested}


def _single_videos(clips: Iterable[Clip]) -> set[str]:
    """Return the source videos that are the only one of some label."""
    return {group for groups in _groups_of_label(clips).values() if len(groups) == 1 for group in groups}


def _single_fold_videos(clips: Iterable[Clip], fold_of: Mapping[str, int], always_train: set[str]) -> set[str]:
    """For each label whose source videos all lie in one fold, return one that must stay in training."""
    single_fold: set[str] = set()
    for groups in _groups_of_label(clips).values():
        if not groups & (always_train | single_fold) and len({fold_of[group] for group in groups}) == 1:
            single_fold.add(min(groups))
    return single_fold


def _groups_of_label(clips: Iterable[Clip]) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        groups[clip.label].add(clip.group)
    return groups


def _stratified_groups(clips: Sequence[Clip], *, seed: int) -> list[list[Clip]]:
    """Order source videos so that the first n, for any n, hold the labels in about their overall proportions.

    Within a label the videos are shuffled; the k-th of n gets the key (k + u) / n with u uniform in [0, 1), and all
    are sorted by it (systematic sampling).
    """
    if seed < 0:
        raise DatasetError(f"seed must be at least 0, not {seed}")
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

"""Split a dataset root again: make a root with the same clips in new splits, without extracting them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import SPLITS, Clip, Manifest
from alphafuse.data.splits import VAL_FRACTION, k_folds, resplit, single_video_labels
from alphafuse.data.store.store import EmbeddingStore, recipe_differences
from alphafuse.errors import DatasetError, RecipeMismatchError

TEST_FRACTION = 0.2
ROWS_PER_SHARD = 20_000  # 123 MB of two 768-d streams


@dataclass(frozen=True)
class SplitReport:
    """Result of `resplit_dataset`.

    Attributes:
        dataset: the new root, opened.
        single_video_labels: labels that stay in training because they have only one source video.
        carried: split -> clips whose embeddings or failures were copied from the old root's stores.
    """

    dataset: Dataset
    single_video_labels: tuple[str, ...]
    carried: Mapping[str, int]


def resplit_dataset(
    dataset: Dataset | str | Path,
    root: str | Path,
    *,
    val: int | float = VAL_FRACTION,
    test: int | float = TEST_FRACTION,
    seed: int = 0,
) -> SplitReport:
    """Write a new root with the clips of another one in new splits (see `splits.resplit`).

    Both roots use the same clip folder. Embeddings are copied: each clip's rows and failures are read from the old
    root's stores and written, with their recipes, into the store of its new split. `alphafuse extract` adds what the
    old root lacks.

    Args:
        dataset: the root, or its folder to take clips and embeddings from; it is not changed.
        root: folder to make.
        val, test: sizes: an int is a number of clips, a float below 1 a share of all clips.
        seed: decides which source videos are taken.

    Raises:
        DatasetError: `root` is a dataset root already, or the sizes aren't possible (see `splits.resplit`).
        RecipeMismatchError: the old root's stores were made under different recipes.

    >>> from alphafuse import Dataset, resplit_dataset
    >>> report = resplit_dataset(Dataset.open("demo"), "demo-split", val=0.1, test=0.2)
    >>> report.dataset.manifest
    Manifest(448 clips: train=313, val=45, test=90)
    >>> report.carried
    {'train': 313, 'val': 45, 'test': 90}
    """
    dataset = Dataset.open(dataset)
    _require_new(Path(root))
    clips = resplit(dataset.manifest, val=val, test=test, seed=seed)
    return _write_root(dataset, Path(root), clips, {"val": val, "test": test, "seed": seed})


def fold_datasets(
    dataset: Dataset | str | Path, folder: str | Path, k: int, *, val: int | float = VAL_FRACTION, seed: int = 0
) -> list[SplitReport]:
    """Write k roots `folder/fold-1` ... `folder/fold-k`, one per fold of `splits.k_folds`.

    Everything else is as in `resplit_dataset`.

    >>> from alphafuse import Dataset, fold_datasets
    >>> for report in fold_datasets(Dataset.open("demo"), "demo-folds", 2, val=0.1):
    ...     print(report.dataset.manifest)
    Manifest(448 clips: train=179, val=45, test=224)
    Manifest(448 clips: train=179, val=45, test=224)
    """
    dataset = Dataset.open(dataset)
    roots = [Path(folder) / f"fold-{number}" for number in range(1, k + 1)]
    for root in roots:
        _require_new(root)
    ways = k_folds(dataset.manifest, k, seed, val=val)
    return [
        _write_root(dataset, root, clips, {"val": val, "fold": number, "folds": k, "seed": seed})
        for number, (root, clips) in enumerate(zip(roots, ways, strict=True), start=1)
    ]


def carry_embeddings(dataset: Dataset, root: Path, clips: Sequence[Clip]) -> dict[str, int]:
    """Copy rows and failures from the dataset's stores into the stores below `root`, each clip into that of its split.

    Clips that a store below `root` already has are skipped, so that an interrupted call can be repeated.

    Args:
        dataset: the root whose stores are read.
        root: the root whose stores are written.
        clips: clips with their splits in `root`.

    Returns:
        split -> number of clips that this call copied.

    Raises:
        RecipeMismatchError: stores were made under different recipes; nothing is written.
    """
    sources = [store for split in SPLITS if (store := dataset.store(split)).shards()]
    _require_one_setting(sources)
    carried = dict.fromkeys(SPLITS, 0)
    targets = {split: EmbeddingStore(root / "stores" / split) for split in SPLITS}
    stored_before = {clip_id for store in targets.values() if store.shards() for clip_id in store.read().clip_ids}
    for source in sources:
        stored = set(source.read().clip_ids) - stored_before
        for split, target in targets.items():
            chosen = [clip for clip in clips if clip.split == split and clip.clip_id in stored]
            carried[split] += _copy_rows(source, target, chosen)
        stored_before |= stored
    return carried


def _copy_rows(source: EmbeddingStore, target: EmbeddingStore, clips: Sequence[Clip]) -> int:
    """Copy these clips' rows and failures, in shards of bounded size, and return the number of clips."""
    if not clips:
        return 0
    provenance = source.info().provenance
    rows = source.read(clips, pooled=False)
    for start in range(0, len(rows), ROWS_PER_SHARD):
        part = rows.take(np.arange(start, min(start + ROWS_PER_SHARD, len(rows))))
        target.write(part, provenance=provenance)
    return len(rows)


def _write_root(dataset: Dataset, root: Path, clips: list[Clip], how: dict[str, Any]) -> SplitReport:
    carried = carry_embeddings(dataset, root, clips)  # before the root's files, so that a root appears whole
    made = Dataset.create(
        root,
        Manifest(clips),
        name=dataset.name,
        clip_folder=dataset.clip_folder,
        classes=dataset.classes,
        streams=dataset.streams,
        source={"split": how, "from": dataset.source},
        labelled_by=dataset.labelled_by,
    )
    return SplitReport(made, single_video_labels(clips), carried)


def _require_new(root: Path) -> None:
    if (root / "dataset.json").exists():
        raise DatasetError(f"'{root}' is a dataset root already: remove it or choose another folder with --out")


def _require_one_setting(stores: Sequence[EmbeddingStore]) -> None:
    """Raise `RecipeMismatchError` unless all stores were made under the same recipes."""
    recipes_of = [(store, store.recipes()) for store in stores]
    for stream in dict.fromkeys(name for _, recipes in recipes_of for name in recipes):
        made = [(store, recipes[stream]) for store, recipes in recipes_of if stream in recipes]
        for store, recipes in made[1:]:
            difference = recipe_differences(made[0][1], recipes)
            if difference:
                raise RecipeMismatchError(
                    f"{made[0][0].folder} and {store.folder} were made with another {stream} {difference}: their "
                    "clips can't be mixed; remove one of them and extract again"
                )

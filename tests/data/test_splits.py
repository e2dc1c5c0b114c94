from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings, Failure
from alphafuse.data.manifest import SPLITS, Clip
from alphafuse.data.sources.resplit import fold_datasets, resplit_dataset
from alphafuse.data.sources.vggsound import paper_rows
from alphafuse.data.splits import k_folds, parse_size, resplit, single_video_labels
from alphafuse.errors import DatasetError, RecipeMismatchError

SETTINGS = {"timesformer": {"weights": "t"}, "ast": {"weights": "a"}}


def make_clips(videos: dict[str, int], cuts: int = 2) -> list[Clip]:
    """Return `cuts` clips of each source video, all in test: the old split must not matter."""
    return [
        Clip(f"{label}{video}_{cut}", "x.mp4", label, "test", f"{label}{video}")
        for label, count in videos.items()
        for video in range(count)
        for cut in range(cuts)
    ]


def check_split(clips: list[Clip]) -> None:
    """Assert that no source video is in two splits, and that every evaluated label is in training."""
    groups = {split: {c.group for c in clips if c.split == split} for split in SPLITS}
    assert not (groups["train"] & groups["val"] or groups["train"] & groups["test"] or groups["val"] & groups["test"])
    trained = {c.label for c in clips if c.split == "train"}
    assert {c.label for c in clips} == trained


def sizes(clips: list[Clip]) -> dict[str, int]:
    return dict(Counter(c.split for c in clips))


@pytest.mark.parametrize("seed", range(5))
def test_resplit_gives_the_requested_sizes_by_source_video_with_every_label_in_training(seed: int) -> None:
    clips = make_clips({"dog": 20, "cat": 20, "cow": 10})
    split = resplit(clips, val=10, test=0.2, seed=seed)
    assert sizes(split) == {"train": 70, "val": 10, "test": 20}
    assert [c.clip_id for c in split] == [c.clip_id for c in clips]
    check_split(split)
    per_label = Counter(c.label for c in split if c.split == "test")
    assert per_label == {"dog": 8, "cat": 8, "cow": 4}  # a fifth of each label


def test_resplit_is_the_same_for_the_same_seed_only() -> None:
    clips = make_clips({"dog": 20, "cat": 20})
    assert resplit(clips, val=0.1, test=0.2, seed=1) == resplit(clips, val=0.1, test=0.2, seed=1)
    assert resplit(clips, val=0.1, test=0.2, seed=1) != resplit(clips, val=0.1, test=0.2, seed=2)
    assert resplit(resplit(clips, val=9, test=9, seed=2), val=5, test=5, seed=1) == resplit(
        clips, val=5, test=5, seed=1
    )


def test_labels_of_a_single_source_video_stay_in_training() -> None:
    clips = make_clips({"dog": 1, "cat": 2, "cow": 3})
    assert single_video_labels(clips) == ("dog",)
    for seed in range(10):
        split = resplit(clips, val=2, test=4, seed=seed)
        check_split(split)
        assert all(c.split == "train" for c in split if c.label == "dog")
        assert sizes(split) == {"train": 6, "val": 2, "test": 4}


def test_resplit_of_the_papers_clips_leaves_no_unreachable_label() -> None:
    clips = [Clip(r.clip_id, "x.mp4", r.label, r.split, r.youtube_id) for r in paper_rows()]
    split = resplit(clips, val=5, test=15, seed=0)
    check_split(split)
    assert sizes(split) == {"train": 110, "val": 5, "test": 15}


def test_resplit_explains_why_a_split_must_stay_empty() -> None:
    with pytest.raises(DatasetError, match=r"no source video can go into test \(2 clips asked for\)"):
        resplit(make_clips({"dog": 1, "cat": 1}), val=0, test=2, seed=0)
    with pytest.raises(DatasetError, match="no source video can go into val"):
        resplit(make_clips({"dog": 2, "cat": 1}), val=2, test=2, seed=0)


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (-1, 2, "val must be a number of clips or a share"),
        (0.1, 1.0, "test must be a number of clips or a share"),
        (float("nan"), 0.1, "val must be a number"),
        (10, 10, "leave none to train on"),
        (0.6, 0.4, "leave none to train on"),
    ],
)
def test_resplit_refuses_impossible_sizes(val: float, test: float, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        resplit(make_clips({"dog": 10}), val=val, test=test, seed=0)


def test_sizes_are_read_as_people_write_them() -> None:
    assert parse_size("val", "20") == 20 and isinstance(parse_size("val", "20"), int)
    assert parse_size("val", "0.2") == 0.2
    with pytest.raises(DatasetError, match="val 'a fifth' is neither"):
        parse_size("val", "a fifth")


# folds


@pytest.mark.parametrize("k", [2, 5])
def test_each_clip_is_tested_once_over_the_folds(k: int) -> None:
    clips = make_clips({"dog": 10, "cat": 10, "cow": 5})
    ways = k_folds(clips, k, 0, val=0.1)
    tested = Counter(c.clip_id for way in ways for c in way if c.split == "test")
    assert set(tested.values()) == {1} and len(tested) == len(clips)
    for way in ways:
        check_split(way)
        assert sizes(way)["val"] == 4  # two source videos: a third one would be more than 5 clips
        labels = Counter(c.label for c in way if c.split == "test")
        if k == 5:
            assert labels == {"dog": 4, "cat": 4, "cow": 2}
    assert ways == k_folds(clips, k, 0, val=0.1) != k_folds(clips, k, 1, val=0.1)


def test_folds_keep_single_source_videos_and_scarce_labels_in_training() -> None:
    clips = make_clips({"dog": 1, "cat": 2, "cow": 6, "owl": 6})
    for seed in range(10):
        ways = k_folds(clips, 3, seed, val=0)
        for way in ways:
            check_split(way)
            assert all(c.split == "train" for c in way if c.label == "dog")
        tested = {c.clip_id for way in ways for c in way if c.split == "test"}
        assert {c.clip_id for c in clips if c.label in ("cow", "owl")} <= tested


def test_folds_refuse_more_than_the_largest_label_has_clips() -> None:
    with pytest.raises(DatasetError, match="5 folds need a label with 5 clips that can be tested, the largest has 4"):
        k_folds(make_clips({"dog": 2, "cat": 2}), 5, 0)
    with pytest.raises(DatasetError, match="at least 2"):
        k_folds(make_clips({"dog": 2}), 1, 0)


# roots and their embeddings


def fill_stores(dataset: Dataset) -> dict[str, np.ndarray]:
    """Write distinct rows for all clips; the audio of one failed. Return clip_id -> its timesformer row."""
    rng = np.random.default_rng(0)
    rows = {}
    for split in SPLITS:
        clips = dataset.manifest.of_split(split)
        features = {"timesformer": rng.normal(size=(len(clips), 3)), "ast": rng.normal(size=(len(clips), 2))}
        features = {name: matrix.astype(np.float32) for name, matrix in features.items()}
        failures = ()
        if split == "val":
            features["ast"][0] = np.nan
            failures = (Failure(clips[0].clip_id, "ast", "no audio stream"),)
        ids, labels, groups = zip(*((c.clip_id, c.label, c.group) for c in clips), strict=True)
        dataset.store(split).write(Embeddings(ids, labels, groups, features, failures, SETTINGS))
        rows.update(zip(ids, features["timesformer"], strict=True))
    return rows


def test_embeddings_failures_and_settings_carry_over_to_a_new_root(make_root: Callable[..., Path]) -> None:
    old = Dataset.open(make_root(frames=2))
    rows = fill_stores(old)
    report = resplit_dataset(old, old.root.parent / "new", val=2, test=4, seed=3)
    new = report.dataset
    assert report.carried == {"train": 6, "val": 2, "test": 4}
    assert report.single_video_labels == ()
    assert all(new.path_of(c).is_file() for c in new.manifest)
    check_split(list(new.manifest))
    loaded = new.all_embeddings()
    for split, embeddings in loaded.items():
        assert embeddings.clip_ids == tuple(c.clip_id for c in new.manifest.of_split(split))
        assert embeddings.recipes == SETTINGS
        for clip_id, row in zip(embeddings.clip_ids, embeddings.features["timesformer"], strict=True):
            np.testing.assert_array_equal(row, rows[clip_id])
    failures = [failure for embeddings in loaded.values() for failure in embeddings.failures]
    assert failures == [Failure(old.manifest.of_split("val")[0].clip_id, "ast", "no audio stream")]
    assert old.all_embeddings()["train"].clip_ids  # the old root is unchanged
    assert new.source["split"] == {"val": 2, "test": 4, "seed": 3}


def test_clips_that_were_not_extracted_remain_to_be_extracted(make_root: Callable[..., Path]) -> None:
    old = Dataset.open(make_root(frames=2))
    fill_stores(old)
    for shard in old.store("test").shards():
        shard.unlink()
    report = resplit_dataset(old, old.root.parent / "new", val=2, test=4)
    assert sum(report.carried.values()) == 8
    done = set().union(*(report.dataset.store(split).done() for split in SPLITS))
    assert done == {c.clip_id for c in old.manifest if c.split != "test"}


def test_folds_are_roots_of_their_own(make_root: Callable[..., Path]) -> None:
    old = Dataset.open(make_root(frames=2))
    fill_stores(old)
    reports = fold_datasets(old, old.root.parent / "folds", 3, val=2)
    assert [report.dataset.root.name for report in reports] == ["fold-1", "fold-2", "fold-3"]
    assert sorted(c.clip_id for r in reports for c in r.dataset.manifest.of_split("test")) == sorted(
        c.clip_id for c in old.manifest
    )
    for report in reports:
        assert sum(len(embeddings) for embeddings in report.dataset.all_embeddings().values()) == 12


def test_a_root_is_never_split_over_another(make_root: Callable[..., Path]) -> None:
    old = Dataset.open(make_root(frames=2))
    with pytest.raises(DatasetError, match="is a dataset root already"):
        resplit_dataset(old, old.root)


def test_an_interrupted_split_is_finished_by_the_same_call(make_root: Callable[..., Path]) -> None:
    old = Dataset.open(make_root(frames=2))
    fill_stores(old)
    target = old.root.parent / "new"
    resplit_dataset(old, target, val=2, test=4)
    (target / "dataset.json").unlink()
    report = resplit_dataset(old, target, val=2, test=4)
    assert sum(report.carried.values()) == 0
    assert report.dataset.store("train").info().duplicates == 0


def test_stores_of_different_settings_are_not_mixed(make_root: Callable[..., Path]) -> None:
    old = Dataset.open(make_root(frames=2))
    fill_stores(old)
    for shard in old.store("val").shards():
        shard.unlink()
    row = Embeddings(("x",), ("dog",), ("x",), {"ast": np.ones((1, 2), np.float32)}, (), {"ast": {"weights": "b"}})
    old.store("val").write(row)
    with pytest.raises(RecipeMismatchError, match=r"were made with another ast weights \(there: a, here: b\)"):
        resplit_dataset(old, old.root.parent / "new", val=2, test=4)
    assert not (old.root.parent / "new").exists()

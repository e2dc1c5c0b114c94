"""MTEB's VGGSound protocol: its draws, its scores, and the leak of its folds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from support.toy import CLASSES, assert_no_nan, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.errors import ExperimentError
from alphafuse.heads.studies.mteb import drawn_folds, mteb_scores
from alphafuse.heads.studies.runs import Run
from alphafuse.report.curve import describe, write_curve
from alphafuse.report.tables import to_text


def by_the_rule(labels: list[str]) -> list[tuple[list[int], list[int]]]:
    """MTEB's rule in plain words: folds, and a list of places in the training part, shuffled once more for each."""
    folds, places = [], None
    for train, held in KFold(n_splits=5, shuffle=True, random_state=42).split(labels):
        if places is None:
            places = list(range(len(train)))
        np.random.RandomState(42).shuffle(places)
        taken: dict[str, int] = {}
        chosen = []
        for place in places:
            label = labels[train[place]]
            taken[label] = taken.get(label, 0) + 1
            if taken[label] <= 8:
                chosen.append(int(train[place]))
        folds.append((chosen, held.tolist()))
    return folds


@pytest.mark.parametrize("count", [100, 203])  # 203: the folds' sizes differ
def test_folds_and_draws_are_mtebs(count: int) -> None:
    targets = np.random.default_rng(0).integers(0, 7, count)
    found = [(train.tolist(), held.tolist()) for train, held in drawn_folds(targets, 42)]
    assert found == by_the_rule([f"label {target}" for target in targets])


def test_grouped_folds_keep_source_videos_whole_and_draw_as_many_clips() -> None:
    targets = np.arange(120) % 4
    groups = [f"video{i // 4}" for i in range(120)]
    seen = []
    for train, held in drawn_folds(targets, 42, groups):
        assert not {groups[i] for i in train} & {groups[i] for i in held}
        assert np.bincount(targets[train]).tolist() == [8, 8, 8, 8]
        seen += held.tolist()
    assert sorted(seen) == list(range(120))


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Source videos of four nearly identical clips, whose look says nothing about the class: all accuracy is leak."""
    root, rng = tmp_path_factory.mktemp("doubled"), np.random.default_rng(0)
    clips, looks = [], []
    for video in range(24):
        look = rng.normal(size=12)
        for cut in range(4):
            clips.append(Clip(f"v{video}_{cut}", f"v{video}_{cut}.mp4", CLASSES[video % 3], "test", f"v{video}"))
            looks.append(look + 0.01 * rng.normal(size=12))
    dataset = Dataset.create(root, Manifest(clips), name="doubled", clip_folder=root / "clips", classes=CLASSES[:3])
    x = np.array(looks, np.float32)
    dataset.store("test").write(
        Embeddings(
            clip_ids=tuple(clip.clip_id for clip in clips),
            labels=tuple(clip.label for clip in clips),
            groups=tuple(clip.group for clip in clips),
            features={"timesformer": x, "ast": x[:, :5]},
            recipes={"timesformer": {"dim": 12}, "ast": {"dim": 5}},
        )
    )
    return dataset


def test_scores_per_fold_are_those_of_the_rule_and_the_leak_is_found(doubled: Dataset) -> None:
    found = mteb_scores(doubled, draws=2)
    rows = doubled.embeddings("test")
    x = {"fused": np.hstack([rows.features["timesformer"], rows.features["ast"]]), **rows.features}
    labels = np.array(rows.labels)
    for row in found.rows:
        expected = [
            float(
                (
                    LogisticRegression(max_iter=100).fit(x[row.name][train], labels[train]).predict(x[row.name][held])
                    == labels[held]
                ).mean()
            )
            for train, held in by_the_rule(list(rows.labels))
        ]
        assert list(row.per_fold) == expected and row.score == pytest.approx(np.mean(expected))
    lead = found.rows[0]
    assert lead.name == "fused" and lead.grouped is not None and lead.leak is not None
    assert lead.leak.is_found and lead.leak.interval.low > 0 and lead.grouped.mean < 0.5
    text = to_text(describe(found))
    assert "but its folds leak" in text and max(map(len, text.splitlines())) <= 80
    folder = write_curve(found, doubled)
    content = json.loads((folder / "curve.json").read_text())
    assert_no_nan(content)
    assert content["rows"][0]["per_fold"] == list(lead.per_fold) and content["clips_of_repeated_videos"] == 96
    run = Run.open(folder, doubled.root)
    assert run.command == f"alphafuse curve --stream timesformer,ast --draws 2 --preset mteb --root {doubled.root}"


def test_without_repeated_source_videos_nothing_can_leak(doubled: Dataset, tmp_path: Path) -> None:
    rows = doubled.embeddings("test")
    clips = [
        Clip(name, f"{name}.mp4", label, "test", name) for name, label in zip(rows.clip_ids, rows.labels, strict=True)
    ]
    single = Dataset.create(tmp_path, Manifest(clips), name="single", clip_folder=tmp_path, classes=CLASSES[:3])
    single.store("test").write(
        Embeddings(rows.clip_ids, rows.labels, rows.clip_ids, rows.features, recipes=rows.recipes)
    )
    found = mteb_scores(single, streams=["ast"], draws=1)
    assert found.rows[0].leak is None and found.rows[0].name == "ast"
    assert "its folds can't leak" in to_text(describe(found))


def test_mistakes_are_named(doubled: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="at least 1 draw"):
        mteb_scores(doubled, draws=0)
    few = make_dataset(tmp_path)
    kept = [clip for clip in few.manifest if clip.split != "test" or clip.group in ("testvideo0", "testvideo1")]
    with pytest.raises(ExperimentError, match="2 source videos in test are too few for MTEB's 5 folds"):
        mteb_scores(replace_manifest(few, kept), draws=1)


def replace_manifest(dataset: Dataset, clips: list[Clip]) -> Dataset:
    Manifest(clips).write(dataset.root / "manifest.csv")
    return Dataset.open(dataset.root)

"""Learning curves: draws that nest, heads that scikit-learn trains too, and what the sentences say."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from support.cli import Run
from support.toy import CLAP, assert_no_nan, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import DEFAULT_STREAMS
from alphafuse.errors import DatasetError, ExperimentError
from alphafuse.heads.scoring.statistics import Comparison, Interval, PairedTest
from alphafuse.heads.studies import curve as module
from alphafuse.heads.studies.curve import Curve, curve, draw_ranks, ordered, parse_sizes
from alphafuse.heads.studies.runs import Run as RunFolder
from alphafuse.report.curve import describe, verdict, write_curve
from alphafuse.report.tables import to_text


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def found(dataset: Dataset) -> Curve:
    return curve(dataset, sizes=("all", 4, 1), draws=3)


def test_draws_nest_keep_every_class_and_take_one_clip_of_each_source_video_first() -> None:
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], [12, 12, 3])
    groups = [f"{target}-{i // 3 if target else i // 6}" for i, target in enumerate(targets)]
    firsts: Counter[str] = Counter()
    for _ in range(300):
        ranks = draw_ranks(targets, groups, rng)
        for target, count in enumerate((12, 12, 3)):
            own = np.flatnonzero(targets == target)
            assert sorted(ranks[own]) == list(range(count))  # each place once: k clips are part of k + 1
            order = own[np.argsort(ranks[own])]
            videos = len({groups[i] for i in own})
            assert len({groups[i] for i in order[:videos]}) == videos
        firsts[groups[np.flatnonzero((targets == 0) & (ranks == 0))[0]]] += 1
    assert min(firsts.values()) > 100 and len(firsts) == 2  # both source videos come first equally often


def test_sizes_are_sorted_and_those_that_take_every_clip_are_all() -> None:
    assert ordered(parse_sizes("4, 1,4"), np.array([2, 9])) == (1, 4)
    assert ordered((16, 1, "all"), np.array([2, 9])) == (1, "all")
    for bad in ("", "2,x", "-1"):
        with pytest.raises(ExperimentError, match="invalid sizes"):
            parse_sizes(bad)


def test_a_point_is_the_accuracy_of_scikit_learns_ridge_on_the_drawn_clips(dataset: Dataset, found: Curve) -> None:
    train, test = dataset.embeddings("train"), dataset.embeddings("test")
    classes, targets = np.unique(train.labels, return_inverse=True)
    point = found.points[1]
    assert (point.size, point.clips, point.draws, point.short) == (4, 36, 3, 0)
    for draw in range(3):
        ranks = draw_ranks(
            np.array([dataset.classes.index(name) for name in train.labels]),
            train.groups,
            np.random.default_rng([0, draw]),
        )
        drawn = np.flatnonzero(ranks < 4)
        for name, streams in (("ast", ["ast"]), ("fused", ["timesformer", "ast"])):
            x, at = [], []
            for stream in streams:
                scale = train.features[stream][drawn].astype(float).var(axis=0).sum() * len(train.dims) / 14
                x.append(train.features[stream][drawn] / np.sqrt(scale))
                at.append(test.features[stream] / np.sqrt(scale))
            ridge = Ridge(alpha=point.penalties[name][draw]).fit(np.hstack(x), np.eye(9)[targets[drawn]])
            right = classes[ridge.predict(np.hstack(at)).argmax(axis=1)] == np.array(test.labels)
            np.testing.assert_array_equal(point.correct[name][draw], right)
    assert point.top1["fused"].mean == pytest.approx(point.correct["fused"].mean())


def test_more_clips_than_fit_are_solved_from_their_moments(
    dataset: Dataset, found: Curve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEW_NUMBERS", 0)
    primal = curve(dataset, sizes=(4, "all"), draws=3)
    for one, other in zip(primal.points, found.points[1:], strict=True):
        for name, estimate in one.top1.items():  # folds choose a slightly different penalty
            assert estimate.mean == pytest.approx(other.top1[name].mean, abs=0.1)


def test_the_toys_streams_pay_only_together_and_all_is_drawn_once(found: Curve) -> None:
    assert [point.draws for point in found.points] == [3, 3, 1]
    largest = found.points[-1]
    assert largest.pays and largest.top1["fused"].mean > 0.9 > 0.5 > largest.top1["ast"].mean
    assert all(point.correct["ast"].shape[1] == 45 for point in found.points)
    assert verdict(found).startswith("Fusing pays")


def _gain(size: float) -> Comparison:
    apart = abs(size) > 0.1
    interval = Interval(size - 0.1, size + 0.1, "bootstrap")
    p = 0.001 if apart else 0.5
    return Comparison(interval, PairedTest(size, p, "paired", 9), p)


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        ((0.3, 0.3, 0.3), "Fusing pays from 1 clip per class on: with all clips (10 per class), it gains 30.0 points"),
        ((0.0, 0.3, 0.3), "Fusing pays from 4 clips per class on; with fewer, that is undecided: with"),
        ((-0.3, 0.3, 0.3), "Fusing pays from 4 clips per class on; with fewer, it doesn't always: with"),
        ((0.3, 0.3, 0.0), "Fusing pays with few clips (1 and 4 per class); with more clips, that is undecided: with"),
        ((0.0, 0.0, -0.3), "Don't fuse these streams with equal weights: with all clips (10 per class), it loses 30.0"),
        ((0.0, 0.0, 0.0), "Undecided whether fusing pays: with all clips (10 per class), it gains 0.0 points"),
    ],
)
def test_the_first_sentence_says_where_fusing_pays(found: Curve, gains: tuple[float, ...], sentence: str) -> None:
    points = tuple(
        replace(point, gains={"timesformer": _gain(size + 0.05), "ast": _gain(size)})
        for point, size in zip(found.points, gains, strict=True)
    )
    best = replace(points[2], top1={**points[2].top1, "ast": points[2].top1["fused"]})  # names the gap to AST
    text = to_text(describe(replace(found, points=(*points[:2], best))))
    assert " ".join(text.split()).startswith(sentence)
    assert max(map(len, text.splitlines())) <= 80


def test_three_streams_and_one_stream(tmp_path: Path) -> None:
    three = curve(make_dataset(tmp_path / "three", streams=(*DEFAULT_STREAMS, CLAP)), sizes=(2,), draws=2)
    assert list(three.points[0].top1) == ["timesformer", "ast", "clap", "fused"]
    assert list(three.points[0].gains) == ["timesformer", "ast", "clap"] and three.last_step is None
    one = curve(make_dataset(tmp_path / "one", streams=(CLAP,)), sizes=(1, 2), draws=2)
    assert list(one.points[0].top1) == ["clap"] and not one.points[0].gains
    assert "clap gains" in to_text(describe(one)) or "clap loses" in to_text(describe(one))
    assert "fused" not in to_text(describe(one))


def test_mistakes_are_named(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="unknown stream 'smell'"):
        curve(dataset, streams=["smell"])
    with pytest.raises(ExperimentError, match="at least 1, or 'all', not 0"):
        curve(dataset, sizes=[0])
    with pytest.raises(ExperimentError, match="at least 1 draw"):
        curve(dataset, draws=0)


def test_clips_that_lack_a_stream_and_unseen_labels_are_counted(tmp_path: Path) -> None:
    found = curve(make_dataset(tmp_path, silent_test_clips=3, unseen_test_labels=1), sizes=(1,), draws=1)
    assert found.dropped == {"train": 0, "test": 3} and found.classes == 8
    assert (found.ceiling.reachable, found.ceiling.clips) == (38, 42)


def test_a_run_folder_holds_table_picture_and_the_command_that_repeats_it(dataset: Dataset, found: Curve) -> None:
    folder = write_curve(found, dataset)
    content = json.loads((folder / "curve.json").read_text())
    assert_no_nan(content)
    with (folder / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["heads"] for row in rows[:3]] == ["timesformer", "ast", "fused"] and len(rows) == 9
    assert float(rows[-1]["test_top1"]) == content["points"][-1]["top1"]["fused"]["mean"]
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    run = RunFolder.open(folder, dataset.root)
    assert run.command == (f"alphafuse curve --stream timesformer,ast --draws 3 --sizes 1,4,all --root {dataset.root}")


def test_the_command_on_the_demo(demo_folder: Path, run: Run) -> None:
    code, out, _ = run("curve", "--root", "demo", "--sizes", "1,all", "--draws", "2")
    assert code == 0
    assert " ".join(out.split()).startswith("Fusing pays from 1 clip per class on: with all clips (14.4 per class)")
    assert out.splitlines()[-1] == "written: demo/runs/curve (curve.md, curve.json, curve.csv, curve.png)"
    code, out, err = run("curve", "--root", "demo", "--preset", "mteb", "--sizes", "8")
    assert (code, out) == (2, "") and "--sizes doesn't go with --preset mteb" in err
    code, _, err = run("curve", "--root", "demo", "--preset", "mtbe")
    assert code == 2 and "unknown preset 'mtbe' (did you mean 'mteb'?)" in err

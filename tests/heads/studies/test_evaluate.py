"""Evaluating a run: the same figures as its training reported, every metric with an interval, and two runs paired."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from support.toy import CLAP, CLASSES, DINO, SETTINGS, assert_no_nan, make_dataset, silence_label

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings, Failure
from alphafuse.data.streams import DEFAULT_STREAMS, Stream
from alphafuse.errors import DatasetError, ExperimentError, RecipeMismatchError
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.studies.evaluate import evaluate
from alphafuse.heads.studies.fit import RunResult, fit
from alphafuse.heads.studies.runs import Run, read_run
from alphafuse.report.studies import describe, write_evaluation
from alphafuse.report.tables import to_text


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def fused(dataset: Dataset) -> RunResult:
    return fit(dataset, Experiment("sqrt", on="ast"), seeds=2, settings=SETTINGS)


@pytest.fixture(scope="module")
def single(dataset: Dataset) -> RunResult:
    return fit(dataset, Experiment(streams=("ast",)), seeds=3, settings=SETTINGS)


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_figures_of_a_run_equal_those_reported_by_training(fused: RunResult, split: str) -> None:
    found, trained = evaluate(fused.folder, split=split), fused.splits[split]
    assert found.evaluation.top1.mean == pytest.approx(trained.top1.mean, abs=1e-12)
    assert found.evaluation.top1.interval == trained.top1.interval
    assert found.evaluation.log_loss.mean == pytest.approx(trained.loss.mean, rel=1e-5)
    assert (found.evaluation.clips, found.seeds, found.dropped) == (trained.n, 2, 0)
    assert found.ceiling == trained.ceiling


def test_top5_and_confusion_are_scikit_learns(dataset: Dataset, fused: RunResult) -> None:
    found = evaluate(fused.folder).evaluation
    test = dataset.embeddings("test")
    targets = np.array([dataset.classes.index(label) for label in test.labels])
    probabilities = [trained.head.predict_proba(test) for trained in fused.heads]
    expected = np.mean([top_k_accuracy_score(targets, p, k=5, labels=np.arange(9)) for p in probabilities])
    assert found.topk.mean == pytest.approx(expected)
    counts = sum(confusion_matrix(targets, p.argmax(axis=1), labels=np.arange(9)) for p in probabilities)
    np.testing.assert_array_equal(found.confusion, counts)


def test_runs_are_compared_on_the_clips_that_both_can_use(tmp_path: Path) -> None:
    silent = make_dataset(tmp_path / "silent", silent_test_clips=3)
    both = fit(silent, Experiment(), settings=SETTINGS)
    sight = fit(silent, Experiment(streams=("timesformer",)), settings=SETTINGS)
    found = evaluate(sight.folder, against=both.folder)
    assert (found.evaluation.clips, found.dropped) == (45, 0)
    assert found.against is not None and found.against.n == 42
    assert found.against.top1 == pytest.approx(both.splits["test"].top1.mean)


@pytest.mark.parametrize("streams", [(CLAP,), (DINO, *DEFAULT_STREAMS)], ids=["one stream", "three streams"])
def test_any_number_of_streams_is_fitted_evaluated_and_compared(tmp_path: Path, streams: tuple[Stream, ...]) -> None:
    dataset = make_dataset(tmp_path / "many", streams=streams, silent_test_clips=3 if len(streams) > 1 else 0)
    every = fit(dataset, Experiment("sqrt", on="all"), settings=SETTINGS)
    first = fit(dataset, Experiment(streams=(dataset.streams[0].name,)), settings=SETTINGS)
    found = evaluate(every.folder, against=first.folder)
    trained = every.splits["test"]
    assert found.evaluation.top1.mean == pytest.approx(trained.top1.mean, abs=1e-12)
    assert found.evaluation.clips == (42 if len(streams) > 1 else 45)
    assert found.head.streams == every.experiment.streams == tuple(dataset.media)
    assert found.against is not None and found.against.top1 == pytest.approx(
        first.splits["test"].top1.mean, abs=0.1 if len(streams) > 1 else 1e-12
    )
    assert every.folder.name == ("sqrt-all" if len(streams) > 1 else "sqrt-clap")
    assert first.folder.name == ("timesformer-only" if len(streams) > 1 else "untransformed")
    assert read_run(first.folder).experiment == first.experiment
    assert ("--stream" in Run.open(first.folder, dataset.root).command) == (len(streams) > 1)


def test_a_difference_has_an_interval_and_a_test_for_any_number_of_seeds(fused: RunResult, single: RunResult) -> None:
    against = evaluate(fused.folder, against=single.folder).against
    assert against is not None
    gap = fused.splits["test"].top1.mean - single.splits["test"].top1.mean
    assert against.test.difference == pytest.approx(gap)
    assert 0 < against.interval.low < gap < against.interval.high
    assert against.test.p_value < 0.05


def test_an_evaluations_folder_holds_json_classes_and_confusion(dataset: Dataset, fused: RunResult) -> None:
    found = evaluate(fused.folder)
    folder = write_evaluation(found)
    assert folder == fused.folder / "evaluation-test"
    content = json.loads((folder / "evaluation.json").read_text())
    assert_no_nan(content)
    assert content["n"] == 45 and content["top1"]["mean"] == found.evaluation.top1.mean
    with (folder / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(dataset.classes)
    assert float(rows[0]["recall"]) == found.evaluation.table[0].recall
    with (folder / "confusion.csv").open(newline="") as file:
        header, *counts = csv.reader(file)
    assert header[1:] == list(dataset.classes)
    assert sum(int(count) for row in counts for count in row[1:]) == 2 * 45


def test_an_evaluation_prints_every_metric_in_80_columns(fused: RunResult, single: RunResult) -> None:
    found = evaluate(fused.folder, against=single.folder)
    narrow, text = (to_text(describe(found), wide=wide) for wide in (False, True))
    assert max(len(line) for line in narrow.splitlines() if str(fused.folder) not in line) <= 80
    for words in ("top-5 accuracy", "mAP", "AUC", "d-prime", "ECE", "Right for ", str(single.folder), "bootstrap"):
        assert words in text
    assert found.to_json()["answer"] == found.answer and found.answer.startswith("Right for ")
    few = replace(found, evaluation=replace(found.evaluation, k=9))
    assert "top-9" not in to_text(describe(few)), "of 9 classes it is always 100"
    assert evaluate(fused.folder).to_json()["against"] is None


def test_embeddings_of_another_encoder_or_protocol_are_refused(tmp_path: Path, fused: RunResult) -> None:
    other = make_dataset(tmp_path / "other")
    store = other.store("test")
    kept = store.read()
    for shard in store.shards():
        shard.unlink()
    settings = {name: {"protocol": "notebook"} for name in kept.features}
    store.write(replace(kept, recipes=settings))
    with pytest.raises(RecipeMismatchError, match=r"protocol \(there: standard, here: notebook\)"):
        evaluate(fused.folder, dataset=other)


def test_a_folder_that_is_not_a_run_is_refused_by_name(dataset: Dataset, fused: RunResult, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="is not inside a dataset root"):
        evaluate(tmp_path / "nothing")
    with pytest.raises(ExperimentError, match=r"no such run: .*missing"):
        evaluate(dataset.root / "runs" / "missing")
    with pytest.raises(ExperimentError, match="is a dataset root, not a run: name one of its runs"):
        evaluate(dataset.root)
    with pytest.raises(DatasetError, match="unknown split 'dev'"):
        evaluate(fused.folder, split="dev")


def test_a_split_without_a_usable_clip_is_named(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "toy")
    run = fit(dataset, Experiment(streams=("ast",)), settings=SETTINGS)
    store = dataset.store("test")
    kept: Embeddings = store.read()
    for shard in store.shards():
        shard.unlink()
    silence = np.full_like(kept.features["ast"], np.nan)
    failures = tuple(Failure(clip_id, "ast", "no audio stream") for clip_id in kept.clip_ids)
    store.write(replace(kept, features={**kept.features, "ast": silence}, failures=failures))
    with pytest.raises(ExperimentError, match="none of the 45 test clips has the embeddings"):
        evaluate(run.folder)


def test_the_ceiling_is_that_of_the_clips_that_could_be_trained_on(tmp_path: Path) -> None:
    """A label whose training clips all lack a stream is unknown to heads that need it."""
    dataset = make_dataset(tmp_path / "toy")
    silence_label(dataset, CLASSES[0])
    result = fit(dataset, Experiment(), settings=SETTINGS)
    found = evaluate(result.folder)
    assert found.ceiling == result.splits["test"].ceiling
    assert found.ceiling.reachable == found.ceiling.clips - 5  # 45 test clips of 9 classes
    sight = fit(dataset, Experiment(streams=("timesformer",)), settings=SETTINGS)
    assert evaluate(sight.folder).ceiling.accuracy == 1.0

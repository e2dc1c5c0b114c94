"""Experiments on a small store: run folders, table 1 and their printed output."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.progress import RecordedProgress
from support.toy import CLASSES, DINO, SETTINGS, SIZES, assert_no_nan, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.streams import DEFAULT_NAMES, DEFAULT_STREAMS
from alphafuse.errors import ExperimentError, StoreError
from alphafuse.heads.model.config import BASELINE, Experiment
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.runs import load_heads, replaced_run
from alphafuse.heads.studies.table1 import PAPER_SIX, TABLE1, Table1, paper_results, table1
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.report.studies import describe, figure3, write_table1
from alphafuse.report.tables import to_markdown, to_text

THREE = ("dino-s", "ast", "timesformer")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def table(dataset: Dataset) -> Table1:
    return table1(dataset, seeds=3, settings=SETTINGS)


def test_table1_has_the_papers_six_in_order_between_the_baseline_and_the_single_streams() -> None:
    assert TABLE1[0] == BASELINE.of(DEFAULT_NAMES)
    assert [(e.on, e.transform) for e in TABLE1[1:7]] == [
        ("timesformer", "sqrt"),
        ("timesformer", "pos-scalar"),
        ("timesformer", "neg-scalar"),
        ("ast", "sqrt"),
        ("ast", "pos-scalar"),
        ("ast", "neg-scalar"),
    ]
    assert [e.title for e in TABLE1[7:]] == ["TimeSformer only", "AST only"]


def test_the_papers_figures_come_from_its_json() -> None:
    papers = [paper_results()[experiment] for experiment in PAPER_SIX]
    assert [paper.experiment for paper in papers] == [1, 2, 3, 4, 5, 6]
    assert [paper.correct for paper in papers] == [2, 4, 2, 3, 2, 4]  # of 18
    assert [paper.accuracy for paper in papers] == [0.11, 0.22, 0.11, 0.16, 0.11, 0.22]
    assert [paper.loss for paper in papers] == [7.29, 6.98, 7.39, 7.30, 7.66, 7.52]
    assert [paper.notebook_loss for paper in papers] == [7.2768, 6.9778, 7.3996, 7.3008, 7.6603, 7.5241]
    assert all(len(paper.train_loss) == len(paper.val_loss) == 25 for paper in papers)


@pytest.mark.parametrize(
    ("experiment", "name", "title"),
    [
        (Experiment(), "untransformed", "untransformed"),
        (Experiment("none", on="ast"), "untransformed", "untransformed"),
        (Experiment("sqrt", on="ast"), "sqrt-ast", "AST sqrt"),
        (Experiment("scale", on="timesformer", alpha=0.5), "scale-0.5-timesformer", "TimeSformer scale 0.5"),
        (Experiment(streams=("ast",)), "ast-only", "AST only"),
        (Experiment("sqrt", on="ast", streams=("ast",)), "sqrt-ast-ast-only", "AST only sqrt"),
        (Experiment(fusion="gate"), "gate", "gate"),
        (Experiment("sqrt", on="ast", fusion="add"), "sqrt-ast-add", "AST sqrt, add"),
        (Experiment(normalize="zscore"), "zscore", "zscore"),
        (Experiment(rates={"ast": 2.0}), "rate-2-ast", "rate 2 ast"),
        (Experiment(fusion="gate", auxiliary={"ast": 0.5}), "gate-blended", "gate, blended"),
        (Experiment("sqrt", on="all"), "sqrt-all", "all sqrt"),
    ],
)
def test_experiments_have_a_name_and_a_title(experiment: Experiment, name: str, title: str) -> None:
    assert (experiment.name, experiment.title) == (name, title)
    assert (experiment.of(DEFAULT_NAMES).name, experiment.of(DEFAULT_NAMES).title) == (name, title)


@pytest.mark.parametrize(
    ("experiment", "available", "name", "title"),
    [
        (Experiment(streams=("ast", "timesformer")), DEFAULT_NAMES, "untransformed", "untransformed"),
        (Experiment(streams=("ast", "timesformer")), THREE, "timesformer+ast", "TimeSformer + AST"),
        (Experiment(streams=("all", "ast")), THREE, "untransformed", "untransformed"),
        (Experiment("sqrt", on="ast, dino-s, timesformer"), THREE, "sqrt-all", "all sqrt"),
        (Experiment("sqrt", on="dino-s,ast"), THREE, "sqrt-ast+dino-s", "AST + dino-s sqrt"),
        (
            Experiment("sqrt", on="dino-s", streams=("dino-s", "ast"), fusion="add"),
            THREE,
            "sqrt-dino-s-ast+dino-s-add",
            "AST + dino-s, dino-s sqrt, add",
        ),
        (Experiment(rates={"dino-s": 2.0}), THREE, "rate-2-dino-s", "rate 2 dino-s"),
        (Experiment("sqrt", on="all"), ["dino-s"], "sqrt-dino-s", "dino-s sqrt"),
        (Experiment(streams=("dino-s",)), ["dino-s"], "untransformed", "untransformed"),
    ],
)
def test_names_and_titles_say_which_of_the_available_streams_are_read(
    experiment: Experiment, available: Sequence[str], name: str, title: str
) -> None:
    completed = experiment.of(available)
    assert (completed.name, completed.title) == (name, title)
    assert completed.of(available) == completed and Experiment(**asdict(completed)).name == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transform": "sqroot", "on": "ast"}, "unknown transform 'sqroot'"),
        ({"transform": "sqrt", "on": "sound"}, "unknown stream 'sound': choose from timesformer, ast"),
        ({"rates": {"sound": 2.0}}, "unknown stream 'sound'"),
        ({"fusion": "gate", "auxiliary": {"sound": 2.0}}, "unknown auxiliary loss 'sound'"),
        ({"transform": "sqrt"}, "needs a stream"),
        ({"fusion": "sum"}, "unknown fusion 'sum'"),
        ({"streams": ("sound",)}, "unknown stream 'sound'"),
        ({"streams": ("ast",), "fusion": "gate"}, "'gate' joins streams, but the head reads only ast"),
    ],
)
def test_bad_experiments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        Experiment(**arguments).of(DEFAULT_NAMES)


def test_fused_head_beats_both_single_streams(table: Table1) -> None:
    fused, sight, sound = (table.rows[i].test.top1 for i in (0, 7, 8))
    assert fused.interval.low > max(sight.interval.high, sound.interval.high)
    assert all(row.comparison is not None and row.comparison.p_holm < 0.05 for row in table.rows[7:])


def test_every_accuracy_of_table1_comes_with_n_and_an_interval_around_it(table: Table1) -> None:
    for row in table.rows:
        for result in (row.val, row.test):
            assert result.n == SIZES[result.split]
            for estimate in (result.top1, result.topk, result.loss):
                assert estimate.interval.low <= estimate.mean <= estimate.interval.high
                assert np.mean(estimate.per_seed) == pytest.approx(estimate.mean)
    assert table.rows[0].comparison is None
    difference = table.rows[3].test.top1.mean - table.rows[0].test.top1.mean
    assert table.rows[3].comparison is not None
    assert table.rows[3].comparison.test.difference == pytest.approx(difference)


def test_table1_prints_in_80_columns_and_with_wide_in_120_with_its_caveats(table: Table1) -> None:
    narrow, text = (to_text(describe(table), wide=wide) for wide in (False, True))
    assert max(map(len, narrow.splitlines())) <= 80
    assert " ".join(narrow.split()).startswith(table.answer) and table.answer.startswith("Use both: ")
    assert max(len(line) for line in text.splitlines()) <= 120
    rows = [line for line in text.splitlines() if line[:1].isdigit() and ("TimeSformer" in line or "AST" in line)]
    assert [row.split()[0] for row in rows[:6]] == ["1", "2", "3", "4", "5", "6"]
    assert "2/18" in rows[0] and "7.29" in rows[0]
    for phrase in ("Ceiling: 45 of 45", "n = 45 test clips of 23 source videos", "Holm-corrected", "on other clips"):
        assert phrase in " ".join(text.split())
    assert table.verdict[1:] in " ".join(text.split())


def test_table1_folder_holds_json_markdown_history_and_figure(dataset: Dataset, table: Table1) -> None:
    folder = write_table1(table, dataset)
    assert folder == dataset.root / "runs" / "table1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "figure3.png",
        "heads",
        "history.csv",
        "table1.json",
        "table1.md",
    ]
    for row in (row for row in table.rows if not row.paper):
        loaded = load_heads(folder / "heads" / row.experiment.name)
        for head, trained in zip(loaded, row.heads, strict=True):
            np.testing.assert_array_equal(
                head.predict_logits(dataset.embeddings("test")), trained.head.predict_logits(dataset.embeddings("test"))
            )
    content = json.loads((folder / "table1.json").read_text())
    assert_no_nan(content)
    assert content == json.loads(json.dumps(table.to_json()))
    assert content["rows"][1]["paper"]["notebook_correct"] == 2
    assert content["rows"][0]["against_baseline"] is None
    assert (folder / "table1.md").read_text() == to_markdown(describe(table))
    assert (folder / "table1.md").read_text().count("\n| ") == 2 + len(TABLE1)
    assert (folder / "figure3.png").read_bytes() == figure3(table)
    assert figure3(table).startswith(b"\x89PNG")
    assert len((folder / "history.csv").read_text().splitlines()) == 1 + 9 * 3 * SETTINGS.epochs
    assert json.loads((folder / "config.json").read_text())["settings"] == SETTINGS.to_json()


def test_table1_on_a_split_that_is_too_small_says_so(tmp_path: Path) -> None:
    small = make_dataset(tmp_path, unseen_test_labels=5, silent_test_clips=27)
    result = table1(small, seeds=2, settings=TrainSettings(epochs=1, hidden=(4,)))
    assert result.clips["test"] == 18 and result.dropped == {"train": 0, "val": 0, "test": 27}
    assert all(row.test.n == 18 for row in result.rows), "single-stream rows use the same clips"
    assert (result.ceiling.reachable, result.ceiling.clips) == (8, 18)
    assert "18 test clips can't settle differences of this size" in result.verdict
    assert "0 train, 0 val, 27 test" in to_text(describe(result)) and "Use both" not in result.answer


def test_table1_reads_the_papers_streams_alone(dataset: Dataset, tmp_path: Path) -> None:
    quick = TrainSettings(epochs=2, hidden=(4,))
    more = make_dataset(tmp_path / "more", streams=(*DEFAULT_STREAMS, DINO))
    results = [table1(one, seeds=1, settings=quick) for one in (dataset, more)]
    figures = [[row.to_json() for row in one.rows] for one in results]
    assert figures[0] == figures[1]
    assert [one.unread for one in results] == [(), ("dino-s",)]
    assert results[0].note_on_streams == "" and "Not read: dino-s" in results[1].note_on_streams
    lone = make_dataset(tmp_path / "lone", streams=(DEFAULT_STREAMS[0], DINO))
    with pytest.raises(ExperimentError, match="has no stream 'ast': add it with `alphafuse data streams --add ast=MIT"):
        table1(lone, seeds=1, settings=quick)


def test_a_stream_that_is_not_extracted_yet_is_read_by_no_head_and_asked_for_by_its_name(tmp_path: Path) -> None:
    quick = TrainSettings(epochs=1, hidden=(4,))
    later = make_dataset(tmp_path / "later").with_streams((*DEFAULT_STREAMS, DINO))
    assert fit(later, BASELINE, settings=quick).experiment.streams == DEFAULT_NAMES
    message = r"have no dino-s embeddings yet: run `.* --stream dino-s .* with --stream timesformer,ast"
    for experiment in (Experiment(streams=("dino-s",)), Experiment("sqrt", on="dino-s,ast")):
        with pytest.raises(ExperimentError, match=message):
            fit(later, experiment, settings=quick)
    assert fit(later, Experiment(streams=DEFAULT_NAMES), settings=quick).experiment.reads_all


def test_fit_writes_a_complete_run_and_predictions_that_add_up(dataset: Dataset) -> None:
    progress = RecordedProgress()
    result = fit(dataset, Experiment("sqrt", on="ast"), seeds=2, first_seed=5, settings=SETTINGS, progress=progress)
    assert progress.rounds == [("AST sqrt, 2 heads", 2 * SETTINGS.epochs, "epoch")] and progress.stopped == 1
    assert sum(progress.done) == 2 * SETTINGS.epochs
    assert result.folder == dataset.root / "runs" / "sqrt-ast"
    config = json.loads((result.folder / "config.json").read_text())
    assert config["seeds"] == [5, 6] and config["experiment"]["transform"] == "sqrt"
    assert config["clips"] == SIZES and config["dropped"] == {"train": 0, "val": 0, "test": 0}
    assert config["embeddings"]["ast"] == {"protocol": "standard"}
    figures = json.loads((result.folder / "metrics.json").read_text())
    assert_no_nan(figures)
    with (result.folder / "predictions-test.csv").open(newline="") as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 2 * SIZES["test"]
    correct = np.mean([row["predicted"] == row["label"] for row in predictions])
    assert figures["test"]["top1"]["mean"] == pytest.approx(correct) == pytest.approx(result.splits["test"].top1.mean)
    assert figures["test"]["loss"]["mean"] == pytest.approx(np.mean([float(row["loss"]) for row in predictions]))
    assert len((result.folder / "history.csv").read_text().splitlines()) == 1 + 2 * SETTINGS.epochs


def test_heads_of_a_run_load_and_predict_the_same(dataset: Dataset) -> None:
    result = fit(dataset, Experiment("learned", on="ast"), seeds=3, settings=SETTINGS, run="three")
    loaded = load_heads(result.folder)
    test = dataset.embeddings("test")
    for ours, trained in zip(loaded, result.heads, strict=True):
        np.testing.assert_array_equal(ours.predict_proba(test), trained.head.predict_proba(test))
    first = AlphaFusion.from_pretrained(result.folder).predict_logits(test)
    np.testing.assert_array_equal(first, result.heads[0].head.predict_logits(test))


def test_fit_prints_both_splits_with_n_and_intervals(dataset: Dataset) -> None:
    result = fit(dataset, BASELINE, settings=SETTINGS)
    text = to_text(describe(result))
    assert "val" in text and "test" in text and " 45 " in text
    assert "95% intervals over source videos: Wilson (accuracy), t (loss)." in " ".join(text.split())
    assert "RunResult(untransformed, 1 seeds, val top1=" in repr(result)
    figures = json.loads((result.folder / "metrics.json").read_text())
    assert figures["answer"] == result.answer and result.answer.startswith("Right for ")


def test_fit_leaves_out_silent_clips_and_reports_them(tmp_path: Path) -> None:
    silent = make_dataset(tmp_path, silent_test_clips=3)
    dropped = fit(silent, BASELINE, settings=SETTINGS)
    assert dropped.splits["test"].n == 42 and dropped.splits["test"].dropped == 3
    assert "Left out because they lack a stream: 0 train, 0 val, 3 test." in to_text(describe(dropped)).replace(
        "\n  ", " "
    )
    zeros = fit(silent, BASELINE, settings=TrainSettings(epochs=1, hidden=(4,), absent="zeros"), run="zeros")
    assert zeros.splits["test"].n == 45


def test_a_run_is_replaced_only_by_a_complete_one(dataset: Dataset) -> None:
    quick = TrainSettings(epochs=1, hidden=(4,))
    first = fit(dataset, BASELINE, settings=quick, run="kept")
    before = (first.folder / "config.json").read_bytes()
    with pytest.raises(RuntimeError, match="half way"), replaced_run(dataset.root, "kept") as folder:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("half way")
    assert (first.folder / "config.json").read_bytes() == before
    fit(dataset, BASELINE, settings=quick, run="kept", first_seed=3)
    assert json.loads((first.folder / "config.json").read_text())["seeds"] == [3]
    assert not [path.name for path in (dataset.root / "runs").iterdir() if path.name.startswith(".")]


def test_the_same_run_twice_is_the_same_to_the_digit(dataset: Dataset) -> None:
    quick = TrainSettings(epochs=2, hidden=(4,))
    files = []
    for _ in range(2):
        folder = fit(dataset, BASELINE, seeds=2, settings=quick, run="twice").folder
        files.append({path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()})
    assert files[0] == files[1]


def test_bad_runs_and_seeds_are_named(dataset: Dataset, tmp_path: Path) -> None:
    for name in ("../elsewhere", ".hidden", "a b"):
        with pytest.raises(ExperimentError, match="can't name a run"):
            fit(dataset, BASELINE, run=name)
    with pytest.raises(ExperimentError, match="seeds must be a whole number of at least 1, not 0"):
        fit(dataset, BASELINE, seeds=0)
    clips = [Clip(split, f"{split}.mp4", CLASSES[0], split, split) for split in SIZES]
    unextracted = Dataset.create(tmp_path, Manifest(clips), name="new", clip_folder=tmp_path, classes=CLASSES)
    with pytest.raises(StoreError, match="alphafuse extract"):
        table1(unextracted, seeds=1)


def test_pos_scalar_is_the_papers_factor_or_the_notebooks_by_protocol(dataset: Dataset) -> None:
    train = dataset.embeddings("train")
    experiment = Experiment("pos-scalar", on="ast")
    paper = experiment.head_config(train, CLASSES, SETTINGS)
    made = {stream: {**settings, "protocol": "notebook"} for stream, settings in train.recipes.items()}
    notebook = experiment.head_config(replace(train, recipes=made), CLASSES, SETTINGS)
    ast = {"timesformer": torch.ones(1, 8), "ast": torch.ones(1, 6)}
    assert AlphaFusion(paper).fuse(ast)[0, 8:].tolist() == [1.5] * 6
    assert AlphaFusion(notebook).fuse(ast)[0, 8:].tolist() == [2.0] * 6
    assert AlphaFusion(notebook).fuse(ast)[0, :8].tolist() == [1.0] * 8

"""The one rule for the best run, pins, names of runs, and the heads that compare keeps."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.cli import Run, assert_one_line_error
from support.toy import make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.studies.best_run import best_run, find_best
from alphafuse.heads.studies.compare import compare
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.runs import list_runs, pin_run, read_run, resolve_run
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.report.page.votes import find_sides
from alphafuse.report.studies import write_compare
from alphafuse.system.files import read_json, write_json

QUICK = TrainSettings(epochs=1, hidden=(4,))
SCORED = "predictions-val.csv"
Make = Callable[..., Dataset]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: untransformed with 1 seed, and with 2 ("more"), gate, ast-only."""
    dataset = make_dataset(tmp_path_factory.mktemp("best") / "toy")
    fit(dataset, Experiment(), settings=QUICK)
    fit(dataset, Experiment(), seeds=2, settings=QUICK, run="more")
    fit(dataset, Experiment(fusion="gate"), settings=QUICK)
    fit(dataset, Experiment(streams="ast"), settings=QUICK)
    return dataset.root


@pytest.fixture
def dataset(trained: Path, tmp_path: Path) -> Dataset:
    """A copy in which every run is right on the same 9 of 27 validation clips, and test accuracy is misleading."""
    found = Dataset.open(shutil.copytree(trained, tmp_path / "toy"))
    for run in list_runs(found.root)[0]:
        be_right(run.folder, range(9))
        metrics = read_json(run.folder / "metrics.json")
        metrics["test"]["top1"]["mean"] = 0.0 if run.name == "more" else 1.0
        write_json(run.folder / "metrics.json", metrics)
    return found


def be_right(folder: Path, clips: range, interval: tuple[float, float] = (0.0, 1.0)) -> None:
    """Rewrite a run's predictions on validation: right on these clips, in every seed."""
    rows = list(csv.reader((folder / SCORED).open()))
    seeds = len({row[3] for row in rows[1:]})
    for i, row in enumerate(rows[1:]):
        row[5] = str(int(i % 27 in clips))
    with (folder / SCORED).open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    metrics = read_json(folder / "metrics.json")
    top1 = metrics["val"]["top1"]
    top1["mean"], top1["per_seed"] = len(clips) / 27, [len(clips) / 27] * seeds
    top1["interval"]["low"], top1["interval"]["high"] = interval
    write_json(folder / "metrics.json", metrics)


def test_the_untransformed_fusion_of_most_seeds_is_the_best_unless_noise_is_exceeded(dataset: Dataset) -> None:
    runs = dataset.root / "runs"
    assert best_run(dataset) == runs / "more" and "2 seeds" in find_best(dataset).why
    be_right(runs / "gate", range(12))  # 3 clips of 2 source videos more: p = .5
    assert best_run(dataset) == runs / "more"
    be_right(runs / "gate", range(27))
    assert best_run(dataset) == runs / "gate" and "better on validation than more" in find_best(dataset).why
    (runs / "gate" / SCORED).unlink()  # nothing to pair: the intervals overlap
    assert best_run(dataset) == runs / "more"
    be_right(runs / "more", range(9), interval=(0.2, 0.5))
    metrics = read_json(runs / "gate" / "metrics.json")
    metrics["val"]["top1"]["interval"]["low"] = 0.6
    write_json(runs / "gate" / "metrics.json", metrics)
    assert best_run(dataset) == runs / "gate"


def test_among_several_better_runs_the_test_is_corrected_for_their_number(dataset: Dataset) -> None:
    runs = dataset.root / "runs"
    be_right(runs / "gate", range(17))  # 8 clips of 5 source videos more: p = .025, times 3 others
    assert best_run(dataset) == runs / "more"
    shutil.rmtree(runs / "untransformed")
    shutil.rmtree(runs / "ast-only")
    assert best_run(dataset) == runs / "gate"


def test_a_pinned_run_wins_everywhere_until_it_is_deleted(dataset: Dataset) -> None:
    pin_run(dataset.root, "ast-only")
    assert best_run(dataset).name == "ast-only" and find_best(dataset).is_pinned
    pin_run(dataset.root, "gate")
    sides = find_sides(list_runs(dataset.root)[0], ("fused", "timesformer", "ast"), chosen=False, problems=[])
    assert {role: side.run.name for role, side in sides.items()} == {"fused": "gate", "ast": "ast-only"}
    shutil.rmtree(dataset.root / "runs" / "gate")
    with pytest.raises(ExperimentError, match=r"pinned run 'gate' is not in .*--unpin"):
        best_run(dataset)
    pin_run(dataset.root, None)
    assert best_run(dataset).name == "more"
    with pytest.raises(ExperimentError, match="no such run"):
        pin_run(dataset.root, "nothing")


def test_damaged_runs_are_no_candidates_and_without_runs_the_error_says_how_to_train(dataset: Dataset) -> None:
    (dataset.root / "runs" / "more" / "metrics.json").write_text("{}")
    assert best_run(dataset).name == "untransformed"
    shutil.rmtree(dataset.root / "runs")
    with pytest.raises(ExperimentError, match=r"no trained run in .*runs: train one with"):
        best_run(dataset)


def test_runs_are_listed_in_80_columns_and_pinned_by_name(run: Run, dataset: Dataset) -> None:
    code, out, _ = run("runs", "--root", dataset.root)
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert "* more" in out and "n=27" in out and "n=45" in out and "used when no run is named: the untransformed" in out
    found = json.loads(run("runs", "--pin", "gate", "--root", dataset.root, "--json")[1])
    assert (found["best"], found["pinned"]) == ("gate", "gate") and found["runs"][1]["fusion"] == "gate"
    assert {one["name"] for one in found["runs"]} == {"ast-only", "gate", "more", "untransformed"}
    assert_one_line_error(run("runs", "--pin", "none-such", "--root", dataset.root), "no such run", "alphafuse runs")
    shutil.rmtree(dataset.root / "runs" / "gate")
    assert "The pinned run 'gate' is not in" in " ".join(run("runs", "--root", dataset.root)[1].split())
    assert json.loads(run("runs", "--unpin", "--root", dataset.root, "--json")[1])["best"] == "more"


def test_a_name_of_a_run_means_the_same_in_every_command(run: Run, dataset: Dataset, tmp_path: Path) -> None:
    root = dataset.root
    assert resolve_run("gate", root) == root / "runs" / "gate" and resolve_run("a/gate", root) == Path("a/gate")
    code, out, err = run("evaluate", "gate", "--against", "more", "--root", root, "--json")
    found = json.loads(out)
    assert code == 0 and found["run"] == str(root / "runs" / "gate")
    assert found["against"]["run"] == str(root / "runs" / "more")
    code, out, err = run("evaluate", "--root", root, "--json")
    assert json.loads(out)["run"] == str(root / "runs" / "more") and "runs/more" in err
    assert run("export", tmp_path / "best", "--root", root)[0] == 0
    assert len(read_run(tmp_path / "best").heads) == 2
    assert run("export", "ast-only", tmp_path / "named", "--root", root)[0] == 0
    assert read_run(tmp_path / "named").streams == ("ast",)
    assert run("report", "gate", "--root", root)[0] == 0
    assert_one_line_error(run("evaluate", "nothing", "--root", root), "nothing")


def test_compare_keeps_the_heads_of_its_main_rows_and_never_replaces_other_runs(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "toy")
    runs = dataset.root / "runs"
    fit(dataset, Experiment(streams="ast"), settings=QUICK, seeds=2)  # as compare makes it
    fit(dataset, Experiment(), settings=QUICK)  # one seed
    mine = {name: (runs / name / "config.json").read_bytes() for name in ("ast-only", "untransformed")}
    table = compare(dataset, seeds=2, settings=QUICK)
    write_compare(table, dataset)
    assert {name: (runs / name / "config.json").read_bytes() for name in mine} == mine
    kept = {run.name for run in list_runs(dataset.root)[0] if run.config.get("kept_by") == "compare"}
    assert {"timesformer-only", "compare-untransformed"} <= kept and len(kept) == len(table.kept) - 1
    saved = read_run(runs / "compare-untransformed")
    test = dataset.embeddings("test")
    baseline = table.kept[0]
    for head, made in zip(saved.heads, baseline.heads, strict=True):
        np.testing.assert_array_equal(head.predict_logits(test), made.head.predict_logits(test))
    assert saved.metrics["test"]["top1"]["mean"] == table.rows[0].test.top1.mean
    assert best_run(dataset) == runs / "compare-untransformed"
    (runs / "untransformed").rename(tmp_path / "away")
    write_compare(compare(dataset, seeds=1, settings=QUICK), dataset)
    names = {run.name for run in list_runs(dataset.root)[0]}
    assert "compare-untransformed" not in names and len(read_run(runs / "untransformed").heads) == 1

"""Probes: each experiment's head, learning rate and weight decay, chosen on validation clips from one grid."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.progress import RecordedProgress
from support.toy import assert_no_nan, make_dataset

from alphafuse.cli.main import cli
from alphafuse.data.dataset import Dataset
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.studies.compare import CompareTable, compare, count_compare_heads
from alphafuse.heads.studies.fit import RunResult, fit
from alphafuse.heads.studies.runs import Run, read_run
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.report.page.sentences import run_facts
from alphafuse.report.studies import describe, write_compare
from alphafuse.report.tables import to_text

QUICK = TrainSettings(epochs=3, hidden=(16,), batch_size=16)
AST = Experiment(streams=("ast",))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def probed(dataset: Dataset) -> RunResult:
    return fit(dataset, AST, seeds=2, first_seed=3, settings=QUICK, probe=True, run="probed")


@pytest.fixture(scope="module")
def table(dataset: Dataset) -> CompareTable:
    progress = RecordedProgress()
    once = replace(QUICK, epochs=1, batch_size=90, hidden=())  # linear heads only: half of the grid
    table = compare(dataset, seeds=1, first_seed=3, settings=once, probe=True, progress=progress)
    assert sum(progress.done) == count_compare_heads(["timesformer", "ast"], 1, probe=once)
    return table


def test_a_probe_chooses_what_a_loop_of_fits_over_its_grid_chooses(dataset: Dataset, probed: RunResult) -> None:
    figures = {}
    for hidden, rate, decay in product([(), (16,)], [1e-4, 1e-3, 1e-2], [0, 1e-4, 1e-2]):
        settings = replace(QUICK, hidden=hidden, learning_rate=rate, weight_decay=decay)
        val = fit(dataset, AST, first_seed=3, settings=settings, run="point").splits["val"]
        figures[settings] = (-val.top1.mean, val.loss.mean)
    assert probed.probe is not None
    tried = {point.settings: (-point.top1, point.loss) for point in probed.probe.points}
    assert list(tried) == list(figures) and len(tried) == 18
    np.testing.assert_allclose(list(tried.values()), list(figures.values()), rtol=1e-6)
    best = min(figures, key=lambda settings: figures[settings])
    assert probed.settings == probed.probe.settings == best
    again = fit(dataset, AST, seeds=2, first_seed=3, settings=best, run="again")
    assert again.to_json() == probed.to_json(), "all seeds use the chosen point; test is scored by its heads alone"
    assert figures[best] < max(figures.values()), "the points differ"


def test_a_probes_choice_is_one_line_with_the_number_of_clips_that_chose(probed: RunResult) -> None:
    assert probed.probe is not None
    text = " ".join(to_text(describe(probed)).split())
    assert f"Probe: {probed.probe.sentence}; val figures are those of the best" in text
    assert probed.probe.sentence.endswith(", the best of 18 on 27 validation clips")
    assert "learning rate 1e-2, weight decay" in probed.probe.sentence, "3 epochs need the highest rate"


@pytest.mark.parametrize("experiment", [AST, Experiment(rates={"ast": 2.0})], ids=["command line", "python"])
def test_the_command_of_a_probed_run_makes_the_same_run_again(
    dataset: Dataset, tmp_path: Path, experiment: Experiment
) -> None:
    root = tmp_path / "root"
    shutil.copytree(dataset.root, root)
    once = replace(QUICK, epochs=1)
    made = fit(Dataset.open(root), experiment, first_seed=3, settings=once, probe=True, run="probed")
    before = {path.name: path.read_bytes() for path in made.folder.glob("*.*")}
    command = Run.open(made.folder, root).command
    shutil.rmtree(made.folder)
    if command.startswith("alphafuse "):
        words = shlex.split(command)[1:]
        assert "--probe" in words and not {"--learning-rate", "--weight-decay"} & set(words)
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0 and "the best of 18" in " ".join(result.output.split())
    else:
        import alphafuse

        assert made.probe is not None
        assert len(made.probe.points) == 6, "rates per stream don't go with weight decay"
        eval(command, {"alphafuse": alphafuse})
    assert {path.name: path.read_bytes() for path in made.folder.glob("*.*")} == before


def test_a_probed_run_is_read_like_any_other_and_says_what_was_chosen(dataset: Dataset, probed: RunResult) -> None:
    run = read_run(probed.folder)
    assert run.config["settings"] == probed.settings.to_json()
    assert all(head.config.settings.hidden == probed.settings.hidden for head in run.heads)
    test = dataset.embeddings("test")
    for ours, trained in zip(run.heads, probed.heads, strict=True):
        np.testing.assert_array_equal(ours.predict_logits(test), trained.head.predict_logits(test))
    recorded = run.config["probe"]
    assert_no_nan(recorded)
    assert recorded["val_clips"] == 27 and recorded["seed"] == 3 and recorded["chosen"] in recorded["points"]
    assert probed.probe is not None
    assert ("probe", probed.probe.sentence) in run_facts(Run.open(probed.folder, dataset.root))


def test_every_row_of_a_probed_comparison_has_a_choice_of_its_own(dataset: Dataset, table: CompareTable) -> None:
    rows = {row.title: row for row in table.rows}
    assert rows.pop("late: mean probability").probe is None
    assert all(row.probe and len(row.probe.points) in (9, 3) for row in rows.values())
    assert len({row.probe.settings for row in rows.values() if row.probe}) > 1
    alone = fit(dataset, AST, first_seed=3, settings=table.settings, probe=True, run="alone")
    row = rows["AST only"]
    assert row.probe and alone.probe and row.probe.settings == alone.settings
    np.testing.assert_allclose(row.test.scores.loss, alone.splits["test"].scores.loss, rtol=1e-5)


def test_a_probed_comparison_prints_and_records_each_choice(dataset: Dataset, table: CompareTable) -> None:
    text = to_text(describe(table), wide=True)
    assert max(map(len, text.splitlines())) <= 124
    assert "are the best of 9" in text and "on 27 validation clips, with seed 3" in " ".join(text.split())
    folder = write_compare(table, dataset)
    with (folder / "compare.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    chosen = json.loads((folder / "compare.json").read_text())["rows"][0]["probe"]["chosen"]
    assert float(first["rate"]) == chosen["learning_rate"] and float(first["decay"]) == chosen["weight_decay"]
    assert first["head"] == "linear" and chosen["hidden"] == []
    words = shlex.split(Run.open(folder, dataset.root).command)
    assert (
        words[:2] == ["alphafuse", "compare"] and "--probe" in words and words[words.index("--hidden") + 1] == "linear"
    )


def test_a_probe_of_linear_heads_has_half_of_the_points_and_no_rate_of_its_own(dataset: Dataset) -> None:
    linear = replace(QUICK, hidden=(), epochs=1)
    probe = fit(dataset, AST, settings=linear, probe=True, run="linear").probe
    assert probe is not None and len(probe.points) == 9
    for name, value in {"learning_rate": 3e-3, "weight_decay": 0.1}.items():
        with pytest.raises(ExperimentError, match=f"chooses .* itself: leave out --{name.replace('_', '-')}$"):
            fit(dataset, AST, settings=replace(QUICK, **{name: value}), probe=True)

"""Sweeps along alpha: chosen on validation, tested once, reproduced from their config.json."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.toy import CLAP, DINO, SETTINGS, assert_no_nan, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import DEFAULT_STREAMS
from alphafuse.errors import ClusterError, ExperimentError
from alphafuse.heads.model.config import BASELINE, Experiment
from alphafuse.heads.scoring.choice import choose_weight
from alphafuse.heads.studies.compare import compare
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.runs import read_sweep_config
from alphafuse.heads.studies.same_clips import Trained, best_on_validation
from alphafuse.heads.studies.sweep import Sweep, parse_alphas, sweep
from alphafuse.heads.studies.table1 import table1
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.report.studies import describe, write_sweep
from alphafuse.report.tables import to_text

ALPHAS = (0.0, 0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def found(dataset: Dataset) -> Sweep:
    return sweep(dataset, on=("timesformer", "ast"), alphas=ALPHAS, seeds=2, settings=SETTINGS)


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0:2:0.25", (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2)),
        ("0:1:0.3", (0, 0.3, 0.6, 0.9)),
        ("0.1:0.3:0.1", (0.1, 0.2, 0.3)),
        ("2:1:-0.5", (2, 1.5, 1)),
        ("0.5, 1,4", (0.5, 1, 4)),
    ],
)
def test_alphas_are_decimal_and_include_the_end(text: str, alphas: tuple[float, ...]) -> None:
    assert parse_alphas(text) == alphas


@pytest.mark.parametrize("text", ["", "a:b:c", "0:1", "0:1:0", "1:0:0.1", "0:1:1e-9", "0:inf:1"])
def test_text_that_is_not_a_list_of_alphas_is_refused(text: str) -> None:
    with pytest.raises(ExperimentError, match=r"invalid alphas|means \d+ alphas"):
        parse_alphas(text)


def test_alpha_zero_is_the_other_stream_alone_and_alpha_one_the_baseline(found: Sweep) -> None:
    for curve in found.curves.values():
        assert [point.experiment.alpha for point in curve] == list(ALPHAS)
        assert curve[0].val.top1.mean < 0.6 < curve[2].val.top1.mean
        np.testing.assert_allclose(curve[2].val.scores.loss, found.baseline.val.scores.loss, rtol=1e-4)


def test_only_the_chosen_alpha_is_tested_and_the_untransformed_heads_stay_unless_one_is_better(found: Sweep) -> None:
    for on, curve in found.curves.items():
        assert all(point.test is None for point in curve)
        candidates = [found.baseline, *curve]
        losses = np.stack([point.val.scores.loss for point in candidates])
        choice = choose_weight(losses, found.baseline.val.groups, equal=0)
        chosen = found.chosen[on]
        assert chosen.is_untransformed == bool(choice.inside[0])
        expected = 1.0 if chosen.is_untransformed else curve[choice.best - 1].experiment.alpha
        assert chosen.alpha == expected and chosen.point in curve
        assert set(chosen.as_good) == {alpha for alpha, good in zip(ALPHAS, choice.inside[1:], strict=True) if good}
        assert 0.0 not in chosen.as_good, "without the stream"
        assert chosen.test.split == "test" and chosen.test.n == found.clips["test"]
        assert chosen.comparison.interval.low <= chosen.comparison.test.difference <= chosen.comparison.interval.high


def test_a_curve_without_alpha_1_can_keep_the_untransformed_heads_and_says_so(dataset: Dataset) -> None:
    found = sweep(dataset, on=["ast"], alphas=(0.25, 0.5), seeds=1, settings=SETTINGS)
    chosen = found.chosen["ast"]
    assert chosen.is_untransformed and chosen.point.experiment == found.baseline.experiment and chosen.alpha == 1.0
    assert chosen.comparison.test.difference == 0
    assert "Keep AST as it is: 27 validation clips don't show that another alpha" in to_text(describe(found))
    assert (write_sweep(found, dataset, run="kept") / "sweep.png").is_file()


def test_a_curve_may_be_on_several_streams_or_all_and_words_for_the_same_streams_are_one_curve(tmp_path: Path) -> None:
    three = make_dataset(tmp_path, streams=(*DEFAULT_STREAMS, DINO))
    on = ["dino-s,ast", "all", "ast,timesformer,dino-s"]
    found = sweep(three, on=on, alphas=(0.5,), seeds=1, settings=TrainSettings(epochs=1, hidden=(4,)))
    assert list(found.curves) == list(found.on) == ["ast,dino-s", "all"]
    assert [curve[0].experiment.transformed for curve in found.curves.values()] == [
        ("ast", "dino-s"),
        ("timesformer", "ast", "dino-s"),
    ]
    assert found.name == "sweep-ast+dino-s-all" and found.baseline.experiment.name == "untransformed"


def test_a_sweep_of_one_stream_and_no_other(tmp_path: Path) -> None:
    lone = make_dataset(tmp_path, streams=(CLAP,))
    found = sweep(lone, on=["all"], alphas=(0.5, 1.0), seeds=1, settings=TrainSettings(epochs=2, hidden=(4,)))
    assert found.on == ("clap",)
    np.testing.assert_allclose(found.curves["clap"][1].val.scores.loss, found.baseline.val.scores.loss, rtol=1e-5)


def test_a_chosen_alpha_is_the_same_experiment_that_fit_trains(dataset: Dataset, found: Sweep) -> None:
    chosen = found.chosen["ast"]
    alone = fit(dataset, chosen.point.experiment, seeds=2, settings=SETTINGS, run="alone")
    np.testing.assert_allclose(alone.splits["test"].scores.loss, chosen.test.scores.loss, rtol=1e-4)


def test_a_sweep_is_reproduced_to_the_digit_from_its_config(dataset: Dataset, found: Sweep) -> None:
    folder = write_sweep(found, dataset)
    again = sweep(dataset, **read_sweep_config(folder / "config.json"))
    assert json.dumps(again.to_json()) == json.dumps(found.to_json())
    other = write_sweep(again, dataset, run="again")
    for name in ("config.json", "sweep.json", "sweep.csv", "history.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_a_sweeps_folder_holds_csv_json_and_plot(dataset: Dataset, found: Sweep) -> None:
    folder = write_sweep(found, dataset)
    assert folder == dataset.root / "runs" / "sweep-timesformer-ast"
    content = json.loads((folder / "sweep.json").read_text())
    assert_no_nan(content)
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 2 * len(ALPHAS)
    chosen = [row for row in rows if row["chosen"] == "1"]
    assert [(row["on"], float(row["alpha"])) for row in chosen] == [
        (on, content["chosen"][on]["alpha"]) for on in ("timesformer", "ast")
    ]
    assert [bool(row["test_top1"]) for row in rows] == [row["on"] == "" or row["chosen"] == "1" for row in rows]
    assert float(chosen[1]["test_top1"]) == content["chosen"]["ast"]["test"]["top1"]["mean"]
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_a_sweep_prints_in_80_columns_and_its_caveats_with_wide(found: Sweep) -> None:
    narrow, text = (to_text(describe(found), wide=wide) for wide in (False, True))
    assert max(map(len, narrow.splitlines())) <= 80 and max(map(len, text.splitlines())) <= 120
    assert " ".join(narrow.split()).startswith(found.answer) and found.answer == found.to_json()["answer"]
    assert sum(" chosen " in line and line.startswith(("TimeSformer ", "AST ")) for line in narrow.splitlines()) == 2
    for words in ("scored once", "Ceiling: val 100.0%, test 100.0%", "n = 27 val and 45 test clips", "Holm-corrected"):
        assert words in text
    assert "change nothing" in to_text(describe(replace(found, settings=replace(SETTINGS, normalize="zscore"))))


def test_ties_of_accuracy_are_decided_by_the_lowest_loss(found: Sweep) -> None:
    def point(top1: float, loss: float) -> Trained:
        val = found.baseline.val
        return replace(
            found.baseline, val=replace(val, top1=replace(val.top1, mean=top1), loss=replace(val.loss, mean=loss))
        )

    points = [point(0.5, 0.1), point(0.75, 0.9), point(0.75, 0.8), point(0.75, 0.85)]
    assert best_on_validation(points) is points[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on": (), "alphas": (1.0,)}, "needs streams and alphas"),
        ({"on": ("ast",), "alphas": (1.0, 1.0)}, "occurs twice"),
        ({"on": ("ast",), "alphas": (1.0,), "transform": "sqrt"}, r"'sqrt' takes no alpha to sweep: choose from power"),
        ({"on": ("smell",), "alphas": (1.0,)}, "unknown stream 'smell'"),
        ({"on": ("ast,smell",), "alphas": (1.0,)}, "unknown stream 'smell'"),
        ({"on": ("ast",), "alphas": (1.0,), "transform": "sqr"}, "unknown transform 'sqr'"),
    ],
)
def test_bad_sweeps_are_named(dataset: Dataset, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        sweep(dataset, **arguments)  # type: ignore[arg-type]


def test_a_config_that_is_not_of_a_sweep_is_refused_by_name(dataset: Dataset, tmp_path: Path) -> None:
    run = fit(dataset, Experiment(), settings=replace(SETTINGS, epochs=1))
    with pytest.raises(ExperimentError, match=r"is not the config.json of a sweep"):
        read_sweep_config(run.folder / "config.json")


@pytest.mark.parametrize("train", [sweep, fit, table1, compare])
def test_an_unknown_engine_is_refused_before_anything_is_read(dataset: Dataset, train: Callable[..., object]) -> None:
    more: dict[str, object] = {"on": ["ast"], "alphas": [1]} if train is sweep else {}
    arguments = [dataset, BASELINE] if train is fit else [dataset]
    with pytest.raises(ClusterError, match=r"unknown engine 'rya' .did you mean 'ray'"):
        train(*arguments, engine="rya", **more)

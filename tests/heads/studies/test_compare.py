"""The comparison of everything, on data where only both streams together identify the class."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from support.progress import RecordedProgress
from support.toy import CLAP, DINO, SETTINGS, assert_no_nan, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import DEFAULT_NAMES, DEFAULT_STREAMS, Stream, in_order
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.model.fusion import FUSIONS
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.model.transforms import TRANSFORMS
from alphafuse.heads.studies.compare import CompareTable, Grid, compare, count_compare_heads, published_results
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.report.studies import describe, write_compare
from alphafuse.report.tables import to_markdown, to_text

PROGRESS = RecordedProgress()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def table(dataset: Dataset) -> CompareTable:
    return compare(dataset, seeds=2, settings=SETTINGS, progress=PROGRESS)


def test_every_fusion_every_transform_and_the_controls_have_a_row(table: CompareTable) -> None:
    experiments = [row.experiment for row in table.rows if row.experiment]
    assert {e.fusion for e in experiments} == set(FUSIONS)
    for stream in DEFAULT_NAMES:
        assert Experiment(streams=(stream,)) in experiments
        transforms = {e.transform for e in experiments if e.on == stream}
        assert transforms >= {name for name, t in TRANSFORMS.items() if t.alpha != "required"} - {"none"}
    assert {e.normalize for e in experiments} >= {"zscore", "l2"}
    assert any(e.auxiliary for e in experiments)
    groups = [row.group for row in table.rows]
    assert groups == sorted(groups, key=["baseline", "alone", "fusion", "transform", "control"].index)
    heads = len(Grid.of(DEFAULT_NAMES).experiments) + 1  # gradient blending comes on top
    assert sum(PROGRESS.done) == count_compare_heads(DEFAULT_NAMES, 2) * SETTINGS.epochs == heads * 2 * SETTINGS.epochs


@pytest.mark.parametrize("streams", [(*DEFAULT_STREAMS, DINO), (CLAP, DINO, *DEFAULT_STREAMS)], ids=len)
def test_streams_are_compared_alone_in_pairs_and_without_each(tmp_path: Path, streams: tuple[Stream, ...]) -> None:
    quick, progress = TrainSettings(epochs=1, hidden=(4,)), RecordedProgress()
    table = compare(make_dataset(tmp_path, streams=streams), seeds=1, settings=quick, progress=progress)
    names = in_order(stream.name for stream in streams)
    assert sum(progress.done) == count_compare_heads(names, 1)
    alone = [row.experiment.streams for row in table.rows if row.group == "alone" and row.experiment]
    assert alone == [(name,) for name in names]
    some = [row.experiment.streams for row in table.rows if row.group == "some" and row.experiment]
    left_out = [tuple(other for other in names if other != name) for name in names] if len(names) > 3 else []
    assert some == [*combinations(names, 2), *left_out], "each set of streams once"
    titles = [row.title for row in table.rows]
    assert "TimeSformer + dino-s" in titles and ("without TimeSformer" in titles) == (len(names) == 4)
    assert len(set(titles)) == len(titles) and sum(title.startswith("dino-s rate x ") for title in titles) == 1
    assert set(table.blend) == {*names, "fused"} and table.tuned == "dino-s"
    assert_no_nan(json.loads(json.dumps(table.to_json())))


def test_one_stream_alone_has_transforms_and_controls_and_nothing_to_fuse(tmp_path: Path) -> None:
    table = compare(make_dataset(tmp_path, streams=(CLAP,)), seeds=1, settings=TrainSettings(epochs=1, hidden=(4,)))
    assert {row.group for row in table.rows} == {"baseline", "transform", "control"}
    assert table.gains == () and table.resolvable_gain is None and table.blend == {} and table.tuned == "clap"
    assert table.to_json()["gains_of_fusing"] == [] and "sound (clap)" in table.answer
    assert all(row.experiment and row.experiment.streams == ("clap",) for row in table.rows)


def test_concat_beats_both_streams_by_more_than_the_interval(table: CompareTable) -> None:
    concat, *others = table.rows
    alone = [row for row in others if row.group == "alone"]
    assert concat.test.top1.mean > max(row.test.top1.mean for row in alone) + 0.2
    assert all(row.comparison and row.comparison.interval.high < 0 for row in alone)
    assert table.answer.startswith("Use both: ")


def test_the_gain_over_each_stream_is_that_of_its_row_with_the_tables_corrected_p(table: CompareTable) -> None:
    alone = {row.experiment.streams[0]: row for row in table.rows if row.group == "alone" and row.experiment}
    assert {gain.stream for gain in table.gains} == set(alone)
    assert [*table.gains] == sorted(table.gains, key=lambda one: one.gain.test.difference)
    for one in table.gains:
        row = alone[one.stream].comparison
        assert row and one.gain.p_holm == row.p_holm and one.gain.test.difference == -row.test.difference
        assert (one.gain.interval.low, one.gain.interval.high) == (-row.interval.high, -row.interval.low)


def test_late_fusion_is_the_mean_of_the_streams_probabilities(dataset: Dataset, table: CompareTable) -> None:
    late = next(row for row in table.rows if row.experiment is None)
    test = dataset.embeddings("test")
    for position, seed in enumerate(table.seeds):
        heads = [
            fit(dataset, Experiment(streams=(m,)), first_seed=seed, settings=SETTINGS, run="single").heads[0].head
            for m in DEFAULT_NAMES
        ]
        mean = np.mean([head.predict_proba(test) for head in heads], axis=0)
        targets = [dataset.classes.index(label) for label in test.labels]
        losses = -np.log(mean[np.arange(len(test)), targets])
        np.testing.assert_allclose(late.test.scores.loss[position], losses, rtol=1e-3)
        np.testing.assert_array_equal(late.test.scores.predicted[position], mean.argmax(axis=1))


def test_tuned_settings_are_chosen_on_validation(table: CompareTable) -> None:
    chosen = [row for row in table.rows if "(chosen)" in row.title]
    assert [row.group for row in chosen] == ["transform", "control"]
    baseline = table.rows[0]
    assert all(row.val.top1.mean >= baseline.val.top1.mean for row in chosen)


def test_blending_weights_sum_to_one(table: CompareTable) -> None:
    assert set(table.blend) == {*DEFAULT_NAMES, "fused"}
    assert math.isclose(sum(table.blend.values()), 1) and min(table.blend.values()) >= 0


def test_p_values_are_corrected_for_all_rows(table: CompareTable) -> None:
    comparisons = [row.comparison for row in table.rows[1:]]
    assert all(comparisons)
    smallest = min(c.test.p_value for c in comparisons if c)
    assert min(c.p_holm for c in comparisons if c) == pytest.approx(min(1.0, smallest * len(comparisons)))


def test_the_comparison_prints_in_80_columns_and_with_wide_everything(table: CompareTable) -> None:
    text, wide = (to_text(describe(table), wide=wide) for wide in (False, True))
    assert max(map(len, text.splitlines())) <= 80 and max(map(len, wide.splitlines())) <= 124
    assert " ".join(text.split()).startswith(f"{table.answer} Fusing gains, the smallest first: +")
    for words in ("n = 45 test clips", "Holm-corrected", "Ceiling: 100.0%", "test was scored once", "  p  ", "loss"):
        assert words in wide and words not in text
    verdicts = [row for row in text.splitlines() if row.endswith(("better", "worse", "undecided"))]
    assert len(verdicts) == len(table.rows) - 1
    lines = to_markdown(describe(table)).splitlines()
    assert sum(line.startswith("|") for line in lines) == 2 + len(table.rows)
    assert lines[2] == table.answer == table.to_json()["answer"]


def test_published_figures_are_printed_under_vggsound_alone(table: CompareTable) -> None:
    assert "UAVM" not in to_text(describe(table)) and table.to_json()["published"] == []
    source = {"name": "vggsound", "source": {"csv_sha256": "0" * 64}}
    other = replace(table, classes=309, provenance={**table.provenance, "dataset": source})
    text = to_text(describe(other))
    assert "UAVM" in text and "65.9" in text and max(map(len, text.splitlines())) <= 80
    assert len(other.to_json()["published"]) == len(published_results())
    assert "UAVM" not in to_text(describe(replace(other, classes=30)))


def test_placeholder_encoders_are_named_beside_accuracies(table: CompareTable) -> None:
    assert table.note_on_encoders == ""
    compact = replace(table, provenance={**table.provenance, "encoders": {"ast": {"name": "compact"}}})
    assert "AST is a compact encoder" in to_text(describe(compact))
    assert compact.to_json()["note_on_encoders"] == compact.note_on_encoders != ""


def test_the_comparisons_folder_holds_csv_json_and_markdown(dataset: Dataset, table: CompareTable) -> None:
    folder = write_compare(table, dataset)
    content = json.loads((folder / "compare.json").read_text())
    assert_no_nan(content)
    assert content == json.loads(json.dumps(table.to_json()))
    with (folder / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["test_top1"]) for row in rows] == [row.test.top1.mean for row in table.rows]
    assert json.loads((folder / "config.json").read_text())["kind"] == "compare"


def test_published_results_name_their_source() -> None:
    rows = published_results()
    assert len(rows) >= 5 and all(row.repository and row.file for row in rows)
    shares = [share for row in rows for share in (row.audio, row.visual, row.both) if share is not None]
    assert all(0.2 < share < 0.8 for share in shares)


def test_clips_without_audio_are_left_out_of_every_row(tmp_path_factory: pytest.TempPathFactory) -> None:
    silent = make_dataset(tmp_path_factory.mktemp("silent"), silent_test_clips=3)
    run = fit(silent, Experiment(fusion="gate"), settings=SETTINGS)
    assert run.splits["test"].dropped == 3
    head = AlphaFusion.from_pretrained(run.folder)
    assert np.isnan(head.predict_proba(silent.embeddings("test"))).any(axis=1).sum() == 3

"""The report: its data equal the runs' files, its figures show them, and its page works in a real browser."""

from __future__ import annotations

import base64
import csv
import html as html_text
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from support.browser import keep_screenshot, running_chromium, wait_until
from support.clips import write_clip
from support.toy import CLASSES, SETTINGS, make_dataset, silence_label

from alphafuse.cli.main import cli
from alphafuse.data.dataset import Dataset
from alphafuse.data.splits import Ceiling
from alphafuse.errors import ExperimentError
from alphafuse.extract.decoding.decode import decode_clip
from alphafuse.extract.decoding.specs import SAMPLE_RATE_HZ
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.scoring.statistics import wilson_interval
from alphafuse.heads.studies.compare import compare
from alphafuse.heads.studies.contribute import contribute
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.runs import Run, pin_run, read_history
from alphafuse.heads.studies.sweep import sweep
from alphafuse.heads.studies.table1 import paper_results, table1
from alphafuse.heads.studies.weigh import weigh
from alphafuse.report import figures as draw
from alphafuse.report.contents import (
    Ablation,
    Absent,
    ClassShare,
    Confusion,
    Measure,
    Offer,
    Report,
    Vote,
    Votes,
    Weights,
)
from alphafuse.report.contribute import write_contribution
from alphafuse.report.looks import looks_of, roles_of
from alphafuse.report.page.build import build_report, write_report
from alphafuse.report.page.excerpts import excerpts
from alphafuse.report.page.html import TEMPLATES, class_ends, draw_figures, render_page
from alphafuse.report.page.sections import collect, find_runs
from alphafuse.report.page.sentences import answer, classes_in_words, interval_methods, run_facts, whose_heads
from alphafuse.report.page.votes import HARDEST, find_sides, finding_of
from alphafuse.report.studies import write_compare, write_sweep, write_table1
from alphafuse.report.weigh import write_weigh
from alphafuse.system.files import read_json, write_json

HOSTILE = "<script>document.title='taken'</script>"
LABELS = (
    HOSTILE,
    "costs $x^{2$ & more <b>",
    'a very long label, quoted "so" and going on for long, longer and longest: people marching, crowd cheering',
    *(f"sight {i // 3}, sound {i % 3}" for i in range(3, 9)),
)
QUICK = replace(SETTINGS, epochs=6)
MEDIA = {"timesformer": "video", "ast": "audio"}
ROLES, LOOKS = roles_of(MEDIA), looks_of(MEDIA)


def make_root(root: Path) -> Dataset:
    """Make a root with unusual labels, two unseen ones, two silent test clips and all kinds of runs."""
    dataset = make_dataset(root, unseen_test_labels=2, silent_test_clips=2, classes=LABELS, name="toy <i>&amp;</i> co")
    write_table1(table1(dataset, seeds=3, settings=QUICK), dataset)
    write_sweep(sweep(dataset, on=("timesformer", "ast"), alphas=(0.5, 1.0), seeds=2, settings=QUICK), dataset)
    compared = compare(dataset, seeds=1, settings=replace(QUICK, epochs=2))
    write_compare(replace(compared, kept=()), dataset)  # as if the user had deleted the runs that it keeps
    write_contribution(contribute(dataset, refits=2), dataset)
    fit(dataset, Experiment("sqrt", on="ast"), seeds=2, settings=QUICK)
    fit(dataset, Experiment(fusion="attention"), seeds=2, settings=replace(QUICK, epochs=1), run="badly-trained")
    fit(dataset, Experiment(streams=("timesformer",)), seeds=2, settings=QUICK)
    for position, clip in enumerate(dataset.manifest.of_split("test")[::3]):
        write_clip(dataset.path_of(clip), look=position)
    pin_run(dataset.root, "sqrt-ast")
    return dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_root(tmp_path_factory.mktemp("report") / "root")


@pytest.fixture(scope="module")
def built(dataset: Dataset) -> tuple[Report, dict[str, Any]]:
    return build_report(dataset)


@pytest.fixture(scope="module")
def report(built: tuple[Report, dict[str, Any]]) -> Report:
    return built[0]


@pytest.fixture(scope="module")
def votes(report: Report) -> Votes:
    assert isinstance(report.votes, Votes)
    return report.votes


@pytest.fixture(scope="module")
def html(built: tuple[Report, dict[str, Any]]) -> str:
    return render_page(*built)


def predictions(run: Path) -> dict[str, list[dict[str, str]]]:
    """seed -> rows of a run's predictions-test.csv."""
    found: dict[str, list[dict[str, str]]] = {}
    with (run / "predictions-test.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["seed"], []).append(row)
    return found


# choice of runs and heads


def test_all_kinds_of_runs_are_found_and_a_damaged_one_is_left_out_with_a_line(
    dataset: Dataset, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(dataset.root, root)
    (root / "runs" / "broken").mkdir()
    (root / "runs" / "broken" / "config.json").write_text('{"kind": "fit"}')
    (root / "runs" / "notes").mkdir()
    (root / "runs" / ".sqrt-ast.1234.partial").mkdir()
    runs, left_out = find_runs(Dataset.open(root), [])
    assert {(run.name, run.kind) for run in runs} == {
        ("table1", "table1"),
        ("sweep-timesformer-ast", "sweep"),
        ("compare", "compare"),
        ("contribute", "contribute"),
        ("sqrt-ast", "fit"),
        ("badly-trained", "fit"),
        ("timesformer-only", "fit"),
    }
    assert re.search(r"broken can't be used as a run: it lacks 'seeds': make it again", left_out[0])
    assert re.search(r"no run in .*notes \(it has no config.json\)", left_out[1])
    assert len(left_out) == 2


def test_damaged_files_of_runs_remove_their_sections_and_not_the_page(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(dataset.root, root)
    (root / "runs" / "sqrt-ast" / "metrics.json").write_text('{"val": {"top1"')
    (root / "runs" / "badly-trained" / "head" / "model.safetensors").write_bytes(b"half")
    (root / "runs" / "table1" / "table1.json").write_text('{"rows": []}')
    (root / "runs" / "table1" / "history.csv").write_text("")
    (root / "runs" / "compare" / "compare.json").write_text('{"rows": [], "reachable_ceiling": 3}')
    (root / "runs" / "sweep-timesformer-ast" / "sweep.json").write_text("")
    runs, left_out = find_runs(Dataset.open(root), [])
    sides = find_sides(runs, ROLES, False, left_out)
    assert sides["fused"].path == root / "runs" / "table1" / "heads" / "untransformed"
    report = collect(Dataset.open(root), runs, left_out, Absent("no predictions"))
    assert isinstance(report.table, Absent) and isinstance(report.losses, Absent) and not report.sweeps
    assert isinstance(report.ablation, Ablation)
    assert {bar.group for bar in report.ablation.bars} == {"single runs"}
    for run in ("sqrt-ast", "badly-trained", "table1", "compare", "sweep-timesformer-ast"):
        assert any(f"runs/{run}" in line for line in report.left_out), run
    page = render_page(report, draw_figures(report))
    assert 'runs or files could not be used: see <a href="#left-out">' in page and page.count('id="left-out"') == 1
    assert "TimeSformer only: right on" in " ".join(answer(report))


def test_only_named_runs_are_shown_and_they_must_be_runs(dataset: Dataset, tmp_path: Path) -> None:
    named = dataset.root / "runs" / "table1"
    assert [run.folder for run in find_runs(dataset, [named])[0]] == [named]
    with pytest.raises(ExperimentError, match=r"no run in .*nothing \(it has no config.json\)"):
        find_runs(dataset, [tmp_path / "nothing"])


def test_a_root_without_runs_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"no run in .* to report on: make one with `alphafuse weigh --root"):
        write_report(make_dataset(tmp_path / "empty"), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_heads_shown_are_those_of_the_pinned_the_best_or_the_named_run(dataset: Dataset, votes: Votes) -> None:
    runs = dataset.root / "runs"
    sides = find_sides(
        [run for run in find_runs(dataset, [])[0] if run.name != "sqrt-ast"], ROLES, chosen=False, problems=[]
    )
    assert sides["fused"].path == runs / "table1" / "heads" / "untransformed"
    assert votes.fused.path == runs / "sqrt-ast"
    assert votes.alone["timesformer"].path == runs / "timesformer-only"
    assert votes.alone["ast"].path == runs / "table1" / "heads" / "ast-only"
    named, _ = build_report(dataset, runs=[runs / "badly-trained", runs / "table1"])
    assert isinstance(named.votes, Votes)
    assert named.votes.fused.path == runs / "badly-trained"
    assert named.votes.alone["timesformer"].path == runs / "table1" / "heads" / "timesformer-only"


@pytest.mark.parametrize(
    "name", ["sqrt-ast", "badly-trained", "timesformer-only", "sweep-timesformer-ast", "table1", "contribute"]
)
def test_the_command_of_a_run_makes_the_same_run_again(dataset: Dataset, tmp_path: Path, name: str) -> None:
    root = tmp_path / "a root"
    shutil.copytree(dataset.root, root)
    (run,) = find_runs(Dataset.open(root), [root / "runs" / name])[0]
    before = {path.name: path.read_bytes() for path in run.folder.glob("*.*") if path.suffix in (".json", ".csv")}
    shutil.rmtree(run.folder)
    result = CliRunner().invoke(cli, shlex.split(run.command)[1:])
    assert result.exit_code == 0, result.output
    again = {path.name: path.read_bytes() for path in run.folder.glob("*.*") if path.suffix in (".json", ".csv")}
    assert again == before


def test_a_run_that_no_command_line_makes_is_reproduced_in_python(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(dataset.root, root)
    made = fit(Dataset.open(root), Experiment(rates={"ast": 2.0}), settings=QUICK, run="rates")
    (run,) = find_runs(Dataset.open(root), [made.folder])[0]
    import alphafuse

    config = (made.folder / "config.json").read_bytes()
    shutil.rmtree(made.folder)
    eval(run.command, {"alphafuse": alphafuse})
    assert (made.folder / "config.json").read_bytes() == config


# predictions of the heads


def test_contributions_are_the_differences_of_the_runs_own_predictions(dataset: Dataset, votes: Votes) -> None:
    runs = dataset.root / "runs"
    fused, alone = predictions(runs / "sqrt-ast"), predictions(runs / "timesformer-only")
    common = {row["clip_id"] for row in fused["0"]} & {row["clip_id"] for row in alone["0"]}
    assert votes.clips == len(common) == 43 and votes.dropped == 2  # two clips are silent

    def accuracy(seeds: dict[str, list[dict[str, str]]]) -> float:
        return float(
            np.mean([int(row["correct"]) for rows in seeds.values() for row in rows if row["clip_id"] in common])
        )

    gain = next(one for one in votes.contributions if one.over == "timesformer").gain
    assert gain.mean == pytest.approx(accuracy(fused) - accuracy(alone), abs=1e-9)
    assert gain.low < gain.mean < gain.high
    top1 = votes.fused.metrics["top1"]
    assert top1 is not None and top1.mean == pytest.approx(accuracy(fused), abs=1e-9)


def test_the_answer_and_what_each_stream_adds_come_first_as_in_the_run(
    dataset: Dataset, report: Report, html: str
) -> None:
    content = read_json(dataset.root / "runs" / "contribute" / "contribute.json")
    assert isinstance(report.offer, Offer)
    for one in report.offer.streams:
        gain = content["gains"][one.stream]
        assert one.gain.mean == gain["bits"]["mean"] and one.permuted == max(gain["permuted_bits"])
        assert one.share.low == content["shapley"][one.stream]["bits"]["interval"]["low"]
    assert answer(report)[0] == content["said"][0]
    assert content["said"][0] in html_text.unescape(html.partition('class="tiles"')[0])
    section = html.partition('<section id="contributions">')[2].partition("</section>")[0]
    assert section.count('class="bar"') == 2
    order = [
        html.find(f'<section id="{name}"') for name in ("contributions", "classes", "hardest", "explorer", "table1")
    ]
    assert order == sorted(order) and order[0] > 0


def test_shares_of_classes_weighted_by_their_clips_add_up_to_the_streams_share(
    dataset: Dataset, report: Report
) -> None:
    content = read_json(dataset.root / "runs" / "contribute" / "contribute.json")
    assert isinstance(report.offer, Offer)
    for one in report.offer.streams:
        whole = content["shapley"][one.stream]["accuracy"]["mean"]
        clips = sum(share.n for share in one.by_class)
        assert sum(share.n * share.points.mean for share in one.by_class) / clips == pytest.approx(whole, abs=1e-9)
        means = [share.points.mean for share in one.by_class]
        assert means == sorted(means, reverse=True)


def test_confusions_are_shares_of_each_labels_clips(dataset: Dataset, votes: Votes) -> None:
    confusion = votes.confusion
    has_clips = np.array(confusion.n) > 0
    np.testing.assert_allclose(confusion.shares[has_clips].sum(axis=1), 1)
    assert sum(confusion.n) == votes.clips
    label, other, share, n = confusion.pairs[0]
    rows = [
        row
        for rows in predictions(dataset.root / "runs" / "sqrt-ast").values()
        for row in rows
        if row["label"] == label
    ]
    assert share == pytest.approx(np.mean([row["predicted"] == other for row in rows]))
    assert len(rows) == 2 * n


def test_hardest_clips_have_the_highest_mean_loss_and_unseen_labels_come_last(dataset: Dataset, votes: Votes) -> None:
    rows = [row for rows in predictions(dataset.root / "runs" / "sqrt-ast").values() for row in rows]
    losses: dict[str, list[float]] = {}
    for row in rows:
        losses.setdefault(row["clip_id"], []).append(float(row["loss"]))
    assert len(votes.hardest) == HARDEST
    for clip in votes.hardest:
        assert clip.loss == pytest.approx(np.mean(losses[clip.clip_id]), rel=1e-4)
    reachable = [clip.loss for clip in votes.hardest if clip.is_reachable]
    assert reachable == sorted(reachable, reverse=True)
    assert [clip.is_reachable for clip in votes.hardest] == sorted(
        (c.is_reachable for c in votes.hardest), reverse=True
    )
    for clip in votes.hardest:
        for vote in clip.votes.values():
            assert vote.is_right == (vote.label == clip.label)
            assert 0 <= vote.of_truth <= vote.probability <= 1


def find(votes: dict[str, Vote], *, is_reachable: bool = True, **media: str) -> str:
    media = media or MEDIA
    return finding_of(votes, is_reachable, next(iter(votes)), tuple(media), looks_of(media))


RIGHT, WRONG, OTHER = Vote("dog", 0.9, 0.9, True), Vote("cat", 0.8, 0.1, False), Vote("owl", 0.7, 0.1, False)


@pytest.mark.parametrize(
    ("fused", "sight", "sound", "finding"),
    [
        (WRONG, RIGHT, WRONG, "sight was right, sound misled"),
        (WRONG, WRONG, RIGHT, "sound was right, sight misled"),
        (WRONG, WRONG, OTHER, "both wrong; fusion followed sight"),
        (WRONG, WRONG, WRONG, "both wrong"),
        (WRONG, RIGHT, RIGHT, "each alone is right, fused is wrong"),
        (RIGHT, WRONG, WRONG, "right, with low confidence"),
    ],
)
def test_a_finding_names_the_stream_that_misled(fused: Vote, sight: Vote, sound: Vote, finding: str) -> None:
    assert find({"fused": fused, "timesformer": sight, "ast": sound}) == finding


def test_no_stream_misled_on_a_label_that_never_occurs_in_training() -> None:
    assert find({"fused": WRONG}, is_reachable=False) == "its label never occurs in training"
    assert find({"fused": WRONG, "timesformer": RIGHT}) == ""


def test_a_run_trained_on_other_embeddings_is_not_used_and_the_page_says_why(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(dataset.root, root)
    config = root / "runs" / "sqrt-ast" / "config.json"
    content = read_json(config)
    content["embeddings"]["ast"]["protocol"] = "notebook"
    write_json(config, content)
    report, _ = build_report(Dataset.open(root), runs=[root / "runs" / "sqrt-ast"])
    assert isinstance(report.votes, Absent)
    assert "was trained on another ast protocol" in report.votes.line
    assert isinstance(report.ablation.runs[0], Run)  # type: ignore[union-attr]  # its recorded figures stay


# data from the runs' files


def test_table1_equals_the_files_of_the_run_with_wilsons_interval_for_the_papers_18_clips(
    dataset: Dataset, report: Report
) -> None:
    content = read_json(dataset.root / "runs" / "table1" / "table1.json")
    assert not isinstance(report.table, Absent)
    for row, wrote in zip(report.table.rows, content["rows"], strict=True):
        assert row.test.mean == wrote["test"]["top1"]["mean"]
        assert (row.test.low, row.test.high) == tuple(wrote["test"]["top1"]["interval"][end] for end in ("low", "high"))
    papers = [row.paper for row in report.table.rows if row.paper]
    assert [paper.correct for paper in papers] == [paper.correct for paper in paper_results().values()]
    assert papers[0].measure.high == wilson_interval(2, 18).high


def test_histories_of_seeds_that_stopped_early_end_in_nan(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("seed,epoch,train_loss,val_loss,val_accuracy\n3,1,2.0,2.5,0\n3,2,1.0,2.4,0\n7,1,1.5,2.0,0\n")
    train, val = read_history(path)
    np.testing.assert_array_equal(train, [[2.0, 1.0], [1.5, np.nan]])
    np.testing.assert_array_equal(val, [[2.5, 2.4], [2.0, np.nan]])


def test_the_paragraph_names_gain_interval_verdict_and_ceiling(report: Report) -> None:
    text = " ".join(answer(report))
    assert re.search(r"Adding sound to sight alone gains \d+\.\d points \(.\d+\.\d to .\d+\.\d, p", text)
    assert "paper" not in text
    assert re.search(r"The ceiling is 77\.8%: 10 of 45 test clips have a label that never occurs in training", text)


def test_without_heads_the_paragraph_and_the_tiles_come_from_table1(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(dataset.root, root)
    shutil.rmtree(root / "runs" / "table1" / "heads")  # a run without saved heads
    report, drawn = build_report(Dataset.open(root), runs=[root / "runs" / "table1"])
    assert isinstance(report.votes, Absent)
    assert not isinstance(report.table, Absent) and report.table.verdict in answer(report)
    page = render_page(report, drawn)
    assert page.count('<div class="tile">') == 3
    assert "<code>alphafuse weigh --root" in page.partition('<section id="more">')[2]


def test_sections_without_data_are_one_list_of_commands_at_the_end(dataset: Dataset) -> None:
    report, drawn = build_report(dataset, runs=[dataset.root / "runs" / "sqrt-ast"])
    page = render_page(report, drawn)
    root = shlex.quote(str(dataset.root))
    listed = re.findall(r"<dd><code>(.*?)</code>", page.partition('<section id="more">')[2])
    assert listed == [
        f"alphafuse {command} --root {root}"
        for command in (
            "contribute",
            "weigh",
            "curve",
            "table1",
            "fit --stream timesformer",
            "fit --stream ast",
            "sweep --on timesformer,ast",
        )
    ]
    assert not re.search(r'<section id="(contributions|weights|classes|curve|alpha|table1)"', page)
    linked = re.findall(r'<li><a href="#([\w-]+)">', page)
    assert linked == re.findall(r'<(?:header|section) id="([\w-]+)"', page)
    assert set(drawn) == {"losses", "ablation", "confusion"}


# figures


def ceiling_lines(figure: Any, place: float) -> int:
    """Return how many axes of the figure have a vertical or horizontal line at the ceiling."""
    return sum(
        any(
            len(set(coordinates)) == 1 and abs(coordinates[0] - place) < 1e-6
            for line in axes.lines
            for coordinates in (list(line.get_xdata()), list(line.get_ydata()))
        )
        for axes in figure.axes
    )


def test_the_ceiling_is_drawn_into_every_plot_of_accuracies(built: tuple[Report, dict[str, Any]]) -> None:
    report, drawn = built
    ceiling = 100 * report.audit.splits["test"].ceiling.accuracy
    assert not isinstance(report.table, Absent)
    of_rows = 100 * report.table.ceiling.accuracy  # of the clips that have both streams
    assert of_rows != ceiling
    assert ceiling_lines(drawn["table1"], of_rows) == 1
    assert ceiling_lines(drawn["ablation"], of_rows) == 1
    assert ceiling_lines(drawn["alpha"], of_rows) == 1
    assert "ceiling, test 81.4" in [text.get_text() for text in drawn["alpha"].legends[0].get_texts()]


def test_every_svg_is_complete_named_and_coloured_by_the_pages_variables_only(
    built: tuple[Report, dict[str, Any]],
) -> None:
    ids: list[str] = []
    for name, figure in built[1].items():
        text = draw.inline_svg(figure, name, "a <title>")
        assert text == draw.inline_svg(figure, name, "a <title>"), "the same figure, the same bytes"
        root = ElementTree.fromstring(text)
        assert root.get("role") == "img" and root.get("aria-label") == "a <title>"
        own = [element.get("id", "") for element in root.iter() if element.get("id")]
        assert all(one.startswith(f"{name}-") for one in own)
        ids += own
        for attribute in (value for element in root.iter() for value in element.attrib.values()):
            assert not re.search(r"#[0-9a-f]{6}\b(?!-)", attribute.split("base64,")[0]) or attribute.startswith("#")
        assert not re.search(r"<(style|metadata|script)", text)
    assert len(ids) == len(set(ids))


def test_labels_with_markup_mathematics_and_any_length_are_drawn(report: Report) -> None:
    assert isinstance(report.ablation, Ablation)
    strange = [HOSTILE, "$\\frac{", "日本語 😀", "x" * 4000, "￾"]
    bars = tuple(replace(report.ablation.bars[0], title=title) for title in strange)
    text = draw.inline_svg(draw.ablation(replace(report.ablation, bars=bars), LOOKS), "g", "gains")
    assert "$\\frac{" in text and "日本語" in text
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "x" * 40 in text and "x" * 50 not in text


def share_of(label: str, mean: float, half: float = 0.05) -> ClassShare:
    return ClassShare(label, 5, Measure(mean, mean - half, mean + half, "bootstrap", 5))


def test_of_many_classes_both_ends_are_shown_and_hurt_ones_are_never_called_helped() -> None:
    shares = [share_of(f"class {i}", (150 - i) / 200) for i in range(309)]
    shown = {title: [one.label for one in some] for title, some in class_ends(shares).items()}
    assert shown == {
        "helps most": [f"class {i}" for i in range(4)],
        "hurts": [f"class {i}" for i in range(305, 309)],
    }
    assert list(class_ends(shares[:6])) == ["helps most", "helps least"]
    assert class_ends([share_of("none", 0.0)]) == {}
    assert (
        classes_in_words("Sound", shares)
        == "Sound helps 140 of 309 classes and hurts 148; for 21 these clips can't tell."
    )
    assert classes_in_words("Sound", [share_of("owl", -1.0, 0.0)]).startswith(
        "Sound helps 0 of 1 classes and hurts none"
    )


def test_cells_of_the_confusion_matrix_have_names_and_a_large_matrix_is_an_image(votes: Votes) -> None:
    figure = draw.confusion(votes.confusion)
    names = draw.cell_names(votes.confusion, figure)
    assert len(names) == np.count_nonzero(votes.confusion.shares)
    label, other, share, n = votes.confusion.pairs[0]
    (named,) = [text for _, text in names if text.startswith(f"{label}, predicted as {other}: ")]
    assert float(named.rpartition(": ")[2].split()[0]) == pytest.approx(share * n) and f"of {n} clips" in named
    text = draw.inline_svg(figure, "confusion", "c", names)
    assert text.count("</title></rect>") == len(names) and HOSTILE not in text
    many = Confusion(tuple(f"class {i}" for i in range(309)), np.full((309, 309), 1 / 309), (5,) * 309, ())
    figure = draw.confusion(many)
    assert max(figure.get_size_inches()) < 8 and not figure.axes[0].texts
    assert len(draw.cell_names(many, figure)) == draw.MOST_NAMED
    assert len(draw.inline_svg(figure, "confusion", "c")) < 200_000


@pytest.mark.slow
def test_figures_are_written_as_png_and_svg(dataset: Dataset, tmp_path: Path) -> None:
    write_report(dataset, tmp_path / "report.html", figures=tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    drawn = ("table1", "losses", "alpha", "ablation", "confusion")
    assert names == {f"{name}{suffix}" for name in drawn for suffix in (".png", ".svg")}
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


# excerpts


def test_excerpts_are_the_middle_frame_and_two_seconds_of_sound_of_the_files_that_have_them(tmp_path: Path) -> None:
    files = {
        "there": write_clip(tmp_path / "there.mp4", size=(480, 640), frames=60),
        "sound": write_clip(tmp_path / "sound.mp4", video=False),
        "gone": tmp_path / "gone.mp4",
        "damaged": tmp_path / "damaged.mp4",
    }
    files["damaged"].write_bytes(b"no film" * 100)
    found = excerpts(files, edge=100, sound=True, workers=1)
    assert [name for name, one in found.items() if one.picture] == ["there"]
    assert [name for name, one in found.items() if one.sound] == ["there", "sound"]
    assert found["there"].picture.startswith("data:image/jpeg;base64,") and len(found["there"].picture) < 20_000
    kind, _, content = found["there"].sound.partition(",")
    assert kind == "data:audio/mpeg;base64" and len(content) < 10_000
    (tmp_path / "two.mp3").write_bytes(base64.b64decode(content))
    wave = decode_clip(tmp_path / "two.mp3", frames=1, picture=False).waveform
    assert wave is not None and len(wave) / SAMPLE_RATE_HZ == pytest.approx(2.0, abs=0.15)
    pitch = np.abs(np.fft.rfft(wave)).argmax() * SAMPLE_RATE_HZ / len(wave)
    assert pitch == pytest.approx(440, abs=5)  # the sine of `write_clip`
    assert not any(one.sound for one in excerpts(files, workers=1).values())


# the page as text


def test_labels_and_names_are_text_and_never_markup(html: str) -> None:
    assert HOSTILE not in html
    assert "&lt;script&gt;document.title" in html
    assert "<title>toy &lt;i&gt;&amp;amp;&lt;/i&gt; co:" in html
    assert "<i>&amp;</i>" not in html


def test_the_page_forbids_loading_anything_and_contains_no_address(html: str) -> None:
    assert "default-src 'none'" in html
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", html)
    assert set(re.findall(r"https?://[\w./]+", html)) <= {"http://www.w3.org/2000/svg"}


def test_clips_with_a_file_have_a_picture_and_a_sound_and_the_others_say_so(html: str, votes: Votes) -> None:
    hardest = html.partition('<section id="hardest">')[2].partition("</section>")[0]
    shown = sum(bool(clip.picture) for clip in votes.hardest)
    assert 0 < shown < HARDEST
    assert hardest.count("<img ") == hardest.count("<audio ") == shown
    assert hardest.count("no picture") == hardest.count("no sound") == HARDEST - shown


def test_every_section_says_where_its_numbers_come_from(html: str, report: Report) -> None:
    for section in (
        "contributions",
        "classes",
        "hardest",
        "confusion",
        "ablation",
        "alpha",
        "table1",
        "losses",
    ):
        text = re.search(rf'<section id="{section}">.*?</section>', html, re.DOTALL)
        assert text and "Where these numbers come from" in text[0], section
        assert "reproduce with" in text[0], section
    for run in report.runs:
        assert str(run.folder) in html


def css_colors() -> dict[str, dict[str, str]]:
    """Return theme -> variable -> colour from page.css: light, the system's dark, chosen dark, paper."""
    css = (TEMPLATES / "page.css").read_text()
    blocks = re.findall(r"color-scheme: (\w+);(.*?)}", css, re.DOTALL)
    assert [theme for theme, _ in blocks] == ["light", "dark", "dark", "light"]
    names = ("light", "dark", "chosen dark", "paper")
    return {
        name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for name, (_, block) in zip(names, blocks, strict=True)
    }


def luminance(color: str) -> float:
    """WCAG 2's relative luminance of "#rrggbb"."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark", "chosen dark", "paper"])
def test_every_text_colour_has_enough_contrast(theme: str) -> None:
    colors = css_colors()[theme]
    assert len(colors) == 13
    for background in ("paper", "panel"):
        for name in ("ink", "muted", "sight", "sight-2", "sound", "sound-2", "fused", "good", "bad", "accent"):
            light, dark = sorted((luminance(colors[name]), luminance(colors[background])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{name} on {background}: WCAG AA asks for 4.5"


def test_figures_and_page_share_their_colours() -> None:
    themes = css_colors()
    assert draw.PALETTE.items() <= themes["light"].items()
    assert themes["dark"] == themes["chosen dark"]


# the command


def test_the_command_writes_the_page_into_the_root_of_the_run(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(dataset.root, root)
    result = CliRunner().invoke(cli, ["report", str(root / "runs" / "sqrt-ast"), "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content == {
        "report": str(root / "report.html"),
        "bytes": (root / "report.html").stat().st_size,
        "figures": None,
    }
    assert "None of" not in (root / "report.html").read_text()[:2000]


def test_mistakes_of_the_command_are_one_line_errors(dataset: Dataset, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["report", str(tmp_path / "nothing"), "--root", str(dataset.root)])
    assert isinstance(result.exception, ExperimentError)
    assert "name folders that fit, table1, sweep, compare, curve, weigh or contribute wrote" in str(result.exception)


# a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_chromium() as running:
        yield running


@pytest.fixture(scope="module")
def address(html: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path.as_uri()


class Tab:
    """A page in the browser, with its console messages, errors and requests."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.route("**/*", self._route)
        self.page.goto(address)
        self.page.wait_for_load_state()

    def _route(self, route: Any) -> None:
        self.requests.append(route.request.url)
        route.continue_() if route.request.url.startswith("file:") else route.abort()

    def color(self, what: str = "background-color") -> str:
        return self.page.evaluate(f"getComputedStyle(document.body).getPropertyValue('{what}')")


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_shows_at_every_width_in_both_themes_without_a_console_message_or_request(
    browser: Any, address: str, tmp_path: Path, width: int, theme: str
) -> None:
    tab = Tab(browser, address, viewport={"width": width, "height": 900}, color_scheme=theme)
    assert tab.page.title() == "toy <i>&amp;</i> co: what sight and sound contribute"  # no label's script has run
    assert tab.color() == {"light": "rgb(251, 250, 247)", "dark": "rgb(21, 23, 27)"}[theme]
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    inside = "one => (one.closest('.scroll') ?? one).getBoundingClientRect().right <= innerWidth"
    assert tab.page.evaluate(f"[...document.querySelectorAll('.plot, table')].every({inside})")
    plots = "[...document.querySelectorAll('svg.plot')].filter(one => one.checkVisibility())"
    assert tab.page.evaluate(f"{plots}.map(one => one.id || one.closest('figure').id)") == [
        f"figure-{name}" for name in ("confusion", "ablation", "alpha", "table1", "losses")
    ]
    assert tab.page.evaluate(f"Math.min(...{plots}.map(one => one.getBoundingClientRect().height))") > 100
    cut = (
        f"{plots}.filter(one => one.closest('.scroll')?.scrollWidth > innerWidth).map(one => one.closest('figure').id)"
    )
    assert tab.page.evaluate(cut) == (
        ["figure-confusion"] if width == 360 else []
    )  # the other figures have a narrow version
    ink = tab.page.evaluate("getComputedStyle(document.querySelector('#figure-table1 text')).fill")
    assert (
        ink
        in {"light": ("rgb(28, 33, 39)", "rgb(92, 102, 112)"), "dark": ("rgb(230, 228, 223)", "rgb(163, 169, 176)")}[
            theme
        ]
    )
    broken = "[...document.querySelectorAll('#hardest img')].filter(one => one.complete && !one.naturalWidth).length"
    assert tab.page.evaluate(broken) == 0
    assert tab.page.locator(".contents [aria-current]").all_text_contents() == ["Answer"]
    tab.page.evaluate("document.querySelector('#confusion').scrollIntoView({behavior: 'instant'})")
    wait_until(tab.page, "document.querySelector('.contents [aria-current]').textContent === 'Confusions'")
    picture = keep_screenshot(tab.page, f"report-{width}-{theme}", tmp_path)
    assert picture.stat().st_size > 50_000
    assert tab.messages == []
    assert tab.requests == [address]
    tab.page.close()


@pytest.mark.slow
def test_the_button_switches_between_light_and_dark(browser: Any, address: str) -> None:
    tab = Tab(browser, address, color_scheme="light")
    light = tab.color()
    tab.page.click("button.theme")
    dark = tab.color()
    assert dark == "rgb(21, 23, 27)" != light
    tab.page.click("button.theme")
    assert tab.color() == light
    tab.page.close()


@pytest.mark.slow
def test_in_print_the_page_is_light_without_buttons_and_what_is_open_is_printed_and_nothing_cut(
    browser: Any, address: str, tmp_path: Path
) -> None:
    tab = Tab(browser, address, viewport={"width": 700, "height": 900}, color_scheme="dark")
    tab.page.click("button.theme")
    tab.page.click("button.theme")  # dark by choice, too
    tab.page.emulate_media(media="print")
    assert tab.color() == "rgb(255, 255, 255)"
    assert not tab.page.is_visible("button.theme") and not tab.page.is_visible(".contents")
    assert tab.page.evaluate(
        "[...document.querySelectorAll('.plot')].every(one => one.getBoundingClientRect().right <= 700)"
    )
    assert not tab.page.is_visible("#figure-table1 .for-narrow")
    tab.page.evaluate("document.querySelector('#classes details').open = true")
    assert tab.page.is_visible("#classes details table") and not tab.page.is_visible("#contributions details")
    tab.page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes())) <= 10
    assert tab.messages == []
    tab.page.close()


@pytest.mark.slow
def test_the_explorers_sliders_change_its_numbers_inside_the_page(browser: Any, address: str) -> None:
    tab = Tab(browser, address, viewport={"width": 1280, "height": 900})
    right = "#explorer [data-out=right]"
    before = tab.page.inner_text(right)
    tab.page.evaluate(
        """() => document.querySelectorAll("#explorer input[type=range]").forEach(one => {
             one.value = 0; one.dispatchEvent(new Event("input", {bubbles: true}));
           })"""
    )
    wait_until(tab.page, f"document.querySelector('{right}').innerText !== '{before}'")
    assert int(tab.page.inner_text(right)) < int(before)
    assert tab.messages == [] and tab.requests == [address]
    tab.page.close()


def test_reachability_of_a_split_is_counted_on_the_clips_that_all_heads_use(votes: Votes, report: Report) -> None:
    assert report.audit.splits["test"].ceiling == Ceiling(35, 45)
    assert votes.ceiling.clips == 43


def test_intervals_of_several_methods_are_named() -> None:
    drawn = Measure(0.5, 0.4, 0.6, "Wilson over source videos", 20)
    none_right = Measure(0.0, 0.0, 0.2, "Wilson", 20)
    assert interval_methods([("fused", drawn), ("sight alone", drawn)]) == "Wilson over source videos"
    text = interval_methods([("fused", drawn), ("sight alone", none_right), ("sound alone", none_right)])
    assert text == "Wilson over source videos (fused), Wilson (sight alone, sound alone)"
    assert not Measure(0.0, 0.0, 0.0, "Wilson over source videos", 20).has_interval


def test_the_page_says_how_heads_were_chosen_and_why_the_explorer_shows_others(html: str, report: Report) -> None:
    assert "The fused heads are those of run sqrt-ast: the best of 2 runs by the rule of alphafuse runs." in html
    assert whose_heads(replace(report, is_chosen=True)).endswith(
        "run sqrt-ast, the first that was named for this page."
    )
    assert "The fused heads at the top of this page can't be explored" not in html  # sqrt-ast can be explored itself


def test_the_ceiling_of_the_tiles_is_that_of_the_clips_used(html: str, votes: Votes) -> None:
    assert f"the ceiling of these 43 clips, {100 * votes.ceiling.accuracy:.1f}" in html
    assert html.count(f'<line x1="{100 * votes.ceiling.accuracy}"') == 3


def test_chosen_alphas_are_drawn_beside_the_untransformed_heads_and_said_in_the_sweeps_words(
    built: tuple[Report, dict[str, Any]], html: str, dataset: Dataset
) -> None:
    report, drawn = built
    said = read_json(dataset.root / "runs" / "sweep-timesformer-ast" / "sweep.json")["answer"]
    assert f"<p>{said}</p>" in html_text.unescape(html)
    test = report.sweeps[0].untransformed["test"]
    for axes, place in zip(drawn["alpha"].axes, (100 * test["top1"].mean, test["loss"].mean), strict=True):
        assert any(np.allclose(line.get_ydata(), place) and len(line.get_ydata()) == 2 for line in axes.lines)


def test_weights_and_exact_shares_come_from_the_run_of_weigh_which_lists_no_epochs(
    dataset: Dataset, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(dataset.root, root)
    opened = Dataset.open(root)
    folder = write_weigh(weigh(opened), opened)
    content = read_json(folder / "weigh.json")
    report, drawn = build_report(opened, runs=[root / "runs" / "sqrt-ast", folder])
    weights, votes = report.weights, report.votes
    assert isinstance(weights, Weights) and weights.curve and isinstance(votes, Votes)
    assert answer(report)[0] == content["verdict"]
    inside = weights.curve.ratios[weights.curve.inside]
    for end, limit in zip((inside.min(), inside.max()), content["profile"]["ranges"]["ast"], strict=True):
        assert limit is None or end == pytest.approx(limit)
    assert weights.curve.ratios[weights.curve.chosen] == pytest.approx(content["profile"]["weights"]["ast"])
    assert ("weights" in drawn) == content["profile"]["is_learned"]
    assert votes.fused.path.name == "sqrt-ast" and votes.shares == "weighed, run weigh"
    assert "never learned to miss one" in votes.no_shares
    for clip in votes.hardest:
        assert clip.shares and clip.answer != clip.shares.second
        assert clip.shares.base + sum(clip.shares.streams.values()) == pytest.approx(clip.shares.lead)
    facts = dict(run_facts(weights.run))
    assert facts["settings"] == "heads in closed form, folds 5, seed 0" and "epochs" not in str(facts)


def test_a_run_is_left_out_of_the_ablation_only_if_it_shows_the_same_heads(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(dataset.root, root)
    runs = root / "runs"
    table = json.loads((runs / "table1" / "table1.json").read_text())
    there = next(row["test"] for row in table["rows"] if row["experiment"]["title"] == "TimeSformer only")
    for name, more in (("again", 0.0), ("other", 0.01)):
        shutil.copytree(runs / "timesformer-only", runs / name)
        metrics = json.loads((runs / name / "metrics.json").read_text())
        metrics["test"] |= {"n": there["n"], "top1": there["top1"] | {"mean": there["top1"]["mean"] + more}}
        (runs / name / "metrics.json").write_text(json.dumps(metrics))
    opened = Dataset.open(root)
    chosen = find_runs(opened, [runs / name for name in ("table1", "again", "other")])[0]
    ablation = collect(opened, chosen, [], Absent("no predictions")).ablation
    assert isinstance(ablation, Ablation)
    titles = [bar.title for bar in ablation.bars]
    assert titles == ["untransformed", "TimeSformer only", "AST only", "TimeSformer only (run other)"]


def test_every_ceiling_is_that_of_labels_that_the_heads_could_be_trained_on(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "toy")
    silence_label(dataset, CLASSES[0])
    fit(dataset, Experiment(), settings=QUICK)
    report, _ = build_report(dataset)
    assert isinstance(report.votes, Votes) and report.votes.ceiling == Ceiling(40, 45)
    assert "40 of 45 test clips have a label that occurs in training" in str(report.explorer)

"""Results in a terminal, a notebook and pandas: the same tables everywhere, unrounded in pandas."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas
import pytest

from alphafuse.data.audit import audit
from alphafuse.errors import AlphafuseError
from alphafuse.heads.studies.compare import compare
from alphafuse.heads.studies.contribute import contribute
from alphafuse.heads.studies.curve import curve
from alphafuse.heads.studies.evaluate import evaluate
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.sweep import sweep
from alphafuse.heads.studies.table1 import table1
from alphafuse.heads.studies.weigh import weigh
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.predict.similar import similar
from alphafuse.report.contribute import write_contribution
from alphafuse.report.curve import write_curve
from alphafuse.report.studies import describe, write_compare, write_evaluation, write_sweep
from alphafuse.report.tables import Column, Document, Table, to_html, to_text
from alphafuse.report.weigh import write_weigh

QUICK = TrainSettings(epochs=1, hidden=(4,))


class Cells(HTMLParser):
    """The texts of an html table's cells, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and data.strip():
            self.cells[-1] += data


def test_html_has_the_cells_of_the_table_and_no_markup_of_theirs() -> None:
    columns = [Column("<i>label</i>", lambda row: row[0], left=True), Column("n", lambda row: None)]
    html = to_html(Document("a & b", [Table(columns, [("<script>x</script>",), "... (2 more)"])]))
    assert Cells(html).cells == ["<i>label</i>", "n", "<script>x</script>", "", "... (2 more)"]
    html += to_html(Document("", [Table((), (), ["1 < 2"])]))
    assert "<script>" not in html and "<i>" not in html and "a &amp; b" in html and "1 &lt; 2" in html


def check_repr(found: object) -> None:
    """A repr is one line that shows figures, an interval and the number of clips."""
    text = repr(found)
    assert "n=6" in text and "[" in text and "\n" not in text and len(text) < 300, text


def test_pandas_gets_the_rows_of_the_csv_files(extracted: Path) -> None:
    run = fit(extracted, settings=QUICK).folder
    made: list[tuple[Any, Path]] = []
    for found, write in (
        (sweep(extracted, on="ast", alphas=[0.5, 2], seeds=2, settings=QUICK), write_sweep),
        (compare(extracted, seeds=2, settings=QUICK), write_compare),
        (curve(extracted, sizes=[1, 2], draws=2), write_curve),
        (contribute(extracted, refits=0), write_contribution),
        (weigh(extracted), write_weigh),
    ):
        check_repr(found)
        folder = write(found, extracted)  # type: ignore[operator]
        made.append((found, next(path for path in folder.glob("*.csv") if path.stem in folder.name)))
    evaluation = evaluate(run, split="val")
    made.append((evaluation, write_evaluation(evaluation) / "classes.csv"))
    for found, path in made:
        frame, read = found.to_pandas(), pandas.read_csv(path)
        if "size" in frame:  # numbers and "all" are texts in a csv
            frame["size"] = frame["size"].astype(str)
        pandas.testing.assert_frame_equal(frame, read, check_dtype=False)
        assert str(found) == to_text(describe(found)).rstrip() and "<table>" in found._repr_html_()


def test_other_results_have_a_row_per_split_experiment_problem_and_clip(extracted: Path) -> None:
    result = fit(extracted, seeds=2, settings=QUICK)
    frame = result.to_pandas()
    assert list(frame.split) == ["val", "test"] and list(frame.n) == [6, 6]
    assert list(frame.top1_low) == [result.splits[split].top1.interval.low for split in ("val", "test")]
    predictions = result.predictions("val")
    check_repr(result)
    check_repr(predictions)
    frame = predictions.to_pandas()
    assert tuple(frame.predicted) == predictions.predicted and frame.is_correct.mean() == predictions.top1.mean
    assert frame.probability.tolist() == predictions.probabilities.max(axis=1).tolist()
    assert f"of {len(predictions)} val clips are labelled correctly" in str(predictions)
    table = table1(extracted, seeds=1, settings=QUICK)
    check_repr(table)
    assert list(table.to_pandas().experiment) == [row.experiment.title for row in table.rows]
    report = audit(extracted)
    assert list(report.to_pandas().kind) == [problem.kind for problem in report.problems]
    found = similar(extracted, "test0_000000", count=3)
    assert list(found.to_pandas().clip_id) == [one.clip.clip_id for one in found.answers[0].found]
    for one in (report, found):
        assert str(one) and one._repr_html_().startswith("<pre>")


def test_without_pandas_one_line_says_how_to_get_it(extracted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = audit(extracted)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(AlphafuseError, match=r"to_pandas needs pandas: run `pip install 'alphafuse\[pandas\]'`"):
        report.to_pandas()

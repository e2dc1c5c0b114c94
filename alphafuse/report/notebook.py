"""Any result as text, as html, and as rows of unrounded figures: what `print`, notebooks and pandas get of it.

`alphafuse.system.results` says what a result can do; this module does it, by the documents of this room.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from html import escape

from alphafuse.data.audit import AuditReport
from alphafuse.heads.studies.compare import CompareTable
from alphafuse.heads.studies.contribute import Contribution
from alphafuse.heads.studies.curve import Curve
from alphafuse.heads.studies.evaluate import RunEvaluation
from alphafuse.heads.studies.fit import RunResult
from alphafuse.heads.studies.mteb import MtebScores
from alphafuse.heads.studies.predictions import Predictions
from alphafuse.heads.studies.sweep import Sweep
from alphafuse.heads.studies.table1 import Table1
from alphafuse.heads.studies.weigh import Weighing
from alphafuse.predict.explain import Explanation
from alphafuse.predict.similar import SimilarClips

from .audit import format_audit
from .contribute import class_shares
from .curve import curve_rows, mteb_rows
from .predict import format_explanation, format_prediction
from .similar import format_similar
from .studies import class_rows, compare_rows, describe, difference_spread, spread, sweep_rows
from .tables import Column, Document, Table, percent, percent_range, to_html, to_text
from .weigh import profile_rows

SHOWN_CLIPS = 8  # of predictions, as text and html
LABEL_COLUMNS = 44


@singledispatch
def text_of(result: object) -> str:
    """Return what the result's command prints."""
    return to_text(describe(result))


def html_of(result: object) -> str:
    """Return the same as html: tables, where the text comes from a document."""
    if text_of.dispatch(type(result)) is not text_of.dispatch(object):
        return f"<pre>{escape(text_of(result))}</pre>"
    return to_html(describe(result))


def figures_of(result: object) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Return the names of columns, and rows of unrounded figures; None for one that doesn't exist."""
    table = rows_of(result)
    return [column.title for column in table.columns], [[one.cell(row) for one in table.columns] for row in table.rows]


# results whose text comes from no document

text_of.register(AuditReport, format_audit)
text_of.register(SimilarClips, format_similar)


@text_of.register
def _(found: Explanation) -> str:
    return format_prediction(found.prediction) + format_explanation(found)


@describe.register
def describe_predictions(found: Predictions) -> Document:
    """Describe how many clips are labelled correctly, and the first ones."""
    share = f"{percent(found.top1.mean)}% ({percent_range(found.top1.interval)})"
    shown: list[int | str] = [*range(min(len(found), SHOWN_CLIPS))]
    if len(found) > SHOWN_CLIPS:
        shown.append(f"... ({len(found) - SHOWN_CLIPS} more)")
    columns = [
        Column("clip", lambda i: found.clip_ids[i], left=True),
        Column("label", lambda i: found.labels[i][:LABEL_COLUMNS], left=True),
        Column("predicted", lambda i: found.predicted[i][:LABEL_COLUMNS], left=True),
        Column("p", lambda i: percent(found.probabilities[i].max())),
    ]
    dropped = [f"Left out because they lack a stream: {found.dropped}."] if found.dropped else []
    title = f"Predictions: {share} of {len(found)} {found.split} clips are labelled correctly"
    return Document(title, [Table(columns, shown, dropped, ruled=False)])


# rows of unrounded figures


@singledispatch
def rows_of(result: object) -> Table:
    """Return a result as a table of unrounded figures; where there is a csv file of it, that file's."""
    raise TypeError(f"{type(result).__name__} is no table")


rows_of.register(Sweep, sweep_rows)
rows_of.register(CompareTable, compare_rows)
rows_of.register(Curve, curve_rows)
rows_of.register(MtebScores, mteb_rows)
rows_of.register(RunEvaluation, class_rows)
rows_of.register(Contribution, class_shares)


@rows_of.register
def _(found: Weighing) -> Table:
    return profile_rows(found.found.profile) if found.found.profile else Table((), ())


@rows_of.register
def _(result: RunResult) -> Table:
    columns = [
        Column("split", lambda split: split.split),
        Column("n", lambda split: split.n),
        Column("source_videos", lambda split: len(set(split.groups))),
        *spread("top1", lambda split: split.top1),
        *spread(f"top{result.splits['test'].scores.k}", lambda split: split.topk),
        *spread("loss", lambda split: split.loss),
        Column("ceiling", lambda split: split.ceiling.accuracy),
    ]
    return Table(columns, [*result.splits.values()])


@rows_of.register
def _(table: Table1) -> Table:
    columns = [
        Column("experiment", lambda row: row.experiment.title),
        Column("n_test", lambda row: row.test.n),
        *spread("test_top1", lambda row: row.test.top1),
        *spread("test_loss", lambda row: row.test.loss),
        Column("n_val", lambda row: row.val.n),
        Column("val_top1", lambda row: row.val.top1.mean),
        *difference_spread(),
        Column("paper_top1", lambda row: row.paper and row.paper.accuracy),
        Column("paper_loss", lambda row: row.paper and row.paper.loss),
    ]
    return Table(columns, table.rows)


@rows_of.register
def _(report: AuditReport) -> Table:
    columns = [
        Column("severity", lambda problem: problem.severity),
        Column("kind", lambda problem: problem.kind),
        Column("message", lambda problem: problem.message),
        Column("mend", lambda problem: problem.mend),
    ]
    return Table(columns, report.problems)


@rows_of.register
def _(found: SimilarClips) -> Table:
    columns = [
        Column("query", lambda row: row[0].query),
        Column("rank", lambda row: row[1]),
        Column("clip_id", lambda row: row[2].clip.clip_id),
        Column("label", lambda row: row[2].clip.label),
        Column("split", lambda row: row[2].clip.split),
        Column("similarity", lambda row: row[2].similarity),
        *(Column(stream, lambda row, stream=stream: row[2].parts.get(stream)) for stream in found.shares),  # type: ignore[misc]
    ]
    return Table(columns, [(one, rank, clip) for one in found.answers for rank, clip in enumerate(one.found, 1)])


@rows_of.register
def _(found: Predictions) -> Table:
    columns = [
        Column("clip_id", lambda i: found.clip_ids[i]),
        Column("group", lambda i: found.groups[i]),
        Column("label", lambda i: found.labels[i]),
        Column("predicted", lambda i: found.predicted[i]),
        Column("is_correct", lambda i: bool(found.is_correct[i])),
        Column("probability", lambda i: float(found.probabilities[i].max())),
    ]
    return Table(columns, range(len(found)))

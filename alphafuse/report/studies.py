"""Results of fit, table1, sweep, compare and evaluate as tables and files.

`describe` turns a result into a `Document` that `tables` renders. The `write_...` functions pass a result with its
tables and pictures to `heads.studies.runs`, which writes the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, singledispatch
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.splits import Ceiling
from alphafuse.data.streams import title_of
from alphafuse.heads.model.config import is_notebook, title_of_streams
from alphafuse.heads.model.transforms import NOTEBOOK_POS_SCALAR
from alphafuse.heads.scoring.metrics import ClassRow
from alphafuse.heads.scoring.statistics import Comparison, Estimate
from alphafuse.heads.studies.compare import PARTIAL, RATIOS, CompareTable, published_results
from alphafuse.heads.studies.evaluate import RunEvaluation
from alphafuse.heads.studies.fit import RunResult
from alphafuse.heads.studies.probe import names_of
from alphafuse.heads.studies.runs import keep_heads, padded, write_evaluation_folder, write_run
from alphafuse.heads.studies.same_clips import Trained
from alphafuse.heads.studies.sweep import Sweep
from alphafuse.heads.studies.table1 import FIGURE3, PAPER_TEST_CLIPS, Table1
from alphafuse.heads.studies.words import gains_sentence, listed, p_value, signed, verdict
from alphafuse.heads.training.settings import NORMALIZE_NOTES

from .contents import AlphaCurves, LossCurves
from .figures import alpha_curves, losses, png
from .looks import looks_of
from .tables import (
    Column,
    Document,
    Table,
    csv_rows,
    loss_range,
    methods,
    percent,
    percent_range,
    seeds_text,
    split_counts,
    to_markdown,
)

METRIC_NAMES = {
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "mean_class_accuracy": "mean class accuracy (%)",
    "mean_average_precision": "mAP",
    "auc": "AUC",
    "d_prime": "d-prime",
    "log_loss": "log loss (nats)",
    "ece": "calibration error (ECE)",
}
LISTED_ROWS = 3  # of those that differ, named in a sentence
LISTED_CLASSES = 5  # number of best and of worst classes shown
PUBLISHED_NOTE = (
    "Published top-1 in %, for orientation: other features, other training, and some choose the epoch on test clips, "
    "which alphafuse never does."
)


@singledispatch
def describe(result: object) -> Document:
    """Return a study's result as a document: its title, its tables, and notes that explain the figures.

    Modules of this room register the results that they describe.
    """
    raise TypeError(f"{type(result).__name__} is not a study's result")


# columns shared by several tables


def accuracy_columns(title: str, of: Callable[[Any], Estimate | None], *, wide: bool = False) -> list[Column]:
    """Columns: an accuracy in percent, and its interval."""
    return [
        Column(title, lambda row: percent(found.mean) if (found := of(row)) else None, wide=wide),
        Column("interval", lambda row: percent_range(found.interval) if (found := of(row)) else None, wide=wide),
    ]


def loss_columns(title: str, of: Callable[[Any], Estimate], digits: int, *, wide: bool = True) -> list[Column]:
    """Columns: a loss in nats, and its interval."""
    return [
        Column(title, lambda row: f"{of(row).mean:.{digits}f}", wide=wide),
        Column("interval", lambda row: loss_range(of(row)), wide=wide),
    ]


def against_columns(
    title: str, of: Callable[[Any], Comparison | None] = attrgetter("comparison"), *, says: str = "verdict"
) -> list[Column]:
    """Columns: the difference of a row's comparison in points, its interval, its corrected p, and the verdict.

    With `says="p"` there is no verdict; else text in 80 columns has no p.
    """

    def cell(write: Callable[[Comparison], str]) -> Callable[[Any], str | None]:
        return lambda row: write(found) if (found := of(row)) else None

    return [
        Column(title, cell(lambda found: f"{100 * found.test.difference:+.1f}")),
        Column("interval", cell(lambda found: percent_range(found.interval, sign="+"))),
        Column("p", cell(lambda found: p_value(found.p_holm)), wide=says != "p"),
        *([Column("verdict", cell(verdict), left=True)] if says == "verdict" else []),
    ]


def lead_of(result: Any, *more: str) -> list[str]:
    """Return what a result says: its answer, more sentences, and which of its encoders stand in for real ones."""
    return [sentence for sentence in (result.answer, *more, result.note_on_encoders) if sentence]


def spread(name: str, of: Callable[[Any], Estimate | None]) -> list[Column]:
    """Columns of a csv: the mean of an estimate and both ends of its interval."""
    return [
        Column(name, lambda row: found.mean if (found := of(row)) else None),
        Column(f"{name}_low", lambda row: found.interval.low if (found := of(row)) else None),
        Column(f"{name}_high", lambda row: found.interval.high if (found := of(row)) else None),
    ]


def difference_spread() -> list[Column]:
    """Columns of a csv: the difference of a row's comparison, its interval, and its p before and after correction."""

    def cell(value: Callable[[Comparison], float]) -> Callable[[Any], float | None]:
        return lambda row: value(row.comparison) if row.comparison else None

    return [
        Column("difference", cell(lambda found: found.test.difference)),
        Column("difference_low", cell(lambda found: found.interval.low)),
        Column("difference_high", cell(lambda found: found.interval.high)),
        Column("p_value", cell(lambda found: found.test.p_value)),
        Column("p_holm", cell(lambda found: found.p_holm)),
    ]


def _on(table: Table1 | Sweep | CompareTable) -> str:
    """Return the dataset and its numbers of clips, for a title."""
    clips = f"{table.clips['train']} train, {table.clips['val']} val, {table.clips['test']} test clips"
    if isinstance(table, Sweep):
        return f"{table.dataset_name}: {clips}, {seeds_text(table.seeds)}"
    demo = " (the generated demo)" if table.is_demo else ""
    return f"{table.dataset_name}{demo}: {clips}, {table.classes} classes, {seeds_text(table.seeds)}"


def left_out(dropped: Mapping[str, int]) -> list[str]:
    """Return a sentence on the clips that lack a stream, if there are any."""
    return [f"Left out because they lack a stream: {split_counts(dropped)}."] if any(dropped.values()) else []


# fit


@describe.register
def describe_fit(result: RunResult) -> Document:
    """Describe both splits with n and intervals."""
    test = result.splits["test"]
    k = test.scores.k
    columns = [
        Column("split", lambda split: split.split, left=True),
        Column("n", lambda split: split.n),
        *accuracy_columns("top-1", lambda split: split.top1),
        *(accuracy_columns(f"top-{k}", lambda split: split.topk) if k < result.classes else []),
        *loss_columns("loss", lambda split: split.loss, digits=3, wide=False),
        Column("ceiling", lambda split: percent(split.ceiling.accuracy), wide=True),
    ]
    seeds = f"{len(result.seeds)} seeds" if len(result.seeds) > 1 else f"seed {result.seeds[0]}"
    means = f"mean over {seeds}" if len(result.seeds) > 1 else f"of {seeds}"
    probe = [f"Probe: {result.probe.sentence}; val figures are those of the best: use test's."] if result.probe else []
    notes = [*probe, f"Accuracies in %, {means}. {methods(test)} {' '.join(left_out(result.dropped))}".rstrip()]
    details = ["Ceiling: share of clips whose label occurs in training; no head can exceed it."]
    ceilings = {split: found.ceiling for split, found in result.splits.items()}
    if any(found.reachable < found.clips for found in ceilings.values()):
        shares = ", ".join(f"{split} {percent(found.accuracy)}%" for split, found in ceilings.items())
        notes[-1] += f" Ceiling: {shares}, the share of clips whose label occurs in training."
    splits = Table(columns, list(result.splits.values()), notes, ruled=False, details=details)
    return Document(f"{result.experiment.title} ({seeds})", [splits], lead=lead_of(result))


# table 1


@describe.register
def describe_table1(table: Table1) -> Document:
    """Describe table 1, beside the paper's figures."""
    columns = [
        Column("#", lambda row: row.paper and row.paper.experiment, wide=True),
        Column("experiment", lambda row: row.experiment.title, left=True),
        *accuracy_columns("top-1", lambda row: row.test.top1),
        *against_columns("vs none", says="p"),
        Column("val", lambda row: percent(row.val.top1.mean), wide=True),
        *loss_columns("loss", lambda row: row.test.loss, digits=2),
        Column("paper", lambda row: row.paper and f"{row.paper.accuracy:.0%}"),
        Column("code", lambda row: row.paper and f"{row.paper.correct}/{PAPER_TEST_CLIPS}", wide=True),
        Column("loss", lambda row: row.paper and f"{row.paper.loss:.2f}", wide=True),
    ]
    where = "this split" if table.is_paper_split else f"{PAPER_TEST_CLIPS} other clips, for orientation alone"
    notes = [
        f"In % of {table.clips['test']} test clips; vs none: points against the untransformed head; p: Holm-corrected "
        f"for {len(table.rows) - 1} rows. paper: on {where}.",
        " ".join([*_ceiling(table.ceiling), *left_out(table.dropped)]),
    ]
    return Document(
        f"Table 1 on {_on(table)}",
        [Table(columns, table.rows, [note for note in notes if note], details=_table1_details(table))],
        picture=("Train and validation loss of experiment 2", "figure3.png"),
        lead=lead_of(table),
    )


def _ceiling(ceiling: Ceiling) -> list[str]:
    """Return a sentence on the test clips whose label no head can know, if there are any."""
    if ceiling.reachable == ceiling.clips:
        return []
    return [
        f"Ceiling: {ceiling.reachable} of {ceiling.clips} test clips have a label that occurs in training: no head can "
        f"exceed {percent(ceiling.accuracy)}%."
    ]


def _table1_details(table: Table1) -> list[str]:
    baseline, compared = table.rows[0].test, [row.comparison for row in table.rows if row.comparison]
    ceiling = table.ceiling
    notes = [
        f"Ceiling: {ceiling.reachable} of {ceiling.clips} test clips have a label that occurs in training: no head can "
        f"exceed {percent(ceiling.accuracy)}%.",
        f"Accuracies in %, means over seeds, n = {baseline.n} test clips of {len(set(baseline.groups))} source videos "
        f"(val: {table.clips['val']} clips); the last epoch's heads, test scored once.",
        methods(baseline),
        f"vs none: points against the untransformed row; p: {compared[0].test.method}, Holm-corrected "
        f"for the {len(compared)} comparisons; verdict: p below .05 and an interval without 0, else undecided.",
    ]
    if is_notebook(table.provenance["embeddings"]):
        notes.append(f"Protocol notebook: pos-scalar multiplies by {NOTEBOOK_POS_SCALAR:g}, as the authors' code did.")
    paper = "paper, code, loss: the paper's table 1, and the test clips that its authors' notebook got right"
    if table.is_paper_split:
        return [*notes, f"{paper}, on this split."]
    return [
        *notes,
        f"{paper}; on other clips ({PAPER_TEST_CLIPS} of VGGSound): for orientation, not for comparison.",
    ]


def figure3(table: Table1) -> bytes:
    """Return a PNG of experiment 2's losses per epoch: ours (mean, range over seeds) and the paper's, on one scale."""
    row = next(row for row in table.rows if row.experiment == FIGURE3)
    assert row.paper is not None
    histories = [trained.history for trained in row.heads]
    curves = LossCurves(
        title=f"Experiment {row.paper.experiment}: {row.experiment.title}",
        name=table.dataset_name,
        train=padded([history.train_loss for history in histories]),
        val=padded([history.val_loss for history in histories]),
        paper_train=np.array(row.paper.train_loss),
        paper_val=np.array(row.paper.val_loss),
    )
    return png(losses(curves))


def write_table1(table: Table1, dataset: Dataset | str | Path) -> Path:
    """Write `<root>/runs/table1/`, replacing an older one as a whole, and return the folder.

    >>> from alphafuse import Dataset, TrainSettings, table1, write_table1
    >>> dataset = Dataset.open("demo")
    >>> folder = write_table1(table1(dataset, seeds=1, settings=TrainSettings(epochs=2, hidden=(16,))), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'figure3.png', 'heads', 'history.csv', 'table1.json', 'table1.md']
    """
    dataset = Dataset.open(dataset)
    return write_run(
        dataset.root,
        "table1",
        kind="table1",
        config=table.config(),
        figures=table.to_json(),
        history=[(row.experiment.name, row.heads) for row in table.rows],
        heads={row.experiment.name: row.heads for row in table.rows if not row.paper},
        markdown=to_markdown(describe(table)),
        picture=figure3(table),
    )


# sweep


@describe.register
def describe_sweep(sweep: Sweep) -> Document:
    """Describe the curves as a table, with the test scores of the chosen alphas."""

    def alpha(point: Trained) -> str | None:
        return None if point.experiment.alpha is None else f"{point.experiment.alpha:g}"

    def compared(write: Callable[[Comparison], str]) -> Callable[[Trained], str | None]:
        def cell(point: Trained) -> str | None:
            chosen = sweep.chosen_at(point)
            return write(chosen.comparison) if chosen and not chosen.is_untransformed else None

        return cell

    columns = [
        Column(
            "on",
            lambda point: title_of_streams(point.experiment.on) if point.experiment.on else "untransformed",
            left=True,
        ),
        Column("alpha", alpha),
        *accuracy_columns("val", lambda point: point.val.top1),
        *loss_columns("loss", lambda point: point.val.loss, digits=3),
        Column("", lambda point: "chosen" if sweep.chosen_at(point) else None, left=True),
        *accuracy_columns("test", lambda point: test.top1 if (test := sweep.test_at(point)) else None),
        Column("p", compared(lambda found: p_value(found.p_holm)), wide=True),
        Column("verdict", compared(verdict), left=True),
    ]
    rows = [sweep.baseline, *sweep.points]
    notes = [
        "Top-1 in %, means over seeds. chosen: the untransformed heads, unless validation clips show that an alpha has "
        "less loss; scored once on test; verdict: against the untransformed heads, on test.",
        " ".join(left_out(sweep.dropped)),
    ]
    if sweep.settings.normalize != "none":
        notes[1] = f"{NORMALIZE_NOTES[sweep.settings.normalize]} {notes[1]}".rstrip()
    table = Table(columns, rows, [note for note in notes if note], details=_sweep_details(sweep))
    return Document(f"{sweep.transform} on {_on(sweep)}", [table], lead=[*sweep.answers.values(), *lead_of(sweep)[1:]])


def _sweep_details(sweep: Sweep) -> list[str]:
    test = sweep.baseline.test
    assert test is not None
    method = next(iter(sweep.chosen.values())).comparison.test.method
    notes = []
    for on, found in sweep.chosen.items():
        ends = f"none of the alphas {min(found.as_good):g} to {max(found.as_good):g}" if found.as_good else "no alpha"
        notes.append(f"{title_of_streams(on)}: validation clips show {ends} to have more loss than another.")
    notes += [
        f"{test.n} test clips resolve differences of about {percent(sweep.resolvable_gap)} points and more (paired "
        "test, 80% power).",
        "Chosen: untransformed, unless its validation loss is significantly above that of an alpha (95%, max-t over "
        "source videos and seeds); then the alpha of least loss. Test was scored once. For weights, see "
        "`alphafuse weigh`: a trained layer can undo any factor on its inputs.",
        f"Ceiling: val {percent(sweep.baseline.val.ceiling.accuracy)}%, test {percent(test.ceiling.accuracy)}% (share "
        "of clips whose label occurs in training).",
        f"Accuracies in %, means over seeds; n = {sweep.baseline.val.n} val and {test.n} test clips. {methods(test)}",
        f"p: {method} against the untransformed head, Holm-corrected over the curves.",
    ]
    return notes


def sweep_rows(sweep: Sweep) -> Table:
    """Return every point as a row of unrounded figures."""

    def test(figure: str, point: Trained) -> Estimate | None:
        found = sweep.test_at(point)
        return getattr(found, figure) if found else None

    columns = [
        Column("on", lambda point: point.experiment.on),
        Column("transform", lambda point: point.experiment.transform),
        Column("alpha", lambda point: point.experiment.alpha),
        Column("seeds", lambda point: len(sweep.seeds)),
        Column("chosen", lambda point: int(sweep.chosen_at(point) is not None)),
        *spread("val_top1", lambda point: point.val.top1),
        *spread("val_loss", lambda point: point.val.loss),
        *spread("test_top1", partial(test, "top1")),
        *spread("test_loss", partial(test, "loss")),
    ]
    return Table(columns, [sweep.baseline, *sweep.points])


def write_sweep(sweep: Sweep, dataset: Dataset | str | Path, *, run: str | None = None) -> Path:
    """Write the run folder, replacing an older one as a whole, and return it; `run` is its name [`sweep.name`].

    >>> from alphafuse import Dataset, TrainSettings, sweep, write_sweep
    >>> dataset = Dataset.open("demo")
    >>> quick = TrainSettings(epochs=2, hidden=(16,))
    >>> folder = write_sweep(sweep(dataset, on=["ast"], alphas=[0.5, 1.0], seeds=1, settings=quick), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'history.csv', 'sweep.csv', 'sweep.json', 'sweep.png']
    """
    dataset = Dataset.open(dataset)
    figures = sweep.to_json()
    return write_run(
        dataset.root,
        run or sweep.name,
        kind="sweep",
        config=sweep.config(),
        figures=figures,
        history=[(point.experiment.name, point.heads) for point in (sweep.baseline, *sweep.points)],
        rows=csv_rows(sweep_rows(sweep)),
        picture=png(alpha_curves(AlphaCurves.from_json(figures), looks_of(dataset.media))),
    )


# compare


@describe.register
def describe_compare(table: CompareTable) -> Document:
    """Describe the table, with notes and figures that others published."""
    first_of_group = {row.group: row for row in reversed(table.rows)}
    columns = [
        Column("", lambda row: row.group if first_of_group[row.group] is row else None, left=True, wide=True),
        Column("experiment", lambda row: row.title, left=True),
        *accuracy_columns("top-1", lambda row: row.test.top1),
        *against_columns("vs concat"),
        Column("val", lambda row: percent(row.val.top1.mean), wide=True),
        *(_choice() if table.is_probe else loss_columns("loss", lambda row: row.test.loss, digits=2)),
    ]

    def share(side: str, row: Any) -> str:
        found = getattr(row, side)
        return "-" if found is None else percent(found)

    published = [
        Column("VGGSound, 309 classes", lambda row: row.system, left=True),
        *(Column(side, partial(share, side)) for side in ("audio", "visual", "both")),
        Column("remark", lambda row: row.note, left=True, wide=True),
        Column("repository", lambda row: row.repository, left=True, wide=True),
    ]
    others = [Table(published, published_results(), [PUBLISHED_NOTE], ruled=False)] if table.is_vggsound else []
    test, rows = table.rows[0].test, len(table.rows) - 1
    notes = [
        f"Top-1 in % of {test.n} test clips, means over seeds; vs concat: points. verdict: p below .05, corrected "
        f"for all {rows} rows, and a 95% interval without 0. chosen: on {table.clips['val']} validation clips.",
        " ".join([*_ceiling(table.ceiling), *left_out(table.dropped)]),
    ]
    return Document(
        f"Comparison on {_on(table)}",
        [Table(columns, table.rows, [note for note in notes if note], details=_compare_details(table)), *others],
        lead=lead_of(table, gains_sentence(table.gains, table.media), _others(table)),
    )


def _others(table: CompareTable) -> str:
    """Say which ways to fuse, transforms and controls differ from the untransformed concat."""
    others = [row for row in table.rows if row.comparison and row.group not in PARTIAL]
    parts = []
    for word in ("better", "worse"):
        names = [
            f"{row.title} {signed(row.comparison.test.difference)}"
            for row in others
            if row.comparison and verdict(row.comparison) == word
        ]
        shown = [*names[:LISTED_ROWS], *([f"{len(names) - LISTED_ROWS} more"] if len(names) > LISTED_ROWS else [])]
        parts += [f"{len(names)} {'is' if len(names) == 1 else 'are'} {word} ({', '.join(shown)})"] if names else []
    what = "ways to fuse" if table.gains else "heads"
    found = listed(parts) if parts else "none is shown to be better or worse"
    return f"Of the {len(others)} other {what}, {found} than the untransformed concat."


def _choice() -> list[Column]:
    """Columns: what the probe of a row chose."""

    def cell(place: int, row: Any) -> str | None:
        return names_of(row.probe.settings)[place] if row.probe else None

    titles = ("head", "rate", "decay")
    return [Column(title, partial(cell, place), left=place == 0, wide=True) for place, title in enumerate(titles)]


def _compare_details(table: CompareTable) -> list[str]:
    test = table.rows[0].test
    compared = next(row.comparison for row in table.rows if row.comparison)
    return [
        *_probing(table),
        f"{test.n} test clips resolve differences of about {percent(table.resolvable_gap)} points and more (paired "
        f"test among {len(table.rows) - 1}, 80% power). Ceiling: {percent(table.ceiling.accuracy)}%.",
        f"Accuracies in %, means over seeds, n = {test.n} test clips of {len(set(test.groups))} source videos (val: "
        f"{table.clips['val']} clips). {methods(test)}",
        f"vs concat: points; p: {compared.test.method}, Holm-corrected for all "
        f"{len(table.rows) - 1} rows. Chosen: on val, from "
        f"{', '.join(f'{ratio:g}' for ratio in (1, *RATIOS))}; test was scored once.",
        "Control: heads on standardised embeddings, where scalar alphas change nothing, and a learning rate for "
        f"{title_of(table.tuned)} instead of an alpha: under Adam, an alpha is a learning rate and an initial scale.",
        *_blending(table),
    ]


def _probing(table: CompareTable) -> list[str]:
    """Return a sentence on how the settings of the rows were chosen; none without a probe."""
    probes = [row.probe for row in table.rows if row.probe]
    if not probes:
        return []
    most, least = (pick(len(probe.points) for probe in probes) for pick in (max, min))
    fewer = f" ({least} with a learning rate per stream, which doesn't go with weight decay)" if least < most else ""
    return [
        f"Probe: head, learning rate and weight decay of each row are the best of {most}{fewer} on "
        f"{probes[0].clips:,} validation clips, with seed {probes[0].seed}; val figures are those of the best."
    ]


def _blending(table: CompareTable) -> list[str]:
    if not table.blend:
        return []
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in table.blend.items())
    return [f"Gradient blending: loss weights {weights} (from how single heads generalise and overfit on val)."]


def compare_rows(table: CompareTable) -> Table:
    """Return the table's rows with unrounded figures."""

    columns = [
        Column("group", lambda row: row.group),
        Column("title", lambda row: row.title),
        Column("n_test", lambda row: row.test.n),
        *spread("test_top1", lambda row: row.test.top1),
        *spread("test_loss", lambda row: row.test.loss),
        Column("n_val", lambda row: row.val.n),
        Column("val_top1", lambda row: row.val.top1.mean),
        Column("val_loss", lambda row: row.val.loss.mean),
        *difference_spread(),
    ]
    if table.is_probe:
        columns += [Column(column.title, column.cell) for column in _choice()]
    return Table(columns, table.rows)


def write_compare(table: CompareTable, dataset: Dataset | str | Path) -> Path:
    """Write `<root>/runs/compare/`, replacing an older one as a whole, and return the folder.

    The heads of the table's main rows become runs of their own (see `keep_heads`), so that `predict` and the report
    work from them.

    >>> from alphafuse import Dataset, TrainSettings, compare, write_compare
    >>> dataset = Dataset.open("demo")
    >>> folder = write_compare(compare(dataset, seeds=1, settings=TrainSettings(epochs=2, hidden=(16,))), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['compare.csv', 'compare.json', 'compare.md', 'config.json']
    """
    dataset = Dataset.open(dataset)
    keep_heads(
        dataset.root,
        table.kept,
        settings=table.settings,
        provenance=table.provenance,
        kept_by="compare",
        clips=table.clips,
        dropped=table.dropped,
    )
    return write_run(
        dataset.root,
        "compare",
        kind="compare",
        config=table.config(),
        figures=table.to_json(),
        markdown=to_markdown(describe(table)),
        rows=csv_rows(compare_rows(table)),
    )


# evaluate


def metric_title(name: str) -> tuple[str, float, int]:
    """Return a metric's title, scale and digits: "top1" -> ("top-1 accuracy (%)", 100, 1)."""
    title = METRIC_NAMES.get(name, f"{name.replace('top', 'top-')} accuracy (%)")
    return (title, 100.0, 1) if title.endswith("(%)") else (title, 1.0, 3)


@describe.register
def describe_evaluation(found: RunEvaluation) -> Document:
    """Describe the figures, the best and worst classes, and VGGSounder's scores if they were requested."""
    figures = found.evaluation
    seeds = f"{found.seeds} seeds" if found.seeds > 1 else "one head"
    title = f"{found.run} on {found.split}: {figures.clips} clips of {figures.source_videos} source videos, {seeds}"
    columns = [
        Column("metric", lambda row: row[0], left=True),
        Column("mean", lambda row: row[1]),
        Column("interval", lambda row: row[2]),
        Column("interval by", lambda row: row[3], left=True, wide=True),
    ]
    by_rank = f"top{figures.k}" if figures.k >= len(figures.classes) else ""  # always 1
    metrics = [_metric(*item) for item in figures.estimates.items() if item[0] != by_rank]
    shown = [
        "95% intervals, by resampling source videos; means over seeds."
        if found.seeds > 1
        else "95% intervals, by resampling source videos.",
        " ".join(_evaluation_notes(found)),
    ]
    tables = [Table(columns, metrics, [note for note in shown if note])]
    return Document(title, [*tables, _classes(figures.table), *_vggsounder(found)], lead=lead_of(found))


def _metric(name: str, estimate: Estimate | None) -> tuple[str, str, str, str]:
    title, scale, digits = metric_title(name)
    if estimate is None:
        return title, "-", "", "fewer than two classes occur"
    low, high = (f"{scale * end:.{digits}f}" for end in (estimate.interval.low, estimate.interval.high))
    return title, f"{scale * estimate.mean:.{digits}f}", f"{low}..{high}", estimate.interval.method


def _evaluation_notes(found: RunEvaluation) -> list[str]:
    figures, ceiling = found.evaluation, found.ceiling
    notes = []
    if ceiling.reachable < ceiling.clips:
        notes.append(
            f"Ceiling: {ceiling.reachable} of {ceiling.clips} clips have a label that occurs in training: no accuracy "
            f"can exceed {percent(ceiling.accuracy)}%."
        )
    if found.against:
        notes.append(f"Test against the other run: {found.against.test.method}.")
    if figures.absent_classes:
        notes.append(
            f"{len(figures.absent_classes)} of {len(figures.classes)} classes have no clip in this split: left out of "
            "the means over classes."
        )
    if found.dropped:
        notes.append(f"Left out because they lack a stream: {found.dropped} clips.")
    return notes


def _classes(rows: Sequence[ClassRow]) -> Table:
    """Return the table of the classes with the highest and the lowest recall."""
    present = sorted((row for row in rows if row.n), key=lambda row: (-(row.recall or 0), row.label))
    shown: list[ClassRow | str] = list(present)
    more = len(present) - 2 * LISTED_CLASSES
    if more > 0:
        shown[LISTED_CLASSES:-LISTED_CLASSES] = [f"... ({more} more in classes.csv)"]
    taken = "{0.confused_with} ({1}%)"
    columns = [
        Column("class", lambda row: row.label[:40], left=True),
        Column("clips", lambda row: row.n),
        Column("found", lambda row: percent(row.recall or 0)),
        Column("interval", lambda row: row.interval and percent_range(row.interval)),
        Column("AP", lambda row: None if row.average_precision is None else f"{row.average_precision:.3f}", wide=True),
        Column(
            "most often predicted as",
            lambda row: row.confused_with and taken.format(row, percent(row.confused or 0))[:48],
            left=True,
            wide=True,
        ),
    ]
    return Table(columns, shown, ruled=False)


def _vggsounder(found: RunEvaluation) -> list[Table]:
    scores = found.vggsounder
    if scores is None:
        return []
    columns = [
        Column("clips", lambda row: row.clips, left=True),
        Column("labels", lambda row: row.labels, left=True),
        Column("n", lambda row: row.n),
        *accuracy_columns("hit@1", lambda row: row.hit1),
        Column(f"hit@{scores.k}", lambda row: percent(row.hitk.mean), wide=True),
        Column("micro F1", lambda row: percent(row.micro_f1)),
        Column("macro F1", lambda row: percent(row.macro_f1), wide=True),
        Column("Jaccard", lambda row: percent(row.jaccard), wide=True),
        Column("subset", lambda row: percent(row.subset_accuracy.mean), wide=True),
    ]
    note = (
        f"VGGSounder {scores.version}: {scores.n} clips listed, {scores.missing} not. A head names one class per clip: "
        f"on all labels, subset accuracy can't exceed {percent(scores.rows[0].best_subset_accuracy)}% and micro F1 "
        f"{percent(scores.rows[0].best_micro_f1)}%."
    )
    return [Table(columns, scores.rows, [note], ruled=False)]


def class_rows(found: RunEvaluation) -> Table:
    """Return every class as a row of unrounded figures."""
    fields = [name for name in ClassRow.__dataclass_fields__ if name not in ("label", "n", "recall", "interval")]
    by_class = [
        Column("label", lambda row: row.label),
        Column("n", lambda row: row.n),
        Column("recall", lambda row: row.recall),
        Column("recall_low", lambda row: row.interval and row.interval.low),
        Column("recall_high", lambda row: row.interval and row.interval.high),
        *(Column(name, lambda row, name=name: getattr(row, name)) for name in fields),  # type: ignore[misc]
    ]
    return Table(by_class, found.evaluation.table)


def write_evaluation(found: RunEvaluation) -> Path:
    """Write `<run>/evaluation-<split>/`, and return that folder.

    >>> from alphafuse import evaluate, write_evaluation
    >>> folder = write_evaluation(evaluate("demo/runs/sqrt-ast", split="val"))
    >>> folder.as_posix(), sorted(path.name for path in folder.iterdir())
    ('demo/runs/sqrt-ast/evaluation-val', ['classes.csv', 'confusion.csv', 'evaluation.json'])
    """
    names = found.evaluation.classes
    confusion: list[tuple[object, ...]] = [("label", *names)]
    confusion += [(label, *map(int, counts)) for label, counts in zip(names, found.evaluation.confusion, strict=True)]
    return write_evaluation_folder(
        found.run,
        found.split,
        figures=found.to_json(),
        classes=csv_rows(class_rows(found)),
        confusion=confusion,
    )

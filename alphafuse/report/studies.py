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
from alphafuse.data.streams import title_of
from alphafuse.heads.model.config import is_notebook, title_of_streams
from alphafuse.heads.model.transforms import NOTEBOOK_POS_SCALAR
from alphafuse.heads.scoring.metrics import ClassRow
from alphafuse.heads.scoring.statistics import Comparison, Estimate
from alphafuse.heads.studies.compare import PARTIAL, RATIOS, CompareTable, published_results
from alphafuse.heads.studies.evaluate import RunEvaluation
from alphafuse.heads.studies.fit import RunResult
from alphafuse.heads.studies.probe import names_of
from alphafuse.heads.studies.runs import padded, write_evaluation_folder, write_run
from alphafuse.heads.studies.same_clips import Trained
from alphafuse.heads.studies.sweep import Sweep
from alphafuse.heads.studies.table1 import FIGURE3, PAPER_TEST_CLIPS, Table1
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
    p_value,
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


def accuracy_columns(title: str, of: Callable[[Any], Estimate | None]) -> list[Column]:
    """Columns: an accuracy in percent, and its interval."""
    return [
        Column(title, lambda row: percent(found.mean) if (found := of(row)) else None),
        Column("interval", lambda row: percent_range(found.interval) if (found := of(row)) else None),
    ]


def loss_columns(title: str, of: Callable[[Any], Estimate], digits: int) -> list[Column]:
    """Columns: a loss in nats, and its interval."""
    return [
        Column(title, lambda row: f"{of(row).mean:.{digits}f}"),
        Column("interval", lambda row: loss_range(of(row))),
    ]


def against_columns(title: str, of: Callable[[Any], Comparison | None] = attrgetter("comparison")) -> list[Column]:
    """Columns: the difference of a row's comparison in points, its interval, and its corrected p."""

    def cell(write: Callable[[Comparison], str]) -> Callable[[Any], str | None]:
        return lambda row: write(found) if (found := of(row)) else None

    return [
        Column(title, cell(lambda found: f"{100 * found.test.difference:+.1f}")),
        Column("interval", cell(lambda found: percent_range(found.interval, sign="+"))),
        Column("p", cell(lambda found: p_value(found.p_holm))),
    ]


def _spread(name: str, of: Callable[[Any], Estimate | None]) -> list[Column]:
    """Columns of a csv: the mean of an estimate and both ends of its interval."""
    return [
        Column(name, lambda row: found.mean if (found := of(row)) else None),
        Column(f"{name}_low", lambda row: found.interval.low if (found := of(row)) else None),
        Column(f"{name}_high", lambda row: found.interval.high if (found := of(row)) else None),
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
        *accuracy_columns(f"top-{k}", lambda split: split.topk),
        *loss_columns("loss", lambda split: split.loss, digits=3),
        Column("ceiling", lambda split: percent(split.ceiling.accuracy)),
    ]
    seeds = f"{len(result.seeds)} seeds" if len(result.seeds) > 1 else f"seed {result.seeds[0]}"
    means = f"mean over {seeds}" if len(result.seeds) > 1 else f"of {seeds}"
    notes = [
        *([f"Probe: {result.probe.sentence}; val figures are those of the best: use test's."] if result.probe else []),
        f"Accuracies in %, {means}. {methods(test)}",
        "Ceiling: share of clips whose label occurs in training; no head can exceed it.",
        *([f"Top-{k} instead of top-5: there are only {k} classes."] if k < 5 else []),
        *left_out(result.dropped),
    ]
    splits = Table(columns, list(result.splits.values()), ruled=False)
    return Document(f"{result.experiment.title} ({seeds})", [splits, Table((), (), notes, ruled=False)])


# table 1


@describe.register
def describe_table1(table: Table1) -> Document:
    """Describe table 1, beside the paper's figures."""
    columns = [
        Column("#", lambda row: row.paper and row.paper.experiment),
        Column("experiment", lambda row: row.experiment.title, left=True),
        *accuracy_columns("top-1", lambda row: row.test.top1),
        *against_columns("vs none"),
        Column("val", lambda row: percent(row.val.top1.mean)),
        *loss_columns("loss", lambda row: row.test.loss, digits=2),
        Column("paper", lambda row: row.paper and f"{row.paper.accuracy:.0%}"),
        Column("code", lambda row: row.paper and f"{row.paper.correct}/{PAPER_TEST_CLIPS}"),
        Column("loss", lambda row: row.paper and f"{row.paper.loss:.2f}"),
    ]
    return Document(
        f"Table 1 on {_on(table)}",
        [Table(columns, table.rows, _table1_notes(table))],
        picture=("Train and validation loss of experiment 2", "figure3.png"),
    )


def _table1_notes(table: Table1) -> list[str]:
    baseline, compared = table.rows[0].test, [row.comparison for row in table.rows if row.comparison]
    ceiling = table.ceiling
    notes = [
        table.verdict,
        f"Ceiling: {ceiling.reachable} of {ceiling.clips} test clips have a label that occurs in training: no head can "
        f"exceed {percent(ceiling.accuracy)}%.",
        f"Accuracies in %, means over seeds, n = {baseline.n} test clips of {len(set(baseline.groups))} source videos "
        f"(val: {table.clips['val']} clips); the last epoch's heads, test scored once.",
        methods(baseline),
        f"vs none: points against the untransformed row; p: {compared[0].test.method}, Holm-corrected "
        f"for the {len(compared)} comparisons.",
    ]
    if is_notebook(table.provenance["embeddings"]):
        notes.append(f"Protocol notebook: pos-scalar multiplies by {NOTEBOOK_POS_SCALAR:g}, as the authors' code did.")
    notes += left_out(table.dropped)
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


def write_table1(table: Table1, dataset: Dataset) -> Path:
    """Write `<root>/runs/table1/`, replacing an older one as a whole, and return the folder.

    >>> from alphafuse import Dataset, TrainSettings, table1, write_table1
    >>> dataset = Dataset.open("demo")
    >>> folder = write_table1(table1(dataset, seeds=1, settings=TrainSettings(epochs=2, hidden=(16,))), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'figure3.png', 'heads', 'history.csv', 'table1.json', 'table1.md']
    """
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

    def p(point: Trained) -> str | None:
        chosen = sweep.chosen_at(point)
        return p_value(chosen.comparison.p_holm) if chosen else None

    columns = [
        Column(
            "on",
            lambda point: title_of_streams(point.experiment.on) if point.experiment.on else "untransformed",
            left=True,
        ),
        Column("alpha", alpha),
        *accuracy_columns("val top-1", lambda point: point.val.top1),
        *loss_columns("val loss", lambda point: point.val.loss, digits=3),
        Column("", lambda point: "<- chosen" if sweep.chosen_at(point) else None, left=True),
        *accuracy_columns("test top-1", lambda point: test.top1 if (test := sweep.test_at(point)) else None),
        Column("p", p),
    ]
    rows = [sweep.baseline, *sweep.points]
    return Document(f"{sweep.transform} on {_on(sweep)}", [Table(columns, rows, _sweep_notes(sweep))])


def _sweep_notes(sweep: Sweep) -> list[str]:
    test = sweep.baseline.test
    assert test is not None
    notes = []
    method = next(iter(sweep.chosen.values())).comparison.test.method
    for on, found in sweep.chosen.items():
        as_good = (
            f"{min(found.as_good):g} to {max(found.as_good):g} are as good" if found.as_good else "none is as good"
        )
        clips = f"{sweep.baseline.val.n} validation clips"
        if found.is_untransformed:
            notes.append(
                f"{title_of_streams(on)}: keep the untransformed heads. {clips} don't show that another alpha is "
                f"better ({as_good})."
            )
            continue
        difference = 100 * found.comparison.test.difference
        verdict = ("better" if difference > 0 else "worse") if found.comparison.is_found else "undecided"
        notes.append(
            f"{title_of_streams(on)}: alpha {found.alpha:g} is better than none on {clips} ({as_good}); on {test.n} "
            f"test clips it is {verdict}: {difference:+.1f} points "
            f"({percent_range(found.comparison.interval, sign='+')})."
        )
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
    if sweep.settings.normalize != "none":
        notes.append(NORMALIZE_NOTES[sweep.settings.normalize])
    return notes + left_out(sweep.dropped)


def _sweep_csv(sweep: Sweep) -> Table:
    def test(figure: str, point: Trained) -> Estimate | None:
        found = sweep.test_at(point)
        return getattr(found, figure) if found else None

    columns = [
        Column("on", lambda point: point.experiment.on),
        Column("transform", lambda point: point.experiment.transform),
        Column("alpha", lambda point: point.experiment.alpha),
        Column("seeds", lambda point: len(sweep.seeds)),
        Column("chosen", lambda point: int(sweep.chosen_at(point) is not None)),
        *_spread("val_top1", lambda point: point.val.top1),
        *_spread("val_loss", lambda point: point.val.loss),
        *_spread("test_top1", partial(test, "top1")),
        *_spread("test_loss", partial(test, "loss")),
    ]
    return Table(columns, [sweep.baseline, *sweep.points])


def write_sweep(sweep: Sweep, dataset: Dataset, *, run: str | None = None) -> Path:
    """Write the run folder, replacing an older one as a whole, and return it; `run` is its name [`sweep.name`].

    >>> from alphafuse import Dataset, TrainSettings, sweep, write_sweep
    >>> dataset = Dataset.open("demo")
    >>> quick = TrainSettings(epochs=2, hidden=(16,))
    >>> folder = write_sweep(sweep(dataset, on=["ast"], alphas=[0.5, 1.0], seeds=1, settings=quick), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'history.csv', 'sweep.csv', 'sweep.json', 'sweep.png']
    """
    figures = sweep.to_json()
    return write_run(
        dataset.root,
        run or sweep.name,
        kind="sweep",
        config=sweep.config(),
        figures=figures,
        history=[(point.experiment.name, point.heads) for point in (sweep.baseline, *sweep.points)],
        rows=csv_rows(_sweep_csv(sweep)),
        picture=png(alpha_curves(AlphaCurves.from_json(figures), looks_of(dataset.media))),
    )


# compare


@describe.register
def describe_compare(table: CompareTable) -> Document:
    """Describe the table, with notes and figures that others published."""
    first_of_group = {row.group: row for row in reversed(table.rows)}
    columns = [
        Column("", lambda row: row.group if first_of_group[row.group] is row else None, left=True),
        Column("experiment", lambda row: row.title, left=True),
        *accuracy_columns("top-1", lambda row: row.test.top1),
        *against_columns("vs concat"),
        Column("val", lambda row: percent(row.val.top1.mean)),
        *(_choice() if table.is_probe else loss_columns("loss", lambda row: row.test.loss, digits=2)),
    ]

    def share(side: str, row: Any) -> str:
        found = getattr(row, side)
        return "-" if found is None else percent(found)

    published = [
        Column("VGGSound, 309 classes", lambda row: row.system, left=True),
        *(Column(side, partial(share, side)) for side in ("audio", "visual", "both")),
        Column("remark", lambda row: row.note, left=True),
        Column("repository", lambda row: row.repository, left=True),
    ]
    return Document(
        f"Comparison on {_on(table)}",
        [
            Table(columns, table.rows, _compare_notes(table)),
            Table(published, published_results(), [PUBLISHED_NOTE], ruled=False),
        ],
    )


def _choice() -> list[Column]:
    """Columns: what the probe of a row chose."""

    def cell(place: int, row: Any) -> str | None:
        return names_of(row.probe.settings)[place] if row.probe else None

    titles = ("head", "rate", "decay")
    return [Column(title, partial(cell, place), left=place == 0) for place, title in enumerate(titles)]


def _compare_notes(table: CompareTable) -> list[str]:
    test = table.rows[0].test
    compared = table.gain or next(row.comparison for row in table.rows if row.comparison)
    others = [row for row in table.rows if row.comparison and row.group not in PARTIAL]
    found = [row for row in others if row.comparison and row.comparison.is_found]
    names = ", ".join(f"{row.title} ({100 * row.comparison.test.difference:+.1f})" for row in found if row.comparison)
    fuse = "ways to fuse" if table.better_single else "heads"
    return [
        *_gain(table),
        *_probing(table),
        f"Of the {len(others)} other {fuse}, {len(found) or 'none'} can be distinguished from the "
        "untransformed concat" + (f": {names}." if found else "."),
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
        *left_out(table.dropped),
    ]


def _gain(table: CompareTable) -> list[str]:
    """Return a sentence on what fusing gains; none if there is only one stream."""
    if table.gain is None or table.better_single is None:
        return []
    gain, p = table.gain, p_value(table.gain.test.p_value)
    interval = percent_range(gain.interval, sign="+")
    points = f"{100 * gain.test.difference:+.1f} points ({interval}, p {p if p.startswith('<') else f'= {p}'})"
    better = "better" if sum(row.group == "alone" for row in table.rows) == 2 else "best"
    name = table.better_single.title.removesuffix(" only")
    return [f"Fusing gains {points} over the {better} stream alone, {name}."]


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


def _compare_csv(table: CompareTable) -> Table:
    def against(value: Callable[[Comparison], float]) -> Callable[[Any], float | None]:
        return lambda row: value(row.comparison) if row.comparison else None

    columns = [
        Column("group", lambda row: row.group),
        Column("title", lambda row: row.title),
        Column("n_test", lambda row: row.test.n),
        *_spread("test_top1", lambda row: row.test.top1),
        *_spread("test_loss", lambda row: row.test.loss),
        Column("n_val", lambda row: row.val.n),
        Column("val_top1", lambda row: row.val.top1.mean),
        Column("val_loss", lambda row: row.val.loss.mean),
        Column("difference", against(lambda found: found.test.difference)),
        Column("difference_low", against(lambda found: found.interval.low)),
        Column("difference_high", against(lambda found: found.interval.high)),
        Column("p_value", against(lambda found: found.test.p_value)),
        Column("p_holm", against(lambda found: found.p_holm)),
    ]
    if table.is_probe:
        columns += [Column(column.title, column.cell) for column in _choice()]
    return Table(columns, table.rows)


def write_compare(table: CompareTable, dataset: Dataset) -> Path:
    """Write `<root>/runs/compare/`, replacing an older one as a whole, and return the folder.

    >>> from alphafuse import Dataset, TrainSettings, compare, write_compare
    >>> dataset = Dataset.open("demo")
    >>> folder = write_compare(compare(dataset, seeds=1, settings=TrainSettings(epochs=2, hidden=(16,))), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['compare.csv', 'compare.json', 'compare.md', 'config.json']
    """
    return write_run(
        dataset.root,
        "compare",
        kind="compare",
        config=table.config(),
        figures=table.to_json(),
        markdown=to_markdown(describe(table)),
        rows=csv_rows(_compare_csv(table)),
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
        Column("interval by", lambda row: row[3], left=True),
    ]
    tables = [Table(columns, [_metric(*item) for item in figures.estimates.items()], _evaluation_notes(found))]
    return Document(title, [*tables, _classes(figures.table), *_vggsounder(found)])


def _metric(name: str, estimate: Estimate | None) -> tuple[str, str, str, str]:
    title, scale, digits = metric_title(name)
    if estimate is None:
        return title, "-", "", "fewer than two classes occur"
    low, high = (f"{scale * end:.{digits}f}" for end in (estimate.interval.low, estimate.interval.high))
    return title, f"{scale * estimate.mean:.{digits}f}", f"{low}..{high}", estimate.interval.method


def _evaluation_notes(found: RunEvaluation) -> list[str]:
    figures, against = found.evaluation, found.against
    notes = []
    if against:
        gap = f"{100 * against.test.difference:+.1f} points ({percent_range(against.interval, sign='+')})"
        notes.append(
            f"Against {against.run} ({percent(against.top1)}% on the same {against.n} clips): {gap}, p "
            f"{p_value(against.test.p_value)} ({against.test.method})."
        )
    notes.append(
        f"Ceiling: {found.ceiling.reachable} of {found.ceiling.clips} clips have a label that occurs in training: no "
        f"accuracy can exceed {percent(found.ceiling.accuracy)}%. Means over seeds."
    )
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
        Column("AP", lambda row: None if row.average_precision is None else f"{row.average_precision:.3f}"),
        Column(
            "most often predicted as",
            lambda row: row.confused_with and taken.format(row, percent(row.confused or 0))[:48],
            left=True,
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
        Column(f"hit@{scores.k}", lambda row: percent(row.hitk.mean)),
        Column("micro F1", lambda row: percent(row.micro_f1)),
        Column("macro F1", lambda row: percent(row.macro_f1)),
        Column("Jaccard", lambda row: percent(row.jaccard)),
        Column("subset", lambda row: percent(row.subset_accuracy.mean)),
    ]
    note = (
        f"VGGSounder {scores.version}: {scores.n} clips listed, {scores.missing} not. A head names one class per clip: "
        f"on all labels, subset accuracy can't exceed {percent(scores.rows[0].best_subset_accuracy)}% and micro F1 "
        f"{percent(scores.rows[0].best_micro_f1)}%."
    )
    return [Table(columns, scores.rows, [note], ruled=False)]


def write_evaluation(found: RunEvaluation) -> Path:
    """Write `<run>/evaluation-<split>/`, and return that folder.

    >>> from alphafuse import evaluate, write_evaluation
    >>> folder = write_evaluation(evaluate("demo/runs/sqrt-ast", split="val"))
    >>> folder.as_posix(), sorted(path.name for path in folder.iterdir())
    ('demo/runs/sqrt-ast/evaluation-val', ['classes.csv', 'confusion.csv', 'evaluation.json'])
    """
    fields = [name for name in ClassRow.__dataclass_fields__ if name not in ("label", "n", "recall", "interval")]
    by_class = [
        Column("label", lambda row: row.label),
        Column("n", lambda row: row.n),
        Column("recall", lambda row: row.recall),
        Column("recall_low", lambda row: row.interval and row.interval.low),
        Column("recall_high", lambda row: row.interval and row.interval.high),
        *(Column(name, lambda row, name=name: getattr(row, name)) for name in fields),  # type: ignore[misc]
    ]
    names = found.evaluation.classes
    confusion: list[tuple[object, ...]] = [("label", *names)]
    confusion += [(label, *map(int, counts)) for label, counts in zip(names, found.evaluation.confusion, strict=True)]
    return write_evaluation_folder(
        found.run,
        found.split,
        figures=found.to_json(),
        classes=csv_rows(Table(by_class, found.evaluation.table)),
        confusion=confusion,
    )

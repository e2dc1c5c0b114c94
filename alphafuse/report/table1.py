"""Table 1 beside the paper's figures: text, markdown, json, and the loss curves of experiment 2 (the paper's figure 3).

runs/table1/
  config.json     everything that made it
  table1.json     every figure, interval and p-value
  table1.md       the table for people
  history.csv     experiment, seed, epoch, train_loss, val_loss, val_accuracy
  heads/<name>/   heads of untransformed, timesformer-only and ast-only, as in a run of `fit`
  figure3.png     train and validation loss of experiment 2, ours beside the paper's
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.heads.model.config import is_notebook
from alphafuse.heads.model.transforms import NOTEBOOK_POS_SCALAR
from alphafuse.heads.studies.experiments import (
    TABLE1_RUN,
    RunResult,
    SplitResult,
    experiment_history,
    replaced_run,
    save_heads,
)
from alphafuse.heads.studies.table1 import FIGURE3, PAPER_TEST_CLIPS, Table1, Table1Row
from alphafuse.system.files import write_atomically, write_csv, write_json

from .contents import LossCurves, padded
from .figures import losses, png
from .text import (
    aligned,
    loss_range,
    methods,
    p_value,
    percent,
    percent_range,
    seeds_text,
    split_counts,
    table_markdown,
    table_text,
    wrapped,
)

HEADER = (
    *("#", "experiment", "top-1", "interval", "vs none", "interval", "p", "val", "loss", "interval"),
    *("paper", "code", "loss"),
)
LEFT_ALIGNED = ("experiment", "split")


def write_table1(table: Table1, dataset: Dataset) -> Path:
    """Write `<root>/runs/table1/` whole, in place of an older one, and return the folder.

    >>> from alphafuse import Dataset, TrainSettings, table1, write_table1
    >>> dataset = Dataset.open("demo")
    >>> folder = write_table1(table1(dataset, seeds=1, settings=TrainSettings(epochs=2, hidden=(16,))), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'figure3.png', 'heads', 'history.csv', 'table1.json', 'table1.md']
    """
    with replaced_run(dataset.root, TABLE1_RUN) as folder:
        write_json(
            folder / "config.json",
            {
                "kind": "table1",
                "experiments": [asdict(row.experiment) for row in table.rows],
                **table.provenance,
                "clips": dict(table.clips),
                "dropped": dict(table.dropped),
            },
        )
        write_json(folder / "table1.json", to_json(table))
        write_atomically(folder / "table1.md", format_markdown(table).encode())
        write_csv(folder / "history.csv", experiment_history(table.rows))
        for row in table.rows:
            if not row.paper:
                heads = [(trained.seed, trained.head) for trained in row.heads]
                save_heads(heads, folder / "heads" / row.experiment.name)
        write_atomically(folder / "figure3.png", figure3(table))
    return dataset.root / "runs" / TABLE1_RUN


def format_text(table: Table1) -> str:
    """The table in at most 120 columns, with what its figures mean underneath."""
    rows = [HEADER, *(_cells(row) for row in table.rows)]
    return "\n".join([_title(table), "", *table_text(rows, left=LEFT_ALIGNED), *wrapped(_notes(table))]) + "\n"


def format_markdown(table: Table1) -> str:
    """The table as a markdown document, with figure 3."""
    lines = table_markdown([HEADER, *(_cells(row) for row in table.rows)], left=LEFT_ALIGNED)
    notes = [f"- {note}" for note in _notes(table)]
    figure = "![Train and validation loss of experiment 2](figure3.png)"
    return "\n".join([f"# {_title(table)}", "", *lines, "", *notes, "", figure]) + "\n"


def to_json(table: Table1) -> dict[str, Any]:
    """Every figure of the table, json-able (no NaN)."""
    return {
        "dataset": table.dataset_name,
        "is_demo": table.is_demo,
        "is_paper_split": table.is_paper_split,
        "classes": table.classes,
        "clips": dict(table.clips),
        "dropped": dict(table.dropped),
        "reachable_ceiling": {**asdict(table.ceiling), "accuracy": table.ceiling.accuracy},
        "seeds": list(table.seeds),
        "smallest_resolvable_gap": table.resolvable_gap,
        "largest_gap": table.largest_gap,
        "verdict": table.verdict,
        "rows": [_row_json(row) for row in table.rows],
    }


def format_run(result: RunResult) -> str:
    """What `fit` found: both splits with n and intervals."""
    k = result.splits["test"].scores.k
    header = ("split", "n", "top-1", "interval", f"top-{k}", "interval", "loss", "interval", "ceiling")
    rows = [header, *(_split_cells(split) for split in result.splits.values())]
    lines = aligned(rows, left=LEFT_ALIGNED)
    test = result.splits["test"]
    seeds = f"{len(result.seeds)} seeds" if len(result.seeds) > 1 else f"seed {result.seeds[0]}"
    means = f"mean over {seeds}" if len(result.seeds) > 1 else f"of {seeds}"
    notes = [
        f"Accuracies in %, {means}. {methods(test)}",
        "Ceiling: share of clips whose label occurs in training; no head can pass it.",
    ]
    if k < 5:
        notes.append(f"Top-{k} instead of top-5: there are only {k} classes.")
    dropped = {**result.heads[0].dropped, "test": test.dropped}
    if any(dropped.values()):
        notes.append(f"Left out because they lack a modality: {split_counts(dropped)}.")
    return "\n".join([f"{result.experiment.title} ({seeds})", "", *lines, "", *notes, f"Run: {result.folder}"]) + "\n"


def _split_cells(result: SplitResult) -> tuple[str, ...]:
    return (
        result.split,
        str(result.n),
        percent(result.top1.mean),
        percent_range(result.top1.interval),
        percent(result.topk.mean),
        percent_range(result.topk.interval),
        f"{result.loss.mean:.3f}",
        loss_range(result.loss),
        percent(result.ceiling.accuracy),
    )


def _cells(row: Table1Row) -> tuple[str, ...]:
    comparison, paper = row.comparison, row.paper
    return (
        str(paper.experiment) if paper else "",
        row.experiment.title,
        percent(row.test.top1.mean),
        percent_range(row.test.top1.interval),
        f"{100 * comparison.test.difference:+.1f}" if comparison else "",
        percent_range(comparison.interval, sign="+") if comparison else "",
        p_value(comparison.p_holm) if comparison else "",
        percent(row.val.top1.mean),
        f"{row.test.loss.mean:.2f}",
        loss_range(row.test.loss),
        f"{paper.accuracy:.0%}" if paper else "",
        f"{paper.correct}/{PAPER_TEST_CLIPS}" if paper else "",
        f"{paper.loss:.2f}" if paper else "",
    )


def _title(table: Table1) -> str:
    demo = " (the generated demo)" if table.is_demo else ""
    clips = f"{table.clips['train']} train, {table.clips['val']} val, {table.clips['test']} test clips"
    return f"Table 1 on {table.dataset_name}{demo}: {clips}, {table.classes} classes, {seeds_text(table.seeds)}"


def _notes(table: Table1) -> list[str]:
    baseline, compared = table.rows[0].test, [row.comparison for row in table.rows if row.comparison]
    ceiling = table.ceiling
    notes = [
        table.verdict,
        f"Ceiling: {ceiling.reachable} of {ceiling.clips} test clips have a label that occurs in training: no head can "
        f"pass {percent(ceiling.accuracy)}%.",
        f"Accuracies in %, means over seeds, n = {baseline.n} test clips of {len(set(baseline.groups))} source videos "
        f"(val: {table.clips['val']} clips); the last epoch's heads, test scored once.",
        methods(baseline),
        f"vs none: points against the untransformed row; p: {compared[0].test.method}, Holm-corrected "
        f"for the {len(compared)} comparisons, of these seeds' heads (the intervals also vary the seeds).",
    ]
    if is_notebook(table.provenance["embeddings"]):
        notes.append(f"Protocol notebook: pos-scalar multiplies by {NOTEBOOK_POS_SCALAR:g}, as the authors' code did.")
    if any(table.dropped.values()):
        notes.append(f"Left out because they lack a modality: {split_counts(table.dropped)}.")
    if table.is_paper_split:
        notes.append(
            "paper, code, loss: the paper's table 1, and the test clips that its authors' notebook got right, on this "
            "split."
        )
    else:
        notes.append(
            "paper, code, loss: the paper's table 1, and the test clips that its authors' notebook got right; on other "
            f"clips ({PAPER_TEST_CLIPS} of VGGSound): for orientation, not for comparison."
        )
    return notes


def _row_json(row: Table1Row) -> dict[str, Any]:
    paper, comparison = row.paper, row.comparison
    return {
        "experiment": {**asdict(row.experiment), "name": row.experiment.name, "title": row.experiment.title},
        "val": row.val.to_json(),
        "test": row.test.to_json(),
        "against_baseline": comparison and comparison.to_json(),
        "paper": paper
        and {
            "experiment": paper.experiment,
            "accuracy": paper.accuracy,
            "loss": paper.loss,
            "notebook_correct": paper.correct,
            "notebook_clips": PAPER_TEST_CLIPS,
            "notebook_loss": paper.notebook_loss,
        },
    }


def figure3(table: Table1) -> bytes:
    """PNG of experiment 2's losses per epoch: ours (mean and range over seeds) and the paper's, on one scale."""
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

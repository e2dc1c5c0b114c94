"""An evaluation for people and programs.

runs/<name>/evaluation-<split>/
  evaluation.json   every figure and interval, per class too
  classes.csv       label, n, recall with interval, precision, AP, AUC, what it is most often taken for
  confusion.csv     clips of the row's class that are predicted as the column's, summed over seeds
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alphafuse.heads.scoring.metrics import ClassRow
from alphafuse.heads.studies.evaluate import RunEvaluation
from alphafuse.system.files import write_csv, write_json

from .text import aligned, p_value, percent, percent_range, table_text, wrapped

NAMES = {
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "mean_class_accuracy": "mean class accuracy (%)",
    "mean_average_precision": "mAP",
    "auc": "AUC",
    "d_prime": "d-prime",
    "log_loss": "log loss (nats)",
    "ece": "calibration error (ECE)",
}
LISTED = 5  # classes at either end
LEFT_ALIGNED = ("metric", "interval by", "class", "most often taken for", "clips", "labels")


def write_evaluation(found: RunEvaluation) -> Path:
    """Write `<run>/evaluation-<split>/`, and return that folder.

    >>> from alphafuse import evaluate, write_evaluation
    >>> folder = write_evaluation(evaluate("demo/runs/sqrt-ast", split="val"))
    >>> folder.as_posix(), sorted(path.name for path in folder.iterdir())
    ('demo/runs/sqrt-ast/evaluation-val', ['classes.csv', 'confusion.csv', 'evaluation.json'])
    """
    folder = found.run / f"evaluation-{found.split}"
    write_csv(folder / "classes.csv", _class_rows(found))
    write_csv(folder / "confusion.csv", _confusion_rows(found))
    write_json(folder / "evaluation.json", to_json(found))
    return folder


def to_json(found: RunEvaluation) -> dict[str, Any]:
    """Every figure, json-able."""
    against = found.against
    return {
        "run": str(found.run),
        "split": found.split,
        "dropped": found.dropped,
        "reachable_ceiling": {**asdict(found.ceiling), "accuracy": found.ceiling.accuracy},
        **found.evaluation.to_json(),
        "against": against
        and {
            "run": str(against.run),
            "n": against.n,
            "top1": against.top1,
            "interval": asdict(against.interval),
            **asdict(against.test),
        },
        "vggsounder": found.vggsounder and found.vggsounder.to_json(),
    }


def format_text(found: RunEvaluation) -> str:
    """The figures, the best and worst classes, and what they mean."""
    figures = found.evaluation
    seeds = f"{found.seeds} seeds" if found.seeds > 1 else "one head"
    title = f"{found.run} on {found.split}: {figures.clips} clips of {figures.source_videos} source videos, {seeds}"
    rows: list[tuple[str, ...]] = [("metric", "mean", "interval", "interval by")]
    for name, estimate in figures.estimates.items():
        label = NAMES.get(name, f"{name.replace('top', 'top-')} accuracy (%)")
        if estimate is None:
            rows.append((label, "-", "", "fewer than two classes occur"))
            continue
        scale, digits = (100, 1) if label.endswith("(%)") else (1, 3)
        low, high = (f"{scale * end:.{digits}f}" for end in (estimate.interval.low, estimate.interval.high))
        rows.append((label, f"{scale * estimate.mean:.{digits}f}", f"{low}..{high}", estimate.interval.method))
    lines = [title, "", *table_text(rows, left=LEFT_ALIGNED), *wrapped(_notes(found)), "", *_class_table(found)]
    return "\n".join(lines + _vggsounder_lines(found)) + "\n"


def _notes(found: RunEvaluation) -> list[str]:
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
        f"accuracy can pass {percent(found.ceiling.accuracy)}%. Means over seeds."
    )
    if figures.absent_classes:
        notes.append(
            f"{len(figures.absent_classes)} of {len(figures.classes)} classes have no clip here: left out of the means "
            "over classes."
        )
    if found.dropped:
        notes.append(f"Left out because they lack a modality: {found.dropped} clips.")
    return notes


def _class_table(found: RunEvaluation) -> list[str]:
    present = sorted((row for row in found.evaluation.table if row.n), key=lambda row: (-(row.recall or 0), row.label))
    shown = present if len(present) <= 2 * LISTED else [*present[:LISTED], *present[-LISTED:]]
    rows = [
        ("class", "clips ", "found", "interval", "AP", "most often taken for"),
        *(_class_cells(row) for row in shown),
    ]
    lines = aligned(rows, left=LEFT_ALIGNED)
    if len(present) > 2 * LISTED:
        lines.insert(1 + LISTED, f"... ({len(present) - 2 * LISTED} more in classes.csv)")
    return lines


def _class_cells(row: ClassRow) -> tuple[str, ...]:
    taken = f"{row.confused_with} ({percent(row.confused or 0)}%)" if row.confused_with else ""
    return (
        row.label[:40],
        str(row.n),
        percent(row.recall or 0),
        percent_range(row.interval) if row.interval else "",
        "" if row.average_precision is None else f"{row.average_precision:.3f}",
        taken[:48],
    )


def _vggsounder_lines(found: RunEvaluation) -> list[str]:
    scores = found.vggsounder
    if scores is None:
        return []
    header = (
        "clips",
        "labels",
        "n",
        "hit@1",
        "interval",
        f"hit@{scores.k}",
        "micro F1",
        "macro F1",
        "Jaccard",
        "subset",
    )
    rows: list[tuple[str, ...]] = [header]
    for row in scores.rows:
        shares = (row.micro_f1, row.macro_f1, row.jaccard, row.subset_accuracy.mean)
        hits = (percent(row.hit1.mean), percent_range(row.hit1.interval), percent(row.hitk.mean))
        rows.append((row.clips, row.labels, str(row.n), *hits, *(percent(share) for share in shares)))
    note = (
        f"VGGSounder {scores.version}: {scores.n} clips listed, {scores.missing} not. A head names one class per clip: "
        f"on all labels, subset accuracy can't pass {percent(scores.rows[0].best_subset_accuracy)}% and micro F1 "
        f"{percent(scores.rows[0].best_micro_f1)}%."
    )
    return ["", *aligned(rows, left=LEFT_ALIGNED), *wrapped([note])]


def _class_rows(found: RunEvaluation) -> Iterator[tuple[object, ...]]:
    yield (
        *("label", "n", "recall", "recall_low", "recall_high", "precision", "average_precision", "auc"),
        *("confused_with", "confused"),
    )
    for row in found.evaluation.table:
        ends = (row.interval.low, row.interval.high) if row.interval else (None, None)
        values = (row.recall, *ends, row.precision, row.average_precision, row.auc, row.confused_with, row.confused)
        yield (row.label, row.n, *("" if value is None else value for value in values))


def _confusion_rows(found: RunEvaluation) -> Iterator[tuple[object, ...]]:
    classes = found.evaluation.classes
    yield ("label", *classes)
    for label, counts in zip(classes, found.evaluation.confusion, strict=True):
        yield (label, *(int(count) for count in counts))

"""The comparison for people and programs.

runs/compare/
  config.json     everything that made it
  compare.json    every figure, interval and p-value
  compare.csv     a line per row
  compare.md      the table for people
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alphafuse.data.dataset import Dataset
from alphafuse.heads.studies.compare import RATIOS, CompareRow, CompareTable, Published, published_results
from alphafuse.heads.studies.experiments import COMPARE_RUN, replaced_run
from alphafuse.system.files import write_atomically, write_csv, write_json

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

HEADER = ("", "experiment", "top-1", "interval", "vs concat", "interval", "p", "val", "loss", "interval")
PUBLISHED_HEADER = ("VGGSound, 309 classes", "audio", "visual", "both", "remark", "repository")
LEFT_ALIGNED = ("", "experiment", "VGGSound, 309 classes", "remark", "repository")


def write_compare(table: CompareTable, dataset: Dataset) -> Path:
    """Write `<root>/runs/compare/` whole, in place of an older one, and return the folder.

    >>> from alphafuse import Dataset, TrainSettings, compare, write_compare
    >>> dataset = Dataset.open("demo")
    >>> folder = write_compare(compare(dataset, seeds=1, settings=TrainSettings(epochs=2, hidden=(16,))), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['compare.csv', 'compare.json', 'compare.md', 'config.json']
    """
    with replaced_run(dataset.root, COMPARE_RUN) as folder:
        write_json(
            folder / "config.json",
            {
                "kind": "compare",
                "experiments": [row.experiment and asdict(row.experiment) for row in table.rows],
                **table.provenance,
                "clips": dict(table.clips),
                "dropped": dict(table.dropped),
            },
        )
        write_json(folder / "compare.json", to_json(table))
        write_csv(folder / "compare.csv", _csv_rows(table))
        write_atomically(folder / "compare.md", format_markdown(table).encode())
    return dataset.root / "runs" / COMPARE_RUN


def format_text(table: CompareTable) -> str:
    """The table in at most 120 columns, what its figures mean, and what others published."""
    lines = [_title(table), "", *table_text(_rows(table), left=LEFT_ALIGNED), *wrapped(_notes(table)), ""]
    return "\n".join([*lines, *aligned(_published_rows(), left=LEFT_ALIGNED), *wrapped([PUBLISHED_NOTE])]) + "\n"


def format_markdown(table: CompareTable) -> str:
    """The same as a markdown document."""
    notes = [f"- {note}" for note in _notes(table)]
    published = table_markdown(_published_rows(), left=LEFT_ALIGNED)
    lines = [f"# {_title(table)}", "", *table_markdown(_rows(table), left=LEFT_ALIGNED), "", *notes, ""]
    return "\n".join([*lines, *published, "", PUBLISHED_NOTE]) + "\n"


PUBLISHED_NOTE = (
    "Published top-1 in %, for orientation: other features, other training, and some choose the epoch on test clips, "
    "which "
    "alphafuse never does."
)


def _rows(table: CompareTable) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [HEADER]
    group = ""
    for row in table.rows:
        rows.append(_cells(row, "" if row.group == group else row.group))
        group = row.group
    return rows


def _cells(row: CompareRow, group: str) -> tuple[str, ...]:
    comparison = row.comparison
    return (
        group,
        row.title,
        percent(row.test.top1.mean),
        percent_range(row.test.top1.interval),
        f"{100 * comparison.test.difference:+.1f}" if comparison else "",
        percent_range(comparison.interval, sign="+") if comparison else "",
        p_value(comparison.p_holm) if comparison else "",
        percent(row.val.top1.mean),
        f"{row.test.loss.mean:.2f}",
        loss_range(row.test.loss),
    )


def _published_rows() -> list[tuple[str, ...]]:
    def cells(row: Published) -> tuple[str, ...]:
        figures = ("-" if share is None else percent(share) for share in (row.audio, row.visual, row.both))
        return (row.system, *figures, row.note, row.repository)

    return [PUBLISHED_HEADER, *(cells(row) for row in published_results())]


def _title(table: CompareTable) -> str:
    demo = " (the generated demo)" if table.is_demo else ""
    clips = f"{table.clips['train']} train, {table.clips['val']} val, {table.clips['test']} test clips"
    return f"Comparison on {table.dataset_name}{demo}: {clips}, {table.classes} classes, {seeds_text(table.seeds)}"


def _notes(table: CompareTable) -> list[str]:
    test, gain = table.rows[0].test, table.gain
    others = [row for row in table.rows if row.comparison and row.group != "alone"]
    found = [row for row in others if row.comparison and row.comparison.is_found]
    interval = percent_range(gain.interval, sign="+")
    points = f"{100 * gain.test.difference:+.1f} points ({interval}, p {_p(gain.test.p_value)})"
    names = ", ".join(f"{row.title} ({100 * row.comparison.test.difference:+.1f})" for row in found if row.comparison)
    notes = [
        f"Fusing gains {points} over the better modality alone, {table.better_single.title.removesuffix(' only')}.",
        f"Of the {len(others)} other ways to fuse, {len(found) or 'none'} can be told from the untransformed concat"
        + (f": {names}." if found else "."),
        f"{test.n} test clips resolve differences from about {percent(table.resolvable_gap)} points on (paired test "
        f"among "
        f"{len(table.rows) - 1}, 80% power). Ceiling: {percent(table.ceiling.accuracy)}%.",
        f"Accuracies in %, means over seeds, n = {test.n} test clips of {len(set(test.groups))} source videos (val: "
        f"{table.clips['val']} clips). {methods(test)}",
        f"vs concat: points; p: {gain.test.method}, Holm-corrected for all "
        f"{len(table.rows) - 1} rows. Chosen: on val, from "
        f"{', '.join(f'{ratio:g}' for ratio in (1, *RATIOS))}; test was scored once.",
        "Control: heads on standardised embeddings, where scalar alphas change nothing, and a learning rate for AST in "
        "the "
        "place of an alpha: under Adam, an alpha is a learning rate and an initial scale.",
        "Gradient blending: loss weights "
        + ", ".join(f"{name} {weight:.2f}" for name, weight in table.blend.items())
        + " (from how single heads generalise and overfit on val).",
    ]
    if any(table.dropped.values()):
        notes.append(f"Left out because they lack a modality: {split_counts(table.dropped)}.")
    return notes


def _p(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"


def to_json(table: CompareTable) -> dict[str, Any]:
    """Every figure of the table, json-able."""
    return {
        "dataset": table.dataset_name,
        "is_demo": table.is_demo,
        "classes": table.classes,
        "clips": dict(table.clips),
        "dropped": dict(table.dropped),
        "reachable_ceiling": {**asdict(table.ceiling), "accuracy": table.ceiling.accuracy},
        "seeds": list(table.seeds),
        "smallest_resolvable_gap": table.resolvable_gap,
        "gain_over_better_modality": {"modality": table.better_single.title, **table.gain.to_json()},
        "blending_weights": dict(table.blend),
        "rows": [
            {
                "group": row.group,
                "title": row.title,
                "experiment": row.experiment and {**asdict(row.experiment), "name": row.experiment.name},
                "val": row.val.to_json(),
                "test": row.test.to_json(),
                "against_concat": row.comparison and row.comparison.to_json(),
            }
            for row in table.rows
        ],
        "published": [asdict(row) for row in published_results()],
    }


def _csv_rows(table: CompareTable) -> Iterator[tuple[object, ...]]:
    yield (
        *("group", "title", "n_test", "test_top1", "test_top1_low", "test_top1_high", "test_loss", "test_loss_low"),
        *("test_loss_high", "n_val", "val_top1", "val_loss", "difference", "difference_low", "difference_high"),
        *("p_value", "p_holm"),
    )
    for row in table.rows:
        figures = [value for e in (row.test.top1, row.test.loss) for value in (e.mean, e.interval.low, e.interval.high)]
        comparison = row.comparison
        against = (
            [
                comparison.test.difference,
                comparison.interval.low,
                comparison.interval.high,
                comparison.test.p_value,
                comparison.p_holm,
            ]
            if comparison
            else [""] * 5
        )
        val = (row.val.n, row.val.top1.mean, row.val.loss.mean)
        yield (row.group, row.title, row.test.n, *figures, *val, *against)

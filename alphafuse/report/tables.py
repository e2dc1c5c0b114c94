"""Tables as text, markdown and csv: the one renderer of what commands print and write; formats of numbers.

    result -> `Document` of `Table`s of `Column`s -> `to_text`, `to_markdown`, `csv_rows`

Json needs no renderer: it is the result's own `to_json`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # commands that only read stores need no torch
    from alphafuse.heads.scoring.statistics import Estimate, Interval
    from alphafuse.heads.studies.same_clips import SplitResult

TEXT_COLUMNS = 118


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: the header.
        cell: row -> content of the cell: text, or any value for a csv; None leaves it empty.
        left: whether it is aligned to the left.
    """

    title: str
    cell: Callable[[Any], object]
    left: bool = False


@dataclass(frozen=True)
class Table:
    """Rows in columns, with notes below.

    Attributes:
        columns: the columns; none for notes only.
        rows: arguments of the columns' `cell`; a str is a line of its own.
        notes: sentences that explain the figures.
        ruled: whether text output has a rule above and below.
    """

    columns: Sequence[Column]
    rows: Sequence[Any]
    notes: Sequence[str] = ()
    ruled: bool = True


@dataclass(frozen=True)
class Document:
    """A title and tables; in markdown also a picture: (alternative text, file)."""

    title: str
    tables: Sequence[Table]
    picture: tuple[str, str] | None = None


def to_text(document: Document) -> str:
    """Return the document as text, in at most 120 columns unless its cells are too long."""
    lines = textwrap.wrap(document.title, TEXT_COLUMNS)
    for table in document.tables:
        rows = _ruled(table) if table.ruled else _aligned(table) if table.columns else []
        lines += ["", *rows, *wrapped(table.notes)]
    return "\n".join(lines) + "\n"


def to_markdown(document: Document) -> str:
    """Return the document as markdown."""
    lines = [f"# {document.title}"]
    for table in document.tables:
        if table.columns:
            rule = ["---" if column.left else "---:" for column in table.columns]
            header, *rows = _cells(table)
            lines += ["", *("| " + " | ".join(row) + " |" for row in (header, rule, *rows))]
        lines += ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    if document.picture:
        lines += ["", "![{}]({})".format(*document.picture)]
    return "\n".join(lines) + "\n"


def csv_rows(table: Table) -> Iterator[list[object]]:
    """Yield the table's header and rows, for a csv file."""
    yield [column.title for column in table.columns]
    for row in table.rows:
        values = [column.cell(row) for column in table.columns]
        yield ["" if value is None else value for value in values]


def _cells(table: Table) -> list[list[str]]:
    """Return header and rows as text; a row that is a str becomes a list of that str."""
    rows: list[list[str]] = [[column.title for column in table.columns]]
    for row in table.rows:
        values = [row] if isinstance(row, str) else [column.cell(row) for column in table.columns]
        rows.append(["" if value is None else str(value) for value in values])
    return rows


def _aligned(table: Table) -> list[str]:
    return aligned(_cells(table), left=[column.title for column in table.columns if column.left])


def _ruled(table: Table) -> list[str]:
    lines = _aligned(table)
    rule = "-" * max(len(line) for line in lines)
    return [lines[0], rule, *lines[1:], rule]


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[str]) -> list[str]:
    """Return aligned lines; the first row is the header, and the columns named in `left` are aligned to the left.

    A row of a single cell is a line of its own.
    """
    header = rows[0]
    widths = [max(len(row[i]) for row in rows if len(row) == len(header)) for i in range(len(header))]
    lines = []
    for row in rows:
        if len(row) < len(header):
            lines.append(row[0])
            continue
        cells = zip(row, widths, header, strict=True)
        lines.append("  ".join(cell.ljust(width) if name in left else cell.rjust(width) for cell, width, name in cells))
    return [line.rstrip() for line in lines]


def wrapped(notes: Sequence[str]) -> list[str]:
    """Return sentences wrapped to the width of the text."""
    return [line for note in notes for line in textwrap.wrap(note, TEXT_COLUMNS, subsequent_indent="  ")]


# formats of numbers


def percent(share: float) -> str:
    """0.8542 -> "85.4"."""
    return f"{100 * share:.1f}"


def points(share: float) -> str:
    """A difference of shares in points, with its sign: -0.0312 -> "\u22123.1" (a true minus, for pages)."""
    text = f"{100 * share:+.1f}".replace("-", "\u2212")
    return "0.0" if text[1:] == "0.0" else text


def percent_range(interval: Interval, *, sign: str = "") -> str:
    """Format an interval of shares in percent: "78.0..88.4", with sign="+" "-3.1..+1.2"."""
    return f"{100 * interval.low:{sign}.1f}..{100 * interval.high:{sign}.1f}"


def loss_range(loss: Estimate) -> str:
    """Format the interval of a loss: "0.33..0.66"."""
    return f"{loss.interval.low:.2f}..{loss.interval.high:.2f}"


def p_value(p: float) -> str:
    """0.0471 -> ".047"."""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def p_phrase(p: float) -> str:
    """Format a p-value for a sentence, with a no-break space: "p <.001", "p = .047"."""
    return f"p\u00a0{p_value(p)}" if p < 0.001 else f"p\u00a0=\u00a0{p_value(p)}"


def methods(result: SplitResult) -> str:
    """Return a sentence that names the methods of a result's intervals."""
    accuracy, loss = (found.interval.method.partition(" over ") for found in (result.top1, result.loss))
    if accuracy[2] and accuracy[2] == loss[2]:
        return f"95% intervals over {loss[2]}: {accuracy[0]} (accuracy), {loss[0]} (loss)."
    return f"95% intervals: {''.join(accuracy)} (accuracy), {''.join(loss)} (loss)."


def split_counts(counts: Mapping[str, int]) -> str:
    """{"train": 3, "val": 0} -> "3 train, 0 val"."""
    return ", ".join(f"{count} {split}" for split, count in counts.items())


def seeds_text(seeds: Sequence[int]) -> str:
    """Format the number of seeds: "5 seeds", "one seed"."""
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"

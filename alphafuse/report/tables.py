"""Tables as text, markdown, html and csv: the one renderer of what commands print and write; formats of numbers.

    result -> `Document` of `Table`s of `Column`s -> `to_text`, `to_markdown`, `to_html`, `csv_rows`

Json needs no renderer: it is the result's own `to_json`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # commands that only read stores need no torch
    from alphafuse.heads.scoring.statistics import Estimate, Interval
    from alphafuse.heads.studies.same_clips import SplitResult

TEXT_COLUMNS = 80
WIDE_COLUMNS = 118
NAME_COLUMNS = 12  # a first column is wrapped to no fewer


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: the header.
        cell: row -> content of the cell: text, or any value for a csv; None leaves it empty.
        left: whether it is aligned to the left.
        wide: whether text has it only with --wide; markdown and csv always do.
    """

    title: str
    cell: Callable[[Any], object]
    left: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Rows in columns, with notes below.

    Attributes:
        columns: the columns; none for notes only.
        rows: arguments of the columns' `cell`; a str is a line of its own.
        notes: sentences that explain the figures, two at most.
        details: more of them, in text only with --wide.
        ruled: whether text output has a rule above and below.
        wide: whether text has the table only with --wide.
    """

    columns: Sequence[Column]
    rows: Sequence[Any]
    notes: Sequence[str] = ()
    ruled: bool = True
    details: Sequence[str] = ()
    wide: bool = False

    def narrow(self) -> Table:
        """Return the table as text without --wide has it."""
        return replace(self, columns=[column for column in self.columns if not column.wide], details=())


@dataclass(frozen=True)
class Document:
    """What a result says, a title and tables; in markdown also a picture: (alternative text, file).

    Attributes:
        lead: sentences in plain words, the first of which can be acted on.
    """

    title: str
    tables: Sequence[Table]
    picture: tuple[str, str] | None = None
    lead: Sequence[str] = ()


def to_text(document: Document, *, wide: bool = False) -> str:
    """Return the document as text: in 80 columns with the columns that decide, or everything in 120 columns.

    A table that is wider has the names in its first column wrapped.
    """
    width = WIDE_COLUMNS if wide else TEXT_COLUMNS
    lines = wrapped(document.lead, width)
    lines += [""] * bool(document.lead) + textwrap.wrap(document.title, width)
    for table in document.tables if wide else [table.narrow() for table in document.tables if not table.wide]:
        rows = _ruled(table, width) if table.ruled else _aligned(table, width) if table.columns else []
        notes = wrapped([*table.notes, *table.details], width)
        lines += ["", *rows, *notes] if rows or notes else []
    return "\n".join(lines) + "\n"


def to_markdown(document: Document) -> str:
    """Return the document as markdown."""
    lines = [f"# {document.title}", *(line for sentence in document.lead for line in ("", sentence))]
    for table in document.tables:
        if table.columns:
            rule = ["---" if column.left else "---:" for column in table.columns]
            header, *rows = _cells(table)
            lines += ["", *("| " + " | ".join(row) + " |" for row in (header, rule, *rows))]
        notes = [*table.notes, *table.details]
        lines += ["", *(f"- {note}" for note in notes)] if notes else []
    if document.picture:
        lines += ["", "![{}]({})".format(*document.picture)]
    return "\n".join(lines) + "\n"


def to_html(document: Document) -> str:
    """Return the document as a piece of html, for a notebook."""
    parts = [f"<b>{escape(document.title)}</b>"]
    for table in document.tables:
        if table.columns:
            header, *rows = _cells(table)
            sides = ["left" if column.left else "right" for column in table.columns]
            parts += ["<table>", _html_row("th", header, sides), *(_html_row("td", row, sides) for row in rows)]
            parts += ["</table>"]
        parts += [f"<small>{escape(note)}</small><br>" for note in table.notes]
    return "\n".join(parts) + "\n"


def _html_row(kind: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    """Return a row; one of a single cell spans all columns."""
    if len(cells) < len(sides):
        return f'<tr><{kind} colspan="{len(sides)}" style="text-align: left">{escape(cells[0])}</{kind}></tr>'
    made = (
        f'<{kind} style="text-align: {side}">{escape(cell)}</{kind}>' for cell, side in zip(cells, sides, strict=True)
    )
    return f"<tr>{''.join(made)}</tr>"


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


def _aligned(table: Table, width: int) -> list[str]:
    cells = _cells(table)
    whole = [row for row in cells if len(row) == len(table.columns)]
    others = [max(len(row[place]) for row in whole) + 2 for place in range(1, len(table.columns))]
    room = max(width - sum(others), NAME_COLUMNS)
    if len(table.columns) > 1 and table.columns[0].left:
        cells = [line for row in cells for line in _wrapped_name(row, room, len(table.columns))]
    return aligned(cells, left=[column.title for column in table.columns if column.left])


def _wrapped_name(row: list[str], room: int, columns: int) -> Iterator[list[str]]:
    """Yield a row with its first cell in at most this many columns, and rows for what doesn't fit into the first."""
    if len(row) < columns:
        yield row
        return
    first, *more = textwrap.wrap(row[0], room, subsequent_indent="  ") or [""]
    yield [first, *row[1:]]
    for part in more:
        yield [part, *[""] * (columns - 1)]


def _ruled(table: Table, width: int) -> list[str]:
    lines = _aligned(table, width)
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


def wrapped(notes: Sequence[str], width: int = TEXT_COLUMNS) -> list[str]:
    """Return sentences wrapped to the width of the text; long words, such as paths, stay whole."""
    return [
        line
        for note in notes
        for line in textwrap.wrap(note, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    ]


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

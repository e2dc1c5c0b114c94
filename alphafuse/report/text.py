"""Figures as text: what the printed tables share."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands that only look into stores need no torch
    from alphafuse.heads.scoring.statistics import Estimate, Interval
    from alphafuse.heads.studies.experiments import SplitResult

TEXT_COLUMNS = 118
SENSES = {"timesformer": "sight", "ast": "sound"}


def table_text(rows: Sequence[Sequence[str]], *, left: Sequence[str]) -> list[str]:
    """Lines of columns between rules; the first row is the header, columns named in `left` start at the left."""
    lines = aligned(rows, left=left)
    rule = "-" * max(len(line) for line in lines)
    return [lines[0], rule, *lines[1:], rule]


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[str]) -> list[str]:
    """Lines of columns; the first row is the header, and the columns named in `left` start at the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = zip(row, widths, rows[0], strict=True)
        lines.append("  ".join(cell.ljust(width) if name in left else cell.rjust(width) for cell, width, name in cells))
    return [line.rstrip() for line in lines]


def table_markdown(rows: Sequence[Sequence[str]], *, left: Sequence[str]) -> list[str]:
    """Lines of a markdown table; the first row is the header."""
    rule = ["---" if name in left else "---:" for name in rows[0]]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]


def wrapped(notes: Sequence[str]) -> list[str]:
    """Sentences in lines that fit below a table."""
    return [line for note in notes for line in textwrap.wrap(note, TEXT_COLUMNS, subsequent_indent="  ")]


def percent(share: float) -> str:
    """0.8542 -> "85.4"."""
    return f"{100 * share:.1f}"


def points(share: float) -> str:
    """A difference of shares in points, with its sign: -0.0312 -> "\u22123.1" (a true minus, for pages)."""
    text = f"{100 * share:+.1f}".replace("-", "\u2212")
    return "0.0" if text[1:] == "0.0" else text


def percent_range(interval: Interval, *, sign: str = "") -> str:
    """An interval of shares in percent: "78.0..88.4", with sign="+" "-3.1..+1.2"."""
    return f"{100 * interval.low:{sign}.1f}..{100 * interval.high:{sign}.1f}"


def loss_range(loss: Estimate) -> str:
    """The interval of a loss: "0.33..0.66"."""
    return f"{loss.interval.low:.2f}..{loss.interval.high:.2f}"


def p_value(p: float) -> str:
    """0.0471 -> ".047"."""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def p_phrase(p: float) -> str:
    """A p-value in a sentence, in one piece: "p <.001", "p = .047"."""
    return f"p\u00a0{p_value(p)}" if p < 0.001 else f"p\u00a0=\u00a0{p_value(p)}"


def methods(result: SplitResult) -> str:
    """A sentence that names the methods of a result's intervals."""
    accuracy, loss = result.top1.interval.method, result.loss.interval.method
    if accuracy == loss:
        return f"95% intervals: {accuracy}."
    return f"95% intervals: {accuracy} (accuracy), {loss} (loss)."


def split_counts(counts: Mapping[str, int]) -> str:
    """{"train": 3, "val": 0} -> "3 train, 0 val"."""
    return ", ".join(f"{count} {split}" for split, count in counts.items())


def seeds_text(seeds: Sequence[int]) -> str:
    """How many seeds there are, in words."""
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"

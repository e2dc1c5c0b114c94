"""The audit of a dataset as text: problems first, then counts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from alphafuse.data.audit import AuditReport, Copies, Problem

TEXT_COLUMNS = 118
HEADER = ("split", "clips", "classes", "source videos", "reachable", "ceiling", "unseen labels")
MARKS = {"error": "ERROR", "warning": "warning", "note": "note"}
LISTED = 10  # largest number of clips or sets in a list


def format_audit(report: AuditReport) -> str:
    """Format the problems with what to do, the counts of each split, and lists of the affected clips."""
    sections = [[_title(report)], _problems(report.problems), _table(report), _details(report)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _title(report: AuditReport) -> str:
    counts = {severity: sum(p.severity == severity for p in report.problems) for severity in ("error", "warning")}
    found = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items() if n) or "nothing wrong"
    return f"Audit of {report.name}: {found}"


def _problems(problems: Sequence[Problem]) -> list[str]:
    width = max(len(mark) for mark in MARKS.values()) + 2
    lines = []
    for problem in problems:
        text = f"{MARKS[problem.severity]:<{width}}{problem.message} {problem.mend}".rstrip()
        lines += textwrap.wrap(text, TEXT_COLUMNS, subsequent_indent=" " * width, break_on_hyphens=False)
    return lines


def _table(report: AuditReport) -> list[str]:
    rows: list[tuple[str, ...]] = [HEADER]
    for split, counts in report.splits.items():
        ceiling = counts.ceiling
        share = f"{ceiling.accuracy:.1%}" if counts.clips else "-"
        figures = (counts.clips, counts.classes, counts.source_videos, ceiling.reachable, share)
        rows.append((split, *map(str, figures), str(len(counts.unseen_labels))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _details(report: AuditReport) -> list[str]:
    lines = []
    if report.balance:
        balance, classes = report.balance, report.splits["train"].classes
        lines.append(
            f"Training classes: {classes}, of {balance.smallest} to {balance.largest} clips, "
            f"{balance.single_clip_classes} of a single clip; normalised entropy {balance.entropy:.3f}."
        )
    if report.resolution:
        resolution = report.resolution
        lines.append(
            f"Test resolves {100 * resolution.smallest_gap:.1f} points at best, {100 * resolution.typical_gap:.1f} "
            f"typically (80% power, {resolution.source_videos} source videos); its labels allow "
            f"{100 * resolution.largest_gap:.1f}."
        )
    content = report.content
    if content:
        usual = f", median duration {content.median_seconds:.1f} s" if content.median_seconds is not None else ""
        lines.append(f"Decoded: {content.decoded} clips{usual}.")
    lines += _listed("Straddling", [f"{name} ({', '.join(splits)})" for name, splits in report.straddling.items()])
    lines += _listed("Byte-identical", _sets(report.byte_identical))
    if content:
        lines += _listed("Near-identical", _sets(content.near_identical))
        lines += _listed("Unreadable", [f"{name}: {reason}" for name, reason in content.unreadable.items()])
        lines += _listed("Without video", content.without_video)
        lines += _listed("Without audio", content.without_audio)
        lines += _listed("Short", content.short)
        lines += _listed("Silent", content.silent)
        lines += _listed("Frozen", content.frozen)
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, TEXT_COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
    ]


def _sets(found: Sequence[Copies]) -> list[str]:
    return [f"{' = '.join(copies.clip_ids)} ({', '.join(copies.splits)})" for copies in found]


def _listed(title: str, names: Sequence[str]) -> list[str]:
    """Return one shortened line of names; no line for an empty list."""
    if not names:
        return []
    more = len(names) - LISTED
    return [f"{title}: {'; '.join(names[:LISTED])}{f'; and {more} more (--json lists all)' if more > 0 else ''}."]

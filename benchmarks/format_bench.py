"""Text output of a benchmark."""

from __future__ import annotations

import textwrap

from measuring import Bench, Figure

from alphafuse.report.tables import TEXT_COLUMNS


def format_bench(result: Bench) -> str:
    """Format every figure with its range over turns and its promise, in at most 120 columns if names allow."""
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    load = "" if machine.load is None else f", load {machine.load:.1f}"
    turns = f"medians of {result.repeats} turns, min..max" if result.repeats > 1 else "one turn"
    lines = [
        f"{result.title}: {turns}; {result.seconds / 60:.0f} min",
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:.1f} GB ({machine.free_gb:.1f} free){load}",
        f"{versions}, {machine.threads} threads in PyTorch",
    ]
    if machine.environment:
        lines.append("environment: " + ", ".join(f"{name}={value}" for name, value in machine.environment.items()))
    if result.quick:
        lines.append("quick: sizes are too small for meaningful figures")
    for part in result.parts:
        lines += ["", *textwrap.wrap(f"{part.name}: {part.setup}", TEXT_COLUMNS, subsequent_indent="  ")]
        rows = [_cells(figure) for figure in part.figures]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        for name, value, unit, spread, promise in rows:
            left = f"  {name.ljust(widths[0])}  {value.rjust(widths[1])} {unit.ljust(widths[2])}"
            lines.append(f"{left}  {spread.ljust(widths[3])}  {promise}".rstrip())
        for note in part.notes:
            lines += textwrap.wrap(note, TEXT_COLUMNS, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _cells(figure: Figure) -> tuple[str, str, str, str, str]:
    values = figure.values
    spread = f"{_number(min(values))}..{_number(max(values))}" if len(values) > 1 else ""
    if figure.is_met is None:
        return figure.name, _number(figure.median), figure.unit, spread, ""
    bounds = (("at least", figure.least), ("at most", figure.most))
    promise = ", ".join(f"{word} {_number(bound)}" for word, bound in bounds if bound is not None)
    verdict = "met" if figure.is_met else "missed"
    return figure.name, _number(figure.median), figure.unit, spread, f"{promise}: {verdict}"


def _number(value: float) -> str:
    """Format with about three significant digits and without an exponent."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"

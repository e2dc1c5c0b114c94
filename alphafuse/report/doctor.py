"""What doctor found, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from alphafuse.cli.doctor import Examination

COLUMNS = 118
NAME_COLUMNS = 18


def format_examination(
    found: Examination, *, columns: int = COLUMNS, paint: Callable[[str, str], str] = lambda text, kind: text
) -> str:
    """Section by section: a line per finding, below a problem or a note the command that mends it.

    Args:
        found: what `examine` returned.
        columns: width to wrap to.
        paint: (text, "heading" | "ok" | "note" | "problem" | "command") -> the text in that colour.
    """
    lines: list[str] = []
    section = ""
    for finding in found.findings:
        if finding.section != section:
            section = finding.section
            lines += [*([""] if lines else []), paint(section.capitalize(), "heading")]
        # a name that is too long for its column stands in its line
        name, line = finding.name, finding.line
        if len(name) > NAME_COLUMNS:
            name, line = "", f"{finding.name}: {finding.line}" if finding.name not in finding.line else finding.line
        begin = f"  {finding.status:8}{name:{NAME_COLUMNS}}  "
        indent = " " * len(begin)
        text = textwrap.wrap(line, max(40, columns - len(begin)), break_on_hyphens=False) or [""]
        head = f"  {paint(f'{finding.status:8}', finding.status)}{name:{NAME_COLUMNS}}  {text[0]}"
        lines += [head.rstrip(), *(indent + more for more in text[1:])]
        if finding.mend:
            lines.append(f"{indent}-> {paint(finding.mend, 'command')}")
    notes = sum(finding.status == "note" for finding in found.findings)
    problems = len(found.problems)
    verdict = paint(_count(problems, "problem"), "problem" if problems else "ok")
    lines += ["", f"{verdict}, {_count(notes, 'note')} ({found.seconds:.1f} s)"]
    return "\n".join(lines) + "\n"


def _count(number: int, thing: str) -> str:
    return f"{number or 'no'} {thing}{'' if number == 1 else 's'}"

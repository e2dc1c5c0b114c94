"""Reports of stage one as text and json."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from alphafuse.data.coverage import Coverage, joined
from alphafuse.data.embeddings import Failure
from alphafuse.system.files import one_line

from .tables import aligned

if TYPE_CHECKING:  # commands that only read stores need no torch
    from alphafuse.extract.pipeline import ExtractReport
    from alphafuse.extract.recheck import Resampling

LISTED_PROBLEMS = 10
NAMED = 3  # clips in a sentence
TEXT_COLUMNS = 118


def format_report(report: ExtractReport) -> str:
    """Format clips, embeddings and rate, then the failures by reason."""
    new = report.clips - report.already
    changed = _changed(report)
    if not new:
        return f"{report.split}: all {report.clips} clips are already in the store, nothing to do\n{changed}"
    made = ", ".join(f"{stream} {count}" for stream, count in report.embedded.items())
    before = f", {report.already} were embedded before" if report.already else ""
    rate = f"{report.seconds:.1f} s, {new / report.seconds:.1f} clips/s"
    line = f"{report.split}: {new} clips embedded ({made}){before}; {rate} -> {report.store.folder}\n"
    if not report.is_shared:
        line += f"  no file locks in {report.store.folder}: a second extraction at the same time would repeat clips\n"
    return line + format_failures(report.failures) + changed


def _changed(report: ExtractReport) -> str:
    """Return lines about clips whose file was changed; "" if there are none."""
    lines = ""
    if report.refreshed:
        lines += f"  {_clips(report.refreshed)} extracted again, because the file was changed\n"
    if report.changed:
        lines += (
            f"  {_clips(report.changed)}: the file was changed since its extraction, and the old embeddings are used: "
            f"`alphafuse extract --split {report.split} --refresh --root {report.store.root}` makes new ones\n"
        )
    return lines


def format_changed(names: Sequence[str]) -> str:
    """Return a plan's line about clips whose file was changed; "" if there are none."""
    return f"{_clips(names)}: the file was changed since its extraction; --refresh extracts it again" if names else ""


def _clips(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    count = "1 clip" if len(names) == 1 else f"{len(names)} clips"
    return f"{count} ({', '.join(one_line(name, 80) for name in names[:NAMED])}{more})"


def format_coverage(coverage: Iterable[Coverage], media: Mapping[str, str]) -> str:
    """Format what streams don't hear of clips, a paragraph each; "" if they hear all. `media` is that of the root."""
    watching = [name for name, medium in media.items() if medium == "video"]
    sentences = [sentence for found in joined(coverage) for sentence in found.sentences(watching)]
    return "".join(f"{wrapped('note: ' + sentence)}\n" for sentence in sentences)


def wrapped(text: str) -> str:
    """Return a text in lines of at most `TEXT_COLUMNS`."""
    return textwrap.fill(text, TEXT_COLUMNS, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def report_json(report: ExtractReport) -> dict[str, Any]:
    """Return the report as json-able values."""
    return {
        "split": report.split,
        "clips": report.clips,
        "already": report.already,
        "embedded": report.embedded,
        "failures": [asdict(failure) for failure in report.failures],
        "seconds": round(report.seconds, 3),
        "decode_seconds": round(report.decode_seconds, 3),
        "embed_seconds": round(report.embed_seconds, 3),
        "store": str(report.store.folder),
        "changed": list(report.changed),
        "refreshed": list(report.refreshed),
        "coverage": coverage_json(report.coverage),
    }


def coverage_json(coverage: Iterable[Coverage]) -> list[dict[str, Any]]:
    """Return what streams hear of clips as json-able values."""
    return [{**asdict(found), "unheard_seconds": found.unheard_seconds} for found in coverage]


def format_failures(failures: Sequence[Failure]) -> str:
    """Format a table: number of clips without a stream, the reason, and an example; "" without failures."""
    examples: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        examples.setdefault((failure.stream, failure.reason), []).append(failure.clip_id)
    if not examples:
        return ""
    rows = [("clips", "without", "because", "such as")]
    for (stream, reason), clips in sorted(examples.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        rows.append((str(len(clips)), stream, reason, clips[0]))
    return "".join(f"  {line}\n" for line in aligned(rows, left=("without", "because", "such as")))


def format_resampling(found: Resampling) -> str:
    """Format the differences between stored embeddings and new ones of the same clips."""
    lines = [
        f"{found.clips} clips extracted again: {len(found.differences)} embeddings, the largest difference "
        f"{found.largest:.1e} of an embedding's largest value (at most {found.tolerance:.0e}), "
        f"{len(found.problems)} problems"
    ]
    for problem in found.problems[:LISTED_PROBLEMS]:
        what = problem.reason or f"differs by {problem.relative:.1e}"
        lines.append(f"  {problem.clip_id} {problem.stream}: {what}")
    return "\n".join(lines) + "\n"


def resampling_json(found: Resampling) -> dict[str, Any]:
    """Return the differences as json-able values; null if there is no new embedding."""
    differences = [
        {**asdict(difference), "relative": None if difference.reason else difference.relative}
        for difference in found.differences
    ]
    return {
        "clips": found.clips,
        "tolerance": found.tolerance,
        "problems": len(found.problems),
        "differences": differences,
    }

"""Similar clips as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from alphafuse.predict.similar import SimilarClip, SimilarClips, SimilarTo
from alphafuse.system.files import one_line

from .looks import Look, listed, looks_of
from .tables import Column, Document, Table, split_counts, to_text

LABEL_COLUMNS = 44
ABSENT = "-"
NOTES = (
    "similarity is the sum of the parts: 1 = the same, 0 = as two clips of this root at random, below 0 = less alike.",
)


def format_similar(found: SimilarClips) -> str:
    """Format what was found: by what clips were compared, then a table for each query."""
    looks = looks_of(found.media)
    blocks = [f"{_compared(found, looks)}, with {_searched(found)}\n"]
    blocks += [_format_answer(answer, found.shares, looks) for answer in found.answers]
    if any(answer.found for answer in found.answers):
        blocks.append("\n".join(NOTES) + "\n")
    return "\n".join(blocks)


def _compared(found: SimilarClips, looks: Mapping[str, Look]) -> str:
    """Say by what clips were compared: "compared by sight and sound, weighed alike"."""
    counted = {name: share for name, share in found.shares.items() if share > 0}
    senses = [looks[name].sense for name in counted]
    if len(senses) == 1:
        return f"compared by {senses[0]} alone"
    shares = [*counted.values()]
    if max(shares) - min(shares) < 1e-9:
        return f"compared by {listed(senses)}, weighed alike"
    return f"compared by {listed([f'{100 * share:.0f}% {s}' for s, share in zip(senses, shares, strict=True)])}"


def _searched(found: SimilarClips) -> str:
    """Say what was searched: "448 cached clips (230 train, 26 val, 192 test)"."""
    total = sum(found.searched.values())
    return f"{total} cached clip{'s' * (total != 1)} ({split_counts(found.searched)})"


def _format_answer(answer: SimilarTo, shares: Mapping[str, float], looks: Mapping[str, Look]) -> str:
    """Format the clips that are like one clip, or why there are none."""
    clip = answer.clip
    label = f": {one_line(clip.label, LABEL_COLUMNS)}" if clip else ""
    lacks = [f"no {looks[name].sense}: {one_line(reason)}" for name, reason in answer.missing.items()]
    heading = f"like {one_line(answer.query, 1000)}{label}"
    if not answer.found:
        why = "; ".join(lacks) if len(lacks) == len(shares) else "; ".join([*lacks, "no clip can be compared with it"])
        return f"{heading}\n  nothing found: {why}\n"
    columns = [Column("similarity", lambda one: f"{one.similarity:.2f}")]
    columns += [Column(looks[name].short, _part(name)) for name in shares if name not in answer.missing]
    columns += [
        Column("label", lambda one: one_line(one.clip.label, LABEL_COLUMNS), left=True),
        Column("path", lambda one: one_line(one.path, 1000), left=True),
    ]
    notes = [f"without {'; '.join(lacks)}".replace("without no ", "without ")] if lacks else []
    return to_text(Document(heading, [Table(columns, answer.found, notes, ruled=False)]))


def _part(name: str) -> Callable[[SimilarClip], str]:
    """Return the function that formats a stream's part."""

    def cell(one: SimilarClip) -> str:
        part = one.parts[name]
        return ABSENT if part is None else f"{part:.2f}"

    return cell

"""What results say in plain words: use all streams, one alone, or these clips can't decide.

A difference counts as found only where the corrected test and the 95% interval agree (`told_apart`); everything else
is undecided, and the sentence says so first. Figures are of test clips; nothing is chosen on them: streams are listed
by what fusing gains over each, the smallest gain first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alphafuse.data.streams import COMPACT, SENSES, in_order, title_of
from alphafuse.heads.closed.recommend import DROP_SHARE
from alphafuse.heads.scoring.statistics import Comparison, Estimate, Interval, wilson_interval

if TYPE_CHECKING:
    from .same_clips import SplitResult

LABEL_LETTERS = 40
CONSTANT = "always giving the same answer is right"


def told_apart(found: Comparison) -> int:
    """Return 1 for a gain, -1 for a loss, 0 unless the corrected test and the interval agree."""
    beyond = found.interval.low > 0 or found.interval.high < 0
    return (1 if found.test.difference > 0 else -1) if found.is_found and beyond else 0


def verdict(found: Comparison) -> str:
    """Return "better", "worse" or "undecided", of the first of two that were compared."""
    return {1: "better", -1: "worse", 0: "undecided"}[told_apart(found)]


def turned(found: Comparison) -> Comparison:
    """Return the comparison with its sides exchanged."""
    interval = replace(found.interval, low=0.0 - found.interval.high, high=0.0 - found.interval.low)
    return replace(found, interval=interval, test=replace(found.test, difference=0.0 - found.test.difference))


@dataclass(frozen=True)
class FusingGain:
    """What the untransformed fusion gains over one stream alone, on test clips.

    Attributes:
        stream: the stream.
        alone: its own test result.
        gain: fusion against it, corrected together with all other comparisons of its table.
    """

    stream: str
    alone: SplitResult
    gain: Comparison

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return {"stream": self.stream, "top1": self.alone.top1.mean, **self.gain.to_json()}


def fusing_gains(alone: Iterable[tuple[str, SplitResult, Comparison]]) -> tuple[FusingGain, ...]:
    """Return what fusing gains over each stream, the smallest gain first.

    Args:
        alone: stream, its own result, and its comparison with the fusion.
    """
    gains = [FusingGain(stream, result, turned(found)) for stream, result, found in alone]
    return tuple(sorted(gains, key=lambda one: one.gain.test.difference))


# sentences


def fusing(
    fused: SplitResult,
    gains: Sequence[FusingGain],
    media: Mapping[str, str],
    *,
    without: Mapping[str, Comparison] | None = None,
    resolvable: float | None = None,
) -> str:
    """Say whether to use all streams, one alone, or that the clips can't decide.

    Args:
        fused: test result of the fusion; of the only stream, if there is one.
        gains: what fusing gains over each stream, the smallest first; empty for one stream.
        media: stream -> medium, of all streams that are fused.
        without: for three and more streams: stream -> fusion of the others against the fusion of all.
        resolvable: the smallest gain that these clips could show.
    """
    clips = _clips(fused.n)
    guess = commonest(fused.labels)
    nothing = says_nothing(fused.labels, fused.ceiling.reachable)
    if nothing:
        return f"{nothing[0]}: {nothing[1]}."
    results = [fused.top1, *(one.alone.top1 for one in gains)]
    if all(found.interval.low <= guess for found in results):
        who = f"{called(next(iter(media)), media)} tells" if not gains else "any stream tells"
        together = "right for" if not gains else "together"
        return (
            f"Undecided: {clips} don't show that {who} the labels apart: {together} {score(fused.top1)}, and "
            f"{CONSTANT} for {whole(guess)}."
        )
    if not gains:
        return (
            f"There is one stream, and nothing to fuse: {called(next(iter(media)), media)} is right for "
            f"{score(fused.top1)} of {clips}; {CONSTANT} for {whole(guess)}."
        )
    all_of = "both" if len(gains) == 2 else f"all {len(gains)}"
    names = {one.stream: called(one.stream, media) for one in gains}
    alone = {one.stream: f"{names[one.stream]} alone {whole(one.alone.top1.mean)}" for one in gains}
    together = f"together {whole(fused.top1.mean)}"
    signs = {one.stream: told_apart(one.gain) for one in gains}
    worse, same, better = ([one for one in gains if signs[one.stream] == sign] for sign in (-1, 0, 1))
    if worse:
        single = len(gains) == 2 and len(worse) == 1
        do = f"{capitalised(names[worse[0].stream])} only" if single else f"Don't fuse {all_of} as they are"
        which = listed([alone[one.stream] for one in worse])
        costs = listed([_points(one.gain) for one in worse])
        return f"{do}: {which}, {together} of {clips}. Fusing costs accuracy: {costs}."
    if not same:
        if len(gains) == 2:
            return f"Use both: {', '.join(alone.values())}, together {score(fused.top1)} of {clips}."
        return _several(fused, gains, names, without or {})
    least = wilson_interval(0, len(set(fused.groups))).high  # few clips can't show that nothing is gained
    enough = [one for one in same if max(one.gain.interval.high, least) <= DROP_SHARE]
    if enough:
        which = " or ".join(names[one.stream] for one in enough)
        most = max(least, *(one.gain.interval.high for one in enough))
        figures = listed([whole(one.alone.top1.mean) for one in enough])
        return (
            f"{capitalised(which)} alone is enough: {figures}, {together} of {clips}; fusing gains at most "
            f"{100 * most:.1f} points (95%)."
        )
    figures = f"{together}, {', '.join(alone[one.stream] for one in same)}"
    if better:
        rivals = " or ".join(f"{names[one.stream]} alone" for one in same)
        sentence = f"{clips} can't decide between {all_of} and {rivals}: {figures} ({_inside(same[0].gain)})"
        others = [alone[one.stream] for one in better]
        sentence += f"; {listed(others)} {_is(others)} worse than {all_of}"
    else:
        sentence = f"{clips} can't decide whether to use {all_of}: {figures}"
        sentence += f" (over {names[same[0].stream]}: {_inside(same[0].gain)})"
    if resolvable is not None and abs(same[0].gain.test.difference) < resolvable:
        sentence += f". A gain below about {100 * resolvable:.0f} points can't be told from none here"
    return f"{sentence}."


def _several(
    fused: SplitResult, gains: Sequence[FusingGain], names: Mapping[str, str], without: Mapping[str, Comparison]
) -> str:
    """Say what to do about three and more streams of which none alone is as good as all together."""
    best = gains[0]
    figures = f"together {score(fused.top1)} of {_clips(fused.n)}, the best alone, {names[best.stream]}, "
    figures += whole(best.alone.top1.mean)
    signs = {stream: told_apart(found) for stream, found in without.items()}
    spare = [stream for stream, sign in signs.items() if sign > 0]
    if spare:
        found = listed([f"without {names[stream]} {_points(without[stream])}" for stream in spare])
        return f"Fuse the streams, but not all {len(gains)}: {found}; all {figures}."
    if len(signs) == len(gains) and all(sign < 0 for sign in signs.values()):
        return f"Use all {len(gains)}: {figures}, and without any one it is worse."
    unsure = [names[stream] for stream in names if not signs.get(stream)]
    return f"Fuse the streams: {figures}. Undecided whether {listed(unsure)} {_is(unsure)} needed."


def gains_sentence(gains: Sequence[FusingGain], media: Mapping[str, str]) -> str:
    """Say what fusing gains over each stream, the smallest gain first; "" for one stream."""
    if not gains:
        return ""
    words = {1: "", 0: ": undecided", -1: ": worse"}
    each = [f"{_points(one.gain)} over {called(one.stream, media)} alone{words[told_apart(one.gain)]}" for one in gains]
    return f"Fusing gains, the smallest first: {'; '.join(each)}."


def score_sentence(top1: Estimate, labels: Sequence[str], reachable: int, *, split: str = "test") -> str:
    """Say how often heads are right, beside the best that a constant answer can do."""
    clips = _clips(len(labels), split)
    nothing = says_nothing(labels, reachable, split=split)
    if nothing:
        return f"{nothing[0]}: {nothing[1]}."
    guess = commonest(labels)
    if split == "train":
        return f"Right for {score(top1)} of {clips}, which it was trained on: no measure of what it does on new ones."
    if top1.interval.low <= guess:
        return (
            f"Undecided: {clips} don't show that it is better than a guess: right for {score(top1)}, and {CONSTANT} "
            f"for {whole(guess)}."
        )
    return f"Right for {score(top1)} of {clips}; {CONSTANT} for {whole(guess)}."


def says_nothing(labels: Sequence[str], reachable: int, *, split: str = "test") -> tuple[str, str] | None:
    """Return why accuracies on these clips say nothing, if so: one label, or only labels that training lacks."""
    clips = _clips(len(labels), split)
    if not reachable:
        return "Nothing to decide", f"none of the {clips} has a label that occurs in training"
    if len(set(labels)) == 1:
        return "Nothing to decide", f"all {clips} have the same label, '{_label(labels[0])}'"
    return None


def compact_note(encoders: Mapping[str, Mapping[str, Any]], streams: Iterable[str]) -> str:
    """Name the streams whose encoders only stand in for real ones; "" if there are none.

    Args:
        encoders: stream -> {"name", ...}, as a store's provenance records them.
        streams: the streams that were read.
    """
    names = [title_of(one) for one in in_order(streams) if encoders.get(one, {}).get("name") == COMPACT]
    if not names:
        return ""
    verb = "is a compact encoder" if len(names) == 1 else "are compact encoders"
    return (
        f"{listed(names)} {verb}, made for the demo's clips and for trying: these figures say nothing about real "
        "encoders."
    )


# words


def called(stream: str, media: Mapping[str, str]) -> str:
    """Return what a stream is, by its medium and its name: "sound (AST)"."""
    sense, title = SENSES[media[stream]], title_of(stream)
    return sense if title == sense else f"{sense} ({title})"


def listed(words: Sequence[str]) -> str:
    """Join words for a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def capitalised(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def commonest(labels: Sequence[str]) -> float:
    """Return the share of the commonest label: the most that a constant answer gets right."""
    return max(Counter(labels).values()) / len(labels)


def whole(share: float) -> str:
    """0.8437 -> "84%"."""
    return f"{100 * share:.0f}%"


def score(found: Estimate) -> str:
    """Format an accuracy with its interval: "84% (79..90)"."""
    return f"{whole(found.mean)} ({100 * found.interval.low:.0f}..{100 * found.interval.high:.0f})"


def signed(share: float) -> str:
    """Format a difference of shares in points: "+3.1", never "-0.0"."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def signed_range(interval: Interval) -> str:
    """Format an interval of a difference in points: "-1.0..+4.2"."""
    return f"{signed(interval.low)}..{signed(interval.high)}"


def p_value(p: float) -> str:
    """0.0471 -> ".047"."""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def p_text(p: float) -> str:
    """0.0471 -> "p = .047"."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def _points(found: Comparison) -> str:
    return f"{signed(found.test.difference)} points ({signed_range(found.interval)}, {p_text(found.p_holm)})"


def _inside(found: Comparison) -> str:
    """Return the same, to stand in brackets."""
    return f"{signed(found.test.difference)} points, {signed_range(found.interval)}, {p_text(found.p_holm)}"


def _clips(n: int, split: str = "test") -> str:
    return f"{n:,} {split} clip{'s' * (n != 1)}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _label(label: str) -> str:
    return label if len(label) <= LABEL_LETTERS else f"{label[: LABEL_LETTERS - 3]}..."

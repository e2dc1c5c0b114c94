"""Predictions and explanations as text, json and csv."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from typing import Any

from alphafuse.data.coverage import Coverage
from alphafuse.data.streams import title_of
from alphafuse.heads.studies.runs import TrainedRun
from alphafuse.predict.explain import ChangedAnswer, Explanation
from alphafuse.predict.prediction import Prediction
from alphafuse.predict.shares import CLEAR, Shares
from alphafuse.system.files import one_line

from .looks import listed
from .tables import TEXT_COLUMNS, aligned

BLANKED = {"video": "black", "audio": "muted"}  # what a blank stream is
LABEL_COLUMNS = 44  # width of a label in the table of changed answers
NARROW = 1.0  # bits of lead below which the second label has more than half of the answer's probability


def format_prediction(prediction: Prediction) -> str:
    """Format one clip: its labels with probabilities, or why there are none."""
    lines = [one_line(prediction.clip, 1000)]
    for rank, ranked in enumerate(prediction.top):
        heads = prediction.heads if rank == 0 and prediction.heads > 1 else 0
        agreeing = f"  ({prediction.agreeing} of {heads} heads agree)" if heads else ""
        lines.append(f"  {100 * ranked.probability:5.1f}%  {one_line(ranked.label, 200)}{agreeing}")
    if prediction.missing:
        lines.append(f"  {_missing(prediction)}" if prediction.top else f"  no answer: {_missing(prediction)}")
    lines += [f"  {line}" for one in prediction.coverage if (line := _unheard(one))]
    return "\n".join(lines) + "\n"


def _unheard(coverage: Coverage) -> str:
    """Return what a stream doesn't hear of a clip, or that it is mostly padding to it; "" if neither."""
    for unheard in coverage.cut.values():
        return f"{title_of(coverage.stream)} hears its first {coverage.hears:.1f} s: {unheard:.1f} s are not heard"
    for seconds in coverage.short.values():
        return f"{title_of(coverage.stream)} hears {seconds:.1f} s of sound, and padding up to {coverage.pads_to:.1f} s"
    return ""


def _missing(prediction: Prediction) -> str:
    """Return why a clip lacks streams, and which heads would label it without them."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in prediction.missing.items():
        by_reason.setdefault(one_line(reason), []).append(_noun(prediction, name))
    reasons = "; ".join(f"no {' and no '.join(nouns)}: {reason}" for reason, nouns in by_reason.items())
    others = len(prediction.media) - len(prediction.missing)
    if not prediction.top and others:
        reasons += f" (heads of `alphafuse fit --absent zeros` use the other stream{'s' * (others > 1)})"
    return reasons


def _noun(prediction: Prediction, name: str) -> str:
    """Return what a stream is of a clip: "video"; "video (eye)" if several streams have this medium."""
    medium = prediction.media[name]
    return f"{medium} ({title_of(name)})" if [*prediction.media.values()].count(medium) > 1 else medium


def format_explanation(explanation: Explanation) -> str:
    """Format an explanation: what decided, the labels with a stream blank, and the probabilities along alpha."""
    prediction = explanation.prediction
    first = prediction.top[0]
    lines = [*_wrapped(f"why: {verdict(explanation)}", indent=2), ""]
    rows = [("", "answer", "its p", "p of first")]
    rows.append(("as it is", first.label, _percent(first.probability), _percent(first.probability)))
    for name, changed in explanation.blanked.items():
        rows.append(_row(f"{_noun(prediction, name)} {BLANKED[prediction.media[name]]}", changed))
    if len(explanation.blanked) > 1:
        rows.append(_row("both" if len(explanation.blanked) == 2 else "all", explanation.blank))
    shown = [(what, one_line(label, LABEL_COLUMNS), its, answer) for what, label, its, answer in rows]
    lines += [f"    {line}" for line in aligned(shown, left=("", "answer"))]
    lines += ["", *_wrapped(_shares(explanation), indent=4)]
    alphas = next(iter(explanation.along.values()))
    table = [("p of first, alpha =", *(f"{alpha:g}" for alpha, _ in alphas))]
    for name, points in explanation.along.items():
        cells = (f"{_percent(i.probability)}{'' if i.top.label == first.label else '*'}" for _, i in points)
        table.append((f"{title_of(name)} x alpha", *cells))
    lines += [f"    {line}" for line in aligned(table, left=(table[0][0],))]
    if any("*" in cell for row in table[1:] for cell in row):
        lines.append("    * the answer changes at this alpha")
    return "\n".join(lines) + "\n"


def _wrapped(sentence: str, *, indent: int) -> list[str]:
    first, next_ones = " " * indent, " " * (indent + 2)
    return textwrap.wrap(sentence, TEXT_COLUMNS, initial_indent=first, subsequent_indent=next_ones)


def _shares(explanation: Explanation) -> str:
    """Return a sentence: what each stream brings to the lead of the answer, or why that can't be said."""
    shares = explanation.shares
    if shares is None:
        return f"no shares of streams: {explanation.no_shares}"
    parts = ", ".join(f"{title_of(name)} {share:+.2f}" for name, share in shares.streams.items())
    second = one_line(shares.second, LABEL_COLUMNS)
    return f"lead over {second}, in bits: {shares.lead:+.2f} = {parts}, without any stream {shares.base:+.2f}"


def verdict(explanation: Explanation) -> str:
    """Return one sentence: which streams decided, by their shares; without shares, what blank streams change."""
    prediction = explanation.prediction
    if 2 * prediction.agreeing <= prediction.heads and prediction.heads > 1:
        return (
            f"no clear answer: {prediction.agreeing} of {prediction.heads} heads put it first; the explanation is weak."
        )
    used = [name for name in prediction.media if name not in prediction.missing]
    if len(used) == 1:
        return f"only the {_noun(prediction, used[0])} was used."
    return _by_shares(prediction, explanation.shares) if explanation.shares else _by_blanks(explanation)


def _by_shares(prediction: Prediction, shares: Shares) -> str:
    """Say which streams decided, and what each brings; largest first."""
    ranked = sorted(shares.streams.items(), key=lambda one: -one[1])
    parts = listed([f"{_noun(prediction, name)} {share:+.1f}" for name, share in ranked])
    if shares.lead < CLEAR:
        second = one_line(shares.second, LABEL_COLUMNS)
        return f"no clear answer: {second} is as likely, so nothing decided ({parts} bits)."
    if not shares.decided:
        return f"no stream speaks for the answer: these heads give it without any ({parts} bits)."
    who = listed([f"the {_noun(prediction, name)}" for name, _ in ranked if name in shares.decided])
    if len(shares.decided) == len(ranked):
        who = "both" if len(ranked) == 2 else "all"
    narrowly = ", narrowly" if shares.lead < NARROW else ""
    return f"{who} decided{narrowly}: {parts} bits of the answer's lead of {shares.lead:+.1f}."


def _by_blanks(explanation: Explanation) -> str:
    """Say which blank streams change the answer. What decided it is another question, see `predict.shares`."""
    prediction = explanation.prediction
    ways = {name: f"the {_noun(prediction, name)} {BLANKED[prediction.media[name]]}" for name in explanation.blanked}
    changes = [way for name, way in ways.items() if name in explanation.changed_by]
    stays = [way for name, way in ways.items() if name not in explanation.changed_by]
    if not stays:
        return f"the answer changes with {', and with '.join(changes)}."
    same = f"stays the same with {', and with '.join(stays)}"
    return f"the answer changes with {', and with '.join(changes)}; it {same}." if changes else f"the answer {same}."


def format_score(run: TrainedRun) -> str:
    """Return how good a run is, in a few words."""
    val = run.metrics["val"]
    return f"right on {_percent(val['top1']['mean'])}% of {val['n']} validation clips"


def is_guessing(run: TrainedRun) -> bool:
    """Whether the interval of the run's test accuracy contains the accuracy of guessing, 1 / C."""
    return float(run.metrics["test"]["top1"]["interval"]["low"]) <= 1 / len(run.classes)


def to_json(found: Sequence[Prediction | Explanation]) -> list[dict[str, Any]]:
    """Return one json-able object per clip; explanations have a "why"."""
    rows = []
    for one in found:
        if isinstance(one, Explanation):
            rows.append({**one.prediction.to_json(), "why": {"verdict": verdict(one), **one.to_json()}})
        else:
            rows.append(one.to_json())
    return rows


def to_csv(predictions: Sequence[Prediction], *, header: bool = True) -> str:
    """Return csv lines, one per clip and rank: clip, rank, label, probability, missing; one line without an answer."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(("clip", "rank", "label", "probability", "missing"))
    for prediction in predictions:
        missing = "; ".join(f"{name}: {reason}" for name, reason in prediction.missing.items())
        ranked = [(str(i), one.label, f"{one.probability:.6f}") for i, one in enumerate(prediction.top, start=1)]
        for row in ranked or [("", "", "")]:
            writer.writerow((prediction.clip, *row, missing))
    return buffer.getvalue()


def _row(what: str, changed: ChangedAnswer) -> tuple[str, str, str, str]:
    return what, changed.top.label, _percent(changed.top.probability), _percent(changed.probability)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"

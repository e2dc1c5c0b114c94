"""Predictions and explanations as text, json and csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from alphafuse.data.streams import title_of
from alphafuse.heads.studies.runs import TrainedRun
from alphafuse.predict.explain import ChangedAnswer, Explanation
from alphafuse.predict.prediction import Prediction
from alphafuse.system.files import one_line

from .looks import listed
from .tables import aligned

BLANKED = {"video": "black", "audio": "muted"}  # what a blank stream is
LABEL_COLUMNS = 44  # width of a label in the table of changed answers


def format_prediction(prediction: Prediction) -> str:
    """Format one clip: its labels with probabilities, or why there are none."""
    lines = [one_line(prediction.clip, 1000)]
    for rank, ranked in enumerate(prediction.top):
        heads = prediction.heads if rank == 0 and prediction.heads > 1 else 0
        agreeing = f"  ({prediction.agreeing} of {heads} heads agree)" if heads else ""
        lines.append(f"  {100 * ranked.probability:5.1f}%  {one_line(ranked.label, 200)}{agreeing}")
    if prediction.missing:
        lines.append(f"  {_missing(prediction)}" if prediction.top else f"  no answer: {_missing(prediction)}")
    return "\n".join(lines) + "\n"


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
    """Format an explanation: labels, the stream that decided, and the probabilities along alpha."""
    prediction = explanation.prediction
    first = prediction.top[0]
    lines = [f"  why: {verdict(explanation)}", ""]
    rows = [("", "answer", "its p", "p of the answer above")]
    rows.append(("as it is", first.label, _percent(first.probability), _percent(first.probability)))
    for name, changed in explanation.blanked.items():
        rows.append(_row(f"{_noun(prediction, name)} {BLANKED[prediction.media[name]]}", changed))
    if len(explanation.blanked) > 1:
        rows.append(_row("both" if len(explanation.blanked) == 2 else "all", explanation.blank))
    shown = [(what, one_line(label, LABEL_COLUMNS), its, answer) for what, label, its, answer in rows]
    lines += [f"    {line}" for line in aligned(shown, left=("", "answer"))]
    lines += ["", f"    {_shares(explanation)}"]
    alphas = next(iter(explanation.along.values()))
    table = [("p of the answer, alpha =", *(f"{alpha:g}" for alpha, _ in alphas))]
    for name, points in explanation.along.items():
        cells = (f"{_percent(i.probability)}{'' if i.top.label == first.label else '*'}" for _, i in points)
        table.append((f"{title_of(name)} x alpha", *cells))
    lines += [f"    {line}" for line in aligned(table, left=(table[0][0],))]
    if any("*" in cell for row in table[1:] for cell in row):
        lines.append("    * the answer changes at this alpha")
    return "\n".join(lines) + "\n"


def _shares(explanation: Explanation) -> str:
    """Return a line: what each stream brings to the lead of the answer, or why that can't be said."""
    shares = explanation.shares
    if shares is None:
        return f"no shares of streams: {explanation.no_shares}"
    parts = ", ".join(f"{title_of(name)} {share:+.2f}" for name, share in shares.streams.items())
    second = one_line(shares.second, LABEL_COLUMNS)
    return f"lead over {second}, in bits: {shares.lead:+.2f} = {parts}, without any stream {shares.base:+.2f}"


def verdict(explanation: Explanation) -> str:
    """Return one sentence: which streams decided."""
    present, decided, prediction = tuple(explanation.blanked), explanation.decided, explanation.prediction
    if 2 * prediction.agreeing <= prediction.heads and prediction.heads > 1:
        return (
            f"no clear answer: {prediction.agreeing} of {prediction.heads} heads put it first; the explanation is weak."
        )
    nouns = {name: f"the {_noun(prediction, name)}" for name in present}
    ways = {name: f"{nouns[name]} is {BLANKED[prediction.media[name]]}" for name in present}
    kept = [name for name in present if name not in decided]
    if len(present) == 1:
        return f"only {nouns[present[0]]} was used."
    if not kept:
        without = ", or ".join(f"without {noun}" for noun in nouns.values())
        return f"{'both' if len(present) == 2 else 'all'} are needed: {without}, the answer changes."
    if not decided:
        enough = "either is enough" if len(present) == 2 else "no single one is needed"
        return f"{enough}: the answer stays the same {', and '.join(f'without {noun}' for noun in nouns.values())}."
    change, same = ", or when ".join(ways[name] for name in decided), ", and when ".join(ways[name] for name in kept)
    deciding = listed([nouns[name] for name in decided])
    return f"{deciding} decided: the answer changes when {change}, and stays the same when {same}."


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

"""Results of `curve` and of its preset `mteb`: what they say in words, their tables, and their run folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import title_of
from alphafuse.heads.scoring.statistics import Comparison, Interval
from alphafuse.heads.studies.curve import EVERY, FUSED, Curve, CurvePoint
from alphafuse.heads.studies.mteb import FOLDS, ITERATIONS, PER_CLASS, SEED, MtebRow, MtebScores
from alphafuse.heads.studies.runs import write_run
from alphafuse.heads.studies.words import compact_note, p_value, score, told_apart

from .contents import LearningCurves
from .figures import learning_curves, png
from .looks import listed, looks_of
from .studies import against_columns, describe, left_out
from .tables import Column, Document, Table, csv_rows, percent, percent_range, to_markdown

MTEB_VERSION = "2.20.0"  # held against this version


def write_curve(found: Curve | MtebScores, dataset: Dataset | str | Path) -> Path:
    """Write `<root>/runs/curve/`, of the preset `<root>/runs/curve-mteb/`, replacing an older one; return the folder.

    >>> from alphafuse import Dataset, curve, write_curve
    >>> dataset = Dataset.open("demo")
    >>> folder = write_curve(curve(dataset, sizes=[1, 2], draws=2), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'curve.csv', 'curve.json', 'curve.md', 'curve.png']
    """
    dataset = Dataset.open(dataset)
    figures, picture = curve_json(found), None
    if isinstance(found, Curve):
        picture = png(learning_curves(LearningCurves.from_json(figures), looks_of(dataset.media)))
    return write_run(
        dataset.root,
        "curve" if isinstance(found, Curve) else "curve-mteb",
        kind="curve",
        config=found.config(),
        figures=figures,
        markdown=to_markdown(describe(found)),
        rows=csv_rows(curve_rows(found) if isinstance(found, Curve) else mteb_rows(found)),
        picture=picture,
    )


def curve_json(found: Curve | MtebScores) -> dict[str, Any]:
    """Return every figure, and in "answer" what they say."""
    said = verdict(found) if isinstance(found, Curve) else mteb_verdict(found)
    return {"answer": said, "note_on_encoders": note_on_encoders(found), **found.to_json()}


def note_on_encoders(found: Curve | MtebScores) -> str:
    """Name the streams whose encoders stand in for real ones; "" if there are none."""
    return compact_note(found.provenance["encoders"], found.streams)


# learning curves

Row = tuple[CurvePoint, str]  # a size, and the heads


@describe.register
def describe_curve(curve: Curve) -> Document:
    """Describe what to do, then every size and heads."""
    columns = [
        Column("up to", lambda row: row[0].size if _is_first(row) else None),
        Column("per class", lambda row: f"{row[0].per_class:.3g}" if _is_first(row) else None, wide=True),
        Column("clips", lambda row: row[0].clips if _is_first(row) else None, wide=True),
        Column("heads", lambda row: _heads(row[1]), left=True),
        Column("top-1", lambda row: percent(row[0].top1[row[1]].mean)),
        Column("interval", lambda row: percent_range(row[0].top1[row[1]].interval)),
        *against_columns("fusing gains", lambda row: row[0].gains.get(row[1])),
    ]
    if len(curve.streams) == 1:
        columns = columns[:6]
    clips = f"{curve.clips['train']} train, {curve.clips['test']} test clips, {curve.classes} classes"
    notes, details = _curve_notes(curve)
    return Document(
        f"Learning curve on {curve.dataset_name}: {clips}, {_draws(curve.draws)}",
        [Table(columns, _rows(curve), notes, details=details)],
        picture=("Test accuracy against training clips per class", "curve.png"),
        lead=[sentence for sentence in (verdict(curve), last_step(curve), note_on_encoders(curve)) if sentence],
    )


def verdict(curve: Curve) -> str:
    """Return a sentence on where fusing pays; of a single stream, on what it reaches."""
    points = curve.points
    largest = points[-1]
    if len(curve.streams) == 1:
        reached = f"{score(largest.top1[largest.lead])} of {curve.clips['test']} test clips"
        return f"There is one stream, and nothing to fuse: {_heads(largest.lead)} is right for {reached}."
    gain = largest.gains[largest.best_stream]
    better = "better" if len(curve.streams) == 2 else "best"
    at_most = (
        f"with {_size(largest)}, it {_gains(gain)} against the {better} stream alone, {_heads(largest.best_stream)}"
    )
    paying = [point for point in points if point.pays]
    first = len(points)
    while first and points[first - 1].pays:
        first -= 1
    if first < len(points):
        fewer = points[:first]
        costs = any(point.pays is False for point in fewer)
        rest = "; with fewer, it doesn't always" if costs else "; with fewer, that is undecided" if fewer else ""
        start = f" from {_size(points[first])} on" if first < len(points) - 1 else " with many clips" if fewer else ""
        return f"Fusing pays{start}{rest}: {at_most}."
    if paying:
        sizes = listed([_size(point, short=True) for point in paying])
        rest = (
            "at the largest size it costs accuracy" if largest.pays is False else "with more clips, that is undecided"
        )
        return f"Fusing pays with few clips ({sizes} per class); {rest}: {at_most}."
    if largest.pays is False:
        return f"Don't fuse these streams with equal weights: {at_most}."
    return (
        f"Undecided whether fusing pays: {at_most}; {curve.source_videos} source videos in test resolve differences of "
        f"about {percent(curve.resolvable_gap or 0)} points and more."
    )


def last_step(curve: Curve) -> str:
    """Return a sentence on what the largest size gains over the one before; "" for one size."""
    if curve.last_step is None:
        return ""
    before, after = curve.points[-2:]
    what = "the fusion" if after.lead == FUSED else _heads(after.lead)
    step = f"From {before.per_class:.3g} to {after.per_class:.3g} clips per class, {what} {_gains(curve.last_step)}"
    sign = told_apart(curve.last_step)
    end = {
        1: "the curve still rises at its end, so more labelled clips should help",
        0: "whether the curve still rises at its end is undecided",
        -1: "the added clips did harm: look at their labels",
    }
    return f"{step}: {end[sign]}."


def _curve_notes(curve: Curve) -> tuple[list[str], list[str]]:
    """Return the notes, and more of them."""
    largest = curve.points[-1]
    once = f" ({EVERY}: one, they are the same)" if curve.draws > 1 and largest.size == EVERY else ""
    test = curve.clips["test"]
    details = [
        f"Accuracies in %, means over {_draws(curve.draws)} of training clips{once}; n = {test} test clips of "
        f"{curve.source_videos} source videos, the same at every size. 95% intervals: {_method(largest, curve)}; all "
        f"draws are from these {curve.clips['train']} training clips, so large sizes vary less than newly collected "
        "clips would.",
        "up to: clips of each class, one per source video first; a smaller size is part of the larger ones."
        + _short(curve),
        "Heads: ridge in closed form; its penalty is chosen within the drawn clips, by the error on clips left out, "
        "one source video at a time (with one clip per class nothing can be left out: the kernel's mean eigenvalue; of "
        "very many clips, five folds of source videos).",
    ]
    if len(curve.streams) > 1:
        method = next(iter(largest.gains.values())).test.method
        count = len(curve.points) * len(curve.streams)
        details += [
            "fused: all streams, scaled to the same total variance, weighing alike. fusing gains: points over that "
            f"stream alone; p: {method.replace('seeds', 'draws')}, Holm-corrected for {count} comparisons. Fusing "
            "pays where p < .05 for every stream.",
        ]
    ceiling = curve.ceiling
    details.append(
        f"Ceiling: {ceiling.reachable} of {ceiling.clips} test clips have a label that occurs in training: no head can "
        f"exceed {percent(ceiling.accuracy)}%. Nothing is chosen on test clips; validation clips are not used."
    )
    limits = left_out(curve.dropped)
    if ceiling.reachable < ceiling.clips:
        limits.append(f"Ceiling: {percent(ceiling.accuracy)}%, the test clips whose label occurs in training.")
    fusing = "; fusing gains: points over that stream alone" if len(curve.streams) > 1 else ""
    notes = [
        f"up to: training clips of each class. Top-1 in % of {test} test clips, means over {_draws(curve.draws)} of "
        f"training clips{once}{fusing}.",
        *([" ".join(limits)] if limits else []),
    ]
    return notes, details


def _short(curve: Curve) -> str:
    found = [point for point in curve.points if point.short]
    if not found:
        return ""
    each = listed([f"{point.size}: {point.short}" for point in found])
    return f" Classes with fewer give all they have (of {curve.classes}, {each}); per class: the mean."


def _method(point: CurvePoint, curve: Curve) -> str:
    if curve.draws > 1 and any(other.draws > 1 for other in curve.points):
        return "Wilson over draws and source videos"
    return point.top1[point.lead].interval.method


def _rows(curve: Curve) -> list[Row]:
    return [(point, name) for point in curve.points for name in point.top1]


def _is_first(row: Row) -> bool:
    return next(iter(row[0].top1)) == row[1]


def _size(point: CurvePoint, *, short: bool = False) -> str:
    """Return "4 clips per class", "all clips (14.4 per class)"; short: "4", "14.4"."""
    if short:
        return f"{point.per_class:.3g}"
    if point.size == EVERY:
        return f"all clips ({point.per_class:.3g} per class)"
    return f"{point.size} clip{'s' if point.size != 1 else ''} per class"


def curve_rows(curve: Curve) -> Table:
    """Return every size and heads as rows of unrounded figures."""

    def gain(of: Callable[[Comparison], float]) -> Callable[[Row], float | None]:
        return lambda row: of(row[0].gains[row[1]]) if row[1] in row[0].gains else None

    columns = [
        Column("size", lambda row: row[0].size),
        Column("per_class", lambda row: row[0].per_class),
        Column("clips", lambda row: row[0].clips),
        Column("draws", lambda row: row[0].draws),
        Column("heads", lambda row: row[1]),
        *_spread("test_top1", lambda row: (row[0].top1[row[1]].mean, row[0].top1[row[1]].interval)),
        Column("gain", gain(lambda found: found.test.difference)),
        Column("gain_low", gain(lambda found: found.interval.low)),
        Column("gain_high", gain(lambda found: found.interval.high)),
        Column("p_value", gain(lambda found: found.test.p_value)),
        Column("p_holm", gain(lambda found: found.p_holm)),
    ]
    return Table(columns, _rows(curve))


# the preset mteb


@describe.register
def describe_mteb(scores: MtebScores) -> Document:
    """Describe what MTEB's protocol gives, and what its folds leak."""
    columns = [
        Column("heads", lambda row: _heads(row.name), left=True),
        Column("mteb", lambda row: percent(row.score)),
        Column("its folds", lambda row: " ".join(percent(found) for found in row.per_fold), wide=True),
        Column("shuffled", lambda row: percent(row.shuffled.mean), wide=True),
        Column("interval", lambda row: percent_range(row.shuffled.interval), wide=True),
    ]
    if scores.rows[0].leak is not None:
        columns += [
            Column("grouped", lambda row: percent(row.grouped.mean)),
            Column("interval", lambda row: percent_range(row.grouped.interval)),
            *against_columns("leak", lambda row: row.leak),
        ]
    size = f"{scores.clips} test clips, {scores.classes} classes, {_draws(scores.draws)}"
    notes = [
        f"mteb: its score in % as MTEB {MTEB_VERSION} computes it; MTEB's published ones are of other clips."
        + (" grouped: whole source videos in each fold; leak: what shuffling adds." if scores.rows[0].leak else ""),
        *([f"Left out because they lack a stream: {scores.dropped} test clips."] if scores.dropped else []),
    ]
    return Document(
        f"MTEB's VGGSound protocol on {scores.dataset_name}: {size}",
        [Table(columns, scores.rows, notes, details=_mteb_notes(scores))],
        lead=[sentence for sentence in (mteb_verdict(scores), note_on_encoders(scores)) if sentence],
    )


def mteb_verdict(scores: MtebScores) -> str:
    """Return a sentence on the score and the leak."""
    lead = scores.rows[0]
    name = "the fusion" if lead.name == FUSED else _heads(lead.name)
    given = f"MTEB's protocol gives {name} {percent(lead.score)}%"
    if lead.leak is None or lead.grouped is None:
        return f"{given}, and its folds can't leak: every test clip has a source video of its own."
    leaking = [row for row in scores.rows if row.leak and told_apart(row.leak) > 0]
    if lead in leaking:
        return (
            f"{given}, but its folds leak: clips of one source video lie on both sides. With whole source videos in "
            f"each fold it is {percent(lead.grouped.mean)}%; report that ({name} {_gains(lead.leak)} by the leak)."
        )
    others = [f"{_heads(row.name)}, which {_gains(row.leak)}" for row in leaking if row.leak]
    more = f"; they do for {listed(others)}" if others else ""
    return (
        f"{given}; with whole source videos in each fold it is {percent(lead.grouped.mean)}%. Whether its shuffled "
        f"folds leak is undecided for {name}, which {_gains(lead.leak)} by them{more}."
    )


def _mteb_notes(scores: MtebScores) -> list[str]:
    lead = scores.rows[0]
    notes = [
        f"mteb: the mean of {FOLDS} folds' accuracies in %, seed {SEED}, as MTEB {MTEB_VERSION} computes it from these "
        f"embeddings in the order of the manifest: shuffled folds of the test split, up to {PER_CLASS} clips per class "
        f"drawn from the training folds, logistic regression of {ITERATIONS} steps on the embeddings as they are. "
        "MTEB's published scores are of its own 9,888 clips of VGGSound: compare only what has the same clips.",
        f"shuffled: over all {scores.clips} clips of {scores.source_videos} source videos and {_draws(scores.draws)} "
        f"(seeds {SEED} to {SEED + scores.draws - 1}); {_intervals(lead.shuffled.interval)}",
    ]
    if lead.leak is not None:
        notes.append(
            f"grouped: the same with whole source videos in each fold. leak: shuffled minus grouped, in points; "
            f"{scores.repeated} of the clips share their source video. p: "
            f"{lead.leak.test.method.replace('seeds', 'draws')}, Holm-corrected over the rows."
        )
    if lead.name == FUSED:
        notes.append(
            "fused: the streams' embeddings side by side, not scaled, so a stream of larger numbers weighs more."
        )
    return notes


def _intervals(interval: Interval) -> str:
    return f"95% intervals: {interval.method.replace('seeds', 'draws')}."


def mteb_rows(scores: MtebScores) -> Table:
    """Return every heads' scores as rows of unrounded figures."""

    def leak(of: Callable[[Comparison], float]) -> Callable[[MtebRow], float | None]:
        return lambda row: of(row.leak) if row.leak else None

    folds = range(FOLDS)
    columns = [
        Column("heads", lambda row: row.name),
        Column("mteb", lambda row: row.score),
        *(Column(f"fold_{fold + 1}", lambda row, fold=fold: row.per_fold[fold]) for fold in folds),  # type: ignore[misc]
        *_spread("shuffled", lambda row: (row.shuffled.mean, row.shuffled.interval)),
        *_spread("grouped", lambda row: row.grouped and (row.grouped.mean, row.grouped.interval)),
        Column("leak", leak(lambda found: found.test.difference)),
        Column("leak_low", leak(lambda found: found.interval.low)),
        Column("leak_high", leak(lambda found: found.interval.high)),
        Column("p_value", leak(lambda found: found.test.p_value)),
        Column("p_holm", leak(lambda found: found.p_holm)),
    ]
    return Table(columns, scores.rows)


# shared


def _heads(name: str) -> str:
    return name if name == FUSED else title_of(name)


def _draws(count: int) -> str:
    return f"{count} draw{'s' if count != 1 else ''}"


def _gains(gain: Comparison) -> str:
    """Return "gains 3.1 points (+0.2..+6.0, p = .012)", or "loses"."""
    p = p_value(gain.p_holm)
    verb = "gains" if gain.test.difference >= 0 else "loses"
    interval = percent_range(gain.interval, sign="+")
    return f"{verb} {100 * abs(gain.test.difference):.1f} points ({interval}, p {p if p.startswith('<') else f'= {p}'})"


def _spread(name: str, of: Callable[[Any], tuple[float, Interval] | None]) -> Sequence[Column]:
    """Columns of a csv: a mean and both ends of its interval."""
    return [
        Column(name, lambda row: found[0] if (found := of(row)) else None),
        Column(f"{name}_low", lambda row: found[1].low if (found := of(row)) else None),
        Column(f"{name}_high", lambda row: found[1].high if (found := of(row)) else None),
    ]

"""The result of `weigh` as a document, a picture and a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import SENSES, title_of
from alphafuse.heads.closed.recommend import DROP_SHARE, Profile, ratio_in_words
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.studies.runs import write_run
from alphafuse.heads.studies.weigh import CHOSEN, EQUAL, NeighbourVotes, Tested, Weighing
from alphafuse.heads.studies.words import p_text, p_value, signed, signed_range, verdict

from .contents import WeightCurve
from .figures import png, weight_profile
from .looks import capitalised
from .studies import accuracy_columns, against_columns, describe, left_out, loss_columns
from .tables import Column, Document, Table, csv_rows, methods, percent, percent_range, to_markdown

SHOWN_RATIOS = 4  # of the profile's steps, one in four is shown: half octaves


class _Head(NamedTuple):
    title: str
    tested: Tested


class _Seeded(NamedTuple):
    seed: int
    head: AlphaFusion


@describe.register
def describe_weigh(found: Weighing) -> Document:
    """Describe what to do, then the streams, the heads on test, and the profile of the loss."""
    clips = f"{found.clips['train']:,} train clips of {found.source_videos:,} source videos"
    lead = [found.verdict, *_gain(found), *_regret(found), *_warning(found), found.note_on_encoders]
    test = found.heads[CHOSEN].test
    notes = [f"Top-1 in % of {test.n} test clips, scored once; weighed gains: points over the row."]
    notes += [" ".join(_always(found))] if any(_always(found)) else []
    return Document(
        f"Weights on {found.dataset_name}: {clips}",
        [
            _streams(found),
            Table(_head_columns(), _rows(found), notes, details=[*_details(found, clips)]),
            *([_profile(profile)] if (profile := found.found.profile) and profile.is_learned else []),
        ],
        picture=("Out-of-fold error against the weights", "weigh.png") if _has_picture(found) else None,
        lead=[sentence for sentence in lead if sentence],
    )


def _warning(found: Weighing) -> Iterator[str]:
    """Say what the way the labels were given can hide."""
    if found.warning:
        yield f"{capitalised(found.warning)}."


def _gain(found: Weighing) -> Iterator[str]:
    """Say what the chosen head gains over each stream alone on test, the smallest gain."""
    own = found.heads[CHOSEN].test
    singles = [(one.comparison, name) for name, one in found.heads.items() if one.comparison and name != EQUAL]
    if not singles or len(found.head.config.streams) == 1:
        yield f"On test, {percent(own.top1.mean)}% of {own.n} clips ({percent_range(own.top1.interval)})."
        return
    compared, single = min(singles, key=lambda one: one[0].test.difference)
    said = verdict(compared)
    decided = f", {said}" if said != "undecided" else f": {own.n} test clips can't decide which is better"
    yield (
        f"On test, the weighed streams reach {percent(own.top1.mean)}% of {own.n} clips "
        f"({percent_range(own.top1.interval)}). The smallest gain over a stream alone, over {title_of(single)} "
        f"({percent(found.heads[single].test.top1.mean)}%), is {signed(compared.test.difference)} points "
        f"({signed_range(compared.interval)}, {p_text(compared.p_holm)}){decided}."
    )


def _regret(found: Weighing) -> Iterator[str]:
    """Say what equal weights cost."""
    profile = found.found.profile
    if profile is None or not profile.is_learned:
        return
    choice = profile.choice
    least = choice.losses[choice.best]
    yield (
        f"Equal weights cost {100 * choice.regret / least:.2f}% of squared error against the best weights, at most "
        f"{100 * choice.regret_bound / least:.2f}% (95%, out of fold)."
    )


def _streams(found: Weighing) -> Table:
    profile = found.found.final or found.found.profile

    def interval(stream: str) -> str | None:
        if profile is None or stream not in profile.streams:
            return None
        return profile.limits_in_words(stream, "..")

    def weight(stream: str) -> str:
        if stream in found.constant:
            return "constant"
        if not found.weights[stream]:
            return "drop"
        return f"{profile.relative(profile.chosen)[stream]:.2g}" if profile and found.found.final else "1"

    without = found.found.without
    columns = [
        Column("stream", lambda row: title_of(row[0]), left=True),  # a row that is a str would be a line of its own
        Column("", lambda row: SENSES[found.media[row[0]]], left=True),
        Column("weight", lambda row: weight(row[0])),
        Column("interval", lambda row: interval(row[0])),
        Column("alpha for fit", lambda row: f"{found.raw[row[0]]:.3g}" if found.raw.get(row[0]) else None, wide=True),
        Column("lost without", lambda row: percent(without[row[0]].lost) if row[0] in without else None),
        Column("at most", lambda row: percent(without[row[0]].bound) if row[0] in without else None),
        Column("dimensions", lambda row: found.dims.get(row[0]), wide=True),
        Column(
            "effective rank", lambda row: f"{found.ranks[row[0]]:.0f}" if row[0] in found.ranks else None, wide=True
        ),
    ]
    two = profile is not None and len(profile.streams) == 2
    has_open = profile is not None and any(None in profile.limits_of(stream) for stream in profile.streams)
    is_open = "; without a limit where no weight that was tried is excluded" if has_open else ""
    notes = [
        "weight: on the scale on which all streams have the same total variance, relative to "
        f"{'the other stream' if two else 'the geometric mean'}; interval: every weight whose out-of-fold error isn't "
        f"significantly above another's (95%{is_open}).",
        "lost without: points of out-of-fold accuracy lost without the stream; at most: the 95% upper bound. A stream "
        f"can go if at most {percent(DROP_SHARE)} is lost.",
    ]
    details = [
        "alpha for fit: the weight for raw embeddings, of which the first has 1. Effective rank: how many dimensions a "
        "stream's variance fills; if it is far below the dimensions, a few of them rule the scale (see the z-scored "
        "answer).",
    ]
    rows = [(stream,) for stream in found.streams]
    if not profile:
        return Table(columns, rows, ruled=False)
    return Table(columns, rows, notes, ruled=False, details=details)


def _rows(found: Weighing) -> list[_Head]:
    names = {CHOSEN: "weighed" if len(found.head.config.streams) > 1 else "chosen", EQUAL: "equal weights"}
    rows = [_Head(names.get(name) or f"{title_of(name)} alone", tested) for name, tested in found.heads.items()]
    return [*rows, _Head("logistic probe", found.probe)] if found.probe else rows


def _head_columns() -> list[Column]:
    return [
        Column("head, in closed form", lambda row: row.title, left=True),
        *accuracy_columns("top-1", lambda row: row.tested.test.top1),
        *loss_columns("loss", lambda row: row.tested.test.loss, digits=2),
        *against_columns("weighed gains", lambda row: row.tested.comparison),
        Column("val", lambda row: percent(row.tested.val.top1.mean), wide=True),
    ]


def _always(found: Weighing) -> Iterator[str]:
    """Say what limits the figures, which no table should be without."""
    ceiling = found.heads[CHOSEN].test.ceiling
    if ceiling.reachable < ceiling.clips:
        yield f"Ceiling: {percent(ceiling.accuracy)}%, the share of test clips whose label occurs in training."
    if found.constant:
        yield f"Left out, because they are the same for all clips: {', '.join(map(title_of, found.constant))}."
    if found.absent:
        names = ", ".join(map(title_of, found.absent))
        yield f"Left out, because they aren't extracted (`alphafuse extract`): {names}."
    yield from left_out(found.dropped)


def _details(found: Weighing, clips: str) -> Iterator[str]:
    test = found.heads[CHOSEN].test
    compared = next((head.comparison for head in found.heads.values() if head.comparison), None)
    yield (
        f"Everything was chosen on folds of {clips}. Accuracies in %, n = {test.n} test clips of "
        f"{len(set(test.groups))} source videos, scored once. {methods(test)}"
    )
    if compared:
        yield f"Differences in points; p: {compared.test.method}, Holm-corrected."
    if found.zscored:
        yield _zscored(found.zscored)
    if found.late:
        parts = [
            f"{title_of(stream)} {weight:.2f} ({low:.2f} to {high:.2f})"
            for stream, weight, low, high in zip(
                found.dims, found.late.weights, found.late.low, found.late.high, strict=True
            )
        ]
        decided = "differ from" if found.late.p_equal < 0.05 else "can't be told from"
        p = p_value(found.late.p_equal)
        yield (
            f"Late fusion, a weighted mean of calibrated probabilities: {', '.join(parts)}; they {decided} equal "
            f"weights (p {p if p.startswith('<') else f'= {p}'}, gain {found.late.bits:.3f} bits per clip)."
        )
    if found.neighbours:
        yield _voted(found.neighbours)
    if found.confusion:
        shares = ", ".join(f"{name} {percent(share.mean)}%" for name, share in found.confusion.mu.items())
        yield (
            f"VGGSounder's modality confusion, of {found.confusion.n:,} test clips: alone right about a label where "
            f"the weighed head is not: {shares}."
        )
    if found.probe:
        yield "Logistic probe: on the same weighted streams, its penalty chosen on validation clips."


def _zscored(profile: Profile) -> str:
    """Say what the answer is if every dimension has variance 1."""
    if not profile.choice.is_equal_excluded:
        return "With every dimension scaled to variance 1 first, the answer is equal weights."
    weights = profile.relative(profile.chosen)
    shown = profile.streams[-1:] if len(profile.streams) == 2 else profile.streams
    parts = [f"{title_of(s)} {ratio_in_words(weights[s])} ({profile.limits_in_words(s)})" for s in shown]
    return f"With every dimension scaled to variance 1 first, the weights are {', '.join(parts)}."


def _voted(found: NeighbourVotes) -> str:
    """Say what nearest neighbours make of the weights."""
    equal = len(found.alphas) // 2 if len(found.streams) == 2 else 0
    lead = (
        f"Nearest neighbours, which train nothing: equal weights label {percent(found.accuracy[equal])}% of "
        f"{found.queries:,} validation clips"
    )
    if not found.choice.is_equal_excluded:
        return f"{lead}, and no other weights are shown to be better."
    best = percent(found.accuracy[found.choice.best])
    if len(found.streams) > 2:
        return f"{lead}, the weights above {best}%, which is better (log loss, 95%)."
    inside = [found.weight_of(int(i)) for i in np.flatnonzero(found.choice.inside)]
    return (
        f"{lead}; {title_of(found.streams[-1])} at {found.weight_of(found.choice.best):.2g} times the weight "
        f"({min(inside):.2g} to {max(inside):.2g}, by log loss) {best}%."
    )


def _profile(profile: Profile) -> Table:
    """Return the loss of every few weightings against the least one."""
    least = profile.choice.losses.min()
    two = len(profile.streams) == 2
    last = profile.streams[-1]

    def excess(i: int) -> str:
        return f"{100 * (profile.choice.losses[i] / least - 1):.2f}"

    def weight(stream: str, i: int) -> str:
        return f"{profile.relative(profile.weightings[i])[stream]:.3g}"

    shown = np.arange(0, len(profile.weightings), SHOWN_RATIOS) if two else np.argsort(profile.choice.losses)[:12]
    weights = [
        Column(
            f"{title_of(stream)} : {title_of(profile.streams[0])}" if two else title_of(stream),
            partial(weight, stream),
        )
        for stream in ([last] if two else profile.streams)
    ]
    columns = [
        *weights,
        Column("error above the least (%)", excess),
        Column("", lambda i: "in the interval" if profile.choice.inside[i] else None, left=True),
    ]
    title = [] if two else ["The 12 weightings of least error."]
    return Table(columns, [int(i) for i in shown], title, ruled=False, wide=True)


def _has_picture(found: Weighing) -> bool:
    return found.found.profile is not None and len(found.found.profile.streams) == 2


def profile_rows(profile: Profile) -> Table:
    """Return the profile as rows of unrounded figures."""

    def weight(stream: int, i: int) -> float:
        return profile.weightings[i].alphas[stream]

    columns = [
        *(Column(f"weight_{stream}", partial(weight, i)) for i, stream in enumerate(profile.streams)),
        Column("penalty", lambda i: profile.weightings[i].penalty),
        Column("loss", lambda i: float(profile.choice.losses[i])),
        Column("inside", lambda i: int(profile.choice.inside[i])),
    ]
    return Table(columns, range(len(profile.weightings)))


def write_weigh(found: Weighing, dataset: Dataset | str | Path, *, run: str | None = None) -> Path:
    """Write `<root>/runs/weigh/` with the chosen head, replacing an older one as a whole, and return the folder.

    `predict`, `evaluate` and `export` work from it. `run` is another name for it.

    >>> from alphafuse import Dataset, weigh, write_weigh
    >>> dataset = Dataset.open("demo")
    >>> folder = write_weigh(weigh(dataset), dataset)
    >>> sorted(path.name for path in folder.iterdir())[:4]
    ['config.json', 'head', 'predictions-test.csv', 'predictions-val.csv']
    """
    dataset = Dataset.open(dataset)
    profile = found.found.profile
    curve = WeightCurve.from_json(profile.to_json() if profile else None)
    chosen = found.heads[CHOSEN]
    return write_run(
        dataset.root,
        run or "weigh",
        kind="weigh",
        config=found.config(),
        figures=found.to_json(),
        predictions=[chosen.val, chosen.test],
        heads={"": [_Seeded(found.arguments["seed"], found.head)]},
        markdown=to_markdown(describe(found)),
        rows=csv_rows(profile_rows(profile)) if profile else None,
        picture=png(weight_profile(curve)) if curve else None,
    )

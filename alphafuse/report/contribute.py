"""The result of `contribute` in words, tables and files. The first sentence says what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import SENSES, title_of
from alphafuse.heads.scoring.contribution import Figure, Worth
from alphafuse.heads.studies.contribute import ClassShare, Contribution, Gain, Shared
from alphafuse.heads.studies.runs import write_run
from alphafuse.heads.studies.use import Use
from alphafuse.heads.studies.words import compact_note, p_value

from .looks import capitalised, listed
from .studies import describe
from .tables import Column, Document, Table, csv_rows, percent, to_markdown

LISTED_CLASSES = 5  # at either end of the table of classes
VERBS = {"video": "sees", "audio": "hears"}


@describe.register
def describe_contribution(found: Contribution) -> Document:
    """Describe what the embeddings offer, then what the trained run uses."""
    demo = " (the generated demo)" if found.is_demo else ""
    clips = f"{found.clips['train']} train and {found.clips['test']} test clips"
    title = f"What each stream contributes on {found.dataset_name}{demo}: {clips}, {found.classes} classes"
    tables = [
        _values(found),
        *([_streams(found)] if len(found.media) > 1 else []),
        *([_shared("medium", found.of_media, SENSES)] if found.of_media else []),
        *([_classes(found)] if found.classes > 1 and len(found.media) > 1 else []),
        _used(found),
        Table((), (), _always(found), ruled=False, details=_methods(found)),
    ]
    return Document(title, tables, lead=[*headline(found), *filter(None, [note_on_encoders(found)])])


# words


def note_on_encoders(found: Contribution) -> str:
    """Name the streams whose encoders stand in for real ones; "" if there are none."""
    return compact_note(found.provenance["encoders"], found.media)


def hears(name: str, medium: str) -> str:
    """Return what a stream is: "sound as AST hears it". What it misses, another encoder of the medium may find.

    >>> hears("timesformer", "video")
    'sight as TimeSformer sees it'
    """
    return f"{SENSES[medium]} as {title_of(name)} {VERBS[medium]} it"


def headline(found: Contribution) -> list[str]:
    """Return what to do, as one sentence or two, and a sentence per stream on why."""
    said = {name: hears(name, medium) for name, medium in found.media.items()}
    by_verdict: dict[str, list[str]] = {"adds": [], "can go": [], "undecided": []}
    for name, gain in found.gains.items():
        by_verdict[gain.verdict].append(name)
    adds, can_go, undecided = by_verdict.values()
    if len(said) == 1:
        return [_alone(found, *said.items())]
    sentences = []
    if len(adds) == len(said):
        which, rest = ("both", "the other doesn't") if len(said) == 2 else (f"all {len(said)}", "the others don't")
        sentences.append(f"Keep {which}: each tells something about the label that {rest}.")
    elif adds:
        sentences.append(f"Keep {listed([said[name] for name in adds])}.")
    if len(can_go) > 1:
        which = "either" if len(can_go) == 2 else "any one"
        first = f"{listed([said[name] for name in can_go])}: {which} can go, not all at once without another look"
        sentences.append(f"{capitalised(first)}.")
    elif can_go:
        sentences.append(f"{capitalised(said[can_go[0]])} can go.")
    if undecided:
        them = listed([said[name] for name in undecided])
        sentences.append(
            f"Undecided: whether {them} add{'s' * (len(undecided) == 1)} anything to the rest, these "
            f"{found.clips['test']} test clips can't tell; more clips could."
        )
    why = [_why(found, name, said[name]) for name in found.gains]
    return [" ".join(sentences), *why, *([f"{capitalised(found.warning)}."] if found.warning else [])]


def _alone(found: Contribution, item: tuple[str, str]) -> str:
    name, said = item
    worth, gain = found.values[name,], found.gains[name]
    if gain.verdict == "adds":
        return f"{capitalised(said)} tells {_bits(worth)} per clip about the label: right for {_accuracy(worth)}."
    return (
        f"Undecided: whether {said} tells anything about the label, these {found.clips['test']} test clips can't "
        f"tell: {_bits(worth)} per clip."
    )


def _why(found: Contribution, name: str, said: str) -> str:
    gain = found.gains[name]
    alone = found.values[name,]
    text = (
        f"{capitalised(said)}: alone {_fixed(alone.bits.mean)} bits per clip; on top of the rest {_bits(gain.worth)}, "
        f"{100 * gain.worth.accuracy.mean:+.1f} points ({_range(gain.worth.accuracy, 100, 1)})"
    )
    if found.refits:
        most = max(gain.permuted_bits)
        text += f"; permuted across clips and refitted {_times(found.refits)}, at most {_signed(most)} bits"
    if gain.verdict == "can go":
        text += f"; without it you lose at most {100 * gain.most_lost:.1f} points (95%)"
    return text + "."


def _times(count: int) -> str:
    return f"{count} times" if count > 1 else "once"


def _fixed(value: float, digits: int = 2, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # no -0.00


def _signed(bits: float) -> str:
    return _fixed(bits, sign="+")


def _bits(worth: Worth) -> str:
    return f"{_signed(worth.bits.mean)} bits ({_range(worth.bits, 1, 2)})"


def _accuracy(worth: Worth) -> str:
    return f"{100 * worth.accuracy.mean:.1f} of 100 clips ({_range(worth.accuracy, 100, 1)})"


def _range(figure: Figure, scale: int, digits: int) -> str:
    return "..".join(_fixed(scale * end, digits) for end in (figure.interval.low, figure.interval.high))


# tables


def _columns(of: Callable[[Any], Worth | None], *, only_bits: bool = False) -> list[Column]:
    """Columns: bits and points, each with its interval; with `only_bits`, text has points only with --wide."""

    def cell(write: Callable[[Worth], str]) -> Callable[[Any], str | None]:
        return lambda row: write(worth) if (worth := of(row)) else None

    return [
        Column("bits", cell(lambda worth: _fixed(worth.bits.mean))),
        Column("interval", cell(lambda worth: _range(worth.bits, 1, 2))),
        Column("points", cell(lambda worth: percent(worth.accuracy.mean)), wide=only_bits),
        Column("interval", cell(lambda worth: _range(worth.accuracy, 100, 1)), wide=only_bits),
    ]


def _values(found: Contribution) -> Table:
    columns = [
        Column("heads of", lambda row: _subset(row[0], found), left=True),
        *_columns(lambda row: row[1]),
    ]
    if found.out_of_fold:
        columns.append(Column("out of fold, bits", lambda row: _fixed(found.out_of_fold[row[0]][0]), wide=True))
        columns.append(Column("points", lambda row: percent(found.out_of_fold[row[0]][1]), wide=True))
    how = (
        "in closed form: a ridge per row on streams of equal variance; their weights (in octaves, `alphafuse weigh` "
        "is finer), the penalty and the probabilities' temperature are chosen over "
        f"{found.folds} folds of the training clips' source videos"
        if found.head == "closed"
        else "are trained, one per row, with the same settings and seed; temperatures are chosen on validation clips"
    )
    notes = [
        "What the embeddings offer. Bits: information about a clip's label, mean of log2(probability of the label / "
        "its class's share of the training clips). Points: right of 100 clips.",
    ]
    details = [f"Heads {how}."]
    if found.head == "closed":
        details.append(
            "Such heads add up what the streams say. What only a combination tells (a picture that changes what a "
            "sound means) needs trained heads: --head fit. Out of fold: training clips, by heads trained without their "
            "fold."
        )
    return Table(columns, list(found.values.items()), notes, details=details)


def _subset(names: Sequence[str], found: Contribution) -> str:
    if not names:
        return "nothing (the classes' shares)"
    if len(names) == len(found.media) > 1:
        return "both" if len(names) == 2 else "all"
    return " + ".join(hears(name, found.media[name]) if len(names) == 1 else title_of(name) for name in names)


def _streams(found: Contribution) -> Table:
    rows: list[tuple[str, Worth, Gain | None]] = [
        (title_of(name), worth, found.gains[name]) for name, worth in found.streams.shares.items()
    ]
    pairs = found.streams.pairs.items()
    rows += [(f"{title_of(one)} with {title_of(other)}", worth, None) for (one, other), worth in pairs]

    def gain(write: Callable[[Gain], str]) -> Callable[[Any], str | None]:
        return lambda row: write(row[2]) if row[2] else None

    columns = [
        Column("share of", lambda row: row[0], left=True),
        *_columns(lambda row: row[1], only_bits=True),
        Column("on top, bits", gain(lambda one: _fixed(one.worth.bits.mean))),
        *([Column("permuted", gain(_permuted), wide=True)] if found.refits else []),
        Column("p", gain(lambda one: p_value(one.p_holm))),
        Column("", gain(lambda one: one.verdict), left=True),
    ]
    details = [
        "Share: Shapley value, the mean over all orders in which streams may join; shares sum to what all are worth "
        "beyond nothing. A row of two streams: their cooperation, below 0 if they offer the same, above 0 if each "
        "makes the other worth more.",
        "On top: all streams against all but this one. p: paired permutation of the bits over source videos, "
        "Holm-corrected.",
    ]
    if found.refits:
        details.append(
            f"Permuted: the same gain when the stream comes from clips of other source videos, in training, tuning and "
            f"test, {_times(found.refits)} (least..most). It is what more columns and more tuning give. A gain above "
            f"all of {found.refits} has p = 1/{found.refits + 1}."
        )
    notes = [
        "Share: of what all streams together tell beyond nothing; on top: all streams against all but this one.",
        f"adds: p at most .05{' and above all permuted' if found.refits else ''}. can go: without it at most 1 point "
        "is lost (upper 95% bound). undecided: neither.",
    ]
    return Table(columns, rows, notes, details=details)


def _permuted(gain: Gain) -> str:
    return f"{_fixed(min(gain.permuted_bits))}..{_fixed(max(gain.permuted_bits))}"


def _shared(what: str, shared: Shared, names: Mapping[str, str]) -> Table:
    rows = [(names.get(name, name), worth) for name, worth in shared.shares.items()]
    rows += [(" with ".join(names.get(name, name) for name in pair), worth) for pair, worth in shared.pairs.items()]
    columns = [Column(f"share of a {what}", lambda row: row[0], left=True), *_columns(lambda row: row[1])]
    return Table(columns, rows, ["All streams of a medium join together. Rows as above."])


def _classes(found: Contribution) -> Table:
    """Return the classes for which the first stream brings most more than the last, and the other way round."""
    by_label: dict[str, dict[str, ClassShare]] = {}
    for share in found.by_class:
        by_label.setdefault(share.label, {})[share.stream] = share
    first, last = next(iter(found.media)), list(found.media)[-1]
    rows: list[Any] = sorted(by_label.values(), key=lambda row: row[last].worth.bits.mean - row[first].worth.bits.mean)
    more = len(rows) - 2 * LISTED_CLASSES
    if more > 0:
        rows[LISTED_CLASSES:-LISTED_CLASSES] = [f"... ({more} more in contribute.csv)"]

    def share_of(name: str) -> Callable[[Any], str]:
        return lambda row: f"{_fixed(row[name].worth.bits.mean)}{'' if row[name].is_found else ' ?'}"

    columns = [
        Column("class", lambda row: row[first].label[:40], left=True),
        Column("clips", lambda row: row[first].n),
    ]
    for name in found.media:
        columns += [
            Column(f"{title_of(name)}, bits", share_of(name)),
            Column("interval", lambda row, name=name: _range(row[name].worth.bits, 1, 2), wide=True),  # type: ignore[misc]
        ]
    found_count = sum(share.is_found for share in found.by_class)
    notes = [
        f"Shares per class, from those where {title_of(first)} brings more to those where {title_of(last)} does. "
        f"? undecided: {len(found.by_class) - found_count} of {len(found.by_class)} shares can't be told from 0 "
        "(sign flips over source videos, Benjamini-Hochberg: of the others 5 in 100 are expected to be false)."
    ]
    return Table(columns, rows, notes, ruled=False)


def _used(found: Contribution) -> Table:
    used = found.used
    if used is None:
        note = f"What a trained head uses: not measured, because there is {found.not_used}."
        return Table((), (), [note], ruled=False)
    rows = [(f"{title_of(name)} from other clips", worth) for name, worth in used.perceptual.items()]
    if used.interaction:
        rows.append(("only a sum over streams", used.interaction))
    columns = [Column(f"{used.run.name} loses", lambda row: row[0], left=True), *_columns(lambda row: row[1])]
    first, *details = _used_notes(used)
    return Table(columns, rows, [first], details=details)


def _used_notes(used: Use) -> list[str]:
    heads = f"{used.heads} heads" if used.heads > 1 else "one head"
    notes = [
        f"What the heads of {used.run} use ({heads}, right for {percent(used.accuracy.mean)} of 100 of {used.n} test "
        "clips): what they lose, without being trained anew.",
        f"From other clips: the perceptual score (Gat et al. 2021), the stream permuted across source videos, mean of "
        f"{used.permutations} permutations. A head can ignore what the embeddings offer, and lean on a stream that "
        "another could replace. It can lose more bits than it had: then it is sure, and wrong.",
    ]
    if used.is_additive:
        return [*notes, "Only a sum: nothing to measure, these heads add up a term per stream."]
    error = ""
    if used.partners < used.n:
        error = f"; {used.partners} partners per clip are drawn at random, and the points have a standard error of "
        error += f"{100 * used.partner_error:.2f} from that"
    return [
        *notes,
        "Only a sum: the head"
        f"{' of the first seed' if used.heads > 1 else ''} replaced by the closest function that adds up a term per "
        f"stream (EMAP, Hessel and Lee 2020){error}. Near 0: it uses no interaction of the streams.",
    ]


def _methods(found: Contribution) -> list[str]:
    return [
        f"95% intervals: t over the {found.source_videos} source videos of the test clips, with the heads held "
        "fixed: other training clips would give other heads.",
        "A figure is of a stream as its encoder makes it; another encoder of the same medium may tell more.",
    ]


def _always(found: Contribution) -> list[str]:
    """Return what limits the figures, which no table should be without."""
    notes = []
    dropped = ", ".join(f"{count} {split}" for split, count in found.dropped.items() if count)
    if dropped:
        notes.append(f"Left out because they lack a stream: {dropped}.")
    if found.unseen:
        notes.append(f"Left out because their class has no training clip: {found.unseen} test clips.")
    return notes


# files


def contribution_json(found: Contribution) -> dict[str, Any]:
    """Return every figure, and in "said" what the figures say: what to do (also "answer"), then why, per stream."""
    said = headline(found)
    return {"answer": said[0], "note_on_encoders": note_on_encoders(found), "said": said, **found.to_json()}


def class_shares(found: Contribution) -> Table:
    """Return every class and stream as a row of unrounded figures."""

    def ends(name: str, of: Callable[[ClassShare], Figure]) -> list[Column]:
        return [
            Column(name, lambda row: of(row).mean),
            Column(f"{name}_low", lambda row: of(row).interval.low),
            Column(f"{name}_high", lambda row: of(row).interval.high),
        ]

    columns = [
        Column("label", lambda row: row.label),
        Column("stream", lambda row: row.stream),
        Column("n", lambda row: row.n),
        *ends("bits", lambda row: row.worth.bits),
        *ends("accuracy", lambda row: row.worth.accuracy),
        Column("p", lambda row: row.p_value),
        Column("p_false_discovery", lambda row: row.corrected),
    ]
    return Table(columns, found.by_class)


def write_contribution(found: Contribution, dataset: Dataset | str | Path) -> Path:
    """Write `<root>/runs/contribute/`, replacing an older one as a whole, and return the folder.

    >>> from alphafuse import Dataset, contribute, write_contribution
    >>> dataset = Dataset.open("demo")
    >>> folder = write_contribution(contribute(dataset, refits=0), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'contribute.csv', 'contribute.json', 'contribute.md']
    """
    dataset = Dataset.open(dataset)
    return write_run(
        dataset.root,
        "contribute",
        kind="contribute",
        config=found.config(),
        figures=contribution_json(found),
        markdown=to_markdown(describe(found)),
        rows=csv_rows(class_shares(found)),
    )

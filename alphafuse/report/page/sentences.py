"""The sentences of the page: the answer, the choice of the fused heads, and the source of every number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alphafuse.data.power import LEVEL
from alphafuse.data.streams import SENSES, title_of
from alphafuse.heads.model.config import title_of_streams
from alphafuse.heads.studies.probe import sentence_of
from alphafuse.heads.studies.runs import HEADS, Run
from alphafuse.heads.studies.words import p_text
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.report.contents import Absent, ClassShare, Measure, Report, Votes, role_of
from alphafuse.report.looks import capitalised, listed, look_of
from alphafuse.report.tables import percent, points

WITHOUT_EPOCHS = ("weigh", "contribute", "curve")  # heads in closed form: no epochs, and seeds only of folds and draws


def answer(report: Report) -> list[str]:
    """Return the answer as sentences: what the studies say to do, then what the heads reach, the ceiling, the demo."""
    votes, table, ablation = report.votes, report.table, report.ablation
    said = [] if isinstance(report.offer, Absent) else [report.offer.said[0]]
    said += [] if isinstance(report.weights, Absent) else [report.weights.said]
    said += [] if isinstance(ablation, Absent) else [ablation.note]
    said += [] if isinstance(report.curve, Absent) else [report.curve.said]
    sentences = list(dict.fromkeys(filter(None, said)))
    if isinstance(votes, Votes):
        if not sentences:
            sentences.append(_accuracy(report, votes))
        sentences += _gains(report, votes)
    elif not isinstance(table, Absent):
        sentences.append(table.verdict)
    elif not isinstance(ablation, Absent):
        sentences += [
            f"{bar.title}: right on {percent(bar.test.mean)}% ({between(bar.test)}) of {bar.test.n} test clips."
            for bar in ablation.bars
            if bar.is_plain
        ]
    if not sentences:
        sentences.append("No study has answered yet: the commands at the end do.")
    ceiling = report.audit.splits["test"].ceiling
    if unseen := ceiling.clips - ceiling.reachable:
        sentences.append(
            f"The ceiling is {percent(ceiling.accuracy)}%: {unseen} of {ceiling.clips} test clips have a label that "
            "never occurs in training, so no head can be right on them."
        )
    if report.is_demo:
        sentences.append(
            "This is the generated demo, whose difficulty is chosen: its accuracies say nothing about real clips."
        )
    return sentences


def _accuracy(report: Report, votes: Votes) -> str:
    top1 = votes.fused.metrics["top1"]
    assert top1 is not None
    return (
        f"On {votes.clips} test clips of {votes.source_videos} source videos, {report.lead} are right on "
        f"{percent(top1.mean)}% ({between(top1)})."
    )


def _gains(report: Report, votes: Votes) -> Iterator[str]:
    for one in votes.contributions:
        added, base = added_to(one.over, votes, report), look_of(report.looks, one.over).sense
        yield (
            f"Adding {added} to {base} alone {_changes(one.gain.mean)} {abs(100 * one.gain.mean):.1f} points "
            f"({points(one.gain.low)} to {points(one.gain.high)}, {p_text(one.p_value)})"
            + ("." if one.p_value < 1 - LEVEL else ": on these clips it can't be distinguished from 0.")
        )


def classes_in_words(name: str, shares: Sequence[ClassShare]) -> str:
    """Return how many classes a stream helps and hurts: "AST helps 14 of 16 classes, and hurts 1; ...".

    A class counts if the 95% interval excludes 0.
    """
    helped = sum(one.is_apart and one.points.mean > 0 for one in shares)
    hurt = sum(one.is_apart and one.points.mean < 0 for one in shares)
    return (
        f"{name} helps {helped} of {len(shares)} classes and hurts {hurt or 'none'}"
        + (f"; for {undecided} these clips can't tell" if (undecided := len(shares) - helped - hurt) else "")
        + "."
    )


def added_to(stream: str, votes: Votes, report: Report) -> str:
    """Return what the fused heads add to a stream, in words: the sense of the other stream, or "the other streams"."""
    others = [name for name in votes.joined if name != stream]
    return look_of(report.looks, others[0]).sense if len(others) == 1 else "the other streams"


def telling(report: Report) -> str:
    """Return the question of the page in words: "what sight and sound contribute"."""
    senses = [sense for sense in SENSES.values() if any(_is_of(sense, name, report) for name in report.streams)]
    if len(report.streams) == 1:
        return f"what {senses[0]} tells"
    return f"what {listed(senses)} contribute" if len(senses) > 1 else f"what each stream of {senses[0]} contributes"


def encoders_in_words(report: Report) -> str:
    """Return which network each sense is: "sight is TimeSformer on the frames, sound is AST on the audio track"."""
    parts = {"sight": "the frames", "sound": "the audio track"}
    return ", ".join(
        f"{look_of(report.looks, name).sense} is {report.networks[name]} on {part}"
        for name in report.streams
        for sense, part in parts.items()
        if _is_of(sense, name, report)
    )


def _is_of(sense: str, stream: str, report: Report) -> bool:
    return look_of(report.looks, stream).sense.partition(" ")[0] == sense


def _changes(gain: float) -> str:
    return "gains" if gain >= 0 else "loses"


def whose_heads(report: Report) -> str:
    """Return a sentence that says how the heads that this page is about were chosen."""
    if isinstance(report.votes, Absent):
        return ""
    run, lead = report.votes.fused.run, capitalised(report.lead)
    if run.kind == "table1":
        return f"{lead} are the untransformed ones of run {run.name}; nothing was chosen."
    rivals = [one for one in report.runs if one.kind in HEADS and role_of(one.experiment) == report.roles[0]]
    if len(rivals) == 1:
        return f"{lead} are those of run {run.name}, the only run with {report.lead.removeprefix('the ')}."
    if report.is_chosen:
        return f"{lead} are those of run {run.name}, the first that was named for this page."
    among = f"{len(rivals)} runs" if not report.left_out else "those that can be used"
    return f"{lead} are those of run {run.name}: the best of {among} by the rule of alphafuse runs."


def interval_methods(measures: Sequence[tuple[str, Measure]]) -> str:
    """Return the methods of these intervals; with the figures' names if there are several methods.

    >>> one = Measure(0.5, 0.4, 0.6, "Wilson over source videos", 20)
    >>> interval_methods([("fused", one), ("sight alone", Measure(0.0, 0.0, 0.2, "Wilson", 20))])
    'Wilson over source videos (fused), Wilson (sight alone)'
    """
    names: dict[str, list[str]] = {}
    for name, measure in measures:
        names.setdefault(measure.method, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{method} ({', '.join(of)})" for method, of in names.items())


def described(name: str, report: Report) -> str:
    """Return the description of a figure for screen readers: its main numbers in words."""
    if name == "table1" and not isinstance(report.table, Absent):
        rows = ", ".join(f"{row.title} {percent(row.test.mean)}%" for row in report.table.rows)
        return f"Test accuracies of table 1 with 95% intervals, beside the paper's: {rows}"
    if name == "ablation" and not isinstance(report.ablation, Absent):
        bars = ", ".join(f"{bar.title} {percent(bar.test.mean)}%" for bar in report.ablation.bars)
        return f"Test accuracies with 95% intervals: {bars}"
    if name.startswith("alpha"):
        curves = report.sweeps[int(name.partition("-")[2] or 1) - 1]
        chosen = ", ".join(f"{title_of_streams(on)} {found.alpha:g}" for on, found in curves.chosen.items())
        return f"Validation accuracy and loss against alpha with 95% bands; chosen: {chosen}"
    if name == "losses" and not isinstance(report.losses, Absent):
        return f"Training and validation loss per epoch: {report.losses.title}"
    if name == "weights" and not isinstance(report.weights, Absent):
        return f"Error against the ratio of two weights, lowest where the data want it. {report.weights.said}"
    if name == "curve" and not isinstance(report.curve, Absent):
        ends = ", ".join(
            f"{look_of(report.looks, role).alone} from {percent(found[0][1].mean)}% to {percent(found[-1][1].mean)}%"
            for role, found in report.curve.curves.items()
        )
        return f"Test accuracy against training clips per class: {ends}"
    return f"Confusion matrix of {report.lead} on test clips; the table below lists the most frequent mistakes"


def named(title: str, run: Run) -> str:
    """Return an experiment's title, with the run's name if the name differs."""
    is_named_so = run.name == title.lower().replace(" ", "-")
    return title if is_named_so else f"{title}, run {run.name}"


def run_facts(run: Run) -> list[tuple[str, str]]:
    """Return (name, value) pairs: the source of a run's numbers."""
    config = run.config
    facts = [("run", str(run.folder)), ("written", f"{run.written} UTC")]
    if run.kind in HEADS:
        facts.append(("experiment", run.experiment.title))
    facts.append(("seeds", ", ".join(str(seed) for seed in run.seeds)))
    if "clips" in config:
        facts.append(("clips", ", ".join(f"{split} {count}" for split, count in config["clips"].items())))
    if any(config.get("dropped", {}).values()):
        dropped = ", ".join(f"{split} {count}" for split, count in config["dropped"].items())
        facts.append(("left out", f"{dropped} (they lack a stream)"))
    if config.get("probe"):
        facts.append(("probe", _probe_fact(config)))
    facts.append(("settings", _settings(run)))
    for stream, made in config["embeddings"].items():
        encoder = config.get("encoders", {}).get(stream, {})
        parts = [str(encoder.get("name") or "encoder not recorded")]
        parts += [f"revision {encoder['revision']}"] if encoder.get("revision") else []
        parts += [f"protocol {made.get('protocol', 'unknown')}"]
        parts += [f"weights sha256 {made['weights_sha256']}"] if made.get("weights_sha256") else []
        facts.append((title_of(stream), ", ".join(parts)))
    facts.append(("versions", ", ".join(f"{name} {value}" for name, value in config.get("versions", {}).items())))
    return facts


def _settings(run: Run) -> str:
    """Return a run's settings, those that differ from the paper's first; of heads in closed form, the study's own."""
    own = run.config.get(run.kind, {})
    if run.kind in WITHOUT_EPOCHS and own.get("head", "closed") == "closed":
        named = [
            f"{name} {_text(value)}"
            for name, value in own.items()
            if value not in (None, [], "") and value is not False
        ]
        return ", ".join(["heads in closed form", *(one for one in named if one != "head closed")])
    usual = TrainSettings().to_json()
    settings = {name: _text(value) for name, value in run.config["settings"].items()}
    changed = [f"{name} {value}" for name, value in settings.items() if value != _text(usual.get(name))]
    same = [f"{name} {value}" for name, value in settings.items() if value == _text(usual.get(name))]
    return "; ".join(filter(None, [", ".join(changed), f"the paper's: {', '.join(same)}"]))


def _probe_fact(config: Mapping[str, Any]) -> str:
    probe = config["probe"]
    if "chosen" in probe:
        return sentence_of(TrainSettings.from_json(config["settings"]), len(probe["points"]), probe["val_clips"])
    return "hidden layers, learning rate and weight decay of each row chosen on validation clips"


def _text(value: object) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def between(measure: Measure, scale: float = 100.0, digits: int = 1) -> str:
    """Format an interval: "78.0 to 88.4", or "-" if there is none."""
    if not measure.has_interval:
        return "-"
    return f"{number(measure.low, scale, digits)} to {number(measure.high, scale, digits)}"


def number(value: float, scale: float, digits: int) -> str:
    """Format a scaled number with a true minus."""
    return f"{scale * value:.{digits}f}".replace("-", "\u2212")

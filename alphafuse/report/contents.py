"""The data of the report: read from run folders, plotted by `figures`, shown by the page.

Shares (accuracies, gains) are in [-1, 1], losses in nats. A section without data is an `Absent`: the page leaves it out
and names, at its end, the command that adds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.audit import AuditReport
from alphafuse.data.splits import Ceiling
from alphafuse.heads.closed.recommend import limits_in_words
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.scoring.statistics import Estimate, Interval, wilson_interval
from alphafuse.heads.studies.runs import Run
from alphafuse.predict.shares import Shares

from .looks import FUSED, Looks

Role = str  # `looks.FUSED`, or the name of the one stream that heads read


@dataclass(frozen=True)
class Absent:
    """A section without data: what is missing, and the command that adds it (or "")."""

    line: str
    command: str = ""


@dataclass(frozen=True)
class Measure:
    """A figure with its 95% interval, the method of the interval, and the number of clips."""

    mean: float
    low: float
    high: float
    method: str
    n: int

    @classmethod
    def of(cls, estimate: Estimate | None, n: int) -> Measure | None:
        """Make one from an `Estimate`; None stays None."""
        if estimate is None:
            return None
        return cls(estimate.mean, estimate.interval.low, estimate.interval.high, estimate.interval.method, n)

    @classmethod
    def between(cls, mean: float, interval: Interval, n: int) -> Measure:
        """Make one from a mean and its interval."""
        return cls(mean, interval.low, interval.high, interval.method, n)

    @classmethod
    def from_json(cls, split: Mapping[str, Any], name: str) -> Measure:
        """Make one from a split in a run's json: `name` is "top1", "loss", ..."""
        return cls(float(split[name]["mean"]), *_ends(split[name]["interval"]), int(split["n"]))

    @classmethod
    def of_difference(cls, against: Mapping[str, Any] | None, n: int) -> Measure | None:
        """Make one from a comparison in a run's json; None for the row that the others are compared with."""
        return cls(float(against["difference"]), *_ends(against["interval"]), n) if against else None

    @property
    def has_interval(self) -> bool:
        """Whether the interval was estimated and has a width."""
        return not self.method.startswith("none") and self.high > self.low


def _ends(interval: Mapping[str, Any]) -> tuple[float, float, str]:
    return float(interval["low"]), float(interval["high"]), str(interval["method"])


def ceiling_from_json(split: Mapping[str, Any]) -> Ceiling:
    """Read the reachable ceiling from a run's json."""
    found = split["reachable_ceiling"]
    return Ceiling(int(found["reachable"]), int(found["clips"]))


def role_of(experiment: Mapping[str, Any] | Experiment | None) -> Role:
    """Return what a head reads: one stream, or "fused" for several (late fusion has no experiment)."""
    if experiment is None:
        return FUSED
    streams = experiment.streams if isinstance(experiment, Experiment) else tuple(experiment["streams"])
    return str(streams[0]) if len(streams) == 1 else FUSED


@dataclass(frozen=True)
class PaperFigures:
    """The paper's figures of an experiment, and Wilson's interval of its notebook's correct test clips."""

    experiment: int
    accuracy: float
    loss: float
    correct: int
    clips: int

    @property
    def measure(self) -> Measure:
        """Return the notebook's accuracy with its interval."""
        return Measure.between(self.correct / self.clips, wilson_interval(self.correct, self.clips), self.clips)


@dataclass(frozen=True)
class TableRow:
    """A row of table 1; `difference` (from the untransformed row) and its Holm-corrected p are None for that row."""

    title: str
    role: Role
    val: Measure
    test: Measure
    loss: Measure
    difference: Measure | None
    p_value: float | None
    paper: PaperFigures | None


@dataclass(frozen=True)
class Table:
    """Table 1: see `alphafuse.heads.studies.table1.Table1`."""

    run: Run
    rows: tuple[TableRow, ...]
    ceiling: Ceiling
    verdict: str
    is_demo: bool
    is_paper_split: bool
    resolvable_gap: float
    source_videos: int
    p_method: str

    @classmethod
    def from_json(cls, run: Run, content: Mapping[str, Any]) -> Table:
        """Make one from table1.json."""
        rows = tuple(_table_row(row) for row in content["rows"])
        compared = [row["against_baseline"] for row in content["rows"] if row["against_baseline"]]
        return cls(
            run=run,
            rows=rows,
            ceiling=ceiling_from_json(content),
            verdict=str(content["verdict"]),
            is_demo=bool(content["is_demo"]),
            is_paper_split=bool(content["is_paper_split"]),
            resolvable_gap=float(content["smallest_resolvable_gap"]),
            source_videos=int(content["rows"][0]["test"]["source_videos"]),
            p_method=str(compared[0]["method"]) if compared else "",
        )


def _table_row(row: Mapping[str, Any]) -> TableRow:
    against, paper, test = row["against_baseline"], row["paper"], row["test"]
    return TableRow(
        title=str(row["experiment"]["title"]),
        role=role_of(row["experiment"]),
        val=Measure.from_json(row["val"], "top1"),
        test=Measure.from_json(test, "top1"),
        loss=Measure.from_json(test, "loss"),
        difference=Measure.of_difference(against, int(test["n"])),
        p_value=against and float(against["p_holm"]),
        paper=paper
        and PaperFigures(
            experiment=int(paper["experiment"]),
            accuracy=float(paper["accuracy"]),
            loss=float(paper["loss"]),
            correct=int(paper["notebook_correct"]),
            clips=int(paper["notebook_clips"]),
        ),
    )


@dataclass(frozen=True)
class LossCurves:
    """Losses per epoch.

    Attributes:
        title: title of the experiment.
        name: name of our curves, beside the paper's.
        train, val: (seeds, epochs) float64.
        paper_train, paper_val: (epochs,), or None where the paper has no such curve.
        run: the run of our curves; None while the run is being written.
    """

    title: str
    name: str
    train: np.ndarray
    val: np.ndarray
    paper_train: np.ndarray | None = None
    paper_val: np.ndarray | None = None
    run: Run | None = None

    def __repr__(self) -> str:
        return f"LossCurves({self.title!r}, seeds x epochs {self.train.shape})"


@dataclass(frozen=True)
class AlphaPoint:
    """The scores of one alpha of a sweep."""

    alpha: float
    top1: Measure
    loss: Measure


@dataclass(frozen=True)
class AlphaCurves:
    """A sweep: see `alphafuse.heads.studies.sweep.Sweep`.

    Attributes:
        curves, chosen: a stream, several ("ast,clap") or "all" -> points in order of alpha on validation clips, and the
            chosen one on test clips.
        untransformed: split -> "top1" and "loss" of the untransformed heads.
        ceilings: split -> ceiling.
        said: whether to change an alpha, in words.
        run: the run of the sweep; None while the run is being written.
    """

    dataset: str
    transform: str
    seeds: int
    curves: Mapping[str, tuple[AlphaPoint, ...]]
    chosen: Mapping[str, AlphaPoint]
    untransformed: Mapping[str, Mapping[str, Measure]]
    ceilings: Mapping[str, Ceiling]
    resolvable_gap: float
    said: str
    run: Run | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any], run: Run | None = None) -> AlphaCurves:
        """Make one from sweep.json."""
        return cls(
            dataset=str(content["dataset"]),
            transform=str(content["transform"]),
            seeds=len(content["seeds"]),
            curves={
                on: tuple(sorted((_alpha_point(point, "val") for point in points), key=lambda point: point.alpha))
                for on, points in content["curves"].items()
            },
            chosen={on: _alpha_point(found, "test") for on, found in content["chosen"].items()},
            untransformed={
                split: {name: Measure.from_json(found, name) for name in ("top1", "loss")}
                for split, found in content["baseline"].items()
            },
            ceilings={split: ceiling_from_json(found) for split, found in content["baseline"].items()},
            resolvable_gap=float(content["smallest_resolvable_gap"]),
            said=str(content["answer"]),
            run=run,
        )


def _alpha_point(found: Mapping[str, Any], split: str) -> AlphaPoint:
    return AlphaPoint(float(found["alpha"]), *(Measure.from_json(found[split], name) for name in ("top1", "loss")))


@dataclass(frozen=True)
class LearningCurves:
    """Test accuracy against training clips per class: see `alphafuse.heads.studies.curve.Curve`.

    Attributes:
        curves: role -> (mean clips per class, top-1) of each size, smallest first.
        ceiling: ceiling of the test split.
        draws: draws of training clips.
        said: what to do, in a sentence; "" if the run has none.
        run: the run of the curves; None while the run is being written.
    """

    curves: Mapping[Role, tuple[tuple[float, Measure], ...]]
    ceiling: Ceiling
    draws: int
    said: str = ""
    run: Run | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any], run: Run | None = None) -> LearningCurves:
        """Make one from curve.json."""
        n, points = int(content["clips"]["test"]), content["points"]
        measured = {
            role: tuple(
                (float(point["per_class"]), Measure.from_json({**point["top1"], "n": n}, role)) for point in points
            )
            for role in points[0]["top1"]
        }
        said = str(content.get("answer", ""))
        return cls(measured, ceiling_from_json(content), int(content["draws"]), said, run)


@dataclass(frozen=True)
class WeightCurve:
    """The out-of-fold error of two streams against the ratio of their weights.

    Attributes:
        first, last: the streams; a ratio is the weight of `last` relative to `first`.
        ratios: (candidates,) float64, ascending.
        excess: (candidates,) float64, squared error above the least one, in percent.
        inside: (candidates,) bool, whether the candidate is in the 95% interval.
        chosen: position of the recommended candidate.
    """

    first: str
    last: str
    ratios: np.ndarray
    excess: np.ndarray
    inside: np.ndarray
    chosen: int

    def __repr__(self) -> str:
        return f"WeightCurve({self.last} : {self.first}, {len(self.ratios)} ratios)"

    @classmethod
    def from_json(cls, profile: Mapping[str, Any] | None) -> WeightCurve | None:
        """Make one from the profile in weigh.json; None unless it weighs two streams against each other."""
        if profile is None or len(profile["streams"]) != 2:
            return None
        first, last = map(str, profile["streams"])
        candidates = sorted(profile["candidates"], key=lambda one: one["weights"][1] / one["weights"][0])
        ratios = np.array([one["weights"][1] / one["weights"][0] for one in candidates])
        losses = np.array([float(one["loss"]) for one in candidates])
        inside = np.array([bool(one["inside"]) for one in candidates])
        chosen = int(np.abs(np.log(ratios / float(profile["weights"][last]))).argmin())
        return cls(first, last, ratios, 100 * (losses / losses.min() - 1), inside, chosen)


@dataclass(frozen=True)
class Weight:
    """The weight of a stream in a run of `weigh`.

    Attributes:
        stream: its name.
        weight: on a scale on which all streams have the same total variance; 0 if the stream is to be dropped.
        limits: 95% interval of the weight, in words; "" if it has none.
        lost, bound: accuracy lost without the stream out of fold, and at most (95%); None for a single stream.
    """

    stream: Role
    weight: float
    limits: str
    lost: float | None
    bound: float | None


@dataclass(frozen=True)
class Weights:
    """What each stream should weigh: a run of `weigh`.

    `curve` is None unless it weighs two streams; `is_learned`: whether the clips say anything about weights.
    """

    said: str
    streams: tuple[Weight, ...]
    curve: WeightCurve | None
    is_learned: bool
    train_clips: int
    run: Run

    @classmethod
    def from_json(cls, run: Run, content: Mapping[str, Any]) -> Weights:
        """Make one from weigh.json."""
        profile = content["final"] or content["profile"] or {"weights": {}, "ranges": {}}
        streams = []
        for name, kept in content["weights"].items():
            limits = limits_in_words(*profile["ranges"][name]) if name in profile["ranges"] else ""
            without = content["without"].get(name, {})
            weight = float(profile["weights"].get(name, 1.0)) if kept else 0.0
            streams.append(Weight(str(name), weight, limits, without.get("lost"), without.get("bound")))
        return cls(
            said=str(content.get("answer", content["verdict"])),
            streams=tuple(streams),
            curve=WeightCurve.from_json(content["profile"]),
            is_learned=bool(profile.get("is_learned")),
            train_clips=int(content["clips"]["train"]),
            run=run,
        )


@dataclass(frozen=True)
class ClassShare:
    """What a stream adds to one class: `points` is its share of the class's right answers, negative if it hurts."""

    label: str
    n: int
    points: Measure

    @property
    def is_apart(self) -> bool:
        """Whether the 95% interval excludes 0."""
        return self.points.has_interval and (self.points.low > 0 or self.points.high < 0)


@dataclass(frozen=True)
class OfferedStream:
    """A stream in a run of `contribute`, in bits per clip.

    Attributes:
        stream: its name.
        alone: what heads of it alone tell about the label.
        share: its Shapley value.
        gain: what it adds to all others; points: the same in accuracy.
        permuted: the largest gain of a permuted refit; None without any.
        verdict: "adds", "can go" or "undecided".
        by_class: what it adds to each class, most first.
    """

    stream: Role
    alone: Measure
    share: Measure
    gain: Measure
    points: Measure
    permuted: float | None
    verdict: str
    by_class: tuple[ClassShare, ...]


@dataclass(frozen=True)
class Offer:
    """What each stream contributes: a run of `contribute`.

    Attributes:
        said: what to do, then a sentence per stream.
        streams: the streams, in order.
        least, most: ends of the bars, in bits; `least` is at most 0.
        refits: permuted refits of each stream.
        source_videos: of the test clips.
        run: the run.
    """

    said: tuple[str, ...]
    streams: tuple[OfferedStream, ...]
    least: float
    most: float
    refits: int
    source_videos: int
    run: Run

    @property
    def has_classes(self) -> bool:
        """Whether what each of several streams adds is known per class."""
        return len(self.streams) > 1 and any(one.by_class for one in self.streams)

    @classmethod
    def from_json(cls, run: Run, content: Mapping[str, Any]) -> Offer:
        """Make one from contribute.json."""
        n = int(content["clips"]["test"])

        def measure(worth: Mapping[str, Any], unit: str = "bits") -> Measure:
            return Measure(float(worth[unit]["mean"]), *_ends(worth[unit]["interval"]), n)

        alone = {tuple(value["streams"]): value for value in content["values"]}
        by_class: dict[str, list[ClassShare]] = {}
        for row in content["by_class"]:
            points, clips = row["accuracy"], int(row["n"])
            share = ClassShare(str(row["label"]), clips, Measure(points["mean"], *_ends(points["interval"]), clips))
            by_class.setdefault(row["stream"], []).append(share)
        streams = []
        for name, gain in content["gains"].items():
            permuted = [float(bits) for bits in gain["permuted_bits"]]
            streams.append(
                OfferedStream(
                    stream=str(name),
                    alone=measure(alone[(name,)]),
                    share=measure(content["shapley"][name]),
                    gain=measure(gain),
                    points=measure(gain, "accuracy"),
                    permuted=max(permuted) if permuted else None,
                    verdict=str(gain["verdict"]),
                    by_class=tuple(sorted(by_class.get(name, []), key=lambda one: (-one.points.mean, one.label))),
                )
            )
        first, *others = map(str, content["said"])
        said = (str(content.get("answer", first)), *others)
        least, most = min([0.0, *(one.share.low for one in streams)]), max([0.01, *(one.share.high for one in streams)])
        refits = len(content["gains"][streams[0].stream]["permuted_bits"])
        return cls(said, tuple(streams), least, most, refits, int(content["source_videos"]), run)


@dataclass(frozen=True)
class Bar:
    """One accuracy of the ablation; `is_plain`: untransformed concatenation, or one untransformed stream."""

    group: str
    title: str
    role: Role
    test: Measure
    is_plain: bool


@dataclass(frozen=True)
class Ablation:
    """The contribution of each part.

    Attributes:
        bars: accuracies on test clips, from top to bottom.
        runs: the runs of the bars.
        ceiling: ceiling of the test split.
        note: what `compare` says to do; "" without it.
    """

    bars: tuple[Bar, ...]
    runs: tuple[Run, ...]
    ceiling: Ceiling
    note: str


@dataclass(frozen=True)
class Voter:
    """The heads of one role: fused, or one stream.

    Attributes:
        role: what the heads read.
        title: title of their experiment.
        run: the run of the heads; path: folder of the heads.
        seeds: number of heads.
        metrics: name -> figure on the test clips that all heads can use; None if it is undefined.
    """

    role: Role
    title: str
    run: Run
    path: Path
    seeds: int
    metrics: Mapping[str, Measure | None]


@dataclass(frozen=True)
class Contribution:
    """Gain of fusion over one stream alone in test top-1, with a paired test (Holm-corrected over the streams)."""

    over: Role
    gain: Measure
    p_value: float
    method: str


@dataclass(frozen=True)
class Confusion:
    """Confusions of the fused heads.

    Attributes:
        labels: the classes that occur among the clips or the predictions, in the order of the dataset.
        shares: (labels, labels) float64, mean share of the row's clips that are predicted as the column's label.
        n: number of clips of each label.
        pairs: (true label, predicted label, mean share, n), the most frequent mistakes first.
    """

    labels: tuple[str, ...]
    shares: np.ndarray
    n: tuple[int, ...]
    pairs: tuple[tuple[str, str, float, int], ...]

    def __repr__(self) -> str:
        return f"Confusion({len(self.labels)} labels, {len(self.pairs)} pairs)"


@dataclass(frozen=True)
class Vote:
    """The prediction of one role for a clip: the label of highest mean probability over seeds, and the true label's."""

    label: str
    probability: float
    of_truth: float
    is_right: bool


@dataclass(frozen=True)
class HardClip:
    """A test clip on which the fused heads' mean loss is high.

    Attributes:
        loss: mean loss over seeds, in nats.
        is_reachable: whether its label occurs in training.
        votes: role -> vote; a role whose heads can't use the clip is missing.
        finding: which stream misled the fused heads, in words.
        picture, sound: data URIs of a middle frame and of two seconds around it; "" if the file has none.
        answer, shares: an answer of `Votes.shares`, and what each stream brings to it; None without exact shares.
    """

    clip_id: str
    label: str
    loss: float
    is_reachable: bool
    votes: Mapping[Role, Vote]
    finding: str
    picture: str = ""
    sound: str = ""
    answer: str = ""
    shares: Shares | None = None


@dataclass(frozen=True)
class Votes:
    """The predictions of trained heads on the test clips.

    Attributes:
        fused: the fused heads; in a root of one stream, the heads of that stream.
        alone: stream -> heads of that stream (some may be missing).
        clips, source_videos: counts of the test clips that all these heads can use; dropped: the other test clips.
        ceiling: ceiling on those clips.
        contributions: gain of the fused heads over each of their streams alone.
        joined: the streams that the fused heads read; none in a root of one stream.
        confusion: confusions of the fused heads.
        hardest: clips of highest loss, the hardest first.
        unreachable: number of test clips whose label never occurs in training.
        shares: title of the heads whose answers have shares; "" if no heads have exact ones.
        no_shares: why the first heads have none; "" if they have.
    """

    fused: Voter
    alone: Mapping[Role, Voter]
    clips: int
    source_videos: int
    dropped: int
    ceiling: Ceiling
    contributions: tuple[Contribution, ...]
    joined: tuple[str, ...]
    confusion: Confusion
    hardest: tuple[HardClip, ...]
    unreachable: int
    shares: str = ""
    no_shares: str = ""

    @property
    def voters(self) -> tuple[Voter, ...]:
        """All heads, the fused ones first."""
        return (self.fused, *self.alone.values())


@dataclass(frozen=True)
class Report:
    """Everything that the page shows, apart from the explorer.

    Attributes:
        root: path of the root, as commands take it.
        name: name of the dataset; is_demo: whether it is the generated demo.
        networks: stream -> what its encoder is called.
        looks: role -> how its heads are shown; roles: those of the root's streams, see `looks.roles_of`.
        classes: number of classes.
        clips: split -> number of listed clips.
        facts: (name, value) pairs: encoders, protocol, versions, the source csv of the root.
        extract_command: the command that reproduces the embeddings.
        audit: audit of the splits, without decoding.
        runs: all runs that were read.
        left_out: one line per unused run folder: why it was left out.
        explorer: html of the explorer.
        is_chosen: whether the caller named the runs.
    """

    root: Path
    name: str
    is_demo: bool
    networks: Mapping[str, str]
    looks: Looks
    roles: tuple[Role, ...]
    classes: int
    clips: Mapping[str, int]
    facts: Sequence[tuple[str, str]]
    extract_command: str
    audit: AuditReport
    runs: tuple[Run, ...]
    left_out: tuple[str, ...]
    offer: Offer | Absent
    weights: Weights | Absent
    curve: LearningCurves | Absent
    table: Table | Absent
    losses: LossCurves | Absent
    sweeps: tuple[AlphaCurves, ...]
    ablation: Ablation | Absent
    votes: Votes | Absent
    explorer: str | Absent
    is_chosen: bool = False

    @property
    def streams(self) -> tuple[str, ...]:
        """The root's streams, in order."""
        return tuple(role for role in self.roles if role != FUSED)

    @property
    def lead(self) -> str:
        """The heads that this page is about, in a sentence."""
        return "the fused heads" if self.roles[0] == FUSED else "the heads"

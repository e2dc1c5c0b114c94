"""One comparison of each stream alone, some of them, late fusion, every fusion, every transform, and controls.

A fair study of alpha needs the controls. Scaling one stream's features before a trainable layer doesn't change which
functions the head can express; under Adam it acts as that stream's learning rate and initial scale. So the table
also has heads on standardised embeddings (scalar alphas have no effect on them) and heads with a learning rate per
stream instead of an alpha, tuned on the same grid. Tuned values are chosen on validation clips; only the chosen ones
are scored on test clips.

With more than two streams, the table also has every pair, and with more than three the streams without each one in
turn. With one stream there is nothing to fuse: the table has its transforms and controls.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.sources.demo import DEMO_NAME
from alphafuse.data.splits import Ceiling
from alphafuse.data.streams import in_order, title_of
from alphafuse.heads.model.config import FUSED, FUSIONS, Experiment
from alphafuse.heads.model.transforms import TRANSFORMS
from alphafuse.heads.scoring.statistics import Comparison
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import class_indices
from alphafuse.system.cluster import connected, require_engine
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.results import Tabular

from .probe import Probe, grid_json, points_for, probe_grid
from .same_clips import (
    EVALUATED,
    SameClips,
    SplitResult,
    Trained,
    against,
    best_on_validation,
    ceiling_json,
    epochs_of,
    resolvable_gap,
    seed_range,
)
from .words import FusingGain, compact_note, fusing, fusing_gains

COMPARE_SEEDS = 5
ROWS_AT_ONCE = 65_536  # training clips that are scored at a time: bounds memory
RATIOS = (0.25, 0.5, 2.0, 4.0)  # one stream relative to the others, as alpha and as learning rate
LATE_TITLE = "late: mean probability"
VGGSOUND_CLASSES = 309
PARTIAL = ("alone", "some")  # groups of rows that read only some of the streams


@dataclass(frozen=True)
class Grid:
    """The experiments of a comparison of these streams, completed for them; the blended gate comes on top.

    Attributes:
        streams: streams of the embeddings, in order.
        tuned: the stream whose alpha and learning rate are tuned: the last one. Of two streams either would do, because
            only their ratio matters.
        baseline: untransformed concatenation of all streams.
        single: each stream alone; none if there is only one.
        some: title -> some of the streams: every pair of more than two, and more than three without each in turn.
        fusions, transformed, standardised, alphas, rates: experiments on all streams.

    >>> len(Grid.of(["timesformer", "ast"]).experiments), list(Grid.of(["timesformer", "ast", "clap"]).some)
    (35, ['TimeSformer + AST', 'TimeSformer + clap', 'AST + clap'])
    """

    streams: tuple[str, ...]
    tuned: str
    baseline: Experiment
    single: tuple[Experiment, ...]
    some: Mapping[str, Experiment]
    fusions: tuple[Experiment, ...]
    transformed: tuple[Experiment, ...]
    standardised: tuple[Experiment, ...]
    alphas: tuple[Experiment, ...]
    rates: tuple[Experiment, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> Grid:
        """Return the experiments for these streams."""
        streams = tuple(in_order(names))
        tuned = streams[-1]

        def made(**fields: Any) -> Experiment:
            return Experiment(**fields).of(streams)

        several = len(streams) > 1
        pairs = [made(streams=pair) for pair in combinations(streams, 2)] if len(streams) > 2 else []
        some = {pair.title: pair for pair in pairs}
        if len(streams) > 3:
            some |= {f"without {title_of(one)}": made(streams=tuple(set(streams) - {one})) for one in streams}
        return cls(
            streams=streams,
            tuned=tuned,
            baseline=made(),
            single=tuple(made(streams=(stream,)) for stream in streams) if several else (),
            some=some,
            fusions=tuple(made(fusion=fusion) for fusion in FUSIONS if fusion != "concat") if several else (),
            transformed=tuple(
                made(transform=name, on=stream)
                for stream in streams
                for name, transform in TRANSFORMS.items()
                if name != "none" and transform.alpha != "required"
            ),
            standardised=(made(normalize="zscore"), made(normalize="l2")),
            alphas=tuple(made(transform="scale", on=tuned, alpha=ratio) for ratio in RATIOS),
            rates=tuple(made(rates=((tuned, ratio),)) for ratio in RATIOS),
        )

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """All experiments, in the order in which they are trained."""
        others = (*self.fusions, *self.transformed, *self.standardised, *self.alphas, *self.rates)
        return (self.baseline, *self.single, *self.some.values(), *others)


@dataclass(frozen=True)
class CompareRow:
    """One row of a `CompareTable`.

    Attributes:
        group: "baseline", "alone", "some" (of more than two streams), "fusion", "transform" or "control".
        title: title shown to users.
        experiment: the row's experiment; None for late fusion, which has no head of its own.
        val, test: results on the two splits.
        comparison: comparison with the untransformed concat; None for that row itself.
        probe: how the settings of the row's heads were chosen; None without a probe, and for late fusion, whose heads
            are those of the rows of single streams.
    """

    group: str
    title: str
    experiment: Experiment | None
    val: SplitResult
    test: SplitResult
    comparison: Comparison | None
    probe: Probe | None = None

    def __repr__(self) -> str:
        return f"CompareRow({self.title}: test top1={self.test.top1!r})"


@dataclass(frozen=True)
class CompareTable(Tabular):
    """Result of `compare`.

    Attributes:
        dataset_name: name of the dataset.
        is_demo: whether the dataset is the generated demo.
        classes: number of classes.
        clips, dropped: split -> number of clips used by every row, and left out because they lack a stream.
        ceiling: reachable ceiling of the test split.
        seeds, settings: seeds and training settings of every row; with a probe, hidden layers, learning rate and
            weight decay are each row's own.
        rows: all rows, the untransformed concat first.
        media: stream -> medium, of the streams that are fused.
        gains: what the untransformed concat gains over each single stream on test clips, the smallest first; its p is
            that of the row, corrected for all rows. Empty for one stream.
        blend: weights of gradient blending, determined on training and validation clips; empty for one stream.
        tuned: the stream whose alpha and learning rate were chosen on validation.
        resolvable_gap: smallest difference in test top-1 that a paired test on this split finds in 4 of 5 cases, with
            Holm's correction for the table's comparisons.
        resolvable_gain: the same for a gain of fusing over a stream alone; None for one stream.
        provenance: inputs of the study, for config.json.
        kept: heads of the main rows: the untransformed concat, each stream alone, and the best on validation if it is
            none of them. `write_compare` keeps them as runs.

    >>> from alphafuse import Dataset, TrainSettings, compare
    >>> table = compare(Dataset.open("demo"), seeds=1, settings=TrainSettings(epochs=2, hidden=(16,)))
    >>> sorted({row.group for row in table.rows})
    ['alone', 'baseline', 'control', 'fusion', 'transform']
    >>> sorted(gain.stream for gain in table.gains)
    ['ast', 'timesformer']
    """

    dataset_name: str
    is_demo: bool
    classes: int
    clips: Mapping[str, int]
    dropped: Mapping[str, int]
    ceiling: Ceiling
    seeds: tuple[int, ...]
    settings: TrainSettings
    rows: tuple[CompareRow, ...]
    media: Mapping[str, str]
    gains: tuple[FusingGain, ...]
    blend: Mapping[str, float]
    tuned: str
    resolvable_gap: float
    resolvable_gain: float | None
    provenance: Mapping[str, Any]
    kept: tuple[Trained, ...] = ()

    def __repr__(self) -> str:
        first = self.rows[0]
        sizes = f"{len(self.rows)} rows, {len(self.seeds)} seeds, n={first.test.n}"
        return f"CompareTable({self.dataset_name!r}, {sizes}, {first.title} test top1={first.test.top1!r})"

    @property
    def is_probe(self) -> bool:
        """Whether each row has settings of its own, chosen by a probe."""
        return self.rows[0].probe is not None

    @property
    def answer(self) -> str:
        """What to do, in a sentence: use all streams, one alone, or that the test clips can't decide."""
        fused, every = self.rows[0], set(self.media)
        without = {
            next(iter(left_out)): row.comparison
            for row in self.rows
            if row.group == "some" and row.experiment and row.comparison
            if len(left_out := every - set(row.experiment.streams)) == 1
        }
        resolvable = self.resolvable_gain
        return fusing(fused.test, self.gains, self.media, without=without, resolvable=resolvable)

    @property
    def note_on_encoders(self) -> str:
        """Names the streams whose encoders stand in for real ones; "" if there are none."""
        return compact_note(self.provenance["encoders"], self.media)

    @property
    def is_vggsound(self) -> bool:
        """Whether the dataset has VGGSound's clips and all its classes, of which published figures are."""
        return "csv_sha256" in self.provenance["dataset"]["source"] and self.classes == VGGSOUND_CLASSES

    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "experiments": [row.experiment and asdict(row.experiment) for row in self.rows],
            **self.provenance,
            **({"probe": {"grid": grid_json(self.settings)}} if self.is_probe else {}),
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
        }

    def to_json(self) -> dict[str, Any]:
        """Every figure of the table, json-able."""
        return {
            "answer": self.answer,
            "note_on_encoders": self.note_on_encoders,
            "dataset": self.dataset_name,
            "is_demo": self.is_demo,
            "classes": self.classes,
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
            "reachable_ceiling": ceiling_json(self.ceiling),
            "seeds": list(self.seeds),
            "smallest_resolvable_gap": self.resolvable_gap,
            "smallest_resolvable_gain": self.resolvable_gain,
            "gains_of_fusing": [gain.to_json() for gain in self.gains],
            "blending_weights": dict(self.blend),
            "tuned_stream": self.tuned,
            "rows": [
                {
                    "group": row.group,
                    "title": row.title,
                    "experiment": row.experiment and {**asdict(row.experiment), "name": row.experiment.name},
                    "val": row.val.to_json(),
                    "test": row.test.to_json(),
                    "against_concat": row.comparison and row.comparison.to_json(),
                    "probe": row.probe and row.probe.to_json(),
                }
                for row in self.rows
            ],
            "published": [asdict(row) for row in published_results()] if self.is_vggsound else [],
        }


@dataclass(frozen=True)
class Published:
    """A published result on VGGSound's 309 classes and full test split, from a public file; top-1 in [0, 1]."""

    system: str
    audio: float | None
    visual: float | None
    both: float | None
    note: str
    repository: str
    file: str


@cache
def published_results() -> tuple[Published, ...]:
    """Return results that others published, for orientation (from published_results.json)."""
    text = resources.files(__package__).joinpath("published_results.json").read_text(encoding="utf-8")
    return tuple(Published(**row) for row in json.loads(text))


def count_compare_heads(streams: Iterable[str], seeds: int, *, probe: TrainSettings | None = None) -> int:
    """Return the number of heads that `compare` trains on embeddings of these streams; `probe`: settings of a probe."""
    grid = Grid.of(streams)
    blended = [Experiment(fusion="gate").of(grid.streams)] if grid.single else []  # gradient blending comes on top
    experiments = [*grid.experiments, *blended]
    points = probe_grid(probe) if probe else ()
    return sum(len(points_for(experiment, points)) + seeds for experiment in experiments)


def compare(
    dataset: Dataset | str | Path,
    *,
    seeds: int = COMPARE_SEEDS,
    first_seed: int = 0,
    settings: TrainSettings | None = None,
    probe: bool = False,
    progress: Progress = NO_PROGRESS,
    engine: str = "local",
    address: str | None = None,
) -> CompareTable:
    """Train all experiments on the same clips and compare each with the untransformed concat.

    Writes no files; see `alphafuse.write_compare`.

    Args:
        dataset: a dataset, or its folder, whose three splits are extracted.
        seeds, first_seed: one head for each of the seeds first_seed, first_seed + 1, ... and each row.
        settings: training settings; the paper's by default. Titles of rows name a different normalisation or fusion.
        probe: choose each row's head (linear, or the hidden layers of `settings`), learning rate and weight decay on
            validation clips, all rows from the same grid (see `heads.studies.probe`). Rows with a learning rate per
            stream choose among its points without weight decay.
        progress: counts finished epochs, `settings.total_epochs` for each of the heads that `count_compare_heads`
            counts.
        engine: "local" trains on this machine, "ray" on the nodes of a Ray cluster; the figures are the same.
        address: address of the Ray cluster, such as "auto"; None uses the environment variable RAY_ADDRESS, or starts
            Ray on this machine.

    Raises:
        DatasetError, StoreError: splits that are empty or not extracted.
        ExperimentError: settings that don't fit, or a loss that is not finite.
        ClusterError: an unknown engine, or a Ray cluster that can't be used.

    >>> from alphafuse import Dataset, TrainSettings, compare
    >>> quick = TrainSettings(epochs=2, hidden=(16,))  # only for speed: use the defaults for meaningful figures
    >>> table = compare(Dataset.open("demo"), seeds=1, settings=quick)
    >>> len(table.rows), table.rows[0].title
    (31, 'concat, untransformed')
    """
    dataset = Dataset.open(dataset)
    require_engine(engine)
    settings = settings or TrainSettings()
    chosen = seed_range(seeds, first_seed)
    clips = SameClips.load(dataset, settings, chosen)
    grid = Grid.of(clips.streams)
    heads = count_compare_heads(grid.streams, len(chosen), probe=settings if probe else None)
    with (
        connected(address) if engine == "ray" else nullcontext(),  # one connection for all calls of `train`
        epochs_of(progress, "compare", heads, settings) as shown,
    ):
        way = clips.train_probed if probe else clips.train
        train = partial(way, seeds=chosen, settings=settings, progress=shown, engine=engine, address=address)
        found = dict(zip(grid.experiments, train(grid.experiments), strict=True))
        singles = [found[single] for single in grid.single]
        blend: dict[str, float] = {}
        if singles:
            blend = blending_weights(clips, singles, found[Experiment(fusion="gate").of(grid.streams)])
            blended = Experiment(fusion="gate", auxiliary=tuple(blend.items())).of(grid.streams)
            found[blended] = train([blended])[0]
    best_alpha = best_on_validation([found[experiment] for experiment in (grid.baseline, *grid.alphas)])
    best_rate = best_on_validation([found[experiment] for experiment in (grid.baseline, *grid.rates)])

    rows = [_row("baseline", "concat, untransformed", found[grid.baseline])]
    rows += [_row("alone", single.title, found[single]) for single in grid.single]
    rows += [_row("some", title, found[experiment]) for title, experiment in grid.some.items()]
    if singles:
        late_val, late_test = (late_fusion(clips, singles, split) for split in EVALUATED)
        rows.append(CompareRow("fusion", LATE_TITLE, None, late_val, late_test, None))
        rows += [_row("fusion", experiment.title, found[experiment]) for experiment in grid.fusions]
        rows.append(_row("fusion", "gate, gradient blending", found[blended]))
    rows += [_row("transform", experiment.title, found[experiment]) for experiment in grid.transformed]
    ratio = 1.0 if best_alpha.experiment.alpha is None else best_alpha.experiment.alpha
    rows.append(_row("transform", f"{title_of(grid.tuned)} scale {ratio:g} (chosen)", best_alpha))
    rows += [_row("control", f"concat, {experiment.normalize}", found[experiment]) for experiment in grid.standardised]
    ratio = dict(best_rate.experiment.rates).get(grid.tuned, 1.0)
    rows.append(_row("control", f"{title_of(grid.tuned)} rate x {ratio:g} (chosen)", best_rate))

    baseline, others = rows[0], rows[1:]
    comparisons = against(baseline.test, [row.test for row in others])
    others = [replace(row, comparison=comparison) for row, comparison in zip(others, comparisons, strict=True)]
    alone = [row for row in others if row.group == "alone"]
    return CompareTable(
        dataset_name=dataset.name,
        is_demo=dataset.name == DEMO_NAME,
        classes=len(dataset.classes),
        clips=clips.counts,
        dropped=clips.dropped,
        ceiling=baseline.test.ceiling,
        seeds=chosen,
        settings=settings,
        rows=(baseline, *others),
        media={stream: dataset.media[stream] for stream in grid.streams},
        gains=fusing_gains(
            (row.experiment.streams[0], row.test, row.comparison) for row in alone if row.experiment and row.comparison
        ),
        blend=blend,
        tuned=grid.tuned,
        resolvable_gap=resolvable_gap(
            baseline.test, [row.test for row in others if row.group not in PARTIAL], comparisons=len(others)
        ),
        resolvable_gain=resolvable_gap(baseline.test, [row.test for row in alone], comparisons=len(others))
        if alone
        else None,
        provenance=clips.provenance,
        kept=_main_rows([found[grid.baseline], *singles], [found[row.experiment] for row in rows if row.experiment]),
    )


def _main_rows(always: Sequence[Trained], rows: Sequence[Trained]) -> tuple[Trained, ...]:
    """Return the heads that are kept: these, and of all rows the best on validation."""
    best = best_on_validation(rows)
    return (*always, *([] if any(best is one for one in always) else [best]))


def _row(group: str, title: str, trained: Trained) -> CompareRow:
    assert trained.test is not None
    return CompareRow(group, title, trained.experiment, trained.val, trained.test, None, trained.probe)


def late_fusion(clips: SameClips, singles: Sequence[Trained], split: str) -> SplitResult:
    """Score the mean of the streams' probabilities per seed; if a clip lacks some, of the others'."""
    embeddings = clips.embeddings[split]
    probabilities = np.stack(
        [[trained.head.predict_proba(embeddings) for trained in single.heads] for single in singles]
    )  # (streams, seeds, clips, C)
    with np.errstate(divide="ignore"):
        logits = np.log(np.nanmean(probabilities, axis=0, dtype=np.float64))
    logits = np.maximum(logits, np.log(np.finfo(np.float32).tiny))  # for probabilities that float32 rounds to 0
    return clips.score_logits(logits, split)


def blending_weights(clips: SameClips, singles: Sequence[Trained], fused: Trained) -> dict[str, float]:
    """Weights of gradient blending, proportional to G / O^2 and summing to 1 (Wang et al. 2020, equation 5, offline).

    G is the decrease of the validation loss from the initial heads (loss ln C on both splits) to the trained ones. O is
    the decrease of the training loss minus G. Losses are without dropout, and means over seeds.

    Args:
        clips: training and validation clips of the heads.
        singles: heads of each stream alone.
        fused: heads of all streams, trained without auxiliary losses.
    """
    start = math.log(len(clips.classes))
    raw = {}
    names = (*(single.experiment.streams[0] for single in singles), FUSED)
    for name, trained in zip(names, (*singles, fused), strict=True):
        train, val = (_mean_loss(clips, trained, split) for split in ("train", "val"))
        generalisation, overfitting = start - val, val - train
        raw[name] = max(generalisation, 0.0) / max(overfitting, 0.01) ** 2  # O below 0.01 nats is noise
    total = sum(raw.values())
    return {name: weight / total if total else 1 / len(raw) for name, weight in raw.items()}


def _mean_loss(clips: SameClips, trained: Trained, split: str) -> float:
    if split == "val":
        return trained.val.loss.mean
    embeddings = clips.embeddings["train"]
    order = embeddings.storage_order()
    losses: list[list[np.ndarray]] = [[] for _ in trained.heads]
    for start in range(0, len(order), ROWS_AT_ONCE):
        part = embeddings if len(order) <= ROWS_AT_ONCE else embeddings.take(order[start : start + ROWS_AT_ONCE])
        targets = class_indices(part.labels, clips.classes)
        for own, of_seed in zip(losses, trained.heads, strict=True):
            probabilities = of_seed.head.predict_proba(part)[np.arange(len(targets)), targets]
            own.append(-np.log(np.maximum(probabilities[~np.isnan(probabilities)], np.finfo(np.float32).tiny)))
    return float(np.mean([np.concatenate(own).mean() for own in losses]))

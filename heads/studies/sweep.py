"""Accuracy and loss as functions of alpha: curves on validation clips, the chosen alpha scored once on test clips.

A trained layer can undo a factor on its inputs, so most of what a curve shows is the optimisation and the luck of few
clips. The untransformed heads are kept unless validation clips show that another alpha is better (`choose_weight`).
How much a stream should weigh is answered by `weigh`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import BASELINE, Experiment, title_of_streams
from alphafuse.heads.model.transforms import TRANSFORMS
from alphafuse.heads.scoring.choice import choose_weight
from alphafuse.heads.scoring.statistics import Comparison
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.system.cluster import require_engine
from alphafuse.system.files import each
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.results import Tabular

from .same_clips import (
    SameClips,
    SplitResult,
    Trained,
    against,
    epochs_of,
    resolvable_gap,
    seed_range,
)
from .words import compact_note, says_nothing, signed, signed_range, told_apart

SWEEP_SEEDS = 5
SWEEP_ALPHAS = "0:2:0.25"
MAX_ALPHAS = 1000


@dataclass(frozen=True)
class Chosen:
    """The alpha of one curve that validation clips recommend, and its test result.

    Attributes:
        point: the trained experiment: the curve's point of least validation loss if the untransformed heads are
            significantly worse; else these, or the curve's point that equals them (alpha 1).
        as_good: alphas of the curve that no other is significantly better than, on validation.
        is_untransformed: whether the untransformed heads are kept.
        test: its result on the test split, scored once.
        comparison: comparison with the untransformed baseline, Holm-corrected over the curves.
    """

    point: Trained
    as_good: tuple[float, ...]
    is_untransformed: bool
    test: SplitResult
    comparison: Comparison

    @property
    def alpha(self) -> float:
        """The alpha; 1 where the untransformed heads are kept."""
        return 1.0 if self.point.experiment.alpha is None else self.point.experiment.alpha


@dataclass(frozen=True)
class Sweep(Tabular):
    """Result of `sweep`: a transform with several alphas on one or more streams.

    Attributes:
        dataset_name: name of the dataset.
        transform, on, alphas, seeds, settings: arguments of the call; `on` as in completed experiments.
        clips, dropped: split -> number of clips used, and left out because they lack a stream.
        baseline: untransformed heads; the chosen points are compared with their test result.
        curves: a stream, several ("ast,clap") or "all" -> points in the order of `alphas`, with validation results.
        chosen: the same keys -> what validation clips recommend.
        resolvable_gap: smallest difference in test top-1 that a paired test on this split finds in 4 of 5 cases.
        provenance: inputs of the study, for config.json.

    >>> from alphafuse import Dataset, TrainSettings, parse_alphas, sweep
    >>> quick = TrainSettings(epochs=2, hidden=(16,))
    >>> found = sweep(Dataset.open("demo"), on=["all"], alphas=parse_alphas("0.5:1.5:0.5"), seeds=1, settings=quick)
    >>> found.name, found.alphas, len(found.curves["all"])
    ('sweep-all', (0.5, 1.0, 1.5), 3)
    """

    dataset_name: str
    transform: str
    on: tuple[str, ...]
    alphas: tuple[float, ...]
    seeds: tuple[int, ...]
    settings: TrainSettings
    clips: Mapping[str, int]
    dropped: Mapping[str, int]
    baseline: Trained
    curves: Mapping[str, tuple[Trained, ...]]
    chosen: Mapping[str, Chosen]
    resolvable_gap: float
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        best = ", ".join(f"{on} {found.alpha:g} test top1={found.test.top1!r}" for on, found in self.chosen.items())
        sizes = f"{len(self.alphas)} alphas, {len(self.seeds)} seeds, n={self.clips['test']}"
        return f"Sweep({self.dataset_name!r}, {self.transform}, {sizes}, chosen {best})"

    @property
    def name(self) -> str:
        """Name of the sweep's run folder."""
        on = [target.replace(",", "+") for target in self.on]
        return "-".join(["sweep", *([] if self.transform == "scale" else [self.transform]), *on])

    @property
    def points(self) -> list[Trained]:
        """All points of all curves."""
        return [point for curve in self.curves.values() for point in curve]

    def chosen_at(self, point: Trained) -> Chosen | None:
        """Return the choice that this point is, if it was chosen for a curve."""
        return next((chosen for chosen in self.chosen.values() if chosen.point is point), None)

    def test_at(self, point: Trained) -> SplitResult | None:
        """Return this point's test result; only the untransformed heads and the chosen points have one."""
        chosen = self.chosen_at(point)
        return chosen.test if chosen else point.test

    @property
    def answers(self) -> dict[str, str]:
        """Curve -> whether to change alpha, in a sentence: a recommendation stands only if test clips agree."""
        return {on: self._answer(on, found) for on, found in self.chosen.items()}

    @property
    def answer(self) -> str:
        """The sentences of all curves."""
        return " ".join(self.answers.values())

    def _answer(self, on: str, found: Chosen) -> str:
        what, val, test = title_of_streams(on), self.baseline.val, found.test
        clips = f"{val.n:,} validation clips"
        nothing = says_nothing(val.labels, val.ceiling.reachable, split="validation")
        if nothing:
            return f"Keep {what} as it is: {nothing[1]}, so that they can't choose an alpha."
        if found.is_untransformed:
            return f"Keep {what} as it is: {clips} don't show that another alpha is better."
        gap = f"{signed(found.comparison.test.difference)} points, {signed_range(found.comparison.interval)}"
        chosen = f"alpha {found.alpha:g} has the least loss on {clips}"
        sign = told_apart(found.comparison)
        if sign > 0:
            return f"Use alpha {found.alpha:g} on {what}: it is better on {clips} and on {test.n:,} test clips ({gap})."
        if sign < 0:
            return f"Keep {what} as it is: {chosen}, but on {test.n:,} test clips it is worse ({gap})."
        return f"Undecided on {what}: {chosen}, but {test.n:,} test clips don't show that it is better ({gap})."

    @property
    def note_on_encoders(self) -> str:
        """Names the streams whose encoders stand in for real ones; "" if there are none."""
        return compact_note(self.provenance["encoders"], self.provenance["embeddings"])

    def config(self) -> dict[str, Any]:
        """Return the content of config.json: the call's arguments under `sweep`, and the other inputs."""
        return {
            "sweep": {
                "transform": self.transform,
                "on": list(self.on),
                "alphas": list(self.alphas),
                "seeds": len(self.seeds),
                "first_seed": self.seeds[0],
                "settings": self.settings.to_json(),
            },
            **self.provenance,
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
        }

    def to_json(self) -> dict[str, Any]:
        """Every figure of the sweep, json-able."""
        assert self.baseline.test is not None
        return {
            "answer": self.answer,
            "note_on_encoders": self.note_on_encoders,
            "dataset": self.dataset_name,
            "transform": self.transform,
            "clips": dict(self.clips),
            "seeds": list(self.seeds),
            "baseline": {"val": self.baseline.val.to_json(), "test": self.baseline.test.to_json()},
            "curves": {
                on: [{"alpha": point.experiment.alpha, "val": point.val.to_json()} for point in curve]
                for on, curve in self.curves.items()
            },
            "chosen": {
                on: {
                    "alpha": found.alpha,
                    "is_untransformed": found.is_untransformed,
                    "as_good": list(found.as_good),
                    "test": found.test.to_json(),
                    "against_baseline": found.comparison.to_json(),
                }
                for on, found in self.chosen.items()
            },
            "smallest_resolvable_gap": self.resolvable_gap,
        }


def parse_alphas(text: str) -> tuple[float, ...]:
    """Parse alphas written as "start:stop:step" (stop included) or "a,b,c".

    >>> parse_alphas("0:1:0.25")
    (0.0, 0.25, 0.5, 0.75, 1.0)

    Raises:
        ExperimentError: the text has another form, or means no alphas or more than 1000.
    """
    try:
        if ":" in text:
            start, stop, step = (Decimal(part) for part in text.split(":"))
            count = int((stop - start) / step) + 1 if step else 0
            if not 1 <= count <= MAX_ALPHAS:
                raise ExperimentError(f"'{text}' means {max(count, 0)} alphas: give 1 to {MAX_ALPHAS}")
            return tuple(float(start + i * step) for i in range(count))
        return tuple(float(Decimal(part)) for part in text.split(","))
    except (ValueError, InvalidOperation, OverflowError):
        raise ExperimentError(
            f"invalid alphas '{text}': write start:stop:step (0:2:0.25) or a list (0.5,1,2)"
        ) from None


def count_sweep_heads(on: Sequence[str], alphas: Sequence[float], seeds: int) -> int:
    """Return the number of heads that a sweep trains, including the untransformed ones."""
    return (len(on) * len(alphas) + 1) * seeds


def sweep(
    dataset: Dataset | str | Path,
    *,
    on: str | Sequence[str],
    alphas: Sequence[float],
    transform: str = "scale",
    seeds: int = SWEEP_SEEDS,
    first_seed: int = 0,
    settings: TrainSettings | None = None,
    progress: Progress = NO_PROGRESS,
    engine: str = "local",
    address: str | None = None,
) -> Sweep:
    """Train heads for each alpha, choose one on validation, and score it once on test.

    Writes no files; see `alphafuse.write_sweep`.

    Args:
        dataset: a dataset, or its folder, whose three splits are extracted.
        on: one or more of a stream's name, several names ("ast,clap": the same alpha on each) and "all"; each gives a
            curve.
        alphas: values of the transform's alpha, all different.
        transform: a transform that takes an alpha.
        seeds, first_seed: one head for each of the seeds first_seed, first_seed + 1, ... and each point.
        settings: training settings; the paper's by default. With `normalize`, scalar alphas have no effect.
        progress: counts finished epochs, `count_sweep_heads(...) * settings.total_epochs` in total.
        engine: "local" trains on this machine, "ray" on the nodes of a Ray cluster; the figures are the same.
        address: address of the Ray cluster, such as "auto"; None uses the environment variable RAY_ADDRESS, or starts
            Ray on this machine.

    Raises:
        DatasetError, StoreError: splits that are empty or not extracted.
        ExperimentError: a transform without alpha, a repeated alpha, settings that don't fit.
        ClusterError: an unknown engine, or a Ray cluster that can't be used.

    >>> from alphafuse import Dataset, TrainSettings, sweep
    >>> quick = TrainSettings(epochs=2, hidden=(16,))  # only for speed: use the defaults for meaningful figures
    >>> found = sweep(Dataset.open("demo"), on=["ast"], alphas=[0, 0.5, 1], seeds=2, settings=quick)
    >>> [point.experiment.title for point in found.curves["ast"]]
    ['AST scale 0', 'AST scale 0.5', 'AST scale 1']
    >>> found.chosen["ast"].test
    SplitResult(test: n=192, top1=0... [0..., 0...], loss=2... [2..., 2...])
    """
    dataset = Dataset.open(dataset)
    require_engine(engine)
    settings = settings or TrainSettings()
    chosen_seeds = seed_range(seeds, first_seed)
    on, alphas = each(on), tuple(float(alpha) for alpha in alphas)
    _check(transform, on, alphas)
    of_target = [[Experiment(transform, on=target, alpha=alpha) for alpha in alphas] for target in on]
    clips = SameClips.load(dataset, settings, chosen_seeds)
    of_target = [[one.with_senses(dataset.media).of(clips.streams) for one in curve] for curve in of_target]
    by_on = {str(curve[0].on): curve for curve in of_target}  # two words for the same streams are one curve
    on, grid = tuple(by_on), [experiment for curve in by_on.values() for experiment in curve]
    heads = count_sweep_heads(on, alphas, len(chosen_seeds))
    with epochs_of(progress, "sweep", heads, settings) as shown:
        baseline, *points = clips.train(
            [BASELINE.of(clips.streams), *grid],
            chosen_seeds,
            settings=settings,
            progress=shown,
            splits=("val",),
            engine=engine,
            address=address,
        )
    curves = {target: tuple(points[i * len(alphas) : (i + 1) * len(alphas)]) for i, target in enumerate(on)}
    best = {target: _choose(baseline, curve) for target, curve in curves.items()}
    test = {target: clips.score(point.heads, "test") for target, (point, *_) in best.items()}
    of_baseline = clips.score(baseline.heads, "test")
    comparisons = against(of_baseline, list(test.values()))
    return Sweep(
        dataset_name=dataset.name,
        transform=transform,
        on=on,
        alphas=alphas,
        seeds=chosen_seeds,
        settings=settings,
        clips=clips.counts,
        dropped=clips.dropped,
        baseline=replace(baseline, test=of_baseline),
        curves=curves,
        chosen={
            target: Chosen(*best[target], test[target], comparison)
            for target, comparison in zip(on, comparisons, strict=True)
        },
        resolvable_gap=resolvable_gap(of_baseline, list(test.values()), comparisons=len(on)),
        provenance=clips.provenance,
    )


def _choose(baseline: Trained, curve: Sequence[Trained]) -> tuple[Trained, tuple[float, ...], bool]:
    """Return the recommended point, the alphas that are as good, and whether the untransformed heads are kept."""
    candidates = [baseline, *curve]
    losses = np.stack([point.val.scores.loss for point in candidates])
    choice = choose_weight(losses, baseline.val.groups, equal=0)
    as_good = tuple(
        float(point.experiment.alpha or 0) for point, inside in zip(curve, choice.inside[1:], strict=True) if inside
    )
    if choice.chosen:
        return candidates[choice.chosen], as_good, False
    same = [point for point, own in zip(curve, losses[1:], strict=True) if np.allclose(own, losses[0], rtol=1e-4)]
    return (same or [baseline])[0], as_good, True


def _check(transform: str, on: tuple[str, ...], alphas: tuple[float, ...]) -> None:
    if not on or not alphas:
        raise ExperimentError("a sweep needs streams and alphas: --on NAME --alpha 0:2:0.25")
    if len(set(alphas)) < len(alphas):
        raise ExperimentError("an alpha occurs twice in the sweep: give each once")
    takes_alpha = [name for name, entry in TRANSFORMS.items() if entry.alpha not in ("none", "fixed")]
    if transform in TRANSFORMS and transform not in takes_alpha:
        raise ExperimentError(f"transform '{transform}' takes no alpha to sweep: choose from {', '.join(takes_alpha)}")

"""The one rule for the best run of a root: what predict, report, evaluate and export use when no run is named.

    1. a pinned run (`alphafuse runs --pin NAME`)
    2. the untransformed fusion of all streams with the most seeds (among equals, the best on validation)
    3. another run, if it is better on validation beyond noise: a paired test over source videos on the validation clips
       of both, Holm-corrected over all other runs, p < .05; without stored predictions, intervals that don't overlap.
       Of several, the one of highest validation accuracy

The simple heads stay unless something is shown to be better, because the best of many figures is mostly the luckiest.
Test figures choose nothing. A root without untransformed heads starts from its best run on validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.power import LEVEL
from alphafuse.errors import AlphafuseError, ExperimentError
from alphafuse.heads.scoring.statistics import compare_pairs, holm

from .runs import DAMAGED, Run, list_runs, pinned_name


@dataclass(frozen=True)
class BestRun:
    """The best run of a root, and why it is.

    Attributes:
        run: the run.
        why: the reason, as a part of a sentence: "the untransformed fusion, 5 seeds; no other run beats it ...".
        is_pinned: whether someone pinned it.

    >>> from alphafuse import Dataset
    >>> from alphafuse.heads.studies.best_run import find_best
    >>> find_best(Dataset.open("demo")).run.kind in ("fit", "table1", "weigh")
    True
    """

    run: Run
    why: str
    is_pinned: bool = False


def best_run(dataset: Dataset | str | Path) -> Path:
    """Return the run of a root that is used when none is named: see `heads.studies.best_run` for the rule.

    Candidates are the runs of `fit` and `weigh`, the heads that `compare` keeps, and table 1's untransformed heads.

    Raises:
        ExperimentError: the root has no run with heads, or the pinned run doesn't exist any more.

    >>> from alphafuse import Dataset, best_run
    >>> best_run(Dataset.open("demo")).parent.as_posix()
    'demo/runs'
    """
    return find_best(Dataset.open(dataset)).run.folder


def find_best(dataset: Dataset) -> BestRun:
    """Return the best run of a root, and why; raises as `best_run` does."""
    candidates = [run for run in list_runs(dataset.root)[0] if run.has_heads]
    pinned = pinned_name(dataset.root)
    if pinned is not None:
        for run in candidates:
            if run.name == pinned:
                return BestRun(run, "pinned", is_pinned=True)
        raise ExperimentError(
            f"the pinned run '{pinned}' is not in {dataset.root / 'runs'}: pin another with `alphafuse runs --pin NAME "
            f"--root {dataset.root}`, or none with --unpin"
        )
    found = best_of(candidates)
    if found is None:
        raise ExperimentError(
            f"no trained run in {dataset.root / 'runs'}: train one with `alphafuse fit --root {dataset.root}`"
        )
    return found


def best_of(runs: Sequence[Run]) -> BestRun | None:
    """Return the best of these runs by the rule, pins aside; None if none has readable figures."""
    known = [one for one in map(_Candidate.of, runs) if one is not None]
    if not known:
        return None
    plain = [one for one in known if one.is_plain]
    most = max((len(one.run.experiment.streams) for one in plain), default=0)
    start = min(
        [one for one in plain if len(one.run.experiment.streams) == most] or known,
        key=lambda one: (-len(one.run.seeds) if plain else 0, one.rank, one.run.kind, one.run.name),
    )
    others = [one for one in known if one is not start]
    better = [one for one, beats in zip(others, _beat(start, others), strict=True) if beats]
    seeds = f"{len(start.run.seeds)} seed{'s' * (len(start.run.seeds) != 1)}"
    what = f"the untransformed {'fusion' if most > 1 else 'heads'}, {seeds}" if plain else "the best on validation"
    if better:
        best = min(better, key=lambda one: (one.rank, one.run.name))
        return BestRun(best.run, f"better on validation than {start.run.name}, beyond noise")
    beaten = "; no other run beats it on validation beyond noise" if plain and others else ""
    return BestRun(start.run, what + beaten)


def best_first(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that have readable figures: the pinned one or else the best, then the others by validation."""
    known = sorted(
        (one for one in map(_Candidate.of, runs) if one is not None), key=lambda one: (one.rank, one.run.name)
    )
    best = best_of([one.run for one in known])
    pinned = next((one.run for one in known if one.run.name == pinned_name(one.run.folder.parent.parent)), None)
    first = pinned or (best and best.run)
    return [*([first] if first else []), *(one.run for one in known if one.run is not first)]


@dataclass(frozen=True)
class _Candidate:
    """A run whose figures could be read."""

    run: Run
    val: Mapping[str, Any]
    rank: tuple[float, float]

    @classmethod
    def of(cls, run: Run) -> _Candidate | None:
        """Return the candidate; None if the run is damaged: `read_run` reports it when the run is named."""
        try:
            run.experiment  # noqa: B018 - KeyError or ExperimentError if it is damaged
            return cls(run, run.scores()["val"], run.validation_rank())
        except DAMAGED:
            return None

    @property
    def is_plain(self) -> bool:
        """Whether its heads are trained, and neither transformed nor fused in another way than by concatenation."""
        one = self.run.experiment
        is_varied = one.rates or one.auxiliary or one.normalize not in (None, "none")
        return self.run.kind != "weigh" and (one.transform, one.fusion) == ("none", "concat") and not is_varied


def _beat(start: _Candidate, others: Sequence[_Candidate]) -> list[bool]:
    """Say of each of the others whether it is better than `start` on validation beyond noise."""
    tested = [_p_value(start, other) for other in others]
    corrected = iter(holm([p for p in tested if p is not None]))
    found = []
    for p, other in zip(tested, others, strict=True):
        if p is None:
            low, high = float(other.val["top1"]["interval"]["low"]), float(start.val["top1"]["interval"]["high"])
            found.append(low > high)
        else:
            found.append(next(corrected) < 1 - LEVEL)
    return found


def _p_value(start: _Candidate, other: _Candidate) -> float | None:
    """Return the p-value of the paired test; 1 if `other` isn't above `start`; None if there is nothing to pair."""
    if float(other.val["top1"]["mean"]) <= float(start.val["top1"]["mean"]):
        return 1.0
    try:
        (ids, groups, ours), (other_ids, _, theirs) = start.run.correct("val"), other.run.correct("val")
        place = {clip_id: i for i, clip_id in enumerate(other_ids)}
        shared = [i for i, clip_id in enumerate(ids) if clip_id in place]
        if not shared:
            return None
        a, b = theirs[:, [place[ids[i]] for i in shared]], ours[:, shared]
        (found,) = compare_pairs([(a.astype(np.float64), b.astype(np.float64))], [groups[i] for i in shared])
    except (AlphafuseError, OSError, ValueError, IndexError):
        return None
    return found.test.p_value if found.test.difference > 0 else 1.0

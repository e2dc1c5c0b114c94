"""The trained runs of a root as text and json: their scores, and which of them is used when none is named."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphafuse.data.dataset import Dataset
from alphafuse.errors import ExperimentError
from alphafuse.heads.studies.best_run import BestRun, find_best
from alphafuse.heads.studies.runs import DAMAGED, WITHOUT_HEADS, Run, list_runs

from .tables import aligned

COLUMNS = 80
MARK = "*"


@dataclass(frozen=True)
class TrainedRuns:
    """The runs of a root.

    Attributes:
        root: the root.
        trained: runs with heads, and their figures per split.
        studies: names of the runs without heads.
        best: the run that is used when none is named; None if there is none.
        problem: why there is none; "" if there is one.
        damaged: a line per folder that can't be read.
    """

    root: Path
    trained: tuple[tuple[Run, Mapping[str, Any]], ...]
    studies: tuple[str, ...]
    best: BestRun | None
    problem: str
    damaged: tuple[str, ...]


def list_trained(dataset: Dataset) -> TrainedRuns:
    """Read the runs of a root."""
    runs, damaged = list_runs(dataset.root)
    trained = []
    for run in runs:
        if run.has_heads:
            try:
                scores = run.scores()
                for split in ("val", "test"):
                    _score(scores[split])
                run.experiment  # noqa: B018 - raises if it is damaged
                trained.append((run, scores))
            except DAMAGED as error:
                damaged.append(f"{run.folder} is damaged ({error}): make it again: {run.command}")
    best, problem = None, ""
    try:
        best = find_best(dataset)
    except ExperimentError as error:
        problem = str(error)
    studies = tuple(run.name for run in runs if run.kind in WITHOUT_HEADS or not run.has_heads)
    return TrainedRuns(dataset.root, tuple(trained), studies, best, problem, tuple(damaged))


def format_runs(found: TrainedRuns) -> str:
    """Format a line per run, a mark at the best, and why it is the best."""
    lines = _rows(found)
    notes = []
    if found.best:
        notes.append(f"{MARK} used when no run is named: {found.best.why}.")
    if found.problem:
        notes.append(f"{found.problem[0].upper()}{found.problem[1:]}.")
    if found.trained:
        notes.append("Top-1 in %, with its 95% interval; n: clips. Test figures choose nothing.")
    if found.studies:
        notes.append(f"Without heads: {', '.join(found.studies)}.")
    for note in (*notes, *found.damaged):
        lines += textwrap.wrap(note, COLUMNS, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines)


def _rows(found: TrainedRuns) -> list[str]:
    if not found.trained:
        return []
    counts = {split: {scores[split]["n"] for _, scores in found.trained} for split in ("val", "test")}
    same = all(len(of_split) == 1 for of_split in counts.values())  # then n is in the header

    def cells(run: Run, scores: Mapping[str, Any]) -> list[str]:
        mark = MARK if found.best and run.name == found.best.run.name else ""
        row = [f"{mark:1} {run.name}", _reads(run), str(len(run.seeds))]
        for split in ("val", "test"):
            row += [] if same else [str(scores[split]["n"])]
            row += _score(scores[split])
        return row

    header = ["  run", "reads", "seeds"]
    for split in ("val", "test"):
        header += [f"{split} n={next(iter(counts[split]))}", ""] if same else ["n", split, ""]
    header = [name or f"{' ' * place}" for place, name in enumerate(header)]  # different names for `aligned`
    rows = [header, *(cells(run, scores) for run, scores in found.trained)]
    lines = aligned(rows, left=[header[0], header[1]])
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _reads(run: Run) -> str:
    """Return the streams that the heads read, and how they are fused if not by concatenation: "all, gate", "ast"."""
    one = run.experiment
    is_all = one.streams == one.available and len(one.streams) > 1
    streams = ("both" if len(one.streams) == 2 else "all") if is_all else "+".join(one.streams)
    return streams if one.fusion == "concat" else f"{streams}, {one.fusion}"


def _score(split: Mapping[str, Any]) -> list[str]:
    top1 = split["top1"]
    low, high = (100 * float(top1["interval"][end]) for end in ("low", "high"))
    return [f"{100 * float(top1['mean']):.1f}", f"{low:.0f}..{high:.0f}"]


def runs_json(found: TrainedRuns) -> dict[str, Any]:
    """Return the runs and their figures, json-able."""
    best = found.best
    return {
        "root": str(found.root),
        "best": best and best.run.name,
        "why": best and best.why,
        "pinned": best.run.name if best and best.is_pinned else None,
        "problem": found.problem or None,
        "runs": [_run_json(run, scores) for run, scores in found.trained],
        "studies": list(found.studies),
        "damaged": list(found.damaged),
    }


def _run_json(run: Run, scores: Mapping[str, Any]) -> dict[str, Any]:
    experiment = run.experiment
    return {
        "name": run.name,
        "folder": str(run.folder),
        "kind": run.kind,
        "kept_by": run.config.get("kept_by"),
        "title": experiment.title,
        "streams": list(experiment.streams),
        "fusion": experiment.fusion,
        "seeds": list(run.seeds),
        **{split: {"n": scores[split]["n"], "top1": scores[split]["top1"]} for split in ("val", "test")},
        "command": run.command,
    }

"""How long does `weigh` take? Statistics, profile and confidence set on generated embeddings.

    python benchmarks/bench_weigh.py                     VGGSound's size: 183,730 clips, 2 x 768 dimensions, 309 classes
    python benchmarks/bench_weigh.py --part himalaya     per (gamma, lambda), beside himalaya's random search
    python benchmarks/bench_weigh.py --part clips        seconds per clip of the statistics, from 1e5 to 1e7 clips
    python benchmarks/bench_weigh.py --quick             small sizes, only to check that it works

Rows are generated block by block, so that no store is read; their generation is timed on its own and subtracted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from machine import Machine
from sklearn.model_selection import PredefinedSplit

from alphafuse.heads.closed.moments import Moments, assign_folds, blocks
from alphafuse.heads.closed.profile import ratio_profile, standardised
from alphafuse.heads.closed.recommend import worth_scoring
from alphafuse.heads.closed.ridge import Folds
from alphafuse.heads.closed.rows import Clips, heads_of, score_rows, units_of
from alphafuse.heads.scoring.choice import Choice, choose_by_sums

FOLDS = 5
PARTS = ("size", "himalaya", "clips")


@dataclass(frozen=True)
class Generated:
    """Embeddings that are generated when they are read, the same each time: an `EmbeddingSource` without memory."""

    dims: Mapping[str, int]
    targets: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def groups(self) -> Sequence[str]:
        """A source video per clip."""
        return [str(i) for i in range(len(self))]

    def storage_order(self) -> np.ndarray:
        """Return all positions."""
        return np.arange(len(self))

    def read_rows(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return noise around the centre of each class; the first stream's centres are farther apart."""
        rows = {}
        for number, (stream, dim) in enumerate(self.dims.items()):
            centres = np.random.default_rng(number).standard_normal((self.classes, dim), dtype=np.float32)
            noise = np.random.default_rng([number, int(positions[0])]).standard_normal(
                (len(positions), dim), np.float32
            )
            rows[stream] = noise + (0.3 / (number + 1)) * centres[self.targets[positions]]
        return rows


def generated(clips: int, dim: int, classes: int) -> Generated:
    """Return two streams of this dimension."""
    return Generated({"first": dim, "second": dim}, np.random.default_rng(9).integers(classes, size=clips), classes)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def generation(rows: Any) -> float:
    """Return the seconds that generating all rows takes."""
    return timed(lambda: sum(len(positions) for positions, _ in blocks(rows, rows.dims)))[0]


def size(clips: int, dim: int, classes: int) -> None:
    """Time statistics, profile and confidence set of two streams."""
    rows: Any = generated(clips, dim, classes)
    empty = generation(rows)
    folds = assign_folds(rows.groups, rows.targets, FOLDS)
    seconds, moments = timed(lambda: Moments.of(rows, rows.targets, folds, classes=classes))
    print(f"statistics of {clips:,} clips, 2 x {dim} dimensions, {classes} classes: {seconds - empty:.1f} s")
    standard = standardised(moments)
    taken, problem = timed(lambda: Folds(standard.moments))
    seconds, found = timed(lambda: ratio_profile(problem))
    print(f"profile, {len(found)} ratios, the best penalty of each, {FOLDS} folds: {taken + seconds:.1f} s")
    scored = Clips(rows, rows.targets, folds, units_of(rows.groups))
    inflation = 1 + FOLDS / (FOLDS - 1)

    def confidence_set() -> tuple[np.ndarray, Choice]:
        kept = worth_scoring(problem, found, rows.groups, inflation=inflation)
        scores = score_rows(scored, [partial(heads_of, problem, found[i], standard) for i in kept], moments)
        equal = int(np.flatnonzero(kept == len(found) // 2)[0])
        return kept, choose_by_sums(scores.squared, scores.sizes, equal, inflation=inflation)

    seconds, (kept, choice) = timed(confidence_set)
    print(f"confidence set: {seconds:.1f} s, {len(kept)} ratios scored on clips, {int(choice.inside.sum())} in the set")


def himalaya(clips: int, dim: int, classes: int, gammas: int) -> None:
    """Time a pair of weights and penalty, here and by himalaya's random search."""
    from himalaya.ridge import solve_group_ridge_random_search

    rows: Any = generated(clips, dim, classes)
    folds = assign_folds(rows.groups, rows.targets, FOLDS)
    seconds, moments = timed(lambda: Moments.of(rows, rows.targets, folds, classes=classes))
    problem = Folds(standardised(moments).moments)
    penalties = np.logspace(-2, 3, 10)
    weights = [(2.0**-t, 2.0**t) for t in np.linspace(-1, 1, gammas)]
    own, _ = timed(lambda: [problem.loss(pair, penalty) for pair in weights for penalty in penalties * problem.unit])
    read = rows.read_rows(rows.storage_order())
    labels = np.eye(classes, dtype=np.float32)[rows.targets]
    other, _ = timed(
        lambda: solve_group_ridge_random_search(
            [*read.values()],
            labels - labels.mean(axis=0),
            n_iter=np.array(weights) ** 2 / np.square(weights).sum(axis=1, keepdims=True),
            alphas=penalties * problem.unit,
            cv=PredefinedSplit(folds),
            return_weights=False,
            progress_bar=False,
        )
    )
    points = gammas * len(penalties)
    print(f"{clips:,} clips, 2 x {dim} dimensions, {classes} classes, {FOLDS} folds, {points} pairs")
    print(
        f"here {own / points:.3f} s a pair ({seconds:.1f} s of statistics once), himalaya {other / points:.3f} s a pair"
    )
    print(f"himalaya / alphafuse {other / own:.1f} x, with the statistics {other / (own + seconds):.1f} x")


def clips_flat(sizes: Sequence[int], dim: int, classes: int) -> None:
    """Time the statistics per clip for growing numbers of clips."""
    for count in sizes:
        rows: Any = generated(count, dim, classes)
        empty = generation(rows)
        gather = partial(Moments.of, rows, rows.targets, np.arange(count) % FOLDS, classes=classes)
        seconds = timed(gather)[0] - empty
        print(f"{count:>10,} clips, 2 x {dim} dimensions: {1e6 * seconds / count:.1f} microseconds a clip")


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="may be repeated (default: size)")
    parser.add_argument("--quick", action="store_true", help="small sizes, only to check that it works")
    options = parser.parse_args()
    machine = Machine.current()
    print(f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads, load {machine.load}")
    parts = options.part or (PARTS if options.quick else PARTS[:1])
    if "size" in parts:
        size(*(2000, 32, 10) if options.quick else (183_730, 768, 309))
    if "himalaya" in parts:
        himalaya(*(1000, 16, 10, 2) if options.quick else (20_000, 768, 309, 2))
    if "clips" in parts:
        clips_flat(
            (10_000, 20_000) if options.quick else (100_000, 1_000_000, 10_000_000), 16 if options.quick else 128, 309
        )


if __name__ == "__main__":
    main()

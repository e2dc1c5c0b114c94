"""Do the intervals and tests keep what they promise? Simulates experiments whose true accuracies are known.

    python benchmarks/simulate_statistics.py                       a grid of cases, 1,000 draws each (half an hour)
    python benchmarks/simulate_statistics.py --draws 200           the same, coarser
    python benchmarks/simulate_statistics.py --videos 2000 --seeds 5 --deviation 1 --draws 1000

Two experiments are scored on the same clips. A head is right on a clip if a normal number is positive: the
experiment's level, the difficulty of the video and of the clip (shared by both experiments, and a part of each
experiment's own), the seed's deviation, and noise of this head on this clip. So the true accuracy of an experiment,
over all seeds and videos, is known. `deviation` is the standard deviation between seeds, in points of accuracy.

For each case, in percent:

    covers       the 95% interval of an accuracy holds the true accuracy                           (wanted: 95)
    rejects      the test calls a difference where there is none                                   (wanted: 5)
    finds        the test finds a difference of the size that the power sentence says              (wanted: 80)
    gap          median of that size, in points; "-" where it is above 70 points
    holds        the interval of the difference holds that true difference                         (wanted: 95)
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import joblib
import numpy as np
from command import one_line_errors
from scipy import special

from alphafuse.heads.scoring.statistics import accuracy_interval, compare_pairs, resolvable_gap

CLIP, VIDEO, OWN_CLIP, OWN_VIDEO, NOISE = 4.0, 2.0, 0.5, 0.5, 1.0  # variances of the parts of the normal number
LARGEST_GAP = 0.7  # larger differences are not simulated
LARGE = 15_000  # videos of the largest cases
BLOCK = 25  # draws of one job


@dataclass(frozen=True)
class Case:
    """What is simulated.

    Attributes:
        videos: number of source videos.
        per_video: clips of each; 0: unequal, geometric with a mean of 3 and at most 30.
        seeds: heads of the first experiment.
        others: heads of the second one.
        deviation: standard deviation between seeds, in points of accuracy.
        accuracy: true accuracy of both experiments.
    """

    videos: int
    per_video: int
    seeds: int
    others: int
    deviation: float
    accuracy: float = 0.6


@dataclass(frozen=True)
class Rates:
    """How often, of the draws, the statements were true; the gap is a median, NaN if it was never small enough."""

    case: Case
    draws: int
    covers: float
    rejects: float
    finds: float
    gap: float
    holds: float


def grid() -> list[Case]:
    """Return the cases of docs/statistics.md."""
    few = [Case(videos, per, seeds, seeds, 0.0) for videos, per, seeds in product((12, 48), (1, 4, 0), (1, 3, 20))]
    sure = [replace(case, accuracy=0.92) for case in few if case.per_video == 4]
    ones = [Case(videos, 1, 1, 1, 0.0) for videos in (300, 2000)]
    mixed = [Case(300, 0, seeds, seeds, deviation) for seeds, deviation in product((2, 3, 5, 20), (0.0, 2.0))]
    more = [Case(2000, 1, seeds, seeds, deviation) for seeds, deviation in product((2, 3, 5, 20), (0.0, 1.0, 2.0))]
    large = [Case(LARGE, 1, 3, 3, 2.0), Case(LARGE, 1, 5, 5, 0.6), Case(LARGE, 1, 20, 20, 2.0)]
    unpaired = [Case(300, 0, 5, 3, 1.0), Case(2000, 1, 5, 10, 1.0)]
    return [*few, *sure, *ones, *mixed, *more, *unpaired, *large]


def simulate(case: Case, draws: int, seed: int = 0, jobs: int = -1) -> Rates:
    """Simulate a case."""
    blocks = [min(BLOCK, draws - start) for start in range(0, draws, BLOCK)]
    found = joblib.Parallel(n_jobs=jobs if len(blocks) > 1 else 1)(
        joblib.delayed(_block)(case, count, [seed, place]) for place, count in enumerate(blocks)
    )
    covers, rejects, finds, gaps, holds = np.concatenate(found).T
    return Rates(
        case,
        draws,
        covers=float(covers.mean()),
        rejects=float(rejects.mean()),
        finds=float(np.nanmean(finds)) if np.isfinite(finds).any() else math.nan,
        gap=float(np.median(gaps)) if np.median(gaps) <= LARGEST_GAP else math.nan,
        holds=float(np.nanmean(holds)) if np.isfinite(holds).any() else math.nan,
    )


def _block(case: Case, draws: int, seed: Sequence[int]) -> np.ndarray:
    """Return (draws, 5): the interval covers, the test rejects, finds the gap, the gap, the interval holds it."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(draws):
        first, second, groups = draw(case, rng)
        interval = accuracy_interval(first, groups)
        null = compare_pairs([(first, second)], groups)[0]
        gap = resolvable_gap([(first, second)], groups, comparisons=1)
        finds = holds = math.nan
        if gap <= LARGEST_GAP:
            *pair, groups = draw(case, rng, gap)
            apart = compare_pairs([(pair[0], pair[1])], groups)[0]
            finds, holds = apart.is_found, apart.interval.low <= gap <= apart.interval.high
        covers = interval.low <= case.accuracy <= interval.high
        rows.append((covers, null.is_found, finds, gap, holds))
    return np.array(rows, dtype=np.float64)


def draw(case: Case, rng: np.random.Generator, gap: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw two experiments whose true accuracies differ by `gap`: correct (seeds, clips) bool each, videos (clips,)."""
    sizes = np.minimum(rng.geometric(1 / 3, case.videos), 30) if not case.per_video else case.per_video
    groups = np.repeat(np.arange(case.videos), sizes)
    clips = len(groups)
    middle = min(max(case.accuracy, gap / 2 + 0.02), 0.98 - gap / 2) if gap else case.accuracy

    def normal(variance: float, *shape: int) -> np.ndarray:
        return math.sqrt(variance) * rng.standard_normal(shape, dtype=np.float32)

    shared = normal(CLIP, clips) + normal(VIDEO, case.videos)[groups]
    found = []
    for seeds, accuracy in ((case.seeds, middle + gap / 2), (case.others, middle - gap / 2)):
        level = float(special.ndtri(accuracy))
        variance = CLIP + VIDEO + OWN_CLIP + OWN_VIDEO + NOISE
        slope = math.exp(-level * level / 2) / math.sqrt(2 * math.pi)  # of the accuracy, per standard deviation
        of_seed = (case.deviation / 100 / slope) ** 2 * variance
        own = shared + normal(OWN_CLIP, clips) + normal(OWN_VIDEO, case.videos)[groups]
        heads = own + normal(of_seed, seeds, 1) + normal(NOISE, seeds, clips)
        found.append(heads > -level * math.sqrt(variance + of_seed))
    return found[0], found[1], groups


COLUMNS = "videos clips seeds deviation accuracy   covers rejects   finds     gap   holds"


def line(found: Rates) -> str:
    """Return a case's rates as a line of the table."""
    case = found.case
    seeds = str(case.seeds) if case.seeds == case.others else f"{case.seeds}|{case.others}"

    def percent(rate: float) -> str:
        return "-" if math.isnan(rate) else f"{100 * rate:.1f}"

    return (
        f"{case.videos:6,} {case.per_video or 'mix':>5} {seeds:>5} {case.deviation:9.1f} {100 * case.accuracy:8.0f}   "
        f"{percent(found.covers):>6} {percent(found.rejects):>7} {percent(found.finds):>7} {percent(found.gap):>7} "
        f"{percent(found.holds):>7}"
    )


def main() -> None:
    """Simulate the grid, or the case of the options; print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, help="number of source videos")
    parser.add_argument("--per-video", type=int, default=1, help="clips of each source video; 0: unequal numbers")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--others", type=int, help="seeds of the second experiment (default: as many)")
    parser.add_argument("--deviation", type=float, default=1.0, help="standard deviation between seeds, in points")
    parser.add_argument("--accuracy", type=float, default=60.0, help="true accuracy, in percent")
    parser.add_argument("--draws", type=int, default=1000, help="those of 15,000 videos: half as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="a json document per case")
    options = parser.parse_args()
    cases = grid()
    if options.videos:
        seeds, others = options.seeds, options.others or options.seeds
        accuracy = options.accuracy / 100
        cases = [Case(options.videos, options.per_video, seeds, others, options.deviation, accuracy)]
    if not options.json:
        print(COLUMNS, flush=True)
    with one_line_errors():
        for case in cases:
            halved = not options.videos and case.videos == LARGE
            found = simulate(case, options.draws // 2 if halved else options.draws, options.seed)
            print(json.dumps(asdict(found)) if options.json else line(found), flush=True)


if __name__ == "__main__":
    main()

"""Is what `weigh` says true? Simulates data whose best weights are known, and counts how often it is right.

    python benchmarks/simulate_weigh.py                         a grid of cases, 1,000 draws each (hours)
    python benchmarks/simulate_weigh.py --draws 100             the same, coarser
    python benchmarks/simulate_weigh.py --dims 64,64 --signal 0.5,0.2 --clips 1000 --classes 20 --draws 200

Classes are Gaussian clouds around random centres, streams independent of each other given the class; `signal` is the
size of the centres against the noise, `decay` the exponent with which variances fall along a stream's axes (0: all
alike). All moments are known, so the risk of any head is exact. The true weights are those of least expected risk of a
ridge trained on this many clips, with the best penalty at each weighting; the expectation is a mean over `--truths`
training sets of their own.

For each case: the cost of equal weights against the true ones; how often the 95% set holds the true weights (of three
and more streams: each stream's interval), how often it excludes equal weights, its width in octaves, the excess risk
of the recommended head over a head with the true weights trained on the same clips, and how often each stream is
dropped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product

import joblib
import numpy as np
from command import one_line_errors
from known_weights import Case, Truth, once, true_weights

GRID = (
    *(Case((64, 64), signal, clips, 10) for signal, clips in product(((0.4, 0.4), (0.4, 0.15)), (300, 1000, 4000))),
    Case((32, 256), (0.5, 0.2), 1000, 20),
    Case((64, 64), (0.5, 0.2), 1000, 10, per_video=4),
    *(Case((64, 64), (0.4, 0.0), clips, 10) for clips in (1000, 4000)),
    *(Case((768, 768), (0.15, 0.1), clips, 10) for clips in (300, 1000, 4000)),
    Case((48, 48, 48), (0.4, 0.25, 0.1), 1000, 10),
    Case((48, 48, 48), (0.4, 0.3, 0.0), 4000, 10),
)


def simulate(case: Case, draws: int, truths: int, seed: int = 0) -> Mapping[str, object]:
    """Simulate a case; return its figures."""
    truth = Truth(case, seed)
    true = true_weights(truth, truths, seed + 1)
    found = joblib.Parallel(n_jobs=-1)(joblib.delayed(once)(truth, true, seed + 2 + i) for i in range(draws))
    return {
        "case": asdict(case),
        "true_weights": list(true.alphas),
        "cost_of_equal": true.cost_of_equal,
        "cost_without": list(true.cost_without),
        "draws": draws,
        "covers": float(np.mean([one.covers for one in found])),
        "excludes_equal": float(np.mean([one.excludes_equal for one in found])),
        "median_octaves": float(np.median([one.octaves for one in found])),
        "median_excess": float(np.median([one.excess for one in found])),
        "dropped": [float(share) for share in np.mean([one.dropped for one in found], axis=0)],
    }


COLUMNS = (
    "streams            signal          clips classes   equal costs   covers  excludes 1  octaves   excess   dropped"
)


def line(found: Mapping[str, object]) -> str:
    """Return a case's figures as a line of the table."""
    case = found["case"]
    assert isinstance(case, dict)
    dropped = found["dropped"]
    assert isinstance(dropped, list)
    video = f" /{case['per_video']}" if case["per_video"] > 1 else ""
    dims, signal = ("+".join(map(str, case[name])) for name in ("dims", "signal"))
    return (
        f"{dims:18} {signal:14} {str(case['clips']) + video:>6} "
        f"{case['classes']:7} {found['cost_of_equal']:12.2%} {found['covers']:8.3f} {found['excludes_equal']:11.2f} "
        f"{found['median_octaves']:8.2f} {found['median_excess']:8.2%}   "
        + " ".join(f"{share:.2f}" for share in dropped)
    )


def main() -> None:
    """Simulate the grid, or the case of the options; print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", help="dimension of each stream: 64,64")
    parser.add_argument("--signal", help="signal of each stream: 0.4,0.2")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--decay", type=float, default=1.0)
    parser.add_argument("--per-video", type=int, default=1, help="clips of each source video")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--truths", type=int, default=40, help="training sets for the expected risk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="a json document per case")
    options = parser.parse_args()
    cases: Sequence[Case] = GRID
    if options.dims:
        dims = tuple(map(int, options.dims.split(",")))
        signal = tuple(map(float, options.signal.split(",")))
        cases = [Case(dims, signal, options.clips, options.classes, options.decay, options.per_video)]
    if not options.json:
        print(COLUMNS, flush=True)
    with one_line_errors():
        for case in cases:
            found = simulate(case, options.draws, options.truths, options.seed)
            print(json.dumps(found) if options.json else line(found), flush=True)


if __name__ == "__main__":
    main()

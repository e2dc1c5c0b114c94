"""A simulation of stage one on a large Ray cluster with failures: it computes their costs and checks the promises.

    python benchmarks/bench_scale.py
    python benchmarks/bench_scale.py --clips 100000000 --node-hours 10

It models `alphafuse.extract.engines.ray`. Nodes decode and embed blocks of clips and hold the results; the driver holds
references. Every `flush_seconds`, or at 64 MB of embeddings, a task on some node commits one shard; the driver repeats
the commit until an attempt answers. Work that is lost with a node is done again. A new driver lists the store and does
the missing clips.

The promises are checked, not assumed: the simulated store maps names, made by `shard_name`, to clips, so it shows clips
that are stored twice or never. `cluster.py` has the machines, `scenario.py` the settings and results.

The simulation advances in steps of one block on each core of a node. If there would be more than `most_steps` steps, a
step is several consecutive blocks on each core; lost work is then overestimated, never underestimated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import chain, zip_longest
from statistics import median
from typing import TYPE_CHECKING

from command import one_line_errors
from format_scale import format_simulation
from scenario import FAILURES, Losses, Simulation, SimulationSettings

from alphafuse.cli.common import EXIT_FOUND
from alphafuse.errors import ClusterError
from alphafuse.system.files import one_line

if TYPE_CHECKING:
    from cluster import SimulatedRoot

Cost = tuple[int, float, float]  # cost of one failure: clips, core seconds, device seconds


def simulate(settings: SimulationSettings | None = None) -> Simulation:
    """Simulate a run with failures and once more without; the same settings give the same figures.

    Raises:
        ClusterError: simpy isn't installed.

    >>> from bench_scale import simulate
    >>> from scenario import SimulationSettings
    >>> found = simulate(SimulationSettings(clips=100_000, nodes=10, roots=1, node_hours=0.05))
    >>> found.promises_held, found.rows_doubled, found.lost_clips > 0
    (True, 0, True)
    """
    settings = settings or SimulationSettings()
    ideal = settings.without_failures()
    found = _run(settings)
    return replace(found, ideal_seconds=found.seconds if settings == ideal else _run(ideal).seconds)


def _run(settings: SimulationSettings) -> Simulation:
    """Simulate all roots; they share nothing."""
    try:
        from cluster import SimulatedRoot
    except ImportError as error:
        raise ClusterError(
            f"the simulation needs simpy ({one_line(error)}): run `pip install 'alphafuse[dev]'`"
        ) from None
    parts = [SimulatedRoot(settings, number) for number in range(settings.roots)]
    for part in parts:
        part.run()
    sizes = sorted(size for part in parts for size in part.shard_sizes())
    seconds = max(part.seconds for part in parts)
    return Simulation(
        settings=settings,
        seconds=seconds,
        ideal_seconds=seconds,
        losses=tuple(_losses(kind, _failures(kind, parts)) for kind in FAILURES),
        shards=len(sizes),
        least_clips=sizes[0],
        median_clips=median(sizes),
        most_clips=sizes[-1],
        commits=sum(part.commits for part in parts),
        rows_doubled=sum(part.rows_doubled() for part in parts),
        clips_missing=sum(part.clips_missing() for part in parts),
        redone_though_stored=sum(part.redone_though_stored for part in parts),
        resumes=tuple(resume for part in parts for resume in part.resumes),
        blocks_per_second=sum(part.blocks / part.seconds for part in parts) / len(parts),
        driver_busy=sum(part.blocks * settings.block_seconds / part.seconds for part in parts) / len(parts),
        decode_busy=sum(part.decode_seconds for part in parts) / seconds / settings.nodes,
        models_busy=sum(part.model_seconds for part in parts) / seconds / settings.nodes,
    )


def _failures(kind: str, parts: Sequence[SimulatedRoot]) -> list[Cost]:
    """Return the costs of all failures of a kind; a preemption takes nodes of all roots at the same time."""
    by_root = [part.losses[kind] for part in parts]
    if kind != "preemption":
        return list(chain.from_iterable(by_root))
    waves = zip_longest(*by_root, fillvalue=(0, 0.0, 0.0))
    return [(sum(c for c, _, _ in wave), sum(s for _, s, _ in wave), sum(d for _, _, d in wave)) for wave in waves]


def _losses(kind: str, found: Sequence[Cost]) -> Losses:
    return Losses(
        kind=kind,
        count=len(found),
        clips=sum(clips for clips, _, _ in found),
        most_clips=max((clips for clips, _, _ in found), default=0),
        core_hours=sum(cores for _, cores, _ in found) / 3600,
        device_hours=sum(devices for _, _, devices in found) / 3600,
    )


OPTIONS = {  # field of the settings, which has the default -> help
    "clips": "number of clips",
    "nodes": "number of machines",
    "roots": "dataset roots, each with its own driver",
    "cores": "cores per node that decode",
    "models_per_second": "clips per second that a node's device embeds (L4, bf16)",
    "node_hours": "mean hours between losses of one node; 0 = never",
    "preemption_hours": "mean hours between preemptions of 5%% of the nodes; 0 = never",
    "driver_hours": "mean hours between kills of one driver; 0 = never",
    "flush_seconds": "longest time between two commits, as in extract",
    "header_seconds": "seconds to read which clips are in a shard",
    "seed": "seed of all random draws",
}


def main() -> None:
    """Run the command line; exit with code 1 if a clip is stored twice or never."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {field.name: field.default for field in fields(SimulationSettings)}
    for name, text in OPTIONS.items():
        default = defaults[name]
        kind = type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"{text} ({default})")
    parser.add_argument("--json", action="store_true", help="print json for programs instead of text")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    with one_line_errors():
        found = simulate(SimulationSettings(**options))
    print(json.dumps(found.to_json(), indent=2) if as_json else format_simulation(found).rstrip("\n"))
    if not found.promises_held:
        sys.exit(EXIT_FOUND)


if __name__ == "__main__":
    main()

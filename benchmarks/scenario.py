"""Settings and results of a simulated run on a large cluster, as plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from alphafuse.data.dataset import FLOAT32_BYTES
from alphafuse.errors import ClusterError
from alphafuse.extract.engines.ray_pools import BLOCKS_HELD

DECODE_SECONDS = 0.148  # core seconds per clip, from 51 clips of VGGSound: docs/extraction.md
# core seconds of the driver per block: decode task, actor call, references (docs/scale.md). Ray's own release
# benchmark many_tasks (10,000 tasks on 2,500 CPUs, release/perf_metrics) runs 569 tasks a second
BLOCK_SECONDS = 0.0044
PAGE_KEYS = 1000  # keys per LIST request, in S3 and most other object stores
# object store: seconds per page of a listing; seconds to read a shard's ids (shards are read one after the other)
LIST_SECONDS, HEADER_SECONDS = 0.1, 0.1
FAILURES = ("node lost", "preemption", "driver killed", "worker crashed", "clip hung", "answer lost")


@dataclass(frozen=True)
class SimulationSettings:
    """A run on a cluster, with failures. Hours between failures are means of an exponential distribution; 0 = never.

    Attributes:
        clips, nodes: total numbers.
        roots: number of dataset roots that clips and nodes are divided into, each with its own driver.
        cores: cores per node that decode.
        models_per_second: clips per second of a node's device (the default: an L4 in bf16, computed in docs/scale.md).
        decode_seconds: core seconds per clip.
        block_clips: clips per block.
        clip_bytes: size of a clip's embeddings.
        flush_seconds: longest time between two commits.
        commits_at_once: most commits of a driver at a time; beyond that embedding waits.
        block_seconds: driver's time per block.
        gather_seconds, put_seconds, answer_seconds: phases of a commit: collecting its embeddings on one node, writing
            the shard (a mean), answering the driver.
        list_seconds, header_seconds: time to list 1,000 shards, and to read which clips are in one.
        commits_read_headers: whether each commit also opens the shards that its node hasn't opened before.
        node_hours: time between losses of one node.
        preemption_hours, preempted: time between preemptions, and the share of every root's nodes that each takes.
        node_return_seconds: time until a lost node is replaced.
        driver_hours, restart_seconds: time between kills of a driver, and until a new one lists the store.
        orphan_seconds: time for which commits of a killed driver continue.
        lost_answers: share of commits whose shard is written but whose answer is lost.
        crashes, hung: crashes of worker processes per clip, and share of clips that hang.
        timeout_seconds: core time that a hung clip costs.
        stragglers, slowness: share of slow nodes, and the factor by which they are slower.
        jitter: largest relative deviation of a step's duration, uniformly distributed.
        idempotent: whether all attempts at one commit use the same shard name.
        schedule: additional failures at given times: (seconds, "node lost" or "driver killed", node).
        most_steps: limit on the number of steps, see `bench_scale`.
        seed: seed of all random draws.

    Raises:
        ClusterError: a number out of range.

    >>> from scenario import SimulationSettings
    >>> SimulationSettings(clips=10**8).step_clips  # a block on each core of a node
    256
    """

    clips: int = 1_000_000_000
    nodes: int = 1000
    roots: int = 25
    cores: int = 16
    models_per_second: float = 74.0
    decode_seconds: float = DECODE_SECONDS
    block_clips: int = 16
    clip_bytes: int = 2 * 768 * FLOAT32_BYTES
    flush_seconds: float = 30.0
    commits_at_once: int = 32
    block_seconds: float = BLOCK_SECONDS
    gather_seconds: float = 0.5
    put_seconds: float = 1.0
    answer_seconds: float = 0.05
    list_seconds: float = LIST_SECONDS
    header_seconds: float = HEADER_SECONDS
    commits_read_headers: bool = False
    node_hours: float = 100.0
    preemption_hours: float = 2.0
    preempted: float = 0.05
    node_return_seconds: float = 600.0
    driver_hours: float = 20.0
    restart_seconds: float = 60.0
    orphan_seconds: float = 5.0
    lost_answers: float = 0.001
    crashes: float = 1e-6
    hung: float = 1e-6
    timeout_seconds: float = 120.0
    stragglers: float = 0.02
    slowness: float = 3.0
    jitter: float = 0.1
    idempotent: bool = True
    schedule: tuple[tuple[float, str, int], ...] = ()
    most_steps: int = 500_000
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("clips", "nodes", "roots", "cores", "block_clips", "clip_bytes", "commits_at_once", "most_steps")
        for name in (*counts, "models_per_second", "decode_seconds", "block_seconds", "slowness"):
            if not 0 < getattr(self, name) < math.inf:
                raise ClusterError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("preempted", "lost_answers", "crashes", "hung", "stragglers", "jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise ClusterError(f"{name} is a share, 0 or more and below 1, not {getattr(self, name)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_hours", "_seconds")) and not 0 <= value < math.inf:
                raise ClusterError(f"{field.name} must be 0 or more, not {value}")
        if self.roots > min(self.nodes, self.clips):
            raise ClusterError(f"{self.roots} roots need as many nodes and clips: give fewer roots")

    def without_failures(self) -> SimulationSettings:
        """Return the same run without failures."""
        never: dict[str, Any] = dict.fromkeys(("node_hours", "preemption_hours", "driver_hours"), 0.0)
        never |= dict.fromkeys(("lost_answers", "crashes", "hung", "stragglers"), 0.0)
        return replace(self, schedule=(), **never)

    @property
    def blocks_per_step(self) -> int:
        """Number of blocks that a core does in one step."""
        return math.ceil(self.clips / (self.cores * self.block_clips) / self.most_steps)

    @property
    def step_clips(self) -> int:
        """Number of clips in a step."""
        return self.cores * self.block_clips * self.blocks_per_step

    @property
    def waiting_steps(self) -> int:
        """Most decoded steps that wait on a node."""
        return max(1, BLOCKS_HELD // self.blocks_per_step)


@dataclass(frozen=True)
class Losses:
    """Costs of one kind of failure.

    Attributes:
        kind: entry of `FAILURES`.
        count: number of such failures.
        clips: clips that were started and had to be redone.
        most_clips: largest number of such clips in one failure.
        core_hours, device_hours: time that had been spent on these clips.
    """

    kind: str
    count: int
    clips: int
    most_clips: int
    core_hours: float
    device_hours: float


@dataclass(frozen=True)
class Resume:
    """Start of a new driver: shards in the store, requests to list them, seconds until it knew the missing clips."""

    shards: int
    pages: int
    seconds: float


@dataclass(frozen=True)
class Simulation:
    """Result of a simulated run.

    Attributes:
        settings: settings of the run.
        seconds: wall time until all clips were stored.
        ideal_seconds: wall time without failures.
        losses: costs per kind of failure.
        shards, least_clips, median_clips, most_clips: number of shards, and their sizes in clips.
        commits: number of attempts to commit a shard.
        rows_doubled: rows of clips beyond the first one of each clip. Promised: 0.
        clips_missing: clips that no shard holds at the end. Promised: 0.
        redone_though_stored: clips that were redone although a shard held them.
        resumes: starts of new drivers.
        blocks_per_second, driver_busy: throughput and busy share of a driver, on average.
        decode_busy, models_busy: busy shares of cores and devices.

    >>> from bench_scale import simulate
    >>> from scenario import SimulationSettings
    >>> small = SimulationSettings(clips=50_000, nodes=10, roots=1)
    >>> found = simulate(small.without_failures())
    >>> found.lost_clips, found.seconds == found.ideal_seconds, found.median_clips > 10_000
    (0, True, True)
    """

    settings: SimulationSettings
    seconds: float
    ideal_seconds: float
    losses: tuple[Losses, ...]
    shards: int
    least_clips: int
    median_clips: float
    most_clips: int
    commits: int
    rows_doubled: int
    clips_missing: int
    redone_though_stored: int
    resumes: tuple[Resume, ...]
    blocks_per_second: float
    driver_busy: float
    decode_busy: float
    models_busy: float

    @property
    def lost_clips(self) -> int:
        """Clips that were redone because of failures."""
        return sum(loss.clips for loss in self.losses)

    @property
    def promises_held(self) -> bool:
        """Whether every clip is stored exactly once."""
        return not self.rows_doubled and not self.clips_missing

    def to_json(self) -> dict[str, Any]:
        """Return the fields and derived values, json-able."""
        derived = {"lost_clips": self.lost_clips, "promises_held": self.promises_held}
        return {**asdict(self), **derived}


def resume_cost(shards: int, settings: SimulationSettings) -> Resume:
    """Return the cost of finding the finished clips: listing, then one shard after the other, as `EmbeddingStore`."""
    pages = math.ceil(shards / PAGE_KEYS)
    return Resume(shards, pages, pages * settings.list_seconds + shards * settings.header_seconds)

"""A run on a large cluster to be simulated, what goes wrong in it, and what the simulation finds: plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from alphafuse.data.dataset import FLOAT32_BYTES
from alphafuse.errors import ClusterError
from alphafuse.extract.engines.ray_pools import BLOCKS_HELD

DECODE_SECONDS = 0.148  # of a core, 51 clips of VGGSound: docs/extraction.md
# of the driver's one busy core, that a block takes: decode task, call of an actor, references. docs/scale.md; Ray's
# own release benchmark many_tasks (10,000 tasks on 2,500 CPUs, release/perf_metrics) gets through 569 tasks a second
BLOCK_SECONDS = 0.0044
PAGE_KEYS = 1000  # of a LIST request, at S3's and most others
# behind an object store: of a page; of the request for a shard's ids, one after the other (heads come side by side)
LIST_SECONDS, HEADER_SECONDS = 0.1, 0.1
FAILURES = ("node lost", "preemption", "driver killed", "worker crashed", "clip hung", "answer lost")


@dataclass(frozen=True)
class SimulationSettings:
    """A run on a cluster, and what goes wrong. Hours between failures are means of an exponential law; 0 = never.

    Attributes:
        clips, nodes: in all.
        roots: dataset roots that they are divided into, each with a driver of its own.
        cores: of a node, that decode.
        models_per_second: clips that a node's device embeds (the default: an L4 in bf16, computed in docs/scale.md).
        decode_seconds: of a core per clip.
        block_clips: clips that travel together.
        clip_bytes: of a clip's embeddings.
        flush_seconds: a shard is begun at least this often.
        commits_at_once: of a driver; beyond that embedding waits.
        block_seconds: of a driver's time that a block takes.
        gather_seconds, put_seconds, answer_seconds: of a commit: until its embeddings are on one node, until the shard
            appears (a mean), until the driver knows.
        list_seconds, header_seconds: of listing 1,000 shards, of seeing which clips are in one.
        commits_read_headers: each commit also opens the shards that its node has not opened before.
        node_hours: between two losses of one node.
        preemption_hours, preempted: between two preemptions, and the share of every root's nodes that each takes.
        node_return_seconds: until another node is there instead.
        driver_hours, restart_seconds: between two deaths of a driver, and until a new one lists the store.
        orphan_seconds: for which commits of a dead driver go on.
        lost_answers: share of commits whose shard appears and whose answer doesn't.
        crashes, hung: of worker processes and clips, per clip.
        timeout_seconds: that a hung clip costs a core.
        stragglers, slowness: share of nodes that are slow, and by how much.
        jitter: steps take so much more or less, evenly.
        idempotent: attempts at one commit agree on the shard's name.
        schedule: failures at given times as well: (seconds, "node lost" or "driver killed", node).
        most_steps: see above.
        seed: decides everything that is drawn.

    Raises:
        ClusterError: a number that makes no sense.

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
        """The same cluster, and nothing goes wrong."""
        never: dict[str, Any] = dict.fromkeys(("node_hours", "preemption_hours", "driver_hours"), 0.0)
        never |= dict.fromkeys(("lost_answers", "crashes", "hung", "stragglers"), 0.0)
        return replace(self, schedule=(), **never)

    @property
    def blocks_per_step(self) -> int:
        """Blocks that a core does in one step."""
        return math.ceil(self.clips / (self.cores * self.block_clips) / self.most_steps)

    @property
    def step_clips(self) -> int:
        """Clips of a step."""
        return self.cores * self.block_clips * self.blocks_per_step

    @property
    def waiting_steps(self) -> int:
        """Decoded steps that wait on a node, at most."""
        return max(1, BLOCKS_HELD // self.blocks_per_step)


@dataclass(frozen=True)
class Losses:
    """What one kind of failure cost.

    Attributes:
        kind: entry of `FAILURES`.
        count: of such failures.
        clips: that had been begun and had to be begun again.
        most_clips: of one failure.
        core_hours, device_hours: that had been spent on them.
    """

    kind: str
    count: int
    clips: int
    most_clips: int
    core_hours: float
    device_hours: float


@dataclass(frozen=True)
class Resume:
    """What a new driver saw: shards, requests to list them, seconds until it knew what is missing."""

    shards: int
    pages: int
    seconds: float


@dataclass(frozen=True)
class Simulation:
    """What a simulated run did.

    Attributes:
        settings: the run.
        seconds: wall time until all clips were stored.
        ideal_seconds: the same without failures.
        losses: by kind.
        shards, least_clips, median_clips, most_clips: how many, and how large.
        commits: attempts at them.
        rows_doubled: clips stored more often than once, each time counted. Promised: 0.
        clips_missing: clips that no shard holds at the end. Promised: 0.
        redone_though_stored: clips that were begun again while a shard held them: work that had been flushed.
        resumes: by new drivers.
        blocks_per_second, driver_busy: of a driver, on average.
        decode_busy, models_busy: shares of the time that cores and devices were at work.

    >>> from bench_scale import simulate
    >>> from scenario import SimulationSettings
    >>> small = SimulationSettings(clips=50_000, nodes=10, roots=1)
    >>> found = simulate(small.without_failures())  # as when nothing goes wrong
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
        """In all failures together."""
        return sum(loss.clips for loss in self.losses)

    @property
    def promises_held(self) -> bool:
        """Every clip is stored once."""
        return not self.rows_doubled and not self.clips_missing

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able, and what follows from them."""
        derived = {"lost_clips": self.lost_clips, "promises_held": self.promises_held}
        return {**asdict(self), **derived}


def resume_cost(shards: int, settings: SimulationSettings) -> Resume:
    """What seeing what is finished takes: listing, then one shard after the other, as `EmbeddingStore` does it."""
    pages = math.ceil(shards / PAGE_KEYS)
    return Resume(shards, pages, pages * settings.list_seconds + shards * settings.header_seconds)

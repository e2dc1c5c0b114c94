"""The simulated cluster: nodes, a driver, its commits, and a store that records the clips in it."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy
from scenario import FAILURES, Resume, SimulationSettings, resume_cost

from alphafuse.data.store.shard_files import shard_name
from alphafuse.errors import ClusterError
from alphafuse.extract.engines.local import SHARD_BYTES

Process = Generator[Any, Any, None]  # a simulated process
# a run is aborted after this multiple of its shortest possible duration, plus these seconds
ABORT_FACTOR, ABORT_SECONDS = 50, 36_000.0
NODE_POLL_SECONDS = 1.0  # interval between checks for a node while all nodes are lost


class SimulatedStore:
    """Shards by name; an existing shard is not written again."""

    def __init__(self, steps: int) -> None:
        self.shards: dict[str, tuple[int, ...]] = {}
        self.times = bytearray(steps)  # how many times each step's clips are stored

    def write(self, name: str, steps: tuple[int, ...]) -> None:
        """Model `EmbeddingStore.write` with a given name."""
        if name not in self.shards:
            self.shards[name] = steps
            for step in steps:
                self.times[step] += 1


@dataclass(eq=False)
class SimulatedNode:
    """A node, and the work that is lost with it."""

    number: int
    slowness: float
    is_alive: bool = True
    life: int = 0  # number of times the node was lost; results of earlier lives are lost
    ready: Any = None  # decoded steps that wait to be embedded
    processes: list[Any] = field(default_factory=list)
    # step -> ("decoding", start, end), ("decoded",) or ("embedded",): started on this node, not yet known as stored
    holds: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    opened: int = 0  # number of shards that its commits have opened


@dataclass(eq=False)
class SimulatedCommit:
    """Steps that become one shard, the nodes that hold them, and the phase of the attempt."""

    stamp_ns: int
    sources: dict[int, tuple[SimulatedNode, int]]  # step -> node and its life
    lacks: set[int] = field(default_factory=set)  # lost steps that are being redone
    complete: Any = None  # event that fires when no step is lacking
    node: SimulatedNode | None = None
    phase: str = "waits"
    name: str = ""
    appears: float = 0.0
    process: Any = None


class SimulatedRoot:
    """One dataset root: its driver, nodes, clips and store."""

    def __init__(self, settings: SimulationSettings, number: int) -> None:
        self.settings = settings
        self._random = random.Random(f"{settings.seed} {number}")
        self._env = simpy.Environment()
        self.clips = settings.clips // settings.roots + (number < settings.clips % settings.roots)
        nodes = settings.nodes // settings.roots + (number < settings.nodes % settings.roots)
        self._step_clips = settings.step_clips
        self._steps = math.ceil(self.clips / self._step_clips)
        self.store = SimulatedStore(self._steps)
        self.nodes = [
            SimulatedNode(i, settings.slowness if self._random.random() < settings.stragglers else 1.0)
            for i in range(nodes)
        ]
        self.losses: dict[str, list[tuple[int, float, float]]] = {kind: [] for kind in FAILURES}
        self.resumes: list[Resume] = []
        self.commits = self.blocks = self.redone_though_stored = 0
        self.decode_seconds = self.model_seconds = self.seconds = 0.0
        self._queue: deque[int] = deque(range(self._steps))
        self._lacking: deque[int] = deque()  # steps to redo for a commit that already has a name
        self._not_embedded = self._steps
        self._held: dict[int, SimulatedNode] = {}
        self._held_bytes = 0
        self._due = 0.0  # time at which the held steps are flushed
        self._flying: list[SimulatedCommit] = []
        self._commit_of: dict[int, SimulatedCommit] = {}
        self._driver_free = 0.0
        self._has_driver = True
        self._work, self._end = self._env.event(), self._env.event()

    def run(self) -> None:
        """Simulate until every clip is stored."""
        settings = self.settings
        for node in self.nodes:
            self._start(node)
        preemptions = random.Random(f"{settings.seed} preemptions")  # at the same times in all roots
        for hours, fail, rng in (
            (settings.node_hours / len(self.nodes), self._lose_one, self._random),
            (settings.preemption_hours, self._preempt, preemptions),
            (settings.driver_hours, self._kill_driver, self._random),
        ):
            if hours:
                self._env.process(self._repeat(hours * 3600, fail, rng))
        for seconds, kind, number in settings.schedule:
            self._env.process(self._at(seconds, kind, number))
        least = self.clips * max(
            settings.block_seconds / settings.block_clips,
            1 / settings.models_per_second / len(self.nodes),
            settings.decode_seconds / settings.cores / len(self.nodes),
        )
        self._env.run(self._end | self._env.timeout(ABORT_FACTOR * least + ABORT_SECONDS))
        self.seconds = self._env.now
        if not self._end.triggered:
            raise ClusterError(
                f"the simulated run does not finish: {self.clips - self.clips_missing()} of {self.clips} clips are "
                f"stored after {self.seconds / 3600:.0f} h; failures are too frequent for any progress"
            )

    # results

    def shard_sizes(self) -> list[int]:
        """Return the number of clips of each shard."""
        return [sum(map(self._size, steps)) for steps in self.store.shards.values()]

    def rows_doubled(self) -> int:
        """Return the number of rows beyond the first one of each clip."""
        return sum(self._size(step) * (times - 1) for step, times in enumerate(self.store.times) if times > 1)

    def clips_missing(self) -> int:
        """Return the number of clips that no shard holds."""
        return sum(self._size(step) for step, times in enumerate(self.store.times) if not times)

    def _size(self, step: int) -> int:
        return min(self._step_clips, self.clips - step * self._step_clips)

    # nodes

    def _start(self, node: SimulatedNode) -> None:
        node.is_alive = True
        if self._has_driver:
            node.ready = simpy.Store(self._env, capacity=self.settings.waiting_steps)
            node.processes = [self._env.process(self._decode(node)), self._env.process(self._embed(node))]

    def _decode(self, node: SimulatedNode) -> Process:
        try:
            while True:
                while (step := self._next_step()) is None:
                    yield self._work
                if self.store.times[step]:
                    self.redone_though_stored += self._size(step)
                start = self._env.now + self._driver_delay(step)
                seconds = self._decode_time(node, step)
                node.holds[step] = ("decoding", start, start + seconds)
                yield self._env.timeout(start + seconds - self._env.now)
                self.decode_seconds += seconds
                node.holds[step] = ("decoded",)
                yield node.ready.put(step)
        except simpy.Interrupt:
            return

    def _embed(self, node: SimulatedNode) -> Process:
        try:
            while True:
                step = yield node.ready.get()
                seconds = self._size(step) / self.settings.models_per_second * node.slowness * self._jitter()
                yield self._env.timeout(seconds)
                self.model_seconds += seconds
                node.holds[step] = ("embedded",)
                self._take(node, step)
        except simpy.Interrupt:
            return

    def _decode_time(self, node: SimulatedNode, step: int) -> float:
        """Return the seconds in which all cores of a node decode a step, including crashes and hung clips."""
        settings, clips = self.settings, self._size(step)
        seconds = clips * settings.decode_seconds / settings.cores * node.slowness * self._jitter()
        crashed, hung = self._count(settings.crashes * clips), self._count(settings.hung * clips)
        block = settings.block_clips * settings.decode_seconds * node.slowness
        for _ in range(crashed):
            lost = self._random.random()  # share of the block
            self.losses["worker crashed"].append((round(lost * settings.block_clips), lost * block, 0.0))
            seconds += lost * block / settings.cores
        for _ in range(hung):  # recorded as failed: nothing is redone
            self.losses["clip hung"].append((0, settings.timeout_seconds, 0.0))
            seconds += settings.timeout_seconds / settings.cores
        return seconds

    def _jitter(self) -> float:
        return 1 + self.settings.jitter * (2 * self._random.random() - 1)

    def _count(self, mean: float) -> int:
        """Draw from a Poisson distribution with a mean far below 1."""
        count, product = 0, self._random.random()
        while mean and product > math.exp(-mean):
            count += 1
            product *= self._random.random()
        return count

    # the driver

    def _next_step(self) -> int | None:
        """Return the next step: first those that commits lack; others only while fewer commits than the limit run."""
        if self._lacking:
            return self._lacking.popleft()
        return self._queue.popleft() if self._queue and self._has_room() else None

    def _has_room(self) -> bool:
        return len(self._flying) < self.settings.commits_at_once

    def _wake_idle_nodes(self) -> None:
        """Make nodes without work check the queue again."""
        self._work, work = self._env.event(), self._work
        work.succeed()

    def _driver_delay(self, step: int) -> float:
        """Return the seconds until the driver has handled the blocks of this step, one after the other."""
        blocks = math.ceil(self._size(step) / self.settings.block_clips)
        self.blocks += blocks
        self._driver_free = max(self._driver_free, self._env.now) + blocks * self.settings.block_seconds
        return self._driver_free - self._env.now

    def _take(self, node: SimulatedNode, step: int) -> None:
        """Give the driver the reference to an embedded step."""
        self._not_embedded -= 1
        commit = self._commit_of.get(step)
        if commit is not None:  # redone for a commit that already has a name
            commit.sources[step] = (node, node.life)
            commit.lacks.discard(step)
            if not commit.lacks and commit.complete is not None:
                commit.complete.succeed()
                commit.complete = None
        else:
            if not self._held:
                self._due = self._env.now + self.settings.flush_seconds
                self._env.process(self._flush_later())
            self._held[step] = node
            self._held_bytes += self._size(step) * self.settings.clip_bytes
        self._flush_if_due()

    def _flush_later(self) -> Process:
        yield self._env.timeout(self.settings.flush_seconds)
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        is_due = self._held_bytes >= SHARD_BYTES or not self._not_embedded or self._env.now >= self._due
        if not (self._held and is_due and self._has_room()):
            return
        commit = SimulatedCommit(round(self._env.now * 1e9), {s: (n, n.life) for s, n in self._held.items()})
        self._commit_of.update(dict.fromkeys(self._held, commit))
        self._held, self._held_bytes = {}, 0
        self._flying.append(commit)
        commit.process = self._env.process(self._commit(commit))

    def _commit(self, commit: SimulatedCommit) -> Process:
        """Try to commit one shard until an attempt answers."""
        settings = self.settings
        ids = tuple(map(str, commit.sources))
        while True:
            try:
                if commit.lacks:
                    commit.complete = self._env.event()
                    yield commit.complete
                while not (alive := [node for node in self.nodes if node.is_alive]):
                    yield self._env.timeout(NODE_POLL_SECONDS)
                commit.node = node = self._random.choice(alive)
                self.commits += 1
                commit.phase = "gathers"
                unseen = len(self.store.shards) - node.opened if settings.commits_read_headers else 0
                node.opened += unseen
                yield self._env.timeout(settings.gather_seconds + unseen * settings.header_seconds)
                commit.phase = "puts"
                stamp = commit.stamp_ns if settings.idempotent else round(self._env.now * 1e9)
                commit.name = shard_name(stamp, ids)
                seconds = settings.put_seconds * (0.5 + self._random.expovariate(2.0))
                commit.appears = self._env.now + seconds
                yield self._env.timeout(seconds)
                self.store.write(commit.name, tuple(commit.sources))
                commit.phase = "answers"
                yield self._env.timeout(settings.answer_seconds)
                if self._random.random() >= settings.lost_answers:
                    break
                self.losses["answer lost"].append((0, 0.0, 0.0))
            except simpy.Interrupt as interrupt:
                if interrupt.cause == "driver":
                    left = commit.appears - self._env.now
                    if commit.phase == "puts" and left <= settings.orphan_seconds:
                        self._env.process(self._appear(left, commit))
                    return
            commit.phase = "waits"
            self._redo_lost_sources(commit)
        for step, (node, _) in commit.sources.items():
            node.holds.pop(step, None)
            del self._commit_of[step]
        self._flying.remove(commit)
        self._flush_if_due()
        self._wake_idle_nodes()
        if not self._not_embedded and not self._held and not self._flying:
            self._end.succeed()

    def _appear(self, seconds: float, commit: SimulatedCommit) -> Process:
        """Write the shard of a killed driver's commit after some seconds."""
        yield self._env.timeout(seconds)
        self.store.write(commit.name, tuple(commit.sources))

    def _redo_lost_sources(self, commit: SimulatedCommit) -> None:
        """After a failed attempt, redo the steps whose node was lost."""
        lost = [s for s, (node, life) in commit.sources.items() if s not in commit.lacks and node.life != life]
        commit.lacks.update(lost)
        self._redo(lost)

    def _redo(self, steps: Iterable[int]) -> None:
        """Put these steps back into the queues."""
        steps = list(steps)
        if steps:
            self._not_embedded += len(steps)
            self._lacking.extend(step for step in steps if step in self._commit_of)
            self._queue.extendleft(step for step in reversed(steps) if step not in self._commit_of)
            self._wake_idle_nodes()

    # failures

    def _repeat(self, mean_seconds: float, fail: Callable[[], None], rng: random.Random) -> Process:
        while True:
            yield self._env.timeout(rng.expovariate(1 / mean_seconds))
            fail()

    def _at(self, seconds: float, kind: str, node: int) -> Process:
        yield self._env.timeout(seconds)
        if kind == "driver killed":
            self._kill_driver()
        else:
            self._lose([self.nodes[node]], kind)

    def _lose_one(self) -> None:
        alive = [node for node in self.nodes if node.is_alive]
        if alive:
            self._lose([self._random.choice(alive)], "node lost")

    def _preempt(self) -> None:
        alive = [node for node in self.nodes if node.is_alive]
        self._lose(self._random.sample(alive, round(self.settings.preempted * len(alive))), "preemption")

    def _lose(self, nodes: Sequence[SimulatedNode], kind: str) -> None:
        """Lose nodes with everything that they hold; other nodes replace them later."""
        lost: list[tuple[int, tuple[Any, ...]]] = []
        for node in nodes:
            node.is_alive = False
            node.life += 1
            node.opened = 0
            self._interrupt(node)
            for step, state in node.holds.items():
                commit = self._commit_of.get(step)
                if commit is not None and state == ("embedded",):
                    if commit.phase in ("puts", "answers"):
                        continue  # the commit has a copy of the embeddings: lost only if that attempt fails
                    commit.lacks.add(step)
                elif step in self._held:
                    del self._held[step]
                    self._held_bytes -= self._size(step) * self.settings.clip_bytes
                lost.append((step, state))
            node.holds = {}
            self._env.process(self._return(node))
        self._account(kind, lost)
        embedded = [step for step, state in lost if state == ("embedded",)]
        self._redo(embedded)
        started = [step for step, state in lost if state != ("embedded",)]
        self._not_embedded -= len(started)  # `_redo` adds them, but they are still counted
        self._redo(started)
        for commit in self._flying:
            takes_part = commit.phase == "gathers" and not commit.lacks.isdisjoint(step for step, _ in lost)
            if takes_part or (commit.phase != "waits" and commit.node in nodes):
                commit.process.interrupt("node")

    def _return(self, node: SimulatedNode) -> Process:
        yield self._env.timeout(self.settings.node_return_seconds)
        self._start(node)

    def _interrupt(self, node: SimulatedNode) -> None:
        for process in node.processes:
            if process.is_alive:
                process.interrupt()
        node.processes = []

    def _kill_driver(self) -> None:
        """Kill the driver; all unstored work is lost, because Ray ends a dead driver's tasks and drops its objects."""
        if not self._has_driver:
            return
        self._has_driver = False
        started = [entry for node in self.nodes for entry in node.holds.items()]
        killed_at = self._env.now
        for node in self.nodes:
            self._interrupt(node)
            node.holds = {}
        for commit in self._flying:
            commit.process.interrupt("driver")
        self._held, self._held_bytes, self._flying, self._commit_of = {}, 0, [], {}
        self._queue.clear()
        self._lacking.clear()
        self._env.process(self._restart(started, killed_at))

    def _restart(self, started: Sequence[tuple[int, tuple[Any, ...]]], killed_at: float) -> Process:
        """Start a new driver, which lists the store and does the missing steps."""
        yield self._env.timeout(self.settings.restart_seconds)
        missing = [step for step, times in enumerate(self.store.times) if not times]
        cost = resume_cost(len(self.store.shards), self.settings)
        self.resumes.append(cost)
        self._account("driver killed", [entry for entry in started if not self.store.times[entry[0]]], killed_at)
        yield self._env.timeout(cost.seconds)
        self._has_driver, self._driver_free = True, self._env.now
        self._queue, self._not_embedded = deque(missing), len(missing)
        if not missing:
            self._end.succeed()
        for node in self.nodes:
            if node.is_alive:
                self._start(node)

    def _account(self, kind: str, lost: Sequence[tuple[int, tuple[Any, ...]]], at: float | None = None) -> None:
        """Record one failure: the lost clips, and the time that had been spent on them."""
        now = self._env.now if at is None else at
        clips, cores, devices = 0, 0.0, 0.0
        for step, state in lost:
            size = self._size(step)
            share = 1.0
            if state[0] == "decoding":
                share = min(1.0, max(0.0, now - state[1]) / (state[2] - state[1]))
            clips += size if share else 0  # steps that wait for the driver have not started
            cores += share * size * self.settings.decode_seconds
            devices += size / self.settings.models_per_second if state == ("embedded",) else 0.0
        self.losses[kind].append((clips, cores, devices))

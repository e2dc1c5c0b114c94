"""The simulated cluster: nodes, a driver, its commits, and a store that knows which clips it holds."""

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

Steps = Generator[Any, Any, None]  # of a simulated process
PATIENCE, PATIENCE_SECONDS = 50, 36_000.0  # times the least that a run can take, and more
ALONE = 1.0  # seconds between two looks for a node, while none is there


class SimulatedStore:
    """Shards by their names; a name that is there is not written again."""

    def __init__(self, steps: int) -> None:
        self.shards: dict[str, tuple[int, ...]] = {}
        self.times = bytearray(steps)  # that a step's clips are stored

    def write(self, name: str, steps: tuple[int, ...]) -> None:
        """As `EmbeddingStore.write` with a name."""
        if name not in self.shards:
            self.shards[name] = steps
            for step in steps:
                self.times[step] += 1


@dataclass(eq=False)
class SimulatedNode:
    """A node, and what it would take with it."""

    number: int
    slowness: float
    is_alive: bool = True
    life: int = 0  # how often it was lost: what an earlier life made is gone
    ready: Any = None  # decoded steps that wait
    processes: list[Any] = field(default_factory=list)
    # step -> ("decoding", since, until), ("decoded",) or ("embedded",): begun here and not known to be stored
    holds: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    opened: int = 0  # shards that its commits have opened


@dataclass(eq=False)
class SimulatedCommit:
    """Steps that become one shard, where each of them lies, and how far the attempt is."""

    stamp_ns: int
    sources: dict[int, tuple[SimulatedNode, int]]  # step -> node and its life
    lacks: set[int] = field(default_factory=set)  # steps that are being made again
    complete: Any = None  # the event that it waits for, while it lacks some
    node: SimulatedNode | None = None
    phase: str = "waits"
    name: str = ""
    appears: float = 0.0
    process: Any = None


class SimulatedRoot:
    """One root: a driver, its share of nodes and clips, its store."""

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
        self._lacking: deque[int] = deque()  # steps to be made again for a commit that has its name
        self._not_embedded = self._steps
        self._held: dict[int, SimulatedNode] = {}
        self._held_bytes = 0
        self._due = 0.0  # when what is held is to be flushed
        self._flying: list[SimulatedCommit] = []
        self._commit_of: dict[int, SimulatedCommit] = {}
        self._driver_free = 0.0
        self._is_driven = True
        self._work, self._end = self._env.event(), self._env.event()

    def run(self) -> None:
        """Until every clip is stored."""
        settings = self.settings
        for node in self.nodes:
            self._start(node)
        preemptions = random.Random(f"{settings.seed} preemptions")  # at the same moments in all roots
        for hours, fail, moments in (
            (settings.node_hours / len(self.nodes), self._lose_one, self._random),
            (settings.preemption_hours, self._preempt, preemptions),
            (settings.driver_hours, self._kill_driver, self._random),
        ):
            if hours:
                self._env.process(self._repeat(hours * 3600, fail, moments))
        for seconds, kind, number in settings.schedule:
            self._env.process(self._at(seconds, kind, number))
        least = self.clips * max(
            settings.block_seconds / settings.block_clips,
            1 / settings.models_per_second / len(self.nodes),
            settings.decode_seconds / settings.cores / len(self.nodes),
        )
        self._env.run(self._end | self._env.timeout(PATIENCE * least + PATIENCE_SECONDS))
        self.seconds = self._env.now
        if not self._end.triggered:
            raise ClusterError(
                f"the simulated run comes to no end: {self.clips - self.clips_missing()} of {self.clips} clips are "
                f"stored after {self.seconds / 3600:.0f} h; nodes or drivers are lost faster than they finish anything"
            )

    # what it found

    def shard_sizes(self) -> list[int]:
        """Clips of each shard."""
        return [sum(map(self._size, steps)) for steps in self.store.shards.values()]

    def rows_doubled(self) -> int:
        """Clips that are stored again, each time counted."""
        return sum(self._size(step) * (times - 1) for step, times in enumerate(self.store.times) if times > 1)

    def clips_missing(self) -> int:
        """Clips that no shard holds."""
        return sum(self._size(step) for step, times in enumerate(self.store.times) if not times)

    def _size(self, step: int) -> int:
        return min(self._step_clips, self.clips - step * self._step_clips)

    # nodes

    def _start(self, node: SimulatedNode) -> None:
        node.is_alive = True
        if self._is_driven:
            node.ready = simpy.Store(self._env, capacity=self.settings.waiting_steps)
            node.processes = [self._env.process(self._decode(node)), self._env.process(self._embed(node))]

    def _decode(self, node: SimulatedNode) -> Steps:
        try:
            while True:
                while (step := self._next_step()) is None:
                    yield self._work
                if self.store.times[step]:
                    self.redone_though_stored += self._size(step)
                begins = self._env.now + self._wait_for_driver(step)
                seconds = self._decoding_takes(node, step)
                node.holds[step] = ("decoding", begins, begins + seconds)
                yield self._env.timeout(begins + seconds - self._env.now)
                self.decode_seconds += seconds
                node.holds[step] = ("decoded",)
                yield node.ready.put(step)
        except simpy.Interrupt:
            return

    def _embed(self, node: SimulatedNode) -> Steps:
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

    def _decoding_takes(self, node: SimulatedNode, step: int) -> float:
        """Seconds of a node's cores together, with crashes and hung clips."""
        settings, clips = self.settings, self._size(step)
        seconds = clips * settings.decode_seconds / settings.cores * node.slowness * self._jitter()
        crashed, hung = self._count(settings.crashes * clips), self._count(settings.hung * clips)
        block = settings.block_clips * settings.decode_seconds * node.slowness
        for _ in range(crashed):
            lost = self._random.random()  # of the block
            self.losses["worker crashed"].append((round(lost * settings.block_clips), lost * block, 0.0))
            seconds += lost * block / settings.cores
        for _ in range(hung):  # recorded as failed: nothing is done again
            self.losses["clip hung"].append((0, settings.timeout_seconds, 0.0))
            seconds += settings.timeout_seconds / settings.cores
        return seconds

    def _jitter(self) -> float:
        return 1 + self.settings.jitter * (2 * self._random.random() - 1)

    def _count(self, mean: float) -> int:
        """Poisson, for means far below 1."""
        count, product = 0, self._random.random()
        while mean and product > math.exp(-mean):
            count += 1
            product *= self._random.random()
        return count

    # the driver

    def _next_step(self) -> int | None:
        """What commits lack, first; while too many of them fly, nothing else."""
        if self._lacking:
            return self._lacking.popleft()
        return self._queue.popleft() if self._queue and self._has_room() else None

    def _has_room(self) -> bool:
        return len(self._flying) < self.settings.commits_at_once

    def _tell_nodes(self) -> None:
        """Those without work look again."""
        self._work, work = self._env.event(), self._work
        work.succeed()

    def _wait_for_driver(self, step: int) -> float:
        """Seconds until the driver has seen to the blocks of this step, one after the other."""
        blocks = math.ceil(self._size(step) / self.settings.block_clips)
        self.blocks += blocks
        self._driver_free = max(self._driver_free, self._env.now) + blocks * self.settings.block_seconds
        return self._driver_free - self._env.now

    def _take(self, node: SimulatedNode, step: int) -> None:
        """A reference to an embedded step."""
        self._not_embedded -= 1
        commit = self._commit_of.get(step)
        if commit is not None:  # made again, for a commit that has its name
            commit.sources[step] = (node, node.life)
            commit.lacks.discard(step)
            if not commit.lacks and commit.complete is not None:
                commit.complete.succeed()
                commit.complete = None
        else:
            if not self._held:
                self._due = self._env.now + self.settings.flush_seconds
                self._env.process(self._flush_in_time())
            self._held[step] = node
            self._held_bytes += self._size(step) * self.settings.clip_bytes
        self._flush_if_due()

    def _flush_in_time(self) -> Steps:
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

    def _commit(self, commit: SimulatedCommit) -> Steps:
        """Attempts at one shard, until one answers."""
        settings = self.settings
        ids = tuple(map(str, commit.sources))
        while True:
            try:
                if commit.lacks:
                    commit.complete = self._env.event()
                    yield commit.complete
                while not (alive := [node for node in self.nodes if node.is_alive]):
                    yield self._env.timeout(ALONE)
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
            self._look_for_sources(commit)
        for step, (node, _) in commit.sources.items():
            node.holds.pop(step, None)
            del self._commit_of[step]
        self._flying.remove(commit)
        self._flush_if_due()
        self._tell_nodes()
        if not self._not_embedded and not self._held and not self._flying:
            self._end.succeed()

    def _appear(self, seconds: float, commit: SimulatedCommit) -> Steps:
        """The shard of a dead driver's commit."""
        yield self._env.timeout(seconds)
        self.store.write(commit.name, tuple(commit.sources))

    def _look_for_sources(self, commit: SimulatedCommit) -> None:
        """After a failed attempt: steps whose node is gone are made again."""
        gone = [s for s, (node, life) in commit.sources.items() if s not in commit.lacks and node.life != life]
        commit.lacks.update(gone)
        self._again(gone)

    def _again(self, steps: Iterable[int]) -> None:
        """Embedded or not, these steps are to be done."""
        steps = list(steps)
        if steps:
            self._not_embedded += len(steps)
            self._lacking.extend(step for step in steps if step in self._commit_of)
            self._queue.extendleft(step for step in reversed(steps) if step not in self._commit_of)
            self._tell_nodes()

    # failures

    def _repeat(self, mean_seconds: float, fail: Callable[[], None], moments: random.Random) -> Steps:
        while True:
            yield self._env.timeout(moments.expovariate(1 / mean_seconds))
            fail()

    def _at(self, seconds: float, kind: str, node: int) -> Steps:
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
        """Nodes are gone at once, with all that they hold; others come instead of them."""
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
                        continue  # its embeddings are elsewhere too: lost only if that attempt fails
                    commit.lacks.add(step)
                elif step in self._held:
                    del self._held[step]
                    self._held_bytes -= self._size(step) * self.settings.clip_bytes
                lost.append((step, state))
            node.holds = {}
            self._env.process(self._return(node))
        self._account(kind, lost)
        embedded = [step for step, state in lost if state == ("embedded",)]
        self._again(embedded)
        begun = [step for step, state in lost if state != ("embedded",)]
        self._not_embedded -= len(begun)  # they were never taken off it
        self._again(begun)
        for commit in self._flying:
            takes_part = commit.phase == "gathers" and not commit.lacks.isdisjoint(step for step, _ in lost)
            if takes_part or (commit.phase != "waits" and commit.node in nodes):
                commit.process.interrupt("node")

    def _return(self, node: SimulatedNode) -> Steps:
        yield self._env.timeout(self.settings.node_return_seconds)
        self._start(node)

    def _interrupt(self, node: SimulatedNode) -> None:
        for process in node.processes:
            if process.is_alive:
                process.interrupt()
        node.processes = []

    def _kill_driver(self) -> None:
        """With it goes all that is not stored: Ray ends a dead driver's tasks and drops its objects."""
        if not self._is_driven:
            return
        self._is_driven = False
        begun = [entry for node in self.nodes for entry in node.holds.items()]
        at = self._env.now
        for node in self.nodes:
            self._interrupt(node)
            node.holds = {}
        for commit in self._flying:
            commit.process.interrupt("driver")
        self._held, self._held_bytes, self._flying, self._commit_of = {}, 0, [], {}
        self._queue.clear()
        self._lacking.clear()
        self._env.process(self._restart(begun, at))

    def _restart(self, begun: Sequence[tuple[int, tuple[Any, ...]]], at: float) -> Steps:
        """A new driver sees what is finished, and does the rest."""
        yield self._env.timeout(self.settings.restart_seconds)
        missing = [step for step, times in enumerate(self.store.times) if not times]
        cost = resume_cost(len(self.store.shards), self.settings)
        self.resumes.append(cost)
        self._account("driver killed", [entry for entry in begun if not self.store.times[entry[0]]], at)
        yield self._env.timeout(cost.seconds)
        self._is_driven, self._driver_free = True, self._env.now
        self._queue, self._not_embedded = deque(missing), len(missing)
        if not missing:
            self._end.succeed()
        for node in self.nodes:
            if node.is_alive:
                self._start(node)

    def _account(self, kind: str, lost: Sequence[tuple[int, tuple[Any, ...]]], at: float | None = None) -> None:
        """Note one failure: clips begun, and what had been spent on them by then."""
        now = self._env.now if at is None else at
        clips, cores, devices = 0, 0.0, 0.0
        for step, state in lost:
            size = self._size(step)
            share = 1.0
            if state[0] == "decoding":
                share = min(1.0, max(0.0, now - state[1]) / (state[2] - state[1]))
            clips += size if share else 0  # those that wait for the driver are not begun
            cores += share * size * self.settings.decode_seconds
            devices += size / self.settings.models_per_second if state == ("embedded",) else 0.0
        self.losses[kind].append((clips, cores, devices))

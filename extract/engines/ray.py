"""Extract on a Ray cluster: the same decoding, models, shards and guarantees as `local`, scheduled by Ray Data.

    jobs (the store claimed) -> blocks -> decode actors -> model actors -> references -> commit tasks -> shards

Ray Data streams blocks through both stages and slows decoding down if the models are slower. Ray restarts workers and
repeats what was lost with a machine. This process handles references only: every `flush_seconds` it starts a task,
on any machine, that commits the embedded blocks as one shard. Blocks whose commit was lost are repeated.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphafuse.errors import ClusterError, StoreError
from alphafuse.extract.jobs import Done, Job, Jobs
from alphafuse.extract.missing import Work
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.claims import Claims
from alphafuse.system.cluster import alive_nodes, last_line, own_error
from alphafuse.system.interrupts import hold_interrupts
from alphafuse.system.remote import is_remote

from .embedder import decoded_bytes, library_versions, provenance
from .local import SHARD_BYTES
from .ray_pools import Node, plan_pools
from .ray_stages import (
    Commit,
    Committed,
    Counts,
    DecodeBlock,
    Decoding,
    EmbedBlock,
    commit_blocks,
    pack_block,
    ship_encoders,
)

if TYPE_CHECKING:
    from alphafuse.extract.encoders.encoder import Encoder

POLL_SECONDS = 0.5  # time between checks of what is finished
JOIN_SECONDS = 5.0  # longest time that an interrupt waits for Ray Data
COMMITS_AT_ONCE = 32  # with more commits, embedding waits for the store
BUNDLES_WAITING = 256  # bundles of references queued between Ray Data and this process


class RayEngine:
    """Encoders on a Ray cluster, shipped to its nodes from this machine."""

    def __init__(self, ray: Any, encoders: Mapping[str, Encoder], settings: ExtractSettings) -> None:
        """Divide the cluster, and put the encoders into its object store.

        Args:
            ray: the module, connected (`alphafuse.system.cluster.connected`).
            encoders: stream -> encoder on this machine's CPU.
            settings: how to decode and embed; `device` is "auto", "cpu" or "cuda".

        Raises:
            ClusterError: the cluster has too few machines or too little memory.
        """
        self._ray, self._encoders, self._settings = ray, dict(encoders), settings
        self._pools = plan_pools(
            [
                Node(*(node["Resources"].get(name, 0.0) for name in ("CPU", "GPU", "memory")))
                for node in alive_nodes(ray)
            ],
            settings,
            decoded_bytes=sum(decoded_bytes(one.spec, device_resizes=False) for one in self._encoders.values()),
            forward_bytes=max(encoder.forward_bytes for encoder in self._encoders.values()),
        )
        self._weights = ray.put(ship_encoders(self._encoders))

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """Stream -> everything that decides its numbers."""
        return {stream: encoder.recipe() for stream, encoder in self._encoders.items()}

    def fill(self, work: Work) -> Generator[Done, None, None]:
        """Extract what is missing, and yield counts of stored clips. If it ends early, finished embeddings are stored.

        All nodes must be able to read the clips and the store.

        Raises:
            StoreError: another extraction is filling the store.
            ClusterError: the cluster failed.
        """
        with Claims(work.store.folder) as claims:
            run = uuid.uuid4().hex
            if not claims.claim_all(run):
                raise StoreError(
                    f"another extraction is filling {work.store.folder}, and the Ray engine takes a store as a whole: "
                    "wait for it or stop it, then run the same command again"
                )
            jobs = work.missing(work.jobs)  # without what the other extraction stored before it ended
            size = self._pools.block_clips
            blocks = {start // size: slice(start, start + size) for start in range(0, len(jobs), size)}
            while blocks:
                committer = _Committer(
                    self._ray, self._commit(work, run if claims.is_shared else None), self._settings.flush_seconds
                )
                yield from self._run(work, jobs, blocks, committer)
                if not committer.done:
                    raise ClusterError(
                        "the Ray cluster loses all that it computes: check its nodes (`ray status`), then run the "
                        "same command again"
                    )
                blocks = {number: part for number, part in blocks.items() if number not in committer.done}
            yield Done(is_shared=claims.is_shared)

    def _run(
        self, work: Work, jobs: Jobs, blocks: Mapping[int, slice], committer: _Committer
    ) -> Generator[Done, None, None]:
        """Send blocks (number -> slice of the jobs) through the cluster, and yield counts of what is committed.

        After an interrupt, finished embeddings are committed too.
        """
        this_node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=True
        )
        counts = self._ray.remote(num_cpus=0, scheduling_strategy=this_node)(Counts).remote()
        stream = _Stream(self._stages(work, jobs, blocks, counts))
        asked = None
        try:
            with _raise_own_errors():
                is_over = False
                while not is_over:
                    with hold_interrupts():  # no bundle is lost between the stream and the committer
                        bundle = stream.next(POLL_SECONDS)
                        is_over = bundle is stream.END
                        if bundle is not None and not is_over:
                            committer.add(bundle)
                    yield from committer.poll()
                    figures, asked = self._read_counts(counts, asked)
                    if figures:
                        yield Done(figures=figures)
        finally:
            try:
                with _raise_own_errors():
                    rest = committer.finish()
            finally:
                stream.stop()  # not earlier: Ray Data cancels running tasks, and Ray has aborted drivers during that
                stream.join()
                self._ray.kill(counts)
        yield from rest

    def _stages(self, work: Work, jobs: Jobs, blocks: Mapping[int, slice], counts: Any) -> Any:
        """Return the Ray Dataset; nothing runs before it is read."""
        from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

        pools = self._pools
        context = DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.raise_original_map_exception = True
        context.target_max_block_size = pools.block_bytes  # Ray Data's estimate of a block's size before the first one
        context.execution_options.resource_limits = ExecutionResources(object_store_memory=pools.held_bytes)
        decoding = Decoding(
            libraries=library_versions(),
            specs={stream: encoder.spec for stream, encoder in self._encoders.items()},
            timeout_seconds=self._settings.timeout_seconds,
            clip_bytes=pools.clip_bytes,
            clip_folder=None if is_remote(work.clip_folder) else work.clip_folder.absolute(),
            counts=counts,
        )
        embedding = {
            "device": pools.device,
            "compile": self._settings.compile,
            "batch_size": pools.batch_size,
            "counts": counts,
        }
        on_gpus = pools.device != "cpu"
        with DataContext.current(context):
            rows = [pack_block(number, tuple(map(_absolute, jobs[part]))) for number, part in blocks.items()]
            return (
                self._ray.data.from_items(rows, override_num_blocks=len(rows))
                .map(
                    DecodeBlock,
                    fn_constructor_args=(decoding,),
                    compute=ActorPoolStrategy(size=min(pools.decoders, len(rows))),
                    num_cpus=pools.decoder_cpus,
                    memory=pools.decoder_bytes,
                )
                .map(
                    EmbedBlock,
                    fn_constructor_args=([self._weights],),
                    fn_constructor_kwargs=embedding,
                    compute=ActorPoolStrategy(
                        size=min(pools.models, len(rows)),
                        # on a GPU one call prepares inputs while the batch of the other is on the device
                        max_concurrent_calls_per_actor=2 if on_gpus else 1,
                        enable_true_multi_threading=on_gpus,
                    ),
                    num_cpus=pools.model_cpus,
                    num_gpus=pools.model_gpus,
                    memory=pools.model_bytes,
                )
            )

    def _commit(self, work: Work, run: str | None) -> Callable[[Sequence[Any]], Any]:
        """Return a function: references to embedded blocks -> reference to the result of writing them as one shard."""
        folder = _absolute_path(work.store.folder)

        def commit(references: Sequence[Any]) -> Any:
            made = provenance(self._encoders, self._pools.device)
            task = self._ray.remote(num_cpus=0, max_retries=-1, scheduling_strategy="SPREAD")(commit_blocks)
            return task.remote(Commit(folder, run, time.time_ns(), work.recipes, made), *references)

        return commit

    def _read_counts(self, counts: Any, asked: Any) -> tuple[dict[str, int], Any]:
        """Return the counting actor's last answer, and the reference to its next one; doesn't wait."""
        if asked is None:
            return {}, counts.read.remote()
        ready, _ = self._ray.wait([asked], timeout=0)
        if not ready:
            return {}, asked
        counted: dict[str, int] = {}
        with suppress(self._ray.exceptions.RayError):  # the actor's machine is lost, and the stages' counts with it
            counted = self._ray.get(asked)
        return {**counted, "nodes": len(alive_nodes(self._ray))}, counts.read.remote()


def _absolute(job: Job) -> Job:
    """Return the job with absolute paths, which are valid in every process."""
    return replace(job, path=_absolute_path(job.path), audio=job.audio and _absolute_path(job.audio))


def _absolute_path(path: Path) -> Path:
    return path if is_remote(path) else path.absolute()


class _Stream:
    """Reads Ray Data's output in a thread, so that commits run on time even if there is no output."""

    END = object()

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._queue: queue.Queue[Any] = queue.Queue(BUNDLES_WAITING)
        self._is_stopped = threading.Event()
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised
        self._thread = threading.Thread(target=self._read, name="ray data", daemon=True)
        self._thread.start()

    def next(self, seconds: float) -> Any:
        """Return the next bundle of references; None if there is none within `seconds`; `END` after the last.

        Raises the error that ended the execution.
        """
        try:
            entry = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(entry, BaseException):
            raise entry
        return entry

    def stop(self) -> None:
        """Request that the execution ends after the next bundle."""
        self._is_stopped.set()

    def join(self) -> None:
        """Wait a short time for the end: the end of the session ends the execution anyway."""
        self._thread.join(JOIN_SECONDS)

    def _read(self) -> None:
        try:
            for bundle in self._dataset.iter_internal_ref_bundles():
                self._put(bundle)
                if self._is_stopped.is_set():
                    return  # Ray Data ends an execution whose iterator is deleted
            self._put(self.END)
        except BaseException as error:  # `next` raises it
            self._put(error)
        finally:
            del self._dataset

    def _put(self, entry: Any) -> None:
        while not self._is_stopped.is_set():
            try:
                return self._queue.put(entry, timeout=POLL_SECONDS)
            except queue.Full:
                continue


class _Committer:
    """Collects references to embedded blocks and starts commits in time.

    Attributes:
        done: numbers of the blocks that are in the store.
    """

    def __init__(self, ray: Any, commit: Callable[[Sequence[Any]], Any], flush_seconds: float) -> None:
        self._ray, self._commit, self._flush_seconds = ray, commit, flush_seconds
        self._held: list[Any] = []
        self._held_bytes, self._due = 0, 0.0
        self._running: list[Any] = []
        self.done: set[int] = set()

    def add(self, bundle: Any) -> None:
        """Add a bundle of Ray Data's output."""
        if not self._held:
            self._due = time.monotonic() + self._flush_seconds
        self._held += bundle.block_refs
        self._held_bytes += bundle.size_bytes()

    def poll(self) -> list[Done]:
        """Start a due commit, and return counts of finished ones; waits only if many are running."""
        if self._held and (self._held_bytes >= SHARD_BYTES or time.monotonic() >= self._due):
            self._flush()
        return self._collect(wait=len(self._running) >= COMMITS_AT_ONCE)

    def finish(self) -> list[Done]:
        """Commit everything, wait, and return counts."""
        if self._held:
            self._flush()
        found: list[Done] = []
        while self._running:
            found += self._collect(wait=True)
        return found

    def _flush(self) -> None:
        with hold_interrupts():  # without an interruption: a second attempt would write a second shard
            self._running.append(self._commit(self._held))
            self._held, self._held_bytes = [], 0

    def _collect(self, *, wait: bool) -> list[Done]:
        if not self._running:
            return []
        ready, self._running = self._ray.wait(
            self._running, num_returns=1 if wait else len(self._running), timeout=None if wait else 0
        )
        found = []
        for reference in ready:
            try:
                committed: Committed = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError:
                raise
            except self._ray.exceptions.RayError:
                continue  # its embeddings were lost with a machine after Ray Data had ended: the blocks are repeated
            self.done.update(committed.numbers)
            found.append(committed.done)
        return found


@contextmanager
def _raise_own_errors() -> Iterator[None]:
    """Raise errors of nodes as the AlphafuseErrors that they were, or as a `ClusterError` of one line."""
    try:
        yield
    except Exception as error:
        own = own_error(error)
        if own is not None:
            raise own from None
        raise ClusterError(
            f"the Ray cluster failed ({last_line(error)}): stored embeddings are kept, run the same command again"
        ) from error

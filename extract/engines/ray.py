"""Stage one on a Ray cluster: the same decoding, models, shards and promises as `pipeline`, scheduled by Ray Data.

    jobs (the store claimed) -> blocks -> decode actors -> model actors -> references -> commit tasks -> shards

Ray Data streams blocks through both stages and holds decoding back when models are slower; Ray itself restarts workers,
and does again what was lost with a machine. This process sees references only: every `flush_seconds` it has what is
embedded until then committed as one shard, wherever there is room. Blocks whose commit was lost are done once more.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from alphafuse.data.dataset import Dataset
from alphafuse.data.store.claims import Claims
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.errors import ClusterError, StoreError
from alphafuse.extract.jobs import Jobs
from alphafuse.extract.memory import MemoryPlan
from alphafuse.extract.pipeline import Extractor, Tally
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.cluster import alive_nodes, last_line, own_error
from alphafuse.system.interrupts import hold_interrupts
from alphafuse.system.remote import is_remote

from .ray_pools import Node, Pools, plan_pools
from .ray_stages import (
    Commit,
    Committed,
    Counts,
    DecodeBlock,
    Decoding,
    EmbedBlock,
    commit_blocks,
    library_versions,
    pack_block,
    ship_encoders,
)
from .writer import SHARD_BYTES

if TYPE_CHECKING:
    from alphafuse.extract.encoders.encoder import Encoder, Placement

POLL_SECONDS = 0.5  # between two looks at what is finished
JOIN_SECONDS = 5.0  # that an interrupt waits for Ray Data
COMMITS_AT_ONCE = 32  # beyond that, embedding waits for the store
BUNDLES_WAITING = 256  # of references, between Ray Data and this process


class RayExtractor(Extractor):
    """An extractor whose work is done by a Ray cluster."""

    def __init__(
        self,
        dataset: Dataset,
        settings: ExtractSettings,
        *,
        ray: Any,
        encoders: Mapping[str, Encoder] | None = None,
    ) -> None:
        """Load the encoders on this machine's CPU, unless they are given there; nodes get them from here.

        Args:
            dataset: a root; its clips and stores must be seen by all nodes.
            settings: as ever; `device` is "auto", "cpu" or "cuda".
            ray: the module, connected (`alphafuse.system.cluster.connected`).
            encoders: modality -> encoder on the CPU.

        Raises:
            EncoderError: an encoder can't be had.
            ClusterError: the cluster can't do it.
        """
        self._ray = ray
        super().__init__(_absolute(dataset), settings, encoders=encoders)
        self.batch_size = self.pools.batch_size
        self._weights = ray.put(ship_encoders(self.encoders))

    def _fill(self, jobs: Jobs, store: EmbeddingStore, tally: Tally) -> bool:
        with Claims(store.folder) as claims:
            run = uuid.uuid4().hex
            if not claims.claim_all(run):
                raise StoreError(
                    f"another extraction is filling {store.folder}, and the Ray engine takes a store as a whole: wait "
                    "for it or stop it, then run the same command again"
                )
            jobs = self._missing(store, jobs)  # what the other one did, before it ended
            size = self.pools.block_clips
            blocks = {start // size: slice(start, start + size) for start in range(0, len(jobs), size)}
            while blocks:
                done = self._run(jobs, blocks, store, tally, run if claims.is_shared else None)
                if not done:
                    raise ClusterError(
                        "the Ray cluster loses all that it computes: look at its nodes (`ray status`), then run the "
                        "same command again"
                    )
                blocks = {number: part for number, part in blocks.items() if number not in done}
            return claims.is_shared

    def _run(
        self, jobs: Jobs, blocks: Mapping[int, slice], store: EmbeddingStore, tally: Tally, run: str | None
    ) -> set[int]:
        """Send blocks (number -> which jobs) through the cluster; the numbers of those that are in the store then.

        Also when it is interrupted, what was embedded until then is committed.
        """
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=True
        )
        counts = self._ray.remote(num_cpus=0, scheduling_strategy=here)(Counts).remote()
        committer = _Committer(self._ray, partial(self._commit, store, run), self.settings.flush_seconds, tally)
        stream = _Stream(self._stages(jobs, blocks, counts))
        asked = None
        try:
            with _own_errors():
                is_over = False
                while not is_over:
                    with hold_interrupts():  # what is taken from the one gets to the other
                        bundle = stream.next(POLL_SECONDS)
                        is_over = bundle is stream.END
                        if bundle is not None and not is_over:
                            committer.add(bundle)
                    committer.look()
                    asked = self._show(tally, counts, asked)
        finally:
            try:
                with _own_errors():
                    committer.finish()
            finally:
                stream.stop()  # not before: Ray Data cancels what runs, and Ray has aborted drivers while it cancelled
                stream.join()
                self._ray.kill(counts)
        return committer.done

    def _stages(self, jobs: Jobs, blocks: Mapping[int, slice], counts: Any) -> Any:
        """The Ray Dataset: nothing runs before it is read."""
        from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

        pools = self.pools
        context = DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.raise_original_map_exception = True
        context.target_max_block_size = pools.block_bytes  # what Ray Data takes a block for before it has seen one
        context.execution_options.resource_limits = ExecutionResources(object_store_memory=pools.held_bytes)
        clip_folder = self.dataset.clip_folder
        decoding = Decoding(
            libraries=library_versions(),
            specs={modality: encoder.spec for modality, encoder in self.encoders.items()},
            timeout_seconds=self.settings.timeout_seconds,
            clip_bytes=pools.clip_bytes,
            clip_folder=None if is_remote(clip_folder) else clip_folder,
            counts=counts,
        )
        embedding = {
            "device": pools.device,
            "compile": self.settings.compile,
            "batch_size": pools.batch_size,
            "counts": counts,
        }
        on_gpus = pools.device != "cpu"
        with DataContext.current(context):
            rows = [pack_block(number, tuple(jobs[part])) for number, part in blocks.items()]
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
                        # on a GPU one call prepares inputs while the other's batch is on the device
                        max_concurrent_calls_per_actor=2 if on_gpus else 1,
                        enable_true_multi_threading=on_gpus,
                    ),
                    num_cpus=pools.model_cpus,
                    num_gpus=pools.model_gpus,
                    memory=pools.model_bytes,
                )
            )

    def _commit(self, store: EmbeddingStore, run: str | None, references: Sequence[Any]) -> Any:
        """Have embedded blocks written as one shard; a reference to what came of it."""
        commit = Commit(store.folder, run, time.time_ns(), self.recipes, self._provenance())
        task = self._ray.remote(num_cpus=0, max_retries=-1, scheduling_strategy="SPREAD")(commit_blocks)
        return task.remote(commit, *references)

    def _show(self, tally: Tally, counts: Any, asked: Any) -> Any:
        """Tell progress what the counting actor said, and ask it again; never waits."""
        if asked is not None:
            ready, _ = self._ray.wait([asked], timeout=0)
            if not ready:
                return asked
            counted: dict[str, int] = {}
            with suppress(self._ray.exceptions.RayError):  # its machine is gone, and with it the figures of the stages
                counted = self._ray.get(asked)
            tally.stages(**counted, nodes=len(alive_nodes(self._ray)))
        return counts.read.remote()

    @property
    def _device_name(self) -> str:
        return self.pools.device

    @staticmethod
    def _placement(settings: ExtractSettings, protocol: str) -> Placement:
        import torch

        from alphafuse.extract.encoders.encoder import Placement

        return Placement(torch.device("cpu"), settings.precision, protocol)

    @cached_property
    def pools(self) -> Pools:
        """Who does what, by the machines that there were when this was first asked."""
        return plan_pools(
            [
                Node(*(node["Resources"].get(name, 0.0) for name in ("CPU", "GPU", "memory")))
                for node in alive_nodes(self._ray)
            ],
            self.settings,
            decoded_bytes=self.decoded_bytes,
            forward_bytes=max(encoder.forward_bytes for encoder in self.encoders.values()),
        )

    def _plan_memory(self) -> MemoryPlan:
        return MemoryPlan(0, self.pools.decoders, self.pools.clip_bytes)  # of no limit here: Ray has each machine's


def _absolute(dataset: Dataset) -> Dataset:
    """The same root by paths that mean the same in every process."""
    clip_folder, stores = (
        path if path is None or is_remote(path) else path.absolute() for path in (dataset.clip_folder, dataset.stores)
    )
    assert clip_folder is not None
    return replace(dataset, root=dataset.root.absolute(), clip_folder=clip_folder, stores=stores)


class _Stream:
    """What Ray Data puts out, read in a thread, so that commits are due on time while nothing comes."""

    END = object()

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._queue: queue.Queue[Any] = queue.Queue(BUNDLES_WAITING)
        self._is_stopped = threading.Event()
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it has to say is raised
        self._thread = threading.Thread(target=self._read, name="ray data", daemon=True)
        self._thread.start()

    def next(self, seconds: float) -> Any:
        """The next bundle of references; None when there was none for so long; `END` after the last.

        What ended the execution is raised.
        """
        try:
            entry = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(entry, BaseException):
            raise entry
        return entry

    def stop(self) -> None:
        """Have the execution ended after the bundle that comes next."""
        self._is_stopped.set()

    def join(self) -> None:
        """Wait for that, but not long: Ray ends it with the session."""
        self._thread.join(JOIN_SECONDS)

    def _read(self) -> None:
        try:
            for bundle in self._dataset.iter_internal_ref_bundles():
                self._put(bundle)
                if self._is_stopped.is_set():
                    return  # Ray Data ends an execution whose iterator is gone
            self._put(self.END)
        except BaseException as error:  # whoever asks for the next gets it
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
    """Collects references to embedded blocks and has them committed in time.

    Attributes:
        done: numbers of the blocks that are in the store.
    """

    def __init__(self, ray: Any, commit: Any, flush_seconds: float, tally: Tally) -> None:
        self._ray, self._commit, self._flush_seconds, self._tally = ray, commit, flush_seconds, tally
        self._held: list[Any] = []
        self._held_bytes, self._due = 0, 0.0
        self._flying: list[Any] = []
        self.done: set[int] = set()

    def add(self, bundle: Any) -> None:
        """Take what Ray Data put out."""
        if not self._held:
            self._due = time.monotonic() + self._flush_seconds
        self._held += bundle.block_refs
        self._held_bytes += bundle.size_bytes()

    def look(self) -> None:
        """Begin the commit that is due, and take note of those that are finished; waits only when there are many."""
        if self._held and (self._held_bytes >= SHARD_BYTES or time.monotonic() >= self._due):
            self._flush()
        self._collect(wait=len(self._flying) >= COMMITS_AT_ONCE)

    def finish(self) -> None:
        """Commit all that is held, and wait."""
        if self._held:
            self._flush()
        while self._flying:
            self._collect(wait=True)

    def _flush(self) -> None:
        with hold_interrupts():  # once: another attempt would be another shard
            self._flying.append(self._commit(self._held))
            self._held, self._held_bytes = [], 0

    def _collect(self, *, wait: bool) -> None:
        if not self._flying:
            return
        ready, self._flying = self._ray.wait(
            self._flying, num_returns=1 if wait else len(self._flying), timeout=None if wait else 0
        )
        for reference in ready:
            try:
                committed: Committed = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError:
                raise
            except self._ray.exceptions.RayError:
                continue  # its embeddings went with a machine after Ray Data had ended: these blocks are done once more
            self.done.update(committed.numbers)
            self._tally.add(committed.done)


@contextmanager
def _own_errors() -> Iterator[None]:
    """What went wrong on a node is raised here as the error that it was there, in a line."""
    try:
        yield
    except Exception as error:
        own = own_error(error)
        if own is not None:
            raise own from None
        raise ClusterError(
            f"the Ray cluster failed ({last_line(error)}): what was embedded until then is kept, run the same command "
            "again"
        ) from error

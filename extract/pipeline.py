"""Stage one: the clips of a split -> decode workers -> both backbones -> shards of the embedding store.

    jobs (claimed) -> decode processes -> batches -> model threads -> writer thread -> shards

Nobody waits for another more than he must: workers decode two clips ahead each, models take whatever is decoded, and a
thread of its own appends a shard every `flush_seconds`. On the CPU each core runs the models on a clip of its own, so
that an embedding is a function of its clip alone, to the bit, whatever was embedded beside it; on CUDA clips go in
batches. What the store has already is left alone, so a second call does only what is missing; several calls at once, in
any processes, share the work (`alphafuse.data.claims`). What goes wrong with a clip is recorded with its reason, and
the run goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from loky import cpu_count

from alphafuse.data.claims import Claims
from alphafuse.data.dataset import Dataset
from alphafuse.data.store import EmbeddingStore, Failure
from alphafuse.errors import DatasetError

from .decode import Decoded
from .embedding import Batch, Job, embed_batch
from .inputs import TRAVELLING_PIXELS, AudioSpec, FrameSpec, decode_inputs
from .memory import MemoryPlan, plan_memory
from .settings import BATCH_ON_CUDA, ExtractSettings
from .tensors import can_resize
from .workers import TASKS_PER_WORKER, map_tasks
from .writer import ShardWriter

if TYPE_CHECKING:
    from .backbones import Backbone

CLAIMED_AT_ONCE = 16  # clips: so little that another process finds some, so many that the store is rarely listed
POLL_SECONDS = 0.5  # between two looks at whether other processes have finished their clips
THREADS_ON_CUDA = 2  # one prepares inputs while the other's batch is on the device
_LIBRARIES = ("alphafuse", "av", "numpy", "pillow", "torch", "torchaudio", "transformers")


@dataclass(frozen=True)
class ExtractReport:
    """What one split's extraction did.

    Attributes:
        split: "train", "val" or "test".
        clips: clips of the split.
        already: clips that were done before, or meanwhile by another process.
        embedded: modality -> embeddings made now.
        failures: failures recorded now.
        seconds: wall time of this split, without loading the models.
        decode_seconds: of one core, spent on decoding.
        embed_seconds: spent in the models, of one core on the CPU, of the device elsewhere.
        is_shared: whether other processes could share the work; False where the file system has no locks.
        store: where the embeddings are.
    """

    split: str
    clips: int
    already: int
    embedded: dict[str, int]
    failures: tuple[Failure, ...]
    seconds: float
    decode_seconds: float
    embed_seconds: float
    is_shared: bool
    store: EmbeddingStore


class Progress(Protocol):
    """Who wants to know how extraction goes."""

    def start(self, split: str, *, clips: int, already: int) -> None:
        """A split begins: `clips` to do, `already` done before."""

    def clip(self, *, complete: bool) -> None:
        """A clip is done; `complete` when all its embeddings were made."""

    def stop(self) -> None:
        """The split is finished or interrupted."""


class Extractor:
    """The backbones, loaded once, for any number of splits."""

    def __init__(
        self, dataset: Dataset, settings: ExtractSettings, *, backbones: Mapping[str, Backbone] | None = None
    ) -> None:
        """Load the backbones, unless they are given; `BackboneError` when one can't be had."""
        from .backbones import Placement, choose_device, load_ast, load_timesformer

        self.dataset = dataset
        self.settings = settings
        self.device = choose_device(settings.device)
        placement = Placement(
            self.device, settings.precision, settings.protocol or dataset.protocol, compile=settings.compile
        )
        loaders = {"timesformer": load_timesformer, "ast": load_ast}
        names = {"timesformer": settings.timesformer or dataset.timesformer, "ast": settings.ast or dataset.ast}
        self.backbones = {
            name: backbones[name] if backbones else loaders[name](names[name], placement)
            for name in settings.modalities
        }
        on_cpu = self.device.type == "cpu"
        self.threads = cpu_count() if on_cpu else THREADS_ON_CUDA
        self.batch_size = settings.batch_size or (1 if on_cpu else BATCH_ON_CUDA)
        self.memory = self._plan_memory()
        self._stores: dict[str, EmbeddingStore] = {}

    @property
    def store_settings(self) -> dict[str, dict[str, Any]]:
        """modality -> everything that decides its numbers."""
        return {modality: backbone.settings() for modality, backbone in self.backbones.items()}

    def pending(self, split: str) -> tuple[Job, ...]:
        """What the split's store lacks; `SettingsMismatchError` when it was made under other settings."""
        store = self._store(split)
        store.require_settings(self.store_settings)
        return self._missing(
            store, [Job(clip, self._modalities) for clip in self.dataset.manifest.require_split(split)]
        )

    def extract(self, split: str, *, progress: Progress | None = None) -> ExtractReport:
        """Extract what the split's store lacks.

        Args:
            split: "train", "val" or "test".
            progress: is told of each clip.

        Raises:
            DatasetError: the clip folder is gone.
            SettingsMismatchError: the store was made under other settings.
            StoreError, AlphafuseError: the store can't be written.

        Also when it is interrupted, what was embedded until then is in the store.
        """
        jobs, store = self.pending(split), self._store(split)
        if not self.dataset.clip_folder.is_dir():
            raise DatasetError(
                f"the clip folder {self.dataset.clip_folder} is gone: bring it back or make the root again"
            )
        total = len(self.dataset.manifest.of_split(split))
        tally = _Tally(progress, self._modalities)
        if progress is not None:
            progress.start(split, clips=len(jobs), already=total - len(jobs))
        started, is_shared = time.monotonic(), True
        try:
            if jobs:
                with Claims(store.folder) as claims, self._writer(store, claims) as writer:
                    is_shared = claims.is_shared
                    self._extract(jobs, store, claims, writer, tally)
        finally:
            if progress is not None:
                progress.stop()
        return ExtractReport(
            split,
            total,
            total - tally.clips,
            tally.embedded,
            tuple(tally.failures),
            time.monotonic() - started,
            tally.decode_seconds,
            tally.embed_seconds,
            is_shared,
            store,
        )

    def decode(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Decoded], None, None]:
        """Decode clips in worker processes and yield them as they are finished, never many more than are being used.

        A clip whose decoder crashes, hangs or wants too much memory is yielded with that as its reason.
        """
        specs = {modality: backbone.spec for modality, backbone in self.backbones.items()}
        decode = partial(decode_inputs, specs=specs, device_resizes=self._device_resizes)
        tasks = ((job, (self.dataset.path_of(job.clip), job.modalities)) for job in jobs)
        return map_tasks(
            decode,
            tasks,
            failed=lambda reason: Decoded(None, None, reason, reason),
            workers=self.memory.workers,
            timeout_seconds=self.settings.timeout_seconds,
            memory_bytes=self.memory.clip_bytes,
        )

    def embed(self, decoded_jobs: Sequence[tuple[Job, Decoded]]) -> Batch:
        """Run the backbones over a batch."""
        return embed_batch(self.backbones, decoded_jobs)

    @contextmanager
    def model_threads(self) -> Iterator[ThreadPoolExecutor]:
        """Threads to run `embed` in: on the CPU one per core, each computing on that core alone.

        What ends the block early (an error, Ctrl-C) leaves undone what is not begun. PyTorch's own number of threads is
        as before afterwards.
        """
        import torch

        before = torch.get_num_threads()
        each = 1 if self.device.type == "cpu" else before
        pool = ThreadPoolExecutor(self.threads, "model", initializer=torch.set_num_threads, initargs=(each,))
        try:
            torch.set_num_threads(each)  # for what the pool's threads start from
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)

    @property
    def _device_resizes(self) -> bool:
        """On the CPU, PIL beside the decoder is five times as fast as `resize_frames`."""
        specs = [backbone.spec for backbone in self.backbones.values()]
        return self.device.type != "cpu" and all(can_resize(spec) for spec in specs if isinstance(spec, FrameSpec))

    @property
    def _modalities(self) -> tuple[str, ...]:
        return self.settings.modalities

    def _store(self, split: str) -> EmbeddingStore:
        """The split's store, one object, so that each shard is read once to see what is finished."""
        return self._stores.setdefault(split, self.dataset.store(split))

    def _missing(self, store: EmbeddingStore, jobs: Sequence[Job]) -> tuple[Job, ...]:
        """The jobs that are left, each with the modalities that the store lacks now."""
        finished = store.finished(
            modalities=self._modalities,
            retry_failed=self.settings.retry_failed,
            among=[job.clip.clip_id for job in jobs],
        )
        left = (
            Job(job.clip, tuple(name for name in job.modalities if job.clip.clip_id not in finished[name]))
            for job in jobs
        )
        return tuple(job for job in left if job.modalities)

    def _extract(
        self,
        jobs: Sequence[Job],
        store: EmbeddingStore,
        claims: Claims,
        writer: ShardWriter,
        tally: _Tally,
    ) -> None:
        """Do all jobs that no other process does; come back to those of others until somebody has done them."""
        embed = partial(self._embed, writer=writer, tally=tally)
        while jobs:
            elsewhere: list[Job] = []
            mine = self._claimed(jobs, store, claims, elsewhere, tally)
            first = next(mine, None)
            if first is None and elsewhere:
                time.sleep(POLL_SECONDS)
            elif first is not None:
                self._run(chain((first,), mine), embed)
                writer.flush()  # others may be waiting for these clips
            jobs = elsewhere

    def _claimed(
        self, jobs: Sequence[Job], store: EmbeddingStore, claims: Claims, elsewhere: list[Job], tally: _Tally
    ) -> Iterator[Job]:
        """The jobs that no other process does; those that one does are put into `elsewhere`."""
        for some in (jobs[start : start + CLAIMED_AT_ONCE] for start in range(0, len(jobs), CLAIMED_AT_ONCE)):
            got = set(claims.claim(job.clip.clip_id for job in some))
            own = [job for job in some if job.clip.clip_id in got]
            elsewhere += [job for job in some if job.clip.clip_id not in got]
            missing = self._missing(store, own)  # now that they are ours: another process may have done them before
            done = got - {job.clip.clip_id for job in missing}
            claims.release(done)
            tally.done_elsewhere(len(done))
            yield from missing

    def _run(self, jobs: Iterator[Job], embed: Callable[[Sequence[tuple[Job, Decoded]]], None]) -> None:
        """Decode and embed, as fast as the slower of both."""
        decoded_jobs = self.decode(jobs)
        flying: set[Future[None]] = set()
        waiting: list[tuple[Job, Decoded]] = []
        with self.model_threads() as pool:
            try:
                for decoded_job in decoded_jobs:
                    waiting.append(decoded_job)
                    if len(waiting) == self.batch_size:
                        flying = _submit(pool, embed, waiting, flying, at_most=self.threads + 1)
                        waiting = []
                if waiting:
                    flying = _submit(pool, embed, waiting, flying, at_most=self.threads + 1)
                for future in flying:
                    future.result()
            finally:
                decoded_jobs.close()

    def _embed(self, decoded_jobs: Sequence[tuple[Job, Decoded]], *, writer: ShardWriter, tally: _Tally) -> None:
        batch = self.embed(decoded_jobs)
        writer.put(batch)
        tally.add(batch, sum(decoded.cpu_seconds for _, decoded in decoded_jobs))

    def _writer(self, store: EmbeddingStore, claims: Claims) -> ShardWriter:
        return ShardWriter(
            EmbeddingStore(store.folder),
            self.store_settings,
            provenance=self._provenance,
            flush_seconds=self.settings.flush_seconds,
            written=claims.release,
        )

    def _plan_memory(self) -> MemoryPlan:
        in_flight = self.threads + 1
        per_clip = max(backbone.forward_bytes for backbone in self.backbones.values())
        return plan_memory(
            self.settings.max_memory_gb,
            workers=self.settings.workers or cpu_count(),
            compute_bytes=self.threads * self.batch_size * per_clip,
            decoded_bytes=sum(
                _decoded_bytes(backbone.spec, device_resizes=self._device_resizes)
                for backbone in self.backbones.values()
            ),
            held_clips=(in_flight + 1) * self.batch_size,
            per_worker_clips=TASKS_PER_WORKER,
        )

    def _provenance(self) -> dict[str, Any]:
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": str(self.device),
            "backbones": {
                modality: {"name": backbone.name, "revision": backbone.revision}
                for modality, backbone in self.backbones.items()
            },
            "libraries": {library: version(library) for library in _LIBRARIES},
        }


def extract_embeddings(
    dataset: Dataset,
    splits: Sequence[str],
    settings: ExtractSettings | None = None,
    *,
    progress: Progress | None = None,
) -> list[ExtractReport]:
    """Extract what the stores of these splits lack: `Extractor` in one call."""
    for split in splits:
        dataset.manifest.require_split(split)
    extractor = Extractor(dataset, settings or ExtractSettings())
    for split in splits:
        extractor.pending(split)  # refuse a store of other settings before any work
    return [extractor.extract(split, progress=progress) for split in splits]


def _decoded_bytes(spec: FrameSpec | AudioSpec, *, device_resizes: bool) -> int:
    """Of one clip, at most (the notebook's audio: of a minute)."""
    if isinstance(spec, AudioSpec):
        return 4 * (spec.max_samples or 60 * 16_000)
    height, width = spec.crop if spec.crop != (0, 0) else spec.size
    return 3 * spec.frames * max(height * width, TRAVELLING_PIXELS if device_resizes else 0)


class _Tally:
    """What was done, counted by several threads."""

    def __init__(self, progress: Progress | None, modalities: Sequence[str]) -> None:
        self.clips = 0
        self.embedded = dict.fromkeys(modalities, 0)
        self.failures: list[Failure] = []
        self.decode_seconds = self.embed_seconds = 0.0
        self._progress, self._lock = progress, threading.Lock()

    def add(self, batch: Batch, decode_seconds: float) -> None:
        incomplete = {failure.clip_id for failure in batch.failures}
        with self._lock:
            self.decode_seconds += decode_seconds
            self.embed_seconds += batch.seconds
            self.clips += len(batch.jobs)
            self.failures += batch.failures
            for modality in self.embedded:
                asked = sum(modality in job.modalities for job in batch.jobs)
                self.embedded[modality] += asked - sum(f.modality == modality for f in batch.failures)
            if self._progress is not None:
                for job in batch.jobs:
                    self._progress.clip(complete=job.clip.clip_id not in incomplete)

    def done_elsewhere(self, clips: int) -> None:
        with self._lock:
            if self._progress is not None:
                for _ in range(clips):
                    self._progress.clip(complete=True)


def _submit(
    pool: ThreadPoolExecutor,
    embed: Callable[[Sequence[tuple[Job, Decoded]]], None],
    batch: Sequence[tuple[Job, Decoded]],
    flying: set[Future[None]],
    *,
    at_most: int,
) -> set[Future[None]]:
    """Hand a batch to the model threads, once no more than `at_most` are under way; the batches that then are."""
    while len(flying) >= at_most:
        done, flying = wait(flying, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
    return flying | {pool.submit(embed, batch)}

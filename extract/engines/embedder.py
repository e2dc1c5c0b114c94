"""Embed clips: files -> decode workers -> model threads -> embeddings, with or without a store.

Decoding and inference overlap: each worker has two clips at a time, and the models take clips as they are decoded. On
the CPU each core runs the models on one clip, so that an embedding depends on its clip alone, to the bit. On CUDA the
models take batches of clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import psutil
from loky import cpu_count

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Failure
from alphafuse.data.streams import GIVEN, Stream
from alphafuse.errors import ClipError, DatasetError, DecodeError, EncoderError
from alphafuse.extract.decoding.decode import decode_inputs
from alphafuse.extract.decoding.specs import DEVICE_RESIZE_PIXELS, AudioSpec, Inputs, Spec
from alphafuse.extract.jobs import Batch, Job
from alphafuse.extract.settings import BATCH_ON_CUDA, ExtractSettings
from alphafuse.system.devices import choose_device
from alphafuse.system.interrupts import submit, wait_for_any
from alphafuse.system.processes import free_memory_bytes
from alphafuse.system.workers import TASKS_PER_WORKER, map_tasks

if TYPE_CHECKING:
    from alphafuse.extract.encoders.encoder import Encoder

DecodedJobs = Sequence[tuple[Job, Inputs]]
Result = TypeVar("Result")

THREADS_ON_CUDA = 2  # one prepares inputs while the other's batch is on the device
LIBRARIES = ("alphafuse", "av", "numpy", "pillow", "torch", "torchaudio", "transformers")
NOT_FINITE = "the embedding is not finite"
SHARE_OF_FREE = 0.8  # share of the free memory that is the default limit
WORKER_BYTES = 150 * 2**20  # a decode worker at its start: Python, NumPy, FFmpeg's libraries
CLIP_MEMORY = (256 * 2**20, 2 * 2**30)  # least and most for decoding one clip: 4K H.264 takes 250 MB, 8K 900 MB
RAW_PIXELS = 1920 * 1080  # of frames that no worker resizes; larger ones may fail for lack of memory, and say so
MARGIN_BYTES = 256 * 2**20  # growth of Python's heap, the writer, freed memory that malloc keeps


def load_encoders(dataset: Dataset, settings: ExtractSettings, device: str) -> dict[str, Encoder]:
    """Load the encoders of the root's streams that the settings choose.

    Raises:
        EncoderError: one of them can't be loaded.
        DeviceError: the device doesn't exist.
    """
    from alphafuse.extract.encoders.encoder import Placement
    from alphafuse.extract.encoders.families import load_encoder

    placement = Placement(choose_device(device), settings.precision, compile=settings.compile)
    return {
        stream.name: load_encoder(stream, placement, trust_code=settings.trust_code)
        for stream in settings.streams_of(dataset)
    }


def load_stored(dataset: Dataset, split: str, settings: ExtractSettings, streams: Sequence[str] = ()) -> Embedder:
    """Load the encoders that made the embeddings of a split.

    Args:
        dataset: the root.
        split: the split; its store isn't empty.
        settings: how to extract; encoders, protocol and precision default to those of the store.
        streams: load only those of these streams that were extracted, not given; () = all.

    Raises:
        DatasetError: the embeddings of all these streams were given.
        RecipeMismatchError, EncoderError: the encoders are not those that made the store.
    """
    store = dataset.store(split)
    recipes, encoders = store.recipes(), store.provenance().get("encoders", {})
    extracted = [name for name in recipes if encoders.get(name, {}).get("name", GIVEN) != GIVEN]
    names = [name for name in extracted if name in (streams or dataset.media)]  # one may be removed from the root
    if not names:
        which = f"{', '.join(streams)} embeddings" if streams else "embeddings"
        raise DatasetError(
            f"the {which} in {store.folder} were given, not extracted: they can't be made of a clip's file"
        )
    made_by = tuple(Stream.recorded(name, encoders[name], recipes[name]) for name in names)
    settings = replace(settings, streams=tuple(names))
    embedder = Embedder(load_encoders(replace(dataset, streams=made_by), settings, settings.device), settings)
    store.require_recipes(embedder.recipes)
    return embedder


class Embedder:
    """Encoders on their device, with the workers that decode for them.

    Attributes:
        encoders: stream -> encoder.
        settings: how to decode and embed; encoders, protocol and precision follow from `encoders` instead.
        device: device of the models.
        threads: number of threads that run the models.
        batch_size: clips per forward pass.
        device_resizes: streams whose decoded frames of common sizes are resized on the device.
        memory: limits of the decode workers.
    """

    def __init__(self, encoders: Mapping[str, Encoder], settings: ExtractSettings) -> None:
        self.encoders = dict(encoders)
        self.settings = settings
        self.device = next(iter(self.encoders.values())).placement.device
        on_cpu = self.device.type == "cpu"
        self.threads = (settings.models or cpu_count()) if on_cpu else THREADS_ON_CUDA
        self.batch_size = settings.batch_size or (1 if on_cpu else BATCH_ON_CUDA)
        self.device_resizes = device_resizes(self.encoders)
        self.memory = self._plan_memory()

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """Stream -> everything that decides its numbers."""
        return {stream: encoder.recipe() for stream, encoder in self.encoders.items()}

    def decode(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Inputs], None, None]:
        """Decode clips in worker processes and yield them as they are finished, only a few ahead of the consumer.

        A clip whose decoder crashes, hangs or needs too much memory is yielded with that as its reason.
        """
        specs = {stream: encoder.spec for stream, encoder in self.encoders.items()}
        decode = partial(decode_inputs, specs=specs, device_resizes=self.device_resizes)
        return map_tasks(
            decode,
            ((job, job.task) for job in jobs),
            failed=lambda reason: Inputs.failed(specs, reason),
            workers=self.memory.workers,
            timeout_seconds=self.settings.timeout_seconds,
            memory_bytes=self.memory.clip_bytes,
            preload="alphafuse.extract.decoding.decode",
        )

    def embed(self, decoded_jobs: DecodedJobs) -> Batch:
        """Run the encoders over a batch."""
        return embed_batch(self.encoders, decoded_jobs)

    def map(self, use: Callable[[DecodedJobs], Result], jobs: Iterable[Job]) -> Generator[Result, None, None]:
        """Decode clips, pass them in batches to `use` in the model threads, and yield what it returns.

        Clips come in the order in which they are decoded, batches as they are finished. Close the iterator to end the
        work early.

        Args:
            use: embeds a batch (`embed`) and uses the result; an interrupt doesn't stop it halfway; its exceptions
                end the work.
            jobs: clips, taken one by one as decode workers become free.
        """
        decoded_jobs = self.decode(jobs)
        running: set[Future[Result]] = set()
        waiting: list[tuple[Job, Inputs]] = []
        with self.model_threads() as pool:
            try:
                for decoded_job in decoded_jobs:
                    waiting.append(decoded_job)
                    if len(waiting) == self.batch_size:
                        while len(running) > self.threads:
                            yield from _take_finished(running)
                        running.add(submit(pool, use, waiting))
                        waiting = []
                if waiting:
                    running.add(submit(pool, use, waiting))
                while running:
                    yield from _take_finished(running)
            finally:
                decoded_jobs.close()

    @contextmanager
    def model_threads(self) -> Iterator[ThreadPoolExecutor]:
        """Yield threads to run `embed` in: on the CPU one per core, each computing on that core alone.

        If an error or Ctrl-C ends the block, tasks that have not started are dropped. PyTorch's number of threads is
        restored afterwards.
        """
        import torch

        before = torch.get_num_threads()
        each = 1 if self.device.type == "cpu" else before
        pool = ThreadPoolExecutor(self.threads, "model", initializer=torch.set_num_threads, initargs=(each,))
        try:
            torch.set_num_threads(each)  # threads of the pool inherit this
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)

    def provenance(self) -> dict[str, Any]:
        """Return the provenance that a shard records."""
        return provenance(self.encoders, str(self.device))

    def _plan_memory(self) -> MemoryPlan:
        in_flight = self.threads + 1
        per_clip = max(encoder.forward_bytes for encoder in self.encoders.values())
        return plan_memory(
            self.settings.max_memory_gb,
            workers=self.settings.workers or cpu_count(),
            compute_bytes=self.threads * self.batch_size * per_clip,
            decoded_bytes=sum(
                decoded_bytes(encoder.spec, device_resizes=name in self.device_resizes)
                for name, encoder in self.encoders.items()
            ),
            held_clips=(in_flight + 1) * self.batch_size,
            per_worker_clips=TASKS_PER_WORKER,
        )


def embed_batch(encoders: Mapping[str, Encoder], decoded_jobs: DecodedJobs) -> Batch:
    """Run the encoders over decoded clips; return embeddings, and reasons for those that clips lack."""
    on_cpu = all(encoder.placement.device.type == "cpu" for encoder in encoders.values())
    clock = time.thread_time if on_cpu else time.perf_counter
    began = clock()
    jobs, decoded = tuple(job for job, _ in decoded_jobs), [decoded for _, decoded in decoded_jobs]
    rows: dict[str, np.ndarray] = {}
    failures: list[Failure] = []
    for name, encoder in encoders.items():
        asked = [i for i, job in enumerate(jobs) if name in job.streams]
        inputs, reasons = dict[int, Any](), dict[int, str]()
        for i in asked:
            inputs[i], reasons[i] = _input(encoder, decoded[i])
        usable = [i for i in asked if not reasons[i]]
        matrix = rows[name] = np.full((len(jobs), encoder.dim), np.nan, np.float32)
        for i, row in zip(usable, _embed_each(encoder, [inputs[i] for i in usable]), strict=True):
            if isinstance(row, str):
                reasons[i] = row
            elif np.isfinite(row).all():
                matrix[i] = row
            else:
                reasons[i] = NOT_FINITE
        failures += [Failure(jobs[i].clip.clip_id, name, reasons[i]) for i in asked if reasons[i]]
    return Batch(
        jobs=jobs,
        rows=rows,
        failures=tuple(failures),
        seconds=np.array([clip.seconds for clip in decoded]),
        file_bytes=np.array([clip.file_bytes for clip in decoded], np.int64),
        digests=np.array([clip.digest for clip in decoded], np.str_),
        decode_seconds=sum(clip.cpu_seconds for clip in decoded),
        embed_seconds=clock() - began,
        sound_seconds=np.array([clip.sound_seconds for clip in decoded]),
    )


def _embed_each(encoder: Encoder, inputs: Sequence[Any]) -> Sequence[np.ndarray | str]:
    """Return the embedding of each clip, or why there is none; clips are embedded singly if one fails in a batch."""
    if not inputs:
        return []
    try:
        return list(encoder.embed(inputs))
    except ClipError as error:
        return [str(error)] if len(inputs) == 1 else [_embed_each(encoder, [one])[0] for one in inputs]


def _input(encoder: Encoder, decoded: Inputs) -> tuple[Any, str]:
    """Return the encoder's input and "", or None and the reason."""
    name = encoder.stream.name
    if name not in decoded.arrays:
        return None, decoded.reasons[name]
    if name not in decoded.unresized:
        return decoded.arrays[name], ""
    try:
        return encoder.resize_on_device(decoded.arrays[name]), ""
    except DecodeError as error:
        return None, str(error)


def device_resizes(encoders: Mapping[str, Encoder]) -> frozenset[str]:
    """Return the streams whose frames their device resizes; on the CPU, PIL in the worker is five times as fast."""
    return frozenset(
        name
        for name, encoder in encoders.items()
        if encoder.placement.device.type != "cpu" and encoder.resize is not None
    )


def decoded_bytes(spec: Spec, *, device_resizes: bool) -> int:
    """Return the largest size of a clip's input in bytes (for all of a clip's sound: of a minute)."""
    if isinstance(spec, AudioSpec):
        return 4 * (spec.max_samples or 60 * spec.rate)
    height, width = spec.prepared
    return 3 * spec.frames * max(height * width or RAW_PIXELS, DEVICE_RESIZE_PIXELS if device_resizes else 0)


def provenance(encoders: Mapping[str, Encoder], device: str) -> dict[str, Any]:
    """Return the provenance that a shard records: time, device, encoders and libraries."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "encoders": {
            name: {
                "name": encoder.stream.encoder,
                "revision": encoder.revision,
                "medium": encoder.stream.medium,
                "options": dict(encoder.stream.options),
                **({} if encoder.hears is None else {"hears": asdict(encoder.hears)}),
            }
            for name, encoder in encoders.items()
        },
        "libraries": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that embeddings may depend on."""
    return {library: version(library) for library in LIBRARIES}


def _take_finished(running: set[Future[Result]]) -> list[Result]:
    """Wait until a batch is finished; remove finished ones from `running` and return their results.

    Raises the exception of a batch.
    """
    finished = wait_for_any(running)
    running -= finished
    return [future.result() for future in finished]


@dataclass(frozen=True)
class MemoryPlan:
    """Division of memory among the decode workers.

    Attributes:
        limit_bytes: limit for this process and its workers.
        workers: number of decode processes that fit, at most the requested one.
        clip_bytes: memory that a worker may take for a clip, in addition to that at its start.
    """

    limit_bytes: int
    workers: int
    clip_bytes: int


def plan_memory(
    max_memory_gb: float,
    *,
    workers: int,
    compute_bytes: int,
    decoded_bytes: int,
    held_clips: int,
    per_worker_clips: int,
) -> MemoryPlan:
    """Divide memory among workers, after the models are loaded.

    Args:
        max_memory_gb: limit for this process and its workers, in 10^9 bytes; 0 = 80% of the free memory.
        workers: requested number of decode processes.
        compute_bytes: memory of the models' simultaneous forward passes.
        decoded_bytes: size of one decoded clip.
        held_clips: decoded clips that this process holds at most, in addition to those of the workers.
        per_worker_clips: decoded clips that wait per worker.

    Raises:
        EncoderError: the limit is too small; the message says how much is needed.
    """
    base = psutil.Process().memory_info().rss
    limit = int(max_memory_gb * 1e9) if max_memory_gb else base + int(SHARE_OF_FREE * free_memory_bytes())
    left = limit - base - compute_bytes - held_clips * decoded_bytes - MARGIN_BYTES
    # a decoded clip is held once in the worker and once in this process
    fixed = WORKER_BYTES + 2 * per_worker_clips * decoded_bytes
    least, most = CLIP_MEMORY
    fitting = min(workers, left // (fixed + least))
    if fitting < 1:
        needed = (limit - left + fixed + least) / 1e9
        raise EncoderError(
            f"{limit / 1e9:.1f} GB of memory are too little for the models and one decode worker: allow at least "
            f"{needed:.1f} GB (--max-memory), lower --batch-size, or use smaller encoders"
        )
    return MemoryPlan(limit, fitting, min(most, left // fitting - fixed))

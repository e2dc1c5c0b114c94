"""The encoders at work: clip files -> decode workers -> model threads -> embeddings, with or without a store behind.

Decoding and inference overlap: each worker has two clips at a time, and the models take whatever is decoded. On the CPU
each core runs the models on a clip of its own, so that an embedding is a function of its clip alone, to the bit,
whatever was embedded beside it; on CUDA clips go in batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import psutil
from loky import cpu_count

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Failure
from alphafuse.errors import DecodeError, EncoderError
from alphafuse.extract.decoding.decode import decode_inputs
from alphafuse.extract.decoding.specs import DEVICE_RESIZE_PIXELS, AudioSpec, Decoded, FrameSpec
from alphafuse.extract.jobs import Batch, Job
from alphafuse.extract.settings import BATCH_ON_CUDA, ExtractSettings
from alphafuse.system.devices import choose_device
from alphafuse.system.interrupts import submit, wait_for_any
from alphafuse.system.processes import free_memory_bytes
from alphafuse.system.workers import TASKS_PER_WORKER, map_tasks

if TYPE_CHECKING:
    from alphafuse.extract.encoders.encoder import Encoder

DecodedJobs = Sequence[tuple[Job, Decoded]]
Result = TypeVar("Result")

THREADS_ON_CUDA = 2  # one prepares inputs while the other's batch is on the device
LIBRARIES = ("alphafuse", "av", "numpy", "pillow", "torch", "torchaudio", "transformers")
NOT_FINITE = "the embedding is not finite"
SHARE_OF_FREE = 0.8  # without a limit by the user
WORKER_BYTES = 150 * 2**20  # a decode worker at its start: Python, NumPy, FFmpeg's libraries
CLIP_MEMORY = (256 * 2**20, 2 * 2**30)  # least and most for decoding one clip: 4K H.264 takes some 250 MB, 8K 900 MB
MARGIN_BYTES = 256 * 2**20  # Python's own growth, the writer, freed memory that malloc keeps


def load_encoders(dataset: Dataset, settings: ExtractSettings, device: str) -> dict[str, Encoder]:
    """Load the encoders that the settings name, else those of the dataset.

    Raises:
        EncoderError: one of them can't be loaded.
        DeviceError: there is no such device.
    """
    from alphafuse.extract.encoders import families
    from alphafuse.extract.encoders.encoder import Placement

    names = {"timesformer": settings.timesformer or dataset.timesformer, "ast": settings.ast or dataset.ast}
    protocol = settings.protocol or dataset.protocol
    placement = Placement(choose_device(device), settings.precision, protocol, compile=settings.compile)
    return families.load_encoders({name: names[name] for name in settings.modalities}, placement)


class Embedder:
    """Encoders on their device, and how clips get to them.

    Attributes:
        encoders: modality -> encoder.
        settings: how to decode and embed; which encoders, protocol and precision is decided by `encoders`.
        device: where the models run.
        threads: that run them at once.
        batch_size: clips per forward pass.
        device_resizes: whether decoded frames of common sizes are resized on the device.
        memory: what decode workers may take.
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
        """modality -> everything that decides its numbers."""
        return {modality: encoder.recipe() for modality, encoder in self.encoders.items()}

    def decode(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Decoded], None, None]:
        """Decode clips in worker processes and yield them as they are finished, never many more than are being used.

        A clip whose decoder crashes, hangs or wants too much memory is yielded with that as its reason.
        """
        specs = {modality: encoder.spec for modality, encoder in self.encoders.items()}
        decode = partial(decode_inputs, specs=specs, device_resizes=self.device_resizes)
        return map_tasks(
            decode,
            ((job, (job.path, job.modalities)) for job in jobs),
            failed=lambda reason: Decoded(None, None, reason, reason),
            workers=self.memory.workers,
            timeout_seconds=self.settings.timeout_seconds,
            memory_bytes=self.memory.clip_bytes,
            preload="alphafuse.extract.decoding.decode",
        )

    def embed(self, decoded_jobs: DecodedJobs) -> Batch:
        """Run the encoders over a batch."""
        return embed_batch(self.encoders, decoded_jobs)

    def map(self, use: Callable[[DecodedJobs], Result], jobs: Iterable[Job]) -> Generator[Result, None, None]:
        """Decode clips, hand them to `use` in batches, in the model threads, and yield what it returns.

        Clips come in the order in which they are decoded, batches as they are finished. Close the iterator to end the
        work early.

        Args:
            use: embeds a batch (`embed`) and does something with that, also when an interrupt comes meanwhile; its
                exceptions end the work.
            jobs: taken one by one, as decode workers become free.
        """
        decoded_jobs = self.decode(jobs)
        running: set[Future[Result]] = set()
        waiting: list[tuple[Job, Decoded]] = []
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

    def provenance(self) -> dict[str, Any]:
        """What a shard records of its making."""
        return provenance(self.encoders, str(self.device))

    def _plan_memory(self) -> MemoryPlan:
        in_flight = self.threads + 1
        per_clip = max(encoder.forward_bytes for encoder in self.encoders.values())
        return plan_memory(
            self.settings.max_memory_gb,
            workers=self.settings.workers or cpu_count(),
            compute_bytes=self.threads * self.batch_size * per_clip,
            decoded_bytes=sum(
                decoded_bytes(encoder.spec, device_resizes=self.device_resizes) for encoder in self.encoders.values()
            ),
            held_clips=(in_flight + 1) * self.batch_size,
            per_worker_clips=TASKS_PER_WORKER,
        )


def embed_batch(encoders: Mapping[str, Encoder], decoded_jobs: DecodedJobs) -> Batch:
    """Run the encoders over decoded clips: their embeddings, and why a clip has none."""
    on_cpu = all(encoder.placement.device.type == "cpu" for encoder in encoders.values())
    clock = time.thread_time if on_cpu else time.perf_counter
    began = clock()
    jobs, decoded = tuple(job for job, _ in decoded_jobs), [decoded for _, decoded in decoded_jobs]
    rows: dict[str, np.ndarray] = {}
    failures: list[Failure] = []
    for modality, encoder in encoders.items():
        fed = [_input(encoder, clip) for clip in decoded]
        inputs, reasons = [item for item, _ in fed], [reason for _, reason in fed]
        usable = [i for i, job in enumerate(jobs) if modality in job.modalities and inputs[i] is not None]
        matrix = rows[modality] = np.full((len(jobs), encoder.dim), np.nan, np.float32)
        if usable:
            matrix[usable] = encoder.embed([inputs[i] for i in usable])
        for i in usable:
            if not np.isfinite(matrix[i]).all():
                matrix[i], reasons[i] = np.nan, NOT_FINITE
        failures += [
            Failure(job.clip.clip_id, modality, reason)
            for job, reason in zip(jobs, reasons, strict=True)
            if reason and modality in job.modalities
        ]
    return Batch(
        jobs=jobs,
        rows=rows,
        failures=tuple(failures),
        seconds=np.array([clip.seconds for clip in decoded]),
        file_bytes=np.array([clip.file_bytes for clip in decoded], np.int64),
        digests=np.array([clip.digest for clip in decoded], np.str_),
        decode_seconds=sum(clip.cpu_seconds for clip in decoded),
        embed_seconds=clock() - began,
    )


def _input(encoder: Encoder, decoded: Decoded) -> tuple[Any, str]:
    """What the encoder is fed, or None and why."""
    if isinstance(encoder.spec, AudioSpec):
        return decoded.waveform, decoded.no_waveform
    if decoded.frames is None or decoded.is_resized:
        return decoded.frames, decoded.no_frames
    try:
        return encoder.resize_on_device(decoded.frames), ""
    except DecodeError as error:
        return None, str(error)


def device_resizes(encoders: Mapping[str, Encoder]) -> bool:
    """Whether frames are resized on the encoders' device: on the CPU, PIL beside the decoder is five times as fast."""
    return all(
        encoder.placement.device.type != "cpu" and (encoder.resize is not None or isinstance(encoder.spec, AudioSpec))
        for encoder in encoders.values()
    )


def decoded_bytes(spec: FrameSpec | AudioSpec, *, device_resizes: bool) -> int:
    """Bytes of one decoded clip, at most (the notebook's audio: of a minute)."""
    if isinstance(spec, AudioSpec):
        return 4 * (spec.max_samples or 60 * 16_000)
    height, width = spec.crop if spec.crop != (0, 0) else spec.size
    return 3 * spec.frames * max(height * width, DEVICE_RESIZE_PIXELS if device_resizes else 0)


def provenance(encoders: Mapping[str, Encoder], device: str) -> dict[str, Any]:
    """What a shard records of its making: when, where, by which encoders and libraries."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "encoders": {
            modality: {"name": encoder.name, "revision": encoder.revision} for modality, encoder in encoders.items()
        },
        "libraries": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Versions of what embeddings may depend on, as they are on this machine."""
    return {library: version(library) for library in LIBRARIES}


def _take_finished(running: set[Future[Result]]) -> list[Result]:
    """Wait until a batch is finished; take those that are out of `running` and return their results.

    Raises what a batch raised.
    """
    finished = wait_for_any(running)
    running -= finished
    return [future.result() for future in finished]


@dataclass(frozen=True)
class MemoryPlan:
    """What follows from a limit.

    Attributes:
        limit_bytes: for this process and its workers.
        workers: decode processes that fit, at most as many as asked for.
        clip_bytes: memory that a worker may take for a clip, beyond what it has at its start.
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
    """Divide memory among workers; the models are loaded already.

    Args:
        max_memory_gb: limit for this process and its workers, in 10^9 bytes; 0 = 80% of what is free now.
        workers: decode processes asked for.
        compute_bytes: that the models' forward passes take at a time.
        decoded_bytes: of one decoded clip.
        held_clips: decoded clips that this process holds at most, beside those of the workers.
        per_worker_clips: decoded clips that wait per worker.

    Raises:
        EncoderError: the limit is too small; the message says what is needed.
    """
    base = psutil.Process().memory_info().rss
    limit = int(max_memory_gb * 1e9) if max_memory_gb else base + int(SHARE_OF_FREE * free_memory_bytes())
    left = limit - base - compute_bytes - held_clips * decoded_bytes - MARGIN_BYTES
    # a decoded clip lies once in the worker and once here
    fixed = WORKER_BYTES + 2 * per_worker_clips * decoded_bytes
    least, most = CLIP_MEMORY
    fitting = min(workers, left // (fixed + least))
    if fitting < 1:
        needed = (limit - left + fixed + least) / 1e9
        raise EncoderError(
            f"{limit / 1e9:.1f} GB of memory are too little for one decode worker beside the models: allow at least "
            f"{needed:.1f} GB (--max-memory), lower --batch-size, or use smaller encoders"
        )
    return MemoryPlan(limit, fitting, min(most, left // fitting - fixed))

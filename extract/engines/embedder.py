"""The encoders at work: clip files -> decode workers -> model threads -> embeddings, wherever these go then.

Nobody waits for another more than he must: workers decode two clips ahead each, and the models take whatever is
decoded. On the CPU each core runs the models on a clip of its own, so that an embedding is a function of its clip
alone, to the bit, whatever was embedded beside it; on CUDA clips go in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from loky import cpu_count

from alphafuse.extract.decoding.decode import Decoded
from alphafuse.extract.decoding.specs import TRAVELLING_PIXELS, AudioSpec, FrameSpec, decode_inputs
from alphafuse.extract.decoding.workers import TASKS_PER_WORKER, map_tasks
from alphafuse.extract.encoders.batch import embed_batch
from alphafuse.extract.encoders.tensors import can_resize
from alphafuse.extract.jobs import Batch, Job
from alphafuse.extract.memory import MemoryPlan, plan_memory
from alphafuse.extract.settings import BATCH_ON_CUDA, ExtractSettings
from alphafuse.system.interrupts import submit, wait_for_any

if TYPE_CHECKING:
    from alphafuse.extract.encoders.encoder import Encoder

THREADS_ON_CUDA = 2  # one prepares inputs while the other's batch is on the device


class Embedder:
    """Encoders on their device, and how clips get to them.

    Attributes:
        encoders: modality -> encoder.
        settings: how; of its encoders, protocol and precision only what `encoders` already are matters.
        device: where the models run.
        threads: that run them at once.
        batch_size: clips per forward pass.
        memory: what decode workers may take.
    """

    def __init__(self, encoders: Mapping[str, Encoder], settings: ExtractSettings) -> None:
        self.encoders = dict(encoders)
        self.settings = settings
        self.device = next(iter(self.encoders.values())).placement.device
        on_cpu = self.device.type == "cpu"
        self.threads = (settings.models or cpu_count()) if on_cpu else THREADS_ON_CUDA
        self.batch_size = settings.batch_size or (1 if on_cpu else BATCH_ON_CUDA)
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
        decode = partial(decode_inputs, specs=specs, device_resizes=self._device_resizes)
        return map_tasks(
            decode,
            ((job, (job.path, job.modalities)) for job in jobs),
            failed=lambda reason: Decoded(None, None, reason, reason),
            workers=self.memory.workers,
            timeout_seconds=self.settings.timeout_seconds,
            memory_bytes=self.memory.clip_bytes,
        )

    def embed(self, decoded_jobs: Sequence[tuple[Job, Decoded]]) -> Batch:
        """Run the encoders over a batch."""
        return embed_batch(self.encoders, decoded_jobs)

    def run(self, jobs: Iterable[Job], use: Callable[[Sequence[tuple[Job, Decoded]]], None]) -> None:
        """Decode clips and hand them to `use` in batches, in the model threads, as fast as the slower of both.

        `use` embeds them (`embed`) and does something with that; its exceptions end the run. Clips come in the order in
        which they are decoded.
        """
        decoded_jobs = self.decode(jobs)
        flying: set[Future[None]] = set()
        waiting: list[tuple[Job, Decoded]] = []
        with self.model_threads() as pool:
            try:
                for decoded_job in decoded_jobs:
                    waiting.append(decoded_job)
                    if len(waiting) == self.batch_size:
                        flying = _submit(pool, use, waiting, flying, at_most=self.threads + 1)
                        waiting = []
                if waiting:
                    flying = _submit(pool, use, waiting, flying, at_most=self.threads + 1)
                while flying:
                    flying = _wait_for_any(flying)
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

    @property
    def decoded_bytes(self) -> int:
        """Of a decoded clip, at most."""
        return sum(
            decoded_bytes(encoder.spec, device_resizes=self._device_resizes) for encoder in self.encoders.values()
        )

    @property
    def _device_resizes(self) -> bool:
        """On the CPU, PIL beside the decoder is five times as fast as `resize_frames`."""
        specs = [encoder.spec for encoder in self.encoders.values()]
        return self.device.type != "cpu" and all(can_resize(spec) for spec in specs if isinstance(spec, FrameSpec))

    def _plan_memory(self) -> MemoryPlan:
        in_flight = self.threads + 1
        per_clip = max(encoder.forward_bytes for encoder in self.encoders.values())
        return plan_memory(
            self.settings.max_memory_gb,
            workers=self.settings.workers or cpu_count(),
            compute_bytes=self.threads * self.batch_size * per_clip,
            decoded_bytes=self.decoded_bytes,
            held_clips=(in_flight + 1) * self.batch_size,
            per_worker_clips=TASKS_PER_WORKER,
        )


def decoded_bytes(spec: FrameSpec | AudioSpec, *, device_resizes: bool) -> int:
    """Of one clip, at most (the notebook's audio: of a minute)."""
    if isinstance(spec, AudioSpec):
        return 4 * (spec.max_samples or 60 * 16_000)
    height, width = spec.crop if spec.crop != (0, 0) else spec.size
    return 3 * spec.frames * max(height * width, TRAVELLING_PIXELS if device_resizes else 0)


def _submit(
    pool: ThreadPoolExecutor,
    use: Callable[[Sequence[tuple[Job, Decoded]]], None],
    batch: Sequence[tuple[Job, Decoded]],
    flying: set[Future[None]],
    *,
    at_most: int,
) -> set[Future[None]]:
    """Hand a batch to the model threads, once no more than `at_most` are under way; the batches that then are."""
    while len(flying) >= at_most:
        flying = _wait_for_any(flying)
    return flying | {submit(pool, use, batch)}


def _wait_for_any(flying: set[Future[None]]) -> set[Future[None]]:
    """The batches that are under way still once one is done; raises what one raised."""
    done = wait_for_any(flying)
    for future in done:
        future.result()
    return flying - done

"""How much memory extraction may take, and what follows for its parts."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from alphafuse.errors import EncoderError
from alphafuse.system.processes import free_memory_bytes

SHARE_OF_FREE = 0.8  # without a limit by the user
WORKER_BYTES = 150 * 2**20  # a decode worker at its start: Python, NumPy, FFmpeg's libraries
CLIP_MEMORY = (256 * 2**20, 2 * 2**30)  # least and most for decoding one clip: 4K H.264 takes some 250 MB, 8K 900 MB
MARGIN_BYTES = 256 * 2**20  # Python's own growth, the writer, freed memory that malloc keeps


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

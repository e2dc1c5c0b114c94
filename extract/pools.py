"""How many decode workers and model workers a Ray cluster gets, and what each may take of a machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alphafuse.errors import ClusterError, unknown

from .memory import CLIP_MEMORY, WORKER_BYTES
from .settings import BATCH_ON_CUDA, ExtractSettings

BLOCK_BYTES = 32 * 2**20  # of decoded clips that travel together: Ray's own work is spread over them
BLOCK_CLIPS = 128  # at most
DECODER_BYTES = 2 * WORKER_BYTES + 4 * BLOCK_BYTES  # Ray's process, the one that decodes, and a block on its way
MODEL_BYTES = 500 * 2**20  # a process with torch: 316 MB measured at its start, and a block on its way
BLOCKS_HELD = 4  # per worker, in the object stores together; beyond that Ray Data holds decoding back


@dataclass(frozen=True)
class Node:
    """What a machine of the cluster offers: logical CPUs, GPUs, and bytes of memory for tasks."""

    cpus: float
    gpus: float
    memory_bytes: float


@dataclass(frozen=True)
class Pools:
    """Who does what on a cluster.

    Attributes:
        device: of the models: "cpu", or "cuda" for one GPU (or a part of one) each.
        decoders, models: workers on all machines together.
        decoder_cpus, model_cpus: logical CPUs of each. On the CPU both are shares of a core, as many workers as cores
            for each stage: whichever has work takes the core, as the local engine does it.
        model_gpus: of each model worker.
        clip_bytes: memory that a clip may take to be decoded.
        decoder_bytes, model_bytes: memory of each worker, for Ray to find room.
        batch_size: clips per forward pass.
        block_clips: clips that travel together.
    """

    device: str
    decoders: int
    models: int
    decoder_cpus: float
    model_cpus: float
    model_gpus: float
    clip_bytes: int
    decoder_bytes: int
    model_bytes: int
    batch_size: int
    block_clips: int

    @property
    def held_bytes(self) -> int:
        """Of decoded clips, at most, in all object stores together."""
        return BLOCKS_HELD * (self.decoders + self.models) * BLOCK_BYTES


def plan_pools(nodes: Sequence[Node], settings: ExtractSettings, *, decoded_bytes: int, forward_bytes: int) -> Pools:
    """Divide a cluster among decoding and models.

    Args:
        nodes: the machines.
        settings: `workers` decoders and `models` model workers are asked for (0 = as many as fit), on `device`.
        decoded_bytes: of one clip.
        forward_bytes: of one clip's forward pass.

    Raises:
        ClusterError: no CPUs, no GPUs though `device` asks for them, or too little memory.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if cpus <= 0:
        raise ClusterError("the Ray cluster has no CPUs: start nodes with `ray start --address ...`")
    if settings.device not in ("auto", "cpu", "cuda"):
        raise ClusterError(f"{unknown('device', settings.device, ('auto', 'cpu', 'cuda'))} (Ray says which GPU)")
    if settings.device == "cuda" and not gpus:
        raise ClusterError("the Ray cluster has no GPUs: use --device cpu (or auto), or start nodes that have some")
    on_gpus = settings.device != "cpu" and gpus > 0
    models = settings.models or math.ceil(gpus if on_gpus else cpus)
    # beside GPUs, each with a core of its own, the other cores decode
    left = max(cpus - models, 1.0) if on_gpus else cpus
    decoders = settings.workers or math.ceil(left)
    share = cpus / (models + decoders)
    fair = min(1.0, math.floor(100 * share) / 100 or share)
    batch_size = settings.batch_size or (BATCH_ON_CUDA if on_gpus else 1)
    model_bytes = MODEL_BYTES + batch_size * forward_bytes
    clip_bytes = _clip_bytes(nodes, decoders / cpus, models / cpus, model_bytes)
    return Pools(
        device="cuda" if on_gpus else "cpu",
        decoders=decoders,
        models=models,
        decoder_cpus=fair,
        model_cpus=fair,
        model_gpus=min(1.0, gpus / models) if on_gpus else 0.0,
        clip_bytes=clip_bytes,
        decoder_bytes=DECODER_BYTES + clip_bytes,
        model_bytes=model_bytes,
        batch_size=batch_size,
        block_clips=clips_of_block(decoded_bytes, batch_size),
    )


def clips_of_block(decoded_bytes: int, batch_size: int) -> int:
    """Clips that travel together: whole batches, in `BLOCK_BYTES` where one fits into them."""
    return max(1, min(BLOCK_CLIPS, BLOCK_BYTES // decoded_bytes) // batch_size) * batch_size


def _clip_bytes(nodes: Sequence[Node], decoders_per_cpu: float, models_per_cpu: float, model_bytes: int) -> int:
    """What the machine with the least memory per core leaves for a clip; with too little, fewer decode at once."""
    least, most = CLIP_MEMORY
    needed = DECODER_BYTES + least + model_bytes
    if max(node.memory_bytes for node in nodes) < needed:
        raise ClusterError(
            f"no machine of the Ray cluster has the {needed / 1e9:.1f} GB for a decoder and a model worker: start "
            "nodes with more memory (`ray start --memory`), allow more (--max-memory), or use smaller backbones"
        )
    left = (
        (node.memory_bytes / node.cpus - models_per_cpu * model_bytes) / decoders_per_cpu - DECODER_BYTES
        for node in nodes
        if node.cpus and node.memory_bytes >= needed
    )
    return int(min(most, max(least, min(left, default=least))))

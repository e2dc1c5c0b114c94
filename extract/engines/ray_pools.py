"""Divide a Ray cluster: numbers of decode workers and model workers, and the resources of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alphafuse.errors import ClusterError, unknown
from alphafuse.extract.settings import BATCH_ON_CUDA, ExtractSettings

from .embedder import CLIP_MEMORY, WORKER_BYTES

BLOCK_BYTES = 32 * 2**20  # decoded clips that travel together, so that Ray's overhead is divided among them
# up to this many decoders have blocks of this size; more have larger ones, up to four times as large: the driver takes
# about 4 ms of its core per block (docs/scale.md), which is all of it at 230 blocks a second
DECODERS_PER_SIZE, SIZES = 256, 4
BLOCK_CLIPS = 128  # at most
COPIES = 4  # copies of a block in a worker: input, output, and both in Ray's form
MODEL_BYTES = 400 * 2**20  # a process with torch: 316 MB measured at its start
BLOCKS_HELD = 4  # per worker, in all object stores together; with more, Ray Data slows decoding down


@dataclass(frozen=True)
class Node:
    """Resources of a machine of the cluster: logical CPUs, GPUs, and bytes of memory for tasks."""

    cpus: float
    gpus: float
    memory_bytes: float


@dataclass(frozen=True)
class Pools:
    """Workers of a cluster and their resources.

    Attributes:
        device: device of the models: "cpu", or "cuda" for one GPU (or a part of one) each.
        decoders, models: numbers of workers on all machines together.
        decoder_cpus, model_cpus: logical CPUs of each worker. On the CPU, each stage has as many workers as there are
            cores, and both are shares of a core: the stage that has work uses the core, as in the local engine.
        model_gpus: GPUs of each model worker.
        clip_bytes: memory that a clip may take to be decoded.
        decoder_bytes, model_bytes: memory of each worker, by which Ray places it.
        batch_size: clips per forward pass.
        block_clips: clips that travel together.
        block_bytes: about the size of these.
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
    block_bytes: int

    @property
    def held_bytes(self) -> int:
        """Largest size of decoded clips in all object stores together, in bytes."""
        return BLOCKS_HELD * (self.decoders + self.models) * self.block_bytes


def plan_pools(nodes: Sequence[Node], settings: ExtractSettings, *, decoded_bytes: int, forward_bytes: int) -> Pools:
    """Divide a cluster among decoding and models.

    Args:
        nodes: the machines.
        settings: `workers` decoders and `models` model workers (0 = as many as fit), on `device`.
        decoded_bytes: size of one decoded clip.
        forward_bytes: memory of one clip's forward pass.

    Raises:
        ClusterError: there are no CPUs, no GPUs although `device` is "cuda", or too little memory.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if cpus <= 0:
        raise ClusterError("the Ray cluster has no CPUs: start nodes with `ray start --address ...`")
    if settings.device not in ("auto", "cpu", "cuda"):
        raise ClusterError(f"{unknown('device', settings.device, ('auto', 'cpu', 'cuda'))} (Ray chooses the GPU)")
    if settings.device == "cuda" and not gpus:
        raise ClusterError("the Ray cluster has no GPUs: use --device cpu (or auto), or start nodes with GPUs")
    on_gpus = settings.device != "cpu" and gpus > 0
    models = settings.models or math.ceil(gpus if on_gpus else cpus)
    # each GPU gets a core, the other cores decode
    left = max(cpus - models, 1.0) if on_gpus else cpus
    decoders = settings.workers or math.ceil(left)
    share = cpus / (models + decoders)
    fair = min(1.0, math.floor(100 * share) / 100 or share)
    batch_size = settings.batch_size or (BATCH_ON_CUDA if on_gpus else 1)
    block_bytes = bytes_of_block(decoders)
    model_bytes = MODEL_BYTES + batch_size * forward_bytes + COPIES * block_bytes
    decoder_bytes = 2 * WORKER_BYTES + COPIES * block_bytes  # Ray's process, and the one that decodes
    clip_bytes = _clip_bytes(nodes, decoders / cpus, models / cpus, decoder_bytes, model_bytes)
    return Pools(
        device="cuda" if on_gpus else "cpu",
        decoders=decoders,
        models=models,
        decoder_cpus=fair,
        model_cpus=fair,
        model_gpus=min(1.0, gpus / models) if on_gpus else 0.0,
        clip_bytes=clip_bytes,
        decoder_bytes=decoder_bytes + clip_bytes,
        model_bytes=model_bytes,
        batch_size=batch_size,
        block_clips=clips_of_block(decoded_bytes, batch_size, block_bytes),
        block_bytes=block_bytes,
    )


def bytes_of_block(decoders: int) -> int:
    """Return the size of decoded clips that travel together, on a cluster with this many decoders."""
    return BLOCK_BYTES * max(1, min(SIZES, math.ceil(decoders / DECODERS_PER_SIZE)))


def clips_of_block(decoded_bytes: int, batch_size: int, block_bytes: int) -> int:
    """Return how many clips travel together: whole batches, within `block_bytes` if one batch fits."""
    return max(1, min(BLOCK_CLIPS, block_bytes // decoded_bytes) // batch_size) * batch_size


def _clip_bytes(
    nodes: Sequence[Node], decoders_per_cpu: float, models_per_cpu: float, decoder_bytes: int, model_bytes: int
) -> int:
    """Return the memory for a clip on the machine with the least memory per core; if too little, use fewer decoders."""
    least, most = CLIP_MEMORY
    needed = decoder_bytes + least + model_bytes
    if max(node.memory_bytes for node in nodes) < needed:
        raise ClusterError(
            f"no machine of the Ray cluster has the {needed / 1e9:.1f} GB for a decoder and a model worker: start "
            "nodes with more memory (`ray start --memory`), allow more (--max-memory), or use smaller encoders"
        )
    left = (
        (node.memory_bytes / node.cpus - models_per_cpu * model_bytes) / decoders_per_cpu - decoder_bytes
        for node in nodes
        if node.cpus and node.memory_bytes >= needed
    )
    return int(min(most, max(least, min(left, default=least))))

"""The stages of extraction on the machines of a Ray cluster; the engine in `ray` sends blocks through them.

    jobs -> DecodeBlock (actors) -> EmbedBlock (actors) -> commit_blocks (tasks) -> one shard

A block is some clips that travel together. A block that is repeated, because a machine was lost, has the same clips in
the same order: Ray requires that to restore lost objects. Torch is imported late, so that decode workers stay small.
"""

from __future__ import annotations

import io
import pickle
import socket
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphafuse.data.store.shard_files import shard_name
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.errors import DatasetError
from alphafuse.extract.decoding.decode import decode_inputs
from alphafuse.extract.decoding.specs import Inputs, Spec
from alphafuse.extract.jobs import Batch, Done, Job, join_batches
from alphafuse.system.claims import committing
from alphafuse.system.cluster import require_versions
from alphafuse.system.workers import TaskPool

from .embedder import embed_batch, library_versions

if TYPE_CHECKING:
    import numpy as np
    import torch

    from alphafuse.extract.encoders.encoder import Encoder

Row = dict[str, Any]  # a row of a Ray Dataset: {"number": of the block, "content": pickled}


def pack_block(number: int, content: object) -> Row:
    """Return a block as a row of a Ray Dataset."""
    return {"number": number, "content": pickle.dumps(content, protocol=5)}


def unpack_block(row: Row) -> Any:
    """Return the content of a row."""
    return pickle.loads(row["content"])


# ------------------------------------------------------------------------------------------------------------ decoding


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding.

    Attributes:
        libraries: name -> version that each machine must have.
        specs: stream -> specification of its encoder's input.
        timeout_seconds: time that a clip may take.
        clip_bytes: memory that a clip may take.
        clip_folder: folder that each machine must be able to read; None if clips are behind URLs.
        counts: the actor that counts.
    """

    libraries: Mapping[str, str]
    specs: Mapping[str, Spec]
    timeout_seconds: float
    clip_bytes: int
    clip_folder: Path | None
    counts: Any


class DecodeBlock:
    """A Ray actor that decodes in a child process, whose crash, hang or lack of memory costs only one clip.

    It is an actor, not a task, because Ray ends idle task processes within a second if there are more than cores, and
    starts them again. With tasks and a varying number of model actors, small clips took 1.6 times as long
    (docs/scale.md).
    """

    def __init__(self, decoding: Decoding) -> None:
        """Check this machine.

        Raises:
            ClusterError: it has other versions of libraries that embeddings depend on.
            DatasetError: it can't read the clips.
        """
        require_versions(decoding.libraries, library_versions())
        if decoding.clip_folder is not None and not decoding.clip_folder.is_dir():
            raise DatasetError(
                f"the clip folder {decoding.clip_folder} doesn't exist on {socket.gethostname()}: every machine of the "
                "cluster must see it (a shared file system), or the root's clips must lie behind a URL"
            )
        self._decoding = decoding
        self._pool: TaskPool[Any, Inputs] = TaskPool(
            # resized in the worker, for a GPU too: a fifth of the bytes then travel between the machines
            partial(decode_inputs, specs=dict(decoding.specs)),
            failed=partial(Inputs.failed, tuple(decoding.specs)),
            workers=1,
            timeout_seconds=decoding.timeout_seconds,
            memory_bytes=decoding.clip_bytes,
            preload="alphafuse.extract.decoding.decode",
        )

    def __call__(self, row: Row) -> Row:
        """Turn a block of jobs into (job, decoded) in the same order."""
        jobs: Sequence[Job] = unpack_block(row)
        decoded = dict(self._pool.map((i, job.task) for i, job in enumerate(jobs)))
        _send_counts(self._decoding.counts, decoded=len(jobs))
        return pack_block(row["number"], [(job, decoded[i]) for i, job in enumerate(jobs)])


# ----------------------------------------------------------------------------------------------------------- embedding


class EmbedBlock:
    """The encoders in an actor, on one core or one device."""

    def __init__(self, shipped: Sequence[Any], *, device: str, compile: bool, batch_size: int, counts: Any) -> None:
        """Take the encoders out of Ray's object store.

        Args:
            shipped: a reference to the result of `ship_encoders`, in a list, so that it arrives as a reference.
            device: "cpu", or "cuda" for the device that Ray gave to this actor.
            compile: see `Placement`.
            batch_size: clips per forward pass.
            counts: the actor that counts.
        """
        import ray
        import torch

        from alphafuse.extract.encoders.encoder import place

        self._shipped = ray.get(shipped[0])  # kept, because the weights are in its memory
        if device == "cpu":
            torch.set_num_threads(1)
        encoders = unship_encoders(self._shipped)
        self._encoders = {name: place(encoder, device, compile=compile) for name, encoder in encoders.items()}
        self._batch_size, self._counts = batch_size, counts

    def __call__(self, row: Row) -> Row:
        """Turn a decoded block into its batches."""
        decoded_jobs = unpack_block(row)
        starts = range(0, len(decoded_jobs), self._batch_size)
        parts = (decoded_jobs[start : start + self._batch_size] for start in starts)
        batches = [embed_batch(self._encoders, part) for part in parts]
        _send_counts(self._counts, embedded=len(decoded_jobs))
        return pack_block(row["number"], batches)


def ship_encoders(encoders: Mapping[str, Encoder]) -> tuple[bytes, list[np.ndarray]]:
    """Return encoders on the CPU in a form for Ray's object store: pickled, with the weights as separate arrays.

    All actors of a machine share one copy of the weights, in the object store's memory; no machine needs their files.
    """
    import numpy as np

    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _WeightSeparatingPickler(stream, protocol=5, buffer_callback=buffers.append).dump(dict(encoders))
    return stream.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def unship_encoders(shipped: tuple[bytes, list[np.ndarray]]) -> dict[str, Encoder]:
    """Return the encoders, with read-only weights in the object store's memory."""
    pickled, arrays = shipped
    encoders: dict[str, Encoder] = pickle.loads(pickled, buffers=arrays)
    return encoders


class _WeightSeparatingPickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        import torch

        if type(value) is torch.Tensor and value.numel():
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8)  # bfloat16 too, which NumPy lacks
            return _tensor, (flat.numpy(), value.dtype, tuple(value.shape))
        return NotImplemented


def _tensor(array: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns that the array is read-only; nothing writes into it
        return torch.frombuffer(array, dtype=dtype).reshape(shape)


# ---------------------------------------------------------------------------------------------------------- committing


@dataclass(frozen=True)
class Commit:
    """One shard to write, the same for each attempt.

    Attributes:
        folder: folder of the store.
        run: name of the run that has claimed the store (`Claims.claim_all`); None if there are no locks.
        stamp_ns: time stamp that orders the shard among the others.
        recipes: stream -> everything that decides its numbers.
        provenance: provenance that the shard records.
    """

    folder: Path
    run: str | None
    stamp_ns: int
    recipes: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Committed:
    """Blocks that are in a shard now: their numbers, and counts."""

    numbers: tuple[int, ...]
    done: Done


def commit_blocks(commit: Commit, *tables: Any) -> Committed:
    """Write embedded blocks as one shard; a second attempt at the same blocks finds the shard and keeps it.

    Raises:
        StoreError: this machine can't read the store's folder, or another run has taken the store over.
        AlphafuseError: as `EmbeddingStore.write`.
    """
    rows = [row for table in tables for row in table.to_pylist()]
    batches: list[Batch] = [batch for row in rows for batch in unpack_block(row)]
    embeddings = join_batches(batches, commit.recipes)
    name = shard_name(commit.stamp_ns, embeddings.clip_ids)
    with nullcontext() if commit.run is None else committing(commit.folder, commit.run):
        EmbeddingStore(commit.folder).write(embeddings, provenance=commit.provenance, name=name)
    return Committed(tuple(row["number"] for row in rows), Done.of(batches))


# ------------------------------------------------------------------------------------------------------------ counting


class Counts:
    """An actor that counts the clips of each stage. Clips that are repeated, after a loss, are counted twice."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, **counts: int) -> None:
        """Add to the counts of stages."""
        for stage, clips in counts.items():
            self._counts[stage] = self._counts.get(stage, 0) + clips

    def read(self) -> dict[str, int]:
        """Return stage -> clips."""
        return dict(self._counts)


def _send_counts(actor: Any, **counts: int) -> None:
    """Send counts to the actor; it may be lost, and its answer isn't awaited."""
    actor.add.remote(**counts)

"""What stage one does on the machines of a Ray cluster, block by block: the engine in `ray` sends it there.

    jobs -> DecodeBlock (actors) -> EmbedBlock (actors) -> commit_blocks (tasks) -> one shard

A block is some clips that travel together. What is done twice, because a machine was lost, gives the same clips in
the same order: Ray asks for that when it makes lost objects again. No torch at the top: decode workers stay small.
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
from alphafuse.extract.decoding.specs import AudioSpec, Decoded, FrameSpec
from alphafuse.extract.jobs import Batch, Done, Job, join_batches
from alphafuse.system.claims import committing
from alphafuse.system.cluster import require_versions
from alphafuse.system.workers import TaskPool

from .embedder import embed_batch, library_versions

if TYPE_CHECKING:
    import numpy as np
    import torch

    from alphafuse.extract.encoders.encoder import Encoder

Row = dict[str, Any]  # of a Ray Dataset: {"number": of the block, "content": pickled}


def pack_block(number: int, content: object) -> Row:
    """A block as a row of a Ray Dataset."""
    return {"number": number, "content": pickle.dumps(content, protocol=5)}


def unpack_block(row: Row) -> Any:
    """What a row holds."""
    return pickle.loads(row["content"])


# ------------------------------------------------------------------------------------------------------------ decoding


@dataclass(frozen=True)
class Decoding:
    """How blocks are decoded.

    Attributes:
        libraries: name -> version of what each machine must have.
        specs: modality -> what it is fed.
        timeout_seconds: that a clip may take.
        clip_bytes: memory that a clip may take.
        clip_folder: that each machine must see; None where clips lie behind URLs.
        counts: the actor that counts.
    """

    libraries: Mapping[str, str]
    specs: Mapping[str, FrameSpec | AudioSpec]
    timeout_seconds: float
    clip_bytes: int
    clip_folder: Path | None
    counts: Any


class DecodeBlock:
    """A process of Ray's with one beside it that decodes, and may crash, hang or want too much memory at a clip's cost.

    An actor, not a task: Ray ends processes without a task within a second where there are more than cores, and they
    begin anew. With tasks, and a varying number of model actors, small clips took 1.6 times as long (docs/scale.md).
    """

    def __init__(self, decoding: Decoding) -> None:
        """See that this machine can do it.

        Raises:
            ClusterError: it has other versions of what embeddings depend on.
            DatasetError: it doesn't see the clips.
        """
        require_versions(decoding.libraries, library_versions())
        if decoding.clip_folder is not None and not decoding.clip_folder.is_dir():
            raise DatasetError(
                f"the clip folder {decoding.clip_folder} isn't there on {socket.gethostname()}: every machine of the "
                "cluster must see it (a shared file system), or the root's clips must lie behind a URL"
            )
        self._decoding = decoding
        self._pool: TaskPool[Any, Decoded] = TaskPool(
            # resized beside the decoder, also for a GPU: that is a fifth of the bytes between the machines
            partial(decode_inputs, specs=dict(decoding.specs), device_resizes=False),
            failed=_undecoded,
            workers=1,
            timeout_seconds=decoding.timeout_seconds,
            memory_bytes=decoding.clip_bytes,
            preload="alphafuse.extract.decoding.decode",
        )

    def __call__(self, row: Row) -> Row:
        """A block of jobs -> (job, decoded) in the same order."""
        jobs: Sequence[Job] = unpack_block(row)
        decoded = dict(self._pool.map((i, (job.path, job.modalities)) for i, job in enumerate(jobs)))
        _count(self._decoding.counts, decoded=len(jobs))
        return pack_block(row["number"], [(job, decoded[i]) for i, job in enumerate(jobs)])


def _undecoded(reason: str) -> Decoded:
    return Decoded(None, None, reason, reason)


# ----------------------------------------------------------------------------------------------------------- embedding


class EmbedBlock:
    """The encoders in an actor, on one core or one device."""

    def __init__(self, shipped: Sequence[Any], *, device: str, compile: bool, batch_size: int, counts: Any) -> None:
        """Take the encoders out of Ray's object store.

        Args:
            shipped: one reference to what `ship_encoders` made; in a list, so that it arrives as a reference.
            device: "cpu", or "cuda" for the device that Ray gave to this actor.
            compile: see `Placement`.
            batch_size: clips per forward pass.
            counts: the actor that counts.
        """
        import ray
        import torch

        from alphafuse.extract.encoders.encoder import place

        self._shipped = ray.get(shipped[0])  # held: the weights lie in it
        if device == "cpu":
            torch.set_num_threads(1)
        encoders = unship_encoders(self._shipped)
        self._encoders = {name: place(encoder, device, compile=compile) for name, encoder in encoders.items()}
        self._batch_size, self._counts = batch_size, counts

    def __call__(self, row: Row) -> Row:
        """A decoded block -> its batches."""
        decoded_jobs = unpack_block(row)
        starts = range(0, len(decoded_jobs), self._batch_size)
        parts = (decoded_jobs[start : start + self._batch_size] for start in starts)
        batches = [embed_batch(self._encoders, part) for part in parts]
        _count(self._counts, embedded=len(decoded_jobs))
        return pack_block(row["number"], batches)


def ship_encoders(encoders: Mapping[str, Encoder]) -> tuple[bytes, list[np.ndarray]]:
    """Encoders on the CPU, ready for Ray's object store: the weights apart, as arrays.

    All actors of a machine share one copy of them, in the store's memory, and no machine needs the weights' files.
    """
    import numpy as np

    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _WeightsApart(stream, protocol=5, buffer_callback=buffers.append).dump(dict(encoders))
    return stream.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def unship_encoders(shipped: tuple[bytes, list[np.ndarray]]) -> dict[str, Encoder]:
    """The encoders again, with weights where they lie: to be read only."""
    pickled, arrays = shipped
    encoders: dict[str, Encoder] = pickle.loads(pickled, buffers=arrays)
    return encoders


class _WeightsApart(pickle.Pickler):
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
        warnings.simplefilter("ignore", UserWarning)  # that nothing may be written into it, which nothing is
        return torch.frombuffer(array, dtype=dtype).reshape(shape)


# ---------------------------------------------------------------------------------------------------------- committing


@dataclass(frozen=True)
class Commit:
    """One shard that is to be written, by whichever attempt.

    Attributes:
        folder: of the store.
        run: that has claimed the store (`Claims.claim_all`); None where there are no locks.
        stamp_ns: the shard's place among the others.
        recipes: modality -> what decides its numbers.
        provenance: what the shard records of its making.
    """

    folder: Path
    run: str | None
    stamp_ns: int
    recipes: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Committed:
    """Blocks that are in a shard now: their numbers, and figures."""

    numbers: tuple[int, ...]
    done: Done


def commit_blocks(commit: Commit, *tables: Any) -> Committed:
    """Embedded blocks -> one shard; another attempt at the same blocks finds it there and leaves it.

    Raises:
        StoreError: this machine doesn't see the store's folder, or another run has taken it over.
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
    """How far the stages are: an actor. Clips that are done twice, after a loss, are counted twice."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, **counts: int) -> None:
        """So many more clips."""
        for stage, clips in counts.items():
            self._counts[stage] = self._counts.get(stage, 0) + clips

    def read(self) -> dict[str, int]:
        """Stage -> clips."""
        return dict(self._counts)


def _count(actor: Any, **counts: int) -> None:
    """Tell the actor; it may be gone, and nobody waits."""
    actor.add.remote(**counts)

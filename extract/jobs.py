"""What passes between the parts of stage one: a clip to embed, and clips that are embedded. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.manifest import Clip
from alphafuse.data.store import Embeddings, Failure


@dataclass(frozen=True)
class Job:
    """A clip, its file, and the modalities that are wanted of it."""

    clip: Clip
    path: Path
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Clips that are embedded.

    Attributes:
        jobs: what was asked for.
        rows: modality -> (clips, dim) float32; NaN where a clip has no such embedding, or it wasn't asked for.
        failures: why, for those that were asked for.
        seconds: that it took, of one core on the CPU, of the device elsewhere.
        decode_seconds: of one core, that decoding its clips took.
    """

    jobs: tuple[Job, ...]
    rows: dict[str, np.ndarray]
    failures: tuple[Failure, ...]
    seconds: float
    decode_seconds: float

    @property
    def nbytes(self) -> int:
        """Of its embeddings."""
        return sum(rows.nbytes for rows in self.rows.values())

    def embedded(self, modality: str) -> int:
        """Embeddings made of this modality."""
        asked = sum(modality in job.modalities for job in self.jobs)
        return asked - sum(failure.modality == modality for failure in self.failures)


@dataclass(frozen=True)
class Done:
    """Figures of clips that are dealt with.

    Attributes:
        clips: how many.
        embedded: modality -> embeddings made.
        failures: why others were not.
        decode_seconds: of one core.
        embed_seconds: of one core on the CPU, of the device elsewhere.
    """

    clips: int
    embedded: dict[str, int]
    failures: tuple[Failure, ...]
    decode_seconds: float
    embed_seconds: float

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Done:
        """Of these batches."""
        modalities = dict.fromkeys(modality for batch in batches for modality in batch.rows)
        return cls(
            clips=sum(len(batch.jobs) for batch in batches),
            embedded={modality: sum(batch.embedded(modality) for batch in batches) for modality in modalities},
            failures=tuple(failure for batch in batches for failure in batch.failures),
            decode_seconds=sum(batch.decode_seconds for batch in batches),
            embed_seconds=sum(batch.seconds for batch in batches),
        )


def join_batches(batches: Sequence[Batch], settings: Mapping[str, Mapping[str, Any]]) -> Embeddings:
    """Batches -> what a shard is made of.

    Args:
        batches: at least one.
        settings: modality -> what decides its numbers.
    """
    jobs = [job for batch in batches for job in batch.jobs]
    modalities = [name for name in settings if any(name in job.modalities for job in jobs)]
    return Embeddings(
        clip_ids=tuple(job.clip.clip_id for job in jobs),
        labels=tuple(job.clip.label for job in jobs),
        groups=tuple(job.clip.group for job in jobs),
        features={name: np.concatenate([batch.rows[name] for batch in batches]) for name in modalities},
        failures=tuple(failure for batch in batches for failure in batch.failures),
        settings={name: settings[name] for name in modalities},
    )

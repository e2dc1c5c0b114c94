"""Check a store: extract some of its clips again and compare the embeddings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.errors import DatasetError
from alphafuse.system.interrupts import map_in

from .engines.embedder import load_stored
from .jobs import Job
from .settings import ExtractSettings

# largest difference divided by the embedding's largest value; another machine or batch changes float32 by 1e-5
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


@dataclass(frozen=True)
class Difference:
    """The difference between a stored embedding and the one extracted again.

    Attributes:
        clip_id, stream: the clip and stream of the embedding.
        relative: largest absolute difference divided by the stored embedding's largest absolute value; infinite if one
            of the two is absent.
        reason: why extraction gave no embedding this time, else "".
    """

    clip_id: str
    stream: str
    relative: float
    reason: str = ""


@dataclass(frozen=True)
class Resampling:
    """Result of extracting some clips again.

    Attributes:
        clips: number of clips in the sample.
        differences: one for each of their stored embeddings.
        tolerance: a larger difference is a problem.

    >>> from alphafuse import Dataset, resample
    >>> again = resample(Dataset.open("demo"), "test", 2)
    >>> again.largest <= again.tolerance
    True
    """

    clips: int
    differences: tuple[Difference, ...]
    tolerance: float

    @property
    def problems(self) -> tuple[Difference, ...]:
        """Differences above the tolerance."""
        return tuple(difference for difference in self.differences if not difference.relative <= self.tolerance)

    @property
    def largest(self) -> float:
        """The largest difference; 0 if there are none."""
        return max((difference.relative for difference in self.differences), default=0.0)


def resample(
    dataset: Dataset | str | Path, split: str, clips: int, settings: ExtractSettings | None = None, *, seed: int = 0
) -> Resampling:
    """Extract a random sample of a store's clips again, with the encoders that made it, and compare.

    Args:
        dataset: the root, or its folder.
        split: the split whose store is checked.
        clips: size of the sample, from the clips that have an embedding; all if there are fewer.
        settings: how to extract; encoders, protocol and precision default to those of the store.
        seed: decides the sample.

    Raises:
        DatasetError: the store is empty.
        RecipeMismatchError, EncoderError: the encoders are not those that made the store.

    >>> from alphafuse import Dataset, resample
    >>> again = resample(Dataset.open("demo"), "val", 2)
    >>> again.clips, len(again.differences), again.problems
    (2, 4, ())
    """
    dataset = Dataset.open(dataset)
    store = dataset.store(split)
    if not store.dims():
        raise DatasetError(f"no embeddings in {store.folder}: run `alphafuse extract --split {split}` first")
    embedder = load_stored(dataset, split, settings or ExtractSettings())
    dataset = replace(dataset, streams=tuple(encoder.stream for encoder in embedder.encoders.values()))
    chosen = _choose(dataset, split, clips, seed)
    rows = store.read([job.clip for job in chosen])
    differences = []
    with embedder.model_threads() as pool:
        decoded_jobs = ([decoded_job] for decoded_job in embedder.decode(chosen))
        position = {job.clip.clip_id: i for i, job in enumerate(chosen)}
        for batch in map_in(pool, embedder.embed, decoded_jobs):
            reasons = {failure.stream: failure.reason for failure in batch.failures}
            (job,) = batch.jobs
            for stream, made in batch.rows.items():
                before = rows.features[stream][position[job.clip.clip_id]]
                if np.isfinite(before).all():
                    relative = float(np.abs(made[0] - before).max() / np.abs(before).max())
                    reason = reasons.get(stream, "")
                    differences.append(Difference(job.clip.clip_id, stream, np.inf if reason else relative, reason))
    order = sorted(differences, key=lambda difference: (difference.clip_id, difference.stream))
    tolerance = max(TOLERANCE[encoder.placement.precision] for encoder in embedder.encoders.values())
    return Resampling(len(chosen), tuple(order), tolerance)


def _choose(dataset: Dataset, split: str, clips: int, seed: int) -> Sequence[Job]:
    """Choose clips of the manifest that have an embedding, at random."""
    every = dataset.manifest.require_split(split)
    rows = dataset.store(split).open_rows(every)
    present = {stream: rows.present(stream) for stream in rows.dims if stream in dataset.media}
    jobs = [
        Job.of(dataset, clip, tuple(stream for stream in present if present[stream][i])) for i, clip in enumerate(every)
    ]
    embedded = [job for job in jobs if job.streams]
    return random.Random(seed).sample(embedded, min(clips, len(embedded)))

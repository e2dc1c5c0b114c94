"""Embed clip files into memory, as prediction needs it, with the same code as stage one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alphafuse.data.embeddings import Embeddings, Failure
from alphafuse.data.manifest import Clip
from alphafuse.extract.decoding.specs import Inputs
from alphafuse.extract.engines.embedder import DecodedJobs, Embedder
from alphafuse.system.progress import NO_PROGRESS, Progress

from .jobs import Batch, Job


@dataclass(frozen=True)
class EmbeddedFiles:
    """Embeddings of files, in the given order; a row of NaN means that a file has none.

    Attributes:
        rows: embeddings of the clips; its failures say why a row is absent. Its clip_ids are positions, "0", "1", ...
        blank: embeddings of a black picture and silence of the same numbers of frames and samples; None unless
            requested.
        sound_seconds: (files,) float64: seconds of each file's sound; NaN without, or if no stream hears.
    """

    rows: Embeddings
    blank: Embeddings | None
    sound_seconds: np.ndarray

    def reasons(self, position: int) -> dict[str, str]:
        """Return stream -> why the file at this position has no such embedding."""
        return {f.stream: f.reason for f in self.rows.failures if f.clip_id == str(position)}


def embed_files(
    embedder: Embedder,
    files: Sequence[Path],
    *,
    blank: bool = False,
    progress: Progress = NO_PROGRESS,
) -> EmbeddedFiles:
    """Embed files as stage one embeds clips: the embeddings are the same, on the CPU to the bit.

    Args:
        embedder: the encoders to use.
        files: clip files; one that can't be read becomes a failure with its reason.
        blank: also embed a black picture and silence of each clip's length, to measure what a stream contributes.
        progress: `advance` is called for each batch of files, within a round that the caller starts and stops.
    """
    streams = tuple(embedder.encoders)
    rows, blanks = (
        {name: np.full((len(files), b.dim), np.nan, np.float32) for name, b in embedder.encoders.items()}
        for _ in range(2)
    )
    failures: list[Failure] = []
    heard = np.full(len(files), np.nan)
    of_blank: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def embed(decoded_jobs: DecodedJobs) -> tuple[Batch, dict[tuple[str, int], np.ndarray]]:
        """Return the batch, and (stream, position in the batch) -> the row of the same clip made blank."""
        blank_rows = {}
        for job, decoded in decoded_jobs:
            heard[int(job.clip.clip_id)] = decoded.sound_seconds
        for i, (job, decoded) in enumerate(decoded_jobs if blank else ()):
            for stream, part in decoded.arrays.items():
                blank_rows[stream, i] = blank_row(stream, part.shape, job, decoded)
        return embedder.embed(decoded_jobs), blank_rows

    def blank_row(stream: str, shape: tuple[int, ...], job: Job, decoded: Inputs) -> np.ndarray:
        if (stream, shape) not in of_blank:  # two threads may both compute it, with the same result
            made = embedder.embed([(replace(job, streams=(stream,)), _blank(decoded))])
            of_blank[stream, shape] = made.rows[stream][0]
        return of_blank[stream, shape]

    ids = tuple(str(i) for i in range(len(files)))
    jobs = (Job(Clip(i, "-", "-", "test", i), path, streams) for i, path in zip(ids, files, strict=True))
    with closing(embedder.map(embed, jobs)) as batches:
        for batch, blank_rows in batches:
            positions = [int(job.clip.clip_id) for job in batch.jobs]
            for stream in streams:
                rows[stream][positions] = batch.rows[stream]
            for (stream, i), row in blank_rows.items():
                blanks[stream][positions[i]] = row
            failures.extend(batch.failures)
            progress.advance(len(positions))
    embeddings = Embeddings(
        clip_ids=ids,
        labels=("-",) * len(files),
        groups=ids,
        features=rows,
        failures=tuple(sorted(failures, key=lambda failure: (int(failure.clip_id), failure.stream))),
        recipes=embedder.recipes,
    )
    return EmbeddedFiles(embeddings, replace(embeddings, features=blanks, failures=()) if blank else None, heard)


def _blank(decoded: Inputs) -> Inputs:
    """Return the same clip with a black picture and without sound."""
    return replace(decoded, arrays={stream: np.zeros_like(array) for stream, array in decoded.arrays.items()})

"""Files of clips -> their embeddings in memory: what prediction needs, by the same way as stage one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alphafuse.data.embeddings import Embeddings, Failure
from alphafuse.data.manifest import Clip
from alphafuse.extract.decoding.decode import Decoded
from alphafuse.extract.engines.embedder import Embedder

from .jobs import Job


@dataclass(frozen=True)
class EmbeddedFiles:
    """Embeddings of files, in the order in which they were given; rows of NaN where a file has none.

    Attributes:
        rows: of the clips as they are; its failures say why a row is absent. Its clip_ids are positions, "0", "1", ...
        blank: of the same clips with a black picture and silence, frame for frame and sample for sample; None unless
            asked for.
    """

    rows: Embeddings
    blank: Embeddings | None

    def reasons(self, position: int) -> dict[str, str]:
        """modality -> why the file at this position has no such embedding."""
        return {f.modality: f.reason for f in self.rows.failures if f.clip_id == str(position)}


def embed_files(
    embedder: Embedder,
    files: Sequence[Path],
    *,
    blank: bool = False,
    progress: Callable[[int], object] | None = None,
) -> EmbeddedFiles:
    """Embed files as stage one embeds clips: the embeddings are the same, on the CPU to the bit.

    Args:
        embedder: the encoders.
        files: of clips; what can't be read becomes a failure with its reason.
        blank: also embed a black picture and silence of each clip's own length, to ask what a modality contributed.
        progress: called with 1 for each file that is done.
    """
    modalities = tuple(embedder.encoders)
    rows, blanks = (
        {name: np.full((len(files), b.dim), np.nan, np.float32) for name, b in embedder.encoders.items()}
        for _ in range(2)
    )
    failures: list[Failure] = []
    lock = threading.Lock()
    of_blank: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def use(decoded_jobs: Sequence[tuple[Job, Decoded]]) -> None:
        batch = embedder.embed(decoded_jobs)
        for i, (job, decoded) in enumerate(decoded_jobs):
            position = int(job.clip.clip_id)
            for modality in modalities:
                rows[modality][position] = batch.rows[modality][i]
            if blank:
                for modality, part in (("timesformer", decoded.frames), ("ast", decoded.waveform)):
                    if modality in modalities and part is not None:
                        blanks[modality][position] = blank_row(modality, part.shape, job, decoded)
        with lock:
            failures.extend(batch.failures)
            if progress is not None:
                for _ in decoded_jobs:
                    progress(1)

    def blank_row(modality: str, shape: tuple[int, ...], job: Job, decoded: Decoded) -> np.ndarray:
        if (modality, shape) not in of_blank:  # two threads may both embed it: the same row
            made = embedder.embed([(replace(job, modalities=(modality,)), _blank(decoded))])
            of_blank[modality, shape] = made.rows[modality][0]
        return of_blank[modality, shape]

    ids = tuple(str(i) for i in range(len(files)))
    embedder.run((Job(Clip(i, "-", "-", "test", i), path, modalities) for i, path in zip(ids, files, strict=True)), use)
    embeddings = Embeddings(
        clip_ids=ids,
        labels=("-",) * len(files),
        groups=ids,
        features=rows,
        failures=tuple(sorted(failures, key=lambda failure: (int(failure.clip_id), failure.modality))),
        recipes=embedder.recipes,
    )
    return EmbeddedFiles(embeddings, replace(embeddings, features=blanks, failures=()) if blank else None)


def _blank(decoded: Decoded) -> Decoded:
    """The same clip with a black picture and without a sound."""
    frames = None if decoded.frames is None else np.zeros_like(decoded.frames)
    waveform = None if decoded.waveform is None else np.zeros_like(decoded.waveform)
    return replace(decoded, frames=frames, waveform=waveform)

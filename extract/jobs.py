"""Values that the parts of stage one exchange: clips to embed, and embedded clips. Doesn't load torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from alphafuse.data.coverage import HEARD
from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings, Failure
from alphafuse.data.manifest import Clip, Clips


@dataclass(frozen=True)
class Job:
    """A clip, the streams to extract, and its file, or the files of its picture (`path`) and its sound (`audio`)."""

    clip: Clip
    path: Path
    streams: tuple[str, ...]
    audio: Path | None = None

    @classmethod
    def of(cls, dataset: Dataset, clip: Clip, streams: tuple[str, ...]) -> Job:
        """Return the job of a clip of a root."""
        path, *audio = dataset.paths_of(clip)
        return cls(clip, path, streams, *audio)

    @property
    def sound(self) -> Path:
        """The file with its sound."""
        return self.path if self.audio is None else self.audio

    @property
    def task(self) -> tuple[Path, tuple[str, ...], Path | None]:
        """What a decode worker needs."""
        return self.path, self.streams, self.audio


class Jobs(Sequence[Job]):
    """Jobs of one root, made on access; about 50 bytes per clip, shared with the manifest.

    Slices are `Jobs` too.
    """

    def __init__(self, clips: Clips, dataset: Dataset, wanted: Mapping[str, np.ndarray]) -> None:
        """Combine clips with the streams to extract.

        Args:
            clips: the clips.
            dataset: the root, which knows the clips' files.
            wanted: stream -> (clips,) bool: whether to extract it.
        """
        self.clips, self._dataset, self._wanted = clips, dataset, dict(wanted)

    def __len__(self) -> int:
        return len(self.clips)

    def __repr__(self) -> str:
        wanted = ", ".join(f"{stream}={mask.sum()}" for stream, mask in self._wanted.items())
        return f"Jobs({len(self)} clips, {wanted})"

    @overload
    def __getitem__(self, index: int) -> Job: ...

    @overload
    def __getitem__(self, index: slice) -> Jobs: ...

    def __getitem__(self, index: int | slice) -> Job | Jobs:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._job(range(len(self))[index], self.clips[index])

    def __iter__(self) -> Iterator[Job]:
        return (self._job(i, clip) for i, clip in enumerate(self.clips))

    def take(self, rows: np.ndarray) -> Jobs:
        """Return the jobs at these positions (an integer array) or under this mask (a boolean array)."""
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows
        wanted = {stream: mask[positions] for stream, mask in self._wanted.items()}
        return Jobs(self.clips.take(positions), self._dataset, wanted)

    def restricted_to(self, lacking: Mapping[str, np.ndarray]) -> Jobs:
        """Return the jobs that are left, each with what it lacks; `lacking`: stream -> (clips,) bool."""
        wanted = {stream: mask & lacking[stream] for stream, mask in self._wanted.items()}
        return Jobs(self.clips, self._dataset, wanted).take(np.any([*wanted.values()], axis=0))

    def _job(self, position: int, clip: Clip) -> Job:
        streams = tuple(name for name, mask in self._wanted.items() if mask[position])
        return Job.of(self._dataset, clip, streams)


@dataclass(frozen=True)
class Batch:
    """Embedded clips.

    Attributes:
        jobs: the jobs of these clips.
        rows: stream -> (clips, dim) float32; NaN if a clip has no such embedding, or its job doesn't ask for it.
        failures: reasons, for embeddings that the jobs ask for.
        seconds: (clips,) float64, duration that a player shows of each clip; nan if unknown.
        file_bytes: (clips,) int64, size of each clip's file; -1 = unknown.
        digests: (clips,) str, digest of each clip's file, see `Decoded.digest`; "" if unknown.
        decode_seconds: time of one core that decoding took.
        embed_seconds: time that embedding took: of one core if the models run on the CPU, else of the device.
        sound_seconds: (clips,) float64, duration of each clip's sound; nan if unknown.
    """

    jobs: tuple[Job, ...]
    rows: dict[str, np.ndarray]
    failures: tuple[Failure, ...]
    seconds: np.ndarray
    file_bytes: np.ndarray
    digests: np.ndarray
    decode_seconds: float
    embed_seconds: float
    sound_seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def nbytes(self) -> int:
        """Size of its embeddings in bytes."""
        return sum(rows.nbytes for rows in self.rows.values())

    def shorter_sounds(self) -> dict[str, float]:
        """Return clip_id -> seconds of its sound, of clips whose picture is clearly longer; most clips have none."""
        names = (job.clip.clip_id for job in self.jobs)
        lengths = zip(names, self.sound_seconds.tolist(), self.seconds.tolist(), strict=False)
        return {clip_id: sound for clip_id, sound, whole in lengths if sound < HEARD * whole}

    def embedded(self, stream: str) -> int:
        """Return the number of embeddings of this stream."""
        asked = sum(stream in job.streams for job in self.jobs)
        return asked - sum(failure.stream == stream for failure in self.failures)


@dataclass(frozen=True)
class Done:
    """Counts of what an engine has done since it last yielded a `Done`; `+` adds them up.

    Attributes:
        clips: clips that are in the store now, embedded or recorded as failed.
        embedded: stream -> embeddings made.
        failures: reasons why others could not be made.
        decode_seconds: decoding time of one core.
        embed_seconds: time in the models: of one core if they run on the CPU, else of the device.
        elsewhere: clips that another process has done meanwhile.
        is_shared: whether other processes could share the work; False if the file system has no locks.
        figures: progress beyond the store, as totals, not increments: embedded=96, nodes=3.
        shorter_sounds: clip_id -> seconds of sound, of clips whose picture is clearly longer.
    """

    clips: int = 0
    embedded: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    decode_seconds: float = 0.0
    embed_seconds: float = 0.0
    elsewhere: int = 0
    is_shared: bool = True
    figures: Mapping[str, int] = field(default_factory=dict)
    shorter_sounds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Done:
        """Count batches."""
        streams = dict.fromkeys(stream for batch in batches for stream in batch.rows)
        return cls(
            clips=sum(len(batch.jobs) for batch in batches),
            embedded={stream: sum(batch.embedded(stream) for batch in batches) for stream in streams},
            failures=tuple(failure for batch in batches for failure in batch.failures),
            decode_seconds=sum(batch.decode_seconds for batch in batches),
            embed_seconds=sum(batch.embed_seconds for batch in batches),
            shorter_sounds={name: value for batch in batches for name, value in batch.shorter_sounds().items()},
        )

    def __add__(self, other: Done) -> Done:
        streams = dict.fromkeys((*self.embedded, *other.embedded))
        return Done(
            clips=self.clips + other.clips,
            embedded={name: self.embedded.get(name, 0) + other.embedded.get(name, 0) for name in streams},
            failures=self.failures + other.failures,
            decode_seconds=self.decode_seconds + other.decode_seconds,
            embed_seconds=self.embed_seconds + other.embed_seconds,
            elsewhere=self.elsewhere + other.elsewhere,
            is_shared=self.is_shared and other.is_shared,
            figures={**self.figures, **other.figures},
            shorter_sounds={**self.shorter_sounds, **other.shorter_sounds},
        )


def join_batches(batches: Sequence[Batch], recipes: Mapping[str, Mapping[str, Any]]) -> Embeddings:
    """Join batches into the content of a shard.

    Args:
        batches: at least one.
        recipes: stream -> everything that decides its numbers.
    """
    jobs = [job for batch in batches for job in batch.jobs]
    streams = [name for name in recipes if any(name in job.streams for job in jobs)]
    seconds = np.concatenate([batch.seconds for batch in batches])
    return Embeddings(
        clip_ids=tuple(job.clip.clip_id for job in jobs),
        labels=tuple(job.clip.label for job in jobs),
        groups=tuple(job.clip.group for job in jobs),
        features={name: np.concatenate([batch.rows[name] for batch in batches]) for name in streams},
        failures=tuple(failure for batch in batches for failure in batch.failures),
        recipes={name: recipes[name] for name in streams},
        windows=np.stack([np.where(np.isnan(seconds), np.nan, 0.0), seconds], axis=1),
        file_bytes=np.concatenate([batch.file_bytes for batch in batches]),
        digests=tuple(str(digest) for batch in batches for digest in batch.digests),
    )

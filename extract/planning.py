"""How fast this machine extracts: measured on a few clips, for `--dry-run` and the benchmark."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loky import cpu_count

from alphafuse.data.dataset import FLOAT32_BYTES, Dataset
from alphafuse.system.interrupts import map_in

from .engines.embedder import Embedder, load_encoders
from .jobs import Job
from .settings import ExtractSettings
from .work import Work

SAMPLE_CLIPS = 8
OVERLAP = 1.15  # wall time x cores by the seconds of decoding and models; `alphafuse bench extract` measures it
TEXT_BYTES = 120  # of a clip in a shard: clip_id, label, group and their places in the file


@dataclass(frozen=True)
class Rates:
    """What one clip takes.

    Attributes:
        clips: that were measured.
        decode_seconds: of one core.
        embed_seconds: of one core while all cores embed, or of the device.
        cores: that there are.
        workers: decode processes.
        device: "cpu", "cuda:0", ...

    >>> from alphafuse import Rates
    >>> rates = Rates(clips=8, decode_seconds=0.15, embed_seconds=0.01, cores=16, workers=16, device="cuda:0")
    >>> round(rates.clips_per_second), round(rates.cores_per_device)
    (100, 15)
    """

    clips: int
    decode_seconds: float
    embed_seconds: float
    cores: int
    workers: int
    device: str

    @property
    def clips_per_second(self) -> float:
        """Expected of extraction: on the CPU decoding and models share the cores, else the slower of them decides."""
        if self.device == "cpu":
            return self.cores / (OVERLAP * (self.decode_seconds + self.embed_seconds))
        return min(self.decoded_per_second, self.embedded_per_second)

    @property
    def decoded_per_second(self) -> float:
        """By all workers, while they have the cores for themselves."""
        return self.workers / self.decode_seconds

    @property
    def embedded_per_second(self) -> float:
        """By the device, while it has clips."""
        return 1 / self.embed_seconds

    @property
    def cores_per_device(self) -> float:
        """Cores that decode as much as one device (or one core) embeds."""
        return self.decode_seconds / self.embed_seconds


@dataclass(frozen=True)
class ExtractPlan:
    """What extracting a split would do.

    Attributes:
        split: "train", "val" or "test".
        clips: of the split.
        pending: clips that lack something.
        finished: modality -> clips that are there, or have failed before.
        missing_files: clips to do whose file isn't there.
        store_bytes: that the store has now.
        new_bytes: that it will grow by.
        seconds: that it takes at the measured rate; None where nothing is to do.

    >>> from alphafuse import Dataset, plan_extraction
    >>> plans, _ = plan_extraction(Dataset.open("demo"), ["train", "val", "test"])
    >>> [(plan.split, plan.clips, plan.pending) for plan in plans]
    [('train', 230, 0), ('val', 26, 0), ('test', 192, 0)]
    """

    split: str
    clips: int
    pending: int
    finished: dict[str, int]
    missing_files: int
    store_bytes: int
    new_bytes: int
    seconds: float | None


def plan_extraction(
    dataset: Dataset, splits: Sequence[str], settings: ExtractSettings | None = None
) -> tuple[list[ExtractPlan], Rates | None]:
    """What `extract_embeddings` would do, and the rate measured on a few of the clips; nothing is written.

    Raises:
        RecipeMismatchError, EncoderError, DatasetError: what extracting would raise.

    >>> from alphafuse import Dataset, plan_extraction
    >>> plans, rates = plan_extraction(Dataset.open("demo"), ["test"])
    >>> plans[0].pending, plans[0].finished, rates
    (0, {'timesformer': 192, 'ast': 192}, None)
    """
    settings = settings or ExtractSettings()
    embedder = Embedder(load_encoders(dataset, settings, settings.device), settings)
    pending = {
        split: Work(dataset, split, embedder.recipes, retry_failed=settings.retry_failed).jobs for split in splits
    }
    files = {split: dataset.file_sizes(jobs.clips) for split, jobs in pending.items()}
    there = [job for split, jobs in pending.items() for job in jobs if job.clip.clip_id in files[split]]
    chosen = random.Random(0).sample(there, min(SAMPLE_CLIPS, len(there)))
    rates = measure_rates(embedder, chosen) if chosen else None
    missing = {split: len(jobs) - len(files[split]) for split, jobs in pending.items()}
    return [_plan(dataset, embedder, split, jobs, missing[split], rates) for split, jobs in pending.items()], rates


def measure_rates(embedder: Embedder, jobs: Sequence[Job]) -> Rates:
    """Decode these clips, then embed them, all threads at work; the first batch of each thread isn't counted."""
    decoded_jobs = list(embedder.decode(jobs))
    size = embedder.batch_size
    batches = [decoded_jobs[start : start + size] for start in range(0, len(decoded_jobs), size)]
    with embedder.model_threads() as pool:
        list(map_in(pool, embedder.embed, [batches[0]] * embedder.threads))
        embedded = list(map_in(pool, embedder.embed, batches))
    return Rates(
        clips=len(jobs),
        decode_seconds=sum(decoded.cpu_seconds for _, decoded in decoded_jobs) / len(jobs),
        embed_seconds=sum(batch.embed_seconds for batch in embedded) / len(jobs),
        cores=cpu_count(),
        workers=embedder.memory.workers,
        device=str(embedder.device),
    )


def clip_bytes(dims: Mapping[str, int]) -> int:
    """Of a clip in a shard, by the dimensions of the embeddings that it has."""
    return TEXT_BYTES + FLOAT32_BYTES * sum(dims.values())


def _plan(
    dataset: Dataset, embedder: Embedder, split: str, jobs: Sequence[Job], missing_files: int, rates: Rates | None
) -> ExtractPlan:
    clips = dataset.manifest.require_split(split)
    lacking = {modality: sum(modality in job.modalities for job in jobs) for modality in embedder.encoders}
    dims = {modality: encoder.dim for modality, encoder in embedder.encoders.items()}
    return ExtractPlan(
        split=split,
        clips=len(clips),
        pending=len(jobs),
        finished={modality: len(clips) - count for modality, count in lacking.items()},
        missing_files=missing_files,
        store_bytes=dataset.store(split).size_bytes(),
        new_bytes=sum(clip_bytes({modality: dims[modality] for modality in job.modalities}) for job in jobs),
        seconds=len(jobs) / rates.clips_per_second if rates else None,
    )

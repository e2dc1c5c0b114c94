"""How long extraction takes: seconds per clip are measured on a few clips here, the rest is arithmetic.

    plan_extraction(dataset, splits) -> what each split's store lacks, its size, and the time at the rate measured here
    plan_clips(clips, rates.on(cpus=512, gpus=8), dims) -> the same for clips and machines that are not here

Decoding and models are the two stages that matter; docs/scale.md says when network, driver or commits do.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loky import cpu_count

from alphafuse.data.dataset import FLOAT32_BYTES, Dataset
from alphafuse.errors import ClusterError, DatasetError
from alphafuse.system.cluster import alive_nodes, connected
from alphafuse.system.devices import list_devices
from alphafuse.system.interrupts import map_in

from .engines.embedder import Embedder, load_encoders
from .jobs import Job
from .settings import ExtractSettings
from .work import Work

SAMPLE_CLIPS = 8
SAMPLED_FILES = 1000  # clips whose files are looked for, until some are found to measure
OVERLAP = 1.15  # wall time x cores by the seconds of decoding and models; docs/extraction.md measured 1.02
FEEDING_CORES = 1  # that each GPU takes for itself: they prepare batches and start kernels
TEXT_BYTES = 120  # of a clip in a shard: clip_id, label, group and their places in the file
DEFAULT_DIM = 768  # of an embedding of either published encoder


@dataclass(frozen=True)
class Rates:
    """What one clip takes, and the machines that share the work.

    Attributes:
        clips: that were measured; 0 where the seconds were given.
        decode_seconds: of one core.
        embed_seconds: of one core while all cores embed, or of one device.
        cores: that there are.
        workers: decode processes.
        device: that runs the models: "cpu", "cuda:0", ...
        devices: how many of that device there are; the CPU counts as one.

    >>> from alphafuse import Rates
    >>> rates = Rates(clips=8, decode_seconds=0.15, embed_seconds=0.01, cores=16, workers=16, device="cuda:0")
    >>> round(rates.clips_per_second), round(rates.cores_per_device), rates.bottleneck
    (100, 15, 'models')
    >>> round(rates.on(cpus=512, gpus=8).clips_per_second)  # 800 if more cores decoded
    800
    """

    clips: int
    decode_seconds: float
    embed_seconds: float
    cores: int
    workers: int
    device: str
    devices: int = 1

    @property
    def clips_per_second(self) -> float:
        """Expected of extraction: on the CPU decoding and models share the cores, else the slower of them decides."""
        if self.device == "cpu":
            return self.cores / (OVERLAP * (self.decode_seconds + self.embed_seconds))
        return min(self.decoded_per_second, self.embedded_per_second)

    @property
    def bottleneck(self) -> str:
        """The stage that decides: "cores" (of both stages), "decoding" or "models"."""
        if self.device == "cpu":
            return "cores"
        return "decoding" if self.decoded_per_second < self.embedded_per_second else "models"

    @property
    def decoded_per_second(self) -> float:
        """By all workers, while they have the cores for themselves."""
        return self.workers / self.decode_seconds

    @property
    def embedded_per_second(self) -> float:
        """By all devices, while they have clips."""
        return self.devices / self.embed_seconds

    @property
    def cores_per_device(self) -> float:
        """Cores that decode as much as one device (or one core) embeds."""
        return self.decode_seconds / self.embed_seconds

    def on(self, *, cpus: int, gpus: int = 0) -> Rates:
        """The same seconds per clip on other machines.

        Args:
            cpus: cores of all machines; each like the one that was measured.
            gpus: GPUs of all machines, each like the one that was measured and fed by a core of its own; 0 = the cores
                run the models.

        Raises:
            ClusterError: too few cores, or seconds measured on a CPU for models on GPUs (or the other way round).
        """
        if gpus < 0:
            raise ClusterError(f"gpus must be at least 0, not {gpus}: give --gpus another")
        if cpus <= gpus * FEEDING_CORES:
            raise ClusterError(
                f"{cpus} cores are too few for {gpus} GPUs: each GPU takes a core to feed it, the others decode; give "
                "more --cpus or fewer --gpus"
            )
        if bool(gpus) != (self.device != "cpu"):
            raise ClusterError(
                "the models were measured on the CPU, which says nothing of GPUs: give --embed-seconds, or measure on "
                "a machine with such a GPU"
                if gpus
                else f"the models were measured on {self.device}, which says nothing of cores: measure with --device "
                "cpu, or give --gpus"
            )
        return replace(self, cores=cpus, workers=cpus - gpus * FEEDING_CORES, devices=gpus or 1)


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


@dataclass(frozen=True)
class ClipsPlan:
    """What extracting many clips would take.

    Attributes:
        clips: how many.
        rates: seconds per clip, and the machines.
        seconds: of the whole run, without starting a cluster and loading the models.
        core_hours, gpu_hours: of all cores and all GPUs, busy or idle.
        store_bytes: of all shards.
    """

    clips: int
    rates: Rates
    seconds: float
    core_hours: float
    gpu_hours: float
    store_bytes: int


def plan_extraction(
    dataset: Dataset, splits: Sequence[str], settings: ExtractSettings | None = None
) -> tuple[list[ExtractPlan], Rates | None]:
    """What `extract_embeddings` would do, and the rate measured on a few of the clips; nothing is written.

    Where several devices or a Ray cluster would do the work, one device of this machine is measured, and all of them
    are counted.

    Raises:
        RecipeMismatchError, EncoderError, DatasetError: what extracting would raise.
        ClusterError: the Ray cluster can't be had, or has GPUs while this machine has none to measure.

    >>> from alphafuse import Dataset, plan_extraction
    >>> plans, rates = plan_extraction(Dataset.open("demo"), ["test"])
    >>> plans[0].pending, plans[0].finished, rates
    (0, {'timesformer': 192, 'ast': 192}, None)
    """
    settings = settings or ExtractSettings()
    cluster = _cluster(settings) if settings.engine == "ray" else None
    embedder = _embedder(dataset, _measured(settings, cluster))
    pending = {
        split: Work(dataset, split, embedder.recipes, retry_failed=settings.retry_failed).jobs for split in splits
    }
    files = {split: dataset.file_sizes(jobs.clips) for split, jobs in pending.items()}
    there = [job for split, jobs in pending.items() for job in jobs if job.clip.clip_id in files[split]]
    chosen = random.Random(0).sample(there, min(SAMPLE_CLIPS, len(there)))
    rates = _shared(measure_rates(embedder, chosen), settings, cluster) if chosen else None
    missing = {split: len(jobs) - len(files[split]) for split, jobs in pending.items()}
    return [_plan(dataset, embedder, split, jobs, missing[split], rates) for split, jobs in pending.items()], rates


def plan_clips(clips: int, rates: Rates, dims: Mapping[str, int]) -> ClipsPlan:
    """What extracting `clips` clips takes at these rates; `dims`: stream -> numbers of its embedding.

    Raises:
        ClusterError: less than one clip.
    """
    if clips < 1:
        raise ClusterError(f"clips must be at least 1, not {clips}: give --clips another")
    seconds = clips / rates.clips_per_second
    gpus = 0 if rates.device == "cpu" else rates.devices
    hours = seconds / 3600
    return ClipsPlan(clips, rates, seconds, rates.cores * hours, gpus * hours, clips * clip_bytes(dims))


def measure_root(dataset: Dataset, settings: ExtractSettings) -> tuple[Rates, dict[str, int]]:
    """Seconds per clip and dimensions of the embeddings, measured on clips of a root, extracted or not; writes nothing.

    Raises:
        DatasetError: no clip's file is there.
        EncoderError: an encoder can't be had.
    """
    looked_at = _some(dataset.manifest, SAMPLED_FILES)
    files = dataset.file_sizes(looked_at)
    there = [clip for clip in looked_at if clip.clip_id in files]
    if not there:
        raise DatasetError(
            f"none of the clip files looked at is in {dataset.clip_folder}: bring them back, or give --decode-seconds "
            "and --embed-seconds instead of --root"
        )
    embedder = _embedder(dataset, _measured(settings, None))
    jobs = [Job(clip, dataset.path_of(clip), settings.modalities) for clip in _some(there, SAMPLE_CLIPS)]
    return measure_rates(embedder, jobs), {name: encoder.dim for name, encoder in embedder.encoders.items()}


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


def _some(items: Sequence, count: int) -> list:
    return random.Random(0).sample(items, min(count, len(items)))


def _cluster(settings: ExtractSettings) -> tuple[int, int]:
    """Cores and GPUs of the Ray cluster; GPUs are 0 where the cores are to run the models."""
    with connected(settings.address, memory_bytes=int(settings.max_memory_gb * 1e9)) as ray:
        resources = [node["Resources"] for node in alive_nodes(ray)]
    cpus, gpus = (int(sum(of_node.get(name, 0.0) for of_node in resources)) for name in ("CPU", "GPU"))
    return cpus, 0 if settings.device == "cpu" else gpus


def _embedder(dataset: Dataset, settings: ExtractSettings) -> Embedder:
    return Embedder(load_encoders(dataset, settings, settings.device), settings)


def _measured(settings: ExtractSettings, cluster: tuple[int, int] | None) -> ExtractSettings:
    """The same settings for the one device of this machine that is measured."""
    if cluster is None:
        return replace(settings, device=list_devices(settings.device)[0], engine="local")
    import torch

    _, gpus = cluster
    if gpus and not torch.cuda.is_available():
        raise ClusterError(
            f"the Ray cluster has {gpus} GPUs and this machine none to measure: run the dry run on a machine that has "
            "one, or with --device cpu"
        )
    return replace(settings, device="cuda" if gpus else "cpu", engine="local")


def _shared(rates: Rates, settings: ExtractSettings, cluster: tuple[int, int] | None) -> Rates:
    """What was measured on one device, for all devices that would do the work."""
    if cluster is not None:
        cpus, gpus = cluster
        return rates.on(cpus=cpus, gpus=gpus)
    return rates if rates.device == "cpu" else replace(rates, devices=len(list_devices(settings.device)))


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

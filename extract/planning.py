"""Plan extraction: measure seconds per clip on a few clips, and compute hours and sizes from that.

    plan_extraction(dataset, splits) -> what each split's store lacks, its size, and the time at the measured rate
    plan_clips(clips, rates.on(cpus=512, gpus=8), dims) -> the same for any number of clips and other machines

Decoding and models are the two stages that matter; docs/scale.md says when network, driver or commits matter too.
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
from .missing import Work
from .settings import ExtractSettings

SAMPLE_CLIPS = 8
SAMPLED_FILES = 1000  # clips whose files are checked, to find some to measure
OVERLAP = 1.15  # wall time x cores divided by the seconds of decoding and models; docs/extraction.md measured 1.02
FEEDING_CORES = 1  # cores per GPU that prepare batches and start kernels
TEXT_BYTES = 120  # size of a clip's clip_id, label, group and their positions in a shard
DEFAULT_DIM = 768  # dimension of both published encoders


@dataclass(frozen=True)
class Rates:
    """Time per clip, and the machines that share the work.

    Attributes:
        clips: number of measured clips; 0 if the seconds were given.
        decode_seconds: decoding time of one core per clip.
        embed_seconds: time in the models per clip: of one core while all cores embed, or of one device.
        cores: number of cores.
        workers: number of decode processes.
        device: device of the models: "cpu", "cuda:0", ...
        devices: number of these devices; the CPU counts as one.

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
        """Expected rate: on the CPU decoding and models share the cores, else the slower of the two decides."""
        if self.device == "cpu":
            return self.cores / (OVERLAP * (self.decode_seconds + self.embed_seconds))
        return min(self.decoded_per_second, self.embedded_per_second)

    @property
    def bottleneck(self) -> str:
        """What limits the rate: "cores" (shared by both stages), "decoding" or "models"."""
        if self.device == "cpu":
            return "cores"
        return "decoding" if self.decoded_per_second < self.embedded_per_second else "models"

    @property
    def decoded_per_second(self) -> float:
        """Clips per second that all workers decode if nothing else uses the cores."""
        return self.workers / self.decode_seconds

    @property
    def embedded_per_second(self) -> float:
        """Clips per second that all devices embed if decoding keeps up."""
        return self.devices / self.embed_seconds

    @property
    def cores_per_device(self) -> float:
        """Cores that decode as many clips as one device (or one core) embeds."""
        return self.decode_seconds / self.embed_seconds

    def on(self, *, cpus: int, gpus: int = 0) -> Rates:
        """Return rates with the same seconds per clip for other machines.

        Args:
            cpus: cores of all machines, each like the measured one.
            gpus: GPUs of all machines, each like the measured one, with a core to feed it; 0 = the cores run the
                models.

        Raises:
            ClusterError: there are too few cores, or the models were measured on a CPU and `gpus` > 0 (or vice versa).
        """
        if gpus < 0:
            raise ClusterError(f"gpus must be at least 0, not {gpus}")
        if cpus <= gpus * FEEDING_CORES:
            raise ClusterError(
                f"{cpus} cores are too few for {gpus} GPUs: each GPU needs one, and decoding at least one; give "
                "more --cpus or fewer --gpus"
            )
        if bool(gpus) != (self.device != "cpu"):
            raise ClusterError(
                "the models were measured on the CPU, so the rate on GPUs is unknown: give --embed-seconds, or measure "
                "on a machine with such a GPU"
                if gpus
                else f"the models were measured on {self.device}, so the rate on cores is unknown: measure with "
                "--device cpu, or give --gpus"
            )
        return replace(self, cores=cpus, workers=cpus - gpus * FEEDING_CORES, devices=gpus or 1)


@dataclass(frozen=True)
class ExtractPlan:
    """Plan of a split's extraction: work, time and size.

    Attributes:
        split: "train", "val" or "test".
        clips: clips of the split.
        pending: clips that lack an embedding.
        finished: stream -> clips that have an embedding or a recorded failure.
        missing_files: pending clips whose file doesn't exist.
        store_bytes: present size of the store.
        new_bytes: growth of the store.
        seconds: time at the measured rate; None if nothing is pending.

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
    """Time and space that extracting many clips would take.

    Attributes:
        clips: number of clips.
        rates: seconds per clip, and the machines.
        seconds: time of the whole run, without starting a cluster and loading the models.
        core_hours, gpu_hours: hours of all cores and all GPUs, busy or idle.
        store_bytes: size of all shards.
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
    """Plan what `extract_embeddings` would do, and measure the rate on a few of the clips; nothing is written.

    If several devices or a Ray cluster would do the work, one device of this machine is measured, and the rate is
    computed for all of them.

    Raises:
        RecipeMismatchError, EncoderError, DatasetError: as `extract_embeddings` raises them.
        ClusterError: the Ray cluster can't be reached, or has GPUs while this machine has none to measure.

    >>> from alphafuse import Dataset, plan_extraction
    >>> plans, rates = plan_extraction(Dataset.open("demo"), ["test"])
    >>> plans[0].pending, plans[0].finished, rates
    (0, {'timesformer': 192, 'ast': 192}, None)
    """
    settings = settings or ExtractSettings()
    cluster = _cluster(settings) if settings.engine == "ray" else None
    embedder = _embedder(dataset, _settings_to_measure(settings, cluster))
    pending = {
        split: Work(dataset, split, embedder.recipes, retry_failed=settings.retry_failed).jobs for split in splits
    }
    files = {split: dataset.file_sizes(jobs.clips) for split, jobs in pending.items()}
    existing = [job for split, jobs in pending.items() for job in jobs if job.clip.clip_id in files[split]]
    chosen = random.Random(0).sample(existing, min(SAMPLE_CLIPS, len(existing)))
    rates = _rates_of_all_devices(measure_rates(embedder, chosen), settings, cluster) if chosen else None
    missing = {split: len(jobs) - len(files[split]) for split, jobs in pending.items()}
    return [_plan(dataset, embedder, split, jobs, missing[split], rates) for split, jobs in pending.items()], rates


def plan_clips(clips: int, rates: Rates, dims: Mapping[str, int]) -> ClipsPlan:
    """Compute what extracting `clips` clips takes at these rates; `dims`: stream -> dimension of its embeddings.

    Raises:
        ClusterError: `clips` is less than 1.
    """
    if clips < 1:
        raise ClusterError(f"clips must be at least 1, not {clips}")
    seconds = clips / rates.clips_per_second
    gpus = 0 if rates.device == "cpu" else rates.devices
    hours = seconds / 3600
    return ClipsPlan(clips, rates, seconds, rates.cores * hours, gpus * hours, clips * clip_bytes(dims))


def measure_root(dataset: Dataset, settings: ExtractSettings) -> tuple[Rates, dict[str, int]]:
    """Measure seconds per clip and the dimensions of the embeddings on clips of a root; writes nothing.

    Raises:
        DatasetError: no clip has a file.
        EncoderError: an encoder can't be loaded.
    """
    sampled = _random_sample(dataset.manifest, SAMPLED_FILES)
    files = dataset.file_sizes(sampled)
    existing = [clip for clip in sampled if clip.clip_id in files]
    if not existing:
        raise DatasetError(
            f"none of the first clips has a file in {dataset.clip_folder}: restore them, or give --decode-seconds "
            "and --embed-seconds instead of --root"
        )
    embedder = _embedder(dataset, _settings_to_measure(settings, None))
    streams = tuple(embedder.encoders)
    jobs = [Job(clip, dataset.path_of(clip), streams) for clip in _random_sample(existing, SAMPLE_CLIPS)]
    return measure_rates(embedder, jobs), {name: encoder.dim for name, encoder in embedder.encoders.items()}


def measure_rates(embedder: Embedder, jobs: Sequence[Job]) -> Rates:
    """Decode these clips, then embed them with all threads; the first batch of each thread isn't counted."""
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
    """Return the size of a clip in a shard in bytes; `dims`: dimensions of its embeddings."""
    return TEXT_BYTES + FLOAT32_BYTES * sum(dims.values())


def _random_sample(items: Sequence, count: int) -> list:
    return random.Random(0).sample(items, min(count, len(items)))


def _cluster(settings: ExtractSettings) -> tuple[int, int]:
    """Return cores and GPUs of the Ray cluster; GPUs are 0 if the cores run the models."""
    with connected(settings.address, memory_bytes=int(settings.max_memory_gb * 1e9)) as ray:
        resources = [node["Resources"] for node in alive_nodes(ray)]
    cpus, gpus = (int(sum(of_node.get(name, 0.0) for of_node in resources)) for name in ("CPU", "GPU"))
    return cpus, 0 if settings.device == "cpu" else gpus


def _embedder(dataset: Dataset, settings: ExtractSettings) -> Embedder:
    return Embedder(load_encoders(dataset, settings, settings.device), settings)


def _settings_to_measure(settings: ExtractSettings, cluster: tuple[int, int] | None) -> ExtractSettings:
    """Return the settings for the one device of this machine that is measured."""
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


def _rates_of_all_devices(rates: Rates, settings: ExtractSettings, cluster: tuple[int, int] | None) -> Rates:
    """Return the rates measured on one device for all devices that would do the work."""
    if cluster is not None:
        cpus, gpus = cluster
        return rates.on(cpus=cpus, gpus=gpus)
    return rates if rates.device == "cpu" else replace(rates, devices=len(list_devices(settings.device)))


def _plan(
    dataset: Dataset, embedder: Embedder, split: str, jobs: Sequence[Job], missing_files: int, rates: Rates | None
) -> ExtractPlan:
    clips = dataset.manifest.require_split(split)
    lacking = {stream: sum(stream in job.streams for job in jobs) for stream in embedder.encoders}
    dims = {stream: encoder.dim for stream, encoder in embedder.encoders.items()}
    return ExtractPlan(
        split=split,
        clips=len(clips),
        pending=len(jobs),
        finished={stream: len(clips) - count for stream, count in lacking.items()},
        missing_files=missing_files,
        store_bytes=dataset.store(split).size_bytes(),
        new_bytes=sum(clip_bytes({stream: dims[stream] for stream in job.streams}) for job in jobs),
        seconds=len(jobs) / rates.clips_per_second if rates else None,
    )

"""Plan extraction: measure seconds per clip on a few clips, and compute hours and sizes from that.

    plan_extraction(dataset, splits) -> what each split's store lacks, its size, and the time at the measured rate
    plan_clips(clips, rates.on(cpus=512, gpus=8), dims) -> the same for any number of clips and other machines

Decoding serves all streams at once; each stream's model is measured by itself. These stages are what matters;
docs/scale.md says when network, driver or commits matter too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from loky import cpu_count

from alphafuse.data.coverage import Coverage, coverage_of, stored_seconds
from alphafuse.data.dataset import FLOAT32_BYTES, Dataset
from alphafuse.data.streams import ALL
from alphafuse.errors import ClusterError, DatasetError
from alphafuse.system.cluster import alive_nodes, connected
from alphafuse.system.devices import list_devices
from alphafuse.system.interrupts import map_in
from alphafuse.system.remote import is_remote

from .decoding.probe import sound_seconds
from .engines.embedder import Embedder, embed_batch, load_encoders
from .jobs import Job
from .missing import Work, changed_clips
from .settings import ExtractSettings

SAMPLE_CLIPS = 8
PROBED = 1000  # clips whose headers tell how long they sound
SAMPLED_FILES = 1000  # clips whose files are checked, to find some to measure
OVERLAP = 1.15  # wall time x cores divided by the seconds of decoding and models; docs/extraction.md measured 1.02
FEEDING_CORES = 1  # cores per GPU that prepare batches and start kernels
TEXT_BYTES = 120  # size of a clip's clip_id, label, group and their positions in a shard
DEFAULT_DIM = 768  # dimension of both published encoders of the default streams


@dataclass(frozen=True)
class Rates:
    """Time per clip, and the machines that share the work.

    Attributes:
        clips: number of measured clips; 0 if the seconds were given.
        decode_seconds: decoding time of one core per clip, for all streams together.
        embed_seconds: time in all models per clip: of one core while all cores embed, or of one device.
        cores: number of cores.
        workers: number of decode processes.
        device: device of the models: "cpu", "cuda:0", ...
        devices: number of these devices; the CPU counts as one.
        stream_seconds: stream -> its part of `embed_seconds`; empty if the seconds were given.

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
    stream_seconds: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def clips_per_second(self) -> float:
        """Expected rate of clips that lack every stream."""
        return 1 / self.wall_seconds(self.decode_seconds, self.embed_seconds)

    def wall_seconds(self, decode: float, embed: float) -> float:
        """Return the time that these seconds of decoding and in the models take on all machines.

        On the CPU both share the cores, else the slower of the two decides.
        """
        if self.device == "cpu":
            return OVERLAP * (decode + embed) / self.cores
        return max(decode / self.workers, embed / self.devices)

    @property
    def bottleneck(self) -> str:
        """What limits the rate: "cores" (shared by both stages), "decoding" or "models"."""
        if self.device == "cpu":
            return "cores"
        return "decoding" if self.decode_seconds / self.workers > self.embed_seconds / self.devices else "models"

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
        stream_bytes: stream -> its part of `new_bytes`; the rest is the clips' names and labels.
        seconds: time at the measured rate; None if nothing is pending.
        coverage: what the streams hear of the split's clips, finished or pending (of at most `PROBED` pending ones, in
            local files, by their headers); empty if none of them hears.
        changed: clips whose file was changed since they were extracted; with settings.refresh they are extracted again.

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
    stream_bytes: dict[str, int]
    seconds: float | None
    coverage: tuple[Coverage, ...] = ()
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClipsPlan:
    """Time and space that extracting many clips would take.

    Attributes:
        clips: number of clips.
        rates: seconds per clip, and the machines.
        seconds: time of the whole run, without starting a cluster and loading the models.
        core_hours, gpu_hours: hours of all cores and all GPUs, busy or idle.
        store_bytes: size of all shards.
        stream_bytes: stream -> its part of `store_bytes`.
    """

    clips: int
    rates: Rates
    seconds: float
    core_hours: float
    gpu_hours: float
    store_bytes: int
    stream_bytes: dict[str, int]


def plan_extraction(
    dataset: Dataset | str | Path, splits: str | Sequence[str] = ALL, settings: ExtractSettings | None = None
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
    dataset = Dataset.open(dataset)
    splits = dataset.splits_of(splits)
    settings = settings or ExtractSettings()
    measured, of_all_devices = _one_device(settings)
    embedder = Embedder(load_encoders(dataset, measured, measured.device), measured)
    works = [Work(dataset, split, embedder.recipes, retry_failed=settings.retry_failed) for split in splits]
    lacking = {
        work.split: {name: sum(name in job.streams for job in work.jobs) for name in work.recipes} for work in works
    }
    files = {work.split: dataset.file_sizes(work.jobs.clips) for work in works}
    existing = [job for work in works for job in work.jobs if job.clip.clip_id in files[work.split]]
    wanted = tuple(name for name in embedder.encoders if any(counts[name] for counts in lacking.values()))
    rates = None
    if existing:  # each measured clip with every stream that some clip lacks
        sample = [replace(job, streams=wanted) for job in _random_sample(existing, SAMPLE_CLIPS)]
        rates = of_all_devices(measure_rates(embedder, sample))
    hearing = {name: heard for name, encoder in embedder.encoders.items() if (heard := encoder.hears)}
    probed = _probed(existing, settings) if hearing and not is_remote(dataset.clip_folder) else {}
    plans = []
    for work in works:
        own = {
            job.clip.clip_id: probed[job.sound]
            for job in existing
            if job.sound in probed and job.clip.split == work.split
        }
        pending, counts = len(work.jobs), lacking[work.split]
        sizes = {name: FLOAT32_BYTES * counts[name] * encoder.dim for name, encoder in embedder.encoders.items()}
        seconds = None
        if rates:
            models = sum(counts[name] * each for name, each in rates.stream_seconds.items())
            seconds = rates.wall_seconds(pending * rates.decode_seconds, models)
        plans.append(
            ExtractPlan(
                split=work.split,
                clips=work.clips,
                pending=pending,
                finished={name: work.clips - count for name, count in counts.items()},
                missing_files=pending - len(files[work.split]),
                store_bytes=work.store.size_bytes(),
                new_bytes=TEXT_BYTES * pending + sum(sizes.values()),
                stream_bytes=sizes,
                seconds=seconds,
                coverage=coverage_of(hearing, {**stored_seconds(dataset, work.split, hearing), **own})
                if hearing
                else (),
                changed=changed_clips(dataset, work.split, read=settings.refresh),
            )
        )
    return plans, rates


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
    sizes = {name: FLOAT32_BYTES * clips * dim for name, dim in dims.items()}
    store_bytes = TEXT_BYTES * clips + sum(sizes.values())
    return ClipsPlan(clips, rates, seconds, rates.cores * hours, gpus * hours, store_bytes, sizes)


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
    measured, _ = _one_device(replace(settings, engine="local"))
    embedder = Embedder(load_encoders(dataset, measured, measured.device), measured)
    streams = tuple(embedder.encoders)
    jobs = [Job.of(dataset, clip, streams) for clip in _random_sample(existing, SAMPLE_CLIPS)]
    return measure_rates(embedder, jobs), {name: encoder.dim for name, encoder in embedder.encoders.items()}


def measure_rates(embedder: Embedder, jobs: Sequence[Job]) -> Rates:
    """Decode these clips, then embed each of their streams with all threads.

    The jobs ask for the same streams. The first batch of each thread isn't counted.
    """
    decoded_jobs = list(embedder.decode(jobs))
    size = embedder.batch_size
    batches = [decoded_jobs[start : start + size] for start in range(0, len(decoded_jobs), size)]
    stream_seconds = {}
    with embedder.model_threads() as pool:
        for name in jobs[0].streams:
            embed = partial(embed_batch, {name: embedder.encoders[name]})
            list(map_in(pool, embed, [batches[0]] * embedder.threads))
            embedded = list(map_in(pool, embed, batches))
            stream_seconds[name] = sum(batch.embed_seconds for batch in embedded) / len(jobs)
    return Rates(
        clips=len(jobs),
        decode_seconds=sum(decoded.cpu_seconds for _, decoded in decoded_jobs) / len(jobs),
        embed_seconds=sum(stream_seconds.values()),
        cores=cpu_count(),
        workers=embedder.memory.workers,
        device=str(embedder.device),
        stream_seconds=stream_seconds,
    )


def _probed(jobs: Sequence[Job], settings: ExtractSettings) -> dict[Path, float]:
    """Return file of a clip's sound -> its seconds, of a random sample of clips."""
    files = [job.sound for job in _random_sample(jobs, PROBED)]
    return sound_seconds(files, workers=settings.workers) if files else {}


def _random_sample(items: Sequence, count: int) -> list:
    return random.Random(0).sample(items, min(count, len(items)))


def _one_device(settings: ExtractSettings) -> tuple[ExtractSettings, Callable[[Rates], Rates]]:
    """Return settings for the one device of this machine that is measured, and: its rates -> those of all devices."""
    if settings.engine != "ray":
        devices = list_devices(settings.device)

        def counted(rates: Rates) -> Rates:
            return rates if rates.device == "cpu" else replace(rates, devices=len(devices))

        return replace(settings, device=devices[0]), counted
    import torch

    with connected(settings.address, memory_bytes=int(settings.max_memory_gb * 1e9)) as ray:
        resources = [node["Resources"] for node in alive_nodes(ray)]
    cpus, gpus = (int(sum(of_node.get(name, 0.0) for of_node in resources)) for name in ("CPU", "GPU"))
    if settings.device == "cpu":
        gpus = 0  # the cores run the models
    if gpus and not torch.cuda.is_available():
        raise ClusterError(
            f"the Ray cluster has {gpus} GPUs and this machine none to measure: run the dry run on a machine that has "
            "one, or with --device cpu"
        )
    return replace(settings, device="cuda" if gpus else "cpu", engine="local"), partial(Rates.on, cpus=cpus, gpus=gpus)

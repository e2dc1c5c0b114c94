"""What a large run takes before anybody starts it: hours, store, what is the bottleneck, what stands idle.

Nothing is run here. Every figure says how it is known: "given" by whoever asks, "measured" (where, in its note),
"computed" from others, or "assumed". Stages are looked at one by one, the slowest decides:

    clips over the network -> decoding -> models -> driver's tasks -> commits
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import MODALITIES
from alphafuse.errors import ClusterError, DatasetError, unknown
from alphafuse.extract.decoding.specs import AudioSpec, FrameSpec
from alphafuse.extract.engines.embedder import decoded_bytes
from alphafuse.extract.engines.local import SHARD_BYTES
from alphafuse.extract.engines.ray_pools import bytes_of_block, clips_of_block

from .planning import OVERLAP, SAMPLE_CLIPS, Rates, clip_bytes
from .settings import BATCH_ON_CUDA, ExtractSettings

# Dense TFLOP/s of NVIDIA's data sheets (their tensor figures with sparsity are halved; boost clocks): fp32 by the
# ordinary cores, as PyTorch multiplies float32 unless TF32 is allowed, which extraction leaves off; bf16 by the tensor
# cores with float32 accumulation. None: no bf16 in hardware. From the data sheets of H200, H100, A100, L40S, L4, A10,
# V100 and T4, and the whitepapers of the Ada and Ampere GA102 architectures (RTX).
PEAK_TFLOPS: dict[str, dict[str, float | None]] = {
    "H200": {"fp32": 67.0, "bf16": 989.0},
    "H100": {"fp32": 67.0, "bf16": 989.0},  # SXM
    "H100 PCIe": {"fp32": 51.0, "bf16": 756.0},
    "A100": {"fp32": 19.5, "bf16": 312.0},
    "L40S": {"fp32": 91.6, "bf16": 362.0},
    "L4": {"fp32": 30.3, "bf16": 121.0},
    "A10": {"fp32": 31.2, "bf16": 125.0},
    "V100": {"fp32": 15.7, "bf16": None},
    "T4": {"fp32": 8.1, "bf16": None},
    "RTX 4090": {"fp32": 82.6, "bf16": 165.2},
    "RTX 3090": {"fp32": 35.6, "bf16": 71.0},
}
DEFAULT_GPU = "H100"
# of the peak. The nearest published measurement: timm's results/benchmark-infer-amp-nchw-pt240-cu124-rtx4090.csv has
# ViT-B/16, the same blocks, at 2,787 images/s on an RTX 4090: 98 TFLOP/s, 59% of its 165. Larger GPUs reach less.
ACHIEVED = {"fp32": 0.7, "bf16": 0.4}
DECODE_SECONDS = 0.148  # of a core, 51 clips of VGGSound: docs/extraction.md
CPU_GFLOPS = 193.0  # per core while all of two embed: 652.7 GFLOP in 1.69 s of both; docs/extraction.md
CLIP_FILE_BYTES = 1_158_770  # the same 51 clips' mean
FEEDING_CORES = 1  # that each GPU takes for itself: its actor prepares batches and starts kernels
# of the driver's one busy core, that a block takes: decode task, call of an actor, references. docs/scale.md; Ray's
# own release benchmark many_tasks (10,000 tasks on 2,500 CPUs, release/perf_metrics) gets through 569 tasks a second
BLOCK_SECONDS = 0.0044
PUTS = 3500.0  # a second and prefix that Amazon S3 promises at least; other object stores are like it
PAGE_KEYS = 1000  # of a LIST request, at S3's and most others
# behind an object store: of a page; of the request for a shard's ids, one after the other (heads come side by side)
LIST_SECONDS, HEADER_SECONDS = 0.1, 0.1
LOCAL_HEADER_SECONDS = 0.0029  # of a shard's settings and then its ids, on a local disk; docs/scale.md
LARGEST_NODE = {"gpus": 8, "cpus": 64}  # how many nodes there are, where it isn't said
SOURCES = ("given", "measured", "computed", "assumed")
SAMPLED_FILES = 1000


@dataclass(frozen=True)
class Known:
    """A figure and how it is known.

    Attributes:
        name: what, for people.
        value: in `unit`.
        unit: "s", "clips/s", "GB", ...
        source: entry of `SOURCES`.
        note: where it was measured, what it follows from, or why it is assumed.
    """

    name: str
    value: float
    unit: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class RunSettings:
    """A run to plan.

    Attributes:
        clips: to extract, at least 1.
        gpus: devices that run the models; 0 = the CPU cores do.
        cpus: cores of all nodes together.
        gpu: entry of `PEAK_TFLOPS`, in any spelling; None = the device that rates were measured on, else an H100.
        precision: "fp32" or "bf16".
        achieved: share of the peak that the models reach, above 0 and up to 1; 0 = `ACHIEVED`.
        nodes: over which the cores and GPUs are spread evenly; 0 = as many as 8 GPUs or 64 cores each make.
        node_gbps: 10^9 bits a second at which one node receives clips.
        flush_seconds: a shard is appended at least this often.

    Raises:
        ClusterError: a number that makes no sense, or an unknown GPU.

    >>> from alphafuse import RunSettings
    >>> run = RunSettings(clips=10_000_000, gpus=8, cpus=512, gpu="rtx-4090")
    >>> run.gpu, run.shown_nodes
    ('RTX 4090', 8)
    """

    clips: int
    gpus: int = 0
    cpus: int = 1
    gpu: str | None = None
    precision: str = "fp32"
    achieved: float = 0.0
    nodes: int = 0
    node_gbps: float = 10.0
    flush_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, least in (("clips", 1), ("gpus", 0), ("cpus", 1), ("nodes", 0)):
            if getattr(self, name) < least:
                raise ClusterError(f"{name} must be at least {least}, not {getattr(self, name)}: give --{name} another")
        if not 0 <= self.achieved <= 1:
            raise ClusterError(f"achieved must be a share of the peak, 0.01 to 1 (0 = assumed), not {self.achieved}")
        if not (self.node_gbps > 0 and math.isfinite(self.node_gbps)):
            raise ClusterError(f"node_gbps must be above 0, not {self.node_gbps}: give --node-gbps another")
        if self.precision not in ACHIEVED:
            raise ClusterError(unknown("precision", self.precision, ACHIEVED))
        if self.gpu is not None:
            object.__setattr__(self, "gpu", gpu_name(self.gpu))
        if self.gpus and self.cpus <= self.gpus * FEEDING_CORES:
            raise ClusterError(
                f"{self.cpus} cores can't feed {self.gpus} GPUs and decode: each GPU takes {FEEDING_CORES} core, the "
                "others decode; give more --cpus or fewer --gpus"
            )

    @property
    def shown_nodes(self) -> int:
        """Nodes given, or as many as the cores and GPUs make."""
        return self.nodes or max(
            math.ceil(self.gpus / LARGEST_NODE["gpus"]), math.ceil(self.cpus / LARGEST_NODE["cpus"]), 1
        )


@dataclass(frozen=True)
class Work:
    """What one clip asks for.

    Attributes:
        decode: seconds of a core.
        cpu_models: seconds of a core, all models, while all cores embed.
        flops: of the models, as HuggingFace's whole forward passes count.
        file: bytes of a clip's file.
        dims: modality -> dimension of its embedding.
        decoded_bytes: of a decoded clip, as it travels through a Ray cluster.
        device_models: seconds of a device that was measured; None without one.
    """

    decode: Known
    cpu_models: Known
    flops: Known
    file: Known
    dims: Mapping[str, int]
    decoded_bytes: int
    device_models: Known | None = None


@dataclass(frozen=True)
class Stage:
    """What one stage could do alone, and how much of that the run asks of it (0 to 1)."""

    name: str
    clips_per_second: float
    busy: float


@dataclass(frozen=True)
class RunPlan:
    """What a run takes.

    Attributes:
        run: what was asked.
        inputs: what it follows from.
        device: that the models run on, such as "8 x H100"; "" for the cores.
        stages: in the order of the work.
        bottleneck: the stage that decides.
        seconds: of the whole run, without starting the cluster and loading the models.
        clips_per_second: of the whole run.
        device_hours, core_hours: of all GPUs and cores, busy or idle.
        store_bytes: of all shards.
        shards, shard_clips: how many, and clips in each.
        resume_seconds: for a new driver to see what is finished, at the end of the run, behind an object store.
        cores_per_gpu: that keep one GPU busy, its own included; None without GPUs.
        advice: sentences: what would balance it, what is idle.

    >>> from alphafuse import RunSettings, plan_run
    >>> plan = plan_run(RunSettings(clips=200_000, gpus=1, cpus=16, gpu="L4", precision="bf16"))
    >>> [stage.name for stage in plan.stages], plan.device
    (['network', 'decoding', 'models', 'driver', 'commits'], '1 x L4')
    >>> {known.source for known in plan.inputs} <= {"given", "measured", "computed", "assumed"}
    True
    """

    run: RunSettings
    device: str
    inputs: tuple[Known, ...]
    stages: tuple[Stage, ...]
    bottleneck: str
    seconds: float
    clips_per_second: float
    device_hours: float
    core_hours: float
    store_bytes: int
    shards: int
    shard_clips: int
    resume_seconds: float
    cores_per_gpu: float | None
    advice: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able; `inputs` say how they are known, all others are computed from them."""
        return asdict(self)


def gpu_name(given: str) -> str:
    """The GPU's name in `PEAK_TFLOPS` for any spelling of it; `ClusterError` for one that isn't there.

    >>> from alphafuse.extract.cost import gpu_name
    >>> gpu_name("rtx4090")
    'RTX 4090'
    """

    def plain(name: str) -> str:
        return "".join(name.lower().replace("nvidia", "").replace("geforce", "").replace("sxm", "").split()).replace(
            "-", ""
        )

    for name in PEAK_TFLOPS:
        if plain(name) == plain(given):
            return name
    raise ClusterError(unknown("GPU", given, PEAK_TFLOPS))


def published_work(modalities: Sequence[str] = MODALITIES) -> Work:
    """What a clip of VGGSound asks of the published encoders, as it was measured on 51 of them."""
    from transformers import ASTConfig, TimesformerConfig

    configs = {"timesformer": TimesformerConfig(), "ast": ASTConfig()}  # their defaults are the published models
    return _work({name: configs[name] for name in modalities}, "the published encoders")


def measure_work(dataset: Dataset, settings: ExtractSettings) -> Work:
    """What the clips of a root ask of its encoders, measured here on a few of them; nothing is written.

    Raises:
        DatasetError: no clip's file is there.
        EncoderError: an encoder can't be had.
    """
    from transformers import AutoConfig

    from alphafuse.extract.encoders.hub import locate

    from .engines.embedder import Embedder, load_encoders
    from .jobs import Job
    from .planning import measure_rates

    looked_at = _some(dataset.manifest, SAMPLED_FILES)
    files = dataset.file_sizes(looked_at)
    there = [clip for clip in looked_at if clip.clip_id in files]
    if not there:
        raise DatasetError(
            f"none of the clip files looked at is in {dataset.clip_folder}: bring them back, or leave --root out"
        )
    embedder = Embedder(load_encoders(dataset, settings, settings.device), settings)
    jobs = [Job(clip, dataset.path_of(clip), settings.modalities) for clip in _some(there, SAMPLE_CLIPS)]
    rates = measure_rates(embedder, jobs)
    where = f"{len(jobs)} clips of {dataset.name}, here"
    configs = {
        name: AutoConfig.from_pretrained(locate(name, encoder.name)) for name, encoder in embedder.encoders.items()
    }
    work = _work(configs, "the root's encoders")
    models = Known("both models", rates.embed_seconds, "s/clip", "measured", where)
    on_cpu = rates.device == "cpu"
    bytes_ = sum(files.values()) / len(files)
    return Work(
        decode=Known("decoding", rates.decode_seconds, "core s/clip", "measured", where),
        cpu_models=Known(models.name, models.value, "core s/clip", "measured", where) if on_cpu else work.cpu_models,
        flops=work.flops,
        file=Known("a clip's file", bytes_ / 1e6, "MB", "measured", f"mean of {len(there)} files of {dataset.name}"),
        dims={name: encoder.dim for name, encoder in embedder.encoders.items()},
        decoded_bytes=_decoded_bytes([encoder.spec for encoder in embedder.encoders.values()]),
        device_models=None if on_cpu else Known(f"models on {rates.device}", models.value, "s/clip", "measured", where),
    )


def _some(items: Sequence[Any], count: int) -> list[Any]:
    return random.Random(0).sample(items, min(count, len(items)))


def _work(configs: Mapping[str, Any], whose: str) -> Work:
    from alphafuse.extract.encoders.transformer import model_flops

    specs: dict[str, FrameSpec | AudioSpec] = {"timesformer": FrameSpec(), "ast": AudioSpec()}
    where = "51 clips of VGGSound, one core of an Intel Xeon with AVX-512"
    gflops = sum(model_flops(config) for config in configs.values()) / 1e9
    return Work(
        decode=Known("decoding", DECODE_SECONDS, "core s/clip", "measured", where),
        cpu_models=Known(
            "models on the CPU", gflops / CPU_GFLOPS, "core s/clip", "measured", f"by the rate of {where}, fp32"
        ),
        flops=Known("models", gflops, "GFLOP/clip", "computed", f"from the architecture of {whose}"),
        file=Known("a clip's file", CLIP_FILE_BYTES / 1e6, "MB", "measured", "mean of 51 clips of VGGSound"),
        dims={name: config.hidden_size for name, config in configs.items()},
        decoded_bytes=_decoded_bytes([specs[name] for name in configs]),
    )


def _decoded_bytes(specs: Sequence[FrameSpec | AudioSpec]) -> int:
    return sum(decoded_bytes(spec, device_resizes=False) for spec in specs)


def plan_run(run: RunSettings, work: Work | None = None) -> RunPlan:
    """What a run takes, by what a clip asks for (`published_work` by default).

    Raises:
        ClusterError: the GPU has no bf16.

    >>> from alphafuse import RunSettings, plan_run
    >>> plan = plan_run(RunSettings(clips=10_000_000, gpus=8, cpus=512, precision="bf16"))
    >>> plan.bottleneck, round(plan.seconds / 3600, 1), plan.shards, round(plan.store_bytes / 1e9)
    ('decoding', 0.8, 916, 63)
    """
    work = work or published_work()
    device = _device_seconds(run, work) if run.gpus else None
    inputs = [work.decode, work.file, *(device or (work.cpu_models,))]
    decoding_cores = run.cpus - FEEDING_CORES * run.gpus
    models = device[-1].value / run.gpus if device else work.cpu_models.value
    rates = Rates(
        clips=0,  # none measured for this run
        decode_seconds=work.decode.value,
        embed_seconds=models,
        cores=run.cpus,
        workers=decoding_cores,
        device="cuda" if device else "cpu",
    )
    capacities = {"network": run.shown_nodes * run.node_gbps * 1e9 / 8 / (work.file.value * 1e6)}
    if device:
        capacities |= {"decoding": rates.decoded_per_second, "models": rates.embedded_per_second}
    else:
        capacities["decoding and models"] = rates.clips_per_second
    block_bytes = bytes_of_block(decoding_cores)
    block_clips = clips_of_block(work.decoded_bytes, BATCH_ON_CUDA, block_bytes)
    capacities["driver"] = block_clips / BLOCK_SECONDS
    most_clips = max(1, SHARD_BYTES // (clip_bytes(work.dims) - clip_bytes({})))  # that a shard holds
    capacities["commits"] = PUTS * most_clips
    bottleneck = min(capacities, key=lambda name: capacities[name])
    rate = capacities[bottleneck]
    shard_clips = max(1, min(most_clips, round(rate * run.flush_seconds), run.clips))
    shards = math.ceil(run.clips / shard_clips)
    hours = run.clips / rate / 3600
    cores_per_gpu = work.decode.value / device[-1].value + FEEDING_CORES if device else None
    return RunPlan(
        run=run,
        device=f"{run.gpus} x {_device_name(run, work)}" if run.gpus else "",
        inputs=tuple(inputs + _assumptions(run, block_clips, block_bytes)),
        stages=tuple(Stage(name, capacity, rate / capacity) for name, capacity in capacities.items()),
        bottleneck=bottleneck,
        seconds=run.clips / rate,
        clips_per_second=rate,
        device_hours=run.gpus * hours,
        core_hours=run.cpus * hours,
        store_bytes=run.clips * clip_bytes(work.dims),
        shards=shards,
        shard_clips=shard_clips,
        resume_seconds=math.ceil(shards / PAGE_KEYS) * LIST_SECONDS + shards * HEADER_SECONDS,
        cores_per_gpu=cores_per_gpu,
        advice=tuple(_advice(run, capacities, bottleneck, cores_per_gpu, work)),
    )


def _uses_measured(run: RunSettings, work: Work) -> bool:
    return run.gpu is None and not run.achieved and work.device_models is not None


def _device_name(run: RunSettings, work: Work) -> str:
    return "the device measured" if _uses_measured(run, work) else run.gpu or DEFAULT_GPU


def _device_seconds(run: RunSettings, work: Work) -> tuple[Known, ...]:
    """Seconds of one GPU per clip, last; before it what they follow from."""
    if _uses_measured(run, work):
        assert work.device_models is not None
        return (work.device_models,)
    name = run.gpu or DEFAULT_GPU
    peak = PEAK_TFLOPS[name][run.precision]
    if peak is None:
        raise ClusterError(f"{name} has no {run.precision}: plan with --precision fp32, or with another --gpu")
    achieved = run.achieved or ACHIEVED[run.precision]
    why = "" if run.achieved else "no GPU was at hand; --achieved says otherwise"
    seconds = work.flops.value / (achieved * peak * 1e3)
    return (
        work.flops,
        Known(f"{name}, {run.precision}", peak, "TFLOP/s", "given" if run.gpu else "assumed", "dense peak, data sheet"),
        Known("of it achieved", 100 * achieved, "%", "given" if run.achieved else "assumed", why),
        Known("models on one GPU", seconds, "s/clip", "computed", "FLOP / (peak x achieved)"),
    )


def _assumptions(run: RunSettings, block_clips: int, block_bytes: int) -> list[Known]:
    spread = "given" if run.nodes else "assumed"
    local = f"behind an object store; on a local disk {1e3 * LOCAL_HEADER_SECONDS:.1f} ms were measured"
    found = [
        Known("nodes", run.shown_nodes, "", spread, "" if run.nodes else "8 GPUs or 64 cores each; --nodes"),
        Known("network of a node", run.node_gbps, "Gbit/s", "assumed", "--node-gbps"),
        Known("driver's time for a block", BLOCK_SECONDS, "s", "measured", "blocks that do nothing, one core"),
        Known(
            "clips of a block",
            block_clips,
            "",
            "computed",
            f"{block_bytes >> 20} MB of decoded clips, as the Ray engine does",
        ),
        Known("commits", PUTS, "/s", "assumed", "what S3 promises for one prefix"),
        Known("seeing a shard's ids", HEADER_SECONDS, "s", "assumed", local),
    ]
    if not run.gpus:
        found.append(Known("wall time x cores by work", OVERLAP, "", "assumed", "docs/extraction.md measured 1.02"))
    return found


def _advice(
    run: RunSettings, capacities: Mapping[str, float], bottleneck: str, cores_per_gpu: float | None, work: Work
) -> Iterator[str]:
    """What would balance the run, and what of it stands idle."""
    rate = capacities[bottleneck]
    if cores_per_gpu is None:
        decoding = work.decode.value / (work.decode.value + work.cpu_models.value)
        yield f"of the cores' time {100 * decoding:.0f}% decodes and {100 - 100 * decoding:.0f}% runs the models"
    else:
        enough, fed = math.ceil(run.gpus * cores_per_gpu), run.cpus / cores_per_gpu
        idle_gpus = run.gpus * (1 - rate / capacities["models"])
        idle_cores = (run.cpus - FEEDING_CORES * run.gpus) * (1 - rate / capacities["decoding"])
        yield f"one GPU takes {cores_per_gpu:.1f} cores: {FEEDING_CORES} feeds it, the others decode"
        if bottleneck == "decoding":
            yield (
                f"{idle_gpus:.1f} of {run.gpus} GPUs stand idle: {enough} cores would keep all of them busy, or "
                f"{max(1, math.ceil(fed))} GPUs are enough for {run.cpus} cores"
            )
        elif bottleneck == "models":
            yield f"{idle_cores:.0f} of {run.cpus} cores stand idle: {enough} are enough, or all feed {fed:.0f} GPUs"
        else:
            yield f"{idle_gpus:.1f} of {run.gpus} GPUs and {idle_cores:.0f} of {run.cpus} cores stand idle"
        peaks = PEAK_TFLOPS[run.gpu or DEFAULT_GPU]
        if run.precision == "fp32" and bottleneck == "models" and peaks["bf16"] and not _uses_measured(run, work):
            faster = peaks["bf16"] * ACHIEVED["bf16"] / (peaks["fp32"] or 1.0) / (run.achieved or ACHIEVED["fp32"])
            yield f"--precision bf16 would run the models {faster:.1f} times as fast"
    if bottleneck == "network":
        yield "clips arrive more slowly than they are used: more nodes, a faster network, or clips on local disks"
    if bottleneck == "driver":
        others = min(capacity for name, capacity in capacities.items() if name != "driver")
        roots = math.ceil(others / rate)
        yield f"one driver can't see to blocks so fast: divide the clips among {roots} roots with a driver each"

"""Settings of extraction: one frozen dataclass, whose fields become command-line options. Doesn't load torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from alphafuse.data.streams import DEFAULT_NAMES, GIVEN, PROTOCOLS, Stream, names_of
from alphafuse.errors import EncoderError
from alphafuse.system.cluster import ENGINES, require_engine

if TYPE_CHECKING:
    from alphafuse.data.dataset import Dataset

PRECISIONS = ("fp32", "bf16")
BATCH_ON_CUDA = 16  # clips; on the CPU each core embeds one clip at a time


@dataclass(frozen=True)
class ExtractSettings:
    """Settings of extraction, which are also the options of `alphafuse extract`.

    Attributes:
        streams: streams to extract; () = all of the root. Stored embeddings of others stay.
        encoders: stream -> hub id, folder or "compact", instead of the root's encoder.
        protocol: preprocessing of the streams that know protocols; None = the root's.
        device: "auto", "cpu", "cuda" or "cuda:N"; several with commas, or "all" CUDA devices; each gets a process.
        precision: "fp32" or "bf16", unless a stream has an option of that name.
        compile: compile the models with torch.compile (minutes at the start; on the CPU needs a C++ compiler).
        batch_size: clips per forward pass; 0 = 1 on the CPU, 16 on CUDA.
        workers: decode processes, on all machines together; 0 = one per processor.
        models: workers that run the models, on all machines together: threads of one core each on the CPU, else
            devices; 0 = one per processor, or per device.
        max_memory_gb: memory limit of extraction, workers included, in 10^9 bytes; 0 = 80% of the free memory.
        timeout_seconds: a clip whose decoding takes longer is recorded as failed; 0 = no limit.
        flush_seconds: a shard is appended at least this often, so that a kill loses at most this much work.
        engine: "local" (this machine) or "ray" (the machines of a Ray cluster).
        address: address of the Ray cluster, such as "auto"; None = that of the variable RAY_ADDRESS, else Ray is
            started on this machine.
        refresh: also extract clips again whose file was changed since, by its size or by its first and last 64 KB.
        retry_failed: also retry clips whose failure is recorded.
        trust_code: run the Python code that streams of the root name as their encoder.

    >>> from alphafuse import ExtractSettings
    >>> ExtractSettings(streams=("ast",), device="cpu", max_memory_gb=8.0).precision
    'fp32'
    """

    streams: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Extract only these streams, separated by commas; embeddings of others stay. [default: all]",
            "flags": ("--stream",),
            "multiple": True,
            "choices": DEFAULT_NAMES,
        },
    )
    encoders: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "NAME=ENCODER: another encoder for a stream (hub id, HuggingFace folder or 'compact').",
            "flags": ("--encoder",),
            "short": DEFAULT_NAMES,
        },
        hash=False,
    )
    protocol: str | None = field(
        default=None,
        metadata={"help": "Preprocessing: standard or notebook. [default: the root's]", "choices": PROTOCOLS},
    )
    device: str = field(
        default="auto",
        metadata={
            "help": "auto, cpu, cuda, cuda:N; several as cuda:0,cuda:1, or all; each gets a process.",
            "choices": ("auto", "cpu", "cuda", "all"),
        },
    )
    precision: str = field(default="fp32", metadata={"help": "fp32 or bf16.", "choices": PRECISIONS})
    compile: bool = field(
        default=False, metadata={"help": "Compile the models with torch.compile (minutes at the start)."}
    )
    batch_size: int = field(
        default=0,
        metadata={"help": "Clips per forward pass; 0 = 1 on the CPU (a clip per core), 16 on CUDA.", "least": 0},
    )
    workers: int = field(
        default=0,
        metadata={
            "help": "Decode processes, on all machines together; 0 = one per processor.",
            "flags": ("--workers", "--decoders"),
            "least": 0,
        },
    )
    models: int = field(
        default=0,
        metadata={
            "help": "Cores (or GPUs) that run the models, on all machines together; 0 = all.",
            "least": 0,
        },
    )
    max_memory_gb: float = field(
        default=0.0,
        metadata={
            "help": "Memory limit in GB, workers included; 0 = 80% of the free memory.",
            "flags": ("--max-memory",),
        },
    )
    timeout_seconds: float = field(
        default=120.0,
        metadata={
            "help": "Seconds that decoding a clip may take before it is recorded as failed; 0 = no limit.",
            "flags": ("--timeout",),
        },
    )
    flush_seconds: float = field(
        default=30.0, metadata={"help": "Seconds between shards; a kill loses at most this much work."}
    )
    engine: str = field(
        default="local",
        metadata={
            "help": "local (this machine) or ray (the machines of a Ray cluster; needs the extra [ray]).",
            "choices": ENGINES,
        },
    )
    address: str | None = field(
        default=None,
        metadata={
            "help": "With --engine ray: address of its cluster, such as auto. [default: Ray is started on this machine]"
        },
    )
    refresh: bool = field(default=False, metadata={"help": "Also extract clips again whose file was changed since."})
    retry_failed: bool = field(default=False, metadata={"help": "Also retry clips whose failure is recorded."})
    trust_code: bool = field(
        default=False, metadata={"help": "Run the Python code that streams of the root name as their encoder."}
    )

    def __post_init__(self) -> None:
        require_engine(self.engine)
        for name in ("batch_size", "workers", "models"):
            if getattr(self, name) < 0:
                raise EncoderError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("max_memory_gb", "timeout_seconds", "flush_seconds"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise EncoderError(f"{name} must be 0 or more, not {value}")
        object.__setattr__(self, "streams", names_of(self.streams, {}))
        object.__setattr__(self, "encoders", dict(self.encoders))

    def streams_of(self, dataset: Dataset) -> tuple[Stream, ...]:
        """Return the streams of a root that these settings extract, with the encoders that they name.

        Raises:
            DatasetError: the root has no stream of that name.
            EncoderError: a stream's embeddings are the user's own, or the root has no other.
        """
        chosen = [dataset.stream(name) for name in self.streams] or [
            stream for stream in dataset.streams if stream.encoder != GIVEN
        ]
        for name in self.encoders:
            dataset.stream(name)  # must exist; those that aren't chosen are not loaded
        given = [stream.name for stream in chosen if self.encoders.get(stream.name, stream.encoder) == GIVEN]
        if given or not chosen:
            raise EncoderError(
                f"the embeddings of {', '.join(given) or 'all streams'} were given, so there is nothing to extract: "
                "`alphafuse data embeddings` reads them"
            )
        return tuple(
            replace(stream, encoder=self.encoders.get(stream.name, stream.encoder)).with_options(
                protocol=self.protocol if stream.name in DEFAULT_NAMES else None  # others know no protocols
            )
            for stream in chosen
        )

"""How to extract: one frozen dataclass, from which the command line reads its defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alphafuse.data.embeddings import MODALITIES
from alphafuse.errors import EncoderError, unknown
from alphafuse.system.cluster import require_engine

BATCH_ON_CUDA = 16  # clips; on the CPU clips go through the models one by one, as many at a time as there are cores


@dataclass(frozen=True)
class ExtractSettings:
    """How to extract; the command line's defaults are these.

    Attributes:
        timesformer, ast: hub id, folder or "compact"; None = the root's default.
        modalities: which encoders to run; what the store has of others stays.
        protocol: preprocessing; None = the root's default.
        device: "auto", "cpu", "cuda" or "cuda:N"; several with commas, or "all" CUDA devices: a process for each.
        precision: "fp32" or "bf16".
        compile: have torch.compile write the models' kernels (minutes at the start; on the CPU needs a C++ compiler).
        batch_size: clips per forward pass; 0 = 1 on the CPU, 16 on CUDA.
        workers: decode processes, on all machines together; 0 = one per processor.
        models: what runs the models at once, on all machines together: threads of one core each on the CPU, devices
            elsewhere; 0 = one per processor, or per device.
        max_memory_gb: memory that all of extraction may take, workers included, in 10^9 bytes; 0 = 80% of what is free.
        timeout_seconds: a clip whose decoding takes longer is recorded as failed; 0 = any time.
        flush_seconds: a shard is appended at least this often, so that a kill costs at most this much work.
        retry_failed: also try clips again whose failure is recorded.
        engine: who spreads the work: "local" (this machine), or "ray" (the machines of a Ray cluster).
        address: of Ray's cluster, such as "auto"; None = what the variable RAY_ADDRESS names, else Ray is started here.

    >>> from alphafuse import ExtractSettings
    >>> ExtractSettings(modalities=("ast",), device="cpu", max_memory_gb=8.0).precision
    'fp32'
    """

    timesformer: str | None = None
    ast: str | None = None
    modalities: tuple[str, ...] = MODALITIES
    protocol: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    batch_size: int = 0
    workers: int = 0
    models: int = 0
    max_memory_gb: float = 0.0
    timeout_seconds: float = 120.0
    flush_seconds: float = 30.0
    retry_failed: bool = False
    engine: str = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        require_engine(self.engine)
        for name in ("batch_size", "workers", "models"):
            if getattr(self, name) < 0:
                raise EncoderError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("max_memory_gb", "timeout_seconds", "flush_seconds"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise EncoderError(f"{name} must be 0 or more, not {value}")
        for modality in self.modalities:
            if modality not in MODALITIES:
                raise EncoderError(unknown("modality", modality, MODALITIES))
        if not self.modalities:
            raise EncoderError(f"at least one modality is needed: {', '.join(MODALITIES)}")
        object.__setattr__(self, "modalities", tuple(m for m in MODALITIES if m in self.modalities))

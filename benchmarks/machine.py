"""Description of the machine that is measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import joblib
import psutil
import torch

from alphafuse.system.processes import free_memory_bytes


@dataclass(frozen=True)
class Machine:
    """The machine of a measurement.

    Attributes:
        cpu: model of the processor.
        cores: cores that this process may use.
        memory_gb, free_gb: total and free memory in 10^9 bytes, at the beginning of the benchmark.
        threads: PyTorch's number of threads.
        load: load average of the last minute; None if the system doesn't provide it.
        versions: versions of the main libraries.
        environment: environment variables that affect threads or memory.
    """

    cpu: str
    cores: int
    memory_gb: float
    free_gb: float
    threads: int
    load: float | None
    versions: Mapping[str, str]
    environment: Mapping[str, str]

    @classmethod
    def current(cls) -> Machine:
        """Describe the current machine."""
        prefixes = ("OMP_", "MKL_", "GOMP_", "MALLOC_", "LD_PRELOAD", "OPENBLAS_", "DNNL_", "ONEDNN_", "LOKY_")
        return cls(
            cpu=_cpu_model(),
            cores=joblib.cpu_count(),
            memory_gb=psutil.virtual_memory().total / 1e9,
            free_gb=free_memory_bytes() / 1e9,
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            versions={"torch": torch.__version__, **{name: version(name) for name in ("numpy", "scikit-learn")}},
            environment={name: value for name, value in sorted(os.environ.items()) if name.startswith(prefixes)},
        )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()  # Linux
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

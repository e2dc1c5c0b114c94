"""Ray, for both stages: joined where a cluster runs, else started on this machine for as long as it is needed.

Ray is an extra (`pip install 'alphafuse[ray]'`) and takes a second to import: nothing here does so before it is used.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alphafuse.errors import ClusterError, unknown

from .files import one_line

ENGINES = ("local", "ray")


def require_engine(engine: str) -> None:
    """Raise `ClusterError` for a name that is no engine."""
    if engine not in ENGINES:
        raise ClusterError(unknown("engine", engine, ENGINES))


def import_ray() -> Any:
    """The ray module; `ClusterError` where it isn't installed."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # alphafuse shows its own
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what Ray's C++ has to say goes to its log files only
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterError(
            f"--engine ray needs Ray ({one_line(error)}): run `pip install 'alphafuse[ray]'`, or leave --engine out"
        ) from None
    return ray


@contextmanager
def connected(address: str | None = None, *, memory_bytes: int = 0) -> Iterator[Any]:
    """The ray module, connected for as long as the block lasts.

    Where this process is connected already, that connection is used and left open.

    Args:
        address: of a cluster: "auto", "HOST:6379" or "ray://HOST:10001"; None = the one that the variable RAY_ADDRESS
            names, else Ray is started on this machine and stopped at the end.
        memory_bytes: that a Ray started here may give to its tasks and objects; 0 = what Ray takes by itself.

    Raises:
        ClusterError: Ray isn't installed, can't be started, or there is no cluster at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address, **_start_options(ray, address, memory_bytes))
    except Exception as error:  # Ray's own classes, OSError, RuntimeError, grpc's
        where = f"no Ray cluster at '{address}'" if address else "Ray can't be started here"
        mend = "start one with `ray start --head`, or leave out --address" if address else "try `ray start --head`"
        raise ClusterError(f"{where} ({one_line(error)}): {mend}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _start_options(ray: Any, address: str | None, memory_bytes: int) -> dict[str, Any]:
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        options["include_dashboard"] = False
        if memory_bytes:
            options["object_store_memory"] = max(memory_bytes // 4, 100 * 2**20)
            options["_memory"] = memory_bytes - options["object_store_memory"]
    return options

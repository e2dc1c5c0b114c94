"""Sessions of Ray: connect to a cluster, or start Ray on this machine for as long as it is needed.

Ray is an extra (`pip install 'alphafuse[ray]'`) and takes a second to import, so it is imported on first use.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from alphafuse import errors
from alphafuse.errors import AlphafuseError, ClusterError, unknown

from .files import one_line

ENGINES = ("local", "ray")
_OWN_ERROR = re.compile(r"^alphafuse\.errors\.(\w+): (.+)$", re.MULTILINE)  # within the text of an actor's failed start
CONNECT_SECONDS = 10.0  # how long a cluster may take to accept a connection
# Ray reads these when it is imported. Without them it prints messages about lost nodes into the command's output, json
# included; its log files keep them
_QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # otherwise a late thread of Ray Data starts a new session
}


def require_engine(engine: str) -> None:
    """Raise `ClusterError` unless `engine` is one of `ENGINES`."""
    if engine not in ENGINES:
        raise ClusterError(unknown("engine", engine, ENGINES))


def import_ray() -> Any:
    """Return the ray module; raise `ClusterError` if it isn't installed."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterError(
            f"--engine ray needs Ray ({one_line(error)}): run `pip install 'alphafuse[ray]'`, or leave --engine out"
        ) from None
    return ray


def alive_nodes(ray: Any) -> list[dict[str, Any]]:
    """The live machines of the cluster, as `ray.nodes()` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def require_versions(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise `ClusterError` unless this node's versions (name -> version) equal those of the driver."""
    for name, there in expected.items():
        if found.get(name) != there:
            raise ClusterError(
                f"{socket.gethostname()} has {name} {found.get(name)}, the machine that the command runs on has "
                f"{there}: install the same versions on all machines of the cluster"
            )


def own_error(error: BaseException) -> AlphafuseError | None:
    """Return the `AlphafuseError` that caused an error of Ray, as its node raised it; None if there is none."""
    # Ray's wrapper is an instance of the wrapped class too; its text has many lines
    own = [cause for cause in _causes(error) if isinstance(cause, AlphafuseError)]
    if own:
        return min(own, key=lambda cause: len(str(cause)))
    named = _OWN_ERROR.findall(str(error))
    found: AlphafuseError | None = getattr(errors, named[-1][0], ClusterError)(named[-1][1]) if named else None
    return found


def last_line(error: BaseException) -> str:
    """The last line of an error's text, where Ray names the cause."""
    return one_line((str(error).strip() or type(error).__name__).splitlines()[-1])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all its causes."""
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop()
        if id(found) not in seen:
            seen.add(id(found))
            yield found
            causes = (getattr(found, "cause", None), found.__cause__, found.__context__)
            waiting += [cause for cause in causes if isinstance(cause, BaseException)]


@contextmanager
def connected(address: str | None = None, *, memory_bytes: int = 0) -> Iterator[Any]:
    """Yield the ray module, connected for the time of the block; an existing connection is used and left open.

    Args:
        address: of a cluster, "auto" or "HOST:6379"; None = the variable RAY_ADDRESS; if that is unset, Ray is started
            on this machine and stopped at the end.
        memory_bytes: memory for the tasks and objects of a Ray that is started here; 0 = Ray's own default.

    Raises:
        ClusterError: Ray isn't installed, can't be started, or there is no cluster at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    try:
        _require_listener(address or os.environ.get("RAY_ADDRESS", ""))
        with _without_stderr(), _keep_sigterm_handler():
            ray.init(address=address, job_config=_job_config(), **_start_options(address, memory_bytes))
    except Exception as error:  # Ray's own classes, OSError, RuntimeError, grpc's
        where = f"no Ray cluster at '{address}'" if address else "Ray can't be started here"
        remedy = "start one with `ray start --head`, or leave out --address" if address else "try `ray start --head`"
        raise ClusterError(f"{where} ({one_line(error)}): {remedy}") from None
    try:
        yield ray
    finally:
        # a reference collected later would count against the object of the same number in the next session
        gc.collect()
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raise `OSError` if nothing listens at HOST:PORT: Ray itself would try for two minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


@contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restore this process's SIGTERM handler afterwards: Ray's own ends the process with code 15, without a message."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # only the main thread can set handlers, in Ray too
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard stderr: Ray's C++ writes to it while it starts, and no option stops it; failures are raised anyway."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _job_config() -> Any:
    """A job config whose workers don't import from the working directory, which Ray puts first on their path."""
    from ray.job_config import JobConfig

    config = JobConfig()
    config._client_job = True  # in a checkout, the folder alphafuse/ would hide the installed package
    return config


def _start_options(address: str | None, memory_bytes: int) -> dict[str, Any]:
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local" or (address is None and not os.environ.get("RAY_ADDRESS")):
        options["include_dashboard"] = False
        if memory_bytes:
            options["object_store_memory"] = max(memory_bytes // 4, 100 * 2**20)
            options["_memory"] = memory_bytes - options["object_store_memory"]
    return options

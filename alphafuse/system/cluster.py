"""Ray, for both stages: joined where a cluster runs, else started on this machine for as long as it is needed.

Ray is an extra (`pip install 'alphafuse[ray]'`) and takes a second to import: nothing here does so before it is used.
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
_TOLD = re.compile(r"^alphafuse\.errors\.(\w+): (.+)$", re.MULTILINE)  # in the text of an actor that couldn't begin
ANSWER_SECONDS = 10.0  # that a cluster may take to accept a connection
# Ray reads these when it is imported. It would print what it thinks of lost nodes into our output, json included; its
# log files have all of it
_QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread of Ray Data's that outlives a session would begin another
}


def require_engine(engine: str) -> None:
    """Raise `ClusterError` for a name that is no engine."""
    if engine not in ENGINES:
        raise ClusterError(unknown("engine", engine, ENGINES))


def import_ray() -> Any:
    """The ray module; `ClusterError` where it isn't installed."""
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
    """The cluster's machines as Ray describes them, without those that are lost."""
    return [node for node in ray.nodes() if node["Alive"]]


def require_versions(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """On a node: raise `ClusterError` unless it has what the driver has; name -> version of each."""
    for name, there in expected.items():
        if found.get(name) != there:
            raise ClusterError(
                f"{socket.gethostname()} has {name} {found.get(name)}, the machine that the command runs on has "
                f"{there}: install the same versions on all machines of the cluster"
            )


def own_error(error: BaseException) -> AlphafuseError | None:
    """The error of ours that something of Ray's came of, as it was on its node; None when it was another."""
    # Ray's own, which is of the class of what it wraps as well, has a text of many lines
    own = [cause for cause in _causes(error) if isinstance(cause, AlphafuseError)]
    if own:
        return min(own, key=lambda cause: len(str(cause)))
    told = _TOLD.findall(str(error))
    found: AlphafuseError | None = getattr(errors, told[-1][0], ClusterError)(told[-1][1]) if told else None
    return found


def last_line(error: BaseException) -> str:
    """Of what Ray says, the part that names what went wrong."""
    return one_line((str(error).strip() or type(error).__name__).splitlines()[-1])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it came of."""
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
    """The ray module, connected for as long as the block lasts.

    Where this process is connected already, that connection is used and left open.

    Args:
        address: of a cluster: "auto" or "HOST:6379"; None = the one that the variable RAY_ADDRESS
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
        _require_answer(address or os.environ.get("RAY_ADDRESS", ""))
        with _without_stderr(), _own_sigterm():
            ray.init(address=address, job_config=_job_config(), **_start_options(address, memory_bytes))
    except Exception as error:  # Ray's own classes, OSError, RuntimeError, grpc's
        where = f"no Ray cluster at '{address}'" if address else "Ray can't be started here"
        mend = "start one with `ray start --head`, or leave out --address" if address else "try `ray start --head`"
        raise ClusterError(f"{where} ({one_line(error)}): {mend}") from None
    try:
        yield ray
    finally:
        # references that are collected later would count against objects of the same number in the next session
        gc.collect()
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise `OSError` where nobody answers at a "HOST:PORT": Ray itself would ask for two minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """What this process does at a SIGTERM stays as it was: Ray would end it with code 15 and without a word."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # other threads may not set it, and Ray didn't either
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's C++ writes there while it starts, whatever it is told; what goes wrong is raised."""
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
    """A job whose workers don't look for modules in this process's working directory, which Ray puts first."""
    from ray.job_config import JobConfig

    config = JobConfig()
    config._client_job = True  # in a checkout of alphafuse its folder alphafuse/ would hide the installed package
    return config


def _start_options(address: str | None, memory_bytes: int) -> dict[str, Any]:
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local" or (address is None and not os.environ.get("RAY_ADDRESS")):
        options["include_dashboard"] = False
        if memory_bytes:
            options["object_store_memory"] = max(memory_bytes // 4, 100 * 2**20)
            options["_memory"] = memory_bytes - options["object_store_memory"]
    return options

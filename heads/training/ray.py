"""Heads on a Ray cluster: each stack is a Ray task, and Ray decides where it runs and repeats what a lost node did.

What is trained on goes into Ray's object store once, from where every node that trains fetches it once. A split that is
streamed is not sent: nodes read it from the store, which must lie where all of them reach it under the same name. There
a task gets many stacks, a whole node's, so that each node reads the store once per epoch.

A head is a function of its seed, its stack and the number of threads that share its sums. Stacks and threads are those
of local training, so it doesn't matter where a head was trained, or how often.
"""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import torch

from alphafuse.data.store.lazy import StoredEmbeddings
from alphafuse.errors import ClusterError, StoreError
from alphafuse.system.cluster import alive_nodes, last_line, own_error, require_versions
from alphafuse.system.remote import is_remote

from .batches import Streamed
from .epochs import Member, Reporter, Result, Shipped, Splits, train_stacks
from .settings import TrainSettings

RETRIES = 20  # times that a task is begun anew when its node or its process is lost


def train_on_ray(
    ray: Any,
    stacks: Sequence[Sequence[Member]],
    split: Splits,
    settings: TrainSettings,
    device: torch.device,
    report: Reporter,
    *,
    threads: int,
) -> Iterator[Result]:
    """Train stacks as tasks of a Ray that is connected; results as they come.

    Args:
        ray: the module.
        stacks, split, settings: what is trained, on what, and how.
        device: of the tasks; on CUDA each task takes one device.
        report: counts the epochs of each finished task.
        threads: that share one stack's sums, as in local training.

    Raises:
        ClusterError: the cluster has no processor for tasks, nodes have other versions, or a task was lost too often.
    """
    nodes = [int(node["Resources"].get("CPU", 0)) for node in alive_nodes(ray)]
    if not any(nodes):
        raise ClusterError("the Ray cluster has no processor for tasks: add a node (`ray start --address HOST:6379`)")
    if isinstance(split.train, Streamed):
        groups, side_by_side = _per_node(stacks, nodes)
    else:
        groups, side_by_side = [[stack] for stack in stacks], 1
    options: dict[str, Any] = {"num_cpus": min(threads * side_by_side, max(nodes)), "max_retries": RETRIES}
    if device.type == "cuda":
        options |= {"num_cpus": 1, "num_gpus": 1}
    task = ray.remote(**options)(_train_here)
    shipped = ray.put(Shipped.of(split))
    waiting, running = list(reversed(groups)), set[Any]()
    try:
        while waiting or running:
            room = _at_once(alive_nodes(ray), options["num_cpus"]) - len(running) if waiting else 0
            for _ in range(min(len(waiting), room)):
                running.add(task.remote(shipped, waiting.pop(), settings, device, threads, side_by_side, versions()))
            (done,), _ = ray.wait(list(running), num_returns=1)
            running.remove(done)
            results = ray.get(done)
            report.finished(settings.total_epochs * len(results))
            yield from results
    except ray.exceptions.RayTaskError as error:
        own = own_error(error)
        if own is not None:
            raise own from None
        raise ClusterError(f"training failed on a node: {last_line(error)}") from error
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"training was lost with its node more than {RETRIES} times ({last_line(error)}): see the nodes' memory, "
            "or train fewer heads at a time"
        ) from None


def _at_once(nodes: Sequence[Mapping[str, Any]], task_cpus: int) -> int:
    """How many tasks are asked of Ray at a time: those that run, and as many that a node which joins could take.

    More would run on in vain after an error, in a session of Ray that wasn't started here. (`ray.cancel` can't end
    them: Ray 2.60 aborts the driver if a task finishes in the moment in which it is cancelled.)
    """
    cpus = sum(int(node["Resources"].get("CPU", 0)) for node in nodes)
    return 2 * max(1, cpus // task_cpus)


def _per_node(stacks: Sequence[Sequence[Member]], nodes: Sequence[int]) -> tuple[list[list[Sequence[Member]]], int]:
    """A group of stacks for each node that has more than half of the largest one's processors, and their least number.

    Smaller nodes would make every task small, and every task reads the whole store.
    """
    large = [cpus for cpus in nodes if cpus > max(nodes) / 2]
    count = min(len(large), len(stacks))
    return [list(stacks[start::count]) for start in range(count)], min(large)


def _train_here(
    shipped: Shipped,
    stacks: Sequence[Sequence[Member]],
    settings: TrainSettings,
    device: torch.device,
    threads: int,
    side_by_side: int,
    expected: Mapping[str, str],
) -> list[Result]:
    """Train stacks on this node, `side_by_side` of them at once in `threads` threads each."""
    require_versions(expected, versions())
    split = shipped.unpacked(device)
    for source in (split.train, split.val):
        if isinstance(source, Streamed):
            _require_within_reach(source)
    torch.set_num_threads(threads)
    if side_by_side == 1:
        return train_stacks(stacks, split, settings, device, Reporter())
    with ThreadPoolExecutor(side_by_side, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return train_stacks(stacks, split, settings, device, Reporter(), pool)


def _require_within_reach(source: Streamed) -> None:
    embeddings = source.source
    if isinstance(embeddings, StoredEmbeddings):
        folder = embeddings.store.folder
        if not is_remote(folder) and not folder.is_dir():
            raise StoreError(
                f"the node {socket.gethostname()} doesn't see {folder}, which is larger than --memory-gb and so read "
                "by every node: put the root where all nodes reach it under this name, or raise --memory-gb"
            )


def versions() -> dict[str, str]:
    """Versions and processor, which must be equal on all nodes for heads to be equal to the digit."""
    return {"alphafuse": version("alphafuse"), "torch": torch.__version__, "machine": platform.machine()}

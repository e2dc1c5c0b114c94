"""Training on a Ray cluster: each stack is a Ray task. Ray places the tasks and repeats those of a lost node.

The training data goes into Ray's object store once, and each node fetches it once. A streamed split is not sent: the
nodes read it from the embedding store, which all of them must reach under the same path. In that case a task trains
all stacks of a node, so that each node reads the store once per epoch.

A head depends on its seed, its stack and the number of threads that share its sums. Stacks and threads are those of
local training, so the result doesn't depend on the node, nor on repetition.
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
from .epochs import Member, PackedSplits, Reporter, Result, Splits, train_stacks
from .settings import TrainSettings

RETRIES = 20  # restarts of a task whose node or process is lost


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
    """Train stacks as tasks of a connected Ray cluster; yield results as tasks finish.

    Args:
        ray: the `ray` module.
        stacks, split, settings: heads, training data and training settings.
        device: device of the tasks; on CUDA each task uses one device.
        report: counts the epochs of each finished task.
        threads: number of threads per stack, as in local training.

    Raises:
        ClusterError: the cluster has no processor for tasks, nodes have other versions, or a task was lost too often.
    """
    nodes = [int(node["Resources"].get("CPU", 0)) for node in alive_nodes(ray)]
    if not any(nodes):
        raise ClusterError("the Ray cluster has no processor for tasks: add a node (`ray start --address HOST:6379`)")
    if isinstance(split.train, Streamed):
        groups, parallel = _per_node(stacks, nodes)
    else:
        groups, parallel = [[stack] for stack in stacks], 1
    options: dict[str, Any] = {"num_cpus": min(threads * parallel, max(nodes)), "max_retries": RETRIES}
    if device.type == "cuda":
        options |= {"num_cpus": 1, "num_gpus": 1}
    task = ray.remote(**options)(_train_on_node)
    packed = ray.put(PackedSplits.of(split))
    waiting, running = list(reversed(groups)), set[Any]()
    try:
        while waiting or running:
            room = _max_tasks(alive_nodes(ray), options["num_cpus"]) - len(running) if waiting else 0
            for _ in range(min(len(waiting), room)):
                running.add(task.remote(packed, waiting.pop(), settings, device, threads, parallel, versions()))
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
            f"training was lost with its node more than {RETRIES} times ({last_line(error)}): check the nodes' memory, "
            "or train fewer heads at a time"
        ) from None


def _max_tasks(nodes: Sequence[Mapping[str, Any]], task_cpus: int) -> int:
    """Return how many tasks to submit at a time: twice the number that can run, in case nodes join.

    After an error, submitted tasks run to their end in a Ray session that another process started, so few are
    submitted. (`ray.cancel` doesn't help: Ray 2.60 aborts the driver if a task finishes while it is being cancelled.)
    """
    cpus = sum(int(node["Resources"].get("CPU", 0)) for node in nodes)
    return 2 * max(1, cpus // task_cpus)


def _per_node(stacks: Sequence[Sequence[Member]], nodes: Sequence[int]) -> tuple[list[list[Sequence[Member]]], int]:
    """Group the stacks by node; return the groups and the number of stacks to train in parallel.

    Only nodes with more than half of the largest node's processors get a group, and the smallest of them sets the
    parallelism. Smaller nodes would make every task small, and every task reads the whole store.
    """
    large = [cpus for cpus in nodes if cpus > max(nodes) / 2]
    count = min(len(large), len(stacks))
    return [list(stacks[start::count]) for start in range(count)], min(large)


def _train_on_node(
    packed: PackedSplits,
    stacks: Sequence[Sequence[Member]],
    settings: TrainSettings,
    device: torch.device,
    threads: int,
    parallel: int,
    expected: Mapping[str, str],
) -> list[Result]:
    """Train stacks on this node, `parallel` of them at a time with `threads` threads each."""
    require_versions(expected, versions())
    split = packed.unpacked(device)
    for source in (split.train, split.val):
        if isinstance(source, Streamed):
            _require_reachable(source)
    torch.set_num_threads(threads)
    if parallel == 1:
        return train_stacks(stacks, split, settings, device, Reporter())
    with ThreadPoolExecutor(parallel, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return train_stacks(stacks, split, settings, device, Reporter(), pool)


def _require_reachable(source: Streamed) -> None:
    embeddings = source.source
    if isinstance(embeddings, StoredEmbeddings):
        folder = embeddings.store.folder
        if not is_remote(folder) and not folder.is_dir():
            raise StoreError(
                f"the node {socket.gethostname()} can't read {folder}, and a split larger than --memory-gb is read by "
                "every node: put the root where all nodes reach it under the same path, or raise --memory-gb"
            )


def versions() -> dict[str, str]:
    """Return versions and processor, which must be equal on all nodes for heads to be equal to the digit."""
    return {"alphafuse": version("alphafuse"), "torch": torch.__version__, "machine": platform.machine()}

"""Heads on a Ray cluster whose processes and nodes are killed meanwhile: the same files to the digit."""

from __future__ import annotations

import filecmp
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.heads import head_config
from support.toy import CLASSES, SETTINGS, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.errors import AlphafuseError, ClusterError, ExperimentError
from alphafuse.heads.studies.sweep import sweep
from alphafuse.heads.studies.table1 import table1
from alphafuse.heads.training import ray as heads_cluster
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import train_heads
from alphafuse.report.studies import write_sweep, write_table1
from alphafuse.system.cluster import connected

pytestmark = pytest.mark.cluster

STREAMED = replace(SETTINGS, epochs=4, memory_gb=1.5e-6)  # windows of 16 of the 90 clips


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster whose head has no processor, with two nodes of one each; this process is connected to it."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=10**8)
        with connected(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "toy")


def at_work() -> list[psutil.Process]:
    """Ray's processes that are training heads, once there are any."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if "_train_on_node" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # the process has just ended
                continue
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("no process trained heads within a minute")


def assert_same_files(here: Path, there: Path) -> None:
    names = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file())
    _, different, unreadable = filecmp.cmpfiles(here, there, names, shallow=False)
    assert different == unreadable == [] and len(names) > 3


@pytest.mark.parametrize("settings", [SETTINGS, STREAMED], ids=["in memory", "streamed"])
def test_a_swept_run_has_the_same_bytes_on_a_cluster(dataset: Dataset, nodes: Any, settings: TrainSettings) -> None:
    arguments: dict[str, Any] = {"on": ["ast", "all"], "alphas": [0.5, 1.5], "seeds": 2, "settings": settings}
    here = write_sweep(sweep(dataset, **arguments), dataset, run="here")
    there = write_sweep(sweep(dataset, **arguments, engine="ray"), dataset, run="there")
    assert_same_files(here, there)


def test_table1_of_streamed_heads_has_the_same_bytes_on_a_cluster(dataset: Dataset, nodes: Any) -> None:
    here = write_table1(table1(dataset, seeds=1, settings=STREAMED), dataset)
    here = here.rename(here.with_name("here"))
    assert_same_files(here, write_table1(table1(dataset, seeds=1, settings=STREAMED, engine="ray"), dataset))


@pytest.mark.parametrize("settings", [SETTINGS, STREAMED], ids=["in memory", "streamed"])
def test_a_killed_process_and_a_lost_node_change_nothing(dataset: Dataset, nodes: Any, settings: TrainSettings) -> None:
    nodes.add_node(num_cpus=1, object_store_memory=10**8)
    settings = replace(settings, epochs=150 if settings is SETTINGS else 100)
    arguments: dict[str, Any] = {"on": ["ast"], "alphas": [0.5, 0.75, 1.25, 1.5], "seeds": 4, "settings": settings}
    here = write_sweep(sweep(dataset, **arguments), dataset, run="here")
    with ThreadPoolExecutor(1) as other:
        lost = other.submit(lose, nodes)
        there = write_sweep(sweep(dataset, **arguments, engine="ray"), dataset, run="there")
        killed, removed = lost.result()
    assert not killed.is_running() and removed not in nodes.worker_nodes
    assert_same_files(here, there)


def lose(nodes: Any) -> tuple[psutil.Process, Any]:
    """Kill a process that trains heads, then take away a node on which one does."""
    killed = at_work()[0]
    killed.kill()
    killed.wait(10)
    busy = {process.parent() for process in at_work()}
    node = next(n for n in nodes.worker_nodes if {psutil.Process(p.process.pid) for p in processes_of(n)} & busy)
    nodes.remove_node(node, allow_graceful=False)
    return killed, node


def processes_of(node: Any) -> list[Any]:
    """Return the processes that Ray started for a node."""
    return [info for infos in node.all_processes.values() for info in infos]


def test_a_streamed_store_is_read_once_per_node_and_epoch(dataset: Dataset, nodes: Any) -> None:
    """Two nodes run two tasks for any number of heads."""
    members = [[object()] for _ in range(7)]
    groups, parallel = heads_cluster._per_node(members, [0, 1, 1])  # type: ignore[arg-type]
    assert [len(group) for group in groups] == [4, 3] and parallel == 1
    assert heads_cluster._per_node(members, [2, 64, 40])[1] == 40  # type: ignore[arg-type]


def test_few_more_tasks_are_started_than_the_cluster_can_run() -> None:
    """Otherwise they would continue after an error if the Ray session is not ours."""
    nodes = [{"Resources": {"CPU": 8.0}}, {"Resources": {"CPU": 6.0}}, {"Resources": {}}]
    assert heads_cluster._max_tasks(nodes, 4) == 6
    assert heads_cluster._max_tasks(nodes, 64) == 2  # while the large node is away


def test_an_error_on_a_node_is_the_same_error_in_the_driver(
    dataset: Dataset, nodes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train, val = dataset.embeddings("train"), dataset.embeddings("val")
    config = head_config(train.dims, CLASSES, hidden=(16,))
    wild = replace(SETTINGS, learning_rate=1e30)
    with pytest.raises(ExperimentError, match=r"the loss stopped being finite in epoch .* seed 3: lower the learning"):
        train_heads(train, val, [config], [3], settings=wild, engine="ray")
    monkeypatch.setattr(heads_cluster, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(ClusterError, match=r"has torch \d\S+, the machine that .* has 1\.0: install the same"):
        train_heads(train, val, [config], [3], settings=SETTINGS, engine="ray")
    monkeypatch.undo()
    stored = dataset.embeddings("train", max_bytes=0)
    original = type(stored).absolute
    monkeypatch.setattr(type(stored), "absolute", lambda self: _moved(original(self), tmp_path / "elsewhere"))
    with pytest.raises(AlphafuseError, match=r"the node .* can't read .*elsewhere.*: put the root where all nodes"):
        train_heads(stored, val, [config], [3], settings=STREAMED, engine="ray")


def _moved(stored: Any, folder: Path) -> Any:
    stored.store.folder = folder
    return stored


def test_a_cluster_without_processors_is_named(dataset: Dataset, nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 0.0}}, {"Alive": False}])
    train, val = dataset.embeddings("train"), dataset.embeddings("val")
    config = head_config(train.dims, CLASSES, hidden=(16,))
    with pytest.raises(ClusterError, match="has no processor for tasks: add a node"):
        train_heads(train, val, [config], [0], settings=SETTINGS, engine="ray")

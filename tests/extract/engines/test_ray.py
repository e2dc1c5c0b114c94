"""Stage one on Ray: the code of its nodes alone, and clusters of several nodes with injected failures."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from support.clips import write_clip
from support.encoders import load_all

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.errors import ClusterError, DatasetError, RecipeMismatchError, StoreError
from alphafuse.extract.decoding.decode import decode_inputs
from alphafuse.extract.decoding.specs import Inputs
from alphafuse.extract.engines import ray as ray_engine
from alphafuse.extract.engines import ray_stages as stages
from alphafuse.extract.engines.embedder import embed_batch, library_versions
from alphafuse.extract.engines.ray_pools import BLOCK_CLIPS, Node, plan_pools
from alphafuse.extract.jobs import Done, Job
from alphafuse.extract.missing import Work
from alphafuse.extract.pipeline import ExtractReport, extract_embeddings
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.claims import Claims, committing
from alphafuse.system.cluster import connected, import_ray
from alphafuse.system.progress import Progress

Names = dict[str, Path]
LOOKS = 6
GB = 10**9
NODE = Node(cpus=8, gpus=0, memory_bytes=64 * GB)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small clips; one is broken, one silent."""
    folder = tmp_path_factory.mktemp("clips")
    for look in range(LOOKS):
        write_clip(folder / f"{look}.mp4", frames=12, look=look)
    write_clip(folder / "silent.mp4", frames=12, audio=False)
    (folder / "broken.mp4").write_bytes(b"nothing that could be a clip")
    return folder


@pytest.fixture(scope="module")
def names(tiny_encoders: Names) -> dict[str, str]:
    return {stream: str(folder) for stream, folder in tiny_encoders.items()}


def make(root: Path, files: Path, clips: int) -> Dataset:
    """A root whose every 20th clip is broken, silent or missing."""
    odd = ("broken.mp4", "silent.mp4", "missing.mp4")
    paths = [odd[i // 20 % 3] if i % 20 == 19 else f"{i % LOOKS}.mp4" for i in range(clips)]
    listed = [Clip(f"clip{i:05d}_000000", path, "dog", "train", f"clip{i:05d}") for i, path in enumerate(paths)]
    return Dataset.create(root, Manifest(listed), name="ray", clip_folder=files, classes=("dog",))


def assert_same_stores(found: Dataset, expected: Dataset) -> None:
    """Assert equal embeddings to the bit on the CPU, no duplicate row, the same failures."""
    ours, theirs = found.store("train"), expected.store("train")
    assert ours.verify() == []
    assert ours.info().duplicates == 0
    assert len(ours.read()) == len(found.manifest)
    for stream in ("timesformer", "ast"):
        matrices = [dataset.embeddings("train").features[stream] for dataset in (found, expected)]
        assert np.isfinite(matrices[1]).all(axis=1).any()
        np.testing.assert_array_equal(*matrices)
    failures = [sorted((f.clip_id, f.stream, f.reason) for f in store.info().failures) for store in (ours, theirs)]
    assert failures[0] == failures[1] != []


def wait_for(condition: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for never came"
        time.sleep(0.02)


# --------------------------------------------------------------------------------------------------- without a cluster


def test_on_the_cpu_both_pools_get_all_cores_and_share_them() -> None:
    pools = plan_pools([NODE, NODE], ExtractSettings(), decoded_bytes=2 * 10**6, forward_bytes=10**8)
    assert (pools.device, pools.decoders, pools.models) == ("cpu", 16, 16)
    assert (pools.decoder_cpus, pools.model_cpus, pools.model_gpus) == (0.5, 0.5, 0)
    assert pools.decoders * pools.decoder_bytes + pools.models * pools.model_bytes <= 2 * NODE.memory_bytes
    assert pools.block_clips == 16 and pools.batch_size == 1


def test_beside_gpus_the_cores_that_are_left_decode() -> None:
    node = Node(cpus=64, gpus=8, memory_bytes=512 * GB)
    pools = plan_pools([node, node], ExtractSettings(), decoded_bytes=2 * 10**6, forward_bytes=10**8)
    assert (pools.device, pools.decoders, pools.models) == ("cuda", 112, 16)
    assert (pools.decoder_cpus, pools.model_cpus, pools.model_gpus) == (1, 1, 1)
    assert pools.block_clips % pools.batch_size == 0
    large = plan_pools(20 * [node], ExtractSettings(), decoded_bytes=2 * 10**6, forward_bytes=10**8)
    assert (large.decoders, large.block_bytes, large.block_clips) == (1120, 4 * pools.block_bytes, 64)
    assert large.decoder_bytes > pools.decoder_bytes
    on_cpu = plan_pools([node], ExtractSettings(device="cpu"), decoded_bytes=10**6, forward_bytes=10**8)
    assert (on_cpu.device, on_cpu.models, on_cpu.model_gpus) == ("cpu", 64, 0)


def test_pools_of_any_size_fit_into_the_cpus() -> None:
    for workers, models in ((1, 1), (3, 1), (1, 30), (50, 7)):
        settings = ExtractSettings(workers=workers, models=models)
        pools = plan_pools([NODE], settings, decoded_bytes=10**5, forward_bytes=10**6)
        assert (pools.decoders, pools.models) == (workers, models)
        assert pools.decoders * pools.decoder_cpus + pools.models * pools.model_cpus <= NODE.cpus
        assert pools.block_clips == BLOCK_CLIPS


def test_the_memory_per_clip_follows_the_machine_and_too_little_is_an_error() -> None:
    small = replace(NODE, memory_bytes=9 * GB)
    pools = plan_pools([NODE, small], ExtractSettings(), decoded_bytes=10**6, forward_bytes=10**7)
    assert pools.clip_bytes == 256 * 2**20, "the minimum per clip; fewer decoders run at once"
    ample = plan_pools([NODE], ExtractSettings(), decoded_bytes=10**6, forward_bytes=10**7)
    assert ample.clip_bytes == 2 * 2**30 < ample.decoder_bytes
    with pytest.raises(ClusterError, match=r"no machine of the Ray cluster has the 1\.\d GB for a decoder and"):
        plan_pools([replace(NODE, memory_bytes=GB)], ExtractSettings(), decoded_bytes=10**6, forward_bytes=10**7)


@pytest.mark.parametrize(
    ("device", "message"), [("cuda", "has no GPUs: use --device cpu"), ("cuda:1", "unknown device 'cuda:1'")]
)
def test_devices_that_a_cluster_cannot_give_are_refused(device: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        plan_pools([NODE], ExtractSettings(device=device), decoded_bytes=10**6, forward_bytes=10**7)
    with pytest.raises(ClusterError, match="has no CPUs"):
        plan_pools([Node(0, 8, GB)], ExtractSettings(), decoded_bytes=10**6, forward_bytes=10**7)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"unknown engine 'rey' \(did you mean 'ray'\?\)"):
        ExtractSettings(engine="rey")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pickled_encoders_give_the_same_embeddings_to_the_bit(
    names: dict[str, str], precision: str, files: Path
) -> None:
    from alphafuse.extract.encoders.encoder import Placement

    encoders = load_all(names, Placement(precision=precision))
    pickled, arrays = pickle.loads(pickle.dumps(stages.ship_encoders(encoders)))
    assert sum(map(len, arrays)) > 50 * len(pickled) / 100, "weights are pickled separately"
    for array in arrays:
        array.setflags(write=False)  # as in Ray's object store
    travelled = stages.unship_encoders((pickled, arrays))
    decoded = decode_inputs(
        (files / "0.mp4", ("timesformer", "ast"), None),
        specs={stream: encoder.spec for stream, encoder in encoders.items()},
    )
    for stream, inputs in decoded.arrays.items():
        assert travelled[stream].recipe() == encoders[stream].recipe()
        ours, theirs = (found[stream].embed([inputs]) for found in (travelled, encoders))
        np.testing.assert_array_equal(ours, theirs)


class Silent:
    """Replaces the counting actor."""

    class add:  # as an actor's method
        @staticmethod
        def remote(**counts: int) -> None:
            pass


def decoding(names: dict[str, str], folder: Path) -> stages.Decoding:
    specs = {stream: encoder.spec for stream, encoder in load_all(names).items()}
    return stages.Decoding(library_versions(), specs, 60.0, 2**29, folder, Silent)


def test_a_block_is_decoded_in_order_even_if_a_clip_fails(files: Path, names: dict[str, str]) -> None:
    dataset_clips = ("2.mp4", "broken.mp4", "0.mp4", "missing.mp4", "silent.mp4")
    jobs = tuple(
        Job(Clip(f"c{i}", name, "dog", "train", "g"), files / name, ("timesformer", "ast"))
        for i, name in enumerate(dataset_clips)
    )
    decode = stages.DecodeBlock(decoding(names, files))
    found = decode(stages.pack_block(7, jobs))
    assert found["number"] == 7
    pairs: list[tuple[Job, Inputs]] = pickle.loads(found["content"])
    assert [job for job, _ in pairs] == list(jobs)
    assert ["timesformer" in decoded.arrays for _, decoded in pairs] == [True, False, True, False, True]
    assert [decoded.reasons["ast"] for _, decoded in pairs if "ast" in decoded.reasons][-2:] == [
        "can't be opened: No such file or directory",
        "no audio stream",
    ]
    (worker,) = [worker._pool for worker in decode._pool._workers]
    decode(stages.pack_block(8, jobs[:1]))
    assert decode._pool._workers[0]._pool is worker is not None, "the process stays for the next block"
    decode._pool.close()


def test_a_machine_without_access_to_the_clips_or_the_store_is_an_error(
    tmp_path: Path, files: Path, names: dict[str, str]
) -> None:
    elsewhere = tmp_path / "mounted elsewhere"
    with pytest.raises(
        DatasetError, match=r"mounted elsewhere doesn't exist on \S+: every machine of the cluster must"
    ):
        stages.DecodeBlock(decoding(names, elsewhere))
    older = {"alphafuse": "0.0.9"}
    with pytest.raises(ClusterError, match=r"has alphafuse \d\S+, the machine that .* has 0\.0\.9: install the same"):
        stages.DecodeBlock(replace(decoding(names, files), libraries=older))
    with pytest.raises(StoreError, match="isn't the same folder on"), committing(elsewhere, "run"):
        pass
    assert not elsewhere.exists(), "it was not made there"


def test_attempts_at_the_same_commit_agree_on_one_shard(tmp_path: Path, files: Path, names: dict[str, str]) -> None:
    import pyarrow

    encoders = load_all(names)
    job = Job(Clip("c", "0.mp4", "dog", "train", "g"), files / "0.mp4", ("timesformer", "ast"))
    specs = {stream: encoder.spec for stream, encoder in encoders.items()}
    decoded = decode_inputs(job.task, specs=specs)
    batch = embed_batch(encoders, [(job, decoded)])
    table = pyarrow.Table.from_pylist([stages.pack_block(3, [batch])])
    settings = {stream: encoder.recipe() for stream, encoder in encoders.items()}
    commit = stages.Commit(tmp_path / "store", None, 5, settings, {"attempt": 1})
    first = stages.commit_blocks(commit, table)
    again = stages.commit_blocks(replace(commit, provenance={"attempt": 2}), table)
    assert first == again == stages.Committed((3,), Done.of([batch]))
    (shard,) = (tmp_path / "store").glob("shard-*.h5")
    assert shard.name.startswith("shard-00000000000000000005-")


def test_a_run_that_another_has_taken_over_can_no_longer_write(tmp_path: Path) -> None:
    with Claims(tmp_path) as dead:
        assert dead.claim_all("first")
        with committing(tmp_path, "first"):
            pass
        os.close(dead._file)  # as a kill does
        dead._file = None
    with committing(tmp_path, "first"):
        pass  # nobody has opened the store since
    with Claims(tmp_path) as second:
        assert second.claim_all("second")
        with pytest.raises(
            StoreError, match=r"another extraction has taken over .*: nothing is written for the earlier"
        ):
            committing(tmp_path, "first").__enter__()
        with committing(tmp_path, "second"):
            pass
    assert not (tmp_path / ".claims").exists()
    (tmp_path / ".claims").write_text("second")  # a driver that was killed; then the local engine
    with Claims(tmp_path) as third:
        assert third.claim(["a clip"]) == ["a clip"]
        with pytest.raises(StoreError, match="another extraction has taken over"):
            committing(tmp_path, "second").__enter__()


def test_claiming_a_store_waits_for_shards_that_are_being_written(tmp_path: Path) -> None:
    (tmp_path / ".claims").write_text("first")
    moments = []
    with Claims(tmp_path) as second:
        with committing(tmp_path, "first"):
            thread = threading.Thread(target=lambda: moments.append(("claimed", second.claim_all("second"))))
            thread.start()
            time.sleep(0.3)
            moments.append(("written", True))
        thread.join(10)
    assert moments == [("written", True), ("claimed", True)]


def test_while_another_fills_a_store_ray_does_not(tmp_path: Path, files: Path, names: dict[str, str]) -> None:
    dataset = make(tmp_path / "root", files, 3)
    engine = object.__new__(ray_engine.RayEngine)  # without a cluster: the error must come before one is needed
    with Claims(dataset.store("train").folder) as other:
        assert other.claim(["clip00000_000000"])
        with pytest.raises(StoreError, match=r"another extraction is filling .*train, and the Ray engine"):
            next(engine.fill(Work(dataset, "train", {"timesformer": {}, "ast": {}})))


def test_without_ray_the_error_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"--engine ray needs Ray .*: run `pip install 'alphafuse\[ray\]'`"):
        import_ray()


# --------------------------------------------------------------------------------------------------------- on a cluster

OBJECTS = 150 * 2**20  # bytes, of each node's object store


class Watch(Progress):
    """Progress that records its calls."""

    def __init__(self) -> None:
        self.done = 0
        self.seen: dict[str, int] = {}
        self.totals: tuple[int, int] | None = None

    def start(self, title: str, *, total: int, done: int = 0, unit: str = "clip") -> None:
        self.totals = (total - done, done)

    def advance(self, count: int = 1, **of_which: int) -> None:
        self.done += count

    def note(self, **figures: int) -> None:
        self.seen.update(figures)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head node for the driver and two nodes that can be removed, on this machine."""
    import_ray()
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": OBJECTS, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.extra = [made.add_node(num_cpus=1, object_store_memory=OBJECTS) for _ in range(2)]
    yield made
    import ray

    ray.shutdown()
    made.shutdown()


def settings(names: dict[str, str], **changes: Any) -> ExtractSettings:
    return ExtractSettings(**({"device": "cpu", "flush_seconds": 0.5, "encoders": names} | changes))


class Running:
    """An extraction in a thread, to observe and to inject failures into."""

    def __init__(self, dataset: Dataset, how: ExtractSettings) -> None:
        self.watch = Watch()
        self._result: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(dataset, how))
        self._thread.start()

    def _run(self, dataset: Dataset, how: ExtractSettings) -> None:
        try:
            self._result += extract_embeddings(dataset, ["train"], how, progress=self.watch)
        except BaseException as error:
            self._result.append(error)

    @property
    def is_on(self) -> bool:
        return self._thread.is_alive()

    def wait_until(self, is_time: Callable[[Watch], object]) -> None:
        wait_for(lambda: is_time(self.watch) or self._result)
        assert not self._result, f"over before the test could do anything: {self._result}"

    def result(self) -> ExtractReport:
        self._thread.join(300)
        assert self._result, "still running"
        if isinstance(self._result[0], BaseException):
            raise self._result[0]
        return self._result[0]


def processes(title: str) -> list[psutil.Process]:
    """Return the processes whose title starts with this; Ray gives its workers titles."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, files: Path, names: dict[str, str]) -> Callable[[int], Dataset]:
    """The same root, extracted by the local engine."""
    made: dict[int, Dataset] = {}

    def extracted(clips: int) -> Dataset:
        if clips not in made:
            made[clips] = make(tmp_path_factory.mktemp("calm") / "root", files, clips)
            extract_embeddings(made[clips], ["train"], ExtractSettings(device="cpu", encoders=names))
        return made[clips]

    return extracted


@pytest.mark.cluster
def test_several_nodes_make_the_store_that_one_machine_makes(
    cluster: Any, tmp_path: Path, files: Path, names: dict[str, str], calm: Callable[[int], Dataset]
) -> None:
    dataset, expected, watch = make(tmp_path / "root", files, 700), calm(700), Watch()
    how = settings(names, engine="ray", address=cluster.address, flush_seconds=30.0)
    (report,) = extract_embeddings(dataset, ["train"], how, progress=watch)
    assert_same_stores(dataset, expected)
    assert report.embedded == {"timesformer": 700 - 23, "ast": 700 - 35}
    assert (report.clips, report.already, len(report.failures), report.is_shared) == (700, 0, 23 + 35, True)
    assert report.decode_seconds > 0 < report.embed_seconds
    assert watch.totals == (700, 0) and watch.done == 700
    assert watch.seen["decoded"] > 0 < watch.seen["embedded"] and watch.seen["nodes"] == 3
    assert len(dataset.store("train").shards()) <= 3, "a shard every 30 seconds"
    assert dataset.store("train").provenance()["device"] == "cpu"
    # existing embeddings stay, for any engine
    (again,) = extract_embeddings(dataset, ["train"], how)
    assert (again.already, again.embedded["ast"]) == (700, 0)
    other = replace(how, encoders={**how.encoders, "ast": "compact"})
    with pytest.raises(RecipeMismatchError, match="was made with another ast"):
        extract_embeddings(dataset, ["train"], other)


@pytest.mark.cluster
def test_losing_a_node_loses_no_embedding(
    cluster: Any, tmp_path: Path, files: Path, names: dict[str, str], calm: Callable[[int], Dataset]
) -> None:
    dataset, expected = make(tmp_path / "root", files, 3000), calm(3000)
    running = Running(dataset, settings(names, engine="ray", address=cluster.address))
    running.wait_until(lambda watch: watch.done >= 200)
    cluster.remove_node(cluster.extra.pop(), allow_graceful=False)
    report = running.result()
    assert report.clips == running.watch.done == 3000, "each clip is counted once"
    assert running.watch.seen["nodes"] == 2
    assert_same_stores(dataset, expected)


@pytest.mark.cluster
def test_killing_workers_loses_no_embedding(
    cluster: Any, tmp_path: Path, files: Path, names: dict[str, str], calm: Callable[[int], Dataset]
) -> None:
    dataset, expected = make(tmp_path / "root", files, 3000), calm(3000)
    running = Running(dataset, settings(names, engine="ray", address=cluster.address))
    running.wait_until(lambda watch: watch.seen.get("decoded"))
    killed = []
    for title in 2 * ("ray::MapWorker(Map(DecodeBlock))", "ray::MapWorker(Map(EmbedBlock))"):
        wait_for(lambda title=title: processes(title) or not running.is_on)
        for process in processes(title)[:1]:
            process.kill()
            killed.append(title)
        time.sleep(0.3)
    assert len(set(killed)) == 2, f"over before the test could do anything: {killed}"
    running.result()
    assert_same_stores(dataset, expected)


def test_an_interrupt_during_a_commit_does_not_request_it_twice() -> None:
    asked: list[list[str]] = []

    def commit(references: list[str]) -> str:
        asked.append(references)
        signal.raise_signal(signal.SIGINT)
        return "reference"

    class InstantRay:
        """Replaces the functions of Ray that a committer calls: everything is done at once."""

        def wait(self, references: list[str], **how: Any) -> tuple[list[str], list[str]]:
            return references, []

        def get(self, reference: str) -> stages.Committed:
            return stages.Committed((7,), Done.of([]))

    committer = ray_engine._Committer(InstantRay(), commit, 0.0)
    committer.add(SimpleNamespace(block_refs=["block"], size_bytes=lambda: 1))
    with pytest.raises(KeyboardInterrupt):
        committer.poll()
    committer.finish()
    assert asked == [["block"]] and committer.done == {7}


def command(root: Path, names: dict[str, str], *options: str) -> list[str]:
    given = [part for stream, folder in names.items() for part in (f"--{stream}", folder)]
    program = "from alphafuse.cli.main import main; main()"
    fixed = ("extract", "--split", "train", "--root", str(root), "--device", "cpu", "--flush-seconds", "0.5")
    return [sys.executable, "-P", "-c", program, *fixed, *given, *options]


@pytest.mark.cluster
def test_a_killed_driver_loses_only_unflushed_embeddings_and_any_engine_resumes(
    cluster: Any, tmp_path: Path, files: Path, names: dict[str, str], calm: Callable[[int], Dataset]
) -> None:
    dataset, expected = make(tmp_path / "root", files, 3000), calm(3000)
    store = dataset.store("train")
    on_ray = (
        "--engine",
        "ray",
        "--address",
        cluster.address,
        "--flush-seconds",
        "0.5",
    )  # several shards on a fast machine too
    driver = subprocess.Popen(command(dataset.root, names, *on_ray), cwd=dataset.root, stderr=subprocess.PIPE)
    wait_for(lambda: store.shards() or driver.poll() is not None)
    driver.kill()
    driver.communicate()
    wait_for(lambda: not any(map(processes, ("ray::Map", "ray::commit_blocks"))))
    before = len(store.done())
    assert 0 < before < 3000
    # the next drivers are interrupted: they flush, print how to resume, and nothing else
    for number, code, word in ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")):
        driver = subprocess.Popen(
            command(dataset.root, names, *on_ray, "--json"),
            cwd=dataset.root,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        shards = len(store.shards())
        wait_for(lambda shards=shards, driver=driver: len(store.shards()) > shards or driver.poll() is not None)
        driver.send_signal(number)
        output, errors = driver.communicate(timeout=120)
        assert (driver.returncode, output) == (code, ""), errors
        assert errors == f"\nalphafuse: {word}; finished work is kept, run the same command again to resume\n"
        between = len(store.done())
        assert before < between < 3000
        before = between
    local = subprocess.run(command(dataset.root, names, "--json"), stdout=subprocess.PIPE, text=True, check=True)
    (report,) = json.loads(local.stdout)
    assert report["already"] == between
    assert_same_stores(dataset, expected)


@pytest.mark.cluster
def test_ray_is_started_within_the_allowed_memory(
    tmp_path: Path, files: Path, names: dict[str, str], calm: Callable[[int], Dataset]
) -> None:
    dataset, expected = make(tmp_path / "root", files, 700), calm(700)
    run = subprocess.run(
        command(Path("root"), names, "--engine", "ray", "--max-memory", "6"),
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("train: 700 clips embedded (timesformer 677, ast 665);") and run.stderr == ""
    assert_same_stores(dataset, expected)


@pytest.mark.cluster
def test_a_failure_on_a_node_is_a_one_line_error_of_the_driver(
    cluster: Any, tmp_path: Path, files: Path, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(tmp_path / "root", files, 40)
    how = settings(names, engine="ray", address=cluster.address)
    store = dataset.store("train").folder
    store.mkdir(parents=True)
    with connected(cluster.address), monkeypatch.context() as patched:
        # a folder that the driver sees and the nodes don't
        patched.setattr(Dataset, "require_clips", lambda dataset: None)
        with pytest.raises(DatasetError, match=r"the clip folder .*nowhere doesn't exist on"):
            extract_embeddings(replace(dataset, clip_folder=tmp_path / "nowhere"), ["train"], how)
    assert list(store.iterdir()) == []
    with pytest.raises(ClusterError, match=r"no Ray cluster at '127\.0\.0\.1:1' \(.*\): start one with `ray start"):
        extract_embeddings(dataset, ["train"], replace(how, address="127.0.0.1:1"))

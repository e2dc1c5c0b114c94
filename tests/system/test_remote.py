"""Stores and clips behind URLs: cheap tests on fsspec's memory://, and an object store's real protocol on loopback."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
from support.clips import write_clip

from alphafuse.data.audit import audit
from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings, Failure
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.sources.folder import import_folder
from alphafuse.data.sources.vggsound import import_vggsound
from alphafuse.data.store import hdf5 as hdf5_module
from alphafuse.data.store.shard_files import shard_name
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.errors import AlphafuseError, DatasetError, StoreError
from alphafuse.extract.decoding.decode import decode_inputs
from alphafuse.extract.decoding.probe import files_without_audio
from alphafuse.extract.decoding.signatures import sign_clips
from alphafuse.extract.decoding.specs import AudioSpec, FrameSpec, Inputs, Spec
from alphafuse.extract.engines import local as local_engine
from alphafuse.extract.pipeline import extract_embeddings
from alphafuse.extract.recheck import resample
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system import remote as remote_module
from alphafuse.system.claims import Claims
from alphafuse.system.files import to_path
from alphafuse.system.remote import ObjectCache, RangeFile, list_objects, local_copy
from alphafuse.system.scratch import PREFIX, scratch_folder
from alphafuse.system.workers import map_tasks

Names = dict[str, Path]
SETTINGS = {"timesformer": {"protocol": "standard"}, "ast": {"protocol": "standard"}}


def rows(count: int = 40, *, first: int = 0, dim: int = 768) -> Embeddings:
    """Random embeddings with file sizes and digests; the first clip has no audio."""
    rng = np.random.default_rng(first)
    ids = tuple(f"abcdefghijk_{i:06d}" for i in range(first, first + count))
    features = {stream: rng.normal(size=(count, dim)).astype(np.float32) for stream in ("timesformer", "ast")}
    features["ast"][0] = np.nan
    failures = (Failure(ids[0], "ast", "no audio stream"),)
    made = Embeddings(ids, ("playing harp",) * count, ids, features, failures, SETTINGS)
    return replace(
        made,
        windows=np.tile([0.0, 10.0], (count, 1)),
        file_bytes=rng.integers(1, 10**7, count),
        digests=tuple(hashlib.sha256(clip_id.encode()).hexdigest() for clip_id in ids),
    )


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder's URL in this process's memory."""
    system = fsspec.filesystem("memory")
    yield "memory://folder"
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Requests to the memory file system: (kind of request, bytes returned)."""
    kind, made = type(fsspec.filesystem("memory")), list[tuple[str, int]]()

    def record(name: str, size: Callable[[Any], int]) -> None:
        before = getattr(kind, name)

        @functools.wraps(before)
        def asked(self: Any, *arguments: Any, **keywords: Any) -> Any:
            answer = before(self, *arguments, **keywords)
            made.append((name, size(answer)))
            return answer

        monkeypatch.setattr(kind, name, asked)

    record("cat_file", len)
    record("ls", lambda answer: 0)
    record("info", lambda answer: 0)
    monkeypatch.setattr(kind, "get_file", lambda self, name, local: Path(local).write_bytes(self.cat_file(name)))
    return made


# ---------------------------------------------------------------------------------------------------------- the paths


def test_text_with_a_scheme_becomes_a_url_and_everything_else_a_path() -> None:
    for text in ("stores/train", "/data/x", "C:/x", ""):
        assert type(to_path(text)) is type(Path(text)) and to_path(text) == Path(text)
    assert to_path("file:///data/clips") == Path("/data/clips") and isinstance(to_path("file:///data/clips"), Path)
    url = to_path("memory://folder/some/")
    assert not isinstance(url, Path) and str(url / "a b#1?.h5") == "memory://folder/some/a b#1?.h5"
    assert to_path(url) is url and to_path(Path("x")) == Path("x")


@pytest.mark.parametrize(
    ("module", "text"), [("upath", "memory://folder"), ("gcsfs", "gs://bucket/folder")], ids=["upath", "gcsfs"]
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, module: str, text: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(AlphafuseError, match=r"needs a package .*: run `pip install 'alphafuse\[remote\]'`") as caught:
        to_path(text)
    assert "\n" not in str(caught.value) and "gcsfs for gs://" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("nowhere://x", "Unsupported filesystem"), ("s3://", "names no bucket"), ("s3://a\nb", "control")],
)
def test_an_invalid_address_is_a_one_line_error(text: str, message: str) -> None:
    with pytest.raises(AlphafuseError, match=message) as caught:
        to_path(text)
    assert "\n" not in str(caught.value)


def test_keys_that_no_path_can_name_are_not_listed(memory: str) -> None:
    system = fsspec.filesystem("memory")
    for key in ("/folder/dog/a.mp4", "/folder/x/../b.mp4", "/folder/c.mp4", "/folderol/d.mp4"):
        system.store[key] = system.open("/made", "wb")
    assert set(list_objects(to_path(memory), recursive=True)) == {"dog/a.mp4", "c.mp4"}
    assert set(list_objects(to_path(memory))) == {"c.mp4"} and list_objects(to_path("memory://nothing")) == {}


# --------------------------------------------------------------------------------------------------------- the store


def test_every_method_of_a_store_gives_the_same_behind_a_url_as_on_a_disk(memory: str, tmp_path: Path) -> None:
    there, here = EmbeddingStore(f"{memory}/train"), EmbeddingStore(tmp_path / "train")
    assert there.shards() == [] and there.recipes() == {} and there.done() == set() and there.size_bytes() == 0
    for store in (there, here):
        store.write(rows(), provenance={"encoders": {"ast": {"name": "compact"}}})
        store.write(rows(30, first=20))
    assert there.recipes() == here.recipes() and there.dims() == here.dims() == {"timesformer": 768, "ast": 768}
    assert there.finished() == here.finished() and there.provenance() == here.provenance()
    infos = [vars(store.info()) | {"folder": None} for store in (there, here)]
    assert infos[0] == infos[1] and infos[0]["duplicates"] == 20
    for a, b in ((there.read(), here.read()), (there.open_rows(), here.open_rows())):
        chosen = np.array([49, 0, 7])
        assert a.clip_ids == b.clip_ids and a.failures == b.failures and there.verify() == []
        for stream in a.dims:
            np.testing.assert_array_equal(a.read_rows(chosen)[stream], b.read_rows(chosen)[stream])
    before = there.read()
    assert [str(path) for path in (there.pack(), *there.shards())] == [str(there.shards()[0])] * 2
    np.testing.assert_array_equal(there.read().features["ast"], before.features["ast"])
    there.export(tmp_path / "out.npz")
    assert len(np.load(tmp_path / "out.npz")["clip_id"]) == 50 and not list(scratch_folder().glob("shard-*"))


def test_resuming_reads_one_block_of_each_shard_once_and_lists_once_per_query(
    memory: str, requests: list[tuple[str, int]]
) -> None:
    for number in range(5):
        EmbeddingStore(memory).write(rows(600, first=1000 * number))
    size = EmbeddingStore(memory).size_bytes()
    store = EmbeddingStore(memory)
    requests.clear()
    assert len(store.recipes()) == 2 and len(store.finished()["ast"]) == 3000
    blocks = [count for kind, count in requests if kind == "cat_file"]
    assert blocks == [remote_module.BLOCK_BYTES] * 5 and sum(blocks) < 0.02 * size
    assert [kind for kind, _ in requests].count("ls") == 2 and "info" not in [kind for kind, _ in requests]
    requests.clear()
    store.finished()
    assert [kind for kind, _ in requests] == ["ls"]
    store.write(rows(600, first=9000))
    requests.clear()
    store.write(rows(600, first=8000))  # looks at the recipes of what it wrote itself
    assert [kind for kind, _ in requests] == ["ls"]


def test_rows_are_read_from_whole_shards_that_are_fetched_once(memory: str, requests: list[tuple[str, int]]) -> None:
    for number in range(3):
        EmbeddingStore(memory).write(rows(200, first=1000 * number))
    requests.clear()
    stored, size = EmbeddingStore(memory).open_rows(), EmbeddingStore(memory).size_bytes()
    assert [count for kind, count in requests if kind == "cat_file"] == [remote_module.BLOCK_BYTES] * 3
    requests.clear()
    for _ in range(3):  # epochs
        stored.read_rows(np.random.default_rng(0).permutation(600))
    fetched = [count for kind, count in requests if kind == "cat_file"]
    assert sum(fetched) == size and len(fetched) == 3


def test_the_cache_stays_within_its_limit_and_larger_files_are_read_in_ranges(
    memory: str, monkeypatch: pytest.MonkeyPatch, requests: list[tuple[str, int]]
) -> None:
    paths = [EmbeddingStore(memory).write(rows(100, first=1000 * number)) for number in range(3)]
    size = EmbeddingStore(memory).size_bytes() // 3
    cache = ObjectCache(2 * size + 1)
    for path in (*paths, paths[0]):
        file = cache.open(path)
        assert file is not None and len(file.read()) == size
        file.close()
        kept = [local for local, _ in cache._files.values()]
        assert len(kept) <= 2 and sum(local.stat().st_size for local in kept) <= cache.most_bytes
    assert ObjectCache(size - 1).open(paths[0]) is None
    expected = EmbeddingStore(memory).read().features["timesformer"]
    monkeypatch.setattr(hdf5_module, "_CACHE", ObjectCache(0))
    requests.clear()
    np.testing.assert_array_equal(EmbeddingStore(memory).read().features["timesformer"], expected)
    assert max(count for kind, count in requests if kind == "cat_file") < size
    cache._drop(0)
    assert not any(local.exists() for local in kept)


def test_a_file_read_in_ranges_equals_the_object(memory: str) -> None:
    content = random.Random(0).randbytes(5 * remote_module.BLOCK_BYTES + 123)
    path = to_path(f"{memory}/x")
    path.write_bytes(content)
    file, rng = RangeFile(path), random.Random(1)
    for _ in range(300):
        start, count = rng.randrange(len(content) + 9), rng.choice([1, 100, 70_000, 200_000])
        file.seek(start)
        assert file.read(count) == content[start : start + count] and len(file._blocks) <= remote_module.KEPT_BLOCKS
    assert file.seek(-3, os.SEEK_END) == len(content) - 3 and file.read() == content[-3:]


def test_a_commit_behind_a_url_that_is_tried_again_writes_nothing(memory: str) -> None:
    store, name = EmbeddingStore(memory), shard_name(1, ["a", "b"])
    path = store.write(rows(), name=name)
    content = path.read_bytes()
    assert EmbeddingStore(memory).write(rows(first=5), name=name) == path and path.read_bytes() == content
    remote_module.write_object(path, b"another attempt at the same moment", replace=False)
    assert path.read_bytes() == content and store.verify() == [] and len(store.shards()) == 1


def test_claims_behind_a_url_are_not_shared(memory: str) -> None:
    with Claims(to_path(memory)) as one, Claims(memory) as other:
        assert not one.is_shared and one.claim(["a"]) == ["a"] == other.claim(["a"]) and one.claim_all()
    assert list_objects(to_path(memory)) == {}


def test_a_vanished_shard_or_a_broken_connection_is_not_reported_as_damage(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddingStore(memory)
    path = store.write(rows())
    other = EmbeddingStore(memory)
    rows_there = other.open_rows()
    store.pack()
    hdf5_module._CACHE._drop(0)
    assert not path.exists() and len(rows_there.read_rows(np.arange(40))["ast"]) == 40  # looks where they are now

    def breaks_off(*arguments: Any, **keywords: Any) -> bytes:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", breaks_off)
    with pytest.raises(StoreError, match=r"can't read memory://.*: Connection reset by peer: check the address"):
        EmbeddingStore(memory).recipes()
    (problem,) = set(EmbeddingStore(memory).verify())
    assert "Connection reset by peer" in problem and "damaged" not in problem


def with_variable_text(content: bytes, folder: Path) -> bytes:
    """The shard with a column of variable length."""
    path = folder / "variable.h5"
    path.write_bytes(content)
    with h5py.File(path, "r+") as shard:
        ids = shard["clip_id"].asstr()[:]
        del shard["clip_id"]
        shard.create_dataset("clip_id", data=ids.astype(object), dtype=h5py.string_dtype())
    return path.read_bytes()


def test_a_shard_behind_a_url_is_checked_like_a_local_one(memory: str, tmp_path: Path) -> None:
    path = EmbeddingStore(memory).write(rows(20, dim=8))
    content, rng = path.read_bytes(), random.Random(0)
    cases = [content[: len(content) // 2], content[:10], b"", b"not a shard" * 100, content.replace(b"ast", b"abt")]
    cases += [
        bytes([*content[:i], content[i] ^ 1 << rng.randrange(8), *content[i + 1 :]])
        for i in rng.sample(range(len(content)), 60)
    ]
    found = 0
    for number, case in enumerate(cases):
        for folder in (to_path(f"{memory}/{number}"), tmp_path / str(number)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(case)
        problems = [
            [problem.replace(str(folder), "STORE") for problem in EmbeddingStore(folder).verify()]
            for folder in (to_path(f"{memory}/{number}"), tmp_path / str(number))
        ]
        assert bool(problems[0]) == bool(problems[1]) and all("\n" not in problem for problem in problems[0])
        found += bool(problems[0])
    assert found > 25  # else what is damaged is room that nothing uses
    to_path(f"{memory}/variable/{path.name}").write_bytes(with_variable_text(content, tmp_path))
    with pytest.raises(
        StoreError, match=r"is damaged \(/clip_id is of variable length, which is not allowed in shards\)"
    ):
        EmbeddingStore(f"{memory}/variable").read()


# ------------------------------------------------------------------------------------------------------------- roots


def small_root(root: Path, **keywords: Any) -> Dataset:
    clips = [
        Clip(f"{split}_{i:06d}", f"{i}.mp4", "dog", split, f"{split}{i}")
        for split in ("train", "val", "test")
        for i in range(2)
    ]
    return Dataset.create(root, Manifest(clips), name="mine", clip_folder=root / "clips", classes=("dog",), **keywords)


def test_a_root_saves_the_address_of_its_stores(memory: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert small_root(root).store_folder == root / "stores"
    assert "stores" not in json.loads((root / "dataset.json").read_text())
    assert str(small_root(root, stores=f"{memory}/stores").store("val").folder) == f"{memory}/stores/val"
    assert str(small_root(root).store("val").folder) == f"{memory}/stores/val", "importing again keeps it"
    assert small_root(root, stores=tmp_path / "elsewhere").store_folder == tmp_path / "elsewhere"
    assert small_root(root, stores=root / "inside").store_folder == root / "inside"
    assert json.loads((root / "dataset.json").read_text())["stores"] == "inside"
    assert small_root(root, stores=root / "stores").store_folder == root / "stores"
    assert "stores" not in json.loads((root / "dataset.json").read_text())


@pytest.mark.parametrize("root", ["s3://bucket/root", "memory:/root"])
def test_a_root_is_local(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = Manifest([Clip("a", "a.mp4", "dog", "train", "a")])
    for given in (root, Path(root)):
        with pytest.raises(DatasetError, match="is a URL: a root is a local folder; its clips and stores may lie"):
            Dataset.open(given)
        with pytest.raises(DatasetError, match="is a URL: a root is a local folder"):
            Dataset.create(given, manifest, name="mine", clip_folder=tmp_path, classes=("dog",))
    assert not list(tmp_path.iterdir())


def test_an_export_is_local(memory: str) -> None:
    store = EmbeddingStore(memory)
    store.write(rows())
    with pytest.raises(StoreError, match="is a URL: export to a local file and copy that"):
        store.export(f"{memory}/x.npz")


@pytest.mark.parametrize("stores", [5, "", "a\nb"])
def test_stores_in_dataset_json_must_be_a_text_that_can_be_shown(tmp_path: Path, stores: object) -> None:
    small_root(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text()) | {"stores": stores}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="make the root again"):
        Dataset.open(tmp_path)


def test_an_empty_store_outside_of_its_root_names_the_root(memory: str, tmp_path: Path) -> None:
    dataset = small_root(tmp_path / "root", stores=f"{memory}/stores")
    with pytest.raises(
        StoreError, match=rf"no embeddings in memory://.*/stores/val: run .* --split val --root {dataset.root}"
    ):
        dataset.store("val").read()
    dataset.store("val").write(rows())
    with pytest.raises(DatasetError, match="2 of 2 val clips are not extracted yet"):
        dataset.embeddings("val")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of small clips, one of them silent and one broken."""
    folder = tmp_path_factory.mktemp("files")
    for look in range(6):
        write_clip(folder / ("dog" if look % 2 else "cat") / f"{look}.mp4", frames=12, look=look)
    write_clip(folder / "cat" / "silent.mp4", frames=12, audio=False)
    (folder / "dog" / "broken.mp4").write_bytes(b"nothing that could be a clip")
    return folder


def upload(files: Path, url: str) -> None:
    system, name = fsspec.core.url_to_fs(url)
    system.makedirs(name, exist_ok=True)
    for path in sorted(files.rglob("*.mp4")):
        system.pipe_file(f"{name}/{path.relative_to(files).as_posix()}", path.read_bytes())


def test_a_root_of_clips_behind_a_url_is_that_of_a_local_folder(
    memory: str, files: Path, tmp_path: Path, requests: list[tuple[str, int]]
) -> None:
    upload(files, f"{memory}/clips")
    there = import_folder(f"{memory}/clips/", tmp_path / "there").dataset
    here = import_folder(files, tmp_path / "here", name="clips").dataset
    assert there.name == "clips" and list(there.manifest) == list(here.manifest)
    assert json.loads((there.root / "dataset.json").read_text())["clips"] == f"{memory}/clips"
    clip = there.manifest[0]
    assert there.path_of(clip).read_bytes() == here.path_of(clip).read_bytes()
    assert there.file_sizes(there.manifest) == here.file_sizes(here.manifest)
    there.require_clips()
    reports = [audit(dataset, signatures=None) for dataset in (there, here)]
    assert [one.kind for one in reports[0].problems] == [one.kind for one in reports[1].problems]
    assert reports[0].byte_identical == reports[1].byte_identical == () == reports[0].missing
    (tmp_path / "list.csv").write_text("path,label\ncat/0.mp4,cat\ndog/1.mp4,dog\ndog/none.mp4,dog\n")
    listed = import_folder(f"{memory}/clips", tmp_path / "listed", csv=tmp_path / "list.csv")
    assert len(listed.dataset.manifest) == 2 and listed.missing == ("dog/none",)
    with pytest.raises(DatasetError, match="no such clip folder: memory://folder/nothing"):
        import_folder(f"{memory}/nothing", tmp_path / "nothing")
    with pytest.raises(DatasetError, match="the clip folder memory://folder/clips doesn't exist"):
        fsspec.filesystem("memory").rm("/folder/clips", recursive=True)
        there.require_clips()


SPECS: dict[str, Spec] = {"timesformer": FrameSpec(), "ast": AudioSpec()}
BOTH = ("timesformer", "ast")


def test_a_clip_behind_a_url_is_decoded_like_the_file_and_leaves_nothing_behind(
    memory: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(files, memory)
    decode = functools.partial(decode_inputs, specs=SPECS)
    for name in ("cat/0.mp4", "cat/silent.mp4", "dog/broken.mp4"):
        ours, theirs = (decode((place / name, BOTH, None)) for place in (to_path(memory), files))
        assert ours.reasons == theirs.reasons and list(ours.arrays) == list(theirs.arrays)
        assert all(np.array_equal(ours.arrays[name], theirs.arrays[name]) for name in ours.arrays)
    missing, missing_here = (decode((place / "none.mp4", BOTH, None)) for place in (to_path(memory), files))
    assert missing.reasons == missing_here.reasons
    assert set(missing.reasons.values()) == {"can't be opened: No such file or directory"}

    def breaks_off(*arguments: Any, **keywords: Any) -> None:
        raise TimeoutError("the server doesn't answer")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", breaks_off)
    broken = decode((to_path(memory) / "cat/0.mp4", BOTH, None))
    assert broken.reasons == dict.fromkeys(BOTH, "can't be fetched: the server doesn't answer")
    assert not list(scratch_folder().glob("*.mp4"))


LEAVES = """
import sys, time
from alphafuse.system.scratch import scratch_folder
(scratch_folder() / "clip.mp4").write_bytes(b"x" * 1000)
print(scratch_folder(), flush=True)
sys.stdin.read()
"""


def test_scratch_files_of_a_killed_process_are_removed_by_the_next_and_those_of_a_living_one_stay(
    tmp_path: Path,
) -> None:
    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", LEAVES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (killed, left), (living, kept) = start(), start()
    assert left.stat().st_mode & 0o077 == 0 and left.name.startswith(PREFIX)
    killed.kill()
    killed.wait()
    assert (left / "clip.mp4").exists()
    last, own = start()
    assert not left.exists() and (kept / "clip.mp4").exists() and own.exists()
    for process in (living, last):
        process.communicate()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- an object store's server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server on loopback, which the environment names; it has the bucket `bucket`."""
    import s3fs
    from moto.server import ThreadedMotoServer

    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    started.start()
    host, port = started.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield address
    s3fs.S3FileSystem.clear_instance_cache()
    started.stop()


def alphafuse(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "alphafuse", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


def settings(names: Names, **keywords: Any) -> ExtractSettings:
    return ExtractSettings(encoders={name: str(names[name]) for name in ("timesformer", "ast")}, **keywords)


def assert_same_stores(one: Dataset, other: Dataset, split: str) -> None:
    a, b = one.store(split).read(one.manifest.of_split(split)), other.store(split).read(other.manifest.of_split(split))
    assert a.clip_ids == b.clip_ids and set(a.failures) == set(b.failures)
    for stream in b.features:
        np.testing.assert_array_equal(a.features[stream], b.features[stream])


def make_pair(files: Path, tmp_path: Path, url: str, copies: int = 1) -> tuple[Dataset, Dataset]:
    """A root with clips and stores on the server, and the same root on disk, with `copies` copies of each clip."""
    local = tmp_path / "files"
    for path in files.rglob("*.mp4"):
        for copy in range(copies):
            target = local / path.parent.name / f"{path.stem}-{copy}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    upload(local, f"{url}/clips")
    there = import_folder(f"{url}/clips", tmp_path / "there", stores=f"{url}/stores").dataset
    here = import_folder(local, tmp_path / "here", name="clips").dataset
    assert list(there.manifest) == list(here.manifest)
    return there, here


@pytest.mark.cluster
def test_extraction_from_and_into_a_bucket_equals_the_local_one_to_the_bit(
    server: str, files: Path, tmp_path: Path, tiny_encoders: Names
) -> None:
    there, here = make_pair(files, tmp_path, "s3://bucket/whole", copies=4)
    splits = ["train", "val", "test"]
    reports = extract_embeddings(there, splits, settings(tiny_encoders))
    extract_embeddings(here, splits, settings(tiny_encoders))
    assert not any(report.is_shared for report in reports)
    for split in splits:
        assert_same_stores(there, here, split)
        assert there.store(split).verify() == []
    again = extract_embeddings(there, splits, settings(tiny_encoders))
    assert all(report.already == report.clips for report in again)
    assert resample(there, "train", 2, settings(tiny_encoders)).largest == 0.0
    store = there.store("train").folder
    verified = alphafuse("store", "verify", store, "--resample", 2, "--root", there.root, "--device", "cpu")
    assert verified.returncode == 0 and "0 problems" in verified.stdout, verified.stderr
    unnamed = alphafuse("store", "verify", store, "--resample", 2)
    assert unnamed.returncode == 2 and "needs their root: give --root" in unnamed.stderr
    assert alphafuse("store", "pack", store).returncode == 0 and len(there.store("train").shards()) == 1
    assert_same_stores(there, here, "train")
    fitted = [alphafuse("fit", "--root", dataset.root, "--epochs", 2) for dataset in (there, here)]
    assert [run.returncode for run in fitted] == [0, 0], fitted[0].stderr
    metrics = [(dataset.root / "runs" / "untransformed" / "metrics.json").read_text() for dataset in (there, here)]
    assert metrics[0] == metrics[1]
    signed = [sign_clips(dataset, dataset.manifest.of_split("test"), workers=1) for dataset in (there, here)]
    assert signed[0] == signed[1]
    quiet = files_without_audio([there.path_of(clip) for clip in there.manifest.of_split("train")], workers=2)
    assert {path.name.split("-")[0] for path in quiet} == {"silent", "broken"}


@pytest.mark.cluster
def test_a_killed_extraction_into_a_bucket_is_resumed_and_loses_nothing_that_was_flushed(
    server: str, files: Path, tmp_path: Path, tiny_encoders: Names
) -> None:
    there, here = make_pair(files, tmp_path, "s3://bucket/killed", copies=25)
    names = [f"--{stream}={tiny_encoders[stream]}" for stream in BOTH]
    command = [sys.executable, "-P", "-m", "alphafuse", "extract", "--split", "train", "--root", str(there.root)]
    for goal in (2, 4):
        run = subprocess.Popen(
            [*command, *names, "--flush-seconds", "0.2", "--device", "cpu"],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        deadline = time.monotonic() + 120
        while len(there.store("train").shards()) < goal and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()
    before = there.store("train").done()
    assert 0 < len(before) < len(there.manifest.of_split("train")), "killed neither before the first flush nor after"
    (report,) = extract_embeddings(there, ["train"], settings(tiny_encoders, flush_seconds=0.2))
    assert report.already == len(before)
    extract_embeddings(here, ["train"], settings(tiny_encoders))
    assert_same_stores(there, here, "train")
    info = there.store("train").info()
    assert info.duplicates == 0 and there.store("train").verify() == []


@pytest.mark.cluster
def test_two_extractions_at_once_start_at_different_clips_and_make_a_correct_store(
    server: str, files: Path, tmp_path: Path, tiny_encoders: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = make_pair(files, tmp_path, "s3://bucket/two", copies=20)
    clips = len(there.manifest.of_split("train"))
    starts = iter([0, clips // 2])

    class Lot:
        def integers(self, most: int) -> int:
            assert most == clips
            return next(starts)

    monkeypatch.setattr(local_engine.np.random, "default_rng", Lot)
    one_each = settings(tiny_encoders, flush_seconds=0.2, workers=1, models=1)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(extract_embeddings, there, ["train"], one_each) for _ in range(2)]
        reports = [run.result()[0] for run in runs]
    monkeypatch.undo()
    extract_embeddings(here, ["train"], settings(tiny_encoders))
    assert_same_stores(there, here, "train")
    assert there.store("train").verify() == []
    made = sum(report.embedded["timesformer"] for report in reports)
    assert made < 1.8 * clips, "each left out what the other had stored"


@pytest.mark.cluster
def test_simultaneous_attempts_at_one_commit_leave_one_complete_object(server: str) -> None:
    names = [shard_name(stamp, ["a"]) for stamp in range(8)]
    stores = [EmbeddingStore("s3://bucket/commits") for _ in range(32)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: stores[i].write(rows(first=i % 4), name=names[i // 4]), range(32)))
    assert [path.name for path in EmbeddingStore("s3://bucket/commits").shards()] == names
    assert EmbeddingStore("s3://bucket/commits").verify() == []
    path = stores[0].folder / names[0]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    remote_module.write_object(path, b"late", replace=False)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


@pytest.mark.cluster
def test_resuming_transfers_one_range_of_each_shard(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for number in range(4):
        EmbeddingStore("s3://bucket/ranges").write(rows(600, first=1000 * number))
    asked: list[str] = []
    before = s3fs.S3FileSystem._call_s3

    async def call(self: Any, method: str, *arguments: Any, **keywords: Any) -> Any:
        asked.append(f"{method} {keywords.get('Range', '')}".strip())
        return await before(self, method, *arguments, **keywords)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    assert len(EmbeddingStore("s3://bucket/ranges").finished()["ast"]) == 2400
    assert sorted(asked) == ["get_object bytes=0-65535"] * 4 + ["list_objects_v2"]


@pytest.mark.cluster
def test_a_damaged_object_is_named_by_verify_and_refused_by_reading(server: str) -> None:
    store = EmbeddingStore("s3://bucket/damaged")
    path = store.write(rows())
    store.write(rows(first=100))
    content = path.read_bytes()
    path.write_bytes(content[:-2000] + bytes(1000) + content[-1000:])
    (problem,) = EmbeddingStore("s3://bucket/damaged").verify()
    assert path.name in problem and "remove it and extract again" in problem
    path.write_bytes(content[:5000])
    with pytest.raises(StoreError, match=r"is damaged .*: remove it and run extract again"):
        EmbeddingStore("s3://bucket/damaged").read()
    checked = alphafuse("store", "verify", "s3://bucket/damaged")
    assert checked.returncode == 1 and "Traceback" not in checked.stderr


@pytest.mark.cluster
def test_a_wrong_address_or_wrong_credentials_are_one_line_errors(server: str, tmp_path: Path) -> None:
    dataset = small_root(tmp_path / "root", stores="s3://nobucket/stores")
    with pytest.raises(StoreError, match="there is no bucket 'nobucket' for s3://nobucket/stores/val: make it"):
        dataset.store("val").write(rows())
    with pytest.raises(DatasetError, match="there is no bucket 'nobucket'"):
        import_folder("s3://nobucket/clips", tmp_path / "new")
    with pytest.raises(DatasetError, match="no such clip folder: s3://bucket/nothing"):
        import_folder("s3://bucket/nothing", tmp_path / "new")
    without = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(tmp_path)}
    for arguments, environment, words in (
        (("store", "info", "s3://bucket/any"), without, "credentials"),
        (("store", "info", "s3://bucket/any"), {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect"),
        (("fit", "--root", tmp_path / "root"), {}, "there is no bucket 'nobucket'"),
    ):
        run = alphafuse(*arguments, **environment)
        assert run.returncode == 2 and words in run.stderr, (arguments, run.stderr)
        assert run.stderr.startswith("alphafuse: ") and run.stderr.count("\n") == 1, run.stderr


@pytest.mark.cluster
def test_a_decode_worker_with_little_memory_fetches_and_decodes_as_a_local_one(server: str, files: Path) -> None:
    upload(files, "s3://bucket/decode")
    decode = functools.partial(decode_inputs, specs=SPECS)
    names = ["cat/0.mp4", "dog/1.mp4", "cat/none.mp4"]
    found = {}
    for place in (to_path("s3://bucket/decode"), files):
        tasks = ((name, (place / name, BOTH, None)) for name in names)
        found[place] = dict(
            map_tasks(
                decode,
                tasks,
                failed=lambda reason: Inputs.failed(BOTH, reason),
                workers=1,
                memory_bytes=96 * 2**20,
                preload="alphafuse.extract.decoding.decode",  # as extraction does
            )
        )
    there, here = found.values()
    for name in names[:2]:
        for stream in BOTH:
            assert np.array_equal(there[name].arrays[stream], here[name].arrays[stream]), there[name]
    assert there["cat/none.mp4"].reasons == here["cat/none.mp4"].reasons != {}


@pytest.mark.cluster
def test_vggsounds_clips_in_nested_folders_of_a_bucket_are_found_with_one_listing(
    server: str, files: Path, tmp_path: Path
) -> None:
    system = fsspec.filesystem("s3")
    for number, path in enumerate(sorted(files.rglob("*.mp4"))):
        system.pipe_file(f"bucket/vgg/part{number % 3}/abcdefghij{number}_000030.mp4", path.read_bytes())
    (tmp_path / "list.csv").write_text("".join(f"abcdefghij{i},30,dog barking,train\n" for i in range(10)))
    report = import_vggsound(tmp_path / "list.csv", "s3://bucket/vgg", tmp_path / "root")
    assert len(report.dataset.manifest) == 8 and len(report.missing) == 2
    with local_copy(report.dataset.path_of(report.dataset.manifest[0])) as copy:
        assert copy.suffix == ".mp4" and copy.stat().st_size > 20
    assert not copy.exists() and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY

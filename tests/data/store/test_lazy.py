import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings, Failure
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.store import hdf5 as hdf5_module
from alphafuse.data.store import shard as shard_module
from alphafuse.data.store.lazy import EmbeddingSource, StoredEmbeddings
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.data.streams import DEFAULT_NAMES
from alphafuse.errors import DatasetError, EmptySplitError, RecipeMismatchError, StoreError

DIMS = {"timesformer": 5, "ast": 3}
SETTINGS = {stream: {"protocol": "standard", "dim": dim} for stream, dim in DIMS.items()}


def write(
    store: EmbeddingStore,
    clip_ids: list[str],
    *,
    streams: tuple[str, ...] = DEFAULT_NAMES,
    absent: dict[str, list[str]] | None = None,
    dtype: type = np.float32,
    seed: int = 0,
    failures: bool = True,
    recipes: dict[str, dict[str, object]] = SETTINGS,
) -> None:
    """Append a shard of random rows; `absent` names the clips that lack a stream."""
    generator, absent = np.random.default_rng(seed), absent or {}
    features: dict[str, np.ndarray] = {}
    for stream in streams:
        features[stream] = generator.normal(size=(len(clip_ids), DIMS[stream])).astype(dtype)
        features[stream][[c in absent.get(stream, ()) for c in clip_ids]] = np.nan
    store.write(
        Embeddings(
            clip_ids=tuple(clip_ids),
            labels=tuple(f"label of {c}" for c in clip_ids),
            groups=tuple(clip_ids),
            features=features,
            failures=tuple(Failure(c, m, "broken") for m, ids in absent.items() for c in ids if failures),
            recipes={stream: recipes[stream] for stream in streams},
        )
    )


def clips(clip_ids: list[str]) -> list[Clip]:
    return [Clip(c, f"{c}.mp4", f"label of {c}", "train", f"video of {c}") for c in clip_ids]


def names(count: int, prefix: str = "clip") -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def joined(store: EmbeddingStore, clip_ids: list[str]) -> dict[str, np.ndarray]:
    """Read the rows of these clips one by one: the first finite row of the oldest shard."""
    found: dict[tuple[str, str], np.ndarray] = {}
    for path in sorted(store.folder.glob("*.h5")):
        with h5py.File(path) as shard:
            for stream in DEFAULT_NAMES:
                if stream in shard["streams"]:
                    features = shard[f"streams/{stream}/features"][()]
                    for clip_id, row in zip(shard["clip_id"].asstr()[()], features, strict=True):
                        if np.isfinite(row).all():
                            found.setdefault((stream, clip_id), row.astype(np.float32))
    nothing = {stream: np.full(dim, np.nan, np.float32) for stream, dim in DIMS.items()}
    return {m: np.array([found.get((m, c), nothing[m]) for c in clip_ids]).reshape(-1, DIMS[m]) for m in DEFAULT_NAMES}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(theirs)
    for stream in ours:
        assert ours[stream].dtype == np.float32
        np.testing.assert_array_equal(ours[stream], theirs[stream])


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "stores" / "train")


@pytest.mark.parametrize("seed", range(8))
def test_rows_equal_a_row_by_row_join_for_all_kinds_of_shards(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Clips stored twice in and across shards, absent rows, float16, separate streams, empty shards."""
    monkeypatch.setattr(hdf5_module, "SLICE_BYTES", 120)  # slices of a few rows, so that they end at many positions
    monkeypatch.setattr(hdf5_module, "GAP_BYTES", 40)
    monkeypatch.setattr(hdf5_module, "ID_ROWS", 7)
    generator = np.random.default_rng(seed)
    everything = names(60)
    for number in range(6):
        ids = generator.choice(everything, size=0 if number == 3 else 25).tolist()
        write(
            store,
            ids,
            streams=(DEFAULT_NAMES, ("timesformer",), ("ast",))[generator.integers(3)],
            absent={m: generator.choice(everything, size=15).tolist() for m in DEFAULT_NAMES},
            dtype=(np.float32, np.float16)[number % 2],
            seed=10 * seed + number,
        )
    asked = [*generator.permutation(everything[:50]).tolist(), "never extracted"]
    opened = store.open_rows(clips(asked))
    expected = joined(store, asked)
    assert_same(opened.read_rows(np.arange(len(asked))), expected)
    read = store.read(clips(asked))
    assert_same(dict(read.features), expected)
    assert opened.failures == read.failures and opened.recipes == read.recipes
    for stream in DEFAULT_NAMES:
        np.testing.assert_array_equal(opened.present(stream), np.isfinite(expected[stream]).all(axis=1))
    positions = generator.integers(len(asked), size=80)  # with repetitions
    assert_same(opened.read_rows(positions), {m: matrix[positions] for m, matrix in expected.items()})
    half = opened.take(positions)
    assert half.clip_ids == tuple(asked[i] for i in positions)
    assert_same(half.read_rows(np.arange(80)[::-1]), {m: x[positions[::-1]] for m, x in expected.items()})


def test_embeddings_in_memory_and_on_disk_have_the_same_methods_and_results(store: EmbeddingStore) -> None:
    write(store, names(9), absent={"ast": ["clip2", "clip5"]})
    asked = clips(["clip5", "clip0", "elsewhere", "clip7", "clip2"])
    here: EmbeddingSource = store.read(asked)
    there: EmbeddingSource = store.open_rows(asked)
    for source, other in ((here, there), (here.take(np.array([4, 1, 2])), there.take(np.array([4, 1, 2])))):
        assert len(source) == len(other) and source.recipes == other.recipes == SETTINGS
        assert source.clip_ids == other.clip_ids and source.labels == other.labels and source.groups == other.groups
        assert source.dims == other.dims == DIMS and list(source.dims) == list(DEFAULT_NAMES)
        assert sorted(source.storage_order()) == sorted(other.storage_order()) == list(range(len(source)))
        assert_same(source.read_rows(np.array([2, 0])), other.read_rows(np.array([2, 0])))
        assert_same(source.read_rows(np.array([], int)), other.read_rows(np.array([], int)))
        for stream in DEFAULT_NAMES:
            np.testing.assert_array_equal(source.present(stream), other.present(stream))
        with pytest.raises(StoreError, match="unknown stream 'audio'"):
            other.present("audio")
    assert there.labels[1] == "label of clip0" and there.groups[1] == "video of clip0"
    assert there.take(there.present("ast")).clip_ids == ("clip0", "clip7")


def test_half_precision_embeddings_in_memory_are_read_as_float32_too() -> None:
    half = Embeddings(("a",), ("x",), ("a",), {"ast": np.ones((1, 3), np.float16)})
    assert half.read_rows(np.array([0, 0]))["ast"].dtype == np.float32


def test_take_keeps_the_failures_of_its_clips(store: EmbeddingStore) -> None:
    write(store, names(3), absent={"ast": ["clip0", "clip2"]})
    opened = store.open_rows(clips(names(3)))
    assert [failure.clip_id for failure in opened.failures] == ["clip0", "clip2"]
    assert opened.take(np.array([2, 1])).failures == (Failure("clip2", "ast", "broken"),)
    assert "3 clips, timesformer=(3, 5), ast=(3, 3), 2 failures" in repr(opened)


def test_storage_order_is_the_order_of_the_rows_on_disk(store: EmbeddingStore) -> None:
    write(store, names(40, "a"), absent={"timesformer": ["a3", "a4"], "ast": ["a4"]})
    write(store, names(40, "b"))
    asked = np.random.default_rng(0).permutation([*names(40, "a"), *names(40, "b"), "never"]).tolist()
    order = store.open_rows(clips(asked)).storage_order()
    on_disk: list[str] = []
    for path in store.shards():
        with h5py.File(path) as shard:
            on_disk += shard["clip_id"].asstr()[()].tolist()
    on_disk.remove("a4")  # has no row: comes last, with clips that were never extracted
    assert [asked[i] for i in order][:-2] == on_disk
    assert {asked[i] for i in order[-2:]} == {"a4", "never"}
    with pytest.raises(ValueError, match="read-only"):  # the array is shared by all callers
        order[0] = 1


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each read of features."""
    counts: list[int] = []
    original = h5py.Dataset.__getitem__

    def counting(self: h5py.Dataset, index: object) -> object:
        result = original(self, index)
        if self.name.endswith("/features"):
            counts.append(len(result))
        return result

    straight = hdf5_module.RawRows.__getitem__

    def counting_too(self: hdf5_module.RawRows, index: slice) -> object:
        result = straight(self, index)
        counts.append(len(result))
        return result

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    monkeypatch.setattr(hdf5_module.RawRows, "__getitem__", counting_too)
    return counts


def test_a_shuffled_window_is_read_in_whole_slices_and_single_rows_alone(
    store: EmbeddingStore, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, names(1000))
    write(store, names(1000, "b"))
    opened = store.open_rows(clips(np.random.default_rng(0).permutation([*names(1000), *names(1000, "b")]).tolist()))
    order = opened.storage_order()
    reads.clear()
    window = order[100:900]
    opened.read_rows(np.random.default_rng(1).permutation(window))
    assert reads == [800, 800]
    reads.clear()
    opened.read_rows(np.random.default_rng(1).permutation(window[np.arange(800) % 3 > 0]))  # gaps are read too
    assert reads == [799, 799]
    reads.clear()
    opened.read_rows(order[900:1100])
    assert reads == [100] * 4
    monkeypatch.setattr(hdf5_module, "GAP_BYTES", 100)
    reads.clear()
    opened.read_rows(order[[1500, 2, 800]])
    assert reads == [1] * 6
    monkeypatch.setattr(hdf5_module, "SLICE_BYTES", 100 * 4 * DIMS["timesformer"])
    reads.clear()
    opened.take(order[:250]).read_rows(np.arange(250))
    assert max(reads) <= 100 * DIMS["timesformer"] // DIMS["ast"] and sum(reads) == 500


def test_rows_that_were_not_requested_are_not_read(store: EmbeddingStore, reads: list[int]) -> None:
    write(store, names(500))
    write(store, names(500), seed=1)  # the same clips again
    reads.clear()
    store.read(clips(names(20)))
    assert reads == [20, 20]


BOUNDED = """
import resource, sys
import numpy as np
from alphafuse.data.manifest import Clip
from alphafuse.data.store.store import EmbeddingStore

folder, count, allowed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
clips = [Clip(f"clip{i}", "x.mp4", "label", "train", "group") for i in np.random.default_rng(0).permutation(count)]
store = EmbeddingStore(folder)
store.open_rows(clips[:10]).read_rows(np.arange(10))  # memory that the libraries take once
with open("/proc/self/statm") as file:
    pages = int(file.read().split()[0])
limit = pages * resource.getpagesize() + allowed
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
embeddings = store.open_rows(clips)
print(len(store.done()))
print(sum(store.info().rows.values()))
order, total = embeddings.storage_order(), 0.0
for start in range(0, count, 512):
    rows = embeddings.read_rows(np.random.default_rng(start).permutation(order[start:start + 512]))
    total += sum(matrix.sum(dtype=np.float64) for matrix in rows.values())
print(total)
try:
    store.read(clips)
except MemoryError:
    print("no room for all")
"""


def test_a_store_larger_than_memory_is_opened_and_read_within_a_limit(tmp_path: Path) -> None:
    """98 MB of features and 32 MB of free address space: reading all at once must fail, reading in parts must not."""
    store, per_shard, shards, dims = EmbeddingStore(tmp_path / "store"), 4000, 2, {"timesformer": 2048, "ast": 1024}
    generator, total = np.random.default_rng(0), 0.0
    for number in range(shards):
        ids = tuple(f"clip{i}" for i in range(number * per_shard, (number + 1) * per_shard))
        features = {m: generator.random((per_shard, dim), np.float32).astype(np.float16) for m, dim in dims.items()}
        total += sum(matrix.sum(dtype=np.float64) for matrix in features.values())
        store.write(Embeddings(ids, ids, ids, features, recipes={stream: {} for stream in dims}))
    count, allowed = shards * per_shard, 32_000_000
    assert 4 * count * sum(dims.values()) > 3 * allowed
    command = [sys.executable, "-c", BOUNDED, str(store.folder), str(count), str(allowed)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)  # not in the checkout
    shutil.rmtree(tmp_path / "store")
    assert result.returncode == 0, result.stderr
    done, rows, read, room = result.stdout.splitlines()
    assert int(done) == count and int(rows) == 2 * count and room == "no room for all"
    assert float(read) == pytest.approx(total, rel=1e-9)


def test_rows_are_located_again_once_when_another_process_packs_the_store(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, names(10), absent={"ast": ["clip3"]}, dtype=np.float16)
    write(store, names(10, "b"))
    asked = np.random.default_rng(0).permutation([*names(10), *names(10, "b")]).tolist()
    opened = store.open_rows(clips(asked))
    half = opened.take(np.array([1, 3, 3]))
    before, order = opened.read_rows(np.arange(20)), opened.storage_order()
    lookups: list[int] = []
    original = EmbeddingStore.locate

    def counting(self: EmbeddingStore, clip_ids: tuple[str, ...]) -> object:
        lookups.append(len(clip_ids))
        return original(self, clip_ids)

    monkeypatch.setattr(EmbeddingStore, "locate", counting)
    EmbeddingStore(store.folder).pack()
    for _ in range(2):
        assert_same(opened.read_rows(np.arange(20)), before)
    assert lookups == [20]
    assert_same(half.read_rows(np.arange(3)), {m: x[[1, 3, 3]] for m, x in before.items()})
    np.testing.assert_array_equal(opened.storage_order(), order)


def test_clips_extracted_after_opening_are_not_visible_even_if_the_store_is_packed(store: EmbeddingStore) -> None:
    write(store, names(2), absent={"ast": ["clip1"]})
    opened = store.open_rows(clips([*names(2), "late"]))
    write(store, ["clip1", "late"], seed=1)
    store.pack()
    assert np.isnan(opened.read_rows(np.arange(3))["ast"][:, 0]).tolist() == [False, True, True]
    assert opened.present("timesformer").tolist() == [True, True, False]
    assert store.open_rows(clips([*names(2), "late"])).present("ast").all()


def test_embeddings_removed_after_opening_are_a_store_error(store: EmbeddingStore) -> None:
    write(store, names(4))
    write(store, names(4, "b"))
    opened = store.open_rows(clips(names(4)))
    store.shards()[0].unlink()
    with pytest.raises(StoreError, match="has lost timesformer embeddings since it was opened: run the same command"):
        opened.read_rows(np.array([0]))
    store.shards()[0].unlink()
    with pytest.raises(StoreError, match="no embeddings in"):
        opened.read_rows(np.array([0]))


def test_a_store_replaced_by_one_of_another_recipe_is_not_mixed_in(store: EmbeddingStore) -> None:
    write(store, names(4))
    opened = store.open_rows(clips(names(4)))
    store.shards()[0].unlink()
    notebook = {stream: {**recipes, "protocol": "notebook"} for stream, recipes in SETTINGS.items()}
    write(store, names(4), recipes=notebook)
    with pytest.raises(StoreError, match="has lost timesformer embeddings"):
        opened.read_rows(np.array([0]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for i in range(800, 2200):
        content[i] ^= 0xFF
    path.write_bytes(content)


def shorten(path: Path) -> None:
    with h5py.File(path, "r+") as shard:
        rows = shard["streams/ast/features"][:3]
        del shard["streams/ast/features"]
        shard.create_dataset("streams/ast/features", data=rows)


@pytest.mark.parametrize("damage", [cut, garble, shorten])
def test_a_damaged_shard_is_a_store_error_when_opening(store: EmbeddingStore, damage: Callable[[Path], None]) -> None:
    write(store, names(4))
    damage(store.shards()[0])
    with pytest.raises(StoreError, match="damaged"):
        store.open_rows(clips(names(4)))


@pytest.mark.parametrize("damage", [cut, garble, shorten])
def test_a_shard_damaged_after_opening_is_a_store_error(store: EmbeddingStore, damage: Callable[[Path], None]) -> None:
    write(store, names(4))
    opened = store.open_rows(clips(names(4)))
    damage(store.shards()[0])
    with pytest.raises(StoreError, match="damaged"):
        opened.read_rows(np.arange(4))


def test_an_empty_store_and_a_clip_requested_twice_are_store_errors(store: EmbeddingStore) -> None:
    with pytest.raises(
        StoreError, match=r"no embeddings in .*train: run `alphafuse extract --split train --root .*` first"
    ):
        store.open_rows(clips(["a"]))
    assert store.dims() == {}
    write(store, ["a"])
    with pytest.raises(StoreError, match="clip_id 'a' is requested twice"):
        store.open_rows(clips(["a", "b", "a"]))


def test_dims_are_known_without_reading_features(store: EmbeddingStore, reads: list[int]) -> None:
    write(store, names(3), streams=("ast",))
    assert store.dims() == {"ast": 3}
    write(store, names(3), streams=("timesformer",))
    reads.clear()
    assert list(store.dims().items()) == [("timesformer", 5), ("ast", 3)] and reads == []


def test_stored_embeddings_can_be_pickled_for_other_processes(store: EmbeddingStore) -> None:
    write(store, names(4))
    opened = store.open_rows(clips(names(4)))
    copy = pickle.loads(pickle.dumps(opened))
    assert_same(copy.read_rows(np.arange(4)), opened.read_rows(np.arange(4)))


def make_dataset(root: Path) -> Dataset:
    listed = [
        Clip(f"{split}{i}", f"{split}{i}.mp4", "dog", split, f"{split}{i}")
        for split in ("train", "val", "test")
        for i in range(4)
    ]
    dataset = Dataset.create(root, Manifest(listed), name="d", clip_folder=root, classes=("dog",))
    for split in ("train", "val", "test"):
        write(dataset.store(split), names(4, split), absent={"ast": [f"{split}1"]})
    return dataset


def test_dataset_keeps_features_on_disk_when_they_take_more_than_max_bytes(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    whole = 4 * 4 * sum(DIMS.values())
    assert isinstance(dataset.embeddings("val"), Embeddings)
    assert isinstance(dataset.embeddings("val", max_bytes=whole), Embeddings)
    lazy = dataset.embeddings("val", max_bytes=whole - 1)
    assert isinstance(lazy, StoredEmbeddings)
    assert_same(lazy.read_rows(np.arange(4)), dict(dataset.embeddings("val").features))
    loaded = dataset.all_embeddings(max_bytes=0)
    assert list(loaded) == ["train", "val", "test"]
    assert all(isinstance(embeddings, StoredEmbeddings) for embeddings in loaded.values())


@pytest.mark.parametrize("max_bytes", [None, 0])
def test_unfinished_and_unusable_splits_are_refused_in_memory_and_on_disk(tmp_path: Path, max_bytes: int) -> None:
    dataset = make_dataset(tmp_path)
    shutil.rmtree(dataset.store("val").folder)
    with pytest.raises(StoreError, match="no embeddings in"):
        dataset.embeddings("val", max_bytes=max_bytes)
    write(dataset.store("val"), names(3, "val"), absent={"timesformer": ["val0"], "ast": ["val0"]})
    write(dataset.store("val"), ["val3"], absent={key: ["val3"] for key in DEFAULT_NAMES}, failures=False)
    write(
        dataset.store("val"), ["val3"], streams=("ast",), absent={"ast": ["val3"]}
    )  # only one stream of it has a failure
    with pytest.raises(DatasetError, match=r"1 of 4 val clips are not extracted yet: run `alphafuse extract --split"):
        dataset.embeddings("val", max_bytes=max_bytes)
    write(dataset.store("val"), ["val3"])
    assert len(dataset.embeddings("val", max_bytes=max_bytes)) == 4
    shutil.rmtree(dataset.store("val").folder)
    write(dataset.store("val"), names(4, "val"), absent=dict.fromkeys(DEFAULT_NAMES, names(4, "val")))
    with pytest.raises(EmptySplitError, match="none of the 4 val clips has an embedding"):
        dataset.embeddings("val", max_bytes=max_bytes)


def test_splits_of_different_recipes_are_also_refused_on_disk(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    shutil.rmtree(dataset.store("test").folder)
    notebook = {stream: {**recipes, "protocol": "notebook"} for stream, recipes in SETTINGS.items()}
    write(dataset.store("test"), names(4, "test"), recipes=notebook)
    with pytest.raises(RecipeMismatchError, match="train and test were extracted with another timesformer protocol"):
        dataset.all_embeddings(max_bytes=0)


def test_a_shard_is_checked_once_and_again_when_its_file_changes(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, names(4), dtype=np.float16)
    opened = store.open_rows(clips(names(4)))
    whole = opened.read_rows(np.arange(4))
    checks: list[Path] = []
    original = shard_module.open_shard
    monkeypatch.setattr(shard_module, "open_shard", lambda path, **how: checks.append(path) or original(path, **how))
    for _ in range(2):
        assert_same(opened.read_rows(np.array([3, 1])), {m: x[[3, 1]] for m, x in whole.items()})
    assert checks == []
    os.utime(store.shards()[0], (1, 1))
    assert_same(opened.read_rows(np.arange(4)), whole)
    assert checks == store.shards()
    cut(store.shards()[0])
    with pytest.raises(StoreError, match="damaged"):
        opened.read_rows(np.arange(4))


def test_a_clip_takes_little_memory(tmp_path: Path) -> None:
    """Python strings and clips took 350 bytes, and rows of int64 another 16."""
    count = 30_000
    ids = [f"abcdefgh{i:05d}_{i % 300:06d}" for i in range(count)]
    listed = [Clip(c, f"{c}.mp4", f"class {i % 309}", "train", c[:13]) for i, c in enumerate(ids)]
    Manifest(listed).write(tmp_path / "manifest.csv")
    manifest = Manifest.read(tmp_path / "manifest.csv")
    held = (manifest.clip_ids, manifest.clip_labels, manifest.clip_splits, manifest.clip_groups)
    assert sum(column.nbytes for column in held) < 60 * count
    assert len(pickle.dumps(manifest)) < 60 * count
    write(EmbeddingStore(tmp_path / "store"), ids)
    opened = EmbeddingStore(tmp_path / "store").open_rows(manifest)
    assert opened.clip_ids is manifest.clip_ids
    assert sum(rows.nbytes for rows in opened.index.entries.values()) == 8 * count
    assert opened.index.mentions.nbytes == 4 * count
    assert opened.storage_order().nbytes == 4 * count


def test_opening_reads_no_features_and_a_row_that_is_not_finite_is_damage(
    store: EmbeddingStore, reads: list[int]
) -> None:
    write(store, names(50), absent={"ast": ["clip3"]})
    reads.clear()
    opened = store.open_rows(clips(names(50)))
    assert reads == [] and opened.present("ast").sum() == 49
    with h5py.File(store.shards()[0], "r+") as shard:
        shard["streams/ast/features"][7] = np.nan
    with pytest.raises(StoreError, match=r"damaged \(a row of ast is not an embedding\): remove it"):
        opened.read_rows(np.arange(50))

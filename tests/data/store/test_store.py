import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.processes import spawned
from support.shards import RECIPES, checksum

from alphafuse.data import streams as streams_module
from alphafuse.data.embeddings import Embeddings, Failure
from alphafuse.data.manifest import Clip
from alphafuse.data.store import shard_files as files_module
from alphafuse.data.store.shard import Shard
from alphafuse.data.store.shard_files import shard_name
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.errors import AlphafuseError, RecipeMismatchError, StoreError
from alphafuse.system.claims import Claims
from alphafuse.system.files import file_digest, write_atomically


def rows(*clip_ids: str, offset: float = 0.0, recipes: dict = RECIPES, absent: tuple[str, ...] = ()) -> Embeddings:
    """Return embeddings whose values depend on the clip_id; the clips in `absent` have no audio."""
    ast = np.array([[len(c), offset] for c in clip_ids], np.float32).reshape(-1, 2)
    ast[[c in absent for c in clip_ids]] = np.nan
    return Embeddings(
        clip_ids=clip_ids,
        labels=tuple(f"label of {c}" for c in clip_ids),
        groups=clip_ids,
        features={
            "timesformer": np.array([[ord(c[0]), offset, 1.5] for c in clip_ids], np.float32).reshape(-1, 3),
            "ast": ast,
        },
        failures=tuple(Failure(c, "ast", "no audio stream") for c in absent),
        recipes=recipes,
    )


def clips(*clip_ids: str) -> list[Clip]:
    return [Clip(c, f"{c}.mp4", f"label of {c}", "train", c) for c in clip_ids]


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "stores" / "train")


def test_embedding_follows_clip_id_when_manifest_is_shuffled(store: EmbeddingStore) -> None:
    store.write(rows("ab", "c"))
    store.write(rows("d", "ef"))
    read = store.read(clips("ef", "c", "ab", "d"))
    assert read.clip_ids == ("ef", "c", "ab", "d") and read.labels[0] == "label of ef"
    assert read.features["timesformer"][:, 0].tolist() == [ord(c) for c in "ecad"]
    assert read.features["ast"][:, 0].tolist() == [2, 1, 2, 1]
    assert read.features["ast"].dtype == np.float32


def test_clip_that_was_never_extracted_reads_as_nan_and_is_not_done(store: EmbeddingStore) -> None:
    store.write(rows("a"))
    read = store.read(clips("b", "a"))
    assert read.present("timesformer").tolist() == [False, True] and np.isnan(read.features["ast"][0]).all()
    assert store.done() == {"a"}


def test_a_failed_stream_is_absent_with_its_reason_and_the_other_is_kept(store: EmbeddingStore) -> None:
    store.write(rows("a", "b", absent=("b",)))
    read = store.read()
    assert read.present("timesformer").tolist() == [True, True]
    assert read.present("ast").tolist() == [True, False]
    assert read.failures == (Failure("b", "ast", "no audio stream"),)
    assert store.done() == {"a", "b"} and store.done(retry_failed=True) == {"a"}


def test_a_later_success_ends_a_failure(store: EmbeddingStore) -> None:
    store.write(rows("b", absent=("b",)))
    store.write(rows("b", offset=7))
    read = store.read()
    assert read.failures == () and read.features["ast"][0].tolist() == [1, 7]
    assert read.features["timesformer"][0, 1] == 0  # the older shard's row counts
    assert store.done(retry_failed=True) == {"b"}


def test_rows_stored_twice_are_read_once_and_pack_drops_them(store: EmbeddingStore) -> None:
    store.write(rows("a", "b"))
    store.write(rows("b", "c", offset=9))
    before = store.read()
    assert before.clip_ids == ("a", "b", "c") and before.features["timesformer"][:, 1].tolist() == [0, 0, 9]
    assert store.info().duplicates == 1
    store.pack()
    after = store.read()
    assert len(store.shards()) == 1 and store.info().duplicates == 0
    assert after.clip_ids == before.clip_ids and after.labels == before.labels
    np.testing.assert_array_equal(after.features["ast"], before.features["ast"])


def test_a_reader_during_packing_starts_again_and_loses_nothing(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        store.write(rows(name))
    listed, shards = EmbeddingStore.shards, []

    def pack_after_listing(self: EmbeddingStore) -> list[Path]:
        shards.append(listed(self))
        if len(shards) == 2:  # the reader has listed the shards: now remove them
            monkeypatch.setattr(EmbeddingStore, "shards", listed)
            EmbeddingStore(self.folder).pack()
        return shards[-1]

    monkeypatch.setattr(EmbeddingStore, "shards", pack_after_listing)
    assert store.read().clip_ids == ("a", "b", "c") and len(shards) == 2


def test_writing_opens_each_shard_once(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = h5py.File

    def counting(name: object, *arguments: object, **keywords: object) -> object:
        if isinstance(name, Path):
            opened.append(name.name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(h5py, "File", counting)
    for i in range(12):
        store.write(rows(f"clip{i}"))
    assert len(opened) == len(set(opened)) == 11


def test_a_repeated_commit_writes_nothing(store: EmbeddingStore) -> None:
    name = shard_name(1_700_000_000_000_000_000, ["a", "b"])
    assert name == shard_name(1_700_000_000_000_000_000, ["b", "a"]) != shard_name(1_700_000_000_000_000_000, ["a"])
    path = store.write(rows("a", "b"), name=name)
    content = path.read_bytes()
    assert store.write(rows("b", "a", offset=9), name=name) == path == store.folder / name
    assert path.read_bytes() == content and store.info().duplicates == 0 and store.verify() == []
    assert [p.name for p in store.folder.iterdir()] == [name]


def test_named_shards_sort_among_the_others_by_time(store: EmbeddingStore) -> None:
    late = store.write(rows("a", offset=1))
    early = store.write(rows("a"), name=shard_name(1, ["a"]))
    assert store.shards() == [early, late] and store.read().features["ast"][0, 0] == rows("a").features["ast"][0, 0]


def test_simultaneous_attempts_at_one_commit_leave_one_complete_shard(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [shard_name(stamp, ["a", "b"]) for stamp in range(20)]
    monkeypatch.setattr(files_module.os.path, "lexists", lambda path: False)  # every attempt finds no file
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.write(rows("a", "b", offset=i % 4), name=names[i // 4]), range(80)))
    assert [path.name for path in store.shards()] == names and store.verify() == []
    assert len(list(store.folder.iterdir())) == 20


def test_the_first_attempt_counts_on_file_systems_without_hard_links(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as on FAT

    monkeypatch.setattr(os, "link", no_links)
    path = store.write(rows("a"), name=shard_name(1, ["a"]))
    content = path.read_bytes()
    monkeypatch.setattr(files_module.os.path, "lexists", lambda path: False)
    store.write(rows("a", offset=1), name=path.name)
    assert path.read_bytes() == content and list(store.folder.iterdir()) == [path]


@pytest.mark.parametrize("name", ["shard-1-abc.h5", "../shard-00000000000000000001-0123456789abcdef.h5", ""])
def test_a_name_that_no_shard_can_have_is_refused(store: EmbeddingStore, name: str) -> None:
    with pytest.raises(StoreError, match=r"is not a valid name of a shard: use shard_name"):
        store.write(rows("a"), name=name)
    assert not store.folder.exists()


def test_pack_keeps_failures_and_absent_rows(store: EmbeddingStore) -> None:
    store.write(rows("a", "b", absent=("b",)))
    store.pack()
    assert store.read().failures == (Failure("b", "ast", "no audio stream"),)
    assert store.verify() == []


def test_the_store_refuses_rows_of_another_recipe_and_names_the_difference(store: EmbeddingStore) -> None:
    store.write(rows("a"))
    other = {**RECIPES, "ast": {"protocol": "notebook", "dim": 2}}
    with pytest.raises(RecipeMismatchError, match=r"another ast protocol \(there: standard, here: notebook\)"):
        store.write(rows("b", recipes=other))
    assert len(store.shards()) == 1


def test_a_shard_copied_from_another_store_is_detected(store: EmbeddingStore, tmp_path: Path) -> None:
    store.write(rows("a"))
    other = EmbeddingStore(tmp_path / "other")
    stranger = other.write(rows("b", recipes={**RECIPES, "ast": {"protocol": "standard", "dim": 3}}))
    stranger.rename(store.folder / stranger.name)
    with pytest.raises(RecipeMismatchError, match=r"another ast dim \(there: 2, here: 3\).*move it out"):
        store.read()


def test_a_stream_added_later_joins_by_clip_id(store: EmbeddingStore) -> None:
    both = rows("a", "bb")
    for stream, order in (("timesformer", [0, 1]), ("ast", [1, 0])):
        store.write(
            Embeddings(
                clip_ids=tuple(both.clip_ids[i] for i in order),
                labels=tuple(both.labels[i] for i in order),
                groups=tuple(both.groups[i] for i in order),
                features={stream: both.features[stream][order]},
                recipes={stream: RECIPES[stream]},
            )
        )
    read = store.read()
    np.testing.assert_array_equal(read.features["timesformer"], both.features["timesformer"])
    np.testing.assert_array_equal(read.features["ast"], both.features["ast"])
    assert store.done() == {"a", "bb"}


def only(embeddings: Embeddings, stream: str, *clip_ids: str) -> Embeddings:
    """Return one stream's embeddings of these clips, in this order."""
    chosen = embeddings.take(np.array([embeddings.clip_ids.index(c) for c in clip_ids], int))
    return replace(
        chosen,
        features={stream: chosen.features[stream]},
        failures=tuple(f for f in chosen.failures if f.stream == stream),
        recipes={stream: RECIPES[stream]},
    )


def test_a_stream_is_added_without_changing_the_shards_of_the_other(store: EmbeddingStore) -> None:
    """The timesformer row and the ast row of a clip are in different shards; every reader joins them."""
    both = rows("a", "bb", "c", "d", absent=("c",))
    first = store.write(only(both, "ast", "c", "a", "bb"))
    before = first.read_bytes()
    assert store.finished() == {"ast": {"a", "bb", "c"}} and store.done(streams=["timesformer", "ast"]) == set()
    assert store.read(clips("a")).dims == {"ast": 2} and store.dims() == {"ast": 2}
    store.write(only(both, "timesformer", "bb", "d"))
    store.write(only(both, "timesformer", "a"))
    assert store.finished() == {"timesformer": {"a", "bb", "d"}, "ast": {"a", "bb", "c"}}
    assert store.finished(retry_failed=True, streams=["ast"]) == {"ast": {"a", "bb"}}
    assert store.finished(among=["d", "never"]) == {"timesformer": {"d"}, "ast": set()}
    assert store.done() == {"a", "bb"} and first.read_bytes() == before
    for _ in ("in four shards", "packed"):
        info = store.info()
        assert info.clips == 4 and info.duplicates == 0 and info.rows == {"timesformer": 3, "ast": 2}
        assert info.failures == (Failure("c", "ast", "no audio stream"),) and info.recipes == RECIPES
        read = store.read(clips("a", "bb", "c", "d"))
        assert read.present("timesformer").tolist() == [True, True, False, True]
        assert read.present("ast").tolist() == [True, True, False, False]
        np.testing.assert_array_equal(read.features["timesformer"][[0, 1, 3]], both.features["timesformer"][[0, 1, 3]])
        assert store.verify() == []
        with np.load(store.export(store.folder / "all.npz")) as exported:
            assert sorted(exported["clip_id"]) == ["a", "bb", "c", "d"] and np.isnan(exported["ast"]).sum() == 4
        assert store.finished() == {"timesformer": {"a", "bb", "d"}, "ast": {"a", "bb", "c"}}
        store.pack()
    store.write(only(both, "ast", "d"))
    assert store.done() == {"a", "bb", "d"}
    other = replace(only(both, "ast", "a"), recipes={"ast": {"protocol": "notebook", "dim": 2}})
    with pytest.raises(RecipeMismatchError, match=r"another ast protocol \(there: standard, here: notebook\)"):
        store.write(other)


def test_a_success_after_a_failure_is_not_a_duplicate(store: EmbeddingStore) -> None:
    store.write(only(rows("a", absent=("a",)), "ast", "a"))
    store.write(only(rows("a"), "ast", "a"))
    assert store.info().duplicates == 0 and store.info().rows == {"ast": 1}
    store.write(only(rows("a"), "ast", "a"))
    assert store.info().duplicates == 1


def test_a_second_query_for_finished_clips_opens_only_new_shards_and_reads_no_features(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    original = files_module.open_shard

    def counting(path: Path) -> Shard:
        opened.append(path)
        shard = original(path)
        monkeypatch.setattr(shard, "_finite", lambda stream: pytest.fail("features are read"))
        return shard

    monkeypatch.setattr(files_module, "open_shard", counting)
    writer = EmbeddingStore(store.folder)
    expected: set[str] = set()
    for name in ("a", "b", "c"):
        path = writer.write(rows(name, f"{name}{name}", absent=(name,)))
        expected |= {name, f"{name}{name}"}
        opened.clear()
        for _ in range(3):
            assert store.finished() == {"timesformer": expected, "ast": expected}
        assert opened == [path]
    path = writer.pack()
    opened.clear()
    assert store.finished(retry_failed=True)["ast"] == {"aa", "bb", "cc"} and opened == [path]
    assert store.finished()["ast"] == expected and opened == [path]


def test_float16_shards_read_as_float32(store: EmbeddingStore) -> None:
    half = rows("a")
    store.write(
        Embeddings(
            half.clip_ids,
            half.labels,
            half.groups,
            {name: matrix.astype(np.float16) for name, matrix in half.features.items()},
            recipes=RECIPES,
        )
    )
    with h5py.File(store.shards()[0]) as shard:
        assert shard["streams/ast/features"].dtype == np.float16
    assert store.read().features["ast"].dtype == np.float32


def test_reading_an_empty_store_is_an_error_that_names_the_command_to_run(store: EmbeddingStore) -> None:
    with pytest.raises(
        StoreError, match=r"no embeddings in .*train: run `alphafuse extract --split train --root .*` first"
    ):
        store.read()
    with pytest.raises(StoreError, match=r"no embeddings in .*: name a store, such as ROOT/stores/train"):
        EmbeddingStore(store.folder.parent).read()
    assert store.done() == set() and store.recipes() == {}


def test_changed_truncated_and_foreign_shards_are_found_by_verify(store: EmbeddingStore) -> None:
    good, changed, truncated = (store.write(rows(name)) for name in "abc")
    with h5py.File(changed, "r+") as shard:
        shard["streams/ast/features"][0, 0] = 99
    truncated.write_bytes(truncated.read_bytes()[:1000])
    (store.folder / "shard-x.h5").write_text("not HDF5")
    problems = store.verify()
    assert len(problems) == 3
    assert not any(str(good) in problem for problem in problems)
    assert any(str(changed) in problem and "checksum" in problem for problem in problems)
    with pytest.raises(StoreError, match="is damaged"):
        store.read()


def test_damage_beyond_the_header_is_a_store_error_that_names_the_command_to_find_it(store: EmbeddingStore) -> None:
    path = store.write(rows("a", "b"))
    content = bytearray(path.read_bytes())
    for i in range(800, 2200):
        content[i] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged"):
        store.read()
    assert len(store.verify()) >= 1


def test_a_shard_of_another_format_version_is_refused(store: EmbeddingStore) -> None:
    path = store.write(rows("a"))
    with h5py.File(path, "r+") as shard:
        shard.attrs["format_version"] = 99
    with pytest.raises(StoreError, match="has format version 99, this alphafuse reads 2"):
        store.read()


def test_temporary_files_of_a_killed_writer_are_ignored(store: EmbeddingStore) -> None:
    store.write(rows("a"))
    (store.folder / ".shard-1.h5.123.partial").write_bytes(b"half a shard")
    assert store.read().clip_ids == ("a",) and store.verify() == []


def many(prefix: str, count: int = 200) -> Embeddings:
    """Return rows of about 100 kB."""
    ids = tuple(f"{prefix}{i}" for i in range(count))
    features = {"ast": np.random.default_rng(0).normal(size=(count, 128)).astype(np.float32)}
    return Embeddings(ids, ids, ids, features, recipes={"ast": {}})


def assert_refused(store: EmbeddingStore, write: Callable[[], object], message: str) -> None:
    """Assert that writing fails with this one-line error and does not change the store."""
    there = sorted(store.folder.glob("*")) if store.folder.is_dir() else []
    with pytest.raises(AlphafuseError, match=message) as caught:
        write()
    assert "\n" not in str(caught.value) and str(caught.value).endswith("then run the same command again")
    if store.folder.is_dir():
        assert sorted(store.folder.glob("*")) == there and not list(store.folder.glob(".*"))
        assert EmbeddingStore(store.folder).verify() == []


def test_a_file_in_the_place_of_the_folder_is_a_one_line_error(store: EmbeddingStore) -> None:
    store.folder.parent.mkdir(parents=True)
    store.folder.write_text("a file where the store should be")
    refused = r"can't write .*: a file or folder of that name is in the way: move it or choose another folder"
    assert_refused(store, lambda: store.write(rows("a")), refused)
    assert store.folder.read_text() == "a file where the store should be"
    store.folder.unlink()
    store.write(rows("a"))
    assert store.read().clip_ids == ("a",)


def test_a_folder_removed_during_writing_is_a_one_line_error(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(rows("a"))
    original = os.fsync

    def vanish(number: int) -> None:
        shutil.rmtree(store.folder)
        original(number)

    monkeypatch.setattr(os, "fsync", vanish)
    assert_refused(store, lambda: store.write(rows("b")), "No such file or directory: the folder was removed meanwhile")
    monkeypatch.undo()
    store.write(rows("b"))
    assert store.read().clip_ids == ("b",)


def limited(folder: Path, path: Path) -> None:
    """Run in a new process: no file may grow beyond a limit, at any point of writing."""
    import resource

    store = EmbeddingStore(folder)
    first = store.shards()[0]
    too_large = r"File too large: raise the limit on file sizes"
    for limit in (0, 1, 50, 700, 2_000, 5_000, 50_000, 2 * 200 * 128 * 4 + 100, 2 * 200 * 128 * 4 + 9_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        if limit < first.stat().st_size:
            assert_refused(store, lambda: store.write(many("c")), too_large)
        assert_refused(store, store.pack, too_large)
        assert_refused(store, lambda: store.export(path), too_large)
        assert not path.exists()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.write(many("c"))
    store.pack()
    assert len(store.read()) == 600 and store.verify() == [] and len(store.shards()) == 1


def test_a_limit_on_file_sizes_does_not_change_the_store(store: EmbeddingStore, tmp_path: Path) -> None:
    for prefix in "ab":
        store.write(many(prefix))
    run(limited, store.folder, tmp_path / "all.npz")


def run(function: Callable[..., None], *arguments: object) -> None:
    """Run in a spawned process."""
    process = spawned(function, *arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a file system on a folder; skip the test if that is not permitted."""
    points = []

    def mount(*options: str) -> Path:
        point = tmp_path / "mounted"
        point.mkdir(exist_ok=True)
        source = [point] if "--bind" in options else ["none"]
        done = subprocess.run(["mount", *options, *source, point], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
        points.append(point)
        return point

    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    yield mount
    for point in reversed(points):
        subprocess.run(["umount", point], check=True)


def test_a_full_disk_is_a_one_line_error_and_writing_continues_when_there_is_space(
    mounted: Callable[..., Path],
) -> None:
    store = EmbeddingStore(mounted("-t", "tmpfs", "-o", "size=400k") / "store")
    store.write(many("a"))
    store.write(many("b", 100))
    filler = store.folder.parent / "filler"
    filler.write_bytes(bytes(150_000))
    full = "can't write .*: No space left on device: free some space or choose another folder"
    assert_refused(store, lambda: store.write(many("c")), full)
    assert_refused(store, store.pack, full)
    assert_refused(store, lambda: store.export(store.folder.parent / "all.npz"), full)
    filler.unlink()
    store.write(many("c", 50))
    assert len(store.read()) == 350


def test_a_read_only_store_can_be_read_and_writing_is_a_one_line_error(mounted: Callable[..., Path]) -> None:
    store = EmbeddingStore(mounted("--bind") / "store")
    store.write(rows("a"))
    subprocess.run(["mount", "-o", "remount,ro,bind", store.folder.parent], check=True)
    assert_refused(store, lambda: store.write(rows("b")), "Read-only file system: make the folder writable or choose")
    assert_refused(store, store.pack, "Read-only file system")
    assert store.read().clip_ids == ("a",) and store.done() == {"a"}
    with Claims(store.folder) as claims:
        assert not claims.is_shared and claims.claim(["b"]) == ["b"]


@pytest.mark.slow
def test_threads_write_at_the_same_time_and_only_old_temporary_files_are_removed(store: EmbeddingStore) -> None:
    store.folder.mkdir(parents=True)
    fresh, old = (store.folder / f".shard-{i}.h5.0123.partial" for i in range(2))
    for partial in (fresh, old):
        partial.write_bytes(b"half a shard")
    os.utime(old, (0, 0))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: EmbeddingStore(store.folder).write(rows(f"clip{i}")), range(40)))
        list(pool.map(lambda i: write_atomically(store.folder / "same", bytes(1000)), range(40)))
    assert len(store.read()) == 40 and store.verify() == []
    assert list(store.folder.glob(".*")) == [fresh]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clip_ids": ("a\nb",)}, r"clip_id 'a\\nb' is empty, longer than 4096 characters or has control characters"),
        ({"labels": ("",)}, "label '' is empty"),
        ({"groups": ("x" * 5000,)}, "group 'xxx"),
        ({"recipes": {"ast": {}}}, "timesformer embeddings without a recipe can't be stored"),
        ({"recipes": {**RECIPES, "ast": {"x": np.float32(1)}}}, "recipes can't be stored as json"),
        ({"recipes": {**RECIPES, "ast": {"x": float("nan")}}}, "recipes can't be stored as json"),
        ({"recipes": {**RECIPES, "ast": {"x": "y" * 10**5}}}, "more than the 60000 that a shard has room for"),
        ({"failures": (Failure("a", "A video", "x"),)}, "'A video' can't name a stream"),
        ({"failures": (Failure("", "ast", "x"),)}, "clip_id '' is empty"),
    ],
)
def test_content_that_readers_refuse_is_not_written(store: EmbeddingStore, wrong: dict, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        store.write(replace(rows("a"), **wrong))
    assert not store.folder.exists()


def test_a_reason_is_stored_as_one_line_of_bounded_length(store: EmbeddingStore) -> None:
    store.write(replace(rows("a"), failures=(Failure("a", "ast", "no\naudio\x1b[0m" + "!" * 9999),)))
    with h5py.File(store.shards()[0]) as shard:
        (reason,) = shard["failures/reason"].asstr()[()]
    assert reason.startswith(r"no\naudio\x1b[0m!!!") and len(reason) < 4200


def test_npz_and_parquet_exports_hold_every_row(store: EmbeddingStore, tmp_path: Path) -> None:
    store.write(rows("a", "b", absent=("b",)))
    with np.load(store.export(tmp_path / "out.npz")) as exported:
        assert exported["clip_id"].tolist() == ["a", "b"] and exported["label"][1] == "label of b"
        np.testing.assert_array_equal(exported["ast"], store.read().features["ast"])
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(store.export(tmp_path / "out.parquet")).to_pydict()
    assert table["ast"] == [[1.0, 0.0], None] and table["group"] == ["a", "b"]
    assert table["timesformer"][1] == [98, 0, 1.5] and table["clip_id"] == ["a", "b"]
    with pytest.raises(StoreError, match="unknown export format 'csv'"):
        store.export(tmp_path / "out.csv")


def test_exports_carry_windows_and_files(store: EmbeddingStore, tmp_path: Path) -> None:
    made = ragged("a", "b", "c")
    store.write(made)
    with np.load(store.export(tmp_path / "out.npz")) as exported:
        assert exported["bytes"].tolist() == [1000, 1001, 1002] and tuple(exported["digest"]) == made.digests
        assert exported["offsets"].tolist() == [0, 0, 1, 3]
        for name, column in (("windows", made.windows), *made.features.items()):
            np.testing.assert_array_equal(exported[name], column)
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(store.export(tmp_path / "out.parquet")).to_pydict()
    assert table["clip_id"] == ["b", "c", "c"] and table["start"] == [0, 0, 2] and table["end"] == [2, 2, 4]
    assert table["bytes"] == [1001, 1002, 1002] and table["digest"][2] == made.digests[2]
    assert [row is None for row in table["ast"]] == [True, False, True]
    store.write(rows("x"))
    table = parquet.read_table(store.export(tmp_path / "out.parquet")).to_pydict()
    assert [table[name][3] for name in ("start", "end", "bytes", "digest")] == [None] * 4


def _write_many(folder: Path, first: int) -> None:
    store = EmbeddingStore(folder)
    for i in range(first, first + 10):
        store.write(rows(f"clip{i}"))


def test_several_processes_append_at_once_without_loss(store: EmbeddingStore) -> None:
    writers = [spawned(_write_many, store.folder, first) for first in (0, 5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert sorted(store.read().clip_ids) == sorted(f"clip{i}" for i in range(15))
    assert store.verify() == [] and not list(store.folder.glob(".*"))


def test_a_row_that_is_not_finite_is_neither_read_nor_done(store: EmbeddingStore) -> None:
    half = rows("a", "b")
    half.features["ast"][1, 1] = np.inf
    store.write(half)
    assert store.read().present("ast").tolist() == [True, False] and store.done() == {"a"}


def test_the_first_row_counts_if_a_shard_has_a_clip_twice(store: EmbeddingStore) -> None:
    twice = rows("a", "b", "a")
    twice.features["ast"][:, 1] = [1, 2, 3]
    store.write(twice)
    assert store.read().features["ast"][:, 1].tolist() == [1, 2]
    assert store.info().duplicates == 1 and store.info().rows == {"timesformer": 2, "ast": 2}


def test_the_checksum_covers_the_whole_content(store: EmbeddingStore) -> None:
    many = tuple(f"clip{i}" for i in range(5000))
    with h5py.File(store.write(rows(*many))) as shard:
        assert checksum(shard) == shard.attrs["sha256"].decode()


def ragged(*clip_ids: str, recipes: dict = RECIPES) -> Embeddings:
    """Return embeddings in which clip i has i windows of two seconds, the last without audio, and a known file."""
    counts = np.arange(len(clip_ids))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    starts = 2.0 * np.concatenate([np.arange(count) for count in counts])
    random = np.random.default_rng(len(clip_ids))
    features = {m: random.normal(size=(offsets[-1], dim)).astype(np.float32) for m, dim in DIMS.items()}
    features["ast"][offsets[2:] - 1] = np.nan
    return Embeddings(
        clip_ids=clip_ids,
        labels=tuple(f"label of {c}" for c in clip_ids),
        groups=clip_ids,
        features=features,
        failures=(
            *(Failure(c, m, "too short") for c in clip_ids[:1] for m in DIMS),
            *(Failure(c, "ast", "no audio stream") for c in clip_ids[1:2]),
        ),
        recipes=recipes,
        windows=np.stack([starts, starts + 2], axis=1),
        offsets=offsets,
        file_bytes=1000 + counts,
        digests=tuple(hashlib.sha256(c.encode()).hexdigest() for c in clip_ids),
        label_lists=tuple((f"label of {c}", "music", 'Ä "quoted"') for c in clip_ids),
    )


DIMS = {"timesformer": 3, "ast": 2}


def means(made: Embeddings, stream: str) -> list[np.ndarray]:
    """Return each clip's mean over its windows that have an embedding."""
    found = []
    for first, last in zip(made.offsets[:-1], made.offsets[1:], strict=True):
        there = [row.astype(np.float64) for row in made.features[stream][first:last] if not np.isnan(row[0])]
        found.append((sum(there) / len(there) if there else np.full(DIMS[stream], np.nan)).astype(np.float32))
    return found


def assert_same(ours: Embeddings, theirs: Embeddings) -> None:
    """Assert that all fields are equal to the bit."""
    for name in ("clip_ids", "labels", "groups", "recipes", "digests", "label_lists"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert sorted(map(str, ours.failures)) == sorted(map(str, theirs.failures))
    for name in ("windows", "offsets", "file_bytes"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert list(ours.features) == list(theirs.features)
    for name, matrix in ours.features.items():
        np.testing.assert_array_equal(matrix, theirs.features[name])


def test_rows_of_windows_are_read_back_to_the_bit_with_their_clips(store: EmbeddingStore) -> None:
    made = ragged("a", "b", "c", "d")
    store.write(made)
    for _ in ("written", "packed"):
        assert_same(store.read(pooled=False), made)
        assert store.read(pooled=False).row_clips.tolist() == [1, 2, 2, 3, 3, 3]
        asked = store.read(clips("d", "never", "b"), pooled=False)
        assert asked.offsets.tolist() == [0, 3, 4, 5] and asked.file_bytes.tolist() == [1003, -1, 1001]
        np.testing.assert_array_equal(asked.features["ast"][[0, 1, 2, 4]], made.features["ast"][[3, 4, 5, 0]])
        assert np.isnan(asked.features["ast"][3]).all()
        assert store.verify() == [] and store.done() == {"a", "b", "c", "d"}
        assert store.finished(retry_failed=True) == {"timesformer": {"b", "c", "d"}, "ast": {"c", "d"}}
        info = store.info()
        assert info.windows == 6 and info.files == 4 and info.rows == {"timesformer": 3, "ast": 2}
        store.pack()


def test_pooled_rows_are_means_over_the_present_windows(store: EmbeddingStore, tmp_path: Path) -> None:
    made = ragged("a", "b", "c", "d")
    store.write(made)
    read, stored = store.read(), store.open_rows()
    again = np.array([3, 1, 3, 0])
    for stream in DIMS:
        expected = np.array(means(made, stream))
        for matrix in (read.features[stream], stored.read_rows(np.arange(4))[stream]):
            np.testing.assert_array_equal(matrix, expected)
        for source in (read, stored, made):
            np.testing.assert_array_equal(source.read_rows(again)[stream], expected[again])
            np.testing.assert_array_equal(source.present(stream), np.isfinite(expected[:, 0]))
    assert read.windows.tolist()[1:] == [[0, 2], [0, 4], [0, 6]] and read.offsets.tolist() == [0, 1, 2, 3, 4]
    one = rows("a", "b", absent=("b",))
    assert one.pooled() is one
    assert made.take(np.array([2, 0])).offsets.tolist() == [0, 2, 2] and len(made.take(np.array([3])).windows) == 3


def test_streams_of_a_clip_from_two_shards_are_joined_window_by_window(store: EmbeddingStore) -> None:
    made = ragged("a", "b", "c")
    for stream in DIMS:
        store.write(only(made, stream, "a", "b", "c"))
    assert_same(store.read(pooled=False), made)
    store.pack()
    assert_same(store.read(pooled=False), made)


def test_shards_that_disagree_about_a_clips_windows_are_a_one_line_error(store: EmbeddingStore) -> None:
    store.write(only(ragged("a", "b", "c"), "timesformer", "c"))
    second = store.write(only(ragged("a", "c", "b"), "ast", "c"))
    assert store.read().present("ast").tolist() == [False]
    other = replace(ragged("a", "x", "y", "c"), failures=())
    second.unlink()
    second = store.write(only(other, "ast", "c"))
    with pytest.raises(StoreError, match=rf"disagree about a clip's windows: remove {second.name}, which came later"):
        store.read(pooled=False)
    with pytest.raises(StoreError, match="disagree about a clip's windows"):
        store.pack()


def test_a_file_replaced_under_the_same_name_is_detected(store: EmbeddingStore, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.mp4" for name in "abc"]
    for file in files:
        file.write_bytes(file.name.encode() * 100_000)
    found = [file_digest(file) for file in files]
    sizes, digests = np.array([size for size, _ in found]), tuple(digest for _, digest in found)
    store.write(replace(rows("a", "b", "c"), file_bytes=sizes, digests=digests))
    times = files[1].stat()
    files[1].write_bytes(b"B.mp4" * 100_000)  # of the same size and time
    os.utime(files[1], (times.st_atime, times.st_mtime))
    files[2].rename(tmp_path / "moved").rename(files[2])
    read = store.read(clips("a", "b", "c"))
    stored = list(zip(read.file_bytes.tolist(), read.digests, strict=True))
    now = [file_digest(file) for file in files]
    assert [before != after for before, after in zip(stored, now, strict=True)] == [False, True, False]
    store.pack()
    assert store.read().digests == digests and store.read().file_bytes.tolist() == sizes.tolist()


def test_streams_may_have_the_name_of_any_other_part_of_a_shard(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("clip-id", "labels", "present", "failures", "streams", "x0")
    monkeypatch.setattr(streams_module, "DEFAULT_NAMES", names)
    features = {name: np.full((2, i + 1), i, np.float32) for i, name in enumerate(names)}
    failures = (Failure("b", "labels", "none"),)
    features["labels"][1] = np.nan
    made = Embeddings(("a", "b"), ("x", "x"), ("a", "b"), features, failures, {name: {} for name in names})
    store.write(made)
    store.pack()
    assert store.verify() == [] and store.dims() == {name: i + 1 for i, name in enumerate(names)}
    assert_same(store.read(), made)
    assert store.finished(streams=names, retry_failed=True)["labels"] == {"a"} and store.done(streams=names)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"offsets": np.array([0, 2, 1])}, "offsets of shape .* don.t ascend from 0 for 2 clips"),
        ({"offsets": np.array([0, 1])}, "offsets of shape"),
        ({"windows": np.zeros((3, 2))}, "windows, file_bytes or digests do not fit 2 clips of 2 windows"),
        ({"digests": ("",)}, "do not fit 2 clips"),
        ({"offsets": np.array([0, 1, 3]), "windows": None}, "does not fit 2 clips of 3 windows"),
    ],
)
def test_columns_that_do_not_fit_each_other_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        replace(rows("a", "b"), **wrong)


def test_verify_finds_impossible_files_and_windows(store: EmbeddingStore) -> None:
    known = replace(rows("a"), digests=("0" * 64,), windows=np.array([[0.0, 1.0]]))
    for wrong in ({"digests": ("x",)}, {"file_bytes": np.array([-2])}, {"windows": np.array([[1.0, 0.0]])}):
        path = store.write(replace(known, **wrong))
        (problem,) = store.verify()
        assert "can have" in problem or "ends before it starts" in problem
        path.unlink()


def test_take_keeps_rows_labels_and_failures_together(store: EmbeddingStore) -> None:
    store.write(rows("a", "bb", "c", absent=("c",)))
    taken = store.read().take(np.array([2, 1]))
    assert taken.clip_ids == ("c", "bb") and taken.labels == ("label of c", "label of bb")
    assert taken.present("ast").tolist() == [False, True] and [f.clip_id for f in taken.failures] == ["c"]
    assert store.read().take(np.array([True, False, False])).failures == ()


def test_provenance_names_each_stream_s_encoder_wherever_it_was_written(store: EmbeddingStore) -> None:
    assert store.provenance() == {}
    both = rows("a", "b")
    for stream in ("timesformer", "ast"):
        alone = replace(both, features={stream: both.features[stream]}, recipes={stream: RECIPES[stream]}, failures=())
        store.write(alone, provenance={"device": stream, "encoders": {stream: {"name": f"my {stream}"}}})
    assert store.provenance() == store.info().provenance
    assert store.provenance()["device"] == "ast"
    assert {m: made["name"] for m, made in store.provenance()["encoders"].items()} == {
        "timesformer": "my timesformer",
        "ast": "my ast",
    }


def filed(rows_: Embeddings, sizes: list[int], digests: list[str]) -> Embeddings:
    """Return the same rows with the bytes and digests of their files."""
    return replace(rows_, file_bytes=np.array(sizes), digests=tuple(digests))


def test_clips_with_another_file_are_found_by_size_and_by_digest(store: EmbeddingStore) -> None:
    store.write(filed(rows("a", "b", "c"), [10, 20, -1], ["1" * 64, "2" * 64, ""]))
    store.write(filed(rows("d", "e"), [40, 50], ["4" * 64, "5" * 64]))
    sizes = {"a": 10, "b": 21, "c": 30, "d": 40, "other": 1}  # e has no file now
    assert store.changed(sizes) == ["b"]
    now = {"a": "1" * 64, "d": "9" * 64}
    asked: list[str] = []
    assert store.changed(sizes, lambda clip_id: asked.append(clip_id) or now[clip_id]) == ["b", "d"]
    assert asked == ["a", "d"]  # another size needs no digest
    assert store.changed(sizes, lambda clip_id: "") == ["b"]  # a file that can't be read


def test_forgotten_clips_are_gone_and_all_others_stay_to_the_bit_in_their_order(store: EmbeddingStore) -> None:
    store.write(rows("a", "b", "c", absent=("b",)))
    store.write(rows("a", "d", offset=1.0))  # a is stored twice: the older counts
    store.write(rows("e"))
    before, names = store.read(clips("a", "c", "d", "e")), [path.name for path in store.shards()]
    assert store.forget(["b", "unknown"]) == 1
    assert store.verify() == [] and [path.name[:26] for path in store.shards()] == [name[:26] for name in names]
    assert [path.name for path in store.shards()][1:] == names[1:]
    after = store.read(clips("a", "c", "d", "e"))
    for stream, matrix in before.features.items():
        np.testing.assert_array_equal(after.features[stream], matrix)
    assert "b" not in store.done(streams=("timesformer", "ast")) and store.read(clips("b")).failures == ()
    assert store.forget(["e"]) == 1 and len(store.shards()) == 2
    assert store.forget(["e"]) == 0
    store.write(rows("b", offset=2.0))
    assert store.read(clips("b")).features["timesformer"].tolist() == [[98.0, 2.0, 1.5]]


def test_forgetting_keeps_windows_float16_and_embeddings_that_were_given(store: EmbeddingStore) -> None:
    made = Embeddings(
        clip_ids=("a", "b"),
        labels=("x", "y"),
        groups=("a", "b"),
        features={"clap": np.arange(6, dtype=np.float16).reshape(3, 2), "own": np.ones((3, 1), np.float32)},
        recipes={"clap": {"dim": 2}, "own": {"dim": 1}},
        windows=np.array([[0.0, 5.0], [5.0, 9.0], [0.0, 4.0]]),
        offsets=np.array([0, 2, 3]),
        file_bytes=np.array([5, 6]),
        digests=("1" * 64, "2" * 64),
    )
    store.write(made, provenance={"encoders": {"clap": {"name": "laion/clap"}, "own": {"name": "given"}}})
    assert store.forget(["a"]) == 1 and store.verify() == []
    left = store.read(pooled=False)
    assert left.offsets.tolist() == [0, 2, 3] and left.windows.tolist() == made.windows.tolist()
    assert left.features["own"].tolist() == [[1.0]] * 3 and left.present("clap").tolist() == [False, True]
    assert store.changed({"a": 9, "b": 6}) == []
    assert store.forget(["b"]) == 1 and store.forget(["a", "b"]) == 0

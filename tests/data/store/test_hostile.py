"""Hostile shards, manifests and json: each is a one-line error, in bounded time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alphafuse.data.dataset import Dataset, require_own_root
from alphafuse.data.embeddings import Embeddings, Failure
from alphafuse.data.manifest import REQUIRED, Clip, Manifest
from alphafuse.data.store.shard import open_shard
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.errors import AlphafuseError, DatasetError, RecipeMismatchError, StoreError
from alphafuse.system.files import is_clean, one_line, read_csv, read_json

quick = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
VARIABLE = h5py.string_dtype()
FEATURES = "streams/ast/features"


def make(folder: Path) -> Path:
    """Make a valid shard of three clips."""
    ids = ("a", "b", "c")
    features = {"timesformer": np.ones((3, 4), np.float32), "ast": np.full((3, 2), 2, np.float32)}
    features["ast"][1] = np.nan
    made = {"timesformer": {"protocol": "standard", "dim": 4}, "ast": {"protocol": "standard", "dim": 2}}
    rows = Embeddings(ids, ids, ids, features, (Failure("b", "ast", "no audio stream"),), made)
    return EmbeddingStore(folder).write(rows, provenance={"device": "cpu"})


def assert_one_line(message: str) -> None:
    hidden = [c for c in message if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202e\u2066\ufeff"]
    assert not hidden and 0 < len(message) < 1500


def read_in_every_way(store: EmbeddingStore) -> set[str]:
    """Read a store in every way; return the messages of all StoreErrors. Other exceptions are raised."""
    messages = set()
    started = time.monotonic()
    for name in ("finished", "read", "open_rows", "info", "pack"):
        try:
            getattr(EmbeddingStore(store.folder), name)()
        except StoreError as error:
            messages.add(str(error))
    try:
        store.export(store.folder.parent / "all.npz")
    except StoreError as error:
        messages.add(str(error))
    messages.update(store.verify())
    for message in messages:
        assert_one_line(message)
    assert time.monotonic() - started < 5
    return messages


def replaced(name: str, **keywords: object) -> Callable[[h5py.File], None]:
    """Replace a dataset by another."""

    def change(shard: h5py.File) -> None:
        del shard[name]
        shard.create_dataset(name, **keywords)

    return change


def texts(*values: str) -> np.ndarray:
    """Return text of fixed length, as in shards."""
    encoded = [value.encode() for value in values]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, *map(len, encoded))))


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    """Change the value of an attribute; text has fixed length."""

    def change(shard: h5py.File) -> None:
        shard.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value

    return change


def recipes_of(content: object) -> Callable[[h5py.File], None]:
    return attribute("recipes", content if isinstance(content, str) else json.dumps(content))


def damage_heap(shard: h5py.File) -> None:
    """Set the length of the first object of the file's global heap to 0, which hangs libhdf5 when it reads it."""
    path = Path(shard.filename)
    shard.close()
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 16 : heap + 32] = bytes(16)
    path.write_bytes(content)


def variable(name: str, *, damaged: bool = False) -> Callable[[h5py.File], None]:
    """Replace a dataset by text of variable length."""

    def change(shard: h5py.File) -> None:
        values = shard[name].asstr()[()].tolist()
        replaced(name, data=values, dtype=VARIABLE)(shard)
        if damaged:
            damage_heap(shard)

    return change


def variable_attribute(name: str, *, damaged: bool = False) -> Callable[[h5py.File], None]:
    def change(shard: h5py.File) -> None:
        shard.attrs[name] = shard.attrs[name].decode()
        if damaged:
            damage_heap(shard)

    return change


def many_attributes(shard: h5py.File) -> None:
    """Write so many attributes that the header needs another block; the last one has variable length."""
    for i in range(200):
        shard.attrs[f"a{i}"] = i
    shard.attrs["last"] = "of variable length"


def external_link(shard: h5py.File) -> None:
    victim = Path(shard.filename).with_name("victim.hdf5")
    with h5py.File(victim, "w") as other:
        other["ast"] = np.full((3, 2), 7, np.float32)
    del shard[FEATURES]
    shard[FEATURES] = h5py.ExternalLink(victim, "/ast")


def external_storage(shard: h5py.File) -> None:
    victim = Path(shard.filename).with_name("victim.txt")
    victim.write_bytes(b"precious" * 3)
    del shard[FEATURES]
    shard.create_dataset(FEATURES, (3, 2), np.float32, external=[(str(victim), 0, 24)])


def external_storage_of_text(shard: h5py.File) -> None:
    victim = Path(shard.filename).with_name("victim.txt")
    victim.write_bytes(b"precious" * 3)
    del shard["labels"]
    shard.create_dataset("labels", (3,), h5py.string_dtype("utf-8", 8), external=[(str(victim), 0, 24)])


def virtual(shard: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 2), np.float32)
    layout[:] = h5py.VirtualSource(str(Path(shard.filename).with_name("victim.hdf5")), "ast", (3, 2))
    del shard[FEATURES]
    shard.create_virtual_dataset(FEATURES, layout)


def virtual_with_damaged_heap(shard: h5py.File) -> None:
    virtual(shard)
    damage_heap(shard)


def soft_link(shard: h5py.File) -> None:
    shard.move(FEATURES, "elsewhere")
    shard[FEATURES] = h5py.SoftLink("/elsewhere")


def soft_cycle(shard: h5py.File) -> None:
    del shard[FEATURES]
    shard[FEATURES] = h5py.SoftLink("/" + FEATURES)


def hard_cycle(shard: h5py.File) -> None:
    del shard["failures"]
    shard["failures"] = shard["/"]


def cycle_beside(shard: h5py.File) -> None:
    shard["loop"] = shard["/"]


def committed_type(shard: h5py.File) -> None:
    del shard[FEATURES]
    shard[FEATURES] = np.dtype(np.float32)


def compact(shard: h5py.File) -> None:
    del shard[FEATURES]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((3, 2))
    h5py.h5d.create(shard["streams/ast"].id, b"features", h5py.h5t.IEEE_F32LE, space, plist)


def no_space(shard: h5py.File) -> None:
    del shard[FEATURES]
    shard.create_dataset(FEATURES, data=h5py.Empty(np.float32))


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "soft link": (soft_link, "/streams/ast/features is a link to another file"),
    "soft link to itself": (soft_cycle, "/streams/ast/features is a link to another file"),
    "external link": (external_link, "/streams/ast/features is a link to another file"),
    "external storage": (external_storage, "in another file: shards are contiguous"),
    "text in another file": (external_storage_of_text, "in another file: shards are contiguous"),
    "virtual dataset": (virtual, "virtual or in another file: shards are contiguous"),
    "a group inside itself": (hard_cycle, "it has no /failures/stream"),
    "a cycle beside": (cycle_beside, "/ holds objects other than"),
    "a type": (committed_type, "/streams/ast/features is not a dataset"),
    "a group for features": (
        lambda s: (s.pop(FEATURES), s.create_group(FEATURES)),
        "/streams/ast/features is not a dataset",
    ),
    "compact": (compact, "shards are contiguous"),
    "no space": (no_space, "/streams/ast/features has 0 dimensions instead of 2"),
    "chunked": (replaced(FEATURES, shape=(3, 2), dtype="f4", chunks=(1, 2)), "shards are contiguous"),
    "compressed": (replaced(FEATURES, data=np.ones((3, 2), "f4"), compression="gzip"), "shards are contiguous"),
    "chunks that claim 10^12 rows": (replaced(FEATURES, shape=(10**12, 2), dtype="f4", chunks=(1, 2)), "contiguous"),
    "10^12 rows": (replaced(FEATURES, shape=(10**12, 2), dtype="f4"), "which the file doesn't hold"),
    "10^12 clips": (replaced("clip_id", shape=(10**12,), dtype="S20"), "which the file doesn't hold"),
    "rows of 10^12": (replaced(FEATURES, shape=(0, 10**12), dtype="f4"), r"shape \(0, 1000000000000\) for 3 windows"),
    "one dimension": (replaced(FEATURES, data=np.ones(3, "f4")), "/streams/ast/features has 1 dimensions instead of 2"),
    "three dimensions": (
        replaced(FEATURES, data=np.ones((3, 2, 1), "f4")),
        "/streams/ast/features has 3 dimensions instead of 2",
    ),
    "no dimension": (replaced("clip_id", data=np.bytes_(b"a")), "/clip_id has 0 dimensions instead of 1"),
    "fewer rows": (
        replaced(FEATURES, data=np.ones((2, 2), "f4")),
        r"/streams/ast/features has shape \(2, 2\) for 3 windows",
    ),
    "empty rows": (
        replaced(FEATURES, data=np.ones((3, 0), "f4")),
        r"/streams/ast/features has shape \(3, 0\) for 3 windows",
    ),
    "another dimension": (
        replaced("streams/ast/present", data=np.ones(2, "u1")),
        "/streams/ast/present has 2 rows for 3 windows",
    ),
    "doubles": (replaced(FEATURES, data=np.ones((3, 2))), "/streams/ast/features is not float32 or float16"),
    "integers": (replaced(FEATURES, data=np.ones((3, 2), "i4")), "/streams/ast/features is not float32 or float16"),
    "a compound": (
        replaced(FEATURES, data=np.zeros((3, 2), "f4,f4")),
        "/streams/ast/features is not float32 or float16",
    ),
    "numbers for ids": (replaced("clip_id", data=np.arange(3)), "clip_id is not text"),
    "lists for ids": (replaced("clip_id", shape=(3,), dtype=h5py.vlen_dtype(np.int8)), "clip_id"),
    "more labels": (replaced("labels", data=texts(*["x"] * 4)), "different lengths"),
    "fewer reasons": (replaced("failures/reason", data=texts(*["x"] * 2)), "different lengths"),
    "no label": (lambda s: s.pop("labels"), "it has no /labels"),
    "no failures": (lambda s: s.pop("failures"), "it has no /failures"),
    "line break in an id": (replaced("clip_id", data=texts("a\nb", "b", "c")), r"has 'a\\nb'"),
    "colours in a label": (replaced("labels", data=texts('["\\u001b[31m"]', *['["b"]', '["c"]'])), r"'\\x1b\[31m'"),
    "labels that are no json": (replaced("labels", data=texts("a", "b", "c")), "line 1 column 1"),
    "a label that is no list": (replaced("labels", data=texts('"a"', "[]", "[]")), "not a json list of labels"),
    "no label of a clip": (replaced("labels", data=texts("[]", "[]", "[]")), "not a json list of labels"),
    "labels in numbers": (replaced("labels", data=texts("[1]", "[1]", "[1]")), "has '1': empty"),
    "deep labels": (replaced("labels", data=texts(*["[" * 30_000] * 3)), "recursion|Recursion"),
    "offsets that fall": (replaced("offsets", data=np.array([0, 2, 1, 3])), "/offsets do not ascend"),
    "offsets that begin late": (replaced("offsets", data=np.array([1, 1, 2, 3])), "/offsets do not ascend"),
    "offsets beyond the windows": (replaced("offsets", data=np.array([0, 1, 2, 4])), "/offsets do not ascend"),
    "offsets of 2^63": (replaced("offsets", data=np.array([0, 2**63 - 1, -(2**63), 3])), "/offsets do not ascend"),
    "too few offsets": (replaced("offsets", data=np.arange(3)), "different lengths"),
    "no offsets": (replaced("offsets", data=np.arange(0)), "different lengths"),
    "windows of three": (replaced("windows", data=np.zeros((3, 3))), r"/windows has shape \(3, 3\)"),
    "windows in words": (replaced("windows", data=texts("a", "b", "c")), "/windows is not float64"),
    "more windows": (replaced("windows", data=np.zeros((4, 2))), "for 4 windows"),
    "bytes in halves": (replaced("bytes", data=np.ones(3)), "/bytes is not int64"),
    "digests in numbers": (replaced("digest", data=np.arange(3)), "/digest is not text"),
    "a stream without a recipe": (lambda s: s.create_group("streams/clap"), "/streams holds objects other than"),
    "something beside the features": (
        lambda s: s.create_group("streams/ast/x"),
        "/streams/ast holds objects other than",
    ),
    "text of variable length": (variable("clip_id"), "/clip_id is of variable length"),
    "labels of variable length": (variable("labels"), "/labels is of variable length"),
    "groups of variable length": (variable("group"), "/group is of variable length"),
    "reasons of variable length": (variable("failures/reason"), "/failures/reason is of variable length"),
    "recipes of variable length": (variable_attribute("recipes"), "recipes is of variable length"),
    "provenance of variable length": (variable_attribute("provenance"), "provenance is of variable length"),
    "a checksum of variable length": (variable_attribute("sha256"), "sha256 is of variable length"),
    "one of many attributes of variable length": (many_attributes, "last is of variable length"),
    "a damaged heap of text": (variable("clip_id", damaged=True), "/clip_id is of variable length"),
    "a damaged heap of failures": (variable("failures/reason", damaged=True), "/failures/reason is of variable length"),
    "a damaged heap of recipes": (variable_attribute("recipes", damaged=True), "recipes is of variable length"),
    "a damaged heap of a virtual dataset": (
        virtual_with_damaged_heap,
        "virtual or in another file: shards are contiguous",
    ),
    "turned text": (
        replaced("labels", data=texts(json.dumps(["\u202egpj.exe"]), *['["b"]', '["c"]'])),
        r"has '\\u202egpj.exe'",
    ),
    "NUL in an id": (replaced("clip_id", data=np.array([b"a\0b", b"b", b"c"]), dtype="S3"), r"has 'a\\x00b'"),
    "an empty id": (replaced("clip_id", data=texts("", "b", "c")), "has '': empty"),
    "a long id": (replaced("clip_id", data=texts("x" * 5000, "b", "c")), "too long"),
    "bytes": (replaced("clip_id", data=np.array([b"\xff", b"b", b"c"]), dtype="S1"), "utf-8"),
    "failures of nothing": (replaced("failures/stream", data=texts("No name")), "'No name' can't name a stream"),
    "no version": (lambda s: s.attrs.pop("format_version"), "it has no format_version"),
    "version in words": (attribute("format_version", "one"), "format_version is not an integer"),
    "versions": (attribute("format_version", [1, 1]), "format_version is not a single value"),
    "half a version": (attribute("format_version", 1.5), "format_version is not an integer"),
    "no recipes": (lambda s: s.attrs.pop("recipes"), "it has no recipes"),
    "recipes in numbers": (attribute("recipes", 3), "recipes is not text"),
    "recipes of an array": (attribute("recipes", np.array([b"{}", b"{}"])), "recipes is not a single value"),
    "no json": (recipes_of("{"), "line 1 column 2"),
    "a list": (recipes_of([1]), "recipes is not a json object"),
    "recipes of others": (recipes_of({"\nx": {}}), r"recipes of '\\nx' can't name a stream"),
    "recipes that are text": (recipes_of({"ast": "x"}), "recipes of ast are not a json object"),
    "recipes of one": (recipes_of({"ast": {}}), "/streams holds objects other than ast"),
    "not a number": (recipes_of('{"ast": {"x": NaN}, "timesformer": {}}'), "NaN is not json"),
    "deep json": (recipes_of({"ast": {"x": json.loads("[" * 30 + "]" * 30)}, "timesformer": {}}), "nested deeper"),
    "absurdly deep json": (recipes_of('{"ast": ' + "[" * 25_000), "recursion|Recursion"),
    "huge recipes": (recipes_of({"ast": {"x": "y" * 62_000}, "timesformer": {}}), "longer than 60000 bytes"),
    "a number without end": (recipes_of('{"ast": {"x": ' + "9" * 9999 + '}, "timesformer": {}}'), "digits"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_shard_is_a_one_line_error(tmp_path: Path, name: str) -> None:
    store = EmbeddingStore(tmp_path / "store")
    path = make(store.folder)
    change, message = HOSTILE[name]
    with h5py.File(path, "r+") as shard:
        change(shard)
    found = read_in_every_way(store)
    assert found and all("precious" not in text for text in found)
    assert path.exists() and len(store.shards()) == 1  # nothing was packed
    with pytest.raises(StoreError, match=rf"shard .*{path.name} is damaged \(.*({message})") as caught:
        store.read()
    assert store.verify() == [str(caught.value)]


def test_differing_recipes_are_quoted_in_one_line(tmp_path: Path) -> None:
    paths = [make(tmp_path / "store") for _ in range(2)]
    hostile = {"\x1b[31m" * 500: "\r\n", "protocol": "\u202e", "dim": 4, "deep": [[["\n"]]]}
    with h5py.File(paths[1], "r+") as shard:
        recipes_of({"timesformer": hostile, "ast": {}})(shard)
    paths[1].rename(tmp_path / "store" / "shard-9\r.h5")
    with pytest.raises(RecipeMismatchError, match="was made with another timesformer protocol") as caught:
        EmbeddingStore(tmp_path / "store").read()
    assert_one_line(str(caught.value))
    assert len(read_in_every_way(EmbeddingStore(tmp_path / "store"))) == 2  # the checksum differs too


def test_the_content_of_a_shard_found_to_be_damaged_is_discarded(tmp_path: Path) -> None:
    path = make(tmp_path)
    with h5py.File(path, "r+") as shard:
        shard["failures/stream"][0] = b"!"
    store = EmbeddingStore(tmp_path)
    with pytest.raises(StoreError, match="'!' can't name a stream"):
        store.finished()
    path.unlink()
    assert store.finished(streams=["ast"]) == {"ast": set()}


def test_a_wrong_mask_of_rows_is_found_by_verify(tmp_path: Path) -> None:
    path = make(tmp_path)
    with h5py.File(path, "r+") as shard:
        shard["streams/ast/present"][1] = 1
    problems = EmbeddingStore(tmp_path).verify()
    assert len(problems) == 2 and "checksum" in problems[0] and "/streams/ast/present differs" in problems[1]


def test_provenance_that_is_not_json_is_a_one_line_error(tmp_path: Path) -> None:
    path = make(tmp_path)
    with h5py.File(path, "r+") as shard:
        attribute("provenance", DEEP[:50_000])(shard)
    with pytest.raises(StoreError, match="is damaged"):
        EmbeddingStore(tmp_path).info()
    assert len(EmbeddingStore(tmp_path).verify()) == 1


@pytest.mark.parametrize("kind", ["folder", "named pipe", "socket", "link to nothing", "link to itself", "/dev/zero"])
def test_a_shard_that_is_not_a_regular_file_is_a_one_line_error_without_waiting(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddingStore(tmp_path / "store")
    make(store.folder)
    path = store.folder / "shard-1\n.h5"
    match kind:
        case "folder":
            path.mkdir()
        case "named pipe":
            os.mkfifo(path)
        case "socket":
            monkeypatch.chdir(store.folder)  # a socket's path may not be long
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        case "link to nothing":
            path.symlink_to(tmp_path / "nothing")
        case "link to itself":
            path.symlink_to(path)
        case _:
            path.symlink_to(kind)
    messages = read_in_every_way(store)
    assert len(messages) == 1 and r"shard-1\n.h5 " in messages.pop()


def test_a_store_and_a_shard_may_be_links_to_a_folder_and_a_file(tmp_path: Path) -> None:
    path = make(tmp_path / "store")
    path.rename(tmp_path / "elsewhere.h5")
    path.symlink_to(tmp_path / "elsewhere.h5")
    (tmp_path / "link").symlink_to(tmp_path / "store")
    store = EmbeddingStore(tmp_path / "link")
    assert store.verify() == [] and store.read().clip_ids == ("a", "b", "c")
    store.pack()
    assert (tmp_path / "elsewhere.h5").exists() and not path.is_symlink() and len(store.shards()) == 1


def damage(content: bytes, seed: int) -> bytes:
    """Flip, overwrite, insert, remove, copy or cut off bytes at random."""
    dice, changed = random.Random(seed), bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16, 64))):
        if not changed:
            break
        place, count, other = dice.randrange(len(changed)), dice.choice((1, 2, 4, 8)), dice.randrange(len(changed))
        match dice.randrange(8):
            case 0 | 1:
                changed[place] ^= 1 << dice.randrange(8)
            case 2 | 3:
                number = dice.choice((0, 1, 127, 255, 2 ** (8 * count) - 1, other, len(changed)))
                changed[place : place + count] = (number % 2 ** (8 * count)).to_bytes(count, "little")
            case 4:
                changed[place:place] = dice.randbytes(count)
            case 5:
                del changed[place : place + count]
            case 6:
                changed[place : place + 64] = changed[other : other + 64]
            case _:
                if dice.random() < 0.2:
                    del changed[max(place, 1) :]
    return bytes(changed)


def damage_often(folder: Path, shard: Path, count: int, least_read: int) -> None:
    """Run in a new process with little memory and time, because libhdf5 reads the damaged shards."""
    import resource
    import signal

    store, content = EmbeddingStore(folder), shard.read_bytes()
    with open("/proc/self/statm") as file:  # noqa: PTH123
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))
    outcomes = {"refused": 0, "read": 0}
    for seed in range(count):
        shard.write_bytes(damage(content, seed))
        print(seed, flush=True)  # the last printed seed is the one that failed
        signal.alarm(5)
        store.verify()
        for name in ("finished", "read"):
            try:
                getattr(EmbeddingStore(folder), name)()
                outcomes["read"] += 1
            except StoreError as error:
                assert_one_line(str(error))
                outcomes["refused"] += 1
        signal.alarm(0)
    assert outcomes["refused"] > count / 2 and outcomes["read"] >= least_read, outcomes


def with_variable_text(path: Path) -> None:
    with h5py.File(path, "r+") as shard:
        for name in ("clip_id", "labels", "failures/reason"):
            variable(name)(shard)
        variable_attribute("provenance")(shard)


@pytest.mark.parametrize("text", ["of fixed length", "of variable length"])
@pytest.mark.slow
def test_random_damage_neither_crashes_nor_hangs_nor_fills_the_memory(tmp_path: Path, text: str) -> None:
    path = make(tmp_path / "store")
    if text == "of variable length":
        with_variable_text(path)
    code = """if True:
        import sys, test_hostile
        from pathlib import Path
        test_hostile.damage_often(*map(Path, sys.argv[1:3]), *map(int, sys.argv[3:]))
    """
    count = 500
    run = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            code,
            path.parent,
            path,
            str(count),
            str(count // 10 * (text == "of fixed length")),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"damage number {run.stdout.split()[-1:]}: {run.stderr[-2000:]}"


NAMES = [
    "clip_id",
    "labels",
    "group",
    "bytes",
    "digest",
    "offsets",
    "windows",
    "streams",
    "timesformer",
    "ast",
    "features",
    "present",
    "failures",
]
NAMES += ["stream", "reason", "x"]
ATTRIBUTES = ["format_version", "recipes", "provenance", "sha256"]
values = st.one_of(
    st.sampled_from([1, 2, 1.5, "{}", '{"ast": {}}', '{"ast": {}, "timesformer": {}}', "[]", "", b"\xff", "\n"]),
    st.sampled_from(['{"ast": {}}', '{"ast": {}, "timesformer": {}}', "[]", "{"]).map(lambda s: np.bytes_(s.encode())),
    st.lists(st.integers(0, 3), max_size=3),
)
datasets = st.tuples(
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(["f4", "f2", ">f4", "f8", "i4", "i8", "u1", "S3", "f4,i4", "U", "empty", "lists"]),
    st.booleans(),
)
trees = st.recursive(
    datasets, lambda inside: st.dictionaries(st.sampled_from(NAMES), inside, max_size=6), max_leaves=12
)


def plant(group: h5py.Group, name: str, tree: object) -> None:
    """Write a random tree of groups and datasets under a name."""
    if name in group:
        del group[name]
    if isinstance(tree, dict):
        made = group.create_group(name)
        for inner, branch in tree.items():
            plant(made, inner, branch)
        return
    shape, kind, chunked = tree  # type: ignore[misc]
    if kind == "empty":
        group.create_dataset(name, data=h5py.Empty("f4"))
        return
    dtype = {"U": VARIABLE, "lists": h5py.vlen_dtype(np.int32)}.get(kind) or np.dtype(kind)
    chunks = True if chunked and shape and all(shape) else None
    group.create_dataset(name, shape, dtype, chunks=chunks)


@quick
@given(st.dictionaries(st.sampled_from(NAMES), trees, max_size=4), st.dictionaries(st.sampled_from(ATTRIBUTES), values))
@pytest.mark.slow
def test_a_shard_with_any_tree_in_it_is_read_or_refused(tree: dict, attributes: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder) / "store")
        with h5py.File(path, "r+") as shard:
            for name, branch in tree.items():
                plant(shard, name, branch)
            for name, value in attributes.items():
                shard.attrs[name] = value
        read_in_every_way(EmbeddingStore(path.parent))


@quick
@given(st.dictionaries(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(NAMES), datasets), max_size=9))
@pytest.mark.slow
def test_any_hdf5_file_is_read_or_refused(tree: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store" / "shard-1.h5"
        path.parent.mkdir()
        with h5py.File(path, "w") as shard:
            for name, branch in tree.items():
                plant(shard, name, branch)
            shard.attrs["format_version"] = 2
            recipes_of({"ast": {}, "timesformer": {}})(shard)
        assert read_in_every_way(EmbeddingStore(path.parent))


# manifests, csv, json

fields = st.one_of(
    st.text(max_size=12),
    st.text("./\\~ab:\0\n\r\"',;\u202e\ufeff\x1b é", max_size=12),
    st.sampled_from(["train", "test", "..", "C:\\x", "~root", "-rf", "x" * 300, "é" * 5000, "\ud800"]),
)


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


@quick
@given(st.lists(st.lists(fields, min_size=4, max_size=6), max_size=4), st.sampled_from([",", '","', "\t", ",,"]))
def test_any_csv_is_a_manifest_or_a_one_line_error(rows: list[list[str]], comma: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = [",".join(REQUIRED), *(comma.join(row) for row in rows)]
        path = written(Path(folder) / "manifest.csv", "\n".join(lines))
        for read in (Manifest.read, read_csv):
            try:
                found = read(path)
            except AlphafuseError as error:
                assert_one_line(str(error))
                continue
            if isinstance(found, Manifest):
                for clip in found:
                    assert_stays_inside(clip.path)
                    assert is_clean(clip.clip_id) and is_clean(clip.label) and is_clean(clip.group)


def assert_stays_inside(path: str) -> None:
    inside = os.path.normpath(os.path.join("/clips", path))  # noqa: PTH118  # as the kernel resolves it
    assert inside.startswith("/clips"), path
    assert not Path(path).is_absolute() and "\0" not in path


@quick
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_as_csv_and_json_or_are_a_one_line_error(content: bytes, header: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes((",".join(REQUIRED) + "\n").encode() * header + content)
        for read in (Manifest.read, read_csv, read_json):
            try:
                read(path)
            except AlphafuseError as error:
                assert_one_line(str(error))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,a.mp4,dog,train,a," + "," * 5_000_000, "a row is longer than 262144 characters"),
        ('"' + "x" * 10_000_000 + '"', "a row is longer than"),
        ('"' + "\n" * 10_000_000 + '"', "field larger than field limit"),
        ('"' + "x" * 200_000 + '"', "field larger than field limit"),
        ("a,a.mp4,dog,train,a" + "," * 200_000, "200005 columns instead of 5: "),
        ("a,a.mp4,dog\0,train,a", r"label 'dog\\x00' is with a control character"),
        (f"a,a.mp4,{'dog' * 9999},train,a", "is longer than 4096 characters"),
        (f"a,a.mp4,dog,{'train' * 500},a", "unknown split 'traintrain"),
        (f"a,{'x' * 252}.mp4,dog,train,a", "a name longer than 255 bytes, which no file can have"),
        (f"a,dir/{'é' * 128}/a.mp4,dog,train,a", "a name longer than 255 bytes"),
        ('"a\nb",a.mp4,dog,train,a', r"clip_id 'a\\nb'"),
        ("a,a.mp4,\u202egod,train,a", r"label '\\u202egod'"),
        ("a,a.mp4,dog,train,a\n" * 2, "clip_id 'a' occurs 2 times"),
    ],
)
def test_a_hostile_manifest_is_a_one_line_error(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path / "manifest.csv", ",".join(REQUIRED) + "\n" + content)
    started = time.monotonic()
    with pytest.raises(DatasetError, match=message) as caught:
        Manifest.read(path)
    assert_one_line(str(caught.value))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(DEEP, "recursion"), ("9" * 9999, "digits"), ("\ud800", "utf-8"), ("[1]", "object, not list"), ("\0", "json")],
)
def test_hostile_json_is_a_one_line_error(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read_json(written(tmp_path / "dataset.json", content))
    assert_one_line(str(caught.value))


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert read_json(written(tmp_path / "dataset.json", '\ufeff{"a": 1}')) == {"a": 1}


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), fields)
anything = st.recursive(scalars, lambda inside: st.lists(inside) | st.dictionaries(fields, inside), max_leaves=8)
GOOD: dict = {
    "format_version": 2,
    "name": "d",
    "clips": "clips",
    "classes": ["dog"],
    "streams": [{"name": "ear", "encoder": "compact", "medium": "audio", "options": {}}],
    "source": {},
}


def streams(**changed: object) -> dict:
    """Return dataset.json's streams with other fields of the only one."""
    return {"streams": [{**GOOD["streams"][0], **changed}]}


def dataset_of(root: Path, content: dict) -> Dataset:
    Manifest([Clip("a", "a.mp4", "dog", "train", "a")]).write(root / "manifest.csv")
    written(root / "dataset.json", json.dumps(content))
    return Dataset.open(root)


@quick
@given(
    st.dictionaries(st.sampled_from([*GOOD, "labelled_by"]), anything, max_size=2),
    st.sets(st.sampled_from(list(GOOD)), max_size=1),
)
def test_any_dataset_json_is_a_root_or_a_one_line_error(changed: dict, absent: set) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = {name: value for name, value in {**GOOD, **changed}.items() if name not in absent}
        try:
            dataset = dataset_of(Path(folder), content)
        except AlphafuseError as error:
            assert_one_line(str(error))
        else:
            texts = [text for one in dataset.streams for text in (one.name, one.encoder, *one.options.values())]
            names = (dataset.name, str(dataset.clip_folder), *texts, *dataset.classes)
            assert all(map(is_clean, names)) and isinstance(dataset.source, dict)
        with contextlib.suppress(DatasetError):
            require_own_root(Path(folder), "d")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": [["dog"]]}, r"has '\['dog'\]', which is not text"),
        ({"classes": ["dog", "d\nog"]}, r"has 'd\\nog', which is not text, is empty, longer"),
        ({"classes": ["dog", "dog"]}, "lists a class twice"),
        ({"classes": ["x" * 4000 + str(i) for i in range(20)]}, "unknown label 'dog'"),
        ({"clips": "a\0b"}, r"has 'a\\x00b'"),
        (streams(options={"protocol": "studio"}), "unknown protocol 'studio': choose from standard, notebook"),
        (streams(name="../ear"), "'../ear' can't name a stream: use up to 40 of a-z"),
        (streams(name="keys"), "'keys' can't name a stream, because the word is taken"),
        (streams(encoder="a\0b"), r"the encoder 'a\\x00b' is empty, longer"),
        (streams(medium="smell"), "unknown medium 'smell': choose from video, audio"),
        (streams(options={"pool": 7}), "option pool must be a text, not 7"),
        ({"streams": []}, "at least one stream is needed"),
        ({"streams": [7]}, "a stream has name, encoder, medium, options, not 7"),
        ({"streams": 2 * GOOD["streams"]}, "two streams are named 'ear'"),
        ({"labelled_by": "nose"}, "unknown way of labelling 'nose': choose from ear, eye, both: correct"),
        ({"labelled_by": ["eye"]}, "unknown way of labelling"),
        ({"source": [1]}, "'source' must be a dict"),
        ({"format_version": True}, "'format_version' must be a int"),
        ({"format_version": 1}, "has format version 1, this alphafuse reads 2"),
    ],
)
def test_a_hostile_dataset_json_is_a_one_line_error(tmp_path: Path, changed: dict, message: str) -> None:
    assert len(dataset_of(tmp_path, GOOD).classes) == 1
    with pytest.raises(DatasetError, match=message) as caught:
        dataset_of(tmp_path, {**GOOD, **changed})
    assert_one_line(str(caught.value))


@given(st.text(), st.integers(5, 50))
@quick
def test_one_line_returns_a_single_printable_line_of_bounded_length(text: str, most: int) -> None:
    shown = one_line(text, most)
    assert shown == "" or (is_clean(shown) and len(shown) <= 10 * most)
    if is_clean(text) and len(text) <= most:
        assert shown == text


def test_a_valid_shard_passes_all_checks_that_refuse_hostile_ones(tmp_path: Path) -> None:
    path = make(tmp_path / "store")
    assert read_in_every_way(EmbeddingStore(path.parent)) == set()
    with open_shard(EmbeddingStore(path.parent).shards()[0]) as shard:
        assert shard.dims == {"timesformer": 4, "ast": 2} and shard.embedded("ast").tolist() == [True, False, True]

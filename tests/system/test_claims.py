from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from support.processes import SPAWN, spawned

from alphafuse.data.embeddings import Embeddings
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.system import claims as claims_module
from alphafuse.system.claims import Claims

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fcntl: nothing is shared there")
IDS = [f"clip{i}" for i in range(60)]


def embed(clip_ids: list[str]) -> Embeddings:
    names = tuple(clip_ids)
    return Embeddings(names, names, names, {"ast": np.ones((len(names), 2), np.float32)}, recipes={"ast": {}})


def extract(folder: Path, seed: int, start: float) -> None:
    """Extract as the pipeline does, a few clips at a time."""
    store = EmbeddingStore(folder)
    time.sleep(max(0, start - time.time()))
    waiting = np.random.default_rng(seed).permutation(IDS).tolist()
    with Claims(folder) as claims:
        assert claims.is_shared
        while waiting:
            got = claims.claim(waiting[:4])
            finished = store.finished(streams=["ast"], among=waiting)["ast"]
            todo = [clip_id for clip_id in got if clip_id not in finished]
            if not got:
                time.sleep(0.01)  # others hold them; without a pause, waiting takes the processors that they need
            if todo:
                store.write(embed(todo))
            claims.release(got)
            waiting = [i for i in waiting[4:] + waiting[:4] if i not in finished and i not in todo]


def test_processes_that_share_a_store_embed_each_clip_exactly_once(tmp_path: Path) -> None:
    folder = tmp_path / "stores" / "train"
    workers = [spawned(extract, folder, seed, time.time() + 3) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    store = EmbeddingStore(folder)
    info = store.info()
    assert info.clips == len(IDS) and info.duplicates == 0 and store.done(streams=["ast"]) == set(IDS)
    assert not list(folder.glob(".*"))


def hold(folder: Path, clip_ids: list[str], pipe: Connection) -> None:
    claims = Claims(folder)
    pipe.send(claims.claim(clip_ids))
    pipe.recv()
    claims.close()


def holder(folder: Path, clip_ids: list[str]) -> tuple[BaseProcess, Connection, list[str]]:
    """Start a process that holds claims until a message arrives; return it with the claims it got."""
    here, there = SPAWN.Pipe()
    process = spawned(hold, folder, clip_ids, there)
    process.start()
    return process, here, here.recv()


def test_claims_of_a_killed_process_are_free_at_once(tmp_path: Path) -> None:
    process, _, got = holder(tmp_path, IDS)
    assert got == IDS and process.pid is not None
    with Claims(tmp_path) as claims:
        assert claims.claim(IDS) == []
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert claims.claim(IDS) == IDS
    assert not (tmp_path / ".claims").exists()


def test_released_clips_can_be_claimed_by_others_and_the_last_one_removes_the_file(tmp_path: Path) -> None:
    with Claims(tmp_path) as one:
        assert one.claim(["a", "b", "a"]) == ["a", "b"] and one.claim(["b", "c"]) == ["c"]
        with Claims(tmp_path) as other:
            assert other.claim("abcd") == ["d"]
            one.release(["a", "never claimed"])
            assert other.claim("abcd") == ["a"] and one.claim("abcd") == []
        assert (tmp_path / ".claims").exists() and one.claim("abcd") == ["a", "d"]
    assert not (tmp_path / ".claims").exists()


def test_a_store_that_does_not_exist_yet_can_be_claimed_from(tmp_path: Path) -> None:
    with Claims(tmp_path / "stores" / "train") as claims:
        assert claims.is_shared and claims.claim(["a"]) == ["a"] and EmbeddingStore(claims.path.parent).done() == set()


def test_claims_outlive_the_removal_of_their_file(tmp_path: Path) -> None:
    with Claims(tmp_path) as one:
        assert one.claim(["a"]) == ["a"]
        (tmp_path / ".claims").unlink()
        assert one.claim(["b"]) == ["b"]  # notices, and claims both in a new file
        with Claims(tmp_path) as other:
            assert other.claim("abc") == ["c"]
    assert not (tmp_path / ".claims").exists()


def test_claiming_everything_excludes_others_until_close(tmp_path: Path) -> None:
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert other.claim(["a"]) == ["a"] and not one.claim_all()
        assert one.claim("ab") == ["b"]  # the failed claim_all claimed nothing and blocks nobody
        other.release(["a"])
        assert one.claim_all() and one.claim_all() and not other.claim_all()
        assert other.claim("abc") == [] and one.claim("abc") == ["a", "c"]  # it already holds b
        one.release("abc")
        assert other.claim("abc") == [] and one.claim("ab") == ["a", "b"]
        (tmp_path / ".claims").unlink()
        assert one.claim(["d"]) == ["d"] and other.claim("abcde") == []  # both continue in a new file
        one.close()
        assert other.claim("abc") == ["a", "b", "c"]
    assert not (tmp_path / ".claims").exists()


def test_claiming_everything_sees_a_claim_of_another_process_and_its_death(tmp_path: Path) -> None:
    process, _, got = holder(tmp_path, ["a"])
    with Claims(tmp_path) as claims:
        assert got == ["a"] and not claims.claim_all() and process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert claims.claim_all()


def come_and_go(folder: Path, seconds: float, least: int) -> None:
    """Open, claim one clip, mark it briefly, close: two marks at once mean two owners."""
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end or rounds < least:
        with Claims(folder) as claims:
            assert claims.is_shared
            if claims.claim(["the clip"]):
                os.close(os.open(folder / "owned", os.O_CREAT | os.O_EXCL))  # FileExistsError: another owns it too
                (folder / "owned").unlink()
                rounds += 1


def test_no_clip_has_two_owners_while_the_file_is_made_and_removed(tmp_path: Path) -> None:
    workers = [spawned(come_and_go, tmp_path, 2, 11) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert not (tmp_path / ".claims").exists()


def no_locks(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("obstacle", ["no locks", "no fcntl", "a link", "a named pipe", "a file in the folder's place"])
def test_without_locks_everything_is_claimed_and_is_shared_is_false(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    folder = tmp_path / "store"
    if obstacle == "no locks":
        monkeypatch.setattr(claims_module.fcntl, "fcntl", no_locks)
        monkeypatch.setattr(claims_module.fcntl, "lockf", no_locks)
    elif obstacle == "no fcntl":
        monkeypatch.setattr(claims_module, "fcntl", None)
    elif obstacle == "a file in the folder's place":
        folder.write_text("in the way")
    else:
        folder.mkdir()
        (tmp_path / "victim").write_text("precious")
        if obstacle == "a link":
            (folder / ".claims").symlink_to(tmp_path / "victim")
        else:
            os.mkfifo(folder / ".claims")
    with Claims(folder) as one, Claims(folder) as other:
        assert not one.is_shared and one.claim(["a"]) == ["a"] and other.claim(["a"]) == ["a"]
        one.release(["a"])
        assert one.claim(["a", "b"]) == ["a", "b"] and "not shared" in repr(one)
        assert one.claim_all() and other.claim_all()
    with contextlib.suppress(FileNotFoundError):
        assert (tmp_path / "victim").read_text() == "precious"


def test_processes_exclude_each_other_if_locks_belong_to_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "_OWN_LOCKS", False)  # as on macOS
    process, pipe, got = holder(tmp_path, ["a", "b"])
    with Claims(tmp_path) as claims:
        assert got == ["a", "b"] and claims.claim("abc") == ["c"] and not claims.claim_all()
        pipe.send("close")
        process.join()
        assert claims.claim("abc") == ["a", "b"]
    assert not (tmp_path / ".claims").exists()

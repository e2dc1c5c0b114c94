"""Extraction is really killed, interrupted, run out of disk and shared, and the store ends the same."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clips import THOROUGH, write_clip
from support.extraction import LOOKS, Names, assert_same_stores, command, make, settings, wait_for

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.extract.engines.local import ShardWriter
from alphafuse.extract.jobs import Batch, Job
from alphafuse.extract.pipeline import extract_embeddings


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is this folder (Linux only; else none)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve():
                found.append(int(process.name))
        except OSError:
            continue
    return found


KILLS = 30 if THOROUGH else 6  # three seconds each
LIVES = """
import os, sys
from alphafuse.system.claims import Claims
from alphafuse.data.dataset import Dataset
from alphafuse.extract.engines.embedder import Embedder, load_encoders
from alphafuse.extract.engines.local import LocalEngine
from alphafuse.extract.pipeline import fill_store
from alphafuse.extract.settings import ExtractSettings
from alphafuse.extract.missing import Work
import alphafuse.extract.encoders.encoder, transformers  # slow imports, once for all lives
dataset = Dataset.open(sys.argv[1])
encoders = {"timesformer": sys.argv[2], "ast": sys.argv[3]}
settings = ExtractSettings(encoders=encoders, device="cpu", workers=1, flush_seconds=0.05)
for line in sys.stdin:
    life = os.fork()
    if not life:
        embedder = Embedder(load_encoders(dataset, settings, "cpu"), settings)
        fill_store(LocalEngine(embedder), Work(dataset, "train", embedder.recipes))
        os._exit(0)
    print(life, flush=True)
    os.waitpid(life, 0)
"""


@pytest.mark.slow
def test_killed_at_random_moments_the_store_ends_like_an_uninterrupted_one(
    files: Path, tmp_path: Path, tiny_encoders: Names
) -> None:
    clips = 1200
    calm, killed = (make(tmp_path / name, files, clips) for name in ("calm", "killed"))
    extract_embeddings(calm, ["train"], settings(tiny_encoders))
    store, rng, before, early = killed.store("train"), random.Random(0), 0, 0
    folders = [str(tiny_encoders[stream]) for stream in ("timesformer", "ast")]
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", LIVES, str(killed.root), *folders],
        cwd=killed.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # drop warnings about semaphores left by killed lives
        text=True,
    )
    assert parent.stdin is not None and parent.stdout is not None
    for number in range(KILLS):
        parent.stdin.write("live\n")
        parent.stdin.flush()
        life = int(parent.stdout.readline())
        if number % 3:  # at work: shortly after one or two more shards
            goal = len(store.shards()) + rng.randint(1, 2)
            wait_for(lambda goal=goal: len(store.shards()) >= goal)
            time.sleep(rng.uniform(0, 0.08))
        else:  # while it starts
            time.sleep(rng.uniform(0, 1.5))
        os.kill(life, signal.SIGKILL)
        done = len(store.done())
        assert done >= before, "flushed rows survive the kill"
        early, before = early + (done == before), done
    parent.stdin.close()
    parent.wait()
    assert 0 < before < clips and 0 < early < KILLS, "the kills came neither before the first flush nor after the last"
    wait_for(lambda: not processes_in(killed.root), 30)  # workers end with their parent process
    (last,) = extract_embeddings(killed, ["train"], settings(tiny_encoders))
    assert last.already == before
    assert_same_stores(killed, calm)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.slow
def test_an_interrupt_flushes_prints_how_to_resume_and_exits_with_its_code(
    files: Path, tmp_path: Path, tiny_encoders: Names, number: int, code: int, word: str
) -> None:
    dataset = make(tmp_path / "root", files, 3000)
    run = subprocess.Popen(
        command(dataset.root, tiny_encoders, "--flush-seconds", "0.2"),
        cwd=dataset.root,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(dataset.store("train").shards()) >= 2)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == code, errors
    assert f"alphafuse: {word}; finished work is kept, run the same command again to resume" in errors
    assert "Traceback" not in errors
    store = dataset.store("train")
    assert store.verify() == [] and 0 < len(store.done()) < 3000
    wait_for(lambda: not processes_in(dataset.root), 30)
    assert all(path.name.startswith("shard-") for path in store.folder.iterdir()), "only shards are left"


@pytest.mark.slow
def test_embeddings_made_before_an_interrupt_are_written(files: Path, tmp_path: Path, tiny_encoders: Names) -> None:
    """With an infinite flush interval, everything in the store was flushed by the interrupt."""
    dataset = make(tmp_path / "root", files, 3000)
    run = subprocess.Popen(
        command(dataset.root, tiny_encoders, "--flush-seconds", "3600"), cwd=dataset.root, stderr=subprocess.PIPE
    )
    wait_for(lambda: (dataset.store("train").folder / ".claims").exists())
    time.sleep(4)
    assert dataset.store("train").shards() == []
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert len(dataset.store("train").shards()) == 1 and len(dataset.store("train").done()) > 10


def test_an_interrupt_during_the_last_write_lets_it_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, write = EmbeddingStore(tmp_path / "store"), EmbeddingStore.write

    def write_slowly(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        return write(*arguments, **options)

    monkeypatch.setattr(EmbeddingStore, "write", write_slowly)
    job = Job(Clip("clip_000000", "a.mp4", "dog", "train", "clip"), tmp_path / "a.mp4", ("ast",))
    unknown = (np.full(1, np.nan), np.zeros(1, np.int64), np.array([""]))
    batch = Batch((job,), {"ast": np.ones((1, 4), np.float32)}, (), *unknown, 0.0, 0.0)
    with pytest.raises(KeyboardInterrupt):
        with ShardWriter(store, {"ast": {}}, provenance=dict, flush_seconds=3600) as writer:
            writer.put(batch)
        pytest.fail("the interrupt was lost")
    assert len(store.shards()) == 1 and store.finished()["ast"] == {"clip_000000"}


@pytest.mark.slow
def test_two_extractions_at_once_share_the_work_without_duplicate_rows(
    files: Path, tmp_path: Path, tiny_encoders: Names
) -> None:
    calm, shared = (make(tmp_path / name, files, 300) for name in ("calm", "shared"))
    extract_embeddings(calm, ["train"], settings(tiny_encoders))
    runs = [
        subprocess.Popen(
            command(shared.root, tiny_encoders, "--flush-seconds", "0.2", "--json"), stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    made = []
    for run in runs:
        output, _ = run.communicate(timeout=120)
        assert run.returncode == 0
        made.append(int(re.search(r'"timesformer": (\d+)', output).group(1)))  # type: ignore[union-attr]
    assert sum(made) == 300, "each clip was embedded by one of them"
    assert min(made) > 0, "one did all the work"
    assert_same_stores(shared, calm)


@pytest.mark.slow
def test_when_one_of_two_is_killed_the_other_also_embeds_its_clips(
    files: Path, tmp_path: Path, tiny_encoders: Names
) -> None:
    calm, shared = (make(tmp_path / name, files, 300) for name in ("calm", "shared"))
    extract_embeddings(calm, ["train"], settings(tiny_encoders))
    runs = [
        subprocess.Popen(command(shared.root, tiny_encoders, "--flush-seconds", seconds), cwd=shared.root)
        for seconds in ("3600", "0.2")
    ]
    wait_for(lambda: len(shared.store("train").shards()) >= 3)
    runs[0].kill()
    assert runs[1].wait(timeout=120) == 0
    runs[0].wait()
    assert_same_stores(shared, calm)


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_a_full_disk_is_a_one_line_error_and_nothing_is_corrupted(
    files: Path, tmp_path: Path, tiny_encoders: Names
) -> None:
    calm, full = (make(tmp_path / name, files, 120) for name in ("calm", "full"))
    extract_embeddings(calm, ["train"], settings(tiny_encoders))
    # the first shards are below the limit, a shard of the rest is not
    ended = subprocess.run(
        command(full.root, tiny_encoders, "--flush-seconds", "3600"),
        preexec_fn=limited(20_000),
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = ended.stderr.strip().splitlines()
    assert ended.returncode == 2 and len(lines) == 1, ended.stderr
    assert "can't write" in lines[0] and "File too large: raise the limit" in lines[0]
    assert list(full.store("train").folder.glob(".shard-*")) == [], "no half shard is left"
    assert full.store("train").verify() == []
    extract_embeddings(full, ["train"], settings(tiny_encoders))
    assert_same_stores(full, calm)


@pytest.mark.slow
def test_a_small_real_file_system_that_fills_up(files: Path, tmp_path: Path, tiny_encoders: Names) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(mount)], capture_output=True)
    if made.returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        dataset = make(mount / "root", files, 200)
        ended = subprocess.run(
            command(dataset.root, tiny_encoders, "--flush-seconds", "0.3"), capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 2 and len(ended.stderr.strip().splitlines()) == 1, ended.stderr
        assert "No space left on device: free some space" in ended.stderr
        done = len(dataset.store("train").done())
        assert dataset.store("train").verify() == [] and 0 < done < 200
        subprocess.run(["mount", "-o", "remount,size=4m", str(mount)], check=True)
        (report,) = extract_embeddings(dataset, ["train"], settings(tiny_encoders))
        assert report.already == done and len(dataset.store("train").done()) == 200
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.slow
def test_a_file_in_the_place_of_the_store_is_a_one_line_error(
    files: Path, tmp_path: Path, tiny_encoders: Names
) -> None:
    dataset = make(tmp_path / "root", files, 3)
    (dataset.root / "stores").write_text("in the way")
    ended = subprocess.run(command(dataset.root, tiny_encoders), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.count("\n") == 1 and "stores" in ended.stderr


@pytest.mark.slow
def test_memory_stays_within_the_limit(files: Path, tmp_path: Path, tiny_encoders: Names) -> None:
    """Clips of very different sizes; the memory of all processes is measured often from outside."""
    import psutil

    large = tmp_path / "clips"
    large.mkdir()
    for look in range(LOOKS):
        size = ((48, 64), (720, 1280), (2160, 3840))[look % 3]
        write_clip(large / f"{look}.mp4", frames=8, size=size, look=look)
    dataset = make(tmp_path / "root", large, 48)
    limit = 2.0
    run = subprocess.Popen(
        command(dataset.root, tiny_encoders, "--max-memory", str(limit), "--json"), stdout=subprocess.PIPE
    )
    most, process = 0, psutil.Process(run.pid)
    while run.poll() is None:
        total = 0
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_info().rss
            except psutil.Error:
                continue
        most = max(most, total)
        time.sleep(0.02)
    assert run.stdout is not None
    assert run.returncode == 0 and b'"failures": []' in run.stdout.read()
    assert 0 < most / 1e9 < limit


@pytest.mark.slow
def test_too_little_memory_is_an_error_before_any_work(files: Path, tmp_path: Path, tiny_encoders: Names) -> None:
    dataset = make(tmp_path / "root", files, 3)
    ended = subprocess.run(
        command(dataset.root, tiny_encoders, "--max-memory", "0.1"), capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2 and re.search(r"allow at least \d\.\d GB \(--max-memory\)", ended.stderr)
    assert not dataset.store("train").folder.exists()


@pytest.mark.slow
def test_clips_that_crash_or_hang_the_decoder_are_recorded_and_the_rest_is_embedded(
    files: Path, tmp_path: Path, tiny_encoders: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decode workers really crash, hang or use too much memory, depending on the file's name."""
    from alphafuse.extract.decoding import decode as inputs
    from alphafuse.system import workers

    folder = tmp_path / "clips"
    folder.mkdir()
    clips = []
    for name in ("fine", "crash", "hang", "eat", "empty", "text"):
        write_clip(folder / f"{name}.mp4", frames=12)
        clips.append(Clip(f"{name}_000000", f"{name}.mp4", "dog", "train", name))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a clip")
    dataset = Dataset.create(tmp_path / "root", Manifest(clips), name="faults", clip_folder=folder, classes=("dog",))
    monkeypatch.setattr(workers, "START_SECONDS", 3.0)
    decode = inputs.decode_inputs

    def faulty(task: tuple[Path, tuple[str, ...], Path | None], **given: object) -> object:
        if task[0].stem == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if task[0].stem == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        if task[0].stem == "eat":
            np.ones(1_000_000_000)
        return decode(task, **given)  # type: ignore[arg-type]

    monkeypatch.setattr("alphafuse.extract.engines.embedder.decode_inputs", faulty)
    (report,) = extract_embeddings(dataset, ["train"], settings(tiny_encoders, timeout_seconds=3.0))
    assert report.embedded == {"timesformer": 1, "ast": 1}
    reasons = {failure.clip_id.split("_")[0]: failure.reason for failure in report.failures}
    assert reasons == {
        "crash": workers.CRASHED,
        "hang": workers.HUNG,
        "eat": workers.NO_MEMORY,
        "empty": reasons["empty"],
        "text": reasons["text"],
    }
    assert all(reasons[name].startswith("can't be opened: ") for name in ("empty", "text"))
    monkeypatch.undo()
    (again,) = extract_embeddings(dataset, ["train"], settings(tiny_encoders))
    assert again.already == 6, "a recorded failure is not retried by default"
    (retried,) = extract_embeddings(dataset, ["train"], settings(tiny_encoders, retry_failed=True))
    assert retried.already == 1 and retried.embedded == {"timesformer": 3, "ast": 3}
    assert len(retried.failures) == 4 and dataset.store("train").info().rows == {"timesformer": 4, "ast": 4}

"""Several devices of one machine: a process for each, over disjoint clips."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.extraction import Names, assert_same_stores, command, make, settings, wait_for

from alphafuse.errors import DeviceError, RecipeMismatchError
from alphafuse.extract.engines.embedder import Embedder, load_encoders
from alphafuse.extract.engines.local import LocalEngine
from alphafuse.extract.missing import Work
from alphafuse.extract.pipeline import extract_embeddings, fill_store
from alphafuse.system.claims import Claims
from alphafuse.system.devices import list_devices
from alphafuse.system.progress import Progress


class Watch(Progress):
    """Progress that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.done = 0

    def start(self, title: str, *, total: int, done: int = 0, unit: str = "clip") -> None:
        self.calls.append((title, total - done, done))

    def advance(self, count: int = 1, **of_which: int) -> None:
        assert "elsewhere" not in of_which, "each process reports only its own work"
        self.done += count

    def note(self, **figures: int) -> None:
        raise AssertionError("there are no stages here")

    def stop(self) -> None:
        self.calls.append(("stop", 0, 0))


def test_devices_are_named_with_commas() -> None:
    assert list_devices("auto") == ("auto",)
    assert list_devices("cuda:0, cuda:1") == ("cuda:0", "cuda:1")
    with pytest.raises(DeviceError, match="device 'cuda:0,' has an empty name"):
        list_devices("cuda:0,")
    with pytest.raises(DeviceError, match="no usable CUDA device"):
        list_devices("all")


@pytest.mark.slow
def test_two_devices_embed_and_count_each_clip_once(files: Path, tmp_path: Path, tiny_encoders: Names) -> None:
    calm, shared = (make(tmp_path / name, files, 200) for name in ("calm", "shared"))
    extract_embeddings(calm, ["train"], settings(tiny_encoders))
    how, watch = replace(settings(tiny_encoders), device="cpu,cpu", workers=2), Watch()
    (report,) = extract_embeddings(shared, ["train"], how, progress=watch)
    assert_same_stores(shared, calm)
    assert (report.clips, report.already, report.embedded) == (200, 0, {"timesformer": 200, "ast": 200})
    assert report.decode_seconds > 0 < report.embed_seconds and report.is_shared
    assert watch.calls == [("train", 200, 0), ("stop", 0, 0)] and watch.done == 200
    assert len(shared.store("train").shards()) >= 2, "each process wrote its own"
    other = replace(how, encoders={**how.encoders, "ast": "compact"})
    with pytest.raises(RecipeMismatchError, match="was made with another ast"):
        extract_embeddings(shared, ["train"], other)


def test_without_locks_each_process_does_its_own_part(
    files: Path, tmp_path: Path, tiny_encoders: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Claims, "is_shared", property(lambda claims: False))
    dataset = make(tmp_path / "root", files, 40)
    done = 0
    for number in range(3):
        embedder = Embedder(load_encoders(dataset, settings(tiny_encoders), "cpu"), settings(tiny_encoders))
        engine = LocalEngine(embedder, part=(number, 3))
        report = fill_store(engine, Work(dataset, "train", engine.recipes))
        assert 5 < len(dataset.store("train").done()) - done < 25
        done = len(dataset.store("train").done())
        assert (report.clips, report.is_shared) == (40, False)
    assert done == 40
    assert dataset.store("train").info().duplicates == 0


@pytest.mark.cluster
def test_the_other_process_embeds_the_clips_of_a_killed_one_and_an_interrupt_flushes(
    files: Path, tmp_path: Path, tiny_encoders: Names
) -> None:
    calm, shared = (make(tmp_path / name, files, 1500) for name in ("calm", "shared"))
    extract_embeddings(calm, ["train"], settings(tiny_encoders))
    store = shared.store("train")

    def start() -> subprocess.Popen[str]:
        many = command(shared.root, tiny_encoders, "--device", "cpu,cpu", "--flush-seconds", "0.2")
        return subprocess.Popen(many, cwd=shared.root, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    run = start()
    wait_for(lambda: len(store.shards()) >= 3)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert errors == "\nalphafuse: interrupted; finished work is kept, run the same command again to resume\n"
    done, shards = len(store.done()), len(store.shards())
    assert 0 < done < 1500
    run = start()
    wait_for(lambda: len(store.shards()) > shards)
    # those that serve a device have decode workers of their own
    serving = [child for child in psutil.Process(run.pid).children() if child.children()]
    assert len(serving) == 2
    serving[0].kill()
    output, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert output.startswith("train: ")
    assert_same_stores(shared, calm)

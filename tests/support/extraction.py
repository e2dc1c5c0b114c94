"""Extractions of many small clips, and stores that must be equal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.claims import Claims

Names = dict[str, Path]
LOOKS = 6  # number of different files; further clips share them


def make(root: Path, files: Path, clips: int) -> Dataset:
    listed = [Clip(f"clip{i:05d}_000000", f"{i % LOOKS}.mp4", "dog", "train", f"clip{i:05d}") for i in range(clips)]
    return Dataset.create(root, Manifest(listed), name="faults", clip_folder=files, classes=("dog",))


def command(root: Path, encoders: Names, *options: str) -> list[str]:
    names = [part for stream in encoders for part in (f"--{stream}", str(encoders[stream]))]
    program = "from alphafuse.cli.main import main; main()"
    fixed = ("extract", "--split", "train", "--root", str(root), "--device", "cpu", "--workers", "1")
    return [sys.executable, "-P", "-c", program, *fixed, *names, *options]


def settings(encoders: Names, **changes: object) -> ExtractSettings:
    names = {stream: str(folder) for stream, folder in encoders.items()}
    return ExtractSettings(device="cpu", workers=1, encoders=names, **changes)  # type: ignore[arg-type]


def assert_same_stores(found: Dataset, expected: Dataset) -> None:
    """Assert that two stores are equal to the bit: on the CPU an embedding depends on its clip alone."""
    store = found.store("train")
    assert store.verify() == [] and store.info().duplicates == 0
    for stream in ("timesformer", "ast"):
        ours, theirs = (dataset.embeddings("train").features[stream] for dataset in (found, expected))
        np.testing.assert_array_equal(ours, theirs)
    with Claims(store.folder):
        pass  # a process that was still ending after its kill leaves the file to the next one
    left = [path.name for path in store.folder.iterdir() if not path.name.startswith("shard-")]
    # a shard that was being written when its writer was killed; the first write an hour later removes it
    assert [name for name in left if not re.fullmatch(r"\.shard-.*\.partial", name)] == []


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.005)

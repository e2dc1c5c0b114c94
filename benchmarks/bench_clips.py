"""Memory and time per clip from the manifest to trained heads: part "clips" of bench_heads.py.

Writes a root with small embeddings, so that the other memory per clip is visible. Its store is sorted by class, in many
shards, which is the hardest case for streaming. Then trains heads from it in a new process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from measuring import Clock, PeakMemory, Turn

from alphafuse.data.columns import Texts, TextsBuilder
from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.manifest import Clips, Manifest
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.data.streams import DEFAULT_NAMES
from alphafuse.heads.model.config import HeadConfig
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import train_heads

SHARD_ROWS = 10_000  # about the size of a shard of extraction
CENTRE_DISTANCE = 4.0  # between two classes' centres, in standard deviations of a class: classes overlap
CENTRES_SEED = 7

UNITS = {  # quantities of `train_from_root` -> unit
    "reading the manifest": "us per clip",
    "finding clips in the stores": "us per clip",
    "an epoch of all heads": "us per clip",
    "peak memory until the manifest is read": "bytes per clip",
    "peak memory until heads are trained": "bytes per clip",
    "peak memory with imports": "MB",
    "accuracy": "%",
}


class ClipsSize(NamedTuple):
    """Size of the root, and of the training on it.

    Attributes:
        clips: training clips.
        eval_clips: clips of val and of test.
        dim: dimension of each of the two streams.
        classes, hidden, heads, epochs, batch_size: settings of the training; the first epoch isn't counted.
        memory_gb: memory for features while streaming.
    """

    clips: int = 1_000_000
    eval_clips: int = 5000
    dim: int = 16
    classes: int = 309
    hidden: tuple[int, ...] = (64,)
    heads: int = 4
    epochs: int = 3
    batch_size: int = 512
    memory_gb: float = 0.01


def write_root(folder: Path, size: ClipsSize) -> Dataset:
    """Write a root named "bench" with filled stores, sorted by class; the clips' files don't exist."""
    classes = tuple(f"class {i}" for i in range(size.classes))
    columns = [TextsBuilder() for _ in range(4)]
    for split, count in _counts(size).items():
        for start in range(0, count, SHARD_ROWS):
            ids, labels, groups = _names(split, start, min(start + SHARD_ROWS, count), count, classes)
            for column, texts in zip(columns, (ids, labels, [split] * len(ids), groups), strict=True):
                column.add(texts)
    clip_ids, labels_of, splits, groups_of = (column.build() for column in columns)
    files = Texts(["\0.mp4"]).take(np.zeros(len(clip_ids), np.uint8))
    manifest = Manifest(Clips.of_columns(clip_ids, files, labels_of, splits, groups_of))
    dataset = Dataset.create(folder, manifest, name="bench", clip_folder=folder / "clips", classes=classes)
    width = len(DEFAULT_NAMES) * size.dim
    centres = np.random.default_rng(CENTRES_SEED).standard_normal((size.classes, width), dtype=np.float32)
    centres *= CENTRE_DISTANCE / math.sqrt(2 * width)
    recipes: dict[str, dict[str, Any]] = {stream: {"protocol": "benchmark"} for stream in DEFAULT_NAMES}
    for number, (split, count) in enumerate(_counts(size).items()):
        rng, store = np.random.default_rng(number), EmbeddingStore(folder / "stores" / split)
        for start in range(0, count, SHARD_ROWS):
            stop = min(start + SHARD_ROWS, count)
            targets = np.arange(start, stop) * size.classes // count
            x = centres[targets] + rng.standard_normal((stop - start, width), dtype=np.float32)
            features = dict(zip(DEFAULT_NAMES, np.split(x, len(DEFAULT_NAMES), axis=1), strict=True))
            of_shard = [tuple(column) for column in _names(split, start, stop, count, classes)]
            store.write(Embeddings(of_shard[0], of_shard[1], of_shard[2], features, recipes=recipes))
    return dataset


def _counts(size: ClipsSize) -> dict[str, int]:
    return {"train": size.clips, "val": size.eval_clips, "test": size.eval_clips}


def _names(split: str, start: int, stop: int, count: int, classes: Sequence[str]) -> tuple[list[str], ...]:
    """Return clip_ids, labels and groups of a range of a split's clips; ids are as long as VGGSound's."""
    rows = range(start, stop)
    groups = [f"{split[:2]}{i:09d}" for i in rows]
    ids = [f"{group}_{i % 600:06d}" for group, i in zip(groups, rows, strict=True)]
    return ids, [classes[i * len(classes) // count] for i in rows], groups


def train_from_root(size: ClipsSize, folder: Path, turn: Turn, *, memory_gb: float | None) -> dict[str, float]:
    """Open the root and train; return the time per clip of each step and the peak memory of this process."""
    way = "in memory" if memory_gb is None else "streamed"
    settings = TrainSettings(
        epochs=size.epochs,
        batch_size=size.batch_size,
        learning_rate=1e-3,
        hidden=size.hidden,
        memory_gb=memory_gb,
        device="cpu",
    )
    imports, clock, clips = psutil.Process().memory_info().rss, Clock(), size.clips + 2 * size.eval_clips
    with PeakMemory() as peak:
        start = time.perf_counter()
        dataset = Dataset.open(folder)
        opened, manifest_bytes = time.perf_counter() - start, peak.grown_bytes
        start = time.perf_counter()
        train, val = (dataset.store(split).open_rows(dataset.manifest.of_split(split)) for split in ("train", "val"))
        located = time.perf_counter() - start
        config = HeadConfig(train.dims, dataset.classes, settings=settings)
        seeds = range(turn.number * size.heads, (turn.number + 1) * size.heads)
        trained = train_heads(train, val, [config], list(seeds), settings=settings, progress=clock)
    per_epoch = clock.seconds_per_epoch(size.heads)
    return {
        f"reading the manifest, {way}": 1e6 * opened / clips,
        f"finding clips in the stores, {way}": 1e6 * located / (size.clips + size.eval_clips),
        f"an epoch of all heads, {way}": 1e6 * per_epoch / size.clips,
        f"peak memory until the manifest is read, {way}": manifest_bytes / clips,
        f"peak memory until heads are trained, {way}": peak.grown_bytes / size.clips,
        f"peak memory with imports, {way}": (imports + peak.grown_bytes) / 1e6,
        f"accuracy, {way}": 100 * float(np.mean([one.history.val_accuracy[-1] for one in trained])),
    }

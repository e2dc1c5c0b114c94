"""A small store whose streams identify the class only together; for the tests of stage two."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings, Failure
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.streams import DEFAULT_STREAMS, Stream
from alphafuse.heads.training.settings import TrainSettings

SETTINGS = TrainSettings(epochs=12, hidden=(32, 16), learning_rate=3e-3)
CLASSES = tuple(f"sight {i // 3}, sound {i % 3}" for i in range(9))
SIZES = {"train": 90, "val": 27, "test": 45}
DINO, CLAP = Stream("dino-s", "compact", "video"), Stream("clap", "compact", "audio")


def make_dataset(
    root: Path,
    *,
    unseen_test_labels: int = 0,
    silent_test_clips: int = 0,
    classes: tuple[str, ...] = CLASSES,
    name: str = "toy",
    streams: tuple[Stream, ...] = DEFAULT_STREAMS,
) -> Dataset:
    """Make a dataset of nine classes: each stream identifies three groups, only sight and sound together the class."""
    rng = np.random.default_rng(0)
    sights, sounds = rng.normal(size=(3, 8)), rng.normal(size=(3, 6))
    rows = []
    for split, size in SIZES.items():
        for i in range(size):
            index = i % 9
            if split == "train" and index < unseen_test_labels:
                index = 8
            clip_id = f"{split}video{i // 2}_{i:06d}"
            rows.append((Clip(clip_id, f"{clip_id}.mp4", classes[index], split, f"{split}video{i // 2}"), index))
    dataset = Dataset.create(
        root,
        Manifest([clip for clip, _ in rows]),
        name=name,
        clip_folder=root / "clips",
        classes=classes,
        streams=streams,
    )
    for split in SIZES:
        chosen = [(clip, index) for clip, index in rows if clip.split == split]
        indices = np.array([index for _, index in chosen])
        arrays = {
            "timesformer": (sights[indices // 3] + 0.4 * rng.normal(size=(len(chosen), 8))).astype(np.float32),
            "ast": (sounds[indices % 3] + 0.4 * rng.normal(size=(len(chosen), 6))).astype(np.float32),
        }
        for number, stream in enumerate(streams):
            if stream.name not in arrays:  # 5 numbers, three times as noisy
                own = np.random.default_rng([number, len(chosen)])
                means = np.random.default_rng(number).normal(size=(3, 5))
                group = indices // 3 if stream.medium == "video" else indices % 3
                arrays[stream.name] = (means[group] + 1.2 * own.normal(size=(len(chosen), 5))).astype(np.float32)
        silent = range(silent_test_clips if split == "test" else 0)
        arrays["ast"][list(silent)] = np.nan
        dataset.store(split).write(
            Embeddings(
                clip_ids=tuple(clip.clip_id for clip, _ in chosen),
                labels=tuple(clip.label for clip, _ in chosen),
                groups=tuple(clip.group for clip, _ in chosen),
                features={stream.name: arrays[stream.name] for stream in streams},
                failures=tuple(Failure(chosen[i][0].clip_id, "ast", "no audio stream") for i in silent),
                recipes={stream.name: {"protocol": "standard"} for stream in streams},
            )
        )
    return dataset


def silence_label(dataset: Dataset, label: str) -> None:
    """Store the training clips again, without audio for those of one label."""
    store = dataset.store("train")
    kept = store.read()
    for shard in store.shards():
        shard.unlink()
    silent = np.array([one == label for one in kept.labels])
    sound = np.where(silent[:, None], np.nan, kept.features["ast"]).astype(np.float32)
    failures = tuple(Failure(kept.clip_ids[i], "ast", "no audio stream") for i in np.flatnonzero(silent))
    store.write(replace(kept, features={**kept.features, "ast": sound}, failures=(*kept.failures, *failures)))


def assert_no_nan(content: Any) -> None:
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            assert_no_nan(item)
    assert not isinstance(content, float) or math.isfinite(content)

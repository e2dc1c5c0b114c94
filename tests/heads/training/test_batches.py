"""Windows of training clips, in memory or streamed from a store: heads are equally accurate."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.heads import head_config
from support.toy import make_dataset

from alphafuse.data.embeddings import Embeddings
from alphafuse.data.store.lazy import StoredEmbeddings
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.heads.studies.sweep import sweep
from alphafuse.heads.studies.table1 import table1
from alphafuse.heads.training.batches import BLOCK_ROWS, InMemory, Streamed, make_source
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.stack import Stack
from alphafuse.heads.training.train import TrainedHead, train_heads

DIMS = {"timesformer": 6, "ast": 4}
CLASSES = tuple(f"class {i}" for i in range(10))
CPU = torch.device("cpu")
BOTH = ("timesformer", "ast")
ROW_BYTES = 4 * sum(DIMS.values())


def sorted_clips(count: int, *, seed: int, spread: float = 1.0) -> Embeddings:
    """Return clips in the order of their classes, as in a store made from one folder per class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(len(CLASSES), sum(DIMS.values())))
    targets = np.sort(rng.integers(len(CLASSES), size=count))
    x = (centres[targets] + spread * rng.normal(size=(count, sum(DIMS.values())))).astype(np.float32)
    ids = tuple(f"{seed}video{i}_000000" for i in range(count))
    labels = tuple(CLASSES[i] for i in targets)
    return Embeddings(
        ids, labels, ids, {"timesformer": x[:, :6], "ast": x[:, 6:]}, recipes={name: {"made": "here"} for name in BOTH}
    )


def stored(folder: Path, clips: Embeddings, shards: int = 3) -> EmbeddingStore:
    store = EmbeddingStore(folder)
    for rows in np.array_split(np.arange(len(clips)), shards):
        store.write(clips.take(rows))
    return store


@pytest.fixture(scope="module")
def clips() -> Embeddings:
    return sorted_clips(2000, seed=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, clips: Embeddings) -> EmbeddingStore:
    return stored(tmp_path_factory.mktemp("store") / "train", clips)


def streamed(store: EmbeddingStore, windows: int = 5) -> Streamed:
    source = store.open_rows()
    targets = np.arange(len(source))  # each clip has its own target, to follow it
    memory = len(source) * ROW_BYTES * 3 // windows
    made = make_source(source, BOTH, targets, device=CPU, memory_bytes=memory)
    assert isinstance(made, Streamed)
    return made


def test_a_split_that_fits_is_one_window_without_a_copy(clips: Embeddings) -> None:
    targets = np.arange(len(clips))
    source = make_source(clips, ("ast",), targets, device=CPU, memory_bytes=len(clips) * ROW_BYTES)
    assert isinstance(source, InMemory) and len(source) == 2000 and source.steps(300) == 7
    (window,) = source.windows(3)
    assert (
        window.features["ast"].data_ptr() == clips.features["ast"].ctypes.data
        or not (clips.features["ast"].flags["C_CONTIGUOUS"])
    )
    np.testing.assert_array_equal(window.features["ast"], clips.features["ast"])


def test_an_epoch_of_windows_has_every_clip_once_with_its_own_embeddings(
    clips: Embeddings, store: EmbeddingStore
) -> None:
    source = streamed(store)
    windows = list(source.windows(0))
    assert 5 <= len(windows) <= 8
    sizes = [len(window.targets) for window in windows]
    assert max(sizes) <= source.window_rows and min(sizes) >= max(sizes) - BLOCK_ROWS  # no window is small
    seen = torch.cat([window.targets for window in windows]).numpy()
    np.testing.assert_array_equal(np.sort(seen), np.arange(2000))
    for stream in BOTH:
        rows = torch.cat([window.features[stream] for window in windows]).numpy()
        np.testing.assert_array_equal(rows, clips.features[stream][seen])


def test_windows_mix_distant_rows_of_the_store_and_differ_only_by_epoch(store: EmbeddingStore) -> None:
    source = streamed(store)
    first = next(iter(source.windows(0))).targets
    assert len(np.unique(first.numpy() // BLOCK_ROWS)) == len(first) // BLOCK_ROWS
    assert first.float().std() > 400  # contiguous rows of the store have 116
    assert torch.equal(first, next(iter(source.windows(0))).targets)
    assert not torch.equal(first, next(iter(source.windows(1))).targets)


def test_no_epoch_has_more_steps_than_announced(store: EmbeddingStore) -> None:
    source = streamed(store)
    for batch_size in (1, 7, 64, 5000):
        steps = sum(-(-len(window.targets) // batch_size) for window in source.windows(0))
        assert steps <= source.steps(batch_size) <= steps + 8


def train(train_clips: object, val: Embeddings, memory_gb: float | None, **changes: object) -> list[TrainedHead]:
    config = head_config(DIMS, CLASSES, hidden=(32,), **changes)
    settings = TrainSettings(epochs=3, batch_size=64, learning_rate=3e-3, memory_gb=memory_gb)
    return train_heads(train_clips, val, [config], [0, 1], settings=settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("normalize", ["none", "zscore"])
def test_streamed_heads_are_as_accurate_as_those_in_memory_also_on_a_store_sorted_by_class(
    tmp_path: Path, normalize: str
) -> None:
    clips, val = sorted_clips(30_000, seed=1), sorted_clips(2000, seed=2)
    store = stored(tmp_path / "train", clips)
    tight = len(clips) * ROW_BYTES / 2 / 1e9  # windows of an eighth
    in_memory = train(clips, val, None, normalize=normalize)
    from_store = train(store.open_rows(), val, tight, normalize=normalize)
    for a, b in zip(in_memory, from_store, strict=True):
        assert b.history.val_accuracy[-1] == pytest.approx(a.history.val_accuracy[-1], abs=0.02)
        assert b.history.val_loss[-1] == pytest.approx(a.history.val_loss[-1], abs=0.05)
        if normalize == "zscore":
            for stream in BOTH:
                x = clips.features[stream]
                for head in (a.head, b.head):
                    found = head.normalizations[stream]
                    np.testing.assert_allclose(found.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-4, atol=1e-5)
                    np.testing.assert_allclose(found.std, x.std(axis=0, dtype=np.float64), rtol=1e-4)


def test_a_streamed_head_is_the_same_alone_and_with_others(store: EmbeddingStore) -> None:
    val, tight = sorted_clips(100, seed=2), 2000 * ROW_BYTES / 2 / 1e9
    company = train(store.open_rows(), val, tight, transform="learned", on="ast")
    config, settings = company[1].head.config, TrainSettings(epochs=3, batch_size=64, learning_rate=3e-3)
    alone = train_heads(
        store.open_rows(), val, [config], [1], settings=TrainSettings(**{**vars(settings), "memory_gb": tight})
    )
    np.testing.assert_allclose(alone[0].history.val_loss, company[1].history.val_loss, rtol=1e-4)


KINDS = [
    {"dims": DIMS},
    {"dims": DIMS, "transform": "scale", "on": "ast", "alpha": 0.5},
    {"dims": DIMS, "transform": "learned", "on": "all"},
    {"dims": DIMS, "fusion": "gate"},
    {"dims": {"timesformer": 6}},
    {"dims": {"ast": 4}, "absent": "zeros"},
]


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of training clips of each read from a store."""
    counts: list[int] = []
    original = StoredEmbeddings.read_rows

    def counting(self: StoredEmbeddings, positions: np.ndarray) -> object:
        if self.store.folder.name == "train":
            counts.append(len(positions))
        return original(self, positions)

    monkeypatch.setattr(StoredEmbeddings, "read_rows", counting)
    return counts


@pytest.mark.parametrize("workers", [1, 2])
def test_heads_of_all_kinds_read_the_store_once_per_epoch_and_are_the_same_alone(
    store: EmbeddingStore, rows_read: list[int], workers: int
) -> None:
    """Train heads as in table 1: both streams, each alone, transformed, other fusions, several seeds."""
    val = sorted_clips(100, seed=2)
    settings = TrainSettings(epochs=3, batch_size=64, memory_gb=2000 * ROW_BYTES / 2 / 1e9)
    configs = [head_config(classes=CLASSES, hidden=(8,), **kind) for kind in KINDS]  # type: ignore[arg-type]
    company = train_heads(store.open_rows(), val, configs, [0, 1, 2], settings=settings, workers=workers)
    assert sum(rows_read) == 3 * 2000
    for position in (4, 5 * 3):  # a stack of one head equals a stack of many
        chosen = company[position]
        alone = train_heads(store.open_rows(), val, [chosen.head.config], [0, 1, 2], settings=settings)
        same = next(one for one in alone if one.seed == chosen.seed)
        for name, value in chosen.head.state_dict().items():
            torch.testing.assert_close(same.head.state_dict()[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("train_all", [sweep, table1], ids=["sweep", "table1"])
def test_sweep_and_table1_read_a_streamed_store_once_per_epoch(
    tmp_path: Path, rows_read: list[int], train_all: Callable[..., object]
) -> None:
    dataset = make_dataset(tmp_path / "toy")
    clips = len(dataset.manifest.of_split("train"))
    settings = TrainSettings(epochs=4, hidden=(8,), memory_gb=1.5e-6)
    train_all(
        dataset, seeds=3, settings=settings, **({"on": ["ast"], "alphas": [0.5, 2]} if train_all is sweep else {})
    )
    assert sum(rows_read) == 4 * clips and max(rows_read) <= 16


def test_prepared_windows_are_not_kept_for_every_head(store: EmbeddingStore) -> None:
    """Otherwise every streamed head would hold the memory of a window."""
    config = head_config(DIMS, CLASSES, hidden=(8,))
    source = streamed(store)
    stack = Stack([(config, 0)], TrainSettings(), steps=100, device=CPU, moments=[{}], class_weights=None)
    for window in source.windows(0):
        stack.train_window(window._replace(targets=window.targets % 10), lambda: None, keep=False)
        assert stack._prepared is None


MEMORY_TEST = """
import resource, sys
import numpy as np, torch
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.heads.model.config import HeadConfig, HeadSettings
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import train_heads

train, val = (EmbeddingStore(folder).open_rows() for folder in sys.argv[1:3])
config = HeadConfig(train.dims, ("a", "b"), settings=HeadSettings(hidden=(8,)))
def run(): train_heads(train, val, [config], [0], settings=TrainSettings(epochs=1, batch_size=512, memory_gb=0.012))
train_heads(val, val, [config], [0], settings=TrainSettings(epochs=1))  # memory that the libraries take once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
"""


@pytest.mark.slow
def test_training_on_a_store_larger_than_its_memory_stays_within_it(tmp_path: Path) -> None:
    """With 123 MB of features and a limit of 12 MB, the process grows by only a part of the difference."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 40_000), ("val", 100)):
        ids = tuple(f"{name}{i}_000000" for i in range(count))
        x = {m: rng.standard_normal((count, 384), dtype=np.float32) for m in BOTH}
        made = Embeddings(ids, tuple("ab"[i % 2] for i in range(count)), ids, x, recipes={m: {} for m in BOTH})
        stored(tmp_path / name, made, shards=4 if name == "train" else 1)
    arguments = [sys.executable, "-c", MEMORY_TEST, str(tmp_path / "train"), str(tmp_path / "val")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 50

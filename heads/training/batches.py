"""Training clips in windows of rows, from memory or streamed from a store.

A window is the part of an epoch that is in memory. A split that fits into memory is one window. A larger one is cut
into blocks of `BLOCK_ROWS` consecutive clips of the store. Each epoch assigns the blocks to its windows at random. The
next window's blocks are read while the heads train on the current window, and every head shuffles a window's rows with
its own seed. The assignment depends on the epoch alone, and the windows on the store and the memory alone, not on the
streams that a head reads. So all heads that are trained together share one pass over the store per epoch, and each
gives the same result as when trained alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from alphafuse.data.embeddings import Embeddings
from alphafuse.data.store.lazy import EmbeddingSource, StoredEmbeddings
from alphafuse.system.interrupts import submit, wait_for_any

# 98 KB at 1536 numbers. In a store sorted by class (1,000,000 clips, 309 classes, windows of 2%, 2 epochs) validation
# accuracy was 34.7% with a block of each stretch in every window, 31.9% with blocks drawn uniformly, 34.8% in memory
BLOCK_ROWS = 16
WINDOWS_HELD = 3  # windows' worth of memory: the one in use, the one being read, and the reader's buffers


class Window(NamedTuple):
    """Clips in memory.

    features: stream -> (rows, dim) float32, rows of NaN where absent; targets: (rows,) int64.
    """

    features: dict[str, torch.Tensor]
    targets: torch.Tensor

    def to(self, device: torch.device) -> Window:
        """Return the window on a device."""
        return Window({name: x.to(device) for name, x in self.features.items()}, self.targets.to(device))


@dataclass(frozen=True)
class InMemory:
    """A split that fits into memory: each epoch is one window.

    Attributes:
        window: all clips of the split.
    """

    window: Window

    def __len__(self) -> int:
        return len(self.window.targets)

    def windows(self, epoch: int) -> Iterator[Window]:
        """Yield the one window."""
        yield self.window

    def steps(self, batch_size: int) -> int:
        """Batches per epoch."""
        return -(-len(self) // batch_size)


@dataclass(frozen=True)
class Streamed:
    """A split that is read from its store in every epoch.

    Attributes:
        source: the embeddings on disk.
        streams: streams to read.
        targets: (clips,) integers, class indices of all clips of the source.
        window_rows: clips per window, a multiple of `BLOCK_ROWS`.
        device: device of the windows.
    """

    source: EmbeddingSource
    streams: tuple[str, ...]
    targets: np.ndarray
    window_rows: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.targets)

    def with_absolute_paths(self) -> Streamed:
        """Return a copy that works in a process with another working directory."""
        return replace(self, source=self.source.absolute()) if isinstance(self.source, StoredEmbeddings) else self

    def windows(self, epoch: int) -> Iterator[Window]:
        """Yield the epoch's windows; the next one is read in the background."""
        order = self.source.storage_order()
        starts = np.arange(0, len(order), BLOCK_ROWS)
        count = -(-len(starts) * BLOCK_ROWS // self.window_rows)  # windows
        # Every window gets one of each `count` consecutive blocks, chosen at random. So each window samples the whole
        # store evenly, and all classes if the store is sorted by class.
        runs = np.tile(np.arange(count), (-(-len(starts) // count), 1))
        window_of = np.random.default_rng(epoch).permuted(runs, axis=1).ravel()[: len(starts)]
        parts = [part for part in (starts[window_of == window] for window in range(count)) if len(part)]
        with ThreadPoolExecutor(1) as reader:
            coming = submit(reader, self._read, order, parts[0])
            for i in range(len(parts)):
                wait_for_any([coming])
                window = coming.result()
                if i + 1 < len(parts):
                    coming = submit(reader, self._read, order, parts[i + 1])
                yield window

    def _read(self, order: np.ndarray, starts: np.ndarray) -> Window:
        # blocks stay in the order of the store, because heads shuffle the rows
        rows = np.concatenate([order[start : start + BLOCK_ROWS] for start in starts])
        return read_window(self.source, self.streams, self.targets, rows).to(self.device)

    def steps(self, batch_size: int) -> int:
        """Most batches per epoch: the exact number depends on which window gets the block that isn't full."""
        windows = -(-len(self) // self.window_rows)
        return len(self) // batch_size + windows


Source = InMemory | Streamed


def make_source(
    embeddings: EmbeddingSource,
    streams: tuple[str, ...],
    targets: np.ndarray,
    *,
    device: torch.device,
    memory_bytes: int,
) -> Source:
    """Return all clips in memory if their features fit into `memory_bytes`, else a source of windows that do.

    The size counts all streams of the embeddings, even those that are not read, so that windows don't depend on
    `streams`.
    """
    row_bytes = 4 * sum(embeddings.dims.values())
    if len(embeddings) * row_bytes <= memory_bytes:
        if isinstance(embeddings, Embeddings):  # already in memory: no copy
            features = {name: torch.from_numpy(embeddings.features[name]) for name in streams}
            return InMemory(Window(features, torch.from_numpy(targets)).to(device))
        return InMemory(read_window(embeddings, streams, targets, np.arange(len(embeddings))).to(device))
    if isinstance(embeddings, StoredEmbeddings):
        embeddings = embeddings.only(streams)
    blocks = memory_bytes // (WINDOWS_HELD * row_bytes * BLOCK_ROWS)
    return Streamed(embeddings, streams, targets.astype(np.int32), max(1, blocks) * BLOCK_ROWS, device)


def read_window(embeddings: EmbeddingSource, streams: tuple[str, ...], targets: np.ndarray, rows: np.ndarray) -> Window:
    """Return these rows as a window on the CPU."""
    features, own = embeddings.read_rows(rows), targets[rows].astype(np.int64, copy=False)
    return Window({name: torch.from_numpy(features[name]) for name in streams}, torch.from_numpy(own))

"""Training clips as the heads see them: windows of shuffled rows, from memory or streamed from a store.

A window is a part of an epoch that is held in memory. A split that fits is one window. A larger one is cut into blocks
of `BLOCK_ROWS` clips that lie side by side in the store. Each epoch deals the blocks out to its windows by lot;
the next window's blocks are read while the heads train on the last one's, and every head shuffles the rows of a window
by its own seed. The lots depend on the epoch alone, and windows on the store and the memory alone, not on what a head
reads. So heads of all kinds that are trained together read the store once per epoch, and each comes out as it does
alone.
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
# accuracy was 34.7% with a block of each stretch in every window, 31.9% with blocks from anywhere, 34.8% in memory
BLOCK_ROWS = 16
WINDOWS_HELD = 3  # the one in use, the one being read, and what reading needs in between


class Window(NamedTuple):
    """Clips in memory.

    features: modality -> (rows, dim) float32, rows of NaN where absent; targets: (rows,) int64.
    """

    features: dict[str, torch.Tensor]
    targets: torch.Tensor

    def to(self, device: torch.device) -> Window:
        """The same on a device."""
        return Window({name: x.to(device) for name, x in self.features.items()}, self.targets.to(device))


@dataclass(frozen=True)
class InMemory:
    """A split that fits: each epoch is one window.

    Attributes:
        window: all its clips.
    """

    window: Window

    def __len__(self) -> int:
        return len(self.window.targets)

    def windows(self, epoch: int) -> Iterator[Window]:
        """The one window."""
        yield self.window

    def steps(self, batch_size: int) -> int:
        """Batches per epoch."""
        return -(-len(self) // batch_size)


@dataclass(frozen=True)
class Streamed:
    """A split that is read from its store anew in every epoch.

    Attributes:
        source: the embeddings on disk.
        modalities: what is read of them.
        targets: (clips,) integers, of all clips of the source.
        window_rows: clips per window, a multiple of `BLOCK_ROWS`.
        device: where windows go.
    """

    source: EmbeddingSource
    modalities: tuple[str, ...]
    targets: np.ndarray
    window_rows: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.targets)

    def anywhere(self) -> Streamed:
        """The same, whatever folder a process works in."""
        return replace(self, source=self.source.absolute()) if isinstance(self.source, StoredEmbeddings) else self

    def windows(self, epoch: int) -> Iterator[Window]:
        """The epoch's windows; the next one is read meanwhile."""
        order = self.source.storage_order()
        starts = np.arange(0, len(order), BLOCK_ROWS)
        count = -(-len(starts) * BLOCK_ROWS // self.window_rows)  # windows
        # of each `count` blocks that follow each other every window gets one, by lot: so each has its share of all
        # stretches of the store, and of all classes where it is sorted by class
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
        # blocks in the order of the store: heads shuffle the rows anyway
        rows = np.concatenate([order[start : start + BLOCK_ROWS] for start in starts])
        return read_window(self.source, self.modalities, self.targets, rows).to(self.device)

    def steps(self, batch_size: int) -> int:
        """Batches per epoch, at most: the block that isn't full may fall into any window."""
        windows = -(-len(self) // self.window_rows)
        return len(self) // batch_size + windows


Source = InMemory | Streamed


def make_source(
    embeddings: EmbeddingSource,
    modalities: tuple[str, ...],
    targets: np.ndarray,
    *,
    device: torch.device,
    memory_bytes: int,
) -> Source:
    """All clips in memory when their features fit into `memory_bytes`, else windows that keep below it.

    What counts is all that the embeddings hold of a clip, also where only some `modalities` are read: see above.
    """
    row_bytes = 4 * sum(embeddings.dims.values())
    if len(embeddings) * row_bytes <= memory_bytes:
        if isinstance(embeddings, Embeddings):  # in memory already: no copy
            features = {name: torch.from_numpy(embeddings.features[name]) for name in modalities}
            return InMemory(Window(features, torch.from_numpy(targets)).to(device))
        return InMemory(read_window(embeddings, modalities, targets, np.arange(len(embeddings))).to(device))
    if isinstance(embeddings, StoredEmbeddings):
        embeddings = embeddings.only(modalities)
    blocks = memory_bytes // (WINDOWS_HELD * row_bytes * BLOCK_ROWS)
    return Streamed(embeddings, modalities, targets.astype(np.int32), max(1, blocks) * BLOCK_ROWS, device)


def read_window(
    embeddings: EmbeddingSource, modalities: tuple[str, ...], targets: np.ndarray, rows: np.ndarray
) -> Window:
    """These rows as a window on the CPU."""
    features, own = embeddings.read_rows(rows), targets[rows].astype(np.int64, copy=False)
    return Window({name: torch.from_numpy(features[name]) for name in modalities}, torch.from_numpy(own))

"""Embedded batches -> shards, in a thread of its own, so that models never wait for the disk."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from types import TracebackType
from typing import Any

from alphafuse.data.store.store import EmbeddingStore
from alphafuse.extract.jobs import Batch, join_batches
from alphafuse.system.interrupts import hold_interrupts

SHARD_BYTES = 64 * 2**20  # of embeddings; more than that is written at once
Written = Callable[[Sequence[str]], object]


class _Word(Enum):
    """What is said to the thread, beside batches."""

    FLUSH = auto()
    END = auto()


class ShardWriter:
    """Takes batches and appends them to a store as shards; use it as a context manager.

    Leaving the block writes all that was taken, also when an error or an interrupt leaves it.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        recipes: Mapping[str, Mapping[str, Any]],
        *,
        provenance: Callable[[], dict[str, Any]],
        flush_seconds: float,
        written: Written = lambda clip_ids: None,
    ) -> None:
        """Start the thread.

        Args:
            store: where to.
            recipes: modality -> what decides its numbers.
            provenance: makes what a shard records of its making.
            flush_seconds: no batch waits longer than this for its shard.
            written: told, in the thread, the clip_ids of each shard once it is there.
        """
        self._store, self._recipes, self._provenance = store, recipes, provenance
        self._flush_seconds, self._written = flush_seconds, written
        self._queue: queue.SimpleQueue[Batch | _Word] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="shard writer", daemon=True)
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Take a batch; from any thread.

        Raises:
            AlphafuseError: an earlier batch could not be written.
        """
        if self._error is not None:
            raise self._error
        self._queue.put(batch)

    def flush(self) -> None:
        """Have what was taken until now written soon; doesn't wait for it."""
        self._queue.put(_Word.FLUSH)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with hold_interrupts():  # the first one at least: what was taken is written
            self._queue.put(_Word.END)
            self._thread.join()
        if self._error is not None and self._error is not error:
            raise self._error

    def _run(self) -> None:
        batches: list[Batch] = []
        held_bytes, due = 0, 0.0
        try:
            while True:
                batch = self._next(due - time.monotonic() if batches else None)
                if isinstance(batch, Batch):
                    if not batches:
                        due = time.monotonic() + self._flush_seconds
                    batches.append(batch)
                    held_bytes += batch.nbytes
                is_due = isinstance(batch, _Word) or time.monotonic() >= due or held_bytes >= SHARD_BYTES
                if batches and is_due:
                    self._write(batches)
                    batches, held_bytes = [], 0
                if batch is _Word.END:
                    return
        except BaseException as error:  # whoever puts the next batch, or leaves, gets it
            self._error = error

    def _next(self, seconds: float | None) -> Batch | _Word | None:
        """The next batch, or word; None when there was none for so many seconds."""
        try:
            return self._queue.get(timeout=None if seconds is None else max(0.0, seconds))
        except queue.Empty:
            return None

    def _write(self, batches: Sequence[Batch]) -> None:
        rows = join_batches(batches, self._recipes)
        self._store.write(rows, provenance=self._provenance())
        self._written(rows.clip_ids)

"""Extract on this machine: claim clips -> decode and embed them -> write shards in a separate thread.

Stored embeddings stay, so a second call extracts only what is missing. Simultaneous calls, in any processes, share the
work (`alphafuse.system.claims`).
"""

from __future__ import annotations

import queue
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from enum import Enum, auto
from itertools import chain
from types import TracebackType
from typing import Any

import numpy as np

from alphafuse.data.store.store import EmbeddingStore
from alphafuse.extract.jobs import Batch, Done, Job, Jobs, join_batches
from alphafuse.extract.missing import Work
from alphafuse.system.claims import Claims
from alphafuse.system.interrupts import hold_interrupts

from .embedder import DecodedJobs, Embedder

CLAIMED_AT_ONCE = 16  # clips: few enough to leave some for other processes, enough to list the store rarely
POLL_SECONDS = 0.5  # time between checks whether other processes have finished their clips
LIST_SECONDS = 10.0  # time between checks of what others have stored, if there are no claims
SHARD_BYTES = 64 * 2**20  # when so many bytes of embeddings wait, a shard is written
Written = Callable[[Sequence[str]], object]


class LocalEngine:
    """An embedder that fills stores."""

    def __init__(self, embedder: Embedder, *, part: tuple[int, int] = (0, 1)) -> None:
        """Use an embedder.

        Args:
            embedder: decodes and embeds clips.
            part: (number of this engine, number of simultaneous engines): without locks, each engine does its own part.
        """
        self._embedder, self._part = embedder, part

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """Stream -> everything that decides its numbers."""
        return self._embedder.recipes

    def fill(self, work: Work) -> Generator[Done, None, None]:
        """Extract what is missing; yield counts of stored clips. If it ends early, finished embeddings are stored."""
        with Claims(work.store.folder) as claims:
            writer = ShardWriter(
                EmbeddingStore(work.store.folder),
                work.recipes,
                provenance=self._embedder.provenance,
                flush_seconds=self._embedder.settings.flush_seconds,
                written=claims.release,
            )
            with writer, closing(self._fill(work, claims, writer)) as filling:
                for done in filling:
                    yield from writer.written_since()
                    yield done
            yield from writer.written_since()
            yield Done(is_shared=claims.is_shared)

    def _fill(self, work: Work, claims: Claims, writer: ShardWriter) -> Generator[Done, None, None]:
        """Do all jobs that no other process has claimed; retry those of others until they are done."""
        jobs = work.jobs if claims.is_shared else self._own_part(work.jobs)
        embedded = 0

        def embed(decoded_jobs: DecodedJobs) -> int:
            writer.put(self._embedder.embed(decoded_jobs))
            return len(decoded_jobs)

        while jobs:
            claimed = _ClaimedJobs(jobs, work, claims)
            first = next(claimed, None)
            if first is not None:
                with closing(self._embedder.map(embed, chain((first,), claimed))) as batches:
                    for clips in batches:
                        embedded += clips
                        yield Done(figures={"embedded": embedded})
                writer.flush()  # other processes may be waiting for these clips
            yield Done(elsewhere=claimed.done_elsewhere)
            if first is None and claimed.busy:
                time.sleep(POLL_SECONDS)
            jobs = jobs.take(np.array(claimed.busy, np.int64))

    def _own_part(self, jobs: Jobs) -> Jobs:
        """Return this engine's part of the jobs, for stores without claims, from a random position on.

        So simultaneous extractions do different clips for most of the time, and each skips clips that it finds stored.
        """
        number, count = self._part
        parts = np.array([zlib.crc32(clip_id.encode()) % count for clip_id in jobs.clips.clip_ids])
        own = np.flatnonzero(parts == number)
        return jobs.take(np.roll(own, np.random.default_rng().integers(max(1, len(own)))))


class _ClaimedJobs(Iterator[Job]):
    """Iterates over the jobs that no other process does or has done; it claims a few at a time.

    Attributes:
        busy: positions of the jobs that another process has claimed.
        done_elsewhere: clips that another process has done meanwhile.
    """

    def __init__(self, jobs: Jobs, work: Work, claims: Claims) -> None:
        self.busy: list[int] = []
        self.done_elsewhere = 0
        self._jobs = self._claim(jobs, work, claims)

    def __next__(self) -> Job:
        return next(self._jobs)

    def _claim(self, jobs: Jobs, work: Work, claims: Claims) -> Iterator[Job]:
        listed_at = time.monotonic()  # `work.jobs` listed the store
        for start in range(0, len(jobs), CLAIMED_AT_ONCE):
            some = jobs[start : start + CLAIMED_AT_ONCE]
            got = set(claims.claim(some.clips.clip_ids))
            is_own = np.array([clip_id in got for clip_id in some.clips.clip_ids])
            self.busy += (start + np.flatnonzero(~is_own)).tolist()
            # after the claim: another process may have stored them before it
            look = claims.is_shared or time.monotonic() - listed_at >= LIST_SECONDS
            missing = work.missing(some.take(is_own), look=look)
            listed_at = time.monotonic() if look else listed_at
            done = got.difference(missing.clips.clip_ids)
            claims.release(done)
            self.done_elsewhere += len(done)
            yield from missing


class _Request(Enum):
    """Requests to the writer thread other than batches to write."""

    FLUSH = auto()
    END = auto()


class ShardWriter:
    """A context manager that appends batches to a store as shards, in a thread.

    Leaving the block writes all batches, also after an error or an interrupt.
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
            store: the store to append to.
            recipes: stream -> everything that decides its numbers.
            provenance: returns the provenance that a shard records.
            flush_seconds: longest time that a batch waits for its shard.
            written: called, in the thread, with the clip_ids of each shard after it is written.
        """
        self._store, self._recipes, self._provenance = store, recipes, provenance
        self._flush_seconds, self._written = flush_seconds, written
        self._queue: queue.SimpleQueue[Batch | _Request] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="shard writer", daemon=True)
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Add a batch; may be called from any thread.

        Raises:
            AlphafuseError: an earlier batch could not be written.
        """
        if self._error is not None:
            raise self._error
        self._queue.put(batch)

    def flush(self) -> None:
        """Request that all batches until now are written soon; doesn't wait."""
        self._queue.put(_Request.FLUSH)

    def written_since(self) -> list[Done]:
        """Return counts of what was written since the last call; doesn't wait."""
        return [self._done.get() for _ in range(self._done.qsize())]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with hold_interrupts():  # the first interrupt is held, so that all batches are written
            self._queue.put(_Request.END)
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
                is_due = isinstance(batch, _Request) or time.monotonic() >= due or held_bytes >= SHARD_BYTES
                if batches and is_due:
                    self._write(batches)
                    batches, held_bytes = [], 0
                if batch is _Request.END:
                    return
        except BaseException as error:  # raised when the caller adds the next batch or leaves the block
            self._error = error

    def _next(self, seconds: float | None) -> Batch | _Request | None:
        """Return the next batch or request; None if there is none within `seconds`."""
        try:
            return self._queue.get(timeout=None if seconds is None else max(0.0, seconds))
        except queue.Empty:
            return None

    def _write(self, batches: Sequence[Batch]) -> None:
        rows = join_batches(batches, self._recipes)
        self._store.write(rows, provenance=self._provenance())
        self._done.put(Done.of(batches))
        self._written(rows.clip_ids)

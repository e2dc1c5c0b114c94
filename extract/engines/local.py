"""This machine: claim clips -> decode and embed them -> write them as shards, in a thread of its own.

What the store has already is left alone, so a second call does only what is missing; several calls at once, in any
processes, share the work (`alphafuse.system.claims`).
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
from alphafuse.extract.work import Work
from alphafuse.system.claims import Claims
from alphafuse.system.interrupts import hold_interrupts

from .embedder import DecodedJobs, Embedder

CLAIMED_AT_ONCE = 16  # clips: so little that another process finds some, so many that the store is rarely listed
POLL_SECONDS = 0.5  # between two looks at whether other processes have finished their clips
LOOK_SECONDS = 10.0  # between two looks at what others have stored, where no claims say who does what
SHARD_BYTES = 64 * 2**20  # of embeddings; more than that is written at once
Written = Callable[[Sequence[str]], object]


class LocalEngine:
    """An embedder that fills stores."""

    def __init__(self, embedder: Embedder, *, part: tuple[int, int] = (0, 1)) -> None:
        """Use an embedder.

        Args:
            embedder: the encoders at work.
            part: this engine's number among so many at once: where locks can't say who does which clip, each does its
                own part.
        """
        self._embedder, self._part = embedder, part

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """modality -> everything that decides its numbers."""
        return self._embedder.recipes

    def fill(self, work: Work) -> Generator[Done, None, None]:
        """Do what is missing, and yield what is in the store. What is embedded when it ends early is written too."""
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
        """Do all jobs that no other process does; come back to those of others until they are done."""
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
                writer.flush()  # others may be waiting for these clips
            yield Done(elsewhere=claimed.done_elsewhere)
            if first is None and claimed.busy:
                time.sleep(POLL_SECONDS)
            jobs = jobs.take(np.array(claimed.busy, np.int64))

    def _own_part(self, jobs: Jobs) -> Jobs:
        """This engine's part where no claims say who does what, begun at a place drawn by lot.

        Another extraction at the same time meets this one late, if at all, and each leaves out what it finds stored.
        """
        number, count = self._part
        parts = np.array([zlib.crc32(clip_id.encode()) % count for clip_id in jobs.clips.clip_ids])
        own = np.flatnonzero(parts == number)
        return jobs.take(np.roll(own, np.random.default_rng().integers(max(1, len(own)))))


class _ClaimedJobs(Iterator[Job]):
    """The jobs that no other process does or has done, claimed some at a time.

    Attributes:
        busy: positions of the jobs that another process does now.
        done_elsewhere: clips that another process has done meanwhile.
    """

    def __init__(self, jobs: Jobs, work: Work, claims: Claims) -> None:
        self.busy: list[int] = []
        self.done_elsewhere = 0
        self._jobs = self._claim(jobs, work, claims)

    def __next__(self) -> Job:
        return next(self._jobs)

    def _claim(self, jobs: Jobs, work: Work, claims: Claims) -> Iterator[Job]:
        looked = time.monotonic()  # `work.jobs` did
        for start in range(0, len(jobs), CLAIMED_AT_ONCE):
            some = jobs[start : start + CLAIMED_AT_ONCE]
            got = set(claims.claim(some.clips.clip_ids))
            is_own = np.array([clip_id in got for clip_id in some.clips.clip_ids])
            self.busy += (start + np.flatnonzero(~is_own)).tolist()
            # now that they are ours: another process may have done them before
            look = claims.is_shared or time.monotonic() - looked >= LOOK_SECONDS
            missing = work.missing(some.take(is_own), look=look)
            looked = time.monotonic() if look else looked
            done = got.difference(missing.clips.clip_ids)
            claims.release(done)
            self.done_elsewhere += len(done)
            yield from missing


class _Request(Enum):
    """What the thread is asked for, beside writing batches."""

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
            written: called, in the thread, with the clip_ids of each shard once it is there.
        """
        self._store, self._recipes, self._provenance = store, recipes, provenance
        self._flush_seconds, self._written = flush_seconds, written
        self._queue: queue.SimpleQueue[Batch | _Request] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
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
        self._queue.put(_Request.FLUSH)

    def written_since(self) -> list[Done]:
        """What was written since this was last asked; never waits."""
        return [self._done.get() for _ in range(self._done.qsize())]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with hold_interrupts():  # the first one at least: what was taken is written
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
        except BaseException as error:  # raised to the caller that puts the next batch or leaves the block
            self._error = error

    def _next(self, seconds: float | None) -> Batch | _Request | None:
        """The next batch, or request; None when there was none for so many seconds."""
        try:
            return self._queue.get(timeout=None if seconds is None else max(0.0, seconds))
        except queue.Empty:
            return None

    def _write(self, batches: Sequence[Batch]) -> None:
        rows = join_batches(batches, self._recipes)
        self._store.write(rows, provenance=self._provenance())
        self._done.put(Done.of(batches))
        self._written(rows.clip_ids)

"""Stage one: the clips of a split -> decode workers -> both encoders -> shards of the embedding store.

    jobs (claimed) -> decode processes -> batches -> model threads -> writer thread -> shards

`embedder` decodes and embeds, and a thread of its own appends a shard every `flush_seconds`. What the store has already
is left alone, so a second call does only what is missing; several calls at once, in any processes, share the work
(`alphafuse.data.store.claims`). What goes wrong with a clip is recorded with its reason, and the run goes on.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from alphafuse.data.columns import AT_ONCE
from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Failure
from alphafuse.data.store.claims import Claims
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.extract.decoding.decode import Decoded
from alphafuse.extract.engines.embedder import Embedder
from alphafuse.extract.engines.ray_stages import library_versions
from alphafuse.extract.engines.writer import ShardWriter
from alphafuse.system.cluster import connected
from alphafuse.system.devices import choose_device, list_devices

from .jobs import Done, Job, Jobs
from .settings import ExtractSettings

if TYPE_CHECKING:
    from alphafuse.extract.encoders.encoder import Encoder, Placement

CLAIMED_AT_ONCE = 16  # clips: so little that another process finds some, so many that the store is rarely listed
POLL_SECONDS = 0.5  # between two looks at whether other processes have finished their clips
LOOK_SECONDS = 10.0  # between two looks at what others have stored, where no claims say who does what


@dataclass(frozen=True)
class ExtractReport:
    """What one split's extraction did.

    Attributes:
        split: "train", "val" or "test".
        clips: clips of the split.
        already: clips that were done before, or meanwhile by another process.
        embedded: modality -> embeddings made now.
        failures: failures recorded now.
        seconds: wall time of this split, without loading the models.
        decode_seconds: of one core, spent on decoding.
        embed_seconds: spent in the models, of one core on the CPU, of the device elsewhere.
        is_shared: whether other processes could share the work; False where the file system has no locks.
        store: where the embeddings are.

    >>> from alphafuse import Dataset, ExtractSettings, extract_embeddings
    >>> dataset = Dataset.open("demo")
    >>> (report,) = extract_embeddings(dataset, ["val"], ExtractSettings(modalities=("ast",)))
    >>> report.store, report.embedded, report.failures
    (EmbeddingStore('demo/stores/val'), {'ast': 0}, ())
    """

    split: str
    clips: int
    already: int
    embedded: dict[str, int]
    failures: tuple[Failure, ...]
    seconds: float
    decode_seconds: float
    embed_seconds: float
    is_shared: bool
    store: EmbeddingStore


class Progress(Protocol):
    """Who wants to know how extraction goes; told by several threads. Subclasses leave out what they don't care for."""

    def start(self, split: str, *, clips: int, already: int) -> None:
        """A split begins: `clips` to do, `already` done before."""

    def clips(self, *, complete: int, incomplete: int) -> None:
        """So many more clips are done; of the `incomplete` ones an embedding couldn't be made."""

    def elsewhere(self, clips: int) -> None:
        """So many more clips are done, by another process."""
        return

    def stages(self, **counts: int) -> None:
        """Where work is spread over machines: clips that each stage has done, and the nodes that there are."""
        return

    def stop(self) -> None:
        """The split is finished or interrupted."""
        return


class Extractor(Embedder):
    """An embedder that knows what a dataset's stores lack, and fills them."""

    def __init__(
        self,
        dataset: Dataset,
        settings: ExtractSettings,
        *,
        encoders: Mapping[str, Encoder] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Load the encoders, unless they are given; `EncoderError` when one can't be had.

        `part` is this one's number among so many extractors at once: where locks can't say who does which clip, each
        does its own part.
        """
        if encoders is None:
            from alphafuse.extract.encoders.encoder import load_encoders

            names = {"timesformer": settings.timesformer or dataset.timesformer, "ast": settings.ast or dataset.ast}
            placement = self._placement(settings, settings.protocol or dataset.protocol)
            encoders = load_encoders({name: names[name] for name in settings.modalities}, placement)
        super().__init__({name: encoders[name] for name in settings.modalities}, settings)
        self.dataset = dataset
        self._part = part
        self._stores: dict[str, EmbeddingStore] = {}

    def pending(self, split: str) -> Jobs:
        """What the split's store lacks; `RecipeMismatchError` when it was made under other settings."""
        store, clips = self._store(split), self.dataset.manifest.require_split(split)
        store.require_recipes(self.recipes)
        everything = {modality: np.ones(len(clips), bool) for modality in self._modalities}
        return self._missing(store, Jobs(clips, self.dataset.path_of, everything))

    def extract(self, split: str, *, progress: Progress | None = None) -> ExtractReport:
        """Extract what the split's store lacks.

        Args:
            split: "train", "val" or "test".
            progress: is told of clips as they are done.

        Raises:
            DatasetError: the clip folder is gone.
            RecipeMismatchError: the store was made under other settings.
            StoreError, AlphafuseError: the store can't be written.

        Also when it is interrupted, what was embedded until then is in the store.
        """
        jobs, store = self.pending(split), self._store(split)
        self.dataset.require_clips()
        total = len(self.dataset.manifest.of_split(split))
        tally = Tally(progress, self._modalities)
        if progress is not None:
            progress.start(split, clips=len(jobs), already=total - len(jobs))
        started, is_shared = time.monotonic(), True
        try:
            if jobs:
                is_shared = self._fill(jobs, store, tally)
        finally:
            if progress is not None:
                progress.stop()
        return ExtractReport(
            split,
            total,
            total - tally.clips,
            tally.embedded,
            tuple(tally.failures),
            time.monotonic() - started,
            tally.decode_seconds,
            tally.embed_seconds,
            is_shared,
            store,
        )

    @staticmethod
    def _placement(settings: ExtractSettings, protocol: str) -> Placement:
        """Where and how this process runs the encoders."""
        from alphafuse.extract.encoders.encoder import Placement

        return Placement(choose_device(settings.device), settings.precision, protocol, compile=settings.compile)

    @property
    def _modalities(self) -> tuple[str, ...]:
        return self.settings.modalities

    def _store(self, split: str) -> EmbeddingStore:
        """The split's store, one object, so that each shard is read once to see what is finished."""
        return self._stores.setdefault(split, self.dataset.store(split))

    def _missing(self, store: EmbeddingStore, jobs: Jobs, *, look: bool = True) -> Jobs:
        """The jobs that are left, each with the modalities that the store lacks now (or did at the last look)."""
        lacking = {modality: np.ones(len(jobs), bool) for modality in self._modalities}
        for start in range(0, len(jobs), AT_ONCE):
            clip_ids = jobs.clips.clip_ids.strings(start, start + AT_ONCE)
            finished = store.finished(
                modalities=self._modalities, retry_failed=self.settings.retry_failed, among=clip_ids, look=look
            )
            for modality, mask in lacking.items():
                mask[start : start + len(clip_ids)] = [clip_id not in finished[modality] for clip_id in clip_ids]
        return jobs.still(lacking)

    def _fill(self, jobs: Jobs, store: EmbeddingStore, tally: Tally) -> bool:
        """Do these jobs, by whatever machines; whether other processes could share the work."""
        with Claims(store.folder) as claims, self._writer(store, claims) as writer:
            if not claims.is_shared:
                number, count = self._part
                parts = np.array([zlib.crc32(clip_id.encode()) % count for clip_id in jobs.clips.clip_ids])
                own = np.flatnonzero(parts == number)
                # begun at a place drawn by lot: another extraction at the same time meets this one late, if at all, and
                # each leaves out what it finds stored
                jobs = jobs.take(np.roll(own, np.random.default_rng().integers(max(1, len(own)))))
            self._extract(jobs, store, claims, writer, tally)
            return claims.is_shared

    def _extract(self, jobs: Jobs, store: EmbeddingStore, claims: Claims, writer: ShardWriter, tally: Tally) -> None:
        """Do all jobs that no other process does; come back to those of others until somebody has done them."""
        embed = partial(self._embed, writer=writer, tally=tally)
        while jobs:
            elsewhere: list[int] = []
            mine = self._claimed(jobs, store, claims, elsewhere, tally)
            first = next(mine, None)
            if first is None and elsewhere:
                time.sleep(POLL_SECONDS)
            elif first is not None:
                self.run(chain((first,), mine), embed)
                writer.flush()  # others may be waiting for these clips
            jobs = jobs.take(np.array(elsewhere, np.int64))

    def _claimed(
        self, jobs: Jobs, store: EmbeddingStore, claims: Claims, elsewhere: list[int], tally: Tally
    ) -> Iterator[Job]:
        """The jobs that no other process does; positions of those that one does are put into `elsewhere`."""
        looked = time.monotonic()  # `pending` did
        for start in range(0, len(jobs), CLAIMED_AT_ONCE):
            some = jobs[start : start + CLAIMED_AT_ONCE]
            got = set(claims.claim(some.clips.clip_ids))
            is_own = np.array([clip_id in got for clip_id in some.clips.clip_ids])
            elsewhere += (start + np.flatnonzero(~is_own)).tolist()
            # now that they are ours: another process may have done them before
            look = claims.is_shared or time.monotonic() - looked >= LOOK_SECONDS
            missing = self._missing(store, some.take(is_own), look=look)
            looked = time.monotonic() if look else looked
            done = got.difference(missing.clips.clip_ids)
            claims.release(done)
            tally.done_elsewhere(len(done))
            yield from missing

    def _embed(self, decoded_jobs: Sequence[tuple[Job, Decoded]], *, writer: ShardWriter, tally: Tally) -> None:
        batch = self.embed(decoded_jobs)
        writer.put(batch)
        tally.add(Done.of([batch]))

    def _writer(self, store: EmbeddingStore, claims: Claims) -> ShardWriter:
        return ShardWriter(
            EmbeddingStore(store.folder),
            self.recipes,
            provenance=self._provenance,
            flush_seconds=self.settings.flush_seconds,
            written=claims.release,
        )

    @property
    def _device_name(self) -> str:
        """Where the models run, as shards record it."""
        return str(self.device)

    def _provenance(self) -> dict[str, Any]:
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": self._device_name,
            "encoders": {
                modality: {"name": encoder.name, "revision": encoder.revision}
                for modality, encoder in self.encoders.items()
            },
            "libraries": library_versions(),
        }


def extract_embeddings(
    dataset: Dataset,
    splits: Sequence[str],
    settings: ExtractSettings | None = None,
    *,
    progress: Progress | None = None,
) -> list[ExtractReport]:
    """Extract what the stores of these splits lack: `Extractor` in one call.

    >>> from alphafuse import Dataset, extract_embeddings
    >>> dataset = Dataset.open("demo")
    >>> reports = extract_embeddings(dataset, ["train", "val", "test"])  # does only what is missing
    >>> [(report.split, report.clips, report.already) for report in reports]
    [('train', 230, 230), ('val', 26, 26), ('test', 192, 192)]
    """
    for split in splits:
        dataset.manifest.require_split(split)
    settings = settings or ExtractSettings()
    devices = list_devices(settings.device)
    if settings.engine == "local" and len(devices) > 1:
        from alphafuse.extract.engines.devices import extract_on_devices

        return extract_on_devices(dataset, splits, replace(settings, device=",".join(devices)), progress=progress)
    settings = replace(settings, device=devices[0])
    with _extractor(dataset, settings) as extractor:
        for split in splits:
            extractor.pending(split)  # refuse a store of other settings before any work
        return [extractor.extract(split, progress=progress) for split in splits]


@contextmanager
def _extractor(dataset: Dataset, settings: ExtractSettings) -> Iterator[Extractor]:
    """What the settings' engine wants."""
    if settings.engine == "local":
        yield Extractor(dataset, settings)
        return
    from alphafuse.extract.engines.ray import RayExtractor

    with connected(settings.address, memory_bytes=int(settings.max_memory_gb * 1e9)) as ray:
        yield RayExtractor(dataset, settings, ray=ray)


class Tally:
    """What was done, counted by several threads."""

    def __init__(self, progress: Progress | None, modalities: Sequence[str]) -> None:
        self.clips = 0
        self.embedded = dict.fromkeys(modalities, 0)
        self.failures: list[Failure] = []
        self.decode_seconds = self.embed_seconds = 0.0
        self._progress, self._lock = progress, threading.Lock()

    def add(self, done: Done) -> None:
        """Clips that were embedded, or recorded as failed, here."""
        incomplete = len({failure.clip_id for failure in done.failures})
        with self._lock:
            self.decode_seconds += done.decode_seconds
            self.embed_seconds += done.embed_seconds
            self.clips += done.clips
            self.failures += done.failures
            for modality in self.embedded:
                self.embedded[modality] += done.embedded.get(modality, 0)
            if self._progress is not None:
                self._progress.clips(complete=done.clips - incomplete, incomplete=incomplete)

    def done_elsewhere(self, clips: int) -> None:
        """Clips that another process did meanwhile."""
        with self._lock:
            if self._progress is not None and clips:
                self._progress.elsewhere(clips)

    def stages(self, **counts: int) -> None:
        """How far each stage is, beyond the clips that are done."""
        if self._progress is not None:
            self._progress.stages(**counts)

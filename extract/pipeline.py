"""Stage one: the clips of a split -> decode workers -> encoders -> shards of the embedding store.

An engine (`engines`) does what is missing (`work`) and yields what it has stored. What is in the store already is left
alone, so a second call does only what is missing. What goes wrong with a clip is recorded with its reason, and the rest
goes on.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Failure
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.system.devices import list_devices
from alphafuse.system.progress import NO_PROGRESS, Progress

from .jobs import Done
from .settings import ExtractSettings
from .work import Work


class Engine(Protocol):
    """Fills stores."""

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        """Modality -> everything that decides its numbers."""

    def fill(self, work: Work) -> Generator[Done, None, None]:
        """Do what is missing; yield clips once their shard is written, wherever that happens."""


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


def extract_embeddings(
    dataset: Dataset,
    splits: Sequence[str],
    settings: ExtractSettings | None = None,
    *,
    progress: Progress = NO_PROGRESS,
) -> list[ExtractReport]:
    """Extract what the stores of these splits lack. Also when it is interrupted, what is embedded then is stored.

    Args:
        dataset: the root.
        splits: some of "train", "val", "test".
        settings: how to extract; by default with the root's encoders, on this machine.
        progress: callbacks; a round for each split, `advance` counts clips that are stored.

    Raises:
        DatasetError: there is no such split, it has no clips, or the clip folder is gone.
        EncoderError, DeviceError: the encoders can't be loaded, or there is no such device.
        RecipeMismatchError: a store was made with other recipes; nothing is done then.
        StoreError: a store can't be written.
        ClusterError: Ray isn't installed, or the cluster failed.

    >>> from alphafuse import Dataset, extract_embeddings
    >>> dataset = Dataset.open("demo")
    >>> reports = extract_embeddings(dataset, ["train", "val", "test"])  # does only what is missing
    >>> [(report.split, report.clips, report.already) for report in reports]
    [('train', 230, 230), ('val', 26, 26), ('test', 192, 192)]
    """
    settings = settings or ExtractSettings()
    for split in splits:
        dataset.manifest.require_split(split)
    reports = []
    with choose_engine(dataset, settings) as engine:
        works = [Work(dataset, split, engine.recipes, retry_failed=settings.retry_failed) for split in splits]
        for work in works:  # all stores have been looked at: none was made with other recipes
            dataset.require_clips()
            reports.append(fill_store(engine, work, progress))
    return reports


@contextmanager
def choose_engine(dataset: Dataset, settings: ExtractSettings) -> Iterator[Engine]:
    """The engine that the settings ask for, with its encoders loaded: local, one process per device, or Ray."""
    devices = list_devices(settings.device)
    if settings.engine == "ray":
        from alphafuse.system.cluster import connected

        from .engines.embedder import load_encoders
        from .engines.ray import RayEngine

        with connected(settings.address, memory_bytes=int(settings.max_memory_gb * 1e9)) as ray:
            encoders = load_encoders(dataset, replace(settings, compile=False), "cpu")  # nodes compile for themselves
            yield RayEngine(ray, encoders, replace(settings, device=devices[0]))
    elif len(devices) > 1:
        from .engines.devices import DevicesEngine

        with DevicesEngine(dataset, settings, devices) as engine:
            yield engine
    else:
        from .engines.embedder import Embedder, load_encoders
        from .engines.local import LocalEngine

        yield LocalEngine(Embedder(load_encoders(dataset, settings, devices[0]), settings))


def fill_store(engine: Engine, work: Work, progress: Progress = NO_PROGRESS) -> ExtractReport:
    """Have an engine do what one split's store lacks."""
    started, tally = time.monotonic(), _Tally(work, progress)
    try:
        if work.jobs:
            with closing(engine.fill(work)) as filling:
                for done in filling:  # its clips are in the store
                    tally.add(done)
    finally:
        progress.stop()
    return tally.report(time.monotonic() - started)


class _Tally:
    """Counts what an engine yields, for progress and the report."""

    def __init__(self, work: Work, progress: Progress) -> None:
        self._work, self._progress = work, progress
        self._done = Done(embedded=dict.fromkeys(work.recipes, 0))
        progress.start(work.split, total=work.clips, done=work.clips - len(work.jobs))

    def add(self, done: Done) -> None:
        """Count what the engine yields."""
        self._done += done
        if done.clips:
            self._progress.advance(done.clips, incomplete=len({failure.clip_id for failure in done.failures}))
        if done.elsewhere:
            self._progress.advance(done.elsewhere, elsewhere=done.elsewhere)
        if done.figures:
            self._progress.note(**done.figures)

    def report(self, seconds: float) -> ExtractReport:
        """What was done, in so many seconds."""
        done = self._done
        return ExtractReport(
            split=self._work.split,
            clips=self._work.clips,
            already=self._work.clips - done.clips,
            embedded=dict(done.embedded),
            failures=done.failures,
            seconds=seconds,
            decode_seconds=done.decode_seconds,
            embed_seconds=done.embed_seconds,
            is_shared=done.is_shared,
            store=self._work.store,
        )

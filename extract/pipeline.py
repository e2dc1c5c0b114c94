"""Stage one: the clips of a split -> decode workers -> encoders -> shards of the embedding store.

An engine (`engines`) extracts what is missing (`work`) and yields counts of what it has stored. Stored embeddings stay,
so a second call extracts only what is missing. A clip that fails is recorded with its reason; the others are not
affected.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from alphafuse.data.coverage import Coverage, Hearing, coverage_of, stored_hearing, stored_seconds
from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Failure
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.data.streams import ALL
from alphafuse.system.devices import list_devices
from alphafuse.system.progress import NO_PROGRESS, Progress

from .jobs import Done
from .missing import Work, changed_clips
from .settings import ExtractSettings


class Engine(Protocol):
    """An object that fills stores."""

    @property
    def recipes(self) -> Mapping[str, Mapping[str, Any]]:
        """Stream -> everything that decides its numbers."""

    def fill(self, work: Work) -> Generator[Done, None, None]:
        """Extract what is missing; yield counts of clips after their shard is written, in whatever process."""


@dataclass(frozen=True)
class ExtractReport:
    """Counts and times of one split's extraction.

    Attributes:
        split: "train", "val" or "test".
        clips: clips of the split.
        already: clips that were done before, or by another process meanwhile.
        embedded: stream -> embeddings made by this call.
        failures: failures recorded by this call.
        seconds: wall time of this split, without loading the models.
        decode_seconds: time of one core spent on decoding.
        embed_seconds: time spent in the models: of one core if they run on the CPU, else of the device.
        coverage: what the extracted streams hear of the split's clips; empty if none of them hears. Of clips that
            were extracted before, the seconds are those of the longer of picture and sound, which the store keeps.
        changed: clips whose file was changed since they were extracted; settings.refresh extracts them again.
        shorter_sounds: clip_id -> seconds of sound, of clips of this call whose picture is clearly longer.
        refreshed: clips whose old embeddings this call removed, because their file was changed.
        is_shared: whether other processes could share the work; False if the file system has no locks.
        store: the store of the embeddings.

    >>> from alphafuse import Dataset, ExtractSettings, extract_embeddings
    >>> dataset = Dataset.open("demo")
    >>> (report,) = extract_embeddings(dataset, ["val"], ExtractSettings(streams=("ast",)))
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
    coverage: tuple[Coverage, ...] = ()
    changed: tuple[str, ...] = ()
    refreshed: tuple[str, ...] = ()
    shorter_sounds: Mapping[str, float] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        made = ", ".join(f"{stream} {count}" for stream, count in self.embedded.items())
        figures = f"{self.clips} clips, {self.already} before, embedded {made}, {len(self.failures)} failures"
        return f"ExtractReport({self.split}: {figures}, {self.seconds:.1f} s, store={str(self.store.folder)!r})"


def extract_embeddings(
    dataset: Dataset | str | Path,
    splits: str | Sequence[str] = ALL,
    settings: ExtractSettings | None = None,
    *,
    progress: Progress = NO_PROGRESS,
) -> list[ExtractReport]:
    """Extract what the stores of these splits lack. An interrupt loses no finished embedding: they are stored first.

    Args:
        dataset: the root, or its folder.
        splits: one or some of "train", "val", "test"; by default all that have clips.
        settings: how to extract; by default with the root's encoders, on this machine.
        progress: callbacks; a round for each split, `advance` counts clips that are stored.

    Raises:
        DatasetError: a split is unknown or has no clips, or the clip folder doesn't exist.
        EncoderError, DeviceError: the encoders can't be loaded, or the device doesn't exist.
        RecipeMismatchError: a store was made with other recipes; nothing is extracted.
        StoreError: a store can't be written.
        ClusterError: Ray isn't installed, or the cluster failed.

    >>> from alphafuse import extract_embeddings
    >>> reports = extract_embeddings("demo")  # does only what is missing
    >>> [(report.split, report.clips, report.already) for report in reports]
    [('train', 230, 230), ('val', 26, 26), ('test', 192, 192)]
    """
    dataset = Dataset.open(dataset)
    splits = dataset.splits_of(splits)
    settings = settings or ExtractSettings()
    for split in splits:
        dataset.manifest.require_split(split)
    reports = []
    with choose_engine(dataset, settings) as engine:
        works = [Work(dataset, split, engine.recipes, retry_failed=settings.retry_failed) for split in splits]
        for work in works:  # all stores were checked before: none was made with other recipes
            dataset.require_clips()
            refreshed = changed_clips(dataset, work.split, read=True) if settings.refresh else ()
            if refreshed:
                work.store.forget(refreshed)
            report = fill_store(engine, work, progress)
            changed = () if settings.refresh else changed_clips(dataset, work.split)
            reports.append(replace(report, changed=changed, refreshed=refreshed))
        hearing = {name: heard for name, heard in stored_hearing(dataset).items() if name in engine.recipes}
    return [replace(one, coverage=_coverage(dataset, one, hearing)) for one in reports]


def _coverage(dataset: Dataset, report: ExtractReport, hearing: Mapping[str, Hearing]) -> tuple[Coverage, ...]:
    if not hearing:
        return ()
    return coverage_of(hearing, {**stored_seconds(dataset, report.split, hearing), **report.shorter_sounds})


@contextmanager
def choose_engine(dataset: Dataset, settings: ExtractSettings) -> Iterator[Engine]:
    """Yield the engine that the settings name, with its encoders loaded: local, one process per device, or Ray."""
    devices = list_devices(settings.device)
    if settings.engine == "ray":
        from alphafuse.system.cluster import connected

        from .engines.embedder import load_encoders
        from .engines.ray import RayEngine

        with connected(settings.address, memory_bytes=int(settings.max_memory_gb * 1e9)) as ray:
            encoders = load_encoders(
                dataset, replace(settings, compile=False), "cpu"
            )  # each node compiles its own copy
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
    """Let an engine extract what one split's store lacks."""
    started, tally = time.monotonic(), _Tally(work, progress)
    try:
        if work.jobs:
            with closing(engine.fill(work)) as filling:
                for done in filling:  # the clips of `done` are in the store
                    tally.add(done)
    finally:
        progress.stop()
    return tally.report(time.monotonic() - started)


class _Tally:
    """Adds up the counts that an engine yields, for progress and the report."""

    def __init__(self, work: Work, progress: Progress) -> None:
        self._work, self._progress = work, progress
        self._done = Done(embedded=dict.fromkeys(work.recipes, 0))
        progress.start(work.split, total=work.clips, done=work.clips - len(work.jobs))

    def add(self, done: Done) -> None:
        """Add the counts that an engine yielded."""
        self._done += done
        if done.clips:
            self._progress.advance(done.clips, incomplete=len({failure.clip_id for failure in done.failures}))
        if done.elsewhere:
            self._progress.advance(done.elsewhere, elsewhere=done.elsewhere)
        if done.figures:
            self._progress.note(**done.figures)

    def report(self, seconds: float) -> ExtractReport:
        """Return the report; `seconds` is the wall time."""
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
            shorter_sounds=done.shorter_sounds,
            store=self._work.store,
        )

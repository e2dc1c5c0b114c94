"""Stage one: the clips of a split -> decode workers -> both backbones -> shards of the embedding store.

Worker processes decode and prepare clips; this process runs the models in batches and appends a shard every
`flush_seconds`. What is in the store already is left alone, so a second call does only what is missing; what goes wrong
with a clip is recorded with its reason, and the run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import Clip
from alphafuse.data.store import MODALITIES, Embeddings, EmbeddingStore, Failure
from alphafuse.errors import BackboneError, DatasetError, DecodeError

from .decode import Decoded, decode_clip
from .inputs import FrameSpec, audio_input, prepare_frame
from .workers import map_files

_LIBRARIES = ("alphafuse", "av", "numpy", "pillow", "torch", "torchaudio", "transformers")


@dataclass(frozen=True)
class ExtractSettings:
    """How to extract; the command line's defaults are these.

    Attributes:
        timesformer, ast: hub id, folder or "compact"; None = the root's default.
        protocol: preprocessing; None = the root's default.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "fp32" or "bf16".
        batch_size: clips per forward pass.
        workers: decode processes; 0 = one per processor.
        flush_seconds: a shard is appended at least this often, so that a kill costs at most this much work.
        retry_failed: also try clips again whose failure is recorded.
    """

    timesformer: str | None = None
    ast: str | None = None
    protocol: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    batch_size: int = 8
    workers: int = 0
    flush_seconds: float = 30.0
    retry_failed: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (("batch_size", self.batch_size, 1), ("workers", self.workers, 0)):
            if value < least:
                raise BackboneError(f"{name} must be at least {least}, not {value}")
        if not self.flush_seconds >= 0:  # NaN compares false
            raise BackboneError(f"flush_seconds must be 0 or more, not {self.flush_seconds}")


@dataclass(frozen=True)
class ExtractReport:
    """What one split's extraction did.

    Attributes:
        split: "train", "val" or "test".
        clips: clips of the split.
        already: clips that were done before.
        embedded: modality -> embeddings made now.
        failures: failures recorded now.
        seconds: wall time of this split, without loading the models.
        store: where the embeddings are.
    """

    split: str
    clips: int
    already: int
    embedded: dict[str, int]
    failures: tuple[Failure, ...]
    seconds: float
    store: EmbeddingStore


class Progress(Protocol):
    """Who wants to know how extraction goes."""

    def start(self, split: str, *, clips: int, already: int) -> None:
        """A split begins: `clips` to do, `already` done before."""

    def clip(self, *, complete: bool) -> None:
        """A clip is done; `complete` when all its embeddings were made."""

    def stop(self) -> None:
        """The split is finished or interrupted."""


@dataclass(frozen=True)
class _Batch:
    """A batch that is embedded: its clips, (clips, dim) rows per modality, and what failed."""

    clips: tuple[Clip, ...]
    rows: dict[str, np.ndarray]
    failures: tuple[Failure, ...]


class Extractor:
    """Both backbones, loaded once, for any number of splits."""

    def __init__(self, dataset: Dataset, settings: ExtractSettings) -> None:
        """Load the backbones; `BackboneError` when one can't be had."""
        from .backbones import Placement, choose_device, load_ast, load_timesformer

        self.dataset = dataset
        self.settings = settings
        self.protocol = settings.protocol or dataset.protocol
        common = Placement(choose_device(settings.device), settings.precision, self.protocol)
        self.timesformer = load_timesformer(settings.timesformer or dataset.timesformer, common)
        self.ast = load_ast(settings.ast or dataset.ast, common)

    @property
    def store_settings(self) -> dict[str, dict[str, Any]]:
        """modality -> everything that decides its numbers."""
        return {backbone.modality: backbone.settings() for backbone in (self.timesformer, self.ast)}

    def pending(self, split: str) -> tuple[Clip, ...]:
        """Clips of the split that the store lacks; `SettingsMismatchError` when it was made under other settings."""
        store = self.dataset.store(split)
        store.require_settings(self.store_settings)
        done = store.done(retry_failed=self.settings.retry_failed)
        return tuple(clip for clip in self.dataset.manifest.require_split(split) if clip.clip_id not in done)

    def extract(self, split: str, *, progress: Progress | None = None) -> ExtractReport:
        """Extract what the split's store lacks.

        Args:
            split: "train", "val" or "test".
            progress: is told of each clip.

        Raises:
            DatasetError: the clip folder is gone.
            SettingsMismatchError: the store was made under other settings.
            StoreError, AlphafuseError: the store can't be written.

        Also when it is interrupted, what was embedded until then is in the store.
        """
        clips = self.pending(split)
        store = self.dataset.store(split)
        if not self.dataset.clip_folder.is_dir():
            raise DatasetError(
                f"the clip folder {self.dataset.clip_folder} is gone: bring it back or make the root again"
            )
        total = len(self.dataset.manifest.of_split(split))
        if progress is not None:
            progress.start(split, clips=len(clips), already=total - len(clips))
        started = time.monotonic()
        embedded = dict.fromkeys(MODALITIES, 0)
        failures: list[Failure] = []
        pending: list[_Batch] = []  # embedded, and not yet in a shard; an interrupt finds whole batches in it
        flushed = time.monotonic()
        waiting: list[tuple[Clip, Decoded]] = []
        decoded_clips = decode_clips(self.dataset, clips, self._frame_spec(), self.settings)
        try:
            for position, decoded in enumerate(decoded_clips, start=1):
                waiting.append(decoded)
                if len(waiting) < self.settings.batch_size and position < len(clips):
                    continue
                batch = self._embed(waiting)
                waiting = []
                pending.append(batch)
                failures += batch.failures
                incomplete = {failure.clip_id for failure in batch.failures}
                for modality in MODALITIES:
                    embedded[modality] += len(batch.clips) - sum(f.modality == modality for f in batch.failures)
                if progress is not None:
                    for clip in batch.clips:
                        progress.clip(complete=clip.clip_id not in incomplete)
                if time.monotonic() - flushed >= self.settings.flush_seconds:
                    self._flush(store, pending)
                    pending, flushed = [], time.monotonic()
        finally:
            decoded_clips.close()
            self._flush(store, pending)
            if progress is not None:
                progress.stop()
        return ExtractReport(
            split, total, total - len(clips), embedded, tuple(failures), time.monotonic() - started, store
        )

    def _frame_spec(self) -> FrameSpec:
        assert isinstance(self.timesformer.spec, FrameSpec)
        return self.timesformer.spec

    def _embed(self, decoded_clips: list[tuple[Clip, Decoded]]) -> _Batch:
        """Run both models over a batch."""
        clips = tuple(clip for clip, _ in decoded_clips)
        frames = [item.frames if item.frames is not None else item.no_frames for _, item in decoded_clips]
        spectrograms = [self._spectrogram(item) for _, item in decoded_clips]
        rows: dict[str, np.ndarray] = {}
        failures: list[Failure] = []
        for backbone, embed, inputs in (
            (self.timesformer, self.timesformer.embed_frames, frames),
            (self.ast, self.ast.embed_spectrograms, spectrograms),
        ):
            reasons = [item if isinstance(item, str) else "" for item in inputs]
            matrix = rows[backbone.modality] = np.full((len(clips), backbone.dim), np.nan, np.float32)
            usable = [i for i, reason in enumerate(reasons) if not reason]
            if usable:
                matrix[usable] = embed(np.stack([inputs[i] for i in usable]))
            for i in usable:
                if not np.isfinite(matrix[i]).all():
                    matrix[i], reasons[i] = np.nan, "the embedding is not finite"
            failures += [
                Failure(clip.clip_id, backbone.modality, reason)
                for clip, reason in zip(clips, reasons, strict=True)
                if reason
            ]
        return _Batch(clips, rows, tuple(failures))

    def _spectrogram(self, decoded: Decoded) -> np.ndarray | str:
        """AST's input for the waveform, or why there is none."""
        if decoded.waveform is None:
            return decoded.no_waveform
        try:
            return audio_input(decoded.waveform, self.ast.spec)  # type: ignore[arg-type]  # an AST's AudioSpec
        except DecodeError as error:
            return str(error)

    def _flush(self, store: EmbeddingStore, pending: list[_Batch]) -> None:
        if not pending:
            return
        clips = [clip for batch in pending for clip in batch.clips]
        rows = Embeddings(
            clip_ids=tuple(clip.clip_id for clip in clips),
            labels=tuple(clip.label for clip in clips),
            groups=tuple(clip.group for clip in clips),
            features={modality: np.concatenate([batch.rows[modality] for batch in pending]) for modality in MODALITIES},
            failures=tuple(failure for batch in pending for failure in batch.failures),
            settings=self.store_settings,
        )
        store.write(rows, provenance=self._provenance())

    def _provenance(self) -> dict[str, Any]:
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": str(self.timesformer.placement.device),
            "backbones": {
                backbone.modality: {"name": backbone.name, "revision": backbone.revision}
                for backbone in (self.timesformer, self.ast)
            },
            "libraries": {library: version(library) for library in _LIBRARIES},
        }


def extract_embeddings(
    dataset: Dataset,
    splits: Sequence[str],
    settings: ExtractSettings | None = None,
    *,
    progress: Progress | None = None,
) -> list[ExtractReport]:
    """Extract what the stores of these splits lack: `Extractor` in one call."""
    for split in splits:
        dataset.manifest.require_split(split)
    extractor = Extractor(dataset, settings or ExtractSettings())
    for split in splits:
        extractor.pending(split)  # refuse a store of other settings before any work
    return [extractor.extract(split, progress=progress) for split in splits]


def decode_clips(
    dataset: Dataset, clips: Sequence[Clip], spec: FrameSpec, settings: ExtractSettings
) -> Generator[tuple[Clip, Decoded], None, None]:
    """Decode clips in worker processes and yield them as they are finished, never many more than are being used.

    A clip whose decoder crashes its process is yielded with that as its reason; the others are not harmed.
    """
    decode = partial(decode_clip, frames=spec.frames, sampling=spec.sampling, prepare=partial(prepare_frame, spec=spec))
    crashed = Decoded(None, None, "the decoder crashed", "the decoder crashed")
    files = [(clip, dataset.path_of(clip)) for clip in clips]
    return map_files(decode, files, crashed=crashed, workers=settings.workers, ahead=settings.batch_size)

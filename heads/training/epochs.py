"""The training loop: stacks of heads train on the same windows of clips, epoch by epoch.

`train` and `ray` assign stacks to threads, processes and nodes.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import HeadConfig
from alphafuse.system.interrupts import map_in
from alphafuse.system.progress import NO_PROGRESS, Progress

from .batches import InMemory, Source, Streamed, Window
from .settings import TrainSettings
from .stack import Stack

CPU = torch.device("cpu")


@dataclass(frozen=True)
class History:
    """Losses and accuracy of each trained epoch, each (epochs,) float64.

    Attributes:
        train_loss: mean over the epoch's clips of the loss before their step, with dropout and other regularisation.
        val_loss: mean cross entropy of the validation clips, without dropout.
        val_accuracy: share of validation clips whose highest logit is the right one, in [0, 1].
    """

    train_loss: np.ndarray
    val_loss: np.ndarray
    val_accuracy: np.ndarray


class Member(NamedTuple):
    """One head to train: its position among the results, configuration, seed, and `moments` as in `Stack`."""

    position: int
    config: HeadConfig
    seed: int
    moments: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = {}


class Result(NamedTuple):
    """A trained member: its weights as in `AlphaFusion.load_state_dict`, its history, and the epoch of the weights."""

    position: int
    weights: dict[str, np.ndarray]
    history: History
    epoch: int


@dataclass(frozen=True)
class Splits:
    """Training and validation clips of heads that have the same classes and usable clips.

    Attributes:
        train, val: clips with all streams that any of these heads reads; a stack uses only its own.
        dropped: "train" and "val" -> clips left out because they lack a stream.
        class_weights: (C,) float32, or None if all clips have the same weight.
    """

    train: Source
    val: Source
    dropped: dict[str, int]
    class_weights: torch.Tensor | None


class PackedSplits(NamedTuple):
    """Splits for another process: arrays, which are sent through shared memory or files; or streamed splits' paths.

    Attributes:
        sources: train and val, each (features, targets), or a `Streamed`.
        dropped, class_weights: as in `Splits`.
    """

    sources: tuple[Any, Any]
    dropped: dict[str, int]
    class_weights: torch.Tensor | None

    @classmethod
    def of(cls, split: Splits) -> PackedSplits:
        """Pack splits for another process."""
        return cls((_packed(split.train), _packed(split.val)), split.dropped, split.class_weights)

    def unpacked(self, device: torch.device = CPU) -> Splits:
        """Return the splits on a device."""
        train, val = (_unpacked(source, device) for source in self.sources)
        return Splits(train, val, self.dropped, self.class_weights)


def _packed(source: Source) -> Any:
    if isinstance(source, Streamed):
        return source.with_absolute_paths()
    window = source.window.to(CPU)
    return {name: x.numpy() for name, x in window.features.items()}, window.targets.numpy()


def _unpacked(packed: Any, device: torch.device) -> Source:
    if isinstance(packed, Streamed):
        return packed
    with warnings.catch_warnings():  # shared memory is read-only, and training only reads it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        features = {name: torch.from_numpy(x) for name, x in packed[0].items()}
        return InMemory(Window(features, torch.from_numpy(packed[1])).to(device))


class Stopped(Exception):
    """Raised in all threads of a call after one of them failed or was interrupted."""


class Reporter:
    """State that the threads of one call of `train_heads` share: progress, and the request to stop."""

    def __init__(self, progress: Progress = NO_PROGRESS) -> None:
        self._progress, self._lock, self._stopped = progress, threading.Lock(), threading.Event()

    def finished(self, epochs: int) -> None:
        """Count finished epochs, one thread at a time."""
        if epochs:
            with self._lock:
                self._progress.advance(epochs)

    def stop(self) -> None:
        """Make every thread stop at its next step."""
        self._stopped.set()

    def check(self) -> None:
        """Raise `Stopped` after `stop`."""
        if self._stopped.is_set():
            raise Stopped


def train_stacks(
    stacks: Sequence[Sequence[Member]],
    split: Splits,
    settings: TrainSettings,
    device: torch.device,
    report: Reporter,
    pool: ThreadPoolExecutor | None = None,
) -> list[Result]:
    """Train stacks on the same windows; with a pool, its threads train all stacks on a window in parallel."""
    each = partial(map_in, pool) if pool else map
    steps = settings.total_epochs * split.train.steps(settings.batch_size)
    keep = isinstance(split.train, InMemory)  # every epoch uses the same window
    running = [StackTraining(stack, settings, steps, device, split.class_weights, keep=keep) for stack in stacks]
    for epoch in range(settings.total_epochs):
        active = [stack for stack in running if not stack.finished]
        if not active:
            break
        for window in split.train.windows(epoch):
            list(each(partial(StackTraining.train, window=window, report=report), active))
        for window in split.val.windows(0):
            list(each(partial(StackTraining.validate, window=window), active))
        for stack in active:
            report.finished(stack.end_epoch(len(split.train), len(split.val)))
    return [result for stack in running for result in stack.results()]


@dataclass
class HeadRecord:
    """Measurements of one head so far: (train loss, val loss, val accuracy) per epoch, and its best epoch."""

    rows: list[tuple[float, float, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, np.ndarray] | None = None
    stopped: bool = False


class StackTraining:
    """A stack in training, with the measurements of each of its heads."""

    def __init__(
        self,
        members: Sequence[Member],
        settings: TrainSettings,
        steps: int,
        device: torch.device,
        class_weights: torch.Tensor | None,
        *,
        keep: bool,
    ) -> None:
        self.members, self.settings, self.keep = members, settings, keep
        self.stack = Stack(
            [(member.config, member.seed) for member in members],
            settings,
            steps=steps,
            device=device,
            moments=[member.moments for member in members],
            class_weights=class_weights,
        )
        self.records = [HeadRecord() for _ in members]
        self._clear()

    def _clear(self) -> None:
        self.train_loss, self.val_loss, self.right = (np.zeros(len(self.members)) for _ in range(3))

    @property
    def finished(self) -> bool:
        """Whether every head has stopped early."""
        return all(record.stopped for record in self.records)

    def train(self, window: Window, report: Reporter) -> None:
        """Train on a window."""
        self.train_loss += self.stack.train_window(window, report.check, keep=self.keep)

    def validate(self, window: Window) -> None:
        """Validate on a window."""
        loss, right = self.stack.validate(window)
        self.val_loss += loss
        self.right += right

    def end_epoch(self, train_clips: int, val_clips: int) -> int:
        """Record the epoch; return how many epochs are finished by it, including those that early stopping skips."""
        finished = 0
        for position, (member, record) in enumerate(zip(self.members, self.records, strict=True)):
            if record.stopped:
                continue
            train_loss, val_loss = self.train_loss[position] / train_clips, self.val_loss[position] / val_clips
            if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
                raise ExperimentError(
                    f"the loss stopped being finite in epoch {len(record.rows) + 1} of the head "
                    f"{member.config.describe()}, seed {member.seed}: lower the learning rate "
                    f"({self.settings.learning_rate:g}) or check the embeddings"
                )
            record.rows.append((train_loss, val_loss, self.right[position] / val_clips))
            finished += 1 + self._stop_early(position, record, val_loss)
        self._clear()
        return finished

    def _stop_early(self, position: int, record: HeadRecord, val_loss: float) -> int:
        """Keep the best weights, and stop the head once its patience is exhausted; return the skipped epochs."""
        if self.settings.patience is None:
            return 0
        epoch = len(record.rows)
        if val_loss < record.best_loss:
            record.best_loss, record.best_epoch = val_loss, epoch
            record.best_weights = self.stack.state(position)
        elif epoch - record.best_epoch >= self.settings.patience:
            record.stopped = True
            return self.settings.total_epochs - epoch
        return 0

    def results(self) -> list[Result]:
        """Return one result for each head."""
        results = []
        for position, (member, record) in enumerate(zip(self.members, self.records, strict=True)):
            weights = record.best_weights or self.stack.state(position)
            history = History(*np.array(record.rows, dtype=np.float64).T)
            results.append(Result(member.position, weights, history, record.best_epoch or len(record.rows)))
        return results

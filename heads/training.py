"""Training heads: many at once, each a function of its seed alone.

    configurations x seeds -> stacks of heads -> here, in threads or in processes -> trained heads

A head's initial weights, the order of its clips and its dropout are drawn from generators that its seed alone decides,
so that it comes out the same alone, in any company, in this process or in another one (to rounding where a stack or
several threads share its sums), and experiments of one seed share order and dropout: paired comparisons gain.

How they are spread (`alphafuse bench heads` shows why):

- on the CPU, heads as large as the paper's are trained one by one, each on one thread, side by side: their steps are
  bound by memory, and stacking them only takes more of it at a time. Small ones (a linear probe) are stacked, because
  there the operations' overhead decides.
- threads start at once and share the embeddings; small steps on more than `THREADS_AT_MOST` cores wait for Python's
  lock, so long work of that kind goes to processes.
- on CUDA, all heads of a shape are one stack, whose products are batched.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from typing import NamedTuple

import joblib
import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight

from alphafuse.data.processes import end_with_parent, free_memory_bytes
from alphafuse.data.stored import EmbeddingSource
from alphafuse.errors import EmptySplitError, ExperimentError, unknown

from .batches import InMemory, Source, Streamed, Window, make_source
from .head import AlphaFusion, HeadConfig, usable_clips
from .settings import TrainSettings
from .stack import Stack
from .transforms import TRANSFORMS

THREADS_AT_MOST = 4  # small steps: a third of one is Python's, which one thread at a time can run
SMALL_STEP_SECONDS = 0.01
PROCESS_START_SECONDS = 5.0  # measured: a new process that imports torch, two at a time on 2 cores
SMALL_HEAD = 400_000  # weights; up to there a step's overhead outweighs its arithmetic, and heads are stacked
STACK_CPU, STACK_CUDA = 4, 64
MOMENT_ROWS = 65_536  # rows whose moments are summed at a time: bounds memory
RESERVED = 4  # a head in training takes its weights four times: weights, two moments, and a result or gradient

Progress = Callable[[int], None]


@dataclass(frozen=True)
class History:
    """What was measured after each epoch that was trained, each (epochs,) float64.

    Attributes:
        train_loss: mean over the epoch's clips of the loss before their step, with dropout and what else regularises.
        val_loss: mean cross entropy of the validation clips, without dropout.
        val_accuracy: share of validation clips whose highest logit is right, in [0, 1].
    """

    train_loss: np.ndarray
    val_loss: np.ndarray
    val_accuracy: np.ndarray


@dataclass(frozen=True)
class TrainedHead:
    """One trained head.

    Attributes:
        head: in eval mode, on the CPU.
        seed: what it is a function of.
        history: per epoch.
        epoch: the epoch whose weights it has, from 1: the last, or with `patience` the one of least validation loss.
        dropped: "train" and "val" -> clips left out because they lack a modality that the head reads.
    """

    head: AlphaFusion
    seed: int
    history: History
    epoch: int
    dropped: Mapping[str, int]

    def __repr__(self) -> str:
        last = self.history.val_loss[self.epoch - 1], self.history.val_accuracy[self.epoch - 1]
        return (
            f"TrainedHead({self.head.config.describe()}, seed={self.seed}, epoch {self.epoch} of "
            f"{len(self.history.train_loss)}, val_loss={last[0]:.4f}, val_accuracy={last[1]:.4f})"
        )


def train_heads(
    train: EmbeddingSource,
    val: EmbeddingSource,
    heads: Sequence[HeadConfig],
    seeds: Sequence[int],
    *,
    settings: TrainSettings | None = None,
    class_weights: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[TrainedHead]:
    """Train every head with every seed.

    Args:
        train, val: embeddings in memory or on disk; labels must occur in the heads' classes (val labels that training
            lacks are fine). A train split on disk whose features exceed `settings.memory_gb` is streamed, see
            `heads.batches`; it needs one pass over the store per epoch for all heads together.
        heads: what to train; what they say of hidden layers, dropout, normalisation and absent clips counts, not what
            `settings` says.
        seeds: whole numbers of at least 0.
        settings: epochs, batch size, Adam's settings, regularisation, device.
        class_weights: label -> how much its clips count, above 0, in place of `settings.class_weights`; 1 for others.
        progress: called with the number of newly finished epochs, `len(heads) * len(seeds) * settings.total_epochs` in
            all; from another thread, but never twice at a time.
        workers: threads or processes; 1 trains one stack after the other; None takes all cores.

    Returns:
        Heads in the order heads[0] with each seed, heads[1] with each seed, ...

    Raises:
        EmptySplitError: a split has no clip that a head could use.
        ExperimentError: a label outside of a head's classes, a bad seed, settings that don't go together, or a loss
            that stops being finite.

    >>> from alphafuse import Dataset, HeadConfig, TrainSettings, train_heads
    >>> dataset = Dataset.open("demo")
    >>> train, val = dataset.embeddings("train"), dataset.embeddings("val")
    >>> heads = [HeadConfig(train.dims, dataset.classes, "scale", "ast", alpha) for alpha in (0.5, 1.0)]
    >>> trained = train_heads(train, val, heads, seeds=[0, 1], settings=TrainSettings(epochs=2))
    >>> [(one.head.config.alpha, one.seed) for one in trained]
    [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
    >>> trained[0].head.predict_proba(val).shape
    (26, 16)
    """
    settings = settings or TrainSettings()
    _check(heads, seeds, settings, workers)
    for label, weight in (class_weights or {}).items():
        if not (math.isfinite(weight) and weight > 0):
            raise ExperimentError(f"the weight of class {label} must be above 0, not {weight}")
    device = settings.torch_device()
    memory = memory_bytes(settings, device)
    splits: dict[tuple[tuple[str, ...], str, tuple[str, ...]], _Splits] = {}
    members: dict[int, _Member] = {}
    of_splits: list[_Splits] = []
    for config in heads:
        key = (config.modalities, config.absent, config.classes)
        if key not in splits:
            splits[key] = _load(train, val, config, settings, class_weights, device, memory)
        for seed in seeds:
            members[len(members)] = _Member(len(members), config, seed)
            of_splits.append(splits[key])
    results: dict[int, _Result] = {}
    report = _Reporter(progress)
    for split in splits.values():
        own = [member for member in members.values() if of_splits[member.position] is split]
        for result in _train_on_split(own, split, settings, device, report, workers, memory):
            results[result.position] = result
    trained = []
    for member, split in zip(members.values(), of_splits, strict=True):
        result = results.pop(member.position)  # so that many heads' weights are held only once
        head = AlphaFusion(member.config)
        head.load_state_dict({name: torch.from_numpy(value) for name, value in result.weights.items()})
        trained.append(TrainedHead(head.eval(), member.seed, result.history, result.epoch, split.dropped))
    return trained


def _check(heads: Sequence[HeadConfig], seeds: Sequence[int], settings: TrainSettings, workers: int | None) -> None:
    if not heads or not seeds:
        raise ExperimentError("nothing to train: give at least one head and one seed")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ExperimentError(f"a seed must be a whole number of at least 0, not {seed!r}")
    if workers is not None and workers < 1:
        raise ExperimentError(f"workers must be at least 1, not {workers}")
    if settings.weight_decay and any(config.rates for config in heads):
        raise ExperimentError("learning rates per modality don't go with weight_decay: leave one of them out")


def memory_bytes(settings: TrainSettings, device: torch.device) -> int:
    """What training features may take: the settings' word, or half of what is free on the device."""
    if settings.memory_gb is not None:
        return int(settings.memory_gb * 1e9)
    return (torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()) // 2


def class_indices(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(clips,) int64 positions of labels in classes; `ExperimentError` for a label that isn't there."""
    position = {label: index for index, label in enumerate(classes)}
    try:
        return np.fromiter((position[label] for label in labels), np.int64, len(labels))
    except KeyError as error:
        raise ExperimentError(unknown("label", error.args[0], classes)) from None


class _Member(NamedTuple):
    """One head to train; `moments` as `Stack` takes them."""

    position: int
    config: HeadConfig
    seed: int
    moments: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = {}


class _Result(NamedTuple):
    position: int
    weights: dict[str, np.ndarray]
    history: History
    epoch: int


@dataclass(frozen=True)
class _Splits:
    """What heads of the same modalities, classes and treatment of absent clips are trained and validated on."""

    train: Source
    val: Source
    dropped: dict[str, int]
    class_weights: torch.Tensor | None


class _Stopped(Exception):
    """Training elsewhere failed, or was interrupted: this one ends too."""


class _Reporter:
    """What training threads share: the progress function, called one at a time, and the word to stop."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._lock, self._stop = progress, threading.Lock(), threading.Event()

    def __call__(self, epochs: int) -> None:
        if self._progress and epochs:
            with self._lock:
                self._progress(epochs)

    def stop(self) -> None:
        """End all training that goes on."""
        self._stop.set()

    def go_on(self) -> None:
        """Raise `_Stopped` after `stop`."""
        if self._stop.is_set():
            raise _Stopped


# what is trained on


def _load(
    train: EmbeddingSource,
    val: EmbeddingSource,
    config: HeadConfig,
    settings: TrainSettings,
    class_weights: Mapping[str, float] | None,
    device: torch.device,
    memory: int,
) -> _Splits:
    """The clips that heads like this one can use; a quarter of the memory is for validation."""
    sources, dropped = {}, {}
    weights = None
    for name, embeddings, share in (("train", train, memory * 3 // 4), ("val", val, memory // 4)):
        usable = usable_clips(embeddings, config)
        if not usable.any():
            raise EmptySplitError(
                f"none of the {len(embeddings)} {name} clips has the embeddings that a head of "
                f"{' and '.join(config.modalities)} needs: see `alphafuse store info`, or use --absent zeros"
            )
        kept = embeddings if usable.all() else embeddings.take(usable)
        targets = class_indices(kept.labels, config.classes)
        if name == "train" and class_weights is not None:
            weights = torch.tensor([float(class_weights.get(label, 1)) for label in config.classes])
        elif name == "train" and settings.class_weights == "balanced":
            present = np.unique(targets)
            weights = torch.ones(len(config.classes))
            weights[present] = torch.from_numpy(compute_class_weight("balanced", classes=present, y=targets)).float()
        sources[name] = make_source(kept, config.modalities, targets, device=device, memory_bytes=share)
        dropped[name] = int((~usable).sum())
    return _Splits(sources["train"], sources["val"], dropped, weights)


def _with_moments(members: Sequence[_Member], source: Source, device: torch.device) -> list[_Member]:
    """The members, those with zscore knowing the moments of their transformed training embeddings; one pass for all."""
    kinds: dict[tuple[object, ...], tuple[AlphaFusion, dict[str, _Moments]]] = {}
    for config in (member.config for member in members if member.config.normalize == "zscore"):
        kind = (config.transform, config.alpha, config.on)
        if kind not in kinds:
            kinds[kind] = AlphaFusion(config).to(device), {name: _Moments(dim) for name, dim in config.dims.items()}
    if not kinds:
        return list(members)
    for window in source.windows(0):
        for head, moments in kinds.values():
            for name, of_modality in moments.items():
                of_modality.add(head.transforms[name], window.features[name])
    found = {
        kind: {name: of_modality.mean_and_std() for name, of_modality in moments.items()}
        for kind, (_, moments) in kinds.items()
    }
    return [
        member._replace(moments=found.get((member.config.transform, member.config.alpha, member.config.on), {}))
        if member.config.normalize == "zscore"
        else member
        for member in members
    ]


class _Moments:
    """Mean and standard deviation per dimension, summed up in float64 over windows."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.sums = torch.zeros(2, dim, dtype=torch.float64)  # of x and of x^2

    @torch.no_grad()
    def add(self, transform: torch.nn.Module, x: torch.Tensor) -> None:
        """Add the transformed embeddings (rows, dim); rows of NaN are absent."""
        for part in x.split(MOMENT_ROWS):
            y = transform(part[~torch.isnan(part).any(dim=1)]).double()
            self.count += len(y)
            self.sums += torch.stack([y.sum(dim=0), y.square().sum(dim=0)]).cpu()

    def mean_and_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(dim,) float32 each; a deviation that is nothing but rounding counts as 1."""
        mean, square = self.sums / max(self.count, 1)
        variance = (square - mean * mean).clamp_min(0)
        std = torch.where(variance > 1e-12 * square.clamp_min(1e-30), variance.sqrt(), torch.ones_like(variance))
        return mean.float(), std.float()


# how it is spread


def _train_on_split(
    members: Sequence[_Member],
    split: _Splits,
    settings: TrainSettings,
    device: torch.device,
    report: _Reporter,
    workers: int | None,
    memory: int,
) -> Iterator[_Result]:
    members = _with_moments(members, split.train, device)
    stacks = _stacks(members, device)
    cores = workers or joblib.cpu_count()
    step = max(_step_seconds(member.config, settings) for member in members)
    if isinstance(split.train, Streamed):  # all heads of a group go through the store together
        weights = max(_weights(member.config) for member in members)
        size = max(cores, memory // (4 * RESERVED * weights * max(map(len, stacks))))
        for start in range(0, len(stacks), size):
            group = stacks[start : start + size]
            with _threads(min(cores, len(group)), step, cores, report) as pool:
                yield from _train(group, split, settings, device, report, pool)
        return
    side_by_side = min(cores, len(stacks)) if device.type == "cpu" else 1
    seconds = step * settings.total_epochs * split.train.steps(settings.batch_size) * len(stacks)
    if (
        side_by_side > THREADS_AT_MOST
        and step < SMALL_STEP_SECONDS
        and seconds * (1 / THREADS_AT_MOST - 1 / side_by_side) > PROCESS_START_SECONDS
    ):
        yield from _train_in_processes(stacks, split, settings, report, side_by_side)
        return
    with _threads(side_by_side, step, cores, report) as pool:
        for task in as_completed([pool.submit(_train, [stack], split, settings, device, report) for stack in stacks]):
            yield from task.result()


def _stacks(members: Sequence[_Member], device: torch.device) -> list[list[_Member]]:
    """Members that are trained as one: of the same shape, as many as pay on the device; learned fronts come alone."""

    def shape(member: _Member) -> str:
        config = member.config
        return repr((_widths(config), config.dropout, config.modality_dropout, config.fusion, _is_learned(config)))

    stacks = []
    for _, group in groupby(sorted(members, key=shape), key=shape):
        same = list(group)
        size = STACK_CUDA if device.type == "cuda" else STACK_CPU if _weights(same[0].config) <= SMALL_HEAD else 1
        size = 1 if _is_learned(same[0].config) else size
        stacks += [same[start : start + size] for start in range(0, len(same), size)]
    return stacks


def _is_learned(config: HeadConfig) -> bool:
    """Whether transform or fusion have parameters."""
    return config.fusion != "concat" or TRANSFORMS[config.transform].learns


def _widths(config: HeadConfig) -> tuple[int, ...]:
    return (sum(config.dims.values()), *config.hidden, len(config.classes))


def _weights(config: HeadConfig) -> int:
    """Weights of the fully connected layers after concat; other fusions have as many in order of magnitude."""
    return sum(a * b for a, b in pairwise(_widths(config)))


def _step_seconds(config: HeadConfig, settings: TrainSettings) -> float:
    """Rough time of one head's step on one core: 0.3 ms, 0.4 ns per weight for Adam, and products at 100 GFLOP/s."""
    return 3e-4 + _weights(config) * (4e-10 + 6e-11 * settings.batch_size)


@contextmanager
def _threads(count: int, step_seconds: float, cores: int, report: _Reporter) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads compute on one core each, or share all cores when there are fewer of them and work is large.

    What ends the block early (an error in one thread, Ctrl-C) stops the others. PyTorch's own number of threads is as
    before afterwards.
    """
    before = torch.get_num_threads()
    each = max(1, cores // count) if step_seconds > SMALL_STEP_SECONDS else 1
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,))
    try:
        torch.set_num_threads(each)  # for what the pool's threads start from
        yield pool
    except BaseException:
        report.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _train_in_processes(
    stacks: Sequence[Sequence[_Member]], split: _Splits, settings: TrainSettings, report: _Reporter, workers: int
) -> Iterator[_Result]:
    """Train in worker processes, which are stopped when anything (Ctrl-C too) ends this early."""
    shipped = _Shipped.of(split)
    # mmap_mode "c": large arrays are shared through files, and torch gets an array that it may call writable
    with joblib.parallel_config(backend="loky", n_jobs=workers, inner_max_num_threads=1):
        parallel = joblib.Parallel(
            return_as="generator_unordered", mmap_mode="c", batch_size=1, pre_dispatch="2*n_jobs"
        )
        done = parallel(joblib.delayed(_train_in_worker)(stack, shipped, settings, os.getpid()) for stack in stacks)
        try:
            for results in done:
                report(settings.total_epochs * len(results))
                yield from results
        except BrokenProcessPool:
            raise ExperimentError(
                "a training process was killed from outside, probably for lack of memory: train fewer heads at a time"
            ) from None
        finally:
            done.close()


class _Shipped(NamedTuple):
    """Splits as arrays, which travel to worker processes through shared files."""

    windows: dict[str, tuple[dict[str, np.ndarray], np.ndarray]]
    dropped: dict[str, int]
    class_weights: torch.Tensor | None

    @classmethod
    def of(cls, split: _Splits) -> _Shipped:
        windows = {}
        for name, source in (("train", split.train), ("val", split.val)):
            window = next(source.windows(0))
            windows[name] = {key: x.numpy() for key, x in window.features.items()}, window.targets.numpy()
        return cls(windows, split.dropped, split.class_weights)

    def unpacked(self) -> _Splits:
        train, val = (
            InMemory(Window({key: torch.from_numpy(x) for key, x in features.items()}, torch.from_numpy(targets)))
            for features, targets in (self.windows["train"], self.windows["val"])
        )
        return _Splits(train, val, self.dropped, self.class_weights)


def _train_in_worker(
    stack: Sequence[_Member], shipped: _Shipped, settings: TrainSettings, parent: int
) -> list[_Result]:
    end_with_parent(parent)
    torch.set_num_threads(1)
    return _train([stack], shipped.unpacked(), settings, torch.device("cpu"), _Reporter(None))


# training itself


def _train(
    stacks: Sequence[Sequence[_Member]],
    split: _Splits,
    settings: TrainSettings,
    device: torch.device,
    report: _Reporter,
    pool: ThreadPoolExecutor | None = None,
) -> list[_Result]:
    """Train stacks through the same windows; in the pool's threads, if given, each window with all stacks at once."""
    each = pool.map if pool else map
    steps = settings.total_epochs * split.train.steps(settings.batch_size)
    running = [_Running(stack, settings, steps, device, split.class_weights) for stack in stacks]
    for epoch in range(settings.total_epochs):
        active = [stack for stack in running if not stack.finished]
        if not active:
            break
        for window in split.train.windows(epoch):
            list(each(partial(_Running.train, window=window, report=report), active))
        for window in split.val.windows(0):
            list(each(partial(_Running.validate, window=window), active))
        for stack in active:
            report(stack.end_epoch(len(split.train), len(split.val)))
    return [result for stack in running for result in stack.results()]


@dataclass
class _Record:
    """What is known of one head so far."""

    rows: list[tuple[float, float, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, np.ndarray] | None = None
    stopped: bool = False


class _Running:
    """A stack in training, with what was measured of each of its heads."""

    def __init__(
        self,
        members: Sequence[_Member],
        settings: TrainSettings,
        steps: int,
        device: torch.device,
        class_weights: torch.Tensor | None,
    ) -> None:
        self.members, self.settings = members, settings
        self.stack = Stack(
            [(member.config, member.seed) for member in members],
            settings,
            steps=steps,
            device=device,
            moments=[member.moments for member in members],
            class_weights=class_weights,
        )
        self.records = [_Record() for _ in members]
        self._clear()

    def _clear(self) -> None:
        self.train_loss, self.val_loss, self.right = (np.zeros(len(self.members)) for _ in range(3))

    @property
    def finished(self) -> bool:
        """Whether every head has stopped early."""
        return all(record.stopped for record in self.records)

    def train(self, window: Window, report: _Reporter) -> None:
        """Train on a window."""
        self.train_loss += self.stack.train_window(window, report.go_on)

    def validate(self, window: Window) -> None:
        """Validate on a window."""
        loss, right = self.stack.validate(window)
        self.val_loss += loss
        self.right += right

    def end_epoch(self, train_clips: int, val_clips: int) -> int:
        """Take down the epoch; returns how many epochs that finishes, those that early stopping saves included."""
        finished = 0
        for position, (member, record) in enumerate(zip(self.members, self.records, strict=True)):
            if record.stopped:
                continue
            train_loss, val_loss = self.train_loss[position] / train_clips, self.val_loss[position] / val_clips
            if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
                raise ExperimentError(
                    f"the loss stopped being finite in epoch {len(record.rows) + 1} of the head "
                    f"{member.config.describe()}, seed {member.seed}: lower the learning rate "
                    f"({self.settings.learning_rate:g}) or look at the embeddings"
                )
            record.rows.append((train_loss, val_loss, self.right[position] / val_clips))
            finished += 1 + self._stop_early(position, record, val_loss)
        self._clear()
        return finished

    def _stop_early(self, position: int, record: _Record, val_loss: float) -> int:
        """With patience, keep the best weights and stop when it has run out; returns the epochs saved."""
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

    def results(self) -> list[_Result]:
        """One for each head."""
        results = []
        for position, (member, record) in enumerate(zip(self.members, self.records, strict=True)):
            weights = record.best_weights or self.stack.state(position)
            history = History(*np.array(record.rows, dtype=np.float64).T)
            results.append(_Result(member.position, weights, history, record.best_epoch or len(record.rows)))
        return results

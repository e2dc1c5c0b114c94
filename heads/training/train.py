"""Training heads: many at once, each determined by its seed alone.

    configurations x seeds -> stacks of heads -> trained in threads, processes or Ray tasks -> trained heads

A head's initial weights, the order of its clips and its dropout are drawn from generators that depend on its seed
alone. So a head comes out the same whichever heads are trained with it, and in whichever process (up to rounding where
a stack or several threads share its sums). Experiments of one seed share order and dropout, which makes paired
comparisons more precise.

How heads are distributed (`benchmarks/bench_heads.py` measures the reasons):

- On the CPU, heads of the paper's size are trained in parallel, each on one thread: their steps are limited by memory
  bandwidth, and stacking would only increase the memory in use. Small heads (a linear probe) are stacked, because
  the overhead of operations dominates their steps.
- Threads start quickly and share the embeddings. Small steps on more than `MAX_THREADS` cores wait for Python's
  global lock, so long runs of small steps use processes.
- On CUDA, all heads of a shape form one stack with batched products.
- On a Ray cluster (`ray`), nodes train the same stacks with the same number of threads each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise, product
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight

from alphafuse.data.columns import Texts
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.data.streams import in_order
from alphafuse.errors import EmptySplitError, ExperimentError, unknown
from alphafuse.heads.model.config import MEASURED, HeadConfig, usable_clips
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.system.cluster import connected, require_engine
from alphafuse.system.devices import choose_device
from alphafuse.system.interrupts import submit, wait_for_any
from alphafuse.system.processes import end_with_parent, free_memory_bytes
from alphafuse.system.progress import NO_PROGRESS, Progress

from .batches import Source, Streamed, make_source
from .epochs import History, Member, PackedSplits, Reporter, Result, Splits, train_stacks
from .ray import train_on_ray
from .settings import TrainSettings

MAX_THREADS = 4  # for small steps: a third of such a step is Python code, which runs in one thread at a time
SMALL_STEP_SECONDS = 0.01
PROCESS_START_SECONDS = 5.0  # measured: start of a process that imports torch, two at a time on 2 cores
SMALL_HEAD = 400_000  # weights; in smaller heads a step's overhead exceeds its arithmetic, so they are stacked
STACK_CPU, STACK_CUDA = 4, 64
MOMENT_ROWS = 65_536  # rows whose moments are summed at a time: bounds memory
COPIES_IN_TRAINING = 4  # copies of a head's weights in memory: weights, two moments, and a result or gradient


@dataclass(frozen=True)
class TrainedHead:
    """One trained head.

    Attributes:
        head: the head in eval mode, on the CPU.
        seed: the seed of its random generators.
        history: losses and accuracy per epoch.
        epoch: the epoch of its weights, from 1: the last, or with `patience` the one with the lowest validation loss.
        dropped: "train" and "val" -> clips left out because they lack a stream that the head reads.
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
    engine: str = "local",
    address: str | None = None,
) -> list[TrainedHead]:
    """Train every head with every seed.

    Args:
        train, val: embeddings in memory or on disk; labels must occur in the heads' classes (val may have labels that
            train lacks). A train split on disk whose features exceed `settings.memory_gb` is streamed (see
            `heads.training.batches`): one pass over the store per epoch for all heads together, as long as they fit
            into half of the free memory.
        heads: configurations to train; each has its own hidden layers, dropout, normalisation and absent clips.
        seeds: whole numbers of at least 0.
        settings: epochs, batch size, Adam's settings, regularisation, device. Its fields of `HeadSettings` are ignored:
            each configuration has its own.
        class_weights: label -> weight of its clips, above 0, in place of `settings.class_weights`; other labels have 1.
        progress: its `advance` counts finished epochs, `len(heads) * len(seeds) * settings.total_epochs` in total; the
            caller starts and stops it.
        workers: threads or processes; 1 trains the stacks in sequence; None uses all cores. Local engine only.
        engine: "local" trains on this machine's cores, "ray" on the nodes of a Ray cluster. The heads are the same to
            the digit on nodes with the same kind of processor and the same versions.
        address: address of the Ray cluster, as in `alphafuse.system.cluster.connected`.

    Returns:
        Heads in the order heads[0] with each seed, heads[1] with each seed, ...

    Raises:
        EmptySplitError: a split has no clip that a head can use.
        ExperimentError: a label outside of a head's classes, a bad seed, contradicting settings, or a loss that is not
            finite.
        ClusterError: an unknown engine, no Ray, no such cluster, or nodes that can't train.

    >>> from alphafuse import Dataset, Experiment, HeadConfig, TrainSettings, train_heads
    >>> dataset = Dataset.open("demo")
    >>> train, val = dataset.embeddings("train"), dataset.embeddings("val")
    >>> experiments = [Experiment("scale", on="ast", alpha=alpha) for alpha in (0.5, 1.0)]
    >>> heads = [HeadConfig(train.dims, dataset.classes, experiment) for experiment in experiments]
    >>> trained = train_heads(train, val, heads, seeds=[0, 1], settings=TrainSettings(epochs=2))
    >>> [(one.head.config.experiment.name, one.seed) for one in trained[1:3]]
    [('scale-0.5-ast', 1), ('scale-1-ast', 0)]
    >>> trained[0].head.predict_proba(val).shape
    (26, 16)
    """
    settings = settings or TrainSettings()
    _check(heads, seeds, settings, workers)
    require_engine(engine)
    for label, weight in (class_weights or {}).items():
        if not (math.isfinite(weight) and weight > 0):
            raise ExperimentError(f"the weight of class {label} must be above 0, not {weight}")
    device = choose_device(settings.device)
    memory = memory_bytes(settings, device)
    usable: dict[tuple[Any, ...], UsableClips] = {}  # (streams, absent) of a head -> the clips that it can use
    kinds: dict[tuple[Any, ...], list[HeadConfig]] = {}  # heads that are trained on the same clips
    kind_of_head = []
    for config in heads:
        reads = (config.streams, config.settings.absent)
        if reads not in usable:
            usable[reads] = UsableClips(*(usable_clips(source, config) for source in (train, val)))
        kind = (config.classes, usable[reads].key)
        kinds.setdefault(kind, []).append(config)
        kind_of_head.append(kind)
    splits = {}
    for kind, configs in kinds.items():
        clips = usable[configs[0].streams, configs[0].settings.absent]
        splits[kind] = _load(train, val, clips, configs, settings, class_weights, device, memory)
    members = [Member(i, config, seed) for i, (config, seed) in enumerate(product(heads, seeds))]
    of_member = [splits[kind] for kind in kind_of_head for _ in seeds]
    results: dict[int, Result] = {}
    report = Reporter(progress or NO_PROGRESS)
    with ExitStack() as stack:
        ray = stack.enter_context(connected(address)) if engine == "ray" else None
        for split in splits.values():
            own = [member for member in members if of_member[member.position] is split]
            for result in _train_on_split(own, split, settings, device, report, workers, memory, ray):
                results[result.position] = result
    trained = []
    for member, split in zip(members, of_member, strict=True):
        result = results.pop(member.position)  # frees the arrays, so that each head's weights are in memory once
        head = AlphaFusion(member.config)
        head.load_state_dict({name: torch.tensor(value) for name, value in result.weights.items()})
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
    if settings.weight_decay and any(config.experiment.rates for config in heads):
        raise ExperimentError("learning rates per stream don't go with weight_decay: leave one of them out")


def memory_bytes(settings: TrainSettings, device: torch.device) -> int:
    """Return the bytes that training features may use: `memory_gb`, or half of the device's free memory."""
    if settings.memory_gb is not None:
        return int(settings.memory_gb * 1e9)
    return (torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()) // 2


def class_indices(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return the positions of labels in classes, (clips,) int64; `ExperimentError` for an unknown label."""
    position = {label: index for index, label in enumerate(classes)}
    try:
        if isinstance(labels, Texts):
            return labels.indices_in(classes)
        return np.fromiter((position[label] for label in labels), np.int64, len(labels))
    except KeyError as error:
        raise ExperimentError(unknown("label", error.args[0], classes)) from None


# the clips to train on


class UsableClips(NamedTuple):
    """Masks of the clips that heads can use, (clips,) bool per split; equal keys mean the same clips."""

    train: np.ndarray
    val: np.ndarray

    @property
    def key(self) -> tuple[bytes, bytes]:
        """The masks, packed and hashable."""
        return np.packbits(self.train).tobytes(), np.packbits(self.val).tobytes()


def _load(
    train: EmbeddingSource,
    val: EmbeddingSource,
    usable: UsableClips,
    configs: Sequence[HeadConfig],
    settings: TrainSettings,
    class_weights: Mapping[str, float] | None,
    device: torch.device,
    memory: int,
) -> Splits:
    """Load the usable clips, the same for all these heads; a quarter of the memory is for validation."""
    config = configs[0]
    streams = tuple(in_order({name for one in configs for name in one.streams}))
    sources, dropped = {}, {}
    weights = None
    for name, embeddings, rows, share in (
        ("train", train, usable.train, memory * 3 // 4),
        ("val", val, usable.val, memory // 4),
    ):
        if not rows.any():
            raise EmptySplitError(
                f"none of the {len(embeddings)} {name} clips has the embeddings that a head of "
                f"{' and '.join(config.streams)} needs: see `alphafuse store info`, or use --absent zeros"
            )
        kept = embeddings if rows.all() else embeddings.take(rows)
        targets = class_indices(kept.labels, config.classes)
        if name == "train" and class_weights is not None:
            weights = torch.tensor([float(class_weights.get(label, 1)) for label in config.classes])
        elif name == "train" and settings.class_weights == "balanced":
            present = np.unique(targets)
            weights = torch.ones(len(config.classes))
            weights[present] = torch.from_numpy(compute_class_weight("balanced", classes=present, y=targets)).float()
        sources[name] = make_source(kept, streams, targets, device=device, memory_bytes=share)
        dropped[name] = int((~rows).sum())
    return Splits(sources["train"], sources["val"], dropped, weights)


def _with_moments(members: Sequence[Member], source: Source, device: torch.device) -> list[Member]:
    """Return the members; those that normalise by moments of their training embeddings get them, in one pass."""
    kinds: dict[tuple[object, ...], tuple[AlphaFusion, dict[str, _Moments]]] = {}
    for config in (member.config for member in members if member.config.normalize in MEASURED):
        kind = config.preparation
        if kind not in kinds:
            kinds[kind] = AlphaFusion(config).to(device), {name: _Moments(dim) for name, dim in config.dims.items()}
    if not kinds:
        return list(members)
    for window in source.windows(0):
        for head, moments in kinds.values():
            for name, of_stream in moments.items():
                of_stream.add(head.transforms[name], window.features[name])
    found = {
        kind: _scales(head.config, {name: of_stream.mean_and_variance() for name, of_stream in moments.items()})
        for kind, (head, moments) in kinds.items()
    }
    return [member._replace(moments=found.get(member.config.preparation, {})) for member in members]


def _scales(config: HeadConfig, found: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    """Return mean and std (dim,) float32 per stream from mean and variance; a std of 0 becomes 1.

    For "variance", a stream has one std, which gives all streams the same total variance.
    """
    scales = {}
    share = sum(config.dims.values()) / len(config.dims)
    for name, (mean, variance) in found.items():
        if config.normalize == "variance":
            variance = (variance.sum() / share).expand_as(variance)
        scales[name] = mean.float(), torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance)).float()
    return scales


class _Moments:
    """Mean and variance per dimension, accumulated in float64 over windows."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.sums = torch.zeros(2, dim, dtype=torch.float64)  # sums of x and of x^2

    @torch.no_grad()
    def add(self, transform: torch.nn.Module, x: torch.Tensor) -> None:
        """Add transformed embeddings (rows, dim); rows of NaN are absent embeddings."""
        for part in x.split(MOMENT_ROWS):
            y = transform(part[~torch.isnan(part).any(dim=1)]).double()
            self.count += len(y)
            self.sums += torch.stack([y.sum(dim=0), y.square().sum(dim=0)]).cpu()

    def mean_and_variance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and variance, (dim,) float64 each; a variance of mere rounding error becomes 0."""
        mean, square = self.sums / max(self.count, 1)
        variance = (square - mean * mean).clamp_min(0)
        return mean, torch.where(variance > 1e-12 * square.clamp_min(1e-30), variance, 0.0)


# distribution over threads, processes and nodes


def _train_on_split(
    members: Sequence[Member],
    split: Splits,
    settings: TrainSettings,
    device: torch.device,
    report: Reporter,
    workers: int | None,
    memory: int,
    ray: Any,
) -> Iterator[Result]:
    members = _with_moments(members, split.train, device)
    stacks = _stacks(members, device)
    cores = workers or joblib.cpu_count()
    step = max(_step_seconds(member.config, settings) for member in members)
    if ray is not None:
        threads = _threads_each(min(cores, len(stacks)), step, cores)
        yield from train_on_ray(ray, stacks, split, settings, device, report, threads=threads)
        return
    if isinstance(split.train, Streamed):  # one pass over the store per epoch trains all heads of a group
        weights = max(_weights(member.config) for member in members)
        room = max(memory, free_memory_bytes() // 2) if device.type == "cpu" else memory
        size = max(cores, room // (4 * COPIES_IN_TRAINING * weights * max(map(len, stacks))))
        for start in range(0, len(stacks), size):
            group = stacks[start : start + size]
            with _threads(min(cores, len(group)), step, cores, report) as pool:
                yield from train_stacks(group, split, settings, device, report, pool)
        return
    parallel = min(cores, len(stacks)) if device.type == "cpu" else 1
    seconds = step * settings.total_epochs * split.train.steps(settings.batch_size) * len(stacks)
    if (
        parallel > MAX_THREADS
        and step < SMALL_STEP_SECONDS
        and seconds * (1 / MAX_THREADS - 1 / parallel) > PROCESS_START_SECONDS
    ):
        yield from _train_in_processes(stacks, split, settings, report, parallel)
        return
    with _threads(parallel, step, cores, report) as pool:
        tasks = {submit(pool, train_stacks, [stack], split, settings, device, report) for stack in stacks}
        while tasks:
            done = wait_for_any(tasks)
            tasks -= done
            for task in done:
                yield from task.result()


def _stacks(members: Sequence[Member], device: torch.device) -> list[list[Member]]:
    """Group members of the same shape into stacks, of the size that is fastest on the device.

    A head with a learned transform or fusion gets a stack of its own.
    """

    def shape(member: Member) -> str:
        config = member.config
        learned = config.experiment.learns
        options = config.settings.dropout, config.settings.modality_dropout, config.experiment.fusion, learned
        return repr((config.streams, _widths(config), *options))

    stacks = []
    for _, group in groupby(sorted(members, key=shape), key=shape):
        same = list(group)
        size = STACK_CUDA if device.type == "cuda" else STACK_CPU if _weights(same[0].config) <= SMALL_HEAD else 1
        size = 1 if same[0].config.experiment.learns else size
        stacks += [same[start : start + size] for start in range(0, len(same), size)]
    return stacks


def _widths(config: HeadConfig) -> tuple[int, ...]:
    return (sum(config.dims.values()), *config.settings.hidden, len(config.classes))


def _weights(config: HeadConfig) -> int:
    """Return the number of weights of the layers after concat; other fusions have the same order of magnitude."""
    return sum(a * b for a, b in pairwise(_widths(config)))


def _step_seconds(config: HeadConfig, settings: TrainSettings) -> float:
    """Estimate a head's step on one core: 0.3 ms, plus 0.4 ns per weight for Adam, plus products at 100 GFLOP/s."""
    return 3e-4 + _weights(config) * (4e-10 + 6e-11 * settings.batch_size)


def _threads_each(count: int, step_seconds: float, cores: int) -> int:
    """Return the number of cores for each of `count` threads."""
    return max(1, cores // count) if step_seconds > SMALL_STEP_SECONDS else 1


@contextmanager
def _threads(count: int, step_seconds: float, cores: int, report: Reporter) -> Iterator[ThreadPoolExecutor]:
    """A pool of `count` threads: one core each, or more when there are fewer threads than cores and steps are large.

    An error in one thread, or Ctrl-C, stops the others. PyTorch's own number of threads is restored afterwards.
    """
    before = torch.get_num_threads()
    each = _threads_each(count, step_seconds, cores)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,))
    try:
        torch.set_num_threads(each)  # new threads inherit it
        yield pool
    except BaseException:
        report.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _train_in_processes(
    stacks: Sequence[Sequence[Member]], split: Splits, settings: TrainSettings, report: Reporter, workers: int
) -> Iterator[Result]:
    """Train in worker processes; an error or Ctrl-C stops them."""
    packed = PackedSplits.of(split)
    # mmap_mode "c" (copy-on-write): large arrays are shared through files, and torch gets arrays marked as writable
    with joblib.parallel_config(backend="loky", n_jobs=workers, inner_max_num_threads=1):
        parallel = joblib.Parallel(
            return_as="generator_unordered", mmap_mode="c", batch_size=1, pre_dispatch="2*n_jobs"
        )
        done = parallel(joblib.delayed(_train_in_worker)(stack, packed, settings, os.getpid()) for stack in stacks)
        try:
            for results in done:
                report.finished(settings.total_epochs * len(results))
                yield from results
        except BrokenProcessPool:
            raise ExperimentError(
                "a training process was killed from outside, probably for lack of memory: train fewer heads at a time"
            ) from None
        finally:
            done.close()


def _train_in_worker(
    stack: Sequence[Member], packed: PackedSplits, settings: TrainSettings, parent: int
) -> list[Result]:
    end_with_parent(parent)
    torch.set_num_threads(1)
    return train_stacks([stack], packed.unpacked(), settings, torch.device("cpu"), Reporter())

"""Speed of training heads on this machine.

    python benchmarks/bench_heads.py --part table1 --part start
    python benchmarks/bench_heads.py --part clips --clips 10000000 --repeats 1

    table1      the paper's size, compared with a plain PyTorch loop and scikit-learn
    start       time until a small job in a new process finishes its first epoch
    stacks      heads stacked or not, in threads or in processes
    vggsound    VGGSound's size, compared with the machine's rate of matrix products
    scaling     cost per clip, from a thousand clips to a million
    stream      a store larger than the memory for training features
    clips       many clips with small embeddings: memory and time per clip apart from its features

Contenders run in turns (a b c, a b c, ...), so that other load on the machine affects all of them, and ratios are taken
within a turn. Figures are medians over turns, with minimum and maximum.

Each contender runs in a new process, because speed depends on what a process did before. At first glibc's malloc
returns large blocks to the system whenever they are freed, so a plain PyTorch loop spends half its time on page
faults. On 2 cores of an AMD EPYC it took 2.1 s per head in a new process, 1.15 s in one that had freed large arrays.
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from bench_clips import UNITS, ClipsSize, train_from_root, write_root
from command import parser_of, print_bench
from joblib.externals.loky import get_reusable_executor
from measuring import (
    Bench,
    Clock,
    Figure,
    Measure,
    Part,
    PeakMemory,
    Turn,
    in_new_process,
    ratios,
    run_parts,
    runs_per_second,
    seconds_of,
)
from torch import nn

from alphafuse.data.embeddings import Embeddings
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.data.streams import DEFAULT_NAMES
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import HeadConfig, HeadSettings
from alphafuse.heads.training import linear
from alphafuse.heads.training import train as training
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import train_heads
from alphafuse.system.processes import free_memory_bytes

DRAWN_ROWS = 65_536  # random rows; larger splits repeat them: drawing a million takes longer than training on them
SHARD_ROWS = 8192
VAL_SHARE = 0.01
MIN_CLIPS = 1000  # of part "clips": fewer don't fill its windows
MEMORY_SHARE = 1 / 3  # share of free memory for features; training loads features of up to 3/8 into memory
CENTRE_DISTANCE = 5.0  # between two classes' centres, in standard deviations of a class: most clips can be classified


@dataclass(frozen=True)
class Shape:
    """Shape of heads in part "stacks": name shown to users, hidden widths, and epochs for some seconds of training."""

    name: str
    hidden: tuple[int, ...]
    epochs: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements.

    Attributes:
        dim: dimension of each of the two streams.
        hidden: widths of the hidden layers.
        clips, val_clips, classes, epochs, heads: sizes of part "table1".
        other_heads: heads that the other contenders train, after one that isn't counted.
        start_heads: heads of the small job in part "start".
        stack_sizes: heads per stack.
        shapes: shapes of the stacked heads.
        large_clips, large_classes, large_batch, large_epochs: sizes of part "vggsound"; the first epoch isn't counted.
        matrix, matrix_seconds: width of the square matrices in part "vggsound", and duration of that measurement.
        scaling_clips: numbers of training clips in part "scaling".
        scaling_seen: clips to train on for each number, in at least one whole epoch, after one that isn't counted.
        stream_clips, stream_val_clips, stream_epochs: sizes of part "stream".
        stream_gb: memory for features while streaming, in 10^9 bytes.
        root: size of the root of part "clips", and of the training on it.
    """

    dim: int = 768
    hidden: tuple[int, ...] = HeadSettings.hidden
    clips: int = 86
    val_clips: int = 9
    classes: int = 91
    epochs: int = 25
    heads: int = 48
    other_heads: int = 2
    start_heads: int = 6
    stack_sizes: tuple[int, ...] = (1, 4, 16)
    shapes: tuple[Shape, ...] = (
        Shape("paper's head", HeadSettings.hidden, 8),
        Shape("head with 256 hidden units", (256,), 20),
        Shape("linear probe", (), 80),
    )
    large_clips: int = 183_730
    large_classes: int = 309
    large_batch: int = 512
    large_epochs: int = 3
    matrix: int = 4096
    matrix_seconds: float = 2.0
    scaling_clips: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)
    scaling_seen: int = 500_000
    stream_clips: int = 183_730
    stream_val_clips: int = 5000
    stream_epochs: int = 4
    stream_gb: float = 0.15
    root: ClipsSize = field(default_factory=ClipsSize)


FULL = Sizes()
QUICK = Sizes(  # to check that everything works; the figures mean nothing
    dim=8,
    hidden=(16, 8),
    clips=24,
    val_clips=4,
    classes=6,
    epochs=2,
    heads=4,
    other_heads=1,
    start_heads=2,
    stack_sizes=(1, 2),
    shapes=(Shape("paper's head", (16, 8), 1), Shape("linear probe", (), 1)),
    large_clips=600,
    large_classes=6,
    large_batch=64,
    large_epochs=2,
    matrix=64,
    matrix_seconds=0.01,
    scaling_clips=(100, 1000),
    scaling_seen=1000,
    stream_clips=2048,
    stream_val_clips=200,
    stream_epochs=3,
    stream_gb=0.00004,
    root=ClipsSize(clips=2000, eval_clips=50, dim=4, classes=5, hidden=(8,), batch_size=64, memory_gb=0.00004),
)


def bench_heads(
    parts: Sequence[str] = (),
    *,
    repeats: int = 3,
    quick: bool = False,
    clips: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Bench:
    """Measure the speed of training heads on this machine.

    Args:
        parts: names of entries of `PARTS`; empty for all. Each takes minutes, and up to a third of the free memory.
        repeats: number of turns, at least 1.
        quick: whether to use small sizes, to check that everything works.
        clips: number of clips in part "clips"; each needs 180 bytes of temporary files on disk. None = 1,000,000.
        progress: called with a description of each measurement before it starts.

    Raises:
        ExperimentError: an unknown part, fewer than 1 turn, or a measurement whose process was killed.

    >>> from bench_heads import bench_heads
    >>> bench_heads(["table1"]).parts[0]  # doctest: +SKIP
    """
    sizes = QUICK if quick else FULL
    if clips is not None:
        if isinstance(clips, bool) or not isinstance(clips, int) or clips < MIN_CLIPS:
            raise ExperimentError(f"clips must be a whole number of at least {MIN_CLIPS}, not {clips!r}")
        share = min(1.0, clips / sizes.root.clips)  # fewer clips are streamed in the same number of windows
        root = sizes.root._replace(clips=clips, memory_gb=sizes.root.memory_gb * share)
        sizes = replace(sizes, root=root)
    chosen = {name: partial(part, sizes) for name, part in PARTS.items()}
    return run_parts("Heads on the CPU", chosen, parts, repeats=repeats, quick=quick, progress=progress)


# training data


def random_split(clips: int, dim: int, classes: int, *, seed: int = 0) -> Embeddings:
    """Return normally distributed embeddings of two streams; labels cycle through the classes."""
    rng = np.random.default_rng(seed)
    features = {}
    for stream in DEFAULT_NAMES:
        drawn = rng.standard_normal((min(clips, DRAWN_ROWS), dim), dtype=np.float32)
        features[stream] = drawn if clips <= DRAWN_ROWS else np.empty((clips, dim), np.float32)
        for start in range(0, clips if clips > DRAWN_ROWS else 0, DRAWN_ROWS):
            features[stream][start : start + DRAWN_ROWS] = drawn[: clips - start]
    ids = tuple(f"clip{i:07d}_000000" for i in range(clips))
    names = class_names(classes)
    return Embeddings(ids, tuple(names[i % classes] for i in range(clips)), ids, features)


def class_names(classes: int) -> tuple[str, ...]:
    """Return one name per class."""
    return tuple(f"class {i}" for i in range(classes))


def _head(dim: int, hidden: Sequence[int], classes: int) -> HeadConfig:
    return HeadConfig(
        dict.fromkeys(DEFAULT_NAMES, dim), class_names(classes), settings=HeadSettings(hidden=tuple(hidden))
    )


def _paper_size(sizes: Sizes, hidden: Sequence[int] | None = None) -> tuple[Embeddings, Embeddings, HeadConfig]:
    """Return training clips, validation clips and head of part "table1"."""
    train = random_split(sizes.clips, sizes.dim, sizes.classes)
    val = random_split(sizes.val_clips, sizes.dim, sizes.classes, seed=1)
    return train, val, _head(sizes.dim, sizes.hidden if hidden is None else hidden, sizes.classes)


def _widths(sizes: Sizes, classes: int) -> tuple[int, ...]:
    return (len(DEFAULT_NAMES) * sizes.dim, *sizes.hidden, classes)


def _shape(sizes: Sizes, classes: int) -> str:
    return "-".join(map(str, _widths(sizes, classes)))


def _affordable_clips(clips: int, dim: int) -> int:
    """Return the number of clips, at most `clips`, whose features fit into the share of memory."""
    return min(clips, int(free_memory_bytes() * MEMORY_SHARE) // (4 * len(DEFAULT_NAMES) * dim))


# table1


def _table1(sizes: Sizes, measure: Measure) -> Part:
    found = measure(
        {
            "alphafuse": partial(_table1_alphafuse, sizes),
            "plain loop": partial(_table1_plain, sizes, fused=False),
            "plain loop, fused Adam": partial(_table1_plain, sizes, fused=True),
            "MLPClassifier": partial(_table1_sklearn, sizes),
        }
    )
    ours = found["alphafuse"]
    figures = [Figure(f"{name}, per head", "s", values) for name, values in found.items()]
    for name, least in (("plain loop", 4.0), ("plain loop, fused Adam", None), ("MLPClassifier", 7.0)):
        figures.append(Figure(f"{name} / alphafuse", "x", ratios(found[name], ours), least=least))
    return Part(
        "table1",
        f"{sizes.clips} x {len(DEFAULT_NAMES) * sizes.dim}, {sizes.classes} classes, {_shape(sizes, sizes.classes)}, "
        f"batch 8, {sizes.epochs} epochs; {sizes.heads} heads with alphafuse, {sizes.other_heads} with each other one",
        tuple(figures),
        (
            "Each contender first trains one more head, which isn't counted.",
            "Plain loop: torch.nn.Sequential, torch.optim.Adam, batches by index, PyTorch's default number of threads.",
            "MLPClassifier has no dropout, and no validation after each epoch, unlike the others; its last layer has "
            f"the {min(sizes.clips, sizes.classes)} classes that occur.",
        ),
    )


def _table1_alphafuse(sizes: Sizes, turn: Turn) -> dict[str, float]:
    train, val, config = _paper_size(sizes)
    settings = TrainSettings(epochs=sizes.epochs, device="cpu")
    train_heads(train, val, [config], [0], settings=settings)
    seeds = range(1, 1 + sizes.heads)
    return {"alphafuse": seconds_of(lambda: train_heads(train, val, [config], seeds, settings=settings)) / sizes.heads}


def _table1_plain(sizes: Sizes, turn: Turn, *, fused: bool) -> dict[str, float]:
    (x, y), val = (
        (torch.from_numpy(_features(split)), torch.tensor(_targets(split))) for split in _paper_size(sizes)[:2]
    )
    _plain_loop(sizes, x, y, val, seed=0, fused=fused)
    seconds = seconds_of(
        lambda: [_plain_loop(sizes, x, y, val, seed=1 + i, fused=fused) for i in range(sizes.other_heads)]
    )
    return {"plain loop, fused Adam" if fused else "plain loop": seconds / sizes.other_heads}


def _features(split: Embeddings) -> np.ndarray:
    return np.concatenate([split.features[stream] for stream in DEFAULT_NAMES], axis=1)


def _targets(split: Embeddings) -> list[int]:
    return [int(label.removeprefix("class ")) for label in split.labels]


def _plain_loop(
    sizes: Sizes,
    x: torch.Tensor,
    y: torch.Tensor,
    val: tuple[torch.Tensor, torch.Tensor],
    *,
    seed: int,
    fused: bool,
) -> list[tuple[float, float, float]]:
    """Train one head as in PyTorch's tutorials; return (train loss, val loss, val accuracy) of each epoch."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(_widths(sizes, sizes.classes)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(HeadSettings.dropout)]
    model = nn.Sequential(*layers[:-2])
    optimizer = torch.optim.Adam(model.parameters(), lr=TrainSettings.learning_rate, fused=fused or None)
    loss_function = nn.CrossEntropyLoss()
    history = []
    for _ in range(sizes.epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(x)).split(TrainSettings.batch_size):
            optimizer.zero_grad()
            loss = loss_function(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        model.eval()
        with torch.no_grad():
            logits = model(val[0])
            val_loss = loss_function(logits, val[1]).item()
            accuracy = (logits.argmax(dim=1) == val[1]).float().mean().item()
        history.append((total / len(x), val_loss, accuracy))
    return history


def _table1_sklearn(sizes: Sizes, turn: Turn) -> dict[str, float]:
    train = _paper_size(sizes)[0]
    x, y = _features(train), np.array(_targets(train))
    _sklearn_head(sizes, x, y, seed=0)
    seconds = seconds_of(lambda: [_sklearn_head(sizes, x, y, seed=1 + i) for i in range(sizes.other_heads)])
    return {"MLPClassifier": seconds / sizes.other_heads}


def _sklearn_head(sizes: Sizes, x: np.ndarray, y: np.ndarray, *, seed: int) -> int:
    """Train scikit-learn's head; return the number of epochs, which is always `sizes.epochs`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        hidden_layer_sizes=sizes.hidden,
        batch_size=TrainSettings.batch_size,
        learning_rate_init=TrainSettings.learning_rate,
        alpha=0.0,
        max_iter=sizes.epochs,
        n_iter_no_change=sizes.epochs + 1,  # no early stopping
        tol=0.0,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(x, y)
    return int(classifier.n_iter_)


# start


def _start(sizes: Sizes, measure: Measure) -> Part:
    found = measure({"small job": partial(_start_small, sizes)})
    both = tuple(a + b for a, b in zip(found["imports"], found["first epoch"], strict=True))
    return Part(
        "start",
        f"{sizes.start_heads} heads of table 1's size in a new process",
        (
            Figure("Python and imports, before the call", "s", found["imports"]),
            Figure("from the call to a head's first epoch", "s", found["first epoch"], most=3.0),
            Figure("both together", "s", both, most=3.0),
            Figure(f"from the call to all {sizes.start_heads} heads", "s", found["all"]),
        ),
    )


def _start_small(sizes: Sizes, turn: Turn) -> dict[str, float]:
    imports = time.time() - turn.requested
    train, val, config = _paper_size(sizes)
    settings = TrainSettings(epochs=sizes.epochs, device="cpu")
    clock, start = Clock(), time.perf_counter()
    train_heads(train, val, [config], range(sizes.start_heads), settings=settings, progress=clock)
    return {"imports": imports, "first epoch": clock.times[0] - start, "all": time.perf_counter() - start}


# stacks


def _stacks(sizes: Sizes, measure: Measure) -> Part:
    found = measure({"stacks, threads, processes": partial(_stacks_all, sizes)})
    started = found.pop("start of processes")
    workers = max(2, joblib.cpu_count())
    weights = ", ".join(f"{shape.name} {_weights(sizes, shape):,}" for shape in sizes.shapes)
    return Part(
        "stacks",
        f"{sizes.clips} x {len(DEFAULT_NAMES) * sizes.dim}, batch 8, {max(sizes.stack_sizes) * workers} heads on "
        f"{workers} workers; weights: {weights}",
        (
            *(Figure(name, "ms per step of a head", values) for name, values in found.items()),
            Figure("start of the processes", "s", started),
        ),
        (
            f"On the CPU, training stacks up to {training.STACK_CPU} heads of at most {training.SMALL_HEAD:,} weights. "
            f"It uses threads on up to {training.MAX_THREADS} cores and for steps of more than "
            f"{1000 * training.SMALL_STEP_SECONDS:g} ms; otherwise processes, if they save more than "
            f"{training.PROCESS_START_SECONDS:g} s.",
            "Step of a head: wall time / (heads x steps) with all workers busy, without the start of processes.",
        ),
    )


def _weights(sizes: Sizes, shape: Shape) -> int:
    return sum(a * b for a, b in pairwise((len(DEFAULT_NAMES) * sizes.dim, *shape.hidden, sizes.classes)))


def _stacks_all(sizes: Sizes, turn: Turn) -> dict[str, float]:
    workers = max(2, joblib.cpu_count())
    heads = max(sizes.stack_sizes) * workers
    threads = {"PROCESS_START_SECONDS": math.inf}
    processes = {"PROCESS_START_SECONDS": -math.inf, "SMALL_STEP_SECONDS": math.inf, "MAX_THREADS": 1}

    def train(shape: Shape, count: int, epochs: int, **constants: float) -> float:
        train_clips, val, config = _paper_size(sizes, shape.hidden)
        settings = TrainSettings(epochs=epochs, device="cpu")
        with _training_constants(**constants):
            return seconds_of(
                lambda: train_heads(train_clips, val, [config], range(count), settings=settings, workers=workers)
            )

    found = {}
    for shape in sizes.shapes:
        steps = shape.epochs * -(-sizes.clips // TrainSettings.batch_size)
        train(shape, workers, 1, **threads)  # not counted
        for size in sizes.stack_sizes:
            seconds = train(shape, heads, shape.epochs, STACK_CPU=size, SMALL_HEAD=math.inf, **threads)
            found[f"{shape.name}, stacks of {size}"] = 1000 * seconds / (heads * steps)
    found["start of processes"] = train(sizes.shapes[-1], workers, 1, STACK_CPU=1, **processes)
    for shape in sizes.shapes:
        steps = shape.epochs * -(-sizes.clips // TrainSettings.batch_size)
        train(shape, workers, 1, STACK_CPU=1, **processes)  # not counted
        for name, way in (("threads", threads), ("processes", processes)):
            seconds = train(shape, heads, shape.epochs, **way)
            found[f"{shape.name}, {name}"] = 1000 * seconds / (heads * steps)
    get_reusable_executor().shutdown(wait=True)  # otherwise this process waits five minutes for idle workers to end
    return found


@contextmanager
def _training_constants(**constants: float) -> Iterator[None]:
    """Temporarily replace constants of `heads.training.train`."""
    before = {name: getattr(training, name) for name in constants}
    for name, value in constants.items():
        setattr(training, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(training, name, value)


# vggsound


def _vggsound(sizes: Sizes, measure: Measure) -> Part:
    clips = _affordable_clips(sizes.large_clips, sizes.dim)
    found = measure({"training and matrix products": partial(_vggsound_rates, sizes, clips)})
    mm, onednn = found.pop("torch.mm"), found.pop("oneDNN")
    products = {"torch.mm": mm, "oneDNN": onednn}
    figures = [Figure(f"{name} of {sizes.matrix} x {sizes.matrix}", "GFLOP/s", v) for name, v in products.items()]
    for name, values in found.items():
        figures.append(Figure(f"training {name}", "GFLOP/s", values))
        for product, rates in products.items():
            share = tuple(100 * ratio for ratio in ratios(values, rates))
            figures.append(Figure(f"training {name} / {product}", "%", share, least=80.0))
    notes = [
        "Counted products: 2 operations per multiply-add in the forward pass, the weights' gradients and the inputs' "
        "gradients (except the first layer's). Time: whole epochs with Adam and dropout, after the first.",
        "Matrix products on all cores, before and after training, in the same process. torch.mm is PyTorch's default "
        "library; a single head's products use oneDNN (heads/training/linear.py).",
    ]
    if clips < sizes.large_clips:
        notes.append(f"{clips} clips instead of {sizes.large_clips}, because there isn't enough free memory.")
    return Part(
        "vggsound",
        f"{clips} x {len(DEFAULT_NAMES) * sizes.dim}, {sizes.large_classes} classes, "
        f"{_shape(sizes, sizes.large_classes)}, batch {sizes.large_batch}",
        tuple(figures),
        tuple(notes),
    )


def _vggsound_rates(sizes: Sizes, clips: int, turn: Turn) -> dict[str, float]:
    train = random_split(clips, sizes.dim, sizes.large_classes)
    val = random_split(max(1, int(VAL_SHARE * clips)), sizes.dim, sizes.large_classes, seed=1)
    config = _head(sizes.dim, sizes.hidden, sizes.large_classes)
    settings = TrainSettings(epochs=sizes.large_epochs, batch_size=sizes.large_batch, device="cpu")
    a, b = torch.rand(2, sizes.matrix, sizes.matrix)
    bias = torch.zeros(1, sizes.matrix)
    operations = 2 * sizes.matrix**3

    def rates() -> np.ndarray:
        mm = runs_per_second(lambda: torch.mm(a, b), sizes.matrix_seconds)
        onednn = runs_per_second(lambda: linear.forward(a[None], b[None], bias), sizes.matrix_seconds)
        return np.array([mm, onednn]) * operations / 1e9

    before = rates()
    found = {}
    for name, heads in (("one head", 1), ("a head per core", joblib.cpu_count())):
        clock = Clock()
        train_heads(train, val, [config], range(heads), settings=settings, progress=clock)
        done = heads * clips * operations_per_clip(_widths(sizes, sizes.large_classes))
        found[name] = done / clock.seconds_per_epoch(heads) / 1e9
    mm, onednn = (before + rates()) / 2
    return {"torch.mm": float(mm), "oneDNN": float(onednn), **found}


def operations_per_clip(widths: Sequence[int]) -> int:
    """Return the floating-point operations of the products in training on one clip, 2 per multiply-add."""
    weights = [a * b for a, b in pairwise(widths)]
    return 2 * (sum(weights) + sum(weights) + sum(weights[1:]))  # forward, weights' gradients, inputs' gradients


# scaling


def _scaling(sizes: Sizes, measure: Measure) -> Part:
    most = max(sizes.scaling_clips)
    fitting = [dim for dim in (sizes.dim, sizes.dim // 2) if _affordable_clips(most, dim) == most]
    dim = fitting[0] if fitting else sizes.dim // 2
    counts = [clips for clips in sizes.scaling_clips if _affordable_clips(clips, dim) == clips]
    found = measure({"training": partial(_scaling_all, sizes, dim, tuple(counts))})
    notes = [
        f"Whole epochs including validation on {VAL_SHARE:.0%} of the number of clips, after one that isn't counted; "
        f"at least {sizes.scaling_seen} clips each, one head on all cores."
    ]
    if dim < sizes.dim:
        notes.append(f"{dim} instead of {sizes.dim} numbers per stream, because there isn't enough free memory.")
    if len(counts) < len(sizes.scaling_clips):
        notes.append(f"At most {counts[-1]} clips, because there isn't enough free memory.")
    costs = [found[str(clips)] for clips in counts]
    slowest = tuple(max(turn) / min(turn) for turn in zip(*costs, strict=True))
    return Part(
        "scaling",
        f"clips x {len(DEFAULT_NAMES) * dim} in memory, {sizes.large_classes} classes, batch {sizes.large_batch}",
        (
            *(Figure(f"{clips} clips", "us per clip", cost) for clips, cost in zip(counts, costs, strict=True)),
            Figure(f"{counts[-1]} clips / {counts[0]} clips", "x", ratios(costs[-1], costs[0])),
            Figure("highest cost / lowest cost", "x", slowest),
        ),
        tuple(notes),
    )


def _scaling_all(sizes: Sizes, dim: int, counts: Sequence[int], turn: Turn) -> dict[str, float]:
    train = random_split(max(counts), dim, sizes.large_classes)
    val = random_split(max(1, int(VAL_SHARE * max(counts))), dim, sizes.large_classes, seed=1)
    config = _head(dim, sizes.hidden, sizes.large_classes)
    found = {}
    for clips in counts:
        epochs = 1 + max(1, round(sizes.scaling_seen / clips))
        settings = TrainSettings(epochs=epochs, batch_size=sizes.large_batch, device="cpu")
        clock = Clock()
        splits = _first(train, clips), _first(val, max(1, int(VAL_SHARE * clips)))
        train_heads(*splits, [config], [0], settings=settings, progress=clock)
        found[str(clips)] = 1e6 * clock.seconds_per_epoch(1) / clips
    return found


def _first(split: Embeddings, clips: int) -> Embeddings:
    """Return the first clips, without copying their features."""
    features = {name: matrix[:clips] for name, matrix in split.features.items()}
    return Embeddings(split.clip_ids[:clips], split.labels[:clips], split.groups[:clips], features)


# stream


def _stream(sizes: Sizes, measure: Measure) -> Part:
    clips = _affordable_clips(sizes.stream_clips, sizes.dim)
    features_mb = 4e-6 * len(DEFAULT_NAMES) * sizes.dim * clips
    with tempfile.TemporaryDirectory(prefix="alphafuse-bench-") as folder:
        in_new_process(partial(_write_stores, sizes, clips, Path(folder)), 0)
        found = measure(
            {
                "in memory": partial(_stream_train, sizes, Path(folder), memory_gb=None),
                "streamed": partial(_stream_train, sizes, Path(folder), memory_gb=sizes.stream_gb),
            }
        )
    units = {"opening the store": "s", "training": "us per clip", "peak memory": "MB", "accuracy": "%"}
    figures = [
        Figure(f"{quantity}, {way}", unit, found[f"{quantity}, {way}"])
        for quantity, unit in units.items()
        for way in ("in memory", "streamed")
    ]
    cost = ratios(found["training, streamed"], found["training, in memory"])
    accuracies = zip(found["accuracy, streamed"], found["accuracy, in memory"], strict=True)
    figures.append(Figure("cost per clip, streamed / in memory", "x", cost))
    figures.append(Figure("accuracy, streamed - in memory", "points", tuple(a - b for a, b in accuracies)))
    notes = [
        f"Memory for features: {1000 * sizes.stream_gb:g} MB of {features_mb:,.4g} MB when streamed, no limit in "
        "memory. Peak memory: of the process, minus its memory after imports; includes the head, Adam's moments and "
        "PyTorch's own memory.",
        "Each turn has its own seed. The store was just written, so its files are in the system's cache if they fit.",
    ]
    if clips < sizes.stream_clips:
        notes.append(f"{clips} clips instead of {sizes.stream_clips}, because there isn't enough free memory.")
    return Part(
        "stream",
        f"{clips} x {len(DEFAULT_NAMES) * sizes.dim} from a store, {sizes.large_classes} learnable classes, "
        f"batch {sizes.large_batch}, {sizes.stream_epochs} epochs, {sizes.stream_val_clips} validation clips",
        tuple(figures),
        tuple(notes),
    )


def _write_stores(sizes: Sizes, clips: int, folder: Path, turn: Turn) -> dict[str, float]:
    """Write stores "train" and "val" of clips that are distributed around their class's centre."""
    rng = np.random.default_rng(0)
    width = len(DEFAULT_NAMES) * sizes.dim
    spread = CENTRE_DISTANCE / math.sqrt(2 * width)
    centres = spread * rng.standard_normal((sizes.large_classes, width), dtype=np.float32)
    names = class_names(sizes.large_classes)
    recipes: dict[str, dict[str, Any]] = {stream: {"protocol": "benchmark"} for stream in DEFAULT_NAMES}
    for name, count in (("train", clips), ("val", sizes.stream_val_clips)):
        store = EmbeddingStore(folder / name)
        for start in range(0, count, SHARD_ROWS):
            rows = min(SHARD_ROWS, count - start)
            targets = rng.integers(sizes.large_classes, size=rows)
            x = centres[targets] + rng.standard_normal((rows, width), dtype=np.float32)
            ids = tuple(f"{name}{start + i:07d}_000000" for i in range(rows))
            features = dict(zip(DEFAULT_NAMES, np.split(x, len(DEFAULT_NAMES), axis=1), strict=True))
            labels = tuple(names[i] for i in targets)
            store.write(Embeddings(ids, labels, ids, features, recipes=recipes))
    return {}


def _stream_train(sizes: Sizes, folder: Path, turn: Turn, *, memory_gb: float | None) -> dict[str, float]:
    way = "in memory" if memory_gb is None else "streamed"
    config = _head(sizes.dim, sizes.hidden, sizes.large_classes)
    settings = TrainSettings(
        epochs=sizes.stream_epochs, batch_size=sizes.large_batch, memory_gb=memory_gb, device="cpu"
    )
    stores = [EmbeddingStore(folder / name) for name in ("train", "val")]
    clock, start = Clock(), time.perf_counter()
    with PeakMemory() as peak:
        train, val = [store.read() if memory_gb is None else store.open_rows() for store in stores]
        opened = time.perf_counter() - start
        trained = train_heads(train, val, [config], [turn.number], settings=settings, progress=clock)
    return {
        f"opening the store, {way}": opened,
        f"training, {way}": 1e6 * clock.seconds_per_epoch(1) / len(train),
        f"peak memory, {way}": peak.grown_bytes / 1e6,
        f"accuracy, {way}": 100 * float(trained[0].history.val_accuracy[-1]),
    }


# clips


def _clips(sizes: Sizes, measure: Measure) -> Part:
    size = sizes.root
    with tempfile.TemporaryDirectory(prefix="alphafuse-bench-") as name:
        folder = Path(name)
        in_new_process(partial(_write_root, size, folder), 0)
        found = measure(
            {
                "in memory": partial(train_from_root, size, folder, memory_gb=None),
                "streamed": partial(train_from_root, size, folder, memory_gb=size.memory_gb),
            }
        )
    figures = [
        Figure(f"{quantity}, {way}", unit, found[f"{quantity}, {way}"])
        for quantity, unit in UNITS.items()
        for way in ("in memory", "streamed")
    ]
    accuracies = zip(found["accuracy, streamed"], found["accuracy, in memory"], strict=True)
    figures.append(Figure("accuracy, streamed - in memory", "points", tuple(a - b for a, b in accuracies)))
    features = 4 * len(DEFAULT_NAMES) * size.dim
    return Part(
        "clips",
        f"{size.clips} x {len(DEFAULT_NAMES) * size.dim} from a root whose store is sorted by class, {size.classes} "
        f"classes, {size.heads} heads with {', '.join(map(str, size.hidden))} hidden units, batch {size.batch_size}, "
        f"{size.epochs} epochs",
        tuple(figures),
        (
            f"Features take {features} bytes per clip; streaming may use {1000 * size.memory_gb:g} MB for them. Peak "
            "memory per clip: of the process until then, minus its memory after imports.",
            "Each turn has its own seeds. The store was just written, so its files are in the system's cache if they "
            "fit.",
        ),
    )


def _write_root(size: ClipsSize, folder: Path, turn: Turn) -> dict[str, float]:
    write_root(folder, size)
    return {}


PARTS: dict[str, Callable[[Sizes, Measure], Part]] = {
    "table1": _table1,
    "start": _start,
    "stacks": _stacks,
    "vggsound": _vggsound,
    "scaling": _scaling,
    "stream": _stream,
    "clips": _clips,
}


def main() -> None:
    """Run the command line."""
    parser = parser_of(__doc__, PARTS)
    parser.add_argument("--clips", type=int, help="number of clips in part clips (default: 1000000)")
    options = parser.parse_args()
    print_bench(options, partial(bench_heads, clips=options.clips))


if __name__ == "__main__":
    from bench_heads import main as run  # imported by name, so that worker processes can unpickle its functions

    run()

"""How fast heads train, measured on the machine at hand.

    python benchmarks/bench_heads.py --part table1 --part start
    python benchmarks/bench_heads.py --part clips --clips 10000000 --repeats 1

    table1      the paper's size, against a plain PyTorch loop and scikit-learn
    start       how soon a small job is under way in a new process
    stacks      heads one by one or stacked, in threads or in processes
    vggsound    VGGSound's size, against the machine's own rate of matrix products
    scaling     cost per clip, from a thousand clips to a million
    stream      a store larger than the memory that training may take
    clips       many clips with small embeddings: what each takes from the manifest on, beside its features

Contenders are measured in turns (a b c, a b c, ...), so that a machine which is busy for a while is so for all of them,
and a ratio is taken within a turn. Figures are medians over turns, with the least and the greatest.

Each contender runs in a new process: glibc's malloc returns large blocks to the system until enough of them were freed,
and until then a plain PyTorch loop spends half its time on page faults. On 2 cores of an AMD EPYC it took 2.1 s per
head in a new process, 1.15 s in one that had freed large arrays before.
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
from alphafuse.data.streams import MODALITIES
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import HeadConfig, HeadSettings
from alphafuse.heads.training import linear
from alphafuse.heads.training import train as training
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import train_heads
from alphafuse.system.processes import free_memory_bytes

DRAWN_ROWS = 65_536  # random rows, which larger splits repeat: drawing a million takes longer than training on them
SHARD_ROWS = 8192
VAL_SHARE = 0.01
MOST_WINDOWS = 1000  # of part "clips": fewer clips than that can't fill them
MEMORY_SHARE = 1 / 3  # of what is free, for features: training takes them into memory up to 3/8
CENTRE_DISTANCE = 5.0  # between two classes' centres, in standard deviations of a class; heads get most clips right


@dataclass(frozen=True)
class Shape:
    """Heads whose stacks are measured: a name for people, hidden widths, and epochs that take some seconds."""

    name: str
    hidden: tuple[int, ...]
    epochs: int


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are.

    Attributes:
        dim: of each of the two modalities.
        hidden: widths of the hidden layers.
        clips, val_clips, classes, epochs, heads: table 1's.
        other_heads: heads that the other contenders train, after one that isn't counted.
        start_heads: heads of a small job.
        stack_sizes: heads per stack.
        shapes: of stacked heads.
        large_clips, large_classes, large_batch, large_epochs: VGGSound's; the first epoch isn't counted.
        matrix, matrix_seconds: width of the square matrices that the machine's rate is measured with, and how long.
        scaling_clips: training clips.
        scaling_seen: clips to train on at each of these, in whole epochs of at least one, after one that isn't counted.
        stream_clips, stream_val_clips, stream_epochs: of the store.
        stream_gb: memory for features while streaming, in 10^9 bytes.
        root: that is written for part "clips", and what is trained on it.
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
QUICK = Sizes(  # to see that everything works; its figures say nothing
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
    """Measure how fast heads train here.

    Args:
        parts: entries of `PARTS`; empty for all. Each takes minutes, and up to a third of the free memory.
        repeats: turns, at least 1.
        quick: small sizes, to see that it works.
        clips: of part "clips"; each takes 180 bytes of the disk for temporary files. None = 1,000,000.
        progress: called with what is about to be measured.

    Raises:
        ExperimentError: an unknown part, a number of turns below 1, or a measurement that was killed.

    >>> from bench_heads import bench_heads
    >>> bench_heads(["table1"]).parts[0]  # doctest: +SKIP
    """
    sizes = QUICK if quick else FULL
    if clips is not None:
        if isinstance(clips, bool) or not isinstance(clips, int) or clips < MOST_WINDOWS:
            raise ExperimentError(f"clips must be a whole number of at least {MOST_WINDOWS}, not {clips!r}")
        share = min(1.0, clips / sizes.root.clips)  # fewer clips than that are streamed in as many windows
        root = sizes.root._replace(clips=clips, memory_gb=sizes.root.memory_gb * share)
        sizes = replace(sizes, root=root)
    chosen = {name: partial(part, sizes) for name, part in PARTS.items()}
    return run_parts("Heads on the CPU", chosen, parts, repeats=repeats, quick=quick, progress=progress)


# what is trained on


def random_split(clips: int, dim: int, classes: int, *, seed: int = 0) -> Embeddings:
    """Normal random embeddings of two modalities, labels in turn."""
    draws = np.random.default_rng(seed)
    features = {}
    for modality in MODALITIES:
        drawn = draws.standard_normal((min(clips, DRAWN_ROWS), dim), dtype=np.float32)
        features[modality] = drawn if clips <= DRAWN_ROWS else np.empty((clips, dim), np.float32)
        for start in range(0, clips if clips > DRAWN_ROWS else 0, DRAWN_ROWS):
            features[modality][start : start + DRAWN_ROWS] = drawn[: clips - start]
    ids = tuple(f"clip{i:07d}_000000" for i in range(clips))
    names = class_names(classes)
    return Embeddings(ids, tuple(names[i % classes] for i in range(clips)), ids, features)


def class_names(classes: int) -> tuple[str, ...]:
    """One name per class."""
    return tuple(f"class {i}" for i in range(classes))


def _head(dim: int, hidden: Sequence[int], classes: int) -> HeadConfig:
    return HeadConfig(dict.fromkeys(MODALITIES, dim), class_names(classes), settings=HeadSettings(hidden=tuple(hidden)))


def _paper_size(sizes: Sizes, hidden: Sequence[int] | None = None) -> tuple[Embeddings, Embeddings, HeadConfig]:
    """Training clips, validation clips and head of table 1."""
    train = random_split(sizes.clips, sizes.dim, sizes.classes)
    val = random_split(sizes.val_clips, sizes.dim, sizes.classes, seed=1)
    return train, val, _head(sizes.dim, sizes.hidden if hidden is None else hidden, sizes.classes)


def _widths(sizes: Sizes, classes: int) -> tuple[int, ...]:
    return (len(MODALITIES) * sizes.dim, *sizes.hidden, classes)


def _shape(sizes: Sizes, classes: int) -> str:
    return "-".join(map(str, _widths(sizes, classes)))


def _affordable_clips(clips: int, dim: int) -> int:
    """As many of these clips as may be in memory at once."""
    return min(clips, int(free_memory_bytes() * MEMORY_SHARE) // (4 * len(MODALITIES) * dim))


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
        f"{sizes.clips} x {len(MODALITIES) * sizes.dim}, {sizes.classes} classes, {_shape(sizes, sizes.classes)}, "
        f"batch 8, {sizes.epochs} epochs; {sizes.heads} heads of alphafuse's, {sizes.other_heads} of each other's",
        tuple(figures),
        (
            "One more head comes first everywhere and isn't counted.",
            "Plain loop: torch.nn.Sequential, torch.optim.Adam, batches by index, PyTorch's own number of threads.",
            "MLPClassifier has no dropout, and no validation after each epoch as the others have; its last layer has "
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
    return np.concatenate([split.features[modality] for modality in MODALITIES], axis=1)


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
    """Train one head as PyTorch's tutorials do; (train loss, validation loss, validation accuracy) of each epoch."""
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
    """Train scikit-learn's head; the epochs that it trained, which are all."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        hidden_layer_sizes=sizes.hidden,
        batch_size=TrainSettings.batch_size,
        learning_rate_init=TrainSettings.learning_rate,
        alpha=0.0,
        max_iter=sizes.epochs,
        n_iter_no_change=sizes.epochs + 1,  # it may not stop early
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
        f"{sizes.clips} x {len(MODALITIES) * sizes.dim}, batch 8, {max(sizes.stack_sizes) * workers} heads on "
        f"{workers} workers; weights: {weights}",
        (
            *(Figure(name, "ms per step of a head", values) for name, values in found.items()),
            Figure("start of the processes", "s", started),
        ),
        (
            f"Training stacks up to {training.STACK_CPU} heads of at most {training.SMALL_HEAD:,} weights on the CPU. "
            f"It takes threads up to {training.MAX_THREADS} cores and for steps of more than "
            f"{1000 * training.SMALL_STEP_SECONDS:g} ms, else processes where they save more than "
            f"{training.PROCESS_START_SECONDS:g} s.",
            "A step of a head: wall time over heads and steps, all workers at work; without the start of processes.",
        ),
    )


def _weights(sizes: Sizes, shape: Shape) -> int:
    return sum(a * b for a, b in pairwise((len(MODALITIES) * sizes.dim, *shape.hidden, sizes.classes)))


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
    get_reusable_executor().shutdown(wait=True)  # else this process waits for its workers' own end, five minutes later
    return found


@contextmanager
def _training_constants(**constants: float) -> Iterator[None]:
    """Train with other constants than those of `heads.training`."""
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
        "Products really computed: 2 operations per multiply-add forward, for the weights' gradients, and for the "
        "inputs' (but the first layer's). Time: whole epochs with Adam, dropout and all else, after the first.",
        "Matrix products on all cores, before and after training, in the same process. torch.mm is PyTorch's default "
        "library; oneDNN is what a head's products go to (heads/training/linear.py).",
    ]
    if clips < sizes.large_clips:
        notes.append(f"{clips} clips instead of {sizes.large_clips}: for more there isn't enough free memory.")
    return Part(
        "vggsound",
        f"{clips} x {len(MODALITIES) * sizes.dim}, {sizes.large_classes} classes, "
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
    """Floating-point operations of the products that training on a clip takes, 2 per multiply-add."""
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
        f"Whole epochs, validation on {VAL_SHARE:.0%} of as many clips included, after one that isn't counted; at "
        f"least {sizes.scaling_seen} clips each, one head on all cores."
    ]
    if dim < sizes.dim:
        notes.append(f"{dim} instead of {sizes.dim} numbers per modality: for more there isn't enough free memory.")
    if len(counts) < len(sizes.scaling_clips):
        notes.append(f"At most {counts[-1]} clips: for more there isn't enough free memory.")
    costs = [found[str(clips)] for clips in counts]
    slowest = tuple(max(turn) / min(turn) for turn in zip(*costs, strict=True))
    return Part(
        "scaling",
        f"clips x {len(MODALITIES) * dim} in memory, {sizes.large_classes} classes, batch {sizes.large_batch}",
        (
            *(Figure(f"{clips} clips", "us per clip", cost) for clips, cost in zip(counts, costs, strict=True)),
            Figure(f"{counts[-1]} clips / {counts[0]} clips", "x", ratios(costs[-1], costs[0])),
            Figure("dearest / cheapest", "x", slowest),
        ),
        tuple(notes),
    )


def _scaling_all(sizes: Sizes, dim: int, counts: Sequence[int], turn: Turn) -> dict[str, float]:
    everything = random_split(max(counts), dim, sizes.large_classes)
    val = random_split(max(1, int(VAL_SHARE * max(counts))), dim, sizes.large_classes, seed=1)
    config = _head(dim, sizes.hidden, sizes.large_classes)
    found = {}
    for clips in counts:
        epochs = 1 + max(1, round(sizes.scaling_seen / clips))
        settings = TrainSettings(epochs=epochs, batch_size=sizes.large_batch, device="cpu")
        clock = Clock()
        own = _first(everything, clips), _first(val, max(1, int(VAL_SHARE * clips)))
        train_heads(*own, [config], [0], settings=settings, progress=clock)
        found[str(clips)] = 1e6 * clock.seconds_per_epoch(1) / clips
    return found


def _first(split: Embeddings, clips: int) -> Embeddings:
    """The first clips, without a copy of their features."""
    features = {name: matrix[:clips] for name, matrix in split.features.items()}
    return Embeddings(split.clip_ids[:clips], split.labels[:clips], split.groups[:clips], features)


# stream


def _stream(sizes: Sizes, measure: Measure) -> Part:
    clips = _affordable_clips(sizes.stream_clips, sizes.dim)
    features_mb = 4e-6 * len(MODALITIES) * sizes.dim * clips
    with tempfile.TemporaryDirectory(prefix="alphafuse-bench-") as folder:
        in_new_process(partial(_write_stores, sizes, clips, Path(folder)), 0)
        found = measure(
            {
                "in memory": partial(_stream_train, sizes, Path(folder), memory_gb=None),
                "streamed": partial(_stream_train, sizes, Path(folder), memory_gb=sizes.stream_gb),
            }
        )
    units = {"opening the store": "s", "training": "us per clip", "memory, at most": "MB", "accuracy": "%"}
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
        "memory. Memory, at most: of the process, above what it had after its imports; the head, Adam's moments and "
        "PyTorch's own included.",
        "Each turn has a seed of its own. The store was just written: its files are in the system's cache where that "
        "has room for them.",
    ]
    if clips < sizes.stream_clips:
        notes.append(f"{clips} clips instead of {sizes.stream_clips}: for more there isn't enough free memory.")
    return Part(
        "stream",
        f"{clips} x {len(MODALITIES) * sizes.dim} from a store, {sizes.large_classes} classes that can be learned, "
        f"batch {sizes.large_batch}, {sizes.stream_epochs} epochs, {sizes.stream_val_clips} validation clips",
        tuple(figures),
        tuple(notes),
    )


def _write_stores(sizes: Sizes, clips: int, folder: Path, turn: Turn) -> dict[str, float]:
    """Stores "train" and "val" of clips that lie around their class's centre."""
    draws = np.random.default_rng(0)
    width = len(MODALITIES) * sizes.dim
    spread = CENTRE_DISTANCE / math.sqrt(2 * width)
    centres = spread * draws.standard_normal((sizes.large_classes, width), dtype=np.float32)
    names = class_names(sizes.large_classes)
    recipes: dict[str, dict[str, Any]] = {modality: {"protocol": "benchmark"} for modality in MODALITIES}
    for name, count in (("train", clips), ("val", sizes.stream_val_clips)):
        store = EmbeddingStore(folder / name)
        for start in range(0, count, SHARD_ROWS):
            rows = min(SHARD_ROWS, count - start)
            targets = draws.integers(sizes.large_classes, size=rows)
            x = centres[targets] + draws.standard_normal((rows, width), dtype=np.float32)
            ids = tuple(f"{name}{start + i:07d}_000000" for i in range(rows))
            features = dict(zip(MODALITIES, np.split(x, len(MODALITIES), axis=1), strict=True))
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
        f"memory, at most, {way}": peak.grown_bytes / 1e6,
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
    features = 4 * len(MODALITIES) * size.dim
    return Part(
        "clips",
        f"{size.clips} x {len(MODALITIES) * size.dim} from a root whose store is sorted by class, {size.classes} "
        f"classes, {size.heads} heads with {', '.join(map(str, size.hidden))} hidden units, batch {size.batch_size}, "
        f"{size.epochs} epochs",
        tuple(figures),
        (
            f"Features take {features} bytes per clip; when streamed {1000 * size.memory_gb:g} MB are for them. Bytes: "
            "of the process, at most until then, above what it had after its imports.",
            "Each turn has seeds of its own. The store was just written: its files are in the system's cache where "
            "that has room for them.",
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
    """The command line."""
    parser = parser_of(__doc__, PARTS)
    parser.add_argument("--clips", type=int, help="of part clips (default: 1000000)")
    options = parser.parse_args()
    print_bench(options, partial(bench_heads, clips=options.clips))


if __name__ == "__main__":
    from bench_heads import main as run  # by the name under which worker processes find its functions

    run()

"""Training heads: many small ones, each a function of its seed alone.

A head's initial weights, the order of its clips and its dropout are drawn from three generators that its seed alone
decides. So it comes out the same alone, in company, in this process or in another one (to the bit on one machine, for
every head is trained on one thread), and experiments of one seed share order and dropout: paired comparisons gain.

Why the step is written out: at the paper's size a step is about 30 operations of some 50 microseconds, so what
surrounds them decides. Medians on 2 busy cores, in turns, seconds of CPU per head of 25 epochs with batch 8 (clips x
dimension x classes):

                                                                    320 x 192 x 16   86 x 1536 x 91
    autograd, torch.optim.Adam as it comes                                6.8              4.5
    autograd, fused Adam                                                  3.3              2.1
    written-out backward into kept gradients, fused Adam's function       2.5              1.8

Dropout masks by `rand >= p` cost a third of `bernoulli_`. Small heads don't gain from a second thread; one-thread
processes side by side do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import joblib
import numpy as np
import torch
from torch.nn import functional
from torch.optim.adam import adam

from alphafuse.data.processes import end_with_parent
from alphafuse.data.store import Embeddings
from alphafuse.errors import EmptySplitError, ExperimentError, unknown

from .head import ABSENT, DROPOUT, HIDDEN, AlphaFusion, HeadConfig, head_inputs, usable_clips

DEVICES = ("auto", "cpu", "cuda")
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's defaults, as in the authors' notebook
WORKER_START_SECONDS = 5.0  # measured: a new process that imports torch, two at a time on 2 cores
STREAMS = {"init": 0, "order": 1, "dropout": 2}

Progress = Callable[[int], None]


@dataclass(frozen=True)
class TrainSettings:
    """How heads are trained; the defaults are the paper's (section 3 and the authors' notebook).

    Attributes:
        epochs: passes over the training clips; the last epoch's head counts (nothing is chosen on any split).
        batch_size: clips per step; the last batch of an epoch may be smaller.
        learning_rate: Adam's.
        weight_decay: Adam's L2 term.
        hidden, dropout, absent: as in `HeadConfig`.
        device: "auto" is CUDA when there is one.

    Raises:
        ExperimentError: a value out of range.
    """

    epochs: int = 25
    batch_size: int = 8
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    hidden: tuple[int, ...] = HIDDEN
    dropout: float = DROPOUT
    absent: Literal["drop", "zeros"] = "drop"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ExperimentError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ExperimentError(f"learning_rate must be above 0, not {self.learning_rate}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ExperimentError(f"weight_decay must be 0 or more, not {self.weight_decay}")
        if not 0 <= self.dropout < 1:
            raise ExperimentError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.absent not in ABSENT:
            raise ExperimentError(unknown("treatment of absent embeddings", self.absent, ABSENT))
        if self.device not in DEVICES:
            raise ExperimentError(unknown("device", self.device, DEVICES))

    def torch_device(self) -> torch.device:
        """The device to train on; `ExperimentError` when CUDA is asked for and there is none."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ExperimentError("no CUDA device here: use --device cpu (or auto)")
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return {**asdict(self), "hidden": list(self.hidden)}


@dataclass(frozen=True)
class History:
    """What was measured after each epoch, each (epochs,) float64.

    Attributes:
        train_loss: mean over the epoch's clips of the cross entropy before their step, with dropout.
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
        dropped: "train" and "val" -> clips left out because they lack a modality that the head reads.
    """

    head: AlphaFusion
    seed: int
    history: History
    dropped: Mapping[str, int]

    def __repr__(self) -> str:
        last = self.history.val_loss[-1], self.history.val_accuracy[-1]
        return (
            f"TrainedHead({self.head.config.describe()}, seed={self.seed}, {len(self.history.train_loss)} epochs, "
            f"val_loss={last[0]:.4f}, val_accuracy={last[1]:.4f})"
        )


def train_heads(
    train: Embeddings,
    val: Embeddings,
    heads: Sequence[HeadConfig],
    seeds: Sequence[int],
    *,
    settings: TrainSettings | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[TrainedHead]:
    """Train every head with every seed.

    Args:
        train, val: embeddings; labels must occur in the heads' classes (val labels that training lacks are fine).
        heads: what to train; their own hidden, dropout and absent count, not those of `settings`.
        seeds: whole numbers of at least 0.
        settings: epochs, batch size, Adam's settings, device.
        progress: called with the number of newly finished epochs, `len(heads) * len(seeds) * epochs` in all.
        workers: processes; 1 stays in this one; None decides by what it would save. The numbers don't depend on it.

    Returns:
        Heads in the order heads[0] with each seed, heads[1] with each seed, ...

    Raises:
        EmptySplitError: a split has no clip that a head could use.
        ExperimentError: a label outside of a head's classes, a bad seed, or a loss that stops being finite.
    """
    settings = settings or TrainSettings()
    if not heads or not seeds:
        raise ExperimentError("nothing to train: give at least one head and one seed")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ExperimentError(f"a seed must be a whole number of at least 0, not {seed!r}")
    device = settings.torch_device()
    prepared: dict[tuple[tuple[str, ...], str, tuple[str, ...]], tuple[_Clips, _Clips]] = {}
    jobs: list[_Job] = []
    for config in heads:
        key = (config.modalities, config.absent, config.classes)
        if key not in prepared:
            prepared[key] = _prepare(train, config, "train"), _prepare(val, config, "val")
        jobs += [_Job(len(jobs) + i, config, seed, *prepared[key]) for i, seed in enumerate(seeds)]
    if workers is not None and workers < 1:
        raise ExperimentError(f"workers must be at least 1, not {workers}")
    if workers is None:
        workers = _worthwhile_workers(jobs, settings) if device.type == "cpu" else 1
    results = (
        _train_here(jobs, settings, device, progress)
        if workers == 1
        else _train_apart(jobs, settings, device, progress, workers)
    )
    trained = []
    results.reverse()
    for job in jobs:
        result = results.pop()  # from the list, so that many heads' weights are held only once
        head = AlphaFusion(job.config)
        head.load_state_dict({name: torch.from_numpy(value) for name, value in result.weights.items()})
        dropped = {"train": job.train.dropped, "val": job.val.dropped}
        trained.append(TrainedHead(head.eval(), job.seed, result.history, dropped))
    return trained


class _Clips(NamedTuple):
    """What training needs of a split: arrays, which travel to worker processes through shared files."""

    features: dict[str, np.ndarray]  # modality -> (clips, dim) float32
    targets: np.ndarray  # (clips,) int64
    dropped: int


class _Job(NamedTuple):
    position: int
    config: HeadConfig
    seed: int
    train: _Clips
    val: _Clips


class _Result(NamedTuple):
    position: int
    weights: dict[str, np.ndarray]
    history: History


def class_indices(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(clips,) int64 positions of labels in classes; `ExperimentError` for a label that isn't there."""
    position = {label: index for index, label in enumerate(classes)}
    strange = [label for label in labels if label not in position]
    if strange:
        raise ExperimentError(unknown("label", strange[0], classes))
    return np.array([position[label] for label in labels], dtype=np.int64)


def _prepare(embeddings: Embeddings, config: HeadConfig, split: str) -> _Clips:
    usable = usable_clips(embeddings, config)
    if not usable.any():
        raise EmptySplitError(
            f"none of the {len(embeddings)} {split} clips has the embeddings that a head of "
            f"{' and '.join(config.modalities)} needs: see `alphafuse store info`, or use --absent zeros"
        )
    kept = embeddings.take(usable)
    features = {name: matrix.numpy() for name, matrix in head_inputs(kept, config).items()}
    return _Clips(features, class_indices(kept.labels, config.classes), int((~usable).sum()))


def _train_here(
    jobs: Sequence[_Job], settings: TrainSettings, device: torch.device, progress: Progress | None
) -> list[_Result]:
    return [_train_one(job, settings, device, progress) for job in jobs]


def _train_apart(
    jobs: Sequence[_Job], settings: TrainSettings, device: torch.device, progress: Progress | None, workers: int
) -> list[_Result]:
    """Train in worker processes, which are stopped when anything (Ctrl-C too) ends this early."""
    results: dict[int, _Result] = {}
    # mmap_mode "c": large arrays are shared through files, and torch gets an array that it may call writable
    with joblib.parallel_config(backend="loky", n_jobs=min(workers, len(jobs)), inner_max_num_threads=1):
        parallel = joblib.Parallel(
            return_as="generator_unordered", mmap_mode="c", batch_size=1, pre_dispatch="2*n_jobs"
        )
        done = parallel(joblib.delayed(_train_in_worker)(job, settings, device, os.getpid()) for job in jobs)
        try:
            for result in done:
                results[result.position] = result
                if progress:
                    progress(settings.epochs)
        except BrokenProcessPool:
            raise ExperimentError(
                "a training process was killed from outside, probably for lack of memory: train fewer heads at a time"
            ) from None
        finally:
            done.close()
    return [results[position] for position in range(len(jobs))]


def _worthwhile_workers(jobs: Sequence[_Job], settings: TrainSettings) -> int:
    """As many processes as cores when that saves more than their start-up, else 1."""
    workers = min(joblib.cpu_count(), len(jobs))
    seconds = sum(_estimated_seconds(job, settings) for job in jobs)
    return workers if seconds * (1 - 1 / workers) > WORKER_START_SECONDS else 1


def _estimated_seconds(job: _Job, settings: TrainSettings) -> float:
    """Rough time of one head on one core: 0.3 ms per step, and 2 ns per weight for Adam and small batches."""
    widths = (sum(job.config.dims.values()), *job.config.hidden, len(job.config.classes))
    weights = sum(a * b for a, b in pairwise(widths))
    steps = settings.epochs * math.ceil(len(job.train.targets) / settings.batch_size)
    return steps * (3e-4 + weights * 2e-9 * (1 + settings.batch_size / 64))


def _train_in_worker(job: _Job, settings: TrainSettings, device: torch.device, parent: int) -> _Result:
    end_with_parent(parent)
    return _train_one(job, settings, device)


def _train_one(job: _Job, settings: TrainSettings, device: torch.device, progress: Progress | None = None) -> _Result:
    """Train one head on one thread (a sum over more threads would round otherwise)."""
    with _one_thread():
        run = _Run(job, settings, device)
        rows = []
        for epoch in range(settings.epochs):
            train_loss = run.train_epoch()
            val_loss, val_accuracy = run.validate()
            if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
                raise ExperimentError(
                    f"the loss stopped being finite in epoch {epoch + 1} of the head {job.config.describe()}, seed "
                    f"{job.seed}: lower the learning rate ({settings.learning_rate:g}) or look at the embeddings"
                )
            rows.append((train_loss, val_loss, val_accuracy))
            if progress:
                progress(1)
    columns = np.array(rows, dtype=np.float64).T
    weights = {name: value.detach().cpu().numpy() for name, value in run.head.state_dict().items()}
    return _Result(job.position, weights, History(*columns))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _generator(seed: int, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator that a head's seed decides for one of its three uses of chance."""
    state = np.random.SeedSequence([seed, STREAMS[stream]]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> 1))


class _Layer(NamedTuple):
    """A fully connected layer's parameters, and the buffers that its gradients are written into at every step."""

    weight: torch.Tensor  # (outputs, inputs)
    bias: torch.Tensor  # (outputs,)
    weight_gradient: torch.Tensor
    bias_gradient: torch.Tensor


class _Adam:
    """The function behind torch.optim.Adam, for gradients that stay in place: 0.1 ms less per step than the class."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], settings: TrainSettings) -> None:
        self.settings = settings
        self.parameters = [parameter.detach() for parameter in parameters]
        self.gradients = [cast(torch.Tensor, parameter.grad) for parameter in parameters]
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    def step(self) -> None:
        """One update of all parameters from their gradients."""
        adam(
            self.parameters,
            self.gradients,
            self.means,
            self.squares,
            [],
            self.steps,
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            eps=EPSILON,
            maximize=False,
        )


class _Run:
    """One head in training: its data on the device, its optimiser and its generators."""

    def __init__(self, job: _Job, settings: TrainSettings, device: torch.device) -> None:
        self.batch_size = settings.batch_size
        self.device = device
        self.head = AlphaFusion(job.config, generator=_generator(job.seed, "init")).to(device)
        self.order = _generator(job.seed, "order")
        self.masks = _generator(job.seed, "dropout", device)
        self.dropout = job.config.dropout
        self.train_targets = torch.from_numpy(job.train.targets).to(device)
        self.val_targets = torch.from_numpy(job.val.targets).to(device)
        self.train_features = self._tensors(job.train)
        self.val_features = self._tensors(job.val)
        layers = {id(parameter) for parameter in self.head.layers.parameters()}
        self.front = [p for p in self.head.parameters() if id(p) not in layers]  # of transforms and fusion
        if not self.front:  # nothing before the layers learns: fuse once
            with torch.no_grad():
                self.train_fused = self.head.fuse(self.train_features)  # (clips, fused dim)
                self.val_fused = self.head.fuse(self.val_features)
        self.layers = []  # looking parameters up in modules takes as long as small operations do
        for layer in self.head.linears:
            weight, bias = layer.weight, layer.bias
            weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
            self.layers.append(_Layer(weight, bias, weight.grad, bias.grad))
        for parameter in self.front:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = _Adam(list(self.head.parameters()), settings)

    def _tensors(self, clips: _Clips) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(matrix).to(self.device) for name, matrix in clips.features.items()}

    def train_epoch(self) -> float:
        """One pass over the shuffled training clips; the mean loss of its clips."""
        clips = len(self.train_targets)
        order = torch.randperm(clips, generator=self.order).to(self.device)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows in order.split(self.batch_size):
            total += self._step(rows) * len(rows)
        return total.item() / clips

    def _step(self, rows: torch.Tensor) -> torch.Tensor:
        """One step of Adam on these clips; their mean loss before it."""
        if self.front:
            with torch.enable_grad():
                fused = self.head.fuse({name: x[rows] for name, x in self.train_features.items()})
        else:
            fused = self.train_fused[rows]  # (batch, fused dim)
        with torch.no_grad():
            inputs, logits = self._forward(fused.detach())
            targets = self.train_targets[rows][:, None]  # (batch, 1)
            log_probabilities = functional.log_softmax(logits, dim=1)
            loss = -log_probabilities.gather(1, targets).mean()
            # d loss / d logits = (softmax - one-hot) / batch
            gradient = log_probabilities.exp_()
            gradient.scatter_add_(1, targets, torch.full_like(targets, -1.0, dtype=gradient.dtype))
            gradient = self._backward(inputs, gradient.div_(len(rows)))
        if self.front:
            for parameter in self.front:
                cast(torch.Tensor, parameter.grad).zero_()
            fused.backward(gradient)
        self.optimizer.step()
        return loss

    def _forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Inputs of each layer, after ReLU and dropout, and the logits."""
        *hidden, last = self.layers
        inputs = [x]
        for layer in hidden:
            x = torch.addmm(layer.bias, x, layer.weight.t()).relu_()  # (batch, 1024), (batch, 512)
            if self.dropout:
                kept = torch.rand(x.shape, generator=self.masks, device=self.device).ge_(self.dropout)
                x.mul_(kept.mul_(1 / (1 - self.dropout)))
            inputs.append(x)
        return inputs, torch.addmm(last.bias, x, last.weight.t())

    def _backward(self, inputs: list[torch.Tensor], gradient: torch.Tensor) -> torch.Tensor:
        """Fill the layers' gradients from that of the logits; returns that of the fused vectors if they learn.

        An input is positive where ReLU let it pass and dropout kept it: there, and only there, gradients pass too.
        """
        for index in reversed(range(len(inputs))):
            layer = self.layers[index]
            torch.mm(gradient.t(), inputs[index], out=layer.weight_gradient)
            torch.sum(gradient, dim=0, out=layer.bias_gradient)
            if index:
                gradient = torch.mm(gradient, layer.weight).mul_(inputs[index] > 0).mul_(1 / (1 - self.dropout))
            elif self.front:
                gradient = torch.mm(gradient, layer.weight)
        return gradient

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Mean loss and accuracy of the validation clips, without dropout."""
        self.head.eval()
        fused = self.head.fuse(self.val_features) if self.front else self.val_fused
        logits = self.head.classify(fused)
        loss = functional.cross_entropy(logits.double(), self.val_targets).item()
        accuracy = (logits.argmax(dim=1) == self.val_targets).double().mean().item()
        self.head.train()
        return loss, accuracy

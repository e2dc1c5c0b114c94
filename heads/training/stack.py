"""A stack of heads in training: one step of all heads, with hand-written gradients.

Reason: at the paper's size (86 clips, 1536-1024-512-91, batch 8) a step is about forty operations of about 50
microseconds each, so the overhead of autograd and of the optimizer dominates. Gradients of the fully connected layers
are computed directly, one piece at a time (`linear.PIECE_BYTES`), and each piece is used in Adam's fused update while
it is in the cache. On one core of an AMD EPYC, seconds per head of 25 epochs, alone / two threads in parallel:

    autograd, torch.optim.Adam with default settings (two threads)                             2.1
    hand-written, whole gradients, MKL                                                         0.79 / 1.0
    pieces                                                                                     0.66 / 0.76
    pieces, oneDNN (`linear`)                                                                  0.57 / 0.66

Each head draws from generators of its own seed, so the other heads of the stack don't change it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from alphafuse.heads.model.config import FUSED, HeadConfig
from alphafuse.heads.model.fusion import Gate
from alphafuse.heads.model.head import AlphaFusion, Normalization

from . import linear
from .batches import Window
from .linear import AdamGroup, Layer
from .settings import TrainSettings

PURPOSES = {"init": 0, "order": 1, "dropout": 2, "mixup": 3, "modality dropout": 4, "auxiliary": 5}
PREPARED_BYTES = 268_435_456  # a split of up to this size is transformed and normalised once, not batch by batch
VALIDATION_ROWS = 4096  # rows per step of validation: bounds memory


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of a head's seed for one purpose, a key of `PURPOSES`."""
    return torch.Generator(device).manual_seed(int(_state(seed, purpose) >> 1))


def _state(seed: int, purpose: str) -> np.uint64:
    return cast(np.uint64, np.random.SeedSequence([seed, PURPOSES[purpose]]).generate_state(1, np.uint64)[0])


class Stack:
    """Heads with layers of the same widths, trained together on the same clips.

    Args:
        members: configuration and seed of each head. A head with a learned transform or fusion needs a stack of its
            own.
        settings: training settings.
        steps: number of steps of the whole training, for the learning rate's schedule.
        device: device of the training.
        moments: stream -> mean and standard deviation (dim,) of each head's transformed training embeddings, for
            zscore; empty for other heads.
        class_weights: (C,) float32, or None if all clips have the same weight.
    """

    def __init__(
        self,
        members: Sequence[tuple[HeadConfig, int]],
        settings: TrainSettings,
        *,
        steps: int,
        device: torch.device,
        moments: Sequence[Mapping[str, tuple[torch.Tensor, torch.Tensor]]],
        class_weights: torch.Tensor | None,
    ) -> None:
        self.settings = settings
        self.device = device
        self.configs = [config for config, _ in members]
        self.seeds = [seed for _, seed in members]
        self.config = self.configs[0]
        self.heads = [AlphaFusion(config, generator=generator(seed, "init")).to(device) for config, seed in members]
        for head, of_stream in zip(self.heads, moments, strict=True):
            for stream, (mean, std) in of_stream.items():
                normalization = cast(Normalization, head.normalizations[stream])
                normalization.mean.copy_(mean)
                normalization.std.copy_(std)
        self.order_generators = [generator(seed, "order") for seed in self.seeds]
        self.dropout_generators = [generator(seed, "dropout", device) for seed in self.seeds]
        self.stream_generators = [generator(seed, "modality dropout", device) for seed in self.seeds]
        self.mixup_generators = [np.random.default_rng(_state(seed, "mixup")) for seed in self.seeds]
        self.class_weights = None if class_weights is None else class_weights.to(device)
        self.dropout, self.modality_dropout = self.config.settings.dropout, self.config.settings.modality_dropout
        self.steps, self.done = steps, 0
        self._window: torch.Tensor | None = None  # targets of the window that `_prepared` was made from
        self._prepared: torch.Tensor | None = None
        self._first_of = self._first_with_same_preparation()
        self._columns = self._columns_of_streams()
        self._learn_transform = any(p.requires_grad for p in self.heads[0].transforms.parameters())
        self._front = [p for part in (self.heads[0].transforms, self.heads[0].fusion) for p in part.parameters()]
        self.auxiliary_weights = dict(self.config.experiment.auxiliary)  # stream or FUSED -> weight of its loss
        self._auxiliary = self._auxiliary_classifiers()
        self._front += self._auxiliary.parameters()
        if self._front and len(self.heads) > 1:
            raise ValueError("a head with a learned transform or fusion needs a stack of its own")
        self._front_group = AdamGroup.of([parameter.detach() for parameter in self._front])
        self.rates = self._rates()
        self.layers = [
            Layer.of(linears, batch_size=settings.batch_size, rates=None if index else self.rates)
            for index, linears in enumerate(zip(*(head.linears for head in self.heads), strict=True))
        ]

    def __len__(self) -> int:
        return len(self.heads)

    # building

    def _first_with_same_preparation(self) -> list[int]:
        """Return for each head the position of the first head that transforms and normalises in the same way."""
        kinds = [config.preparation for config in self.configs]
        return [kinds.index(kind) for kind in kinds]

    def _columns_of_streams(self) -> dict[str, slice]:
        columns, start = {}, 0
        for stream in self.config.streams:
            columns[stream] = slice(start, start + self.config.dims[stream])
            start += self.config.dims[stream]
        return columns

    def _auxiliary_classifiers(self) -> nn.ModuleDict:
        """Return a linear classifier on each stream's expert, for gradient blending."""
        classifiers = nn.ModuleDict()
        auxiliary_generator = generator(self.seeds[0], "auxiliary")
        for stream in self.auxiliary_weights:
            if stream != FUSED:
                width, classes = self.heads[0].fusion.output_dim, len(self.config.classes)
                layer = nn.utils.skip_init(nn.Linear, width, classes)
                for parameter in layer.parameters():
                    nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator=auxiliary_generator)
                classifiers[stream] = layer
        return classifiers.to(self.device)

    def _rates(self) -> torch.Tensor | None:
        """Return the streams' relative learning rates (heads, 1, inputs), or None if all are 1.

        A layer on r x with weights divided by r is the same function of x. Adam ignores the gradient's scale, so one
        step changes that function r times as much: r acts as a learning rate, exactly except for Adam's epsilon.
        """
        if not any(config.experiment.rates for config in self.configs):
            return None
        rates = torch.ones(len(self.heads), 1, sum(self.config.dims.values()))
        for position, config in enumerate(self.configs):
            for stream, rate in config.experiment.rates:
                rates[position, 0, self._columns[stream]] = rate
        return rates.to(self.device)

    # training

    def train_window(self, window: Window, check: Callable[[], None], *, keep: bool = True) -> np.ndarray:
        """Train on a window's clips in random order; return the clips' losses before their steps, summed.

        Args:
            window: clips with at least the streams that the heads read.
            check: called before every step; an exception from it ends the pass.
            keep: whether to keep the prepared embeddings, because the same window comes again.

        Returns:
            (heads,) float64.
        """
        window = self._select_streams(window)
        clips = len(window.targets)
        order = torch.stack([torch.randperm(clips, generator=own) for own in self.order_generators]).to(self.device)
        total = torch.zeros(len(self.heads), dtype=torch.float64, device=self.device)
        for rows in order.split(self.settings.batch_size, dim=1):  # (heads, batch)
            check()
            total += self._step(window, rows) * rows.shape[1]
        if not keep:
            self._window = self._prepared = None
        return total.cpu().numpy()

    def _select_streams(self, window: Window) -> Window:
        """Return the window with only the streams that the heads read."""
        if len(window.features) == len(self.config.streams):
            return window
        return Window({name: window.features[name] for name in self.config.streams}, window.targets)

    def _step(self, window: Window, rows: torch.Tensor) -> torch.Tensor:
        """Make one step of Adam on these clips; return the mean losses before it, (heads,)."""
        with torch.set_grad_enabled(bool(self._front)):
            x, targets, mixed = self._inputs(window, rows), window.targets[rows], None
            if self.settings.mixup:
                mixed = self._mixing(rows.shape)
                x = mixed.of(x)
            fused = self._fuse(x)
        with torch.no_grad():
            inputs, logits = self._forward(fused.detach())
            soft = None if self._hard_targets else self._soft_targets(targets, mixed)
            losses, gradient = _loss(logits, targets, soft)
            rate = self.settings.learning_rate_at(self.done / self.steps)
            if self._auxiliary:
                gradient.mul_(self.auxiliary_weights.get(FUSED, 1.0))
            gradient = self._backward(inputs, gradient, rate)
        if self._front:
            self._update_front(x, fused, gradient, targets, soft, rate)
        self.done += 1
        return losses

    def _inputs(self, window: Window, rows: torch.Tensor) -> torch.Tensor:
        """Return transformed, normalised embeddings (heads, batch, sum of dims), after modality dropout."""
        prepared = self._prepared_window(window)
        if prepared is not None:
            x = prepared[0][rows] if len(prepared) == 1 else prepared[self._kind_of_head[:, None], rows]
        else:
            x = self._prepare({name: matrix[rows] for name, matrix in window.features.items()})
        if self.modality_dropout and len(self.config.streams) > 1:
            x = x * self._stream_mask(window, rows)
        return x

    def _prepare(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{stream: (heads, batch, dim)} -> (heads, batch, sum of dims); heads with equal preparation share it."""
        x = torch.empty(0)
        for first in sorted(set(self._first_of)):
            same = [position for position, other in enumerate(self._first_of) if other == first]
            part = self._cat(first, {name: matrix[same] for name, matrix in features.items()})
            if len(same) == len(self.heads):
                return part
            if not len(x):
                x = part.new_empty(len(self.heads), *part.shape[1:])
            x[same] = part
        return x

    def _cat(self, position: int, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        prepared = self.heads[position].prepare(features)
        return torch.cat([prepared[stream] for stream in self.config.streams], dim=-1)

    def _prepared_window(self, window: Window) -> torch.Tensor | None:
        """Prepare a whole window: (kinds of preparation, clips, sum of dims); None if that is too large.

        The result is cached while the window is in use. Sets `_kind_of_head`: each head's position on the first axis.
        """
        kinds = sorted(set(self._first_of))
        size = 4 * len(kinds) * len(window.targets) * sum(self.config.dims.values())
        if self._learn_transform or size > PREPARED_BYTES:
            return None
        if self._window is not window.targets:
            with torch.no_grad():
                self._prepared = torch.stack([self._cat(first, window.features) for first in kinds])
            self._window = window.targets
            self._kind_of_head = torch.tensor([kinds.index(first) for first in self._first_of], device=self.device)
        return self._prepared

    def _stream_mask(self, window: Window, rows: torch.Tensor) -> torch.Tensor:
        """Return a mask (heads, batch, sum of dims) of 0 and 1 that drops one stream of complete clips at random.

        One number u in [0, 1) is drawn per clip: the first stream is dropped for u < p / N, the last one for
        u >= 1 - p / N, and those between them for u in the intervals of that length that follow p / N.
        """
        streams = self.config.streams
        share = self.modality_dropout / len(streams)
        draws = torch.stack(
            [torch.rand(rows.shape[1], generator=own, device=self.device) for own in self.stream_generators]
        )
        present = [~torch.isnan(x[rows]).any(dim=-1) for x in window.features.values()]  # (heads, batch) each
        complete = torch.stack(present).all(dim=0)
        mask = torch.ones(*rows.shape, sum(self.config.dims.values()), device=self.device)
        last = len(streams) - 1
        for place, stream in enumerate(streams):
            start = place * share if place < last else 1 - share
            dropped = (draws >= start) & (draws < start + share if place < last else draws < 1)
            mask[..., self._columns[stream]] = (~(dropped & complete)).float()[..., None]
        return mask

    def _mixing(self, shape: torch.Size) -> _Mixing:
        heads, batch = shape
        shares = [rng.beta(self.settings.mixup, self.settings.mixup) for rng in self.mixup_generators]
        partners = np.stack([rng.permutation(batch) for rng in self.mixup_generators])
        return _Mixing(
            torch.tensor(shares, dtype=torch.float32, device=self.device)[:, None, None],
            torch.from_numpy(partners).to(self.device),
            torch.arange(heads, device=self.device)[:, None],
        )

    def _fuse(self, x: torch.Tensor) -> torch.Tensor:
        """(heads, batch, sum of dims) -> (heads, batch, fused dim)."""
        if self.config.experiment.fusion == "concat":
            return x if self.rates is None else x * self.rates
        return self.heads[0].fusion(self._split(x[0]))[None]

    def _split(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {stream: x[..., columns] for stream, columns in self._columns.items()}

    @property
    def _hard_targets(self) -> bool:
        return not (self.settings.mixup or self.settings.label_smoothing or self.class_weights is not None)

    def _soft_targets(self, targets: torch.Tensor, mixed: _Mixing | None) -> torch.Tensor:
        """Return target probabilities times the clip's weight, (heads, batch, C); a row sums to the weight."""
        classes = len(self.config.classes)
        weights = torch.ones(targets.shape, device=self.device)
        if self.class_weights is not None:
            weights = self.class_weights[targets]
        soft = torch.zeros(*targets.shape, classes, device=self.device).scatter_(
            2, targets[..., None], weights[..., None]
        )
        if mixed is not None:
            soft = mixed.of(soft)
        smoothing = self.settings.label_smoothing
        return soft.mul(1 - smoothing).add_(soft.sum(dim=2, keepdim=True), alpha=smoothing / classes)

    def _forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the inputs of each layer, after ReLU and dropout, and the logits (heads, batch, C)."""
        *hidden, last = self.layers
        inputs = [x]
        for layer in hidden:
            x = linear.forward(x, layer.weight, layer.bias).relu_()  # (heads, batch, 1024), (heads, batch, 512)
            if self.dropout:
                x.mul_(self._dropout_mask(x))
            inputs.append(x)
        return inputs, linear.forward(x, last.weight, last.bias)

    def _dropout_mask(self, x: torch.Tensor) -> torch.Tensor:
        """Return 0 or 1 / (1 - p) in x's shape; `rand >= p` takes a third of the time of `bernoulli_`."""
        mask = torch.empty_like(x)
        for part, own in zip(mask, self.dropout_generators, strict=True):
            part.uniform_(generator=own)
        return mask.ge_(self.dropout).mul_(1 / (1 - self.dropout))

    def _backward(self, inputs: list[torch.Tensor], gradient: torch.Tensor, rate: float) -> torch.Tensor:
        """Update all layers, from the last to the first; return the gradient of the fused vectors if they are learned.

        A layer's input is positive exactly where ReLU and dropout passed it, so gradients pass there and only there.
        """
        for index in reversed(range(len(inputs))):
            layer, x = self.layers[index], inputs[index]
            of_outputs = gradient
            if index:
                gradient = torch.ops.aten.threshold_backward(linear.input_gradient(gradient, layer.weight), x, 0)
                gradient.mul_(1 / (1 - self.dropout))
            elif self._front:
                gradient = linear.input_gradient(gradient, layer.weight)
            layer.update(of_outputs, x, rate=rate, weight_decay=self.settings.weight_decay)
        return gradient

    def _update_front(
        self,
        x: torch.Tensor,
        fused: torch.Tensor,
        gradient: torch.Tensor,
        targets: torch.Tensor,
        soft: torch.Tensor | None,
        rate: float,
    ) -> None:
        """Update the parameters of transform, fusion and auxiliary classifiers; their gradients come from autograd."""
        for parameter in self._front:
            parameter.grad = None
        roots, gradients = [fused], [gradient]
        if self._auxiliary:
            experts = cast(Gate, self.heads[0].fusion).experts(self._split(x[0]))
            for stream, classifier in self._auxiliary.items():
                logits = classifier(experts[stream])[None]  # (1, batch, C)
                _, of_logits = _loss(logits.detach(), targets, soft)
                roots.append(logits)
                gradients.append(of_logits * self.auxiliary_weights[stream])
        torch.autograd.backward(roots, gradients)
        with torch.no_grad():
            found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._front]
            self._front_group.update(found, rate=rate, weight_decay=self.settings.weight_decay)

    # results

    @torch.no_grad()
    def validate(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Return a window's summed cross entropy (heads,) float64 and correct predictions (heads,), without dropout."""
        window = self._select_streams(window)
        heads, clips = len(self.heads), len(window.targets)
        loss, right = np.zeros(heads), np.zeros(heads)
        for start in range(0, clips, VALIDATION_ROWS):
            rows = slice(start, start + VALIDATION_ROWS)
            features = {name: x[rows].expand(heads, *x[rows].shape) for name, x in window.features.items()}
            x, targets = self._fuse(self._prepare(features)), window.targets[rows].expand(heads, -1)
            for index, layer in enumerate(self.layers):
                x = linear.forward(x.contiguous(), layer.weight, layer.bias)
                if index + 1 < len(self.layers):
                    x.relu_()
            losses = functional.cross_entropy(x.double().transpose(1, 2), targets, reduction="none")
            loss += losses.sum(dim=1).cpu().numpy()
            right += (x.argmax(dim=2) == targets).sum(dim=1).cpu().numpy()
        return loss, right

    def state(self, position: int) -> dict[str, np.ndarray]:
        """Return a copy of one head's parameters and buffers, as in `AlphaFusion.load_state_dict`."""
        whole = self.heads[position].state_dict()
        state = {name: value.clone() for name, value in whole.items() if not name.startswith("layers.")}
        for index, layer in enumerate(self.layers):
            state[f"layers.{index}.weight"] = layer.weight[position].clone()
            state[f"layers.{index}.bias"] = layer.bias[position].clone()
        if self.rates is not None:
            state["layers.0.weight"] *= self.rates[position]
        return {name: value.cpu().numpy() for name, value in state.items()}


class _Mixing(NamedTuple):
    """One draw of mixup: combines a batch with a permutation of itself."""

    shares: torch.Tensor  # (heads, 1, 1) in [0, 1]
    partners: torch.Tensor  # (heads, batch)
    heads: torch.Tensor  # (heads, 1)

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (heads, batch, ...) mixed."""
        return self.shares * x + (1 - self.shares) * x[self.heads, self.partners]


def _loss(logits: torch.Tensor, targets: torch.Tensor, soft: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean cross entropy (heads,) of logits (heads, batch, C), and its gradient (heads, batch, C).

    With soft targets T: -sum(T log p) / sum(T), whose gradient is (p sum_C(T) - T) / sum(T).
    """
    log_probabilities = functional.log_softmax(logits, dim=2)
    if soft is None:
        places = targets[..., None]  # (heads, batch, 1)
        losses = -log_probabilities.gather(2, places).mean(dim=(1, 2))
        gradient = log_probabilities.exp_()
        gradient.scatter_add_(2, places, torch.full_like(places, -1.0, dtype=gradient.dtype))
        return losses, gradient.div_(targets.shape[1])
    total = soft.sum(dim=(1, 2))
    losses = -(soft * log_probabilities).sum(dim=(1, 2)) / total
    gradient = log_probabilities.exp_().mul_(soft.sum(dim=2, keepdim=True)).sub_(soft)
    return losses, gradient.div_(total[:, None, None])

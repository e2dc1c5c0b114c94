"""Fully connected layers of a stack of heads: their three matrix products, and Adam's update of their weights.

    x (heads, batch, inputs), weight (heads, outputs, inputs), bias (heads, outputs)
    forward:            y = x weight^T + bias
    input_gradient:     dy weight
    weight_gradient:    dy^T x

On the CPU, the products of a single head use oneDNN. PyTorch ships oneDNN but uses it for float32 matrices only in
compiled code (the operator behind `torch.compile`'s linear layers). On AMD it uses AVX-512, which PyTorch's default
library, MKL, does not: measured on one core of an AMD EPYC, GFLOP/s with MKL and with oneDNN: 8 x 1536 by 1536 x 1024
forward 71 and 112, weight gradient 51 and 178, input gradient 68 and 193; with batch 512, 117 and 257. On other
devices, and for stacks of several heads, torch.baddbmm and torch.bmm are used. The choice depends on device and stack
alone, so it is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's defaults, as in the authors' notebook
PIECE_BYTES = 1_572_864  # piece of a weight matrix; with gradient and moments 6 MB, which fits a level 3 cache
LARGE_BATCH = 64  # from this size on the products dominate Adam's memory traffic, so weights aren't split into pieces
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x weight^T + bias for 2-d matrices; x and weight may be transposed views."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _uses_onednn(x: torch.Tensor) -> bool:
    return _ONEDNN and len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32


def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(heads, batch, inputs) -> (heads, batch, outputs)."""
    if _uses_onednn(x):
        return _onednn(x[0], weight[0], bias[0])[None]
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Gradient of the outputs (heads, batch, outputs) -> gradient of the inputs (heads, batch, inputs)."""
    if _uses_onednn(gradient):
        return _onednn(gradient[0], weight[0].t())[None]
    return torch.bmm(gradient, weight)


def weight_gradient(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gradient of the outputs (heads, batch, outputs), inputs (heads, batch, inputs) -> (heads, outputs, inputs)."""
    if _uses_onednn(x):
        return _onednn(gradient[0].t(), x[0].t())[None]
    return torch.bmm(gradient.transpose(1, 2), x)


class AdamGroup(NamedTuple):
    """Parameters that Adam updates in one call, with Adam's state."""

    parameters: list[torch.Tensor]
    means: list[torch.Tensor]
    squares: list[torch.Tensor]
    steps: list[torch.Tensor]

    @classmethod
    def of(cls, parameters: Sequence[torch.Tensor]) -> AdamGroup:
        """Return a group before its first step."""
        return cls(
            list(parameters),
            [torch.zeros_like(parameter) for parameter in parameters],
            [torch.zeros_like(parameter) for parameter in parameters],
            [torch.zeros((), device=parameter.device) for parameter in parameters],
        )

    def update(self, gradients: list[torch.Tensor], *, rate: float, weight_decay: float) -> None:
        """Make one step by the operator of torch.optim.Adam(fused=True); the class itself costs 10% of a small step."""
        torch._foreach_add_(self.steps, 1)
        torch._fused_adam_(
            self.parameters,
            gradients,
            self.means,
            self.squares,
            [],
            self.steps,
            lr=rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )


@dataclass(frozen=True)
class Layer:
    """A fully connected layer of all heads of a stack.

    Attributes:
        weight: (heads, outputs, inputs).
        bias: (heads, outputs).
        pieces: rows of the weight, each with its Adam state; the first piece's group also holds the bias.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    pieces: tuple[tuple[slice, AdamGroup], ...]

    @classmethod
    def of(cls, linears: Sequence[nn.Linear], *, batch_size: int, rates: torch.Tensor | None = None) -> Layer:
        """Combine the heads' layers into one; divide its initial weights by `rates` (heads, 1, inputs).

        A single head's layer shares memory with the result; on the CPU it is updated in pieces if batches are small.
        """
        if len(linears) == 1:
            weight, bias = linears[0].weight.detach()[None], linears[0].bias.detach()[None]
        else:
            weight = torch.stack([layer.weight.detach() for layer in linears])
            bias = torch.stack([layer.bias.detach() for layer in linears])
        if rates is not None:
            weight.div_(rates)
        rows = weight.shape[1]
        if len(linears) == 1 and weight.device.type == "cpu" and batch_size < LARGE_BATCH:
            rows = max(1, PIECE_BYTES // (4 * weight.shape[2]))
        pieces = []
        for start in range(0, weight.shape[1], rows):
            part = slice(start, min(start + rows, weight.shape[1]))
            pieces.append((part, AdamGroup.of([weight[:, part], *([] if start else [bias])])))
        return cls(weight, bias, tuple(pieces))

    def update(self, gradient: torch.Tensor, x: torch.Tensor, *, rate: float, weight_decay: float) -> None:
        """Make one step of Adam, from the gradient of the outputs (heads, batch, outputs) and the inputs x."""
        for rows, group in self.pieces:
            gradients = [weight_gradient(gradient[..., rows], x)]
            if len(group.parameters) > 1:
                gradients.append(gradient.sum(dim=1))
            group.update(gradients, rate=rate, weight_decay=weight_decay)

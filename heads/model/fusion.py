"""Fusion layers: each maps the transformed vectors of the streams to one vector for the head's layers.

    concat      (x_1, ..., x_N)                                 the paper's fusion
    add         x_1 + ... + x_N                                 future work in the paper
    matrix      (M_1 x_1, ..., M_N x_N) + sum P_st (U_s x_s * U_t x_t)
                                                                future work in the paper, plus low-rank bilinear pooling
    gate        g_1 E_1(x_1) + ... + g_N E_N(x_N)               a mixture of experts
    attention   a transformer layer over N tokens

x_1, ..., x_N are the transformed vectors of the N streams, in the order of `in_order` (the paper's: TimeSformer's, then
AST's); * is the elementwise product; sums over s and t are over all pairs of streams. A fusion is a layer built from
the streams' dimensions; `LAYERS` maps names to classes. To add one, write a class with its formula and source in
the docstring and add its name to `config.FUSIONS`. Parameter counts are for two 768-d streams, without the head's
layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from itertools import combinations

import torch
from torch import nn
from torch.nn import functional

from alphafuse.data.streams import in_order

from .config import FUSIONS, check_fusion

RANK = 64  # rank of the bilinear interaction of `matrix`
TOKEN_WIDTH = 256  # tokens of `attention`; at 768 a layer has 7 million parameters, three times the paper's head
ATTENTION_HEADS = 4  # 64 numbers each at that width, as in Vaswani et al. 2017
MLP_RATIO = 4  # Vaswani et al. 2017: the layer's hidden width is 4 times its own


class Fusion(nn.Module):
    """Base class of the fusion layers. Parameters are uninitialised until `reset_parameters`.

    Args:
        dims: stream -> dimension of its embeddings, for the streams that the head reads.

    Attributes:
        streams: those streams in the order of `in_order`, independent of the order of `dims`.
        output_dim: length of the fused vector.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.streams = tuple(in_order(dims))
        self.output_dim = 0

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw initial parameters from the generator alone.

        Linear layers get PyTorch's default, uniform within 1 / sqrt(fan-in); layer norms start as (x - mean) / std.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                for parameter in layer.parameters():  # weight, then bias
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)
            elif isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Fuse {stream: (batch, dim)} into (batch, output_dim)."""
        raise NotImplementedError


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return an uninitialised linear layer: `Fusion.reset_parameters` draws its values."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)


class Concat(Fusion):
    """cat(x_1, ..., x_N): in the paper TimeSformer's vector, then AST's (section 3); one stream stays as it is."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.output_dim = sum(dims[stream] for stream in self.streams)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{stream: (batch, dim)} -> (batch, sum of dims)."""
        return torch.cat([features[stream] for stream in self.streams], dim=-1)


class Add(Fusion):
    """x_1 + ... + x_N, the first alternative to concatenation that the paper names. No parameters if dims are equal.

    If they differ, learned projections W_s (no bias) first map the shorter vectors to the longest one's length.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.output_dim = max(dims[stream] for stream in self.streams)
        self.projections = nn.ModuleDict(
            {
                stream: _linear(dims[stream], self.output_dim, bias=False)
                for stream in self.streams
                if dims[stream] < self.output_dim
            }
        )

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{stream: (batch, dim)} -> (batch, largest dim)."""
        return reduce(
            torch.add,
            (
                self.projections[stream](features[stream]) if stream in self.projections else features[stream]
                for stream in self.streams
            ),
        )


class Matrix(Fusion):
    """cat(M_1 x_1, ..., M_N x_N) + sum over pairs of P_st (U_s x_s * U_t x_t): learned matrices. 1,376,256 parameters.

    The paper names "a learned matrix" as an alternative to concatenation without specifying it. M = diag(M_1, ..., M_N)
    is (D, D), D the sum of dims: each block weighs a stream. Off-diagonal blocks would mix streams, which the head's
    first layer does already, and a step would take three times as long as with concat instead of twice. M alone changes
    how fast each stream is learned, not which functions can be: it is linear, and a linear layer follows. The second
    term adds new functions: low-rank bilinear pooling (Kim et al. 2017, "Hadamard product for low-rank bilinear
    pooling", without bias and tanh) of each pair of streams s and t. U_s (64, dim of s), one per stream, and U_t give
    64 products of one number of each; P_st (D, 64) maps them to the fused vector.

    M starts as the identity and every P as zeros, so training starts from the same function as concat; U are random.
    An absent stream (zeros) contributes nothing.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.output_dim = sum(dims[stream] for stream in self.streams)
        self.influence = nn.ParameterDict(
            {stream: nn.Parameter(torch.empty(dims[stream], dims[stream])) for stream in self.streams}
        )
        self.factors = nn.ModuleDict({stream: _linear(dims[stream], RANK, bias=False) for stream in self.streams})
        self.pairs = list(combinations(self.streams, 2))
        # P of all pairs, side by side: (D, pairs x 64)
        self.spread = nn.Parameter(torch.empty(self.output_dim, len(self.pairs) * RANK))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw U; set M to the identity and P to zeros."""
        super().reset_parameters(generator)
        for block in self.influence.values():
            nn.init.eye_(block)
        nn.init.zeros_(self.spread)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{stream: (batch, dim)} -> (batch, sum of dims)."""
        weighed = [functional.linear(features[stream], self.influence[stream]) for stream in self.streams]
        factors = {stream: self.factors[stream](features[stream]) for stream in self.streams}  # (batch, 64) each
        products = [factors[one] * factors[other] for one, other in self.pairs]  # (batch, 64) each
        return torch.cat(weighed, dim=-1) + functional.linear(torch.cat(products, dim=-1), self.spread)


class Gate(Fusion):
    """g_1 E_1(x_1) + ... + g_N E_N(x_N): a mixture of experts (Jacobs et al. 1991). 1,184,258 parameters.

    Each stream has an expert E_s(x) = relu(W_s x + b_s), as wide as the longest vector. The gate
    g = softmax(G cat(x_1, ..., x_N) + c) has one number in [0, 1] per stream, and they sum to 1. So each clip's
    embeddings determine the streams' weights. For an absent stream (zeros) the expert returns relu(b_s).
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.output_dim = max(dims[stream] for stream in self.streams)
        self.layers = nn.ModuleDict({stream: _linear(dims[stream], self.output_dim) for stream in self.streams})
        self.gate = _linear(sum(dims[stream] for stream in self.streams), len(self.streams))

    def experts(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the experts' outputs: {stream: (batch, dim)} -> {stream: (batch, output_dim)}, 0 or more."""
        return {stream: torch.relu(self.layers[stream](features[stream])) for stream in self.streams}

    def weights(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return g: {stream: (batch, dim)} -> (batch, streams), in the order of `streams`; rows sum to 1."""
        joined = torch.cat([features[stream] for stream in self.streams], dim=-1)  # (batch, sum of dims)
        return self.gate(joined).softmax(dim=-1)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{stream: (batch, dim)} -> (batch, largest dim)."""
        experts = torch.stack(list(self.experts(features).values()), dim=1)  # (batch, streams, output_dim)
        return (self.weights(features)[..., None] * experts).sum(dim=1)


class Attention(Fusion):
    """A transformer layer over N tokens, one per stream. 1,183,744 parameters.

        t_s = W_s x_s + e_s                         e_s: the stream's embedding
        t   = t + O attention(LN(t))                4 heads, softmax(q k^T / sqrt(head width)) v
        t   = t + W_2 gelu(W_1 LN(t))
        fused = cat(LN(t_1), ..., LN(t_N))

    Vaswani et al. 2017 with the norms before each part (Xiong et al. 2020) and without dropout; a learned embedding per
    stream as in ViLT (Kim et al. 2021). A token's width is 256, or the length of the longest vector rounded up to a
    multiple of the 4 heads if that is smaller. The tokens are concatenated, so the streams stay separate, as with
    concat. The token of an absent stream (zeros) is the stream's embedding e_s.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        longest = max(dims[stream] for stream in self.streams)
        width = min(TOKEN_WIDTH, math.ceil(longest / ATTENTION_HEADS) * ATTENTION_HEADS)
        self.output_dim = len(self.streams) * width
        self.tokens = nn.ModuleDict({stream: _linear(dims[stream], width) for stream in self.streams})
        self.attention_norm = nn.LayerNorm(width)
        self.queries = _linear(width, width)
        self.keys = _linear(width, width, bias=False)  # softmax cancels a bias, and Adam would amplify its rounding
        self.values = _linear(width, width)
        self.attention_output = _linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_hidden = _linear(width, MLP_RATIO * width)
        self.mlp_output = _linear(MLP_RATIO * width, width)
        self.final_norm = nn.LayerNorm(width)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{stream: (batch, dim)} -> (batch, N x width)."""
        tokens = [self.tokens[stream](features[stream]) for stream in self.streams]  # its bias is e_s
        t = torch.stack(tokens, dim=1)  # (batch, N, width)
        t = t + self.attention_output(self._attend(self.attention_norm(t)))
        t = t + self.mlp_output(functional.gelu(self.mlp_hidden(self.mlp_norm(t))))
        return self.final_norm(t).flatten(start_dim=1)

    def _attend(self, t: torch.Tensor) -> torch.Tensor:
        """Multi-head self-attention, (batch, N, width) -> (batch, N, width).

        Written out: for few tokens fused kernels gain nothing, and on CUDA their gradients may differ from run to run.
        """
        parts = self.queries(t), self.keys(t), self.values(t)  # (batch, N, width) each
        q, k, v = (x.unflatten(-1, (ATTENTION_HEADS, -1)).transpose(1, 2) for x in parts)  # (batch, heads, N, 64)
        attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (batch, heads, N, N)
        return (attention @ v).transpose(1, 2).flatten(start_dim=2)


LAYERS: dict[str, type[Fusion]] = dict(zip(FUSIONS, (Concat, Add, Matrix, Gate, Attention), strict=True))


def build_fusion(name: str, dims: Mapping[str, int]) -> Fusion:
    """Return the fusion layer of that name for these dimensions, uninitialised until `reset_parameters`.

    Raises:
        ExperimentError: the name is unknown, or the fusion joins streams and there is only one.
    """
    check_fusion(name, tuple(dims))
    return LAYERS[name](dims)

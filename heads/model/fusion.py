"""Fusion: the transformed vectors of the modalities become the one vector that the head's layers read.

    concat      (S, A)                                  the paper's
    add         S + A                                   which the paper asks for next
    matrix      (M_S S, M_A A) + P (U S * V A)          which it asks for too, and low-rank bilinear pooling
    gate        g_S E_S(S) + g_A E_A(A)                 a mixture of experts
    attention   a transformer layer over two tokens

S and A are TimeSformer's and AST's transformed vectors, * is the product of elements. A fusion is a layer built from
the modalities' dimensions; `LAYERS` has them all. A new one is a class here with its formula and source in the
docstring, and its name in `config.FUSIONS`. Parameter counts are those of two 768-d modalities; the head's layers come
on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from alphafuse.data.streams import MODALITIES

from .config import FUSIONS, check_fusion

RANK = 64  # of the bilinear interaction of `matrix`
TOKEN_WIDTH = 256  # of `attention`; at 768 a layer has 7 million parameters, three times the paper's head
ATTENTION_HEADS = 4  # of 64 numbers each at that width, as in Vaswani et al. 2017
MLP_RATIO = 4  # Vaswani et al. 2017: the layer's hidden width is 4 times its own


class Fusion(nn.Module):
    """A layer that fuses; its parameters have no values before `reset_parameters`.

    Args:
        dims: modality -> dimension of its embeddings, for the modalities that the head reads.

    Attributes:
        modalities: those modalities in the order of `MODALITIES`, whatever the order of `dims`.
        output_dim: length of the fused vector.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.modalities = tuple(modality for modality in MODALITIES if modality in dims)
        self.output_dim = 0

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw initial parameters from the generator, and from nothing else.

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
        """Fuse {modality: (batch, dim)} into (batch, output_dim)."""
        raise NotImplementedError


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer without values: `Fusion.reset_parameters` draws them."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)


class Concat(Fusion):
    """cat(S, A): TimeSformer's vector, then AST's (paper section 3); with one modality, that vector itself."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.output_dim = sum(dims[modality] for modality in self.modalities)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{modality: (batch, dim)} -> (batch, sum of dims)."""
        return torch.cat([features[modality] for modality in self.modalities], dim=-1)


class Add(Fusion):
    """S + A, the first fusion that the paper names beside concatenation. Parameters: none, as long as dims are equal.

    Where they differ, the shorter vector goes through a learned projection W (no bias) to the longer one's length
    first: S + W A.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.output_dim = max(dims[modality] for modality in self.modalities)
        self.projections = nn.ModuleDict(
            {
                modality: _linear(dims[modality], self.output_dim, bias=False)
                for modality in self.modalities
                if dims[modality] < self.output_dim
            }
        )

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{modality: (batch, dim)} -> (batch, largest dim)."""
        first, second = (
            self.projections[modality](features[modality]) if modality in self.projections else features[modality]
            for modality in self.modalities
        )
        return first + second


class Matrix(Fusion):
    """cat(M_S S, M_A A) + P (U S * V A): a learned matrix decides each modality's influence. 1,376,256 parameters.

    The paper asks for "a learned matrix" beside concatenation and does not say which. M = diag(M_S, M_A) is (D, D), D
    the sum of dims; blocks off its diagonal would mix what the head's first layer mixes anyway, and a step would take
    three times as long as with concat instead of twice. M alone changes how fast each modality is learned rather than
    what can be: it is linear, and a linear layer follows. What can be learned on top is the second term, low-rank
    bilinear pooling (Kim et al. 2017, "Hadamard product for low-rank bilinear pooling", without bias and tanh): U (64,
    dim of S) and V (64, dim of A) give 64 products of a number of each modality, which P (D, 64) spreads over the fused
    vector.

    M starts as the identity and P as zeros, so that training starts where concat does; U and V are drawn. An absent
    modality (zeros) adds nothing.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.output_dim = sum(dims[modality] for modality in self.modalities)
        self.influence = nn.ParameterDict(
            {modality: nn.Parameter(torch.empty(dims[modality], dims[modality])) for modality in self.modalities}
        )
        self.factors = nn.ModuleDict(
            {modality: _linear(dims[modality], RANK, bias=False) for modality in self.modalities}
        )
        self.spread = nn.Parameter(torch.empty(self.output_dim, RANK))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw U and V; M becomes the identity, P zeros."""
        super().reset_parameters(generator)
        for block in self.influence.values():
            nn.init.eye_(block)
        nn.init.zeros_(self.spread)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{modality: (batch, dim)} -> (batch, sum of dims)."""
        weighed = [functional.linear(features[modality], self.influence[modality]) for modality in self.modalities]
        left, right = (self.factors[modality](features[modality]) for modality in self.modalities)  # (batch, 64) each
        return torch.cat(weighed, dim=-1) + functional.linear(left * right, self.spread)


class Gate(Fusion):
    """g_S E_S(S) + g_A E_A(A): a mixture of experts, one per modality (Jacobs et al. 1991). 1,184,258 parameters.

    Expert E_m(x) = relu(W_m x + b_m) is as wide as the longest vector; the gate g = softmax(G cat(S, A) + c) has one
    number in [0, 1] per modality, and they sum to 1. So a clip's own embeddings decide whom the head listens to. An
    absent modality's expert (zeros) says relu(b_m).
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.output_dim = max(dims[modality] for modality in self.modalities)
        self.layers = nn.ModuleDict(
            {modality: _linear(dims[modality], self.output_dim) for modality in self.modalities}
        )
        self.gate = _linear(sum(dims[modality] for modality in self.modalities), len(self.modalities))

    def experts(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What each modality's expert says: {modality: (batch, dim)} -> {modality: (batch, output_dim)}, 0 or more."""
        return {modality: torch.relu(self.layers[modality](features[modality])) for modality in self.modalities}

    def weights(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """g: {modality: (batch, dim)} -> (batch, modalities) in [0, 1], in the order of `modalities`; rows sum to 1."""
        joined = torch.cat([features[modality] for modality in self.modalities], dim=-1)  # (batch, sum of dims)
        return self.gate(joined).softmax(dim=-1)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{modality: (batch, dim)} -> (batch, largest dim)."""
        experts = torch.stack(list(self.experts(features).values()), dim=1)  # (batch, modalities, output_dim)
        return (self.weights(features)[..., None] * experts).sum(dim=1)


class Attention(Fusion):
    """A transformer layer over two tokens, one per modality. 1,183,744 parameters.

        t_m = W_m x_m + e_m                         e_m: the modality's embedding
        t   = t + O attention(LN(t))                4 heads, softmax(q k^T / sqrt(head width)) v
        t   = t + W_2 gelu(W_1 LN(t))
        fused = cat(LN(t_S), LN(t_A))

    Vaswani et al. 2017 with the norms before each part (Xiong et al. 2020) and without dropout; a learned embedding per
    modality as in ViLT (Kim et al. 2021). Tokens have 256 numbers, or as many as the longest vector, rounded up to a
    multiple of the 4 heads, where that is fewer. Concatenating them keeps the modalities apart, as concat does. An
    absent modality's token (zeros) is its embedding.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        longest = max(dims[modality] for modality in self.modalities)
        width = min(TOKEN_WIDTH, math.ceil(longest / ATTENTION_HEADS) * ATTENTION_HEADS)
        self.output_dim = len(self.modalities) * width
        self.tokens = nn.ModuleDict({modality: _linear(dims[modality], width) for modality in self.modalities})
        self.attention_norm = nn.LayerNorm(width)
        self.queries = _linear(width, width)
        self.keys = _linear(width, width, bias=False)  # softmax would cancel it, and Adam would blow its rounding up
        self.values = _linear(width, width)
        self.attention_output = _linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_hidden = _linear(width, MLP_RATIO * width)
        self.mlp_output = _linear(MLP_RATIO * width, width)
        self.final_norm = nn.LayerNorm(width)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{modality: (batch, dim)} -> (batch, 2 x width)."""
        tokens = [self.tokens[modality](features[modality]) for modality in self.modalities]  # its bias is e_m
        t = torch.stack(tokens, dim=1)  # (batch, 2, width)
        t = t + self.attention_output(self._attend(self.attention_norm(t)))
        t = t + self.mlp_output(functional.gelu(self.mlp_hidden(self.mlp_norm(t))))
        return self.final_norm(t).flatten(start_dim=1)

    def _attend(self, t: torch.Tensor) -> torch.Tensor:
        """Multi-head self-attention, (batch, 2, width) -> the same.

        By hand: for two tokens fused kernels gain nothing, and on CUDA their gradients may differ from run to run.
        """
        parts = self.queries(t), self.keys(t), self.values(t)  # (batch, 2, width) each
        q, k, v = (x.unflatten(-1, (ATTENTION_HEADS, -1)).transpose(1, 2) for x in parts)  # (batch, heads, 2, 64)
        attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (batch, heads, 2, 2)
        return (attention @ v).transpose(1, 2).flatten(start_dim=2)


LAYERS: dict[str, type[Fusion]] = dict(zip(FUSIONS, (Concat, Add, Matrix, Gate, Attention), strict=True))


def build_fusion(name: str, dims: Mapping[str, int]) -> Fusion:
    """The fusion of that name for these dimensions, without values before `reset_parameters`.

    Raises:
        ExperimentError: unknown name; one modality for a fusion that joins two.
    """
    check_fusion(name, tuple(dims))
    return LAYERS[name](dims)

"""Fast transformer blocks for all families: they compute only the rows that an embedding needs.

They use HuggingFace's weights and equal HuggingFace's layers up to rounding (the tests require 1e-5). The differences,
each exact in real numbers:

- the last block computes only the tokens that the embedding needs. One query's scores are q (W_k x_j) = (q W_k) x_j,
  and its output is sum_j p_j W_v x_j = W_v sum_j p_j x_j, so the keys and values of all tokens are not needed. This
  saves 12 of the 17 products of tokens x d x d in TimeSformer's last block, and all 12 in AST's
- attention is fused (`scaled_dot_product_attention`)
- queries, keys and values are one product, and only the queries' bias is added. The keys' bias adds the same number to
  all scores of a query, which softmax cancels. The values' bias is added to the projection's, because attention weights
  sum to 1
- on the CPU, products are added to the residual stream in place, and GELU is applied while its rows are cached

Shapes: b clips, n tokens, d width, h attention heads, e = d / h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# the CPU's attention kernel reads a sequence this long several times, so that contiguous rows of each head are faster
# (AST's 1214 tokens: 36 ms a layer without, 30.5 and a copy of 1.6 with; TimeSformer's 197: 8.8 and 9.6)
LONG_TOKENS = 512
CACHED_ROWS = 128  # rows of an MLP's hidden layer at a time: 1.6 MB in the full-size models, about a core's cache
Activation = Callable[[torch.Tensor], torch.Tensor]


class Block(nn.Module):
    """A pre-norm transformer block over one sequence of tokens."""

    def __init__(self, norms: tuple[nn.Module, nn.Module], attention: Attention, mlp: Mlp) -> None:
        super().__init__()
        self.norm_before, self.norm_after = norms
        self.attention = attention
        self.mlp = mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (b, n, d) to (b, n, d)."""
        return self._finish(x, self.attention(self.norm_before(x)))

    def last(self, x: torch.Tensor, queries: int) -> torch.Tensor:
        """Map (b, n, d) to the first `queries` tokens after this block, (b, queries, d)."""
        return self._finish(x[:, :queries].contiguous(), self.attention.first_tokens(self.norm_before(x), queries))

    def _finish(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.attention.projection.add_to(x, context)
        return self.mlp.add_to(x, self.norm_after(x))


class Attention(nn.Module):
    """Self-attention of one sequence, without the output projection, which the caller applies."""

    def __init__(self, qkv: Sequence[nn.Linear], projection: nn.Linear, heads: int) -> None:
        """Take over layers: queries, keys and values, in this order, in one layer or in three."""
        super().__init__()
        self.heads = heads
        self.qkv = Linear(torch.cat([layer.weight for layer in qkv]), None)
        biases: list[torch.Tensor] = [layer.bias for layer in qkv if layer.bias is not None]
        self.query_bias: nn.Parameter | None = None
        bias: torch.Tensor = projection.bias
        if biases:
            query_bias, _, value_bias = torch.cat(biases).chunk(3)
            self.query_bias = nn.Parameter(query_bias.detach().view(heads, 1, -1).clone(), requires_grad=False)
            bias = (bias.double() + projection.weight.double() @ value_bias.double()).float()
        self.projection = Linear(projection.weight, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (b, n, d) to (b, n, d)."""
        b, n, d = x.shape
        return self.gather(self.qkv(x).view(b, n, 3, d))

    def first_tokens(self, x: torch.Tensor, queries: int) -> torch.Tensor:
        """Attend from the first `queries` tokens, without all tokens' keys and values: (b, n, d) -> (b, queries, d)."""
        b, _, d = x.shape
        x = x.to(self.qkv.weight.dtype)
        w_q, w_k, w_v = self.qkv.weight.view(3, self.heads, -1, d)  # each (h, e, d)
        q = torch.einsum("bmd,hed->bhme", x[:, :queries], w_q)
        if self.query_bias is not None:
            q = q + self.query_bias.to(q.dtype)
        asked = torch.einsum("bhme,hed->bhmd", q, w_k) * w_k.shape[1] ** -0.5
        scores = asked.reshape(b, -1, d) @ x.transpose(1, 2)  # (b, h m, n)
        gathered = (scores.softmax(dim=-1) @ x).view(b, self.heads, queries, d)
        return torch.einsum("bhmd,hed->bmhe", gathered, w_v).reshape(b, queries, -1)

    def gather(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attend: queries, keys and values (b, n, 3, d) -> (b, n, d)."""
        b, n, _, d = qkv.shape
        qkv = qkv.view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, b, h, n, e)
        if n >= LONG_TOKENS:
            qkv = qkv.contiguous()
        q, k, v = qkv
        if self.query_bias is not None:
            q = q + self.query_bias.to(q.dtype)
        context = F.scaled_dot_product_attention(q, k, v)
        return context.transpose(1, 2).reshape(b, -1, d)


class Mlp(nn.Module):
    """Two fully connected layers with an activation between."""

    def __init__(self, up: nn.Linear, down: nn.Linear, activation: Activation, config: Any) -> None:
        super().__init__()
        self.is_gelu = config.hidden_act == "gelu"
        self.up, self.down = Linear(up.weight, up.bias), Linear(down.weight, down.bias)
        self.activation = activation

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return residual + mlp(x)."""
        return self.down.add_to(residual, self._hidden(x))

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return activation(up(x)); on the CPU, bias and GELU are applied in place, to some cached rows at a time."""
        up = self.up
        if up.bias is None or not (self.is_gelu and _is_fp32_on_cpu(x, up.weight)) or _onednn_is_faster():
            return self.activation(up(x))
        hidden = torch.mm(x.reshape(-1, x.shape[-1]), up.weight.t())
        for rows in hidden.split(CACHED_ROWS):
            torch.ops.aten.gelu_(rows.add_(up.bias))
        return hidden.view(*x.shape[:-1], -1)


class Linear(nn.Module):
    """A fully connected layer; uses oneDNN on CPUs on which it is faster than PyTorch's default library."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., d_in) to (..., d_out)."""
        weight = self.weight
        if _is_fp32_on_cpu(x, weight) and _onednn_is_faster():
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
            return result
        return F.linear(x.to(weight.dtype), weight, self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return residual + layer(x), in place if that is faster: no copy of the bias, no second pass over the sum."""
        if (
            self.bias is not None
            and residual.is_contiguous()
            and _is_fp32_on_cpu(residual, self.weight)
            and not _onednn_is_faster()
        ):
            residual.add_(self.bias).view(-1, residual.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.weight.t())
            return residual
        return residual + self(x)


def _is_fp32_on_cpu(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the hand-written CPU products apply; torch.compile makes its own."""
    return x.device.type == "cpu" and weight.dtype == torch.float32 and not torch.compiler.is_compiling()


@cache
def _onednn_is_faster() -> bool:
    """Whether the CPU isn't Intel's: MKL uses AVX-512 only on those; oneDNN was 1.5 to 3 times as fast on AMD EPYC."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    try:
        vendor = Path("/proc/cpuinfo").read_text()  # Linux
    except OSError:
        return False
    return "AuthenticAMD" in vendor


def run_blocks(blocks: nn.ModuleList, x: torch.Tensor, queries: int) -> torch.Tensor:
    """Apply all blocks; the last one returns only the first `queries` tokens."""
    *others, last = blocks
    for block in others:
        x = block(x)
    result: torch.Tensor = last.last(x, queries)  # type: ignore[operator]  # a Block
    return result


def store_products_in(model: nn.Module, dtype: torch.dtype) -> int:
    """Convert the weights of all products to `dtype`, in which they then run; sums and norms stay in float32.

    Returns:
        The number of these products; 0 for HuggingFace's own modules, which stay as they are.
    """
    products = [module for module in model.modules() if isinstance(module, Linear)]
    for product in products:
        product.to(dtype)
    return len(products)


def model_flops(config: Any) -> int:
    """Return the floating-point operations of the matrix products of HuggingFace's forward pass, per clip.

    A multiply-add counts as 2. Measured rates refer to this number; this module needs a few percent less.
    """
    d, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    if config.model_type != "timesformer":
        height = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        patches = height * ((config.max_length - config.patch_size) // config.time_stride + 1)
        block = _block_flops(patches + 2, d, inner)
        return layers * block + 2 * patches * config.patch_size**2 * d
    frames, patches = config.num_frames, (config.image_size // config.patch_size) ** 2
    embedding = 2 * frames * patches * config.num_channels * config.patch_size**2 * d
    if config.attention_type != "divided_space_time":
        return layers * _block_flops(1 + frames * patches, d, inner) + embedding
    time = 2 * patches * frames * 5 * d * d + 4 * patches * frames**2 * d
    space = 2 * frames * (1 + patches) * 4 * d * d + 4 * frames * (1 + patches) ** 2 * d
    return layers * (time + space + 2 * (1 + frames * patches) * 2 * d * inner) + embedding


def _block_flops(tokens: int, d: int, inner: int) -> int:
    return 2 * tokens * (4 * d * d + 2 * d * inner) + 4 * tokens**2 * d

"""The encoders' forward passes, written for what extraction needs: only the rows that the embedding reads.

Both start from HuggingFace's own embeddings module and weights, and give what HuggingFace's models give, to rounding
(the tests ask for 1e-5). What differs, every step exact in real numbers:

- the last block computes only what the tokens that the embedding reads ask for. One query's scores are q (W_k x_j) =
  (q W_k) x_j, and what it gathers is sum_j p_j W_v x_j = W_v sum_j p_j x_j: nobody needs all tokens' keys and values.
  Of its 17 units of work (products of tokens x d x d) 12 are left out in TimeSformer's, all 12 in AST's
- TimeSformer's temporal projection and the fully connected layer after it, with nothing in between, are one product
- attention is fused (`scaled_dot_product_attention`), also TimeSformer's, which HuggingFace runs eagerly
- queries, keys and values are one product, of whose biases only the queries' is added: a key's adds the same to all
  scores of a query, which softmax takes out again, and a value's passes through the weights, which sum to 1, so that it
  joins the projection's
- on the CPU, products are added to the residual stream in place, and GELU is applied while its rows are cached

Shapes: b clips, t frames, p patches per frame, n tokens, d width, h attention heads, e = d / h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# a sequence this long is read several times by the CPU's attention kernel: laying each head's rows side by side first
# pays (AST's 1214 tokens: 36 ms a layer without, 30.5 and a copy of 1.6 with; TimeSformer's 197: 8.8 and 9.6)
LONG_TOKENS = 512
CACHED_ROWS = 128  # of an MLP's hidden layer: 1.6 MB in the full-size models, about what a core's own cache holds
Activation = Callable[[torch.Tensor], torch.Tensor]


class PooledTimesformer(nn.Module):
    """TimeSformer up to its CLS token after the final norm; attention divided over space and time, or joint."""

    def __init__(self, model: Any) -> None:
        """Take over the weights of a `transformers.TimesformerModel`, whose module is changed on the way."""
        super().__init__()
        config = model.config
        self.frames: int = config.num_frames
        self.embeddings = model.embeddings
        self.is_divided = config.attention_type == "divided_space_time"
        block = _DividedBlock if self.is_divided else _joint_block
        self.blocks = nn.ModuleList([block(layer, config) for layer in model.encoder.layer])
        self.norm = model.layernorm

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(b, t, 3, height, width) float32 -> (b, d) float32."""
        x = self.embeddings(pixel_values)  # (b, 1 + p t, d): CLS, then patch by patch its frames
        if not self.is_divided:
            return self.norm(_through(self.blocks, x, 1)[:, 0])
        b, tokens, d = x.shape
        patches = x[:, 1:].view(b, (tokens - 1) // self.frames, self.frames, d).transpose(1, 2)  # (b, t, p, d)
        cls = x[:, None, :1].expand(b, self.frames, 1, d)
        x = torch.cat((cls, patches), dim=2)  # (b, t, 1 + p, d): every frame with a copy of CLS
        *others, last = self.blocks
        for block in others:
            x = block(x)
        embedding: torch.Tensor = self.norm(last.last(x))  # type: ignore[operator]  # a _DividedBlock
        return embedding


class PooledAst(nn.Module):
    """AST up to its pooled output: the mean of CLS and distillation token after the final norm."""

    def __init__(self, model: Any) -> None:
        """Take over the weights of a `transformers.ASTModel`."""
        super().__init__()
        self.embeddings = model.embeddings
        self.blocks = nn.ModuleList([_ast_block(layer, model.config) for layer in model.layers])
        self.norm = model.layernorm

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        """(b, max_length, mel_bins) float32 -> (b, d) float32."""
        x = _through(self.blocks, self.embeddings(input_values), 2)  # (b, 2, d): CLS, distillation
        return self.norm(x).mean(dim=1)


def pooled(model: Any) -> nn.Module:
    """The forward pass for a `transformers.TimesformerModel` or `ASTModel`."""
    return (PooledTimesformer if model.config.model_type == "timesformer" else PooledAst)(model)


def store_products_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the weights of all products in `dtype`, which they then run in; sums and norms stay in float32."""
    for module in model.modules():
        if isinstance(module, _Linear):
            module.to(dtype)


def model_flops(config: Any) -> int:
    """Floating-point operations of the matrix products of HuggingFace's whole forward pass, per clip (a multiply-add
    is 2), by which rates are measured; this module does a few percent less.
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


class _Linear(nn.Module):
    """A fully connected layer; on CPUs where oneDNN multiplies faster than PyTorch's default library, by oneDNN."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if _is_fp32_on_cpu(x, weight) and _onednn_is_faster():
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
            return result
        return F.linear(x.to(weight.dtype), weight, self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + layer(x), in place where that pays: no copy of the bias, no second pass over the sum."""
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
    """Where products are written by hand; torch.compile has its own ways."""
    return x.device.type == "cpu" and weight.dtype == torch.float32 and not torch.compiler.is_compiling()


@cache
def _onednn_is_faster() -> bool:
    """MKL keeps its AVX-512 kernels for Intel's CPUs; elsewhere oneDNN was 1.5 to 3 times as fast (AMD EPYC)."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    try:
        vendor = Path("/proc/cpuinfo").read_text()  # Linux
    except OSError:
        return False
    return "AuthenticAMD" in vendor


class _Block(nn.Module):
    """A pre-norm transformer block over one sequence of tokens."""

    def __init__(self, norms: tuple[nn.Module, nn.Module], attention: _Attention, mlp: _Mlp) -> None:
        super().__init__()
        self.norm_before, self.norm_after = norms
        self.attention = attention
        self.mlp = mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, n, d) -> (b, n, d)"""
        return self._rest(x, self.attention(self.norm_before(x)))

    def last(self, x: torch.Tensor, queries: int) -> torch.Tensor:
        """(b, n, d) -> the first `queries` tokens after this block, (b, queries, d)."""
        return self._rest(x[:, :queries].contiguous(), self.attention.of_few(self.norm_before(x), queries))

    def _rest(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.attention.projection.add_to(x, context)
        return self.mlp.add_to(x, self.norm_after(x))


class _DividedBlock(nn.Module):
    """TimeSformer's: attention over the frames of each patch, then over the patches of each frame (section 3.3)."""

    def __init__(self, layer: Any, config: Any) -> None:
        super().__init__()
        heads = config.num_attention_heads
        self.norm_time, self.norm_space = layer.temporal_layernorm, layer.layernorm_before
        self.norm_after = layer.layernorm_after
        time, space = layer.temporal_attention, layer.attention
        self.time = _Attention([time.attention.qkv], _product(layer.temporal_dense, time.output.dense), heads)
        self.space = _Attention([space.attention.qkv], space.output.dense, heads)
        self.mlp = _Mlp(layer.intermediate.dense, layer.output.dense, layer.intermediate.intermediate_act_fn, config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, t, 1 + p, d) -> the same; every frame holds the same CLS token before and after."""
        x = self._attend_over_time(x)
        b, t, n, d = x.shape
        context = self.space(self.norm_space(x).view(b * t, n, d)).view(b, t, n, d)
        # every frame's CLS took its own frame in; their mean is what is added to all, and projecting is linear
        context[:, :, 0] = context[:, :, 0].mean(dim=1, keepdim=True)
        x = self.space.projection.add_to(x, context)
        return self.mlp.add_to(x, self.norm_after(x))

    def last(self, x: torch.Tensor) -> torch.Tensor:
        """(b, t, 1 + p, d) -> CLS after this block, (b, d)."""
        x = self._attend_over_time(x)
        b, t, n, d = x.shape
        context = self.space.of_few(self.norm_space(x).view(b * t, n, d), 1).view(b, t, d).mean(dim=1)
        cls = self.space.projection.add_to(x[:, 0, 0].contiguous(), context)
        return self.mlp.add_to(cls, self.norm_after(cls))

    def _attend_over_time(self, x: torch.Tensor) -> torch.Tensor:
        b, t, n, d = x.shape
        patches = x[:, :, 1:]
        qkv = self.time.qkv(self.norm_time(patches)).view(b, t, n - 1, 3, d).transpose(1, 2)  # (b, p, t, 3, d)
        context = self.time.gather(qkv.reshape(b * (n - 1), t, 3, d))  # (b p, t, d)
        context = context.view(b, n - 1, t, d).transpose(1, 2)  # (b, t, p, d)
        return torch.cat((x[:, :, :1], patches + self.time.projection(context)), dim=2)


class _Attention(nn.Module):
    """Self-attention of one sequence, up to what it gathers; the projection is the caller's to apply."""

    def __init__(self, qkv: Sequence[nn.Linear], projection: nn.Linear, heads: int) -> None:
        """Take over layers: queries, keys and values in this order in one layer or in three."""
        super().__init__()
        self.heads = heads
        self.qkv = _Linear(torch.cat([layer.weight for layer in qkv]), None)
        biases: list[torch.Tensor] = [layer.bias for layer in qkv if layer.bias is not None]
        self.query_bias: nn.Parameter | None = None
        bias: torch.Tensor = projection.bias
        if biases:
            query_bias, _, value_bias = torch.cat(biases).chunk(3)
            self.query_bias = nn.Parameter(query_bias.detach().view(heads, 1, -1).clone(), requires_grad=False)
            bias = (bias.double() + projection.weight.double() @ value_bias.double()).float()
        self.projection = _Linear(projection.weight, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, n, d) -> (b, n, d)"""
        b, n, d = x.shape
        return self.gather(self.qkv(x).view(b, n, 3, d))

    def of_few(self, x: torch.Tensor, queries: int) -> torch.Tensor:
        """What the first `queries` tokens gather, without all tokens' keys and values: (b, n, d) -> (b, queries, d)."""
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
        """(b, n, 3, d), queries, keys and values -> (b, n, d)."""
        b, n, _, d = qkv.shape
        qkv = qkv.view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, b, h, n, e)
        if n >= LONG_TOKENS:
            qkv = qkv.contiguous()
        q, k, v = qkv
        if self.query_bias is not None:
            q = q + self.query_bias.to(q.dtype)
        context = F.scaled_dot_product_attention(q, k, v)
        return context.transpose(1, 2).reshape(b, -1, d)


class _Mlp(nn.Module):
    """Two fully connected layers with an activation between."""

    def __init__(self, up: nn.Linear, down: nn.Linear, activation: Activation, config: Any) -> None:
        super().__init__()
        self.is_gelu = config.hidden_act == "gelu"
        self.up, self.down = _Linear(up.weight, up.bias), _Linear(down.weight, down.bias)
        self.activation = activation

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + mlp(x)"""
        return self.down.add_to(residual, self._hidden(x))

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        """activation(up(x)); on the CPU, bias and GELU in place, on some rows at a time while they are cached."""
        up = self.up
        if up.bias is None or not (self.is_gelu and _is_fp32_on_cpu(x, up.weight)) or _onednn_is_faster():
            return self.activation(up(x))
        hidden = torch.mm(x.reshape(-1, x.shape[-1]), up.weight.t())
        for rows in hidden.split(CACHED_ROWS):
            torch.ops.aten.gelu_(rows.add_(up.bias))
        return hidden.view(*x.shape[:-1], -1)


def _through(blocks: nn.ModuleList, x: torch.Tensor, queries: int) -> torch.Tensor:
    """Through all blocks; of the last only the first `queries` tokens come out."""
    *others, last = blocks
    for block in others:
        x = block(x)
    result: torch.Tensor = last.last(x, queries)  # type: ignore[operator]  # a _Block
    return result


def _joint_block(layer: Any, config: Any) -> _Block:
    attention = _Attention([layer.attention.attention.qkv], layer.attention.output.dense, config.num_attention_heads)
    mlp = _Mlp(layer.intermediate.dense, layer.output.dense, layer.intermediate.intermediate_act_fn, config)
    return _Block((layer.layernorm_before, layer.layernorm_after), attention, mlp)


def _ast_block(layer: Any, config: Any) -> _Block:
    own = layer.attention
    attention = _Attention([own.q_proj, own.k_proj, own.v_proj], own.o_proj, config.num_attention_heads)
    mlp = _Mlp(layer.mlp.fc1, layer.mlp.fc2, layer.mlp.activation_fn, config)
    return _Block((layer.layernorm_before, layer.layernorm_after), attention, mlp)


def _product(second: nn.Linear, first: nn.Linear) -> nn.Linear:
    """second(first(x)) as one layer; multiplied in float64 so that only one rounding is added."""
    product = nn.Linear(first.in_features, second.out_features)
    weight = second.weight.double()
    product.weight = nn.Parameter((weight @ first.weight.double()).float())
    product.bias = nn.Parameter((second.bias.double() + weight @ first.bias.double()).float())
    return product

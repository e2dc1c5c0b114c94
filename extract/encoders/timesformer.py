"""TimeSformer: loading, input, and forward pass up to the CLS token after the final norm.

The temporal projection and the fully connected layer that directly follows it are merged into one product; the other
differences from HuggingFace's pass are in `transformer`. Frames arrive as 8-bit RGB. Decode workers resize them, or
`resize_frames` does (equal to the installed PIL to the bit).

Shapes: b clips, t frames, p patches per frame, n tokens, d width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import PIL
import torch
from torch import nn

from alphafuse.data.streams import Stream
from alphafuse.errors import EncoderError
from alphafuse.extract.decoding.specs import FrameSpec, crop_box

from .encoder import Encoder, Placement, freeze, load_pretrained
from .transformer import Attention, Block, Mlp, run_blocks

COEFFICIENT_BITS = 22  # of PIL's 8-bit resampling (Resample.c: 32 - 8 - 2)
FILTER_SUPPORT = {2: 1.0, 3: 2.0}  # PIL's bilinear and bicubic: half their width, in input pixels at scale 1
# from version 13 on, Pillow resizes vertically first if that removes more than twice as much (its PR 9549; the rule was
# found by trying 3,000 sizes)
_ROWS_MAY_COME_FIRST = int(PIL.__version__.split(".")[0]) >= 13


def load_timesformer(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load a TimeSformer: hub id, folder or "compact"; its config decides the number of frames.

    The embedding is the CLS token after the final norm. Option `protocol`: "notebook" prepares frames as the paper's
    notebook did.

    Raises:
        EncoderError: it can't be loaded, isn't a TimeSformer, lacks weights, or has settings that aren't implemented.
    """
    from transformers import TimesformerModel

    model, config, preprocessor = load_pretrained(stream, TimesformerModel)
    if config.attention_type == "space_only":
        raise EncoderError(
            f"{stream.encoder} has space_only attention, for which HuggingFace lacks the average over frames: use a "
            "model with divided_space_time or joint_space_time attention"
        )
    size = {"frames": config.num_frames, "image_size": config.image_size}
    spec = FrameSpec.notebook(**size) if stream.protocol == "notebook" else FrameSpec.from_config(preprocessor, **size)
    return freeze_timesformer(stream, model, spec, placement)


def freeze_timesformer(stream: Stream, model: Any, spec: FrameSpec, placement: Placement | None = None) -> Encoder:
    """Make the encoder of a `transformers.TimesformerModel`; it takes over the weights."""
    return freeze(
        stream,
        model,
        PooledTimesformer,
        spec=spec,
        prepare=partial(frame_inputs, spec=spec),
        resize=partial(resize_frames, spec=spec) if can_resize(spec) else None,
        placement=placement,
        details={"protocol": stream.protocol, "pool": "cls"},
    )


class PooledTimesformer(nn.Module):
    """TimeSformer up to its CLS token after the final norm; attention divided over space and time, or joint."""

    def __init__(self, model: Any) -> None:
        """Take over the weights of a `transformers.TimesformerModel`, which is modified."""
        super().__init__()
        config = model.config
        self.frames: int = config.num_frames
        self.embeddings = model.embeddings
        self.is_divided = config.attention_type == "divided_space_time"
        block = _DividedBlock if self.is_divided else _joint_block
        self.blocks = nn.ModuleList([block(layer, config) for layer in model.encoder.layer])
        self.norm = model.layernorm

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map (b, t, 3, height, width) float32 to (b, d) float32."""
        x = self.embeddings(pixel_values)  # (b, 1 + p t, d): CLS, then the frames of each patch
        if not self.is_divided:
            return self.norm(run_blocks(self.blocks, x, 1)[:, 0])
        b, tokens, d = x.shape
        patches = x[:, 1:].view(b, (tokens - 1) // self.frames, self.frames, d).transpose(1, 2)  # (b, t, p, d)
        cls = x[:, None, :1].expand(b, self.frames, 1, d)
        x = torch.cat((cls, patches), dim=2)  # (b, t, 1 + p, d): every frame with a copy of CLS
        *others, last = self.blocks
        for block in others:
            x = block(x)
        embedding: torch.Tensor = self.norm(last.last(x))  # type: ignore[operator]  # a _DividedBlock
        return embedding


class _DividedBlock(nn.Module):
    """Divided attention: over the frames of each patch, then over the patches of each frame (section 3.3)."""

    def __init__(self, layer: Any, config: Any) -> None:
        super().__init__()
        heads = config.num_attention_heads
        self.norm_time, self.norm_space = layer.temporal_layernorm, layer.layernorm_before
        self.norm_after = layer.layernorm_after
        time, space = layer.temporal_attention, layer.attention
        self.time = Attention([time.attention.qkv], _merged(layer.temporal_dense, time.output.dense), heads)
        self.space = Attention([space.attention.qkv], space.output.dense, heads)
        self.mlp = Mlp(layer.intermediate.dense, layer.output.dense, layer.intermediate.intermediate_act_fn, config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (b, t, 1 + p, d) to the same shape; all frames hold the same CLS token before and after."""
        x = self._attend_over_time(x)
        b, t, n, d = x.shape
        context = self.space(self.norm_space(x).view(b * t, n, d)).view(b, t, n, d)
        # each frame's CLS attends to its own frame; the mean of them is added to all, and the projection is linear
        context[:, :, 0] = context[:, :, 0].mean(dim=1, keepdim=True)
        x = self.space.projection.add_to(x, context)
        return self.mlp.add_to(x, self.norm_after(x))

    def last(self, x: torch.Tensor) -> torch.Tensor:
        """Map (b, t, 1 + p, d) to CLS after this block, (b, d)."""
        x = self._attend_over_time(x)
        b, t, n, d = x.shape
        context = self.space.first_tokens(self.norm_space(x).view(b * t, n, d), 1).view(b, t, d).mean(dim=1)
        cls = self.space.projection.add_to(x[:, 0, 0].contiguous(), context)
        return self.mlp.add_to(cls, self.norm_after(cls))

    def _attend_over_time(self, x: torch.Tensor) -> torch.Tensor:
        b, t, n, d = x.shape
        patches = x[:, :, 1:]
        qkv = self.time.qkv(self.norm_time(patches)).view(b, t, n - 1, 3, d).transpose(1, 2)  # (b, p, t, 3, d)
        context = self.time.gather(qkv.reshape(b * (n - 1), t, 3, d))  # (b p, t, d)
        context = context.view(b, n - 1, t, d).transpose(1, 2)  # (b, t, p, d)
        return torch.cat((x[:, :, :1], patches + self.time.projection(context)), dim=2)


def _joint_block(layer: Any, config: Any) -> Block:
    attention = Attention([layer.attention.attention.qkv], layer.attention.output.dense, config.num_attention_heads)
    mlp = Mlp(layer.intermediate.dense, layer.output.dense, layer.intermediate.intermediate_act_fn, config)
    return Block((layer.layernorm_before, layer.layernorm_after), attention, mlp)


def _merged(second: nn.Linear, first: nn.Linear) -> nn.Linear:
    """Return second(first(x)) as one layer; multiplied in float64, so that only one rounding is added."""
    product = nn.Linear(first.in_features, second.out_features)
    weight = second.weight.double()
    product.weight = nn.Parameter((weight @ first.weight.double()).float())
    product.bias = nn.Parameter((second.bias.double() + weight @ first.bias.double()).float())
    return product


# frames


def frame_inputs(clips: Sequence[np.ndarray | torch.Tensor], spec: FrameSpec, *, device: torch.device) -> torch.Tensor:
    """Turn the resized frames of a batch into TimeSformer's `pixel_values`.

    Args:
        clips: each (frames, crop height, crop width, 3) uint8 RGB, resized by `decode.prepare_frame` or
            `resize_frames`.
        spec: scale and statistics.
        device: device that normalises; 8-bit values are sent to it.

    Returns:
        (clips, frames, 3, height, width) float32.
    """
    return normalize_frames(torch.stack([torch.as_tensor(frames).to(device) for frames in clips]), spec)


def normalize_frames(frames: torch.Tensor, spec: FrameSpec) -> torch.Tensor:
    """Map (..., height, width, 3) uint8 to (..., 3, height, width) float32, scaled and normalised."""
    pixels = frames.movedim(-1, -3).float() * spec.scale
    mean, std = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels - mean) / std


def can_resize(spec: FrameSpec) -> bool:
    """Whether `resize_frames` implements the spec's filter."""
    return spec.resample in FILTER_SUPPORT


def resize_frames(frames: torch.Tensor, spec: FrameSpec) -> torch.Tensor:
    """Resize, then centre-crop, on any device, with the result of `decode.prepare_frame` to the bit.

    As in PIL (Resample.c), each output pixel is a sum of input pixels with weights of 22 bits, rounded to 8 bits, along
    one dimension, then along the other. Only pixels inside the crop are computed.

    Args:
        frames: (frames, height, width, 3) uint8.
        spec: sizes and filter.

    Returns:
        (frames, crop height, crop width, 3) uint8.

    Raises:
        DecodeError: the resized frame is smaller than the crop.
    """
    height, width = frames.shape[1:3]
    resized = spec.resized(height, width)
    top, left, crop_height, crop_width = crop_box(resized, spec)
    passes = [(2, resized[1], left, crop_width), (1, resized[0], top, crop_height)]
    if _ROWS_MAY_COME_FIRST and height > resized[0] and height - resized[0] > 2 * (width - resized[1]):
        passes.reverse()
    for dim, size, first, count in passes:
        if size == frames.shape[dim]:
            frames = frames.narrow(dim, first, count)
        else:
            frames = _resample(frames, size, first, count, spec.resample, dim=dim)
    return frames


def _resample(frames: torch.Tensor, size: int, first: int, count: int, resample: int, *, dim: int) -> torch.Tensor:
    """Resize dimension `dim` to `size` and return `count` of its pixels from `first` on."""
    starts, weights = _coefficients(frames.shape[dim], size, resample)
    starts = starts[first : first + count].to(frames.device)
    weights = weights[first : first + count].to(frames.device)  # (count, taps)
    shape = [1] * frames.ndim
    shape[dim] = count
    last = frames.shape[dim] - 1
    total = torch.full((), 1 << (COEFFICIENT_BITS - 1), dtype=torch.int32, device=frames.device)  # rounds
    for tap in range(weights.shape[1]):
        pixels = frames.index_select(dim, (starts + tap).clamp(max=last))  # pixels beyond the last have weight 0
        total = total + pixels.int() * weights[:, tap].view(shape)
    return (total >> COEFFICIENT_BITS).clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=256)  # a dataset has few frame sizes
def _coefficients(before: int, after: int, resample: int) -> tuple[torch.Tensor, torch.Tensor]:
    """PIL's precompute_coeffs: first input pixel of each output pixel (after,), and weights (after, taps), int32."""
    scale = before / after
    stretch = max(scale, 1.0)  # enlarging interpolates, shrinking averages
    support = FILTER_SUPPORT[resample] * stretch
    taps = math.ceil(support) * 2 + 1
    starts, weights = np.zeros(after, np.int64), np.zeros((after, taps), np.int64)
    for i in range(after):
        centre = (i + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), before)
        values = [_filter((j - centre + 0.5) / stretch, resample) for j in range(start, stop)]
        total = sum(values)
        for tap, value in enumerate(values):
            exact = value / total * (1 << COEFFICIENT_BITS)
            weights[i, tap] = int(exact - 0.5) if value < 0 else int(exact + 0.5)
        starts[i] = start
    return torch.from_numpy(starts), torch.from_numpy(weights.astype(np.int32))


def _filter(x: float, resample: int) -> float:
    x = abs(x)
    if resample == 2:
        return max(1.0 - x, 0.0)
    a = -0.5  # PIL's bicubic
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * a if x < 2.0 else 0.0

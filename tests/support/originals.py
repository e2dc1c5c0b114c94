"""Original checkpoints for the tests: tiny files in the published format, and the published formulas on their tensors.

The formulas are an independent implementation: TimeSformer's divided, joint and space-only attention (Bertasius et al.
2021, section 3) and AST's DeiT blocks with two class tokens (Gong et al. 2021, section 2). Models have a width of 64
(one head) or 128 (two) and two blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import ASTModel, TimesformerModel

from alphafuse.errors import AlphafuseError, CheckpointError
from alphafuse.extract.encoders.checkpoints import AstGrid

Tensors = dict[str, torch.Tensor]
PATCH = 16
EXACT = 1e-5  # the smallest error of a wrong conversion, another LayerNorm epsilon, is about 3e-4


# ----------------------------------------------------------------------------------------- files as they are published


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Random weights without zeros and ones. Embeddings are large enough to change the features."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator)
        is_embedding = name.endswith(("_embed", "_token"))
        is_scale = len(shape) == 1 and name.endswith("weight")
        tensors[name] = tensor * 0.1 + 1 if is_scale else tensor * (0.5 if is_embedding else 0.1)
    return tensors


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vit_block(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return (
        norm(f"{prefix}.norm1", width)
        | linear(f"{prefix}.attn.qkv", width, 3 * width)
        | linear(f"{prefix}.attn.proj", width, width)
        | norm(f"{prefix}.norm2", width)
        | linear(f"{prefix}.mlp.fc1", width, 4 * width)
        | linear(f"{prefix}.mlp.fc2", 4 * width, width)
    )


def timesformer_tensors(
    image_size: int = 64,
    frames: int = 8,
    classes: int = 400,
    width: int = 64,
    depth: int = 2,
    attention: str = "divided_space_time",
) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (image_size // PATCH) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
    }
    if attention != "space_only":
        shapes["time_embed"] = (1, frames, width)
    for block in (f"blocks.{i}" for i in range(depth)):
        shapes |= vit_block(block, width)
        if attention == "divided_space_time":
            shapes |= norm(f"{block}.temporal_norm1", width)
            shapes |= linear(f"{block}.temporal_attn.qkv", width, 3 * width)
            shapes |= linear(f"{block}.temporal_attn.proj", width, width)
            shapes |= linear(f"{block}.temporal_fc", width, width)
    return random_tensors(shapes | norm("norm", width) | linear("head", width, classes))


def ast_tensors(grid: AstGrid, classes: int = 527, width: int = 64, depth: int = 2) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {
        "v.cls_token": (1, 1, width),
        "v.dist_token": (1, 1, width),
        "v.pos_embed": (1, grid.rows * grid.columns + 2, width),
        "v.patch_embed.proj.weight": (width, 1, PATCH, PATCH),
        "v.patch_embed.proj.bias": (width,),
    }
    for block in range(depth):
        shapes |= vit_block(f"v.blocks.{block}", width)
    shapes |= norm("v.norm", width) | linear("v.head", width, 1000) | linear("v.head_dist", width, 1000)
    return random_tensors(shapes | norm("mlp_head.0", width) | linear("mlp_head.1", width, classes))


def with_small_tokens(tensors: Tensors) -> Tensors:
    """Scale the tokens to a variance of 1e-6, so that another LayerNorm epsilon changes the first block's input."""
    return {
        name: tensor * 1e-3 if name.endswith(("_embed", "_token")) or ".proj." in name else tensor
        for name, tensor in tensors.items()
    }


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())


def save_timesformer(path: Path, tensors: Tensors) -> Path:
    torch.save({"epoch": 14, "model_state": prefixed(tensors, "model."), "cfg": "DATA:\n"}, path)
    return path


def save_ast(path: Path, tensors: Tensors) -> Path:
    torch.save(prefixed(tensors, "module."), path)
    return path


# ---------------------------------------------------------------------------------------------- the published formulas


def layer_norm(x: torch.Tensor, weights: Tensors, name: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def dense(x: torch.Tensor, weights: Tensors, name: str) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attend(x: torch.Tensor, weights: Tensors, name: str) -> torch.Tensor:
    """Multi-head self-attention over the second to last dimension, with heads of width 64."""
    *batch, tokens, width = x.shape
    q, k, v = dense(x, weights, f"{name}.qkv").view(*batch, tokens, 3, width // 64, 64).unbind(-3)
    scores = torch.einsum("...qhc,...khc->...hqk", q, k) / 8  # sqrt(64)
    mixed = torch.einsum("...hqk,...khc->...qhc", scores.softmax(-1), v)
    return dense(mixed.reshape(*batch, tokens, width), weights, f"{name}.proj")


def feed_forward(x: torch.Tensor, weights: Tensors, block: str) -> torch.Tensor:
    hidden = F.gelu(dense(layer_norm(x, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1"))
    return x + dense(hidden, weights, f"{block}.mlp.fc2")


def plain_block(x: torch.Tensor, weights: Tensors, block: str) -> torch.Tensor:
    return feed_forward(x + attend(layer_norm(x, weights, f"{block}.norm1"), weights, f"{block}.attn"), weights, block)


def divided_block(
    cls: torch.Tensor, x: torch.Tensor, weights: Tensors, block: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend over time for each patch, then over space for each frame: cls (1, width), x (frames, patches, width)."""
    over_time = attend(
        layer_norm(x.transpose(0, 1), weights, f"{block}.temporal_norm1"), weights, f"{block}.temporal_attn"
    )
    x = x + dense(over_time.transpose(0, 1), weights, f"{block}.temporal_fc")
    frames = torch.cat([cls.expand(len(x), 1, -1), x], dim=1)  # (frames, 1 + patches, width)
    over_space = attend(layer_norm(frames, weights, f"{block}.norm1"), weights, f"{block}.attn")
    cls = cls + over_space[:, 0].mean(0, keepdim=True)
    return feed_forward(cls, weights, block), feed_forward(x + over_space[:, 1:], weights, block)


def nearest_rows(old: int, new: int) -> list[int]:
    return [i * old // new for i in range(new)]


def timesformer_feature(weights: Tensors, video: torch.Tensor) -> torch.Tensor:
    """(frames, 3, height, width) -> (width,), the CLS token after the last norm.

    The embeddings that `weights` hold are resized here as a pass of the original does: position by rows and columns
    of the square picture, time by frame, both to the nearest.
    """
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    patches = F.conv2d(video, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=PATCH)
    frames, side = patches.shape[0], patches.shape[-1]
    position = weights["pos_embed"][0]
    old = int((len(position) - 1) ** 0.5)
    square = position[1:].view(old, old, -1)[nearest_rows(old, side)][:, nearest_rows(old, side)].flatten(0, 1)
    x = patches.flatten(2).transpose(1, 2) + square  # (frames, patches, width)
    cls = weights["cls_token"][0] + position[:1]  # (1, width)
    if "time_embed" in weights:
        time = weights["time_embed"][0]
        x = x + time[nearest_rows(len(time), frames)][:, None]
    if any(".temporal_" in name for name in weights):
        for block in range(depth):
            cls, x = divided_block(cls, x, weights, f"blocks.{block}")
    elif "time_embed" in weights:  # joint: one sequence of all patches of all frames
        sequence = torch.cat([cls, x.flatten(0, 1)])
        for block in range(depth):
            sequence = plain_block(sequence, weights, f"blocks.{block}")
        cls = sequence[:1]
    else:  # space only: each frame alone, then the mean over frames
        sequence = torch.cat([cls.expand(frames, 1, -1), x], dim=1)
        for block in range(depth):
            sequence = plain_block(sequence, weights, f"blocks.{block}")
        cls = sequence[:, 0].mean(0, keepdim=True)
    return layer_norm(cls, weights, "norm")[0]


def ast_feature(weights: Tensors, mel: torch.Tensor, strides: tuple[int, int]) -> torch.Tensor:
    """(frames, mel bins) -> (width,), the mean of CLS and distillation token after the last norm."""
    depth = len({name.split(".")[2] for name in weights if name.startswith("v.blocks.")})
    patches = F.conv2d(
        mel.T[None, None], weights["v.patch_embed.proj.weight"], weights["v.patch_embed.proj.bias"], stride=strides
    )
    x = torch.cat([weights["v.cls_token"][0], weights["v.dist_token"][0], patches[0].flatten(1).T])
    x = x + weights["v.pos_embed"][0]
    for block in range(depth):
        x = plain_block(x, weights, f"v.blocks.{block}")
    return layer_norm(x, weights, "v.norm")[:2].mean(0)


# ----------------------------------------------------------------------------------------- converted folders, refusals


def random_video(frames: int, image_size: int) -> torch.Tensor:
    return torch.randn(frames, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def converted_timesformer_feature(folder: Path, video: torch.Tensor) -> torch.Tensor:
    model = TimesformerModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(video[None]).last_hidden_state[0, 0]


def converted_ast_feature(folder: Path, mel: torch.Tensor) -> torch.Tensor:
    model = ASTModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(mel[None]).pooler_output[0]


def assert_exact(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.abs().mean() > 0.1  # features of a degenerate model could agree by chance
    torch.testing.assert_close(actual, expected, atol=EXACT, rtol=0)


def assert_refused(convert: Any, file: Path, match: str, **options: Any) -> None:
    """Assert that the conversion raises CheckpointError with one line that matches, and leaves no new file."""
    out = file.parent / "out"
    before = sorted(path for path in file.parent.iterdir())
    with pytest.raises(CheckpointError, match=match) as caught:
        convert(file, out, **options)
    assert isinstance(caught.value, AlphafuseError)
    assert "\n" not in str(caught.value)
    assert sorted(path for path in file.parent.iterdir()) == before

"""Original checkpoints: converted features equal the published formulas, and bad files are refused in one line.

The formulas are written here a second time, on the original names of the tensors: TimeSformer's divided, joint and
space-only attention (Bertasius et al. 2021, section 3) and AST's DeiT blocks with two class tokens (Gong et al. 2021,
section 2). Models are tiny: width 64 (one head) or 128 (two), two blocks.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ASTModel,
    TimesformerForVideoClassification,
    TimesformerModel,
)

from alphafuse.errors import AlphafuseError, CheckpointError
from alphafuse.extract.checkpoints import (
    AST_LENGTHS,
    AST_STRIDES,
    AstGrid,
    convert_ast,
    convert_timesformer,
    infer_ast_grid,
)

Tensors = dict[str, torch.Tensor]
PATCH = 16
EXACT = 1e-5  # the mildest wrong conversion, another LayerNorm eps, moves features by about 3e-4


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost these tiny models more than they bring, a hundred times more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -------------------------------------------------------------------------------- files as they are published


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Weights far from any initialisation: no zeros, no ones, embeddings large enough to matter."""
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


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())


def save_timesformer(path: Path, tensors: Tensors) -> Path:
    torch.save({"epoch": 14, "model_state": prefixed(tensors, "model."), "cfg": "DATA:\n"}, path)
    return path


def save_ast(path: Path, tensors: Tensors) -> Path:
    torch.save(prefixed(tensors, "module."), path)
    return path


# ------------------------------------------------------------------------------------- the published formulas


def layer_norm(x: torch.Tensor, weights: Tensors, name: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def dense(x: torch.Tensor, weights: Tensors, name: str) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attend(x: torch.Tensor, weights: Tensors, name: str) -> torch.Tensor:
    """Multi-head self-attention over the second to last dimension, heads of 64."""
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
    """cls (1, width), x (frames, patches, width): over time for each patch, then over space for each frame."""
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
    else:  # space only: every frame for itself, then their mean
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
    assert expected.abs().mean() > 0.1  # a degenerate model would agree with anything
    torch.testing.assert_close(actual, expected, atol=EXACT, rtol=0)


# -------------------------------------------------------------------------------------- TimeSformer: features


@pytest.mark.parametrize(
    ("image_size", "frames", "classes", "width", "dataset"),
    [
        (64, 8, 400, 64, "Kinetics-400"),
        (96, 16, 600, 128, "Kinetics-600"),
        (32, 64, 1059, 64, "HowTo100M"),
        (32, 96, 174, 64, "Something-Something-V2"),
        (64, 8, 7, 64, None),
    ],
)
def test_timesformer_feature_equals_the_published_formula(
    tmp_path: Path, image_size: int, frames: int, classes: int, width: int, dataset: str | None
) -> None:
    tensors = timesformer_tensors(image_size, frames, classes, width)
    report = convert_timesformer(save_timesformer(tmp_path / "m.pyth", tensors), tmp_path / "out")
    video = random_video(frames, image_size)
    assert_exact(converted_timesformer_feature(tmp_path / "out", video), timesformer_feature(tensors, video))
    assert report.geometry["image_size"] == image_size
    assert report.geometry["frames"] == frames
    assert report.geometry["heads"] == width // 64
    assert (report.classes, report.dataset) == (classes, dataset)


def test_joint_attention_is_read_from_the_names(tmp_path: Path) -> None:
    tensors = timesformer_tensors(attention="joint_space_time")
    report = convert_timesformer(save_timesformer(tmp_path / "m.pyth", tensors), tmp_path / "out")
    video = random_video(8, 64)
    assert report.geometry["attention_type"] == "joint_space_time"
    assert_exact(converted_timesformer_feature(tmp_path / "out", video), timesformer_feature(tensors, video))


def test_space_only_must_be_said_and_its_note_gives_the_feature(tmp_path: Path) -> None:
    tensors = timesformer_tensors(attention="space_only")
    file = save_timesformer(tmp_path / "m.pyth", tensors)
    with pytest.raises(CheckpointError, match=r"looks like an image transformer.*--attention-type space_only"):
        convert_timesformer(file, tmp_path / "out")
    report = convert_timesformer(file, tmp_path / "out", attention_type="space_only")
    assert "mean over frames" in report.notes[0]
    video = random_video(8, 64)
    model = TimesformerModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        hidden = model(video[None], output_hidden_states=True).hidden_states[-1]
        actual = model.layernorm(hidden[:, 0].unflatten(0, (1, 8)).mean(1))[0]
    assert_exact(actual, timesformer_feature(tensors, video))


def test_original_classifier_is_kept(tmp_path: Path) -> None:
    tensors = timesformer_tensors(classes=11)
    convert_timesformer(save_timesformer(tmp_path / "m.pyth", tensors), tmp_path / "out")
    video = random_video(8, 64)
    with torch.no_grad():
        logits = TimesformerForVideoClassification.from_pretrained(tmp_path / "out").eval()(video[None]).logits[0]
    assert_exact(logits, dense(timesformer_feature(tensors, video), tensors, "head"))


def test_epsilon_of_the_layer_norms_is_the_published_one(tmp_path: Path) -> None:
    """Tokens of variance 1e-6 show it: with another epsilon the first block sees others."""

    def faint(tensors: Tensors) -> Tensors:
        return {
            name: tensor * 1e-3 if name.endswith(("_embed", "_token")) or ".proj." in name else tensor
            for name, tensor in tensors.items()
        }

    video_tensors = faint(timesformer_tensors())
    convert_timesformer(save_timesformer(tmp_path / "m.pyth", video_tensors), tmp_path / "video")
    video = random_video(8, 64)
    assert_exact(converted_timesformer_feature(tmp_path / "video", video), timesformer_feature(video_tensors, video))
    audio_tensors = faint(ast_tensors(AstGrid(16, 16, 128)))
    convert_ast(save_ast(tmp_path / "a.pth", audio_tensors), tmp_path / "audio")
    mel = torch.randn(128, 128, generator=torch.Generator().manual_seed(1))
    assert_exact(converted_ast_feature(tmp_path / "audio", mel), ast_feature(audio_tensors, mel, (16, 16)))


# -------------------------------------------------------------------------------------- TimeSformer: resizing


def flat_resized(tensors: Tensors, patches: int) -> Tensors:
    """The position embedding as the original loads it into another size: one flat sequence, nearest."""
    rows = tensors["pos_embed"]
    return tensors | {
        "pos_embed": torch.cat([rows[:, :1], rows[:, 1:][:, nearest_rows(rows.shape[1] - 1, patches)]], dim=1)
    }


def test_time_embedding_of_64_frames_is_cut_to_every_eighth(tmp_path: Path) -> None:
    tensors = timesformer_tensors(frames=64)
    report = convert_timesformer(save_timesformer(tmp_path / "m.pyth", tensors), tmp_path / "out", frames=8)
    model = TimesformerModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.embeddings.time_embeddings, tensors["time_embed"][:, ::8])
    assert model.config.num_frames == 8
    assert [str(tensor) for tensor in report.resized] == [
        "time_embed (1, 64, 64) -> (1, 8, 64), nearest, as the original loads it"
    ]
    video = random_video(8, 64)
    assert_exact(converted_timesformer_feature(tmp_path / "out", video), timesformer_feature(tensors, video))


@pytest.mark.parametrize("image_size", [48, 96, 128])
def test_position_embedding_is_loaded_into_another_size_as_a_flat_sequence(tmp_path: Path, image_size: int) -> None:
    tensors = timesformer_tensors(image_size=64)
    file = save_timesformer(tmp_path / "m.pyth", tensors)
    report = convert_timesformer(file, tmp_path / "out", image_size=image_size)
    patches = (image_size // PATCH) ** 2
    video = random_video(8, image_size)
    expected = timesformer_feature(flat_resized(tensors, patches), video)
    assert_exact(converted_timesformer_feature(tmp_path / "out", video), expected)
    assert report.resized[0].old_shape == (1, 17, 64)
    assert report.resized[0].new_shape == (1, patches + 1, 64)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 128, "frames": 8},
        {"image_size": 128, "frames": 64, "fed_image_size": 64, "fed_frames": 8},
    ],
    ids=["resized when fed", "resized beforehand"],
)
def test_detour_of_the_paper_equals_a_large_model_fed_the_small_size(tmp_path: Path, options: dict[str, int]) -> None:
    tensors = timesformer_tensors(image_size=64, frames=64, classes=1059)  # for the paper's 224, built as 448
    convert_timesformer(save_timesformer(tmp_path / "m.pyth", tensors), tmp_path / "out", **options)
    video = random_video(8, 64)
    expected = timesformer_feature(flat_resized(tensors, 64), video)
    assert_exact(converted_timesformer_feature(tmp_path / "out", video), expected)
    assert (expected - timesformer_feature(tensors, video)).abs().max() > 0.01  # leaving it out would show


def test_detour_of_the_paper_uses_98_of_196_positions_twice(tmp_path: Path) -> None:
    tensors = timesformer_tensors(image_size=224, frames=64, depth=1)
    file = save_timesformer(tmp_path / "m.pyth", tensors)
    report = convert_timesformer(file, tmp_path / "out", image_size=448, frames=64, fed_image_size=224, fed_frames=8)
    rows = TimesformerModel.from_pretrained(tmp_path / "out").embeddings.position_embeddings[0, 1:]
    columns = [column // 2 for column in range(14)]  # 0, 0, 1, 1, ..., 6, 6
    file_rows = tensors["pos_embed"][0, 1:]
    used = {int((file_rows == row).all(1).nonzero()[0]) for row in rows}
    assert len(used) == 98
    assert torch.equal(rows[:14], file_rows[columns])
    assert [(r.old_shape[1], r.new_shape[1]) for r in report.resized] == [(197, 785), (785, 197), (64, 8)]
    preprocessor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert preprocessor["crop_size"] == {"height": 224, "width": 224}


def test_building_and_feeding_are_resized_one_after_the_other(tmp_path: Path) -> None:
    tensors = timesformer_tensors(frames=9)
    file = save_timesformer(tmp_path / "m.pyth", tensors)
    convert_timesformer(file, tmp_path / "out", frames=4, fed_frames=6)
    rows = np.arange(9)[nearest_rows(9, 4)][nearest_rows(4, 6)]
    model = TimesformerModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.embeddings.time_embeddings, tensors["time_embed"][:, rows])


# ---------------------------------------------------------------------------------------------- AST: features


@pytest.mark.parametrize(
    ("grid", "classes", "width"),
    [
        (AstGrid(10, 10, 1024), 527, 64),
        (AstGrid(16, 16, 1024), 527, 128),
        (AstGrid(12, 12, 1024), 527, 64),
        (AstGrid(10, 10, 512), 50, 64),
        (AstGrid(10, 10, 128), 35, 64),
        (AstGrid(16, 10, 1024), 527, 64),
        (AstGrid(10, 10, 296), 7, 64),
    ],
    ids=str,
)
def test_ast_feature_equals_the_published_formula(tmp_path: Path, grid: AstGrid, classes: int, width: int) -> None:
    tensors = ast_tensors(grid, classes, width)
    report = convert_ast(save_ast(tmp_path / "a.pth", tensors), tmp_path / "out")
    mel = torch.randn(grid.max_length, 128, generator=torch.Generator().manual_seed(1))
    expected = ast_feature(tensors, mel, (grid.fstride, grid.tstride))
    assert_exact(converted_ast_feature(tmp_path / "out", mel), expected)
    assert [report.geometry[name] for name in ("fstride", "tstride", "max_length")] == [
        grid.fstride,
        grid.tstride,
        grid.max_length,
    ]
    assert report.unused == ("v.head.weight", "v.head.bias", "v.head_dist.weight", "v.head_dist.bias")
    assert not report.resized


def test_ast_takes_the_transposed_input_of_the_notebook(tmp_path: Path) -> None:
    tensors = ast_tensors(AstGrid(10, 10, 1024))
    convert_ast(save_ast(tmp_path / "a.pth", tensors), tmp_path / "out")
    mel = torch.randn(128, 1024, generator=torch.Generator().manual_seed(1))
    assert_exact(converted_ast_feature(tmp_path / "out", mel), ast_feature(tensors, mel, (10, 10)))


def test_ast_classifier_is_kept(tmp_path: Path) -> None:
    tensors = ast_tensors(AstGrid(16, 16, 128), classes=35)
    convert_ast(save_ast(tmp_path / "a.pth", tensors), tmp_path / "out")
    model = ASTForAudioClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(model.classifier.dense.weight, tensors["mlp_head.1.weight"])
    assert torch.equal(model.classifier.layernorm.bias, tensors["mlp_head.0.bias"])


@pytest.mark.parametrize(
    ("classes", "mean", "std", "statistics", "noted"),
    [
        (527, -4.2677393, 4.5689974, "AudioSet", False),
        (50, -6.6268077, 5.358466, "ESC-50", False),
        (35, -6.845978, 5.5654526, "Speech Commands V2", False),
        (309, -4.2677393, 4.5689974, "AudioSet", True),
    ],
)
def test_ast_statistics_follow_the_number_of_classes(
    tmp_path: Path, classes: int, mean: float, std: float, statistics: str, noted: bool
) -> None:
    report = convert_ast(save_ast(tmp_path / "a.pth", ast_tensors(AstGrid(10, 10, 512), classes)), tmp_path / "out")
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (extractor.mean, extractor.std, extractor.max_length) == (mean, std, 512)
    assert (extractor.sampling_rate, extractor.num_mel_bins, extractor.do_normalize) == (16_000, 128, True)
    assert report.geometry["statistics"] == statistics
    assert any("dataset_mean" in note for note in report.notes) == noted


# ---------------------------------------------------------------------------------------------- AST: geometry


@pytest.mark.parametrize("stride", AST_STRIDES)
def test_published_audioset_strides_are_read_from_the_number_of_patches(stride: int) -> None:
    grid = AstGrid(stride, stride, 1024)
    assert infer_ast_grid(Path("ast.pth"), grid.rows * grid.columns, 527)[0] == grid


def test_published_strides_and_lengths_are_told_right_or_refused() -> None:
    for length in AST_LENGTHS:
        for fstride in AST_STRIDES:
            for tstride in AST_STRIDES:
                grid = AstGrid(fstride, tstride, length)
                try:
                    found, _ = infer_ast_grid(Path("ast.pth"), grid.rows * grid.columns, 1000)
                except CheckpointError as error:
                    assert str(grid) in str(error)  # the way out is in the message
                else:
                    assert found == grid


def test_ambiguous_geometry_names_the_options_that_decide(tmp_path: Path) -> None:
    grid = AstGrid(12, 12, 512)  # 10 x 42 patches, as many as 12 x 35 with strides of 10
    file = save_ast(tmp_path / "a.pth", ast_tensors(grid))
    with pytest.raises(
        CheckpointError, match=r"say which: .*--fstride 12 --tstride 12 --max-length 512 \| --fstride 10"
    ):
        convert_ast(file, tmp_path / "out")
    report = convert_ast(file, tmp_path / "out", fstride=12)
    assert report.geometry["patches"] == "10 x 42"


def test_any_strides_and_length_can_be_given(tmp_path: Path) -> None:
    grid = AstGrid(15, 13, 700)
    tensors = ast_tensors(grid)
    file = save_ast(tmp_path / "a.pth", tensors)
    convert_ast(file, tmp_path / "out", fstride=15, tstride=13, max_length=700)
    mel = torch.randn(700, 128, generator=torch.Generator().manual_seed(1))
    assert_exact(converted_ast_feature(tmp_path / "out", mel), ast_feature(tensors, mel, (15, 13)))


def test_strides_alone_settle_the_length() -> None:
    grid, _ = infer_ast_grid(Path("ast.pth"), 8 * 50, 527, fstride=16, tstride=16)
    assert grid == AstGrid(16, 16, 800)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CheckpointError, match="512 patches don't fit --fstride 10 --tstride 10 --max-length 1024"):
        infer_ast_grid(Path("ast.pth"), 512, 527, fstride=10, tstride=10, max_length=1024)
    with pytest.raises(CheckpointError, match="1213 patches don't fit strides of 10 to 16"):
        infer_ast_grid(Path("ast.pth"), 1213, 527)


def test_strides_in_the_file_name_decide_when_they_fit() -> None:
    assert infer_ast_grid(Path("audioset_15_16_0.4422.pth"), 512, 527)[0] == AstGrid(15, 16, 1024)
    assert infer_ast_grid(Path("audioset_10_10_0.4593.pth"), 512, 527)[0] == AstGrid(16, 16, 1024)


def test_assumed_strides_are_noted() -> None:
    grid, note = infer_ast_grid(Path("ast.pth"), 512, 527)
    assert grid == AstGrid(16, 16, 1024)
    assert note and "--fstride 15 --tstride 16 --max-length 1024" in note


@pytest.mark.parametrize(("max_length", "columns"), [(512, 50), (128, 12), (998, 99)])
def test_audioset_file_is_cut_from_the_middle_for_shorter_input(tmp_path: Path, max_length: int, columns: int) -> None:
    tensors = ast_tensors(AstGrid(10, 10, 1024))
    file = save_ast(tmp_path / "a.pth", tensors)
    report = convert_ast(file, tmp_path / "out", max_length=max_length)
    first = 50 - columns // 2
    expected = tensors["v.pos_embed"][0, 2:].view(12, 101, -1)[:, first : first + columns]
    actual = ASTModel.from_pretrained(tmp_path / "out").embeddings.position_embeddings[0]
    assert torch.equal(actual[2:], expected.flatten(0, 1))
    assert torch.equal(actual[:2], tensors["v.pos_embed"][0, :2])
    assert "cut from the middle" in str(report.resized[0])


def test_audioset_file_is_stretched_for_longer_input(tmp_path: Path) -> None:
    tensors = ast_tensors(AstGrid(10, 10, 1024))
    convert_ast(save_ast(tmp_path / "a.pth", tensors), tmp_path / "out", max_length=2026)  # 202 = 2 * 101 columns
    old = tensors["v.pos_embed"][0, 2:].view(12, 101, -1)
    before = torch.cat([old[:, :1], old[:, :-1]], dim=1)
    after = torch.cat([old[:, 1:], old[:, -1:]], dim=1)
    expected = torch.stack([0.75 * old + 0.25 * before, 0.75 * old + 0.25 * after], dim=2).flatten(1, 2)
    actual = ASTModel.from_pretrained(tmp_path / "out").embeddings.position_embeddings[0, 2:]
    torch.testing.assert_close(actual.detach(), expected.flatten(0, 1))


def test_audioset_file_has_no_other_strides(tmp_path: Path) -> None:
    file = save_ast(tmp_path / "a.pth", ast_tensors(AstGrid(10, 10, 1024)))
    assert_refused(convert_ast, file, "strides of 10, and the original fits them to no other", fstride=16, tstride=16)


# --------------------------------------------------------------------------------- layouts, folder and report


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
@pytest.mark.parametrize("key", [None, "model_state", "state_dict"])
def test_prefixes_and_wrappers_do_not_matter(tmp_path: Path, prefix: str, key: str | None) -> None:
    tensors = timesformer_tensors(image_size=32, frames=2, depth=1)
    state = prefixed(tensors, prefix)
    torch.save(state if key is None else {key: state}, tmp_path / "m.pyth")
    report = convert_timesformer(tmp_path / "m.pyth", tmp_path / "out")
    assert set(report.used) == set(tensors)
    assert not report.unused


def test_old_torch_files_are_read(tmp_path: Path) -> None:
    torch.save(ast_tensors(AstGrid(16, 16, 128)), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert convert_ast(tmp_path / "a.pth", tmp_path / "out").geometry["max_length"] == 128


def test_training_files_are_read_without_what_lies_beside_the_weights(tmp_path: Path) -> None:
    tensors = timesformer_tensors(image_size=32, frames=2, depth=1)
    state = {
        "epoch": np.int64(14),
        "model_state": prefixed(tensors, "model."),
        "optimizer_state": {"state": {0: {"momentum": torch.ones(2)}}, "param_groups": [{"lr": np.float64(0.1)}]},
        "cfg": "DATA:\n  NUM_FRAMES: 8\n",
        "args": argparse.Namespace(lr=0.1),
        "history": np.arange(3.0),
    }
    torch.save(state, tmp_path / "m.pyth")
    report = convert_timesformer(tmp_path / "m.pyth", tmp_path / "out")
    assert report.beside == ("epoch", "optimizer_state (1 tensors)", "cfg", "args", "history")


def test_report_names_every_tensor_and_the_source(tmp_path: Path) -> None:
    tensors = timesformer_tensors(classes=1059) | {"head_aux.weight": torch.ones(2, 2)}
    file = save_timesformer(tmp_path / "TimeSformer.pyth", tensors)
    report = convert_timesformer(file, tmp_path / "out", frames=4)
    assert set(report.used) | set(report.unused) == set(tensors)
    assert report.unused == ("head_aux.weight",)
    text = str(report)
    assert report.source_sha256 in text and len(report.source_sha256) == 64
    for part in (
        "1059 classes (HowTo100M)",
        "unused: head_aux.weight",
        "time_embed (1, 8, 64) -> (1, 4, 64)",
        "epoch, cfg",
    ):
        assert part in text
    assert json.loads(json.dumps(report.to_json()))["geometry"]["frames"] == 4


def test_half_precision_is_written_as_float32_and_noted(tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in timesformer_tensors(image_size=32, frames=2).items()}
    report = convert_timesformer(save_timesformer(tmp_path / "m.pyth", tensors), tmp_path / "out")
    assert report.notes == ("float16 numbers were written as float32",)
    model = TimesformerModel.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_folder_holds_what_from_pretrained_needs_and_nothing_else(tmp_path: Path) -> None:
    file = save_timesformer(tmp_path / "m.pyth", timesformer_tensors())
    convert_timesformer(file, tmp_path / "new" / "out")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    preprocessor = json.loads((tmp_path / "new" / "out" / "preprocessor_config.json").read_text())
    assert preprocessor == {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 64},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.45] * 3,
        "image_std": [0.225] * 3,
    }
    config = json.loads((tmp_path / "new" / "out" / "config.json").read_text())
    assert (config["layer_norm_eps"], config["num_frames"], config["image_size"]) == (1e-6, 8, 64)


def test_converted_folder_survives_saving_and_loading(tmp_path: Path) -> None:
    convert_ast(save_ast(tmp_path / "a.pth", ast_tensors(AstGrid(10, 10, 128), 35)), tmp_path / "out")
    ASTModel.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    mel = torch.randn(128, 128, generator=torch.Generator().manual_seed(1))
    first, second = (converted_ast_feature(tmp_path / name, mel) for name in ("out", "again"))
    assert torch.equal(first, second)


def test_tensors_that_share_memory_are_converted(tmp_path: Path) -> None:
    tensors = timesformer_tensors(image_size=32, frames=2)
    for part in ("weight", "bias"):  # as initialised by the original: temporal attention starts as the spatial one
        tensors[f"blocks.0.temporal_attn.qkv.{part}"] = tensors[f"blocks.0.attn.qkv.{part}"]
    convert_timesformer(save_timesformer(tmp_path / "m.pyth", tensors), tmp_path / "out")
    video = random_video(2, 32)
    assert_exact(converted_timesformer_feature(tmp_path / "out", video), timesformer_feature(tensors, video))


# --------------------------------------------------------------------------------------------------- refusals


def assert_refused(convert: Any, file: Path, match: str, **options: Any) -> None:
    """One line, naming the file, and nothing left behind."""
    out = file.parent / "out"
    before = sorted(path for path in file.parent.iterdir())
    with pytest.raises(CheckpointError, match=match) as caught:
        convert(file, out, **options)
    assert isinstance(caught.value, AlphafuseError)
    assert "\n" not in str(caught.value)
    assert sorted(path for path in file.parent.iterdir()) == before


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.path,))


class MaliciousEval(Malicious):
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (eval, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("kind", [Malicious, MaliciousEval])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("convert", [convert_timesformer, convert_ast])
def test_file_that_would_run_code_is_refused_and_not_run(
    tmp_path: Path, convert: Any, zipped: bool, kind: type[Malicious]
) -> None:
    trace = tmp_path / "trace"
    state = {"model_state": timesformer_tensors(image_size=32, depth=1), "epoch": kind(trace)}
    torch.save(state, tmp_path / "m.pyth", _use_new_zipfile_serialization=zipped)
    assert_refused(convert, tmp_path / "m.pyth", r"would run code when loaded \(.*\) and was refused")
    assert not trace.exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickle_with_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "m.pyth").write_bytes(pickle.dumps(MaliciousEval(trace), protocol=protocol))
    assert_refused(convert_timesformer, tmp_path / "m.pyth", "run code when loaded .* and was refused")
    assert not trace.exists()


def test_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pyth")
    assert_refused(
        convert_timesformer, tmp_path / "m.pyth", r"would run code when loaded \(torch\.nn\.modules\.linear\.Linear"
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file_is_refused_at_every_length(tmp_path: Path, zipped: bool) -> None:
    whole = tmp_path / "whole.pyth"
    torch.save(
        {"model_state": timesformer_tensors(image_size=32, depth=1)}, whole, _use_new_zipfile_serialization=zipped
    )
    content = whole.read_bytes()
    whole.unlink()
    for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999):
        (tmp_path / "m.pyth").write_bytes(content[: max(8, int(len(content) * share))])
        assert_refused(convert_timesformer, tmp_path / "m.pyth", "is cut short or damaged: download it again")
    (tmp_path / "m.pyth").write_bytes(content[:-1])
    if zipped:  # the old format ends in numbers, and its last byte is the last of them
        assert_refused(convert_timesformer, tmp_path / "m.pyth", "is cut short or damaged")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty: download it again"),
        (b"<!DOCTYPE html><html>", "is a web page, not a checkpoint: .*dl=1"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "safetensors file"),
        (b"hello", "is not a PyTorch checkpoint"),
        (b"\x80\x02" + b"\x00" * 50, "refused|damaged"),
        (b"PK\x03\x04" + b"\x00" * 50, "damaged"),
    ],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "m.pyth").write_bytes(content)
    assert_refused(convert_timesformer, tmp_path / "m.pyth", match)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    assert_refused(convert_ast, tmp_path / "none.pth", "no such file")
    (tmp_path / "folder").mkdir()
    assert_refused(convert_ast, tmp_path / "folder", "is a folder")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.ones(2)], "holds a list where a checkpoint holds tensors by name"),
        (torch.ones(2), "holds a Tensor where"),
        ({}, "holds no tensors"),
        ({"model_state": {}}, "holds no tensors"),
        ({"model_state": {"model.head.weight": "text"}}, "head.weight is a str, not a tensor"),
        ({"model_state": {"model.head.weight": np.ones(2)}}, "head.weight is a NotRead, not a tensor"),
        ({"state": {}, "param_groups": []}, r"state is a dict, not a tensor.*\(it has state, param_groups\)"),
        ({"model_state": {3: torch.ones(2)}}, "entry named 3"),
        ({"head\nweight": torch.ones(2)}, r"entry named 'head\\nweight'"),
        ({"a.b": torch.ones(1), "model.a.b": torch.ones(1)}, "two tensors named a.b"),
        ({"s1.pathway0_stem.conv.weight": torch.ones(1)}, "looks like a SlowFast model"),
        ({"timesformer.encoder.layer.0.output.dense.bias": torch.ones(1)}, "HuggingFace's names already"),
        (
            {"fc.weight": torch.ones(1)},
            "lacks cls_token, pos_embed, .* and .* more, which TimeSformer has; .* another model",
        ),
        ({"cls_token": torch.zeros(1, 1, 4).to_sparse()}, "no ordinary dense tensor"),
    ],
)
def test_file_without_a_model_is_refused(tmp_path: Path, content: Any, match: str) -> None:
    torch.save(content, tmp_path / "m.pyth")
    assert_refused(convert_timesformer, tmp_path / "m.pyth", match)


def test_the_other_model_is_refused_with_the_right_command(tmp_path: Path) -> None:
    save_timesformer(tmp_path / "m.pyth", timesformer_tensors())
    assert_refused(
        convert_ast, tmp_path / "m.pyth", "it is a TimeSformer checkpoint: use `alphafuse convert timesformer`"
    )
    save_ast(tmp_path / "a.pth", ast_tensors(AstGrid(16, 16, 128)))
    assert_refused(convert_timesformer, tmp_path / "a.pth", "it is an AST checkpoint: use `alphafuse convert ast`")


def test_image_transformers_are_refused(tmp_path: Path) -> None:
    tensors = timesformer_tensors(attention="space_only", classes=1000)
    torch.save(tensors, tmp_path / "vit.pth")
    assert_refused(convert_timesformer, tmp_path / "vit.pth", "looks like an image transformer")
    assert_refused(convert_ast, tmp_path / "vit.pth", "looks like an image transformer")
    torch.save({"model": tensors | {"dist_token": torch.ones(1, 1, 64)}}, tmp_path / "deit.pth")
    assert_refused(convert_ast, tmp_path / "deit.pth", "looks like a DeiT image model")


@pytest.mark.parametrize(
    "name",
    ["head.weight", "cls_token", "time_embed", "blocks.1.temporal_fc.bias", "blocks.0.attn.qkv.weight", "norm.bias"],
)
def test_missing_timesformer_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = timesformer_tensors()
    del tensors[name]
    save_timesformer(tmp_path / "m.pyth", tensors)
    assert_refused(convert_timesformer, tmp_path / "m.pyth", f"lacks {name}, which TimeSformer has; .* as published")


@pytest.mark.parametrize("name", ["v.dist_token", "mlp_head.1.bias", "v.blocks.0.mlp.fc2.weight", "v.pos_embed"])
def test_missing_ast_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = ast_tensors(AstGrid(16, 16, 128))
    del tensors[name]
    save_ast(tmp_path / "a.pth", tensors)
    assert_refused(convert_ast, tmp_path / "a.pth", f"lacks {name}, which AST has")


def test_missing_block_is_named(tmp_path: Path) -> None:
    tensors = {name: t for name, t in timesformer_tensors(depth=3).items() if not name.startswith("blocks.1.")}
    save_timesformer(tmp_path / "m.pyth", tensors)
    assert_refused(convert_timesformer, tmp_path / "m.pyth", "lacks block 1 of 3")


def test_unknown_tensor_in_a_block_is_refused_since_features_depend_on_it(tmp_path: Path) -> None:
    save_timesformer(tmp_path / "m.pyth", timesformer_tensors() | {"blocks.0.ls1.gamma": torch.ones(64)})
    assert_refused(convert_timesformer, tmp_path / "m.pyth", "holds blocks.0.ls1.gamma, which TimeSformer doesn't have")


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        (
            "blocks.1.attn.proj.weight",
            torch.ones(64, 63),
            r"blocks.1.attn.proj.weight has shape \(64, 63\) .* \(64, 64\)",
        ),
        ("norm.weight", torch.ones(65), r"norm.weight has shape \(65,\) .* ask for \(64,\)"),
        ("pos_embed", torch.ones(17, 64), r"pos_embed has shape \(17, 64\) where 3 dimensions"),
        ("pos_embed", torch.ones(1, 13, 64), "pos_embed has 12 patches, no square: .*--image-size 224"),
        ("pos_embed", torch.ones(1, 1, 64), "pos_embed has no row for a patch"),
        ("head.bias", torch.ones(400, dtype=torch.int64), "head.bias holds int64, not floating-point"),
        ("head.bias", torch.full((400,), torch.nan), "head.bias holds NaN or infinity"),
        ("head.weight", torch.ones(1, 64).expand(400, 64), "fewer numbers in the file"),
    ],
)
def test_wrong_tensor_is_named(tmp_path: Path, name: str, tensor: torch.Tensor, match: str) -> None:
    save_timesformer(tmp_path / "m.pyth", timesformer_tensors() | {name: tensor})
    assert_refused(convert_timesformer, tmp_path / "m.pyth", match)


def test_ast_with_another_patch_size_is_refused(tmp_path: Path) -> None:
    tensors = ast_tensors(AstGrid(16, 16, 128)) | {"v.patch_embed.proj.weight": torch.ones(64, 1, 8, 8)}
    save_ast(tmp_path / "a.pth", tensors)
    assert_refused(convert_ast, tmp_path / "a.pth", r"has shape \(64, 1, 8, 8\) .* ask for \(64, 1, 16, 16\)")


def test_width_that_gives_no_whole_number_of_heads_is_refused(tmp_path: Path) -> None:
    save_timesformer(tmp_path / "m.pyth", timesformer_tensors(width=96))
    assert_refused(convert_timesformer, tmp_path / "m.pyth", "width of 96 is no multiple of 64")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"frames": 0}, "--frames 0 can't be: give a whole number of at least 1"),
        ({"image_size": 22.4}, "--image-size 22.4 can't be"),
        ({"image_size": 8}, "--image-size 8 is less than one patch of 16 pixels"),
        ({"fed_image_size": 8}, "--fed-image-size 8 is less than one patch"),
        ({"fed_frames": True}, "--fed-frames True can't be"),
        ({"attention_type": "divided"}, "unknown attention type 'divided'"),
        ({"attention_type": "joint_space_time"}, "holds divided_space_time attention, not joint_space_time"),
    ],
)
def test_option_that_cannot_be_is_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    save_timesformer(tmp_path / "m.pyth", timesformer_tensors(depth=1))
    assert_refused(convert_timesformer, tmp_path / "m.pyth", match, **options)


def test_containers_that_contain_themselves_are_counted_once(tmp_path: Path) -> None:
    loop: list[Any] = [torch.ones(1)]
    loop.append(loop)
    state = {"model_state": timesformer_tensors(image_size=32, depth=1), "loop\n": loop}
    torch.save(state, tmp_path / "m.pyth")
    assert convert_timesformer(tmp_path / "m.pyth", tmp_path / "out").beside == ("'loop\\n' (1 tensors)",)


def test_folder_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    convert_timesformer(save_timesformer(tmp_path / "m.pyth", timesformer_tensors(depth=1)), tmp_path / "out")
    (tmp_path / "new").touch()
    for file in (tmp_path / "out").iterdir():
        assert file.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_existing_output_is_not_touched(tmp_path: Path) -> None:
    file = save_timesformer(tmp_path / "m.pyth", timesformer_tensors(depth=1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert_refused(convert_timesformer, file, "exists already and is not an empty folder")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "notes.txt").unlink()
    convert_timesformer(file, tmp_path / "out")  # an empty folder is taken
    assert (tmp_path / "out" / "config.json").exists()


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    file = save_timesformer(tmp_path / "m.pyth", timesformer_tensors(depth=1))
    monkeypatch.setattr("alphafuse.extract.checkpoints.save_file", full_disk)
    assert_refused(convert_timesformer, file, "can't write .*No space left on device")

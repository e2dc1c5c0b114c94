"""Converted TimeSformer: its features equal the published formulas, with and without resized embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.originals import (
    PATCH,
    Tensors,
    assert_exact,
    assert_refused,
    converted_timesformer_feature,
    dense,
    nearest_rows,
    random_video,
    save_timesformer,
    timesformer_feature,
    timesformer_tensors,
    with_small_tokens,
)
from transformers import TimesformerForVideoClassification, TimesformerModel

from alphafuse.errors import CheckpointError
from alphafuse.extract.encoders.checkpoints import convert_timesformer

# ------------------------------------------------------------------------------------------------------------ features


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


def test_space_only_must_be_given_and_its_note_gives_the_feature(tmp_path: Path) -> None:
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


def test_epsilon_of_timesformers_layer_norms_is_the_published_one(tmp_path: Path) -> None:
    tensors = with_small_tokens(timesformer_tensors())
    convert_timesformer(save_timesformer(tmp_path / "m.pyth", tensors), tmp_path / "out")
    video = random_video(8, 64)
    assert_exact(converted_timesformer_feature(tmp_path / "out", video), timesformer_feature(tensors, video))


# ------------------------------------------------------------------------------------------------------------ resizing


def flat_resized(tensors: Tensors, patches: int) -> Tensors:
    """Resize the position embedding as the original does while loading: as one flat sequence, nearest."""
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
def test_resizing_as_in_the_paper_equals_a_large_model_fed_the_small_size(
    tmp_path: Path, options: dict[str, int]
) -> None:
    tensors = timesformer_tensors(image_size=64, frames=64, classes=1059)  # for the paper's 224, built as 448
    convert_timesformer(save_timesformer(tmp_path / "m.pyth", tensors), tmp_path / "out", **options)
    video = random_video(8, 64)
    expected = timesformer_feature(flat_resized(tensors, 64), video)
    assert_exact(converted_timesformer_feature(tmp_path / "out", video), expected)
    assert (
        expected - timesformer_feature(tensors, video)
    ).abs().max() > 0.01  # without the resizing the features differ


def test_resizing_as_in_the_paper_uses_98_of_196_positions_twice(tmp_path: Path) -> None:
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


def test_built_and_fed_sizes_are_applied_one_after_the_other(tmp_path: Path) -> None:
    tensors = timesformer_tensors(frames=9)
    file = save_timesformer(tmp_path / "m.pyth", tensors)
    convert_timesformer(file, tmp_path / "out", frames=4, fed_frames=6)
    rows = np.arange(9)[nearest_rows(9, 4)][nearest_rows(4, 6)]
    model = TimesformerModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.embeddings.time_embeddings, tensors["time_embed"][:, rows])


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "name",
    ["head.weight", "cls_token", "time_embed", "blocks.1.temporal_fc.bias", "blocks.0.attn.qkv.weight", "norm.bias"],
)
def test_missing_timesformer_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = timesformer_tensors()
    del tensors[name]
    save_timesformer(tmp_path / "m.pyth", tensors)
    assert_refused(convert_timesformer, tmp_path / "m.pyth", f"lacks {name}, which TimeSformer has; .* as published")


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
        ("norm.weight", torch.ones(65), r"norm.weight has shape \(65,\) .* require \(64,\)"),
        ("pos_embed", torch.ones(17, 64), r"pos_embed has shape \(17, 64\) but needs 3 dimensions"),
        (
            "pos_embed",
            torch.ones(1, 13, 64),
            "pos_embed has 12 patches, which is not a square number: .*--image-size 224",
        ),
        ("pos_embed", torch.ones(1, 1, 64), "pos_embed has no rows for patches"),
        ("head.bias", torch.ones(400, dtype=torch.int64), "head.bias holds int64, not floating-point"),
        ("head.bias", torch.full((400,), torch.nan), "head.bias holds NaN or infinity"),
        ("head.weight", torch.ones(1, 64).expand(400, 64), "fewer numbers in the file"),
    ],
)
def test_wrong_tensor_is_named(tmp_path: Path, name: str, tensor: torch.Tensor, match: str) -> None:
    save_timesformer(tmp_path / "m.pyth", timesformer_tensors() | {name: tensor})
    assert_refused(convert_timesformer, tmp_path / "m.pyth", match)


def test_a_width_that_is_not_a_multiple_of_the_head_width_is_refused(tmp_path: Path) -> None:
    save_timesformer(tmp_path / "m.pyth", timesformer_tensors(width=96))
    assert_refused(convert_timesformer, tmp_path / "m.pyth", "width of 96 is not a multiple of 64")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"frames": 0}, "invalid --frames 0: expected a whole number of at least 1"),
        ({"image_size": 22.4}, "invalid --image-size 22.4"),
        ({"image_size": 8}, "--image-size 8 is less than one patch of 16 pixels"),
        ({"fed_image_size": 8}, "--fed-image-size 8 is less than one patch"),
        ({"fed_frames": True}, "invalid --fed-frames True"),
        ({"attention_type": "divided"}, "unknown attention type 'divided'"),
        ({"attention_type": "joint_space_time"}, "holds divided_space_time attention, not joint_space_time"),
    ],
)
def test_invalid_option_is_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    save_timesformer(tmp_path / "m.pyth", timesformer_tensors(depth=1))
    assert_refused(convert_timesformer, tmp_path / "m.pyth", match, **options)

"""Converted AST: its features equal the published formula. Its geometry is inferred correctly or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.originals import (
    assert_exact,
    assert_refused,
    ast_feature,
    ast_tensors,
    converted_ast_feature,
    save_ast,
    with_small_tokens,
)
from transformers import ASTFeatureExtractor, ASTForAudioClassification, ASTModel

from alphafuse.errors import CheckpointError
from alphafuse.extract.encoders.checkpoints import AST_LENGTHS, AST_STRIDES, AstGrid, convert_ast, infer_ast_grid

# ------------------------------------------------------------------------------------------------------------ features


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


def test_converted_ast_accepts_the_transposed_input_of_the_notebook(tmp_path: Path) -> None:
    tensors = ast_tensors(AstGrid(10, 10, 1024))
    convert_ast(save_ast(tmp_path / "a.pth", tensors), tmp_path / "out")
    mel = torch.randn(128, 1024, generator=torch.Generator().manual_seed(1))
    assert_exact(converted_ast_feature(tmp_path / "out", mel), ast_feature(tensors, mel, (10, 10)))


def test_epsilon_of_asts_layer_norms_is_the_published_one(tmp_path: Path) -> None:
    tensors = with_small_tokens(ast_tensors(AstGrid(16, 16, 128)))
    convert_ast(save_ast(tmp_path / "a.pth", tensors), tmp_path / "out")
    mel = torch.randn(128, 128, generator=torch.Generator().manual_seed(1))
    assert_exact(converted_ast_feature(tmp_path / "out", mel), ast_feature(tensors, mel, (16, 16)))


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


# ------------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("stride", AST_STRIDES)
def test_published_audioset_strides_are_read_from_the_number_of_patches(stride: int) -> None:
    grid = AstGrid(stride, stride, 1024)
    assert infer_ast_grid(Path("ast.pth"), grid.rows * grid.columns, 527)[0] == grid


def test_published_strides_and_lengths_are_inferred_correctly_or_refused() -> None:
    for length in AST_LENGTHS:
        for fstride in AST_STRIDES:
            for tstride in AST_STRIDES:
                grid = AstGrid(fstride, tstride, length)
                try:
                    found, _ = infer_ast_grid(Path("ast.pth"), grid.rows * grid.columns, 1000)
                except CheckpointError as error:
                    assert str(grid) in str(error)  # the message names the right options
                else:
                    assert found == grid


def test_ambiguous_geometry_names_the_options_that_decide(tmp_path: Path) -> None:
    grid = AstGrid(12, 12, 512)  # 10 x 42 patches, as many as 12 x 35 with strides of 10
    file = save_ast(tmp_path / "a.pth", ast_tensors(grid))
    with pytest.raises(
        CheckpointError, match=r"give the options of one: .*--fstride 12 --tstride 12 --max-length 512 \| --fstride 10"
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


def test_strides_alone_determine_the_length() -> None:
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


# ------------------------------------------------------------------------------------------------------------ resizing


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


def test_other_strides_are_refused_for_the_audioset_file(tmp_path: Path) -> None:
    file = save_ast(tmp_path / "a.pth", ast_tensors(AstGrid(10, 10, 1024)))
    assert_refused(
        convert_ast, file, "mean strides of 10, and the original doesn't resize them to others", fstride=16, tstride=16
    )


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", ["v.dist_token", "mlp_head.1.bias", "v.blocks.0.mlp.fc2.weight", "v.pos_embed"])
def test_missing_ast_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = ast_tensors(AstGrid(16, 16, 128))
    del tensors[name]
    save_ast(tmp_path / "a.pth", tensors)
    assert_refused(convert_ast, tmp_path / "a.pth", f"lacks {name}, which AST has")


def test_ast_with_another_patch_size_is_refused(tmp_path: Path) -> None:
    tensors = ast_tensors(AstGrid(16, 16, 128)) | {"v.patch_embed.proj.weight": torch.ones(64, 1, 8, 8)}
    save_ast(tmp_path / "a.pth", tensors)
    assert_refused(convert_ast, tmp_path / "a.pth", r"has shape \(64, 1, 8, 8\) .* require \(64, 1, 16, 16\)")

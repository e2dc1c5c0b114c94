"""Published files: every layout is read, no code in them is run, and bad files are refused with one line."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.originals import (
    assert_exact,
    assert_refused,
    ast_tensors,
    converted_timesformer_feature,
    prefixed,
    random_video,
    save_ast,
    save_timesformer,
    timesformer_feature,
    timesformer_tensors,
)

from alphafuse.extract.encoders.checkpoints import AstGrid, convert_ast, convert_timesformer

# ------------------------------------------------------------------------------------------------------------- layouts


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


def test_training_files_are_read_without_their_other_entries(tmp_path: Path) -> None:
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


def test_tensors_that_share_memory_are_converted(tmp_path: Path) -> None:
    tensors = timesformer_tensors(image_size=32, frames=2)
    for part in ("weight", "bias"):  # the original initialises temporal attention with the spatial attention
        tensors[f"blocks.0.temporal_attn.qkv.{part}"] = tensors[f"blocks.0.attn.qkv.{part}"]
    convert_timesformer(save_timesformer(tmp_path / "m.pyth", tensors), tmp_path / "out")
    video = random_video(2, 32)
    assert_exact(converted_timesformer_feature(tmp_path / "out", video), timesformer_feature(tensors, video))


def test_containers_that_contain_themselves_are_counted_once(tmp_path: Path) -> None:
    loop: list[Any] = [torch.ones(1)]
    loop.append(loop)
    state = {"model_state": timesformer_tensors(image_size=32, depth=1), "loop\n": loop}
    torch.save(state, tmp_path / "m.pyth")
    assert convert_timesformer(tmp_path / "m.pyth", tmp_path / "out").beside == ("'loop\\n' (1 tensors)",)


# ------------------------------------------------------------------------------------------- files that would run code


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


# ----------------------------------------------------------- files that are not a checkpoint, or hold another model


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
    if zipped:  # the old format ends with the tensors' numbers
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
def test_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "m.pyth").write_bytes(content)
    assert_refused(convert_timesformer, tmp_path / "m.pyth", match)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    assert_refused(convert_ast, tmp_path / "none.pth", "no such file")
    (tmp_path / "folder").mkdir()
    assert_refused(convert_ast, tmp_path / "folder", "is a folder")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.ones(2)], "holds a list but a checkpoint holds tensors by name"),
        (torch.ones(2), "holds a Tensor but"),
        ({}, "holds no tensors"),
        ({"model_state": {}}, "holds no tensors"),
        ({"model_state": {"model.head.weight": "text"}}, "head.weight is a str, not a tensor"),
        ({"model_state": {"model.head.weight": np.ones(2)}}, "head.weight is a SkippedValue, not a tensor"),
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
        ({"cls_token": torch.zeros(1, 1, 4).to_sparse()}, "is not an ordinary dense tensor"),
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

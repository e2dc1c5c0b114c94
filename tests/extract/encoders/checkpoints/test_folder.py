"""The converted folder and its report: the folder is complete, readable, and written atomically."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.originals import (
    assert_refused,
    ast_tensors,
    converted_ast_feature,
    save_ast,
    save_timesformer,
    timesformer_tensors,
)
from transformers import ASTModel, TimesformerModel

from alphafuse.extract.encoders.checkpoints import AstGrid, convert_ast, convert_timesformer


def test_report_names_every_tensor_and_the_source_file(tmp_path: Path) -> None:
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


def test_folder_holds_the_three_files_of_from_pretrained_and_no_others(tmp_path: Path) -> None:
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


def test_folder_has_the_permissions_of_a_new_file(tmp_path: Path) -> None:
    convert_timesformer(save_timesformer(tmp_path / "m.pyth", timesformer_tensors(depth=1)), tmp_path / "out")
    (tmp_path / "new").touch()
    for file in (tmp_path / "out").iterdir():
        assert file.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_existing_output_is_refused_and_not_changed(tmp_path: Path) -> None:
    file = save_timesformer(tmp_path / "m.pyth", timesformer_tensors(depth=1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert_refused(convert_timesformer, file, "exists already and is not an empty folder")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "notes.txt").unlink()
    convert_timesformer(file, tmp_path / "out")  # an empty folder is accepted
    assert (tmp_path / "out" / "config.json").exists()


def test_no_file_remains_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    file = save_timesformer(tmp_path / "m.pyth", timesformer_tensors(depth=1))
    monkeypatch.setattr("alphafuse.extract.encoders.checkpoints.folder.save_file", full_disk)
    assert_refused(convert_timesformer, file, "can't write .*No space left on device")

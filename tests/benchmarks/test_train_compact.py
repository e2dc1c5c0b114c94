"""Training of the compact encoders on a few clips: the script writes folders that extraction accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import train_compact

from alphafuse import Dataset, ExtractSettings, extract_embeddings

MakeRoot = Callable[..., Path]
Script = Callable[..., tuple[int, str, str]]


def test_no_event_of_the_demo_is_trained_on() -> None:
    train_compact.assert_disjoint()


@pytest.mark.parametrize("name", ["timesformer", "ast"])
def test_training_writes_an_encoder_that_extraction_takes(
    name: str, script: Script, make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = train_compact.draw_examples
    few = lambda draw_one, seeds: draw(draw_one, seeds[:24])  # noqa: E731
    monkeypatch.setattr(train_compact, "draw_examples", few)
    code, out, _ = script(train_compact.main, "--out", tmp_path, "--only", name, "--clips", 24, "--epochs", 1)
    assert code == 0 and "epoch  1" in out
    files = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in (tmp_path / name).iterdir()} == files
    settings = ExtractSettings(encoders={name: str(tmp_path / name)}, streams=(name,), device="cpu", workers=1)
    (report,) = extract_embeddings(Dataset.open(make_root()), ["val"], settings)
    assert report.embedded == {name: 4} and not report.failures

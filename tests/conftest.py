"""Shared fixtures: generated clips, encoders and roots, and real clips if they are available."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.cli import Run
from support.clips import write_clip

os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the network
os.environ["OMP_NUM_THREADS"] = "1"  # a second thread slows down models this small

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_CLIPS = Path(os.environ.get("ALPHAFUSE_TEST_CLIPS", Path(__file__).parents[2] / "shared" / "vggsound-sample"))


@pytest.fixture(scope="session")
def real_clips() -> list[Path]:
    """Real VGGSound clips, sorted; the test is skipped without them (ALPHAFUSE_TEST_CLIPS: a folder with clips/)."""
    clips = sorted((REAL_CLIPS / "clips").glob("*.mp4"))
    if not clips:
        pytest.skip("no real clips here: set ALPHAFUSE_TEST_CLIPS to a folder with vggsound.csv and clips/")
    return clips


@pytest.fixture(scope="session")
def real_csv(real_clips: list[Path]) -> Path:
    return real_clips[0].parents[1] / "vggsound.csv"


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random TimeSformer (4 frames of 32x32, 64-d) and AST (128 frames, 64 mel bands, 32-d) in HuggingFace folders."""
    import torch
    from transformers import ASTConfig, ASTModel, TimesformerConfig, TimesformerModel

    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "initializer_range": 0.3}
    timesformer = TimesformerConfig(hidden_size=64, image_size=32, patch_size=8, num_frames=4, **small)
    TimesformerModel(timesformer).save_pretrained(folder / "timesformer")
    ast = ASTConfig(hidden_size=32, max_length=128, num_mel_bins=64, **small)
    ASTModel(ast).save_pretrained(folder / "ast")
    return {"timesformer": folder / "timesformer", "ast": folder / "ast"}


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., Path]:
    """Make a root of small clips: one source video of two cuts per label and split."""
    from alphafuse.data.dataset import Dataset
    from alphafuse.data.manifest import Clip, Manifest

    def make(name: str = "root", *, labels: tuple[str, ...] = ("dog", "cat, meowing"), **clip_settings: object) -> Path:
        root = tmp_path / name
        clips = []
        for split in ("train", "val", "test"):
            for number, label in enumerate(labels):
                for cut in (0, 1):
                    group = f"{split}{number}"
                    clip_id = f"{group}_{cut:06d}"
                    path = root / "clips" / f"{clip_id}.mp4"
                    write_clip(path, look=len(clips), **clip_settings)  # type: ignore[arg-type]
                    clips.append(Clip(clip_id, f"{clip_id}.mp4", label, split, group))
        Dataset.create(root, Manifest(clips), name=name, clip_folder=root / "clips", classes=labels)
        return root

    return make


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs the finished demo, which takes a minute to make, and what is of a benchmark."""
    for item in items:
        if "finished_demo" in getattr(item, "fixturenames", ()) or item.path.parent.name == "benchmarks":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder once for all workers of a parallel test run, from its name and a function that fills it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / name).exists():
                fill(shared / f"making-{name}")
                (shared / f"making-{name}").rename(shared / name)
        return shared / name

    return make


@pytest.fixture(scope="session")
def finished_demo(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A folder for the examples of docstrings and documents: demo/, extracted, with one run.

    That is `alphafuse data demo`, `extract --split all` and `fit --transform sqrt --on ast`. Do not write to it: use
    `demo_folder`.
    """

    def fill(folder: Path) -> None:
        from alphafuse import Experiment, extract_embeddings, fit, make_demo

        dataset = make_demo(folder / "demo").dataset
        extract_embeddings(dataset, ["train", "val", "test"])
        fit(dataset, Experiment("sqrt", on="ast"))

    return made_once("finished-demo", fill)


@pytest.fixture
def demo_folder(finished_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with its own copy of demo/."""
    shutil.copytree(finished_demo, tmp_path / "examples")
    monkeypatch.chdir(tmp_path / "examples")
    return tmp_path / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""

    from alphafuse.cli.main import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["alphafuse", *(str(argument) for argument in arguments)])
        before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
            sys.unraisablehook = hook
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def extracted(make_root: Callable[..., Path]) -> Path:
    """A root whose stores hold generated embeddings: video identifies "dog", audio identifies "cat"."""
    from alphafuse.data.dataset import Dataset
    from alphafuse.data.embeddings import Embeddings

    root = make_root(labels=("dog", "cat", "owl"))
    dataset = Dataset.open(root)
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        clips = dataset.manifest.of_split(split)
        labels = [clip.label for clip in clips]
        noise = {stream: rng.normal(0, 0.1, (len(clips), 8)) for stream in ("timesformer", "ast")}
        noise["timesformer"][:, 0] += [label == "dog" for label in labels]
        noise["ast"][:, 0] += [label == "cat" for label in labels]
        dataset.store(split).write(
            Embeddings(
                clip_ids=tuple(clip.clip_id for clip in clips),
                labels=tuple(labels),
                groups=tuple(clip.group for clip in clips),
                features=noise,
                recipes={stream: {"dim": 8} for stream in noise},
            )
        )
    return root

"""Clips, backbones and roots that the tests share; made here, but for the real clips, used when they are there."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network
os.environ["OMP_NUM_THREADS"] = "1"  # models this small only lose time to a second thread

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in a shell's background, as what is started here would be
    signal.signal(signal.SIGINT, signal.default_int_handler)

THOROUGH = os.environ.get("ALPHAFUSE_TEST_THOROUGH") == "1"  # as CI tests: minutes more
REAL_CLIPS = Path(os.environ.get("ALPHAFUSE_TEST_CLIPS", Path(__file__).parents[2] / "shared" / "vggsound-sample"))


@pytest.fixture(scope="session")
def real_clips() -> list[Path]:
    """Real VGGSound clips, sorted; skips where there are none (ALPHAFUSE_TEST_CLIPS names a folder with clips/)."""
    clips = sorted((REAL_CLIPS / "clips").glob("*.mp4"))
    if not clips:
        pytest.skip("no real clips here: set ALPHAFUSE_TEST_CLIPS to a folder with vggsound.csv and clips/")
    return clips


@pytest.fixture(scope="session")
def real_csv(real_clips: list[Path]) -> Path:
    return real_clips[0].parents[1] / "vggsound.csv"


def moving_square(frames: int, height: int, width: int, *, look: int = 0) -> np.ndarray:
    """(frames, height, width, 3) uint8: every frame differs from every other, and every look from every other."""
    images = np.zeros((frames, height, width, 3), np.uint8)
    images[..., 2] = np.linspace(0, 255, width, dtype=np.uint8)
    for i in range(frames):
        left = int(i / frames * (width - 8))
        images[i, 4:12, left : left + 8] = 255
        images[i, -8:, :, 0] = 255 * i // frames
    images[:, :, : 1 + look % width, 1] = 200
    return images


def sine(seconds: float, rate: int, channels: int, hertz: float = 440.0) -> np.ndarray:
    """(channels, samples) float32; the second channel is silent."""
    wave = np.zeros((channels, round(seconds * rate)), np.float32)
    wave[0] = 0.5 * np.sin(2 * np.pi * hertz * np.arange(wave.shape[1]) / rate)
    return wave


def write_clip(
    path: Path,
    *,
    frames: int = 24,
    fps: int = 12,
    size: tuple[int, int] = (48, 64),
    rate: int = 44_100,
    channels: int = 1,
    seconds: float | None = None,
    video: bool = True,
    audio: bool = True,
    codec: str = "libx264",
    audio_codec: str = "aac",
    gop: int = 12,
    look: int = 0,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
) -> Path:
    """Encode a small clip: H.264 with B frames and AAC by default; another `look` looks and sounds different.

    `pixels` and `options` are the video encoder's, `rotation` the counterclockwise angle in the file's header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if codec == "libx264":  # whose macroblock tree depends on what memory held before, by a few pixels now and then
        options = {"mbtree": "0"} | (options or {})
    with av.open(str(path), "w") as container:
        if video:
            picture = container.add_stream(codec, rate=fps, options=options)
            picture.height, picture.width, picture.pix_fmt = *size, pixels
            if rotation:
                picture.set_display_rotation(rotation)
            picture.gop_size = gop
            picture.codec_context.thread_count = 1  # so that the same call gives the same bytes
        if audio:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
            # FFmpeg's own vorbis encoder counts as experimental
            sound = container.add_stream(audio_codec, rate=rate, layout=layout, options={"strict": "experimental"})
        if video:
            for image in moving_square(frames, *size, look=look):
                container.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(picture.encode())
        if audio:
            wave = sine(frames / fps if seconds is None else seconds, rate, channels, hertz=440.0 + 50 * look)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            resampler = av.AudioResampler(sound.format, sound.layout, sound.rate, frame_size=sound.frame_size or 0)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(sound.encode(part))
            container.mux(sound.encode())
    return path


@pytest.fixture(scope="session")
def tiny_backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random TimeSformer (4 frames of 32x32, 64-d) and AST (128 frames, 64 mel bands, 32-d) in HuggingFace folders."""
    import torch
    from transformers import ASTConfig, ASTModel, TimesformerConfig, TimesformerModel

    folder = tmp_path_factory.mktemp("backbones")
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


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder that the workers of a parallel run share, by its name and a function that fills it."""
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
    """A folder with what the examples of docstrings and documents start from: demo/, extracted, with one run.

    That is `alphafuse data demo`, `extract --split all` and `fit --transform sqrt --on ast`. Not to be written to: see
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
    """The working directory, with a demo/ of its own."""
    shutil.copytree(finished_demo, tmp_path / "examples")
    monkeypatch.chdir(tmp_path / "examples")
    return tmp_path / "examples"

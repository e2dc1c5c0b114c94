"""Encode small clips for tests."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

THOROUGH = os.environ.get("ALPHAFUSE_TEST_THOROUGH") == "1"  # as in CI: takes minutes longer


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
    if codec == "libx264":  # its macroblock tree depends on uninitialised memory, by a few pixels in some runs
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

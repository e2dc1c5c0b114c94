"""Excerpts: the middle frame of a clip's file and two seconds of sound around it, as small data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image

from alphafuse.errors import DecodeError
from alphafuse.extract.decoding.decode import decode_clip
from alphafuse.extract.decoding.fetch import fetched
from alphafuse.extract.decoding.specs import SAMPLE_RATE_HZ
from alphafuse.system.remote import is_remote
from alphafuse.system.workers import map_tasks

EDGE = 224  # default pixels of the longer side
QUALITY = 70  # quality of the JPEG: about 6 kB for a frame of VGGSound
SOUND_SECONDS = 2.0
SOUND_BITS_PER_SECOND = 24_000  # of the MP3: 6 kB for two seconds at 16 kHz
TIMEOUT_SECONDS = 30.0  # limit per file


@dataclass(frozen=True)
class Excerpt:
    """Data URIs of a JPEG and of an MP3; "" for what the file doesn't have."""

    picture: str = ""
    sound: str = ""


def excerpts(
    files: Mapping[str, Path], *, edge: int = EDGE, sound: bool = False, workers: int = 0
) -> dict[str, Excerpt]:
    """Return clip_id -> excerpt, for each file.

    Worker processes decode the files: a file that crashes or hangs the decoder loses only its own excerpt.

    Args:
        files: clip_id -> file, which may be missing or damaged.
        edge: largest number of pixels of the picture's longer side.
        sound: whether to take the sound as well.
        workers: decode processes; 0 = one per processor.
    """
    tasks = [(clip_id, path) for clip_id, path in files.items() if is_remote(path) or path.is_file()]
    found = dict(
        map_tasks(
            partial(excerpt, edge=edge, sound=sound),
            tasks,
            failed=lambda reason: Excerpt(),
            workers=workers,
            timeout_seconds=TIMEOUT_SECONDS,
        )
    )
    return {clip_id: found.get(clip_id, Excerpt()) for clip_id in files}


def excerpt(path: Path, *, edge: int = EDGE, sound: bool = False) -> Excerpt:
    """Return the excerpt of a file."""
    try:
        with fetched(path) as file:
            decoded = decode_clip(file, frames=3, prepare=partial(_shrink, edge=edge), sound=sound)
    except DecodeError:
        return Excerpt()
    frames, wave = decoded.frames, decoded.waveform
    return Excerpt(
        "" if frames is None else _uri("image/jpeg", _jpeg(frames[1])),
        "" if wave is None else _uri("audio/mpeg", _mp3(_middle(wave))),
    )


def _shrink(image: np.ndarray, *, edge: int) -> np.ndarray:
    """Shrink an image (height, width, 3) uint8 until its longer side is at most `edge`."""
    small = Image.fromarray(image)
    small.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return np.asarray(small)


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def _middle(wave: np.ndarray) -> np.ndarray:
    """Return the middle of a waveform (samples,), of `SOUND_SECONDS` at most."""
    length = round(SOUND_SECONDS * SAMPLE_RATE_HZ)
    start = max(0, (len(wave) - length) // 2)
    return wave[start : start + length]


def _mp3(wave: np.ndarray) -> bytes:
    """Encode a waveform (samples,) float32 at `SAMPLE_RATE_HZ`; b"" if these FFmpeg libraries have no MP3 encoder."""
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp3") as container:
            stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE_HZ, layout="mono")
            stream.bit_rate = SOUND_BITS_PER_SECOND
            frame = av.AudioFrame.from_ndarray(np.clip(wave, -1, 1)[None], format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE_HZ
            for packets in (stream.encode(frame), stream.encode(None)):
                container.mux(packets)
    except (av.FFmpegError, ValueError):  # an unknown encoder is a ValueError
        return b""
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}" if content else ""

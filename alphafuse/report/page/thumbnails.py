"""Thumbnails: the middle frame of a clip's file as a small data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from alphafuse.errors import DecodeError
from alphafuse.extract.decoding.decode import decode_clip
from alphafuse.extract.decoding.fetch import fetched
from alphafuse.system.remote import is_remote
from alphafuse.system.workers import map_tasks

EDGE = 224  # default pixels of the longer side
QUALITY = 70  # quality of the JPEG: about 6 kB for a frame of VGGSound
TIMEOUT_SECONDS = 30.0  # limit per file


def thumbnails(
    files: Mapping[str, Path], *, edge: int = EDGE, workers: int = 0, progress: Callable[[], object] = lambda: None
) -> dict[str, str]:
    """Return clip_id -> data URI of the middle frame; files without one are left out.

    Worker processes decode the files: a file that crashes or hangs the decoder loses only its own thumbnail.

    Args:
        files: clip_id -> file, which may be missing or damaged.
        edge: largest number of pixels of the longer side.
        workers: decode processes; 0 = one per processor.
        progress: called after each file.
    """
    tasks = [(clip_id, path) for clip_id, path in files.items() if is_remote(path) or path.is_file()]
    found = {}
    for clip_id, uri in map_tasks(
        partial(thumbnail, edge=edge), tasks, failed=lambda reason: "", workers=workers, timeout_seconds=TIMEOUT_SECONDS
    ):
        found[clip_id] = uri
        progress()
    return {clip_id: found[clip_id] for clip_id in files if found.get(clip_id)}


def thumbnail(path: Path, *, edge: int = EDGE) -> str:
    """Return the data URI of a file's middle frame; "" if it has none."""
    try:
        with fetched(path) as file:
            frames = decode_clip(file, frames=3, prepare=partial(_shrink, edge=edge), sound=False).frames
    except DecodeError:
        return ""
    if frames is None:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(frames[1]).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shrink(image: np.ndarray, *, edge: int) -> np.ndarray:
    """Shrink an image (height, width, 3) uint8 until its longer side is at most `edge`."""
    small = Image.fromarray(image)
    small.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return np.asarray(small)

"""A clip's file -> a small middle frame as a data URI, for pages that need no other file."""

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

EDGE = 224  # pixels of the longer side, unless asked for otherwise
QUALITY = 70  # of the JPEG: about 6 kB for a frame of VGGSound
TIMEOUT_SECONDS = 30.0  # that a file may take


def thumbnails(
    files: Mapping[str, Path], *, edge: int = EDGE, workers: int = 0, progress: Callable[[], object] = lambda: None
) -> dict[str, str]:
    """clip_id -> data URI of a middle frame, for the files that have one; the others are left out.

    Decoded in processes of their own: a file that crashes or hangs the decoder costs only itself.

    Args:
        files: clip_id -> file; it may be missing or damaged.
        edge: pixels of the longer side, at most.
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
    """The data URI of one file's middle frame, "" where it has none."""
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
    """(height, width, 3) uint8 -> the same, its longer side at most `edge`."""
    small = Image.fromarray(image)
    small.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return np.asarray(small)

"""What headers tell of files before extraction: whether there is audio, and how long it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alphafuse.errors import DecodeError
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.workers import map_tasks

from .decode import probe_audio, probe_seconds
from .fetch import fetched

TIMEOUT_SECONDS = 60.0  # longest time for reading a header


def files_without_audio(
    files: Sequence[Path], *, workers: int = 0, progress: Progress = NO_PROGRESS
) -> dict[Path, str]:
    """Return file -> why it has no audio, in the given order, for those without audio stream or that can't be opened.

    Only headers are read: about 4 ms per file of VGGSound on a core of an Intel Xeon. A file that crashes or blocks
    the process that reads it is included.

    Args:
        files: video files; those behind URLs are fetched whole.
        workers: processes; 0 = one per processor.
        progress: callbacks; one round of all files.

    >>> from pathlib import Path
    >>> from alphafuse import files_without_audio
    >>> files = [*Path("demo/clips").glob("*.mp4")][:3] + [Path("demo/vggsound.csv")]
    >>> [(file.name, reason) for file, reason in files_without_audio(files, workers=1).items()]
    [('vggsound.csv', "can't be opened: ...")]
    """
    reasons: dict[Path, str] = {}
    progress.start("audio streams", total=len(files), unit="file")
    try:
        for file, reason in map_tasks(
            _probe, ((file, file) for file in files), failed=str, workers=workers, timeout_seconds=TIMEOUT_SECONDS
        ):
            if reason:
                reasons[file] = reason
            progress.advance()
    finally:
        progress.stop()
    return {file: reasons[file] for file in files if file in reasons}


def _probe(file: Path) -> str:
    try:
        with fetched(file) as local:
            return probe_audio(local)
    except DecodeError as error:
        return str(error)


def sound_seconds(files: Sequence[Path], *, workers: int = 0) -> dict[Path, float]:
    """Return file -> duration of its sound by its header, of those that have sound of known duration."""
    tasks = ((file, file) for file in files)
    found = dict(map_tasks(_seconds, tasks, failed=_unknown, workers=workers, timeout_seconds=TIMEOUT_SECONDS))
    return {file: found[file] for file in files if found.get(file, 0.0) > 0}


def _seconds(file: Path) -> float:
    try:
        with fetched(file) as local:
            return probe_seconds(local)
    except DecodeError:
        return 0.0


def _unknown(reason: str) -> float:
    return 0.0

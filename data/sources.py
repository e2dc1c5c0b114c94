"""What all sources of clips share: finding video files, reporting what is missing, checking fractions."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from alphafuse.errors import DatasetError

from .dataset import Dataset
from .files import write_csv

VAL_FRACTION = 0.1  # of the training clips; used where a source has no official validation split
# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
    ".wmv",
))
# fmt: on


@dataclass(frozen=True)
class ImportReport:
    """What `import_vggsound` and `import_folder` make.

    Attributes:
        dataset: the root, opened.
        listed: clips that the source lists (after `subset="paper"`, before any other subset).
        missing: clip_ids that are listed and have no file; also in the root's missing.csv.
    """

    dataset: Dataset
    listed: int
    missing: tuple[str, ...]


def find_videos(folder: Path) -> dict[str, Path]:
    """Video files below `folder` (links followed): path relative to it without suffix -> relative path, sorted.

    Of two files that differ only in their suffix the alphabetically first counts.

    Raises:
        DatasetError: no such folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"no such clip folder: {folder}")
    found: dict[str, Path] = {}
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above would never end
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name).relative_to(folder)
            if path.suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                found.setdefault(path.with_suffix("").as_posix(), path)
    return dict(sorted(found.items()))


def write_missing(root: Path, missing: Iterable[str]) -> None:
    """Write the root's missing.csv, or remove it when nothing is missing."""
    listed = [[clip_id] for clip_id in missing]
    if listed:
        write_csv(root / "missing.csv", [["clip_id"], *listed])
    else:
        (root / "missing.csv").unlink(missing_ok=True)


def check_fraction(name: str, value: float) -> None:
    """Raise `DatasetError` unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise DatasetError(f"{name} must be at least 0 and below 1, not {value}")

"""Shared by all sources of clips: find video files, leave some out, make the root, check fractions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeAlias

from alphafuse.data.dataset import Dataset, labelled_by_of, require_labelled_by
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.streams import Stream
from alphafuse.errors import AlphafuseError, DatasetError
from alphafuse.system.files import one_line, split_address, write_csv
from alphafuse.system.remote import is_remote, list_objects

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
    ".wmv",
))
AUDIO_SUFFIXES = frozenset((
    ".aac", ".aif", ".aiff", ".flac", ".m4a", ".mka", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma",
))
# fmt: on
NO_SUFFIX = "without a suffix"


# files -> {file: why it is left out}, such as `alphafuse.files_without_audio`
LeaveOut: TypeAlias = Callable[[Sequence[Path]], Mapping[Path, str]]


class ListedClip(Protocol):
    """A clip in a source's list; its file is found by `clip_id`."""

    @property
    def clip_id(self) -> str:
        """Name of its file without suffix."""

    @property
    def label(self) -> str:
        """Its class."""

    @property
    def split(self) -> str:
        """Its split: train, val or test."""

    @property
    def group(self) -> str:
        """Its source video."""


@dataclass(frozen=True)
class ImportReport:
    """Result of `import_vggsound`, `import_ucf101`, `import_kinetics` and `import_folder`.

    Attributes:
        dataset: the root, opened.
        listed: clips that the source lists (after `subset="paper"`, before any other subset).
        missing: clip_ids that are listed but have no file; also in the root's missing.csv.
        left_out: clip_id -> why it was left out although it has a file; also in the root's left_out.csv.
        skipped: what was not taken -> number of files: suffix of files of another kind, as ".txt".
        notes: further information about this import, one sentence each.
    """

    dataset: Dataset
    listed: int
    missing: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder, nested folders included.

    Attributes:
        clips: clip_id -> its file, relative to the folder; sorted by file. The clip_id is the path without its suffix;
            of files that differ only in their suffix, only the first has that, the others keep the suffix.
        same_name: clip_id -> clip_id of the first file, for those others.
        skipped: what was not taken -> number of files, see `ImportReport`; hidden files are not counted.
    """

    clips: Mapping[str, Path]
    same_name: Mapping[str, str]
    skipped: Mapping[str, int]


def find_files(folder: Path) -> FolderFiles:
    """Find files with pictures or sound below `folder` (links followed); a URL is listed once.

    A sound beside a video of the same name is taken for that video's and skipped.

    Raises:
        DatasetError: the folder doesn't exist.
    """
    found: list[Path] = []
    skipped: Counter[str] = Counter()
    for path in _walk(folder):
        suffix = path.suffix.lower()
        if suffix in VIDEO_SUFFIXES or suffix in AUDIO_SUFFIXES:
            found.append(path)
        else:
            skipped[one_line(suffix, 20) or NO_SUFFIX] += 1
    seen = {path.with_suffix("") for path in found if path.suffix.lower() in VIDEO_SUFFIXES}
    clips: dict[str, Path] = {}
    same_name: dict[str, str] = {}
    for path in sorted(found):
        suffix, stem = path.suffix.lower(), path.with_suffix("")
        if suffix in AUDIO_SUFFIXES and stem in seen:
            skipped[f"{suffix} beside a video of the same name"] += 1
        elif stem.as_posix() in clips:
            clips[path.as_posix()] = path
            same_name[path.as_posix()] = stem.as_posix()
        else:
            clips[stem.as_posix()] = path
    return FolderFiles(clips, same_name, dict(sorted(skipped.items(), key=lambda kind: (-kind[1], kind[0]))))


def is_sound(path: str | Path) -> bool:
    """Whether the suffix is that of a file that has sound and no picture."""
    return PurePosixPath(split_address(str(path))[0]).suffix.lower() in AUDIO_SUFFIXES


def find_videos(folder: Path) -> dict[str, Path]:
    """Find video files below `folder` (links followed): relative path without suffix -> relative path, sorted.

    If two files differ only in their suffix, the alphabetically first counts. A folder behind a URL is listed once.

    Raises:
        DatasetError: the folder doesn't exist.
    """
    found: dict[str, Path] = {}
    for path in sorted(_walk(folder)):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            found.setdefault(path.with_suffix("").as_posix(), path)
    return dict(sorted(found.items()))


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that aren't hidden, relative to it; links are followed, a URL is listed once."""
    if is_remote(folder):
        yield from (path for key in sorted(list_files(folder)) if not (path := Path(key)).name.startswith("."))
        return
    if not folder.is_dir():
        raise DatasetError(f"no such clip folder: {folder}")
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a parent folder would cause an endless loop
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        inside = Path(parent).relative_to(folder)
        yield from (inside / name for name in sorted(names) if not name.startswith("."))


def list_files(folder: Path) -> set[str]:
    """List all objects below a URL, relative to it.

    Raises:
        DatasetError: the URL has no objects, or can't be reached.
    """
    try:
        listed = set(list_objects(folder, recursive=True))
    except AlphafuseError as error:
        raise DatasetError(str(error)) from None
    if not listed:
        raise DatasetError(f"no such clip folder: {folder}")
    return listed


def match_files(listed: Sequence[ListedClip], folder: Path) -> tuple[list[Clip], tuple[str, ...]]:
    """Find the files of listed clips anywhere below a folder.

    Returns:
        The clips that have a file named by their clip_id, in the order of the list; the clip_ids of the others. If
        several files have the same name, the alphabetically first counts.

    Raises:
        DatasetError: the folder doesn't exist, or none of the clips has a file.
    """
    by_name = {stem.rpartition("/")[2]: path for stem, path in reversed(find_videos(folder).items())}
    found = [
        Clip(row.clip_id, by_name[row.clip_id].as_posix(), row.label, row.split, row.group)
        for row in listed
        if row.clip_id in by_name
    ]
    if not found:
        raise DatasetError(
            f"none of the {len(listed)} listed clips is in {folder}: files must be named like {listed[0].clip_id}.mp4"
        )
    return found, tuple(row.clip_id for row in listed if row.clip_id not in by_name)


def leave_out_files(
    clips: Sequence[Clip], folder: Path, leave_out: LeaveOut | None
) -> tuple[list[Clip], dict[str, str]]:
    """Return the clips whose files stay, and clip_id -> reason of the others.

    Raises:
        DatasetError: all are left out.
    """
    if leave_out is None:
        return list(clips), {}
    files = {clip.clip_id: folder / clip.path for clip in clips}
    reasons = leave_out(list(files.values()))
    left_out = {clip_id: reasons[file] for clip_id, file in files.items() if file in reasons}
    kept = [clip for clip in clips if clip.clip_id not in left_out]
    if not kept:
        first, reason = next(iter(left_out.items()))
        raise DatasetError(
            f"all {len(clips)} clips are left out, the first, {first}, because: {reason}; run without --require-audio "
            "to keep them"
        )
    return kept, left_out


def create_root(
    root: Path,
    clips: Sequence[Clip],
    *,
    clip_folder: Path,
    name: str,
    classes: Iterable[str],
    source: Mapping[str, Any],
    listed: int,
    missing: tuple[str, ...],
    left_out: Mapping[str, str] | None = None,
    notes: tuple[str, ...] = (),
    streams: Sequence[Stream] | None,
    stores: str | Path | None = None,
    labelled_by: str | None,
    published: str,
) -> ImportReport:
    """Write a root with its missing.csv and left_out.csv, and with those of `classes` that occur, in their order.

    `published` is how labels were given according to the source: it holds unless `labelled_by` or the existing root
    says otherwise.

    Raises:
        DatasetError: as `Dataset.create` does.
    """
    occurring = {clip.label for clip in clips}
    left_out = dict(left_out or {})
    dataset = Dataset.create(
        root,
        Manifest(clips),
        name=name,
        clip_folder=clip_folder,
        classes=tuple(label for label in classes if label in occurring),
        streams=streams,
        stores=stores,
        source={**source, "listed": listed, "missing": len(missing), "left_out": len(left_out)},
        labelled_by=require_labelled_by(labelled_by) or labelled_by_of(root) or published,
    )
    write_missing(root, missing)
    _write_list(root / "left_out.csv", ("clip_id", "reason"), left_out.items())
    return ImportReport(dataset, listed, missing, left_out, notes)


def write_missing(root: Path, missing: Iterable[str]) -> None:
    """Write the root's missing.csv, or remove it if nothing is missing."""
    _write_list(root / "missing.csv", ("clip_id",), ((clip_id,) for clip_id in missing))


def _write_list(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a csv, or remove it if there are no rows."""
    listed = list(rows)
    if listed:
        write_csv(path, [header, *listed])
    else:
        path.unlink(missing_ok=True)


def check_fraction(name: str, value: float) -> None:
    """Raise `DatasetError` unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise DatasetError(f"{name} must be at least 0 and below 1, not {value}")

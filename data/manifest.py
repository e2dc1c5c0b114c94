"""Clips and the manifest that lists them: the first arrow of the data flow.

A manifest is a csv with the columns `clip_id, path, label, split, group`. `path` is relative to the dataset's clip
folder and may not leave it; `group` is the source video, the unit that must not straddle splits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from operator import attrgetter
from pathlib import Path

from alphafuse.errors import DatasetError, EmptySplitError, unknown

from .files import MAX_TEXT, is_clean, iterate_csv, one_line, write_csv

SPLITS = ("train", "val", "test")
MAX_NAME_BYTES = 255  # of a file's name, on every common file system
# absolute, on a drive, or with '..'; a backslash separates on Windows, and a manifest may go there
_LEAVES = re.compile(r"^(?:[/\\]|[A-Za-z]:[/\\])|(?:^|[/\\])\.\.(?:[/\\]|$)")


@dataclass(frozen=True, slots=True)  # slots: a manifest may hold millions
class Clip:
    """One clip.

    Its path can't name a file outside the clip folder. A link in the clip folder may lead out of it, as whoever put it
    there meant it to.

    Attributes:
        clip_id: unique name, in VGGSound `{youtube_id}_{start:06d}`.
        path: file, relative to the dataset's clip folder, with forward slashes.
        label: class name as people read it.
        split: "train", "val" or "test".
        group: source video; clips of one group belong into one split.

    Raises:
        DatasetError: a field is empty, longer than 4096 characters, or has control characters or such that hide or turn
            around text; no such split; a path that leaves the clip folder or that no file can have.

    >>> from alphafuse import Clip
    >>> Clip("0mel8sIKhgk_000007", "0mel8sIKhgk_000007.mp4", "dog barking", "train", "0mel8sIKhgk")
    Clip(clip_id='0mel8sIKhgk_000007', path='0mel8sIKhgk_000007.mp4', label='dog barking', split='train', ...)
    """

    clip_id: str
    path: str
    label: str
    split: str
    group: str

    def __post_init__(self) -> None:
        for name in COLUMNS:
            value = getattr(self, name)
            if not value:
                raise DatasetError(f"a clip has an empty {name}: {one_line(self)}")
            if not is_clean(value):
                what = f"longer than {MAX_TEXT} characters" if len(value) > MAX_TEXT else "with a control character"
                raise DatasetError(f"{name} '{one_line(value, 80)}' is {what}: rename it")
        if self.split not in SPLITS:
            raise DatasetError(
                f"clip {one_line(self.clip_id, 80)}: {unknown('split', one_line(self.split, 40), SPLITS)}"
            )
        if _LEAVES.search(self.path):
            raise DatasetError(
                f"clip {one_line(self.clip_id, 80)}: path '{one_line(self.path, 80)}' leaves the clip folder: "
                "give paths relative to it, without '..'"
            )
        # (a character takes at most 4 bytes)
        if len(self.path) > MAX_NAME_BYTES / 4 and len(max(self.path.encode().split(b"/"), key=len)) > MAX_NAME_BYTES:
            raise DatasetError(
                f"clip {one_line(self.clip_id, 80)}: path '{one_line(self.path, 80)}' has a name longer than "
                f"{MAX_NAME_BYTES} bytes, which no file can have: correct it"
            )


COLUMNS = tuple(field.name for field in fields(Clip))


class Manifest(Sequence[Clip]):
    """An ordered, immutable list of clips with unique ids.

    Raises:
        DatasetError: two clips share a clip_id.

    >>> from alphafuse import Clip, Manifest
    >>> splits = {"a": "train", "b": "test"}
    >>> manifest = Manifest(Clip(f"{name}_0", f"{name}.mp4", "dog", split, name) for name, split in splits.items())
    >>> manifest
    Manifest(2 clips: train=1, val=0, test=1)
    >>> manifest.of_split("test")[0].path
    'b.mp4'
    """

    def __init__(self, clips: Iterable[Clip]) -> None:
        self._clips = tuple(clips)
        if len({clip.clip_id for clip in self._clips}) < len(self._clips):
            counts = Counter(clip.clip_id for clip in self._clips)
            twice = next(clip_id for clip_id, count in counts.items() if count > 1)
            raise DatasetError(f"clip_id '{one_line(twice, 80)}' occurs {counts[twice]} times: clip ids must be unique")

    def __len__(self) -> int:
        return len(self._clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self._clips)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's int and slice overloads
        return self._clips[index]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={len(self.of_split(name))}" for name in SPLITS)
        return f"Manifest({len(self)} clips: {sizes})"

    def of_split(self, split: str) -> tuple[Clip, ...]:
        """Clips of one split in manifest order; `DatasetError` for a name that is no split."""
        if split not in SPLITS:
            raise DatasetError(unknown("split", split, SPLITS))
        return tuple(clip for clip in self._clips if clip.split == split)

    def require_split(self, split: str) -> tuple[Clip, ...]:
        """Like `of_split`, but an empty split is an `EmptySplitError`."""
        clips = self.of_split(split)
        if not clips:
            sizes = ", ".join(f"{name} {len(self.of_split(name))}" for name in SPLITS)
            raise EmptySplitError(
                f"split '{split}' has no clips ({sizes}): make the root again with clips in it "
                "(alphafuse data vggsound|ucf101|kinetics|folder --help)"
            )
        return clips

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that occur, sorted."""
        return tuple(sorted({clip.label for clip in self._clips}))

    def write(self, path: str | Path) -> None:
        """Write the csv atomically."""
        write_csv(Path(path), chain([COLUMNS], map(attrgetter(*COLUMNS), self._clips)))

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read a csv written by `write` (or by hand, with the same header).

        Raises:
            DatasetError: no such file, another header, a bad row (its line is named) or a repeated clip_id.
        """
        path = Path(path)
        rows = iterate_csv(path)
        if tuple(next(rows, (0, []))[1]) != COLUMNS:
            raise DatasetError(f"{one_line(path, 1000)} is not a manifest: its first line must be {','.join(COLUMNS)}")
        return cls(_clips(path, rows))


def _clips(path: Path, rows: Iterable[tuple[int, list[str]]]) -> Iterator[Clip]:
    """The clips of a csv's rows; labels, splits and groups that repeat are held once."""
    held: dict[str, str] = {}
    for line, row in rows:
        if len(row) != len(COLUMNS):
            raise DatasetError(
                f"{one_line(path, 1000)} line {line} has {len(row)} columns instead of {len(COLUMNS)}: {one_line(row)}"
            )
        clip_id, file, *repeating = row
        try:
            yield Clip(clip_id, file, *(held.setdefault(value, value) for value in repeating))
        except DatasetError as error:
            raise DatasetError(f"{one_line(path, 1000)} line {line}: {error}") from None

"""Clips and the manifest that lists them.

A manifest is a csv with the columns `clip_id, path, label, split, group`, and `audio` if sounds have files of their
own. `group` is the source video, the unit that must not straddle splits. `path` and `audio` are addresses: a file
relative to the dataset's clip folder, which they may not leave, or a part of one: `videos.tar@1536+48210` is 48,210
bytes from byte 1,536 on, as an uncompressed tar file holds its members.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import overload

import numpy as np

from alphafuse.errors import DatasetError, EmptySplitError, unknown
from alphafuse.system.files import MAX_TEXT, is_clean, iterate_csv, one_line, require_commas, write_csv

from .columns import AT_ONCE, Places, Texts, TextsBuilder, in_parts

SPLITS = ("train", "val", "test")
ROWS_AT_ONCE = 16_384  # rows of a csv that are read at a time: about 20 MB
MAX_NAME_BYTES = 255  # longest file name on every common file system
# absolute, with a drive, or with '..'; backslashes separate folders on Windows, where a manifest may be used
_LEAVES = re.compile(r"^(?:[/\\]|[A-Za-z]:[/\\])|(?:^|[/\\])\.\.(?:[/\\]|$)")


@dataclass(frozen=True, slots=True)  # slots: a manifest may hold millions
class Clip:
    """One clip.

    Its path can't name a file outside the clip folder. A link in the clip folder may lead out of it.

    Attributes:
        clip_id: unique name, in VGGSound `{youtube_id}_{start:06d}`.
        path: address of the file, relative to the dataset's clip folder, with forward slashes.
        label: name of the class.
        split: "train", "val" or "test".
        group: source video; clips of one group belong into one split.
        audio: address of the file with the sound; "" = `path` has it.

    Raises:
        DatasetError: a field is empty, longer than 4096 characters, or has control characters or characters that hide
            or reverse text; the split is unknown; the path leaves the clip folder or is not possible for a file.

    >>> from alphafuse import Clip
    >>> Clip("0mel8sIKhgk_000007", "0mel8sIKhgk_000007.mp4", "dog barking", "train", "0mel8sIKhgk")
    Clip(clip_id='0mel8sIKhgk_000007', path='0mel8sIKhgk_000007.mp4', label='dog barking', split='train', ...)
    """

    clip_id: str
    path: str
    label: str
    split: str
    group: str
    audio: str = ""

    def __post_init__(self) -> None:
        for name in COLUMNS:
            value = getattr(self, name)
            if name == "audio" and not value:
                continue
            if not value:
                raise DatasetError(f"a clip has an empty {name}: {one_line(self)}")
            if not is_clean(value):
                what = f"longer than {MAX_TEXT} characters" if len(value) > MAX_TEXT else "with a control character"
                raise DatasetError(f"{name} '{one_line(value, 80)}' is {what}: rename it")
        if self.split not in SPLITS:
            raise DatasetError(
                f"clip {one_line(self.clip_id, 80)}: {unknown('split', one_line(self.split, 40), SPLITS)}"
            )
        for path in (self.path, self.audio):
            if _LEAVES.search(path):
                raise DatasetError(
                    f"clip {one_line(self.clip_id, 80)}: path '{one_line(path, 80)}' leaves the clip folder: "
                    "give paths relative to it, without '..'"
                )
            # (a character takes at most 4 bytes)
            if len(path) > MAX_NAME_BYTES / 4 and len(max(path.encode().split(b"/"), key=len)) > MAX_NAME_BYTES:
                raise DatasetError(
                    f"clip {one_line(self.clip_id, 80)}: path '{one_line(path, 80)}' has a name longer than "
                    f"{MAX_NAME_BYTES} bytes, which no file can have: correct it"
                )

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of its files: one, or those of picture and sound."""
        return (self.path, self.audio) if self.audio else (self.path,)


COLUMNS = tuple(field.name for field in fields(Clip))
REQUIRED = COLUMNS[:-1]  # in a csv, `audio` may be absent


class Clips(Sequence[Clip]):
    """An ordered, immutable sequence of clips that takes about 45 bytes per clip; it makes `Clip`s on access.

    It is equal to a tuple of the same clips.

    Attributes:
        clip_ids, clip_labels, clip_splits, clip_groups: (clips,) texts.
    """

    clip_ids: Texts
    clip_labels: Texts
    clip_splits: Texts
    clip_groups: Texts
    _files: Texts
    _sounds: Texts

    def __init__(self, clips: Iterable[Clip] = ()) -> None:
        made = (
            clips if isinstance(clips, Clips) else _columns(map(_ROW, part) for part in in_parts(clips, ROWS_AT_ONCE))
        )
        self.clip_ids, self.clip_labels, self.clip_splits, self.clip_groups = (
            made.clip_ids,
            made.clip_labels,
            made.clip_splits,
            made.clip_groups,
        )
        self._files, self._sounds = made._files, made._sounds

    @classmethod
    def of_columns(
        cls, clip_ids: Texts, files: Texts, labels: Texts, splits: Texts, groups: Texts, sounds: Texts | None = None
    ) -> Clips:
        """Make clips from checked columns; files and sounds are addresses with NUL in place of the clip_id."""
        clips = Clips.__new__(Clips)
        clips.clip_ids, clips._files, clips.clip_labels, clips.clip_splits, clips.clip_groups = (
            clip_ids,
            files,
            labels,
            splits,
            groups,
        )
        clips._sounds = TextsBuilder().extend(repeat("", len(clip_ids))).build() if sounds is None else sounds
        return clips

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Clips | tuple | list):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} clips)"

    def __iter__(self) -> Iterator[Clip]:
        for start in range(0, len(self), AT_ONCE):
            columns = (column.strings(start, start + AT_ONCE) for column in self._columns)
            yield from map(_make_clip, *columns)

    @overload
    def __getitem__(self, index: int) -> Clip: ...

    @overload
    def __getitem__(self, index: slice) -> Clips: ...

    def __getitem__(self, index: int | slice) -> Clip | Clips:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return _make_clip(*(column[index] for column in self._columns))

    def take(self, positions: np.ndarray) -> Clips:
        """Return the clips at these positions (an integer array)."""
        return self.of_columns(*(column.take(positions) for column in self._columns))

    @property
    def _columns(self) -> tuple[Texts, Texts, Texts, Texts, Texts, Texts]:
        return self.clip_ids, self._files, self.clip_labels, self.clip_splits, self.clip_groups, self._sounds


class Manifest(Clips):
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
        super().__init__(clips)
        repeated = Places(self.clip_ids).repeated()
        if repeated:
            twice, count = repeated
            raise DatasetError(f"clip_id '{one_line(twice, 80)}' occurs {count} times: clip ids must be unique")
        self._split_of = self.clip_splits.indices_in(SPLITS).astype(np.uint8)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={len(self.of_split(name))}" for name in SPLITS)
        return f"Manifest({len(self)} clips: {sizes})"

    def of_split(self, split: str) -> Clips:
        """Return the clips of one split in manifest order; `DatasetError` for an unknown split."""
        if split not in SPLITS:
            raise DatasetError(unknown("split", split, SPLITS))
        return self.take(np.flatnonzero(self._split_of == SPLITS.index(split)))

    def require_split(self, split: str) -> Clips:
        """Like `of_split`, but an empty split raises `EmptySplitError`."""
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
        return self.clip_labels.distinct()

    def write(self, path: str | Path) -> None:
        """Write the csv atomically."""
        columns = COLUMNS if any(self._sounds.distinct()) else REQUIRED
        write_csv(Path(path), chain([columns], map(attrgetter(*columns), self)))

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read a csv written by `write` (or by hand, with the same header).

        Raises:
            DatasetError: no such file, another header, a bad row (its line is named) or a repeated clip_id.
        """
        path = Path(path)
        rows = iterate_csv(path)
        header = tuple(next(rows, (0, []))[1])
        require_commas(path, header)
        if header not in (COLUMNS, REQUIRED):
            raise DatasetError(
                f"{one_line(path, 1000)} is not a manifest: its first line must be {','.join(REQUIRED)}[,audio]"
            )
        clips = _columns(_checked_rows(path, rows, len(header)))
        try:
            return cls(clips)
        except DatasetError as error:
            repeated = Places(clips.clip_ids).repeated()
            lines = lines_of(path, repeated[0]) if repeated else []
            raise DatasetError(f"{one_line(path, 1000)} lines {', '.join(map(str, lines[:5]))}: {error}") from None


def lines_of(path: Path, clip_id: str) -> list[int]:
    """Return the numbers of the lines of a manifest's csv that list this clip."""
    return [line for line, row in iterate_csv(path) if row[0] == clip_id]


def as_clips(clips: Sequence[Clip]) -> Clips:
    """Return any sequence of clips as columns."""
    return clips if isinstance(clips, Clips) else Clips(clips)


_ROW = attrgetter(*COLUMNS)


def _make_clip(clip_id: str, file: str, label: str, split: str, group: str, sound: str) -> Clip:
    """Make a clip from values that were checked before."""
    clip, set_field = Clip.__new__(Clip), object.__setattr__
    set_field(clip, "clip_id", clip_id)
    set_field(clip, "path", file.replace("\0", clip_id))
    set_field(clip, "label", label)
    set_field(clip, "split", split)
    set_field(clip, "group", group)
    set_field(clip, "audio", sound.replace("\0", clip_id))
    return clip


def _columns(parts: Iterable[Iterable[Sequence[str]]]) -> Clips:
    """Make clips from parts of a table with checked rows (clip_id, path, label, split, group[, audio])."""
    builders = [TextsBuilder() for _ in COLUMNS]
    for part in parts:
        columns = [list(column) for column in zip(*part, strict=True)]
        if columns:
            # most files are named by their clip: with NUL in place of its id few different names remain
            columns += [[""] * len(columns[0])] * (len(COLUMNS) - len(columns))
            for at in (1, 5):
                columns[at] = [
                    file.replace(clip_id, "\0") for clip_id, file in zip(columns[0], columns[at], strict=True)
                ]
            for builder, column in zip(builders, columns, strict=True):
                builder.add(column)
    return Clips.of_columns(*(builder.build() for builder in builders))


def _checked_rows(path: Path, rows: Iterator[tuple[int, list[str]]], width: int) -> Iterator[list[list[str]]]:
    """Yield the rows of a csv in parts, each checked as `Clip` checks it; errors name the line."""
    part: list[tuple[int, list[str]]] = []
    try:
        for line, row in rows:
            part.append((line, row))
            if len(part) == ROWS_AT_ONCE or len(row) != width or max(map(len, row)) > MAX_TEXT:
                yield _checked(path, part, width)
                part = []
    except DatasetError:
        _checked(path, part, width)  # a bad row before the unreadable one is reported first
        raise
    yield _checked(path, part, width)


def _checked(path: Path, part: Sequence[tuple[int, list[str]]], width: int) -> list[list[str]]:
    rows = [row for _, row in part]
    if not _are_plain(rows, width):
        for line, row in part:
            if len(row) != width:
                raise DatasetError(
                    f"{one_line(path, 1000)} line {line} has {len(row)} columns instead of {width}: {one_line(row)}"
                )
            try:
                Clip(*row)
            except DatasetError as error:
                raise DatasetError(f"{one_line(path, 1000)} line {line}: {error}") from None
    return rows


def _are_plain(rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether `Clip` certainly accepts all rows: a quick check of many at once, with false negatives."""
    if not rows or set(map(len, rows)) != {width}:
        return not rows
    clip_ids, paths, labels, splits, groups, *sounds = zip(*rows, strict=True)
    paths = (*paths, *chain.from_iterable(filter(any, sounds)))
    files = "/".join(("", *paths))
    return (
        set(splits) <= set(SPLITS)
        and all(_are_clean(column) for column in (clip_ids, paths, labels, groups))  # an empty sound isn't certain
        and max(map(len, paths)) <= MAX_NAME_BYTES // 4
        and not any(sign in files for sign in ("//", "..", "\\", ":"))
    )


def _are_clean(texts: Sequence[str]) -> bool:
    return all(texts) and max(map(len, texts)) <= MAX_TEXT and "".join(texts).isprintable()

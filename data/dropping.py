"""Drop clips from a root, and put them back.

`manifest.csv` loses the clips; the root's dropped.csv keeps their lines, with their place and the reason. Files and
stored embeddings stay: embeddings of clips that the manifest doesn't list are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alphafuse.errors import DatasetError, unknown
from alphafuse.system.files import each, iterate_csv, one_line, write_csv

from .dataset import Dataset
from .manifest import COLUMNS, Clip, Manifest

DROPPED = "dropped.csv"
_HEADER = (*COLUMNS, "place", "reason")


def drop_clips(dataset: Dataset | str | Path, clip_ids: str | Sequence[str], *, reason: str = "") -> Dataset:
    """Take clips out of a root's manifest, and list them in its dropped.csv; return the root without them.

    Args:
        dataset: the root, or its folder.
        clip_ids: one clip of its manifest, or several.
        reason: why, for people.

    Raises:
        DatasetError: the root has no such clip, or no clip would be left.

    >>> from alphafuse import Dataset, drop_clips, resplit_dataset
    >>> root = resplit_dataset(Dataset.open("demo"), "fewer").dataset
    >>> fewer = drop_clips(root, [root.manifest[0].clip_id], reason="two sounds at once")
    >>> len(root.manifest), len(fewer.manifest)
    (448, 447)
    """
    dataset = Dataset.open(dataset)
    wanted = dict.fromkeys(each(clip_ids))
    known = set(dataset.manifest.clip_ids)
    for clip_id in wanted:
        if clip_id not in known:
            raise DatasetError(
                f"{dataset.root}: {one_line(unknown('clip', one_line(clip_id, 80), sorted(known)), 300)}"
            )
    if len(wanted) == len(known):
        raise DatasetError(f"all {len(known)} clips of {dataset.root} would be dropped: name some of them")
    kept, lines = list[Clip](), list[tuple[Clip, int, str]]()
    for place, clip in enumerate(dataset.manifest):
        if clip.clip_id in wanted:
            # the place as it is when the clips before it are dropped: put back in reverse, each comes to its own
            lines.append((clip, place - len(lines), reason))
        else:
            kept.append(clip)
    before = [line for line in _read(dataset.root) if line[0].clip_id not in known]  # others: of a killed call
    _write(dataset.root, [*before, *lines])  # before the manifest, so that a kill loses no line
    return _with(dataset, kept)


def restore_clips(dataset: Dataset | str | Path, clip_ids: str | Sequence[str] = ()) -> Dataset:
    """Put dropped clips back into a root's manifest, each at its place; () = all of them.

    Raises:
        DatasetError: such a clip wasn't dropped.

    >>> from alphafuse import Dataset, drop_clips, resplit_dataset, restore_clips
    >>> root = resplit_dataset(Dataset.open("demo"), "again").dataset
    >>> fewer = drop_clips(root, [root.manifest[7].clip_id])
    >>> list(restore_clips(fewer).manifest) == list(root.manifest)
    True
    """
    dataset, clip_ids = Dataset.open(dataset), each(clip_ids)
    dropped = _read(dataset.root)
    names = [clip.clip_id for clip, _, _ in dropped]
    for clip_id in clip_ids:
        if clip_id not in names:
            raise DatasetError(f"{dataset.root / DROPPED}: {unknown('clip', one_line(clip_id, 80), names)}")
    if not names:
        raise DatasetError(f"no clip was dropped from {dataset.root}: it has no {DROPPED}")
    wanted = set(clip_ids or names)
    clips, listed = list(dataset.manifest), set(dataset.manifest.clip_ids)
    for clip, place, _ in reversed(dropped):
        if clip.clip_id in wanted and clip.clip_id not in listed:
            clips.insert(min(place, len(clips)), clip)
    restored = _with(dataset, clips)
    _write(dataset.root, [line for line in dropped if line[0].clip_id not in wanted])
    return restored


def dropped_clips(root: Path) -> list[tuple[Clip, str]]:
    """Return (clip, reason) of the clips that were dropped from a root, in that order."""
    return [(clip, reason) for clip, _, reason in _read(root)]


def _with(dataset: Dataset, clips: Sequence[Clip]) -> Dataset:
    manifest = Manifest(clips)
    manifest.write(dataset.root / "manifest.csv")
    return replace(dataset, manifest=manifest)


def _read(root: Path) -> list[tuple[Clip, int, str]]:
    path = root / DROPPED
    if not path.is_file():
        return []
    found = []
    rows = iterate_csv(path)
    header = tuple(next(rows, (0, []))[1])
    if header != _HEADER:
        raise DatasetError(f"{path} line 1 must be {','.join(_HEADER)}: correct it, or move the file away")
    for line, row in rows:
        try:
            *fields, place, reason = row
            found.append((Clip(*fields), int(place), reason))
        except (DatasetError, TypeError, ValueError) as error:
            raise DatasetError(f"{path} line {line}: {one_line(error)}: correct it, or move the file away") from None
    return found


def _write(root: Path, lines: Sequence[tuple[Clip, int, str]]) -> None:
    path = root / DROPPED
    if not lines:
        path.unlink(missing_ok=True)
        return
    rows = ([*(getattr(clip, name) for name in COLUMNS), place, reason] for clip, place, reason in lines)
    write_csv(path, [_HEADER, *rows])

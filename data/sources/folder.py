"""Make a dataset root from your own clips: from one folder per class, or from a csv that lists the clips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import SPLITS, Clip, Manifest
from alphafuse.data.splits import VAL_FRACTION, split_off
from alphafuse.data.streams import Stream
from alphafuse.errors import DatasetError
from alphafuse.system.files import read_csv, split_address, to_path
from alphafuse.system.remote import is_remote

from .importing import ImportReport, check_fraction, find_videos, list_files, write_missing

TEST_FRACTION = 0.2  # of all clips, if the source has no test split
OPTIONAL = {"split", "group", "audio"}  # columns of a csv
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# {youtube_id}_{start_seconds:06d} as in VGGSound, or followed by the end as in Kinetics
_YOUTUBE_NAME = re.compile(r"([\w-]{11})_\d{6}(?:_\d{6})?")


def import_folder(
    source: str | Path,
    root: str | Path,
    *,
    csv: str | Path | None = None,
    val_fraction: float = VAL_FRACTION,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
    name: str | None = None,
    streams: Sequence[Stream] | None = None,
    stores: str | Path | None = None,
    labelled_by: str | None = None,
) -> ImportReport:
    """Make a dataset root from a folder of clips.

    Without `csv`, the folder holds one folder per class (`dog/a.mp4`), or split folders with one folder per class
    (`train/dog/a.mp4`, `test/dog/b.mp4`; val, valid and validation mean val). With `csv` (header
    `path,label[,split][,group][,audio]`, paths relative to `source`, `audio` for sounds in files of their own), the
    csv decides everything. Splits that the source doesn't have are made by source video: test from all clips, then
    val from train. A clip's group is that of the csv, else the YouTube id of a name as in VGGSound or Kinetics, else
    the clip itself.

    Args:
        source: folder with the clips, or its URL (s3://, gs://, hf://, ...).
        root: folder to make.
        csv: list of the clips.
        val_fraction, test_fraction: shares of these splits, in [0, 1).
        seed: decides which source videos they get.
        name: the dataset's name; by default that of the folder.
        stores: folder or URL for the embedding stores; None = as the existing root has it, or ROOT/stores.
        labelled_by: how labels were given: "ear", "eye" or "both"; None = as an existing root has it, else unknown.
        streams: recorded in dataset.json; None = as an existing root has them, else `DEFAULT_STREAMS`.

    Raises:
        DatasetError: the source is not usable, the csv is wrong (its line is named), or no clip is found.

    >>> from pathlib import Path
    >>> from alphafuse import Dataset, import_folder
    >>> with Path("labels.csv").open("w") as file:
    ...     print("path,label", file=file)
    ...     for clip in Dataset.open("demo").manifest.of_split("test"):
    ...         print(f'{clip.path},"{clip.label}"', file=file)
    >>> import_folder("demo/clips", "mine", csv="labels.csv").dataset
    Dataset('clips', 16 classes, Manifest(192 clips: train=139, val=15, test=38), root='mine')
    """
    check_fraction("val_fraction", val_fraction)
    source, root, csv = to_path(source), Path(root), Path(csv) if csv else None
    check_fraction("test_fraction", test_fraction)
    listed, missing = _from_csv(source, csv) if csv is not None else (_from_folders(source), ())
    if not listed and csv is not None and missing:
        raise DatasetError(
            f"{csv}: none of its {len(missing)} files is in {source}, such as {missing[0]}: paths are relative to that "
            "folder"
        )
    if not listed:
        raise DatasetError(
            f"no clips found in {source}: it needs one folder per class with video files, or a csv (--csv path,label)"
        )
    given = {split for _, split in listed if split}
    clips = [replace(clip, split=split or "train") for clip, split in listed]
    if "test" not in given:
        clips = split_off(clips, test_fraction, into="test", seed=seed)
    if "val" not in given:
        clips = split_off(clips, val_fraction, into="val", seed=seed)
    manifest = Manifest(clips)
    dataset = Dataset.create(
        root,
        manifest,
        name=name or _name_of(source),
        clip_folder=source,
        classes=manifest.labels,
        streams=streams,
        stores=stores,
        labelled_by=labelled_by,
        source={
            "folder": _name_of(source),
            "csv": csv.name if csv else None,
            "seed": seed,
            "val_fraction": val_fraction,
            "test_fraction": test_fraction,
            "missing": len(missing),
        },
    )
    write_missing(root, missing)
    return ImportReport(dataset, len(listed) + len(missing), missing)


def _from_folders(source: Path) -> list[tuple[Clip, str]]:
    """Return (clip, split or "") of each video, by the names of its folders."""
    videos = find_videos(source)
    tops = {path.parts[0] for path in videos.values() if len(path.parts) > 1}
    has_splits = bool(tops) and all(top.lower() in _SPLIT_FOLDERS for top in tops)
    listed = []
    for stem, path in videos.items():
        parts = path.parts[1:] if has_splits else path.parts
        if len(parts) < 2:
            raise DatasetError(
                f"{source / path} is not in a class folder: move it into one (its name is the label), or list the "
                "clips in a csv (--csv)"
            )
        split = _SPLIT_FOLDERS[path.parts[0].lower()] if has_splits else ""
        listed.append((Clip(stem, path.as_posix(), parts[0], split or "train", _group_of(stem)), split))
    return listed


def _from_csv(source: Path, csv: Path) -> tuple[list[tuple[Clip, str]], tuple[str, ...]]:
    """Return ((clip, split or "") of each listed file that exists, clip_ids of the others)."""
    rows = read_csv(csv)
    header = [column.strip().lower() for column in rows[0][1]] if rows else []
    if header[:2] != ["path", "label"] or not set(header[2:]) <= OPTIONAL or len(set(header)) != len(header):
        raise DatasetError(
            f"{csv}: the first line must be path,label[,split][,group][,audio], not '{','.join(header)}'"
        )
    listed, missing = [], []
    objects = list_files(source) if is_remote(source) else None
    for line, columns in rows[1:]:
        if len(columns) != len(header):
            raise DatasetError(f"{csv} line {line} has {len(columns)} columns instead of {len(header)}")
        row = dict(zip(header, (column.strip() for column in columns), strict=True))
        split = _SPLIT_FOLDERS.get(row.get("split", "").lower(), row.get("split", ""))
        if split and split not in SPLITS:
            raise DatasetError(f"{csv} line {line}: split '{split}' is not one of {', '.join(SPLITS)}")
        path, sound = Path(row["path"]), row.get("audio", "")
        stem = path.with_suffix("").as_posix()
        group = row.get("group") or _group_of(stem)
        try:
            clip = Clip(stem, path.as_posix(), row["label"], split or "train", group, sound)
        except DatasetError as error:
            raise DatasetError(f"{csv} line {line}: {error}") from None
        files = [split_address(address)[0] for address in clip.addresses]
        if all((source / file).is_file() if objects is None else file in objects for file in files):
            listed.append((clip, split))
        else:
            missing.append(clip.clip_id)
    return listed, tuple(missing)


def _name_of(source: Path) -> str:
    """Return the name of the folder or bucket."""
    return (source.name or source.drive) if is_remote(source) else source.resolve().name


def _group_of(stem: str) -> str:
    match = _YOUTUBE_NAME.fullmatch(Path(stem).name)
    return match[1] if match else stem

"""Make a dataset root from your own clips: from one folder per class, or from a csv that lists the clips."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from alphafuse.data.dataset import Dataset, streams_of
from alphafuse.data.manifest import SPLITS, Clip, Manifest
from alphafuse.data.splits import VAL_FRACTION, split_off
from alphafuse.data.streams import DEFAULT_STREAMS, GIVEN, Stream
from alphafuse.errors import DatasetError
from alphafuse.system.files import one_line, read_csv, require_commas, split_address, to_path
from alphafuse.system.remote import is_remote

from .importing import FolderFiles, ImportReport, check_fraction, find_files, is_sound, list_files, write_missing

TEST_FRACTION = 0.2  # of all clips, if the source has no test split
OPTIONAL = {"split", "group", "audio"}  # columns of a csv
_KINDS = 6  # kinds of skipped files in a sentence
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
    (`train/dog/a.mp4`, `test/dog/b.mp4`; val, valid and validation mean val); files of sound alone are clips too. If
    no clip has a picture, the root gets no stream that looks. Files that differ only in their suffix are clips of one
    group; the second keeps its suffix in its clip_id. With `csv` (header
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
        DatasetError: the source is not usable, the csv is wrong (its line is named), no clip is found, or all clips
            are sounds and no stream hears.

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
    files = FolderFiles({}, {}, {}) if csv is not None else find_files(source)
    listed, missing = _from_csv(source, csv) if csv is not None else (_from_folders(source, files), ())
    if not listed and csv is not None and missing:
        raise DatasetError(
            f"{csv}: none of its {len(missing)} files is in {source}, such as {missing[0]}: paths are relative to that "
            "folder"
        )
    if not listed:
        has = f" (it has {counted_files(files.skipped)})" if files.skipped else ""
        raise DatasetError(
            f"no clips found in {source}{has}: it needs one folder per class with files of video or sound, or a csv "
            "(--csv path,label)"
        )
    notes = []
    if files.same_name:
        second, first = next(iter(files.same_name.items()))
        notes.append(
            f"{len(files.same_name)} files have the name of another, such as {files.clips[second]} of "
            f"{files.clips[first]}: both are clips, of one group; leave one out with `alphafuse data drop '{second}' "
            f"--root {root}`"
        )
    if all(is_sound(clip.path) for clip, _ in listed):
        streams, left_out = _that_hear(streams_of(root) if streams is None else streams, source)
        if left_out:
            notes.append(f"no clip has a picture, so the root has no stream that looks ({', '.join(left_out)})")
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
    return ImportReport(dataset, len(listed) + len(missing), missing, notes=tuple(notes), skipped=files.skipped)


def _that_hear(streams: Sequence[Stream], source: Path) -> tuple[list[Stream], list[str]]:
    """Return the streams that can embed sounds, and the names of those that look at pictures."""
    kept = [stream for stream in streams if stream.medium == "audio" or stream.encoder == GIVEN]
    if not kept:
        raise DatasetError(
            f"all clips of {source} are sounds, and no stream hears: give one, such as --stream "
            f"{DEFAULT_STREAMS[-1].name}"
        )
    return kept, [stream.name for stream in streams if stream not in kept]


def counted_files(skipped: Mapping[str, int]) -> str:
    """Return numbers of files by kind in words: "3 .txt, 1 .zip"."""
    kinds = [f"{number} {kind}" for kind, number in skipped.items()]
    more = sum([*skipped.values()][_KINDS:])
    return ", ".join(kinds[:_KINDS]) + (f" and {more} others" if more else "")


def _from_folders(source: Path, files: FolderFiles) -> list[tuple[Clip, str]]:
    """Return (clip, split or "") of each file, by the names of its folders."""
    tops = {path.parts[0] for path in files.clips.values() if len(path.parts) > 1}
    has_splits = bool(tops) and all(top.lower() in _SPLIT_FOLDERS for top in tops)
    listed = []
    for clip_id, path in files.clips.items():
        parts = path.parts[1:] if has_splits else path.parts
        if len(parts) < 2:
            raise DatasetError(
                f"{source / path} is not in a class folder: move it into one (its name is the label), or list the "
                "clips in a csv (--csv)"
            )
        split = _SPLIT_FOLDERS[path.parts[0].lower()] if has_splits else ""
        group = _group_of(files.same_name.get(clip_id, clip_id))
        listed.append((Clip(clip_id, path.as_posix(), parts[0], split or "train", group), split))
    return listed


def _from_csv(source: Path, csv: Path) -> tuple[list[tuple[Clip, str]], tuple[str, ...]]:
    """Return ((clip, split or "") of each listed file that exists, clip_ids of the others)."""
    rows = read_csv(csv)
    require_commas(csv, rows[0][1] if rows else ())
    header = [column.strip().lower() for column in rows[0][1]] if rows else []
    if header[:2] != ["path", "label"] or not set(header[2:]) <= OPTIONAL or len(set(header)) != len(header):
        raise DatasetError(
            f"{csv} line {rows[0][0] if rows else 1}: the first line must be path,label[,split][,group][,audio], not "
            f"'{one_line(','.join(header), 200)}'"
        )
    listed, missing = [], []
    lines, stems = dict[str, int](), set[str]()  # path -> its line; paths without suffix
    objects = list_files(source) if is_remote(source) else None
    for line, columns in rows[1:]:
        if len(columns) != len(header):
            raise DatasetError(f"{csv} line {line} has {len(columns)} columns instead of {len(header)}")
        row = dict(zip(header, (column.strip() for column in columns), strict=True))
        split = _SPLIT_FOLDERS.get(row.get("split", "").lower(), row.get("split", ""))
        if split and split not in SPLITS:
            raise DatasetError(f"{csv} line {line}: split '{one_line(split, 40)}' is not one of {', '.join(SPLITS)}")
        for address in (row["path"], row.get("audio", "")):
            if "://" in address:
                raise DatasetError(
                    f"{csv} line {line}: '{one_line(address, 200)}' is a URL, and paths are relative to the clip "
                    "folder: give that folder's URL to `alphafuse data folder`"
                )
        path, sound = Path(row["path"]), row.get("audio", "")
        stem = path.with_suffix("").as_posix()
        group = row.get("group") or _group_of(stem)
        clip_id = path.as_posix() if stem in stems else stem
        stems.add(stem)
        before = lines.setdefault(path.as_posix(), line)
        if before != line:
            raise DatasetError(f"{csv} line {line}: '{one_line(path, 200)}' is listed in line {before} too: remove one")
        try:
            clip = Clip(clip_id, path.as_posix(), row["label"], split or "train", group, sound)
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

"""Make a dataset root from Kinetics-400, -600 or -700: the official csv files and a folder of clips.

Format of the csv files: a header, then one clip per line; only test lists may lack the first column.

    label,youtube_id,time_start,time_end,split[,is_cc]
    testifying,---QUuC4vJs,84,94,validate

Sources: the line above, with split train, validate or test, is in DeepMind's releases
(quoted in github.com/cvdfoundation/kinetics-dataset issues 12 and 31), the same with `is_cc` and split val in CVDF's
Kinetics-400, `youtube_id,time_start,time_end,split` without labels in Kinetics-600's test list
(github.com/activitynet/ActivityNet, Crawler/Kinetics/data/kinetics-600_test.csv). CVDF's own train.csv and val.csv of
Kinetics-600 are incomplete, as its readme says; its complete lists are .txt files, which this module doesn't read.

A clip's file is `{youtube_id}_{time_start:06d}_{time_end:06d}` with any video suffix
(1val3qlpldk_000026_000036.mp4 in CVDF's archives, kinetics-dataset issue 5).

Labels were given by eye: people who saw the clip without its sound answered "Can you see a human performing the
action?" (Kay et al. 2017, arXiv 1705.06950, section 3).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from alphafuse.data.dataset import require_labelled_by
from alphafuse.data.manifest import Clip
from alphafuse.data.splits import VAL_FRACTION, split_off, take_share
from alphafuse.data.streams import Stream
from alphafuse.errors import DatasetError, unknown
from alphafuse.system.files import iterate_csv, one_line, require_commas, to_path

from .importing import ImportReport, LeaveOut, check_fraction, create_root, leave_out_files, match_files

PUBLISHED = "eye"  # how labels were given
COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
OFFICIAL_SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
OFFICIAL_SIZES = (400, 600, 700)  # classes
_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECONDS = re.compile(r"(\d{1,6})(?:\.0*)?", re.ASCII)


class Row(NamedTuple):
    """One labelled line of a csv."""

    clip_id: str  # {youtube_id}_{time_start:06d}_{time_end:06d}, the stem of the clip's file
    label: str
    split: str
    group: str  # the source video: youtube_id


@dataclass(frozen=True)
class KineticsList:
    """Content of the csv files.

    Attributes:
        rows: labelled clips, each once, in the order of the files.
        unlabelled: number of lines without a label, which are useless for training and testing.
        repeated: number of lines that repeat an earlier one.
    """

    rows: list[Row]
    unlabelled: int
    repeated: int


def read_kinetics_csv(paths: Iterable[Path]) -> KineticsList:
    """Read csv files of any Kinetics, one line at a time.

    Raises:
        DatasetError: a file doesn't exist, is empty, or has another header; a line has a wrong number of columns, an
            invalid YouTube id, a time that isn't a whole number of seconds, or an unknown split; two lines put a clip
            into different classes or splits; no line of any file has a label.
    """
    rows: dict[str, Row] = {}
    held: dict[str, str] = {}  # each label is held once
    unlabelled = repeated = 0
    for path in paths:
        lines = iterate_csv(path)
        names = next(lines, (0, []))[1]
        require_commas(path, names)
        header = [name.strip().lower() for name in names]
        if not set(COLUMNS[1:]) <= set(header) or len(set(header)) < len(header):
            raise DatasetError(
                f"{one_line(path, 1000)}: the first line must name the columns {','.join(COLUMNS)} (a test list may "
                f"lack label), not '{one_line(','.join(names), 80)}': take the csv files of the official release"
            )
        id_at, start_at, end_at, split_at = (header.index(column) for column in COLUMNS[1:])
        label_at = header.index("label") if "label" in header else None
        before = len(rows) + unlabelled + repeated
        for line, columns in lines:
            where = f"{one_line(path, 1000)} line {line}"
            if len(columns) != len(header):
                raise DatasetError(f"{where} has {len(columns)} columns instead of {len(header)}")
            label = "" if label_at is None else columns[label_at].strip()
            if not label:
                unlabelled += 1
                continue
            youtube_id = columns[id_at].strip()
            if not _YOUTUBE_ID.fullmatch(youtube_id):
                raise DatasetError(
                    f"{where}: '{one_line(youtube_id, 80)}' is not a YouTube id (spreadsheets damage ids that start "
                    "with - or =): use the published file"
                )
            start, end = (_SECONDS.fullmatch(columns[at].strip()) for at in (start_at, end_at))
            if start is None or end is None:
                times = one_line(f"{columns[start_at]},{columns[end_at]}", 80)
                raise DatasetError(f"{where}: times '{times}' are not whole numbers of seconds")
            split = OFFICIAL_SPLITS.get(columns[split_at].strip().lower())
            if split is None:
                raise DatasetError(f"{where}: {unknown('split', one_line(columns[split_at], 40), OFFICIAL_SPLITS)}")
            clip_id = f"{youtube_id}_{int(start[1]):06d}_{int(end[1]):06d}"
            row = Row(clip_id, held.setdefault(label, label), split, youtube_id)
            earlier = rows.setdefault(clip_id, row)
            if earlier is not row:
                if earlier != row:
                    raise DatasetError(
                        f"{where}: clip {clip_id} is '{one_line(label, 80)}' in {split}, but an earlier line says "
                        f"'{one_line(earlier.label, 80)}' in {earlier.split}: remove one of the two"
                    )
                repeated += 1
        if len(rows) + unlabelled + repeated == before:
            raise DatasetError(f"{one_line(path, 1000)} lists no clips")
    if not rows:
        raise DatasetError(
            f"none of the {unlabelled} listed clips has a label: give the train and validation lists too "
            "(--csv train.csv --csv validate.csv)"
        )
    return KineticsList(list(rows.values()), unlabelled, repeated)


def import_kinetics(
    clips: str | Path,
    root: str | Path,
    *,
    csv: str | Path | Sequence[str | Path],
    leave_out: LeaveOut | None = None,
    subset: str | int | float | None = None,
    seed: int = 0,
    val_fraction: float = VAL_FRACTION,
    name: str | None = None,
    streams: Sequence[Stream] | None = None,
    stores: str | Path | None = None,
    labelled_by: str | None = None,
) -> ImportReport:
    """Make a dataset root from the official csv files of any Kinetics and a folder of its clips.

    Listed clips without a file are left out and written to the root's missing.csv. The classes are those that occur,
    sorted. If there are labelled test clips, the official splits are kept. Most test lists have no labels. Then test is
    the official validation list, on which results are usually reported, and val is taken from train by source
    video.

    Args:
        clips: folder with the files, nested or not, with any video suffix; or its URL (s3://, gs://, hf://, ...).
        root: folder to make.
        csv: one or more lists, for instance train.csv and validate.csv.
        leave_out: function: files -> {file to leave out: reason}, for instance `alphafuse.files_without_audio`. These
            clips are written to the root's left_out.csv. None = all clips stay.
        subset: None for all clips; a number of clips ("500") or a fraction ("0.1") of those found.
        seed: decides the subset and the validation split.
        val_fraction: share of the training clips for validation, in [0, 1), if val is taken from train.
        name: the dataset's name; by default kinetics400, kinetics600 or kinetics700 by the number of listed classes,
            "kinetics" for any other number.
        streams: recorded in dataset.json; None = as an existing root has them, else `DEFAULT_STREAMS`.
        stores: folder or URL for the embedding stores; None = as the existing root has it, or ROOT/stores.
        labelled_by: how labels were given: "ear", "eye" or "both"; None = as an existing root has it, else "eye".

    Raises:
        DatasetError: the csv files or the folder can't be used (see `read_kinetics_csv`), no listed clip has a file,
            or all are left out.

    >>> from pathlib import Path
    >>> from alphafuse import import_kinetics
    >>> Path("k600").mkdir()  # two clips, and lists of one line each
    >>> for split, name in {"train": "---QUuC4vJs", "validate": "U8IITDKEfTg"}.items():
    ...     lines = f"label,youtube_id,time_start,time_end,split\\ntestifying,{name},84,94,{split}\\n"
    ...     _ = Path(f"{split}.csv").write_text(lines)
    ...     Path("k600", f"{name}_000084_000094.mp4").touch()
    >>> report = import_kinetics("k600", "kinetics", csv=["train.csv", "validate.csv"])
    >>> report.dataset  # kinetics600 when the lists have 600 classes
    Dataset('kinetics', 1 classes, Manifest(2 clips: train=1, val=0, test=1), root='kinetics')
    >>> report.notes[0][:70]
    'test is the official validation list, because no test clip has a label'
    """
    check_fraction("val_fraction", val_fraction)
    require_labelled_by(labelled_by)  # before headers are read
    clips, root = to_path(clips), Path(root)
    paths = [Path(path) for path in ([csv] if isinstance(csv, str | Path) else csv)]
    if not paths:
        raise DatasetError("Kinetics' csv files are needed: pass --csv train.csv --csv validate.csv")
    listed = read_kinetics_csv(paths)
    classes = sorted({row.label for row in listed.rows})
    found, missing = match_files(listed.rows, clips)
    found, left_out = leave_out_files(found, clips, leave_out)
    found, notes = _assign_splits(found)
    if subset is not None:
        found = take_share(found, subset, seed=seed)
    if not any(clip.split == "val" for clip in found):
        found = split_off(found, val_fraction, into="val", seed=seed)
    notes += _count_oddities(listed, found)
    number = len(classes)
    return create_root(
        root,
        found,
        clip_folder=clips,
        name=name or (f"kinetics{number}" if number in OFFICIAL_SIZES else "kinetics"),
        classes=classes,
        source={
            "csv_sha256": {path.name: _sha256(path) for path in paths},
            "subset": subset,
            "seed": seed,
            "val_fraction": val_fraction,
            "unlabelled": listed.unlabelled,
        },
        listed=len(listed.rows),
        missing=missing,
        left_out=left_out,
        notes=notes,
        streams=streams,
        stores=stores,
        labelled_by=labelled_by,
        published=PUBLISHED,
    )


def _assign_splits(clips: list[Clip]) -> tuple[list[Clip], tuple[str, ...]]:
    """Return the clips with their splits in the root, and a sentence about the splits."""
    splits = {clip.split for clip in clips}
    if "test" in splits:
        about_val = "" if "val" in splits else "; val is taken from train by source video"
        return clips, (f"test is the official test list, with labels{about_val}",)
    if "val" not in splits:
        return clips, ()
    tested = [replace(clip, split="test") if clip.split == "val" else clip for clip in clips]
    return tested, (
        "test is the official validation list, because no test clip has a label; val is taken from train by source "
        "video",
    )


def _count_oddities(listed: KineticsList, clips: list[Clip]) -> tuple[str, ...]:
    """Return sentences about unused lines and source videos that are in several splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        splits[clip.group].add(clip.split)
    straddling = Counter(len(names) > 1 for names in splits.values())[True]
    sentences = (
        (listed.unlabelled, "listed clips have no label and are not used"),
        (listed.repeated, "lines repeat an earlier one and are not used"),
        (straddling, "source videos have clips in several splits: `alphafuse data audit` names them"),
    )
    return tuple(f"{count} {what}" for count, what in sentences if count)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

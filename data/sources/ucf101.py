"""Make a dataset root from UCF-101: the official split files and a folder of clips.

The lists (https://www.crcv.ucf.edu/data/UCF101.php, UCF101TrainTestSplits-RecognitionTask.zip, which holds a folder
ucfTrainTestlist) are text, one entry per line, some with CRLF. There are three splits of the same 13,320 clips:

    classInd.txt       1 ApplyEyeMakeup
    trainlist01.txt    ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
    testlist01.txt     ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi

They were read in a public copy (github.com/abosun/pytorch-action-master, ucfTrainTestlist/): 9,537 train and 3,783 test
clips in split 1, 9,586 and 3,734 in split 2, 9,624 and 3,696 in split 3; in each, train
has 1,818 groups and test 707 others. A group, such as `v_ApplyEyeMakeup_g08`, holds the clips cut from one video. Some
copies have the class index in the test lists too.

Labels count as given by eye: they name actions that are seen, and half of the classes were published without sound
(Soomro et al. 2012, arXiv 1212.0402).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from alphafuse.data.dataset import require_labelled_by
from alphafuse.data.splits import VAL_FRACTION, split_off, take_share
from alphafuse.data.streams import Stream
from alphafuse.errors import DatasetError, unknown
from alphafuse.system.files import MAX_LINE, one_line, to_path

from .importing import ImportReport, LeaveOut, check_fraction, create_root, leave_out_files, match_files

PUBLISHED = "eye"  # how labels were given
SPLITS = (1, 2, 3)
_CLASS = re.compile(r"(\d+)\s+(\S+)")
_CLIP = re.compile(r"([^\s/\\]+)/((v_\w+_g\d+)_c\d+)\.\w+(?:\s+(\d+))?", re.ASCII)


class Row(NamedTuple):
    """One line of a train or test list."""

    clip_id: str  # v_ApplyEyeMakeup_g08_c01, the stem of the clip's file
    label: str
    split: str
    group: str  # v_ApplyEyeMakeup_g08


def read_ucf101_splits(folder: Path, split: int = 1) -> tuple[tuple[str, ...], list[Row]]:
    """Read the official lists of one of the three splits.

    Args:
        folder: ucfTrainTestlist, with classInd.txt, trainlist0{split}.txt and testlist0{split}.txt.
        split: 1, 2 or 3.

    Returns:
        The classes in the order of classInd.txt; the train clips, then the test clips.

    Raises:
        DatasetError: a list is missing or empty; a line has another form, an unknown class or a wrong class index; a
            clip is listed twice; a group is in both lists.
    """
    if split not in SPLITS:
        raise DatasetError(f"split must be 1, 2 or 3, not {split}: UCF-101 has three official splits")
    classes = _read_classes(folder)
    names = {name.casefold(): name for name in classes}  # the archive's folder is HandstandPushups, the lists differ
    rows: dict[str, Row] = {}
    for listed_split in ("train", "test"):
        path = _list_of(folder, f"{listed_split}list0{split}.txt")
        before = {row.group: row.split for row in rows.values()}
        count = len(rows)
        for line, text in _lines(path):
            match = _CLIP.fullmatch(text)
            if match is None:
                raise DatasetError(
                    f"{path} line {line} is '{one_line(text, 80)}', not like "
                    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"
                )
            name, clip_id, group, index = match.groups()
            label = names.get(name.casefold())
            if label is None:
                raise DatasetError(f"{path} line {line}: {unknown('class', one_line(name, 80), classes)}")
            if index is not None and classes[label] != int(index):
                raise DatasetError(
                    f"{path} line {line} says class {index}, but classInd.txt numbers {label} {classes[label]}: "
                    "take both from the same archive"
                )
            if clip_id in rows and rows[clip_id].split == listed_split:
                raise DatasetError(f"{path} line {line}: clip {clip_id} is listed twice")
            if group in before:
                raise DatasetError(
                    f"{path} line {line}: group {group} is in the {before[group]} list too, and a video must "
                    "not be in both: take the official lists (UCF101TrainTestSplits-RecognitionTask.zip)"
                )
            rows[clip_id] = Row(clip_id, label, listed_split, group)
        if len(rows) == count:
            raise DatasetError(f"{path} lists no clips")
    return tuple(classes), list(rows.values())


def import_ucf101(
    clips: str | Path,
    root: str | Path,
    *,
    splits: str | Path,
    split: int = 1,
    leave_out: LeaveOut | None = None,
    subset: str | int | float | None = None,
    seed: int = 0,
    val_fraction: float = VAL_FRACTION,
    name: str = "ucf101",
    streams: Sequence[Stream] | None = None,
    stores: str | Path | None = None,
    labelled_by: str | None = None,
) -> ImportReport:
    """Make a dataset root from UCF-101's official split files and a folder of its clips.

    Listed clips without a file are left out and written to the root's missing.csv. The classes are those that occur,
    in official order. UCF-101 has no validation split: val is taken from the train clips by group.

    About half of the classes were published without sound. Such clips stay unless `leave_out` says otherwise:
    extraction records that they have no audio, and training drops them or feeds zeros (`TrainSettings.absent`).

    Args:
        clips: folder with the files, in class folders or not, with any video suffix (many convert the .avi files); or
            its URL (s3://, gs://, hf://, ...).
        root: folder to make.
        splits: the folder ucfTrainTestlist.
        split: number of the official split: 1, 2 or 3.
        leave_out: function: files -> {file to leave out: reason}, for instance `alphafuse.files_without_audio`. These
            clips are written to the root's left_out.csv. None = all clips stay.
        subset: None for all clips; a number of clips ("500") or a fraction ("0.1") of those found.
        seed: decides the subset and the validation split.
        val_fraction: share of the training clips for validation, in [0, 1).
        name, streams: recorded in dataset.json; None = as an existing root has them, else `DEFAULT_STREAMS`.
        stores: folder or URL for the embedding stores; None = as the existing root has it, or ROOT/stores.
        labelled_by: how labels were given: "ear", "eye" or "both"; None = as an existing root has it, else "eye".

    Raises:
        DatasetError: the lists or the folder can't be used (see `read_ucf101_splits`), no listed clip has a file, or
            all are left out.

    >>> from pathlib import Path
    >>> from alphafuse import import_ucf101
    >>> lists, clips = Path("ucfTrainTestlist"), Path("UCF-101")  # in this example, lists of one or two lines
    >>> lists.mkdir(), clips.mkdir()
    (None, None)
    >>> names = ["YoYo/v_YoYo_g08_c01.avi 1", "YoYo/v_YoYo_g09_c01.avi 1", "YoYo/v_YoYo_g01_c01.avi"]
    >>> for name, lines in {"classInd": ["1 YoYo"], "trainlist01": names[:2], "testlist01": names[2:]}.items():
    ...     _ = (lists / f"{name}.txt").write_text("\\n".join(lines))
    >>> (clips / "v_YoYo_g08_c01.avi").touch(), (clips / "v_YoYo_g01_c01.mp4").touch()
    (None, None)
    >>> report = import_ucf101(clips, "ucf101", splits=lists)
    >>> report.dataset
    Dataset('ucf101', 1 classes, Manifest(2 clips: train=1, val=0, test=1), root='ucf101')
    >>> report.missing
    ('v_YoYo_g09_c01',)
    """
    check_fraction("val_fraction", val_fraction)
    require_labelled_by(labelled_by)  # before headers are read
    clips, root, splits = to_path(clips), Path(root), Path(splits)
    classes, rows = read_ucf101_splits(splits, split)
    found, missing = match_files(rows, clips)
    found, left_out = leave_out_files(found, clips, leave_out)
    if subset is not None:
        found = take_share(found, subset, seed=seed)
    found = split_off(found, val_fraction, into="val", seed=seed)
    lists = ("classInd.txt", f"trainlist0{split}.txt", f"testlist0{split}.txt")
    return create_root(
        root,
        found,
        clip_folder=clips,
        name=name,
        classes=classes,
        source={
            "lists_sha256": {name: hashlib.sha256((splits / name).read_bytes()).hexdigest() for name in lists},
            "official_split": split,
            "subset": subset,
            "seed": seed,
            "val_fraction": val_fraction,
        },
        listed=len(rows),
        missing=missing,
        left_out=left_out,
        notes=(f"test is official split {split}; val is taken from train by group, because there is no official one",),
        streams=streams,
        stores=stores,
        labelled_by=labelled_by,
        published=PUBLISHED,
    )


def _read_classes(folder: Path) -> dict[str, int]:
    """Read class name -> number, in the order of classInd.txt."""
    path = _list_of(folder, "classInd.txt")
    classes: dict[str, int] = {}
    for line, text in _lines(path):
        match = _CLASS.fullmatch(text)
        if match is None:
            raise DatasetError(f"{path} line {line} is '{one_line(text, 80)}', not like 1 ApplyEyeMakeup")
        if match[2] in classes or int(match[1]) in classes.values():
            raise DatasetError(f"{path} line {line}: class {one_line(text, 80)} is listed twice")
        classes[match[2]] = int(match[1])
    if not classes:
        raise DatasetError(f"{path} lists no classes")
    return classes


def _list_of(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise DatasetError(
            f"no {name} in {one_line(folder, 1000)}: --splits is the folder ucfTrainTestlist of "
            "UCF101TrainTestSplits-RecognitionTask.zip"
        )
    return folder / name


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, stripped text) of the lines that aren't blank, in bounded memory."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            number = 0
            while text := file.readline(MAX_LINE + 1):
                number += 1
                if len(text) > MAX_LINE:
                    raise DatasetError(f"{path} line {number} is longer than {MAX_LINE} characters")
                if text.strip():
                    yield number, text.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} can't be read: {one_line(error)}") from None

"""Make a dataset root from VGGSound: its csv and a folder of clips.

Format of the csv (https://www.robots.ox.ac.uk/~vgg/data/vggsound/): no header, four columns
`youtube_id, start_seconds, label, train|test`; labels with commas are quoted. A clip's file is named
`{youtube_id}_{start_seconds:06d}` with any video suffix and lasts 10 s.

Labels were given by both senses: in its making, image classifiers verified the picture, an audio classifier the sound
(Chen et al. 2020, arXiv 2004.14368, section 2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alphafuse.data.dataset import streams_of
from alphafuse.data.manifest import Clip
from alphafuse.data.splits import VAL_FRACTION, split_off, take_share
from alphafuse.data.streams import Stream
from alphafuse.errors import DatasetError, unknown
from alphafuse.system.files import read_csv, require_commas, to_path

from .importing import ImportReport, check_fraction, create_root, match_files

PUBLISHED = "both"  # how labels were given
SHIPPED = Path(__file__).parent / "vggsound"


@dataclass(frozen=True)
class Row:
    """One line of VGGSound's csv."""

    youtube_id: str
    start_seconds: int
    label: str
    split: str

    @property
    def clip_id(self) -> str:
        """`{youtube_id}_{start_seconds:06d}`, the stem of the clip's file."""
        return f"{self.youtube_id}_{self.start_seconds:06d}"

    @property
    def group(self) -> str:
        """Its source video."""
        return self.youtube_id


def official_classes() -> tuple[str, ...]:
    """Return VGGSound's 309 labels in the order of its class list."""
    return tuple(row[0] for _, row in read_csv(SHIPPED / "classes.csv"))


def read_vggsound_csv(path: Path, *, classes: Iterable[str] | None = None) -> list[Row]:
    """Read VGGSound's csv.

    Args:
        path: the csv, headerless.
        classes: labels to accept; by default the 309 official ones.

    Raises:
        DatasetError: the file doesn't exist or is empty; a line doesn't have four columns, or has a start that isn't a
            whole number of seconds, an unknown label, or a split other than train and test; a clip is listed twice.
    """
    known = dict.fromkeys(official_classes() if classes is None else classes)
    rows: dict[str, Row] = {}
    for line, columns in read_csv(path):
        if len(columns) != 4:
            require_commas(path, columns)
            raise DatasetError(
                f"{path} line {line} has {len(columns)} columns instead of 4 (youtube_id, start_seconds, label, "
                f"train|test; a label with commas needs quotes): {','.join(columns)[:80]}"
            )
        youtube_id, start, label, split = (column.strip() for column in columns)
        if not (start.isascii() and start.isdigit()):
            raise DatasetError(f"{path} line {line}: start '{start}' is not a whole number of seconds")
        if label not in known:
            raise DatasetError(f"{path} line {line}: {unknown('label', label, known)}")
        if split not in ("train", "test"):
            raise DatasetError(f"{path} line {line}: {unknown('split', split, ('train', 'test'))}")
        row = Row(youtube_id, int(start), label, split)
        if row.clip_id in rows:
            raise DatasetError(f"{path} line {line}: clip {row.clip_id} is listed twice")
        rows[row.clip_id] = row
    if not rows:
        raise DatasetError(f"{path} lists no clips")
    return list(rows.values())


def paper_rows() -> list[Row]:
    """Return the seed paper's 130 clips with its split (100 train, 10 val, 20 test), as listed by its authors."""
    return [Row(row[0], int(row[1]), row[2], row[3]) for _, row in read_csv(SHIPPED / "paper_split.csv")[1:]]


def import_vggsound(
    csv: str | Path | None,
    clips: str | Path,
    root: str | Path,
    *,
    subset: str | int | float | None = None,
    seed: int = 0,
    val_fraction: float = VAL_FRACTION,
    name: str = "vggsound",
    classes: Iterable[str] | None = None,
    streams: Sequence[Stream] | None = None,
    stores: str | Path | None = None,
    labelled_by: str | None = None,
) -> ImportReport:
    """Make a dataset root from VGGSound's csv and a folder of clips.

    Listed clips without a file are left out and written to the root's missing.csv. The classes are those that occur,
    in official order. Val is taken from the official train clips by source video.

    Args:
        csv: VGGSound's csv; may be None with `subset="paper"`, whose list is part of the package.
        clips: folder with the files, nested or not, or its URL (s3://, gs://, hf://, ...).
        root: folder to make.
        subset: None for all clips; "paper" for the seed paper's 130 clips in its own train/val/test split; a number of
            clips ("500") or a fraction ("0.1") of those found, drawn by source video, in proportion to labels.
        seed: decides the subset and the validation split.
        val_fraction: share of the training clips for validation, in [0, 1).
        name, streams: recorded in dataset.json; None = as an existing root has them, else
            `DEFAULT_STREAMS`. With protocol "notebook" only
            the last clip of each source video stays in a split, as in the authors' code (the paper's 130 clips: 113).
        stores: folder or URL for the embedding stores; None = as the existing root has it, or ROOT/stores.
        labelled_by: how labels were given: "ear", "eye" or "both"; None = as an existing root has it, else "both".
        classes: labels to accept; by default the 309 official ones.

    Raises:
        DatasetError: the csv or folder can't be used (see `read_vggsound_csv`), or no listed clip has a file.

    >>> from alphafuse import Dataset, import_vggsound
    >>> names = Dataset.open("demo").classes  # for the real VGGSound, omit `classes`
    >>> report = import_vggsound("demo/vggsound.csv", "demo/clips", "tenth", subset=0.1, classes=names)
    >>> report.dataset
    Dataset('vggsound', 16 classes, Manifest(45 clips: train=23, val=3, test=19), root='tenth')
    >>> report.listed, len(report.missing)
    (448, 0)
    """
    check_fraction("val_fraction", val_fraction)
    csv, clips, root = Path(csv) if csv else None, to_path(clips), Path(root)
    known = tuple(official_classes() if classes is None else classes)
    if subset == "paper":
        rows = paper_rows()
    elif csv is None:
        raise DatasetError("VGGSound's csv is needed: pass --csv vggsound.csv (only --subset paper works without it)")
    else:
        rows = read_vggsound_csv(csv, classes=known)
    found, missing = match_files(rows, clips)
    if subset != "paper":
        if subset is not None:
            found = take_share(found, subset, seed=seed, others="'paper' nor ")
        found = split_off(found, val_fraction, into="val", seed=seed)
    if any(stream.protocol == "notebook" for stream in streams or streams_of(root)):
        found = last_of_each_video(found)
    return create_root(
        root,
        found,
        clip_folder=clips,
        name=name,
        classes=known,
        source={
            "csv": csv.name if csv else "paper_split.csv",
            "csv_sha256": hashlib.sha256(csv.read_bytes()).hexdigest() if csv else None,
            "subset": subset,
            "seed": seed,
            "val_fraction": val_fraction,
        },
        listed=len(rows),
        missing=missing,
        streams=streams,
        stores=stores,
        labelled_by=labelled_by,
        published=PUBLISHED,
    )


def last_of_each_video(clips: Sequence[Clip]) -> list[Clip]:
    """Return the last clip of each source video in each split, because the paper's authors named clips by video id."""
    last = {(clip.split, clip.group): clip.clip_id for clip in clips}
    kept = set(last.values())
    return [clip for clip in clips if clip.clip_id in kept]

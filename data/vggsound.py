"""VGGSound: its csv and a folder of its clips -> a dataset root.

Format of the csv (https://www.robots.ox.ac.uk/~vgg/data/vggsound/): no header, four columns
`youtube_id, start_seconds, label, train|test`; labels with commas are quoted. A clip's file is named
`{youtube_id}_{start_seconds:06d}` with any video suffix and lasts 10 s.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alphafuse.errors import DatasetError, unknown

from .dataset import DEFAULT_AST, DEFAULT_PROTOCOL, DEFAULT_TIMESFORMER, Dataset
from .files import read_csv
from .manifest import Clip, Manifest
from .sources import VAL_FRACTION, ImportReport, check_fraction, find_videos, write_missing
from .splits import carve_split, take_subset

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


def official_classes() -> tuple[str, ...]:
    """VGGSound's 309 labels in the order of its class list."""
    return tuple(row[0] for _, row in read_csv(SHIPPED / "classes.csv"))


def read_vggsound_csv(path: Path, *, classes: Iterable[str] | None = None) -> list[Row]:
    """Read VGGSound's csv.

    Args:
        path: the csv, headerless.
        classes: labels to accept; by default the 309 official ones.

    Raises:
        DatasetError: no such file; a line without exactly four columns, with a start that is no whole number of
            seconds, an unknown label or a split other than train and test; a clip listed twice; an empty file.
    """
    known = dict.fromkeys(official_classes() if classes is None else classes)
    rows: dict[str, Row] = {}
    for line, columns in read_csv(path):
        if len(columns) != 4:
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
    """The seed paper's 130 clips with its split (100 train, 10 val, 20 test), as its authors' files list them."""
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
    timesformer: str = DEFAULT_TIMESFORMER,
    ast: str = DEFAULT_AST,
    protocol: str = DEFAULT_PROTOCOL,
) -> ImportReport:
    """Make a dataset root from VGGSound's csv and a folder of clips.

    Listed clips without a file are left out and written to the root's missing.csv. The classes are those that occur,
    in official order. A validation split is carved out of the official train clips by source video.

    Args:
        csv: VGGSound's csv; may be None with `subset="paper"`, whose split is shipped.
        clips: folder with the files, nested or not.
        root: folder to make.
        subset: None for all clips; "paper" for the seed paper's 130 clips in its own train/val/test split; a number of
            clips ("500") or a fraction ("0.1") of those found, drawn by source video, in proportion to labels.
        seed: decides the subset and the validation split.
        val_fraction: share of the training clips for validation, in [0, 1).
        name, timesformer, ast, protocol: recorded in dataset.json as the root's defaults. With protocol "notebook" only
            the last clip of each source video stays in a split, as in the authors' code (the paper's 130 clips: 113).
        classes: labels to accept; by default the 309 official ones.

    Raises:
        DatasetError: the csv or folder can't be used (see `read_vggsound_csv`), or no listed clip has a file.
    """
    check_fraction("val_fraction", val_fraction)
    csv, clips, root = Path(csv) if csv else None, Path(clips), Path(root)
    known = tuple(official_classes() if classes is None else classes)
    if subset == "paper":
        rows = paper_rows()
    elif csv is None:
        raise DatasetError("VGGSound's csv is needed: pass --csv vggsound.csv (only --subset paper does without)")
    else:
        rows = read_vggsound_csv(csv, classes=known)
    by_stem = {Path(stem).name: path for stem, path in reversed(find_videos(clips).items())}
    found = [
        Clip(row.clip_id, by_stem[row.clip_id].as_posix(), row.label, row.split, row.youtube_id)
        for row in rows
        if row.clip_id in by_stem
    ]
    missing = tuple(row.clip_id for row in rows if row.clip_id not in by_stem)
    if not found:
        raise DatasetError(
            f"none of the {len(rows)} listed clips is in {clips}: files must be named like {rows[0].clip_id}.mp4"
        )
    if subset != "paper":
        if subset is not None:
            found = _apply_subset(found, str(subset), seed=seed)
        found = carve_split(found, val_fraction, into="val", seed=seed)
    if protocol == "notebook":
        found = last_of_each_video(found)
    occurring = {clip.label for clip in found}
    dataset = Dataset.create(
        root,
        Manifest(found),
        name=name,
        clip_folder=clips,
        classes=tuple(label for label in known if label in occurring),
        timesformer=timesformer,
        ast=ast,
        protocol=protocol,
        source={
            "csv": csv.name if csv else "paper_split.csv",
            "csv_sha256": hashlib.sha256(csv.read_bytes()).hexdigest() if csv else None,
            "subset": subset,
            "seed": seed,
            "val_fraction": val_fraction,
            "listed": len(rows),
            "missing": len(missing),
        },
    )
    write_missing(root, missing)
    return ImportReport(dataset, len(rows), missing)


def last_of_each_video(clips: Sequence[Clip]) -> list[Clip]:
    """The last clip of each source video within each split: the paper's authors stored clips under their video's id."""
    last = {(clip.split, clip.group): clip.clip_id for clip in clips}
    kept = set(last.values())
    return [clip for clip in clips if clip.clip_id in kept]


def _apply_subset(clips: list[Clip], subset: str, *, seed: int) -> list[Clip]:
    """Draw a number or fraction of the clips, in proportion to the official splits."""
    try:
        share = int(subset) / len(clips) if subset.isdigit() else float(subset)
    except ValueError:
        share = 0.0
    if subset.isdigit() and int(subset) > len(clips):
        raise DatasetError(f"--subset {subset} asks for more than the {len(clips)} clips found: leave it out for all")
    if not 0 < share <= 1:
        raise DatasetError(
            f"--subset '{subset}' is neither 'paper' nor a number of clips nor a fraction above 0 and up to 1"
        )
    wanted = round(share * len(clips))
    sizes = Counter(clip.split for clip in clips)
    test_count = round(share * sizes["test"])
    taken = []
    for split, count in (("train", wanted - test_count), ("test", test_count)):
        taken += take_subset([clip for clip in clips if clip.split == split], count, seed=seed)
    kept = {clip.clip_id for clip in taken}
    return [clip for clip in clips if clip.clip_id in kept]

"""Embeddings that a user brings: a parquet file of vectors makes a root, or adds streams to one.

A row is a clip: clip_id, and for a new root label, and if known split and group; each column of lists of numbers is a
stream of that name, whose encoder is "given". Extraction leaves such streams alone; all of stage two uses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import STORES, Dataset, require_labelled_by
from alphafuse.data.embeddings import Embeddings, Failure, finite_rows
from alphafuse.data.manifest import SPLITS, Clip, Clips, Manifest
from alphafuse.data.splits import VAL_FRACTION, split_off
from alphafuse.data.store.store import EmbeddingStore, recipe_differences
from alphafuse.data.streams import DEFAULT_STREAMS, GIVEN, MEDIUM_WORDS, Stream, medium_of_word, merged, require_name
from alphafuse.errors import DatasetError, RecipeMismatchError, unknown
from alphafuse.system.files import one_line

from .folder import TEST_FRACTION
from .importing import check_fraction
from .parquet_columns import ROWS_AT_ONCE, VectorFile

NO_FILE = "-"  # address of a clip's file in a root that has no clips
OTHER_PLACE = "give the column another name, or import the file into another --root"
_SPLIT_NAMES = {"valid": "val", "validation": "val"}


@dataclass(frozen=True)
class GivenReport:
    """Result of `import_embeddings`.

    Attributes:
        dataset: the root, opened.
        present, absent: stream -> clips of the root that have a vector, and that have none.
        unknown: clip_ids of the file that the root lacks; their vectors are left out.
        notes: further information, one sentence each.

    >>> from alphafuse import Dataset, GivenReport
    >>> GivenReport(Dataset.open("demo"), {"clap": 440}, {"clap": 8}, (), ()).absent
    {'clap': 8}
    """

    dataset: Dataset
    present: Mapping[str, int]
    absent: Mapping[str, int]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def import_embeddings(
    file: str | Path,
    root: str | Path,
    *,
    media: Mapping[str, str] | None = None,
    name: str | None = None,
    val_fraction: float = VAL_FRACTION,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
    labelled_by: str | None = None,
) -> GivenReport:
    """Make a root of a parquet file of vectors, or add its streams to a root, by clip_id. A repeated call adds nothing.

    A null vector, one that isn't finite and a clip that the file lacks are recorded as absent. In a root that exists,
    its labels and splits count; a new one gets those of the file, and splits that the file lacks as by
    `import_folder`: by group, by default the clip itself.

    Args:
        file: parquet with the columns clip_id, label, split, group and one column of lists of numbers per stream.
        root: folder of the root.
        media: stream -> "video" or "audio"; needed unless the stream's name tells ("audio-clap", "video", "ast").
        name: name of a new dataset; by default that of the file.
        val_fraction, test_fraction, seed: for splits that a new root must make.
        labelled_by: how labels were given: "ear", "eye" or "both"; None = as an existing root has it, else unknown.

    Raises:
        DatasetError: pyarrow isn't installed, the file can't be used, or a medium isn't known.
        RecipeMismatchError: the root has a stream of this name, of another file or of an encoder.

    >>> from alphafuse import Dataset, import_embeddings
    >>> store = Dataset.open("demo").store("train")
    >>> file = store.export("own.parquet")
    >>> report = import_embeddings("own.parquet", "own-root")
    >>> report.dataset.streams
    (Stream(timesformer=given), Stream(ast=given))
    >>> report.dataset.manifest
    Manifest(230 clips: train=166, val=18, test=46)
    """
    require_labelled_by(labelled_by)  # before anything is written
    table, root = VectorFile(Path(file)), Path(root)
    old = Dataset.open(root) if (root / "dataset.json").is_file() else None
    streams = _streams_of(table, media or {}, old)
    if old is None:
        clips = _manifest(table, val_fraction, test_fraction, seed)
        stores = {split: EmbeddingStore(root / STORES / split, root=root) for split in SPLITS}
    else:
        clips, stores = old.manifest, {split: old.store(split) for split in SPLITS}
    ids = set(clips.clip_ids)
    strange = tuple(clip_id for clip_id in table.clip_ids if clip_id not in ids)
    if len(strange) == len(table.clip_ids):
        raise DatasetError(f"none of the clips of {table.file} is in {root}, which has clips like '{clips[0].clip_id}'")
    dims = {name: table.dim(name) for name in table.names}
    recipes = {name: {"encoder": GIVEN, "file_sha256": table.sha256, "dim": dim} for name, dim in dims.items()}
    for store in stores.values():
        _require_same(store, recipes)
    writers = [_Writer(store, clips.of_split(split), recipes, streams, table) for split, store in stores.items()]
    for clip_ids, features in table.blocks(dims):
        for writer in writers:
            writer.write(clip_ids, features, f"no vector in {table.file.name}")
    for writer in writers:
        writer.write_missing(f"not in {table.file.name}")
    if old is None:  # after the stores, so that a root appears whole
        dataset = Dataset.create(
            root,
            clips,
            name=name or table.file.stem,
            clip_folder=root / "clips",  # there is none
            classes=clips.labels,
            streams=streams,
            source={"embeddings": table.file.name, "file_sha256": table.sha256, "seed": seed},
            labelled_by=labelled_by,
        )
    else:
        several = merged(old.streams, streams)
        dataset = old if set(several) == set(old.streams) else old.with_streams(several)
        dataset = dataset if labelled_by is None else dataset.with_labelled_by(labelled_by)
    return _report(dataset, table, strange)


def _streams_of(table: VectorFile, media: Mapping[str, str], old: Dataset | None) -> list[Stream]:
    """Return the streams of a file; a medium that isn't given is known, or a word in the name."""
    for name in media:
        if name not in table.names:
            raise DatasetError(f"{table.file}: {unknown('stream', name, table.names)}")
    own = {stream.name: stream for stream in (old.streams if old else ())}
    known = {stream.name: stream.medium for stream in (*DEFAULT_STREAMS, *own.values())}
    known |= {name: medium_of_word(medium) for name, medium in media.items()}
    streams = []
    for name in table.names:
        try:
            require_name(name)
        except DatasetError as error:
            raise DatasetError(f"{table.file}: column {error}, and rename the column") from None
        words = sorted({MEDIUM_WORDS[word] for word in name.split("-") if word in MEDIUM_WORDS})
        if name not in known and len(words) != 1:
            raise DatasetError(f"say what stream {name} of {table.file} embeds: --medium {name}=sight (or sound)")
        streams.append(Stream(name, GIVEN, known.get(name) or words[0]))
        if old and name in own and own[name].encoder != GIVEN and any(name in old.store(s).recipes() for s in SPLITS):
            raise RecipeMismatchError(
                f"{old.root} has embeddings of stream {name} from {own[name].encoder}: {OTHER_PLACE}"
            )
    return streams


def _require_same(store: EmbeddingStore, recipes: Mapping[str, Mapping[str, Any]]) -> None:
    stored = store.recipes()
    for name, recipe in recipes.items():
        difference = recipe_differences(stored.get(name, recipe), recipe)
        if difference:
            raise RecipeMismatchError(
                f"{store.folder} has other embeddings of stream {name}, {difference}: {OTHER_PLACE}"
            )


def _manifest(table: VectorFile, val_fraction: float, test_fraction: float, seed: int) -> Manifest:
    """Return the clips of a new root; splits that the file lacks are made."""
    check_fraction("val_fraction", val_fraction)
    check_fraction("test_fraction", test_fraction)
    ids = table.clip_ids
    splits = [_SPLIT_NAMES.get(split, split) for split in table.texts.get("split", ["train"] * len(ids))]
    rows = zip(ids, table.require("label"), splits, table.texts.get("group", ids), strict=True)
    try:
        clips = [Clip(clip_id, NO_FILE, label, split, group) for clip_id, label, split, group in rows]
    except DatasetError as error:
        raise DatasetError(f"{table.file}: {error}") from None
    if "test" not in splits:
        clips = split_off(clips, test_fraction, into="test", seed=seed)
    return Manifest(clips if "val" in splits else split_off(clips, val_fraction, into="val", seed=seed))


class _Writer:
    """Writes the vectors of the clips that a split's store lacks."""

    def __init__(
        self,
        store: EmbeddingStore,
        clips: Clips,
        recipes: Mapping[str, Mapping[str, Any]],
        streams: Sequence[Stream],
        table: VectorFile,
    ) -> None:
        done = store.done(streams=recipes)
        self._left = {clip.clip_id: clip for clip in clips if clip.clip_id not in done}
        self._store, self._recipes = store, recipes
        encoders = {one.name: {"name": GIVEN, "revision": "", "medium": one.medium, "options": {}} for one in streams}
        self._provenance = {"file": table.file.name, "encoders": encoders}

    def write(self, clip_ids: Sequence[str], features: Mapping[str, np.ndarray], reason: str) -> None:
        """Append the rows of clips that are left; a row that isn't finite is recorded with the reason."""
        rows = [row for row, clip_id in enumerate(clip_ids) if clip_id in self._left]
        clips = [self._left.pop(clip_ids[row]) for row in rows]
        if not clips:
            return
        mine, failures = {name: matrix[rows] for name, matrix in features.items()}, []
        for name, matrix in mine.items():
            absent = ~finite_rows(matrix)
            matrix[absent] = np.nan
            failures += [Failure(clips[row].clip_id, name, reason) for row in np.flatnonzero(absent)]
        self._store.write(
            Embeddings(
                clip_ids=tuple(clip.clip_id for clip in clips),
                labels=tuple(clip.label for clip in clips),
                groups=tuple(clip.group for clip in clips),
                features=mine,
                failures=tuple(failures),
                recipes=self._recipes,
            ),
            provenance={"created": datetime.now(UTC).isoformat(timespec="seconds"), **self._provenance},
        )

    def write_missing(self, reason: str) -> None:
        """Record the clips that are left as absent."""
        while self._left:
            some = [*self._left][:ROWS_AT_ONCE]
            shapes = {name: (len(some), recipe["dim"]) for name, recipe in self._recipes.items()}
            self.write(some, {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}, reason)


def _report(dataset: Dataset, table: VectorFile, strange: tuple[str, ...]) -> GivenReport:
    present = dict.fromkeys(table.names, 0)
    for split in SPLITS:
        clips = dataset.manifest.of_split(split)
        stored = dataset.store(split).open_rows(clips) if clips else None
        if stored is not None:
            present = {name: count + int(stored.present(name).sum()) for name, count in present.items()}
    notes = [f"columns that aren't used: {one_line(', '.join(table.ignored), 200)}"] if table.ignored else []
    label_of = dict(zip(table.clip_ids, table.texts.get("label", ()), strict=False))
    other = sum(label_of.get(clip.clip_id, clip.label) != clip.label for clip in dataset.manifest)
    if other:
        notes.append(f"{other} clips have another label in {table.file.name}: those of the root count")
    absent = {name: len(dataset.manifest) - count for name, count in present.items()}
    return GivenReport(dataset, present, absent, strange, tuple(notes))

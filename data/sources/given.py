"""Embeddings that a user brings: a parquet file of vectors makes a root, or adds streams to one.

A row is a clip: clip_id, and for a new root label, and if known split and group; each column of lists of numbers is a
stream of that name, whose encoder is "given". Extraction leaves such streams alone; all of stage two uses them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import STORES, Dataset
from alphafuse.data.embeddings import Embeddings, Failure, finite_rows
from alphafuse.data.manifest import SPLITS, Clip, Clips, Manifest
from alphafuse.data.splits import VAL_FRACTION, split_off
from alphafuse.data.store.store import EmbeddingStore, recipe_differences
from alphafuse.data.streams import DEFAULT_STREAMS, GIVEN, MEDIA, Stream, in_order, require_name
from alphafuse.errors import DatasetError, RecipeMismatchError, unknown
from alphafuse.system.files import one_line

from .folder import TEST_FRACTION
from .importing import check_fraction

ROWS_AT_ONCE = 20_000  # of a shard: 61 MB of one 768-d stream
TEXTS = ("clip_id", "label", "split", "group")
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
    Manifest(230 clips: train=165, val=19, test=46)
    """
    file, root = Path(file), Path(root)
    parquet = _open(file)
    names = _streams_in(parquet, file)
    texts = {column: _texts(parquet, file, column) for column in TEXTS if column in parquet.schema_arrow.names}
    row_of = {clip_id: row for row, clip_id in enumerate(_required(texts, "clip_id", file))}
    if len(row_of) < len(texts["clip_id"]):
        twice = next(one for row, one in enumerate(texts["clip_id"]) if row_of[one] != row)
        raise DatasetError(f"{file}: clip_id '{one_line(twice, 80)}' occurs twice: give each clip one row")
    old = Dataset.open(root) if (root / "dataset.json").is_file() else None
    streams = [_stream(column, media or {}, old, file) for column in names]
    for column in media or {}:
        if column not in names:
            raise DatasetError(f"{file}: {unknown('stream', column, names)}")
    if old is None:
        clips = Manifest(_listed(file, texts, val_fraction, test_fraction, seed))
        stores = {split: EmbeddingStore(root / STORES / split, root=root) for split in SPLITS}
    else:
        clips, stores = old.manifest, {split: old.store(split) for split in SPLITS}
    ids = set(clips.clip_ids)
    strange = tuple(clip_id for clip_id in row_of if clip_id not in ids)
    if len(strange) == len(row_of):
        raise DatasetError(
            f"none of the clip_ids of {file}, such as '{one_line(strange[0], 80) if strange else ''}', is in {root}"
        )
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    recipes = {one: {"encoder": GIVEN, "file_sha256": sha256, "dim": _dim(parquet, file, one)} for one in names}
    for store in stores.values():
        _require_same(store, recipes)
    left = {split: _Writer(store, clips.of_split(split), recipes, streams, file) for split, store in stores.items()}
    for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=["clip_id", *names]):
        batch_ids = _as_texts(batch.column("clip_id"))
        features = {one: _matrix(batch.column(one), recipes[one]["dim"], file, batch_ids) for one in names}
        for writer in left.values():
            writer.write(batch_ids, features, f"no vector in {file.name}")
    for writer in left.values():
        writer.write_missing(f"not in {file.name}")
    if old is None:
        dataset = Dataset.create(
            root,
            clips,
            name=name or file.stem,
            clip_folder=root / "clips",  # there is none
            classes=clips.labels,
            streams=streams,
            source={"embeddings": file.name, "file_sha256": sha256, "seed": seed},
        )
    else:
        merged = {stream.name: stream for stream in (*old.streams, *streams)}
        dataset = old if set(merged.values()) == set(old.streams) else old.with_streams([*merged.values()])
    return _report(dataset, names, strange, parquet, texts, file)


def _open(file: Path) -> Any:
    """Return a parquet file, opened."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DatasetError("reading parquet needs pyarrow: run `pip install 'alphafuse[parquet]'`") from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except FileNotFoundError:
        raise DatasetError(f"no such file: {file}") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise DatasetError(f"{file} can't be read as parquet: {one_line(error)}") from None


def _streams_in(parquet: Any, file: Path) -> list[str]:
    """Return the names of the columns that hold vectors."""
    names = [field.name for field in parquet.schema_arrow if _is_vector(field.type)]
    if not names:
        raise DatasetError(f"{file} has no column of lists of numbers: each such column is a stream of embeddings")
    for name in names:
        try:
            require_name(name)
        except DatasetError as error:
            raise DatasetError(f"{file}: column {error}, and rename the column") from None
    return in_order(names)


def _is_vector(kind: Any) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def _required(texts: Mapping[str, list[str]], column: str, file: Path) -> list[str]:
    if column not in texts:
        raise DatasetError(f"{file} has no column {column}: it has a row per clip, with clip_id and label")
    return texts[column]


def _texts(parquet: Any, file: Path, column: str) -> list[str]:
    kind = parquet.schema_arrow.field(column).type
    if str(kind).startswith(("list", "large_list", "fixed_size_list", "struct", "map", "float", "double")):
        raise DatasetError(f"{file}: column {column} holds {one_line(kind, 60)}: make it text")
    return [one for batch in parquet.iter_batches(columns=[column]) for one in _as_texts(batch.column(column))]


def _as_texts(column: Any) -> list[str]:
    return [one or "" for one in column.cast("string").to_pylist()]


def _listed(
    file: Path, texts: Mapping[str, list[str]], val_fraction: float, test_fraction: float, seed: int
) -> list[Clip]:
    """Return the clips of a new root; splits that the file lacks are made."""
    check_fraction("val_fraction", val_fraction)
    check_fraction("test_fraction", test_fraction)
    ids, labels = texts["clip_id"], _required(texts, "label", file)
    splits = [_SPLIT_NAMES.get(split, split) for split in texts.get("split", ["train"] * len(ids))]
    try:
        clips = [Clip(*row) for row in zip(ids, ids, labels, splits, texts.get("group", ids), strict=True)]
    except DatasetError as error:
        raise DatasetError(f"{file}: {error}") from None
    if "test" not in splits:
        clips = split_off(clips, test_fraction, into="test", seed=seed)
    return clips if "val" in splits else split_off(clips, val_fraction, into="val", seed=seed)


def _stream(name: str, media: Mapping[str, str], old: Dataset | None, file: Path) -> Stream:
    """Return the stream of a column; its medium is given, or known, or a word in its name."""
    known = {stream.name: stream for stream in (*DEFAULT_STREAMS, *(old.streams if old else ()))}
    words = [medium for medium in MEDIA if medium in name.split("-")]
    medium = media.get(name) or (known[name].medium if name in known else words[0] if len(words) == 1 else "")
    if not medium:
        raise DatasetError(f"say what stream {name} of {file} embeds: --medium {name}=video (or audio)")
    if old and name in known and name in old.media and known[name].encoder != GIVEN and _is_extracted(old, name):
        raise RecipeMismatchError(
            f"{old.root} has embeddings of stream {name} from {known[name].encoder}: give the column another name, or "
            "import the file into another --root"
        )
    return Stream(name, GIVEN, medium)


def _is_extracted(dataset: Dataset, name: str) -> bool:
    return any(name in dataset.store(split).recipes() for split in SPLITS)


def _require_same(store: EmbeddingStore, recipes: Mapping[str, Mapping[str, Any]]) -> None:
    stored = store.recipes()
    for name, recipe in recipes.items():
        difference = recipe_differences(stored.get(name, recipe), recipe)
        if difference:
            raise RecipeMismatchError(
                f"{store.folder} holds other embeddings of stream {name}, {difference}: give the column another name, "
                "or import the file into another --root"
            )


def _dim(parquet: Any, file: Path, name: str) -> int:
    """Return the length of a column's first vector."""
    for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=[name]):
        for vector in batch.column(name):
            if vector.is_valid and len(vector):
                return len(vector)
    raise DatasetError(f"{file}: column {name} has no vector: leave it out")


def _matrix(column: Any, dim: int, file: Path, clip_ids: Sequence[str]) -> np.ndarray:
    """Return a column's vectors (rows, dim) float32, NaN where there is none."""
    import pyarrow
    import pyarrow.compute

    column = column.cast(pyarrow.list_(pyarrow.float32()), safe=False)
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((lengths != dim) & (lengths > 0))
    if len(wrong):
        raise DatasetError(
            f"{file}: the vector of clip '{one_line(clip_ids[wrong[0]], 80)}' has {lengths[wrong[0]]} numbers, others "
            f"of its column have {dim}: correct it"
        )
    matrix = np.full((len(lengths), dim), np.nan, np.float32)
    matrix[lengths > 0] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return matrix


class _Writer:
    """Writes the vectors of the clips that a split's store lacks."""

    def __init__(
        self,
        store: EmbeddingStore,
        clips: Clips,
        recipes: Mapping[str, Mapping[str, Any]],
        streams: Sequence[Stream],
        file: Path,
    ) -> None:
        done = store.done(streams=recipes) if store.shards() else set()
        self._left = {clip.clip_id: clip for clip in clips if clip.clip_id not in done}
        self._store, self._recipes = store, recipes
        encoders = {one.name: {"name": GIVEN, "revision": "", "medium": one.medium, "options": {}} for one in streams}
        self._provenance = {"file": file.name, "encoders": encoders}

    def write(self, clip_ids: Sequence[str], features: Mapping[str, np.ndarray], reason: str) -> None:
        """Append the rows of clips that are left; a row without numbers is recorded with the reason."""
        rows = [row for row, clip_id in enumerate(clip_ids) if clip_id in self._left]
        clips = [self._left.pop(clip_ids[row]) for row in rows]
        if not clips:
            return
        mine = {name: matrix[rows] for name, matrix in features.items()}
        failures = []
        for name, matrix in mine.items():
            finite = finite_rows(matrix)
            matrix[~finite] = np.nan
            failures += [Failure(clips[row].clip_id, name, reason) for row in np.flatnonzero(~finite)]
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
            dims = {name: recipe["dim"] for name, recipe in self._recipes.items()}
            self.write(
                some, {name: np.full((len(some), dim), np.nan, np.float32) for name, dim in dims.items()}, reason
            )


def _report(
    dataset: Dataset,
    names: Sequence[str],
    strange: tuple[str, ...],
    parquet: Any,
    texts: Mapping[str, list[str]],
    file: Path,
) -> GivenReport:
    present = dict.fromkeys(names, 0)
    for split in SPLITS:
        clips = dataset.manifest.of_split(split)
        rows = dataset.store(split).open_rows(clips) if clips else None
        for name in names if rows is not None else ():
            present[name] += int(rows.present(name).sum())  # type: ignore[union-attr]
    ignored = [column for column in parquet.schema_arrow.names if column not in (*TEXTS, *names)]
    notes = [f"columns that aren't used: {one_line(', '.join(ignored), 200)}"] if ignored else []
    label_of = dict(zip(texts["clip_id"], texts.get("label", ()), strict=False))
    other = sum(label_of.get(clip.clip_id, clip.label) != clip.label for clip in dataset.manifest)
    if other:
        notes.append(f"{other} clips have another label in {file.name}: those of the root count")
    absent = {name: len(dataset.manifest) - count for name, count in present.items()}
    return GivenReport(dataset, present, absent, strange, tuple(notes))

"""The embedding store, the only connection of the two stages: stage one writes it, stage two reads it.

A store is a folder of HDF5 shards, append-only, on a disk or behind a URL. A shard appears whole (written, fsynced and
renamed, or sent to the object store in one request) and is never modified again. So a kill loses at most what was not
yet flushed, resuming needs only the stored clip_ids, several writers can work at once, and readers are never blocked.
`shard.py` describes the format of a shard.

Rows are keyed by clip_id: streams are joined by id, never by position. If two writers stored the same clip, the
older shard's row counts. `forget` removes what was extracted of some clips, so that they are extracted again.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from alphafuse.data.columns import Places, Texts, TextsBuilder, row_int
from alphafuse.data.embeddings import ROWS_AT_ONCE, UNKNOWN_BYTES, Embeddings, Failure, rows_of
from alphafuse.data.manifest import SPLITS, Clip, Clips, as_clips
from alphafuse.data.streams import GIVEN, in_order
from alphafuse.errors import RecipeMismatchError, StoreError, unknown
from alphafuse.system.files import one_line, open_atomically, to_path
from alphafuse.system.remote import is_remote, upload
from alphafuse.system.scratch import scratch_folder

from .export import write_npz, write_parquet
from .hdf5 import ShardGoneError, read_slices
from .lazy import READ_TRIES, RowIndex, StoredEmbeddings, keeps_changing
from .shard import Shard
from .shard_files import ShardFiles, require_shard_name
from .shard_writer import shard_bytes, write_shard

Result = TypeVar("Result")
_STAMPED = len("shard-") + 20  # characters of a shard's name up to the end of its time
_EMBEDDED, _FAILED = 1, 2  # the two bits that each stream has in a clip's state


def _retry_if_packed(method: Callable[..., Result]) -> Callable[..., Result]:
    """Decorate methods that read shards: start over if a listed shard was removed by packing."""

    @functools.wraps(method)
    def wrapped(self: EmbeddingStore, *arguments: Any, **keywords: Any) -> Result:
        for _ in range(READ_TRIES):
            try:
                return method(self, *arguments, **keywords)
            except ShardGoneError:
                continue
        raise keeps_changing(self.folder)

    return wrapped


@dataclass(frozen=True)
class StoreInfo:
    """Counts of a store, from `EmbeddingStore.info`.

    Attributes:
        folder: the store's folder.
        shards, clips, duplicates, bytes: shards, clips, clips that are stored twice, and the size of all shards.
        rows: stream -> clips that have an embedding.
        windows: windows of all clips.
        files: clips whose file's size and digest are stored.
        dims: stream -> dimension.
        failures: reasons why other clips have no embedding.
        recipes, provenance: as recorded in the shards.
    """

    folder: Path
    shards: int
    clips: int
    duplicates: int
    bytes: int
    rows: Mapping[str, int]
    windows: int
    files: int
    dims: Mapping[str, int]
    failures: tuple[Failure, ...]
    recipes: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]


class EmbeddingStore:
    """A folder of shards, local or behind a URL (s3://, gs://, hf://, ...). The constructor reads and writes nothing.

    >>> import numpy as np
    >>> from alphafuse import Embeddings, EmbeddingStore
    >>> store = EmbeddingStore("demo/stores/test")
    >>> store.dims()
    {'timesformer': 96, 'ast': 96}
    >>> store.verify()
    []

    Embeddings of your own models, written in two parts and read as one:

    >>> own = EmbeddingStore("own/stores/train")
    >>> for name in ("a", "b"):
    ...     features = {"ast": np.zeros((1, 4), np.float32)}
    ...     rows = Embeddings((name,), ("dog",), (name,), features, recipes={"ast": {"model": "mine"}})
    ...     path = own.write(rows)
    >>> own.read()
    Embeddings(2 clips, ast=(2, 4), 0 failures)
    >>> own.export("own.npz").name
    'own.npz'
    """

    def __init__(self, folder: str | Path, *, root: Path | None = None) -> None:
        """`root`: the dataset root that the store belongs to, for messages; not needed for ROOT/stores/SPLIT."""
        self.folder = to_path(folder)
        self.root = root
        if root is None and self.folder.parent.name == "stores" and not is_remote(self.folder):
            self.root = self.folder.parent.parent
        self._files = ShardFiles(self.folder)
        self._agreed: dict[str, dict[str, Any]] = {}  # recipes of the shards read so far; shards never change
        self._recipes_read: set[str] = set()
        self._states: dict[str, int] = {}  # clip_id -> bits of all streams: 120 MB for a million clips
        self._shifts: dict[str, int] = {}  # stream -> position of its two bits
        self._states_read: set[str] = set()  # names of the shards that these states are from

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "root": self.root}  # another process reads the shards itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.folder)!r})"

    def absolute(self) -> EmbeddingStore:
        """Return the same store with an absolute path, for processes with another working folder."""
        return EmbeddingStore(self.folder.absolute(), root=self.root)

    # writing

    def write(self, rows: Embeddings, *, provenance: Mapping[str, Any] | None = None, name: str | None = None) -> Path:
        """Append one shard, atomically, and return its path.

        Args:
            rows: embeddings to store; `rows.recipes` must have a recipe for each stream in `rows.features`.
            provenance: json-able facts that don't decide the numbers (library versions, device, encoder names).
            name: name of the shard, from `shard_name`, so that a commit can be repeated: if that shard exists,
                nothing is written, and simultaneous attempts leave one shard. With a name, recipes are not compared:
                call `require_recipes` once before many such commits. None = a new name.

        Raises:
            RecipeMismatchError: the store holds shards made under other recipes.
            StoreError: an id, label or group can't be stored, a recipe is missing, or `name` isn't a name of a shard.
            AlphafuseError: the disk is full or the folder can't be written; nothing is left behind.
        """
        if name is None:
            self.require_recipes(rows.recipes)
        else:
            require_shard_name(name)
            if self._files.has(name):
                return self.folder / name
        return self._files.add(shard_bytes(rows, dict(provenance or {})), name)

    def require_recipes(self, recipes: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise `RecipeMismatchError`, naming the difference, unless these recipes equal those stored."""
        stored = self.recipes()
        for stream, asked in recipes.items():
            if stream in stored:
                difference = recipe_differences(stored[stream], asked)
                if difference:
                    raise RecipeMismatchError(
                        f"the store {self.folder} was made with another {stream} {difference}: extract into another "
                        "root, or remove this store and extract again"
                    )

    # reading

    def shards(self) -> list[Path]:
        """Return shard files, oldest first; empty if the store does not exist. For a URL this is one listing.

        Raises:
            StoreError: the URL's bucket doesn't exist, or can't be reached.
        """
        return self._files.listed()

    def size_bytes(self) -> int:
        """Return the size of all shards in bytes; 0 if the store does not exist."""
        return self._files.size_bytes()

    @_retry_if_packed
    def recipes(self) -> dict[str, dict[str, Any]]:
        """Return stream -> the recipe that all shards share; empty for an empty store.

        Raises:
            RecipeMismatchError: two shards disagree (a shard was copied in from another store).
        """
        shards = self.shards()
        if not self._recipes_read <= {path.name for path in shards}:  # shards were removed or packed: start over
            self._agreed, self._recipes_read = {}, set()
        for path in self._files.each(path for path in shards if path.name not in self._recipes_read):
            with self._files.open(path) as shard:
                for stream, recipe in shard.recipes.items():
                    difference = recipe_differences(self._agreed.setdefault(stream, recipe), recipe)
                    if difference:
                        raise RecipeMismatchError(
                            f"shard {one_line(path, 1000)} was made with another {stream} {difference} than the "
                            "shards before it: move it out of the store"
                        )
            self._recipes_read.add(path.name)
        return dict(self._agreed)

    @_retry_if_packed
    def dims(self) -> dict[str, int]:
        """Return stream -> dimension, for the stored streams; reads no features."""
        recipes, dims = self.recipes(), dict[str, int]()
        for path in self.shards():
            if len(dims) == len(recipes):
                break
            with self._files.open(path) as shard:
                for stream in shard.dims:
                    shard.features(stream, dims)
        return {stream: dims[stream] for stream in in_order(dims)}

    def read(self, clips: Sequence[Clip] | None = None, *, pooled: bool = True) -> Embeddings:
        """Read the embeddings of these clips in their order (with the clips' labels and groups), or of all clips.

        Clips that the store lacks get rows of NaN. Features are float32. If `pooled`, they are (clips, dim), for a clip
        with several windows the mean over those that have an embedding; else (rows, dim), a row per window, as stored.

        Raises:
            StoreError: the store is empty, a shard is damaged, or a clip is requested twice.
            RecipeMismatchError: shards were made under different recipes.
        """
        return self.open_rows(clips).load(pooled=pooled)

    @_retry_if_packed
    def open_rows(self, clips: Sequence[Clip] | None = None) -> StoredEmbeddings:
        """Like `read`, but features stay on disk and are read in parts: for stores larger than memory.

        Reads no features: shards record which rows are embeddings.
        """
        columns = as_clips(self._stored_clips() if clips is None else clips)
        index, failures = self._locate(columns.clip_ids)
        return StoredEmbeddings(
            clip_ids=columns.clip_ids,
            labels=columns.clip_labels,
            groups=columns.clip_groups,
            failures=failures,
            recipes=self.recipes(),
            store=self,
            index=index,
        )

    @_retry_if_packed
    def locate(self, clip_ids: Sequence[str]) -> tuple[RowIndex, tuple[Failure, ...]]:
        """Find the rows of these clips, and the failures of those without; errors as in `read`."""
        return self._locate(clip_ids)

    def _locate(self, clip_ids: Sequence[str]) -> tuple[RowIndex, tuple[Failure, ...]]:
        """Search all shards, oldest first, for the first embedding of each clip and stream."""
        if not self.recipes():
            if self.folder.name in SPLITS and self.root is not None:
                advice = f"run `alphafuse extract --split {self.folder.name} --root {self.root}` first"
            else:
                advice = "name a store, such as ROOT/stores/train"
            raise StoreError(f"no embeddings in {self.folder}: {advice}")
        places = Places(Texts(clip_ids))
        if repeated := places.repeated():
            raise StoreError(f"clip_id '{repeated[0]}' is requested twice: request each clip once")
        shards, starts, dims = self.shards(), [0], dict[str, int]()
        entries = {"": np.full(len(clip_ids), -1, row_int(0))}  # "": mentions
        failures: dict[tuple[str, int], Failure] = {}
        for path in self._files.each(shards):
            with self._files.open(path) as shard:
                targets = _positions(shard, places)
                kind = row_int(starts[-1] + len(targets))
                entries = {name: numbers.astype(kind, copy=False) for name, numbers in entries.items()}
                for stream in shard.dims:
                    shard.features(stream, dims)
                present = {"": targets >= 0} | {name: (targets >= 0) & shard.embedded(name) for name in shard.dims}
                for name, mask in present.items():
                    if name not in entries:
                        entries[name] = np.full(len(clip_ids), -1, kind)
                    numbers = entries[name]
                    rows = np.flatnonzero(mask)
                    rows = rows[numbers[targets[rows]] < 0][::-1]  # if a clip occurs twice, the first one stays
                    numbers[targets[rows]] = starts[-1] + rows
                failed = shard.failures()
                for place, failure in zip(places.find([one.clip_id for one in failed]).tolist(), failed, strict=True):
                    if place >= 0:
                        failures.setdefault((failure.stream, place), failure)
                starts.append(starts[-1] + len(targets))
        index = RowIndex(
            shards=tuple(shards),
            starts=np.array(starts),
            dims={stream: dims[stream] for stream in in_order(dims)},
            entries={stream: entries[stream] for stream in in_order(dims)},
            mentions=entries[""],
        )
        absent = (
            failure for (stream, row), failure in failures.items() if stream not in dims or entries[stream][row] < 0
        )
        return index, tuple(absent)

    @_retry_if_packed
    def finished(
        self,
        *,
        streams: Iterable[str] | None = None,
        retry_failed: bool = False,
        among: Iterable[str] | None = None,
        look: bool = True,
    ) -> dict[str, set[str]]:
        """Return stream -> clip_ids that need no more work: with an embedding or (unless `retry_failed`) a failure.

        Shards never change, so each is read once: a repeated call lists the folder and reads the new shards. It reads
        no features.

        Args:
            streams: streams of the result; None = those that the store has.
            retry_failed: clips whose failure is recorded need work.
            among: only these clips; the time of a call then depends on their number, not on the size of the store.
            look: list the folder; if False, the answer is that of the last listing.
        """
        shards = self.shards() if look else []
        if look and not self._states_read <= {
            path.name for path in shards
        }:  # shards were removed or packed: start over
            self._states, self._states_read = {}, set()
        for path in self._files.each(path for path in shards if path.name not in self._states_read):
            with self._files.open(path) as shard:
                found = self._states_in(shard)
            for clip_id, bits in found.items():
                self._states[clip_id] = self._states.get(clip_id, 0) | bits
            self._states_read.add(path.name)
        states = self._states if among is None else {i: self._states[i] for i in among if i in self._states}
        end = _EMBEDDED if retry_failed else _EMBEDDED | _FAILED
        names = in_order(self._shifts) if streams is None else streams
        ends = {stream: end << self._shift(stream) for stream in names}
        return {stream: {i for i, state in states.items() if state & bits} for stream, bits in ends.items()}

    def _shift(self, stream: str) -> int:
        """Return the position of a stream's bits in a clip's state."""
        return self._shifts.setdefault(stream, 2 * len(self._shifts))

    def _states_in(self, shard: Shard) -> dict[str, int]:
        """Return clip_id -> bits of the clips of a shard."""
        bits = [0] * shard.clips
        for stream in shard.dims:
            bit = _EMBEDDED << self._shift(stream)
            for clip in np.flatnonzero(shard.embedded(stream)).tolist():
                bits[clip] |= bit
        states: dict[str, int] = {}
        for clip_id, state in zip(chain.from_iterable(shard.clip_ids()), bits, strict=True):
            if state:
                states[clip_id] = states.get(clip_id, 0) | state
        for failure in shard.failures():
            states[failure.clip_id] = states.get(failure.clip_id, 0) | _FAILED << self._shift(failure.stream)
        return states

    def done(self, *, streams: Iterable[str] | None = None, retry_failed: bool = False) -> set[str]:
        """Return clip_ids that need no more work in any of these streams: the intersection of `finished`."""
        finished = self.finished(streams=streams, retry_failed=retry_failed).values()
        return set.intersection(*finished) if finished else set()

    @_retry_if_packed
    def info(self) -> StoreInfo:
        """Return counts, recipes and failures of what is stored."""
        embeddings = self.open_rows()
        shards, starts = embeddings.index.shards, embeddings.index.starts
        places, counted = Places(embeddings.clip_ids), np.sort(embeddings.index.places())
        stored = {stream: np.zeros(len(embeddings), np.int64) for stream in embeddings.dims}
        windows = files = 0
        for path, start, stop in zip(self._files.each(shards), starts[:-1], starts[1:], strict=True):
            with self._files.open(path) as shard:
                targets = _positions(shard, places)
                for stream in shard.dims:
                    stored[stream] += np.bincount(targets[shard.embedded(stream)], minlength=len(embeddings))
                first, last = np.searchsorted(counted, (start, stop))
                clips = counted[first:last] - start
                windows += int(np.diff(shard.offsets())[clips].sum())
                files += int((shard.file_bytes()[clips] >= 0).sum())
        return StoreInfo(
            folder=self.folder,
            shards=len(shards),
            clips=len(embeddings),
            duplicates=int(np.maximum(np.max([*stored.values()], axis=0) - 1, 0).sum()) if stored else 0,
            bytes=self.size_bytes(),
            rows={stream: int(embeddings.present(stream).sum()) for stream in embeddings.dims},
            windows=windows,
            files=files,
            dims=embeddings.dims,
            failures=embeddings.failures,
            recipes=embeddings.recipes,
            provenance=self.provenance(),
        )

    def verify(self) -> list[str]:
        """Check every shard against its checksum and the recipes of the others; return the problems, a line each."""
        problems = []
        for path in self.shards():
            try:
                with self._files.open(path) as shard:
                    found = shard.problems()
                problems += [f"{one_line(path, 1000)}: {problem}: remove it and extract again" for problem in found]
            except ShardGoneError:
                continue  # it was packed meanwhile: its rows are in another shard
            except StoreError as error:
                problems.append(str(error))
        try:
            self.recipes()
        except StoreError as error:
            problems.append(str(error))
        return list(dict.fromkeys(problems))

    def pack(self) -> Path:
        """Merge all shards into one (duplicates dropped, rows in float32) and remove the old ones.

        A kill during this leaves the new shard and some old ones: the same rows, which are read once. Others may write
        meanwhile: only merged shards are removed. Features pass through memory a few MB at a time; the disk must have
        room for them twice (for a store behind a URL, the local disk must have room for all of them once).

        Raises:
            StoreError: the store is empty or damaged.
            AlphafuseError: the disk is full or the folder can't be written; the store is unchanged.
        """
        old = self.shards()  # listed before anything is read, so that later shards are not removed
        rows, provenance = self.open_rows(), self.provenance()
        path, columns = self._files.new(), rows.columns()
        kinds = {stream: np.dtype((np.float32, (dim,))) for stream, dim in rows.dims.items()}
        blocks = (features for _, features in rows.blocks(columns.offsets))
        self._write_in_blocks(path, columns, provenance, kinds, blocks)
        self._files.remove(old)
        return path

    def _write_in_blocks(
        self,
        path: Path,
        columns: Embeddings,
        provenance: Mapping[str, Any],
        kinds: Mapping[str, np.dtype[Any]],
        blocks: Iterable[Mapping[str, np.ndarray]],
    ) -> None:
        """Write a shard whose features may be too large for memory; arguments as in `write_shard`."""
        local = scratch_folder() / path.name if is_remote(path) else path
        try:
            with open_atomically(local) as file:
                room = len(columns.windows) * sum(kind.itemsize for kind in kinds.values())
                write_shard(file, columns, provenance, kinds=kinds, blocks=blocks, room=room)
            if local is not path:
                upload(path, local)
        finally:
            if local is not path:
                local.unlink(missing_ok=True)

    @_retry_if_packed
    def changed(self, sizes: Mapping[str, int], digest_of: Callable[[str], str] | None = None) -> list[str]:
        """Return the clips with another file than the one that was extracted, in the order of `sizes`.

        Args:
            sizes: clip_id -> bytes of its file now; only these clips are compared.
            digest_of: clip_id -> digest of its file now ("" = unknown), asked for files of the stored size; None =
                only sizes are compared.
        """
        found: set[str] = set()
        for path in self._files.each(self.shards()):
            with self._files.open(path) as shard:
                ids = list(chain.from_iterable(shard.clip_ids()))
                known = shard.file_bytes()
                digests = shard.digests() if digest_of is not None else []
                for place, clip_id in enumerate(ids):
                    size, before = sizes.get(clip_id), int(known[place])
                    if size is None or before < 0 or clip_id in found:
                        continue
                    if size != before:
                        found.add(clip_id)
                    elif digest_of is not None and digests[place]:
                        digest = digest_of(clip_id)
                        if digest and digest != digests[place]:
                            found.add(clip_id)
        return [clip_id for clip_id in sizes if clip_id in found]

    def forget(self, clip_ids: Iterable[str]) -> int:
        """Remove what was extracted of these clips, embeddings and failures; return the number of shards that had some.

        A shard that had some is written again without them, under its time, and then removed; embeddings that were
        given, not extracted, stay. A kill leaves shards that still have them: repeat the call.

        Raises:
            StoreError: a shard is damaged.
            AlphafuseError: the disk is full or the folder can't be written.
        """
        gone, rewritten = set(clip_ids), 0
        for path in self.shards():
            with self._files.open(path) as shard:
                rewritten += (had := self._write_without(shard, gone))
            if had:
                self._files.remove([path])
        return rewritten

    def _write_without(self, shard: Shard, gone: set[str]) -> bool:
        """Write a shard again without what was extracted of some clips; return False if it has nothing of them."""
        made = shard.provenance().get("encoders", {})
        given = {name for name in shard.recipes if made.get(name, {}).get("name") == GIVEN}
        ids, failures = list(chain.from_iterable(shard.clip_ids())), shard.failures()
        named = np.array([clip_id in gone for clip_id in ids], bool)
        kept = [one for one in failures if one.clip_id not in gone or one.stream in given]
        extracted = [name for name in shard.dims if name not in given]
        has_rows = any(shard.embedded(name)[named].any() for name in extracted) if given else named.any()
        if len(kept) == len(failures) and not has_rows:
            return False
        parts = list(shard.columns())
        columns = Embeddings(
            clip_ids=tuple(ids),
            labels=tuple(labels[0] for part in parts for labels in part[1]),
            groups=tuple(group for part in parts for group in part[2]),
            features={},
            recipes=shard.recipes,
            windows=shard.windows(),
            offsets=shard.offsets(),
            file_bytes=np.where(named, UNKNOWN_BYTES, shard.file_bytes()),
            digests=tuple("" if old else digest for old, digest in zip(named, shard.digests(), strict=True)),
            label_lists=tuple(labels for part in parts for labels in part[1]),
        )
        clips = np.arange(len(ids)) if given else np.flatnonzero(~named)
        rows, _ = rows_of(columns.offsets, clips)
        blank = named[columns.row_clips]
        if not len(clips) and not kept:
            return True
        features = {name: shard.features(name, {}) for name in shard.dims}
        kinds = {name: np.dtype((dataset.dtype, (dataset.shape[1],))) for name, dataset in features.items()}

        def blocks() -> Iterable[Mapping[str, np.ndarray]]:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                some = rows[start : start + ROWS_AT_ONCE]
                block = {name: np.empty((len(some), kind.shape[0]), kind.base) for name, kind in kinds.items()}
                for name, values in block.items():
                    for part, read in read_slices(features[name], some):
                        values[part] = read
                    if name not in given:
                        values[blank[some]] = np.nan
                yield block

        path = self._files.new(f"{shard.path.name[:_STAMPED]}-{uuid.uuid4().hex[:8]}.h5")
        columns = replace(columns.take(clips), failures=tuple(kept))
        self._write_in_blocks(path, columns, shard.provenance(), kinds, blocks())
        return True

    def export(self, path: str | Path, *, format: Literal["npz", "parquet"] | None = None) -> Path:
        """Write all embeddings as .npz or parquet; `export.py` lists the arrays and columns.

        `format` defaults to the suffix; parquet needs `pip install 'alphafuse[parquet]'`. Features pass through memory
        a few MB at a time.

        Raises:
            StoreError: the format is unknown, or the store is empty or damaged.
            AlphafuseError: the file can't be written; nothing is left behind.
        """
        if is_remote(to_path(path)):
            raise StoreError(f"{one_line(path, 1000)} is a URL: export to a local file and copy that")
        path = to_path(path)
        chosen = format or path.suffix.lstrip(".")
        if chosen not in ("npz", "parquet"):
            raise StoreError(unknown("export format", chosen, ("npz", "parquet")))
        rows = self.open_rows()
        if chosen == "npz":
            with open_atomically(path) as file:
                write_npz(file, rows)
        else:
            try:
                import pyarrow.parquet  # noqa: F401
            except ImportError:
                raise StoreError(
                    "parquet needs pyarrow: run `pip install 'alphafuse[parquet]'` or export .npz"
                ) from None
            with open_atomically(path) as file:
                write_parquet(file, rows)
        return path

    @_retry_if_packed
    def provenance(self) -> dict[str, Any]:
        """Return the newest shard's provenance, with the encoder of each stream's newest shard; {} without shards.

        `encoders` is stream -> {"name", "revision"}, if extraction wrote the store.
        """
        newest: dict[str, Any] = {}
        encoders: dict[str, Any] = {}
        wanted = set(self.recipes())
        for path in reversed(self.shards()):
            with self._files.open(path) as shard:
                provenance = shard.provenance()
            newest = newest or provenance
            encoders = {**provenance.get("encoders", {}), **encoders}
            if wanted <= set(encoders):
                break
        return {**newest, "encoders": encoders} if encoders else newest

    def _stored_clips(self) -> Clips:
        """Return the clips with a row or a failure, oldest shard first, with their labels at the time of extraction."""
        builders = [TextsBuilder() for _ in range(3)]
        for path in self._files.each(self.shards()):
            with self._files.open(path) as shard:
                for clip_ids, labels, groups in shard.columns():
                    firsts = [of_clip[0] for of_clip in labels]
                    for builder, texts in zip(builders, (clip_ids, firsts, groups), strict=True):
                        builder.add(texts)
        ids, first_labels, videos = (builder.build() for builder in builders)
        same = np.zeros(len(ids), np.uint8)  # the store holds no paths and no splits
        clips = Clips.of_columns(ids, Texts(("-",)).take(same), first_labels, Texts(("train",)).take(same), videos)
        once = Places(ids).firsts()
        return clips if len(once) == len(clips) else clips.take(once)


def _positions(shard: Shard, places: Places) -> np.ndarray:
    """Return (rows,) int64: the position of each row's clip in `places`, -1 if absent."""
    chunks = [places.find(clip_ids) for clip_ids in shard.clip_ids()]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)


def recipe_differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return the first three fields that differ, as "name (there: stored, here: asked)"; empty if none does."""
    names = [name for name in {**stored, **asked} if stored.get(name) != asked.get(name)]
    return ", ".join(
        f"{one_line(name, 40)} (there: {_shortened(stored.get(name))}, here: {_shortened(asked.get(name))})"
        for name in names[:3]
    )


def _shortened(value: object) -> str:
    text = str(value)
    return one_line(text if len(text) <= 24 else text[:12] + "...")

"""A dataset root: the folder that holds a manifest, the embedding stores and the runs.

root/
  dataset.json          name, clip folder, classes in order, streams, source, how labels were given
  manifest.csv          clip_id, path, label, split, group
  missing.csv           clips that the source lists and the clip folder lacks (only when there are any)
  left_out.csv          clips that have a file but were left out, and why (only when there are any)
  dropped.csv           clips that `alphafuse data drop` took out of the manifest (only when there are any)
  stores/<split>/       stage one: HDF5 shards of embeddings (or below the folder or URL that dataset.json names)
  runs/<name>/          stage two: trained heads and their figures
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from alphafuse.data.store.lazy import StoredEmbeddings
from alphafuse.data.store.store import EmbeddingStore, recipe_differences
from alphafuse.errors import AlphafuseError, DatasetError, EmptySplitError, RecipeMismatchError, unknown
from alphafuse.system.files import MAX_TEXT, each, is_clean, one_line, read_json, split_address, to_path, write_json
from alphafuse.system.remote import folder_exists, is_remote, list_objects, object_size

from .embeddings import Embeddings
from .manifest import SPLITS, Clip, Manifest, lines_of
from .streams import ALL, DEFAULT_STREAMS, GIVEN, Stream, in_order, names_of, require_different

FORMAT_VERSION = 2
FLOAT32_BYTES = 4
LABELLED_BY = ("ear", "eye", "both")
STORES = "stores"  # below the root, unless dataset.json says otherwise
FEW = 64  # up to this many objects are queried one by one; for more, the folder is listed
_FIELDS = {
    "format_version": int,
    "name": str,
    "clips": str,
    "classes": list,
    "streams": list,
    "source": dict,
}


@dataclass(frozen=True)
class Dataset:
    """An opened dataset root.

    Attributes:
        root: the folder.
        name: name of the dataset ("vggsound", "demo", a folder's name).
        clip_folder: folder that `Clip.path` is relative to; a `upath.UPath` for a URL.
        classes: labels in the order of the heads' outputs.
        streams: the sources of embeddings, in the order of tables and files.
        source: how the root was made (csv, subset, seed, ...), for provenance.
        manifest: the clips.
        stores: folder or URL of the embedding stores, one below it per split; None = root/stores.
        labelled_by: how labels were given: by "ear", by "eye", by "both"; None = unknown.

    >>> from alphafuse import Dataset
    >>> dataset = Dataset.open("demo")
    >>> dataset
    Dataset('demo', 16 classes, Manifest(448 clips: train=230, val=26, test=192), root='demo')
    >>> dataset.embeddings("val")
    Embeddings(26 clips, timesformer=(26, 96), ast=(26, 96), 0 failures)
    """

    root: Path
    name: str
    clip_folder: Path
    classes: tuple[str, ...]
    streams: tuple[Stream, ...]
    source: dict[str, Any]
    manifest: Manifest
    stores: Path | None = None
    labelled_by: str | None = None

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self.classes)} classes, {self.manifest!r}, root={str(self.root)!r})"

    @classmethod
    def create(
        cls,
        root: str | Path,
        manifest: Manifest,
        *,
        name: str,
        clip_folder: str | Path,
        classes: tuple[str, ...],
        streams: Sequence[Stream] | None = None,
        stores: str | Path | None = None,
        source: dict[str, Any] | None = None,
        labelled_by: str | None = None,
    ) -> Dataset:
        """Write a root's dataset.json and manifest.csv; existing stores and runs stay.

        An existing root is overwritten only under its own name. If `data split` made it, or its manifest was edited
        since, `DatasetError` is raised.

        Streams, stores and `labelled_by` that are None stay as dataset.json records them; a new root gets
        `DEFAULT_STREAMS`, the folder `stores`, and labels of which it isn't known how they were given.

        The clip folder and the stores are recorded relative to the root if they lie inside (so that the root can be
        moved), else as absolute paths or URLs.
        """
        _require_local(root)
        opened, root = Path(root), Path(root).resolve()
        require_own_root(opened, name)
        made_by = streams_of(root) if streams is None else require_different(streams)
        labelled = labelled_by_of(root) if require_labelled_by(labelled_by) is None else labelled_by
        where = _existing_stores(root) if stores is None else _as_recorded(to_path(stores), root)
        manifest.write(root / "manifest.csv")
        # dataset.json is written last: a root exists once this file does
        write_json(
            root / "dataset.json",
            {
                "format_version": FORMAT_VERSION,
                "name": name,
                "clips": _as_recorded(to_path(clip_folder), root),
                **({"stores": where} if where not in (None, STORES) else {}),
                "classes": list(classes),
                "streams": [stream.to_json() for stream in made_by],
                "source": source or {},
                **({} if labelled is None else {"labelled_by": labelled}),
                "manifest_sha256": _sha256(root / "manifest.csv"),
            },
        )
        return cls.open(opened)

    @classmethod
    def open(cls, root: str | Path | Dataset) -> Dataset:
        """Open a root; what is open already is returned as it is.

        Raises:
            DatasetError: the folder is not a root, a field is missing, or dataset.json's classes lack a manifest label.
        """
        if isinstance(root, Dataset):
            return root
        _require_local(root)
        root = Path(root)
        if not (root / "dataset.json").is_file():
            raise DatasetError(
                f"no dataset root at '{root}' (it has no dataset.json): make one with `alphafuse data "
                "demo|vggsound|ucf101|kinetics|folder --root ...`, or name yours with --root or ALPHAFUSE_ROOT"
            )
        content = read_json(root / "dataset.json")
        _require_fields(root / "dataset.json", content)
        manifest = Manifest.read(root / "manifest.csv")
        classes = tuple(content["classes"])
        known = set(classes)
        if not known.issuperset(manifest.labels):
            clip = next(clip for clip in manifest if clip.label not in known)
            what = one_line(unknown("label", clip.label, classes), 500)
            line = lines_of(root / "manifest.csv", clip.clip_id)[0]
            raise DatasetError(
                f"{root / 'manifest.csv'} line {line}: clip {one_line(clip.clip_id, 80)}: {what} (dataset.json lists "
                "them)"
            )
        return cls(
            root=root,
            name=content["name"],
            clip_folder=_folder_of(content["clips"], root),
            classes=classes,
            streams=_read_streams(root / "dataset.json", content["streams"]),
            source=content["source"],
            manifest=manifest,
            stores=_folder_of(content["stores"], root) if "stores" in content else None,
            labelled_by=_read_labelled_by(root / "dataset.json", content),
        )

    @property
    def media(self) -> dict[str, str]:
        """Name of a stream -> "video" or "audio"."""
        return {stream.name: stream.medium for stream in self.streams}

    @property
    def needs_clips(self) -> bool:
        """Whether clips have files: whether any stream is extracted from them, not given as embeddings."""
        return any(stream.encoder != GIVEN for stream in self.streams)

    def splits_of(self, splits: str | Sequence[str]) -> tuple[str, ...]:
        """Return splits that are given as one name, several, or "all": those that have clips.

        Raises:
            DatasetError: a split is unknown.
        """
        if splits == ALL:
            return tuple(split for split in SPLITS if self.manifest.of_split(split))
        for split in each(splits):
            if split not in SPLITS:
                raise DatasetError(unknown("split", split, (*SPLITS, ALL)))
        return each(splits)

    def stream(self, name: str) -> Stream:
        """Return the stream of this name; `DatasetError` if the root has none."""
        for stream in self.streams:
            if stream.name == name:
                return stream
        raise DatasetError(
            f"{self.root}: {unknown('stream', name, [stream.name for stream in self.streams])}; add one with "
            f"`alphafuse data streams --add {one_line(name, 40)}=ENCODER --root {self.root}`"
        )

    def with_streams(self, streams: Sequence[Stream]) -> Dataset:
        """Write these streams into dataset.json; return the root with them. Stored embeddings stay.

        Raises:
            DatasetError: two streams have one name, or there is none.
        """
        streams = require_different(streams)
        path = self.root / "dataset.json"
        write_json(path, {**read_json(path), "streams": [stream.to_json() for stream in streams]})
        return replace(self, streams=streams)

    def with_labelled_by(self, labelled_by: str) -> Dataset:
        """Write into dataset.json how labels were given, "ear", "eye" or "both"; return the root with it.

        Raises:
            DatasetError: none of these.
        """
        path = self.root / "dataset.json"
        write_json(path, {**read_json(path), "labelled_by": require_labelled_by(labelled_by)})
        return replace(self, labelled_by=labelled_by)

    def path_of(self, clip: Clip) -> Path:
        """Return the address of the clip's file, or of its picture's; a `upath.UPath` if the clip folder is a URL."""
        return self.clip_folder / clip.path

    def paths_of(self, clip: Clip) -> tuple[Path, ...]:
        """Return the addresses of all files of a clip: one, or those of its picture and its sound."""
        return tuple(self.clip_folder / address for address in clip.addresses)

    def file_sizes(self, clips: Sequence[Clip]) -> dict[str, int]:
        """Return clip_id -> bytes of its files, for those of these clips that have them; a URL is listed once.

        Raises:
            DatasetError: the URL can't be reached.
        """
        if not is_remote(self.clip_folder):
            return _sizes(clips, lambda file: _file_size(self.clip_folder / file))
        try:
            if len(clips) <= FEW:
                return _sizes(clips, lambda file: object_size(self.clip_folder / file))
            return _sizes(clips, list_objects(self.clip_folder, recursive=True).get)
        except AlphafuseError as error:
            raise DatasetError(str(error)) from None

    def require_clips(self) -> None:
        """Raise `DatasetError` if the clip folder, or its bucket, doesn't exist or can't be reached."""
        try:
            exists = folder_exists(self.clip_folder)
        except AlphafuseError as error:
            raise DatasetError(str(error)) from None
        if not exists:
            raise DatasetError(f"the clip folder {self.clip_folder} doesn't exist: restore it or make the root again")

    @property
    def store_folder(self) -> Path:
        """Folder of the embedding stores, which are one folder per split."""
        return self.root / STORES if self.stores is None else self.stores

    def store(self, split: str) -> EmbeddingStore:
        """Return the embedding store of a split (it may not exist yet)."""
        if split not in SPLITS:
            raise DatasetError(unknown("split", split, SPLITS))
        return EmbeddingStore(self.store_folder / split, root=self.root)

    @overload
    def embeddings(self, split: str, *, streams: str | Sequence[str] = (), max_bytes: None = None) -> Embeddings: ...

    @overload
    def embeddings(
        self, split: str, *, streams: str | Sequence[str] = (), max_bytes: int
    ) -> Embeddings | StoredEmbeddings: ...

    def embeddings(
        self, split: str, *, streams: str | Sequence[str] = (), max_bytes: int | None = None
    ) -> Embeddings | StoredEmbeddings:
        """Read the split's embeddings of the root's streams, in manifest order; all of stage two reads them by this.

        Args:
            split: "train", "val" or "test".
            streams: streams whose extraction must be finished; () = all that are stored. The others are read too.
            max_bytes: features (float32) that take more than this stay on disk and are read in parts; None = all are
                read into memory.

        Raises:
            EmptySplitError: the split has no clips, or none of them has an embedding.
            DatasetError: some clips have not been extracted yet.
        """
        streams = names_of(streams, self.media)
        clips = self.manifest.require_split(split)
        store = self.store(split)
        stored = store.open_rows(clips).only([stream.name for stream in self.streams])
        small = max_bytes is None or len(clips) * FLOAT32_BYTES * sum(stored.dims.values()) <= max_bytes
        embeddings = stored.load(pooled=True) if small else stored
        failed = {(failure.clip_id, failure.stream) for failure in embeddings.failures}
        pending, usable = np.full(len(clips), not embeddings.dims), np.zeros(len(clips), bool)
        for stream in embeddings.dims:
            present = embeddings.present(stream)
            usable |= present
            for row in np.flatnonzero(~present).tolist() if not streams or stream in streams else ():
                pending[row] |= (clips[row].clip_id, stream) not in failed
        if pending.any():
            raise DatasetError(
                f"{pending.sum()} of {len(clips)} {split} clips are not extracted yet: run "
                f"`alphafuse extract --split {split} --root {self.root}` first (it does only what is missing)"
            )
        if not usable.any():
            raise EmptySplitError(
                f"none of the {len(clips)} {split} clips has an embedding: see `alphafuse store info {store.folder}`"
            )
        return embeddings

    @overload
    def all_embeddings(
        self, *, splits: Sequence[str] = SPLITS, streams: str | Sequence[str] = (), max_bytes: None = None
    ) -> dict[str, Embeddings]: ...

    @overload
    def all_embeddings(
        self, *, splits: Sequence[str] = SPLITS, streams: str | Sequence[str] = (), max_bytes: int
    ) -> dict[str, Embeddings | StoredEmbeddings]: ...

    def all_embeddings(
        self, *, splits: Sequence[str] = SPLITS, streams: str | Sequence[str] = (), max_bytes: int | None = None
    ) -> dict[str, Embeddings] | dict[str, Embeddings | StoredEmbeddings]:
        """Return split -> embeddings of several splits, made under the same recipes.

        Args:
            splits: by default all three.
            streams, max_bytes: as in `embeddings`, for each split.

        Raises:
            DatasetError: one of these streams isn't extracted for every split.
            RecipeMismatchError: two splits were extracted with different encoders, protocols or precisions.
        """
        streams = names_of(streams, self.media)
        loaded = {split: self.embeddings(split, streams=streams, max_bytes=max_bytes) for split in splits}
        stored = {stream for embeddings in loaded.values() for stream in embeddings.recipes}
        names = in_order(stored.intersection(streams or self.media))
        for stream in names:
            for split in splits:
                if stream not in loaded[split].recipes:
                    raise DatasetError(
                        f"stream {stream} is not extracted for {split}: run `alphafuse extract --split {split} "
                        f"--stream {stream} --root {self.root}`, or name other streams (--stream)"
                    )
        for split in splits[1:]:
            for stream in names:
                train_recipe, other_recipe = (loaded[name].recipes.get(stream, {}) for name in (splits[0], split))
                difference = recipe_differences(train_recipe, other_recipe)
                if difference:
                    raise RecipeMismatchError(
                        f"{splits[0]} and {split} were extracted with another {stream} {difference}: remove "
                        f"{self.store(split).folder} or {self.store(splits[0]).folder} and extract again"
                    )
        return loaded


def _require_fields(path: Path, content: dict[str, Any]) -> None:
    """Raise `DatasetError` unless dataset.json has all fields, each of its type, and texts that can be displayed."""
    for field, kind in _FIELDS.items():
        if field not in content:
            raise DatasetError(f"{path} lacks '{field}': make the root again")
        if type(content[field]) is not kind:
            raise DatasetError(f"{path}: '{field}' must be a {kind.__name__}: make the root again")
    if content["format_version"] != FORMAT_VERSION:
        raise DatasetError(
            f"{path} has format version {one_line(content['format_version'], 20)}, this alphafuse reads "
            f"{FORMAT_VERSION}: make the root again or install the alphafuse that made it"
        )
    if not isinstance(content.get("stores", STORES), str):
        raise DatasetError(f"{path}: 'stores' must be a str: make the root again")
    texts = [content[field] for field, kind in _FIELDS.items() if kind is str] + [content.get("stores", STORES)]
    for text in (*texts, *content["classes"]):
        if not isinstance(text, str) or not is_clean(text):
            raise DatasetError(
                f"{path} has '{one_line(text, 80)}', which is not text, is empty, longer than {MAX_TEXT} characters or "
                "has control characters: make the root again"
            )
    if len(set(content["classes"])) < len(content["classes"]):
        raise DatasetError(f"{path} lists a class twice: make the root again")


def _read_streams(path: Path, content: list[Any]) -> tuple[Stream, ...]:
    try:
        return require_different([Stream.from_json(one) for one in content])
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}: make the root again") from None


def _require_local(root: str | Path) -> None:
    """Raise `DatasetError` for a URL, which a `Path` turns into `s3:/...`."""
    if re.match(r"[a-z][a-z0-9+]+:/", str(root)):
        raise DatasetError(
            f"'{one_line(root)}' is a URL: a root is a local folder; its clips and stores may lie behind URLs "
            "(--clips, --stores of alphafuse data ...)"
        )


def _as_recorded(folder: Path, root: Path) -> str:
    """Return a folder as dataset.json names it: relative to the root if inside, else its absolute path or URL."""
    if is_remote(folder):
        return str(folder)
    folder = folder.resolve()
    return str(folder.relative_to(root) if folder.is_relative_to(root) else folder)


def _folder_of(recorded: str, root: Path) -> Path:
    """Return the folder that dataset.json names."""
    return to_path(recorded) if "://" in recorded else root / recorded


def _existing_stores(root: Path) -> str | None:
    content = read_json(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    return content["stores"] if isinstance(content.get("stores"), str) else None


def _sizes(clips: Sequence[Clip], size_of: Callable[[str], int | None]) -> dict[str, int]:
    """Return clip_id -> bytes of all its files, for clips whose files exist; `size_of` of no file is None."""
    found = {}
    for clip in clips:
        total = 0
        for address in clip.addresses:
            file, part = split_address(address)
            size = size_of(file)
            if size is None:
                break
            total += part[1] if part else size
        else:
            found[clip.clip_id] = total
    return found


def _file_size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def streams_of(root: Path) -> tuple[Stream, ...]:
    """Return the streams of the root in this folder; `DEFAULT_STREAMS` if there is no root."""
    path = root / "dataset.json"
    content = read_json(path).get("streams") if path.is_file() else None
    return _read_streams(path, content) if isinstance(content, list) else DEFAULT_STREAMS


def require_labelled_by(labelled_by: str | None) -> str | None:
    """Return it; raise `DatasetError` unless it is None or one of `LABELLED_BY`."""
    if labelled_by not in (None, *LABELLED_BY):
        raise DatasetError(unknown("way of labelling", one_line(labelled_by, 40), LABELLED_BY))
    return labelled_by


def labelled_by_of(root: Path) -> str | None:
    """Return how the labels of the root in this folder were given; None if that isn't known, or there is no root."""
    path = root / "dataset.json"
    return _read_labelled_by(path, read_json(path)) if path.is_file() else None


def _read_labelled_by(path: Path, content: dict[str, Any]) -> str | None:
    try:
        return require_labelled_by(content["labelled_by"]) if "labelled_by" in content else None
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}: correct 'labelled_by', or remove it") from None


def require_own_root(root: Path, name: str) -> None:
    """Raise `DatasetError` if writing this root would lose another dataset, a split, or a manifest edited by hand."""
    if not (root / "dataset.json").is_file():
        return
    existing = read_json(root / "dataset.json")
    manifest = root / "manifest.csv"
    if existing.get("name") != name:
        what = f"the root of another dataset ('{one_line(existing.get('name'), 80)}')"
    elif isinstance(existing.get("source"), dict) and "split" in existing["source"]:
        what = "a root that `alphafuse data split` made"
    elif (root / "dropped.csv").is_file():
        what = "a root from which clips were dropped (`alphafuse data drop --undo` puts them back)"
    elif manifest.is_file() and _sha256(manifest) != existing.get("manifest_sha256"):
        what = "a root whose manifest.csv was edited"
    else:
        return
    raise DatasetError(f"'{root}' is {what}: name another --root, or remove {root / 'dataset.json'} first")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

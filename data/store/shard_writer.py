"""Write a shard in the format that `shard.py` describes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import h5py
import numpy as np

from alphafuse.data.embeddings import ROWS_AT_ONCE, Embeddings, finite_rows
from alphafuse.data.streams import require_stream
from alphafuse.errors import StoreError
from alphafuse.system.files import MAX_TEXT, is_clean, one_line

from .hdf5 import MAX_ATTRIBUTE_BYTES, READ_ERRORS, content_sha256
from .shard import FAILURE_COLUMNS, FORMAT_VERSION


def shard_bytes(rows: Embeddings, provenance: Mapping[str, Any]) -> bytes:
    """Return a shard's file, made in memory so that one write stores it; errors as in `write_shard`.

    Features in float16 are stored as such, all others as float32.
    """
    buffer = io.BytesIO()
    blocks = (
        {name: matrix[start : start + ROWS_AT_ONCE] for name, matrix in rows.features.items()}
        for start in range(0, len(rows.windows), ROWS_AT_ONCE)
    )
    kinds = {
        name: np.dtype((np.float16 if matrix.dtype == np.float16 else np.float32, (matrix.shape[1],)))
        for name, matrix in rows.features.items()
    }
    write_shard(buffer, rows, provenance, kinds=kinds, blocks=blocks)
    return buffer.getvalue()


def write_shard(
    file: BinaryIO,
    rows: Embeddings,
    provenance: Mapping[str, Any],
    *,
    kinds: Mapping[str, np.dtype[Any]],
    blocks: Iterable[Mapping[str, np.ndarray]],
    room: int = 0,
) -> None:
    """Write a shard into a file that is open for reading and writing.

    Args:
        file: an empty file.
        rows: everything to store but the features, which may be too large for memory.
        provenance: json-able facts that don't decide the numbers.
        kinds: stream -> type of a row: dim numbers of float32 or float16, as `np.dtype((type, dim))`.
        blocks: stream -> (some rows, dim), one block of rows after the other.
        room: bytes to reserve on the disk before anything is written.

    Raises:
        StoreError: an id, label or group is one that readers refuse, or recipes are missing or not json-able.
        OSError: the file can't be written.
    """
    _require_storable(rows, kinds)
    recipes = _json({name: dict(value) for name, value in rows.recipes.items()}, "recipes")
    made = _json(provenance, "provenance")
    shard = h5py.File(file, "w", libver="earliest")
    try:
        if room:
            _reserve(file, room)
        shard.attrs["format_version"] = FORMAT_VERSION
        for name, text in (("recipes", recipes), ("provenance", made), ("sha256", "-" * 64)):
            kind = h5py.string_dtype("utf-8", len(text.encode()))
            shard.attrs.create(name, np.array(text.encode(), kind), dtype=kind)
        datasets = _write(shard, rows, kinds, blocks)
        shard.attrs.modify("sha256", np.array(content_sha256(recipes, datasets).encode(), kind))
    except BaseException:
        with contextlib.suppress(*READ_ERRORS):  # libhdf5 fails to close a file that it can't write
            shard.close()
        raise
    try:
        shard.close()
    except RuntimeError as error:
        raise OSError(errno.EIO, one_line(error)) from error


def _write(
    shard: h5py.File, rows: Embeddings, kinds: Mapping[str, np.dtype[Any]], blocks: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, h5py.Dataset]:
    """Write all datasets and return name -> dataset.

    A dataset gets its place in the file when it is filled. So all are made first, and filled in the order in which they
    are read: what resuming over a network needs is contiguous at the beginning, the features are at the end.
    """
    values = {"clip_id": _text(rows.clip_ids), "offsets": rows.offsets.astype("<i8")}
    for column, attribute in FAILURE_COLUMNS.items():
        reasons = (one_line(getattr(failure, attribute), MAX_TEXT) for failure in rows.failures)
        values[f"failures/{column}"] = _text(reasons)
    for name in kinds:
        values[f"streams/{name}/present"] = np.zeros(len(rows.windows), np.uint8)
    labels = (json.dumps(labels, ensure_ascii=False) for labels in rows.label_lists)
    values |= {"labels": _text(labels), "group": _text(rows.groups), "bytes": rows.file_bytes.astype("<i8")}
    values |= {"windows": rows.windows.astype("<f8"), "digest": _text(rows.digests, "ascii")}
    shard.create_group("streams")
    datasets = {name: shard.create_dataset(name, array.shape, array.dtype) for name, array in values.items()}
    features = {
        name: shard.create_dataset(f"streams/{name}/features", (len(rows.windows), *kind.shape), kind.base)
        for name, kind in kinds.items()
    }
    for name, array in values.items():
        if array.size:
            datasets[name][...] = array
    start = 0
    for block in blocks:
        stop = start + len(next(iter(block.values()), ()))
        for name, part in block.items():
            part = part.astype(features[name].dtype, copy=False)
            features[name][start:stop] = part
            datasets[f"streams/{name}/present"][start:stop] = finite_rows(part)
        start = stop
    return datasets | {dataset.name[1:]: dataset for dataset in features.values()}


def _reserve(file: BinaryIO, room: int) -> None:
    """Reserve disk space, or raise `OSError`: libhdf5 may crash if the disk becomes full while it writes."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, room)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def _require_storable(rows: Embeddings, streams: Iterable[str]) -> None:
    columns = {"clip_id": rows.clip_ids, "label": rows.labels, "group": rows.groups}
    failed = [failure.clip_id for failure in rows.failures]
    further = [label for labels in rows.label_lists for label in labels[1:]]
    for name, column in (*columns.items(), ("clip_id", failed), ("label", further)):
        for value in column:
            if not is_clean(value):
                raise StoreError(
                    f"{name} '{one_line(value, 40)}' is empty, longer than {MAX_TEXT} characters or has control "
                    "characters: rename it"
                )
    for failure in rows.failures:
        require_stream(failure.stream)
    for stream in streams:
        if stream not in rows.recipes:
            raise StoreError(
                f"{stream} embeddings without a recipe can't be stored: recipes['{stream}'] must say what made them"
            )


def _text(values: Iterable[str], encoding: str = "utf-8") -> np.ndarray:
    """Return (texts,) of fixed length, that of the longest."""
    encoded = [value.encode() for value in values]
    return np.array(encoded, h5py.string_dtype(encoding, max(1, *map(len, encoded)) if encoded else 1))


def _json(content: Mapping[str, Any], name: str) -> str:
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{name} can't be stored as json: {one_line(error)}") from None
    if len(text) > MAX_ATTRIBUTE_BYTES:
        raise StoreError(
            f"{name} take {len(text)} bytes, more than the {MAX_ATTRIBUTE_BYTES} that a shard has room for"
        )
    return text

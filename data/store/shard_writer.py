"""Writing a shard, as `shard.py` describes it."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import h5py
import numpy as np

from alphafuse.data.embeddings import MODALITIES, Embeddings, finite_rows
from alphafuse.errors import StoreError, unknown
from alphafuse.system.files import MAX_TEXT, is_clean, one_line

from .heaps import MAX_ATTRIBUTE_BYTES
from .shard import FAILURE_COLUMNS, FORMAT_VERSION, READ_ERRORS, SLICE_BYTES, content_sha256

if TYPE_CHECKING:
    from .lazy import StoredEmbeddings


def shard_bytes(rows: Embeddings, provenance: Mapping[str, Any]) -> bytes:
    """A shard's file, made in memory so that it is written to the disk in one go; errors as in `write_shard`."""
    buffer = io.BytesIO()
    half = {modality for modality, matrix in rows.features.items() if matrix.dtype == np.float16}
    write_shard(buffer, rows, provenance, half=half)
    return buffer.getvalue()


def write_shard(
    file: BinaryIO,
    rows: Embeddings | StoredEmbeddings,
    provenance: Mapping[str, Any],
    *,
    half: Collection[str] = (),
    room: int = 0,
) -> None:
    """Write a shard into a file that is open for reading and writing; features go through memory a few MB at a time.

    Args:
        file: an empty file.
        rows: what to store.
        provenance: json-able facts that don't decide the numbers.
        half: modalities to store as float16; the others as float32.
        room: bytes to reserve on the disk before anything is written.

    Raises:
        StoreError: an id, label or group that no reader would accept, or recipes that aren't there or aren't json.
        OSError: the file can't be written.
    """
    columns = {"clip_id": rows.clip_ids, "label": rows.labels, "group": rows.groups}
    _require_storable(rows, columns)
    recipes = _json({name: dict(value) for name, value in rows.recipes.items()}, "recipes")
    made = _json(provenance, "provenance")
    shard = h5py.File(file, "w", libver="earliest")
    try:
        if room:
            _reserve(file, room)
        datasets = {name: _write_text(shard, name, column) for name, column in columns.items()}
        for column in FAILURE_COLUMNS:
            values = [one_line(getattr(failure, column), MAX_TEXT) for failure in rows.failures]
            datasets[f"failures/{column}"] = _write_text(shard, f"failures/{column}", values)
        shard.attrs["format_version"] = FORMAT_VERSION
        for name, text in (("recipes", recipes), ("provenance", made), ("sha256", "-" * 64)):
            kind = h5py.string_dtype("utf-8", len(text.encode()))
            shard.attrs.create(name, np.array(text.encode(), kind), dtype=kind)
        datasets |= _write_features(shard, rows, half)  # last: what is looked at over a network lies side by side
        shard.attrs.modify("sha256", np.array(content_sha256(recipes, datasets).encode(), kind))
    except BaseException:
        with contextlib.suppress(*READ_ERRORS):  # libhdf5 can't close a file that it can't write
            shard.close()
        raise
    try:
        shard.close()
    except RuntimeError as error:
        raise OSError(errno.EIO, one_line(error)) from error


def features_bytes(rows: StoredEmbeddings) -> int:
    """What the features of these rows take in a shard, as float32."""
    return len(rows) * sum(np.dtype(np.float32).itemsize * dim for dim in rows.dims.values())


def _reserve(file: BinaryIO, room: int) -> None:
    """Take disk space: it is there, or an `OSError` says so before libhdf5, which takes that badly, finds out."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, room)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def _require_storable(rows: Embeddings | StoredEmbeddings, columns: Mapping[str, Iterable[str]]) -> None:
    failed = [failure.clip_id for failure in rows.failures]
    for name, column in (*columns.items(), ("clip_id", failed)):
        for value in column:
            if not is_clean(value):
                raise StoreError(
                    f"{name} '{one_line(value, 40)}' is empty, longer than {MAX_TEXT} characters or has control "
                    "characters: rename it"
                )
    for failure in rows.failures:
        if failure.modality not in MODALITIES:
            raise StoreError(unknown("modality", failure.modality, MODALITIES))
    for modality in rows.dims:
        if modality not in rows.recipes:
            raise StoreError(f"{modality} embeddings without recipes can't be stored: say what made them")


def _write_features(
    shard: h5py.File, rows: Embeddings | StoredEmbeddings, half: Collection[str]
) -> dict[str, h5py.Dataset]:
    """Write each modality's features, and which of them are embeddings."""
    features, masks = {}, {}
    for modality, dim in rows.dims.items():
        dtype = np.float16 if modality in half else np.float32
        features[modality] = shard.create_dataset(modality, (len(rows), dim), dtype)  # takes its room when it is filled
        masks[modality] = shard.create_dataset(f"present/{modality}", data=np.zeros(len(rows), np.uint8))
    step = max(1, SLICE_BYTES // (4 * max(rows.dims.values(), default=1)))
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        for modality, values in rows.read_rows(np.arange(start, stop)).items():
            values = values.astype(features[modality].dtype, copy=False)
            features[modality][start:stop] = values
            masks[modality][start:stop] = finite_rows(values)
    return features | {f"present/{modality}": mask for modality, mask in masks.items()}


def _write_text(shard: h5py.File, name: str, values: Iterable[str]) -> h5py.Dataset:
    encoded = [value.encode() for value in values]
    kind = h5py.string_dtype("utf-8", max(map(len, encoded), default=1))
    return shard.create_dataset(name, data=np.array(encoded, kind))


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

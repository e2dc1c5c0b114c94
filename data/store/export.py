"""Embeddings as files of other formats, written a few MB at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from alphafuse.data.embeddings import ROWS_AT_ONCE

if TYPE_CHECKING:
    from .lazy import StoredEmbeddings


def _blocks(rows: StoredEmbeddings) -> Iterator[np.ndarray]:
    """Positions of all rows in order, some at a time."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield np.arange(start, min(start + ROWS_AT_ONCE, len(rows)))


def write_npz(file: BinaryIO, rows: StoredEmbeddings) -> None:
    """What `numpy.savez` writes, without all of it in memory.

    Arrays: clip_id, label and group (clips,), each modality (clips, dim) float32 with NaN where a clip has none.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, column in (("clip_id", rows.clip_ids), ("label", rows.labels), ("group", rows.groups)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(column), allow_pickle=False)
        for modality, dim in rows.dims.items():
            with archive.open(f"{modality}.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), dim)}
                np.lib.format.write_array_header_1_0(member, header)
                for positions in _blocks(rows):
                    member.write(rows.read_rows(positions)[modality].astype("<f4", copy=False).tobytes())


def write_parquet(file: BinaryIO, rows: StoredEmbeddings) -> None:
    """The same columns, features as lists of float32, a row group per block; a clip without an embedding has null."""
    import pyarrow
    import pyarrow.parquet

    vector = pyarrow.list_(pyarrow.float32())
    texts = [(name, pyarrow.string()) for name in ("clip_id", "label", "group")]
    schema = pyarrow.schema(texts + [(name, vector) for name in rows.dims])
    present = {modality: rows.present(modality) for modality in rows.dims}
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for positions in _blocks(rows):
            block = rows.take(positions)
            columns = [
                pyarrow.array(column, pyarrow.string()) for column in (block.clip_ids, block.labels, block.groups)
            ]
            for modality, values in rows.read_rows(positions).items():
                absent = ~present[modality][positions]
                starts = np.concatenate([[0], np.cumsum(~absent) * values.shape[1]]).astype(np.int32)
                mask = pyarrow.array(absent)
                columns.append(pyarrow.ListArray.from_arrays(starts, values[~absent].ravel(), vector, mask=mask))
            writer.write_table(pyarrow.table(columns, schema=schema))

"""Export embeddings to files of other formats, a few MB at a time."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

import numpy as np

from .lazy import StoredEmbeddings


def write_npz(file: BinaryIO, rows: StoredEmbeddings) -> None:
    """Write the same file as `numpy.savez`, without all arrays in memory.

    Arrays: clip_id, label, group, bytes and digest (clips,); windows (rows, 2) and offsets (clips + 1,); each stream
    (rows, dim) float32, NaN if absent.
    """
    columns = rows.columns()
    arrays: dict[str, object] = {"clip_id": columns.clip_ids, "label": columns.labels, "group": columns.groups}
    arrays |= {"bytes": columns.file_bytes, "digest": columns.digests}
    arrays |= {"windows": columns.windows, "offsets": columns.offsets}
    with zipfile.ZipFile(file, "w") as archive:
        for name, column in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(column), allow_pickle=False)
        for stream, dim in rows.dims.items():
            with archive.open(f"{stream}.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(columns.windows), dim)}
                np.lib.format.write_array_header_1_0(member, header)
                for _, features in rows.only([stream]).blocks(columns.offsets):
                    member.write(features[stream].astype("<f4", copy=False).tobytes())


def write_parquet(file: BinaryIO, rows: StoredEmbeddings) -> None:
    """Write a row per window, in row groups of one block each.

    Columns: clip_id, label, group, bytes, digest, start and end (seconds), and each stream as a list of float32.
    Unknown and absent values are null.
    """
    import pyarrow
    import pyarrow.parquet

    columns, vector = rows.columns(), pyarrow.list_(pyarrow.float32())
    kinds = {name: pyarrow.string() for name in ("clip_id", "label", "group")}
    kinds |= {
        "bytes": pyarrow.int64(),
        "digest": pyarrow.string(),
        "start": pyarrow.float64(),
        "end": pyarrow.float64(),
    }
    schema = pyarrow.schema([*kinds.items(), *((name, vector) for name in rows.dims)])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for positions, features in rows.blocks(columns.offsets):
            block = columns.take(positions)
            clips, windows = block.row_clips, block.windows
            values = [[column[i] for i in clips] for column in (block.clip_ids, block.labels, block.groups)]
            values += [[None if block.file_bytes[i] < 0 else int(block.file_bytes[i]) for i in clips]]
            values += [[block.digests[i] or None for i in clips]]
            arrays = [pyarrow.array(value, kind) for value, kind in zip(values, kinds.values(), strict=False)]
            arrays += [pyarrow.array(windows[:, i], pyarrow.float64(), mask=np.isnan(windows[:, i])) for i in (0, 1)]
            for matrix in features.values():
                absent = np.isnan(matrix[:, 0])
                starts = np.concatenate([[0], np.cumsum(~absent) * matrix.shape[1]]).astype(np.int32)
                mask = pyarrow.array(absent)
                arrays.append(pyarrow.ListArray.from_arrays(starts, matrix[~absent].ravel(), vector, mask=mask))
            writer.write_table(pyarrow.table(arrays, schema=schema))

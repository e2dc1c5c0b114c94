"""A parquet file of vectors: a row per clip, columns of texts, and a column of lists of numbers per stream."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.streams import in_order
from alphafuse.errors import DatasetError
from alphafuse.system.files import one_line

ROWS_AT_ONCE = 20_000  # 61 MB of one 768-d stream
TEXTS = ("clip_id", "label", "split", "group")


class VectorFile:
    """A parquet file that can be read some rows at a time; its errors are `DatasetError`s of one line.

    Attributes:
        file: its path.
        names: columns that hold vectors, in the order of streams.
        texts: column -> (rows,), for those of `TEXTS` that the file has.
        ignored: other columns.
    """

    def __init__(self, file: Path) -> None:
        try:
            from pyarrow import parquet
        except ImportError:
            raise DatasetError("reading parquet needs pyarrow: run `pip install 'alphafuse[parquet]'`") from None
        self.file = file
        with self._one_line_errors():
            self._parquet = parquet.ParquetFile(file)
            schema = self._parquet.schema_arrow
            self.names = in_order(field.name for field in schema if _is_vector(field.type))
            self.texts = {
                column: [
                    text for batch in self._parquet.iter_batches(columns=[column]) for text in _texts(batch, column)
                ]
                for column in TEXTS
                if column in schema.names
            }
            self.ignored = [column for column in schema.names if column not in (*TEXTS, *self.names)]
        if not self.names:
            raise DatasetError(f"{file} has no column of lists of numbers: each such column is a stream of embeddings")
        twice = [clip_id for clip_id, count in Counter(self.clip_ids).items() if count > 1]
        if twice:
            raise DatasetError(f"{file}: clip_id '{one_line(twice[0], 80)}' occurs twice: give each clip one row")

    @property
    def clip_ids(self) -> list[str]:
        """Return (rows,) clip_ids; raise `DatasetError` if the file has none."""
        return self.require("clip_id")

    def require(self, column: str) -> list[str]:
        """Return a column of texts; raise `DatasetError` if the file lacks it."""
        if column not in self.texts:
            raise DatasetError(f"{self.file} has no column {column}: it has a row per clip, with clip_id and label")
        return self.texts[column]

    @cached_property
    def sha256(self) -> str:
        """Checksum of the file."""
        with self.file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    def dim(self, name: str) -> int:
        """Return the length of a column's first vector."""
        with self._one_line_errors():
            for batch in self._parquet.iter_batches(ROWS_AT_ONCE, columns=[name]):
                lengths = _lengths(batch.column(name))
                if lengths.any():
                    return int(lengths[lengths > 0][0])
        raise DatasetError(f"{self.file}: column {name} has no vector: leave it out")

    def blocks(self, dims: Mapping[str, int]) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
        """Yield clip_ids and stream -> (rows, dim) float32, NaN where there is no vector, some rows at a time."""
        with self._one_line_errors():
            for batch in self._parquet.iter_batches(ROWS_AT_ONCE, columns=["clip_id", *dims]):
                clip_ids = _texts(batch, "clip_id")
                yield clip_ids, {name: self._matrix(batch.column(name), dim, clip_ids) for name, dim in dims.items()}

    def _matrix(self, column: Any, dim: int, clip_ids: list[str]) -> np.ndarray:
        import pyarrow

        lengths = _lengths(column)
        wrong = np.flatnonzero((lengths != dim) & (lengths > 0))
        if len(wrong):
            raise DatasetError(
                f"{self.file}: the vector of clip '{one_line(clip_ids[wrong[0]], 80)}' has {lengths[wrong[0]]} "
                f"numbers, others of its column have {dim}: correct it"
            )
        matrix = np.full((len(lengths), dim), np.nan, np.float32)
        values = column.cast(pyarrow.list_(pyarrow.float32()), safe=False).flatten()
        matrix[lengths > 0] = values.to_numpy(zero_copy_only=False).reshape(-1, dim)
        return matrix

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except FileNotFoundError:
            raise DatasetError(f"no such file: {self.file}") from None
        except (OSError, ArrowException) as error:
            raise DatasetError(
                f"{self.file} can't be read: {one_line(error)}: write it as parquet, with texts and lists of numbers"
            ) from None


def _is_vector(kind: Any) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def _texts(batch: Any, column: str) -> list[str]:
    return [text or "" for text in batch.column(column).cast("string").to_pylist()]


def _lengths(column: Any) -> np.ndarray:
    """Return (rows,) int: the number of numbers of each vector, 0 for null."""
    from pyarrow import compute

    lengths: np.ndarray = compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(column.is_null().to_numpy(zero_copy_only=False), 0, lengths)

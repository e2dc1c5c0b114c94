"""Reading and writing small files so that nothing is ever half there."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alphafuse.errors import AlphafuseError, DatasetError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all, also when the machine stops.

    The content goes to a temporary name in the same folder, is fsynced and renamed; the folder is fsynced last.

    Raises:
        AlphafuseError: the disk is full, or the folder can't be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise AlphafuseError(
            f"can't write {path}: {error.strerror or error}: free some space or choose another folder, then run the "
            "same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Non-blank rows of a UTF-8 csv as (line number, columns); `DatasetError` when it can't be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            return [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError:
        raise DatasetError(f"no such csv: {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} can't be read as csv: {error}") from None


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as UTF-8 csv, atomically."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    write_atomically(path, buffer.getvalue().encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file; `DatasetError` when it can't be read or isn't an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path} can't be read as json: {error}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path} must hold a json object, not {type(content).__name__}")
    return content


def write_json(path: Path, content: object) -> None:
    """Write json, indented, atomically; NaN is refused, for it is not json."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

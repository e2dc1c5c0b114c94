"""Reading and writing small files so that nothing is ever half there."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from alphafuse.errors import AlphafuseError, DatasetError

MAX_TEXT = 4096  # characters of a name, as long as Linux lets a path be
# control characters, and what hides or turns around the text beside it; joiners (U+200C, U+200D) belong to scripts
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def is_clean(text: str) -> bool:
    """Whether a name is not empty, not absurdly long, and shows what it is: no control or direction characters."""
    return 0 < len(text) <= MAX_TEXT and (text.isprintable() or not _HIDDEN.search(text))


def one_line(value: object, most: int = 300) -> str:
    """A value as text for a message: hidden characters escaped, cut after `most` characters."""
    text = str(value)
    text = text if len(text) <= most else text[: most - 3] + "..."
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all, also when the machine stops.

    The content goes to a temporary name in the same folder, is fsynced and renamed; the folder is fsynced last.

    Raises:
        AlphafuseError: the disk is full, or the folder can't be written; nothing is left behind.
    """
    with open_atomically(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Like `write_atomically`, for content that is written piece by piece: it appears when the block ends well.

    What the block itself raises passes through, `OSError` as an `AlphafuseError`.
    """
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.partial")  # unique among hosts and threads
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise AlphafuseError(
            f"can't write {one_line(path, 1000)}: {error.strerror or one_line(error)}: {_way_out(error)}, then run the "
            "same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a renaming last; file systems that can't do that for a folder say so in different ways."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _way_out(error: OSError) -> str:
    """What mends it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space or choose another folder"
    if error.errno == errno.EFBIG:
        return "raise the limit on file sizes (`ulimit -f unlimited`)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make the folder writable or choose another"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return "something else has that name: move it away or choose another folder"
    if error.errno == errno.ENOENT:
        return "the folder was removed meanwhile: bring it back or choose another"
    return "see to the disk or choose another folder"


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

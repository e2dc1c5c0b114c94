"""Small files, read with one-line errors and written atomically; paths that may be URLs."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar, cast

from alphafuse.errors import AlphafuseError, DatasetError

Given = TypeVar("Given", bound="str | Path")
MAX_TEXT = 4096  # characters of a name: the longest path of Linux
MAX_LINE = 2**18  # characters of a csv's row
MAX_JSON_BYTES = 2**28
_PART = re.compile(r"(.+)@(\d+)\+(\d+)", re.DOTALL)  # an address that is a part of a file
DIGEST_BYTES = 2**16  # of each end of a file
UNKNOWN_BYTES = -1  # where a file's size is expected
# control characters, and characters that hide or reorder text; joiners (U+200C, U+200D) are part of some scripts
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
# what makes a URL a secret: a password or a web token before the host, or a parameter that signs or identifies
_SECRET = re.compile(  # one slash: as a `Path` shows a URL
    r"(?P<web>https?://?)[^/?#@\s'\"]+(?=@)|(?P<other>:/{1,2})[^/?#@\s'\"]*:[^/?#@\s'\"]*(?=@)"
    r"|(?P<name>[?&;](?:x-(?:amz|goog|ms|oss)-[\w-]+|awsaccesskeyid|googleaccessid|signature|sig|apikey"
    r"|(?:[\w-]*[_-])?(?:token|key|secret|password|passwd|pwd|credentials?|auth))=)[^&;#\s'\"]+",
    re.IGNORECASE,
)


def file_digest(path: Path) -> tuple[int, str]:
    """A file's size in bytes, and the sha256, in hexadecimal digits, of its first 64 KiB followed by its last 64 KiB.

    Of a shorter file that is all of it twice. So a file that was replaced by another is noticed without reading it
    all: a video differs in its headers, and mostly in its size. `OSError` when it can't be read.

    >>> from pathlib import Path
    >>> _ = Path("a").write_bytes(b"abc")
    >>> file_digest(Path("a"))
    (3, 'bbb59da3af939f7af5f360f2ceb80a496e3bae1cd87dde426db0ae40677e1c2c')
    """
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(DIGEST_BYTES))
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - DIGEST_BYTES))
        digest.update(file.read(DIGEST_BYTES))
    return size, digest.hexdigest()


def joined_digest(digests: Sequence[str]) -> str:
    """Return the digest of a clip in several files, from theirs; that of the file if it is one."""
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def split_address(address: str) -> tuple[str, tuple[int, int] | None]:
    """Return the file of an address, and the first byte and the number of bytes if the address is a part of it.

    >>> split_address("videos.tar@1536+48210")
    ('videos.tar', (1536, 48210))
    >>> split_address("dog.mp4")
    ('dog.mp4', None)
    """
    match = _PART.fullmatch(address)
    return (match[1], (int(match[2]), int(match[3]))) if match else (address, None)


def is_clean(text: str) -> bool:
    """Whether a name is 1 to `MAX_TEXT` characters long, none of them a control or direction character."""
    return 0 < len(text) <= MAX_TEXT and (text.isprintable() or not _HIDDEN.search(text))


def without_secrets(text: str) -> str:
    """Return a text with `***` in place of passwords, tokens and signatures in URLs.

    >>> without_secrets("can't open https://me:pass@example.org/a.mp4?token=abc&part=2")
    "can't open https://***@example.org/a.mp4?token=***&part=2"
    """
    if ":/" not in text and "=" not in text:
        return text
    return _SECRET.sub(lambda found: f"{found['web'] or found['other'] or found['name']}***", text)


def require_no_secrets(text: str) -> None:
    """Raise `AlphafuseError`, which doesn't show them, if a URL has a password, a token or a signature in it."""
    if without_secrets(text) != text:
        raise AlphafuseError(
            f"the URL {one_line(text, 200)} has a password, a token or a signature in it, which would be written into "
            "files: give the URL without it, and the credentials by the environment (s3://: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; gs://: GOOGLE_APPLICATION_CREDENTIALS; hf://: HF_TOKEN; https://: "
            "a .netrc file)"
        )


def each(given: Given | Iterable[Given]) -> tuple[Given, ...]:
    """Return one text or path, or several of them, as a tuple.

    >>> each("a.mp4"), each(["a.mp4", "b.mp4"])
    (('a.mp4',), ('a.mp4', 'b.mp4'))
    """
    return (given,) if isinstance(given, (str, Path)) else tuple(given)


def one_line(value: object, most: int = 300) -> str:
    """Return a value as text for a message: hidden characters escaped, secrets left out, at most `most` characters."""
    text = without_secrets(str(value)[: most + MAX_TEXT])  # before it is cut, which could hide the end of a secret
    text = text if len(text) <= most else text[: most - 3] + "..."
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def to_path(place: str | Path) -> Path:
    """Return a `upath.UPath`, which works like a `pathlib.Path`, for a URL (text with "://"); a `Path` for all else.

    Paths are returned unchanged; a `file://` URL becomes the local path that it names.

    Raises:
        AlphafuseError: a package that the URL needs isn't installed, the URL is invalid, or it holds credentials.

    >>> to_path("stores/train").as_posix(), to_path("file:///data/clips").as_posix()
    ('stores/train', '/data/clips')
    """
    if not isinstance(place, str):
        return place if hasattr(place, "fs") else Path(place)
    if "://" not in place:
        return Path(place)
    require_no_secrets(place)
    shown = one_line(place, 1000)
    if not is_clean(place):
        raise AlphafuseError(f"'{shown}' has control characters or is longer than {MAX_TEXT} characters: rename it")
    try:
        from upath import UPath

        made: Any = UPath(place)
        if made.protocol in ("", "file", "local"):
            return Path(made.path)
        made = made.parent / made.name if place.endswith("/") and made.name else made
        made.fs  # noqa: B018  # loads the file system's class: a missing package is reported here
    except ImportError as error:
        raise AlphafuseError(
            f"'{shown}' needs a package that isn't installed ({one_line(error)}): run `pip install "
            "'alphafuse[remote]'`, and install the file system's own, such as s3fs for s3:// or gcsfs for gs://"
        ) from None
    except Exception as error:  # ValueError for an unknown scheme, and whatever a file system's class raises
        raise AlphafuseError(f"'{shown}' can't be used: {one_line(error)}: check the address") from None
    if not made.path.strip("/"):
        raise AlphafuseError(f"'{shown}' names no bucket or folder: check the address")
    return cast(Path, made)


def write_atomically(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file that appears whole or not at all, even if the machine stops meanwhile.

    The content is written under a temporary name in the same folder, fsynced and renamed; the folder is fsynced last.
    With `replace=False` an existing file stays as it is.

    Raises:
        AlphafuseError: the disk is full, or the folder can't be written; the temporary file is removed.
    """
    with open_atomically(path, replace=replace) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomically(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Like `write_atomically`, for content that is written piece by piece: it appears when the block ends.

    With `replace=False`, a file that exists when the block ends stays as it is, and the new content is dropped.
    An exception in the block drops the content and passes through, an `OSError` as an `AlphafuseError`.
    """
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.partial")  # unique among hosts and threads
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace or not _give_name(temporary, path):
            temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise AlphafuseError(
            f"can't write {one_line(path, 1000)}: {error.strerror or one_line(error)}: {_remedy(error)}, then run the "
            "same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _give_name(temporary: Path, path: Path) -> bool:
    """Hard-link a file to `path` unless that exists; False if there are no hard links and `path` is free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EINVAL):
            raise
        return path.exists()
    return True


def _sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename survives a crash; file systems that can't do it are left alone."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _remedy(error: OSError) -> str:
    """Return what the user can do about an error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space or choose another folder"
    if error.errno == errno.EFBIG:
        return "raise the limit on file sizes (`ulimit -f unlimited`)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make the folder writable or choose another"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return "a file or folder of that name is in the way: move it or choose another folder"
    if error.errno == errno.ENOENT:
        return "the folder was removed meanwhile: restore it or choose another"
    return "check the disk or choose another folder"


def iterate_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the non-blank rows of a UTF-8 csv as (line number, columns); memory is bounded by `MAX_LINE`.

    Raises:
        DatasetError: the file is missing or isn't UTF-8 csv; the line is named.
    """
    reader = None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = _Lines(file)
            reader = csv.reader(lines, strict=True)
            for row in reader:
                lines.row_length = 0
                if row:
                    yield reader.line_num, row
    except FileNotFoundError:
        raise DatasetError(f"no such csv: {one_line(path, 1000)}") from None
    except UnicodeDecodeError:
        raise DatasetError(_other_encoding(path)) from None
    except csv.Error as error:
        line = reader.line_num if reader is not None else 0
        raise DatasetError(f"{one_line(path, 1000)} line {line} can't be read as csv: {one_line(error)}") from None
    except OSError as error:
        raise DatasetError(f"{one_line(path, 1000)} can't be read as csv: {one_line(error)}") from None


def _other_encoding(path: Path) -> str:
    """Return the message for a csv that isn't UTF-8: the first such line, and how to convert the file."""
    name, guess, line = one_line(path, 1000), "windows-1252", 0
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
            guess = "utf-16"
        while content := file.readline(MAX_LINE):
            line += 1
            try:
                content.decode()
            except UnicodeDecodeError:
                break
    return (
        f"{name} line {line} is not UTF-8 but probably {guess}: save the file as 'CSV UTF-8', or run `iconv -f {guess} "
        f"-t utf-8 {name} > utf8.csv`"
    )


def require_commas(path: Path, header: Sequence[str]) -> None:
    """Raise `DatasetError` if a csv's first row shows that its columns are separated by something else, or UTF-16."""
    if len(header) == 1:
        if "\0" in header[0]:
            raise DatasetError(_other_encoding(path))
        for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if sign in header[0]:
                raise DatasetError(
                    f"{one_line(path, 1000)} line 1 separates its columns by {name}: save it with commas (in a "
                    "spreadsheet: a csv of the English format), and put labels that hold commas in double quotes"
                )


class _Lines:
    """The lines of a file; raises `csv.Error` for a row of more than `MAX_LINE` characters."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.row_length = 0  # characters of the row being read: a quoted field may hold line breaks

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_LINE + 1)
        self.row_length += len(line)
        if self.row_length > MAX_LINE:
            raise csv.Error(f"a row is longer than {MAX_LINE} characters")
        if not line:
            raise StopIteration
        return line


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Return all rows of `iterate_csv`."""
    return list(iterate_csv(path))


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as UTF-8 csv, atomically and one by one, so that an iterator may yield more than memory holds."""
    with open_atomically(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        text.detach()  # flushes without closing the file


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a json file; raise `DatasetError` if it can't be read or isn't an object."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES} bytes")
        content = json.loads(text.decode("utf-8-sig"))
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, not json, or an integer of too many digits
        raise DatasetError(f"{one_line(path, 1000)} can't be read as json: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{one_line(path, 1000)} must hold a json object, not {type(content).__name__}")
    return content


def write_json(path: Path, content: object) -> None:
    """Write indented json atomically; raise ValueError for NaN, which json lacks."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

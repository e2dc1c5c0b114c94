"""The files of a store's shards, in a folder or behind a URL: listed, opened, added, removed."""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from alphafuse.data.columns import in_parts
from alphafuse.errors import AlphafuseError, StoreError
from alphafuse.system.files import one_line, write_atomically
from alphafuse.system.remote import (
    BLOCK_BYTES,
    FIRST_BLOCKS_AT_ONCE,
    first_blocks,
    is_remote,
    list_objects,
    remove,
    write_object,
)

from .shard import Shard, open_shard

PARTIAL_SECONDS = 3600  # a temporary file older than this was left by a killed writer
KEPT_HEADS = 256  # first blocks of objects, 64 KiB each
_SHARD_NAME = re.compile(r"shard-\d{20}-[0-9a-f]{8,64}\.h5")


def shard_name(stamp_ns: int, clip_ids: Iterable[str]) -> str:
    """The name of a shard that all attempts at one commit agree on.

    Args:
        stamp_ns: when the commit was decided, in nanoseconds since 1970; of two shards the one with the smaller counts.
        clip_ids: the clips that it stores, rows and failures, in any order.

    >>> shard_name(1_700_000_000_000_000_000, ["b", "a"])
    'shard-01700000000000000000-59b271ae1bbcb1d3.h5'
    """
    digest = hashlib.sha256("\0".join(sorted(set(clip_ids))).encode("utf-8", "surrogatepass"))
    return f"shard-{stamp_ns:020d}-{digest.hexdigest()[:16]}.h5"


def require_shard_name(name: str) -> None:
    """Raise `StoreError` for a name that `shard_name` doesn't make."""
    if not _SHARD_NAME.fullmatch(name):
        raise StoreError(f"no shard can be named '{one_line(name, 80)}': let shard_name make its name")


class ShardFiles:
    """The shards of one folder; of objects, it remembers the sizes, and the first blocks of some."""

    def __init__(self, folder: Path) -> None:
        """Read nothing yet."""
        self.folder = folder
        self._sizes: dict[str, int] = {}  # of objects, as they were listed
        self._heads: OrderedDict[str, bytes] = OrderedDict()  # their first blocks, of some

    def listed(self) -> list[Path]:
        """Shard files, oldest first; empty when the folder does not exist. Behind a URL this is one listing.

        Raises:
            StoreError: the URL's bucket doesn't exist, or can't be reached.
        """
        if not is_remote(self.folder):
            return sorted(self.folder.glob("shard-*.h5"))
        try:
            found = list_objects(self.folder)
        except AlphafuseError as error:
            raise StoreError(str(error)) from None
        self._sizes = {name: size for name, size in found.items() if fnmatchcase(name, "shard-*.h5")}
        return [self.folder / name for name in sorted(self._sizes)]

    def size_bytes(self) -> int:
        """What all shards take; 0 when the folder does not exist."""
        listed = self.listed()
        return sum(self._sizes[path.name] if is_remote(path) else path.stat().st_size for path in listed)

    def has(self, name: str) -> bool:
        """Whether a shard of this name is there now."""
        path = self.folder / name
        return path in self.listed() if is_remote(path) else os.path.lexists(path)

    def open(self, path: Path) -> Shard:
        """Open a listed shard."""
        if not is_remote(path):
            return open_shard(path)
        return open_shard(path, size=self._sizes.get(path.name), head=self._heads.get(path.name, b""))

    def each(self, paths: Iterable[Path]) -> Iterator[Path]:
        """These shards one by one; the first blocks of objects are fetched some time before, side by side."""
        for some in in_parts(paths, FIRST_BLOCKS_AT_ONCE):
            wanted = {
                path: self._sizes[path.name]
                for path in some
                if path.name not in self._heads and path.name in self._sizes
            }
            if is_remote(self.folder):
                self._heads |= {path.name: head for path, head in first_blocks(wanted).items()}
            yield from some
            while len(self._heads) > KEPT_HEADS:
                self._heads.popitem(last=False)

    def add(self, content: bytes, name: str | None) -> Path:
        """Write a shard, atomically; one that has this name already stays. `name`: None = a new one."""
        path = self.new(name)
        if is_remote(path):
            write_object(path, content, replace=name is None)
            if name is None:
                self._heads[path.name] = content[:BLOCK_BYTES]  # what the next look at the recipes would fetch
        else:
            write_atomically(path, content, replace=name is None)
        return path

    def new(self, name: str | None = None) -> Path:
        """The path for a name, or one that no other writer, on whatever machine, has; what killed ones left goes."""
        self._remove_leftovers()
        return self.folder / (name or f"shard-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.h5")

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove these shards; some may be gone."""
        for path in paths:
            if is_remote(path):
                remove(path)
            else:
                path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        if is_remote(self.folder):
            return  # an object is there when all of it is
        for partial in self.folder.glob(".shard-*.partial"):
            try:
                if time.time() - partial.stat().st_mtime > PARTIAL_SECONDS:
                    partial.unlink()
            except FileNotFoundError:
                pass  # another writer was faster

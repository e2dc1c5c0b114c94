"""List, open, add and remove the files of a store's shards, in a folder or behind a URL."""

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
KEPT_HEADS = 256  # cached first blocks of objects, 64 KiB each
_SHARD_NAME = re.compile(r"shard-\d{20}-[0-9a-f]{8,64}\.h5")


def shard_name(stamp_ns: int, clip_ids: Iterable[str]) -> str:
    """Return the name of a shard, the same for all attempts at one commit.

    Args:
        stamp_ns: time of the commit, in nanoseconds since 1970; of two shards the one with the smaller stamp counts.
        clip_ids: its clips, with rows or failures, in any order.

    >>> shard_name(1_700_000_000_000_000_000, ["b", "a"])
    'shard-01700000000000000000-59b271ae1bbcb1d3.h5'
    """
    digest = hashlib.sha256("\0".join(sorted(set(clip_ids))).encode("utf-8", "surrogatepass"))
    return f"shard-{stamp_ns:020d}-{digest.hexdigest()[:16]}.h5"


def require_shard_name(name: str) -> None:
    """Raise `StoreError` unless the name is one that `shard_name` makes."""
    if not _SHARD_NAME.fullmatch(name):
        raise StoreError(f"'{one_line(name, 80)}' is not a valid name of a shard: use shard_name")


class ShardFiles:
    """The shards of one folder; for objects behind URLs, it caches the sizes, and the first blocks of some."""

    def __init__(self, folder: Path) -> None:
        """Store the folder; nothing is read."""
        self.folder = folder
        self._sizes: dict[str, int] = {}  # sizes of objects, as listed
        self._heads: OrderedDict[str, bytes] = OrderedDict()  # first blocks of some objects

    def listed(self) -> list[Path]:
        """Return shard files, oldest first; empty if the folder does not exist. For a URL this is one listing.

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
        """Return the size of all shards in bytes; 0 if the folder does not exist."""
        listed = self.listed()
        return sum(self._sizes[path.name] if is_remote(path) else path.stat().st_size for path in listed)

    def has(self, name: str) -> bool:
        """Whether a shard of this name exists now."""
        path = self.folder / name
        return path in self.listed() if is_remote(path) else os.path.lexists(path)

    def open(self, path: Path) -> Shard:
        """Open a listed shard."""
        if not is_remote(path):
            return open_shard(path)
        return open_shard(path, size=self._sizes.get(path.name), head=self._heads.get(path.name, b""))

    def each(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Yield these shards one by one; first blocks of objects are prefetched in parallel."""
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
        """Write a shard atomically, unless one of this name exists; return its path. `name`: None = a new name."""
        path = self.new(name)
        if is_remote(path):
            write_object(path, content, replace=name is None)
            if name is None:
                self._heads[path.name] = content[:BLOCK_BYTES]  # the next check of the recipes needs this block
        else:
            write_atomically(path, content, replace=name is None)
        return path

    def new(self, name: str | None = None) -> Path:
        """Return the path for this name, or a path unique on all machines; remove leftovers of killed writers."""
        self._remove_leftovers()
        return self.folder / (name or f"shard-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.h5")

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove these shards; some may be removed already."""
        for path in paths:
            if is_remote(path):
                remove(path)
            else:
                path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        if is_remote(self.folder):
            return  # objects appear whole, so there are no leftovers
        for partial in self.folder.glob(".shard-*.partial"):
            try:
                if time.time() - partial.stat().st_mtime > PARTIAL_SECONDS:
                    partial.unlink()
            except FileNotFoundError:
                pass  # another writer removed it

"""HDF5's "global heaps", where strings of variable length live, checked before libhdf5 reads one.

Earlier versions wrote such strings into shards. libhdf5 (2.0) does not survive a damaged heap: of 2,700 random damages
to a small shard nine hung it and one crashed it, of 20,000 to a shard without such a heap none did.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MAX_ATTRIBUTE_BYTES = 60_000  # HDF5's own limit is 64 KiB
REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])  # a string of variable length on disk
BLOCK_BYTES = 4 * 2**20
REFERENCES_AT_ONCE = 65_536
_SIGNATURE = b"GCOL\x01"
_HEADER = _OBJECT_HEADER = 16  # bytes
_LEAST = 4096  # libhdf5 refuses a smaller one itself


@functools.lru_cache(maxsize=4096)
def require_sound_heaps(path: Path, size: int, *version: int) -> None:
    """Check every global heap in a file: where libhdf5 believes to find one, its objects must fill it, one by one.

    Whatever address a string names, libhdf5 reads a heap there only behind this signature. An object of no length
    would hold it up for ever. And it makes room for a string before it looks whether the heap has it.

    `version` says which file it is, so that each is checked once.
    """
    end, start, tail = 0, 0, b""
    with path.open("rb") as file:
        for length in _attribute_lengths(file.fileno()):
            if length > MAX_ATTRIBUTE_BYTES:
                raise ValueError(f"an attribute is longer than {MAX_ATTRIBUTE_BYTES} bytes")
        while block := file.read(BLOCK_BYTES):
            content, first = tail + block, start - len(tail)
            found = content.find(_SIGNATURE)
            while found >= 0:
                place = first + found
                heap_size = int.from_bytes(os.pread(file.fileno(), 8, place + 8), "little")
                if _LEAST <= heap_size <= size - place:  # else libhdf5 refuses it
                    if place < end:
                        raise ValueError("its heaps overlap")
                    _require_sound_heap(os.pread(file.fileno(), heap_size, place))
                    end = place + heap_size
                found = content.find(_SIGNATURE, found + 1)
            start += len(block)
            tail = content[1 - len(_SIGNATURE) :]


def _require_sound_heap(heap: bytes) -> None:
    place = _HEADER
    while len(heap) - place >= _OBJECT_HEADER:
        index, _, _, length = struct.unpack_from("<HHIQ", heap, place)
        # object 0 is what is free, its own header included; the others are padded to 8 bytes
        taken = length if index == 0 else _OBJECT_HEADER + (length + 7) // 8 * 8
        if not _OBJECT_HEADER <= taken <= len(heap) - place:
            raise ValueError("a heap of it is damaged")
        place += taken


def _attribute_lengths(file: int) -> Iterator[int]:
    """Lengths that the root group's attributes of variable length claim, which h5py doesn't tell.

    See "Version 1 Data Object Header Prefix" and "Attribute Message, version 1" in the HDF5 File Format Specification.
    """
    (address,) = struct.unpack("<Q", os.pread(file, 8, 64))
    _, size = struct.unpack("<8sI", os.pread(file, 12, address))
    blocks = [(address + 16, size)]
    while blocks and len(blocks) < 64:
        address, size = blocks.pop()
        block, place = os.pread(file, min(size, 2**20), address), 0
        while place + 8 <= len(block):
            kind, length, shared = struct.unpack_from("<HHB", block, place)
            body = block[place + 8 : place + 8 + length]
            place += 8 + length
            if kind == 0x10:  # the header goes on elsewhere
                blocks.append(struct.unpack_from("<QQ", body))
            elif kind == 0x0C:
                version, names, types, spaces = struct.unpack_from("<BxHHH", body)
                if version != 1 or shared:
                    raise ValueError("an attribute is not written as in shards")
                names, types, spaces = ((part + 7) // 8 * 8 for part in (names, types, spaces))
                if body[8 + names] & 0x0F == 9:  # of variable length
                    yield struct.unpack_from("<I", body, 8 + names + types + spaces)[0]
            elif kind == 0x15:
                raise ValueError("its attributes lie in a heap")


def require_own_text(path: Path, name: str, offset: int, length: int) -> None:
    """Raise `ValueError` where the strings of a dataset take more bytes than the file has: one is there twice.

    Args:
        path: the file.
        name: the dataset's.
        offset, length: where its references to strings begin, in bytes, and how many there are.
    """
    total = 0
    with path.open("rb") as file:
        file.seek(offset)
        for start in range(0, length, REFERENCES_AT_ONCE):
            count = min(REFERENCES_AT_ONCE, length - start)
            references = np.frombuffer(file.read(count * REFERENCE.itemsize), REFERENCE)
            total += int(references["length"].sum(dtype=np.int64))
        if total > os.fstat(file.fileno()).st_size:
            raise ValueError(f"{name} claims {total} bytes of text, which the file doesn't hold")

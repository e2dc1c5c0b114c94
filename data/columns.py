"""Compact sequences of str for the ids, labels and groups of millions of clips.

A Python string of 18 characters takes 67 bytes, and 8 more in a tuple. `Texts` holds the UTF-8 bytes of all its texts
in a row, and the end of each (4 bytes). Texts that repeat, such as labels, are held once, with 1 to 4 bytes per clip.
 `Places` finds the position of a text with 12 bytes per clip; a dict takes about 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, TypeVar, overload

import numpy as np

AT_ONCE = 65_536  # texts that are made strings at a time: about 5 MB
MOST_NAMES = 2**16  # a column with up to this many different texts is held as codes of 1 or 2 bytes
Item = TypeVar("Item")


def in_parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


class Texts(Sequence[str]):
    """An immutable sequence of str, equal to a tuple of the same; slices and `take` share its bytes."""

    __slots__ = ("_content", "_ends", "_rows")
    _content: np.ndarray
    _ends: np.ndarray
    _rows: np.ndarray | None

    def __init__(self, texts: Iterable[str] = ()) -> None:
        made = texts if isinstance(texts, Texts) else TextsBuilder().extend(texts).build()
        self._content, self._ends, self._rows = made._content, made._ends, made._rows

    @classmethod
    def of_parts(cls, content: np.ndarray, ends: np.ndarray, rows: np.ndarray | None) -> Texts:
        """Make texts from uint8 UTF-8 bytes, the end of each text in them, and the texts to take (None = all)."""
        texts = cls.__new__(cls)
        texts._content, texts._ends, texts._rows = content, ends, rows
        return texts

    def __reduce__(self) -> tuple[Any, ...]:
        whole = self if self._rows is None or len(self._rows) * 2 > len(self._ends) else self.copy()
        return Texts.of_parts, (whole._content, whole._ends, whole._rows)

    def __len__(self) -> int:
        return len(self._ends if self._rows is None else self._rows)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Texts({len(self)}: {shown}{', ...' if len(self) > 3 else ''})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Texts | tuple | list):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Texts: ...

    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = range(len(self))[index]
        return self._text(row if self._rows is None else int(self._rows[row]))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_ONCE):
            yield from self.strings(start, start + AT_ONCE)

    @property
    def nbytes(self) -> int:
        """Memory in bytes, shared parts included."""
        rows = 0 if self._rows is None else self._rows.nbytes
        return self._content.nbytes + self._ends.nbytes + rows

    def strings(self, start: int, stop: int) -> list[str]:
        """Return the texts of a slice as strings; use short slices to save memory."""
        if self._rows is not None:
            rows = self._rows[start:stop]
            if len(self._ends) <= len(rows):  # a few texts that repeat
                names = self.of_parts(self._content, self._ends, None).strings(0, len(self._ends))
                return [names[row] for row in rows.tolist()]
            return self._texts(rows)
        ends = self._ends[start:stop]
        if not len(ends):
            return []
        first = int(self._ends[start - 1]) if start else 0
        whole = self._content[first : int(ends[-1])].tobytes()
        bounds = [0, *(ends - ends.dtype.type(first)).tolist()]
        if whole.isascii():
            text = whole.decode("ascii")
            return [text[a:b] for a, b in pairwise(bounds)]
        return [whole[a:b].decode() for a, b in pairwise(bounds)]

    def take(self, positions: np.ndarray) -> Texts:
        """Return the texts at these positions (an integer array)."""
        kept = positions if self._rows is None else self._rows[positions]
        return self.of_parts(self._content, self._ends, kept.astype(smallest_int(len(self._ends)), copy=False))

    def copy(self) -> Texts:
        """Return a copy that shares no bytes with other `Texts`."""
        return Texts(iter(self))

    def distinct(self) -> tuple[str, ...]:
        """Return the different texts, sorted."""
        if self._rows is None or len(self._ends) > MOST_NAMES:
            return tuple(sorted(set(self)))
        return tuple(sorted(self._texts(np.unique(self._rows))))

    def indices_in(self, names: Sequence[str]) -> np.ndarray:
        """Return (texts,) int64: the position of each in `names`; `KeyError` names the first that isn't in them."""
        position = {name: index for index, name in enumerate(names)}
        if self._rows is None or len(self._ends) > MOST_NAMES:
            return np.fromiter((position[text] for text in self), np.int64, len(self))
        table = np.array([position.get(text, -1) for text in self._texts(np.arange(len(self._ends)))], np.int64)
        found = table[self._rows]
        if (found < 0).any():
            raise KeyError(self[int(np.argmax(found < 0))])
        return found

    def _text(self, row: int) -> str:
        first = int(self._ends[row - 1]) if row else 0
        return self._content[first : int(self._ends[row])].tobytes().decode()

    def _texts(self, rows: np.ndarray) -> list[str]:
        """Return the texts of any rows."""
        rows = rows.astype(np.int64, copy=False)  # because 0 - 1 wraps around in unsigned integers
        starts = np.where(rows > 0, self._ends[rows - 1], 0).tolist()
        content = self._content.data
        return [str(content[a:b], "utf-8") for a, b in zip(starts, self._ends[rows].tolist(), strict=True)]


class TextsBuilder:
    """Makes `Texts` from parts, with no more memory than the result takes."""

    def __init__(self) -> None:
        self._codes: dict[str, int] | None = {}  # None: too many different texts
        self._rows: list[np.ndarray] = []
        self._content, self._lengths = bytearray(), list[np.ndarray]()

    def add(self, texts: list[str]) -> None:
        """Append some texts."""
        if self._codes is None:
            self._add_plain(texts)
            return
        codes = self._codes
        rows = [codes.setdefault(text, len(codes)) for text in texts]
        self._rows.append(np.array(rows, smallest_int(len(codes))))
        if len(codes) > MOST_NAMES:
            names, parts = list(codes), self._rows
            self._codes, self._rows = None, []
            for part in parts:
                self._add_plain([names[row] for row in part.tolist()])

    def extend(self, texts: Iterable[str]) -> TextsBuilder:
        """Append texts one by one; returns itself."""
        part: list[str] = []
        for text in texts:
            part.append(text)
            if len(part) == AT_ONCE:
                self.add(part)
                part = []
        if part:
            self.add(part)
        return self

    def build(self) -> Texts:
        """Return the appended texts and empty the builder."""
        rows = None
        if self._codes is not None:
            kind = smallest_int(len(self._codes))
            rows = np.concatenate([part.astype(kind, copy=False) for part in self._rows] or [np.zeros(0, kind)])
            self._add_plain(list(self._codes))
        content = np.frombuffer(self._content, np.uint8)  # not a copy, which would double the memory
        content.setflags(write=False)
        lengths, self._lengths = self._lengths, []
        kind = np.uint32 if len(content) < 2**32 else np.uint64
        ends = np.cumsum(np.concatenate(lengths or [np.zeros(0, np.uint32)]), dtype=kind)
        self.__init__()  # type: ignore[misc]
        return Texts.of_parts(content, ends, rows)

    def _add_plain(self, texts: list[str]) -> None:
        whole = "".join(texts)
        encoded = whole.encode()
        self._content += encoded
        if len(encoded) == len(whole):
            self._lengths.append(np.fromiter(map(len, texts), np.uint32, len(texts)))
        else:
            self._lengths.append(np.array([len(text.encode()) for text in texts], np.uint32))


def smallest_int(count: int) -> type[np.signedinteger[Any]] | type[np.unsignedinteger[Any]]:
    """Return the smallest dtype that holds positions below `count`."""
    for kind in (np.uint8, np.uint16, np.int32):
        if count - 1 <= np.iinfo(kind).max:
            return kind
    return np.int64


def row_int(count: int) -> type[np.signedinteger[Any]]:
    """Return the dtype of row numbers below `count` and -1: int32 if that is enough, else int64."""
    return np.int32 if count - 1 <= np.iinfo(np.int32).max else np.int64


class Places:
    """Finds positions of texts: by a sorted array of Python's hashes, then by comparing the texts."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        hashes = np.empty(len(texts), np.int64)
        for start in range(0, len(texts), AT_ONCE):
            part = texts.strings(start, start + AT_ONCE)
            hashes[start : start + len(part)] = np.fromiter(map(hash, part), np.int64, len(part))
        order = np.argsort(hashes, kind="stable")
        self._order = order.astype(smallest_int(len(texts)))
        del order
        self._hashes = hashes[self._order]

    def firsts(self) -> np.ndarray:
        """Return the positions of the first occurrence of each text, ascending."""
        same = np.zeros(len(self._hashes), bool)
        same[1:] = self._hashes[1:] == self._hashes[:-1]
        later = np.flatnonzero(same)
        for start in range(0, len(later), AT_ONCE):
            part = later[start : start + AT_ONCE]
            texts = [self._texts.take(self._order[places]).strings(0, len(part)) for places in (part, part - 1)]
            if texts[0] != texts[1]:  # different texts of one hash
                return np.sort([*{text: row for row, text in reversed([*enumerate(self._texts)])}.values()])
        return np.sort(self._order[~same].astype(np.int64))

    def repeated(self) -> tuple[str, int] | None:
        """Return the first text that occurs more than once and its count; None if all are different."""
        same = self._hashes[1:] == self._hashes[:-1]
        if not same.any():
            return None
        counts: dict[str, list[int]] = {}
        for place in np.unique(np.concatenate([np.flatnonzero(same), np.flatnonzero(same) + 1])):
            row = int(self._order[place])
            counts.setdefault(self._texts[row], []).append(row)
        several = [(min(rows), text) for text, rows in counts.items() if len(rows) > 1]
        return (min(several)[1], len(counts[min(several)[1]])) if several else None

    def find(self, texts: list[str]) -> np.ndarray:
        """Return (texts,) int64: the position of each, -1 if absent; of a repeated text, any of its positions."""
        found = np.full(len(texts), -1, np.int64)
        if not len(self._hashes):
            return found
        hashes = np.fromiter(map(hash, texts), np.int64, len(texts))
        order = np.argsort(hashes)  # so that the search passes through memory once
        place = np.empty(len(texts), np.int64)
        place[order] = np.searchsorted(self._hashes, hashes[order])
        open_ = np.flatnonzero(place < len(self._hashes))
        open_ = open_[self._hashes[place[open_]] == hashes[open_]]
        while len(open_):  # a second time only for different texts of one hash
            candidates = self._order[place[open_]]
            found_texts = self._texts.take(candidates).strings(0, len(candidates))
            same = np.fromiter((texts[i] == text for i, text in zip(open_.tolist(), found_texts, strict=True)), bool)
            found[open_[same]] = candidates[same]
            open_ = open_[~same]
            place[open_] += 1
            open_ = open_[place[open_] < len(self._hashes)]
            open_ = open_[self._hashes[place[open_]] == hashes[open_]]
        return found

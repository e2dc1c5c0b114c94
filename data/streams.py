"""Streams, the named sources of embeddings: an encoder with its preprocessing and pooling. Doesn't load torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from alphafuse.errors import AlphafuseError, DatasetError, StoreError, unknown
from alphafuse.system.files import MAX_TEXT, is_clean, one_line, require_no_secrets

MEDIA = ("video", "audio")
SENSES = {"video": "sight", "audio": "sound"}  # the words for readers
MEDIUM_WORDS = {**{medium: medium for medium in MEDIA}, **{sense: medium for medium, sense in SENSES.items()}}
PROTOCOLS = ("standard", "notebook")  # how inputs are prepared: see alphafuse.extract.decoding.specs
DEFAULT_PROTOCOL = "standard"
OPTIONS = ("medium", "frames", "rate", "seconds", "pool", "protocol", "precision")
COMPACT = "compact"  # the small encoders of the package, for the demo and for trying
GIVEN = "given"  # the encoder of embeddings that a user brings
ALL = "all"  # every stream, as in --on all
# names that other words need: `all`, `both` and `fused` in options and results, the rest in torch's named collections
RESERVED = frozenset(("all", "both", "fused", "none", "clear", "copy", "get", "items", "keys", "pop", "popitem"))
RESERVED |= {"fromkeys", "setdefault", "training", "type", "update", "values"}
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


def is_code(encoder: str) -> bool:
    """Whether an encoder's name is Python code: "package.module:name"."""
    return bool(re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", encoder))


def medium_of_word(word: str) -> str:
    """Return the medium that a word names: "video" or "sight", "audio" or "sound"; `DatasetError` for another word."""
    if word not in MEDIUM_WORDS:
        raise DatasetError(unknown("medium", one_line(word, 40), MEDIUM_WORDS))
    return MEDIUM_WORDS[word]


def require_name(name: str) -> None:
    """Raise `DatasetError` unless this can be a stream's name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DatasetError(
            f"'{one_line(name, 60)}' can't name a stream: use up to 40 of a-z, 0-9 and '-', a letter first"
        )
    if name in RESERVED:
        raise DatasetError(f"'{name}' can't name a stream, because the word is taken: choose another name")


@dataclass(frozen=True)
class Stream:
    """A named source of embeddings.

    Attributes:
        name: lower-case letters, digits and "-", at most 40; what --on, tables and files say.
        encoder: hub id, folder, "compact", "package.module:name", or "given" for embeddings that a user brings.
        medium: "video" or "audio"; "sight" and "sound" are taken as these.
        options: what the family of the encoder leaves to choose: some of `OPTIONS`, as text.

    Raises:
        DatasetError: an invalid name, medium or option.

    >>> from alphafuse import Stream
    >>> Stream("dino", "facebook/dinov2-base", "video", {"frames": "16"})
    Stream(dino=facebook/dinov2-base,frames=16)
    """

    name: str
    encoder: str
    medium: str
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        require_name(self.name)
        if not is_clean(self.encoder):
            raise DatasetError(
                f"stream {self.name}: the encoder '{one_line(self.encoder, 80)}' is empty, longer than {MAX_TEXT} "
                "characters or has control characters: name a hub id, a folder or 'compact'"
            )
        try:
            object.__setattr__(self, "medium", medium_of_word(self.medium))
            require_no_secrets(self.encoder)
        except AlphafuseError as error:
            raise DatasetError(f"stream {self.name}: {error}") from None
        object.__setattr__(self, "options", dict(sorted(self.options.items())))
        for name, value in self.options.items():
            if not isinstance(value, str) or not is_clean(value):
                raise DatasetError(f"stream {self.name}: option {one_line(name, 40)} must be a text, not {value!r}")
        if self.protocol not in PROTOCOLS:
            raise DatasetError(unknown("protocol", self.protocol, PROTOCOLS))

    def __repr__(self) -> str:
        return f"Stream({self.name}={','.join((self.encoder, *(f'{k}={v}' for k, v in self.options.items())))})"

    @property
    def title(self) -> str:
        """The name in tables: that of the paper for its own streams."""
        return title_of(self.name)

    @property
    def is_code(self) -> bool:
        """Whether the encoder is Python code, "package.module:name"."""
        return is_code(self.encoder)

    def with_options(self, **options: str | None) -> Stream:
        """Return the stream with these options; None leaves an option as it is."""
        given = {name: value for name, value in options.items() if value is not None}
        return replace(self, options={**self.options, **given}) if given else self

    @property
    def protocol(self) -> str:
        """How inputs are prepared: one of `PROTOCOLS`."""
        return self.options.get("protocol", DEFAULT_PROTOCOL)

    @classmethod
    def recorded(
        cls, name: str, made: Mapping[str, Any], recipe: Mapping[str, Any], *, encoder: str | None = None
    ) -> Stream:
        """Return a stream as a store's or a run's provenance records it, in the precision of its embeddings.

        Args:
            name: its name.
            made: what provenance says of its encoder: name, medium, options.
            recipe: the recipe of its embeddings.
            encoder: its encoder, if it has moved.
        """
        stream = cls(name, encoder or made["name"], made["medium"], made["options"])
        return stream.with_options(precision=recipe.get("precision"))

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object) -> Stream:
        """The inverse of `to_json`; `DatasetError` if it isn't one."""
        fields = {"name": str, "encoder": str, "medium": str, "options": dict}
        if not isinstance(content, dict) or set(content) != set(fields):
            raise DatasetError(f"a stream has {', '.join(fields)}, not {one_line(content, 80)}")
        for name, kind in fields.items():
            if type(content[name]) is not kind:
                raise DatasetError(f"'{name}' of a stream must be a {kind.__name__}")
        return cls(**content)


DEFAULT_STREAMS = (  # the paper's
    Stream("timesformer", "facebook/timesformer-base-finetuned-k400", "video"),
    Stream("ast", "MIT/ast-finetuned-audioset-10-10-0.4593", "audio"),
)
DEFAULT_NAMES = tuple(stream.name for stream in DEFAULT_STREAMS)
TITLES = dict(zip(DEFAULT_NAMES, ("TimeSformer", "AST"), strict=True))


def title_of(name: str) -> str:
    """Return a stream's name in tables: that of the paper for its own streams."""
    return TITLES.get(name, name)


def require_stream(name: str) -> None:
    """Raise `StoreError` unless a stream can have this name."""
    try:
        require_name(name)
    except DatasetError as error:
        raise StoreError(str(error)) from None


def require_different(streams: Sequence[Stream]) -> tuple[Stream, ...]:
    """Return streams in order; raise `DatasetError` for two of one name, or for none."""
    names = [stream.name for stream in streams]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DatasetError(f"two streams are named '{twice[0]}': give each a name of its own")
    if not streams:
        raise DatasetError("at least one stream is needed: --stream NAME=ENCODER")
    return tuple(sorted(streams, key=lambda stream: _place(stream.name)))


def merged(streams: Iterable[Stream], others: Iterable[Stream]) -> list[Stream]:
    """Return streams and others; of two with one name, the other."""
    return list({stream.name: stream for stream in (*streams, *others)}.values())


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of streams in the order of all tables, files and vectors: the default ones, then by name."""
    return sorted(names, key=_place)


def names_of(streams: str | Iterable[str], media: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of streams that a user gives as one text or as several; () is all.

    Args:
        streams: names, such as "ast", "ast,clap" or ["ast", "clap"]; "sight" and "sound" are all streams of video and
            of audio, unless a stream has that name; "all" is ().
        media: stream -> medium, of the streams that there are.

    Raises:
        DatasetError: a name that isn't text.

    >>> names_of("sound", {"timesformer": "video", "ast": "audio"}), names_of("ast, clap", {})
    (('ast',), ('ast', 'clap'))
    """
    given = streams.split(",") if isinstance(streams, str) else streams
    found: list[str] = []
    for one in given:
        if not isinstance(one, str):
            require_name(one)
        name = one.strip()
        own = [stream for stream, medium in media.items() if SENSES[medium] == name and name not in media]
        found += own or [name]
    return () if ALL in found else tuple(in_order(dict.fromkeys(found)))


def _place(name: str) -> tuple[int, str]:
    return (DEFAULT_NAMES.index(name) if name in DEFAULT_NAMES else len(DEFAULT_NAMES), name)

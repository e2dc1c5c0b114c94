"""Encoders of the two default streams, from folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from alphafuse.data.streams import DEFAULT_STREAMS, Stream
from alphafuse.extract.encoders.encoder import Encoder, Placement
from alphafuse.extract.encoders.families import load_encoder


def stream_of(name: str, encoder: str | Path, **options: str) -> Stream:
    """Return a default stream with another encoder."""
    default = next(stream for stream in DEFAULT_STREAMS if stream.name == name)
    return replace(default, encoder=str(encoder)).with_options(**options)


def load(name: str, encoder: str | Path, placement: Placement | None = None, **options: str) -> Encoder:
    """Load the encoder of a default stream."""
    return load_encoder(stream_of(name, encoder, **options), placement)


def load_all(encoders: Mapping[str, str | Path], placement: Placement | None = None) -> dict[str, Encoder]:
    """Load the encoders of default streams: name of the stream -> its encoder."""
    return {name: load(name, encoder, placement) for name, encoder in encoders.items()}

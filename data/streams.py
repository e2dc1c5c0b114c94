"""Streams, the named sources of embeddings: names, default encoders and preprocessing. Doesn't load torch."""

from __future__ import annotations

from collections.abc import Iterable

from alphafuse.errors import StoreError, unknown

MODALITIES = ("timesformer", "ast")  # the order of streams in tables, files and reports
DEFAULT_TIMESFORMER = "facebook/timesformer-base-finetuned-k400"
DEFAULT_AST = "MIT/ast-finetuned-audioset-10-10-0.4593"
PROTOCOLS = ("standard", "notebook")  # how inputs are prepared: see alphafuse.extract.decoding.specs
DEFAULT_PROTOCOL = "standard"


def require_stream(name: str) -> None:
    """Raise `StoreError` unless a stream has this name."""
    if name not in MODALITIES:
        raise StoreError(unknown("modality", name, MODALITIES))


def in_order(names: Iterable[str]) -> list[str]:
    """Return these names in the order of `MODALITIES`."""
    return sorted(names, key=MODALITIES.index)

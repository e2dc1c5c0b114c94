"""Configs of heads in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from alphafuse.heads.model.config import Experiment, HeadConfig, HeadSettings

SETTINGS = tuple(field.name for field in fields(HeadSettings))


def head_config(dims: Mapping[str, int], classes: Sequence[str], **changes: Any) -> HeadConfig:
    """Return the config of a head of all these streams, from fields of `Experiment` and `HeadSettings`."""
    settings = {name: changes.pop(name) for name in SETTINGS if name in changes}
    experiment = Experiment(**changes).of(dims) if dims else Experiment(**changes)
    return HeadConfig(dims, tuple(classes), experiment, HeadSettings(**settings))

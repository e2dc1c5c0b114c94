"""Checks of dataclass fields; they raise one-line errors. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from alphafuse.errors import ExperimentError, unknown

Fields = TypeVar("Fields")


def pick(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values that are fields of the dataclass `kind`."""
    return {one.name: values[one.name] for one in fields(kind) if one.name in values}


def from_fields(kind: type[Fields], content: Mapping[str, Any], *, what: str = "field") -> Fields:
    """Build a dataclass from a mapping of its fields, such as parsed json; `ExperimentError` for an unknown field."""
    for name in content:
        check_choice(what, name, [one.name for one in fields(kind)])  # type: ignore[arg-type]
    return kind(**content)


def check_choice(what: str, given: str, known: Iterable[str]) -> None:
    """Raise `ExperimentError` unless the name is a known one."""
    if given not in known:
        raise ExperimentError(unknown(what, given, known))


def check_count(what: str, value: int) -> None:
    """Raise `ExperimentError` unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ExperimentError(f"{what} must be a whole number of at least 1, not {value!r}")


def check_share(what: str, value: float) -> None:
    """Raise `ExperimentError` unless the value is in [0, 1)."""
    if not 0 <= value < 1:
        raise ExperimentError(f"{what} must be in [0, 1), not {value}")

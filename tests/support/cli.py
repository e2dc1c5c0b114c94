"""Checks of the errors of commands."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]


def assert_one_line_error(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2 and out == "", (code, out, err)
    assert err.startswith("alphafuse: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err

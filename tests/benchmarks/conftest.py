"""Run scripts in this process as from their command lines."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

Script = Callable[..., tuple[int, str, str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Call a script's `main` with these words on its command line: exit code, stdout, stderr."""

    def run(main: Callable[[], None], *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["script", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run

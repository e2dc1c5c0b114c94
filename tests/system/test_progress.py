"""The bar: what it says, and where."""

from __future__ import annotations

import io
import sys

import pytest

from alphafuse.system.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, unit: str, total: int, *steps: int) -> str:
    """Return what a bar writes to a terminal on stderr while stdout is none."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    bar = Bar()
    bar.start("predict", total=total, unit=unit)
    for step in steps:
        bar.advance(step)
    bar.stop()
    assert sys.stdout.getvalue() == ""  # type: ignore[attr-defined]
    return terminal.getvalue()


def test_a_bar_counts_items_and_seconds_on_stderr_wherever_stdout_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(monkeypatch, "clip", 51, 51)
    assert "predict:   0%" in text and "0/51 clips, 0 s" in text and "51/51 clips, 0 s, " in text and "clips/s" in text
    assert "it/s" not in text and "left" not in text.rpartition("51/51")[2]
    assert "0/1 head, 0 s" in drawn(monkeypatch, "head", 1) and "0/2 passes" in drawn(monkeypatch, "pass", 2)


def test_a_bar_writes_nothing_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", plain := io.StringIO())
    bar = Bar()
    bar.start("predict", total=3)
    bar.advance(3)
    bar.stop()
    assert plain.getvalue() == ""

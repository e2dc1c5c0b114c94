"""A real browser for tests of pages: the system's headless Chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [  # no sandbox: CI runs as root; the other flags disable updates
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@contextmanager
def running_chromium() -> Iterator[Any]:
    """Start a browser; the test is skipped with a reason if none is installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed: pip install playwright")
    named = os.environ.get("ALPHAFUSE_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium found: install the system's package, or name one with ALPHAFUSE_CHROMIUM")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


def wait_until(page: Any, expression: str, *, seconds: float = 30.0) -> None:
    """Wait until a JavaScript expression is true; polled from outside, because a page may forbid eval."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {expression}"
        page.wait_for_timeout(20)


def keep_screenshot(page: Any, name: str, folder: Path) -> Path:
    """Save a screenshot of the whole page in ALPHAFUSE_SCREENSHOTS, or else in this folder."""
    path = Path(os.environ.get("ALPHAFUSE_SCREENSHOTS") or folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        page.screenshot(path=path, full_page=True)
    except pytest.importorskip("playwright.sync_api").Error as error:
        if "Unable to capture" not in str(error):
            raise
        page.screenshot(path=path, full_page=True)  # Chromium's, where the machine is busy
    return path

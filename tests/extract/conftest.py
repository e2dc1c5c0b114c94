"""Shared fixtures of the tests of extraction."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.clips import write_clip
from support.extraction import LOOKS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small clips."""
    folder = tmp_path_factory.mktemp("clips")
    for look in range(LOOKS):
        write_clip(folder / f"{look}.mp4", frames=12, look=look)
    return folder

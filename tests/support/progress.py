"""A Progress that records its calls."""

from __future__ import annotations

from alphafuse.system.progress import Progress


class RecordedProgress(Progress):
    """Progress that records rounds as (title, total, unit), counts of advance, and the number of stops."""

    def __init__(self) -> None:
        self.rounds: list[tuple[str, int, str]] = []
        self.done: list[int] = []
        self.stopped = 0

    def start(self, title: str, *, total: int, done: int = 0, unit: str = "clip") -> None:
        self.rounds.append((title, total, unit))

    def advance(self, count: int = 1, **of_which: int) -> None:
        self.done.append(count)

    def stop(self) -> None:
        self.stopped += 1

"""A Progress that tests look at."""

from __future__ import annotations

from alphafuse.system.progress import Progress


class Told(Progress):
    """What a study was told to show: rounds as (title, total, unit), and what was done of them."""

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

"""Callbacks during long work: extraction, training, prediction, audits."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

REFRESH_SECONDS = 0.2  # shortest time between two updates of the figures beside the bar


class Progress:
    """Callbacks during long work; called from several threads, never two at once. Override some; these do nothing.

    Work is reported in rounds: `start`, any number of `advance` and `note`, then `stop`, also after an interrupt.
    """

    def start(self, title: str, *, total: int, done: int = 0, unit: str = "clip") -> None:
        """A round begins.

        Args:
            title: name of the work, such as a split or a command.
            total: number of items of this round, including those already done.
            done: number of items already done.
            unit: name of an item, in the singular: "clip", "epoch", "head".
        """

    def advance(self, count: int = 1, **of_which: int) -> None:
        """`count` more items are done; `of_which` counts subsets of them: incomplete=2, elsewhere=5."""

    def note(self, **figures: int) -> None:
        """Show these figures beside the bar, instead of the previous ones: decoded=120, embedded=96, nodes=3."""

    def stop(self) -> None:
        """The round is finished or interrupted."""


class Bar(Progress):
    """A bar on stderr: items done, seconds, seconds left, items per second, figures; nothing if that is no terminal.

    Where stdout goes doesn't matter: `alphafuse predict clips/ > labels.txt` shows the bar.

    Attributes:
        bar: the tqdm of the round.
    """

    def __init__(self, title: str = "", *, disable: bool | None = None, leave: bool = True) -> None:
        """Show nothing yet.

        Args:
            title: text before the bar; "" = the title of the round.
            disable: True = show nothing; None = only on a terminal.
            leave: whether the bar stays when the round ends.
        """
        self._title, self._disable, self._leave = title, disable, leave

    def start(self, title: str, *, total: int, done: int = 0, unit: str = "clip") -> None:  # noqa: D102
        self._figures: dict[str, int] = {}
        self._shown = 0.0
        self.bar = _Words(
            total=total - done,
            desc=self._title or title,
            unit=unit,
            disable=self._disable,
            leave=self._leave,
            smoothing=0.05,
            file=sys.stderr,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {words}{postfix}",
        )
        if done and not self.bar.disable:
            self.bar.write(f"{title}: {done} {unit}s already done", file=sys.stderr)

    def advance(self, count: int = 1, **of_which: int) -> None:  # noqa: D102
        if of_which.get("incomplete"):
            self._figures["failures"] = self._figures.get("failures", 0) + of_which["incomplete"]
            self.bar.set_postfix(self._figures, refresh=False)
        self.bar.update(count)

    def note(self, **figures: int) -> None:  # noqa: D102
        self._figures.update(figures)
        is_due = time.monotonic() - self._shown >= REFRESH_SECONDS
        if is_due:
            self._shown = time.monotonic()
        self.bar.set_postfix(self._figures, refresh=is_due)

    def stop(self) -> None:  # noqa: D102
        self.bar.close()


class _Words(tqdm):
    """A tqdm whose bar can say what is counted: "12/51 clips, 6 s, 20 s left, 1.9 clips/s"."""

    @property
    def format_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = super().format_dict
        n, total, elapsed, unit = found["n"], found["total"] or 0, found["elapsed"], found["unit"]
        rate = found["rate"] or (n / elapsed if elapsed else 0)
        words = [f"{n:,}/{total:,} {counted(unit, total)}", duration(elapsed)]
        if rate and n:
            words += [f"{duration((total - n) / rate)} left"] if n < total else []
            words += [f"{rate:.1f} {unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s per {unit}"]
        return {**found, "words": ", ".join(words)}


def counted(unit: str, count: int) -> str:
    """Return the plural of a unit unless it is counted once: "1 clip", "2 clips", "2 passes"."""
    return unit if count == 1 else f"{unit}{'es' if unit.endswith('s') else 's'}"


def duration(seconds: float) -> str:
    """Format a duration: "40 s", "12 min", "5.2 h", "3.1 days"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    for unit, size, most in (("min", 60, 100), ("h", 3600, 72)):
        if seconds / size < most:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


NO_PROGRESS = Progress()

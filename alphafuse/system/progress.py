"""Callbacks during long work: extraction, training, prediction, audits."""

from __future__ import annotations


class Progress:
    """Callbacks during long work; called from several threads, never two at once. These do nothing: override some.

    Work is told in rounds: `start`, any number of `advance` and `note`, `stop`, also when it is interrupted.
    """

    def start(self, title: str, *, total: int, done: int = 0, unit: str = "clip") -> None:
        """A round begins.

        Args:
            title: what is done, such as a split's name or a command's.
            total: items of this round, those that are done already included.
            done: items that were done before.
            unit: what an item is, in the singular: "clip", "epoch", "head".
        """

    def advance(self, count: int = 1, **of_which: int) -> None:
        """`count` more items are done; `of_which` counts special ones among them: incomplete=2, elsewhere=5."""

    def note(self, **figures: int) -> None:
        """Figures to show beside the bar, each time as a whole: decoded=120, embedded=96, nodes=3."""

    def stop(self) -> None:
        """The round is finished or interrupted."""


NO_PROGRESS = Progress()

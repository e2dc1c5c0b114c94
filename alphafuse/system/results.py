"""How results show themselves: text as the command prints it, html in a notebook, a table for pandas.

Tables are made by a room above those of the results, which these may not import. So the public face, which knows all
rooms, sets `tables_by`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from alphafuse.errors import AlphafuseError

if TYPE_CHECKING:
    import pandas


class Tables(Protocol):
    """What makes tables of results: the module `alphafuse.report.notebook`."""

    def text_of(self, result: Any) -> str:
        """Return what the result's command prints."""

    def html_of(self, result: Any) -> str:
        """Return the same as html."""

    def figures_of(self, result: Any) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """Return the names of columns, and rows of unrounded figures."""


tables_by: list[Callable[[], Tables]] = []  # one function, set by alphafuse/__init__.py


class Shown:
    """A result that `print` shows as its command does, and a notebook as tables."""

    def __str__(self) -> str:
        return tables_by[0]().text_of(self).rstrip("\n")

    def _repr_html_(self) -> str:
        return tables_by[0]().html_of(self)


class Tabular(Shown):
    """A result that pandas can have too."""

    def to_pandas(self) -> pandas.DataFrame:
        """Return the figures as a DataFrame, unrounded: the rows of the csv file, where the result has one.

        Raises:
            AlphafuseError: pandas isn't installed.
        """
        try:
            import pandas
        except ImportError:
            raise AlphafuseError("to_pandas needs pandas: run `pip install 'alphafuse[pandas]'`") from None
        names, rows = tables_by[0]().figures_of(self)
        return pandas.DataFrame.from_records(list(rows), columns=list(names))

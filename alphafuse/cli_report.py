"""The report page on the command line."""

from __future__ import annotations

import click


@click.command()
def report() -> None:
    """Write one self-contained page of a root's runs."""

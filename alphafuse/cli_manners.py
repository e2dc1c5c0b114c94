"""What a command line owes its user: doctor, and shell completion."""

from __future__ import annotations

import click


@click.command()
def doctor() -> None:
    """Say what this installation has and lacks."""


@click.command()
def completion() -> None:
    """Print a shell's completion script."""

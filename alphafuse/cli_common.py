"""What the commands of all modules share."""

from __future__ import annotations

import json
from pathlib import Path

import click

DEFAULT_ROOT = "vggsound"
EXIT_FOUND = 1  # a check that ran and found something

root_option = click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=DEFAULT_ROOT,
    envvar="ALPHAFUSE_ROOT",
    show_default=True,
    show_envvar=True,
    help="Dataset root: manifest, embedding stores, runs.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Decode processes; 0 = one per processor.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print json for programs instead of text.")


def print_json(content: object) -> None:
    """Print figures for programs."""
    click.echo(json.dumps(content, indent=2, allow_nan=False))

"""Trained runs on the command line: what they say of a clip, and how they travel."""

from __future__ import annotations

import click


@click.command()
def predict() -> None:
    """Label clips with a trained run."""


@click.command()
def export() -> None:
    """Bundle a trained run into one folder."""

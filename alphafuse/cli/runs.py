"""`alphafuse runs`: the trained runs of a root, which one is used when none is named, and pins."""

from __future__ import annotations

from pathlib import Path

import click

from alphafuse.data.dataset import Dataset

from .common import json_option, print_json, print_text, root_option, run_folders


@click.command()
@root_option
@click.option(
    "--pin", metavar="NAME", shell_complete=run_folders, help="Use this run when none is named, whatever is better."
)
@click.option("--unpin", is_flag=True, help="Take back --pin.")
@json_option
def runs(root: Path, pin: str | None, unpin: bool, as_json: bool) -> None:
    """List the trained runs of a root, and which of them predict, report, evaluate and export use.

    It is the untransformed fusion with the most seeds, unless another run is better on validation beyond noise, or
    one is pinned.

    \b
    Examples:
      alphafuse runs --root demo
      alphafuse runs --pin sqrt-ast --root demo
      alphafuse runs --unpin --root demo
    """
    from alphafuse.heads.studies.runs import pin_run
    from alphafuse.report.runs import format_runs, list_trained, runs_json

    if pin is not None and unpin:
        raise click.UsageError("--pin and --unpin exclude each other")
    dataset = Dataset.open(root)
    if pin is not None or unpin:
        pin_run(dataset.root, None if pin is None else Path(pin).name)
    found = list_trained(dataset)
    if as_json:
        print_json(runs_json(found))
    else:
        print_text(format_runs(found))

"""`alphafuse report`: write the html page of a root's runs."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource
from tqdm import tqdm

from alphafuse.data.dataset import Dataset

from .common import json_option, print_json, print_text, root_option, run_folders


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=click.Path(path_type=Path), shell_complete=run_folders)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The html file. [default: ROOT/report.html]"
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write each figure to this folder, as .png and .svg.",
)
@root_option
@json_option
@click.pass_context
def report(
    context: click.Context, root: Path, runs: tuple[Path, ...], out: Path | None, figures: Path | None, as_json: bool
) -> None:
    """Write one self-contained page of a root's runs: for an appendix, or to send to a colleague.

    Shows all runs in ROOT/runs, or those that are named: a name, or a folder (then --root defaults to the root that
    holds it). The heads shown are those of the first RUN with fused heads, else of the root's best run.

    \b
    Examples:
      alphafuse report --root demo
      alphafuse report demo/runs/sqrt-ast demo/runs/table1 -o paper/report.html --figures paper/figures
    """
    from alphafuse.heads.studies.runs import dataset_of, resolve_run
    from alphafuse.report.page.build import write_report

    is_default = context.get_parameter_source("root") == ParameterSource.DEFAULT
    runs = tuple(resolve_run(run, root) for run in runs)
    dataset = dataset_of(runs[0]) if runs and is_default else Dataset.open(root)
    with tqdm(desc="report", bar_format="{desc} ({elapsed_s:.0f} s so far)", disable=None, leave=False) as bar:
        path = write_report(
            dataset,
            out or dataset.root / "report.html",
            runs=runs,
            figures=figures,
            progress=lambda doing: bar.set_description_str(f"report: {doing}"),
        )
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size, "figures": figures and str(figures)})
        return
    print_text(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB; it needs no other file and no network)")
    if figures:
        print_text(f"written: {figures} (each figure as .png and .svg)")

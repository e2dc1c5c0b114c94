"""`alphafuse extract`: run the encoders; with --dry-run, plan a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import SPLITS
from alphafuse.data.streams import DEFAULT_NAMES
from alphafuse.errors import DatasetError
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.progress import Bar

from .common import (
    json_option,
    one_of,
    print_json,
    print_text,
    root_option,
)
from .options import options_of

Command = TypeVar("Command", bound=Callable[..., Any])
PLANNING = ("clips", "gpus", "cpus", "decode_seconds", "embed_seconds")


def planning_options(command: Command) -> Command:
    """Add the options of a planned run; the command receives them as the arguments named in `PLANNING`."""
    positive = click.FloatRange(min=0, min_open=True)
    options = (
        click.option("--clips", type=int, help="With --dry-run: plan a run of this many clips."),
        click.option(
            "--gpus",
            type=int,
            default=0,
            show_default=True,
            help="Planned number of GPUs; 0 = models run on the CPU cores.",
        ),
        click.option("--cpus", type=int, help="Planned CPU cores of all machines. [default: of this one]"),
        click.option("--decode-seconds", type=positive, help="Planned seconds of a core per clip. [default: measured]"),
        click.option(
            "--embed-seconds",
            type=positive,
            help="Planned seconds of a GPU (or core) per clip, in all models. [default: measured]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option("--split", shell_complete=one_of(*SPLITS, "all"), help="train, val, test or all.")
@root_option
@options_of(ExtractSettings, into="settings")
@click.option("--dry-run", is_flag=True, help="Only report the work to do and its time at a measured rate.")
@planning_options
@json_option
@click.pass_context
def extract(
    context: click.Context,
    split: str | None,
    root: Path,
    settings: ExtractSettings,
    dry_run: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Run the frozen encoders once over the clips of a split; a repeated command resumes.

    A stream that was added to the root later is extracted alone: stored embeddings of others stay.

    \b
    Examples:
      alphafuse extract --split train
      alphafuse extract --split all --dry-run
      alphafuse extract --dry-run --clips 10000000 --cpus 512 --root demo
      alphafuse extract --split all --root demo
      alphafuse extract --split all --timesformer ./timesformer-k400 --ast ./ast-audioset
      alphafuse extract --split all --stream clap,dino
      alphafuse extract --split train --engine ray --address auto
    """
    # set before torch is loaded: OpenMP threads that spin take processors from the decode workers
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from alphafuse.extract.pipeline import extract_embeddings
    from alphafuse.extract.planning import plan_extraction
    from alphafuse.report import extract as report
    from alphafuse.report.plan import format_plan, plan_json

    planned = take_planned(context, arguments, dry_run=dry_run)
    if planned:
        print_run_plan(context, settings, root=root, as_json=as_json, **planned)
        return
    split = require_option(context, "split", split)
    dataset = Dataset.open(root)
    splits = dataset.splits_of(split)
    if not splits:
        raise DatasetError(f"{root / 'manifest.csv'} lists no clips: make the root again")
    if dry_run:
        plans, rates = plan_extraction(dataset, splits, settings)
        if as_json:
            print_json(plan_json(plans, rates))
        else:
            click.echo(format_plan(plans, rates, dataset), nl=False)
        return
    reports = extract_embeddings(dataset, splits, settings, progress=Bar())
    if as_json:
        print_json([report.report_json(found) for found in reports])
        return
    for found in reports:
        click.echo(report.format_report(found), nl=False)
    coverage = [one for found in reports for one in found.coverage]
    click.echo(report.format_coverage(coverage, dataset.media), nl=False)


def take_planned(context: click.Context, arguments: dict[str, Any], *, dry_run: bool) -> dict[str, Any]:
    """Remove the planning options from a command's arguments; return them, or {} if no run is planned.

    Raises:
        click.UsageError: a planning option is given without --clips or --dry-run.
    """
    planned = {name: arguments.pop(name) for name in PLANNING}
    if planned["clips"] is None or not dry_run:
        typed = [name for name in PLANNING if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if typed:
            option = f"--{typed[0].replace('_', '-')}"
            raise click.UsageError(
                f"{option} plans a run and extracts nothing: give --dry-run and --clips with it", context
            )
        return {}
    return planned


def require_option(context: click.Context, name: str, value: str | None) -> str:
    """Return the value of a required option; raise click's own error if it is missing."""
    if value is None:
        option = next(parameter for parameter in context.command.params if parameter.name == name)
        raise click.MissingParameter(ctx=context, param=option)
    return value


def print_run_plan(
    context: click.Context,
    settings: ExtractSettings,
    *,
    root: Path,
    as_json: bool,
    clips: int,
    gpus: int,
    cpus: int | None,
    decode_seconds: float | None,
    embed_seconds: float | None,
) -> None:
    """Plan the run from the given seconds per clip; measure those not given on clips of the root.

    With both given, no root is needed: unless --root is typed, the streams are the default ones, or those named by
    --stream, and each embedding has `DEFAULT_DIM` numbers.
    """
    from dataclasses import replace

    from loky import cpu_count

    from alphafuse.data.dataset import Dataset
    from alphafuse.extract.planning import DEFAULT_DIM, Rates, measure_root, plan_clips
    from alphafuse.report.plan import clips_plan_json, format_clips_plan

    device = "cuda" if gpus else "cpu"
    is_named = context.get_parameter_source("root") is not ParameterSource.DEFAULT
    if decode_seconds and embed_seconds and not is_named:
        rates = Rates(
            clips=0, decode_seconds=decode_seconds, embed_seconds=embed_seconds, cores=1, workers=1, device=device
        )
        dims = dict.fromkeys(settings.streams or DEFAULT_NAMES, DEFAULT_DIM)
    else:
        rates, dims = measure_root(Dataset.open(root), settings)
        if embed_seconds:
            rates = replace(rates, embed_seconds=embed_seconds, stream_seconds={}, device=device)
        rates = replace(rates, decode_seconds=decode_seconds or rates.decode_seconds)
    plan = plan_clips(clips, rates.on(cpus=cpu_count() if cpus is None else cpus, gpus=gpus), dims)
    if as_json:
        print_json(clips_plan_json(plan))
    else:
        print_text(format_clips_plan(plan))

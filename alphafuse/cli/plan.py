"""`extract --dry-run --clips N`: plan a run on machines that aren't here; options of its own, printed by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from .common import GPUS, one_of, print_json, print_text

if TYPE_CHECKING:
    from alphafuse.extract.settings import ExtractSettings

Command = TypeVar("Command", bound=Callable[..., Any])
PLANNING = ("clips", "gpus", "cpus", "gpu", "achieved", "nodes", "node_gbps")


def planning_options(command: Command) -> Command:
    """The options of a run to plan; they come to the command as `PLANNING`."""
    options = (
        click.option("--clips", type=int, help="With --dry-run: plan a run of so many clips; needs no root."),
        click.option("--gpus", type=int, default=0, show_default=True, help="Planned: GPUs; 0 = the cores run models."),
        click.option("--cpus", type=int, help="Planned: cores of all nodes. [default: those of this machine]"),
        click.option(
            "--gpu",
            shell_complete=one_of(*GPUS),
            help=f"Planned: {', '.join(GPUS)}. [default: the root's measured device, else H100]",
        ),
        click.option(
            "--achieved", type=float, default=0.0, help="Planned: share of its peak. [default: 0.7, bf16 0.4]"
        ),
        click.option("--nodes", type=int, default=0, help="Planned: nodes. [default: 8 GPUs or 64 cores on each]"),
        click.option(
            "--node-gbps", type=float, default=10.0, show_default=True, help="Planned: a node's network in Gbit/s."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def take_planned(context: click.Context, arguments: dict[str, Any], *, dry_run: bool) -> dict[str, Any]:
    """Take the planning options out of a command's arguments; {} where no run is to be planned.

    Raises:
        click.UsageError: some are given, and --clips or --dry-run isn't.
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
    """The value of an option that must be there; click's own error where it isn't."""
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
    cpus: int | None,
    **planned: Any,
) -> None:
    """Plan the run; by rates measured in the root where one is named, else by those of the documentation."""
    from loky import cpu_count

    from alphafuse.data.dataset import Dataset
    from alphafuse.extract.cost import RunSettings, measure_work, plan_run, published_work
    from alphafuse.report.plan import format_run_plan

    run = RunSettings(
        clips=clips,
        cpus=cpu_count() if cpus is None else cpus,
        precision=settings.precision,
        flush_seconds=settings.flush_seconds,
        **planned,
    )
    if context.get_parameter_source("root") is ParameterSource.DEFAULT:
        work = published_work(settings.modalities)
    else:
        work = measure_work(Dataset.open(root), settings)
    plan = plan_run(run, work)
    if as_json:
        print_json(plan.to_json())
    else:
        print_text(format_run_plan(plan))

"""What a command line owes its user: doctor, and shell completion."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from alphafuse.errors import unknown

from .common import DEFAULT_ROOT, EXIT_FOUND, json_option, one_of, paint, print_json, print_text, roots, walk

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    envvar="ALPHAFUSE_ROOT",
    show_envvar=True,
    shell_complete=roots,
    help=f"Also look at this dataset root. [default: {DEFAULT_ROOT}, if it is there]",
)
@click.option("--offline", is_flag=True, help="Don't ask whether the hub can be reached.")
@click.option("--quick", is_flag=True, help="Without the self test, which takes a generated clip through stage one.")
@json_option
@click.pass_context
def doctor(context: click.Context, root: Path | None, offline: bool, quick: bool, as_json: bool) -> None:
    """Check this installation: versions, devices, codecs, disk, hub, weights.

    Each finding is one line: ok, a note (works, but there is something to know), or a problem, with the command that
    mends it. Exit code 1 when there is a problem. It starts where nothing else does: a library that is missing, doesn't
    fit or crashes is a finding.

    \b
    Examples:
      alphafuse doctor
      alphafuse doctor --root demo --offline
      alphafuse doctor --json --quick
    """
    from tqdm import tqdm

    from alphafuse.report.doctor import COLUMNS, format_examination

    from .doctor import PARTS, examine

    if root is None and (Path(DEFAULT_ROOT) / "dataset.json").is_file():
        root = Path(DEFAULT_ROOT)
    variables = {
        name
        for _, command in walk(context.find_root().command)
        for parameter in command.params
        for name in ([parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or ())
    }
    with tqdm(desc="doctor", total=PARTS, unit="part", disable=None, leave=False) as bar:
        found = examine(root, offline=offline, self_test=not quick, variables=variables, progress=bar.update)
    if as_json:
        print_json(found.to_json())
    else:
        columns = min(COLUMNS, shutil.get_terminal_size((COLUMNS, 0)).columns)
        print_text(format_examination(found, columns=columns, paint=paint))
    if found.problems:
        sys.exit(EXIT_FOUND)


@click.command()
@click.argument("shell", metavar="bash|zsh|fish", shell_complete=one_of(*SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete commands, options and their values.

    \b
    Examples (one line, once; it works in shells that are started afterwards):
      alphafuse completion bash > ~/.local/share/bash-completion/completions/alphafuse
      alphafuse completion zsh > "${fpath[1]}/_alphafuse"
      alphafuse completion fish > ~/.config/fish/completions/alphafuse.fish
    \b
    For this shell only:
      eval "$(alphafuse completion bash)"                bash, zsh
      alphafuse completion fish | source                 fish
    """
    complete = get_completion_class(shell)
    if shell not in SHELLS or complete is None:
        raise click.UsageError(unknown("shell", shell, SHELLS), context)
    click.echo(complete(context.find_root().command, {}, "alphafuse", "_ALPHAFUSE_COMPLETE").source(), nl=False)

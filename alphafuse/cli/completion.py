"""Shell completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from alphafuse.errors import unknown

from .common import one_of

SHELLS = ("bash", "zsh", "fish")


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

"""Shared by all commands: options, completion, groups, colours, and printing of results."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import click
from click.shell_completion import CompletionItem

from alphafuse.system.files import without_secrets

DEFAULT_ROOT = "vggsound"
EXIT_FOUND = 1  # a check ran and found a problem


Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


# -------------------------------------------------------------------------------------------------------- completion


def one_of(*names: str) -> Complete:
    """Complete one of these names. Whether a value is valid is decided by the code that uses it."""

    def complete(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem[str]]:
        return [CompletionItem(name) for name in names if name.startswith(typed)]

    return complete


def some_of(*names: str) -> Complete:
    """Complete the last name of a list such as `timesformer,ast` with the names that are not in it yet."""

    def complete(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem[str]]:
        before, comma, last = typed.rpartition(",")
        listed = before.split(",")
        return [CompletionItem(before + comma + n) for n in names if n.startswith(last) and n not in listed]

    return complete


def run_folders(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Complete the folder of a run below --root, ALPHAFUSE_ROOT or any root in the current folder."""
    given = context.params.get("root") or os.environ.get("ALPHAFUSE_ROOT") or DEFAULT_ROOT
    roots = {Path(given)} | {path.parent for path in Path().glob("*/dataset.json")}
    # the root in the path that is being typed, wherever that root is
    roots |= {Path(typed[: match.start()]) for match in re.finditer(r"/runs(/|$)", typed)}
    configs = {config for root in roots for config in root.glob("runs/*/config.json")}
    runs = sorted(str(config.parent) for config in configs if any(config.parent.glob("head*/")))  # runs that have heads
    return [CompletionItem(run) for run in runs if run.startswith(typed)] or [CompletionItem(typed, type="dir")]


def roots(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Complete a dataset root in the current folder; any folder if there is none."""
    found = sorted(str(path.parent) for path in Path().glob("*/dataset.json"))
    return [CompletionItem(root) for root in found if root.startswith(typed)] or [CompletionItem(typed, type="dir")]


def store_folders(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Complete the folder of a store below ALPHAFUSE_ROOT or any root in the current folder."""
    given = os.environ.get("ALPHAFUSE_ROOT") or DEFAULT_ROOT
    roots = {Path(given)} | {path.parent for path in Path().glob("*/dataset.json")}
    stores = sorted({str(store) for root in roots for store in root.glob("stores/*") if store.is_dir()})
    return [CompletionItem(store) for store in stores if store.startswith(typed)] or [CompletionItem(typed, type="dir")]


# ----------------------------------------------------------------------------------------------------------- options


class Place(click.Path):
    """A path or a URL (s3://, gs://, hf://, ...), converted by `alphafuse.system.files.to_path`."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; raise `AlphafuseError` if the file system of a URL is not available."""
        if isinstance(value, str) and "://" in value:
            from alphafuse.system.files import to_path

            return to_path(value)
        return super().convert(value, param, ctx)


root_option_with = partial(
    click.option,
    "--root",
    type=click.Path(path_type=Path),
    envvar="ALPHAFUSE_ROOT",
    show_envvar=True,
    shell_complete=roots,
)
root_option = root_option_with(
    default=DEFAULT_ROOT, show_default=True, help="Dataset root: manifest, embedding stores, runs."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Decode processes; 0 = one per processor.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random choices."
)
val_fraction_option = click.option(
    "--val-fraction", default=0.1, show_default=True, help="Share of train moved to validation."
)
test_fraction_option = click.option(
    "--test-fraction", default=0.2, show_default=True, help="Share of all clips moved to test."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print json for programs instead of text.")


# ------------------------------------------------------------------------------------------------------------ groups


class Context(click.Context):
    """click's context, with coloured headings on a terminal."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.color = use_colour(sys.stdout)

    def make_formatter(self) -> click.HelpFormatter:
        """Return a formatter for the width of this terminal."""
        return _Formatter(width=self.terminal_width, max_width=self.max_content_width)


class _Formatter(click.HelpFormatter):
    def write_heading(self, heading: str) -> None:
        self.write(f"{'':>{self.current_indent}}{paint(f'{heading}:', 'heading')}\n")


class Commands(click.Group):
    """A group of commands: help shows whole summaries in working order; an unknown name gets a suggestion.

    Attributes:
        sections: heading -> command -> its summary. Commands in no section come last, with their own summary.
        broken: why some commands could not be loaded; "" if all were.
    """

    context_class = Context

    def __init__(
        self, *arguments: Any, sections: Mapping[str, Mapping[str, str]] | None = None, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.sections = sections or {}
        self.broken = ""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, with the summary from its section."""
        super().add_command(cmd, name)
        for section in self.sections.values():
            cmd.short_help = section.get(name or cmd.name or "", cmd.short_help)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the sections; names in no section come last."""
        ordered = [name for section in self.sections.values() for name in section if name in self.commands]
        return ordered + [name for name in self.commands if name not in ordered]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a command; an unknown name gets a message of ours."""
        name = str(args[0])
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(self.broken or self._unknown(name), ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands before the options."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, section by section."""
        names = self.list_commands(ctx)
        width = max((len(name) for name in names), default=0)
        sections = {heading: list(section) for heading, section in self.sections.items()} or {"Commands": []}
        listed = {name for section in sections.values() for name in section}
        [*sections.values()][-1].extend(name for name in names if name not in listed)
        for heading, section in sections.items():
            commands = [(name, self.commands[name]) for name in section if name in self.commands]
            if commands:
                with formatter.section(heading):
                    formatter.write_dl([(name.ljust(width), c.get_short_help_str(limit=200)) for name, c in commands])

    def _unknown(self, name: str) -> str:
        names = [*self.commands]
        # also search inside groups: for `alphafuse demo`, suggest `data demo`
        nested = {path[-1]: " ".join(path) for path, _ in walk(self) if len(path) > 1}
        near = get_close_matches(name, names, n=1) or [nested[n] for n in get_close_matches(name, nested, n=1)]
        if near:
            return f"unknown command '{name}' (did you mean '{near[0]}'?)"
        return f"unknown command '{name}': choose from {', '.join(self.list_commands(click.Context(self)))}"


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield (path, command) for a command, with path (), and for every command and group below it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


# ---------------------------------------------------------------------------------------------------------- printing

STYLES: dict[str, dict[str, Any]] = {
    "heading": {"bold": True},
    "error": {"fg": "red", "bold": True},
    "ok": {"fg": "green"},
    "note": {"fg": "yellow"},
    "problem": {"fg": "red", "bold": True},
    "command": {"fg": "cyan"},
    "quiet": {"dim": True},
}
_NEXT = re.compile(r"^(\s*next: )(.*)$", re.MULTILINE)
_WRITTEN = re.compile(r"^written: .*$", re.MULTILINE)
_RULE = re.compile(r"^-{8,}$", re.MULTILINE)


def use_colour(stream: TextIO | None) -> bool:
    """Return whether to write colours to this stream.

    Yes for a terminal that supports colours, and for any stream if FORCE_COLOR or CLICOLOR_FORCE is set; never if
    NO_COLOR is set. See no-color.org and force-color.org.
    """
    if stream is None or os.environ.get("NO_COLOR"):  # None: the stream was closed before Python started
        return False
    if any(os.environ.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, kind: str, *, stream: TextIO | None = None) -> str:
    """Return the text in the style `STYLES[kind]` if the stream (default stdout) takes colours."""
    return click.style(text, **STYLES[kind]) if use_colour(stream or sys.stdout) else text


def print_text(text: str) -> None:
    """Print a result as text that ends with one newline; a terminal shows the next command in colour."""
    text = text.removesuffix("\n")
    if use_colour(sys.stdout):
        text = _NEXT.sub(lambda found: found[1] + paint(found[2], "command"), text)
        for pattern in (_WRITTEN, _RULE):
            text = pattern.sub(lambda found: paint(found[0], "quiet"), text)
    click.echo(text, color=use_colour(sys.stdout))


def print_json(content: object) -> None:
    """Print a result as json."""
    click.echo(json.dumps(content, indent=2, allow_nan=False), color=False)


def print_error(message: str) -> None:
    """Print one line to stderr."""
    prefix = paint("alphafuse:", "error", stream=sys.stderr)
    click.echo(f"{prefix} {without_secrets(' '.join(message.split()))}", err=True, color=use_colour(sys.stderr))

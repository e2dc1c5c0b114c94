"""Command-line options generated from the fields of dataclasses.

A field whose metadata has a `help` becomes an option: `batch_size` becomes --batch-size, with the field's type and
default. More metadata, all optional:

    choices     names that completion offers [default: the values of the field's Literal]
    flags       ("--timeout",): another name of the option
    multiple    True: the option may be repeated, and its values separated by commas
    least       smallest allowed integer
    short       of a mapping: names that get an option of their own: --ast X for --encoder ast=X
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from .common import one_of, some_of

Command = TypeVar("Command", bound=Callable[..., Any])
ONE_DEVICE = {
    "help": "auto, cpu, cuda or cuda:N.",
    "choices": ("auto", "cpu", "cuda"),
}  # for commands that use one device


class InvalidOption(click.BadParameter):
    """A value that can't be parsed; the message names the option, the value and what is expected."""

    def __init__(self, value: str, expected: str, param: click.Parameter | None, ctx: click.Context | None) -> None:
        super().__init__(expected, ctx, param)
        self.value = value

    def format_message(self) -> str:
        """Return the message, one line."""
        return f"invalid {self.param.opts[0] if self.param else 'value'} '{self.value}': expected {self.message}"


class Names(click.ParamType):
    """Names separated by commas: "timesformer,ast" -> ("timesformer", "ast")."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names. Whether a name exists is decided by the code that uses it."""
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return tuple(value)

    def to_text(self, value: tuple[str, ...]) -> str:
        """Return these names as typed on the command line."""
        return ",".join(value)


class Assignment(click.ParamType):
    """A name and a value: "clap=laion/clap-htsat-unfused" -> ("clap", "laion/clap-htsat-unfused")."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return both; raise `InvalidOption` for a text without "=" or with nothing on one side of it."""
        if not isinstance(value, str):
            return tuple(value)
        name, _, given = value.partition("=")
        if not name or not given:
            raise InvalidOption(value, "NAME=VALUE", param, ctx)
        return name, given


class Weight(click.ParamType):
    """A name and a number: "ast=0.5" -> ("ast", 0.5)."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Return both; raise `InvalidOption` for anything else. Its range is checked by the code that uses it."""
        if not isinstance(value, str):
            return tuple(value)
        name, _, given = value.partition("=")
        try:
            return name, float(given)
        except ValueError:
            raise InvalidOption(value, "NAME=NUMBER, such as ast=0.5", param, ctx) from None


class Widths(click.ParamType):
    """Widths of layers: "1024,512" -> (1024, 512), "linear" -> ()."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the widths; raise `InvalidOption` for anything but integers."""
        if not isinstance(value, str):
            return tuple(value)
        if value.strip() in ("linear", ""):
            return ()
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            raise InvalidOption(value, "1024,512 or linear", param, ctx) from None

    def to_text(self, value: tuple[int, ...]) -> str:
        """Return these widths as typed on the command line."""
        return ",".join(map(str, value)) or "linear"


def options_of(
    kind: type, *names: str, into: str | None = None, change: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[[Command], Command]:
    """Return a decorator that adds options for the fields of a dataclass to a command.

    Args:
        kind: the dataclass; its fields with a `help` become options, in the same order.
        names: only these fields; all by default.
        into: the command's argument that receives an instance of `kind`; None passes each value as an argument.
        change: field -> metadata that differs in this command.
    """
    hints = get_type_hints(kind)
    chosen = [field for field in fields(kind) if "help" in field.metadata and (not names or field.name in names)]

    repeated = [field.name for field in chosen if field.metadata.get("multiple")]
    mappings = {field.name: field.metadata["short"] for field in chosen if "short" in field.metadata}

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(**arguments: Any) -> Any:
            for field in repeated:
                arguments[field] = tuple(part for text in arguments[field] for part in text.split(",") if part)
            for field, short in mappings.items():
                own = {name: value for name in short if (value := arguments.pop(name)) is not None}
                arguments[field] = {**dict(arguments[field]), **own}
            if into is not None:
                arguments[into] = kind(**{field.name: arguments.pop(field.name) for field in chosen})
            return command(**arguments)

        options: Any = wrapped
        for field in reversed(chosen):
            metadata = {**field.metadata, **(change or {}).get(field.name, {})}
            for name in reversed(metadata.pop("short", ())):
                options = click.option(f"--{name}", help=f"The same for stream {name}.")(options)
            options = _option(field.name, hints[field.name], field.default, **metadata)(options)
        return options

    return add


def _option(
    name: str,
    hint: Any,
    default: Any,
    *,
    help: str,
    choices: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    multiple: bool = False,
    least: int | None = None,
) -> Callable[[Command], Command]:
    """Return the option for one field."""
    flags = flags or (f"--{name.replace('_', '-')}",)
    hint = _without_none(hint)
    if hint is bool:
        return click.option(*flags, name, is_flag=True, default=default, help=help)
    if get_origin(hint) is Mapping:
        return click.option(*flags, name, type=Assignment(), multiple=True, help=help)
    choices = choices or (get_args(hint) if get_origin(hint) is Literal else ())
    kind: click.ParamType = click.STRING
    if get_origin(hint) is tuple and not multiple:
        kind = Widths() if get_args(hint)[0] is int else Names()
        default = kind.to_text(default)
    elif hint is int:
        kind = click.INT if least is None else click.IntRange(min=least)
    elif hint is float:
        kind = click.FLOAT
    complete = (some_of if isinstance(kind, Names) or multiple else one_of)(*choices) if choices else None
    return click.option(
        *flags,
        name,
        type=kind,
        default=default,
        multiple=multiple,
        show_default=default not in (None, ()),
        shell_complete=complete,
        help=help,
    )


def _without_none(hint: Any) -> Any:
    """Return the type without None: `int | None` -> int."""
    if get_origin(hint) is UnionType:
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint

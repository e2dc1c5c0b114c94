"""Options generated from dataclass fields: names, types, defaults, variables, completion, errors."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from support.cli import Run, assert_one_line_error

from alphafuse.cli.main import cli
from alphafuse.cli.options import options_of
from alphafuse.extract.settings import ExtractSettings
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.training.settings import TrainSettings


@dataclass(frozen=True)
class Cooking:
    """A dataclass with every kind of field."""

    minutes: int = field(default=10, metadata={"help": "How long.", "least": 0})
    heat: float | None = field(default=None, metadata={"help": "How hot. [default: by taste]"})
    way: Literal["boil", "bake"] = field(default="boil", metadata={"help": "How."})
    sauces: tuple[str, ...] = field(default=("salt",), metadata={"help": "With.", "choices": ("salt", "pepper")})
    dishes: tuple[str, ...] = field(
        default=("rice",), metadata={"help": "What.", "flags": ("--dish",), "multiple": True}
    )
    pots: tuple[int, ...] = field(default=(3, 2), metadata={"help": "Sizes."})
    stir: bool = field(default=False, metadata={"help": "Stir."})
    secret: str = "cumin"


cooked: list[Cooking] = []


@click.command()
@options_of(Cooking, into="settings")
def cook(settings: Cooking) -> None:
    cooked.append(settings)


def given(*words: str, **environment: str) -> Cooking:
    result = CliRunner().invoke(cook, words, env=environment, auto_envvar_prefix="COOK", standalone_mode=False)
    assert result.exception is None, result.exception
    return cooked.pop()


def test_without_options_the_instance_has_its_defaults() -> None:
    assert given() == Cooking()


def test_values_arrive_with_their_fields_types() -> None:
    words = "--minutes 5 --heat 0.5 --way bake --sauces salt,pepper --dish beans --dish peas --pots 4 --stir"
    assert given(*words.split()) == Cooking(5, 0.5, "bake", ("salt", "pepper"), ("beans", "peas"), (4,), True)
    assert given("--pots", "linear").pots == ()


def test_an_environment_variable_sets_an_option_that_is_not_typed() -> None:
    assert given(COOK_POTS="7,8", COOK_SAUCES="pepper") == Cooking(pots=(7, 8), sauces=("pepper",))


def test_a_field_without_help_is_not_an_option() -> None:
    assert "secret" not in {option.name for option in cook.params}


def test_help_shows_defaults_but_not_none() -> None:
    shown = " ".join(CliRunner().invoke(cook, ["--help"]).output.split())
    assert "--minutes INTEGER RANGE How long. [default: 10; x>=0]" in shown
    assert "--pots TEXT Sizes. [default: 3,2]" in shown and "--sauces TEXT With. [default: salt]" in shown
    assert "How hot. [default: by taste]" in shown and "None" not in shown


def test_literals_and_choices_are_completed() -> None:
    def offered(*words: str) -> list[str]:
        *before, last = words
        return [item.value for item in ShellComplete(cook, {}, "cook", "_COOK").get_completions(before, last)]

    assert offered("--way", "b") == ["boil", "bake"]
    assert offered("--sauces", "salt,") == ["salt,pepper"]


@pytest.mark.parametrize("text", ["x", "8,x", "8.5", "8,,4"])
def test_invalid_widths_name_the_expected_form(run: Run, text: str) -> None:
    for words in (("fit",), ("table1",), ("sweep",), ("compare",)):
        assert_one_line_error(
            run(*words, "--hidden", text), f"invalid --hidden '{text}': expected 1024,512 or linear (see `alphafuse"
        )


def test_a_bad_variable_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPHAFUSE_FIT_HIDDEN", "x")
    assert_one_line_error(run("fit"), "invalid --hidden 'x': expected 1024,512 or linear, from ALPHAFUSE_FIT_HIDDEN")


@pytest.mark.parametrize(
    ("commands", "kind", "left_out"),
    [
        (("fit", "table1", "sweep", "compare"), TrainSettings, set()),
        (("fit",), Experiment, {"normalize", "rates", "auxiliary", "available"}),  # --normalize is the settings'
        (("extract",), ExtractSettings, set()),
    ],
)
def test_every_field_is_an_option_with_its_default(
    commands: tuple[str, ...], kind: type, left_out: set[str], tmp_path: Path
) -> None:
    for name in commands:
        options = {option.name: option for option in cli.commands[name].params}
        context = cli.commands[name].make_context(name, [], resilient_parsing=True)
        for one in fields(kind):
            if one.name not in left_out:
                value = options[one.name].process_value(context, options[one.name].get_default(context))
                default = dict if one.default_factory is dict else lambda value: value
                assert default(value) == ({} if default is dict else one.default), (name, one.name)

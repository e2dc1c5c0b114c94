import ast
import doctest
import pkgutil
from importlib import import_module
from pathlib import Path

import alphafuse


def test_every_public_name_is_there_under_its_own_name() -> None:
    assert set(alphafuse.__all__) == set(alphafuse._HOME_OF)
    for name in alphafuse.__all__:
        assert getattr(alphafuse, name).__name__ == name
        assert getattr(alphafuse, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(alphafuse, "nothing")


def test_examples_in_docstrings_are_true() -> None:
    modules = ["alphafuse.cli", "alphafuse.errors"]
    for room in ("data", "extract", "heads", "report"):
        package = import_module(f"alphafuse.{room}")
        modules += [module.name for module in pkgutil.walk_packages(package.__path__, f"alphafuse.{room}.")]
    assert len(modules) > 30
    tried = 0
    for name in modules:
        results = doctest.testmod(import_module(name))
        assert results.failed == 0, name
        tried += results.attempted
    assert tried >= 6


def test_rooms_import_only_what_they_may() -> None:
    """`data` knows neither stage, and the stages don't know each other: the store is all that passes between them."""
    forbidden = {"data": ("extract", "heads", "report", "cli"), "extract": ("heads", "report", "cli")}
    forbidden["heads"] = ("extract", "report", "cli")
    for room, others in forbidden.items():
        folder = Path(str(import_module(f"alphafuse.{room}").__file__)).parent
        for path in folder.rglob("*.py"):
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            imported = {node.module or "" for node in nodes if not node.level}
            for other in others:
                assert not any(name.startswith(f"alphafuse.{other}") for name in imported), f"{path} imports {other}"

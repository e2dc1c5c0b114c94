"""What is installed: the wheel holds every file of the four folders, and runs without what only developers have."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[1]
FOLDERS = {"alphafuse": "alphafuse", "data": "alphafuse/data", "extract": "alphafuse/extract", "heads": "alphafuse/heads"}


def copy_tree(to: Path) -> Path:
    """The checkout's sources in another folder, where building leaves nothing in the checkout."""
    for folder in FOLDERS:
        shutil.copytree(CHECKOUT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(CHECKOUT / file, to)
    return to


def missing_from_wheel(tree: Path) -> set[str]:
    """The files of a tree's folders that a wheel built from it doesn't hold, as they would be called in the wheel."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", tree / "dist", tree], check=True, capture_output=True, text=True)
    (wheel,) = (tree / "dist").glob("*.whl")
    expected = {
        f"{name}/{path.relative_to(tree / folder).as_posix()}"
        for folder, name in FOLDERS.items()
        for path in (tree / folder).rglob("*")
        if path.is_file()
    }
    return expected - set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_data_file_of_the_tree(tmp_path: Path) -> None:
    assert missing_from_wheel(copy_tree(tmp_path)) == set()


@pytest.mark.slow
def test_a_folder_that_setup_cfg_forgets_is_noticed(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    config = (tree / "setup.cfg").read_text()
    (tree / "setup.cfg").write_text(config.replace("    alphafuse.data.store\n", ""))
    (tree / "heads" / "new").mkdir()
    (tree / "heads" / "new" / "__init__.py").write_text("")
    (tree / "data" / "sources" / "vggsound" / "new.json").write_text("{}")
    missing = missing_from_wheel(tree)
    assert {"alphafuse/data/store/__init__.py", "alphafuse/heads/new/__init__.py"} <= missing
    assert "alphafuse/data/sources/vggsound/new.json" in missing and "alphafuse/data/dataset.py" not in missing


# an environment without the dev packages

HIDE = '''
import importlib.abc, os, sys

class Hide(importlib.abc.MetaPathFinder):
    """Packages that only developers have are not found."""
    names = frozenset(os.environ["HIDDEN"].split())

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named '{name}' (hidden: a dev package)", name=name)

sys.meta_path.insert(0, Hide())
'''
SMALL_DEMO = '''
import sys
from alphafuse.data.sources import demo

demo.TRAIN_CLIPS, demo.TEST_CLIPS = dict.fromkeys(demo.TRAIN_CLIPS, 4), 2
sys.argv = ["alphafuse", *sys.argv[1:]]
from alphafuse.__main__ import main
main()
'''


def needed_distributions() -> set[str]:
    """Names of the distributions that `pip install alphafuse` brings, by what is installed here."""
    found: set[str] = set()
    left = [("alphafuse", frozenset[str]())]
    while left:
        name, extras = left.pop()
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            )
            needed = canonicalize_name(requirement.name)
            if wanted and needed not in found:
                found.add(needed)
                left.append((needed, frozenset(requirement.extras)))
    return found


def dev_only_packages() -> set[str]:
    """Packages that can be imported here and are of no distribution that alphafuse needs."""
    needed = needed_distributions() | {"alphafuse", "pip", "setuptools"}
    return {
        package
        for package, distributions in importlib.metadata.packages_distributions().items()
        if not any(canonicalize_name(name) in needed for name in distributions)
    }


def test_what_only_developers_have_is_told_from_what_running_needs() -> None:
    assert {"torch", "numpy", "huggingface-hub", "packaging", "markupsafe"} <= needed_distributions()
    assert {"pytest", "ray", "pyarrow", "simpy", "librosa", "hypothesis", "ruff", "mypy"} <= dev_only_packages()


def test_readmes_first_command_runs_without_the_dev_packages(tmp_path: Path) -> None:
    """`make reproduce-table1`'s commands, on fewer clips of the demo."""
    recipe = subprocess.run(["make", "-n", "reproduce-table1"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    commands = [line.partition("/alphafuse ")[2].split() for line in recipe.stdout.splitlines() if "/alphafuse " in line]
    assert [command[0] for command in commands] == ["data", "extract", "table1"]
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    (tmp_path / "small.py").write_text(SMALL_DEMO)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "HIDDEN": " ".join(sorted(dev_only_packages()))}
    out = ""
    for command in commands:
        words = [sys.executable, "-P", str(tmp_path / "small.py"), *command]
        words += ["--seeds", "2", "--epochs", "2"] if command[0] == "table1" else []
        result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        out = result.stdout
    assert "untransformed" in out

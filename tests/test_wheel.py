"""The wheel contains every file of the four folders, and runs without the development packages."""

from __future__ import annotations

import importlib.metadata
import json
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
FOLDERS = {
    "alphafuse": "alphafuse",
    "data": "alphafuse/data",
    "extract": "alphafuse/extract",
    "heads": "alphafuse/heads",
}


def copy_tree(to: Path) -> Path:
    """Copy the sources to another folder, so that building writes nothing into the checkout."""
    for folder in FOLDERS:
        shutil.copytree(CHECKOUT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(CHECKOUT / file, to)
    return to


def missing_from_wheel(tree: Path) -> set[str]:
    """Return the files of a tree that are missing in a wheel built from it, by their names in the wheel."""
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
def test_a_folder_missing_in_setup_cfg_is_detected(tmp_path: Path) -> None:
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

SMALL_DEMO = """
import sys
from functools import partial
from alphafuse.data.sources import demo

demo.write_demo_clips = partial(demo.write_demo_clips, clips_per_class=4)
sys.argv = ["alphafuse", *sys.argv[1:]]
from alphafuse.__main__ import main
main()
"""


def needed_distributions() -> set[str]:
    """Return the distributions that `pip install alphafuse` installs, from the metadata of installed packages."""
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


def environment_without_dev_packages(folder: Path) -> Path:
    """Make a virtual environment of links to the needed installed packages; return the path of its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", vars=scheme))
    for name in {"alphafuse", *needed_distributions()}:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on another platform
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return Path(sysconfig.get_path("scripts", vars=scheme)) / "python"


def test_the_environment_has_the_needed_packages_and_no_development_packages(tmp_path: Path) -> None:
    assert {"torch", "numpy", "huggingface-hub", "packaging", "markupsafe"} <= needed_distributions()
    python = environment_without_dev_packages(tmp_path)
    code = "import importlib.util as u, json, sys; print(json.dumps([n for n in sys.argv[1:] if u.find_spec(n)]))"
    asked = ("torch", "alphafuse", "sklearn", "pytest", "ray", "pyarrow", "simpy", "librosa", "ruff", "cv2", "fsspec")
    found = subprocess.run([python, "-c", code, *asked], cwd="/", capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == ["torch", "alphafuse", "sklearn", "fsspec"]  # huggingface_hub needs fsspec


@pytest.mark.slow
def test_the_first_command_of_the_readme_runs_without_the_development_packages(tmp_path: Path) -> None:
    """`make reproduce-table1`'s commands, on fewer clips of the demo."""
    recipe = subprocess.run(
        ["make", "-n", "reproduce-table1"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    commands = [
        line.partition("/alphafuse ")[2].split() for line in recipe.stdout.splitlines() if "/alphafuse " in line
    ]
    assert [command[0] for command in commands] == ["data", "extract", "table1"]
    python = environment_without_dev_packages(tmp_path / "environment")
    (tmp_path / "small.py").write_text(SMALL_DEMO)
    out = ""
    for command in commands:
        words = [python, "-P", tmp_path / "small.py", *command]
        words += ["--seeds", "2", "--epochs", "2"] if command[0] == "table1" else []
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        out = result.stdout
    assert "Table 1 on demo" in out and "written: demo/runs/table1" in out

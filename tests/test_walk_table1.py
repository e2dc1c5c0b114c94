"""Trace `alphafuse table1` on the demo: the modules from a store to Table 1's text."""

from __future__ import annotations

import ast
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.cli import Run

HEAVY = {"torch", "h5py", "av"}  # every module that imports one of these is counted
# modules of plain values: clips, labels, embeddings, ceilings, experiments, options
PLAIN = {
    "alphafuse.data.manifest",
    "alphafuse.data.columns",
    "alphafuse.data.embeddings",
    "alphafuse.data.splits",
    "alphafuse.data.power",
    "alphafuse.data.streams",
    "alphafuse.heads.model.config",
    "alphafuse.heads.model.checks",
    "alphafuse.heads.training.settings",
}
# before the store: the command, and the root that names the store
BEFORE = ("alphafuse.cli.", "alphafuse.data.dataset")
# besides the text: the run folder and its figure
BESIDE = {"alphafuse.heads.studies.runs", "alphafuse.report.figures"}
WALK = {
    "alphafuse.data.store.store",
    "alphafuse.data.store.shard_files",
    "alphafuse.data.store.shard",
    "alphafuse.data.store.hdf5",
    "alphafuse.data.store.lazy",
    "alphafuse.heads.studies.table1",
    "alphafuse.heads.studies.same_clips",
    "alphafuse.heads.studies.words",
    "alphafuse.heads.training.train",
    "alphafuse.heads.training.batches",
    "alphafuse.heads.training.epochs",
    "alphafuse.heads.training.stack",
    "alphafuse.heads.training.linear",
    "alphafuse.heads.model.head",
    "alphafuse.heads.model.fusion",
    "alphafuse.heads.model.transforms",
    "alphafuse.heads.scoring.metrics",
    "alphafuse.heads.scoring.statistics",
    "alphafuse.report.studies",
    "alphafuse.report.tables",
}


def is_heavy(module: str) -> bool:
    """Whether a module imports one of the heavy packages itself."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    nodes = list(ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return bool({name.split(".")[0] for name in names} & HEAVY)


def traced(call: Callable[[], object]) -> dict[str, list[str]]:
    """Return module -> functions that ran in any thread, in the order of their first call; imports are left out."""
    found: dict[str, list[str]] = {}

    def is_import(frame: Any) -> bool:
        while frame is not None:
            if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__", "").startswith("alphafuse"):
                return True
            frame = frame.f_back
        return False

    def record(frame: Any, event: str, _: object) -> None:
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        is_new = event == "call" and module.startswith("alphafuse.") and function not in found.get(module, ())
        if is_new and "<" not in function and not is_import(frame):
            found.setdefault(module, []).append(function)

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found


@pytest.mark.slow
def test_the_walk_from_a_store_to_table1s_text(demo_folder: Path, run: Run) -> None:
    results: list[tuple[int, str, str]] = []
    found = traced(lambda: results.append(run("table1", "--seeds", 1, "--epochs", 1, "--root", "demo")))
    assert results[0][0] == 0 and "Table 1 on demo" in results[0][1]
    assert not any(is_heavy(module) for module in PLAIN)
    walk = {
        module
        for module in found
        if module not in PLAIN | BESIDE | {"alphafuse.errors"} and not module.startswith(("alphafuse.system.", *BEFORE))
    }
    assert walk == WALK, "the walk has changed: docs/design.md lists it"

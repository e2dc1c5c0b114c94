"""The way of one clip from the command to its row in a store, function by function: traced, for docs to list."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MOST = 23  # modules of a walk
# what is not counted: the machine, errors, and modules of plain values (none of these imports av, torch or h5py)
NOT_COUNTED = ("alphafuse.system.", "alphafuse.errors", "alphafuse.data.embeddings", "alphafuse.data.manifest")
PLAIN = {
    *("alphafuse.data.columns", "alphafuse.extract.settings", "alphafuse.extract.jobs"),
    *("alphafuse.extract.decoding.specs", "alphafuse.data.streams"),
}

# In any process of the walk: note each function of alphafuse that is called, until the row is stored
TRACE = """
import atexit, inspect, json, os, sys, threading

def trace(folder):
    seen, is_over = {}, False

    def look(frame, event, argument):
        nonlocal is_over
        name = frame.f_globals.get("__name__", "")
        if not name.startswith("alphafuse") or is_over:
            return
        what = frame.f_code.co_qualname
        if event == "return" and name == "alphafuse.data.store.store" and what == "EmbeddingStore.write":
            is_over = True
        elif event != "call" or "<" in what.replace(".<locals>.", ".") or "__create_fn__" in what:
            return  # what Python makes itself: lambdas, comprehensions, the methods of dataclasses
        elif frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # a function's, not a class's or a module's when imported
            seen.setdefault((name, what), len(seen))

    def write():
        sys.setprofile(None)
        with open(os.path.join(folder, str(os.getpid()) + ".json"), "w") as file:
            json.dump(list(seen), file)

    threading.setprofile(look)
    sys.setprofile(look)
    return write
"""
COMMAND = (
    TRACE
    + """
import alphafuse.cli.main as main
from alphafuse.system import workers

folder = sys.argv.pop(1)
started = workers._start_worker

def start_traced(*arguments):
    started(*arguments)
    write = trace(folder)
    from alphafuse.extract.decoding import decode
    # a worker is ended by a signal: what it has seen is written when its clip is decoded
    inputs = decode.decode_inputs
    def decode_inputs(*arguments, **keywords):
        try:
            return inputs(*arguments, **keywords)
        finally:
            write()
    decode.decode_inputs = decode_inputs

workers._start_worker = start_traced
write = trace(folder)
atexit.register(write)
main.main()
"""
)


def functions_called(tmp_path: Path, root: Path) -> list[tuple[str, str]]:
    """(module, function) of alphafuse, in the order in which they are first called: the command, then its worker."""
    program = tmp_path / "command.py"
    program.write_text(COMMAND)
    traces = tmp_path / "traces"
    traces.mkdir()
    arguments = ("extract", "--split", "val", "--root", str(root), "--device", "cpu", "--workers", "1", "--models", "1")
    run = subprocess.run(
        [sys.executable, "-P", str(program), str(traces), *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = sorted(traces.glob("*.json"), key=lambda path: -len(json.loads(path.read_text())))
    assert len(found) == 2, "the command and one worker"
    return [(module, function) for path in found for module, function in json.loads(path.read_text())]


def is_counted(module: str) -> bool:
    return not (module.startswith(NOT_COUNTED) or module in PLAIN)


def test_one_clip_passes_few_modules_from_the_command_to_its_row(
    tmp_path: Path, finished_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from alphafuse.data.dataset import Dataset
    from alphafuse.data.manifest import Manifest

    demo = Dataset.open(finished_demo / "demo")
    dataset = Dataset.create(
        tmp_path / "one",
        Manifest([demo.manifest.of_split("val")[0]]),
        name="one",
        clip_folder=demo.clip_folder,
        classes=demo.classes,
        timesformer="compact",
        ast="compact",
    )
    called = functions_called(tmp_path, dataset.root)
    assert len(dataset.store("val").read()) == 1
    walk: dict[str, list[str]] = {}
    for module, function in called:
        walk.setdefault(module, []).append(function)
    counted = [module for module in walk if is_counted(module)]
    with capsys.disabled():
        print(f"\none clip passes {len(counted)} modules:")
        for module in counted:
            print(f"  {module.removeprefix('alphafuse.')}: {', '.join(walk[module])}")
        print(f"  not counted: {', '.join(sorted(set(walk) - set(counted)))}")
    assert len(counted) <= MOST

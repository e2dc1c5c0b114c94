"""The commands of stage two on roots of any streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import Run, assert_one_line_error
from support.toy import CLAP, DINO, make_dataset

from alphafuse.data.streams import DEFAULT_STREAMS, Stream


@pytest.mark.parametrize("streams", [(*DEFAULT_STREAMS, DINO), (CLAP,)], ids=["three", "one"])
def test_heads_read_any_streams_and_sweep_the_last_one_by_default(
    run: Run, tmp_path: Path, streams: tuple[Stream, ...]
) -> None:
    root = make_dataset(tmp_path / "toy", streams=streams).root
    quick = ("--root", root, "--epochs", "1", "--hidden", "4", "--seeds", "1")
    last = streams[-1].name
    some, name = ("dino-s,ast", "sqrt-all-ast+dino-s") if len(streams) > 1 else ("clap", "sqrt-clap")
    assert run("fit", *quick, "--stream", some, "--transform", "sqrt", "--on", "all")[0] == 0
    assert run("fit", *quick, "--stream", "all", "--modality-dropout", "0.3")[0] == 0
    assert run("sweep", *quick, "--alpha", "0.5,1")[0] == 0
    assert run("compare", *quick)[0] == 0
    names = {path.name for path in (root / "runs").iterdir()}
    assert names == {name, "untransformed", f"sweep-{last}", "compare"}
    assert_one_line_error(run("fit", *quick, "--stream", f"{last}x"), f"(did you mean '{last}'?)")
    if len(streams) == 1:
        assert_one_line_error(run("fit", *quick, "--fusion", "gate"), "joins streams, but the head reads only clap")
        assert_one_line_error(run("table1", *quick), "has no stream 'timesformer'")


def test_contribute_prints_what_to_do_first_and_the_same_in_json(run: Run, tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "toy", streams=(*DEFAULT_STREAMS, DINO)).root
    assert run("fit", "--root", root, "--epochs", "1", "--hidden", "4", "--run", "quick")[0] == 0
    code, out, _ = run("contribute", "--root", root, "--stream", "timesformer,dino-s", "--refits", "1")
    assert code == 0 and "quick loses" in out and out.splitlines()[-1].startswith(f"written: {root}/runs/contribute (")
    code, everything, _ = run("contribute", "--root", root, "--stream", "all", "--refits", "0")
    assert code == 0 and "AST with dino-s" in everything
    code, text, _ = run("contribute", "--root", root, "--stream", "timesformer,dino-s", "--refits", "1", "--json")
    found = json.loads(text)
    assert code == 0 and found["said"][0][:60] in out and set(found["gains"]) == {"timesformer", "dino-s"}
    assert_one_line_error(run("contribute", "--root", root, "--head", "ridge"), "unknown head 'ridge'")
    assert_one_line_error(run("contribute", "--root", root, "--stream", "asr"), "asr")

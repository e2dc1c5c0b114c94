"""The commands of stage two on roots of any streams."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from support.cli import Run, assert_one_line_error
from support.toy import CLAP, DINO, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import DEFAULT_STREAMS, Stream
from alphafuse.heads.studies.runs import read_run


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
    assert names >= {name, "untransformed", f"sweep-{last}", "compare"}
    assert_one_line_error(run("fit", *quick, "--stream", f"{last}x"), f"(did you mean '{last}'?)")
    if len(streams) == 1:
        assert_one_line_error(run("fit", *quick, "--fusion", "gate"), "joins streams, but the head reads only clap")
        assert_one_line_error(run("table1", *quick), "has no stream 'timesformer'")


def test_weigh_says_what_to_do_first_and_takes_streams_a_name_and_everything(run: Run, tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "toy", streams=(*DEFAULT_STREAMS, DINO)).root
    code, out, err = run("weigh", "--root", root, "--stream", "ast,timesformer", "--folds", 3)
    assert code == 0 and err == ""
    assert out.startswith("Keep both streams") and "Late fusion" not in out
    assert out.endswith(f"written: {root / 'runs' / 'weigh'} (weigh.json, weigh.csv, weigh.md, head/)\n")
    code, out, _ = run("weigh", "--root", root, "--stream", "dino-s", "--run", "mine", "--all", "--seed", 3, "--json")
    assert code == 0 and json.loads(out)["streams"] == ["dino-s"]
    config = json.loads((root / "runs" / "mine" / "config.json").read_text())
    assert config["weigh"] == {"streams": ["dino-s"], "folds": 5, "seed": 3, "everything": True, "vggsounder": False}
    code, out, _ = run("weigh", "--root", root, "--stream", "timesformer,ast", "--all", "--wide")
    assert code == 0 and "Late fusion, a weighted mean of calibrated probabilities: TimeSformer " in out

    assert_one_line_error(run("weigh", "--root", root, "--stream", "dinos"), "(did you mean 'dino-s'?)")
    assert_one_line_error(run("weigh", "--root", root, "--folds", 1), "--folds")
    assert_one_line_error(run("weigh", "--root", root, "--run", "table1"), "the run name 'table1' is reserved")
    assert_one_line_error(run("weigh", "--root", tmp_path / "none"), "none")
    assert_one_line_error(run("fit", "--root", root, "--run", "weigh"), "reserved for `alphafuse weigh`")
    assert {path.name for path in (root / "runs").iterdir()} == {"weigh", "mine"}


def test_predict_works_from_the_head_that_weigh_saved(run: Run, demo_folder: Path) -> None:
    assert run("weigh", "--root", "demo")[0] == 0
    test = Dataset.open("demo").embeddings("test")
    expected = softmax(read_run("demo/runs/weigh").heads[0].predict_logits(test)[:1].astype(np.float64), axis=1)[0]
    code, out, _ = run("predict", f"demo/clips/{test.clip_ids[0]}.mp4", "--run", "demo/runs/weigh", "--json")
    assert code == 0
    first = json.loads(out)["clips"][0]["top"][0]
    assert first["label"] == Dataset.open("demo").classes[expected.argmax()]
    assert first["probability"] == pytest.approx(expected.max(), abs=1e-3)
    assert run("evaluate", "demo/runs/weigh")[0] == 0
    assert run("export", "demo/runs/weigh", "exported")[0] == 0
    assert read_run("exported").experiment.normalize == "variance"
    card = (demo_folder / "exported" / "README.md").read_text()
    assert "In closed form, by `alphafuse weigh`" in card and "epochs" not in card


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

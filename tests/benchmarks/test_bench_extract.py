"""Every part of the benchmark of extraction, at sizes too small to measure speed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bench_extract as bench_extract_module
import measuring
import pytest
from bench_extract import FULL, PARTS, bench_extract
from format_bench import format_bench
from measuring import Bench, Turn
from support.cli import assert_one_line_error
from support.clips import write_clip

from alphafuse.errors import DatasetError, ExperimentError

Script = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for look in range(3):
        write_clip(folder / "some" / f"{look}.mp4", frames=24, look=look)
    return folder


@pytest.fixture(scope="module")
def quick(clips: Path) -> Bench:
    """All parts except the one that starts Ray; contenders run in this process, which saves starting others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "in_new_process", lambda contender, turn: contender(Turn(turn, 0.0)))
        return bench_extract(clips, [part for part in PARTS if part != "engines"], repeats=1, quick=True)


def test_every_part_measures_its_figures(quick: Bench) -> None:
    assert [part.name for part in quick.parts] == list(PARTS)[:-1]
    for part in quick.parts:
        for figure in part.figures:
            assert len(figure.values) == 1 and all(value >= 0 for value in figure.values), figure
            assert figure.is_met is None, "quick sizes have no targets"
    assert quick["decode"]["clips with the same frames as decoding everything"].median == 100
    assert quick["models"]["largest difference from HuggingFace's embeddings"].median < 10
    assert quick["overlap"]["wall time x cores / seconds of decoding and models"].median > 0
    assert quick["memory"]["peak memory, all processes"].median > 100


def test_all_of_it_is_printed(quick: Bench) -> None:
    text = format_bench(quick)
    assert text.startswith("Extraction: one turn")
    for part in quick.parts:
        assert f"{part.name}: " in text and all(figure.name in text for figure in part.figures)
    assert all(len(line) <= 120 for line in text.splitlines())


def test_the_script_measures_in_new_processes_and_prints_json(clips: Path) -> None:
    words = [sys.executable, Path(bench_extract_module.__file__), "--clips", clips, "--part", "decode", "--quick"]
    ran = subprocess.run([*words, "--repeats", "1", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["parts"][0]["name"] == "decode"


def test_invalid_benchmarks_are_refused(clips: Path, tmp_path: Path, script: Script) -> None:
    with pytest.raises(DatasetError, match="no video files in"):
        bench_extract(tmp_path)
    with pytest.raises(DatasetError, match="no such clip folder"):
        bench_extract(tmp_path / "nowhere")
    with pytest.raises(ExperimentError, match=r"unknown part of the benchmark 'decod' \(did you mean 'decode'\?\)"):
        bench_extract(clips, ["decod"])
    with pytest.raises(ExperimentError, match="repeats must be a whole number of at least 1, not 0"):
        bench_extract(clips, repeats=0)
    assert_one_line_error(script(bench_extract_module.main, "--clips", tmp_path), "no video files in")
    assert FULL.full_size


@pytest.mark.cluster
def test_both_engines_are_measured(clips: Path) -> None:
    found = bench_extract(clips, ["engines"], repeats=1, quick=True)["engines"]
    assert [figure.name for figure in found.figures] == [
        "local engine, warm",
        "ray engine, warm",
        "local engine, peak memory",
        "ray engine, peak memory",
        "time per clip, Ray / local engine",
    ]
    assert all(figure.median > 0 for figure in found.figures)

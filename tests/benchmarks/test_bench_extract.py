"""Every part of extraction's benchmark at sizes that say nothing about speed."""

from __future__ import annotations

import json
from pathlib import Path

import measuring
import pytest
from bench_extract import FULL, PARTS, bench_extract
from click.testing import CliRunner
from format_bench import format_bench
from measuring import Bench, Turn
from support.clips import write_clip

from alphafuse.cli.main import cli
from alphafuse.errors import DatasetError, ExperimentError


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for look in range(3):
        write_clip(folder / "some" / f"{look}.mp4", frames=24, look=look)
    return folder


@pytest.fixture(scope="module")
def quick(clips: Path) -> Bench:
    """All parts but the one that starts Ray; contenders run in this process, which saves their starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "in_new_process", lambda contender, turn: contender(Turn(turn, 0.0)))
        return bench_extract(clips, [part for part in PARTS if part != "engines"], repeats=1, quick=True)


@pytest.mark.slow
def test_every_part_measures_what_it_names(quick: Bench) -> None:
    assert [part.name for part in quick.parts] == list(PARTS)[:-1]
    for part in quick.parts:
        for figure in part.figures:
            assert len(figure.values) == 1 and all(value >= 0 for value in figure.values), figure
            assert figure.is_met is None, "quick sizes promise nothing"
    assert quick["decode"]["clips whose frames are those of decoding everything"].median == 100
    assert quick["models"]["largest difference of embeddings from HuggingFace's"].median < 10
    assert quick["overlap"]["wall time x cores by seconds of decoding and models"].median > 0
    assert quick["memory"]["most memory, all processes"].median > 100


@pytest.mark.slow
def test_all_of_it_is_printed_and_json(quick: Bench, clips: Path) -> None:
    text = format_bench(quick)
    assert text.startswith("Extraction: one turn")
    for part in quick.parts:
        assert f"{part.name}: " in text and all(figure.name in text for figure in part.figures)
    assert all(len(line) <= 120 for line in text.splitlines())
    ran = CliRunner().invoke(
        cli,
        ["bench", "extract", "--clips", str(clips), "--part", "decode", "--repeats", "1", "--quick", "--json"],
    )
    assert ran.exit_code == 0 and json.loads(ran.output)["parts"][0]["name"] == "decode"


def test_what_can_not_be_measured_is_refused(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no video files in"):
        bench_extract(tmp_path)
    with pytest.raises(DatasetError, match="no such clip folder"):
        bench_extract(tmp_path / "nowhere")
    with pytest.raises(ExperimentError, match=r"unknown part of the benchmark 'decod' \(did you mean 'decode'\?\)"):
        bench_extract(clips, ["decod"])
    with pytest.raises(ExperimentError, match="repeats must be a whole number of at least 1, not 0"):
        bench_extract(clips, repeats=0)
    assert FULL.full_size


@pytest.mark.cluster
def test_both_engines_are_measured(clips: Path) -> None:
    found = bench_extract(clips, ["engines"], repeats=1, quick=True)["engines"]
    assert [figure.name for figure in found.figures] == [
        "local engine, warm",
        "ray engine, warm",
        "local engine, most memory of all",
        "ray engine, most memory of all",
        "time per clip, Ray's by the local engine's",
    ]
    assert all(figure.median > 0 for figure in found.figures)

"""Every part of the benchmark of heads, at sizes too small to measure speed: figures and output."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import bench_heads as bench
import measuring
import numpy as np
import pytest
import torch
from bench_heads import FULL, PARTS, QUICK, bench_heads
from format_bench import _number, format_bench
from machine import Machine
from measuring import Bench, Figure, Part, PeakMemory, Turn, in_new_process
from support.contenders import die, who_and_when

from alphafuse.data.store.store import EmbeddingStore
from alphafuse.errors import ExperimentError
from alphafuse.heads.training import train as training

FIRST = Turn(0, 0.0)


def run_here(patch: pytest.MonkeyPatch) -> None:
    """Run contenders in this process."""
    for module in (bench, measuring):  # both modules import it by name
        patch.setattr(module, "in_new_process", lambda contender, turn: contender(Turn(turn, 0.0)))


MAY_BE_ZERO = ("MB", "bytes per clip", "%", "points")  # units of figures that may be 0 at small sizes


@pytest.fixture(scope="module")
def quick() -> tuple[Bench, list[str]]:
    """All parts, two turns; contenders run in this process, which saves starting twenty others."""
    messages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch)
        return bench_heads(repeats=2, quick=True, progress=messages.append), messages


def test_every_part_has_plausible_figures_of_every_turn(quick: tuple[Bench, list[str]]) -> None:
    result, _ = quick
    assert [part.name for part in result.parts] == list(PARTS)
    for part in result.parts:
        assert part.figures
        assert len({figure.name for figure in part.figures}) == len(part.figures)
        for figure in part.figures:
            assert len(figure.values) == 2
            assert all(math.isfinite(value) for value in figure.values)
            assert all(value > 0 for value in figure.values) or figure.unit in MAY_BE_ZERO, figure.name
    assert all(0 <= value <= 100 for value in result["stream"]["accuracy, streamed"].values)


def test_part_clips_takes_the_requested_number_of_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(monkeypatch)
    part = bench_heads(["clips"], repeats=1, quick=True, clips=3000)["clips"]
    assert part.setup.startswith("3000 x 8 from a root whose store is sorted by class")
    for way in ("in memory", "streamed"):
        assert 20 < part[f"accuracy, {way}"].median <= 100  # 5 classes


def test_ratios_are_taken_within_a_turn(quick: tuple[Bench, list[str]]) -> None:
    result, _ = quick
    pairs = {
        "table1": (
            ("plain loop / alphafuse", "plain loop, per head", "alphafuse, per head", 1),
            ("MLPClassifier / alphafuse", "MLPClassifier, per head", "alphafuse, per head", 1),
        ),
        "vggsound": (
            ("training one head / torch.mm", "training one head", "torch.mm of 64 x 64", 100),
            ("training a head per core / oneDNN", "training a head per core", "oneDNN of 64 x 64", 100),
        ),
        "scaling": (("1000 clips / 100 clips", "1000 clips", "100 clips", 1),),
        "stream": (("cost per clip, streamed / in memory", "training, streamed", "training, in memory", 1),),
    }
    for part, names in pairs.items():
        for ratio, above, below, factor in names:
            of = zip(result[part][above].values, result[part][below].values, strict=True)
            np.testing.assert_allclose(result[part][ratio].values, [factor * a / b for a, b in of])


def test_contenders_take_turns(quick: tuple[Bench, list[str]]) -> None:
    _, messages = quick
    assert [line for line in messages if line.startswith("table1")] == [
        f"table1: {contender}, turn {turn} of 2"
        for turn in (1, 2)
        for contender in ("alphafuse", "plain loop", "plain loop, fused Adam", "MLPClassifier")
    ]


def test_text_shows_every_figure_and_where_it_was_measured(quick: tuple[Bench, list[str]]) -> None:
    result, _ = quick
    text = format_bench(result)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 120
    for part in result.parts:
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{part.name}: "))
        for figure in part.figures:
            row = next(line for line in lines[start:] if line.startswith(f"  {figure.name}  "))
            low, high = (_number(bound) for bound in (min(figure.values), max(figure.values)))
            assert _number(figure.median) in row
            assert f"{low}..{high}" in row
    machine = result.machine
    for word in (machine.cpu, f"{machine.cores} cores", f"torch {torch.__version__}", f"{machine.threads} threads"):
        assert word in text
    assert "quick" in text
    assert "met" not in text.split()  # targets are for full sizes only


def test_json_holds_every_figure(quick: tuple[Bench, list[str]]) -> None:
    result, _ = quick
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert [part["name"] for part in content["parts"]] == list(PARTS)
    for part, found in zip(content["parts"], result.parts, strict=True):
        assert [figure["values"] for figure in part["figures"]] == [list(figure.values) for figure in found.figures]
        assert [figure["median"] for figure in part["figures"]] == [
            np.median(figure.values) for figure in found.figures
        ]
    assert content["machine"]["versions"]["torch"]


def test_targets_are_reported_as_met_or_missed() -> None:
    fast = Figure("fast", "x", (4.5, 3.9, 5.0), least=4.0)
    slow = Figure("slow", "s", (3.5, 2.9, 4.0), most=3.0)
    assert (fast.is_met, slow.is_met, Figure("free", "s", (1.0,)).is_met) == (True, False, None)
    part = Part("start", "setup", (fast, slow), ("a note",))
    text = format_bench(Bench("Heads on the CPU", Machine.current(), (part,), 3, False, 60.0))
    assert "4.50 x  3.90..5.00  at least 4.00: met" in text
    assert "3.50 s  2.90..4.00  at most 3.00: missed" in text
    assert "a note" in text


def test_a_measurement_runs_in_its_own_process_and_knows_the_time_of_the_request() -> None:
    found = in_new_process(who_and_when, 3)
    assert found["process"] != os.getpid()
    assert found["turn"] == 3
    assert found["waited"] > 0


def test_a_killed_measurement_is_a_one_line_error() -> None:
    with pytest.raises(ExperimentError, match="killed from outside, probably for lack of memory"):
        in_new_process(die, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": ["tabel1"]}, "unknown part of the benchmark 'tabel1' .did you mean 'table1'"),
        ({"repeats": 0}, "repeats must be a whole number of at least 1, not 0"),
        ({"repeats": True}, "repeats must be"),
        ({"clips": 5}, "clips must be a whole number of at least 1000, not 5"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_measured(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        bench_heads(**{"quick": True, **arguments})  # type: ignore[arg-type]


def test_operations_are_those_of_the_products_that_autograd_computes() -> None:
    """Compare with PyTorch's own counter in a plain step; both count weights, not biases."""
    from torch.utils.flop_counter import FlopCounterMode

    widths, batch = (12, 8, 6, 5), 7
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(widths)]
    with FlopCounterMode(display=False) as counter:
        torch.nn.Sequential(*layers)(torch.zeros(batch, widths[0])).sum().backward()
    assert counter.get_total_flops() == batch * bench.operations_per_clip(widths)


def test_plain_loop_trains_and_scikit_learn_trains_all_epochs() -> None:
    sizes = replace(QUICK, epochs=40, dim=32, hidden=(64, 32))
    split = bench.random_split(sizes.clips, sizes.dim, sizes.classes)
    x, y = torch.from_numpy(bench._features(split)), torch.tensor(bench._targets(split))
    for fused in (False, True):
        history = bench._plain_loop(sizes, x, y, (x, y), seed=0, fused=fused)
        assert len(history) == sizes.epochs
        assert history[-1][1] < history[0][1]
    assert bench._sklearn_head(sizes, x.numpy(), y.numpy(), seed=0) == sizes.epochs


def test_measuring_stacks_restores_the_constants_of_training(quick: tuple[Bench, list[str]]) -> None:
    assert (training.STACK_CPU, training.SMALL_HEAD, training.MAX_THREADS) == (4, 400_000, 4)
    assert (training.SMALL_STEP_SECONDS, training.PROCESS_START_SECONDS) == (0.01, 5.0)


def test_large_splits_repeat_drawn_rows_and_first_clips_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DRAWN_ROWS", 10)
    split = bench.random_split(24, 3, 5)
    for matrix in split.features.values():
        assert matrix.shape == (24, 3)
        assert np.array_equal(matrix[10:20], matrix[:10])
        assert np.array_equal(matrix[20:], matrix[:4])
    assert set(split.labels) == set(bench.class_names(5))
    part = bench._first(split, 7)
    assert len(part) == 7
    assert all(np.shares_memory(part.features[name], split.features[name]) for name in part.features)


def test_the_number_of_clips_fits_into_a_third_of_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "free_memory_bytes", lambda: 3 * 4 * 2 * 100 * 50)  # 50 clips of 2 x 100 float32
    assert bench._affordable_clips(40, 100) == 40
    assert bench._affordable_clips(60, 100) == 50


def test_smaller_machines_measure_less_and_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(monkeypatch)
    monkeypatch.setattr(bench, "free_memory_bytes", lambda: 3 * 4 * 2 * 8 * 500)  # 500 clips of 2 x 8, 1000 of 2 x 4
    result = bench_heads(["vggsound", "scaling", "stream"], repeats=1, quick=True)
    assert any("500 clips instead of 600" in note for note in result["vggsound"].notes)
    assert any("4 instead of 8 numbers per stream" in note for note in result["scaling"].notes)
    assert any("500 clips instead of 2048" in note for note in result["stream"].notes)
    monkeypatch.setattr(bench, "free_memory_bytes", lambda: 3 * 4 * 2 * 4 * 500)
    result = bench_heads(["scaling"], repeats=1, quick=True)
    assert any("At most 100 clips" in note for note in result["scaling"].notes)


def test_stored_clips_are_close_to_the_centres_of_their_classes(tmp_path: Path) -> None:
    bench._write_stores(QUICK, 600, tmp_path, FIRST)
    train, val = (EmbeddingStore(tmp_path / name).read() for name in ("train", "val"))
    assert (len(train), len(val)) == (600, QUICK.stream_val_clips)
    x, y = bench._features(train), np.array(bench._targets(train))
    centres = np.stack([x[y == i].mean(axis=0) for i in range(QUICK.large_classes)])
    nearest = ((bench._features(val)[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == bench._targets(val)).mean() > 0.8


def test_peak_memory_includes_short_allocations() -> None:
    with PeakMemory() as peak:
        block = np.ones(25_000_000)  # 200 MB
        time.sleep(0.1)
        del block
    assert 150e6 < peak.grown_bytes < 600e6


def test_full_sizes_are_the_papers_and_vggsounds() -> None:
    assert (FULL.clips, 2 * FULL.dim, FULL.classes, FULL.epochs, FULL.heads) == (86, 1536, 91, 25, 48)
    assert (FULL.large_clips, FULL.large_classes, FULL.large_batch) == (183_730, 309, 512)
    assert (min(FULL.scaling_clips), max(FULL.scaling_clips)) == (1000, 1_000_000)

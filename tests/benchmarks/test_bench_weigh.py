"""The simulation of weights and the benchmark of `weigh`, at sizes that only show that they work."""

from __future__ import annotations

import sys

import bench_weigh
import numpy as np
import pytest
import simulate_weigh
from known_weights import Case, Truth, once, true_weights

from alphafuse.heads.closed.rows import LinearHead

EASY = Case(dims=(6, 6), signal=(1.5, 0.5), clips=200, classes=4)


def test_the_exact_risk_is_the_mean_error_on_new_clips() -> None:
    truth, rng = Truth(EASY, 0), np.random.default_rng(1)
    head, shift = LinearHead(rng.normal(size=(12, 4)) / 10, rng.normal(size=4) / 10), rng.normal(size=12)
    errors = []
    for _ in range(100):
        rows, targets = truth.draw(rng)
        scores = (np.concatenate([*rows.features.values()], axis=1) - shift) @ head.matrix + head.bias
        errors.append(np.square(scores - np.eye(4)[targets]).sum(axis=1).mean())
    assert np.mean(errors) == pytest.approx(truth.risk(head, shift), rel=0.02)


def test_true_weights_favour_the_stream_that_says_more_and_ignore_noise() -> None:
    first, second = true_weights(Truth(EASY, 0), 4, 1).alphas
    assert first > second
    noise = true_weights(Truth(Case((6, 6), (1.5, 0.0), 200, 4), 0), 4, 1)
    assert noise.alphas[1] < 0.3 and noise.cost_without[1] < 0.005 < noise.cost_without[0]


def test_a_draw_says_whether_the_set_holds_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    truth = Truth(EASY, 0)
    drawn = once(truth, true_weights(truth, 4, 1), 2)
    assert 0 <= drawn.octaves <= 8 and drawn.excess > -0.01 and len(drawn.dropped) == 2
    found = simulate_weigh.simulate(Case((4, 4, 4), (1.5, 0.5, 0.0), 120, 3), draws=2, truths=2)
    assert 0 <= found["covers"] <= 1 and len(found["true_weights"]) == 3
    assert "4+4+4" in simulate_weigh.line(found)


def test_the_benchmark_runs_at_small_sizes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("himalaya")
    monkeypatch.setattr(sys, "argv", ["bench_weigh.py", "--quick"])
    bench_weigh.main()
    printed = capsys.readouterr().out
    for words in ("statistics of 2,000 clips", "65 ratios", "confidence set", "himalaya / alphafuse", "microseconds"):
        assert words in printed

"""Scores of ridge heads on rows against direct products."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax
from support.closed import make_rows, one_hot, side_by_side
from support.toy import make_dataset

from alphafuse.heads.closed import moments as moments_module
from alphafuse.heads.closed import rows as module
from alphafuse.heads.closed.moments import Moments, assign_folds
from alphafuse.heads.closed.profile import Standardised, standardised
from alphafuse.heads.closed.ridge import Folds, Weighting
from alphafuse.heads.closed.rows import Candidate, Clips, heads_of, refit_of, score_rows, scores_of, units_of

CLASSES = 4
WEIGHTINGS = [
    Weighting((1.0, 1.0, 1.0), 3.0, 0.0),
    Weighting((0.5, 2.0, 0.0), 30.0, 0.0),
    Weighting((0.0, 0.0, 1.0), 0.2, 0.0),
]
TEMPERATURES = [0.1, 0.3, 1.7]


def setting(clips: int = 50) -> tuple[Clips, Moments, Standardised, list[Candidate]]:
    rows, targets = make_rows(clips)
    folds = assign_folds(rows.groups, targets, 3)
    moments = Moments.of(rows, targets, folds, classes=CLASSES)
    standard = standardised(moments)
    problem = Folds(standard.moments)
    candidates = [partial(heads_of, problem, one, standard) for one in WEIGHTINGS]
    return Clips(rows, targets, folds, units_of(rows.groups)), moments, standard, candidates


def test_scores_are_products_with_the_head_trained_without_the_clip() -> None:
    clips, moments, standard, candidates = setting()
    x = side_by_side(clips.rows) - moments.shift  # type: ignore[arg-type]
    found = scores_of(clips, candidates, moments)
    problem = Folds(standard.moments)
    for weighting, scores in zip(WEIGHTINGS, found, strict=True):
        for fold, (matrix, bias) in enumerate(problem.heads(weighting)):
            held = clips.folds == fold
            expected = x[held] @ standard.matrix @ matrix.numpy() + bias.numpy()
            np.testing.assert_allclose(scores[held], expected, atol=1e-5)
        whole = refit_of(problem, weighting, standard)
        matrix, bias = problem.refit(weighting)
        np.testing.assert_allclose(x @ whole.matrix, x @ standard.matrix @ matrix.numpy(), atol=1e-9)
        np.testing.assert_array_equal(whole.bias, bias.numpy())


def test_sums_per_source_video_are_those_of_the_scores() -> None:
    clips, moments, standard, candidates = setting()
    found = score_rows(clips, candidates, moments, temperatures=TEMPERATURES)
    scores = scores_of(clips, candidates, moments).astype(np.float64)
    truth, y = clips.targets, one_hot(clips.targets, CLASSES)
    logits = log_softmax(scores / np.array(TEMPERATURES)[:, None, None], axis=2)
    expected = {
        "squared": np.square(scores - y).sum(axis=2),
        "correct": (scores.argmax(axis=2) == truth).astype(float),
        "log_loss": -logits[:, np.arange(len(truth)), truth],
    }
    groups = np.array(clips.rows.groups)
    for unit in range(clips.units.max() + 1):
        (group,) = set(groups[clips.units == unit])
        assert found.sizes[unit] == (groups == group).sum()
        for name, values in expected.items():
            np.testing.assert_allclose(
                getattr(found, name)[:, unit], values[:, groups == group].sum(axis=1), rtol=1e-4, atol=1e-4
            )
    problem = Folds(standard.moments)
    means = [problem.loss(one.alphas, one.penalty) for one in WEIGHTINGS]
    np.testing.assert_allclose(found.squared.sum(axis=1) / len(truth), means, rtol=1e-5, err_msg="as from statistics")


def test_candidates_score_the_same_together_one_by_one_and_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, moments, _, candidates = setting()
    advanced: list[int] = []
    together = score_rows(clips, candidates, moments, advance=advanced.append)
    assert sum(advanced) == len(candidates) * len(clips.targets)
    monkeypatch.setattr(module, "HEAD_BYTES", 1)
    monkeypatch.setattr(moments_module, "ROWS_AT_ONCE", 7)
    apart = score_rows(clips, candidates, moments)
    np.testing.assert_allclose(apart.squared, together.squared, rtol=1e-5)
    np.testing.assert_array_equal(apart.correct, together.correct)
    assert not together.log_loss.any()


def test_a_store_on_disk_scores_as_memory(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    memory, disk = dataset.embeddings("train"), dataset.store("train").open_rows()
    found = {}
    for rows in (memory, disk):
        targets = np.unique(rows.labels, return_inverse=True)[1]
        folds = np.array([int(group.removeprefix("trainvideo")) % 3 for group in rows.groups])
        moments = Moments.of(rows, targets, folds, classes=9)
        standard = standardised(moments)
        candidate = partial(heads_of, Folds(standard.moments), Weighting((1.0, 0.5), 5.0, 0.0), standard)
        scores = scores_of(Clips(rows, targets, folds, units_of(rows.groups)), [candidate], moments)[0]
        found[rows is disk] = dict(zip(rows.clip_ids, scores, strict=True))
    assert found[False].keys() == found[True].keys()
    for clip, scores in found[False].items():
        np.testing.assert_allclose(found[True][clip], scores, atol=1e-5)


def test_units_are_source_videos_and_of_too_many_groups_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [f"video{i // 2}" for i in range(40)]
    assert len(set(units_of(groups))) == 20 and len(set(zip(units_of(groups), groups, strict=True))) == 20
    monkeypatch.setattr(module, "MOST_UNITS", 6)
    merged = units_of(groups)
    assert set(merged) == set(range(6)) and len(set(zip(merged, groups, strict=True))) == 20
    assert max(np.bincount(merged)) <= 2 * 4


def test_drawn_clips_stay_in_order_and_follow_from_the_seed() -> None:
    clips = setting()[0]
    some, again, others = (clips.drawn(8, seed=seed) for seed in (1, 1, 2))
    places = [clips.rows.clip_ids.index(clip_id) for clip_id in some.rows.clip_ids]
    assert len(places) == 8 and places == sorted(places) and again.rows.clip_ids == some.rows.clip_ids
    np.testing.assert_array_equal(some.targets, clips.targets[places])
    np.testing.assert_array_equal(some.folds, clips.folds[places])
    assert others.rows.clip_ids != some.rows.clip_ids and clips.drawn(50) is clips

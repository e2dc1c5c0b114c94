"""Sufficient statistics against the same figures computed from the rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.closed import DIMS, make_rows, one_hot, side_by_side
from support.toy import make_dataset

from alphafuse.data.embeddings import Embeddings
from alphafuse.errors import ExperimentError
from alphafuse.heads.closed import moments as module
from alphafuse.heads.closed.moments import Moments, assign_folds, effective_rank
from alphafuse.heads.closed.profile import constant_streams, standardised

CLASSES = 4


def gather(rows: Embeddings, targets: np.ndarray, *, folds: np.ndarray | None = None, **settings: object) -> Moments:
    chosen = assign_folds(rows.groups, targets, 3) if folds is None else folds
    return Moments.of(rows, targets, chosen, classes=CLASSES, **settings)  # type: ignore[arg-type]


def assert_same(one: Moments, other: Moments) -> None:
    assert dict(one.dims) == dict(other.dims)
    for name in ("counts", "sums", "gram"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-9)


def of_matrix(x: np.ndarray, targets: np.ndarray, folds: np.ndarray, like: Moments) -> Moments:
    """The definition: sums over the shifted rows of each fold and class."""
    y = one_hot(targets, CLASSES)
    inside = [folds == fold for fold in range(like.folds)]
    return Moments(
        like.dims,
        like.shift,
        np.stack([y[own].sum(axis=0) for own in inside]),
        np.stack([y[own].T @ (x[own] - like.shift) for own in inside]),
        np.stack([(x[own] - like.shift).T @ (x[own] - like.shift) for own in inside]),
    )


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_statistics_are_sums_over_the_rows_whatever_the_size_of_blocks(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    rows, targets = make_rows(50)
    folds = assign_folds(rows.groups, targets, 3)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", block)
    advanced: list[int] = []
    found = gather(rows, targets, advance=advanced.append)
    assert_same(found, of_matrix(side_by_side(rows), targets, folds, found))
    assert sum(advanced) == 50 and found.folds == 3 and dict(found.dims) == DIMS


def test_a_far_mean_costs_no_digits() -> None:
    rows, targets = make_rows(60, {"ast": 3})
    far = Embeddings(rows.clip_ids, rows.labels, rows.groups, {"ast": rows.features["ast"] + np.float32(1e4)})
    x = side_by_side(far)
    np.testing.assert_allclose(gather(far, targets).covariance("ast"), np.cov(x.T, bias=True), rtol=1e-9)


def test_parts_add_up_and_parts_of_other_shifts_are_refused() -> None:
    rows, targets = make_rows(40)
    folds = assign_folds(rows.groups, targets, 3)
    whole = gather(rows, targets, folds=folds)
    x = side_by_side(rows)
    first, second = (
        of_matrix(x[part], targets[part], folds[part], whole) for part in (slice(None, 22), slice(22, None))
    )
    assert_same(first + second, whole)
    with pytest.raises(ValueError, match="different streams or shifts"):
        whole + gather(rows.take(np.arange(20, 40)), targets[20:], folds=folds[20:])
    with pytest.raises(ValueError, match="different streams or shifts"):
        whole + whole.only(["ast"])


def test_some_scaled_and_rotated_streams_are_statistics_of_such_rows() -> None:
    rows, targets = make_rows(40)
    folds = assign_folds(rows.groups, targets, 3)
    found, rng = gather(rows, targets), np.random.default_rng(1)
    own = Embeddings(rows.clip_ids, rows.labels, rows.groups, {s: rows.features[s] for s in ("timesformer", "dino-s")})
    for some in (found.only(["dino-s", "timesformer"]), gather(rows, targets, streams=("timesformer", "dino-s"))):
        assert_same(some, gather(own, targets))
    assert found.only(list(DIMS)) is found

    x = side_by_side(rows)
    factors = rng.uniform(0.1, 3, size=12)
    scaled = found.scaled(factors)
    np.testing.assert_allclose(scaled.shift, found.shift * factors)
    assert_same(scaled, of_matrix(x * factors, targets, folds, scaled))

    basis = {stream: rng.normal(size=(dim, 2)) for stream, dim in DIMS.items()}
    parts = [rows.features[stream].astype(np.float64) @ basis[stream] for stream in DIMS]
    rotated = found.rotated(dict(reversed(basis.items())))
    assert dict(rotated.dims) == dict.fromkeys(DIMS, 2)
    assert_same(rotated, of_matrix(np.concatenate(parts, axis=1), targets, folds, rotated))


@pytest.mark.parametrize("per_video", [1, 3])
def test_folds_hold_whole_source_videos_and_some_of_each_class(per_video: int) -> None:
    rows, targets = make_rows(120, per_video=per_video)
    folds = assign_folds(rows.groups, targets, 5)
    assert all(len(set(folds[np.array(rows.groups) == group])) == 1 for group in set(rows.groups))
    videos = 120 // per_video
    spread = [Counter(targets[folds == fold])[label] / per_video for fold in range(5) for label in range(CLASSES)]
    assert min(spread) >= videos // (5 * CLASSES) and max(spread) - min(spread) <= 1
    np.testing.assert_array_equal(folds, assign_folds(rows.groups, targets, 5))
    assert (folds != assign_folds(rows.groups, targets, 5, seed=1)).any()
    assert set(assign_folds(rows.groups[: 2 * per_video], targets[: 2 * per_video], 5)) == {0, 1}


def test_the_effective_rank_counts_dimensions_of_equal_variance() -> None:
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert 1 < effective_rank(np.array([1.0, 1e-3, 1e-3])) < 1.05
    shares = np.array([0.5, 0.25, 0.25])
    assert effective_rank(9 * shares) == pytest.approx(2 ** (-(shares * np.log2(shares)).sum()))


@pytest.mark.parametrize("each_dimension", [False, True])
def test_constant_and_repeated_dimensions_leave_the_axes(each_dimension: bool) -> None:
    rows, targets = make_rows(60, {"timesformer": 4, "ast": 3})
    video = rows.features["timesformer"]
    wide = np.concatenate([video, video[:, :1], np.full((60, 1), 7, np.float32)], axis=1)
    more = Embeddings(rows.clip_ids, rows.labels, rows.groups, {"timesformer": wide, "ast": rows.features["ast"]})
    found = gather(more, targets)
    axes, variances = found.principal_axes("timesformer")
    assert axes.shape == (6, 4) and (np.diff(variances) <= 0).all()
    np.testing.assert_allclose(axes.T @ np.cov(wide.T, bias=True) @ axes, np.diag(variances), atol=1e-8)

    standard = standardised(found, each_dimension=each_dimension)
    assert dict(standard.moments.dims) == {"timesformer": 4, "ast": 3}
    x = (side_by_side(more) - found.shift) @ standard.matrix
    totals = [x[:, own].var(axis=0).sum() for own in standard.moments.columns.values()]
    np.testing.assert_allclose(totals, 9 / 2, rtol=1e-6, err_msg="all streams have the same total variance")
    np.testing.assert_allclose(np.concatenate(list(standard.variances.values())), x.var(axis=0), rtol=1e-6)
    if each_dimension:
        z = (wide[:, :5] - wide[:, :5].mean(axis=0)) / wide[:, :5].std(axis=0)
        expected = np.linalg.eigvalsh(np.cov(z.T, bias=True))[:0:-1]
        np.testing.assert_allclose(variances := standard.variances["timesformer"], expected * 4.5 / 5, rtol=1e-4)
        assert len(variances) == 4


def test_streams_that_are_the_same_for_all_clips_are_found() -> None:
    rows, targets = make_rows(30)
    for value in (0.0, 0.1, -3e4):
        features = {**rows.features, "ast": np.full((30, 3), value, np.float32)}
        constant = Embeddings(rows.clip_ids, rows.labels, rows.groups, features)
        assert constant_streams(gather(constant, targets)) == ["ast"]
    assert constant_streams(gather(rows, targets)) == []


def test_a_store_on_disk_gives_the_statistics_of_memory(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    memory, disk = dataset.embeddings("train"), dataset.store("train").open_rows()
    targets = np.unique(memory.labels, return_inverse=True)[1] % CLASSES
    order = {clip: i for i, clip in enumerate(memory.clip_ids)}
    places = np.array([order[clip] for clip in disk.clip_ids])
    folds = assign_folds(memory.groups, targets, 3)
    found = Moments.of(disk, targets[places], folds[places], classes=CLASSES)
    expected = gather(memory, targets, folds=folds)
    np.testing.assert_allclose(found.shift, expected.shift)
    assert_same(found, expected)


def test_clips_that_lack_a_stream_and_no_clips_are_refused() -> None:
    rows, targets = make_rows(10)
    rows.features["ast"][3] = np.nan
    with pytest.raises(ExperimentError, match="a clip lacks a stream"):
        gather(rows, targets)
    with pytest.raises(ExperimentError, match="no clips"):
        gather(rows.take(np.arange(0)), targets[:0])

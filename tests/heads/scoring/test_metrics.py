"""Scores and evaluations compared with scikit-learn, NumPy and figures computed by hand."""

from __future__ import annotations

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from alphafuse.heads.scoring.metrics import (
    Evaluation,
    _calibration_errors,
    _rankings,
    _resample_classes,
    d_prime,
    evaluate_probabilities,
    score,
)
from alphafuse.heads.scoring.statistics import (
    bootstrap_counts,
    mean_interval,
    resampled_interval,
    t_interval,
    wilson_interval,
)


def each(clips: int) -> list[str]:
    return [f"video{i}" for i in range(clips)]


def names(classes: int) -> list[str]:
    return [f"class {i}" for i in range(classes)]


def random_heads(
    seeds: int, clips: int, classes: int, *, seed: int = 0, skill: float = 1.5, occurring: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return (seeds, clips, C) probabilities and (clips,) targets among the first `occurring` classes."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, occurring or classes, clips)
    logits = rng.normal(size=(seeds, clips, classes))
    logits[:, np.arange(clips), targets] += skill
    return softmax(logits, axis=2), targets


def evaluate(probabilities: np.ndarray, targets: np.ndarray, **options: int) -> Evaluation:
    classes = probabilities.shape[2]
    return evaluate_probabilities(probabilities, targets, names(classes), each(len(targets)), **options)


def test_scores_equal_scikit_learns() -> None:
    rng = np.random.default_rng(8)
    logits = rng.normal(size=(3, 50, 9))
    targets = rng.integers(0, 7, 50)  # two classes don't occur
    scores = score(logits, targets)
    for seed in range(3):
        shifted = np.exp(logits[seed])
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        classes = np.arange(9)
        assert scores.top1[seed].mean() == pytest.approx(metrics.accuracy_score(targets, logits[seed].argmax(1)))
        assert scores.topk[seed].mean() == pytest.approx(
            metrics.top_k_accuracy_score(targets, logits[seed], k=5, labels=classes)
        )
        assert scores.loss[seed].mean() == pytest.approx(metrics.log_loss(targets, probabilities, labels=classes))
        per_class = [np.mean(logits[seed].argmax(1)[targets == c] == c) for c in np.unique(targets)]
        assert scores.class_accuracy[seed] == pytest.approx(np.mean(per_class))


def test_top5_of_three_classes_is_top3() -> None:
    scores = score(np.random.default_rng(9).normal(size=(1, 6, 3)), np.zeros(6, int))
    assert scores.k == 3 and scores.topk.all()


def test_equal_logits_count_for_the_first_class_only() -> None:
    scores = score(np.zeros((1, 3, 3)), np.arange(3))
    assert scores.top1.tolist() == [[True, False, False]]
    assert scores.loss.ravel() == pytest.approx(math.log(3))


def test_scores_refuse_invalid_arrays() -> None:
    with pytest.raises(ValueError, match="don't fit"):
        score(np.zeros((1, 3, 3)), np.zeros(4, int))
    with pytest.raises(ValueError, match="finite"):
        score(np.full((1, 3, 3), np.nan), np.zeros(3, int))


def test_evaluation_equals_scikit_learns_for_each_seed() -> None:
    probabilities, targets = random_heads(3, 80, 9, occurring=7)
    found = evaluate(probabilities, targets, resamples=20)
    one_hot = np.eye(9, dtype=int)[targets][:, :7]
    for seed, scores in enumerate(probabilities):
        classes, predicted = np.arange(9), scores.argmax(axis=1)
        area = metrics.roc_auc_score(one_hot, scores[:, :7], average="macro")
        expected = {
            "top1": metrics.accuracy_score(targets, predicted),
            "top5": metrics.top_k_accuracy_score(targets, scores, k=5, labels=classes),
            "mean_class_accuracy": metrics.recall_score(targets, predicted, labels=classes[:7], average="macro"),
            "mean_average_precision": metrics.average_precision_score(one_hot, scores[:, :7], average="macro"),
            "auc": area,
            "d_prime": math.sqrt(2) * NormalDist().inv_cdf(area),
            "log_loss": metrics.log_loss(targets, scores, labels=classes),
        }
        for name, value in expected.items():
            estimate = found.estimates[name]
            assert estimate is not None and estimate.per_seed[seed] == pytest.approx(value, abs=1e-9), name
    for estimate in found.estimates.values():
        assert estimate is not None and estimate.mean == pytest.approx(np.mean(estimate.per_seed))


def test_evaluation_agrees_with_score_on_the_logits() -> None:
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(2, 60, 8)), rng.integers(0, 8, 60)
    scores, found = score(logits, targets), evaluate(softmax(logits, axis=2), targets, resamples=20)
    assert found.top1.per_seed == pytest.approx(scores.top1.mean(axis=1))
    assert found.topk.per_seed == pytest.approx(scores.topk.mean(axis=1))
    assert found.log_loss.per_seed == pytest.approx(scores.loss.mean(axis=1))
    assert found.mean_class_accuracy.per_seed == pytest.approx(scores.class_accuracy)


def test_d_prime_gives_vggsounds_own_figure() -> None:
    assert d_prime(0.9725) < 2.735 < d_prime(0.9735)  # hche11/VGGSound README.md: AUC .973, d' 2.735
    assert d_prime(0.5) == 0


def test_calibration_error_by_hand() -> None:
    confidences = [0.9, 0.9, 0.6, 0.55]
    targets = np.array([0, 1, 0, 1])  # the first class is always predicted: right, wrong, right, wrong
    probabilities = np.array([[[c, 1 - c] for c in confidences]])
    # (13/15, 14/15]: |0.9 - 1/2| x 2/4; (8/15, 9/15], with 0.6 itself: |0.575 - 1/2| x 2/4
    assert evaluate(probabilities, targets, resamples=20).ece.mean == pytest.approx(0.2 + 0.0375)


def test_calibration_error_equals_a_loop_over_bins() -> None:
    probabilities, targets = random_heads(2, 300, 4)
    found = evaluate(probabilities, targets, resamples=20)
    for seed, scores in enumerate(probabilities):
        confidence, correct = scores.max(axis=1), scores.argmax(axis=1) == targets
        expected = 0.0
        for m in range(15):
            inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
            if inside.any():
                expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
        assert found.ece.per_seed[seed] == pytest.approx(expected, abs=1e-6)


def test_absent_classes_are_counted_and_left_out_of_the_means() -> None:
    probabilities, targets = random_heads(2, 60, 6, occurring=4)
    found = evaluate(probabilities, targets, resamples=20)
    assert found.absent_classes == ("class 4", "class 5")
    assert "6 classes, 2 of them absent" in repr(found)
    absent = found.table[4]
    assert (absent.n, absent.recall, absent.interval, absent.average_precision, absent.auc) == (0, *[None] * 4)
    assert (absent.precision, absent.confused_with) == (0.0, None)  # it was predicted, and never right


def test_one_class_has_no_ranking() -> None:
    probabilities, _ = random_heads(1, 10, 3)
    found = evaluate(probabilities, np.zeros(10, int), resamples=20)
    assert (found.mean_average_precision, found.auc, found.d_prime) == (None, None, None)
    assert found.to_json()["auc"] is None and found.over_seeds["auc"] is None
    assert found.mean_class_accuracy.mean == pytest.approx(found.top1.mean)


def test_table_and_confusion_by_hand() -> None:
    predicted = np.array([[0, 0, 1, 2, 2, 0], [0, 1, 1, 1, 1, 0]])  # two seeds
    targets = np.array([0, 0, 0, 1, 1, 2])
    probabilities = np.where(np.eye(3)[predicted] == 1, 0.8, 0.1)
    found = evaluate(probabilities, targets, resamples=20)
    assert found.confusion.tolist() == [[3, 3, 0], [0, 2, 2], [2, 0, 0]]
    first, second, third = found.table
    assert (first.label, first.n, first.recall, first.precision) == ("class 0", 3, 3 / 6, 3 / 5)
    assert (first.confused_with, first.confused) == ("class 1", 3 / 6)
    assert (second.recall, second.precision, second.confused_with, second.confused) == (0.5, 2 / 5, "class 2", 0.5)
    assert (third.recall, third.precision, third.confused_with, third.confused) == (0.0, 0.0, "class 0", 1.0)
    expected = [
        [metrics.roc_auc_score(targets == 0, scores[:, 0]), metrics.average_precision_score(targets == 0, scores[:, 0])]
        for scores in probabilities
    ]
    assert [first.auc, first.average_precision] == pytest.approx(np.mean(expected, axis=0))


def test_class_recall_of_one_head_has_wilsons_interval() -> None:
    probabilities, targets = random_heads(1, 90, 3)
    row = evaluate(probabilities, targets, resamples=20).table[1]
    assert row.recall is not None and row.interval == wilson_interval(round(row.recall * row.n), row.n)


def test_intervals_name_their_methods() -> None:
    probabilities, targets = random_heads(3, 60, 4)
    one, many = evaluate(probabilities[:1], targets), evaluate(probabilities, targets)
    assert one.top1.interval == wilson_interval(round(60 * one.top1.mean), 60)
    assert one.topk.interval.method == "Wilson"
    assert many.top1.interval.method == "Wilson over seeds and source videos"
    assert many.log_loss.interval.method == "t over seeds and source videos"
    by_class = many.mean_class_accuracy, many.auc, many.d_prime
    assert {found.interval.method for found in by_class if found} == {"bootstrap over seeds and source videos"}
    assert many.mean_average_precision is not None and many.auc is not None
    for centred in (many.mean_average_precision, many.ece):
        assert centred.interval.method == "centred bootstrap over seeds and source videos"
    assert many.over_seeds["auc"] == t_interval(many.auc.per_seed)
    assert set(one.over_seeds.values()) == {None}
    for estimate in (*one.estimates.values(), *many.estimates.values()):
        assert estimate is not None and estimate.interval.low <= estimate.mean <= estimate.interval.high


def test_log_loss_interval_is_that_of_the_mean_of_the_clips_losses() -> None:
    probabilities, targets = random_heads(2, 50, 4)
    groups = [f"v{i // 2}" for i in range(50)]
    found = evaluate_probabilities(probabilities, targets, names(4), groups, resamples=20)
    assert found.log_loss.interval == mean_interval(-np.log(probabilities[:, np.arange(50), targets]), groups)
    assert found.source_videos == 25


@pytest.mark.parametrize("decimals", [1, 12])
def test_resampled_rankings_equal_scikit_learns_weighted_ones(decimals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alphafuse.heads.scoring.metrics.BLOCK_CELLS", 200)  # several blocks for each class
    probabilities, targets = random_heads(2, 40, 5)
    probabilities = probabilities.round(decimals)  # one decimal: many ties
    correct = probabilities.argmax(axis=2) == targets
    _, counts = bootstrap_counts(2, [f"v{i // 2}" for i in range(40)], resamples=12)
    counts[0, targets == 2] = 0  # a class that is not sampled
    drawn = _resample_classes(probabilities, correct, targets, counts)
    for r, weights in enumerate(counts):
        classes = [c for c in range(5) if weights[targets == c].sum()]
        for seed, scores in enumerate(probabilities):
            recall, precision, area = zip(
                *(
                    (
                        np.average(correct[seed][targets == c], weights=weights[targets == c]),
                        metrics.average_precision_score(targets == c, scores[:, c], sample_weight=weights),
                        metrics.roc_auc_score(targets == c, scores[:, c], sample_weight=weights),
                    )
                    for c in classes
                ),
                strict=True,
            )
            assert drawn.class_accuracy[r, seed] == pytest.approx(np.mean(recall), abs=1e-6)
            assert drawn.average_precision[r, seed] == pytest.approx(np.mean(precision), abs=1e-6)
            assert drawn.auc[r, seed] == pytest.approx(np.mean(area), abs=1e-6)


def test_resampled_rankings_are_undefined_if_only_one_class_is_sampled() -> None:
    probabilities, targets = random_heads(1, 20, 2)
    counts = np.stack([targets == 0, np.ones(20)]).astype(np.float32)
    drawn = _resample_classes(probabilities, probabilities.argmax(axis=2) == targets, targets, counts)
    assert np.isnan(drawn.auc[0]).all() and np.isnan(drawn.average_precision[0]).all()
    assert np.isfinite(drawn.class_accuracy).all() and np.isfinite(drawn.auc[1]).all()


def test_resampled_calibration_error_equals_that_of_repeated_clips() -> None:
    probabilities, targets = random_heads(2, 60, 4)
    confidence, correct = probabilities.max(axis=2), probabilities.argmax(axis=2) == targets
    _, counts = bootstrap_counts(2, each(60), resamples=5)
    drawn = _calibration_errors(confidence, correct, counts)
    for r, weights in enumerate(counts.astype(int)):
        repeated = np.repeat(np.arange(60), weights)
        expected = evaluate(probabilities[:, repeated], targets[repeated], resamples=2).ece.per_seed
        assert drawn[r] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_intervals_of_map_and_auc_contain_the_values_of_other_splits_of_this_size() -> None:
    points, intervals, uncentred = [], [], []
    for seed in range(40):
        probabilities, targets = random_heads(1, 200, 20, seed=seed, skill=1)
        seed_counts, clip_counts = bootstrap_counts(1, each(200), resamples=200, seed=seed)
        drawn = _resample_classes(probabilities, np.zeros((1, 200), bool), targets, clip_counts)
        precision, area = (np.nanmean(values, axis=1) for values in _rankings(probabilities, targets))
        points.append((precision[0], area[0]))
        mean_average_precision = resampled_interval(precision, drawn.average_precision, seed_counts, centred=True)
        intervals.append((mean_average_precision, resampled_interval(area, drawn.auc, seed_counts)))
        uncentred.append(resampled_interval(precision, drawn.average_precision, seed_counts))
    expected = np.mean(points, axis=0)
    for i in range(2):
        held = sum(pair[i].low <= expected[i] <= pair[i].high for pair in intervals)
        assert held >= 36  # of 40; nominally 38
    assert sum(interval.low <= expected[0] <= interval.high for interval in uncentred) < 34  # hence `centred`


def test_map_interval_is_wider_when_clips_of_a_video_agree() -> None:
    probabilities, targets = random_heads(1, 60, 3)
    probabilities, targets = np.repeat(probabilities, 4, axis=1), np.repeat(targets, 4)
    widths = []
    for groups in ([f"v{i // 4}" for i in range(240)], each(240)):
        found = evaluate_probabilities(probabilities, targets, names(3), groups, resamples=400).mean_average_precision
        assert found is not None
        widths.append(found.interval.high - found.interval.low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.25)  # sqrt(4)


def test_perfect_heads_are_json_without_nan_or_infinity() -> None:
    targets = np.arange(12) % 3
    probabilities = np.tile(np.where(np.eye(3)[targets] == 1, 1.0, 0.0), (2, 1, 1))
    found = evaluate(probabilities, targets, resamples=30)
    assert found.d_prime is not None and found.d_prime.mean == math.inf and found.over_seeds["d_prime"] is None
    assert (found.log_loss.mean, found.ece.mean, found.mean_class_accuracy.mean) == (0, 0, 1)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["d_prime"]["mean"] is None and content["auc"]["mean"] == 1 and content["top3"]["mean"] == 1
    assert content["top1"]["over_seeds"]["method"] == "t over 2 seeds"
    assert [row["label"] for row in content["table"]] == names(3)


def test_log_loss_of_a_probability_of_zero_is_finite() -> None:
    probabilities = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    found = evaluate(probabilities, np.array([1, 1]), resamples=20)
    assert found.log_loss.mean == pytest.approx(-math.log(np.finfo(float).tiny) / 2)


def test_evaluation_is_the_same_twice() -> None:
    probabilities, targets = random_heads(2, 40, 4)
    assert evaluate(probabilities, targets).estimates == evaluate(probabilities, targets).estimates


def test_evaluation_refuses_arrays_that_are_not_probabilities() -> None:
    probabilities, targets = random_heads(1, 20, 4)
    with pytest.raises(ValueError, match="softmax scores"):
        evaluate(np.log(probabilities), targets)
    with pytest.raises(ValueError, match="softmax scores"):
        evaluate(probabilities * 2, targets)
    with pytest.raises(ValueError, match="finite"):
        evaluate(np.full_like(probabilities, np.nan), targets)
    with pytest.raises(ValueError, match="don't fit"):
        evaluate(probabilities[0][:, None], targets)
    with pytest.raises(ValueError, match="3 classes and 20 groups"):
        evaluate_probabilities(probabilities, targets, names(3), each(20))
    with pytest.raises(ValueError, match="4 classes and 19 groups"):
        evaluate_probabilities(probabilities, targets, names(4), each(19))

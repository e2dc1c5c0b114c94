"""Multi-label scores compared with a table computed by hand, and with the package `vggsounder` if installed."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from alphafuse.errors import ExperimentError
from alphafuse.heads.scoring.statistics import wilson_interval
from alphafuse.heads.scoring.vggsounder import (
    ClipLabels,
    LabelTable,
    load_labels,
    modality_confusion,
    vggsounder_scores,
)

CLASSES = ("dog", "cat", "car", "rain")
TABLE = LabelTable(
    clips={
        "a_000000": ClipLabels({"dog": "A", "cat": "AV"}, background_music=False),
        "b_000000": ClipLabels({"car": "V"}, background_music=True),
        "c_000000": ClipLabels({"rain": "AV"}, background_music=False),
    },
    classes=CLASSES,
    version="by hand",
)
CLIP_IDS = ["c_000000", "x_000000", "a_000000", "b_000000"]  # x is not listed
#        dog  cat  car  rain
SCORES = np.array(
    [
        [0.1, 0.2, 0.1, 0.6],  # c: rain, right
        [0.7, 0.1, 0.1, 0.1],
        [0.3, 0.5, 0.1, 0.1],  # a: cat, right; then dog, right
        [0.6, 0.1, 0.2, 0.1],  # b: dog, wrong; then car, right
    ]
)


def top(*classes: str) -> np.ndarray:
    """Return (clips, C) scores whose highest are these classes."""
    return np.array([[0.7 if name == chosen else 0.1 for name in CLASSES] for chosen in classes])


def test_scores_of_all_labels_by_hand() -> None:
    found = vggsounder_scores(CLIP_IDS, SCORES, CLASSES, k=2, table=TABLE)
    assert (found.n, found.missing, found.background_music, found.version) == (3, 1, 1, "by hand")
    row = found.row()
    assert (row.n, row.label_count, row.unreachable) == (3, 4, 0)
    assert (row.hit1.mean, row.hitk.mean, row.subset_accuracy.mean) == pytest.approx((2 / 3, 1, 1 / 3))
    assert row.micro_f1 == pytest.approx(2 * 2 / (3 + 4))  # 2 right of 3 predicted, of 4 labels
    assert row.jaccard == pytest.approx(2 / (3 + 4 - 2))
    assert row.macro_f1 == pytest.approx((0 + 1 + 0 + 1) / 4)
    assert (row.best_subset_accuracy, row.best_micro_f1) == pytest.approx((2 / 3, 2 * 3 / (3 + 4)))
    assert row.hit1.interval.method == "Wilson"


@pytest.mark.parametrize(
    ("clips", "labels", "n", "hit1", "hit2", "subset"),
    [
        ("all", "a", 2, 1, 1, 1 / 2),  # a: dog, cat; c: rain
        ("all", "v", 3, 2 / 3, 1, 2 / 3),  # a: cat; b: car; c: rain
        ("all", "av", 2, 1, 1, 1),  # a: cat; c: rain
        ("all", "a only", 1, 0, 1, 0),  # a: dog
        ("all", "v only", 1, 0, 1, 0),  # b: car
        ("no background music", "all", 2, 1, 1, 1 / 2),
        ("no background music", "v", 2, 1, 1, 1),
    ],
)
def test_scores_of_audible_and_visible_labels_by_hand(
    clips: str, labels: str, n: int, hit1: float, hit2: float, subset: float
) -> None:
    row = vggsounder_scores(CLIP_IDS, SCORES, CLASSES, k=2, table=TABLE).row(clips, labels)
    assert row.n == n
    assert (row.hit1.mean, row.hitk.mean, row.subset_accuracy.mean) == pytest.approx((hit1, hit2, subset))


def test_sets_without_a_clip_have_no_row() -> None:
    found = vggsounder_scores(CLIP_IDS, SCORES, CLASSES, k=2, table=TABLE)
    assert len(found.rows) == 11
    with pytest.raises(KeyError, match="v only"):
        found.row("no background music", "v only")  # b alone has such a label, and music


def test_labels_that_the_head_does_not_know_are_misses_and_are_counted() -> None:
    known = [1, 0, 3]  # cat, dog, rain: not car, and in another order
    names = [CLASSES[index] for index in known]
    row = vggsounder_scores(CLIP_IDS, SCORES[:, known], names, k=2, table=TABLE).row()
    assert (row.n, row.label_count, row.unreachable) == (3, 4, 1)
    assert (row.hit1.mean, row.hitk.mean) == pytest.approx((2 / 3, 2 / 3))
    assert row.micro_f1 == pytest.approx(4 / 7)


def test_scores_of_several_seeds_are_means_with_an_interval_over_seeds() -> None:
    wrong = top("car", "dog", "car", "cat")
    one, other = (vggsounder_scores(CLIP_IDS, scores, CLASSES, k=2, table=TABLE).row() for scores in (SCORES, wrong))
    both = vggsounder_scores(CLIP_IDS, np.stack([SCORES, wrong]), CLASSES, k=2, table=TABLE).row()
    assert both.hit1.per_seed == (one.hit1.mean, other.hit1.mean) == (pytest.approx(2 / 3), 0)
    assert both.micro_f1 == pytest.approx((one.micro_f1 + other.micro_f1) / 2)
    assert both.hit1.interval.method == "Wilson over seeds and source videos"


def test_scores_are_json() -> None:
    found = vggsounder_scores(CLIP_IDS, SCORES, CLASSES, k=2, table=TABLE)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["rows"][0]["hit1"]["interval"]["method"] == "Wilson"
    assert "n=3, missing=1" in repr(found) and "hit@2" in repr(found)


def test_modality_confusion_by_hand() -> None:
    fused = top("dog", "dog", "cat", "dog")  # c missed, a hit, b missed
    single = {
        "ast": top("cat", "dog", "dog", "car"),  # c missed, a hit, b hit
        "timesformer": top("rain", "dog", "rain", "car"),  # c hit, a missed, b hit
    }
    found = modality_confusion(CLIP_IDS, fused, single, CLASSES, table=TABLE)
    assert {name: share.mean for name, share in found.mu.items()} == pytest.approx(
        {"ast": 1 / 3, "timesformer": 2 / 3, "both": 1 / 3}
    )
    assert (found.n, found.missing) == (3, 1)
    alone = modality_confusion(CLIP_IDS, fused, {"ast": single["ast"]}, CLASSES, table=TABLE)
    assert list(alone.mu) == ["ast"] and alone.mu["ast"] == found.mu["ast"]
    assert json.loads(json.dumps(found.to_json()))["mu"]["both"]["mean"] == pytest.approx(1 / 3)


def test_modality_confusion_refuses_heads_of_other_seeds() -> None:
    with pytest.raises(ValueError, match="scores differ in shape"):
        modality_confusion(CLIP_IDS, SCORES, {"ast": np.stack([SCORES, SCORES])}, CLASSES, table=TABLE)
    with pytest.raises(ValueError, match="1 or 2 modalities, not of 0"):
        modality_confusion(CLIP_IDS, SCORES, {}, CLASSES, table=TABLE)


def test_mistakes_are_one_line_errors() -> None:
    with pytest.raises(ExperimentError, match=r"1 of the 4 classes, such as 'tram', are not VGGSound's"):
        vggsounder_scores(CLIP_IDS, SCORES, ("dog", "cat", "tram", "rain"), k=2, table=TABLE)
    with pytest.raises(ExperimentError, match=r"none of the 1 clips, such as 'x_000000', is among VGGSounder's 3"):
        vggsounder_scores(["x_000000"], SCORES[:1], CLASSES, k=2, table=TABLE)


def test_scores_refuse_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="don't fit 3 clips and 4 classes"):
        vggsounder_scores(CLIP_IDS[:3], SCORES, CLASSES, k=2, table=TABLE)
    with pytest.raises(ValueError, match="finite"):
        vggsounder_scores(CLIP_IDS, SCORES * np.nan, CLASSES, k=2, table=TABLE)
    with pytest.raises(ValueError, match="repeated clips"):
        vggsounder_scores(["a_000000"] * 4, SCORES, CLASSES, k=2, table=TABLE)
    with pytest.raises(ValueError, match=r"k must be in \[1, 4\], not 5"):
        vggsounder_scores(CLIP_IDS, SCORES, CLASSES, table=TABLE)


def test_a_missing_package_is_a_one_line_error_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vggsounder", None)
    with pytest.raises(ExperimentError) as caught:
        vggsounder_scores(CLIP_IDS, SCORES, CLASSES)
    assert str(caught.value) == "vggsounder is not installed: run `pip install 'alphafuse[vggsounder]'`"


@pytest.fixture(scope="module")
def real_table() -> LabelTable:
    pytest.importorskip("vggsounder", reason="needs the package: pip install 'alphafuse[vggsounder]'")
    return load_labels()


def test_real_labels_have_our_class_names_and_clip_ids(real_table: LabelTable) -> None:
    import alphafuse.data.sources

    with (Path(alphafuse.data.sources.__file__).parent / "vggsound" / "classes.csv").open(newline="") as lines:
        assert real_table.classes == tuple(row[0] for row in csv.reader(lines))
    assert real_table.version == "1.0" and len(real_table.clips) == 15_069
    assert sum(not clip.background_music for clip in real_table.clips.values()) == 12_014
    assert sum(len(clip.modalities) for clip in real_table.clips.values()) == 37_395
    for clip_id in real_table.clips:
        youtube_id, start = clip_id[:11], clip_id[11:]
        assert len(youtube_id) == 11 and start[0] == "_" and len(start) == 7 and start[1:].isdigit()


@pytest.mark.slow
def test_best_scores_of_real_labels_are_the_published_ones(
    real_table: LabelTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    # skip 36 bootstraps over 12,000 clips: this test needs no intervals
    monkeypatch.setattr(
        "alphafuse.heads.scoring.vggsounder.accuracy_interval", lambda values, groups: wilson_interval(0, 1)
    )
    clip_ids = [clip_id for clip_id, clip in real_table.clips.items() if not clip.background_music]
    any_scores = np.tile(np.arange(309.0), (len(clip_ids), 1))
    found = vggsounder_scores(clip_ids, any_scores, real_table.classes)
    rows = [found.row("no background music", labels) for labels in ("a", "v", "av")]
    assert [round(100 * row.best_subset_accuracy) for row in rows] == [29, 46, 48]
    assert [round(100 * row.best_micro_f1) for row in rows] == [59, 69, 70]


@pytest.mark.slow
def test_scores_equal_the_packages_own_benchmark(real_table: LabelTable) -> None:
    import pandas
    from vggsounder import VGGSounder, benchmark

    rng = np.random.default_rng(0)
    listed = sorted(real_table.clips)[::50]
    truth = np.array([[name in real_table.clips[clip].modalities for name in real_table.classes] for clip in listed])
    fused, audio, video = truth * rng.random((3, len(listed), 309)) + rng.random((3, len(listed), 309))
    labels = VGGSounder(background_music=None)
    frames = [pandas.DataFrame({"id": listed, "logits": scores.tolist()}) for scores in (fused, audio, video)]
    found = vggsounder_scores(["not-listed_000000", *listed], np.vstack([audio[:1], fused]), real_table.classes)
    for labels_name in ("all", "a", "v", "av", "a only", "v only"):
        truth_frame = benchmark.get_gt_for_modality(labels, labels_name, set(listed))
        theirs = benchmark.compare_labels_logits(truth_frame, frames[0], list(real_table.classes))
        row = found.row("all", labels_name)
        ours = {
            "hit_rate@1": row.hit1.mean,
            "hit_rate@5": row.hitk.mean,
            "accuracy@1": row.subset_accuracy.mean,
            "f1@1": row.micro_f1,
            "f1_macro@1": row.macro_f1,
            "jaccard@1": row.jaccard,
        }
        assert ours == pytest.approx({name: theirs[name] for name in ours})
        assert row.n == len(truth_frame)
    confusion = modality_confusion(listed, fused, {"a": audio, "v": video}, real_table.classes)
    truth_frame = benchmark.get_gt_for_modality(labels, "all", set(listed))
    theirs = benchmark.compute_modality_confusion_logits(truth_frame, *frames, list(real_table.classes))
    shares = {name: share.mean for name, share in confusion.mu.items()}
    assert shares == pytest.approx({"a": theirs["a"], "v": theirs["v"], "both": theirs["av"]})
    assert min(shares.values()) > 0

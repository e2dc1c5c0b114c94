"""The sentences on results that tempt one to say more than the clips show."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alphafuse.data.splits import Ceiling
from alphafuse.heads.scoring.metrics import Scores
from alphafuse.heads.scoring.statistics import (
    Interval,
    accuracy_interval,
    compare_pairs,
    difference_interval,
    estimate,
    mean_interval,
)
from alphafuse.heads.studies.evaluate import Against
from alphafuse.heads.studies.same_clips import SplitResult, resolvable_gap
from alphafuse.heads.studies.sweep import Chosen, Sweep
from alphafuse.heads.studies.words import (
    FusingGain,
    called,
    compact_note,
    fusing,
    fusing_gains,
    gains_sentence,
    score_sentence,
    told_apart,
    turned,
    verdict,
)

MEDIA = {"timesformer": "video", "ast": "audio", "dino": "video"}


def result(
    correct: np.ndarray | list[int], labels: list[str] | None = None, reachable: int | None = None
) -> SplitResult:
    """A split's result with these correct clips, (clips,) or (seeds, clips), each of its own source video."""
    right = np.atleast_2d(np.asarray(correct, bool))
    n = right.shape[1]
    ids = tuple(f"v{i}" for i in range(n))
    loss = np.where(right, 0.1, 2.0)
    top1 = estimate(right.astype(float), accuracy_interval(right, ids))
    return SplitResult(
        split="test",
        clip_ids=ids,
        groups=ids,
        labels=tuple(labels or [f"class {i % 16}" for i in range(n)]),
        dropped=0,
        ceiling=Ceiling(n if reachable is None else reachable, n),
        top1=top1,
        topk=top1,
        loss=estimate(loss, mean_interval(loss, ids)),
        scores=Scores(right.astype(int), right, right, 5, loss, right.mean(axis=1)),
    )


def first(count: int, n: int, *, start: int = 0) -> list[int]:
    """1 for `count` clips from `start` on."""
    return [int(start <= i < start + count) for i in range(n)]


def said(fused: SplitResult, others: int = 33, **alone: SplitResult) -> tuple[str, tuple[FusingGain, ...]]:
    """The first sentence, in a family of `others` more comparisons in which nothing differs, and the gains."""
    base = fused.scores.top1
    pairs = [(one.scores.top1, base) for one in alone.values()] + [(base, base)] * others
    compared = compare_pairs(pairs, fused.groups)
    gains = fusing_gains(zip(alone, alone.values(), compared, strict=False))
    media = {name: MEDIA[name] for name in alone or ("ast",)}
    gap = resolvable_gap(fused, list(alone.values()), comparisons=len(pairs)) if alone else None
    return fusing(fused, gains, media, resolvable=gap), gains


def test_a_gain_of_19_points_on_18_clips_is_undecided() -> None:
    fused, sound, sight = result(first(12, 18)), result(first(8, 18)), result(first(9, 18, start=9))
    sentence, gains = said(fused, ast=sound, timesformer=sight)
    assert sentence.startswith(
        "18 test clips can't decide whether to use both: together 67%, sight (TimeSformer) alone 50%"
    )
    assert "can't be told from none here" in sentence and "+16.7 points" in sentence
    assert [one.stream for one in gains] == ["timesformer", "ast"], "the smallest gain first"
    assert gains_sentence(gains, MEDIA).count("undecided") == 2


def test_the_stream_that_is_better_on_test_is_named_whatever_validation_says() -> None:
    fused, sight, sound = result(first(120, 200)), result(first(90, 200)), result(first(170, 200))
    sentence, _ = said(fused, timesformer=sight, ast=sound)
    assert sentence.startswith("Sound (AST) only: sound (AST) alone 85%, together 60% of 200 test clips. Fusing costs")
    assert "-25.0 points" in sentence and "Use both" not in sentence


def test_streams_that_both_lose_much_without_fusion_are_both_used() -> None:
    fused, sight, sound = result(first(160, 192)), result(first(80, 192)), result(first(82, 192, start=80))
    sentence, gains = said(fused, timesformer=sight, ast=sound)
    assert sentence == (
        "Use both: sound (AST) alone 43%, sight (TimeSformer) alone 42%, together 83% (77..88) of 192 test clips."
    )
    assert all(verdict(one.gain) == "better" for one in gains)


def test_of_many_clips_a_stream_that_fusing_adds_nothing_to_is_enough_and_of_few_that_is_undecided() -> None:
    for n, expected in ((1_000, "Sound (AST) alone is enough: 50%, together 50%"), (18, "18 test clips can't decide")):
        fused, sound, sight = result(first(n // 2, n)), result(first(n // 2, n)), result(first(n // 6, n))
        sentence, _ = said(fused, ast=sound, timesformer=sight)
        assert sentence.startswith(expected) and "Use both" not in sentence


def test_between_fusion_and_one_stream_is_undecided_while_the_other_is_worse() -> None:
    fused, sound, sight = result(first(150, 192)), result(first(145, 192)), result(first(60, 192))
    sentence, _ = said(fused, ast=sound, timesformer=sight)
    assert sentence.startswith("192 test clips can't decide between both and sound (AST) alone: together 78%")
    assert "sight (TimeSformer) alone 31% is worse than both" in sentence


@pytest.mark.parametrize(("n", "right"), [(18, 2), (960, 62)])
def test_streams_that_do_no_better_than_a_constant_answer_are_not_recommended(n: int, right: int) -> None:
    fused, sight, sound = result(first(right, n)), result(first(right, n)), result(first(right - 1, n))
    sentence, _ = said(fused, timesformer=sight, ast=sound)
    assert sentence.startswith(f"Undecided: {n:,} test clips don't show that any stream tells the labels apart")
    rare = ["dog"] * 70 + ["cat"] * 30  # all gains are found, and always answering 'dog' is better than all
    sentence, gains = said(result(first(60, 100), rare), timesformer=result(first(20, 100)), ast=result(first(5, 100)))
    assert all(told_apart(one.gain) > 0 for one in gains)
    assert sentence.startswith("Undecided: 100 test clips don't show") and "right for 70%" in sentence


def test_one_class_unknown_labels_and_one_stream_have_nothing_to_decide() -> None:
    every = result(first(18, 18), ["dog"] * 18)
    assert said(every, ast=every)[0] == "Nothing to decide: all 18 test clips have the same label, 'dog'."
    assert "none of the 18 test clips has a label that occurs in training" in said(result([0] * 18, reachable=0))[0]
    assert said(result(first(100, 200)))[0].startswith("There is one stream, and nothing to fuse: sound (AST) is right")
    assert said(result(first(10, 200)))[0].startswith("Undecided: 200 test clips don't show that sound (AST) tells")


def test_three_streams_are_all_needed_only_if_it_is_shown_of_each() -> None:
    fused = result(first(160, 192))
    alone = {name: result(first(80, 192, start=20 * i)) for i, name in enumerate(MEDIA)}
    gains = said(fused, **alone)[1]
    worse, same = (
        {name: gain for name in MEDIA} for gain in (turned(gains[0].gain), said(fused, ast=fused)[1][0].gain)
    )
    every = fusing(fused, gains, MEDIA, without=worse)
    assert every.startswith("Use all 3: together 83% (77..88) of 192 test clips, the best alone, ")
    unsure = fusing(fused, gains, MEDIA, without={**worse, "dino": same["dino"]})
    assert unsure.startswith("Fuse the streams: ") and unsure.endswith("Undecided whether sight (dino) is needed.")
    spare = fusing(fused, gains, MEDIA, without={**worse, "dino": gains[0].gain})
    assert spare.startswith("Fuse the streams, but not all 3: without sight (dino) +")
    harm = said(result(first(40, 192)), **alone)[0]
    assert harm.startswith("Don't fuse all 3 as they are: ") and harm.count("points") == 3


def test_of_streams_that_are_alike_the_sentence_recommends_as_seldom_as_the_test_errs() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(60):
        fused, sight, sound = (result(rng.random(18) < 0.5) for _ in range(3))
        sentence, gains = said(fused, others=2, timesformer=sight, ast=sound)
        decided = any(told_apart(one.gain) for one in gains)
        assert decided or sentence.startswith(("18 test clips can't decide", "Undecided"))
        wrong += sentence.startswith(("Use both", "Sight", "Sound", "Don't fuse"))
    assert wrong <= 4


def test_sentence_and_table_have_the_same_corrected_p() -> None:
    fused, sound = result(first(15, 18)), result(first(9, 18))
    found = compare_pairs([(fused.scores.top1, sound.scores.top1)], fused.groups)[0]
    assert found.is_found and told_apart(found) == 1
    sentence, (gain,) = said(fused, ast=sound)
    assert gain.gain.p_holm == 1.0 and "p = 1.000" in sentence and sentence.startswith("18 test clips can't decide")


def test_a_test_and_an_interval_that_disagree_are_undecided() -> None:
    found = compare_pairs([(np.ones((1, 40)), np.eye(1, 40))], [str(i) for i in range(40)])[0]
    assert verdict(found) == "better" and verdict(turned(found)) == "worse"
    assert verdict(replace(found, interval=Interval(-0.01, 1.0, "x"))) == "undecided"
    both = turned(turned(found))
    assert both.interval.low == found.interval.low and both.test.difference == found.test.difference


def test_a_score_is_beside_what_a_constant_answer_gets() -> None:
    labels = [f"class {i % 16}" for i in range(192)]
    good, bad = result(first(160, 192)).top1, result(first(14, 192)).top1
    assert score_sentence(good, labels, 192) == (
        "Right for 83% (77..88) of 192 test clips; always giving the same answer is right for 6%."
    )
    assert score_sentence(bad, labels, 192).startswith("Undecided: 192 test clips don't show that it is better than a")
    assert "trained on" in score_sentence(good, labels, 192, split="train")


@pytest.mark.parametrize(
    ("right", "word"),
    [(170, "Use alpha 0.5 on AST"), (100, "Keep AST as it is"), (141, "Undecided on AST")],
)
def test_an_alpha_is_recommended_only_if_test_clips_agree(right: int, word: str) -> None:
    base, other = result(first(140, 200)), result(first(right, 200))
    compared = compare_pairs([(other.scores.top1, base.scores.top1)], base.groups)[0]
    point: Any = SimpleNamespace(experiment=SimpleNamespace(alpha=0.5))
    chosen = Chosen(point, (0.5,), is_untransformed=False, test=other, comparison=compared)
    found: Any = SimpleNamespace(baseline=SimpleNamespace(val=base, test=base), chosen={"ast": chosen})
    sentence = Sweep._answer(found, "ast", chosen)
    assert sentence.startswith(word)
    assert ("but on 200 test clips it is worse (-20.0 points" in sentence) == (right == 100)
    kept = Sweep._answer(found, "ast", replace(chosen, is_untransformed=True))
    assert kept == "Keep AST as it is: 200 validation clips don't show that another alpha is better."
    blind: Any = SimpleNamespace(baseline=SimpleNamespace(val=result([0] * 9, reachable=0)))
    assert "they can't choose an alpha" in Sweep._answer(blind, "ast", chosen)


@pytest.mark.parametrize(("right", "word"), [(170, "Better than"), (141, "Undecided whether"), (100, "Worse than")])
def test_a_run_is_better_worse_or_undecided_against_another(right: int, word: str) -> None:
    ours, theirs = (result(first(count, 200)).scores.top1 for count in (right, 140))
    groups = [str(i) for i in range(200)]
    test = compare_pairs([(ours, theirs)], groups)[0].test
    against = Against("other", 0.7, 200, difference_interval(ours, theirs, groups), test)  # type: ignore[arg-type]
    assert against.sentence.startswith(word) and "other, 70% on the same 200 clips" in against.sentence


def test_streams_are_called_by_medium_and_name_and_compact_encoders_are_named() -> None:
    assert called("ast", MEDIA) == "sound (AST)" and called("sound", {"sound": "audio"}) == "sound"
    made = {"ast": {"name": "compact"}, "dino": {"name": "facebook/dinov2-base"}, "timesformer": {"name": "compact"}}
    assert compact_note(made, ["dino"]) == "" == compact_note({}, ["ast"])
    assert compact_note(made, ["dino", "ast"]).startswith("AST is a compact encoder, made for the demo's clips and for")
    assert compact_note(made, MEDIA).startswith("TimeSformer and AST are compact encoders")

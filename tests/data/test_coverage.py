"""What streams hear of clips: one rule, held against clips whose lengths are known."""

import math

import pytest

from alphafuse.data.coverage import Coverage, Hearing, coverage_of, joined

AST = {"ast": Hearing(10.24, pads_to=10.24)}


@pytest.mark.parametrize(
    ("seconds", "unheard", "is_short"),
    [
        (10.0, 0.0, False),  # VGGSound's clips
        (10.1, 0.0, False),
        (10.7, 0.0, False),  # 96% are heard
        (10.9, 0.66, False),
        (60.0, 49.76, False),
        (5.2, 0.0, False),
        (5.0, 0.0, True),
        (0.0, 0.0, False),  # no sound
        (math.nan, 0.0, False),
    ],
)
def test_a_clip_is_cut_or_padded_by_its_length_alone(seconds: float, unheard: float, is_short: bool) -> None:
    (found,) = coverage_of(AST, {"clip": seconds})
    assert found.unheard_seconds == pytest.approx(unheard)
    assert list(found.cut) == ["clip"] * (unheard > 0) and list(found.short) == ["clip"] * is_short
    assert found.clips == (seconds > 0)
    assert len(found.sentences()) == (unheard > 0) + is_short


def test_a_stream_that_hears_everything_or_does_not_pad_has_nothing_to_say() -> None:
    whole, whisper = coverage_of({"all": Hearing(None), "whisper": Hearing(30.0)}, {"film": 600.0, "bark": 0.1})
    assert whole.sentences() == [] and list(whisper.cut) == ["film"] and not whisper.short


def test_sentences_name_the_worst_first_and_count_over_all_splits() -> None:
    train, test = (coverage_of(AST, clips) for clips in ({"a": 12.0, "b": 8.0, "c": 1.0}, {"d": 70.0, "e": 2.0}))
    (both,) = joined([*train, *test])
    cut, short = both.sentences(["timesformer"])
    assert cut == (
        "AST hears the first 10.2 s of a clip, while the frames of TimeSformer span all of it: 2 of 5 clips are "
        "longer, and 61.5 s of sound are not heard (d: 59.8 s, a: 1.8 s)."
    )
    assert short == (
        "AST pads sounds to 10.2 s: 2 of 5 clips have less than half of that (c: 1.0 s, e: 2.0 s), and are mostly "
        "padding to it."
    )
    assert joined([]) == () and joined(train) == train


def test_a_name_of_a_clip_cannot_break_the_line() -> None:
    (found,) = coverage_of(AST, {"a\nb": 60.0})
    assert isinstance(found, Coverage) and "\n" not in found.sentences()[0]

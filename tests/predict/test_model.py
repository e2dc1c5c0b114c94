"""Predictions, explanations, and exported runs."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from support.clips import write_clip
from support.heads import head_config
from support.progress import RecordedProgress

from alphafuse.cli.main import main
from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.streams import DEFAULT_STREAMS
from alphafuse.errors import DatasetError, EncoderError, ExperimentError, RecipeMismatchError
from alphafuse.extract.encoders.encoder import Encoder
from alphafuse.extract.pipeline import extract_embeddings
from alphafuse.extract.settings import ExtractSettings
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.studies.best_run import best_run
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.runs import read_run
from alphafuse.heads.studies.table1 import table1
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.predict.bundle import carried_encoder, export_run
from alphafuse.predict.explain import ALPHAS, ChangedAnswer, Explanation, explain
from alphafuse.predict.model import AlphaFuse, find_clips
from alphafuse.predict.prediction import Prediction, Ranked
from alphafuse.predict.push import push_bundle
from alphafuse.predict.shares import Shares, no_shares, shares_of
from alphafuse.report.predict import format_explanation, format_prediction, to_csv, to_json, verdict
from alphafuse.report.studies import write_table1
from alphafuse.system.files import read_json, write_json

SETTINGS = TrainSettings(epochs=6, hidden=(16, 8), learning_rate=3e-3, memory_gb=1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_encoders: dict[str, Path]) -> Dataset:
    """Three classes of small clips, extracted with the tiny encoders, and runs trained on them."""
    from alphafuse.data.manifest import Clip, Manifest

    folder = tmp_path_factory.mktemp("predict") / "root"
    clips = []
    for i, split in enumerate(("train", "train", "val", "test")):
        for j, label in enumerate(("dog", "cat, meowing", "owl")):
            clip_id = f"{split}{i}{j}_{0:06d}"
            write_clip(folder / "clips" / f"{clip_id}.mp4", look=7 * j + i)
            clips.append(Clip(clip_id, f"{clip_id}.mp4", label, split, f"{split}{i}{j}"))
    dataset = Dataset.create(
        folder,
        Manifest(clips),
        name="toy",
        clip_folder=folder / "clips",
        classes=("dog", "cat, meowing", "owl"),
        streams=[replace(stream, encoder=str(tiny_encoders[stream.name])) for stream in DEFAULT_STREAMS],
    )
    extract_embeddings(dataset, ["train", "val", "test"], ExtractSettings(workers=1))
    fit(dataset, Experiment("sqrt", on="ast"), seeds=2, settings=SETTINGS)
    fit(dataset, Experiment(streams=("ast",)), settings=SETTINGS)
    zeros = replace(SETTINGS, absent="zeros")
    fit(dataset, Experiment(), settings=zeros, run="zeros")
    return dataset


@pytest.fixture(scope="module")
def model(root: Dataset) -> AlphaFuse:
    return AlphaFuse.from_pretrained(root.root / "runs" / "sqrt-ast", device="cpu", workers=1)


def test_a_clip_of_the_store_gets_the_answer_that_its_stored_embeddings_get(root: Dataset, model: AlphaFuse) -> None:
    clips = root.manifest.of_split("test")
    stored = root.embeddings("test")
    embedded = model.embed([root.path_of(clip) for clip in clips])
    for stream in ("timesformer", "ast"):
        np.testing.assert_array_equal(embedded.features[stream], stored.features[stream])
    found = model.predict([root.path_of(clip) for clip in clips])
    heads = read_run(root.root / "runs" / "sqrt-ast").heads
    expected = np.mean([head.predict_proba(stored).astype(np.float64) for head in heads], axis=0)
    np.testing.assert_array_equal(np.stack([prediction.probabilities for prediction in found]), expected)


def test_labels_come_with_the_most_probable_first_and_no_more_than_there_are(root: Dataset, model: AlphaFuse) -> None:
    (clip,) = find_clips([root.clip_folder / "test30_000000.mp4"])
    prediction = model(clip)
    assert [ranked.probability for ranked in prediction.top] == sorted(prediction.probabilities, reverse=True)
    assert prediction.label == model.classes[prediction.probabilities.argmax()]
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert {ranked.label for ranked in prediction.top} == set(root.classes) and prediction.heads == 2
    assert len(model(clip, top=1).top) == 1
    assert repr(prediction).startswith("Prediction('test30_000000.mp4': ")
    with pytest.raises(ExperimentError, match="top must be at least 1, not 0"):
        model(clip, top=0)


def test_answers_keep_the_order_in_which_clips_were_given(root: Dataset, model: AlphaFuse) -> None:
    paths = [root.path_of(clip) for clip in root.manifest]
    forwards, backwards = model.predict(paths), model.predict(paths[::-1])
    for one, other in zip(forwards, backwards[::-1], strict=True):
        assert one.clip == other.clip
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_a_prediction_is_yielded_before_later_clips_are_decoded(
    root: Dataset, model: AlphaFuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [root.path_of(clip) for clip in root.manifest][:5]
    together = model.predict(paths)
    monkeypatch.setattr("alphafuse.predict.model.STREAMED", 2)
    progress = RecordedProgress()
    stream = model.stream(paths, progress=progress)
    first = next(stream)
    assert isinstance(first, Prediction) and sum(progress.done) == 2
    for one, other in zip([first, *stream], together, strict=True):
        assert isinstance(one, Prediction) and one.clip == other.clip
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    assert sum(progress.done) == progress.rounds[0][1] == 5 and progress.stopped == 1


def test_heads_that_need_both_streams_report_why_they_have_no_answer(model: AlphaFuse, tmp_path: Path) -> None:
    silent = write_clip(tmp_path / "silent.mp4", audio=False)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    of_silent, of_broken = model.predict([silent, broken])
    assert of_silent.label is None and of_silent.top == () and of_silent.missing == {"ast": "no audio stream"}
    assert np.isnan(of_silent.probabilities).all()
    assert set(of_broken.missing) == {"timesformer", "ast"}
    advice = "(heads of `alphafuse fit --absent zeros` use the other stream)"
    assert format_prediction(of_silent).endswith(f"silent.mp4\n  no answer: no audio: no audio stream {advice}\n")
    assert format_prediction(of_broken).count("can't be opened") == 1
    assert isinstance(model.explain([silent])[0], Prediction)


def test_heads_trained_with_zeros_answer_from_the_stream_that_is_there(root: Dataset, tmp_path: Path) -> None:
    model = AlphaFuse.from_pretrained(root.root / "runs" / "zeros", workers=1)
    silent = write_clip(tmp_path / "silent.mp4", audio=False)
    (explained,) = model.explain([silent])
    assert isinstance(explained, Explanation)
    assert explained.prediction.label in root.classes and explained.prediction.missing == {"ast": "no audio stream"}
    assert set(explained.blanked) == {"timesformer"} and verdict(explained) == "only the video was used."
    assert explained.shares is None and explained.no_shares.startswith("these heads never learned to miss one")


def test_a_head_of_one_stream_needs_only_its_encoder(root: Dataset, tmp_path: Path) -> None:
    model = AlphaFuse.from_pretrained(root.root / "runs" / "ast-only", workers=1)
    assert set(model.embedder.encoders) == {"ast"} and model.media == {"ast": "audio"}
    blind = write_clip(tmp_path / "blind.m4a", video=False)
    assert model(blind).label in root.classes and model(blind).missing == {}
    with pytest.raises(ExperimentError, match="unknown stream 'timesformer': choose from ast"):
        AlphaFuse.from_pretrained(root.root / "runs" / "ast-only", encoders={"timesformer": "compact"})


def test_an_explanation_blanks_each_stream_and_weighs_it(root: Dataset, model: AlphaFuse) -> None:
    clip = root.path_of(root.manifest.of_split("test")[0])
    (explained,) = model.explain([clip])
    assert isinstance(explained, Explanation)
    probability = explained.prediction.top[0].probability
    assert set(explained.blanked) == {"timesformer", "ast"}
    for stream in ("timesformer", "ast"):
        points = dict(explained.along[stream])
        assert tuple(points) == ALPHAS
        assert points[1.0].probability == pytest.approx(probability)
        assert points[1.0].top.label == explained.prediction.label


def test_a_stream_without_a_finite_blank_embedding_is_left_as_it_is() -> None:
    """A made-up head whose answer is the sign of the sum of all numbers; the second clip lacks sound."""
    names, classes = ("timesformer", "ast", "dino"), ("dog", "cat")
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(2, 3)) for name in names}
    features["ast"][1] = np.nan
    rows = Embeddings(("0", "1"), ("-", "-"), ("0", "1"), features)
    blanks = {name: np.where(np.isnan(one), np.nan, 0.0) for name, one in features.items()}
    blank = replace(
        rows, features={**blanks, "dino": np.full((2, 3), np.nan)}
    )  # its encoder makes none of black frames

    def ask(embeddings: Any, alphas: Any) -> np.ndarray:
        dog = 1 / (1 + np.exp(-sum(np.nansum(embeddings.features[name], axis=1) for name in names)))
        return np.stack([np.stack([dog, 1 - dog], axis=1)])

    predictions = [
        Prediction(Path("a.mp4"), (Ranked(classes[int(p.argmax())], float(p.max())),), 1, 1, {}, {}, p)
        for p in ask(rows, None)[0]
    ]
    found = explain(
        predictions, rows, blank, ask, classes=classes, names=names, alphas=(), shares=[None, None], no_shares="made up"
    )
    for i, one in enumerate(found):
        assert isinstance(one, Explanation) and set(one.blanked) == (
            {"timesformer", "ast"} if i == 0 else {"timesformer"}
        )
        for name, changed in one.blanked.items():
            without = ask(replace(rows, features={**features, name: np.zeros((2, 3))}), None)[0, i]
            assert changed.probability == pytest.approx(without[classes.index(str(one.prediction.label))])
            assert (changed.top.label != one.prediction.label) == (name in one.changed_by)
        left = features["dino"][i].sum()
        assert max(one.blank.probability, 1 - one.blank.probability) == pytest.approx(1 / (1 + np.exp(-abs(left))))


DIMS = {"timesformer": 4, "ast": 3, "clap": 3}


def made_heads(streams: int, seeds: int = 2, **changes: Any) -> list[AlphaFusion]:
    """Return heads of random weights, and random moments of a z-score."""
    dims = dict(itertools.islice(DIMS.items(), streams))
    heads = []
    for seed in range(seeds):
        head = AlphaFusion(head_config(dims, "pqr", **changes), generator=torch.Generator().manual_seed(seed)).eval()
        for name, normalization in head.normalizations.items():
            if head.config.normalize == "zscore":
                normalization.mean.copy_(torch.linspace(-1, 1, dims[name]))
                normalization.std.copy_(torch.linspace(1, 2, dims[name]))
        heads.append(head)
    return heads


def predicted(heads: list[AlphaFusion], rows: Embeddings) -> list[Prediction]:
    found = []
    for probabilities in np.mean([head.predict_proba(rows).astype(np.float64) for head in heads], axis=0):
        best = int(probabilities.argmax())
        top = (Ranked("pqr"[best], float(probabilities[best])),) if np.isfinite(probabilities).all() else ()
        found.append(Prediction(Path("a.mp4"), top, 1, len(heads), {}, {}, probabilities))
    return found


def made_rows(streams: int) -> Embeddings:
    rng = np.random.default_rng(0)
    names = list(itertools.islice(DIMS, streams))
    features = {name: rng.normal(size=(5, DIMS[name])).astype(np.float32) for name in names}
    features[names[-1]][4] = np.nan
    return Embeddings(tuple("01234"), tuple("pqrpq"), tuple("01234"), features)


def lead(heads: list[AlphaFusion], features: dict[str, np.ndarray], top: int, second: int) -> float:
    """Return the mean lead in bits of one clip."""
    logits = [head.logits_of({name: x[None] for name, x in features.items()})[0].astype(np.float64) for head in heads]
    return float(np.mean([one[top] - one[second] for one in logits])) / math.log(2)


@pytest.mark.parametrize("fusion", ["concat", "add"])
def test_shares_of_a_linear_answer_are_shapley_values_against_the_mean_embedding(fusion: str) -> None:
    heads, rows = made_heads(3, hidden=(), normalize="zscore", fusion=fusion, absent="zeros"), made_rows(3)
    assert no_shares(heads[0].config) == ""
    means = {name: x.mean.numpy() for name, x in heads[0].normalizations.items()}
    predictions = predicted(heads, rows)
    for i, (prediction, shares) in enumerate(zip(predictions, shares_of(heads, rows, predictions, "pqr"), strict=True)):
        assert shares is not None
        order = np.argsort(-prediction.probabilities)
        top, second = int(order[0]), int(order[1])
        own = [name for name in DIMS if np.isfinite(rows.features[name][i]).all()]
        assert shares.second == "pqr"[second] and list(shares.streams) == own and len(own) == 3 - (i == 4)
        expected = dict.fromkeys(own, 0.0)
        for order_of in itertools.permutations(own):
            for place, name in enumerate(order_of):
                gain = []
                for joined in (order_of[: place + 1], order_of[:place]):
                    mixed = {key: rows.features[key][i] if key in joined else means[key] for key in DIMS}
                    gain.append(lead(heads, mixed, top, second))
                expected[name] += (gain[0] - gain[1]) / math.factorial(len(own))
        assert shares.streams == pytest.approx(expected, abs=1e-5)
        assert shares.base == pytest.approx(lead(heads, means, top, second), abs=1e-5)
        assert shares.lead == pytest.approx(shares.base + sum(shares.streams.values()))
        assert shares.lead == pytest.approx(
            lead(heads, {n: x[i] for n, x in rows.features.items()}, top, second), abs=1e-5
        )


def test_shares_of_heads_that_learned_to_miss_a_stream_are_asked_without_it() -> None:
    heads, rows = made_heads(2, modality_dropout=0.3, absent="zeros", hidden=(6,)), made_rows(2)
    predictions = predicted(heads, rows)
    gone = {name: np.full(dim, np.nan, np.float32) for name, dim in DIMS.items()}
    for i, shares in enumerate(shares_of(heads, rows, predictions, "pqr")):
        assert shares is not None and shares.base == 0
        order = np.argsort(-predictions[i].probabilities)
        sight, sound = rows.features["timesformer"][i], rows.features["ast"][i]
        both = lead(heads, {"timesformer": sight, "ast": sound}, *order[:2])
        assert shares.lead == pytest.approx(both, abs=1e-5)
        if i == 4:  # no sound
            assert shares.streams == pytest.approx({"timesformer": both}, abs=1e-5)
            continue
        alone = lead(heads, {"timesformer": sight, "ast": gone["ast"]}, *order[:2])
        other = lead(heads, {"timesformer": gone["timesformer"], "ast": sound}, *order[:2])
        assert shares.streams["timesformer"] == pytest.approx((alone + both - other) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("streams", "settings", "reason"),
    [
        (2, {"hidden": (6,)}, "never learned to miss one: train with --modality-dropout"),
        (2, {"hidden": ()}, "don't keep their clips' mean: train with --normalize zscore"),
        (
            3,
            {"hidden": (6,), "modality_dropout": 0.3},
            "never learned to miss several streams: use the head of",
        ),
    ],
)
def test_a_head_that_never_missed_a_stream_has_no_shares_and_says_why(
    streams: int, settings: dict[str, Any], reason: str
) -> None:
    heads, rows = made_heads(streams, **settings), made_rows(streams)
    assert reason in no_shares(heads[0].config)
    assert shares_of(heads, rows, predicted(heads, rows), "pqr") == [None] * 5


def test_the_lead_and_its_shares_are_one_line(root: Dataset) -> None:
    settings = replace(SETTINGS, hidden=(), normalize="zscore")
    run = fit(root, Experiment(), settings=settings, run="linear").folder
    (explained,) = AlphaFuse.from_pretrained(run, workers=1).explain([root.path_of(root.manifest.of_split("test")[0])])
    assert isinstance(explained, Explanation) and explained.shares
    shares = explained.shares
    sight, sound = (
        f"{name} {shares.streams[key]:+.2f}" for key, name in (("timesformer", "TimeSformer"), ("ast", "AST"))
    )
    line = f"lead over {shares.second}, in bits: {shares.lead:+.2f} = {sight}, {sound}, without any stream"
    text = " ".join(format_explanation(explained).split())
    assert line in text and f"why: {verdict(explained)}" in text and "decided" in verdict(explained)
    shutil.rmtree(run)


@pytest.mark.parametrize(
    ("changed_by", "sentence"),
    [
        ("", "the answer stays the same with the video (a) black, and with the video (b) black, and with the audio mu"),
        ("a", "the answer changes with the video (a) black; it stays the same with the video (b) black, and with the"),
        ("ac", "the answer changes with the video (a) black, and with the audio muted; it stays the same with the vi"),
        ("abc", "the answer changes with the video (a) black, and with the video (b) black, and with the audio muted."),
    ],
)
def test_without_shares_a_verdict_says_what_blank_streams_change_and_not_what_decided(
    changed_by: str, sentence: str
) -> None:
    media = {"a": "video", "b": "video", "c": "audio"}
    prediction = Prediction(Path("a.mp4"), (Ranked("dog", 0.9),), 1, 1, {}, media, np.array([0.9, 0.1]))
    changed = {name: ChangedAnswer(Ranked("cat" if name in changed_by else "dog", 0.6), 0.4) for name in media}
    found = Explanation(
        prediction, changed, ChangedAnswer(Ranked("cat", 0.5), 0.5), None, "there is only one label", {"a": ()}
    )
    assert verdict(found).startswith(sentence) and verdict(found).endswith(".") and "decided" not in verdict(found)
    assert found.decided == () and found.changed_by == tuple(changed_by)
    text = format_explanation(found)
    assert "video (b) black" in text and "audio muted" in text and "    all " in text


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ({"a": 4.0, "c": 1.9}, "the video decided: video +4.0 and audio +1.9 bits of the answer's lead of +6.0."),
        ({"a": 1.9, "c": 4.0}, "the audio decided: audio +4.0 and video +1.9 bits of the answer's lead of +6.0."),
        ({"a": 2.1, "c": 4.0}, "both decided: audio +4.0 and video +2.1 bits of the answer's lead of +6.2."),
        ({"a": -2.9, "c": 4.0}, "the audio decided: audio +4.0 and video -2.9 bits of the answer's lead of +1.2."),
        ({"a": 0.3, "c": 0.4}, "both decided, narrowly: audio +0.4 and video +0.3 bits of the answer's lead of +0.8."),
        (
            {"a": -0.1, "c": -0.2},
            "no stream speaks for the answer: these heads give it without any (video -0.1 and aud",
        ),
        (
            {"a": 2.0, "c": -2.0},
            "no clear answer: cat is as likely, so nothing decided (video +2.0 and audio -2.0 bits).",
        ),
        (
            {"a": 3.0, "b": 0.1, "c": 2.0},
            "the video (a) and the audio decided: video (a) +3.0, audio +2.0 and video (b) +0.1 bits of",
        ),
        ({"a": 3.0, "b": 2.0, "c": 2.0}, "all decided: video (a) +3.0, video (b) +2.0 and audio +2.0 bits of the ans"),
    ],
)
def test_a_verdict_follows_the_shares_whatever_blank_streams_change(shares: dict[str, float], sentence: str) -> None:
    """A blank stream changes the answer here exactly where its share is small."""
    media = {name: medium for name, medium in {"a": "video", "b": "video", "c": "audio"}.items() if name in shares}
    prediction = Prediction(Path("a.mp4"), (Ranked("dog", 0.9),), 1, 1, {}, media, np.array([0.9, 0.1]))
    most = max(shares.values())
    changed = {n: ChangedAnswer(Ranked("cat" if share < most else "dog", 0.6), 0.4) for n, share in shares.items()}
    base = 0.5 if most < 0 else 0.051
    own = Shares("cat", base + sum(shares.values()), base, shares)
    found = Explanation(prediction, changed, ChangedAnswer(Ranked("cat", 0.5), 0.5), own, "", {"a": ()})
    assert verdict(found).startswith(sentence)
    decided = [name for name, share in shares.items() if "decided" in sentence[:40] and share >= most / 2]
    assert found.decided == tuple(decided)
    assert to_json([found])[0]["why"]["decided"] == list(found.decided)


@pytest.mark.slow
def test_a_muted_clip_is_a_clip_with_a_silent_track(root: Dataset, model: AlphaFuse, tmp_path: Path) -> None:
    import av

    clip = root.path_of(root.manifest.of_split("test")[0])
    muted = tmp_path / "muted.mkv"
    with av.open(str(clip)) as source, av.open(str(muted), "w") as target:
        picture, sound = source.streams.video[0], source.streams.audio[0]
        copied = target.add_stream_from_template(picture)
        silent = target.add_stream("pcm_s16le", rate=sound.rate, layout="mono")
        samples = 0
        for packet in source.demux(picture, sound):
            if packet.dts is None:
                continue
            if packet.stream is picture:
                packet.stream = copied
                target.mux(packet)
            else:
                samples += sum(frame.samples for frame in packet.decode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = sound.rate, 0
        target.mux([*silent.encode(frame), *silent.encode()])
    (explained,) = model.explain([clip])
    (prediction,) = model.predict([muted])
    assert isinstance(explained, Explanation)
    answer = model.classes.index(str(explained.prediction.label))
    assert prediction.probabilities[answer] == pytest.approx(explained.blanked["ast"].probability, abs=1e-4)


def test_an_explanation_reads_as_text_and_json(root: Dataset, model: AlphaFuse) -> None:
    (explained,) = model.explain([root.path_of(root.manifest.of_split("test")[0])])
    assert isinstance(explained, Explanation)
    text = format_explanation(explained)
    assert "audio muted" in text and "video black" in text and "AST x alpha" in text and verdict(explained) in text
    (row,) = to_json([explained])
    json.dumps(row, allow_nan=False)
    assert row["why"]["shares"] is None and row["why"]["no_shares"] == explained.no_shares != ""
    assert len(row["why"]["along"]["ast"]) == len(ALPHAS)


def test_csv_has_a_line_per_rank_and_one_for_a_clip_without_an_answer(model: AlphaFuse, tmp_path: Path) -> None:
    clip, silent = write_clip(tmp_path / "a, b.mp4"), write_clip(tmp_path / "silent.mp4", audio=False)
    rows = list(csv.DictReader(io.StringIO(to_csv(model.predict([clip, silent], top=2)))))
    assert [row["rank"] for row in rows] == ["1", "2", ""]
    assert rows[0]["clip"] == str(clip) and float(rows[0]["probability"]) >= float(rows[1]["probability"])
    assert rows[2]["label"] == "" and rows[2]["missing"] == "ast: no audio stream"


def test_folders_are_searched_for_clips_and_missing_paths_are_named(root: Dataset, tmp_path: Path) -> None:
    assert len(find_clips([root.clip_folder])) == len(root.manifest)
    with pytest.raises(DatasetError, match="no files of video or sound in"):
        find_clips([tmp_path])
    with pytest.raises(DatasetError, match=r"no such clip: .*nothing.mp4"):
        find_clips([tmp_path / "nothing.mp4"])


def test_an_encoder_other_than_the_run_s_is_refused(
    root: Dataset, tmp_path: Path, tiny_encoders: dict[str, Path]
) -> None:
    other = tmp_path / "ast"
    shutil.copytree(tiny_encoders["ast"], other)
    write_json(other / "preprocessor_config.json", {"mean": -1.0})
    with pytest.raises(RecipeMismatchError, match=r"trained on another ast mean .*\(--encoder ast=ENCODER\)"):
        AlphaFuse.from_pretrained(root.root / "runs" / "sqrt-ast", encoders={"ast": str(other)})


def test_runs_without_heads_and_folders_that_are_not_runs_are_refused(root: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"no trained run in .*config.json.*alphafuse fit"):
        AlphaFuse.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {"kind": "sweep"})
    with pytest.raises(ExperimentError, match="is a sweep, which keeps no heads"):
        read_run(tmp_path)
    write_json(tmp_path / "config.json", {"kind": "fit"})
    with pytest.raises(ExperimentError, match="can't be read"):
        read_run(tmp_path)
    for name in ("nothing/there", "a/b/c", "./nothing"):
        with pytest.raises(ExperimentError, match=f"no trained run '{name}'"):
            AlphaFuse.from_pretrained(name)


def test_the_untransformed_heads_of_table1_can_be_used_as_a_run(root: Dataset, tmp_path: Path) -> None:
    dataset = Dataset.open(shutil.copytree(root.root, tmp_path / "root"))
    table = table1(dataset, seeds=2, settings=replace(SETTINGS, epochs=2))
    run = read_run(write_table1(table, dataset))
    assert run.experiment.name == "untransformed" and len(run.heads) == 2
    assert run.metrics["test"]["n"] == 3 and run.encoders["ast"]["name"] == dataset.stream("ast").encoder
    assert best_run(dataset) == dataset.root / "runs" / "table1", "two seeds of the untransformed heads"


# bundles


def test_an_exported_run_predicts_the_same_on_a_machine_that_has_nothing_else(
    root: Dataset, model: AlphaFuse, tmp_path: Path, tiny_encoders: dict[str, Path]
) -> None:
    out = export_run(root.root / "runs" / "sqrt-ast", tmp_path / "bundle", with_encoders=True)
    moved = shutil.move(out, tmp_path / "moved")
    assert str(tiny_encoders["ast"].parent) not in (Path(moved) / "config.json").read_text(), "no path of this machine"
    clip = root.path_of(root.manifest.of_split("test")[0])
    np.testing.assert_array_equal(AlphaFuse.from_pretrained(moved)(clip).probabilities, model(clip).probabilities)
    assert carried_encoder(Path(moved), "ast") is not None


def test_a_bundle_without_encoders_names_them_and_loads_them_from_given_folders(
    root: Dataset, model: AlphaFuse, tmp_path: Path, tiny_encoders: dict[str, Path]
) -> None:
    out = export_run(root.root / "runs" / "sqrt-ast", tmp_path / "bundle")
    assert not (out / "encoders").exists() and read_run(out).encoders["ast"]["name"] == "ast"
    with pytest.raises(EncoderError, match="no such folder for timesformer: 'timesformer'"):
        AlphaFuse.from_pretrained(out)
    found = AlphaFuse.from_pretrained(out, encoders={name: str(path) for name, path in tiny_encoders.items()})
    clip = root.path_of(root.manifest.of_split("test")[0])
    np.testing.assert_array_equal(found(clip).probabilities, model(clip).probabilities)


def test_a_bundle_says_that_it_runs_code_or_that_its_embeddings_were_given(
    root: Dataset, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folder = shutil.copytree(root.root / "runs" / "sqrt-ast", tmp_path / "run")
    config = read_json(folder / "config.json")
    config["encoders"]["timesformer"]["name"] = "mine.models:eye"
    config["encoders"]["ast"]["name"] = "given"
    write_json(folder / "config.json", config)
    code, _, err = run("export", folder, tmp_path / "out", "--with-encoders")
    card = (tmp_path / "out" / "README.md").read_text()
    assert code == 0 and not (tmp_path / "out" / "encoders").exists()
    for sentence in (
        "Stream timesformer runs the Python code mine.models:eye, which must be importable: read it, then allow it "
        "with --trust-code (trust_code=True).",
        "The embeddings of stream ast were given: predict can't make them of a clip.",
    ):
        assert f"note: {sentence}\n" in err and f"- {sentence}\n" in card
    with pytest.raises(EncoderError, match=r"would run the Python code mine.models:eye.*--trust-code"):
        AlphaFuse.from_pretrained(tmp_path / "out")
    config["encoders"]["timesformer"]["name"] = "given"
    write_json(folder / "config.json", config)
    with pytest.raises(
        ExperimentError, match=r"the timesformer embeddings of .* were given, and can't be made of a clip"
    ):
        AlphaFuse.from_pretrained(folder)


def test_an_existing_bundle_is_not_overwritten(root: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ExperimentError, match="mine exists: name another folder"):
        export_run(root.root / "runs" / "sqrt-ast", tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_model_card_states_data_protocol_metrics_with_intervals_and_limits(root: Dataset, tmp_path: Path) -> None:
    out = export_run(root.root / "runs" / "sqrt-ast", tmp_path / "bundle")
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "alphafuse" and card.data.pipeline_tag == "video-classification"
    test = read_json(out / "metrics.json")["test"]
    low, high = (100 * test["top1"]["interval"][end] for end in ("low", "high"))
    assert f"| test | 3 | 3 | {100 * test['top1']['mean']:.1f} [{low:.1f}, {high:.1f}] |" in card.text
    for words in ("sqrt on ast", "protocol standard", "cat, meowing", "## Limits", "gets no answer", "seeds 0, 1"):
        assert words in card.text, words
    assert "{{" not in card.text and "  \n" not in card.text


def test_push_to_hub_and_back_is_a_round_trip(
    root: Dataset, model: AlphaFuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder replaces the hub: huggingface_hub's own mixin does everything except the transfer."""
    hub = tmp_path / "hub"

    def create_repo(self: HfApi, repo_id: str, **given: object) -> Any:
        assert given["private"] is True
        return type("Url", (), {"repo_id": repo_id})()

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, **given: object) -> str:
        shutil.copytree(folder_path, hub / repo_id)
        return f"https://hub/{repo_id}"

    def snapshot_download(repo_id: str, **given: object) -> str:
        return str(hub / repo_id)

    def hf_hub_download(repo_id: str, filename: str, **given: object) -> str:
        return str(hub / repo_id / filename)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", hf_hub_download)
    out = export_run(root.root / "runs" / "sqrt-ast", tmp_path / "bundle", with_encoders=True)
    assert push_bundle(out, "me/toy", private=True) == "https://hub/me/toy"
    assert (hub / "me" / "toy" / "README.md").read_text() == (out / "README.md").read_text()
    back = AlphaFuse.from_pretrained("me/toy")
    clip = root.path_of(root.manifest.of_split("test")[0])
    np.testing.assert_array_equal(back(clip).probabilities, model(clip).probabilities)


def test_a_failed_push_is_a_one_line_error(root: Dataset, tmp_path: Path, tiny_encoders: dict[str, Path]) -> None:
    out = export_run(root.root / "runs" / "sqrt-ast", tmp_path / "bundle", with_encoders=True)
    with pytest.raises(ExperimentError, match=r"can't push to 'me/toy': .*hf auth login"):
        push_bundle(out, "me/toy")


# the command line


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["alphafuse", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_command_takes_the_best_run_and_prints_labels(
    root: Dataset, run: Callable[..., tuple[int, str, str]]
) -> None:
    clip = root.clip_folder / "test30_000000.mp4"
    code, out, err = run("predict", clip, "--root", root.root, "--top", 2, "--workers", 1)
    assert code == 0 and out.splitlines()[0] == str(clip)
    labels = [line for line in out.splitlines()[1:] if "%" in line]
    assert len(labels) == 2 and all("AST hears" in line for line in out.splitlines()[3:])  # the tiny AST hears 1.28 s
    val = read_run(best_run(root)).metrics["val"]["top1"]["mean"]
    assert err.startswith(f"run: {best_run(root)} (")
    assert err.splitlines()[0].endswith(f"right on {100 * val:.1f}% of 3 validation clips)")
    assert "this run can't be distinguished from guessing" in err  # 3 test clips are too few


def test_json_is_one_document_and_clips_without_an_answer_exit_with_1(
    root: Dataset, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    write_clip(tmp_path / "clips" / "a.mp4")
    write_clip(tmp_path / "clips" / "b.mp4", audio=False)
    code, out, _ = run(
        *("predict", tmp_path / "clips", "--run", root.root / "runs" / "sqrt-ast", "--why", "--json", "--workers", 1)
    )
    content = json.loads(out)
    assert code == 1 and set(content) == {"run", "classes", "clips"}
    assert [set(clip) for clip in content["clips"]] == [
        {"clip", "top", "heads", "agreeing", "missing", "unheard_seconds", "why"},
        {"clip", "top", "heads", "agreeing", "missing", "unheard_seconds"},
    ]


def test_mistakes_are_one_line(root: Dataset, run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for arguments, message in (
        (("predict", tmp_path / "no.mp4", "--root", root.root), "no such clip"),
        (("predict", root.clip_folder, "--run", tmp_path), "no trained run in"),
        (("predict", root.clip_folder, "--csv", "--json"), "--csv can't be combined with"),
        (("export", tmp_path, tmp_path / "out"), "no trained run in"),
    ):
        code, out, err = run(*arguments)
        assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1, err


def test_export_prints_the_folder_and_its_size(
    root: Dataset, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, _ = run("export", root.root / "runs" / "sqrt-ast", tmp_path / "out", "--json")
    assert code == 0 and set(json.loads(out)) == {"folder", "pushed", "bytes"}
    assert read_run(tmp_path / "out").heads[0].config.experiment.transform == "sqrt"


def test_an_answer_of_half_of_the_heads_is_not_clear(root: Dataset, model: AlphaFuse) -> None:
    (explained,) = model.explain([root.path_of(root.manifest.of_split("test")[0])])
    assert isinstance(explained, Explanation)
    torn = replace(explained, prediction=replace(explained.prediction, agreeing=1))
    assert verdict(torn) == "no clear answer: 1 of 2 heads put it first; the explanation is weak."


def test_a_file_that_looks_like_an_option_is_explained(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "-odd.mp4")
    code, _, err = run("predict", "-odd.mp4")
    assert code == 2 and "'-odd.mp4' looks like an option: write ./-odd.mp4" in err


def test_black_frames_are_embedded_once_for_clips_of_any_duration(
    model: AlphaFuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [write_clip(tmp_path / f"{i}.mp4", seconds=0.5 + 0.1 * i) for i in range(6)]
    calls: list[str] = []
    embed = Encoder.embed

    def counted(encoder: Encoder, batch: Any) -> np.ndarray:
        calls.append(encoder.stream.name)
        return embed(encoder, batch)

    monkeypatch.setattr(Encoder, "embed", counted)
    assert all(isinstance(one, Explanation) for one in model.explain(clips))
    assert (
        len(clips) < calls.count("timesformer") <= len(clips) + model.embedder.threads
    )  # several threads may start it at once
    assert calls.count("ast") == 2 * len(clips)


def test_a_prediction_says_what_a_stream_does_not_hear_of_the_clip(root: Dataset, tmp_path: Path) -> None:
    """The tiny AST hears 1.28 s; its answer is the same for a film that is silent afterwards."""
    write_clip(tmp_path / "film.mp4", frames=48, fps=12)
    write_clip(tmp_path / "brief.mp4", frames=12, fps=12, seconds=0.5)
    write_clip(tmp_path / "mute.mp4", frames=48, fps=12, audio=False)
    model = AlphaFuse.from_pretrained(best_run(root))
    film, brief, mute = model.predict([tmp_path / f"{name}.mp4" for name in ("film", "brief", "mute")])
    assert film.to_json()["unheard_seconds"]["ast"] == pytest.approx(4 - 1.28, abs=0.1)
    assert re.search(r"AST hears its first 1.3 s: 2.\d s are not heard", format_prediction(film))
    assert re.search(r"AST hears 0.\d s of sound, and padding up to 1.3 s", format_prediction(brief))
    assert brief.to_json()["unheard_seconds"] == mute.to_json()["unheard_seconds"] == {"ast": 0.0}
    assert "hear" not in format_prediction(mute)

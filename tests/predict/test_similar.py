"""Similar clips: the nearest of the cache, for clips of the root and for files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.cli import Run, assert_one_line_error
from support.clips import write_clip
from support.toy import DINO, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import DEFAULT_STREAMS
from alphafuse.errors import DatasetError, RecipeMismatchError
from alphafuse.extract.pipeline import extract_embeddings
from alphafuse.extract.settings import ExtractSettings
from alphafuse.predict.similar import similar

WORKER = ExtractSettings(workers=1, device="cpu")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three streams; the first three test clips have no sound."""
    folder = tmp_path_factory.mktemp("similar") / "toy"
    return make_dataset(folder, streams=(*DEFAULT_STREAMS, DINO), silent_test_clips=3)


@pytest.fixture(scope="module")
def extracted_root(tmp_path_factory: pytest.TempPathFactory, tiny_encoders: dict[str, Path]) -> Dataset:
    """Six clips of four source videos, extracted by the tiny encoders."""
    from alphafuse.data.manifest import Clip, Manifest

    folder = tmp_path_factory.mktemp("similar") / "root"
    clips = []
    for look, (video, cut, split) in enumerate(
        [("a", 0, "train"), ("a", 1, "train"), ("b", 0, "train"), ("c", 0, "val"), ("d", 0, "test"), ("d", 1, "test")]
    ):
        write_clip(folder / "clips" / f"{video}{cut}.mp4", look=5 * look)
        clips.append(Clip(f"{video}{cut}", f"{video}{cut}.mp4", "dog", split, video))
    dataset = Dataset.create(
        folder,
        Manifest(clips),
        name="toy",
        clip_folder=folder / "clips",
        classes=("dog", "cat"),
        streams=[replace(stream, encoder=str(tiny_encoders[stream.name])) for stream in DEFAULT_STREAMS],
    )
    extract_embeddings(dataset, ["train", "val", "test"], WORKER)
    return dataset


def brute_force(dataset: Dataset, clip_id: str, alphas: dict[str, float]) -> list[tuple[str, float]]:
    """(clip_id, similarity) of all clips of other source videos, nearest first, from concatenated vectors."""
    everything = [dataset.embeddings(split) for split in ("train", "val", "test")]
    ids = [i for part in everything for i in part.clip_ids]
    groups = [group for part in everything for group in part.groups]
    scaled = []
    for name, alpha in alphas.items():
        rows = np.concatenate([part.features[name] for part in everything]).astype(np.float64)
        rows -= np.nanmean(rows, axis=0)
        scaled.append(np.nan_to_num(alpha * rows / np.linalg.norm(rows, axis=1, keepdims=True)))
    joined = np.hstack(scaled)
    own = ids.index(clip_id)
    cosines = joined @ joined[own] / np.sum(joined[own] ** 2)  # by the streams that the query has
    order = [int(i) for i in np.argsort(-cosines) if groups[i] != groups[own]]
    return [(ids[i], float(cosines[i])) for i in order]


@pytest.mark.parametrize(
    ("by", "alphas", "effective"),
    [
        ("all", {}, {"timesformer": 1, "ast": 1, "dino-s": 1}),
        ("all", {"ast": 0.5, "dino-s": 0}, {"timesformer": 1, "ast": 0.5, "dino-s": 0}),
        ("sight", {"dino-s": 3}, {"timesformer": 1, "dino-s": 3}),
        ("sound", {}, {"ast": 1}),
        ("dino-s", {}, {"dino-s": 1}),
    ],
)
def test_clips_of_the_root_are_compared_as_by_brute_force(
    toy: Dataset, by: str, alphas: dict[str, float], effective: dict[str, float]
) -> None:
    asked = ["trainvideo0_000000", "testvideo4_000009", "valvideo3_000007"]
    found = similar(toy, asked, by=by, alphas=alphas, count=12)
    total = sum(alpha**2 for alpha in effective.values())
    assert found.shares == pytest.approx({name: alpha**2 / total for name, alpha in effective.items()})
    assert found.searched == ({"train": 90, "val": 27, "test": 45} if by != "sound" else {**found.searched, "test": 42})
    for clip_id, answer in zip(asked, found.answers, strict=True):
        expected = brute_force(toy, clip_id, effective)[:12]
        assert [one.clip.clip_id for one in answer.found] == [name for name, _ in expected]
        assert [one.similarity for one in answer.found] == pytest.approx([value for _, value in expected], abs=1e-5)
        for one in answer.found:
            assert sum(part or 0 for part in one.parts.values()) == pytest.approx(one.similarity, abs=1e-5)
            assert one.path == toy.clip_folder / f"{one.clip.clip_id}.mp4" and list(one.parts) == list(effective)
            silent = one.clip.clip_id in ("testvideo0_000000", "testvideo0_000001", "testvideo1_000002")
            assert "ast" not in effective or (one.parts["ast"] is None) == silent


def test_a_clip_without_sound_is_compared_by_what_it_has(run: Run, toy: Dataset) -> None:
    (answer,) = similar(toy, ["testvideo0_000000"], count=8).answers
    expected = brute_force(toy, "testvideo0_000000", {"timesformer": 1, "dino-s": 1})[:8]
    assert [(one.clip.clip_id, round(one.similarity, 4)) for one in answer.found] == [
        (name, round(value, 4)) for name, value in expected
    ]
    assert answer.missing == {"ast": "no audio stream"} and answer.found[0].parts["ast"] is None
    code, out, _ = run("similar", "testvideo0_000000", "--root", toy.root, "--count", 1)
    assert code == 0 and "without sound: no audio stream" in out
    code, out, _ = run("similar", "testvideo0_000000", "--root", toy.root, "--by", "sound")
    assert code == 1 and "nothing found: no sound: no audio stream" in out


def test_only_the_split_that_is_named_is_searched(toy: Dataset) -> None:
    found = similar(toy, ["testvideo4_000009"], split="val", count=100)
    assert {one.clip.split for one in found.answers[0].found} == {"val"} and len(found.answers[0].found) == 27
    assert found.searched == {"val": 27}
    twice = similar(toy, ["testvideo0_000000", "testvideo4_000009", "testvideo0_000000"], split="val").answers
    assert twice[0] == twice[2] != twice[1]


def test_the_command_says_by_what_it_compared_and_prints_each_streams_part(run: Run, toy: Dataset) -> None:
    words = ("similar", "trainvideo0_000000", "valvideo3_000007", "--root", toy.root, "--count", 3, "--split", "train")
    code, out, err = run(*words, "--alpha", "ast=0.5")
    assert code == 0 and not err
    lines = out.splitlines()
    assert lines[0] == (
        "compared by 44% sight (TimeSformer), 11% sound and 44% sight (dino-s), with 90 cached clips (90 train)"
    )
    assert lines[2] == "like trainvideo0_000000: sight 0, sound 0"
    assert lines[4].split() == ["similarity", "TimeSformer", "sound", "dino-s", "label", "path"]
    assert len(lines[5].split("  ")) > 4 and lines[5].endswith(".mp4") and out.count(".mp4") == 6
    assert "compared by sight (TimeSformer) and sight (dino-s), weighed alike" in run(*words, "--by", "sight")[1]
    assert run(*words, "--by", "sound")[1].startswith("compared by sound alone")
    answer = json.loads(run(*words, "--json")[1])
    assert [query["clip_id"] for query in answer["queries"]] == ["trainvideo0_000000", "valvideo3_000007"]
    first = answer["queries"][0]["found"][0]
    assert set(first) == {"clip_id", "path", "label", "split", "group", "similarity", "parts"}
    assert first["similarity"] == pytest.approx(sum(first["parts"].values())) and answer["searched"] == {"train": 90}


def test_a_file_is_embedded_by_the_encoders_of_the_root(extracted_root: Dataset, tmp_path: Path) -> None:
    copy = shutil.copy(extracted_root.clip_folder / "b0.mp4", tmp_path / "mine.mp4")
    write_clip(tmp_path / "mute.mp4", look=10, audio=False)
    mine, mute = similar(extracted_root, [copy, tmp_path / "mute.mp4"], settings=WORKER, count=6).answers
    assert mine.clip is None and mine.found[0].clip.clip_id == "b0" and not mine.missing
    assert mine.found[0].parts == pytest.approx({"timesformer": 0.5, "ast": 0.5}, abs=1e-5)
    assert mute.missing == {"ast": "no audio stream"} and len(mute.found) == 6
    assert mute.found[0].clip.clip_id == "b0" and mute.found[0].similarity == pytest.approx(1, abs=1e-5)


def test_a_file_that_the_root_lists_is_that_clip_and_an_id_wins_over_a_file(
    extracted_root: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(extracted_root.clip_folder / "c0.mp4", tmp_path / "d0")
    monkeypatch.chdir(tmp_path)
    (answer,) = similar(extracted_root, ["d0"]).answers
    assert answer.clip is not None and answer.clip.clip_id == "d0" and answer.found[0].clip.group != "d"
    (answer,) = similar(extracted_root, ["./d0"], settings=WORKER).answers
    assert answer.clip is None and answer.found[0].clip.clip_id == "c0"
    monkeypatch.setattr("alphafuse.predict.similar.load_stored", None)  # nothing is embedded
    answers = similar(extracted_root, [extracted_root.clip_folder], count=9).answers
    assert [answer.clip.clip_id for answer in answers if answer.clip] == ["a0", "a1", "b0", "c0", "d0", "d1"]
    assert [len(answer.found) for answer in answers] == [4, 4, 5, 5, 4, 4], "its own source video is left out"


def test_a_file_that_cannot_be_read_gets_its_reason_and_exit_code_1(
    run: Run, extracted_root: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    words = ("similar", tmp_path / "bad.mp4", "a0", "--root", extracted_root.root, "--workers", 1)
    code, out, _ = run(*words, "--json")
    bad, good = json.loads(out)["queries"]
    assert code == 1 and not bad["found"] and len(good["found"]) == 4
    assert all("can't be opened" in reason for reason in bad["missing"].values()) and len(bad["missing"]) == 2


def test_mistakes_are_one_line_errors(
    run: Run, toy: Dataset, extracted_root: Dataset, make_root: Callable[..., Path], tmp_path: Path
) -> None:
    clip, root = "trainvideo0_000000", ("--root", toy.root)
    assert_one_line_error(run("similar", "nope", *root), "no clip 'nope': it is neither a file nor a clip_id")
    assert_one_line_error(run("similar", clip, *root, "--by", "soun"), "unknown stream 'soun' (did you mean 'sound'?)")
    assert_one_line_error(run("similar", clip, *root, "--alpha", "ast"), "expected NAME=NUMBER, such as ast=0.5")
    assert_one_line_error(run("similar", clip, *root, "--alpha", "ast=-1"), "alpha of ast must be a finite number")
    assert_one_line_error(run("similar", clip, *root, "--by", "ast", "--alpha", "ast=0"), "must be above 0")
    assert_one_line_error(run("similar", clip, *root, "--by", "sound", "--alpha", "dino-s=2"), "unknown stream")
    assert_one_line_error(run("similar", clip, *root, "--split", "tset"), "did you mean 'test'?")
    assert_one_line_error(run("similar", clip, *root, "--count", "0"), "--count")
    assert_one_line_error(run("similar", clip, "--root", tmp_path), "no dataset root")
    file = extracted_root.clip_folder / "a0.mp4"
    assert_one_line_error(run("similar", file, *root), "were given, not extracted")
    empty = make_root()
    assert_one_line_error(run("similar", "train0_000000", "--root", empty), "alphafuse extract --split all --root")


def test_clips_of_another_recipe_and_clips_that_are_not_extracted_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "toy")
    store = dataset.store("test")
    rows = store.read()
    for shard in store.shards():
        shard.unlink()
    with pytest.raises(DatasetError, match="has no timesformer or ast embedding yet: run `alphafuse extract --split"):
        similar(dataset, ["testvideo4_000009"])
    assert similar(dataset, ["trainvideo0_000000"]).searched == {"train": 90, "val": 27}
    store.write(replace(rows, recipes={**rows.recipes, "ast": {"protocol": "notebook"}}))
    for asked, split in (("testvideo4_000009", "train"), ("trainvideo0_000000", "all")):
        with pytest.raises(RecipeMismatchError, match="extracted with another ast protocol"):
            similar(Dataset.open(dataset.root), [asked], split=split)
    assert similar(Dataset.open(dataset.root), ["testvideo4_000009"], by="sight").answers[0].found


@pytest.mark.slow
def test_on_the_demo_the_nearest_clips_share_what_they_are_compared_by(run: Run, demo_folder: Path) -> None:
    for by, side in (("sight", 0), ("sound", 1)):
        code, out, _ = run("similar", "demo/clips", "--root", "demo", "--by", by, "--count", 1, "--json")
        queries = json.loads(out)["queries"]
        same = [q["label"].split(" with ")[side] == q["found"][0]["label"].split(" with ")[side] for q in queries]
        assert code == 0 and len(queries) == 448 and np.mean(same) > 0.5

"""Several streams in one extraction: one pass over a file, each as if it were alone, each failing alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.clips import write_clip

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.streams import DEFAULT_STREAMS, Stream
from alphafuse.errors import DatasetError, EncoderError
from alphafuse.extract.decoding import decode
from alphafuse.extract.decoding.decode import decode_clip, decode_inputs
from alphafuse.extract.decoding.specs import AudioSpec, FrameSpec, Inputs, Spec
from alphafuse.extract.pipeline import extract_embeddings
from alphafuse.extract.settings import ExtractSettings

MakeRoot = Callable[..., Path]
SETTINGS = ExtractSettings(workers=1, device="cpu")
COMPACT = [replace(stream, encoder="compact") for stream in DEFAULT_STREAMS]
FOUR = [*COMPACT, Stream("ear", "compact", "audio"), Stream("eye", "compact", "video", {"protocol": "notebook"})]


def test_streams_extracted_together_equal_each_extracted_alone(make_root: MakeRoot) -> None:
    together = Dataset.open(make_root(labels=("dog", "cat"))).with_streams(FOUR)
    (report,) = extract_embeddings(together, ["train"], SETTINGS)
    clips = len(together.manifest.of_split("train"))
    assert report.embedded == dict.fromkeys(["timesformer", "ast", "ear", "eye"], clips)
    found = together.embeddings("train")
    assert list(found.dims) == ["timesformer", "ast", "ear", "eye"]
    for stream in FOUR:
        alone = replace(together, stores=together.root / f"only-{stream.name}")
        extract_embeddings(alone, ["train"], replace(SETTINGS, streams=(stream.name,)))
        np.testing.assert_array_equal(alone.embeddings("train").features[stream.name], found.features[stream.name])
    assert np.array_equal(found.features["ast"], found.features["ear"])  # the same encoder under another name
    assert not np.array_equal(found.features["timesformer"], found.features["eye"])


def test_only_a_stream_that_is_added_is_extracted_and_one_that_is_removed_stays_stored(make_root: MakeRoot) -> None:
    dataset = Dataset.open(make_root(labels=("dog",))).with_streams(FOUR[:2])
    extract_embeddings(dataset, ["train"], SETTINGS)
    before = {path.name: path.read_bytes() for path in dataset.store("train").shards()}
    more = Dataset.open(dataset.root).with_streams(FOUR)
    (report,) = extract_embeddings(more, ["train"], SETTINGS)
    clips = len(more.manifest.of_split("train"))
    assert report.embedded == {"timesformer": 0, "ast": 0, "ear": clips, "eye": clips}
    assert all((more.store("train").folder / name).read_bytes() == content for name, content in before.items())
    fewer = Dataset.open(dataset.root).with_streams([FOUR[2]])
    assert list(fewer.embeddings("train").dims) == ["ear"] and len(more.store("train").dims()) == 4
    (report,) = extract_embeddings(fewer, ["train"], SETTINGS)
    assert report.already == clips


def test_one_pass_over_a_file_gives_each_stream_its_frames_and_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened, open_file = write_clip(tmp_path / "clip.mp4", frames=40), [], decode._open
    monkeypatch.setattr(decode, "_open", lambda file: (opened.append(file), open_file(file))[1])
    specs: dict[str, Spec] = {
        "few": FrameSpec(frames=4, shortest_edge=0, size=(0, 0), crop=(0, 0)),
        "many": FrameSpec(frames=9, shortest_edge=0, size=(0, 0), crop=(0, 0), sampling="notebook"),
        "raw": FrameSpec(frames=3, resize="torch"),
        "huge": FrameSpec(frames=2, shortest_edge=0, size=(0, 0), crop=(500, 500)),
        "low": AudioSpec(16_000, 8_000),
        "all": AudioSpec(16_000),
        "high": AudioSpec(48_000, 24_000),
        "long": AudioSpec(8_000, min_samples=10**6),
    }
    inputs = decode_inputs((path, tuple(specs), None), specs=specs)
    assert len(opened) == 1
    for name, spec in specs.items():
        if isinstance(spec, FrameSpec):
            expected = decode_clip(path, frames=spec.frames, sampling=spec.sampling, sound=False).frames
        else:
            expected = decode_clip(path, frames=1, rate=spec.rate, picture=False).waveform
            assert expected is not None
            expected = expected[: spec.max_samples]
        if name not in inputs.reasons:
            np.testing.assert_array_equal(inputs.arrays[name], expected)
    assert inputs.reasons == {
        "huge": "a frame of 48x64 is smaller than the crop 500x500",
        "long": "audio is shorter than one window of 1000000 samples (125000 ms)",
    }
    assert [len(inputs.arrays[name]) for name in ("low", "high")] == [8_000, 24_000]


def test_a_root_of_sounds_alone_has_one_stream(tmp_path: Path) -> None:
    names = ("a", "b")
    for look, name in enumerate(names):
        write_clip(tmp_path / f"{name}.m4a", video=False, look=look)
    manifest = Manifest([Clip(name, f"{name}.m4a", "dog", "train", name) for name in names])
    dataset = Dataset.create(
        tmp_path / "root", manifest, name="ears", clip_folder=tmp_path, classes=("dog",), streams=[FOUR[2]]
    )
    (report,) = extract_embeddings(dataset, ["train"], SETTINGS)
    assert report.embedded == {"ear": 2} and report.failures == ()


def test_settings_that_name_no_stream_of_the_root_are_one_line(make_root: MakeRoot) -> None:
    dataset = Dataset.open(make_root(labels=("dog",)))
    with pytest.raises(DatasetError, match=r"unknown stream 'ears'.*`alphafuse data streams --add ears=ENCODER"):
        ExtractSettings(streams=("ears",)).streams_of(dataset)
    with pytest.raises(DatasetError, match="unknown stream 'ears': choose from timesformer, ast"):
        ExtractSettings(encoders={"ears": "compact"}).streams_of(dataset)
    given = dataset.with_streams([Stream("mine", "given", "audio")])
    with pytest.raises(EncoderError, match="the embeddings of all streams were given, so there is nothing to extract"):
        SETTINGS.streams_of(given)
    with pytest.raises(DatasetError, match="two streams are named 'ear'"):
        dataset.with_streams([FOUR[2], FOUR[2]])
    failed = Inputs.failed(["ear", "eye"], "the decoder crashed")
    assert failed.arrays == {} and failed.reasons == {"ear": "the decoder crashed", "eye": "the decoder crashed"}

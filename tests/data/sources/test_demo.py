"""The demo: properties of `write_demo_clips`, and that the shipped encoders were not trained on its events."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from train_compact import training_sound_events, training_visual_events
from transformers import ASTModel, TimesformerModel

import alphafuse.extract.encoders.compact
from alphafuse.data.sources.demo import (
    DEMO_CLASSES,
    DEMO_PAIRS,
    SOUND_EVENTS,
    VISUAL_EVENTS,
    draw_clip,
    list_demo_clips,
    write_clip,
    write_demo_clips,
)
from alphafuse.data.sources.synthesis import (
    CONTOURS,
    MOTIONS,
    RHYTHMS,
    SHAPES,
    TIMBRES,
    SoundEvent,
    VisualEvent,
    draw_look,
    draw_voice,
    render_frames,
    render_sound,
)
from alphafuse.errors import DatasetError

COMPACT = Path(alphafuse.extract.encoders.compact.__file__).parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo with 3 clips per class."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo_clips(folder, seed=5, clips_per_class=3, workers=2)
    return folder


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes_in_any_order(demo: Path, tmp_path: Path) -> None:
    clips = list_demo_clips(seed=5, clips_per_class=3)
    for clip in reversed(clips[10:13]):
        again = tmp_path / f"{clip.clip_id}.mp4"
        write_clip(again, clip)
        assert again.read_bytes() == (demo / "clips" / again.name).read_bytes()


def test_another_seed_generates_other_clips() -> None:
    ids = {clip.clip_id for clip in list_demo_clips(seed=0)}
    assert ids.isdisjoint(clip.clip_id for clip in list_demo_clips(seed=1))


def test_csv_is_headerless_vggsound_and_every_row_has_its_file(demo: Path) -> None:
    text = (demo / "vggsound.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines()))
    assert len(rows) == 3 * len(DEMO_CLASSES)
    assert Counter(label for _, _, label, _ in rows) == dict.fromkeys(DEMO_CLASSES, 3)
    assert Counter(split for _, _, _, split in rows) == {"train": 32, "test": 16}
    assert ',"' in text, "a label with a comma is quoted, as VGGSound does"
    names = {f"{youtube_id}_{int(start):06d}.mp4" for youtube_id, start, _, _ in rows}
    assert names == {path.name for path in (demo / "clips").iterdir()}
    assert all(len(youtube_id) == 11 for youtube_id, _, _, _ in rows)


def test_writing_again_keeps_complete_clips_generates_missing_ones_and_reports_each(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    clips = list_demo_clips(seed=5, clips_per_class=2)
    for clip in clips[1:]:
        (tmp_path / "clips" / f"{clip.clip_id}.mp4").write_bytes(b"kept")
    calls: list[int] = []
    write_demo_clips(tmp_path, seed=5, clips_per_class=2, progress=lambda: calls.append(1))
    contents = [(tmp_path / "clips" / f"{clip.clip_id}.mp4").read_bytes() for clip in clips]
    assert len(contents[0]) > 1_000
    assert set(contents[1:]) == {b"kept"}
    assert len(calls) == len(clips)
    assert not list(tmp_path.rglob("*.partial"))


def test_one_clip_per_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="clips_per_class must be at least 2"):
        write_demo_clips(tmp_path, clips_per_class=1)


def test_each_video_and_each_audio_event_is_in_exactly_two_classes_and_no_pair_repeats() -> None:
    assert len(set(DEMO_PAIRS)) == len(set(DEMO_CLASSES)) == 16
    assert Counter(sight for sight, _ in DEMO_PAIRS) == dict.fromkeys(range(8), 2)
    assert Counter(sound for _, sound in DEMO_PAIRS) == dict.fromkeys(range(8), 2)


def test_source_videos_stay_in_one_official_split_and_some_give_two_clips() -> None:
    clips = list_demo_clips()
    assert len(clips) == len({clip.clip_id for clip in clips}) == 448
    splits: dict[str, set[tuple[str, int]]] = defaultdict(set)
    looks: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    starts: dict[str, list[int]] = defaultdict(list)
    for clip in clips:
        splits[clip.youtube_id].add((clip.official_split, clip.label))
        looks[clip.youtube_id].add(clip.source_seed)
        starts[clip.youtube_id].append(clip.start_seconds)
    assert all(len(found) == 1 for found in splits.values())
    assert all(len(found) == 1 for found in looks.values())
    assert Counter(len(found) for found in starts.values()) == {1: 224, 2: 112}
    assert all(abs(found[0] - found[1]) >= 10 for found in starts.values() if len(found) == 2)


def test_files_are_h264_and_aac_of_two_to_two_and_a_half_seconds(demo: Path) -> None:
    layouts: set[str] = set()
    rates: set[int] = set()
    for path in sorted((demo / "clips").iterdir())[:8]:
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height) == (96, 72)
            layouts.add(audio.layout.name)
            rates.add(audio.rate)
            frames, samples = 0, 0
            for packet in container.demux(video, audio):
                for frame in packet.decode():
                    if isinstance(frame, av.VideoFrame):
                        frames += 1
                    elif isinstance(frame, av.AudioFrame):
                        samples += frame.samples
        assert 2.0 <= frames / 12 <= 2.5
        assert samples / audio.rate == pytest.approx(frames / 12, abs=0.1)  # AAC ends on a whole block
    assert len(layouts) == 2
    assert len(rates) > 1


def test_decoded_frames_and_audio_equal_the_generated_ones(demo: Path) -> None:
    clip = list_demo_clips(seed=5, clips_per_class=3)[0]
    frames, waveform, sample_rate_hz = draw_clip(clip)
    with av.open(str(demo / "clips" / f"{clip.clip_id}.mp4")) as container:
        seen = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(demo / "clips" / f"{clip.clip_id}.mp4")) as container:
        heard = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
        assert container.streams.audio[0].rate == sample_rate_hz
    assert seen.shape == frames.shape
    assert np.abs(seen.astype(float).mean((1, 2)) - frames.astype(float).mean((1, 2))).max() < 6
    loudness = np.sqrt(np.mean(np.square(waveform)))
    assert np.sqrt(np.mean(np.square(heard))) == pytest.approx(loudness, rel=0.2)


@pytest.mark.parametrize(("shape", "motion"), list(zip(SHAPES, MOTIONS, strict=True)))
def test_every_shape_and_motion_gives_moving_frames(shape: str, motion: str) -> None:
    look = draw_look(np.random.default_rng(3), difficulty=0.0)
    event = VisualEvent("any", shape, motion)
    frames = render_frames(event, look, np.random.default_rng(4), times=np.arange(24) / 12)
    assert frames.shape == (24, 72, 96, 3)
    assert frames.dtype == np.uint8
    assert frames.astype(float).std(axis=0).max() > 5


@pytest.mark.parametrize("timbre", TIMBRES)
def test_every_timbre_rhythm_and_contour_sounds_within_full_scale(timbre: str) -> None:
    voice = draw_voice(np.random.default_rng(3))
    for rhythm, contour in zip(RHYTHMS, [*CONTOURS, "flat", "wail"], strict=True):
        event = SoundEvent("any", timbre, rhythm, contour)
        wave = render_sound(event, voice, np.random.default_rng(4), seconds=0.5, sample_rate_hz=16_000)
        assert wave.shape == (8_000,)
        assert wave.dtype == np.float32
        assert np.abs(wave).max() == pytest.approx(voice.loudness, rel=1e-3)


def test_compact_encoders_were_trained_on_none_of_the_demo_events() -> None:
    seen = {(event.shape, event.motion) for event in training_visual_events()}
    heard = {(event.timbre, event.rhythm, event.contour) for event in training_sound_events()}
    assert len(seen) == len(SHAPES) * len(MOTIONS) - 8
    assert len(heard) == len(TIMBRES) * len(RHYTHMS) * len(CONTOURS) - 8
    assert seen.isdisjoint((event.shape, event.motion) for event in VISUAL_EVENTS)
    assert heard.isdisjoint((event.timbre, event.rhythm, event.contour) for event in SOUND_EVENTS)


def test_shipped_weights_load_as_float32_and_embed() -> None:
    timesformer = TimesformerModel.from_pretrained(COMPACT / "timesformer").eval()
    ast = ASTModel.from_pretrained(COMPACT / "ast").eval()
    for model in (timesformer, ast):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.inference_mode():
        seen = timesformer(torch.zeros(2, 8, 3, 64, 64)).last_hidden_state[:, 0]
        heard = ast(torch.zeros(2, 256, 128)).pooler_output
    assert seen.shape == heard.shape == (2, 96)
    assert torch.isfinite(seen).all()
    assert torch.isfinite(heard).all()


def test_shipped_weights_take_less_than_six_megabytes() -> None:
    sizes = [path.stat().st_size for path in COMPACT.glob("*/model.safetensors")]
    assert len(sizes) == 2
    assert sum(sizes) < 6_000_000

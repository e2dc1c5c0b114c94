import math
import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from support.clips import sine, write_clip

from alphafuse.extract.decoding.decode import _ShownSpans, decode_clip
from alphafuse.extract.decoding.specs import SAMPLE_RATE_HZ, frame_indices, notebook_indices


def every_frame(path: Path) -> np.ndarray:
    """Decode all shown frames in a plain loop, as an independent reference for decode_clip."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def mono_16_khz(path: Path) -> np.ndarray:
    """The mono 16 kHz waveform as `ffmpeg -ac 1 -ar 16000` writes it, in 16-bit steps."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
    with av.open(str(path)) as container:
        parts = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    parts += resampler.resample(None)
    return np.concatenate([part.to_ndarray()[0] for part in parts]) / 2**15


def with_edit_list(source: Path, target: Path, *, hidden: int, fps: int) -> Path:
    """Copy a clip's packets so that an edit list hides its first frames (as cutting without re-encoding does)."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        copied = {stream: writer.add_stream_from_template(stream) for stream in reader.streams}
        for packet in reader.demux():
            if packet.dts is not None:
                shift = round(hidden / fps / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copied[packet.stream]
                writer.mux(packet)
    return target


@pytest.mark.parametrize(
    ("total", "frames", "expected"),
    [
        (300, 8, [0, 42, 85, 128, 170, 213, 256, 299]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (1, 4, [0, 0, 0, 0]),
        (3, 4, [0, 0, 1, 2]),
        (5, 1, [0]),
    ],
)
def test_frame_indices_are_spread_from_the_first_to_the_last(total: int, frames: int, expected: list[int]) -> None:
    assert frame_indices(total, frames).tolist() == expected


def test_notebook_indices_count_hidden_frames_and_repeat_the_last_that_exists() -> None:
    assert notebook_indices(300, 300, 8).tolist() == [0, 37, 75, 112, 150, 187, 225, 262]
    assert notebook_indices(301, 451, 8).tolist() == [0, 56, 112, 169, 225, 281, 281, 281]
    assert notebook_indices(1, 1, 4).tolist() == [0, 0, 0, 0]


def test_notebook_sampling_of_an_edit_listed_file_repeats_the_last_frame(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.mp4", frames=48, gop=48)
    clip = with_edit_list(source, tmp_path / "clip.mp4", hidden=20, fps=12)
    shown = every_frame(clip)
    decoded = decode_clip(clip, frames=8, sampling="notebook")
    expected = notebook_indices(len(shown), 48, 8)
    assert expected[-1] == expected[-2] < len(shown)
    np.testing.assert_array_equal(decoded.frames, shown[expected])


def test_notebook_sampling_of_real_clips_equals_opencvs_frames(real_clips: list[Path]) -> None:
    cv2 = pytest.importorskip("cv2")
    repeated = 0
    for clip in real_clips[6::14]:
        capture = cv2.VideoCapture(str(clip))
        listed, read = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), []
        for i in range(8):
            capture.set(cv2.CAP_PROP_POS_FRAMES, int(listed / 8 * i))
            found, image = capture.read()
            if not found:
                break
            read.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        repeated += len(read) < 8
        read += read[-1:] * (8 - len(read))
        np.testing.assert_array_equal(decode_clip(clip, frames=8, sampling="notebook").frames, np.stack(read))
    assert repeated, "no clip was read past its end: the test checks nothing"


def test_decoded_frames_are_those_of_full_decoding(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=30, gop=30)
    decoded = decode_clip(clip, frames=8)
    np.testing.assert_array_equal(decoded.frames, every_frame(clip)[frame_indices(30, 8)])
    assert decoded.frames is not None and decoded.frames.dtype == np.uint8


def test_frames_that_an_edit_list_hides_are_neither_counted_nor_taken(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.mp4", frames=48, gop=48)
    clip = with_edit_list(source, tmp_path / "clip.mp4", hidden=20, fps=12)
    with av.open(str(clip)) as container:
        discarded = sum(packet.is_discard for packet in container.demux(video=0))
    shown = every_frame(clip)
    assert discarded > 0 and len(shown) < 48, "the file has no edit list that hides frames: the test checks nothing"
    decoded = decode_clip(clip, frames=8)
    np.testing.assert_array_equal(decoded.frames, shown[frame_indices(len(shown), 8)])


def test_a_clip_with_fewer_frames_than_asked_repeats_some(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    decoded = decode_clip(clip, frames=8)
    np.testing.assert_array_equal(decoded.frames, every_frame(clip)[[0, 0, 0, 0, 1, 1, 1, 2]])


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (48_000, 6), (8_000, 1)])
def test_waveform_equals_ffmpegs_mono_16_khz_downmix(tmp_path: Path, rate: int, channels: int) -> None:
    clip = write_clip(tmp_path / "clip.mp4", rate=rate, channels=channels)
    waveform = decode_clip(clip, frames=2).waveform
    reference = mono_16_khz(clip)
    assert waveform is not None and waveform.dtype == np.float32 and len(waveform) == len(reference)
    np.testing.assert_allclose(waveform, reference, atol=1.1 / 2**15)  # one 16-bit step


def test_stereo_is_the_mean_of_left_and_right(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", rate=16_000, channels=2, audio_codec="flac")
    waveform = decode_clip(clip, frames=2).waveform
    assert waveform is not None
    np.testing.assert_allclose(waveform, sine(2.0, 16_000, 2).mean(axis=0), atol=2 / 2**15)


def test_each_frame_is_prepared_as_it_is_decoded(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=12)
    decoded = decode_clip(clip, frames=4, prepare=lambda image: image[:5, :6])
    assert decoded.frames is not None and decoded.frames.shape == (4, 5, 6, 3)


@pytest.mark.parametrize(
    ("name", "codec", "audio_codec"),
    [("a.webm", "libvpx-vp9", "libopus"), ("a.avi", "mpeg4", "libmp3lame"), ("a.mkv", "libx265", "flac")],
)
def test_other_formats_decode_to_the_same_frames(tmp_path: Path, name: str, codec: str, audio_codec: str) -> None:
    clip = write_clip(tmp_path / name, codec=codec, audio_codec=audio_codec, rate=48_000)
    decoded = decode_clip(clip, frames=8)
    shown = every_frame(clip)
    np.testing.assert_array_equal(decoded.frames, shown[frame_indices(len(shown), 8)])
    assert decoded.waveform is not None and abs(len(decoded.waveform) - 32_000) < 3_000


def test_a_failure_of_one_stream_does_not_affect_the_other(tmp_path: Path) -> None:
    silent = decode_clip(write_clip(tmp_path / "silent.mp4", audio=False), frames=2)
    assert silent.frames is not None and silent.waveform is None and silent.no_waveform == "no audio stream"
    blind = decode_clip(write_clip(tmp_path / "blind.mp4", video=False), frames=2)
    assert blind.waveform is not None and blind.frames is None and blind.no_frames == "no video stream"


@pytest.mark.parametrize("content", [b"", b"text named .mp4", b"\x00" * 5000])
def test_a_file_that_is_not_a_clip_gives_a_reason_for_both_streams(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    decoded = decode_clip(tmp_path / "bad.mp4", frames=2)
    assert decoded.frames is None and decoded.waveform is None
    assert decoded.no_frames == decoded.no_waveform and decoded.no_frames.startswith("can't be opened: ")


def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert decode_clip(tmp_path / "pipe.mp4", frames=2).no_frames == "not a regular file"


def test_a_missing_file_is_reported_as_missing(tmp_path: Path) -> None:
    assert decode_clip(tmp_path / "nowhere.mp4", frames=2).no_frames == "can't be opened: No such file or directory"


def test_truncated_files_give_frames_or_a_reason_but_never_an_exception(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "whole.mkv").read_bytes()
    got = []
    for tenth in range(1, 10):
        (tmp_path / "cut.mkv").write_bytes(content[: len(content) * tenth // 10])
        decoded = decode_clip(tmp_path / "cut.mkv", frames=4)
        assert (decoded.frames is None) == bool(decoded.no_frames)
        assert (decoded.waveform is None) == bool(decoded.no_waveform)
        got.append(decoded.frames is not None)
    assert got[-1], "a file that lacks only its last tenth still has frames"


def test_real_clips_decode_exactly_like_full_decoding(real_clips: list[Path]) -> None:
    for clip in real_clips[::12]:
        shown = every_frame(clip)
        decoded = decode_clip(clip, frames=8)
        np.testing.assert_array_equal(decoded.frames, shown[frame_indices(len(shown), 8)], err_msg=clip.name)
        reference = mono_16_khz(clip)
        assert decoded.waveform is not None and len(decoded.waveform) == len(reference)
        unclipped = np.abs(decoded.waveform) < 1  # 16-bit samples are clipped, float samples are not
        np.testing.assert_allclose(
            decoded.waveform[unclipped], reference[unclipped], atol=1.1 / 2**15, err_msg=clip.name
        )


@pytest.mark.parametrize("is_whole", [True, False], ids=["read whole", "from the header"])
def test_a_negative_duration_in_a_damaged_file_counts_as_unknown(is_whole: bool) -> None:
    stream = SimpleNamespace(index=0, time_base=Fraction(1, 10))
    spans = _ShownSpans(SimpleNamespace(duration=-5_000_000, streams=[stream]))  # type: ignore[arg-type]
    spans.is_whole = is_whole
    spans.add(SimpleNamespace(pts=7, stream_index=0, is_discard=False, duration=-20))  # type: ignore[arg-type]
    assert math.isnan(spans.seconds)

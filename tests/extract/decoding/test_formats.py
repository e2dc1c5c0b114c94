"""Encodings of many kinds, each compared bit for bit with independent full decoding.

`handed` counts the video packets that reach a decoder, which shows whether the decoder skipped packets.
"""

import io
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import FFmpegError, InvalidDataError
from PIL import Image
from support.clips import THOROUGH, moving_square, sine, write_clip

from alphafuse.errors import DecodeError
from alphafuse.extract.decoding import decode, video
from alphafuse.extract.decoding.audio import MonoResampler
from alphafuse.extract.decoding.decode import decode_clip
from alphafuse.extract.decoding.packets import _Av1
from alphafuse.extract.decoding.specs import SAMPLINGS, Decoded, frame_indices
from alphafuse.extract.decoding.video import MAX_PIXELS, NO_SIZE
from alphafuse.system.workers import NO_MEMORY

FRAMES = 60  # per clip, in groups of 12
SIZE = (48, 80)
X265 = "log-level=none:"


def shown_frames(path: Path) -> tuple[list[np.ndarray], int]:
    """Decode everything in a plain loop that continues after errors; return shown frames and number of listed ones."""
    shown: list[np.ndarray] = []
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError:
                packet = None
            try:
                shown += [frame.to_ndarray(format="rgb24") for frame in stream.decode(packet)]
            except InvalidDataError:
                continue
            except EOFError:  # the decoder was already flushed
                break
            if packet is None:
                break
        listed = stream.frames or round(float((stream.duration or 0) * stream.time_base * (stream.average_rate or 0)))
    return shown, max(listed, len(shown))


def assert_exact(path: Path, counts: tuple[int, ...] = (8, 3, 1)) -> None:
    shown, listed = shown_frames(path)
    assert shown
    for sampling, choose in SAMPLINGS.items():
        for count in counts:
            decoded = decode_clip(path, frames=count, sampling=sampling)
            assert decoded.frames is not None, decoded.no_frames
            expected = np.stack([shown[index] for index in choose(len(shown), listed, count)])
            np.testing.assert_array_equal(decoded.frames, expected, err_msg=f"{count} frames, {sampling}")


def assert_delivers_or_says_why(decoded: Decoded) -> None:
    for value, reason in ((decoded.frames, decoded.no_frames), (decoded.waveform, decoded.no_waveform)):
        assert (value is None) == bool(reason)
        assert len(reason) < 100 and "/" not in reason, reason  # reasons are counted in a table


class Handed:
    """Counts of video packets given to decoders, and of openings of a file."""

    def __init__(self) -> None:
        self.packets = self.opened = 0

    def count(self, path: Path, frames: int = 8, sampling: str = "spread") -> int:
        self.packets = self.opened = 0
        assert decode_clip(path, frames=frames, sampling=sampling).frames is not None
        return self.packets


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Handed:
    counter = Handed()
    decode_packets, open_file = video._decode, decode._open

    def counting(packets: Iterable[av.Packet], *, strict: bool) -> Iterator[av.VideoFrame]:
        def counted() -> Iterator[av.Packet]:
            for packet in packets:
                counter.packets += 1
                yield packet

        return decode_packets(counted(), strict=strict)

    def counting_opens(path: Path) -> object:
        counter.opened += 1
        return open_file(path)

    monkeypatch.setattr(video, "_decode", counting)
    monkeypatch.setattr(decode, "_open", counting_opens)
    return counter


def packets_of(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def remux(source: Path, target: Path, change: object = None, **settings: object) -> Path:
    """Copy packets; `change(packet, number)` may edit each, or return False to leave it out."""
    with av.open(str(source)) as reader, av.open(str(target), "w", **settings) as writer:  # type: ignore[call-overload]
        copied = {stream: writer.add_stream_from_template(stream) for stream in reader.streams}
        for number, packet in enumerate(packet for packet in reader.demux() if packet.size):
            if change is not None and change(packet, number) is False:  # type: ignore[operator]
                continue
            packet.stream = copied[packet.stream]
            writer.mux(packet)
    return target


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("b-pyramid.mp4", "libx264", "yuv420p", {"x264-params": "bframes=3:b-pyramid=normal"}),
        ("b-strict.mkv", "libx264", "yuv420p", {"x264-params": "bframes=4:b-pyramid=strict:b-adapt=0"}),
        ("open-groups.mp4", "libx264", "yuv420p", {"x264-params": "open-gop=1:bframes=3:b-adapt=0"}),
        ("intra-refresh.mp4", "libx264", "yuv420p", {"x264-params": "intra-refresh=1"}),
        ("slices.mov", "libx264", "yuv420p", {"x264-params": "slices=3"}),
        ("buffering.mp4", "libx264", "yuv420p", {"x264-params": "nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500"}),
        ("baseline.mp4", "libx264", "yuv420p", {"profile": "baseline"}),
        ("no-b.mp4", "libx264", "yuv420p", {"x264-params": "bframes=0"}),
        ("444.mkv", "libx264", "yuv444p", {}),
        ("10-bit.mp4", "libx264", "yuv420p10le", {}),
        ("fragmented.mp4", "libx264", "yuv420p", {}),
        ("hevc-open.mp4", "libx265", "yuv420p", {"x265-params": X265 + "bframes=3:b-adapt=0"}),
        ("hevc-closed.mkv", "libx265", "yuv420p", {"x265-params": X265 + "open-gop=0:bframes=4:b-pyramid=1"}),
        ("hevc-radl.mp4", "libx265", "yuv420p", {"x265-params": X265 + "open-gop=0:radl=2:bframes=3"}),
        ("hevc-10-bit.mkv", "libx265", "yuv420p10le", {"x265-params": X265}),
        ("vp9.webm", "libvpx-vp9", "yuv420p", {"cpu-used": "8"}),
        ("vp9.mp4", "libvpx-vp9", "yuv420p", {"cpu-used": "8"}),
        ("av1.mp4", "libsvtav1", "yuv420p", {"svtav1-params": "lp=1", "preset": "12"}),
        ("av1.webm", "libsvtav1", "yuv420p", {"svtav1-params": "lp=1", "preset": "12"}),
    ],
)
def test_unneeded_frames_are_not_decoded_and_the_others_are_exact(
    tmp_path: Path, handed: Handed, name: str, codec: str, pixels: str, options: dict[str, str]
) -> None:
    clip = write_clip(
        tmp_path / name, frames=FRAMES, size=SIZE, codec=codec, pixels=pixels, options=options, audio=False
    )
    if name == "fragmented.mp4":
        clip = remux(clip, tmp_path / "fragments.mp4", options={"movflags": "frag_keyframe+empty_moov"})
    assert handed.count(clip, 2, "notebook") < 0.7 * FRAMES
    assert handed.opened == 1, "a second opening: skipping was tried and abandoned"
    assert handed.count(clip, 1) == 1
    assert_exact(clip)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("interlaced.mp4", "libx264", "yuv420p", {"x264-params": "interlaced=1"}),
        ("a.ts", "libx264", "yuv420p", {}),
        ("a.avi", "libx264", "yuv420p", {}),
        ("sub-layers.mkv", "libx265", "yuv420p", {"x265-params": X265 + "temporal-layers=3"}),
        ("vp8.webm", "libvpx", "yuv420p", {"cpu-used": "8"}),
        ("mpeg4-b.avi", "mpeg4", "yuv420p", {"bf": "2"}),
        ("mpeg4-b.mp4", "mpeg4", "yuv420p", {"bf": "2"}),
        ("mpeg2.ts", "mpeg2video", "yuv420p", {"bf": "2"}),
        ("a.mov", "mjpeg", "yuvj420p", {}),
        ("a.flv", "libx264", "yuv420p", {}),
        ("old.flv", "flv", "yuv420p", {}),
    ],
)
def test_streams_whose_packets_cannot_be_skipped_are_decoded_in_full_once(
    tmp_path: Path, handed: Handed, name: str, codec: str, pixels: str, options: dict[str, str]
) -> None:
    clip = write_clip(
        tmp_path / name, frames=FRAMES, size=SIZE, codec=codec, pixels=pixels, options=options, audio=False
    )
    assert handed.count(clip) == len(packets_of(clip))
    assert_exact(clip)


def test_the_generated_av1_clips_have_hidden_frames(tmp_path: Path) -> None:
    options = {"svtav1-params": "lp=1", "preset": "12"}
    clip = write_clip(tmp_path / "a.mp4", frames=FRAMES, size=SIZE, codec="libsvtav1", options=options, audio=False)
    units = [[kind for kind, _ in _Av1._units(memoryview(packet))] for packet in packets_of(clip)]
    assert any(kinds.count(3) + kinds.count(6) > 1 for kinds in units)


def test_vp9_frames_hidden_in_the_packet_of_another_are_not_counted(tmp_path: Path, handed: Handed) -> None:
    source = write_clip(tmp_path / "a.webm", frames=FRAMES, size=SIZE, codec="libvpx-vp9", audio=False)
    clip, hidden = tmp_path / "b.webm", b""
    with av.open(str(clip), "w") as container:
        with av.open(str(source)) as reader:
            stream = container.add_stream_from_template(reader.streams.video[0])
        for packet in packets_of(source):
            if packet.is_keyframe:
                hidden = bytes([bytes(packet)[0] & ~0x02]) + bytes(packet)[1:]  # show_frame = 0
                continue
            content = bytes(packet)
            if hidden:  # annex B of the specification: the frames, then an index of their sizes
                index = b"\xc9" + len(hidden).to_bytes(2, "little") + len(content).to_bytes(2, "little") + b"\xc9"
                content = hidden + content + index
            joined = av.Packet(content)
            joined.stream, joined.pts, joined.dts, joined.time_base = stream, packet.pts, packet.dts, packet.time_base
            joined.is_keyframe, hidden = bool(hidden), b""
            container.mux(joined)
    assert len(shown_frames(clip)[0]) == FRAMES - 5
    assert handed.count(clip, 2) == 1 + 11
    assert_exact(clip)


def test_groups_without_a_wanted_frame_are_skipped(tmp_path: Path, handed: Handed) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=FRAMES, options={"x264-params": "bframes=0"}, audio=False)
    shown, _ = shown_frames(clip)
    numbers = frame_indices(FRAMES, 2).tolist()
    assert numbers == [0, 59]
    assert handed.count(clip, 2) == 1 + 12  # the first frame; the last one and those before it in its group
    np.testing.assert_array_equal(decode_clip(clip, frames=2).frames, [shown[number] for number in numbers])


def test_timestamps_that_contradict_the_order_of_the_stream_cause_full_decoding(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=FRAMES, options={"x264-params": "bframes=3:b-adapt=0"}, audio=False)

    def forget_reordering(packet: av.Packet, number: int) -> None:  # as muxers without support for B frames do
        packet.pts = packet.dts

    assert_exact(remux(source, tmp_path / "b.mp4", forget_reordering))


def test_repeated_timestamps_cause_full_decoding(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", frames=FRAMES, options={"x264-params": "bframes=0"}, audio=False)

    def repeat(packet: av.Packet, number: int) -> None:
        packet.pts = packet.dts = packet.pts // 200 * 200

    clip = remux(source, tmp_path / "b.mkv", repeat)
    assert len({packet.pts for packet in packets_of(clip)}) < FRAMES
    assert_exact(clip)


@pytest.mark.parametrize(
    "left_out", [{5, 6, 21}, set(range(5))], ids=["pictures in between", "the first ones up to a predicted one"]
)
def test_streams_with_missing_frames_are_decoded_in_full_once(
    tmp_path: Path, handed: Handed, left_out: set[int]
) -> None:
    source = write_clip(tmp_path / "a.mkv", frames=FRAMES, options={"x264-params": "bframes=0"}, audio=False)
    clip = remux(source, tmp_path / "b.mkv", lambda packet, number: number not in left_out)
    assert handed.count(clip) % (FRAMES - len(left_out)) == 0  # twice if some frames are not shown
    assert_exact(clip)


def test_hevc_that_starts_with_frames_that_decoders_drop_is_decoded_in_full(tmp_path: Path) -> None:
    options = {"x265-params": X265 + "bframes=3:b-adapt=0"}
    source = write_clip(tmp_path / "a.mkv", frames=FRAMES, codec="libx265", options=options, audio=False)
    second = [number for number, packet in enumerate(packets_of(source)) if packet.is_keyframe][1]
    clip = remux(source, tmp_path / "b.mkv", lambda packet, number: number >= second)
    assert len(shown_frames(clip)[0]) < len(packets_of(clip)), "no frame is dropped: the test checks nothing"
    assert_exact(clip)


def test_h264_that_declares_less_reordering_than_it_has_is_decoded_in_full(tmp_path: Path, handed: Handed) -> None:
    clip = write_clip(
        tmp_path / "a.mp4", frames=FRAMES, options={"x264-params": "bframes=3:b-adapt=0:ref=4"}, audio=False
    )
    with av.open(str(clip)) as container:
        extradata = container.streams.video[0].codec_context.extradata
    assert extradata is not None
    parameters = extradata[8 : 8 + int.from_bytes(extradata[6:8])]
    bits = f"{int.from_bytes(parameters):b}"
    end = bits.rindex(
        "1"
    )  # after it there is padding; before it max_num_reorder_frames = 2, max_dec_frame_buffering = 4
    assert bits[:end].endswith("011" + "00101")
    less = int(bits[: end - 8] + "010" + bits[end - 5 :], 2).to_bytes(len(parameters))
    content = clip.read_bytes()
    assert content.count(parameters) == 1
    clip.write_bytes(content.replace(parameters, less))
    assert handed.count(clip) == FRAMES  # FFmpeg may lose frames of such a stream
    assert_exact(clip)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"x264-params": "bframes=0"}),
        ("b.mp4", "libsvtav1", {"svtav1-params": "lp=1", "preset": "12"}),
    ],
)
def test_damage_that_the_decoder_detects_causes_full_decoding(
    tmp_path: Path, handed: Handed, name: str, codec: str, options: dict[str, str]
) -> None:
    clip = write_clip(tmp_path / name, frames=FRAMES, gop=FRAMES, codec=codec, options=options, audio=False)
    damaged = max(packets_of(clip)[20:40], key=lambda packet: packet.size)
    content = bytearray(clip.read_bytes())
    begin = content.index(bytes(damaged)) + damaged.size // 2
    content[begin : begin + damaged.size // 4] = bytes(damaged.size // 4)
    clip.write_bytes(content)
    assert handed.count(clip) > FRAMES and handed.opened >= 2
    shown, _ = shown_frames(clip)
    frames = decode_clip(clip, frames=8).frames
    assert frames is not None
    intact = [place for place, index in enumerate(frame_indices(len(shown), 8)) if index < 20]
    for place in intact:
        np.testing.assert_array_equal(frames[place], shown[frame_indices(len(shown), 8)[place]])


def test_variable_frame_rate_counts_frames_not_time(tmp_path: Path, handed: Handed) -> None:
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *SIZE, "yuv420p", 12
        stream.codec_context.time_base = Fraction(1, 600)
        for number, image in enumerate(moving_square(FRAMES, *SIZE)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = 20 * number + 7 * (number % 3) + number**2 // 8, Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(set(np.diff(sorted(packet.pts for packet in packets_of(clip))))) > 3
    assert handed.count(clip) < FRAMES
    assert_exact(clip)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_negative_timestamps_hide_or_keep_frames_as_full_decoding_does(
    tmp_path: Path, handed: Handed, name: str
) -> None:
    source = write_clip(tmp_path / "source.mp4", frames=FRAMES, gop=60, audio=False)

    def earlier(packet: av.Packet, number: int) -> None:
        packet.pts, packet.dts = (int(t - 20 / 12 / packet.time_base) for t in (packet.pts, packet.dts))

    clip = remux(source, tmp_path / name, earlier, options={"avoid_negative_ts": "disabled"})
    assert handed.count(clip) < FRAMES or name == "a.mkv"  # Matroska loses negative timestamps
    assert_exact(clip)


def test_a_clip_of_one_frame_and_a_tenth_of_a_second_is_decoded(tmp_path: Path) -> None:
    one = write_clip(tmp_path / "one.mp4", frames=1, fps=25)
    assert_exact(one)
    tenth = write_clip(tmp_path / "tenth.mp4", frames=3, fps=30)
    assert_exact(tenth)
    waveform = decode_clip(tenth, frames=2).waveform
    assert waveform is not None and 1600 <= len(waveform) < 3200


@pytest.mark.parametrize(
    ("size", "codec", "pixels"),
    [((33, 47), "libx264", "yuv444p"), ((34, 46), "libx264", "yuv420p"), ((33, 47), "libvpx-vp9", "yuv420p")],
)
def test_odd_sizes_keep_every_row_and_column(tmp_path: Path, size: tuple[int, int], codec: str, pixels: str) -> None:
    clip = write_clip(tmp_path / "clip.mkv", size=size, codec=codec, pixels=pixels, audio=False)
    frames = decode_clip(clip, frames=2).frames
    assert frames is not None and frames.shape[1:] == (*size, 3)
    assert_exact(clip)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_clips_are_shown_upright(tmp_path: Path, name: str, rotation: int) -> None:
    clip = write_clip(tmp_path / name, rotation=rotation, audio=False)
    shown, _ = shown_frames(clip)
    expected = np.rot90(np.stack(shown), rotation // 90, axes=(1, 2))[frame_indices(len(shown), 4)]
    sizes = []
    decoded = decode_clip(clip, frames=4, prepare=lambda image: sizes.append(image.shape) or image)  # type: ignore[func-returns-value]
    np.testing.assert_array_equal(decoded.frames, expected)
    assert sizes[0] == expected.shape[1:], "prepared before it was rotated"


@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotations_and_mirrorings_equal_those_of_ffmpegs_own_player(
    tmp_path: Path, rotation: int, mirrored: tuple[bool, bool]
) -> None:
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.set_display_rotation(rotation, hflip=mirrored[0], vflip=mirrored[1])
        for image in moving_square(4, *SIZE):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    command = ["ffmpeg", "-v", "error", "-i", str(clip), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    try:
        picture = subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("the ffmpeg command is not installed")
    frames = decode_clip(clip, frames=1).frames
    assert frames is not None
    np.testing.assert_array_equal(frames[0], np.frombuffer(picture, np.uint8).reshape(frames[0].shape))


def write_jpegs(path: Path, jpegs: list[bytes], size: tuple[int, int] = SIZE) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "yuvj420p"
        for number, jpeg in enumerate(jpegs):
            packet = av.Packet(jpeg)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 10), True
            packet.pts = packet.dts = number
            container.mux(packet)
    return path


def jpeg_of(image: np.ndarray, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(image).save(content, "jpeg", exif=exif)
    return content.getvalue()


def test_orientation_beside_side_data_without_a_name_still_counts(tmp_path: Path) -> None:
    image = moving_square(2, *SIZE)[1]
    plain = decode_clip(write_jpegs(tmp_path / "plain.mkv", [jpeg_of(image)]), frames=1).frames
    turned = decode_clip(write_jpegs(tmp_path / "turned.mkv", [jpeg_of(image, orientation=6)]), frames=1).frames
    assert plain is not None and turned is not None
    np.testing.assert_array_equal(turned[0], np.rot90(plain[0], -1))  # 6: rotate clockwise


def lie_about_size(jpeg: bytes, height: int, width: int) -> bytes:
    at = jpeg.index(b"\xff\xc0") + 5  # start of frame: length, precision, height, width
    return jpeg[:at] + height.to_bytes(2) + width.to_bytes(2) + jpeg[at + 4 :]


def test_impossible_sizes_in_the_container_or_the_stream_are_refused(tmp_path: Path) -> None:
    assert MAX_PIXELS < 16_000**2
    assert NO_SIZE == "frames of no known size, or larger than this reads (67 megapixels)"
    jpeg = lie_about_size(jpeg_of(moving_square(2, *SIZE)[1]), 16_000, 16_000)
    declared = write_jpegs(tmp_path / "declared.mkv", [jpeg] * 3, (16_000, 16_000))
    assert decode_clip(declared, frames=2).no_frames == NO_SIZE
    untold = write_clip(tmp_path / "untold.webm", size=(48, 64), codec="libvpx", audio_codec="libopus", rate=48_000)
    content = untold.read_bytes()
    start = b"\x9d\x01\x2a" + (64).to_bytes(2, "little") + (48).to_bytes(2, "little")  # RFC 6386, 9.1
    assert content.count(start) == 2
    untold.write_bytes(content.replace(start, start[:3] + 2 * (16_000).to_bytes(2, "little")))
    decoded = decode_clip(untold, frames=2)
    assert decoded.no_frames == NO_SIZE and decoded.waveform is not None


def test_a_header_with_too_large_a_size_is_harmless(tmp_path: Path) -> None:
    jpegs = [jpeg_of(image) for image in moving_square(3, *SIZE)]
    honest = decode_clip(write_jpegs(tmp_path / "honest.mkv", jpegs), frames=3).frames
    np.testing.assert_array_equal(
        decode_clip(write_jpegs(tmp_path / "a.mkv", jpegs, (16_000, 16_000)), frames=3).frames, honest
    )


def test_frames_that_change_their_size_are_a_failure_unless_prepare_makes_them_equal(tmp_path: Path) -> None:
    small, large = (jpeg_of(moving_square(2, *size)[1]) for size in (SIZE, (48, 96)))
    clip = write_jpegs(tmp_path / "clip.mkv", [small, small, large, large])
    assert decode_clip(clip, frames=4).no_frames == "frames change their size"
    even = decode_clip(clip, frames=4, prepare=lambda image: image[:8, :8])
    assert even.frames is not None and even.frames.shape == (4, 8, 8, 3)


def test_an_error_in_prepare_loses_only_the_frames(tmp_path: Path) -> None:
    def refuse(image: np.ndarray) -> np.ndarray:
        raise DecodeError("a frame of 48x64 is smaller than the crop 224x224")

    decoded = decode_clip(write_clip(tmp_path / "clip.mp4"), frames=2, prepare=refuse)
    assert decoded.no_frames == "a frame of 48x64 is smaller than the crop 224x224" and decoded.waveform is not None


@pytest.mark.parametrize(
    ("name", "audio_codec", "rate", "channels"),
    [
        ("a.mp4", "aac", 8_000, 1),
        ("a.mp4", "aac", 48_000, 6),
        ("a.mp4", "libmp3lame", 44_100, 2),
        ("a.mkv", "libopus", 48_000, 2),
        ("a.mkv", "flac", 44_100, 2),
        ("a.avi", "libmp3lame", 22_050, 1),
        ("a.mov", "pcm_s16le", 48_000, 2),
        ("a.mkv", "vorbis", 44_100, 2),
    ],
)
def test_only_the_needed_audio_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, audio_codec: str, rate: int, channels: int
) -> None:
    clip = write_clip(tmp_path / name, frames=120, codec="mpeg4", audio_codec=audio_codec, rate=rate, channels=channels)
    whole = decode_clip(clip, frames=1).waveform
    assert whole is not None and abs(len(whole) - 160_000) < 4_000
    pushed = []
    push = MonoResampler.push
    monkeypatch.setattr(MonoResampler, "push", lambda self, frame: (pushed.append(frame.samples), push(self, frame))[1])
    for limit in (1, 16_000, 40_001, len(whole), 10**9):
        pushed.clear()
        first = decode_clip(clip, frames=1, max_samples=limit).waveform
        np.testing.assert_array_equal(first, whole[:limit], err_msg=f"{limit} samples")
        if limit <= 40_001:
            assert sum(pushed) / rate < limit / 16_000 + 5, "decoded much more than was needed"


def test_a_file_without_video_is_read_only_as_far_as_its_audio_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", video=False, seconds=60)
    read = []
    read_packets = decode._read
    monkeypatch.setattr(
        decode, "_read", lambda *given: (read.append(packet.pts) or packet for packet in read_packets(*given))
    )
    assert decode_clip(clip, frames=1, max_samples=16_000).waveform is not None
    assert 0 < len(read) < 0.2 * 60 * 44_100 / 1024


@pytest.mark.parametrize("settings", [{"frames": 0}, {"frames": 1, "max_samples": 0}])
def test_less_than_one_frame_or_sample_is_an_error(tmp_path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="frames and max_samples must be at least 1, not "):
        decode_clip(tmp_path / "clip.mp4", **settings)  # type: ignore[arg-type]


def test_a_stream_that_is_not_requested_is_not_decoded(tmp_path: Path, handed: Handed) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    both = decode_clip(clip, frames=2)
    handed.packets = 0
    sound = decode_clip(clip, frames=2, picture=False)
    assert handed.packets == 0 and sound.frames is None
    np.testing.assert_array_equal(sound.waveform, both.waveform)
    picture = decode_clip(clip, frames=2, sound=False)
    assert picture.waveform is None
    np.testing.assert_array_equal(picture.frames, both.frames)


def test_sound_in_many_small_frames_resamples_like_sound_in_one(tmp_path: Path) -> None:
    wave = sine(3.0, 44_100, 2)

    def resample(step: int) -> np.ndarray:
        resampler = MonoResampler(16_000)
        for begin in range(0, wave.shape[1], step):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, begin : begin + step]), "fltp", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = 44_100, begin, Fraction(1, 44_100)
            resampler.push(frame)
        return resampler.finish()

    assert len(resample(10**6)) == 48_000
    np.testing.assert_array_equal(resample(100), resample(10**6))


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_long_files_are_read_twice_instead_of_being_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed: Handed, name: str
) -> None:
    codec, audio_codec = ("libx264", "aac") if name == "a.mp4" else ("libvpx-vp9", "libopus")
    clip = write_clip(tmp_path / name, frames=FRAMES, codec=codec, audio_codec=audio_codec, rate=48_000)
    held = handed.count(clip)
    assert handed.opened == 1
    whole = decode_clip(clip, frames=8)
    monkeypatch.setattr(video, "HELD_BYTES", 2000)
    assert handed.count(clip) == held < FRAMES and handed.opened == 2
    again = decode_clip(clip, frames=8)
    np.testing.assert_array_equal(again.frames, whole.frames)
    np.testing.assert_array_equal(again.waveform, whole.waveform)


def test_a_video_decoder_without_memory_is_a_failure_and_the_audio_is_kept(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", size=(4096, 4096), frames=2, options={"preset": "ultrafast"})
    program = (
        "import resource, sys\n"
        "from alphafuse.extract.decoding.decode import decode_clip\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "most = pages * resource.getpagesize() + int(sys.argv[2]) * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "decoded = decode_clip(sys.argv[1], frames=2)\n"
        "print(decoded.no_frames, decoded.no_waveform, sep='|')\n"
    )

    def reasons(megabytes: int) -> str:
        command = [sys.executable, "-P", "-c", program, str(clip), str(megabytes)]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip()

    assert reasons(2000) == "|"
    assert reasons(60) == f"{NO_MEMORY}|"


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    files = {
        "end.mp4": write_clip(folder / "end.mp4", frames=FRAMES),
        "a.mkv": write_clip(folder / "a.mkv", frames=FRAMES),
        "a.webm": write_clip(folder / "a.webm", frames=FRAMES, codec="libvpx-vp9", audio_codec="libopus", rate=48_000),
        "a.avi": write_clip(folder / "a.avi", frames=FRAMES, codec="mpeg4", audio_codec="libmp3lame"),
        "a.ts": write_clip(folder / "a.ts", frames=FRAMES),
        "hevc.mp4": write_clip(folder / "hevc.mp4", frames=FRAMES, codec="libx265", options={"x265-params": X265}),
    }
    files["start.mp4"] = remux(files["end.mp4"], folder / "start.mp4", options={"movflags": "faststart"})
    return {name: path.read_bytes() for name, path in files.items()}


@pytest.mark.parametrize("name", ["start.mp4", "end.mp4", "a.mkv", "a.webm", "a.avi", "a.ts"])
def test_a_truncated_file_gives_its_remaining_frames_exactly(
    tmp_path: Path, whole_files: dict[str, bytes], name: str
) -> None:
    content, clip, delivered = whole_files[name], tmp_path / name, []
    for tenth in range(1, 10):
        clip.write_bytes(content[: len(content) * tenth // 10])
        decoded = decode_clip(clip, frames=5)
        assert_delivers_or_says_why(decoded)
        if decoded.frames is not None:
            shown, _ = shown_frames(clip)
            np.testing.assert_array_equal(decoded.frames, [shown[i] for i in frame_indices(len(shown), 5)])
        delivered.append((decoded.frames is not None, decoded.waveform is not None))
    assert delivered[-1] == ((False, False) if name == "end.mp4" else (True, True))


def damaged(content: bytes, times: int, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for _ in range(times):
        spoilt = bytearray(content)
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
        yield bytes(spoilt)


@pytest.mark.parametrize("name", ["start.mp4", "a.mkv", "a.webm", "a.avi", "a.ts", "hevc.mp4"])
def test_a_damaged_bit_never_raises_and_is_usually_detected(
    tmp_path: Path, whole_files: dict[str, bytes], name: str
) -> None:
    clip, exact, differing = tmp_path / name, 0, 0
    for content in damaged(whole_files[name], times=60, seed=1):
        clip.write_bytes(content)
        decoded = decode_clip(clip, frames=8)
        assert_delivers_or_says_why(decoded)
        if decoded.frames is None:
            continue
        try:
            shown, _ = shown_frames(clip)
        except (FFmpegError, IndexError):  # PyAV raises these for streams that appear during reading
            continue
        same = np.array_equal(decoded.frames, [shown[i] for i in frame_indices(len(shown), 8)])
        exact, differing = exact + same, differing + (not same)
    assert exact > 40 and differing <= 4, (exact, differing)


def test_names_with_spaces_umlauts_and_colons_and_links_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    expected = decode_clip(clip, frames=2).frames
    for name in ("with space.mp4", "größe 音.mp4", "a:b.mp4", "%03d.mp4", "-v.mp4"):
        (tmp_path / name).write_bytes(clip.read_bytes())
        np.testing.assert_array_equal(decode_clip(tmp_path / name, frames=2).frames, expected, err_msg=name)
    (tmp_path / "link.mp4").symlink_to(clip)
    np.testing.assert_array_equal(decode_clip(tmp_path / "link.mp4", frames=2).frames, expected)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(decode_clip("a:b.mp4", frames=2).frames, expected)


def test_damaged_audio_packets_lose_only_their_own_samples(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", seconds=2.0)
    whole = decode_clip(clip, frames=1).waveform
    with av.open(str(clip)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    content = bytearray(clip.read_bytes())
    for pos, size in places[20:24]:
        content[pos : pos + size] = b"\xff" * size
    clip.write_bytes(content)
    decoded = decode_clip(clip, frames=1)
    assert whole is not None and decoded.waveform is not None and decoded.frames is not None
    assert 0.85 * len(whole) < len(decoded.waveform) <= len(whole)
    for pos, size in places:
        content[pos : pos + size] = b"\xff" * size
    clip.write_bytes(content)
    assert decode_clip(clip, frames=1).no_waveform.startswith("audio can't be decoded: ")


def test_a_cover_picture_is_not_video(tmp_path: Path) -> None:
    song = tmp_path / "song.mp3"
    with av.open(str(song), "w") as container:
        sound = container.add_stream("libmp3lame", rate=44_100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = *SIZE, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.Packet(jpeg_of(moving_square(1, *SIZE)[0]))
        picture.stream, picture.time_base, picture.pts, picture.dts, picture.is_keyframe = (
            cover,
            Fraction(1, 1),
            0,
            0,
            True,
        )
        frame = av.AudioFrame.from_ndarray(sine(1.0, 44_100, 1), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 44_100, 0, Fraction(1, 44_100)
        container.mux(picture)
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    with av.open(str(song)) as container:
        assert len(container.streams.video) == 1, "no cover was written: the test checks nothing"
    decoded = decode_clip(song, frames=2)
    assert decoded.no_frames == "no video stream" and decoded.waveform is not None


def test_a_title_in_another_text_encoding_is_accepted(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    write_clip(tmp_path / "plain.mkv")
    with av.open(str(tmp_path / "plain.mkv")) as reader, av.open(str(clip), "w") as writer:
        writer.metadata["title"] = "grXXe"
        copied = {stream: writer.add_stream_from_template(stream) for stream in reader.streams}
        for packet in reader.demux():
            if packet.size:
                packet.stream = copied[packet.stream]
                writer.mux(packet)
    content = clip.read_bytes()
    assert content.count(b"grXXe") == 1
    clip.write_bytes(content.replace(b"grXXe", b"gr\xf6\xdfe"))
    decoded = decode_clip(clip, frames=2)
    assert decoded.frames is not None and decoded.waveform is not None


def test_an_unknown_codec_is_a_failure_and_the_other_stream_is_kept(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "blind.mp4").write_bytes(content.replace(b"avc1", b"zzz1").replace(b"avcC", b"zzzC"))
    blind = decode_clip(tmp_path / "blind.mp4", frames=2)
    assert blind.no_frames == "video of a codec that FFmpeg doesn't know" and blind.waveform is not None
    (tmp_path / "deaf.mp4").write_bytes(content.replace(b"mp4a", b"zzz2").replace(b"esds", b"zzz3"))
    deaf = decode_clip(tmp_path / "deaf.mp4", frames=2)
    assert deaf.no_waveform == "audio of a codec that FFmpeg doesn't know" and deaf.frames is not None


@pytest.mark.slow
def test_real_clips_are_exact_in_both_samplings(real_clips: list[Path], handed: Handed) -> None:
    everything = decoded_packets = 0
    for number, clip in enumerate(real_clips if THOROUGH else real_clips[::2]):
        wanted = {("spread", 8), ("notebook", 8), ("spread", 3)} if number % 8 == 0 else {("spread", 8)}
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            listed, shown = stream.frames, list(container.decode(stream))
        for sampling, count in wanted:
            handed.packets = 0
            frames = decode_clip(clip, frames=count, sampling=sampling).frames
            assert frames is not None
            for frame, index in zip(frames, SAMPLINGS[sampling](len(shown), listed, count), strict=True):
                np.testing.assert_array_equal(frame, shown[index].to_ndarray(format="rgb24"), err_msg=clip.name)
            if (sampling, count) == ("spread", 8):
                everything, decoded_packets = everything + len(packets_of(clip)), decoded_packets + handed.packets
    assert decoded_packets < 0.7 * everything

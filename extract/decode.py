"""A clip's file -> frames and waveform, opened and read once.

Which frames are taken is a `sampling`'s choice among the *shown* frames (packets that an mp4 edit list discards are
decoded, for others depend on them, but never shown). The waveform is mono, 16 kHz, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.filter import Graph
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

SAMPLE_RATE_HZ = 16_000  # AST was trained at 16 kHz (Gong et al. 2021, section 3.1)


@dataclass(frozen=True)
class Decoded:
    """What one clip's file holds.

    Attributes:
        frames: (frames, height, width, 3) uint8 RGB, or None.
        waveform: (samples,) float32 at 16 kHz, nominally in [-1, 1], or None.
        no_frames, no_waveform: why the frames or the waveform are None, else "".
    """

    frames: np.ndarray | None
    waveform: np.ndarray | None
    no_frames: str = ""
    no_waveform: str = ""

    def __repr__(self) -> str:
        frames = self.no_frames if self.frames is None else self.frames.shape
        waveform = self.no_waveform if self.waveform is None else self.waveform.shape
        return f"Decoded(frames={frames}, waveform={waveform})"


def frame_indices(total: int, frames: int) -> np.ndarray:
    """Which of `total` shown frames represent a clip: `frames` of them, spread evenly from the first to the last.

    TimeSformer's own test-time sampling (`linspace` over its window, truncated) with the whole clip as the window; a
    clip with fewer frames repeats some.

    >>> frame_indices(300, 8)
    array([  0,  42,  85, 128, 170, 213, 256, 299])
    """
    if total < 1 or frames < 1:
        raise ValueError(f"total and frames must be at least 1, not {total} and {frames}")
    return np.linspace(0, total - 1, frames).astype(np.int64)


def notebook_indices(shown: int, listed: int, frames: int) -> np.ndarray:
    """Which shown frames the paper's notebook got: int(listed / frames * i), the last one that exists repeated.

    The notebook counted with OpenCV, whose count is the container's: it includes frames that an edit list hides. So
    later indices can lie beyond the last shown frame; there the read failed, and the last frame read was repeated.
    (OpenCV seeks by time; at a constant frame rate, as in VGGSound, that is the same frame.)

    Args:
        shown: frames that a player shows.
        listed: frames that the container lists, hidden ones included.
        frames: how many to take.

    >>> notebook_indices(300, 350, 8)
    array([  0,  43,  87, 131, 175, 218, 262, 262])
    """
    indices = [int(listed / frames * i) for i in range(frames)]
    read = [index for index in indices if index < shown]
    return np.array(read + read[-1:] * (frames - len(read)), dtype=np.int64)


SAMPLINGS: dict[str, Callable[[int, int, int], np.ndarray]] = {  # (shown, listed, frames) -> indices of shown frames
    "spread": lambda shown, listed, frames: frame_indices(shown, frames),
    "notebook": notebook_indices,
}


def decode_clip(
    path: str | Path,
    *,
    frames: int,
    sampling: str = "spread",
    prepare: Callable[[np.ndarray], np.ndarray] = lambda image: image,
) -> Decoded:
    """Decode the frames and the waveform of a clip; whatever is wrong with one leaves the other whole.

    Args:
        path: any file that FFmpeg's libraries read.
        frames: how many frames to take.
        sampling: which ones: "spread" (`frame_indices`) or "notebook" (`notebook_indices`).
        prepare: applied to each taken frame, (height, width, 3) uint8 RGB, as soon as it is decoded, so that only
            prepared frames are held (for instance resized ones).
    """
    if Path(path).exists() and not Path(path).is_file():
        return Decoded(None, None, "not a regular file", "not a regular file")  # a named pipe would block for ever
    try:
        with av.open(str(path)) as container:
            video = next((s for s in container.streams.video if not _is_cover(s)), None)
            audio = next(iter(container.streams.audio), None)
            packets: list[Packet] = []
            resampler = MonoResampler()
            audio_error = ""
            for packet in container.demux([stream for stream in (video, audio) if stream is not None]):
                if packet.stream is video:
                    packets.append(packet)
                elif not audio_error:
                    audio_error = _feed(resampler, packet)
            choose = partial(_choose, SAMPLINGS[sampling], _listed_frames(video), frames)
            images, no_frames = _take_frames(path, video, packets, choose, prepare)
            waveform, no_waveform = _finish_waveform(resampler, audio, audio_error)
    except (FFmpegError, OSError, ValueError) as error:
        reason = f"can't be opened: {_first_line(error)}"
        return Decoded(None, None, reason, reason)
    return Decoded(images, waveform, no_frames, no_waveform)


class MonoResampler:
    """Audio frames of any rate, layout and format in, mono 16 kHz float32 out, by FFmpeg's libswresample.

    The channels are mixed as `ffmpeg -ac 1` mixes them into a 16-bit file: stereo becomes the mean of left and right.
    (Left to itself, libswresample scales a *float* stereo mix by sqrt(2), which shifts every log filter bank by 0.69.)
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._shape: tuple[int, str, str] | None = None
        self._chunks: list[np.ndarray] = []

    def push(self, frame: AudioFrame) -> None:
        """Take one decoded frame."""
        shape = (frame.sample_rate, frame.format.name, frame.layout.name)
        if self._graph is None or shape != self._shape:  # streams may change their shape on the way
            self._drain()
            self._graph, self._shape = _mono_graph(*shape), shape
        self._graph.push(frame)
        self._pull()

    def finish(self) -> np.ndarray:
        """Everything pushed so far as (samples,) float32."""
        self._drain()
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.float32)

    def _drain(self) -> None:
        if self._graph is not None:
            self._graph.push(None)
            self._pull()
            self._graph = None

    def _pull(self) -> None:
        assert self._graph is not None
        while True:
            try:
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            assert isinstance(frame, AudioFrame)
            self._chunks.append(frame.to_ndarray()[0].astype(np.float32, copy=False))


def _mono_graph(sample_rate_hz: int, sample_format: str, layout: str) -> Graph:
    graph = Graph()
    # rematrix_maxval=1: no mixing weight may sum to more than 1, as for integer formats
    options = f"osr={SAMPLE_RATE_HZ}:osf=fltp:ochl=mono:rematrix_maxval=1"
    graph.link_nodes(
        graph.add_abuffer(sample_rate=sample_rate_hz, format=sample_format, layout=layout),
        graph.add("aresample", options),
        graph.add("abuffersink"),
    ).configure()
    return graph


def _feed(resampler: MonoResampler, packet: Packet) -> str:
    """Decode an audio packet into the resampler; the reason when that fails for good."""
    try:
        for frame in packet.decode():
            assert isinstance(frame, AudioFrame)
            resampler.push(frame)
    except av.error.InvalidDataError:
        return ""  # one damaged packet costs only itself, as in every player
    except FFmpegError as error:
        return f"audio can't be decoded: {_first_line(error)}"
    return ""


def _finish_waveform(
    resampler: MonoResampler, audio: AudioStream | None, audio_error: str
) -> tuple[np.ndarray | None, str]:
    if audio is None:
        return None, "no audio stream"
    if audio_error:
        return None, audio_error
    waveform = resampler.finish()
    if not len(waveform):
        return None, "audio stream without a sample"
    if not np.isfinite(waveform).all():
        return None, "audio samples are not finite"
    return waveform, ""


def _take_frames(
    path: str | Path,
    video: VideoStream | None,
    packets: list[Packet],
    choose: Callable[[int], list[int]],
    prepare: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray | None, str]:
    """(frames, height, width, 3) uint8 and "", or None and the reason."""
    if video is None:
        return None, "no video stream"
    video.codec_context.thread_count = 1  # one clip per worker: threads inside would only compete
    expected = sum(packet.pts is not None and not packet.is_discard for packet in packets)
    try:
        shown, taken = _take_by_index(_decode_packets(packets), choose(expected), prepare)
        if shown != expected and shown > 0:
            # packets and frames don't match one to one (damaged or unusual stream): now the true count is known
            with av.open(str(path)) as container:
                stream = next(s for s in container.streams.video if not _is_cover(s))
                again = _decode_packets(container.demux(stream))
                shown, taken = _take_by_index(again, choose(shown), prepare)
    except (FFmpegError, ValueError) as error:
        return None, f"video can't be decoded: {_first_line(error)}"
    if not taken:
        return None, "video stream without a frame"
    return np.stack(taken), ""


def _listed_frames(video: VideoStream | None) -> int:
    """How many frames the container lists, hidden ones included; computed from duration and rate where it doesn't."""
    if video is None:
        return 0
    if video.frames or not (video.duration and video.time_base and video.average_rate):
        return video.frames
    return round(float(video.duration * video.time_base * video.average_rate))


def _choose(sampling: Callable[[int, int, int], np.ndarray], listed: int, frames: int, shown: int) -> list[int]:
    shown = max(shown, 1)
    return sampling(shown, max(listed, shown), frames).tolist()


def _take_by_index(
    images: Iterator[VideoFrame], indices: list[int], prepare: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, list[np.ndarray]]:
    """How many images there are, and the prepared ones at these indices as far as they exist."""
    wanted = set(indices)
    prepared: dict[int, np.ndarray] = {}
    shown = 0
    for image in images:
        if shown in wanted:
            prepared[shown] = prepare(image.to_ndarray(format="rgb24"))
        shown += 1
    return shown, [prepared[index] for index in indices if index in prepared]


def _decode_packets(packets: list[Packet] | Iterator[Packet]) -> Iterator[VideoFrame]:
    """Decoded frames in the order in which they are shown; damaged packets are skipped, as players do."""
    for packet in packets:
        try:
            for frame in packet.decode():
                assert isinstance(frame, VideoFrame)
                yield frame
        except av.error.InvalidDataError:
            continue


def _is_cover(stream: VideoStream) -> bool:
    """Whether a "video" stream is the cover picture of a music file."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _first_line(error: BaseException) -> str:
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(message).splitlines()[0]

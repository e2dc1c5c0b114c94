"""Decode the sampled frames of a video stream, and no more packets than they need."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from alphafuse.errors import DecodeError
from alphafuse.system.workers import NO_MEMORY

from .packets import PacketIndex
from .specs import first_line

MAX_PIXELS = 8192 * 8192  # per frame; the highest levels of H.264, HEVC (6.2) and AV1 (6.3) allow 35.7 million
HELD_BYTES = 64 * 2**20  # limit of video packets in memory; a file with more is read a second time
NO_SIZE = f"frames of no known size, or larger than this reads ({MAX_PIXELS // 10**6} megapixels)"
Taken = tuple[np.ndarray | None, str]  # (frames, height, width, 3) uint8 and "", or None and the reason
ReadAgain = Callable[[], AbstractContextManager[tuple[VideoStream, Iterable[Packet]]]]


@dataclass(frozen=True)
class FrameRequest:
    """Frames to take from a video.

    Attributes:
        frames: their number.
        choose: number of shown frames -> indices of the frames to take.
        prepare: applied to each taken frame, (height, width, 3) uint8 RGB, as soon as it is decoded, so that only
            prepared frames are held (for instance resized ones). Its `DecodeError` fails this request alone.
    """

    frames: int
    choose: Callable[[int], list[int]]
    prepare: Callable[[np.ndarray], np.ndarray]


class VideoTrack:
    """Collects the packets of a video stream as they are read; returns sampled frames, or why there are none.

    Attributes:
        stream: the video stream; None if there is no usable one.
    """

    def __init__(self, video: VideoStream | None, read_again: ReadAgain) -> None:
        """Collect packets of this stream.

        Args:
            video: the stream; None if the file has none.
            read_again: opens the file again and yields the same stream and its packets.
        """
        self._read_again = read_again
        self._problem = _video_problem(video)
        self.stream = None if self._problem else video
        self._held: list[Packet] | None = []
        self._held_bytes = 0
        if self.stream is not None:
            self._index = PacketIndex(self.stream)

    def add(self, packet: Packet) -> None:
        """Record a packet, and hold it in memory up to `HELD_BYTES`."""
        self._index.add(packet)
        self._held_bytes += packet.size
        if self._held_bytes > HELD_BYTES:
            self._held = None
        if self._held is not None:
            self._held.append(packet)

    def take(self, requests: Sequence[FrameRequest]) -> list[Taken]:
        """Return the frames of each request, from one pass over the packets."""
        if self.stream is None:
            return [(None, self._problem)] * len(requests)
        try:
            taken = self._take_planned(requests)
            if taken is None:
                taken = self._take_from_all(requests)
            if taken is not None:
                return taken
            problem = "video stream without a frame"
        except MemoryError:
            return [(None, NO_MEMORY)] * len(requests)
        except (FFmpegError, ValueError) as error:
            problem = f"video can't be decoded: {first_line(error)}"
        if not self.stream.codec_context.width:  # FFmpeg resets a size that it refuses
            problem = NO_SIZE
        return [(None, problem)] * len(requests)

    def _take_planned(self, requests: Sequence[FrameRequest]) -> list[Taken] | None:
        """Decode by a `PacketPlan`; return None without a plan, or if the decoder outputs unexpected frames."""
        plan = self._index.plan(lambda shown: [index for request in requests for index in request.choose(shown)])
        if plan is None:
            return None
        wanted = iter(plan.wanted)
        sampled = [_SampledFrames(list(islice(wanted, request.frames)), request.prepare) for request in requests]
        expected = iter(plan.expected)
        with self._packets(strict=True) as packets:
            needed = (packet for use, packet in zip(plan.decoded, packets, strict=False) if use)
            try:
                for frame in _decode(needed, strict=True):
                    if frame.is_corrupt or frame.pts is None or frame.pts != next(expected, None):
                        return None
                    _offer(sampled, frame.pts, frame)
            except MemoryError:
                raise
            except FFmpegError:
                return None
        return _finish(sampled) if next(expected, None) is None else None

    def _take_from_all(self, requests: Sequence[FrameRequest]) -> list[Taken] | None:
        """Decode everything; do it a second time if there are fewer frames than the packets announce."""
        total = self._index.listed
        for _ in range(2):
            sampled, shown = [_SampledFrames(request.choose(total), request.prepare) for request in requests], 0
            with self._packets(strict=False) as packets:
                for frame in _decode(packets, strict=False):
                    _offer(sampled, shown, frame)
                    shown += 1
            if shown in (0, total):
                break
            total = shown
        return _finish(sampled)

    @contextmanager
    def _packets(self, *, strict: bool) -> Iterator[Iterable[Packet]]:
        """Yield the stream's packets and a new decoder: held packets the first time, else the file is read again."""
        held, self._held = self._held, None
        if held is not None and self.stream is not None:
            _prepare_decoder(self.stream, strict)
            yield held
            return
        with self._read_again() as (video, packets):
            _prepare_decoder(video, strict)
            yield packets


class _SampledFrames:
    """The sampled frames of a request; each is prepared and stored as soon as it is decoded.

    Attributes:
        problem: why the request can't be met, else "".
    """

    def __init__(self, keys: list[int], prepare: Callable[[np.ndarray], np.ndarray]) -> None:
        self.problem = ""
        self._places: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            self._places.setdefault(key, []).append(place)
        self._count = len(keys)
        self._prepare = prepare
        self._frames: np.ndarray | None = None

    def wants(self, key: int) -> bool:
        """Whether a frame is one of the sampled ones and has not been stored yet."""
        return key in self._places

    def add(self, key: int, image: np.ndarray) -> None:
        """Store a sampled frame (height, width, 3)."""
        places = self._places.pop(key)
        if self.problem:
            return
        try:
            image = self._prepare(image)
        except DecodeError as error:
            self.problem = str(error)
            return
        if self._frames is None:
            self._frames = np.empty((self._count, *image.shape), image.dtype)
        if image.shape != self._frames.shape[1:]:
            self.problem = "frames change their size"
            return
        self._frames[places] = image

    @property
    def is_complete(self) -> bool:
        """Whether every sampled frame was decoded."""
        return not self._places

    def finish(self) -> Taken:
        """Return the frames."""
        return (None, self.problem) if self.problem else (self._frames, "")


def _offer(sampled: Sequence[_SampledFrames], key: int, frame: VideoFrame) -> None:
    """Give a decoded frame to the requests that sample it."""
    wanting = [frames for frames in sampled if frames.wants(key)]
    if wanting:
        image = _upright(frame)
        for frames in wanting:
            frames.add(key, image)


def _finish(sampled: Sequence[_SampledFrames]) -> list[Taken] | None:
    """Return the frames of each request; None if a frame was never decoded."""
    return [frames.finish() for frames in sampled] if all(frames.is_complete for frames in sampled) else None


def _video_problem(video: VideoStream | None) -> str:
    if video is None:
        return "no video stream"
    if video.codec_context is None:
        return "video of a codec that FFmpeg doesn't know"
    return ""


def _prepare_decoder(video: VideoStream, strict: bool) -> None:
    """Set a decoder's options; a strict one raises on damage that others conceal."""
    video.codec_context.thread_count = 1  # one clip per worker: more threads would only compete
    options = {"max_pixels": str(MAX_PIXELS)}  # limits the stream's size, which may differ from the container's
    video.codec_context.options = options | {"err_detect": "explode"} if strict else options


def _decode(packets: Iterable[Packet], *, strict: bool) -> Iterator[VideoFrame]:
    """Yield decoded frames of one stream, in output order.

    Args:
        packets: packets to decode.
        strict: raise at the first damaged packet. Otherwise damaged packets are skipped, as players do.

    Raises:
        FFmpegError: a packet is damaged; if not strict, the last error, if no packet gave a frame.
    """
    stream: VideoStream | None = None
    failure: FFmpegError | None = None
    some = False
    for packet in chain(packets, [None]):  # None flushes the decoder
        stream = stream if packet is None else packet.stream
        if stream is None:
            return
        try:
            frames = stream.decode(packet)
        except MemoryError:
            raise
        except FFmpegError as error:
            if strict:
                raise
            failure = error
            continue
        some |= bool(frames)
        yield from frames
    if failure is not None and not some:
        raise failure


def _upright(frame: VideoFrame) -> np.ndarray:
    """Return (height, width, 3) uint8 RGB, turned and mirrored by the display matrix if it is by right angles."""
    image = frame.to_ndarray(format="rgb24", threads=1)
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV has no name for other attached data (EXIF): only the angle can be read
        turns, rest = divmod(frame.rotation, 90)
        return image if rest else np.ascontiguousarray(np.rot90(image, turns))
    if matrix is None:
        return image
    # a pixel at (x, y) is shown at (ax + cy, bx + dy), up to a translation
    a, b, _, c, d = struct.unpack("=5i", memoryview(matrix)[:20])  # type: ignore[arg-type]  # it is a buffer
    if a == d == 0:
        image, a, d = image.swapaxes(0, 1), c, b
    elif not b == c == 0:
        return image
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

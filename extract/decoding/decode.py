"""A clip's file -> frames and waveform, decoding no more of it than is looked at.

Which frames are taken is a `sampling`'s choice among the *shown* frames (packets that an mp4 edit list discards are
decoded, for others depend on them, but never shown). They are those that decoding everything gives, bit for bit, turned
upright as a player turns them; `packets` says which packets that takes. The waveform is mono, 16 kHz,
float32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from alphafuse.errors import DecodeError

from .packets import Outline

SAMPLE_RATE_HZ = 16_000  # AST was trained at 16 kHz (Gong et al. 2021, section 3.1)
MAX_PIXELS = 8192 * 8192  # per frame; the highest levels of H.264, HEVC (6.2) and AV1 (6.3) allow 35.7 million
HELD_BYTES = 64 * 2**20  # of video packets; a file with more is read a second time
JOINED_SAMPLES = 8192  # resampled at once: fewer, larger steps
NO_MEMORY = "needs more memory than a decode worker may take"
NOT_ASKED_FOR = "not asked for"
NO_SIZE = f"frames of no known size, or larger than this reads ({MAX_PIXELS // 10**6} megapixels)"


@dataclass(frozen=True)
class Decoded:
    """What one clip's file holds.

    Attributes:
        frames: (frames, height, width, 3) uint8 RGB, or None.
        waveform: (samples,) float32 at 16 kHz, nominally in [-1, 1], or None.
        no_frames, no_waveform: why the frames or the waveform are None, else "".
        is_prepared: whether `prepare` made of the frames what an encoder is fed; False = still to be resized.
        cpu_seconds: that decoding took, where it was measured.
    """

    frames: np.ndarray | None
    waveform: np.ndarray | None
    no_frames: str = ""
    no_waveform: str = ""
    is_prepared: bool = True
    cpu_seconds: float = 0.0

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
    max_samples: int | None = None,
    picture: bool = True,
    sound: bool = True,
) -> Decoded:
    """Decode the frames and the waveform of a clip; whatever is wrong with one leaves the other whole.

    An undamaged file's frames are those of full decoding, bit for bit. Of a damaged file, so are they wherever the
    container or the decoder notices the damage in what is decoded here. Damage inside a picture that needn't be decoded
    stays unnoticed; full decoding might have lost that picture, and counted one frame less.

    Args:
        path: any file that FFmpeg's libraries read.
        frames: how many frames to take.
        sampling: which ones: "spread" (`frame_indices`) or "notebook" (`notebook_indices`).
        prepare: applied to each taken frame, (height, width, 3) uint8 RGB, as soon as it is decoded, so that only
            prepared frames are held (for instance resized ones). A `DecodeError` of its becomes `no_frames`.
        max_samples: how many samples of the waveform are looked at; what is beyond them is not decoded. None = all.
        picture, sound: whether the frames and the waveform are asked for.

    >>> from pathlib import Path
    >>> from alphafuse import decode_clip
    >>> path = sorted(Path("demo/clips").glob("*.mp4"))[0]
    >>> decode_clip(path, frames=8)
    Decoded(frames=(8, 72, 96, 3), waveform=(32322,))
    >>> decode_clip(path, frames=8, sound=False)
    Decoded(frames=(8, 72, 96, 3), waveform=not asked for)
    """
    if frames < 1 or (max_samples is not None and max_samples < 1):
        raise ValueError(f"frames and max_samples must be at least 1, not {frames} and {max_samples}")
    if Path(path).exists() and not Path(path).is_file():
        return Decoded(None, None, "not a regular file", "not a regular file")  # a named pipe would block for ever
    try:
        with _open(path) as container:
            film = _Film(path, _video_of(container) if picture else None)
            track = _Sound(next(iter(container.streams.audio), None) if sound else None, max_samples)
            streams = [stream for stream in (film.stream, track.stream) if stream is not None]
            for packet in _read(container, streams):
                if packet.stream is film.stream:
                    film.add(packet)
                else:
                    track.add(packet)
                if film.stream is None and track.enough:
                    break
            waveform, no_waveform = track.finish()
            choose = partial(_choose, SAMPLINGS[sampling], _listed_frames(film.stream), frames)
            images, no_frames = film.take(choose, prepare)
    except MemoryError:
        return Decoded(None, None, NO_MEMORY, NO_MEMORY)
    except (FFmpegError, OSError, ValueError) as error:
        reason = f"can't be opened: {_first_line(error)}"
        return Decoded(None, None, reason, reason)
    return Decoded(images, waveform, no_frames if picture else NOT_ASKED_FOR, no_waveform if sound else NOT_ASKED_FOR)


def probe_audio(path: str | Path) -> str:
    """Why a file has no audio that could be decoded, by its header alone; "" if it has an audio stream.

    Nothing is decoded but what FFmpeg needs to know the streams: an audio stream may still turn out damaged or empty.
    """
    if Path(path).exists() and not Path(path).is_file():
        return "not a regular file"
    try:
        with _open(path) as container:
            return _audio_problem(next(iter(container.streams.audio), None))
    except MemoryError:
        return NO_MEMORY
    except (FFmpegError, OSError, ValueError) as error:
        return f"can't be opened: {_first_line(error)}"


class MonoResampler:
    """Audio frames of any rate, layout and format in, mono 16 kHz float32 out, by FFmpeg's libswresample.

    The channels are mixed as `ffmpeg -ac 1` mixes them into a 16-bit file: stereo becomes the mean of left and right.
    (Left to itself, libswresample scales a *float* stereo mix by sqrt(2), which shifts every log filter bank by 0.69.)

    Attributes:
        samples: how many have come out so far, at 16 kHz; what was pushed last may still be inside.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._graph: Graph | None = None
        self._shape: tuple[int, str, str] | None = None
        self._inside = 0  # samples pushed since the last pull
        self._chunks: list[np.ndarray] = []

    def push(self, frame: AudioFrame) -> None:
        """Take one decoded frame."""
        shape = (frame.sample_rate, frame.format.name, frame.layout.name)
        if self._graph is None or shape != self._shape:  # streams may change their shape on the way
            self._drain()
            self._graph, self._shape = _mono_graph(*shape), shape
        self._graph.push(frame)
        self._inside += frame.samples
        if self._inside >= 4 * JOINED_SAMPLES:  # an attempt to pull costs as much as the resampling of a frame
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
        self._inside = 0
        while True:
            try:
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            assert isinstance(frame, AudioFrame)
            self._chunks.append(frame.to_ndarray()[0].astype(np.float32, copy=False))
            self.samples += frame.samples


def _mono_graph(sample_rate_hz: int, sample_format: str, layout: str) -> Graph:
    graph = Graph()
    graph.threads = 1
    # rematrix_maxval=1: no mixing weight may sum to more than 1, as for integer formats
    options = f"osr={SAMPLE_RATE_HZ}:osf=fltp:ochl=mono:rematrix_maxval=1"
    graph.link_nodes(
        graph.add_abuffer(sample_rate=sample_rate_hz, format=sample_format, layout=layout),
        graph.add("asetnsamples", f"n={JOINED_SAMPLES}:p=0"),
        graph.add("aresample", options),
        graph.add("abuffersink"),
    ).configure()
    return graph


class _Sound:
    """Takes the packets of an audio stream as they are read, gives the waveform or the reason why there is none."""

    def __init__(self, audio: AudioStream | None, max_samples: int | None) -> None:
        self._problem = _audio_problem(audio)
        self.stream = None if self._problem else audio
        self._damage = ""  # of the last packet that couldn't be decoded
        self._max_samples = max_samples
        self._resampler = MonoResampler()

    @property
    def enough(self) -> bool:
        """Whether further packets make no difference."""
        return bool(self._problem) or (self._max_samples is not None and self._resampler.samples >= self._max_samples)

    def add(self, packet: Packet | None) -> None:
        """Decode a packet; None = what the decoder still holds back."""
        if self.enough or self.stream is None:
            return
        try:
            for frame in self._decode(self.stream, packet):
                self._resampler.push(frame)
        except MemoryError:
            self._problem = NO_MEMORY
        except (FFmpegError, ValueError) as error:
            self._problem = f"audio can't be resampled: {_first_line(error)}"

    def _decode(self, audio: AudioStream, packet: Packet | None) -> list[AudioFrame]:
        try:
            return audio.decode(packet)
        except MemoryError:
            raise
        except FFmpegError as error:  # one damaged packet costs only itself, as in every player
            self._damage = f"audio can't be decoded: {_first_line(error)}"
            return []

    def finish(self) -> tuple[np.ndarray | None, str]:
        """(samples,) float32 and "", or None and the reason."""
        self.add(None)
        if self._problem:
            return None, self._problem
        try:
            waveform = self._resampler.finish()[: self._max_samples]
            if not len(waveform):
                return None, self._damage or "audio stream without a sample"
            if not np.isfinite(waveform).all():
                return None, "audio samples are not finite"
        except MemoryError:
            return None, NO_MEMORY
        return waveform, ""


def _audio_problem(audio: AudioStream | None) -> str:
    if audio is None:
        return "no audio stream"
    if audio.codec_context is None:
        return "audio of a codec that FFmpeg doesn't know"
    return ""


class _Film:
    """Takes the packets of a video stream as they are read, gives the frames that are looked at or the reason."""

    def __init__(self, path: str | Path, video: VideoStream | None) -> None:
        self._path = path
        self._problem = _video_problem(video)
        self.stream = None if self._problem else video
        self._held: list[Packet] | None = []
        self._held_bytes = 0
        if self.stream is not None:
            self._outline = Outline(self.stream)

    def add(self, packet: Packet) -> None:
        """Take note of a packet, and hold it as long as there are not too many."""
        self._outline.add(packet)
        self._held_bytes += packet.size
        if self._held_bytes > HELD_BYTES:
            self._held = None
        if self._held is not None:
            self._held.append(packet)

    def take(
        self, choose: Callable[[int], list[int]], prepare: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray | None, str]:
        """(frames, height, width, 3) uint8 and "", or None and the reason.

        Args:
            choose: number of shown frames -> indices of those that are looked at.
            prepare: see `decode_clip`.
        """
        if self.stream is None:
            return None, self._problem
        try:
            taken = self._take_planned(choose, prepare)
            if taken is None:
                taken = self._take_from_all(choose, prepare)
            if taken is not None:
                return taken, ""
            problem = "video stream without a frame"
        except MemoryError:
            return None, NO_MEMORY
        except DecodeError as error:
            return None, str(error)
        except (FFmpegError, ValueError) as error:
            problem = f"video can't be decoded: {_first_line(error)}"
        return None, problem if self.stream.codec_context.width else NO_SIZE  # FFmpeg forgets a size that it refuses

    def _take_planned(
        self, choose: Callable[[int], list[int]], prepare: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray | None:
        """The frames by way of a `Plan`; None where there is none, or the decoder puts out anything else."""
        plan = self._outline.plan(choose)
        if plan is None:
            return None
        gallery, expected = _Gallery(plan.wanted, prepare), iter(plan.expected)
        with self._packets(strict=True) as packets:
            needed = (packet for use, packet in zip(plan.decoded, packets, strict=False) if use)
            try:
                for frame in _decode(needed, strict=True):
                    if frame.is_corrupt or frame.pts is None or frame.pts != next(expected, None):
                        return None
                    gallery.offer(frame.pts, frame)
            except MemoryError:
                raise
            except FFmpegError:
                return None
        return gallery.finish() if next(expected, None) is None else None

    def _take_from_all(
        self, choose: Callable[[int], list[int]], prepare: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray | None:
        """The frames by decoding everything; a second time if there aren't as many as the packets promise."""
        total = self._outline.listed
        for _ in range(2):
            gallery, shown = _Gallery(choose(total), prepare), 0
            with self._packets(strict=False) as packets:
                for frame in _decode(packets, strict=False):
                    gallery.offer(shown, frame)
                    shown += 1
            if shown in (0, total):
                break
            total = shown
        return gallery.finish()

    @contextmanager
    def _packets(self, *, strict: bool) -> Iterator[Iterable[Packet]]:
        """The stream's packets and a fresh decoder: those held, the first time; else the file is read again."""
        held, self._held = self._held, None
        if held is not None and self.stream is not None:
            _prepare_decoder(self.stream, strict)
            yield held
            return
        with _open(self._path) as container:
            video = _video_of(container)
            assert video is not None
            _prepare_decoder(video, strict)
            yield _read(container, [video])


class _Gallery:
    """The frames that are looked at, each prepared and put in its places as soon as it is decoded."""

    def __init__(self, keys: list[int], prepare: Callable[[np.ndarray], np.ndarray]) -> None:
        self._places: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            self._places.setdefault(key, []).append(place)
        self._count = len(keys)
        self._prepare = prepare
        self._frames: np.ndarray | None = None

    def offer(self, key: int, frame: VideoFrame) -> None:
        """Take a frame if it is one of those."""
        places = self._places.pop(key, None)
        if places is None:
            return
        image = self._prepare(_upright(frame))
        if self._frames is None:
            self._frames = np.empty((self._count, *image.shape), image.dtype)
        if image.shape != self._frames.shape[1:]:
            raise DecodeError("frames change their size")
        self._frames[places] = image

    def finish(self) -> np.ndarray | None:
        """(frames, height, width, 3), or None if one was never offered."""
        return None if self._places else self._frames


def _video_problem(video: VideoStream | None) -> str:
    if video is None:
        return "no video stream"
    if video.codec_context is None:
        return "video of a codec that FFmpeg doesn't know"
    return ""


def _prepare_decoder(video: VideoStream, strict: bool) -> None:
    """Set what a decoder is opened with; a strict one raises where others patch up damage."""
    video.codec_context.thread_count = 1  # one clip per worker: threads inside would only compete
    options = {"max_pixels": str(MAX_PIXELS)}  # of what the stream says; the container may have said otherwise
    video.codec_context.options = options | {"err_detect": "explode"} if strict else options


def _open(path: str | Path) -> InputContainer:
    # file: a name with a colon is no protocol's; replace: no file is worse for a title in Latin-1; max_pixels: some
    # frames are decoded on opening
    return av.open(f"file:{path}", metadata_errors="replace", options={"max_pixels": str(MAX_PIXELS)})


def _read(container: InputContainer, streams: Sequence[Stream]) -> Iterator[Packet]:
    """Packets up to the end of what can be read; empty ones, which would end decoding, are left out."""
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets, None)
        except MemoryError:
            raise
        except (FFmpegError, IndexError):  # IndexError: PyAV's, of a stream that turned up on the way
            return  # cut off or damaged: what came before counts, as in players
        if packet is None:
            return
        if packet.size:
            yield packet


def _video_of(container: InputContainer) -> VideoStream | None:
    """The first stream that isn't the cover picture of a music file."""
    cover = av.stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)


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


def _decode(packets: Iterable[Packet], *, strict: bool) -> Iterator[VideoFrame]:
    """Decoded frames of one stream, in the order in which they are shown.

    Args:
        packets: what to decode.
        strict: raise at the first damaged packet. Otherwise they are skipped, as players do.

    Raises:
        FFmpegError: a damaged packet, or, if not strict, the last one where no packet gave a frame.
    """
    stream: VideoStream | None = None
    failure: FFmpegError | None = None
    some = False
    for packet in chain(packets, [None]):  # None: what the decoder still holds back
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
    """(height, width, 3) uint8 RGB, turned and mirrored by the display matrix as far as that is by right angles."""
    image = frame.to_ndarray(format="rgb24", threads=1)
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV has no name for what else is attached (EXIF): only the angle can be read
        turns, rest = divmod(frame.rotation, 90)
        return image if rest else np.ascontiguousarray(np.rot90(image, turns))
    if matrix is None:
        return image
    # a pixel at (x, y) is shown at (ax + cy, bx + dy), origin aside
    a, b, _, c, d = struct.unpack("=5i", memoryview(matrix)[:20])  # type: ignore[arg-type]  # it is a buffer
    if a == d == 0:
        image, a, d = image.swapaxes(0, 1), c, b
    elif not b == c == 0:
        return image
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _first_line(error: BaseException) -> str:
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(message).splitlines()[0]

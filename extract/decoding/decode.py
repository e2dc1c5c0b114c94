"""Decode a clip's file into frames and a waveform, and no more of it than the encoders use.

A `sampling` chooses among the *shown* frames (an mp4 edit list hides some frames, which are decoded only because others
depend on them). Frames equal those of decoding everything, bit for bit, and are turned upright as a player turns them
(`video`). Waveforms are mono and float32, at each stream's rate (`audio`).
A decode worker calls `decode_inputs` for each clip.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream
from PIL import Image

from alphafuse.errors import DecodeError
from alphafuse.system.files import UNKNOWN_BYTES, file_digest, joined_digest, split_address
from alphafuse.system.remote import is_remote
from alphafuse.system.workers import NO_MEMORY

from .audio import AudioTrack, audio_problem
from .fetch import fetched
from .specs import (
    DEVICE_RESIZE_PIXELS,
    SAMPLE_RATE_HZ,
    SAMPLINGS,
    AudioSpec,
    Decoded,
    FrameSpec,
    Inputs,
    Spec,
    crop_box,
    first_line,
)
from .video import MAX_PIXELS, FrameRequest, Taken, VideoTrack

NOT_ASKED_FOR = "not asked for"


def decode_clip(
    path: str | Path,
    *,
    frames: int,
    sampling: str = "spread",
    prepare: Callable[[np.ndarray], np.ndarray] = lambda image: image,
    max_samples: int | None = None,
    rate: int = SAMPLE_RATE_HZ,
    picture: bool = True,
    sound: bool = True,
) -> Decoded:
    """Decode the frames and the waveform of a clip; an error in one doesn't affect the other.

    Frames of an undamaged file equal those of full decoding, bit for bit. So do those of a damaged file if the
    container or the decoder notices the damage in the decoded parts. Damage inside a picture that needn't be decoded
    stays unnoticed; full decoding might lose that picture, and count one frame less.

    Args:
        path: any file that FFmpeg's libraries can read.
        frames: number of frames to take.
        sampling: choice of frames: "spread" (`frame_indices`) or "notebook" (`notebook_indices`).
        prepare: applied to each taken frame, (height, width, 3) uint8 RGB, as soon as it is decoded, so that only
            prepared frames are held (for instance resized ones). Its `DecodeError` becomes `no_frames`.
        max_samples: number of samples of the waveform to decode; None = all.
        rate: samples per second of the waveform.
        picture, sound: whether to decode the frames and the waveform.

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
    spec = FrameSpec(frames=frames, sampling=sampling)
    decoded = _decode_file(path, [(spec, prepare)] if picture else [], {rate: max_samples} if sound else {})
    images, no_frames = decoded.frames[0] if picture else (None, NOT_ASKED_FOR)
    waveform, no_waveform = decoded.waveforms[rate] if sound else (None, NOT_ASKED_FOR)
    return Decoded(images, waveform, no_frames, no_waveform, seconds=decoded.seconds)


class _Content(NamedTuple):
    """What was decoded of a file."""

    frames: list[Taken]  # of each request
    waveforms: dict[int, Taken]  # rate -> waveform
    seconds: float  # as in `Decoded`
    sound_seconds: float  # as in `Inputs`


def _decode_file(
    path: str | Path,
    pictures: Sequence[tuple[FrameSpec, Callable[[np.ndarray], np.ndarray]]],
    sounds: Mapping[int, int | None],
) -> _Content:
    """Decode a file in one pass.

    Args:
        path: any file that FFmpeg's libraries can read.
        pictures: which frames to take, and what prepares each (`FrameRequest.prepare`).
        sounds: samples per second -> number of samples to decode; None = all.
    """

    def nothing(reason: str) -> _Content:
        return _Content([(None, reason)] * len(pictures), dict.fromkeys(sounds, (None, reason)), math.nan, math.nan)

    if Path(path).exists() and not Path(path).is_file():
        return nothing("not a regular file")  # a named pipe would block forever
    try:
        with _open(path) as container:
            picture_track = VideoTrack(_video_of(container) if pictures else None, partial(_read_again, path))
            sound_track = AudioTrack(next(iter(container.streams.audio), None) if sounds else None, sounds)
            streams = [stream for stream in (picture_track.stream, sound_track.stream) if stream is not None]
            shown = _ShownSpans(container)
            for packet in _read(container, streams):
                shown.add(packet)
                if packet.stream is picture_track.stream:
                    picture_track.add(packet)
                else:
                    sound_track.add(packet)
                if picture_track.stream is None and sound_track.is_complete:
                    shown.is_whole = False
                    break
            sound_seconds = shown.of(sound_track.stream)
            waveforms = sound_track.finish()
            listed = _listed_frames(picture_track.stream)
            taken = picture_track.take(
                [
                    FrameRequest(spec.frames, partial(_choose, SAMPLINGS[spec.sampling], listed, spec.frames), prepare)
                    for spec, prepare in pictures
                ]
            )
    except MemoryError:
        return nothing(NO_MEMORY)
    except (FFmpegError, OSError, ValueError) as error:
        return nothing(f"can't be opened: {first_line(error)}")
    return _Content(taken, waveforms, shown.seconds, sound_seconds)


def probe_audio(path: str | Path) -> str:
    """Return why a file has no audio that could be decoded, from its header; "" if it has an audio stream.

    Only what FFmpeg needs to identify the streams is decoded, so the audio stream may be damaged or empty.
    """
    if Path(path).exists() and not Path(path).is_file():
        return "not a regular file"
    try:
        with _open(path) as container:
            return audio_problem(next(iter(container.streams.audio), None))
    except MemoryError:
        return NO_MEMORY
    except (FFmpegError, OSError, ValueError) as error:
        return f"can't be opened: {first_line(error)}"


def probe_seconds(path: str | Path) -> float:
    """Return the duration of a file's audio stream by its header, in seconds; 0 if it has none or doesn't tell."""
    if Path(path).exists() and not Path(path).is_file():
        return 0.0
    try:
        with _open(path) as container:
            audio = next(iter(container.streams.audio), None)
            if audio is None:
                return 0.0
            if audio.duration and audio.time_base:
                return float(audio.duration * audio.time_base)
            return container.duration / av.time_base if container.duration else 0.0
    except (FFmpegError, OSError, ValueError, MemoryError):
        return 0.0


def prepare_frame(image: np.ndarray, spec: FrameSpec) -> np.ndarray:
    """Resize and centre-crop one frame as HuggingFace's PIL image processors do.

    Args:
        image: (height, width, 3) uint8 RGB.
        spec: sizes and filter.

    Returns:
        (crop height, crop width, 3) uint8.

    Raises:
        DecodeError: the resized frame is smaller than the crop.
    """
    size = spec.resized(image.shape[0], image.shape[1])
    top, left, height, width = crop_box(size, spec)
    if size != image.shape[:2]:
        resized = Image.fromarray(image).resize((size[1], size[0]), resample=Image.Resampling(spec.resample))
        image = np.array(resized)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def decode_inputs(
    task: tuple[Path, tuple[str, ...], Path | None],
    *,
    specs: Mapping[str, Spec],
    device_resizes: frozenset[str] = frozenset(),
) -> Inputs:
    """Decode a clip into the inputs of its streams, each of its files in one pass; runs in a worker.

    Args:
        task: the file or its URL, the streams to decode for, and the file of the sound if it has one of its own.
        specs: stream -> specification of its encoder's input.
        device_resizes: streams whose frames of up to `DEVICE_RESIZE_PIXELS` are left as they are.
    """
    began = time.process_time()
    path, streams, audio = task
    chosen = {name: specs[name] for name in streams}
    if audio is None:
        inputs = _decode_one(path, chosen, device_resizes)
    else:
        seen = {name: spec for name, spec in chosen.items() if isinstance(spec, FrameSpec)}
        heard = {name: spec for name, spec in chosen.items() if isinstance(spec, AudioSpec)}
        inputs = _joined(_decode_one(path, seen, device_resizes), _decode_one(audio, heard, device_resizes))
    return replace(inputs, cpu_seconds=time.process_time() - began)


def _decode_one(path: Path, specs: Mapping[str, Spec], device_resizes: frozenset[str]) -> Inputs:
    """Decode one file into the inputs of streams."""
    framed = {name: spec for name, spec in specs.items() if isinstance(spec, FrameSpec)}
    heard = {name: spec for name, spec in specs.items() if isinstance(spec, AudioSpec)}
    resizers = {name: _FrameResizer(spec, leave_small=name in device_resizes) for name, spec in framed.items()}
    try:
        with fetched(path) if is_remote(path) or split_address(path.name)[1] else nullcontext(path) as file:
            decoded = _decode_file(
                file, [(spec, resizers[name]) for name, spec in framed.items()], _samples_per_rate(heard.values())
            )
            file_bytes, digest = _identify(file)
    except DecodeError as error:
        return Inputs.failed(specs, str(error))
    taken = dict(zip(framed, decoded.frames, strict=True))
    taken |= {name: _cut(*decoded.waveforms[spec.rate], spec) for name, spec in heard.items()}
    return Inputs(
        arrays={name: array for name, (array, _) in taken.items() if array is not None},
        reasons={name: reason for name, (array, reason) in taken.items() if array is None},
        unresized=frozenset(name for name in device_resizes.intersection(framed) if not resizers[name].resizes),
        seconds=decoded.seconds,
        sound_seconds=decoded.sound_seconds,
        file_bytes=file_bytes,
        digest=digest,
    )


def _joined(picture: Inputs, sound: Inputs) -> Inputs:
    """Join the inputs from a clip's two files."""
    both_known = picture.digest and sound.digest
    return Inputs(
        arrays={**picture.arrays, **sound.arrays},
        reasons={**picture.reasons, **sound.reasons},
        unresized=picture.unresized,
        seconds=float(np.fmax(picture.seconds, sound.seconds)),
        sound_seconds=sound.sound_seconds,
        file_bytes=picture.file_bytes + sound.file_bytes if both_known else UNKNOWN_BYTES,
        digest=joined_digest((picture.digest, sound.digest)) if both_known else "",
    )


def _samples_per_rate(specs: Iterable[AudioSpec]) -> dict[int, int | None]:
    """Return rate -> the largest number of samples that a stream hears; None = all."""
    most: dict[int, int | None] = {}
    for spec in specs:
        known = most.get(spec.rate, 0)
        most[spec.rate] = None if known is None or spec.max_samples is None else max(known, spec.max_samples)
    return most


def _cut(waveform: np.ndarray | None, reason: str, spec: AudioSpec) -> Taken:
    """Return the part of a waveform that a stream hears, or why it is too short."""
    if waveform is None:
        return None, reason
    try:
        spec.check(waveform)
    except DecodeError as error:
        return None, str(error)
    return waveform[: spec.max_samples], ""


class _FrameResizer:
    """Resizes a clip's frames, or leaves them as they are, as `spec.resize` and the first frame's size decide.

    Attributes:
        resizes: whether it resizes the frames.
    """

    def __init__(self, spec: FrameSpec, *, leave_small: bool) -> None:
        self.resizes = spec.resize == "pil"
        self._spec, self._is_undecided = spec, self.resizes and leave_small

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self._is_undecided:
            self.resizes = image.shape[0] * image.shape[1] > DEVICE_RESIZE_PIXELS
            self._is_undecided = False
        return prepare_frame(image, self._spec) if self.resizes else image


def _identify(path: Path) -> tuple[int, str]:
    """Return `file_digest` of a file; unknown if it can't be read or is not a regular file."""
    with contextlib.suppress(OSError):
        if path.is_file():  # a named pipe would block
            return file_digest(path)
    return UNKNOWN_BYTES, ""


class _ShownSpans:
    """Start and end of the shown packets of each stream.

    Attributes:
        is_whole: whether all packets were read.
    """

    def __init__(self, container: InputContainer) -> None:
        self.is_whole = True
        self._listed = container.duration  # in microseconds, from the header
        self._spans: dict[int, tuple[int, int]] = {}  # stream's number -> begin, end
        self._units: dict[int, float] = {s.index: float(s.time_base or 0) for s in container.streams}  # seconds

    def add(self, packet: Packet) -> None:
        """Record a packet's time span."""
        begin, number = packet.pts, packet.stream_index
        if begin is None or packet.is_discard:
            return
        end = begin + (packet.duration or 0)
        first, last = self._spans.get(number, (begin, end))
        self._spans[number] = (min(first, begin), max(last, end))

    def of(self, stream: Stream | None) -> float:
        """Return the duration of one stream; of the whole file if not all was read; nan if unknown."""
        if stream is None or not self.is_whole:
            return math.nan if stream is None else self.seconds
        first, last = self._spans.get(stream.index, (0, 0))
        return (last - first) * self._units[stream.index] or math.nan

    @property
    def seconds(self) -> float:
        """Return the duration of the longest stream; that of the header if not all was read; nan if unknown."""
        if self.is_whole:
            spans = (
                (last - first) * self._units.get(number, math.nan) for number, (first, last) in self._spans.items()
            )
            found = max(spans, default=math.nan)
        else:
            found = self._listed / av.time_base if self._listed else math.nan
        return found if found >= 0 else math.nan  # damaged files claim negative durations


def _open(path: str | Path) -> InputContainer:
    # file: a colon in the name must not start a protocol; replace: a title in Latin-1 must not be an error;
    # max_pixels: some frames are decoded on opening
    return av.open(f"file:{path}", metadata_errors="replace", options={"max_pixels": str(MAX_PIXELS)})


@contextmanager
def _read_again(path: str | Path) -> Iterator[tuple[VideoStream, Iterable[Packet]]]:
    """Open a file again and yield its video stream and the packets of that."""
    with _open(path) as container:
        video = _video_of(container)
        assert video is not None
        yield video, _read(container, [video])


def _read(container: InputContainer, streams: Sequence[Stream]) -> Iterator[Packet]:
    """Yield packets up to the first unreadable one; skip empty ones, which would end decoding."""
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets, None)
        except MemoryError:
            raise
        except (FFmpegError, IndexError):  # PyAV raises IndexError for a stream that appears later
            return  # cut off or damaged: the packets before count, as in players
        if packet is None:
            return
        if packet.size:
            yield packet


def _video_of(container: InputContainer) -> VideoStream | None:
    """Return the first video stream that isn't the cover picture of a music file."""
    cover = av.stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)


def _listed_frames(video: VideoStream | None) -> int:
    """Return the container's number of frames, with hidden ones; computed from duration and rate if not listed."""
    if video is None:
        return 0
    if video.frames or not (video.duration and video.time_base and video.average_rate):
        return video.frames
    return round(float(video.duration * video.time_base * video.average_rate))


def _choose(sampling: Callable[[int, int, int], np.ndarray], listed: int, frames: int, shown: int) -> list[int]:
    shown = max(shown, 1)
    return sampling(shown, max(listed, shown), frames).tolist()

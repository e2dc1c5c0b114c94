"""Decode packets of an audio stream into waveforms: mono, float32, at one or more rates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.filter import Graph
from av.packet import Packet

from alphafuse.system.workers import NO_MEMORY

from .specs import first_line

JOINED_SAMPLES = 8192  # samples that are resampled at once: fewer, larger steps


class AudioTrack:
    """Decodes the packets of an audio stream as they are read; returns waveforms, or why there are none.

    Attributes:
        stream: the audio stream; None if there is no usable one.
    """

    def __init__(self, audio: AudioStream | None, wanted: Mapping[int, int | None]) -> None:
        """Decode this stream.

        Args:
            audio: the stream; None if the file has none.
            wanted: samples per second -> number of samples to decode; None = all.
        """
        self._problem = audio_problem(audio)
        self.stream = None if self._problem else audio
        self._damage = ""  # error of the last packet that couldn't be decoded
        self._wanted = dict(wanted)
        self._resamplers = {rate: MonoResampler(rate) for rate in self._wanted}

    @property
    def is_complete(self) -> bool:
        """Whether further packets make no difference."""
        return bool(self._problem) or not any(map(self._needs_more, self._wanted))

    def _needs_more(self, rate: int) -> bool:
        most = self._wanted[rate]
        return most is None or self._resamplers[rate].samples < most

    def add(self, packet: Packet | None) -> None:
        """Decode a packet; None flushes the decoder."""
        if self.is_complete or self.stream is None:
            return
        try:
            for frame in self._decode(self.stream, packet):
                for rate in self._wanted:
                    if self._needs_more(rate):
                        self._resamplers[rate].push(frame)
        except MemoryError:
            self._problem = NO_MEMORY
        except (FFmpegError, ValueError) as error:
            self._problem = f"audio can't be resampled: {first_line(error)}"

    def _decode(self, audio: AudioStream, packet: Packet | None) -> list[AudioFrame]:
        try:
            return audio.decode(packet)
        except MemoryError:
            raise
        except FFmpegError as error:  # a damaged packet is skipped, as in every player
            self._damage = f"audio can't be decoded: {first_line(error)}"
            return []

    def finish(self) -> dict[int, tuple[np.ndarray | None, str]]:
        """Return rate -> the waveform (samples,) float32 and "", or None and the reason."""
        self.add(None)
        return {rate: self._finish(rate) for rate in self._wanted}

    def _finish(self, rate: int) -> tuple[np.ndarray | None, str]:
        if self._problem:
            return None, self._problem
        try:
            waveform = self._resamplers[rate].finish()[: self._wanted[rate]]
            if not len(waveform):
                return None, self._damage or "audio stream without a sample"
            if not np.isfinite(waveform).all():
                return None, "audio samples are not finite"
        except MemoryError:
            return None, NO_MEMORY
        return waveform, ""


def audio_problem(audio: AudioStream | None) -> str:
    """Return why an audio stream can't be decoded; "" if it can."""
    if audio is None:
        return "no audio stream"
    if audio.codec_context is None:
        return "audio of a codec that FFmpeg doesn't know"
    return ""


class MonoResampler:
    """Resamples audio frames of any rate, layout and format to mono float32 of one rate, by FFmpeg's libswresample.

    The channels are mixed as `ffmpeg -ac 1` mixes them into a 16-bit file: stereo becomes the mean of left and right.
    (By default, libswresample scales a *float* stereo mix by sqrt(2), which shifts every log filter bank by 0.69.)

    Attributes:
        samples: number of output samples so far; the last input may not be resampled yet.
    """

    def __init__(self, rate: int) -> None:
        self.samples = 0
        self._rate = rate
        self._graph: Graph | None = None
        self._shape: tuple[int, str, str] | None = None
        self._inside = 0  # samples pushed since the last pull
        self._chunks: list[np.ndarray] = []

    def push(self, frame: AudioFrame) -> None:
        """Take one decoded frame."""
        shape = (frame.sample_rate, frame.format.name, frame.layout.name)
        if self._graph is None or shape != self._shape:  # rate, layout and format may change within a stream
            self._drain()
            self._graph, self._shape = _mono_graph(*shape, self._rate), shape
        self._graph.push(frame)
        self._inside += frame.samples
        if self._inside >= 4 * JOINED_SAMPLES:  # an attempt to pull takes as long as resampling a frame
            self._pull()

    def finish(self) -> np.ndarray:
        """Return everything pushed so far as (samples,) float32."""
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


def _mono_graph(sample_rate_hz: int, sample_format: str, layout: str, output_rate_hz: int) -> Graph:
    graph = Graph()
    graph.threads = 1
    # rematrix_maxval=1: no mixing weight may sum to more than 1, as for integer formats
    options = f"osr={output_rate_hz}:osf=fltp:ochl=mono:rematrix_maxval=1"
    graph.link_nodes(
        graph.add_abuffer(sample_rate=sample_rate_hz, format=sample_format, layout=layout),
        graph.add("asetnsamples", f"n={JOINED_SAMPLES}:p=0"),
        graph.add("aresample", options),
        graph.add("abuffersink"),
    ).configure()
    return graph

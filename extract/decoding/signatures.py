"""Compute signatures of clips, from a few small frames and the loudness of a few bands, for the audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from alphafuse.data.dataset import Dataset
from alphafuse.data.duplicates import FRAMES, Signature
from alphafuse.data.manifest import Clip
from alphafuse.errors import DecodeError
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.workers import map_tasks

from .decode import decode_clip
from .fetch import fetched
from .specs import SAMPLE_RATE_HZ

CELLS_HEIGHT, CELLS_WIDTH = 8, 9  # of the difference hash
DETAIL = 2  # frames are DETAIL times finer than the cells, to detect small movements
GREY_MARGIN = 3.0  # smallest difference of neighbouring cells that counts, grey levels
TIMEOUT_SECONDS = 120.0  # longest time for a file
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601's luma

BAND_EDGES_HZ = np.geomspace(100, 4000, 10)  # low bit rates cut off higher frequencies
STEPS = 33
WINDOW_SAMPLES, HOP_SAMPLES = 1024, 512  # 64 ms and 32 ms at 16 kHz
LEVEL_MARGIN_DB = 2.0  # smallest difference of neighbouring cells that counts
RANGE_DB, FLOOR_DBFS = 40.0, -80.0  # cells this far below the loudest, or below the floor, count as silent


def sign_clips(
    dataset: Dataset | str | Path,
    clips: Sequence[Clip] | None = None,
    *,
    workers: int = 0,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Signature]:
    """Return clip_id -> signature of each clip that has a file, in order.

    A file that can't be read gets a signature with the reason.

    Args:
        dataset: the root, or its folder.
        clips: the clips; None = all clips of the root.
        workers: decode processes; 0 = one per processor.
        progress: callbacks; one round of all clips that have a file.

    >>> from alphafuse import Dataset, sign_clips
    >>> dataset = Dataset.open("demo")
    >>> signatures = sign_clips(dataset, dataset.manifest.of_split("val"))
    >>> first = next(iter(signatures.values()))
    >>> len(signatures), first.is_silent, first.is_frozen
    (26, False, False)
    """
    dataset = Dataset.open(dataset)
    asked = dataset.manifest if clips is None else clips
    sizes = dataset.file_sizes(asked)
    chosen = [clip for clip in asked if clip.clip_id in sizes]
    signed: dict[str, Signature] = {}
    files = [(clip.clip_id, dataset.paths_of(clip)) for clip in chosen]
    progress.start("signatures", total=len(files))
    try:
        for clip_id, signature in map_tasks(
            _sign_clip, files, failed=_failed, workers=workers, timeout_seconds=TIMEOUT_SECONDS
        ):
            signed[clip_id] = signature
            progress.advance()
    finally:
        progress.stop()
    return {clip.clip_id: signed[clip.clip_id] for clip in chosen}


def _failed(reason: str) -> Signature:
    return Signature(0.0, reason, reason)


def _sign_clip(paths: tuple[Path, ...]) -> Signature:
    """Return the signature of a clip in one file, or in those of its picture and its sound."""
    picture = sign_file(paths[0])
    if len(paths) == 1:
        return picture
    heard = sign_file(paths[1])
    return replace(
        picture,
        seconds=max(picture.seconds, heard.seconds),
        no_waveform=heard.no_waveform,
        sound=heard.sound,
        levels=heard.levels,
        peak=heard.peak,
        sound_seconds=heard.sound_seconds,
    )


def sign_file(path: Path) -> Signature:
    """Return the signature of one file; it records errors of picture and sound."""
    try:
        with fetched(path) as file:
            return _sign(file)
    except DecodeError as error:
        return _failed(str(error))


def _sign(path: Path) -> Signature:
    decoded = decode_clip(path, frames=FRAMES, prepare=_shrink)
    signature = Signature(_covered_seconds(path), decoded.no_frames, decoded.no_waveform)
    if decoded.frames is not None:
        picture, colours, movement = _describe_frames(decoded.frames)
        signature = replace(signature, picture=picture, colours=colours, movement=movement)
    if decoded.waveform is not None:
        sound, levels, peak = _describe_waveform(decoded.waveform)
        seconds = len(decoded.waveform) / SAMPLE_RATE_HZ
        signature = replace(signature, sound=sound, levels=levels, peak=peak, sound_seconds=seconds)
    return signature


def _shrink(image: np.ndarray) -> np.ndarray:
    """Shrink (height, width, 3) uint8 to (16, 18, 3) uint8: the mean of each cell."""
    size = (DETAIL * CELLS_WIDTH, DETAIL * CELLS_HEIGHT)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _describe_frames(frames: np.ndarray) -> tuple[bytes, tuple[float, ...], float]:
    """Return hash, mean colours and largest movement of shrunk frames (frames, 16, 18, 3) uint8."""
    grey = frames.astype(np.float32) @ GREY  # (frames, 16, 18)
    cells = grey.reshape(len(grey), CELLS_HEIGHT, DETAIL, CELLS_WIDTH, DETAIL).mean(axis=(2, 4))  # (frames, 8, 9)
    colours = frames.mean(axis=(1, 2)).ravel()
    return _pack(_steps(cells, -1, GREY_MARGIN)), tuple(colours.tolist()), float(np.ptp(grey, axis=0).max())


def _describe_waveform(waveform: np.ndarray) -> tuple[bytes, tuple[float, ...], float]:
    """Return hash, mean band levels (dBFS) and peak of a waveform (samples,) at 16 kHz."""
    power = _band_power(waveform)  # (bands, steps)
    level = 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DBFS / 10)))
    audible = np.maximum(level, level.max() - RANGE_DB)
    bits = np.concatenate([_steps(audible, 1, LEVEL_MARGIN_DB).ravel(), _steps(audible, 0, LEVEL_MARGIN_DB).ravel()])
    levels = 10 * np.log10(np.maximum(power.mean(axis=1), 10 ** (FLOOR_DBFS / 10)))
    return _pack(bits), tuple(levels.tolist()), float(np.abs(waveform).max())


def _band_power(waveform: np.ndarray) -> np.ndarray:
    """Return (bands, steps) mean power; a full-scale sine has 1 in its band."""
    padded = np.pad(waveform, (0, max(0, WINDOW_SAMPLES - len(waveform))))
    window = np.hanning(WINDOW_SAMPLES).astype(np.float32)
    frequencies = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / SAMPLE_RATE_HZ)
    first_bins = np.searchsorted(frequencies, BAND_EDGES_HZ)
    last_start = len(padded) - WINDOW_SAMPLES
    power = np.empty((len(BAND_EDGES_HZ) - 1, STEPS))
    for step in range(STEPS):  # step by step, so that memory doesn't hold the spectrogram of an hour
        begin, end = (last_start * edge // STEPS for edge in (step, step + 1))
        windows = np.lib.stride_tricks.sliding_window_view(padded[begin : end + WINDOW_SAMPLES], WINDOW_SAMPLES)
        spectrum = np.abs(np.fft.rfft(windows[::HOP_SAMPLES] * window)) ** 2  # (windows, bins)
        bands = np.add.reduceat(spectrum, first_bins, axis=1)[
            :, :-1
        ]  # the last one holds the frequencies above the bands
        power[:, step] = bands.mean(axis=0)
    # Parseval: the bins of a sine of amplitude 1 add up to samples * sum(window^2) / 2, half of it in these frequencies
    return power / (WINDOW_SAMPLES * float((window**2).sum()) / 4)


def _steps(cells: np.ndarray, axis: int, margin: float) -> np.ndarray:
    """Return two bits for each pair of neighbours along an axis: clearly rising, clearly falling."""
    change = np.diff(cells, axis=axis)
    return np.stack([change > margin, change < -margin])


def _pack(bits: np.ndarray) -> bytes:
    return np.packbits(bits.ravel()).tobytes()


def _covered_seconds(path: Path) -> float:
    """Return the duration of the shown packets, the longer of picture and sound; headers are not trusted.

    It is 0 for a file that can't be opened.
    """
    spans: dict[int, tuple[float, float]] = {}
    try:
        with av.open(str(path)) as container:
            for packet in container.demux([*container.streams.video, *container.streams.audio]):
                if packet.pts is None or packet.is_discard or packet.time_base is None:
                    continue
                begin = float(packet.pts * packet.time_base)
                end = begin + float((packet.duration or 0) * packet.time_base)
                first, last = spans.get(packet.stream.index, (begin, end))
                spans[packet.stream.index] = (min(first, begin), max(last, end))
    except (FFmpegError, OSError, ValueError):
        pass  # the packets before count; decoding reports the error
    return max((last - first for first, last in spans.values()), default=0.0)

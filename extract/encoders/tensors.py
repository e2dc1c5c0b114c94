"""Decoded frames and waveforms -> models' inputs, in batches, on the model's device.

The same code runs on the CPU and on CUDA. Frames arrive as 8-bit RGB, prepared (`inputs.prepare_frame`) or as they were
decoded (`resize_frames`, equal to the installed PIL to the bit); waveforms as samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import PIL
import torch
from torch.nn import functional as F

from alphafuse.extract.decoding.decode import SAMPLE_RATE_HZ
from alphafuse.extract.decoding.specs import HOP_SAMPLES, WINDOW_SAMPLES, AudioSpec, FrameSpec, crop_box, resized_size

COEFFICIENT_BITS = 22  # of PIL's 8-bit resampling (Resample.c: 32 - 8 - 2)
FILTER_SUPPORT = {2: 1.0, 3: 2.0}  # PIL's bilinear and bicubic: half their width, in input pixels at scale 1
# from version 13 on, Pillow resizes vertically first where that takes off more than twice as much (its PR 9549; the
# rule as found by trying 3,000 sizes)
_ROWS_MAY_COME_FIRST = int(PIL.__version__.split(".")[0]) >= 13
PREEMPHASIS = 0.97  # Kaldi's default
FFT_SAMPLES = 512  # Kaldi's: the window rounded up to a power of two
LOWEST_HZ = 20.0  # Kaldi's default
DECIBEL_FFT = 2048  # samples; librosa's default, which the notebook kept
DECIBEL_RANGE = 80.0  # dB; likewise (`top_db`)


# frames


def frame_inputs(clips: Sequence[np.ndarray | torch.Tensor], spec: FrameSpec, *, device: torch.device) -> torch.Tensor:
    """Prepared frames of a batch -> TimeSformer's `pixel_values`.

    Args:
        clips: each (frames, crop height, crop width, 3) uint8 RGB, prepared by `inputs.prepare_frame` or
            `resize_frames`.
        spec: scale and statistics.
        device: where they are normalised; 8-bit values travel there.

    Returns:
        (clips, frames, 3, height, width) float32.
    """
    return normalize_frames(torch.stack([torch.as_tensor(frames).to(device) for frames in clips]), spec)


def normalize_frames(frames: torch.Tensor, spec: FrameSpec) -> torch.Tensor:
    """(..., height, width, 3) uint8 -> (..., 3, height, width) float32, scaled and normalised."""
    pixels = frames.movedim(-1, -3).float() * spec.scale
    mean, std = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels - mean) / std


def can_resize(spec: FrameSpec) -> bool:
    """Whether `resize_frames` has the spec's filter."""
    return spec.resample in FILTER_SUPPORT


def resize_frames(frames: torch.Tensor, spec: FrameSpec) -> torch.Tensor:
    """What `inputs.prepare_frame` does, to the bit, on any device: resize, then centre-crop.

    PIL's way (Resample.c): each output pixel is a sum of input pixels by weights of 22 bits, rounded to 8 bits, along
    one dimension first, then along the other. Only pixels inside the crop are computed.

    Args:
        frames: (frames, height, width, 3) uint8.
        spec: sizes and filter.

    Returns:
        (frames, crop height, crop width, 3) uint8.

    Raises:
        DecodeError: the resized frame is smaller than the crop.
    """
    height, width = frames.shape[1:3]
    resized = resized_size(height, width, spec)
    top, left, crop_height, crop_width = crop_box(resized, spec)
    passes = [(2, resized[1], left, crop_width), (1, resized[0], top, crop_height)]
    if _ROWS_MAY_COME_FIRST and height > resized[0] and height - resized[0] > 2 * (width - resized[1]):
        passes.reverse()
    for dim, size, first, count in passes:
        if size == frames.shape[dim]:
            frames = frames.narrow(dim, first, count)
        else:
            frames = _resample(frames, size, first, count, spec.resample, dim=dim)
    return frames


def _resample(frames: torch.Tensor, size: int, first: int, count: int, resample: int, *, dim: int) -> torch.Tensor:
    """Resize dimension `dim` to `size` and return `count` of its pixels from `first` on."""
    starts, weights = _coefficients(frames.shape[dim], size, resample)
    starts = starts[first : first + count].to(frames.device)
    weights = weights[first : first + count].to(frames.device)  # (count, taps)
    shape = [1] * frames.ndim
    shape[dim] = count
    last = frames.shape[dim] - 1
    total = torch.full((), 1 << (COEFFICIENT_BITS - 1), dtype=torch.int32, device=frames.device)  # rounds
    for tap in range(weights.shape[1]):
        pixels = frames.index_select(dim, (starts + tap).clamp(max=last))  # beyond the last the weight is 0
        total = total + pixels.int() * weights[:, tap].view(shape)
    return (total >> COEFFICIENT_BITS).clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=256)  # a dataset has few frame sizes
def _coefficients(before: int, after: int, resample: int) -> tuple[torch.Tensor, torch.Tensor]:
    """PIL's precompute_coeffs: first input pixel of each output pixel (after,), and weights (after, taps), int32."""
    scale = before / after
    stretch = max(scale, 1.0)  # enlarging interpolates, shrinking averages
    support = FILTER_SUPPORT[resample] * stretch
    taps = math.ceil(support) * 2 + 1
    starts, weights = np.zeros(after, np.int64), np.zeros((after, taps), np.int64)
    for i in range(after):
        centre = (i + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), before)
        values = [_filter((j - centre + 0.5) / stretch, resample) for j in range(start, stop)]
        total = sum(values)
        for tap, value in enumerate(values):
            exact = value / total * (1 << COEFFICIENT_BITS)
            weights[i, tap] = int(exact - 0.5) if value < 0 else int(exact + 0.5)
        starts[i] = start
    return torch.from_numpy(starts), torch.from_numpy(weights.astype(np.int32))


def _filter(x: float, resample: int) -> float:
    x = abs(x)
    if resample == 2:
        return max(1.0 - x, 0.0)
    a = -0.5  # PIL's bicubic
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * a if x < 2.0 else 0.0


# audio


def audio_inputs(waveforms: Sequence[np.ndarray], spec: AudioSpec, *, device: torch.device) -> torch.Tensor:
    """Waveforms of a batch -> AST's `input_values`.

    Args:
        waveforms: each (samples,) float32, mono, 16 kHz, at least 400 samples (`inputs.check_waveform`).
        spec: sizes, statistics and kind of spectrogram.
        device: where all of it is done; samples travel there.

    Returns:
        float32: (clips, max_length, mel_bins) for "kaldi"; (clips, mel_bins, max_length), transposed as the notebook
        fed it, for "decibel". Clips shorter than that are padded with zeros before normalisation.
    """
    if spec.spectrogram == "kaldi":
        banks = filter_banks(waveforms, spec.mel_bins, frames=spec.max_length, device=device)
    else:
        spectrograms = [
            decibel_spectrogram(torch.from_numpy(waveform).to(device), spec.mel_bins)[:, : spec.max_length]
            for waveform in waveforms
        ]
        # a 0 is the loudest there is in relative decibels
        banks = torch.stack([F.pad(item, (0, spec.max_length - item.shape[1])) for item in spectrograms])
    return (banks - spec.mean) / (spec.std * 2)


def filter_banks(waveforms: Sequence[np.ndarray], mel_bins: int, *, frames: int, device: torch.device) -> torch.Tensor:
    """Kaldi's log mel filter banks: 25 ms Hann window, 10 ms hop, natural logarithm of the power.

    What torchaudio's Kaldi-compatible `fbank`, which HuggingFace's ASTFeatureExtractor calls, computes clip by clip.

    Args:
        waveforms: each (samples,) float32, mono, 16 kHz, at least 400 samples.
        mel_bins: mel bands.
        frames: of the result; samples beyond them are not looked at.
        device: where it is computed.

    Returns:
        (clips, frames, mel_bins) float32; 0 where a clip has no frame any more.
    """
    most = (frames - 1) * HOP_SAMPLES + WINDOW_SAMPLES
    counts = torch.tensor([1 + (min(len(waveform), most) - WINDOW_SAMPLES) // HOP_SAMPLES for waveform in waveforms])
    longest = int(counts.max())
    samples = torch.zeros(len(waveforms), (longest - 1) * HOP_SAMPLES + WINDOW_SAMPLES)
    for row, waveform in zip(samples, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform[: len(row)])
    windows = samples.to(device).unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)  # (clips, longest, 400)
    windows = windows - windows.mean(dim=2, keepdim=True)
    before = F.pad(windows, (1, 0), mode="replicate")[..., :-1]
    windows = (windows - PREEMPHASIS * before) * torch.hann_window(WINDOW_SAMPLES, periodic=False, device=device)
    power = torch.fft.rfft(windows, n=FFT_SAMPLES).abs().square()  # (clips, longest, 257)
    banks = (power @ _kaldi_filters(mel_bins).to(device)).clamp(min=torch.finfo(torch.float32).eps).log()
    beyond = (torch.arange(longest) >= counts[:, None]).to(device)
    banks = banks.masked_fill(beyond[..., None], 0.0)
    return F.pad(banks, (0, 0, 0, frames - longest))


@lru_cache(maxsize=4)
def _kaldi_filters(mel_bins: int) -> torch.Tensor:
    """(257, mel_bins) float32; Kaldi leaves the Nyquist frequency out."""
    from torchaudio.compliance import kaldi

    filters, _ = kaldi.get_mel_banks(mel_bins, FFT_SAMPLES, SAMPLE_RATE_HZ, LOWEST_HZ, 0.0, 100.0, -500.0, 1.0)
    return F.pad(filters, (0, 1)).T


def decibel_spectrogram(waveform: torch.Tensor, mel_bins: int) -> torch.Tensor:
    """The notebook's mel spectrogram, in decibels relative to the clip's loudest cell, cut off at -80.

    What librosa 0.10 computes as `power_to_db(melspectrogram(y, sr=16000, n_mels=mel_bins, hop_length=160), ref=max)`:
    2048-point periodic Hann window, centred with zeros, power, Slaney's mel scale and norm up to 8 kHz, floor 1e-10.
    In float64, because 10^-3 dB at -80 dB is beyond float32.

    Args:
        waveform: (samples,) float32, mono, 16 kHz.
        mel_bins: mel bands.

    Returns:
        (mel_bins, 1 + samples // 160) float32 in [-80, 0].
    """
    spectrum = torch.stft(
        waveform.double(),
        n_fft=DECIBEL_FFT,
        hop_length=HOP_SAMPLES,
        window=torch.hann_window(DECIBEL_FFT, dtype=torch.float64, device=waveform.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )  # (1 + DECIBEL_FFT / 2, 1 + samples // 160)
    power = _slaney_filters(mel_bins).to(waveform.device).T @ spectrum.abs().square()
    decibels = 10 * (power.clamp(min=1e-10).log10() - power.max().clamp(min=1e-10).log10())
    return decibels.clamp(min=-DECIBEL_RANGE).float()


@lru_cache(maxsize=4)
def _slaney_filters(mel_bins: int) -> torch.Tensor:
    """(1 + DECIBEL_FFT / 2, mel_bins) float64."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        1 + DECIBEL_FFT // 2, mel_bins, 0.0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(filters)

"""Frames and waveform -> what TimeSformer and AST are fed, by protocol.

Protocol `standard` is each backbone's own published preprocessing, read from its `preprocessor_config.json`; where a
folder has none, the values that its authors published. Protocol `notebook` is what the seed paper's authors fed, quirks
included (see docs/paper.md). Frames are resized and cropped as uint8 beside the decoder
(`prepare_frame`), scaled and normalised on the model's device (`normalize_frames`); the waveform becomes log mel filter
banks (`audio_input`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from alphafuse.data.dataset import PROTOCOLS
from alphafuse.errors import BackboneError, DecodeError, unknown

from .decode import SAMPLE_RATE_HZ

WINDOW_SAMPLES = 400  # Kaldi's filter bank window: 25 ms at 16 kHz
HOP_SAMPLES = 160  # and its hop: 10 ms
DECIBEL_FFT = 2048  # samples; librosa's default, which the notebook kept
DECIBEL_RANGE = 80.0  # dB; likewise (`top_db`)


@dataclass(frozen=True)
class FrameSpec:
    """How frames become TimeSformer's input.

    The defaults are the published Kinetics-400 values (mean 0.45, std 0.225, short side and centre crop 224, bilinear);
    the ImageNet statistics that HuggingFace's processor classes fall back to are not TimeSformer's.

    Attributes:
        frames: how many are fed.
        shortest_edge: short side after resizing, pixels; 0 = not kept in proportion, see `size`.
        size: (height, width) to squash to when `shortest_edge` is 0; (0, 0) = no resizing.
        crop: (height, width) of the centre crop, pixels; (0, 0) = none.
        resample: PIL's filter number (2 = bilinear with antialiasing).
        scale: factor on the 8-bit values.
        mean, std: per channel, in units of the scaled values.
        sampling: which frames of the clip, see `alphafuse.extract.decode.SAMPLINGS`.
    """

    frames: int = 8
    shortest_edge: int = 224
    size: tuple[int, int] = (0, 0)
    crop: tuple[int, int] = (224, 224)
    resample: int = 2
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    std: tuple[float, ...] = (0.225, 0.225, 0.225)
    sampling: str = "spread"

    @classmethod
    def notebook(cls, *, frames: int, image_size: int) -> FrameSpec:
        """The notebook's: squashed to a square (PIL, bilinear), values in [0, 1], no normalisation."""
        return cls(
            frames=frames,
            shortest_edge=0,
            size=(image_size, image_size),
            crop=(0, 0),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            sampling="notebook",
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, frames: int, image_size: int) -> FrameSpec:
        """Read HuggingFace's image processor settings; absent ones take the published values for `image_size`.

        Raises:
            BackboneError: settings that this module doesn't implement; they are named.
        """
        size = config.get("size", {"shortest_edge": image_size})
        size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
        crop = config.get("crop_size", image_size)
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop)
        if not config.get("do_resize", True):
            size = {}
        if not config.get("do_center_crop", True):
            crop = {}
        if set(size) not in ({"shortest_edge"}, {"height", "width"}, set()) or set(crop) not in (
            {"height", "width"},
            set(),
        ):
            raise BackboneError(
                f"preprocessor_config.json has size {size} and crop_size {crop}: only shortest_edge or height and "
                "width are implemented"
            )
        if not crop and set(size) != {"height", "width"}:
            raise BackboneError(
                "preprocessor_config.json leaves frames as large as they come: it needs a crop_size, or a size of "
                "height and width"
            )
        normalize = config.get("do_normalize", True)
        return cls(
            frames=frames,
            shortest_edge=size.get("shortest_edge", 0),
            size=(size.get("height", 0), size.get("width", 0)),
            crop=(crop.get("height", 0), crop.get("width", 0)),
            resample=int(config.get("resample", cls.resample)),
            scale=config.get("rescale_factor", cls.scale) if config.get("do_rescale", True) else 1.0,
            mean=tuple(config.get("image_mean", cls.mean)) if normalize else (0.0, 0.0, 0.0),
            std=tuple(config.get("image_std", cls.std)) if normalize else (1.0, 1.0, 1.0),
        )


@dataclass(frozen=True)
class AudioSpec:
    """How a waveform becomes AST's input.

    The defaults are AST's published AudioSet values: 128 mel bands, 1024 frames of 10 ms, and the mean and standard
    deviation of AudioSet's log filter banks.

    Attributes:
        mel_bins: mel bands.
        max_length: frames fed; shorter clips are padded with zeros before normalisation, longer ones cut.
        mean, std: the result is (x - mean) / (2 std).
        spectrogram: "kaldi" (natural logarithm, `filter_bank`) or "decibel" (the notebook's, `decibel_spectrogram`).
    """

    mel_bins: int = 128
    max_length: int = 1024
    mean: float = -4.2677393
    std: float = 4.5689974
    spectrogram: str = "kaldi"

    @classmethod
    def notebook(cls, *, mel_bins: int, max_length: int) -> AudioSpec:
        """The notebook's: decibels, normalised by AudioSet's (rounded) statistics of natural logarithms."""
        return cls(mel_bins=mel_bins, max_length=max_length, mean=-4.26, std=4.57, spectrogram="decibel")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, mel_bins: int, max_length: int) -> AudioSpec:
        """Read HuggingFace's AST feature extractor settings; absent ones take the published values.

        Raises:
            BackboneError: another sample rate than 16 kHz, or a size that the model doesn't take.
        """
        rate = config.get("sampling_rate", SAMPLE_RATE_HZ)
        if rate != SAMPLE_RATE_HZ:
            raise BackboneError(
                f"preprocessor_config.json wants audio at {rate} Hz: only {SAMPLE_RATE_HZ} is implemented"
            )
        given = (config.get("num_mel_bins", mel_bins), config.get("max_length", max_length))
        if given != (mel_bins, max_length):
            raise BackboneError(
                f"preprocessor_config.json makes {given[0]} mel bins x {given[1]} frames, config.json takes "
                f"{mel_bins} x {max_length}: make them agree"
            )
        normalize = config.get("do_normalize", True)
        return cls(
            mel_bins=mel_bins,
            max_length=max_length,
            mean=config.get("mean", cls.mean) if normalize else 0.0,
            std=config.get("std", cls.std) if normalize else 0.5,
        )


def check_protocol(protocol: str) -> None:
    """Raise `BackboneError` for a name that is no protocol."""
    if protocol not in PROTOCOLS:
        raise BackboneError(unknown("protocol", protocol, PROTOCOLS))


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
    height, width = image.shape[:2]
    if spec.shortest_edge:
        short, long = sorted((height, width))
        longest_edge = int(spec.shortest_edge * long / short)  # truncated, as HuggingFace and torchvision do
        size = (longest_edge, spec.shortest_edge) if height > width else (spec.shortest_edge, longest_edge)
    else:
        size = spec.size if spec.size != (0, 0) else (height, width)
    if size != (height, width):
        resized = Image.fromarray(image).resize((size[1], size[0]), resample=Image.Resampling(spec.resample))
        image = np.array(resized)
    if spec.crop != (0, 0):
        top, left = ((size[i] - spec.crop[i]) // 2 for i in (0, 1))
        if top < 0 or left < 0:
            raise DecodeError(f"a frame of {size[0]}x{size[1]} is smaller than the crop {spec.crop[0]}x{spec.crop[1]}")
        image = image[top : top + spec.crop[0], left : left + spec.crop[1]]
    return np.ascontiguousarray(image)


def normalize_frames(frames: np.ndarray, spec: FrameSpec, *, device: Any = "cpu") -> Any:
    """Prepared frames -> TimeSformer's `pixel_values`.

    Args:
        frames: (clips, frames, height, width, 3) uint8.
        spec: scale and statistics.
        device: where the float tensor is made; 8-bit values travel there.

    Returns:
        torch float32 (clips, frames, 3, height, width).
    """
    import torch

    pixels = torch.from_numpy(frames).to(device).permute(0, 1, 4, 2, 3).float() * spec.scale
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels - mean) / std  # (clips, frames, 3, height, width)


def audio_input(waveform: np.ndarray, spec: AudioSpec) -> np.ndarray:
    """Waveform -> AST's `input_values`.

    Args:
        waveform: (samples,) float32, mono, 16 kHz.
        spec: sizes, statistics and kind of spectrogram.

    Returns:
        float32: (max_length, mel_bins) for "kaldi"; (mel_bins, max_length), transposed as the notebook fed it, for
        "decibel".

    Raises:
        DecodeError: shorter than one 25 ms window.
    """
    if len(waveform) < WINDOW_SAMPLES:
        raise DecodeError(f"audio of {len(waveform)} samples is shorter than one window of {WINDOW_SAMPLES} (25 ms)")
    if spec.spectrogram == "kaldi":
        banks = filter_bank(waveform, spec.mel_bins, frames=spec.max_length)
        missing = ((0, spec.max_length - len(banks)), (0, 0))
    else:
        banks = decibel_spectrogram(waveform, spec.mel_bins)[:, : spec.max_length]
        missing = ((0, 0), (0, spec.max_length - banks.shape[1]))  # a 0 is the loudest there is in relative decibels
    return ((np.pad(banks, missing) - np.float32(spec.mean)) / np.float32(spec.std * 2)).astype(np.float32, copy=False)


def filter_bank(waveform: np.ndarray, mel_bins: int, *, frames: int) -> np.ndarray:
    """Kaldi's log mel filter bank: 25 ms Hann window, 10 ms hop, natural logarithm of the power.

    The same call of torchaudio's Kaldi-compatible function that HuggingFace's ASTFeatureExtractor makes.

    Args:
        waveform: (samples,) float32, mono, 16 kHz, at least 400 samples.
        mel_bins: mel bands.
        frames: at most so many; samples beyond them are not looked at.

    Returns:
        (up to `frames`, mel_bins) float32.
    """
    import torch
    from torchaudio.compliance import kaldi

    samples = (frames - 1) * HOP_SAMPLES + WINDOW_SAMPLES
    return kaldi.fbank(
        torch.from_numpy(waveform[:samples]).unsqueeze(0),
        sample_frequency=SAMPLE_RATE_HZ,
        window_type="hanning",
        num_mel_bins=mel_bins,
    ).numpy()


def decibel_spectrogram(waveform: np.ndarray, mel_bins: int) -> np.ndarray:
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
    import torch

    window = torch.hann_window(DECIBEL_FFT, dtype=torch.float64)
    spectrum = torch.stft(
        torch.from_numpy(waveform).double(),
        n_fft=DECIBEL_FFT,
        hop_length=HOP_SAMPLES,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )  # (1 + DECIBEL_FFT / 2, 1 + samples // 160)
    power = torch.from_numpy(_slaney_filters(mel_bins)).T @ spectrum.abs().square()
    decibels = 10 * (power.clamp(min=1e-10).log10() - power.max().clamp(min=1e-10).log10())
    return decibels.clamp(min=-DECIBEL_RANGE).float().numpy()


@cache
def _slaney_filters(mel_bins: int) -> np.ndarray:
    """(1 + DECIBEL_FFT / 2, mel_bins) float64."""
    from transformers.audio_utils import mel_filter_bank

    return mel_filter_bank(
        1 + DECIBEL_FFT // 2, mel_bins, 0.0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney"
    )

"""What TimeSformer and AST are fed, by protocol, as far as it is decided and done beside the decoder.

Protocol `standard` is each encoder's own published preprocessing, read from its `preprocessor_config.json`; where a
folder has none, the values that its authors published. Protocol `notebook` is what the seed paper's authors fed, quirks
included (see docs/paper.md). Frames and waveforms travel as they are decoded, in 8 bits and in samples, or resized and
cropped (`prepare_frame`); `tensors` makes models' inputs of them on the model's device. No torch here: decode workers
stay small.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alphafuse.data.streams import PROTOCOLS
from alphafuse.errors import DecodeError, EncoderError, unknown

from .decode import SAMPLE_RATE_HZ, Decoded, decode_clip
from .fetch import fetched

WINDOW_SAMPLES = 400  # Kaldi's filter bank window: 25 ms at 16 kHz
HOP_SAMPLES = 160  # and its hop: 10 ms
TRAVELLING_PIXELS = 640 * 480  # of a frame that is resized on the device; larger ones are resized beside the decoder


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
        sampling: which frames of the clip, see `alphafuse.extract.decoding.decode.SAMPLINGS`.
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
            EncoderError: settings that this module doesn't implement; they are named.
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
            raise EncoderError(
                f"preprocessor_config.json has size {size} and crop_size {crop}: only shortest_edge or height and "
                "width are implemented"
            )
        if not crop and set(size) != {"height", "width"}:
            raise EncoderError(
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
        spectrogram: "kaldi" (natural logarithm, `tensors.filter_banks`) or "decibel" (the notebook's,
            `tensors.decibel_spectrogram`).
    """

    mel_bins: int = 128
    max_length: int = 1024
    mean: float = -4.2677393
    std: float = 4.5689974
    spectrogram: str = "kaldi"

    @property
    def max_samples(self) -> int | None:
        """Samples of a clip that are looked at; None = all, for the notebook's are relative to the clip's loudest."""
        if self.spectrogram == "decibel":
            return None
        return (self.max_length - 1) * HOP_SAMPLES + WINDOW_SAMPLES

    @classmethod
    def notebook(cls, *, mel_bins: int, max_length: int) -> AudioSpec:
        """The notebook's: decibels, normalised by AudioSet's (rounded) statistics of natural logarithms."""
        return cls(mel_bins=mel_bins, max_length=max_length, mean=-4.26, std=4.57, spectrogram="decibel")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, mel_bins: int, max_length: int) -> AudioSpec:
        """Read HuggingFace's AST feature extractor settings; absent ones take the published values.

        Raises:
            EncoderError: another sample rate than 16 kHz, or a size that the model doesn't take.
        """
        rate = config.get("sampling_rate", SAMPLE_RATE_HZ)
        if rate != SAMPLE_RATE_HZ:
            raise EncoderError(
                f"preprocessor_config.json wants audio at {rate} Hz: only {SAMPLE_RATE_HZ} is implemented"
            )
        given = (config.get("num_mel_bins", mel_bins), config.get("max_length", max_length))
        if given != (mel_bins, max_length):
            raise EncoderError(
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
    """Raise `EncoderError` for a name that is no protocol."""
    if protocol not in PROTOCOLS:
        raise EncoderError(unknown("protocol", protocol, PROTOCOLS))


def resized_size(height: int, width: int, spec: FrameSpec) -> tuple[int, int]:
    """(height, width) of a frame after resizing, before the crop."""
    if spec.shortest_edge:
        short, long = sorted((height, width))
        longest_edge = int(spec.shortest_edge * long / short)  # truncated, as HuggingFace and torchvision do
        return (longest_edge, spec.shortest_edge) if height > width else (spec.shortest_edge, longest_edge)
    return spec.size if spec.size != (0, 0) else (height, width)


def crop_box(size: tuple[int, int], spec: FrameSpec) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the centre crop of a resized frame.

    Raises:
        DecodeError: the resized frame is smaller than the crop.
    """
    if spec.crop == (0, 0):
        return 0, 0, *size
    top, left = ((size[i] - spec.crop[i]) // 2 for i in (0, 1))
    if top < 0 or left < 0:
        raise DecodeError(f"a frame of {size[0]}x{size[1]} is smaller than the crop {spec.crop[0]}x{spec.crop[1]}")
    return top, left, *spec.crop


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
    size = resized_size(image.shape[0], image.shape[1], spec)
    top, left, height, width = crop_box(size, spec)
    if size != image.shape[:2]:
        resized = Image.fromarray(image).resize((size[1], size[0]), resample=Image.Resampling(spec.resample))
        image = np.array(resized)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def check_waveform(waveform: np.ndarray) -> None:
    """Raise `DecodeError` for a waveform, (samples,), that is too short for AST."""
    if len(waveform) < WINDOW_SAMPLES:
        raise DecodeError(f"audio is shorter than one window of {WINDOW_SAMPLES} samples (25 ms)")


def decode_inputs(
    task: tuple[Path, tuple[str, ...]], *, specs: dict[str, FrameSpec | AudioSpec], device_resizes: bool
) -> Decoded:
    """A clip's file -> the frames and the waveform that the encoders are fed; runs in a worker.

    Args:
        task: the file or its URL, and the modalities that are asked for.
        specs: modality -> what it is fed.
        device_resizes: leave frames of up to `TRAVELLING_PIXELS` as they are.
    """
    began = time.process_time()
    path, modalities = task
    frame_spec, audio_spec = specs.get("timesformer", FrameSpec()), specs.get("ast", AudioSpec())
    assert isinstance(frame_spec, FrameSpec) and isinstance(audio_spec, AudioSpec)
    travelling = _Travelling(frame_spec) if device_resizes else None
    try:
        with fetched(path) as file:
            decoded = decode_clip(
                file,
                frames=frame_spec.frames,
                sampling=frame_spec.sampling,
                prepare=travelling or partial(prepare_frame, spec=frame_spec),
                max_samples=audio_spec.max_samples,
                picture="timesformer" in modalities,
                sound="ast" in modalities,
            )
    except DecodeError as error:
        return Decoded(None, None, str(error), str(error), cpu_seconds=time.process_time() - began)
    if decoded.waveform is not None:
        try:
            check_waveform(decoded.waveform)
        except DecodeError as error:
            decoded = replace(decoded, waveform=None, no_waveform=str(error))
    is_prepared = travelling is None or travelling.has_prepared
    return replace(decoded, is_prepared=is_prepared, cpu_seconds=time.process_time() - began)


class _Travelling:
    """Leaves a clip's frames as they are, to be resized on the device, unless its first one is large."""

    def __init__(self, spec: FrameSpec) -> None:
        self.has_prepared = True
        self._spec, self._is_first = spec, True

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self._is_first:
            self.has_prepared = image.shape[0] * image.shape[1] > TRAVELLING_PIXELS
            self._is_first = False
        return prepare_frame(image, self._spec) if self.has_prepared else image

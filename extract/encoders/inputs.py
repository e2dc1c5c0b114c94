"""What families share: options of a stream, settings of a preprocessor, and frames -> the model's input.

Settings are those of the checkpoint's own preprocessor file. A value that is absent there takes the family's published
value, which the builder gives; the defaults of HuggingFace's classes often differ from both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from alphafuse.data.streams import Stream
from alphafuse.errors import EncoderError, unknown
from alphafuse.extract.decoding.specs import AudioSpec, FrameSpec

from .encoder import line_of
from .timesformer import can_resize, normalize_frames, resize_frames

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
TORCH_MODES = {2: "bilinear", 3: "bicubic"}  # PIL's filter number -> torch's mode


# options


def chosen_frames(stream: Stream, default: int, *, multiple_of: int = 1) -> int:
    """Return a stream's option `frames`.

    Raises:
        EncoderError: it isn't a positive multiple of `multiple_of`.
    """
    text = stream.options.get("frames", str(default))
    frames = int(text) if text.isascii() and text.isdigit() else 0
    if frames < 1 or frames % multiple_of:
        step = "" if multiple_of == 1 else f" that is a multiple of {multiple_of}"
        raise EncoderError(f"stream {stream.name}: frames={text} must be a whole number from 1 on{step}")
    return frames


def chosen_samples(stream: Stream, rate: int, most: int | None = None, *, default_seconds: float = 0) -> int:
    """Return the number of samples that a stream hears from a clip's start: its option `seconds` x `rate`.

    Args:
        stream: its options.
        rate: samples per second.
        most: samples that the model can hear; None = any number.
        default_seconds: without the option and without `most`.

    Raises:
        EncoderError: it isn't a positive number, or is more than the model can hear.
    """
    if "seconds" not in stream.options:
        return most or round(default_seconds * rate)
    text = stream.options["seconds"]
    try:
        samples = round(float(text) * rate)
    except (ValueError, OverflowError):
        samples = 0
    if samples < 1 or (most is not None and samples > most):
        limit = "" if most is None else f" and at most {most / rate:g}, which is all that {stream.encoder} hears"
        raise EncoderError(f"stream {stream.name}: seconds={text} must be a number above 0{limit}")
    return samples


def chosen_pool(stream: Stream, pools: Sequence[str]) -> str:
    """Return a stream's option `pool`, by default the first of `pools`.

    Raises:
        EncoderError: it isn't one of `pools`.
    """
    pool = stream.options.get("pool", pools[0])
    if pool not in pools:
        raise EncoderError(f"stream {stream.name}: {unknown('pool', pool, pools)}")
    return pool


# frames


def frame_spec(
    preprocessor: Mapping[str, Any], published: Mapping[str, Any], *, frames: int, resize: str = "pil"
) -> FrameSpec:
    """Read an image or video processor's settings; absent ones take the published values.

    Args:
        preprocessor: the checkpoint's settings.
        published: the family's, complete; a whole number as `size` means the short side, or a square if this size
            names a height.
        frames: number of frames.
        resize: see `FrameSpec`.

    Raises:
        EncoderError: there are settings that aren't implemented; the message names them.
    """
    settings: dict[str, Any] = {**published, **{key: value for key, value in preprocessor.items() if value is not None}}
    size = settings["size"]
    if isinstance(size, int) and "height" in published["size"]:
        settings["size"] = {"height": size, "width": size}
    for key in ("image_mean", "image_std"):
        numbers = settings[key] = [settings[key]] * 3 if isinstance(settings[key], (int, float)) else settings[key]
        if len(numbers) != 3 or not all(isinstance(number, (int, float)) for number in numbers):
            raise EncoderError(f"the preprocessor's {key} is {numbers}: it must be three numbers")
    if settings.get("do_pad"):
        raise EncoderError(
            "the preprocessor's do_pad isn't implemented: set it to false, if the model's input has one size"
        )
    try:
        spec = replace(FrameSpec.from_config(settings, frames=frames, image_size=0), resize=resize)
    except (LookupError, TypeError, ValueError) as error:
        raise EncoderError(f"the preprocessor has a setting that can't be used: {line_of(error)}") from None
    sizes = (spec.shortest_edge, *spec.size, *spec.crop)
    if not all(isinstance(side, int) and side >= 0 for side in sizes) or not isinstance(spec.scale, (int, float)):
        raise EncoderError(
            f"the preprocessor has size {settings['size']}, crop_size {settings.get('crop_size')} and rescale_factor "
            f"{spec.scale}: they must be whole numbers of pixels, and a number"
        )
    known = TORCH_MODES if resize == "torch" else range(6)
    if spec.resample not in known:
        choices = ", ".join(str(number) for number in known)
        raise EncoderError(f"the preprocessor's resample is {spec.resample}: only {choices} are implemented")
    return spec


def frame_inputs(
    clips: Sequence[np.ndarray | torch.Tensor], spec: FrameSpec, *, device: torch.device, scale_first: bool = False
) -> torch.Tensor:
    """Turn the frames of a batch into `pixel_values`.

    Args:
        clips: each (frames, height, width, 3) uint8 RGB; of the crop's size if PIL resizes, else as decoded.
        spec: sizes, filter and statistics.
        device: device that normalises; torch resizes on the CPU, so that the result is the same for all devices.
        scale_first: torch resizes scaled float32 values instead of 8-bit ones.

    Returns:
        (clips, frames, 3, height, width) float32.
    """
    if spec.resize == "pil":
        return normalize_frames(torch.stack([torch.as_tensor(frames).to(device) for frames in clips]), spec)
    images = [torch.as_tensor(frames).movedim(-1, 1) for frames in clips]  # (frames, 3, height, width)
    if scale_first:
        images = [frames * spec.scale for frames in images]
        spec = replace(spec, scale=1.0)
    return normalize_frames(torch.stack([_resized(frames, spec) for frames in images]).to(device).movedim(2, -1), spec)


def device_resize(spec: FrameSpec) -> Any:
    """Return what resizes a clip's frames on a device as PIL does, for `Encoder.resize`; None if that can't be."""
    return partial(resize_frames, spec=spec) if spec.resize == "pil" and can_resize(spec) else None


def _resized(frames: torch.Tensor, spec: FrameSpec) -> torch.Tensor:
    """Resize and centre-crop (frames, 3, height, width), uint8 or float32, as torchvision does on the CPU.

    Frames smaller than the crop are padded with 0.
    """
    height, width = frames.shape[2:]
    size = spec.resized(height, width)
    if size != (height, width):
        mode = TORCH_MODES[spec.resample]
        frames = F.interpolate(frames.contiguous(), size, mode=mode, align_corners=False, antialias=True)
    if spec.crop == (0, 0):
        return frames
    lacking = [max(crop - side, 0) for crop, side in zip(spec.crop, frames.shape[2:], strict=True)]
    if any(lacking):
        rows, columns = ((n // 2, (n + 1) // 2) for n in lacking)
        frames = F.pad(frames, (*columns, *rows))
    top, left = ((side - crop) // 2 for crop, side in zip(spec.crop, frames.shape[2:], strict=True))
    return frames[..., top : top + spec.crop[0], left : left + spec.crop[1]]


# sound


def make_extractor(name: str, preprocessor: Mapping[str, Any], published: Mapping[str, Any]) -> Any:
    """Return HuggingFace's feature extractor of this name; it runs beside the model and doesn't need torchvision.

    Args:
        name: class of `transformers`.
        preprocessor: the checkpoint's settings.
        published: the family's, for the ones that are absent.

    Raises:
        EncoderError: the settings aren't those of this class.
    """
    import transformers

    settings = {**published, **{key: value for key, value in preprocessor.items() if value is not None}}
    for key in ("feature_extractor_type", "processor_class"):
        settings.pop(key, None)
    try:
        extractor = getattr(transformers, name)(**settings)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise EncoderError(f"the preprocessor's settings aren't those of {name}: {line_of(error)}") from None
    rate = extractor.sampling_rate
    if not isinstance(rate, int) or rate < 1:
        raise EncoderError(f"the preprocessor's sampling_rate is {rate}: it must be a whole number above 0")
    return extractor


def settings_of(extractor: Any, published: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe says about a feature extractor: its class, and the settings that `published` names."""
    return {"processor": type(extractor).__name__, **{name: getattr(extractor, name) for name in published}}


def heard(extractor: Any, samples: int, least: int = 1) -> AudioSpec:
    """Return the waveform that decode workers prepare for a feature extractor."""
    return AudioSpec(extractor.sampling_rate, samples, least)


def require_equal(stream: Stream, what: str, made: int, taken: int) -> None:
    """Raise `EncoderError` unless the preprocessor makes what the model takes."""
    if made != taken:
        raise EncoderError(
            f"the preprocessor of {stream.encoder} makes {made} {what}, and its config.json takes {taken}: make them "
            "agree"
        )

"""Inputs of encoders and results of decoding: plain values for all processes. Doesn't load torch or FFmpeg.

Protocol `standard` is each encoder's own published preprocessing, read from its `preprocessor_config.json`; for a
folder without that file, the values that its authors published. Protocol `notebook` is the preprocessing of the seed
paper's code, with its errors (see docs/paper.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alphafuse.errors import DecodeError, EncoderError

SAMPLE_RATE_HZ = 16_000  # of most audio encoders
DEVICE_RESIZE_PIXELS = 640 * 480  # largest frame that a device resizes; decode workers resize larger ones


@dataclass(frozen=True)
class FrameSpec:
    """Which frames of a clip an encoder looks at, and their preprocessing.

    The defaults are TimeSformer's published Kinetics-400 values (mean 0.45, std 0.225, short side and centre crop 224,
    bilinear); the ImageNet statistics that HuggingFace's processor classes fall back to are not TimeSformer's.

    Attributes:
        frames: number of frames.
        shortest_edge: short side after resizing, pixels; 0 = resize to `size` without keeping proportions.
        size: (height, width) to squash to when `shortest_edge` is 0; (0, 0) = no resizing.
        crop: (height, width) of the centre crop, pixels; (0, 0) = none.
        resample: PIL's filter number (2 = bilinear with antialiasing).
        scale: factor on the 8-bit values.
        mean, std: per channel, in units of the scaled values.
        sampling: choice of the clip's frames, see `SAMPLINGS`.
        resize: what resizes, because results differ: "pil", in the decode workers; or "torch", which HuggingFace's
            torchvision processors use, or "processor", HuggingFace's own class: workers pass frames on as they are,
            and the encoder resizes them.

    >>> from alphafuse import FrameSpec
    >>> spec = FrameSpec(frames=16, shortest_edge=256, crop=(224, 224))
    >>> spec.sampling, spec.resize
    ('spread', 'pil')
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
    resize: str = "pil"

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of a frame after resizing, before the crop."""
        if self.shortest_edge:
            short, long = sorted((height, width))
            longest_edge = int(self.shortest_edge * long / short)  # truncated, as HuggingFace and torchvision do
            return (longest_edge, self.shortest_edge) if height > width else (self.shortest_edge, longest_edge)
        return self.size if self.size != (0, 0) else (height, width)

    @property
    def prepared(self) -> tuple[int, int]:
        """(height, width) of a frame that a decode worker has prepared; (0, 0) = frames are left as they are."""
        if self.resize != "pil":
            return 0, 0
        return self.crop if self.crop != (0, 0) else self.size

    @classmethod
    def notebook(cls, *, frames: int, image_size: int) -> FrameSpec:
        """Return the notebook's: squashed to a square (PIL, bilinear), values in [0, 1], no normalisation."""
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
            EncoderError: the file has settings that aren't implemented; the message names them.
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
                "preprocessor_config.json doesn't set the size of frames: it needs a crop_size, or a size of "
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
class PatchSpec(FrameSpec):
    """Frames that nearly keep their proportions: resized to as many square patches as are allowed.

    Attributes:
        patch_size: side of a patch, pixels.
        max_patches: number of patches of a frame at most.
    """

    patch_size: int = 16
    max_patches: int = 256

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of a frame after resizing; the search is that of HuggingFace's SigLIP 2 processor."""
        low, high = 1e-6, 100.0  # scale
        while high - low >= 1e-5:
            scale = (low + high) / 2
            rows, columns = (self._patches(side, scale) for side in (height, width))
            low, high = (scale, high) if rows * columns <= self.max_patches else (low, scale)
        return self._patches(height, low) * self.patch_size, self._patches(width, low) * self.patch_size

    @property
    def prepared(self) -> tuple[int, int]:
        """(height, width) of a square frame after resizing; others have as many patches, or a few more."""
        side = round(math.sqrt(self.max_patches)) * self.patch_size
        return self.resized(side, side)

    def _patches(self, side: int, scale: float) -> int:
        return max(1, math.ceil(side * scale / self.patch_size))


@dataclass(frozen=True)
class AudioSpec:
    """The waveform that an encoder hears.

    Attributes:
        rate: samples per second.
        max_samples: samples of a clip that matter, from its start; None = all.
        min_samples: a clip with fewer can't be embedded.

    >>> from alphafuse import AudioSpec
    >>> AudioSpec(rate=48_000, max_samples=480_000)
    AudioSpec(rate=48000, max_samples=480000, min_samples=1)
    """

    rate: int = SAMPLE_RATE_HZ
    max_samples: int | None = None
    min_samples: int = 1

    def check(self, waveform: np.ndarray) -> None:
        """Raise `DecodeError` if a waveform (samples,) is too short."""
        if len(waveform) < self.min_samples:
            milliseconds = 1000 * self.min_samples / self.rate
            raise DecodeError(f"audio is shorter than one window of {self.min_samples} samples ({milliseconds:.0f} ms)")


Spec = FrameSpec | AudioSpec


@dataclass(frozen=True)
class Decoded:
    """Result of decoding a clip's file.

    Attributes:
        frames: (frames, height, width, 3) uint8 RGB, or None.
        waveform: (samples,) float32, nominally in [-1, 1], or None.
        no_frames, no_waveform: reason why the frames or the waveform are None, else "".
        seconds: duration that a player shows, the longer of picture and sound; nan if unknown.
    """

    frames: np.ndarray | None
    waveform: np.ndarray | None
    no_frames: str = ""
    no_waveform: str = ""
    seconds: float = math.nan

    def __repr__(self) -> str:
        frames = self.no_frames if self.frames is None else self.frames.shape
        waveform = self.no_waveform if self.waveform is None else self.waveform.shape
        return f"Decoded(frames={frames}, waveform={waveform})"


@dataclass(frozen=True)
class Inputs:
    """The inputs of all streams, from one pass over a clip's file.

    Attributes:
        arrays: stream -> (frames, height, width, 3) uint8 RGB, or (samples,) float32 at the stream's rate.
        reasons: stream -> why it has no input.
        unresized: streams whose frames are as decoded, though the decode workers could resize them.
        seconds: duration that a player shows, the longer of picture and sound; nan if unknown.
        sound_seconds: duration of the sound; nan if unknown, or there is none.
        file_bytes: size of the file; -1 = unknown.
        digest: sha256, in hexadecimal, of the file's first and last 64 KB (of all of a smaller file); "" if unknown.
        cpu_seconds: processor time of decoding, if it was measured.
    """

    arrays: Mapping[str, np.ndarray]
    reasons: Mapping[str, str]
    unresized: frozenset[str] = frozenset()
    seconds: float = math.nan
    sound_seconds: float = math.nan
    file_bytes: int = -1
    digest: str = ""
    cpu_seconds: float = 0.0

    @classmethod
    def failed(cls, streams: Iterable[str], reason: str, *, cpu_seconds: float = 0.0) -> Inputs:
        """Return the result for a file of which nothing can be decoded."""
        return cls({}, dict.fromkeys(streams, reason), cpu_seconds=cpu_seconds)


def crop_box(size: tuple[int, int], spec: FrameSpec) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the centre crop of a resized frame.

    Raises:
        DecodeError: the resized frame is smaller than the crop.
    """
    if spec.crop == (0, 0):
        return 0, 0, *size
    top, left = ((size[i] - spec.crop[i]) // 2 for i in (0, 1))
    if top < 0 or left < 0:
        raise DecodeError(f"a frame of {size[0]}x{size[1]} is smaller than the crop {spec.crop[0]}x{spec.crop[1]}")
    return top, left, *spec.crop


def frame_indices(total: int, frames: int) -> np.ndarray:
    """Return the indices of `frames` of the `total` shown frames, spread evenly from the first to the last.

    This is TimeSformer's test-time sampling (`linspace` over its window, truncated) with the whole clip as the window.
    In a clip with fewer frames, some are repeated.

    >>> frame_indices(300, 8)
    array([  0,  42,  85, 128, 170, 213, 256, 299])
    """
    if total < 1 or frames < 1:
        raise ValueError(f"total and frames must be at least 1, not {total} and {frames}")
    return np.linspace(0, total - 1, frames).astype(np.int64)


def notebook_indices(shown: int, listed: int, frames: int) -> np.ndarray:
    """Return the indices of the frames of the paper's notebook: int(listed / frames * i), the last one repeated.

    The notebook counted with OpenCV, whose count is the container's: it includes frames that an edit list hides. So
    later indices can lie beyond the last shown frame: the read failed, and the last frame was repeated.
    (OpenCV seeks by time; at a constant frame rate, as in VGGSound, that is the same frame.)

    Args:
        shown: frames that a player shows.
        listed: frames that the container lists, hidden ones included.
        frames: number of frames to take.

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


def first_line(error: BaseException) -> str:
    """Return FFmpeg's error message as one line."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(message).splitlines()[0]

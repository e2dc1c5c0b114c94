"""Video encoders: VideoMAE, ViViT and V-JEPA 2. (TimeSformer, with a fast forward pass, is in `timesformer`.)

Frames are spread evenly over the whole clip, where the authors sample a short window at a fixed rate: a clip here is
one event, and all of it counts (as with TimeSformer).

Shapes: b clips, t frames, n tokens, d width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from alphafuse.data.streams import Stream
from alphafuse.errors import EncoderError

from .encoder import Encoder, Placement, freeze, load_pretrained
from .hub import architectures
from .image import DINOV2, pooled
from .inputs import HALVES, chosen_frames, chosen_pool, device_resize, frame_inputs, frame_spec

VIDEOMAE = {**DINOV2, "size": {"shortest_edge": 224}, "resample": 2}
VIVIT = {**VIDEOMAE, **HALVES, "rescale_factor": 1 / 127.5}  # google/vivit-b-16x2-kinetics400
VJEPA2_STRETCH = 256 / 224  # of the short side over the crop; the processor takes no other


def load_videomae(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load a VideoMAE; its config decides the number of frames.

    The embedding is the mean of all tokens, as in its authors' classifiers. A checkpoint that is a classifier brings
    the norm of that mean (`fc_norm`), which is then applied.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import VideoMAEForVideoClassification, VideoMAEModel

    is_classifier = "VideoMAEForVideoClassification" in architectures(stream)
    model, config, preprocessor = load_pretrained(
        stream, VideoMAEForVideoClassification if is_classifier else VideoMAEModel
    )
    norm = model.fc_norm if is_classifier else None
    pool = chosen_pool(stream, ("mean",))
    spec = frame_spec(preprocessor, VIDEOMAE, frames=config.num_frames)
    if is_classifier:
        model.classifier = nn.Identity()  # not in use, so not in the checksum of weights
    return freeze(
        stream,
        model,
        lambda model: PooledVideo(model.videomae if is_classifier else model, pool, norm=norm),
        spec=spec,
        prepare=partial(frame_inputs, spec=spec),
        resize=device_resize(spec),
        placement=placement,
        details={"processor": "VideoMAEImageProcessorPil", "pool": pool, "norm": "fc_norm" if norm else "none"},
    )


def load_vivit(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load a ViViT; its config decides the number of frames.

    Option `pool`: "cls", the CLS token after the final norm, as in its authors' classifiers; or "mean", the mean of the
    other tokens after it.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import VivitModel

    model, config, preprocessor = load_pretrained(stream, VivitModel, add_pooling_layer=False)
    spec = frame_spec(preprocessor, VIVIT, frames=config.num_frames)
    offset = bool(preprocessor.get("offset", True))
    if offset and not preprocessor.get("do_rescale", True):
        raise EncoderError(f"the preprocessor of {stream.encoder} has offset without do_rescale: set one of them")
    if offset:  # 1 is subtracted from the scaled values, before normalisation
        spec = replace(spec, mean=tuple(1 + mean for mean in spec.mean))
    pool = chosen_pool(stream, ("cls", "mean"))
    return freeze(
        stream,
        model,
        partial(PooledVideo, pool=pool, skipped=1),
        spec=spec,
        prepare=partial(frame_inputs, spec=spec),
        resize=device_resize(spec),
        placement=placement,
        details={"processor": "VivitImageProcessor", "pool": pool},
    )


def load_vjepa2(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load a V-JEPA 2; option `frames`: a multiple of the config's tubelet size, by default its frames_per_clip.

    The embedding is the mean of the encoder's tokens after the final norm: the model has no CLS token, and its authors
    read it with an attentive probe that is trained per task. The predictor isn't used.

    The short side is resized to 256/224 of the crop, whatever the file's `size` says, as in HuggingFace's processor.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import VJEPA2Model

    model, config, preprocessor = load_pretrained(stream, VJEPA2Model)
    crop = preprocessor.get("crop_size") or config.crop_size
    height = crop.get("height") if isinstance(crop, dict) else crop
    if not isinstance(height, int):
        raise EncoderError(f"the preprocessor's crop_size is {crop}: it must be a number or a height and a width")
    short_side = int(height * VJEPA2_STRETCH)
    settings = {**preprocessor, "crop_size": crop, "size": {"shortest_edge": short_side}}
    frames = chosen_frames(stream, config.frames_per_clip, multiple_of=config.tubelet_size)
    spec = frame_spec(settings, VIDEOMAE, frames=frames, resize="torch")
    pool = chosen_pool(stream, ("mean",))
    return freeze(
        stream,
        model.encoder,
        partial(PooledVideo, pool=pool, argument="pixel_values_videos"),
        spec=spec,
        prepare=partial(frame_inputs, spec=spec),
        placement=placement,
        details={"processor": "VJEPA2VideoProcessor", "pool": pool},
    )


class PooledVideo(nn.Module):
    """A video model up to its pooled output."""

    def __init__(
        self,
        model: Any,
        pool: str,
        *,
        argument: str = "pixel_values",
        skipped: int = 0,
        norm: nn.Module | None = None,
    ) -> None:
        """Take over a model of `transformers`.

        Args:
            model: the model.
            pool, skipped: as in `pooled`.
            argument: name of the model's input.
            norm: applied to the pooled output.
        """
        super().__init__()
        self.model, self._pool, self._argument, self._skipped = model, pool, argument, skipped
        self.norm = norm or nn.Identity()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map (b, t, 3, height, width) float32 to (b, d) float32."""
        embeddings: torch.Tensor = self.norm(
            pooled(self.model(**{self._argument: pixel_values}), self._pool, self._skipped)
        )
        return embeddings

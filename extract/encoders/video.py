"""Video encoders: VideoMAE, ViViT, V-JEPA 2 and the picture side of PE-AV.

Frames are spread evenly over the whole clip, where the authors sample a short window at a fixed rate: a clip here is
one event, and all of it counts (as with TimeSformer).

Shapes: b clips, t frames, n tokens, d width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from alphafuse.data.streams import Stream

from .encoder import Encoder, Placement, freeze, load_pretrained
from .image import DINOV2, pooled
from .inputs import chosen_frames, chosen_pool, frame_inputs, frame_spec

VJEPA2_STRETCH = 256 / 224  # of the short side over the crop; the processor takes no other


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
    short_side = int((crop if isinstance(crop, int) else crop["height"]) * VJEPA2_STRETCH)
    settings = {**preprocessor, "crop_size": crop, "size": {"shortest_edge": short_side}}
    frames = chosen_frames(stream, config.frames_per_clip, multiple_of=config.tubelet_size)
    spec = frame_spec(settings, {**DINOV2, "resample": 2}, frames=frames, resize="torch")
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

    def __init__(self, model: Any, pool: str, argument: str = "pixel_values", skipped: int = 0) -> None:
        """Take over a model of `transformers` with the name of its input; `pool` and `skipped` as in `pooled`."""
        super().__init__()
        self.model, self._pool, self._argument, self._skipped = model, pool, argument, skipped

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map (b, t, 3, height, width) float32 to (b, d) float32."""
        return pooled(self.model(**{self._argument: pixel_values}), self._pool, self._skipped)

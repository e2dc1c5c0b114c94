"""Image encoders on a clip's frames: each frame is embedded, and a clip's embedding is the mean over its frames.

None of these families publishes an embedding of a video. The mean over frames is the usual one (CLIP4Clip's
parameter-free similarity), and it doesn't depend on the order of frames. Option `frames`: how many, spread evenly over
the clip; 8 by default.

Shapes: b clips, t frames, n tokens, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from alphafuse.data.streams import Stream

from .encoder import Encoder, Placement, freeze, load_pretrained
from .inputs import HALVES, IMAGENET, chosen_frames, chosen_pool, device_resize, frame_inputs, frame_spec

FRAMES = 8
SCALE = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
DINOV2 = {**SCALE, **IMAGENET, "size": {"shortest_edge": 256}, "resample": 3, "do_center_crop": True, "crop_size": 224}
DINOV3 = {**SCALE, **IMAGENET, "size": {"height": 224, "width": 224}, "resample": 2, "do_center_crop": False}


def load_dinov2(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load a DINOv2, with or without register tokens.

    Option `pool`: "cls", the CLS token after the final norm, which the authors' linear probes use; or "mean", the mean
    of the patches' tokens after it.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import AutoModel

    model, config, preprocessor = load_pretrained(stream, AutoModel)
    skipped = 1 + getattr(config, "num_register_tokens", 0)
    return _freeze(stream, model, preprocessor, DINOV2, ("cls", "mean"), "BitImageProcessorPil", placement, skipped)


def _freeze(
    stream: Stream,
    model: Any,
    preprocessor: Mapping[str, Any],
    published: Mapping[str, Any],
    pools: Sequence[str],
    processor: str,
    placement: Placement | None,
    skipped: int = 0,
    *,
    dim: int | None = None,
    resize: str = "pil",
    scale_first: bool = False,
) -> Encoder:
    """Make the encoder of a HuggingFace image model.

    Args:
        stream, model, placement: see `freeze`.
        preprocessor, published, resize: see `frame_spec`.
        pools: choices of the option `pool`, the default first.
        processor: class of `transformers` whose preprocessing this is.
        skipped: first tokens that aren't patches.
        dim: length of an embedding, by default the config's hidden size.
        scale_first: see `frame_inputs`.
    """
    spec = frame_spec(preprocessor, published, frames=chosen_frames(stream, FRAMES), resize=resize)
    pool = chosen_pool(stream, pools)
    return freeze(
        stream,
        model,
        partial(FrameMean, pool=pool, skipped=skipped),
        spec=spec,
        prepare=partial(frame_inputs, spec=spec, scale_first=scale_first),
        resize=device_resize(spec),
        placement=placement,
        dim=dim,
        details={"processor": processor, "pool": pool, "over_frames": "mean", "scale_first": scale_first},
    )


class FrameMean(nn.Module):
    """An image model on the frames of a clip, and the mean of their embeddings."""

    def __init__(self, model: Any, pool: str, skipped: int = 0) -> None:
        """Take over a model of `transformers`; `pool` and `skipped` as in `pooled`."""
        super().__init__()
        self.model, self._pool, self._skipped = model, pool, skipped

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map (b, t, 3, height, width) float32 to (b, d) float32."""
        b, t = pixel_values.shape[:2]
        output = self.model(pixel_values=pixel_values.flatten(0, 1))
        return pooled(output, self._pool, self._skipped).view(b, t, -1).mean(dim=1)


def pooled(output: Any, pool: str, skipped: int = 0) -> torch.Tensor:
    """Return the embedding (b, d) in the output of a HuggingFace model.

    Args:
        output: with `last_hidden_state` (b, n, d), or what `pool` needs instead.
        pool: "cls", the first token; "mean", of all tokens but the first `skipped`; "pooler" (`pooler_output`); or
            "projection" (`image_embeds` or `audio_embeds`).
        skipped: first tokens that don't stand for a part of the input.
    """
    embedding: torch.Tensor
    if pool == "pooler":
        embedding = output.pooler_output
    elif pool == "projection":
        embedding = output.image_embeds if "image_embeds" in output else output.audio_embeds
    elif pool == "cls":
        embedding = output.last_hidden_state[:, 0]
    else:
        embedding = output.last_hidden_state[:, skipped:].mean(dim=1)
    return embedding

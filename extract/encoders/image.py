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

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from alphafuse.data.streams import Stream
from alphafuse.errors import EncoderError
from alphafuse.extract.decoding.specs import PatchSpec

from .encoder import Encoder, Placement, freeze, load_pretrained
from .inputs import HALVES, IMAGENET, chosen_frames, chosen_pool, device_resize, frame_inputs, frame_spec
from .timesformer import normalize_frames

FRAMES = 8
SCALE = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
DINOV2 = {**SCALE, **IMAGENET, "size": {"shortest_edge": 256}, "resample": 3, "do_center_crop": True, "crop_size": 224}
DINOV3 = {**SCALE, **IMAGENET, "size": {"height": 224, "width": 224}, "resample": 2, "do_center_crop": False}
SIGLIP = {**SCALE, **HALVES, "size": {"height": 224, "width": 224}, "resample": 3, "do_center_crop": False}
SIGLIP2 = {**SCALE, **HALVES, "resample": 2, "patch_size": 16, "max_num_patches": 256}
CLIP = {**SCALE, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, "crop_size": 224}
CLIP |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def load_dinov2(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load a DINOv2, with or without register tokens.

    Option `pool`: "cls", the CLS token after the final norm, which the authors' linear probes use; or "mean", the mean
    of the patches' tokens after it.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import AutoModel

    model, config, preprocessor = load_pretrained(stream, AutoModel, optional=("mask_token",))
    skipped = 1 + getattr(config, "num_register_tokens", 0)
    return _freeze(stream, model, preprocessor, DINOV2, ("cls", "mean"), "BitImageProcessorPil", placement, skipped)


def load_dinov3(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load a DINOv3, a vision transformer or a ConvNeXt.

    Its only HuggingFace processor resizes by torch, and scaled values instead of 8-bit ones.

    Option `pool`: "cls", the CLS token after the final norm (a ConvNeXt's is the mean of its last feature map), which
    the authors' linear probes use; or "mean", the mean of the patches' tokens after it.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import AutoModel

    model, config, preprocessor = load_pretrained(stream, AutoModel, optional=("mask_token",))
    return _freeze(
        stream,
        model,
        preprocessor,
        DINOV3,
        ("cls", "mean"),
        "DINOv3ViTImageProcessor",
        placement,
        1 + getattr(config, "num_register_tokens", 0),
        dim=config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else None,
        resize="torch",
        scale_first=True,
    )


def load_clip(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load the image side of a CLIP, alone or of a whole one.

    Option `pool`: "pooler", the CLS token after the final norm, which the authors' linear probes use (Radford et al.
    2021, appendix A.3: before the projection); "projection", the embedding that is compared with texts (not normalised
    to length 1); or "mean", the mean of the patches' tokens before the final norm.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    pools = ("pooler", "projection", "mean")
    projects = chosen_pool(stream, pools) == "projection"
    model, config, preprocessor = load_pretrained(
        stream, CLIPVisionModelWithProjection if projects else CLIPVisionModel
    )
    dim = config.projection_dim if projects else None
    return _freeze(stream, model, preprocessor, CLIP, pools, "CLIPImageProcessorPil", placement, 1, dim=dim)


def load_siglip(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load the image side of a SigLIP, or of a SigLIP 2 of fixed resolution, alone or of a whole one.

    Option `pool`: "pooler", the attention pooling, which is compared with texts; or "mean", the mean of the patches'
    tokens after the final norm.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import SiglipVisionModel

    model, config, preprocessor = load_pretrained(stream, SiglipVisionModel)
    pools = ("pooler", "mean") if config.vision_use_head else ("mean",)
    return _freeze(stream, model, preprocessor, SIGLIP, pools, "SiglipImageProcessorPil", placement)


def load_siglip2(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load the image side of a SigLIP 2 of flexible resolution (NaFlex), alone or of a whole one.

    A frame keeps its proportions nearly: it is resized to as many patches as fit into `max_num_patches`. Pooling is as
    in `load_siglip`; "mean" is over the frame's own patches.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import Siglip2VisionModel

    model, config, preprocessor = load_pretrained(stream, Siglip2VisionModel)
    settings = {**SIGLIP2, **{key: value for key, value in preprocessor.items() if value is not None}}
    if not settings["do_resize"]:
        raise EncoderError(f"the preprocessor of {stream.encoder} doesn't resize: frames must be made of patches")
    if settings["patch_size"] != config.patch_size:
        raise EncoderError(
            f"the preprocessor of {stream.encoder} makes patches of {settings['patch_size']} pixels, and its "
            f"config.json takes {config.patch_size}: make them agree"
        )
    picture = frame_spec({**settings, "size": None}, SIGLIP, frames=chosen_frames(stream, FRAMES))
    values = {**vars(picture), "size": (0, 0)}
    spec = PatchSpec(**values, patch_size=settings["patch_size"], max_patches=settings["max_num_patches"])
    pool = chosen_pool(stream, ("pooler", "mean") if config.vision_use_head else ("mean",))
    return freeze(
        stream,
        model,
        partial(PatchMean, pool=pool),
        spec=spec,
        prepare=partial(patch_inputs, spec=spec),
        placement=placement,
        details={"processor": "Siglip2ImageProcessorPil", "pool": pool, "over_frames": "mean"},
    )


def patch_inputs(
    clips: Sequence[np.ndarray | torch.Tensor], spec: PatchSpec, *, device: torch.device
) -> dict[str, torch.Tensor]:
    """Turn the resized frames of a batch into the input of a SigLIP 2 of flexible resolution.

    Args:
        clips: each (frames, height, width, 3) uint8 RGB; sides are multiples of the patch's, and differ between clips.
        spec: sizes and statistics.
        device: device of the computations.

    Returns:
        pixel_values (clips, frames, max_patches, 3 patch_size^2) float32; pixel_attention_mask (clips, frames,
        max_patches), 0 for padding; spatial_shapes (clips, frames, 2), rows and columns of patches.
    """
    side, most = spec.patch_size, spec.max_patches
    values, masks, shapes = [], [], []
    for frames in clips:
        pixels = normalize_frames(torch.as_tensor(frames).to(device), spec)  # (t, 3, height, width)
        t, _, height, width = pixels.shape
        rows, columns = height // side, width // side
        patches = pixels.view(t, 3, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1).reshape(t, rows * columns, -1)
        values.append(F.pad(patches, (0, 0, 0, most - rows * columns)))
        masks.append((torch.arange(most, device=device) < rows * columns).int().expand(t, most))
        shapes.append(torch.tensor([rows, columns], device=device).expand(t, 2))
    return {
        "pixel_values": torch.stack(values),
        "pixel_attention_mask": torch.stack(masks),
        "spatial_shapes": torch.stack(shapes),
    }


class PatchMean(nn.Module):
    """A SigLIP 2 of flexible resolution on the frames of a clip, and the mean of their embeddings."""

    def __init__(self, model: Any, pool: str) -> None:
        """Take over a model of `transformers`; `pool` as in `pooled`."""
        super().__init__()
        self.model, self._pool = model, pool

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Map the result of `patch_inputs` to (b, d) float32."""
        b, t = inputs["pixel_values"].shape[:2]
        output = self.model(**{name: value.flatten(0, 1) for name, value in inputs.items()})
        if self._pool == "pooler":
            embeddings = output.pooler_output.float()
        else:
            mask = inputs["pixel_attention_mask"].flatten(0, 1)[..., None]
            embeddings = (output.last_hidden_state.float() * mask).sum(dim=1) / mask.sum(dim=1)
        return embeddings.view(b, t, -1).mean(dim=1)


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
    """Return the embedding (b, d) float32 in the output of a HuggingFace model.

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
        embedding = output.last_hidden_state[:, skipped:].float().mean(dim=1)
    return embedding.float()

"""Convert an original TimeSformer (.pyth) to a HuggingFace folder: names, geometry, resizing of embeddings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TimesformerConfig, TimesformerForVideoClassification

from alphafuse.errors import CheckpointError, unknown

from .folder import Conversion, ConversionReport, check_out, write_folder
from .source import Source, check_count, check_names, check_tensors, read_source, shape_of
from .vit import LAYER_NORM_EPS, Layout, Sizes

AttentionType = Literal["divided_space_time", "joint_space_time", "space_only"]
ATTENTION_TYPES: tuple[AttentionType, ...] = ("divided_space_time", "joint_space_time", "space_only")

# Number of classes -> training set, for the report. HowTo100M's number is the one users report (TimeSformer issue 9).
DATASETS = {400: "Kinetics-400", 600: "Kinetics-600", 174: "Something-Something-V2", 1059: "HowTo100M"}
MEAN, STD = 0.45, 0.225  # DATA.MEAN and DATA.STD of its defaults.py, the same for each channel
SPACE_ONLY_FRAMES = 8  # configs/Kinetics/TimeSformer_spaceOnly_8x32_224.yaml; no tensor depends on it
SPACE_ONLY_NOTE = (
    "space_only: HuggingFace doesn't have the original's mean over frames before the last LayerNorm; the feature is "
    "model.layernorm(hidden_states[-1][:, 0].unflatten(0, (batch, frames)).mean(1))"
)

LAYOUT = Layout(
    model="TimeSformer",
    prefix="",
    tokens=1,
    classifier="head",
    layer="timesformer.encoder.layer",
    top={
        "cls_token": "timesformer.embeddings.cls_token",
        "pos_embed": "timesformer.embeddings.position_embeddings",
        "patch_embed.proj.weight": "timesformer.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "timesformer.embeddings.patch_embeddings.projection.bias",
        "norm.weight": "timesformer.layernorm.weight",
        "norm.bias": "timesformer.layernorm.bias",
        "head.weight": "classifier.weight",
        "head.bias": "classifier.bias",
    },
)
TIME = {"time_embed": "timesformer.embeddings.time_embeddings"}  # every attention type but space_only
# Modules of one block, each with a weight and a bias: name in the file -> name in HuggingFace's layer.
BLOCK = {
    "norm1": "layernorm_before",
    "attn.qkv": "attention.attention.qkv",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
TEMPORAL = {  # divided_space_time only
    "temporal_norm1": "temporal_layernorm",
    "temporal_attn.qkv": "temporal_attention.attention.qkv",
    "temporal_attn.proj": "temporal_attention.output.dense",
    "temporal_fc": "temporal_dense",
}


def convert_timesformer(
    checkpoint: str | Path,
    out: str | Path,
    *,
    image_size: int | None = None,
    frames: int | None = None,
    fed_image_size: int | None = None,
    fed_frames: int | None = None,
    attention_type: AttentionType | None = None,
) -> ConversionReport:
    """Convert an original TimeSformer file (.pyth) to a HuggingFace folder.

    `TimesformerModel.from_pretrained(out)(pixel_values).last_hidden_state[:, 0]` is then equal to the original's
    `forward_features`, bit for bit in float32. HuggingFace takes (batch, frames, 3, height, width), the original takes
    (batch, 3, frames, height, width).

    Args:
        checkpoint: the original file: `{'model_state': ...}` as published or as its training writes it, or a plain
            state dict.
        out: folder to make. It must not exist, or be empty.
        image_size: height and width in pixels that the original is built with (its `img_size`); by default the
            file's. Another size resizes the position embedding as the original does when it loads the file.
        frames: number of frames that the original is built with (its `num_frames`); by default the file's.
        fed_image_size: height and width in pixels of the frames that the model is fed; by default `image_size`.
            Another size resizes the position embedding once more, as the original does on every pass.
        fed_frames: number of frames that the model is fed; by default `frames`.
        attention_type: by default read from the names of the tensors. Only `space_only` must be given, because such
            a file looks like an image transformer's.

    The paper's authors load a file of 224 pixels into a model built with `image_size=448, frames=64` and feed it
    with `fed_image_size=224, fed_frames=8`.

    Raises:
        CheckpointError: the file would run code, is damaged, holds another model, or doesn't fit the options. Nothing
            is written.

    >>> from alphafuse import convert_timesformer
    >>> print(convert_timesformer("TimeSformer_divST_8x32_224_K400.pyth", "timesformer-k400"))  # doctest: +SKIP
    """
    checkpoint, out = Path(checkpoint), Path(out)
    check_count("--frames", frames)
    check_count("--fed-frames", fed_frames)
    check_count("--image-size", image_size)
    check_count("--fed-image-size", fed_image_size)
    check_out(out)
    source = read_source(checkpoint)

    attention = _attention_type(source, attention_type)
    conversion, sizes = _checked(source, attention)
    fed_image_size = _resize_position(conversion, sizes.patch_size, image_size, fed_image_size)
    fed_frames = _resize_time(conversion, frames, fed_frames)
    if attention == "space_only":
        conversion.notes.append(SPACE_ONLY_NOTE)

    write_folder(
        out,
        source,
        config=_config(sizes, fed_image_size, fed_frames, attention),
        tensors=conversion.renamed(),
        preprocessor=_preprocessor(fed_image_size),
        model=TimesformerForVideoClassification,
    )
    return conversion.report(
        "timesformer",
        out,
        geometry={
            "image_size": fed_image_size,
            "patch_size": sizes.patch_size,
            "frames": fed_frames,
            "attention_type": attention,
            "layers": sizes.depth,
            "width": sizes.width,
            "heads": sizes.heads,
        },
        classes=sizes.classes,
        dataset=DATASETS.get(sizes.classes),
    )


def _attention_type(source: Source, given: AttentionType | None) -> AttentionType:
    """Read the attention type from the tensors: temporal attention in blocks, a time embedding alone, or neither."""
    if given is not None and given not in ATTENTION_TYPES:
        raise CheckpointError(unknown("attention type", given, ATTENTION_TYPES))
    found: AttentionType
    if any(".temporal_" in name for name in source.tensors):
        found = "divided_space_time"
    elif "time_embed" in source.tensors:
        found = "joint_space_time"
    elif given == "space_only":
        found = "space_only"
    elif "pos_embed" in source.tensors and any(name.startswith("blocks.") for name in source.tensors):
        raise CheckpointError(
            f"{source.path} lacks time_embed and temporal attention, so it looks like an image transformer: if it is a "
            "TimeSformer trained with space_only attention, give --attention-type space_only"
        )
    else:
        return "divided_space_time"  # not a TimeSformer: check_names says what it is
    if given is not None and given != found:
        raise CheckpointError(f"{source.path} holds {found} attention, not {given}: leave out --attention-type")
    return found


def _checked(source: Source, attention: AttentionType) -> tuple[Conversion, Sizes]:
    """Check that all tensors are there with consistent shapes, and return them with the model's sizes."""
    modules = BLOCK | (TEMPORAL if attention == "divided_space_time" else {})
    time = TIME if attention != "space_only" else {}
    names = LAYOUT.names(source, modules) | time
    check_names(source, LAYOUT.model, names, LAYOUT.blocks)
    sizes = LAYOUT.sizes(source)
    time_shapes = {name: (1, shape_of(source, name, 3)[1], sizes.width) for name in time}
    check_tensors(source, LAYOUT.shapes(sizes, modules) | time_shapes)
    return Conversion(source, names), sizes


# -------------------------------------------------------------------------------------------------- resizing


def _resize_position(
    conversion: Conversion, patch_size: int, image_size: int | None, fed_image_size: int | None
) -> int:
    """Resize the position embedding to the rows that the model needs. Return the image size that it is fed.

    The original resizes in two ways. While loading (load_pretrained), it treats the patches' rows as one flat sequence
    and ignores the image's shape. On a pass (forward_features), it treats them as a square image. Resizing as the
    paper does, 224 -> 448 -> 224, therefore doesn't give the file's rows back: half of them occur twice, the others
    not at all.
    """
    patches = conversion.tensors["pos_embed"].shape[1] - 1
    if image_size is None:
        if math.isqrt(patches) ** 2 != patches:
            raise CheckpointError(
                f"{conversion.source.path}: pos_embed has {patches} patches, which is not a square number: "
                "give the image size, such as --image-size 224"
            )
        image_size = math.isqrt(patches) * patch_size
    built = _grid(image_size, patch_size, "--image-size")
    if built**2 != patches:
        rows = _nearest(conversion.tensors["pos_embed"][:, 1:], built**2)
        conversion.replace_patches("pos_embed", 1, rows, "nearest along the flat sequence, as the original loads it")
    if fed_image_size is None:
        return image_size
    fed = _grid(fed_image_size, patch_size, "--fed-image-size")
    if fed != built:
        rows = _nearest_square(conversion.tensors["pos_embed"][:, 1:], fed)
        how = "nearest along height and width, as the original does when fed"
        conversion.replace_patches("pos_embed", 1, rows, how)
    return fed_image_size


def _grid(image_size: int, patch_size: int, option: str) -> int:
    """Return the number of patches along one side. Pixels past the last whole patch are not used."""
    if image_size < patch_size:
        raise CheckpointError(
            f"{option} {image_size} is less than one patch of {patch_size} pixels: give a larger size"
        )
    return image_size // patch_size


def _resize_time(conversion: Conversion, frames: int | None, fed_frames: int | None) -> int:
    """Resize the time embedding to the rows that the model needs. Return the number of frames that it is fed."""
    if "time_embed" not in conversion.tensors:
        return fed_frames or frames or SPACE_ONLY_FRAMES
    for wanted, when in ((frames, "as the original loads it"), (fed_frames, "as the original does when fed")):
        time = conversion.tensors["time_embed"]  # (1, frames, width)
        if wanted is not None and wanted != time.shape[1]:
            conversion.replace("time_embed", _nearest(time, wanted), f"nearest, {when}")
    return conversion.tensors["time_embed"].shape[1]


def _nearest(embedding: torch.Tensor, length: int) -> torch.Tensor:
    """Resize (1, rows, width) to (1, length, width), nearest along the rows."""
    return torch.nn.functional.interpolate(embedding.transpose(1, 2), size=length, mode="nearest").transpose(1, 2)


def _nearest_square(embedding: torch.Tensor, side: int) -> torch.Tensor:
    """Resize (1, grid * grid, width) to (1, side * side, width), nearest along the height and width of the image."""
    grid = math.isqrt(embedding.shape[1])
    image = embedding.transpose(1, 2).reshape(1, -1, grid, grid)  # (1, width, grid, grid)
    return torch.nn.functional.interpolate(image, size=(side, side), mode="nearest").flatten(2).transpose(1, 2)


# --------------------------------------------------------------------------------------------- configuration


def _config(sizes: Sizes, image_size: int, frames: int, attention: AttentionType) -> TimesformerConfig:
    return TimesformerConfig(
        architectures=["TimesformerForVideoClassification"],
        dtype="float32",
        num_labels=sizes.classes,
        image_size=image_size,
        patch_size=sizes.patch_size,
        num_channels=sizes.channels,
        num_frames=frames,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.hidden,
        hidden_act="gelu",
        layer_norm_eps=LAYER_NORM_EPS,
        qkv_bias=True,
        attention_type=attention,
    )


def _preprocessor(image_size: int) -> dict[str, Any]:
    """The original's input at test time: short side scaled to the image size (bilinear), then a centre crop."""
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }

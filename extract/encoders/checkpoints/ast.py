"""Convert an original AST (.pth) to a HuggingFace folder: names, input, resizing of the position embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import ASTConfig, ASTForAudioClassification

from alphafuse.errors import CheckpointError

from .folder import Conversion, ConversionReport, check_out, write_folder
from .grid import DEFAULT_STRIDE, MEL_BINS, PATCH_SIZE, PUBLISHED_INPUTS, AstGrid, AstInput, infer_ast_grid
from .source import Source, Tensors, check_count, check_names, check_tensors, read_source
from .vit import LAYER_NORM_EPS, Layout, Sizes

SAMPLE_RATE_HZ = 16_000
# The grid of the AudioSet model that ASTModel(audioset_pretrain=True) starts from.
AUDIOSET_GRID = AstGrid(DEFAULT_STRIDE, DEFAULT_STRIDE, 1024)  # 12 x 101 patches

LAYOUT = Layout(  # the folder has the names of the hub's models; transformers maps them to its current names
    model="AST",
    prefix="v.",
    tokens=2,
    classifier="mlp_head.1",
    layer="audio_spectrogram_transformer.encoder.layer",
    top={
        "v.cls_token": "audio_spectrogram_transformer.embeddings.cls_token",
        "v.dist_token": "audio_spectrogram_transformer.embeddings.distillation_token",
        "v.pos_embed": "audio_spectrogram_transformer.embeddings.position_embeddings",
        "v.patch_embed.proj.weight": "audio_spectrogram_transformer.embeddings.patch_embeddings.projection.weight",
        "v.patch_embed.proj.bias": "audio_spectrogram_transformer.embeddings.patch_embeddings.projection.bias",
        "v.norm.weight": "audio_spectrogram_transformer.layernorm.weight",
        "v.norm.bias": "audio_spectrogram_transformer.layernorm.bias",
        "mlp_head.0.weight": "classifier.layernorm.weight",
        "mlp_head.0.bias": "classifier.layernorm.bias",
        "mlp_head.1.weight": "classifier.dense.weight",
        "mlp_head.1.bias": "classifier.dense.bias",
    },
)
# Modules of one block, each with a weight and a bias: name in the file -> name in HuggingFace's layer.
BLOCK = {
    "norm1": "layernorm_before",
    "attn.qkv": "attention.attention.qkv",  # one module in the file, three in the folder: `_split_qkv`
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def convert_ast(
    checkpoint: str | Path,
    out: str | Path,
    *,
    fstride: int | None = None,
    tstride: int | None = None,
    max_length: int | None = None,
) -> ConversionReport:
    """Convert an original AST file (.pth) to a HuggingFace folder.

    `ASTModel.from_pretrained(out)(input_values).pooler_output` is then equal to the original's mean of CLS and
    distillation token after the last LayerNorm. Both take (batch, max_length, 128).

    The position embedding has one row for each patch, frequency by frequency. Its length gives the number of patches
    but not their layout. By default, strides and input length are the published ones that give this number: see
    `infer_ast_grid`.

    Args:
        checkpoint: a state dict, as published (`module.v...`) or without prefix.
        out: folder to make. It must not exist, or be empty.
        fstride: stride of the patches in mel bins.
        tstride: stride of the patches in frames of 10 ms.
        max_length: input length in frames of 10 ms.

    The three options are needed only if the shapes are ambiguous. The published AudioSet files (strides of 10, 1024
    frames) are not. For them, another `max_length` cuts or stretches the position embedding to that input length, as
    the original does with `audioset_pretrain=True`.

    Raises:
        CheckpointError: the file would run code, is damaged, holds another model, or its geometry is ambiguous.
            Nothing is written.

    >>> from alphafuse import convert_ast
    >>> print(convert_ast("audioset_10_10_0.4593.pth", "ast-audioset"))  # doctest: +SKIP
    """
    checkpoint, out = Path(checkpoint), Path(out)
    check_count("--fstride", fstride)
    check_count("--tstride", tstride)
    check_count("--max-length", max_length, minimum=PATCH_SIZE)
    check_out(out)
    source = read_source(checkpoint)

    conversion, sizes = _checked(source)
    if sizes.patches == AUDIOSET_GRID.rows * AUDIOSET_GRID.columns:
        grid = _resize_audioset(conversion, fstride, tstride, max_length)
    else:
        grid, note = infer_ast_grid(
            checkpoint, sizes.patches, sizes.classes, fstride=fstride, tstride=tstride, max_length=max_length
        )
        if note:
            conversion.notes.append(note)
    statistics = PUBLISHED_INPUTS.get(sizes.classes, PUBLISHED_INPUTS[527])
    if sizes.classes not in PUBLISHED_INPUTS:
        conversion.notes.append(
            f"no published AST has {sizes.classes} classes, so preprocessor_config.json has AudioSet's mean and std: "
            "replace them with dataset_mean and dataset_std from the run.sh of the file's training"
        )

    write_folder(
        out,
        source,
        config=_config(sizes, grid),
        tensors=_split_qkv(conversion.renamed()),
        preprocessor=_preprocessor(statistics, grid),
        model=ASTForAudioClassification,
    )
    return conversion.report(
        "ast",
        out,
        geometry={
            "fstride": grid.fstride,
            "tstride": grid.tstride,
            "max_length": grid.max_length,
            "patches": f"{grid.rows} x {grid.columns}",
            "layers": sizes.depth,
            "width": sizes.width,
            "heads": sizes.heads,
            "mean": statistics.mean,
            "std": statistics.std,
            "statistics": statistics.dataset,
        },
        classes=sizes.classes,
        dataset=statistics.dataset if sizes.classes in PUBLISHED_INPUTS else None,
    )


def _checked(source: Source) -> tuple[Conversion, Sizes]:
    """Check that all tensors are there with consistent shapes, and return them with the model's sizes."""
    names = LAYOUT.names(source, BLOCK)
    check_names(source, LAYOUT.model, names, LAYOUT.blocks)
    sizes = LAYOUT.sizes(source)
    own_shapes = {
        "v.patch_embed.proj.weight": (sizes.width, 1, PATCH_SIZE, PATCH_SIZE),
        "v.dist_token": (1, 1, sizes.width),
        "mlp_head.0.weight": (sizes.width,),
        "mlp_head.0.bias": (sizes.width,),
    }
    check_tensors(source, LAYOUT.shapes(sizes, BLOCK) | own_shapes)
    return Conversion(source, names), sizes


def _resize_audioset(
    conversion: Conversion, fstride: int | None, tstride: int | None, max_length: int | None
) -> AstGrid:
    """Fit the position embedding of the AudioSet file to an input length: cut from the middle, or stretch (bilinear).

    ASTModel(audioset_pretrain=True, input_tdim=max_length) does the same to it.
    """
    old = AUDIOSET_GRID
    if (fstride or old.fstride, tstride or old.tstride) != (old.fstride, old.tstride):
        raise CheckpointError(
            f"{conversion.source.path}: its {old.rows * old.columns} patches mean strides of 10, and the original "
            "doesn't resize them to others: leave out --fstride and --tstride"
        )
    new = AstGrid(old.fstride, old.tstride, max_length or old.max_length)
    if new.columns == old.columns:
        return new
    patches = conversion.tensors["v.pos_embed"][:, LAYOUT.tokens :]
    image = patches.transpose(1, 2).reshape(1, -1, old.rows, old.columns)  # (1, width, frequency, time)
    if new.columns < old.columns:
        image = image.narrow(3, old.columns // 2 - new.columns // 2, new.columns)
        how = "cut from the middle"
    else:
        size = (old.rows, new.columns)
        image = torch.nn.functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
        how = "bilinear along time"
    rows = image.flatten(2).transpose(1, 2)  # (1, patches, width)
    how += ", as the original does with audioset_pretrain"
    conversion.replace_patches("v.pos_embed", LAYOUT.tokens, rows, how)
    return new


# ---------------------------------------------------------------------------------------------------- folder


def _split_qkv(tensors: Tensors) -> Tensors:
    """Split each qkv tensor of the file into query, key and value, which are thirds of its rows in this order."""
    split: Tensors = {}
    for name, tensor in tensors.items():
        if ".qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                split[name.replace(".qkv.", f".{part}.")] = third  # (width, width) or (width,)
        else:
            split[name] = tensor
    return split


def _config(sizes: Sizes, grid: AstGrid) -> ASTConfig:
    return ASTConfig(
        architectures=["ASTForAudioClassification"],
        dtype="float32",
        num_labels=sizes.classes,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.hidden,
        hidden_act="gelu",
        # One value for the whole model. Only the original's classifier has 1e-5, and features don't depend on it.
        layer_norm_eps=LAYER_NORM_EPS,
        patch_size=PATCH_SIZE,
        qkv_bias=True,
        frequency_stride=grid.fstride,
        time_stride=grid.tstride,
        max_length=grid.max_length,
        num_mel_bins=MEL_BINS,
    )


def _preprocessor(statistics: AstInput, grid: AstGrid) -> dict[str, Any]:
    """Kaldi's log mel filter bank, padded with zeros, then (x - mean) / (2 std)."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE_HZ,
        "num_mel_bins": MEL_BINS,
        "max_length": grid.max_length,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": True,
        "mean": statistics.mean,
        "std": statistics.std,
        "return_attention_mask": False,
    }

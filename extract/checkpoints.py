"""Original checkpoints -> HuggingFace folders: `convert_timesformer` (.pyth) and `convert_ast` (.pth).

    published file -> tensors by name -> geometry -> checked, resized, renamed -> config + weights + preprocessing

The files are the ones that https://github.com/facebookresearch/TimeSformer and https://github.com/YuanGongND/ast
link to in their READMEs, or that their training scripts write. A conversion changes names, never features: in float32
the folder gives the original's CLS feature exactly, and AST's mean of CLS and distillation token to about 1e-6.

Three kinds of geometry meet here, and keeping them apart is what makes the result exact:

- the *file's*, read from the shapes of its tensors;
- the one the original model would be *built* with (`image_size`, `frames`): when it differs from the file's, the
  original resizes the embeddings while loading (position: as a flat sequence; time: nearest);
- the one the model is *fed* with (`fed_image_size`, `fed_frames`): when it differs from the built one, the original
  resizes again on every pass (position: as a square; time: nearest). Here that is done once, because HuggingFace's
  TimeSformer fixes the number of frames in its configuration and is silently wrong when it is fed another.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickletools
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    TimesformerConfig,
    TimesformerForVideoClassification,
)
from transformers.utils import logging as transformers_logging

from alphafuse.errors import CheckpointError, unknown

AttentionType = Literal["divided_space_time", "joint_space_time", "space_only"]
ATTENTION_TYPES: tuple[AttentionType, ...] = ("divided_space_time", "joint_space_time", "space_only")

HEAD_WIDTH = 64  # every published model: 768 / 12 heads; AST tiny and small (DeiT): 192 / 3, 384 / 6
LAYER_NORM_EPS = 1e-6  # both originals build partial(nn.LayerNorm, eps=1e-6); HuggingFace's AST defaults to 1e-12

# Class counts of the published files, for the report. HowTo100M's is the one users report (TimeSformer issue 9).
TIMESFORMER_DATASETS = {
    400: "Kinetics-400",
    600: "Kinetics-600",
    174: "Something-Something-V2",
    1059: "HowTo100M",
}
TIMESFORMER_MEAN, TIMESFORMER_STD = 0.45, 0.225  # DATA.MEAN and DATA.STD of its defaults.py, each channel alike
SPACE_ONLY_FRAMES = 8  # configs/Kinetics/TimeSformer_spaceOnly_8x32_224.yaml; no tensor depends on it

AST_MEL_BINS = 128
AST_PATCH_SIZE = 16
AST_SAMPLE_RATE_HZ = 16_000
AST_STRIDES = (10, 12, 14, 16)  # the published AudioSet models, README "Pretrained Models"
AST_POSSIBLE_STRIDES = tuple(range(10, 17))
# The AudioSet model that ASTModel(audioset_pretrain=True) starts from: 12 x 101 patches, strides of 10, 1024 frames.
AST_AUDIOSET_PATCHES = 12 * 101


@dataclass(frozen=True)
class AstRecipe:
    """What one of AST's training recipes says of its input.

    `max_length` counts frames of 10 ms; `mean` and `std` are those of the log mel filter bank.
    """

    dataset: str
    max_length: int
    mean: float
    std: float


# By class count: audio_length, dataset_mean and dataset_std of egs/audioset/run.sh, esc50/run_esc.sh and
# speechcommands/run_sc.sh.
AST_RECIPES = {
    527: AstRecipe("AudioSet", 1024, -4.2677393, 4.5689974),
    50: AstRecipe("ESC-50", 512, -6.6268077, 5.358466),
    35: AstRecipe("Speech Commands V2", 128, -6.845978, 5.5654526),
}
AST_LENGTHS = tuple(recipe.max_length for recipe in AST_RECIPES.values())


# ----------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class ResizedTensor:
    """One embedding whose length changed, under the file's name for it."""

    name: str
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    how: str

    def __str__(self) -> str:
        """`pos_embed (1, 197, 768) -> (1, 785, 768), nearest along the flat sequence`."""
        return f"{self.name} {self.old_shape} -> {self.new_shape}, {self.how}"


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion found, did and left out; `print(report)` shows it.

    Attributes:
        model: `timesformer` or `ast`.
        source: the original file, and `source_sha256`, its contents.
        out: the HuggingFace folder.
        geometry: what the folder's model is built for, as its config.json has it.
        classes: rows of the original classifier, which the folder keeps.
        dataset: the published training set with that many classes, None when there is none.
        used: names of the tensors that are in the folder, in the file's order, without `module.` and `model.`.
        resized: embeddings whose length changed.
        unused: names of the tensors that the features don't depend on, and that are not in the folder.
        beside: what else the file holds beside the weights, not converted: `optimizer_state (346 tensors)`.
        notes: what was assumed, and what to know before using the folder.
    """

    model: Literal["timesformer", "ast"]
    source: Path
    source_sha256: str
    out: Path
    geometry: dict[str, int | float | str]
    classes: int
    dataset: str | None
    used: tuple[str, ...]
    resized: tuple[ResizedTensor, ...]
    unused: tuple[str, ...]
    beside: tuple[str, ...]
    notes: tuple[str, ...]

    def summary(self) -> list[str]:
        """The report as lines for people."""
        geometry = ", ".join(f"{name} {value}" for name, value in self.geometry.items())
        return [
            f"{self.source} (sha256 {self.source_sha256}) -> {self.out}",
            f"{self.model}: {geometry}",
            f"{self.classes} classes" + (f" ({self.dataset})" if self.dataset else ""),
            f"{len(self.used)} tensors used, {len(self.resized)} resizes, {len(self.unused)} unused",
            *(f"resized: {tensor}" for tensor in self.resized),
            *([f"unused: {', '.join(self.unused)}"] if self.unused else []),
            *([f"beside the weights, not converted: {', '.join(self.beside)}"] if self.beside else []),
            *(f"note: {note}" for note in self.notes),
        ]

    def __str__(self) -> str:
        """The lines of `summary`."""
        return "\n".join(self.summary())

    def to_json(self) -> dict[str, Any]:
        """The report for `json.dumps`."""
        return {**asdict(self), "source": str(self.source), "out": str(self.out)}


# -------------------------------------------------------------------------------------- names, file -> folder

# Modules of one block with a weight and a bias: name in the file -> name in HuggingFace's layer.
TIMESFORMER_BLOCK = {
    "norm1": "layernorm_before",
    "attn.qkv": "attention.attention.qkv",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
TIMESFORMER_TEMPORAL = {  # divided_space_time only
    "temporal_norm1": "temporal_layernorm",
    "temporal_attn.qkv": "temporal_attention.attention.qkv",
    "temporal_attn.proj": "temporal_attention.output.dense",
    "temporal_fc": "temporal_dense",
}
TIMESFORMER_TOP = {
    "cls_token": "timesformer.embeddings.cls_token",
    "pos_embed": "timesformer.embeddings.position_embeddings",
    "patch_embed.proj.weight": "timesformer.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "timesformer.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "timesformer.layernorm.weight",
    "norm.bias": "timesformer.layernorm.bias",
    "head.weight": "classifier.weight",
    "head.bias": "classifier.bias",
}
TIMESFORMER_TIME = {"time_embed": "timesformer.embeddings.time_embeddings"}  # all but space_only
TIMESFORMER_LAYER = "timesformer.encoder.layer"

# These are the names in the folders that the hub holds; transformers maps them to its own, which change.
AST_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
AST_QKV = ("query", "key", "value")  # thirds of the rows of attn.qkv, in this order
AST_TOP = {
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
}
AST_LAYER = "audio_spectrogram_transformer.encoder.layer"

Tensors = dict[str, torch.Tensor]


def _block_shapes(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shape of each module's weight in one block; its bias has the first of these dimensions."""
    return {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "temporal_norm1": (width,),
        "temporal_attn.qkv": (3 * width, width),
        "temporal_attn.proj": (width, width),
        "temporal_fc": (width, width),
        "norm2": (width,),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }


def _block_names(prefix: str, depth: int, modules: Iterable[str]) -> list[str]:
    return [
        f"{prefix}.{block}.{module}.{part}"
        for block in range(depth)
        for module in modules
        for part in ("weight", "bias")
    ]


def _expected_block_shapes(
    prefix: str, depth: int, modules: Iterable[str], width: int, hidden: int
) -> dict[str, tuple[int, ...]]:
    shapes = _block_shapes(width, hidden)
    expected = {}
    for block in range(depth):
        for module in modules:
            expected[f"{prefix}.{block}.{module}.weight"] = shapes[module]
            expected[f"{prefix}.{block}.{module}.bias"] = shapes[module][:1]
    return expected


# -------------------------------------------------------------------------------------- reading, weights only


class _NotRead:
    """Stands in for a value that isn't a tensor and isn't needed, such as a NumPy scalar in an optimizer's state.

    Whatever the file hands to it is dropped, so no code of another library sees the file's bytes.
    """

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What training scripts leave beside the weights. A file that names anything else is refused.
_NOT_READ = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "argparse.Namespace",
    "pathlib.PosixPath",
)

_WEIGHTS_KEYS = ("model_state", "state_dict", "model")  # where the original's loader looks, and plain state dicts
_PREFIXES = ("module.", "model.")  # DataParallel's, and TimeSformer's wrapper around its VisionTransformer

# Pickle instructions of plain pickles, which make objects or frame them, but that torch.save never writes.
_PICKLE_CODE = {
    ord(code.code): f"pickle instruction {code.name}"
    for code in pickletools.opcodes
    if code.proto >= 4 or code.name in ("INST", "OBJ", "EXT1", "EXT2", "EXT4")
}
LONGEST_NAME = 200  # characters; published names have up to 40
AS_PUBLISHED = "pass the file as published"
_DAMAGED = "is cut short or damaged: download it again and compare its size with the one published"


@dataclass(frozen=True)
class _Source:
    """A checkpoint as read: its tensors by bare name, and what lies beside them."""

    path: Path
    sha256: str
    tensors: Tensors
    beside: tuple[str, ...]


def _read_source(path: Path) -> _Source:
    """Read a checkpoint without running anything it may hold."""
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} where a checkpoint holds tensors by name: {AS_PUBLISHED}"
        )
    key = next((key for key in _WEIGHTS_KEYS if isinstance(content.get(key), Mapping)), None)
    weights = content if key is None else content[key]
    tensors: Tensors = {}
    for name, value in weights.items():
        bare = _bare_name(path, name)
        if bare in tensors:
            raise CheckpointError(
                f"{path} holds two tensors named {bare} without prefixes, so it is no single model: {AS_PUBLISHED}"
            )
        tensors[bare] = _plain_tensor(path, bare, value, content)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: {AS_PUBLISHED}")
    beside = () if key is None else tuple(_describe_entry(k, v) for k, v in content.items() if k != key)
    return _Source(path, _sha256(path), tensors, beside)


def _load(path: Path) -> object:
    """`torch.load`, weights only, each way of failing told in one line."""
    _check_is_checkpoint(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_NotRead, name) for name in _NOT_READ]):
            warnings.simplefilter("ignore")  # remarks on pickle protocols, which say nothing to the user
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise CheckpointError(f"{path} {_why_not_loaded(str(error))}") from error


def _check_is_checkpoint(path: Path) -> None:
    """Refuse what isn't a file of `torch.save` by its first bytes."""
    try:
        if path.is_dir():
            raise CheckpointError(
                f"{path} is a folder: pass the original .pyth or .pth file; HuggingFace folders need no conversion"
            )
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"no such file: {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    if not start:
        raise CheckpointError(f"{path} is empty: download it again")
    if start.startswith((b"PK\x03\x04", b"\x80")):  # zip since torch 1.6, a pickle before
        return
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(
            f"{path} is a web page, not a checkpoint: links that end in dl=0 lead to a page, with dl=1 to the file"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` beside it")
    if start[8:9] == b"{":
        raise CheckpointError(
            f"{path} is a safetensors file, not an original checkpoint: its HuggingFace folder needs no conversion"
        )
    raise CheckpointError(
        f"{path} is not a PyTorch checkpoint: pass the .pyth or .pth file that TimeSformer or AST publish"
    )


def _why_not_loaded(message: str) -> str:
    """What a message of the weights-only unpickler means to the user.

    The phrases are those of torch/_weights_only_unpickler.py; whatever isn't one of them is a damaged file.
    """
    trust = "nothing was run; if you trust its maker, load it where it was made and save its state dict alone"
    named = re.search(r"GLOBAL (\S+)|unrecognized function (.+?)(?:$| which)", message)
    if named:
        return f"would run code when loaded ({_printable(named[1] or named[2])}) and was refused: {trust}"
    if "Can only create new object" in message or "Can only build" in message:
        return f"would run code when loaded (it builds objects other than tensors) and was refused: {trust}"
    if "TorchScript" in message:
        return f"is a TorchScript program, not a checkpoint, and was refused: {trust}"
    operand = re.search(r"Unsupported operand (\d+)", message)
    if operand and int(operand[1]) in _PICKLE_CODE:
        return (
            f"could run code when loaded ({_PICKLE_CODE[int(operand[1])]}, not torch.save's) and was refused: {trust}"
        )
    return _DAMAGED


def _bare_name(path: Path, name: object) -> str:
    if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_NAME:
        raise CheckpointError(
            f"{path} has an entry named {ascii(name)[:LONGEST_NAME]} where tensors have names: {AS_PUBLISHED}"
        )
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _plain_tensor(path: Path, name: str, value: object, content: Mapping[object, object]) -> torch.Tensor:
    """The value, once it is known to be an ordinary tensor with all of its numbers in the file."""
    if not isinstance(value, torch.Tensor):
        entries = ", ".join(_printable(key) for key in list(content)[:5])
        raise CheckpointError(
            f"{path}: {name} is a {type(value).__name__.lstrip('_')}, not a tensor, so this is no model's state dict "
            f"(it has {entries}): pass the file with the model's weights"
        )
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise CheckpointError(f"{path}: {name} is no ordinary dense tensor: {AS_PUBLISHED}")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(value.shape)} but fewer numbers in the file: {AS_PUBLISHED}"
        )
    return value.detach()


def _describe_entry(key: object, value: object) -> str:
    tensors = _count_tensors(value)
    return f"{_printable(key)} ({tensors} tensors)" if tensors else _printable(key)


def _printable(key: object) -> str:
    """A name from the file, on one line whatever the file says."""
    text = str(key)
    return text if text.isprintable() and len(text) <= LONGEST_NAME else ascii(text[:LONGEST_NAME])


def _count_tensors(value: object) -> int:
    """Tensors in nested containers; each container counts once, since a file's may contain themselves."""
    seen: set[int] = set()
    waiting, tensors = [value], 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            tensors += 1
        elif isinstance(item, Mapping | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, Mapping) else item)
    return tensors


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------------------------------- checking


def _depth(source: _Source, prefix: str) -> int:
    """Number of blocks, which must be numbered 0, 1, 2, ..."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,4})\.")
    numbers = {int(found[1]) for name in source.tensors if (found := pattern.match(name))}
    missing = sorted(set(range(len(numbers))) - numbers)
    if missing:
        raise CheckpointError(
            f"{source.path} lacks block {missing[0]} of {max(numbers) + 1}, so it is incomplete: {AS_PUBLISHED}"
        )
    return len(numbers)


def _check_names(source: _Source, model: str, expected: Sequence[str], blocks: str) -> None:
    """Every expected tensor is there, and no block holds another, which would take part in the features."""
    missing = [name for name in expected if name not in source.tensors]
    if missing:
        what = _what_is_it(source.tensors, model)
        reason = what or f"it is incomplete or another model: {AS_PUBLISHED}"
        raise CheckpointError(f"{source.path} lacks {_some(missing)}, which {model} has; {reason}")
    known = set(expected)
    strange = [name for name in source.tensors if name not in known and name.startswith(f"{blocks}.")]
    if strange:
        raise CheckpointError(
            f"{source.path} holds {_some(strange)}, which {model} doesn't have, so features would be wrong: convert "
            "only unmodified models"
        )


def _check_shapes(source: _Source, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Every tensor has the shape that the others imply, and holds finite floating-point numbers."""
    for name, shape in expected.items():
        tensor = source.tensors[name]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{source.path}: {name} has shape {tuple(tensor.shape)} where the other tensors ask for {shape}, "
                f"so it is incomplete or modified: {AS_PUBLISHED}"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{source.path}: {name} holds {_dtype(tensor)}, not floating-point numbers, and quantised files "
                f"can't be converted: {AS_PUBLISHED}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{source.path}: {name} holds NaN or infinity, so it is damaged or diverged: download it again"
            )


def _shape(source: _Source, name: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a tensor that the geometry is read from."""
    shape = tuple(source.tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(
            f"{source.path}: {name} has shape {shape} where {dimensions} dimensions are needed: {AS_PUBLISHED}"
        )
    return shape


def _heads(source: _Source, width: int) -> int:
    if width % HEAD_WIDTH:
        raise CheckpointError(
            f"{source.path}: its width of {width} is no multiple of {HEAD_WIDTH}, as every published model's is, so "
            "its number of attention heads is unknown: convert only published architectures"
        )
    return width // HEAD_WIDTH


def _what_is_it(names: Iterable[str], wanted: str) -> str | None:
    """What a file that isn't the wanted model looks like, and the way out; None when it isn't known."""
    names = set(names)

    def some(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    if wanted != "AST" and "v.dist_token" in names:
        return "it is an AST checkpoint: use `alphafuse convert ast`"
    if wanted != "TimeSformer" and ("time_embed" in names or some(".temporal_")):
        return "it is a TimeSformer checkpoint: use `alphafuse convert timesformer`"
    if some("encoder.layer.", "embeddings.cls_token"):
        return "it has HuggingFace's names already: its folder needs no conversion"
    if "dist_token" in names:
        return "it looks like a DeiT image model: pass a file that TimeSformer or AST publish"
    if some("pathway"):
        return "it looks like a SlowFast model: pass a file with TimeSformer in its name"
    if "pos_embed" in names and some("blocks.") and wanted == "AST":
        return "it looks like an image transformer: pass a file that AST publishes"
    return None


def _some(names: Sequence[str], shown: int = 3, between: str = ", ") -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return between.join(names[:shown]) + more


def _check_positive(option: str, value: int | None, least: int = 1) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise CheckpointError(f"{option} {value!r} can't be: give a whole number of at least {least}")


# --------------------------------------------------------------------------------------------------- resizing


def _nearest(embedding: torch.Tensor, length: int) -> torch.Tensor:
    """(1, rows, width) -> (1, length, width), nearest along the rows."""
    return torch.nn.functional.interpolate(embedding.transpose(1, 2), size=length, mode="nearest").transpose(1, 2)


def _nearest_square(embedding: torch.Tensor, side: int) -> torch.Tensor:
    """(1, grid * grid, width) -> (1, side * side, width), nearest along the height and width of the picture."""
    grid = math.isqrt(embedding.shape[1])
    picture = embedding.transpose(1, 2).reshape(1, -1, grid, grid)  # (1, width, grid, grid)
    return torch.nn.functional.interpolate(picture, size=(side, side), mode="nearest").flatten(2).transpose(1, 2)


class _Resizer:
    """Changes tensors in place of the file's, and keeps account of it."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = dict(tensors)
        self.resized: list[ResizedTensor] = []

    def put(self, name: str, new: torch.Tensor, how: str) -> None:
        old = self.tensors[name]
        self.resized.append(ResizedTensor(name, tuple(old.shape), tuple(new.shape), how))
        self.tensors[name] = new

    def position(self, name: str, fixed: int, patches: torch.Tensor, how: str) -> None:
        """New rows for the patches; the first `fixed` rows, of CLS and distillation token, stay."""
        self.put(name, torch.cat([self.tensors[name][:, :fixed], patches], dim=1), how)


# ------------------------------------------------------------------------------------------------ TimeSformer


def convert_timesformer(
    checkpoint: Path,
    out: Path,
    *,
    image_size: int | None = None,
    frames: int | None = None,
    fed_image_size: int | None = None,
    fed_frames: int | None = None,
    attention_type: AttentionType | None = None,
) -> ConversionReport:
    """Convert an original TimeSformer file (.pyth) to a HuggingFace folder.

    `TimesformerModel.from_pretrained(out)(pixel_values).last_hidden_state[:, 0]` is then the original's
    `forward_features`, in float32 bit for bit. HuggingFace takes (batch, frames, 3, height, width), the original
    (batch, 3, frames, height, width).

    Args:
        checkpoint: `{'model_state': ...}` as published and as written by its training, or a plain state dict.
        out: folder to make; it must not exist, or be empty.
        image_size: height and width in pixels that the original would be built with (its `img_size`); by default
            the file's. Another one resizes the position embedding as the original does when it loads the file.
        frames: number of frames that the original would be built with (its `num_frames`); by default the file's.
        fed_image_size: height and width of the frames that the model will be fed, when not `image_size`: resizes
            the position embedding once more, as the original does on every pass.
        fed_frames: number of frames that the model will be fed, when not `frames`.
        attention_type: read from the names of the tensors. Only `space_only` must be given, because such a file
            can't be told from an image transformer's.

    The paper's authors load a file of 224 pixels into a model built with `image_size=448, frames=64` and feed it
    with `fed_image_size=224, fed_frames=8`.

    Raises:
        CheckpointError: the file would run code, is damaged or another model, or doesn't fit the options; nothing
            is written.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    _check_positive("--frames", frames)
    _check_positive("--fed-frames", fed_frames)
    _check_positive("--image-size", image_size)
    _check_positive("--fed-image-size", fed_image_size)
    _check_out(out)
    source = _read_source(checkpoint)

    attention = _attention_type(source, attention_type)
    names = _timesformer_names(_depth(source, "blocks"), attention)
    _check_names(source, "TimeSformer", list(names), "blocks")
    shapes = _timesformer_shapes(source, attention)
    _check_shapes(source, shapes)

    notes = _dtype_notes(source, shapes)
    patch_size = shapes["patch_embed.proj.weight"][-1]
    resizer = _Resizer({name: source.tensors[name].float() for name in names})
    fed_image = _resize_position(resizer, checkpoint, patch_size, image_size, fed_image_size)
    fed = _resize_time(resizer, frames, fed_frames)
    if attention == "space_only":
        notes.append(
            "space_only: HuggingFace lacks the original's mean over frames before the last LayerNorm; the feature is "
            "model.layernorm(hidden_states[-1][:, 0].unflatten(0, (batch, frames)).mean(1))"
        )

    width = shapes["cls_token"][-1]
    classes = shapes["head.bias"][0]
    config = TimesformerConfig(
        architectures=["TimesformerForVideoClassification"],
        dtype="float32",
        num_labels=classes,
        image_size=fed_image,
        patch_size=patch_size,
        num_channels=shapes["patch_embed.proj.weight"][1],
        num_frames=fed,
        hidden_size=width,
        num_hidden_layers=_depth(source, "blocks"),
        num_attention_heads=_heads(source, width),
        intermediate_size=shapes["blocks.0.mlp.fc1.weight"][0],
        hidden_act="gelu",
        layer_norm_eps=LAYER_NORM_EPS,
        qkv_bias=True,
        attention_type=attention,
    )
    folder = {names[name]: tensor for name, tensor in resizer.tensors.items()}
    _write_folder(out, source, config, folder, _timesformer_preprocessor(fed_image), TimesformerForVideoClassification)
    return ConversionReport(
        model="timesformer",
        source=checkpoint,
        source_sha256=source.sha256,
        out=out,
        geometry={
            "image_size": fed_image,
            "patch_size": patch_size,
            "frames": fed,
            "attention_type": attention,
            "layers": config.num_hidden_layers,
            "width": width,
            "heads": config.num_attention_heads,
        },
        classes=classes,
        dataset=TIMESFORMER_DATASETS.get(classes),
        used=tuple(name for name in source.tensors if name in names),
        resized=tuple(resizer.resized),
        unused=tuple(name for name in source.tensors if name not in names),
        beside=source.beside,
        notes=tuple(notes),
    )


def _attention_type(source: _Source, given: AttentionType | None) -> AttentionType:
    """What the tensors say: temporal attention in the blocks, a time embedding alone, or neither."""
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
            "TimeSformer trained with space_only attention, say so with --attention-type space_only"
        )
    else:
        found = "divided_space_time"  # another model: _check_names says which
    if given is not None and given != found:
        raise CheckpointError(f"{source.path} holds {found} attention, not {given}: leave --attention-type out")
    return found


def _timesformer_names(depth: int, attention: AttentionType) -> dict[str, str]:
    """Name in the file -> name in the folder, for every tensor of the model."""
    modules = TIMESFORMER_BLOCK | (TIMESFORMER_TEMPORAL if attention == "divided_space_time" else {})
    names = TIMESFORMER_TOP | (TIMESFORMER_TIME if attention != "space_only" else {})
    for block in range(max(depth, 1)):  # a model has a block; asking for it names what lacks
        for module, ours in modules.items():
            for part in ("weight", "bias"):
                names[f"blocks.{block}.{module}.{part}"] = f"{TIMESFORMER_LAYER}.{block}.{ours}.{part}"
    return names


def _timesformer_shapes(source: _Source, attention: AttentionType) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, from the few that the geometry is read from."""
    width, channels, patch_size, _ = _shape(source, "patch_embed.proj.weight", 4)
    rows = _shape(source, "pos_embed", 3)[1]
    classes = _shape(source, "head.weight", 2)[0]
    hidden = _shape(source, "blocks.0.mlp.fc1.weight", 2)[0]
    if rows < 2:
        raise CheckpointError(f"{source.path}: pos_embed has no row for a patch: {AS_PUBLISHED}")
    modules = TIMESFORMER_BLOCK | (TIMESFORMER_TEMPORAL if attention == "divided_space_time" else {})
    shapes = {
        "patch_embed.proj.weight": (width, channels, patch_size, patch_size),
        "patch_embed.proj.bias": (width,),
        "cls_token": (1, 1, width),
        "pos_embed": (1, rows, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    if attention != "space_only":
        shapes["time_embed"] = (1, _shape(source, "time_embed", 3)[1], width)
    return shapes | _expected_block_shapes("blocks", _depth(source, "blocks"), modules, width, hidden)


def _resize_position(
    resizer: _Resizer, path: Path, patch_size: int, image_size: int | None, fed_image_size: int | None
) -> int:
    """Give the position embedding the rows that the model needs; returns the image size that it is fed.

    Loading (TimeSformer's load_pretrained) resizes the patches' rows as one flat sequence, whatever the picture;
    a pass (forward_features) resizes them as a square picture. The rows of the paper's detour, 224 -> 448 -> 224,
    therefore are not the file's: half of the file's positions occur twice, the others not at all.
    """
    patches = resizer.tensors["pos_embed"].shape[1] - 1
    if image_size is None:
        if math.isqrt(patches) ** 2 != patches:
            raise CheckpointError(
                f"{path}: pos_embed has {patches} patches, no square: say what to build, such as --image-size 224"
            )
        image_size = math.isqrt(patches) * patch_size
    built = _grid(image_size, patch_size, "--image-size")
    if built**2 != patches:
        rows = _nearest(resizer.tensors["pos_embed"][:, 1:], built**2)
        resizer.position("pos_embed", 1, rows, "nearest along the flat sequence, as the original loads it")
    if fed_image_size is None:
        return image_size
    fed = _grid(fed_image_size, patch_size, "--fed-image-size")
    if fed != built:
        rows = _nearest_square(resizer.tensors["pos_embed"][:, 1:], fed)
        resizer.position("pos_embed", 1, rows, "nearest along height and width, as the original does when fed")
    return fed_image_size


def _grid(image_size: int, patch_size: int, option: str) -> int:
    """Patches along one side; pixels past the last whole patch are not seen."""
    if image_size < patch_size:
        raise CheckpointError(f"{option} {image_size} is less than one patch of {patch_size} pixels: give a larger one")
    return image_size // patch_size


def _resize_time(resizer: _Resizer, frames: int | None, fed_frames: int | None) -> int:
    """Give the time embedding the rows that the model needs; returns the number of frames that it is fed."""
    if "time_embed" not in resizer.tensors:
        return fed_frames or frames or SPACE_ONLY_FRAMES
    for wanted, when in ((frames, "as the original loads it"), (fed_frames, "as the original does when fed")):
        if wanted is not None and wanted != resizer.tensors["time_embed"].shape[1]:
            resizer.put("time_embed", _nearest(resizer.tensors["time_embed"], wanted), f"nearest, {when}")
    return resizer.tensors["time_embed"].shape[1]


def _timesformer_preprocessor(image_size: int) -> dict[str, Any]:
    """Short side scaled to the image size, centre crop, bilinear: the original's test-time input."""
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
        "image_mean": [TIMESFORMER_MEAN] * 3,
        "image_std": [TIMESFORMER_STD] * 3,
    }


# -------------------------------------------------------------------------------------------------------- AST


@dataclass(frozen=True)
class AstGrid:
    """How AST cuts its input into patches of 16 x 16: strides in mel bins and frames, input length in frames."""

    fstride: int
    tstride: int
    max_length: int

    @property
    def rows(self) -> int:
        """Patches along frequency."""
        return _steps(AST_MEL_BINS, self.fstride)

    @property
    def columns(self) -> int:
        """Patches along time."""
        return _steps(self.max_length, self.tstride)

    def __str__(self) -> str:
        """`--fstride 10 --tstride 10 --max-length 1024`."""
        return f"--fstride {self.fstride} --tstride {self.tstride} --max-length {self.max_length}"


def _steps(length: int, stride: int) -> int:
    """Positions of a convolution of 16 over `length`, without padding."""
    return (length - AST_PATCH_SIZE) // stride + 1


def convert_ast(
    checkpoint: Path,
    out: Path,
    *,
    fstride: int | None = None,
    tstride: int | None = None,
    max_length: int | None = None,
) -> ConversionReport:
    """Convert an original AST file (.pth) to a HuggingFace folder.

    `ASTModel.from_pretrained(out)(input_values).pooler_output` is then the original's mean of CLS and distillation
    token after the last LayerNorm. Both take (batch, max_length, 128). The position embedding has one row for each
    patch, frequency by frequency, so its length says how many patches there are, not how they lie: strides and input
    length are the published ones that give this many, see `infer_ast_grid`.

    Args:
        checkpoint: a state dict, as published (`module.v...`) or without prefix.
        out: folder to make; it must not exist, or be empty.
        fstride: stride of the patches in mel bins.
        tstride: stride of the patches in frames of 10 ms.
        max_length: input length in frames of 10 ms.

    The three options say what the file is when its shapes don't. The published AudioSet files (strides of 10, 1024
    frames) leave no doubt; for them `max_length` asks for another input length, to which the position embedding is
    cut or stretched as the original does with `audioset_pretrain=True`.

    Raises:
        CheckpointError: the file would run code, is damaged or another model, or its geometry can't be told;
            nothing is written.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    _check_positive("--fstride", fstride)
    _check_positive("--tstride", tstride)
    _check_positive("--max-length", max_length, least=AST_PATCH_SIZE)
    _check_out(out)
    source = _read_source(checkpoint)

    depth = _depth(source, "v.blocks")
    expected = list(AST_TOP) + _block_names("v.blocks", max(depth, 1), [*AST_BLOCK, "attn.qkv"])
    _check_names(source, "AST", expected, "v.blocks")
    shapes = _ast_shapes(source, depth)
    _check_shapes(source, shapes)

    notes = _dtype_notes(source, shapes)
    classes = shapes["mlp_head.1.bias"][0]
    recipe = AST_RECIPES.get(classes)
    resizer = _Resizer({name: source.tensors[name].float() for name in expected})
    patches = shapes["v.pos_embed"][1] - 2
    if patches == AST_AUDIOSET_PATCHES:
        if (fstride or 10, tstride or 10) != (10, 10):
            raise CheckpointError(
                f"{checkpoint}: its {patches} patches come of strides of 10, and the original fits them to no other: "
                "leave --fstride and --tstride out"
            )
        grid = AstGrid(10, 10, max_length or 1024)
        _resize_ast_position(resizer, AstGrid(10, 10, 1024), grid)
    else:
        grid, note = infer_ast_grid(
            checkpoint, patches, classes, fstride=fstride, tstride=tstride, max_length=max_length
        )
        notes += [note] if note else []
    if recipe is None:
        recipe = AST_RECIPES[527]
        notes.append(
            f"no published recipe has {classes} classes, so preprocessor_config.json has AudioSet's mean and std: "
            "put in dataset_mean and dataset_std of its training's run.sh"
        )

    width = shapes["v.cls_token"][-1]
    config = ASTConfig(
        architectures=["ASTForAudioClassification"],
        dtype="float32",
        num_labels=classes,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=_heads(source, width),
        intermediate_size=shapes["v.blocks.0.mlp.fc1.weight"][0],
        hidden_act="gelu",
        # One value for the whole model; the original's classifier alone has 1e-5, which features don't see.
        layer_norm_eps=LAYER_NORM_EPS,
        patch_size=AST_PATCH_SIZE,
        qkv_bias=True,
        frequency_stride=grid.fstride,
        time_stride=grid.tstride,
        max_length=grid.max_length,
        num_mel_bins=AST_MEL_BINS,
    )
    folder = _ast_folder(resizer.tensors, depth)
    _write_folder(out, source, config, folder, _ast_preprocessor(recipe, grid), ASTForAudioClassification)
    return ConversionReport(
        model="ast",
        source=checkpoint,
        source_sha256=source.sha256,
        out=out,
        geometry={
            "fstride": grid.fstride,
            "tstride": grid.tstride,
            "max_length": grid.max_length,
            "patches": f"{grid.rows} x {grid.columns}",
            "layers": depth,
            "width": width,
            "heads": config.num_attention_heads,
            "mean": recipe.mean,
            "std": recipe.std,
            "statistics": recipe.dataset,
        },
        classes=classes,
        dataset=AST_RECIPES[classes].dataset if classes in AST_RECIPES else None,
        used=tuple(name for name in source.tensors if name in resizer.tensors),
        resized=tuple(resizer.resized),
        unused=tuple(name for name in source.tensors if name not in resizer.tensors),
        beside=source.beside,
        notes=tuple(notes),
    )


def _ast_shapes(source: _Source, depth: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, from the few that the geometry is read from."""
    width = _shape(source, "v.patch_embed.proj.weight", 4)[0]
    rows = _shape(source, "v.pos_embed", 3)[1]
    classes = _shape(source, "mlp_head.1.weight", 2)[0]
    hidden = _shape(source, "v.blocks.0.mlp.fc1.weight", 2)[0]
    if rows < 3:
        raise CheckpointError(f"{source.path}: v.pos_embed has no row for a patch: {AS_PUBLISHED}")
    return {
        "v.patch_embed.proj.weight": (width, 1, AST_PATCH_SIZE, AST_PATCH_SIZE),
        "v.patch_embed.proj.bias": (width,),
        "v.cls_token": (1, 1, width),
        "v.dist_token": (1, 1, width),
        "v.pos_embed": (1, rows, width),
        "v.norm.weight": (width,),
        "v.norm.bias": (width,),
        "mlp_head.0.weight": (width,),
        "mlp_head.0.bias": (width,),
        "mlp_head.1.weight": (classes, width),
        "mlp_head.1.bias": (classes,),
    } | _expected_block_shapes("v.blocks", depth, [*AST_BLOCK, "attn.qkv"], width, hidden)


def infer_ast_grid(
    path: Path,
    patches: int,
    classes: int,
    *,
    fstride: int | None = None,
    tstride: int | None = None,
    max_length: int | None = None,
) -> tuple[AstGrid, str | None]:
    """The grid that a file with this many patches was made for, and what to know when it was assumed.

    Options that are given are kept to. Beyond them, the first of these rules that some grid fits decides:

    1. the strides in the file's name, `audioset_16_16_0.4422.pth`: the original's egs/audioset/ensemble.py reads
       them there;
    2. strides of 10, its default, at a published input length (1024, 512 or 128 frames);
    3. the published strides (10, 12, 14, 16, each way) at a published length, or strides of 10 at any length;
    4. any strides of 10 to 16 at a published length.

    When several grids fit rule 3 or 4, the one with the input length of the recipe with that many classes is taken,
    else the file is refused.

    Raises:
        CheckpointError: no grid or several fit; the message has the options that decide.
    """
    given = {"fstride": fstride, "tstride": tstride, "max_length": max_length}

    def fitting(fstrides: Iterable[int], tstrides: Iterable[int], any_length: bool = False) -> list[AstGrid]:
        grids = (
            _fit(patches, f, t, max_length, any_length)
            for f in ([fstride] if fstride else fstrides)
            for t in ([tstride] if tstride else tstrides)
        )
        return list(dict.fromkeys(grid for grid in grids if grid))

    named = re.search(r"_([1-9]\d?)_([1-9]\d?)(?=[_.])", path.name)
    published = fitting(AST_STRIDES, AST_STRIDES)
    possible = fitting(AST_POSSIBLE_STRIDES, AST_POSSIBLE_STRIDES)
    # With one stride given and the length free, any default for the other would be a guess.
    settled = bool(fstride and tstride) or (fstride or 10, tstride or 10) == (10, 10)
    rules = (
        fitting([int(named[1])], [int(named[2])]) if named else [],
        fitting([10], [10]),
        list(dict.fromkeys(published + fitting([10], [10], any_length=settled))),
        possible,
    )
    grids = next((grids for grids in rules if grids), [])
    recipe = AST_RECIPES.get(classes)
    if len(grids) > 1 and recipe:
        grids = [grid for grid in grids if grid.max_length == recipe.max_length] or grids
    if len(grids) == 1:
        others = [grid for grid in possible if grid != grids[0]]
        return grids[0], _assumed(grids[0], others)

    if any(given.values()):
        said = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items() if value)
    else:
        said = "strides of 10 to 16 at 1024, 512 or 128 frames"
    if grids:
        raise CheckpointError(
            f"{path}: its {patches} patches fit several geometries, so say which: {_some([*map(str, grids)], 6, ' | ')}"
        )
    raise CheckpointError(
        f"{path}: its {patches} patches don't fit {said}: give its --fstride, --tstride and --max-length"
    )


def _fit(patches: int, fstride: int, tstride: int, max_length: int | None, any_length: bool) -> AstGrid | None:
    """The grid with these strides and this many patches, if there is one.

    A stride of t fits `tstride` neighbouring lengths, which give the same features, because frames past the last
    whole patch are not seen: a published length is taken when it is among them, else the shortest.
    """
    rows = _steps(AST_MEL_BINS, fstride)
    if patches % rows:
        return None
    shortest = (patches // rows - 1) * tstride + AST_PATCH_SIZE
    if max_length is not None:
        lengths: tuple[int, ...] = (max_length,)
    else:
        lengths = (*AST_LENGTHS, shortest) if any_length else AST_LENGTHS
    fits = [length for length in lengths if shortest <= length < shortest + tstride]
    return AstGrid(fstride, tstride, fits[0]) if fits else None


def _assumed(grid: AstGrid, others: Sequence[AstGrid]) -> str | None:
    if not others:
        return None
    same = _some([*map(str, others)], between=" | ")
    return f"taken to be {grid}, but as many patches have {same}: give the options if it is one of those"


def _resize_ast_position(resizer: _Resizer, old: AstGrid, new: AstGrid) -> None:
    """Cut the position embedding from the middle along time, or stretch it (bilinear).

    This is what ASTModel(audioset_pretrain=True, input_tdim=new.max_length) does to the AudioSet file.
    """
    if new.columns == old.columns:
        return
    patches = resizer.tensors["v.pos_embed"][:, 2:]
    picture = patches.transpose(1, 2).reshape(1, -1, old.rows, old.columns)  # (1, width, frequency, time)
    if new.columns < old.columns:
        picture = picture.narrow(3, old.columns // 2 - new.columns // 2, new.columns)
        how = "cut from the middle"
    else:
        size = (old.rows, new.columns)
        picture = torch.nn.functional.interpolate(picture, size=size, mode="bilinear", align_corners=False)
        how = "bilinear along time"
    rows = picture.flatten(2).transpose(1, 2)
    resizer.position("v.pos_embed", 2, rows, f"{how}, as the original does with audioset_pretrain")


def _ast_folder(tensors: Tensors, depth: int) -> Tensors:
    """The tensors under HuggingFace's names, queries, keys and values apart."""
    folder = {ours: tensors[name] for name, ours in AST_TOP.items()}
    for block in range(depth):
        for part in ("weight", "bias"):
            for module, ours in AST_BLOCK.items():
                folder[f"{AST_LAYER}.{block}.{ours}.{part}"] = tensors[f"v.blocks.{block}.{module}.{part}"]
            thirds = tensors[f"v.blocks.{block}.attn.qkv.{part}"].chunk(3)  # each (width, width) or (width,)
            for name, third in zip(AST_QKV, thirds, strict=True):
                folder[f"{AST_LAYER}.{block}.attention.attention.{name}.{part}"] = third
    return folder


def _ast_preprocessor(recipe: AstRecipe, grid: AstGrid) -> dict[str, Any]:
    """Kaldi's log mel filter bank, padded with zeros before (x - mean) / (2 std)."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": AST_SAMPLE_RATE_HZ,
        "num_mel_bins": AST_MEL_BINS,
        "max_length": grid.max_length,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": True,
        "mean": recipe.mean,
        "std": recipe.std,
        "return_attention_mask": False,
    }


# ---------------------------------------------------------------------------------------------------- writing


def _dtype_notes(source: _Source, names: Iterable[str]) -> list[str]:
    """Features are promised in float32, so half and double precision become that; half loses nothing."""
    found = sorted({_dtype(source.tensors[name]) for name in names} - {"float32"})
    return [f"{' and '.join(found)} numbers were written as float32"] if found else []


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_out(out: Path) -> None:
    try:
        taken = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as error:
        raise CheckpointError(f"{out} can't be read: {error.strerror or error}: choose another folder") from None
    if taken:
        raise CheckpointError(f"{out} exists already and is not an empty folder: remove it or choose another")


def _write_folder(
    out: Path,
    source: _Source,
    config: Any,  # PretrainedConfig, which transformers doesn't type
    tensors: Tensors,
    preprocessor: Mapping[str, Any],
    model: Any,
) -> None:
    """Write the three files to a folder beside `out`, load it as a user would, and only then give it its name."""
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        config.save_pretrained(temporary)
        # Copies: tensors of a file may be views of each other, which safetensors doesn't write.
        save_file(
            {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
            temporary / "model.safetensors",
            metadata={"format": "pt", "source": source.path.name, "source_sha256": source.sha256},
        )
        text = json.dumps(dict(preprocessor), indent=2) + "\n"
        (temporary / "preprocessor_config.json").write_text(text, encoding="utf-8")
        _check_loads(temporary, model, out)
        for file in temporary.iterdir():
            file.chmod(0o666 & ~_umask())  # safetensors' files and mkdtemp's folders are for the owner alone
            _fsync(file)
        temporary.chmod(0o777 & ~_umask())
        temporary.replace(out)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise CheckpointError(
            f"can't write {out}: {reason}: free some space or choose another folder, then convert again"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_loads(folder: Path, model: Any, out: Path) -> None:
    """`from_pretrained` finds every tensor and no other; it would fill what lacks with random numbers."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        _, found = model.from_pretrained(folder, output_loading_info=True)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise CheckpointError(
            f"{out}: the installed transformers has other names for {_some([*map(str, wrong)])}: convert with "
            "transformers 5.23, and please report it"
        )


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

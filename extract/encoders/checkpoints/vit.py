"""What both originals share: they are timm's vision transformer, each with names of its own around the blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from alphafuse.errors import CheckpointError

from .source import AS_PUBLISHED, Shape, Source, shape_of

HEAD_WIDTH = 64  # every published model: 768 / 12 heads; AST tiny and small (DeiT): 192 / 3, 384 / 6
LAYER_NORM_EPS = 1e-6  # both originals build partial(nn.LayerNorm, eps=1e-6); HuggingFace's AST defaults to 1e-12


@dataclass(frozen=True)
class Sizes:
    """The numbers that all shapes of a model follow from, but for AST's patch size and TimeSformer's frames."""

    depth: int
    width: int
    heads: int
    hidden: int
    channels: int
    patch_size: int
    patches: int
    classes: int


@dataclass(frozen=True)
class Layout:
    """Where an original keeps the transformer, and where HuggingFace does.

    Attributes:
        model: its name, for people.
        prefix: of the transformer's names in the file.
        tokens: rows of the position embedding before the patches': CLS, and AST's distillation token.
        classifier: name of the last linear layer in the file.
        layer: prefix of HuggingFace's blocks.
        top: name in the file -> name in the folder, outside the blocks.
    """

    model: str
    prefix: str
    tokens: int
    classifier: str
    layer: str
    top: Mapping[str, str]

    @property
    def blocks(self) -> str:
        """Prefix of the blocks in the file."""
        return f"{self.prefix}blocks"

    def depth(self, source: Source) -> int:
        """Number of blocks, which must be numbered 0, 1, 2, ..."""
        pattern = re.compile(re.escape(self.blocks) + r"\.(\d{1,4})\.")
        numbers = {int(found[1]) for name in source.tensors if (found := pattern.match(name))}
        missing = sorted(set(range(len(numbers))) - numbers)
        if missing:
            raise CheckpointError(
                f"{source.path} lacks block {missing[0]} of {max(numbers) + 1}, so it is incomplete: {AS_PUBLISHED}"
            )
        return len(numbers)

    def names(self, source: Source, modules: Mapping[str, str]) -> dict[str, str]:
        """Name in the file -> name in the folder, for every tensor that the model needs.

        `modules` maps the names of one block's modules, each with a weight and a bias.
        """
        names = dict(self.top)
        for block in range(max(self.depth(source), 1)):  # a model has a block; asking for it names what lacks
            for module, ours in modules.items():
                for part in ("weight", "bias"):
                    names[f"{self.blocks}.{block}.{module}.{part}"] = f"{self.layer}.{block}.{ours}.{part}"
        return names

    def sizes(self, source: Source) -> Sizes:
        """Read from the few tensors that all others must agree with (`check_names` has found them)."""
        width, channels, patch_size, _ = shape_of(source, f"{self.prefix}patch_embed.proj.weight", 4)
        position = f"{self.prefix}pos_embed"
        patches = shape_of(source, position, 3)[1] - self.tokens
        if patches < 1:
            raise CheckpointError(f"{source.path}: {position} has no row for a patch: {AS_PUBLISHED}")
        if width % HEAD_WIDTH:
            raise CheckpointError(
                f"{source.path}: its width of {width} is no multiple of {HEAD_WIDTH}, as every published model's is, "
                "so its number of attention heads is unknown: convert only published architectures"
            )
        return Sizes(
            depth=self.depth(source),
            width=width,
            heads=width // HEAD_WIDTH,
            hidden=shape_of(source, f"{self.blocks}.0.mlp.fc1.weight", 2)[0],
            channels=channels,
            patch_size=patch_size,
            patches=patches,
            classes=shape_of(source, f"{self.classifier}.weight", 2)[0],
        )

    def shapes(self, sizes: Sizes, modules: Iterable[str]) -> dict[str, Shape]:
        """The shape of each tensor in the file, by name."""
        width, patch_size = sizes.width, sizes.patch_size
        shapes: dict[str, Shape] = {
            f"{self.prefix}patch_embed.proj.weight": (width, sizes.channels, patch_size, patch_size),
            f"{self.prefix}patch_embed.proj.bias": (width,),
            f"{self.prefix}cls_token": (1, 1, width),
            f"{self.prefix}pos_embed": (1, self.tokens + sizes.patches, width),
            f"{self.prefix}norm.weight": (width,),
            f"{self.prefix}norm.bias": (width,),
            f"{self.classifier}.weight": (sizes.classes, width),
            f"{self.classifier}.bias": (sizes.classes,),
        }
        for block in range(sizes.depth):
            for module in modules:
                weight = _block_weight(module, width, sizes.hidden)
                shapes[f"{self.blocks}.{block}.{module}.weight"] = weight
                shapes[f"{self.blocks}.{block}.{module}.bias"] = weight[:1]
        return shapes


def _block_weight(module: str, width: int, hidden: int) -> Shape:
    """Shape of the weight of one module of a block, temporal or not."""
    kind = module.removeprefix("temporal_")
    if kind in ("norm1", "norm2"):
        return (width,)
    return {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "fc": (width, width),  # TimeSformer's temporal_fc
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }[kind]

"""Names and shapes of timm's vision transformer, which both originals are built on."""

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
    """The numbers that determine all shapes of a model, except AST's patch size and TimeSformer's frames.

    Attributes:
        depth: number of blocks.
        width: length of an embedding.
        heads: number of attention heads.
        hidden: width of the MLP's hidden layer.
        channels: channels of the input.
        patch_size: side of a patch.
        patches: rows of the position embedding that belong to patches.
        classes: number of classes of the classifier.
    """

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
    """The names of the transformer's tensors in an original file and in a HuggingFace folder.

    Attributes:
        model: the model's name in messages.
        prefix: prefix of the transformer's names in the file.
        tokens: rows of the position embedding before the patches' rows: CLS, and AST's distillation token.
        classifier: name of the last linear layer in the file.
        layer: prefix of a block's names in the folder.
        top: name in the file -> name in the folder, for tensors outside the blocks.
    """

    model: str
    prefix: str
    tokens: int
    classifier: str
    layer: str
    top: Mapping[str, str]

    @property
    def blocks(self) -> str:
        """Prefix of a block's names in the file."""
        return f"{self.prefix}blocks"

    def depth(self, source: Source) -> int:
        """Return the number of blocks. Raise CheckpointError if they aren't numbered 0, 1, 2, ..."""
        pattern = re.compile(re.escape(self.blocks) + r"\.(\d{1,4})\.")
        numbers = {int(found[1]) for name in source.tensors if (found := pattern.match(name))}
        missing = sorted(set(range(len(numbers))) - numbers)
        if missing:
            raise CheckpointError(
                f"{source.path} lacks block {missing[0]} of {max(numbers) + 1}, so it is incomplete: {AS_PUBLISHED}"
            )
        return len(numbers)

    def names(self, source: Source, modules: Mapping[str, str]) -> dict[str, str]:
        """Return name in the file -> name in the folder, for every tensor that the model needs.

        `modules` maps the names of one block's modules in the same way. Each module has a weight and a bias.
        """
        names = dict(self.top)
        for block in range(
            max(self.depth(source), 1)
        ):  # at least one block, so that `check_names` can name what is missing
            for module, new_name in modules.items():
                for part in ("weight", "bias"):
                    names[f"{self.blocks}.{block}.{module}.{part}"] = f"{self.layer}.{block}.{new_name}.{part}"
        return names

    def sizes(self, source: Source) -> Sizes:
        """Read the sizes from a few tensors, which `check_names` has found. `check_tensors` compares all others.

        Raises:
            CheckpointError: a shape is wrong, or the number of attention heads is unknown.
        """
        width, channels, patch_size, _ = shape_of(source, f"{self.prefix}patch_embed.proj.weight", 4)
        position = f"{self.prefix}pos_embed"
        patches = shape_of(source, position, 3)[1] - self.tokens
        if patches < 1:
            raise CheckpointError(f"{source.path}: {position} has no rows for patches: {AS_PUBLISHED}")
        if width % HEAD_WIDTH:
            raise CheckpointError(
                f"{source.path}: its width of {width} is not a multiple of {HEAD_WIDTH}, unlike in every published "
                "model, so its number of attention heads is unknown: convert only published architectures"
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
        """Return the expected shape of each tensor in the file, by name."""
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
    """Return the shape of the weight of one module of a block, temporal or not."""
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

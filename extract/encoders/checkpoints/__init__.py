"""Original checkpoints -> HuggingFace folders: `convert_timesformer` (.pyth) and `convert_ast` (.pth).

    published file -> tensors by name -> geometry -> checked, resized, renamed -> config + weights + preprocessing
    |------- source.py -------------|    |------ timesformer.py, ast.py -----|    |---------- folder.py ---------|

Both models are timm's vision transformer (vit.py). The layout of an AST file's patches is inferred (grid.py).

The supported files are those that https://github.com/facebookresearch/TimeSformer and
https://github.com/YuanGongND/ast link to in their READMEs, and those that their training scripts write. A conversion
changes names, not features. In float32, the folder gives the original's CLS feature exactly, and AST's mean of CLS and
distillation token to about 1e-6.

To be exact, the conversion of a TimeSformer keeps three geometries apart:

- The geometry of the *file* is read from the shapes of its tensors.
- The original model is *built* with `image_size` and `frames`. If these differ from the file's, the original resizes
  the embeddings while loading (position: as a flat sequence; time: nearest).
- The model is *fed* with `fed_image_size` and `fed_frames`. If these differ from what it was built with, the original
  resizes again on every pass (position: as a square; time: nearest). The conversion resizes once, because
  HuggingFace's TimeSformer fixes the number of frames in its configuration and gives wrong features, without an
  error, when it is fed another number.
"""

from __future__ import annotations

from .ast import convert_ast
from .folder import ConversionReport, ResizedTensor
from .grid import AST_LENGTHS, AST_STRIDES, AstGrid, AstInput, infer_ast_grid
from .timesformer import ATTENTION_TYPES, AttentionType, convert_timesformer

__all__ = [
    "AST_LENGTHS",
    "AST_STRIDES",
    "ATTENTION_TYPES",
    "AstGrid",
    "AstInput",
    "AttentionType",
    "ConversionReport",
    "ResizedTensor",
    "convert_ast",
    "convert_timesformer",
    "infer_ast_grid",
]

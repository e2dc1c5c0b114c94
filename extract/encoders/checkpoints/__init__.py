"""Original checkpoints -> HuggingFace folders: `convert_timesformer` (.pyth) and `convert_ast` (.pth).

    published file -> tensors by name -> geometry -> checked, resized, renamed -> config + weights + preprocessing
    |------- source.py -------------|    |------ timesformer.py, ast.py -----|    |---------- folder.py ---------|

Both models are timm's vision transformer (vit.py); how an AST file's patches lie must be inferred (grid.py).

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

from .ast import convert_ast
from .folder import ConversionReport, ResizedTensor
from .grid import AST_LENGTHS, AST_STRIDES, AstGrid, AstRecipe, infer_ast_grid
from .timesformer import ATTENTION_TYPES, AttentionType, convert_timesformer

__all__ = [
    "AST_LENGTHS",
    "AST_STRIDES",
    "ATTENTION_TYPES",
    "AstGrid",
    "AstRecipe",
    "AttentionType",
    "ConversionReport",
    "ResizedTensor",
    "convert_ast",
    "convert_timesformer",
    "infer_ast_grid",
]

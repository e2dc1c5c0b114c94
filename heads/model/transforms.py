"""Alpha-transforms: functions applied to the embeddings of one, several or all streams before fusion.

The paper transforms one of the two streams and leaves the other unchanged (paper section 3, table 1). Each transform
is a function `(x, alpha) -> y`, x and y tensors (..., dim); `TRANSFORMS` lists them by name. Every transform maps zeros
to zeros, so an absent embedding stays zeros.

To add a transform, write a function and add a line to `TRANSFORMS`. The functions use only tensor methods, so that this
module loads no torch and the command line can list the transforms quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from alphafuse.errors import ExperimentError, unknown

if TYPE_CHECKING:
    import torch

POS_SCALAR = 1.5  # paper section 3, table 1; the authors' notebook multiplies by 2 under headings that say 1.5
NOTEBOOK_POS_SCALAR = 2.0  # factor of `pos-scalar` for embeddings of protocol `notebook`
NEG_SCALAR = 0.75  # paper section 3, table 1, and the authors' notebook (whose headings say 0.5)
FLOAT32_MAX, FLOAT32_TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


def identity(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Return x, the untransformed baseline."""
    return x


def square_root(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """sqrt(relu(x)), as the authors' notebook computes the paper's "square root" (table 1, rows 1 and 4).

    Negative features become 0. The gradient at 0 is infinite, but embeddings are constants and need none.
    """
    return x.relu().sqrt()


def signed_square_root(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """sign(x) * sqrt(|x|): a square root that keeps the negative half (power normalisation, Perronnin et al. 2010)."""
    return x.sign() * x.abs().sqrt()


def signed_power(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """sign(x) * |x|^alpha, alpha > 0: power normalisation (Perronnin et al. 2010); signed-sqrt is alpha 0.5.

    alpha below 1 reduces the ratio of large to small features; alpha above 1 increases it.
    """
    return x.sign() * x.abs() ** alpha


def signed_logarithm(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """sign(x) * log(1 + |x|): about x near 0, logarithmic far from it ("symlog", Webber 2013, Hafner et al. 2023)."""
    return x.sign() * x.abs().log1p()


def hyperbolic_tangent(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """tanh(alpha * x), in [-1, 1]: about alpha x near 0, saturated where |alpha x| is large."""
    return (alpha * x).tanh()


def unit_length(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """x / max(|x|, 1e-12), |x| the Euclidean length of each vector (l2 normalisation, Perronnin et al. 2010).

    All that a vector's length says is gone: all streams weigh the same when it is on all.
    """
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def scaled(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Return alpha * x: the paper's scalar transforms (table 1, rows 2, 3, 5 and 6) and any other alpha.

    With an alpha of shape (dim,), each dimension has its own factor: a diagonal matrix (LayerScale, Touvron et al.
    2021).
    """
    return alpha * x


@dataclass(frozen=True)
class Transform:
    """An entry of `TRANSFORMS`.

    Attributes:
        function: `(x, alpha) -> y`, x and y (..., dim), alpha () or (dim,).
        formula: the formula as shown to users.
        alpha: "none" (takes no alpha), "fixed" (always `value`), "required" (the experiment's), "optional" (the
            experiment's, or `value`), "learned" (one number, trained with the head, initially the experiment's alpha
            or `value`), "learned-dim" (the same with one number per dimension).
        value: alpha if the experiment gives none.
        positive: whether alpha must be above 0.
    """

    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    formula: str
    alpha: Literal["none", "fixed", "required", "optional", "learned", "learned-dim"] = "none"
    value: float = 1.0
    positive: bool = False

    @property
    def takes_alpha(self) -> bool:
        """Whether the experiment may give an alpha."""
        return self.alpha not in ("none", "fixed")

    @property
    def learns(self) -> bool:
        """Whether alpha is trained with the head."""
        return self.alpha in ("learned", "learned-dim")

    @property
    def is_scale(self) -> bool:
        """Whether it multiplies x by one number; normalisation after the transform cancels a positive one."""
        return self.function is scaled and self.alpha != "learned-dim"


TRANSFORMS: dict[str, Transform] = {
    "none": Transform(identity, "x"),
    "sqrt": Transform(square_root, "sqrt(relu(x))"),
    "signed-sqrt": Transform(signed_square_root, "sign(x) sqrt(|x|)"),
    "power": Transform(signed_power, "sign(x) |x|^alpha", alpha="required", positive=True),
    "log1p": Transform(signed_logarithm, "sign(x) log(1 + |x|)"),
    "tanh": Transform(hyperbolic_tangent, "tanh(alpha x)", alpha="optional"),
    "l2": Transform(unit_length, "x / |x|"),
    "pos-scalar": Transform(scaled, f"{POS_SCALAR} x", alpha="fixed", value=POS_SCALAR),
    "neg-scalar": Transform(scaled, f"{NEG_SCALAR} x", alpha="fixed", value=NEG_SCALAR),
    "scale": Transform(scaled, "alpha x", alpha="required"),
    "learned": Transform(scaled, "alpha x, alpha trained with the head", alpha="learned"),
    "learned-dim": Transform(scaled, "alpha x, an alpha per dimension trained with the head", alpha="learned-dim"),
}
ALPHA_TRANSFORMS = tuple(name for name, transform in TRANSFORMS.items() if transform.takes_alpha)


def check_transform(name: str, alpha: float | None) -> Transform:
    """Return the transform of that name, after checking that it accepts this alpha.

    Raises:
        ExperimentError: the name is unknown; alpha is missing, given to a transform that takes none, not finite, or
            not above 0 where it must be.
    """
    if name not in TRANSFORMS:
        raise ExperimentError(unknown("transform", name, TRANSFORMS))
    transform = TRANSFORMS[name]
    if transform.alpha == "required" and alpha is None:
        raise ExperimentError(f"transform '{name}' needs an alpha: give one (--alpha 1.25)")
    if alpha is not None and not transform.takes_alpha:
        raise ExperimentError(
            f"transform '{name}' ({transform.formula}) takes no alpha: leave --alpha out, or use one of "
            f"{', '.join(ALPHA_TRANSFORMS)}"
        )
    if alpha is not None and not abs(alpha) <= FLOAT32_MAX:  # NaN compares false
        raise ExperimentError(f"alpha must be a finite number that float32 can hold, not {alpha}")
    if alpha is not None and transform.positive and alpha < FLOAT32_TINY:  # 0 in float32
        raise ExperimentError(
            f"transform '{name}' ({transform.formula}) needs an alpha above 0, not {alpha}: alpha 0 turns every "
            "feature into 1 or -1, and a negative alpha divides by features that are 0"
        )
    return transform
